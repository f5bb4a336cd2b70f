"""The broker stage: what it fills, charges, cuts and refuses, against ledgers written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, timezone
from functools import cache
import os
from pathlib import Path
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from arch.data import sp500
import numpy as np
import pytest

from strategies.base import bt
from strategies.long_short import LongShort
from strategies.threshold import Threshold
from trader.broker import Costs, RiskLimits, SessionRecord, TradeSummary, always_buy, bare_seconds, load_class, trade
from trader.errors import BadBar, ConfigError, NoData, OrderError, TimeError, TraderError
from trader.events import Bar, Signal

ROOT = Path(__file__).parents[1]
KNOWN = datetime(2019, 1, 1, tzinfo=timezone.utc)
FREE = Costs(commission_bps=0, slippage_bps=0, borrow_bps_a_year=0, cash_rate=0)
EXECUTIONS = ("next_open", "next_close", "close")
FRIDAY = date(2018, 1, 5)


def bar(session: date, open_: float, close: float) -> Bar:
    low, high = min(open_, close), max(open_, close)
    prices = {"open": open_, "high": high, "low": low, "close": close, "adj_close": close}
    return Bar(symbol="SPX", session=session, volume=1.0, known_at=KNOWN, **prices)


def market(*prices: tuple[float, float], first: date = date(2018, 1, 1)) -> list[Bar]:
    """Bars of (open, close) on consecutive days."""
    return [bar(first + timedelta(days=day), *price) for day, price in enumerate(prices)]


def signals(bars: Sequence[Bar], sides: Sequence[int | None]) -> list[Signal]:
    """One signal a bar; None abstains."""
    return [
        Signal(
            session=bar.session,
            symbol=bar.symbol,
            p_up=None if side is None else 0.5 + 0.1 * side,
            side=side or 0,
            model_id="test",
        )
        for bar, side in zip(bars, sides, strict=True)
    ]


def records(bars: Sequence[Bar], sides: Sequence[int | None], strategy: Any = LongShort, **how: Any) -> list[Any]:
    found: list[SessionRecord] = []
    trade(bars, signals(bars, sides), strategy, on_session=found.append, **{"costs": FREE, **how})
    return found


@cache
def real_bars() -> list[Bar]:
    """The 4,027 sessions of the S&P 500 from 2003 to 2018."""
    frame = sp500.load().loc["2003":"2018"]
    prices = zip(frame.index, frame["Open"], frame["Close"], strict=True)
    return [bar(day.date(), open_, close) for day, open_, close in prices]


def ledger(bars: Sequence[Bar], sides: Sequence[int | None], costs: Costs, execution: str) -> list[float]:
    """The independent account: ±100 % at the decision's close, traded where the side changes. Equity a day."""
    cash, units, order, equity = costs.cash, 0.0, 0.0, [costs.cash]
    for index, (bar, side) in enumerate(zip(bars, sides, strict=True)):
        if index:
            before = bars[index - 1]
            value, years = units * before.close, (bar.session - before.session).days / 365
            cash += max(0, equity[-1] - abs(value)) * costs.cash_rate * years
            cash -= max(0, -value) * costs.borrow_bps_a_year / 10_000 * years
            at_open = execution == "next_open" and bar.open != before.close
            cash, units = fill(cash, units, order, bar.open if at_open else bar.close, costs)
        wealth = cash + units * bar.close
        order = 0.0 if side is None or side == np.sign(units) else side * wealth / bar.close - units
        if execution == "close":
            cash, units = fill(cash, units, order, bar.close, costs)
            order = 0.0
        equity.append(cash + units * bar.close)
    return equity[1:]


