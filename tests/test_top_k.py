"""TopK by what it holds: ranking, weights, what is kept, caps and bands; and the strategies of one symbol beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
import math
from typing import Any

import pandas as pd
import pytest

from strategies.base import FractionalSizes, bt
from strategies.long_only import LongOnly
from strategies.long_short import LongShort
from strategies.signal_data import SignalData
from strategies.threshold import Threshold
from strategies.top_k import TopK
from strategies.vol_target import VolTarget
from tests.test_broker import EXECUTIONS
from tests.test_strategies import exposures, run, swing
from tests.test_universe_broker import FREE, bar, batch, but_open, check_account, stepped, wild_market
from trader.broker import Costs, SessionRecord
from trader.errors import ConfigError
from trader.events import Signal
from trader.universe_broker import UniverseSession, by_session, trade_universe

FIRST = date(2018, 1, 1)
Forecasts = Mapping[str, Sequence[float | None]]


def market(
    p_up: Forecasts, expected: Forecasts | None = None, closes: Mapping[str, Sequence[float | None]] | None = None
) -> list[UniverseSession]:
    """Sessions at a level 100, or at ``closes``; None in p_up abstains, in closes is a session without a bar."""
    bars, signals = [], []
    for symbol, path in p_up.items():
        for at, p in enumerate(path):
            session, close = FIRST + timedelta(days=at), (closes or {}).get(symbol, [100.0] * len(path))[at]
            if close is not None:
                bars.append(bar(symbol, session, close, close))
                given = None if p is None else (expected or {}).get(symbol, [None] * len(path))[at]
                side = 0 if p is None else (p > 0.5) - (p < 0.5)
                signals.append(
                    Signal(session=session, symbol=symbol, p_up=p, side=side, model_id="test", expected_return=given)
                )
    return by_session(bars, signals)


def held(days: Sequence[UniverseSession], costs: Costs = FREE, **params: Any) -> list[dict[str, float]]:
    """What TopK holds after each session, as shares of equity; it trades at the close."""
    symbols = sorted({symbol for one in days for symbol in one.bars})
    found, summary = batch(symbols, days, TopK, params=params, costs=costs, execution="close")
    assert summary.cut == (), "no order of its own is cut by the limit that it is made for"
    return [{h.symbol: round(h.value / r.equity, 6) for h in r.holdings} for r in found]


def flat(**p_up: float | None) -> dict[str, list[float | None]]:
    return {symbol: [p] for symbol, p in p_up.items()}


# What is held.


def test_the_best_are_held_long_and_the_worst_short_at_half_of_gross_each() -> None:
    days = market(flat(A=0.9, B=0.6, C=0.5, D=0.4, E=0.1))
    assert held(days, k=2) == [{"A": 0.25, "B": 0.25, "D": -0.25, "E": -0.25}]
    assert held(days, k=1, gross=0.5) == [{"A": 0.25, "E": -0.25}]
    assert held(days, k=2, long_only=True) == [{"A": 0.5, "B": 0.5}]


def test_what_falls_out_of_the_best_is_sold_and_what_comes_in_is_bought_in_the_same_session() -> None:
    days = market({"A": [0.9, 0.1, 0.1], "B": [0.8, 0.8, 0.2], "C": [0.2, 0.9, 0.8], "D": [0.1, 0.3, 0.9]})
    assert held(days, k=1) == [{"A": 0.5, "D": -0.5}, {"A": -0.5, "C": 0.5}, {"A": -0.5, "D": 0.5}]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_whole_turn_of_the_portfolio_at_the_exposure_limit_is_not_cut(execution: str) -> None:
    names = "ABCDEFGH"
    up = {name: [0.9 - 0.05 * ((at * 3 + n) % 8) for at in range(12)] for n, name in enumerate(names)}
    closes = {name: [100 * 1.03 ** ((at * (n + 2)) % 5) for at in range(12)] for n, name in enumerate(names)}
    found, summary = batch(names, market(up, closes=closes), TopK, params={"k": 3}, execution=execution)
    assert summary.cut == summary.refused == () and summary.fills > 50
    assert {len(record.holdings) for record in found[1:]} == {6}


@pytest.mark.parametrize("feeds", ["ABCD", "DCBA", "BDAC"])
def test_equal_scores_go_by_name_whatever_the_order_of_the_feeds(feeds: str) -> None:
    (record,), _ = batch(
        feeds, market(flat(D=0.6, C=0.6, B=0.6, A=0.6)), TopK, params={"k": 1}, costs=FREE, execution="close"
    )
    assert {one.symbol: one.value for one in record.holdings} == {"A": 50_000, "D": -50_000}


def test_with_fewer_than_2k_forecasts_each_side_has_half_of_them_and_one_alone_is_not_traded() -> None:
    assert held(market(flat(A=0.9, B=0.6, C=0.4)), k=5) == [{"A": 0.5, "C": -0.5}]
    assert held(market(flat(A=0.9)), k=5) == [{}]
    assert held(market(flat(A=0.9, B=0.6)), k=5, long_only=True) == [{"A": 0.5, "B": 0.5}]
    only_a = market({"A": [0.9, 0.9], "B": [0.1, None]})
    assert held(only_a, k=1)[1] == {"A": 0.5, "B": -0.5}  # nothing is closed because a forecast is missing


def test_auto_ranks_by_the_expected_return_where_all_have_one_and_by_p_up_where_not() -> None:
    up = flat(A=0.9, B=0.6, C=0.4)
    all_, some = flat(A=-0.02, B=0.03, C=0.01), flat(A=-0.02, B=None, C=0.01)
    assert held(market(up, all_), k=1) == [{"A": -0.5, "B": 0.5}]
    assert held(market(up, some), k=1) == [{"A": 0.5, "C": -0.5}]
    assert held(market(up, all_), k=1, by="p_up") == [{"A": 0.5, "C": -0.5}]
    assert held(market(up, some), k=1, by="expected_return") == [{"A": -0.5, "C": 0.5}]  # B is not forecast


def test_a_symbol_without_a_forecast_or_a_bar_keeps_its_position_and_its_part_of_gross() -> None:
    up = {"A": [0.9, None, None, 0.9], "B": [0.8, 0.8, 0.8, 0.8], "C": [0.3, 0.3, 0.9, 0.3], "D": [0.1, 0.1, 0.1, 0.1]}
    closes = {"D": [100.0, 100.0, None, 100.0], **{name: [100.0] * 4 for name in "ABC"}}
    found = held(market(up, closes=closes), k=1)
    assert found[:2] == [{"A": 0.5, "D": -0.5}, {"A": 0.5, "B": 0.25, "D": -0.25}]
    # The third: A (no forecast) and D (no bar) take 0.75, and C and B share what is left.
    assert found[2] == {"A": 0.5, "B": -0.125, "C": 0.125, "D": -0.25}
    assert found[3] == {"A": 0.5, "D": -0.5}


def test_inverse_volatility_weights_within_each_side() -> None:
    closes = {"A": swing(0.01, 8), "B": swing(0.03, 8), "C": swing(0.02, 8), "D": swing(0.02, 8)}
    up = {"A": [0.9] * 8, "B": [0.8] * 8, "C": [0.2] * 8, "D": [0.1] * 8}
    found = held(market(up, closes=closes), k=2, weights="volatility", lookback=4)
    assert found[:4] == [{}] * 4  # no weights before there are four returns
    assert found[4] == {"A": 0.375, "B": 0.125, "C": -0.25, "D": -0.25}


def test_one_that_never_moved_weighs_as_much_as_the_calmest_beside_it() -> None:
    closes = {"A": [100.0] * 6, "B": swing(0.01, 6), "C": swing(0.03, 6), "D": [100.0] * 6}
    up = {"A": [0.9] * 6, "B": [0.8] * 6, "C": [0.7] * 6, "D": [0.1] * 6}
    found = held(market(up, closes=closes), k=3, weights="volatility", lookback=3, long_only=True)
    assert found[-1] == {
        "A": pytest.approx(3 / 7, abs=1e-5),
        "B": pytest.approx(3 / 7, abs=1e-5),
        "C": pytest.approx(1 / 7, abs=1e-5),
    }


def test_a_turnover_cap_goes_the_same_part_of_every_way_and_the_rest_next_time() -> None:
    up = {"A": [0.9] * 5, "B": [0.1] * 5}
    found = held(market(up), k=1, turnover_cap=0.4)
    assert found == [
        {"A": 0.2, "B": -0.2},
        {"A": 0.4, "B": -0.4},
        *[{"A": 0.5, "B": -0.5}] * 3,
    ]


def test_between_rebalances_nothing_is_traded() -> None:
    up = {"A": [0.9, 0.1, 0.1, 0.1], "B": [0.1, 0.9, 0.9, 0.9]}
    assert held(market(up), k=1, rebalance_every=3) == [{"A": 0.5, "B": -0.5}] * 3 + [{"A": -0.5, "B": 0.5}]


def test_within_its_band_a_weight_is_left_alone_and_the_furthest_above_is_brought_down_where_gross_asks_for_it() -> (
    None
):
    up = {"A": [0.9] * 3, "B": [0.8] * 3, "C": [0.2] * 3, "D": [0.1] * 3}
    closes = {"A": [100.0, 104.0, 104.0], "B": [100.0] * 3, "C": [100.0, 101.2, 101.2], "D": [100.0] * 3}
    days = market(up, closes=closes)
    tight, banded, wide = held(days, k=2), held(days, k=2, hold_band=0.05), held(days, k=2, gross=0.9, hold_band=0.05)
    assert tight[1] == {"A": 0.25, "B": 0.25, "C": -0.25, "D": -0.25}
    # Drifted to 0.2582, 0.2483, −0.2512 and −0.2483, which is 1.006; without A's 0.0082 it is below 1, and C may stay.
    assert banded[1] == {"A": 0.25, "B": 0.248262, "C": -0.251241, "D": -0.248262}
    assert [sum(map(abs, one.values())) <= 0.9 + 1e-5 for one in wide] == [True] * 3


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"k": 0}, "k must be a whole number ≥ 1, got 0"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"by": "score"}, "by must be one of auto, expected_return, p_up"),
        ({"weights": "cap"}, "weights one of equal, volatility"),
        ({"lookback": 1}, "lookback must be a whole number ≥ 2"),
        ({"rebalance_every": 0}, "rebalance_every must be"),
        ({"gross": 0}, "gross must be positive"),
        ({"turnover_cap": -1}, "turnover_cap and hold_band not negative"),
        ({"hold_band": math.nan}, "turnover_cap and hold_band not negative"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        held(market(flat(A=0.9, B=0.1)), **params)


# In time, and in anybody's own Cerebro.


@pytest.mark.parametrize("weights", ["equal", "volatility"])
def test_stepping_equals_the_batch_and_the_ledger_of_the_tests(weights: str) -> None:
    days = wild_market(7, 80, "ABCDEFGH")
    params = {"k": 3, "weights": weights, "lookback": 5, "hold_band": 0.01, "turnover_cap": 0.6}
    found, summary = batch("ABCDEFGH", days, TopK, params=params, costs=Costs())
    assert stepped("ABCDEFGH", days, TopK, params=params, costs=Costs()) == but_open(found)
    check_account(days, found, Costs())
    assert summary.fills > 50


class Weights(bt.Analyzer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def next(self) -> None:
        broker, datas = self.strategy.broker, self.strategy.datas
        sizes = {data._name: broker.getposition(data).size for data in datas}
        self.seen.append({name: size for name, size in sizes.items() if size})


def own_cerebro(feeds: Mapping[str, pd.DataFrame], names: bool = True, **params: Any) -> list[dict[str, float]]:
    cerebro = bt.Cerebro(preload=False, runonce=False, stdstats=False)
    for name, frame in feeds.items():
        cerebro.adddata(SignalData(dataname=frame), **({"name": name} if names else {}))
    cerebro.addstrategy(TopK, **params)
    cerebro.addanalyzer(Weights)
    cerebro.broker.setcash(100_000)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=0.0))
    seen: list[dict[str, float]] = cerebro.run()[0].analyzers[0].seen
    return seen


def frame(p_up: Sequence[float], without: Sequence[int] = ()) -> pd.DataFrame:
    index = pd.date_range("2018-01-01", periods=len(p_up))
    prices = dict.fromkeys(("open", "high", "low", "close"), 100.0)
    columns = {**prices, "volume": 1, "signal": [1 if p > 0.5 else -1 for p in p_up], "p_up": p_up}
    return pd.DataFrame(columns, index=index).drop(index=index[list(without)])


def test_it_trades_in_a_plain_cerebro_and_knows_a_day_that_a_feed_lacks() -> None:
    feeds = {"A": frame([0.9, 0.1, 0.1, 0.1]), "B": frame([0.1, 0.9, 0.9, 0.9]), "C": frame([0.95] * 4, without=[1])}
    long, short = pytest.approx(500), pytest.approx(-500)
    # On the second day C has no row, and its order waits. Its last p_up is still on its line and is not taken for a
    # forecast of that day: it would have stood in B's place.
    assert own_cerebro(feeds, k=1) == [
        {},
        {"B": short},
        {"A": short, "B": long, "C": long},
        {"A": short, "C": long},
    ]


def test_feeds_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TopK: each feed needs a name of its own, cerebro.adddata\(…, name=…\)"):
        own_cerebro({"A": frame([0.9]), "B": frame([0.1])}, names=False)


@pytest.mark.parametrize("strategy", [LongShort, LongOnly, Threshold, VolTarget])
def test_a_strategy_of_one_symbol_refuses_many_and_names_the_one_that_trades_them(strategy: type[Any]) -> None:
    with pytest.raises(ConfigError, match=f"{strategy.__name__} trades one symbol and was given 2; top_k trades many"):
        trade_universe("AB", market(flat(A=0.9, B=0.1)), strategy)
    found: list[SessionRecord] = []
    trade_universe("A", market(flat(A=0.9)), strategy, on_session=found.append)
    assert len(found) == 1


# VolTarget by expected return.


def test_vol_target_by_expected_return_takes_its_sign_and_scales_with_it() -> None:
    closes, daily = swing(0.02, 12), 0.02 * math.sqrt(10 / 9)
    full = 0.1 / (daily * math.sqrt(252))  # what the target leaves at a full edge

    def after(expected: float | None, p_up: float | None = 0.7, **params: Any) -> float:
        how = {"lookback": 10, "band": 0.0, "edge": "expected_return", **params}
        return exposures(run(VolTarget, [p_up] * 12, closes, [expected] * 12, **how))[10]

    assert after(0.1 * daily) == pytest.approx(full, abs=1e-6)
    assert after(0.05 * daily) == pytest.approx(full / 2, abs=1e-6)
    assert after(-0.05 * daily) == pytest.approx(-full / 2, abs=1e-6)  # against p_up
    assert after(7.0) == pytest.approx(full, abs=1e-6)
    assert after(0.25 * daily, full_edge=0.5) == pytest.approx(full / 2, abs=1e-6)
    assert after(0.0) == after(None) == 0
    assert after(-0.05 * daily, edge="side") == pytest.approx(full, abs=1e-6)


def test_vol_target_by_expected_return_keeps_its_position_where_there_is_none_and_is_whole_where_nothing_moves() -> (
    None
):
    how: dict[str, Any] = {"lookback": 3, "edge": "expected_return"}
    assert exposures(run(VolTarget, [0.7] * 7, None, [0.01, 0.01, 0.01, 0.01, None, 0.0, -0.01], **how)) == [
        0,
        0,
        0,
        1,
        1,
        0,
        -1,
    ]


@pytest.mark.parametrize("params", [{"edge": "p_up"}, {"full_edge": 0.0}, {"full_edge": math.nan}])
def test_an_edge_that_makes_no_sense_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="edge must be 'side' or 'expected_return' and full_edge positive"):
        run(VolTarget, [0.7], **params)


def test_the_costs_of_every_symbol_are_charged() -> None:
    days = market({"A": [0.9] * 3, "B": [0.1] * 3})
    found, _ = batch("AB", days, TopK, params={"k": 1}, costs=replace(FREE, commission_bps=10), execution="close")
    assert found[0].commission == pytest.approx(100_000 * 0.001)
