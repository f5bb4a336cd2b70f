"""The paper's claims: each contrast by hand and on its own table, and verdicts that say no more than they may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
import math
import re

import numpy as np
import pytest

from trader.claims import STATEMENTS, Claim, judge_claims, shared_lookbacks, slope, weighted
from trader.comparison import Positions, holm, paired

LOOKBACKS = (1, 3, 5, 10, 20)
METHODS = ("complete", "no_news", "no_text", "no_quantifier")
WINDOWS = [100] * 4
DAYS = sum(WINDOWS)
BY_NAME = {statement.name: statement for statement in STATEMENTS}

# The paper's table 3, Sharpe ratios on the S&P 500: by method, lookbacks 1, 3, 5, 10, 20.
PAPER = {
    "complete": (1.223, 1.247, 1.192, 1.643, 1.772),
    "no_news": (1.021, 0.905, -0.350, 1.120, 1.126),
    "no_text": (1.093, 0.696, 0.435, 1.301, 1.480),
    "no_quantifier": (0.741, 0.084, -0.231, 0.967, 1.064),
}


def market(skill: Mapping[str, tuple[float, ...]], seed: int = 0) -> dict[tuple[str, int], Positions]:
    """Return what methods of given shares of right sides, one a lookback, did on a market."""
    rng = np.random.default_rng(seed)
    returns = rng.standard_t(5, DAYS) * 0.008
    truth = np.where(returns > 0, 1.0, -1.0)
    found = {}
    for method, shares in skill.items():
        for lookback, share in zip(LOOKBACKS, shares, strict=False):
            sides = np.where(rng.random(DAYS) < share, truth, -truth)
            found[method, lookback] = Positions(sides, returns, WINDOWS)
    return found


def judged(series: dict[tuple[str, int], Positions]) -> dict[str, Claim]:
    return {claim.name: claim for claim in judge_claims({"spx": series}, seed=0, resamples=300)}


def a_claim(**changes: object) -> Claim:
    claim = Claim(
        name="news helps",
        market="spx",
        statement="news helps, all lookbacks taken together",
        measure="Sharpe gained from news, mean over lookbacks",
        lookbacks=LOOKBACKS,
        days=490,
        statistic=0.4,
        low=-0.1,
        high=0.9,
        p_value=0.06,
        p_holm=0.3,
    )
    return replace(claim, **changes)  # type: ignore[arg-type]


def test_the_papers_own_table_puts_through_the_same_sums() -> None:
    """Point estimates alone, as printed: each claim has the sign that the paper says."""
    figures = {(method, t): value for method in METHODS for t, value in zip(LOOKBACKS, PAPER[method], strict=True)}
    slope_by_numpy = np.polyfit(np.log2(LOOKBACKS), PAPER["complete"], 1)[0]
    lead = [complete - none for complete, none in zip(PAPER["complete"], PAPER["no_news"], strict=True)]
    expected = {
        "long memory": slope_by_numpy,
        "news at long lookbacks": lead[-1] - lead[0],
        "news helps": np.mean(lead),
        "averaging hurts": np.mean(PAPER["no_news"]) - np.mean(PAPER["no_quantifier"]),
        "text beyond sentiment": np.mean(PAPER["complete"]) - np.mean(PAPER["no_text"]),
    }
    assert {name: weighted(BY_NAME[name], figures) for name in BY_NAME} == pytest.approx(expected)
    assert min(expected.values()) > 0
    assert weighted(BY_NAME["news helps"], {("complete", 1): 1.0}) is None


def test_were_all_sharpe_ratios_equal_every_claims_figure_would_be_0() -> None:
    for statement in STATEMENTS:
        assert math.fsum(statement.weights(LOOKBACKS).values()) == pytest.approx(0, abs=1e-12)


def test_a_slope_of_doublings_is_found_by_its_weights() -> None:
    weights = slope("complete", (1, 2, 8))
    figures = {("complete", t): 0.7 + 0.25 * math.log2(t) for t in (1, 2, 8)}
    assert math.fsum(weight * figures[key] for key, weight in weights.items()) == pytest.approx(0.25)


def test_claims_that_are_planted_hold() -> None:
    found = judged(
        market(
            {
                "complete": (0.52, 0.58, 0.66, 0.75, 0.85),
                "no_news": (0.52, 0.52, 0.52, 0.52, 0.52),
                "no_text": (0.50, 0.50, 0.50, 0.50, 0.50),
                "no_quantifier": (0.40, 0.40, 0.40, 0.40, 0.40),
            }
        )
    )
    assert {name: claim.verdict for name, claim in found.items()} == dict.fromkeys(BY_NAME, "holds")
    assert found["long memory"].statistic is not None and found["long memory"].statistic > 1


def test_the_opposite_of_a_claim_makes_it_not_hold() -> None:
    found = judged(
        market(
            {
                "complete": (0.85, 0.75, 0.66, 0.58, 0.50),
                "no_news": (0.40, 0.40, 0.40, 0.40, 0.90),
                "no_text": (0.90, 0.90, 0.90, 0.90, 0.90),
                "no_quantifier": (0.80, 0.80, 0.80, 0.80, 0.80),
            }
        )
    )
    refuted = {name for name, claim in found.items() if claim.verdict == "does not hold"}
    assert refuted == set(BY_NAME) - {"news helps"}
    assert found["averaging hurts"].p_holm == 1


def test_coins_allow_no_verdict() -> None:
    found = judged(market(dict.fromkeys(METHODS, (0.5,) * 5), seed=3))
    assert {claim.verdict for claim in found.values()} == {"cannot be told on this much data (400 test days)"}
    assert found["news helps"].days == 400


def test_a_claim_of_one_lookback_is_the_paired_difference() -> None:
    series = market({"complete": (0.6,), "no_text": (0.5,)})
    claim = judged(series)["text beyond sentiment"]
    alone = paired(series["complete", 1], series["no_text", 1], seed=0, resamples=300)
    assert (claim.statistic, claim.low, claim.high, claim.p_value) == (
        alone.difference,
        alone.low,
        alone.high,
        alone.p_value,
    )


def test_what_was_not_run_cannot_be_tested() -> None:
    found = judged(market({"complete": (0.5,), "no_quantifier": (0.5,)}))
    assert found["news helps"].verdict == "cannot be tested: “− news” was not run"
    assert found["averaging hurts"].sentence == (
        "spx: “averaging the news is worse than no news” cannot be tested: “− news” was not run."
    )
    assert found["long memory"].verdict == (
        "cannot be tested: it needs 2 lookbacks that all its methods have, and there are 1"
    )
    assert [claim.p_holm for claim in found.values()] == [None] * 5


def test_a_claim_uses_the_lookbacks_that_all_its_methods_have() -> None:
    series = market({"complete": (0.5,) * 5, "no_news": (0.5,) * 3})
    assert shared_lookbacks(BY_NAME["news helps"], series) == (1, 3, 5)
    assert judged(series)["long memory"].lookbacks == LOOKBACKS


def test_a_method_without_a_sharpe_ratio_is_named() -> None:
    series = market({"complete": (0.5,), "no_news": (0.5,)})
    idle = Positions(np.zeros(DAYS), series["complete", 1].next_return, WINDOWS)
    claim = judged(series | {("no_news", 1): idle})["news helps"]
    assert claim.verdict == "cannot be tested: no_news, 1: its returns do not vary in at least one window"


def test_p_values_are_adjusted_over_all_claims_of_all_markets() -> None:
    skill = {"complete": (0.5, 0.55), "no_news": (0.5, 0.5), "no_text": (0.5, 0.45)}
    claims = judge_claims({"spx": market(skill), "ndx": market(skill, seed=1)}, seed=0, resamples=200)
    assert [claim.market for claim in claims] == ["spx"] * 5 + ["ndx"] * 5
    tested = {at: claim.p_value for at, claim in enumerate(claims) if claim.p_value is not None}
    assert len(tested) == 8  # without "averaging hurts"
    assert {at: claims[at].p_holm for at in tested} == holm(tested)


@pytest.mark.parametrize(
    ("p_holm", "low", "high", "verdict"),
    [
        (0.049, -0.1, 0.9, "holds"),
        (0.051, 0.01, 0.9, "cannot be told on this much data (490 test days)"),
        (1.0, -0.9, 0.0, "cannot be told on this much data (490 test days)"),
        (1.0, -0.9, -0.01, "does not hold"),
    ],
)
def test_the_verdict_says_no_more_than_the_figures(p_holm: float, low: float, high: float, verdict: str) -> None:
    assert a_claim(p_holm=p_holm, low=low, high=high).verdict == verdict


def test_the_sentence_has_the_claim_the_verdict_and_the_figures() -> None:
    assert a_claim().sentence == (
        "spx: “news helps, all lookbacks taken together” cannot be told on this much data (490 test days): Sharpe "
        "gained from news, mean over lookbacks +0.40, 95 % interval −0.10 to +0.90, p = 0.300 after Holm."
    )
    assert re.search(r"p < 0\.001 after Holm", a_claim(p_holm=0.0004).sentence)