def fill(cash: float, units: float, order: float, price: float, costs: Costs) -> tuple[float, float]:
    paid = price * (1 + np.sign(order) * costs.slippage_bps / 10_000)
    return cash - order * paid - abs(order) * paid * costs.commission_bps / 10_000, units + order


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("choices", [(-1, 1), (-1, 0, 1, None)], ids=["flips", "flips, flats and abstentions"])
def test_random_full_signals_on_4027_real_bars_equal_an_independent_ledger(
    execution: str, choices: tuple[int | None, ...]
) -> None:
    bars, rng = real_bars(), random.Random(1)
    sides = [rng.choice(choices) for _ in bars]
    costs = Costs()
    found = records(bars, sides, costs=costs, execution=execution)
    expected = ledger(bars, sides, costs, execution)
    assert len(found) == 4027
    assert max(abs(record.equity - wealth) for record, wealth in zip(found, expected, strict=True)) < 0.005
    assert {order.status for record in found for order in record.orders} <= {"completed", "open at end"}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_each_session_s_equity_is_the_one_before_plus_the_move_less_the_costs(execution: str) -> None:
    bars, rng = real_bars()[:400], random.Random(2)
    found = records(bars, [rng.choice((-1, 0, 1)) for _ in bars], costs=Costs(), execution=execution)
    for bar, before, bar_before, record in zip(bars[1:], found, bars, found[1:], strict=False):
        move = before.position * (bar.close - bar_before.close)
        move += sum(fill.size * (bar.close - fill.reference_price) for fill in record.fills)
        costs = record.commission + record.slippage + record.borrow - record.interest
        assert record.equity == pytest.approx(before.equity + move - costs, abs=1e-6)
        assert record.cash + record.position * bar.close == pytest.approx(record.equity)
        assert record.exposure == pytest.approx(record.position * bar.close / record.equity)


# Where and when an order fills.


def only_fill(found: list[Any]) -> Any:
    (fill,) = [fill for record in found for fill in record.fills]
    (record,) = [record for record in found if record.fills]
    assert record.session == fill.session
    return fill


@pytest.mark.parametrize(
    ("execution", "price", "day"), [("next_open", 103.0, 2), ("next_close", 107.0, 2), ("close", 101.0, 1)]
)
def test_an_order_fills_at_the_price_and_on_the_session_that_the_execution_names(
    execution: str, price: float, day: int
) -> None:
    bars = market((99, 101), (103, 107), (108, 109))
    fill = only_fill(records(bars, [1, 1, 1], execution=execution))
    assert (fill.price, fill.reference_price, fill.session) == (price, price, date(2018, 1, day))


def test_an_open_equal_to_the_previous_close_was_no_price_and_fills_at_that_session_s_close() -> None:
    bars = market((99, 101), (101, 107), (108, 109))
    assert only_fill(records(bars, [1, 1, 1])).price == 107
    assert only_fill(records(bars, [1, 1, 1], stale_open="open")).price == 101
    assert only_fill(records(bars, [1, 1, 1])).session == date(2018, 1, 2)


def test_an_open_that_differs_in_the_last_digit_is_a_price() -> None:
    open_ = float(np.nextafter(101.0, 102.0))
    assert only_fill(records(market((99, 101), (open_, 107), (108, 109)), [1, 1, 1])).price == open_


def test_the_summary_counts_the_opens_that_were_no_prices_and_says_when_it_is_optimistic() -> None:
    bars = real_bars()
    summary = trade(bars, signals(bars, [0] * len(bars)), LongShort)
    expected = sum(bars[i].open == bars[i - 1].close for i in range(1, len(bars)))
    assert (summary.sessions, summary.stale_opens, summary.optimistic, summary.orders) == (4027, expected, False, 0)
    assert expected > 700  # nearly all of 2003–2005: an index's open is not to be traded
    few = bars[:3]
    assert trade(few, signals(few, [1, 1, 1]), LongShort, execution="close").optimistic


def test_the_feed_s_open_stays_what_the_market_said_where_the_fill_is_elsewhere() -> None:
    seen = []

    class Reader(LongShort):  # type: ignore[misc]
        def next(self) -> None:
            seen.append(self.data.open[0])
            super().next()

    records(market((99, 101), (101, 107), (108, 109)), [1, 1, 1], strategy=Reader)
    assert seen == [99, 101, 108]


@pytest.mark.parametrize("execution", ["next_open", "next_close"])
def test_an_order_of_the_last_session_never_fills_and_is_called_open_at_end(execution: str) -> None:
    last = records(market((99, 101), (103, 107)), [0, 1], execution=execution)[-1]
    assert [(order.status, order.session) for order in last.orders] == [("open at end", date(2018, 1, 2))]
    assert not last.fills and last.position == 0


