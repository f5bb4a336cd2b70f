"""The four strategies by what they hold, and the SignalData feed by what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
import math
from typing import Any

import pandas as pd
import pytest

from strategies.base import FractionalSizes, bt
from strategies.long_only import LongOnly
from strategies.long_short import LongShort
from strategies.signal_data import SignalData
from strategies.threshold import Threshold
from strategies.vol_target import VolTarget
from trader.broker import Costs, SessionRecord, trade
from trader.errors import ConfigError
from trader.events import Bar, Signal

FREE = Costs(commission_bps=0, slippage_bps=0, borrow_bps_a_year=0, cash_rate=0)
KNOWN = datetime(2019, 1, 1, tzinfo=timezone.utc)


def run(
    strategy: Any,
    p_up: Sequence[float | None],
    closes: Sequence[float] | None = None,
    expected: Sequence[float | None] | None = None,
    **params: object,
) -> list[SessionRecord]:
    """Trade at the close, without costs, on closes that stay at 100 unless given."""
    closes = closes or [100.0] * len(p_up)
    days = [date(2018, 1, 1) + timedelta(days=day) for day in range(len(p_up))]
    bars = [
        Bar(symbol="X", session=day, open=c, high=c, low=c, close=c, adj_close=c, volume=1, known_at=KNOWN)
        for day, c in zip(days, closes, strict=True)
    ]
    signals = [
        Signal(
            session=day,
            symbol="X",
            p_up=p,
            side=0 if p is None else (p > 0.5) - (p < 0.5),
            model_id="test",
            expected_return=e,
        )
        for day, p, e in zip(days, p_up, expected or [None] * len(p_up), strict=True)
    ]
    found: list[SessionRecord] = []
    trade(bars, signals, strategy, params, FREE, "close", on_session=found.append)
    return found


def exposures(found: Sequence[SessionRecord]) -> list[float]:
    return [round(record.exposure, 6) for record in found]


def test_long_short_is_all_in_on_the_side_of_the_signal_flat_at_a_half_and_keeps_still_where_it_abstains() -> None:
    assert exposures(run(LongShort, [0.7, 0.3, None, 0.5, None, 0.51])) == [1, -1, -1, 0, 0, 1]


def test_long_only_is_never_short() -> None:
    assert exposures(run(LongOnly, [0.7, 0.3, 0.7, None, 0.5, 0.2])) == [1, 0, 1, 1, 0, 0]


def test_threshold_is_flat_within_its_dead_band_edges_included() -> None:
    p_up = [0.53, 0.51, 0.47, 0.5, 0.53125, 0.53, None]
    assert exposures(run(Threshold, p_up)) == [1, 0, -1, 0, 1, 1, 1]
    assert exposures(run(Threshold, [0.53125, 0.53126, 0.46875], band=0.03125)) == [0, 1, 0]


def test_threshold_can_keep_its_position_within_the_band() -> None:
    assert exposures(run(Threshold, [0.51, 0.53, 0.51, 0.49, 0.47, None, 0.51], inside="keep")) == [
        0,
        1,
        1,
        1,
        -1,
        -1,
        -1,
    ]


def test_a_position_on_the_right_side_is_left_alone_unless_rebalancing_is_asked_for() -> None:
    closes = [100.0, 110.0, 90.0, 120.0]
    assert sum(len(record.fills) for record in run(LongShort, [0.3] * 4, closes)) == 1
    for strategy in (LongShort, Threshold):
        found = run(strategy, [0.3] * 4, closes, rebalance=True)
        assert sum(len(record.fills) for record in found) == 4 and exposures(found) == [-1] * 4
    half = run(LongOnly, [0.7, 0.7], [100.0, 50.0], rebalance=True)
    assert len(half[0].fills) == 1 and not half[1].fills  # all in stays all in: nothing to trade back


def swing(size: float, count: int) -> list[float]:
    """Closes whose log returns are +size, −size, …"""
    return [100 * math.exp(size * (day % 2)) for day in range(count)]


def test_vol_target_waits_for_its_lookback_and_then_sizes_by_the_realised_volatility() -> None:
    closes = swing(0.02, 30)
    found = run(VolTarget, [0.7] * 15 + [0.3] * 15, closes, lookback=10, target_vol=0.1, band=0.0)
    vol = 0.02 * math.sqrt(10 / 9) * math.sqrt(252)  # ten returns of ±2 %, mean 0, sample deviation
    assert exposures(found)[:10] == [0] * 10
    assert exposures(found)[10:15] == [pytest.approx(0.1 / vol, abs=1e-6)] * 5
    assert exposures(found)[15:] == [pytest.approx(-0.1 / vol, abs=1e-6)] * 15


def test_vol_target_never_exceeds_its_largest_exposure_even_where_nothing_moves() -> None:
    assert exposures(run(VolTarget, [0.7] * 5, lookback=3)) == [0, 0, 0, 1, 1]
    assert exposures(run(VolTarget, [0.7] * 5, lookback=3, max_exposure=0.5)) == [0, 0, 0, 0.5, 0.5]


def test_vol_target_trades_only_what_leaves_its_band() -> None:
    closes = swing(0.02, 20) + [100.0 + 0.5 * day for day in range(10)]
    wide = run(VolTarget, [0.7] * 30, closes, lookback=10, band=0.9)
    narrow = run(VolTarget, [0.7] * 30, closes, lookback=10, band=0.01)
    assert sum(len(record.fills) for record in wide) == 1
    assert sum(len(record.fills) for record in narrow) > 5


@pytest.mark.parametrize(
    ("strategy", "params"),
    [
        (Threshold, {"band": -0.1}),
        (Threshold, {"inside": "wait"}),
        (Threshold, {"band": "wide"}),
        (VolTarget, {"target_vol": 0}),
        (VolTarget, {"lookback": 1}),
    ],
)
def test_parameters_that_make_no_sense_are_refused(strategy: Any, params: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="refuses its parameters"):
        run(strategy, [0.7], **params)


# The feed, in somebody's own Cerebro.


def frame(**changes: Any) -> pd.DataFrame:
    columns = {
        "Open": [100.0, 101.0, 102.0],
        "High": [103.0] * 3,
        "Low": [99.0] * 3,
        "Close": [101.0, 102.0, 103.0],
        "Volume": [5] * 3,
        "signal": [1, 0, -1],
        "p_up": [0.6, math.nan, 0.4],
    }
    return pd.DataFrame({**columns, **changes}, index=pd.date_range("2018-01-01", periods=3))


class Diary(bt.Strategy):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def next(self) -> None:
        data = self.data
        self.seen.append((data.datetime.date(0), data.open[0], data.close[0], data.signal[0], data.p_up[0]))


def read(source: Any, strategy: Any = Diary, **flags: bool) -> Any:
    cerebro = bt.Cerebro(**{"preload": False, "runonce": False, "stdstats": False, **flags})
    cerebro.adddata(SignalData(dataname=source))
    cerebro.addstrategy(strategy)
    cerebro.broker.setcash(10_000)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=0.001))
    return cerebro.run()[0]


class Expecting(bt.Strategy):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[float] = []

    def next(self) -> None:
        self.seen.append(self.data.expected_return[0])


@pytest.mark.parametrize("flags", [{}, {"preload": True, "runonce": True}])
def test_the_feed_carries_the_expected_return_where_the_frame_has_one(flags: dict[str, bool]) -> None:
    assert read(frame(expected_return=[0.01, math.nan, -0.02]), Expecting, **flags).seen == [
        0.01,
        pytest.approx(math.nan, nan_ok=True),
        -0.02,
    ]
    assert all(math.isnan(one) for one in read(frame(), Expecting, **flags).seen)


def test_the_broker_s_feed_carries_the_signal_s_expected_return() -> None:
    seen: list[float] = []

    class Watch(bt.Strategy):  # type: ignore[misc]
        def next(self) -> None:
            seen.append(self.data.expected_return[0])

    run(Watch, [0.6, 0.6, None], expected=[0.02, None, None])
    assert seen[0] == 0.02 and all(math.isnan(one) for one in seen[1:])


@pytest.mark.parametrize("flags", [{}, {"preload": True, "runonce": True}, {"preload": True}])
def test_the_feed_carries_signal_and_probability_beside_the_prices(flags: dict[str, bool]) -> None:
    seen = read(frame(), **flags).seen
    assert seen[0] == (date(2018, 1, 1), 100, 101, 1, 0.6)
    assert seen[1][:4] == (date(2018, 1, 2), 101, 102, 0) and math.isnan(seen[1][4])
    assert seen[2] == (date(2018, 1, 3), 102, 103, -1, 0.4)


def test_without_preload_the_feed_is_drawn_one_session_at_a_time() -> None:
    drawn = []

    def rows() -> Any:
        for day in range(1, 4):
            drawn.append(day)
            yield (date(2018, 1, day), 1.0, 1.0, 1.0, 1.0, 1.0, 0, 0.5)

    class Watch(bt.Strategy):  # type: ignore[misc]
        def next(self) -> None:
            assert drawn[-1] == len(self)

    read(rows(), Watch)
    assert drawn == [1, 2, 3]


def test_our_strategies_trade_in_a_plain_cerebro_all_in_and_in_fractions() -> None:
    strategy = read(frame(signal=[1, 1, 1], p_up=[0.6] * 3), LongShort)
    assert strategy.position.size == pytest.approx(10_000 / 101)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (frame().drop(columns=["p_up", "Volume"]), "lacks volume, p_up"),
        (frame().iloc[:0], "no rows"),
        (frame().iloc[::-1], "oldest first"),
        (frame().iloc[[0, 0, 1]], "each once"),
        (frame().tz_localize("America/New_York"), "America/New_York"),
        (frame().shift(16, freq="h"), "times of day"),
        (frame().reset_index(drop=True), "RangeIndex"),
        (frame(Close=[101.0, math.nan, 103.0]), "2018-01-02: a price is not a positive number"),
        (frame(Low=[0.0, 1.0, 1.0]), "2018-01-01: a price is not a positive number"),
        (frame(signal=[1, math.nan, 1]), "signal must be -1, 0 or 1, got nan; join with how='inner'"),
        (frame(signal=[1, 2, 1]), "got 2"),
        (frame(signal=[1, 1, 1]), "2018-01-02: p_up must lie in"),
        (frame(p_up=[0.6, 0.5, 40.0]), "2018-01-03: p_up must lie in"),
        (frame(expected_return=[0.1, 0.1, 0.1]), "2018-01-02: expected_return must be a number, or NaN"),
        (frame(traded=[1, 2, 1]), "2018-01-02: traded must be 0 or 1, got 2"),
        (frame(expected_return=[math.inf, math.nan, 0.1]), "2018-01-01: expected_return must be a number"),
    ],
)
def test_what_backtrader_would_feed_without_a_word_is_refused(source: pd.DataFrame, words: str) -> None:
    with pytest.raises(ValueError, match="SignalData: ") as caught:
        read(source)
    assert words in str(caught.value)
