"""What an experiment allows to say: who beats whom, with how many seeds, and out of how many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trader.cells import ExperimentRow
from trader.clock import WallClock
from trader.comparison import Positions
from trader.experiment_claims import judge
from trader.experiment_tables import Place, Results, Row

DAYS = 600
RETURNS = np.random.default_rng(0).normal(0, 0.01, DAYS)


def results(target: str, positions: dict[Place, Positions]) -> Results:
    """Return an experiment that holds these positions and nothing else."""
    keys = list(dict.fromkeys(place.method for place in positions))
    settings = {"evaluation": {"risk_free": 0.02, "resamples": 200}}
    request = {"target": target, "seed": 0, "settings": settings, "tables": [1, 2, 3]}
    row = ExperimentRow(
        id=1, name="finin", request=request, status="finished", facts={}, started_at=WallClock().now(), finished_at=None
    )
    return Results(
        experiment=row,
        rows=[Row(key, key.upper(), "", (2,)) for key in keys],
        markets=list(dict.fromkeys(place.market for place in positions)),
        lookbacks=[1],
        protocols=["walkforward"],
        positions=positions,
        figures={},
        gaps={},
        paper={},
        seconds=0.0,
        trained=0,
    )


def right(share: float, seeds: int = 1, draw: int = 1) -> Positions:
    """Return a method that takes the right side on this share of days, drawn anew for each seed."""
    rng = np.random.default_rng(draw)
    sides = np.where(rng.random((seeds, DAYS)) < share, np.sign(RETURNS), -np.sign(RETURNS))
    noise = rng.normal(0, 0.01, (seeds, DAYS))
    return Positions(sides=sides, next_return=RETURNS, windows=[DAYS], forecast=(2 * share - 1) * RETURNS + noise)


def at(method: str, market: str = "toy", protocol: str = "walkforward", lookback: int = 1) -> Place:
    return Place(method, market, lookback, protocol)


def test_a_reader_that_beats_the_sketch_is_said_to_and_one_that_loses_to_it_too() -> None:
    found = judge(results("same_day", {at("ridge"): right(0.7), at("finin"): right(0.95, 3), at("naf"): right(0.5)}))
    by_method = {one.method: one.found for one in found.differences}
    assert set(by_method) == {"finin", "naf"} and found.claims == []
    assert by_method["finin"].low is not None and by_method["finin"].low > 0
    assert by_method["naf"].high is not None and by_method["naf"].high < 0


def test_finin_is_compared_with_each_method_on_the_walk_forward_alone() -> None:
    held = {at("finin"): right(0.6), at("naf"): right(0.4), at("always_buy"): right(0.5)}
    windows = {at(method, protocol="windows"): right(0.5) for method in ("finin", "naf", "pen")}
    found = judge(results("next_day", {**held, **windows}))
    assert [(one.method, one.against) for one in found.differences] == [("finin", "naf"), ("finin", "always_buy")]
    value = found.differences[0].found.value
    assert value is not None and value > 3  # a year's Sharpe ratio of six days right in ten against four


def test_several_seeds_win_nothing_over_one_by_being_averaged() -> None:
    """Three seeds of a worthless method, averaged, have less variance: with one seed each nothing is gained."""
    many = right(0.53, seeds=3, draw=2)
    one = Positions(sides=many.sides[:1], next_return=RETURNS, windows=[DAYS])
    [found] = judge(results("next_day", {at("finin"): many, at("no_news"): one})).differences
    assert found.found.value == pytest.approx(0, abs=1e-12)


def test_the_best_sharpe_ratio_is_deflated_by_all_methods_of_all_markets() -> None:
    held: dict[Place, Positions] = {}
    for market in ("toy", "other"):
        held |= {at(f"m{k}", market): right(0.5, draw=10 + k) for k in range(4)}
        held[at("always_buy", market)] = right(0.5, draw=9)
    sentences = judge(results("next_day", held)).sentences
    assert len(sentences) == 3 and "The best of 8 worthless ones" in sentences[-1]
    assert all("is not shown to earn more than Always Buy" in line for line in sentences[:2])
    held[at("m0", "toy")] = right(0.75)
    better = judge(results("next_day", held)).sentences
    assert "M0 at t = 1) is shown to earn more than Always Buy" in better[0]
    assert "is that of M0 at t = 1 on toy" in better[-1]


def test_the_same_experiment_gives_the_same_words() -> None:
    held: Any = {at("finin"): right(0.55), at("naf"): right(0.5, draw=3), at("always_buy"): right(0.5, draw=4)}
    assert judge(results("next_day", held)) == judge(results("next_day", held))