def test_at_the_close_the_order_of_the_last_session_fills_too() -> None:
    last = records(market((99, 101), (103, 107)), [0, 1], execution="close")[-1]
    assert [order.status for order in last.orders] == ["completed"] and last.exposure == pytest.approx(1)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_size_knows_nothing_of_the_next_session(execution: str) -> None:
    rng = random.Random(3)
    bars = real_bars()[1500:1600]
    sides = [rng.choice((-1, 0, 1)) for _ in bars]
    cut = 60
    other = [
        now if day <= cut else bar(now.session, now.open * rng.uniform(0.99, 1.01), now.close * rng.uniform(0.99, 1.01))
        for day, now in enumerate(bars)
    ]

    def decided(market_: Sequence[Bar]) -> list[tuple[date, float]]:
        orders = [order for r in records(market_, sides, execution=execution) for order in r.orders]
        return [(order.session, order.size) for order in orders if order.session <= bars[cut].session]

    sides[cut - 1], sides[cut], sides[cut + 1 :] = 1, -1, [-1] * (len(bars) - cut - 1)
    assert decided(bars) == decided(other) and decided(bars)[-1][0] == bars[cut].session


def test_a_strategy_cannot_read_the_next_session() -> None:
    with pytest.raises(IndexError):  # with preload the whole feed would lie there
        ask(lambda s: s.data.close[1], bars=LEVEL)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_records_of_a_prefix_are_a_prefix_of_the_records(execution: str) -> None:
    bars, rng = real_bars()[1000:1200], random.Random(4)
    sides = [rng.choice((-1, 0, 1)) for _ in bars]
    whole = records(bars, sides, costs=Costs(), execution=execution)
    part = records(bars[:120], sides[:120], costs=Costs(), execution=execution)
    assert part[:-1] == whole[:119]
    assert (part[-1].equity, part[-1].position, part[-1].fills) == (
        whole[119].equity,
        whole[119].position,
        whole[119].fills,
    )


def test_two_runs_in_one_process_give_the_same_records_order_numbers_included() -> None:
    bars = real_bars()[:200]
    sides = [(-1) ** day for day in range(200)]
    first, second = records(bars, sides, costs=Costs()), records(bars, sides, costs=Costs())
    assert first == second
    refs = [order.ref for record in first for order in record.orders]
    assert refs == list(range(1, 201))


# Sizes and the margin, which backtrader gets wrong without a word (libraries.md, the margin table).


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("open_", [100.0, 103.0, 97.0, 160.0])
def test_an_all_in_order_is_filled_in_full_through_a_gap_and_with_commission(side: int, open_: float) -> None:
    bars = market((99, 100), (open_, open_), (open_, open_))
    found = records(bars, [side] * 3, costs=Costs(), stale_open="open")
    assert only_fill(found).size == pytest.approx(side * 1000)


@pytest.mark.parametrize("gap", [1.0, 1.03, 1.34, 1.5, 0.5])
@pytest.mark.parametrize("side", [1, -1])
def test_a_flip_through_a_gap_ends_on_the_other_side(gap: float, side: int) -> None:
    bars = market((99, 100), (100.5, 100.5), (100.5 * gap, 100.5 * gap), (100.5 * gap, 100.5 * gap))
    found = records(bars, [side, -side, -side, -side], costs=Costs())
    assert found[1].position * side > 0 and found[2].position * side < 0
    assert [order.status for record in found for order in record.orders] == ["completed", "completed"]


def test_a_size_has_a_fraction() -> None:
    bars = market((2900, 2900), (2901, 2901), (2901, 2901))
    found = records(bars, [1, 1, 1], costs=Costs(cash=10_000, commission_bps=0, slippage_bps=0))
    assert only_fill(found).size == pytest.approx(10_000 / 2900)


def test_a_position_that_was_closed_is_exactly_zero_and_no_order_stays_half_done() -> None:
    bars, rng = real_bars(), random.Random(1)  # with arbitrary fractions this run leaves 1e-14 units in October 2008
    found = records(bars, [rng.choice((-1, 0, 1, None)) for _ in bars], costs=Costs())
    assert not [record for record in found if 0 < abs(record.position) < 1e-3]
    for record in found:
        assert len(record.orders) == len(record.fills) <= 1 or record is found[-1]


def test_a_size_below_the_smallest_step_is_recorded_and_not_sent() -> None:
    found, summary = ask(lambda s: s.buy(size=1e-9), bars=LEVEL)
    assert [(order.size, order.status) for order in summary.cut] == [(0, "cut")] and not found[1].fills
    assert "a millionth of a unit" in summary.cut[0].reason


class Ask(bt.Strategy):  # type: ignore[misc]
    """Do on each session what its plan says: plan[day](strategy)."""

    params = (("plan", ()),)

    def next(self) -> None:
        if len(self) <= len(self.p.plan) and self.p.plan[len(self) - 1]:
            self.p.plan[len(self) - 1](self)


def ask(*plan: Callable[[Any], Any] | None, bars: Sequence[Bar], **how: Any) -> tuple[list[Any], TradeSummary]:
    found: list[SessionRecord] = []
    how = {"costs": FREE, "params": {"plan": plan}, **how}
    return found, trade(bars, signals(bars, [0] * len(bars)), Ask, on_session=found.append, **how)


LEVEL = market((100, 100), (100, 100), (100, 100), (100, 100))


@pytest.mark.parametrize("target", [3.0, -1.5, -10.0])
def test_an_order_beyond_the_exposure_limit_is_cut_and_the_record_says_so(target: float) -> None:
    found, summary = ask(lambda s: s.order_target_percent(target=target), bars=LEVEL)
    assert found[-1].exposure == pytest.approx(1 if target > 0 else -1)
    (order,) = found[1].orders
    assert order.status == "cut" and abs(order.size) == pytest.approx(1000)
    assert f"cut from {1000 * target:.6g} to" in order.reason and "exposure limit 1 of equity" in order.reason
    assert summary.cut == (order,)


def test_minus_100_percent_sells_100_percent_and_not_200() -> None:
    found, summary = ask(lambda s: s.order_target_percent(target=-1), bars=LEVEL)
    assert found[-1].exposure == pytest.approx(-1) and not summary.cut


def test_a_larger_limit_lets_a_larger_order_through() -> None:
    found, summary = ask(lambda s: s.order_target_percent(target=3), bars=LEVEL, risk=RiskLimits(max_gross_exposure=3))
    assert found[-1].exposure == pytest.approx(3) and not summary.cut


def test_two_orders_of_one_session_cannot_pass_the_limit_together() -> None:
    found, summary = ask(lambda s: (s.buy(size=700), s.buy(size=700), s.buy(size=5)), bars=LEVEL)
    assert found[-1].exposure == pytest.approx(1)
    assert [round(order.size) for order in summary.cut] == [0, 300]
    assert [order.ref for order in found[0].orders + found[1].orders] == [3, 1, 2]  # the empty one ends at once


def test_limit_orders_count_against_the_limit_while_they_wait_but_a_waiting_exit_makes_no_room() -> None:
    def bid(size: float) -> Callable[[Any], Any]:
        return lambda s: s.buy(size=size, price=90, exectype=bt.Order.Limit)

    _, summary = ask(bid(700), bid(700), bars=LEVEL)
    assert [round(order.size) for order in summary.cut] == [300]
    found, summary = ask(
        lambda s: (s.buy(size=1000), s.sell(size=1000, price=50, exectype=bt.Order.Stop), s.buy(size=500)), bars=LEVEL
    )
    assert found[-1].position == 1000 and [order.size for order in summary.cut] == [0]


def test_closing_and_buying_the_other_way_in_one_session_is_not_cut() -> None:
    found, summary = ask(
        lambda s: s.order_target_percent(target=-1), lambda s: (s.close(), s.buy(size=900)), bars=LEVEL
    )
    assert found[-1].position == pytest.approx(900) and not summary.cut


def test_an_order_that_brings_a_drifted_exposure_down_is_never_cut() -> None:
    bars = market((100, 100), (101, 130), (130, 130), (130, 130))
    found, summary = ask(lambda s: s.sell(size=990), lambda s: s.buy(size=10), bars=bars)
    assert found[1].exposure < -1.2 and found[2].position == pytest.approx(-980) and not summary.cut


def test_an_account_with_nothing_left_stops_the_run() -> None:
    bars = market((100, 100), (101, 101), (250, 250), (250, 250))
    with pytest.raises(OrderError, match=r"SPX 2018-01-03: nothing is left of the account \(got an equity of -"):
        records(bars, [-1, -1, -1, -1])


def test_an_order_that_backtrader_refuses_stops_the_run() -> None:
    bars = market((100, 100), (101, 101), (320, 320), (320, 320))
    with pytest.raises(OrderError, match="backtrader refused an order"):
        records(bars, [-1, 1, 1, 1])  # flips to long at an open that has eaten the account


def test_an_order_of_no_size_and_a_bracket_are_refused() -> None:
    with pytest.raises(OrderError, match="an order of no size"):
        ask(lambda s: s.buy(size=float("nan")), bars=LEVEL)
    with pytest.raises(OrderError, match="up to 4294967296 units"):
        ask(lambda s: s.buy(size=1e10), bars=LEVEL)
    with pytest.raises(OrderError, match="a bracket order"):
        ask(lambda s: s.buy_bracket(size=1, stopprice=90, limitprice=110), bars=LEVEL)


def test_cash_as_a_strategy_reads_it_is_equity_less_the_position() -> None:
    seen = []
    ask(lambda s: s.buy(size=400), lambda s: seen.append(s.broker.getcash()), bars=LEVEL)
    assert seen == [pytest.approx(60_000)]


# Costs.


def test_commission_and_slippage_are_charged_on_both_sides_and_shown() -> None:
    bars = market((100, 100), (110, 110), (120, 120), (130, 130))
    found = records(bars, [1, 0, 0, 0], costs=Costs(commission_bps=20, slippage_bps=10, cash_rate=0))
    bought, sold = (fill for record in found for fill in record.fills)
    assert (bought.price, sold.price) == (pytest.approx(110 * 1.001), pytest.approx(120 * 0.999))
    assert (bought.slippage_cost, sold.slippage_cost) == (pytest.approx(110), pytest.approx(120))
    assert bought.commission == pytest.approx(1000 * 110 * 1.001 * 0.002)
    assert found[1].commission == bought.commission and found[2].slippage == sold.slippage_cost
    assert found[-1].equity == pytest.approx(110_000 - 110 - 120 - bought.commission - sold.commission)


def test_slippage_is_not_capped_by_the_day_s_range() -> None:
    bars = market((100, 100), (110, 105), (100, 100))  # the open is the day's high
    assert only_fill(records(bars, [1, 1, 1], costs=Costs(slippage_bps=10))).price == pytest.approx(110 * 1.001)


def test_borrow_is_charged_for_each_calendar_day_on_the_value_sold_short() -> None:
    days = (FRIDAY - timedelta(days=1), FRIDAY, FRIDAY + timedelta(days=3), FRIDAY + timedelta(days=4))
    bars = [bar(day, price, price) for day, price in zip(days, (100, 101, 90, 91), strict=True)]
    found = records(bars, [-1, -1, -1, -1], costs=Costs(commission_bps=0, slippage_bps=0, borrow_bps_a_year=365))
    assert found[1].borrow == 0  # sold at Friday's open
    assert found[2].borrow == pytest.approx(3 * 1000 * 101 * 0.0001)
    assert found[3].borrow == pytest.approx(1 * 1000 * 90 * 0.0001)
    assert found[2].interest == pytest.approx(0.0)  # collateral and proceeds earn nothing


def test_borrow_is_not_counted_a_second_time_in_a_commission() -> None:
    bars = market((100, 100), (101, 101), (102, 102), (103, 103), (104, 104))
    found = records(bars, [-1, -1, 0, 0, 0], costs=Costs(commission_bps=0, borrow_bps_a_year=5000))
    assert found[2].borrow > 0 and all(record.commission == 0 for record in found)


def test_idle_cash_earns_the_rate_for_each_calendar_day_and_invested_cash_does_not() -> None:
    bars = [bar(FRIDAY, 100, 100), bar(FRIDAY + timedelta(days=3), 101, 101)]
    assert records(bars, [0, 0], costs=Costs(cash_rate=0.0365))[1].interest == pytest.approx(30)
    costs = Costs(commission_bps=0, slippage_bps=0, cash_rate=0.0365)
    half, _ = ask(lambda s: s.order_target_percent(target=0.5), bars=LEVEL, costs=costs)
    assert half[2].interest == pytest.approx(half[1].cash * 0.0001)


def test_costs_that_are_no_costs_are_refused() -> None:
    with pytest.raises(ConfigError, match="commission_bps must be a number ≥ 0"):
        Costs(commission_bps=-1)
    with pytest.raises(ConfigError, match="cash must be a positive number"):
        Costs(cash=float("nan"))


def test_always_buy_pays_once_and_holds() -> None:
    bars = market((100, 100), (101, 102), (103, 104), (105, 106))
    equity = always_buy(bars, costs=Costs(cash_rate=0))
    price = 101 * 1.0001
    assert equity.dtype == np.float64
    assert equity == pytest.approx(
        [100_000] + [100_000 + 1000 * (close - price) - 1000 * price * 1e-4 for close in (102, 104, 106)]
    )
    assert always_buy(bars, sessions={bar.session for bar in bars[1:]}).shape == (3,)


# Orders of other kinds, from a user's own strategy.


def test_limit_and_stop_orders_of_a_user_s_strategy_fill_at_their_prices_and_are_recorded() -> None:
    bars = [
        bar(date(2018, 1, 1), 100, 100),
        bar(date(2018, 1, 2), 100, 90),
        bar(date(2018, 1, 3), 91, 120),
        bar(date(2018, 1, 4), 121, 122),
    ]
    found, _ = ask(
        lambda s: s.buy(size=100, price=95, exectype=bt.Order.Limit),
        lambda s: s.sell(size=100, price=80, exectype=bt.Order.Stop),
        lambda s: s.sell(size=100, exectype=bt.Order.Close),
        bars=bars,
        costs=Costs(slippage_bps=10, commission_bps=0),
    )
    bought, sold = (fill for record in found for fill in record.fills)
    assert (bought.price, bought.reference_price, bought.slippage_cost) == (95, 95, 0)
    assert (sold.price, sold.reference_price) == (pytest.approx(122 * 0.999), 122)
    assert [(order.ref, order.status) for order in found[-1].orders] == [(3, "completed"), (2, "open at end")]


def test_an_order_that_its_strategy_cancels_is_recorded_as_cancelled() -> None:
    orders = []
    found, _ = ask(
        lambda s: orders.append(s.buy(size=1, price=50, exectype=bt.Order.Limit)),
        lambda s: s.cancel(orders[0]),
        bars=LEVEL,
    )
    assert [(order.session.day, order.status) for r in found for order in r.orders] == [(1, "cancelled")]


# Input that backtrader would run without a word.


def refused(bars: Sequence[Any], found: Sequence[Any] | None = None) -> TraderError:
    with pytest.raises(TraderError) as caught:
        trade(bars, signals(bars, [0] * len(bars)) if found is None else found, LongShort)
    return caught.value


def plain(template: Bar, **changes: Any) -> Any:
    """A bar that got past its own checks."""
    return SimpleNamespace(**{**{name: getattr(template, name) for name in Bar.__slots__}, **changes})


def test_what_backtrader_would_run_without_a_word_is_refused() -> None:
    good = market((100, 100), (101, 101))
    assert isinstance(refused([]), NoData)
    assert isinstance(refused([good[0], good[0]]), BadBar)
    assert isinstance(refused(good[::-1]), TimeError)
    assert "oldest first" in str(refused(good[::-1]))
    zoned = plain(good[0], session=datetime(2018, 1, 1, 5, tzinfo=timezone.utc))
    assert "without a time or zone" in str(refused([zoned]))
    assert "not a positive number" in str(refused([plain(good[0], close=float("nan")), good[1]]))
    assert "two symbols" in str(refused([good[0], plain(good[1], symbol="NDX")]))


def test_each_session_needs_exactly_its_own_signal() -> None:
    bars = market((100, 100), (101, 101), (102, 102))
    good = signals(bars, [1, 1, 1])
    assert "2 signals for 3 bars" in str(refused(bars, good[:2]))
    assert "not the bar's" in str(refused(bars, [good[0], good[0], good[2]]))
    stranger = Signal(session=bars[0].session, symbol="NDX", p_up=0.6, side=1, model_id="test")
    assert "NDX 2018-01-01" in str(refused(bars, [stranger, *good[1:]]))


@pytest.mark.parametrize(("p_up", "side"), [(float("nan"), 0), (1.5, 1), (None, 1), (0.6, 2)])
def test_a_signal_that_makes_no_sense_is_refused(p_up: float | None, side: int) -> None:
    bars = market((100, 100))
    odd = Signal(session=bars[0].session, symbol="SPX", p_up=p_up, side=side, model_id="test")
    assert isinstance(refused(bars, [odd]), OrderError)


@pytest.mark.parametrize(("p_up", "expected"), [(None, 0.01), (0.6, float("nan")), (0.6, float("inf"))])
def test_an_expected_return_that_makes_no_sense_is_refused(p_up: float | None, expected: float) -> None:
    bars = market((100, 100))
    odd = Signal(session=bars[0].session, symbol="SPX", p_up=p_up, side=0, model_id="test", expected_return=expected)
    assert "expected" in str(refused(bars, [odd]))


def test_words_and_parameters_that_are_not_known_are_named() -> None:
    bars = market((100, 100))
    with pytest.raises(ConfigError, match="unknown execution"):
        records(bars, [0], execution="open")
    with pytest.raises(ConfigError, match="unknown stale_open"):
        records(bars, [0], stale_open="never")
    with pytest.raises(ConfigError, match="max_gross_exposure"):
        records(bars, [0], risk=RiskLimits(max_gross_exposure=0))
    with pytest.raises(ConfigError, match=r"LongShort has no parameter rebalanse.*did you mean rebalance"):
        records(bars, [0], params={"rebalanse": True})
    with pytest.raises(ConfigError, match=r"Threshold.*band must lie in \[0, 0.5\)"):
        records(bars, [0], strategy=Threshold, params={"band": 0.7})


def test_a_fault_in_a_user_s_strategy_keeps_its_own_traceback() -> None:
    def fail(strategy: Any) -> None:
        raise ValueError("the user's own")

    with pytest.raises(ValueError, match="the user's own"):
        ask(fail, bars=LEVEL)


def test_a_strategy_that_stops_the_run_early_is_not_taken_for_a_whole_run() -> None:
    with pytest.raises(OrderError, match="Ask stopped the run"):
        ask(lambda s: s.env.runstop(), bars=LEVEL)


def test_a_strategy_with_indicators_is_recorded_from_the_first_session() -> None:
    class Slow(bt.Strategy):  # type: ignore[misc]
        def __init__(self) -> None:
            self.mean = bt.indicators.SMA(self.data.close, period=3)

        def next(self) -> None:
            self.order_target_percent(target=1)

    found = records(LEVEL, [0] * 4, strategy=Slow)
    assert [record.session.day for record in found] == [1, 2, 3, 4]
    assert [record.position for record in found] == [0, 0, 0, pytest.approx(1000)]


# A user's own class.


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("strategies.long_short", "expected package.module:Class"),
        (":LongShort", "expected package.module:Class"),
        ("no_such_module:LongShort", "the module no_such_module cannot be imported"),
        ("strategies.long_short:LongShor", "has no LongShor; did you mean LongShort?"),
        ("strategies.base:hold", "hold is not a class"),
        ("datetime:timedelta", "timedelta is not a backtrader.strategy.Strategy"),
    ],
)
def test_a_class_that_cannot_be_used_is_one_clear_error(spec: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_class(spec, bt.Strategy)
    assert words in str(caught.value)


def test_a_module_that_fails_on_import_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_strategy.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero"):
        load_class("broken_strategy:Mine", bt.Strategy)


def test_a_user_s_own_class_is_found_and_trades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_strategy.py").write_text(
        "import backtrader as bt\n"
        "class Mine(bt.Strategy):\n"
        "    params = (('share', 1.0),)\n"
        "    def next(self):\n"
        "        self.order_target_percent(target=self.p.share * self.data.signal[0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = load_class("my_strategy:Mine", bt.Strategy)
    assert records(LEVEL, [1] * 4, strategy=mine, params={"share": 0.5})[-1].exposure == pytest.approx(0.5)


# Import and speed.


def python(code: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True
    )


def test_backtrader_is_imported_and_run_in_silence_even_where_warnings_are_errors(tmp_path: Path) -> None:
    code = """if True:
        from datetime import date, datetime, timezone
        from strategies.long_short import LongShort
        from trader.broker import always_buy
        from trader.events import Bar
        bars = [Bar(symbol="x", session=date(2018, 1, day), open=1.0, high=1.0, low=1.0, close=1.0, adj_close=1.0,
                    volume=1.0, known_at=datetime.now(timezone.utc)) for day in (1, 2, 3)]
        always_buy(bars)
    """
    done = python(code, "-W", "error", PYTHONPYCACHEPREFIX=str(tmp_path))  # no .pyc: the warnings come on compiling
    assert (done.returncode, done.stderr) == (0, "")


def test_the_broker_s_room_opens_without_backtrader() -> None:
    done = python("import sys, trader.broker; sys.exit('backtrader' in sys.modules or 'pandas' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_bare_backtrader_can_be_timed_on_the_same_bars() -> None:
    bars = real_bars()[:50]
    assert 0 < bare_seconds(bars, signals(bars, [1, -1] * 25), LongShort) < 10
