"""The broker stage over many symbols: gaps, late listings and delistings, against a ledger of its own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
import math
import random
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from strategies.base import bt
from strategies.long_short import LongShort
from strategies.vol_target import VolTarget
from tests.test_broker import EXECUTIONS, FREE, KNOWN, real_bars
from trader.broker import Costs, RiskLimits, always_buy, trade
from trader.errors import BadBar, ConfigError, NoData, OrderError, TimeError
from trader.events import Bar, Signal
from trader.records import NO_CONTROL, Control, SessionRecord, TradeSummary
from trader.universe_broker import (
    UniverseSession,
    UniverseTrading,
    always_buy_universe,
    by_session,
    holding_universe,
    long_signals,
    trade_universe,
)

DEAR = Costs(cash=50_000.0, commission_bps=7, slippage_bps=3, borrow_bps_a_year=400, cash_rate=0.05)
CENT = 0.005


def bar(symbol: str, session: date, open_: float, close: float) -> Bar:
    prices = {"open": open_, "high": max(open_, close), "low": min(open_, close), "close": close, "adj_close": close}
    return Bar(symbol=symbol, session=session, volume=1.0, known_at=KNOWN, **prices)


def signal(symbol: str, session: date, p_up: float | None = 0.6, expected: float | None = None) -> Signal:
    side = 0 if p_up is None else (p_up > 0.5) - (p_up < 0.5)
    return Signal(session=session, symbol=symbol, p_up=p_up, side=side, model_id="test", expected_return=expected)


def day(number: int) -> date:
    return date(2018, 1, number)


def level(**closes: Sequence[float | None]) -> list[UniverseSession]:
    """Sessions from 1 January on; each symbol opens and closes at its price, None is a session without a bar."""
    bars = [
        bar(symbol, day(at), close, close)
        for symbol, path in closes.items()
        for at, close in enumerate(path, start=1)
        if close is not None
    ]
    count = len(next(iter(closes.values())))
    by_day = {one.session: one for one in by_session(bars, [signal(b.symbol, b.session) for b in bars])}
    return [by_day.get(day(at), UniverseSession(session=day(at))) for at in range(1, count + 1)]


def wild_market(seed: int, count: int, symbols: Sequence[str]) -> list[UniverseSession]:
    """Random walks with stale opens, weekends, late listings, gaps and symbols that do not come back."""
    rng, session = random.Random(seed), date(2018, 1, 1)
    sessions = [session := session + timedelta(days=rng.choice((1, 1, 1, 3))) for _ in range(count)]
    bars, signals = [], []
    for symbol in symbols:
        first = rng.choice((0, 0, rng.randrange(count)))
        last = rng.choice((count, count, rng.randrange(count)))
        close = rng.uniform(5, 500)
        for at, one in enumerate(sessions):
            if not first <= at < last or rng.random() < 0.1:
                continue
            open_ = close if rng.random() < 0.15 else close * rng.uniform(0.97, 1.03)
            close = open_ * rng.uniform(0.96, 1.04)
            bars.append(bar(symbol, one, open_, close))
            if rng.random() < 0.95:
                signals.append(signal(symbol, one, rng.choice((0.4, 0.6, 0.6, None))))
    by_day = {one.session: one for one in by_session(bars, signals)}
    return [by_day.get(one, UniverseSession(session=one)) for one in sessions]


class Roam(bt.Strategy):  # type: ignore[misc]
    """Ask for anything of any symbol, whether it trades or not; ``also`` limits and stops."""

    params = (("seed", 0), ("also", False))

    def __init__(self) -> None:
        self.rng = random.Random(self.p.seed)

    def next(self) -> None:
        for data in self.rng.sample(list(self.datas), k=len(self.datas)):
            draw, worth = self.rng.random(), self.broker.getvalue()
            if draw < 0.25:
                self.order_target_percent(data, target=self.rng.uniform(-0.5, 0.5))
            elif draw < 0.4 and len(data) and data.close[0] == data.close[0]:
                size = worth * self.rng.uniform(0, 0.4) / data.close[0]
                self.rng.choice((self.buy, self.sell))(data, size=size)
            elif draw < 0.5:
                self.close(data)
            elif draw < 0.6 and self.p.also and data.traded[0]:
                kind = self.rng.choice((bt.Order.Limit, bt.Order.Stop))
                price = data.close[0] * self.rng.uniform(0.97, 1.03)
                self.rng.choice((self.buy, self.sell))(
                    data, size=worth / 20 / data.close[0], exectype=kind, price=price
                )


class Plan(bt.Strategy):  # type: ignore[misc]
    """Do on each session what its plan says: plan[day](strategy, data by symbol)."""

    params = (("plan", ()),)

    def next(self) -> None:
        if len(self) <= len(self.p.plan) and self.p.plan[len(self) - 1]:
            self.p.plan[len(self) - 1](self, {data._name: data for data in self.datas})


def batch(
    symbols: Sequence[str], days: Sequence[UniverseSession], strategy: type[Any], **how: Any
) -> tuple[list[SessionRecord], TradeSummary]:
    found: list[SessionRecord] = []
    return found, trade_universe(symbols, days, strategy, on_session=found.append, **how)


def planned(
    days: Sequence[UniverseSession], *plan: Callable[[Any, Any], Any] | None, symbols: Sequence[str] = "AB", **how: Any
) -> tuple[list[SessionRecord], TradeSummary]:
    return batch(symbols, days, Plan, params={"plan": plan}, **{"costs": FREE, "stale_open": "open", **how})


def stepped(
    symbols: Sequence[str],
    days: Sequence[UniverseSession],
    strategy: type[Any],
    controls: Mapping[date, Control] | None = None,
    **how: Any,
) -> list[SessionRecord]:
    with UniverseTrading(symbols, strategy, **how) as trading:
        return [trading.push(one, (controls or {}).get(one.session, NO_CONTROL)) for one in days]


def but_open(found: Sequence[SessionRecord]) -> list[SessionRecord]:
    last = found[-1]
    return [*found[:-1], replace(last, orders=tuple(o for o in last.orders if o not in last.open))]


def sizes(record: SessionRecord) -> dict[str, float]:
    return {one.symbol: one.size for one in record.holdings}


# The whole of it, against a ledger of its own.


def check_fills(days: Sequence[UniverseSession], found: Sequence[SessionRecord], costs: Costs, execution: str) -> int:
    """Work out what each market order must have got from the bars alone; return how many did."""
    at = {one.session: number for number, one in enumerate(days)}
    decided = {order.ref: order for record in found for order in record.orders}
    count, closes = 0, dict[str, float]()
    for one, record in zip(days, found, strict=True):
        for fill in record.fills:
            order, now = decided[fill.order_ref], one.bars[fill.symbol]  # nothing fills without a bar
            assert fill.session == one.session and fill.symbol == order.symbol and fill.size == order.size
            if order.reason != "flatten":
                assert at[one.session] - at[order.session] == (0 if execution == "close" else 1)
            at_open = execution == "next_open" and now.open != closes[fill.symbol]
            reference = now.open if at_open else now.close
            against = costs.slippage_bps / 1e4 * math.copysign(1, fill.size)
            assert fill.reference_price == reference
            assert fill.price == pytest.approx(reference * (1 + against), rel=1e-12)
            assert fill.slippage_cost == pytest.approx(abs(fill.size) * abs(fill.price - reference))
            assert fill.commission == pytest.approx(costs.commission_bps / 1e4 * abs(fill.size) * fill.price)
            count += 1
        closes |= {symbol: now.close for symbol, now in one.bars.items()}
    return count


def check_account(days: Sequence[UniverseSession], found: Sequence[SessionRecord], costs: Costs) -> None:
    """Work out cash, equity, borrow and interest from the fills, the nights and the closes."""
    cash, held, closes, priced = costs.cash, dict[str, float](), dict[str, float](), dict[str, date]()
    before: date | None = None
    for one, record in zip(days, found, strict=True):
        nights = (one.session - before).days / 365 if before else 0.0
        values = {symbol: size * closes[symbol] for symbol, size in held.items()}
        borrow = sum(max(0.0, -value) for value in values.values()) * costs.borrow_bps_a_year / 1e4 * nights
        idle = max(0.0, cash + sum(values.values()) - sum(abs(value) for value in values.values()))
        interest = idle * costs.cash_rate * nights
        cash += interest - borrow
        for fill in record.fills:
            cash -= fill.size * fill.price + fill.commission
            held[fill.symbol] = held.get(fill.symbol, 0.0) + fill.size
        closes |= {symbol: now.close for symbol, now in one.bars.items()}
        priced |= dict.fromkeys(one.bars, one.session)
        held = {symbol: size for symbol, size in held.items() if size}
        values = {symbol: size * closes[symbol] for symbol, size in held.items()}
        equity, net = cash + sum(values.values()), sum(values.values())
        assert (record.borrow, record.interest) == (pytest.approx(borrow), pytest.approx(interest))
        assert abs(record.equity - equity) < CENT and abs(record.cash - cash) < CENT
        assert record.exposure == pytest.approx(net / equity, abs=1e-9)
        assert record.gross == pytest.approx(sum(map(abs, values.values())) / equity, abs=1e-9)
        assert sizes(record) == held
        assert all((h.price, h.priced) == (closes[h.symbol], priced[h.symbol]) for h in record.holdings)
        assert [h.value for h in record.holdings] == [h.size * h.price for h in record.holdings]
        assert record.commission == pytest.approx(sum(fill.commission for fill in record.fills))
        assert record.slippage == pytest.approx(sum(fill.slippage_cost for fill in record.fills))
        assert (record.signal, record.p_up, record.position) == (0, None, 0)
        before = one.session


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(EXECUTIONS), st.sampled_from([1.0, 2.5]))
def test_random_strategies_over_random_markets_equal_an_independent_ledger_to_the_cent(
    seed: int, execution: str, most: float
) -> None:
    symbols = "ABCDEF"[: 2 + seed % 5]
    days = wild_market(seed, 60, symbols)
    asked = (Control(flatten=True), Control(resume=True), Control(halt=True), Control(resume=True))
    rng = random.Random(seed)
    controls = {one.session: rng.choice(asked) for one in days if rng.random() < 0.06}
    how: dict[str, Any] = {"costs": DEAR, "execution": execution, "risk": RiskLimits(max_gross_exposure=most)}
    found, summary = batch(symbols, days, Roam, params={"seed": seed}, controls=controls, **how)
    assert summary.sessions == len(found) == 60
    assert check_fills(days, found, DEAR, execution) == summary.fills
    check_account(days, found, DEAR)


def test_the_independent_ledger_is_given_all_that_there_is() -> None:
    days = wild_market(3, 120, "ABCDEF")
    found, summary = batch("ABCDEF", days, Roam, params={"seed": 3}, costs=DEAR)
    orders = [order for record in found for order in record.orders]
    assert summary.fills > 60 and {order.status for order in orders} >= {"completed", "cut", "refused", "cancelled"}
    assert {order.reason for order in orders} >= {"no bar in this session", "no forecast"}
    assert min(h.size for r in found for h in r.holdings) < 0 < max(h.size for r in found for h in r.holdings)
    assert any(h.priced < r.session for r in found for h in r.holdings), "held at an older close"
    assert len({min(s for s in range(120) if x in days[s].bars) for x in "ABCDEF"}) > 2, "late listings"
    assert sum(record.interest for record in found) > 0 < sum(record.borrow for record in found)


# One symbol of many is the account of one.


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("strategy", [LongShort, VolTarget, Roam])
def test_over_one_symbol_the_account_is_that_of_trade_bit_for_bit(strategy: type[Any], execution: str) -> None:
    bars, rng = real_bars()[1300:1500], random.Random(5)
    made = [signal("SPX", one.session, rng.choice((0.4, 0.6, 0.5, None))) for one in bars]
    controls = {bars[60].session: Control(flatten=True), bars[70].session: Control(resume=True)}
    how: dict[str, Any] = {"execution": execution, "controls": controls, "risk": RiskLimits(max_daily_loss=0.03)}
    alone: list[SessionRecord] = []
    single = trade(bars, made, strategy, on_session=alone.append, **how)
    found, summary = batch(["SPX"], by_session(bars, made), strategy, **how)
    assert [replace(r, signal=0, p_up=None, position=0.0) for r in alone] == [replace(r, holdings=()) for r in found]
    assert [r.position for r in alone] == [sizes(r).get("SPX", 0.0) for r in found]
    assert summary == single and summary.fills > 5


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_always_buy_over_one_symbol_is_always_buy(execution: Any) -> None:
    bars = real_bars()[:300]
    many = always_buy_universe(["SPX"], by_session(bars), execution=execution)
    assert np.array_equal(many, always_buy(bars, execution=execution))


def test_always_buy_buys_each_symbol_once_for_its_share_when_it_first_trades() -> None:
    days = level(A=[100, 100, 110, 120, 130, 140], B=[None, None, 50, 60, None, 80], C=[10, None, 10, 20, 20, 20])
    equity = always_buy_universe("ABC", days, costs=replace(FREE, cash=30_000), stale_open="open")
    a, b = 10_000 / 100, 10_000 / 50  # sized at the close, filled at the next open
    c = 10_000 / 10  # asked for on the first day, without a bar on the second, asked for again on the third
    assert equity == pytest.approx(
        [
            30_000,
            30_000,
            30_000 + a * 10,
            30_000 + a * 20 + b * 0 + c * 0,
            30_000 + a * 30 + b * 0 + c * 0,
            30_000 + a * 40 + b * 20 + c * 0,
        ]
    )
    with holding_universe("ABC", replace(FREE, cash=30_000), stale_open="open") as stepping:
        assert [stepping.push(long_signals(one)).equity for one in days] == list(equity)
    assert len(always_buy_universe("ABC", days, sessions={one.session for one in days[2:]})) == 4


# Time.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(EXECUTIONS), st.booleans())
def test_stepping_equals_the_batch_and_a_prefix_is_the_run_over_the_prefix(
    seed: int, execution: str, also: bool
) -> None:
    days, rng = wild_market(seed, 30, "ABCD"), random.Random(seed)
    asked = (Control(halt=True), Control(resume=True), Control(flatten=True))
    controls = {one.session: rng.choice(asked) for one in days if rng.random() < 0.1}
    limits = RiskLimits(max_order=0.3, max_daily_loss=0.02, max_drawdown=0.2, max_turnover=8)
    how: dict[str, Any] = {"params": {"seed": seed, "also": also}, "execution": execution, "risk": limits}
    whole, _ = batch("ABCD", days, Roam, controls=controls, **how)
    steps = stepped("ABCD", days, Roam, controls, **how)
    assert steps == but_open(whole) and repr(steps) == repr(but_open(whole))
    for count in (1, 2, 13, 29):
        early = {at: control for at, control in controls.items() if at <= days[count - 1].session}
        part, _ = batch("ABCD", days[:count], Roam, controls=early, **how)
        assert but_open(part) == steps[:count]


def test_a_size_knows_nothing_of_the_next_session_of_any_symbol() -> None:
    days = wild_market(11, 40, "ABC")

    def redrawn(one: UniverseSession) -> UniverseSession:
        rng = random.Random(one.session.toordinal())
        bars = {s: bar(s, one.session, b.open * rng.uniform(0.9, 1.1), b.close * 1.01) for s, b in one.bars.items()}
        return replace(one, bars=bars)

    def decided(market: Sequence[UniverseSession]) -> list[tuple[date, str, float]]:
        orders = [o for r in batch("ABC", market, Roam, params={"seed": 1})[0] for o in r.orders]
        return sorted((o.session, o.symbol, o.size) for o in orders if o.session <= days[24].session)

    assert decided(days) == decided([*days[:25], *map(redrawn, days[25:])]) != []


def test_one_who_stops_between_sessions_leaves_no_thread() -> None:
    trading = UniverseTrading("AB", Roam)
    trading.push(level(A=[1.0], B=[2.0])[0])
    trading.close()
    trading.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("trading")]
    with pytest.raises(OrderError, match="2 symbols 2018-01-02: this trading is at its end"):
        trading.push(level(A=[1.0, 1.0], B=[2.0, 2.0])[1])


# A symbol without a bar.


def test_a_symbol_that_is_not_listed_yet_blocks_nobody_and_has_no_price() -> None:
    seen: list[list[tuple[float, ...]]] = []

    def look(s: Any, data: Any) -> None:
        seen.append([(d.close[0], d.volume[0], d.traded[0], d.p_up[0], d.signal[0]) for d in s.datas])
        s.order_target_percent(data["A"], target=0.5)
        s.getposition(data["B"])  # a look at a position without a price must not poison the account's value
        s.order_target_percent(data["B"], target=0.5)

    found, summary = planned(level(A=[100, 100, 110], B=[None, None, 20]), look, look, look)
    assert [record.equity for record in found] == [100_000, 100_000, pytest.approx(105_000)]
    assert [round(one, 6) for one in seen[0][0]] == [100, 1, 1, 0.6, 1]
    assert [math.isnan(one) for one in seen[0][1]] == [True, False, False, True, False]
    assert seen[0][1][1:3] == (0, 0) and seen[2][1][0] == 20
    assert sizes(found[2]) == {"A": 500} and {o.symbol for o in found[2].open} == {"A", "B"}
    assert summary.refused == ()  # a target at no price is no order


def test_in_a_gap_the_feed_shows_the_last_close_and_nothing_is_taken_or_filled() -> None:
    seen: list[tuple[float, float, float]] = []

    def look(s: Any, data: Any) -> None:
        seen.append((data["B"].close[0], data["B"].volume[0], data["B"].traded[0]))

    def ask(s: Any, data: Any) -> None:
        look(s, data)
        s.buy(data["B"], size=10)

    bid = lambda s, data: s.buy(data["B"], size=5, exectype=bt.Order.Limit, price=20)  # noqa: E731
    days = level(A=[100] * 6, B=[20, None, 20, None, 22, 22])
    found, summary = planned(days, ask, ask, bid, look, look)
    assert seen == [(20, 1, 1), (20, 0, 0), (20, 0, 0), (22, 1, 1)]
    told = {order.ref: (order.session, order.status, order.reason) for r in found for order in r.orders}
    assert told == {
        1: (day(1), "cancelled", "no bar in this session"),  # meant for the second session
        2: (day(2), "refused", "no bar in this session"),
        3: (day(3), "open at end", ""),  # a limit waits through the gap, and 22 is too dear
    }
    assert [order.symbol for order in summary.refused] == ["B"]
    assert [len(record.open) for record in found] == [1, 0, 1, 1, 1, 1]


def test_a_symbol_that_does_not_come_back_is_held_at_its_last_close_and_the_record_says_of_when() -> None:
    half = lambda s, data: s.order_target_percent(data["B"], target=0.5)  # noqa: E731
    out = lambda s, data: s.close(data["B"])  # noqa: E731
    found, summary = planned(level(A=[100] * 6, B=[20, 20, 30, None, None, None]), half, None, None, out, out, out)
    assert [[(h.size, h.price, h.value, h.priced) for h in r.holdings] for r in found[3:]] == [
        [(2500, 30, 75_000, day(3))]
    ] * 3
    assert [record.equity for record in found[2:]] == [pytest.approx(125_000)] * 4
    assert [order.reason for order in summary.refused] == ["no bar in this session"] * 3
    assert found[-1].exposure == found[-1].gross == pytest.approx(0.6)


def test_a_session_in_which_nothing_trades_is_a_session() -> None:
    half = lambda s, data: s.order_target_percent(data["A"], target=-0.5)  # noqa: E731
    days = level(A=[100, 100, None, 100], B=[20, 20, None, 20])
    found, _ = planned(days, half, costs=Costs(borrow_bps_a_year=365, cash_rate=0.0365))
    assert found[2].borrow == pytest.approx(5) and found[2].interest == pytest.approx(5, abs=0.01)
    assert sizes(found[2]) == {"A": -500}


# Limits over all symbols.


def both(first: str, second: str) -> Callable[[Any, Any], Any]:
    """Order the one out of the account and the other in, in the order given."""

    def send(s: Any, data: Any) -> None:
        for symbol in (first, second):
            s.order_target_percent(data[symbol], target=0.0 if s.getposition(data[symbol]).size else 1.0)

    return send


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_sale_sent_before_the_purchase_that_it_pays_for_makes_room_for_it(execution: str) -> None:
    days = level(A=[100] * 5, B=[20] * 5)
    into_a = lambda s, data: s.order_target_percent(data["A"], target=1.0)  # noqa: E731
    found, summary = planned(days, into_a, None, both("A", "B"), execution=execution)
    assert summary.cut == () and sizes(found[-1]) == {"B": 5000}
    assert found[3].gross == 1.0


def test_a_sale_sent_after_the_purchase_does_not_make_room_for_it() -> None:
    into_a = lambda s, data: s.order_target_percent(data["A"], target=1.0)  # noqa: E731
    found, summary = planned(level(A=[100] * 5, B=[20] * 5), into_a, None, both("B", "A"))
    (cut,) = summary.cut
    assert (cut.symbol, cut.size) == ("B", 0) and cut.reason == "cut from 5000 to 0 units: exposure limit 1 of equity"
    assert found[-1].holdings == ()


def test_the_exposure_limit_holds_the_sum_of_long_and_short_values() -> None:
    def send(s: Any, data: Any) -> None:
        s.sell(data["A"], size=600)
        s.buy(data["B"], size=3000)

    found, summary = planned(level(A=[100] * 3, B=[20] * 3), send)
    assert [(order.symbol, order.size) for order in summary.cut] == [("B", 2000)]
    assert (found[1].gross, found[1].exposure) == (1.0, pytest.approx(-0.2))


def test_a_limit_order_of_one_symbol_counts_against_another_and_a_waiting_exit_makes_no_room() -> None:
    def send(s: Any, data: Any) -> None:
        s.buy(data["A"], size=700, exectype=bt.Order.Limit, price=90)
        s.buy(data["B"], size=2000)

    _, summary = planned(level(A=[100] * 3, B=[20] * 3), send)
    assert [(order.symbol, round(order.size)) for order in summary.cut] == [("B", 1500)]

    def leave(s: Any, data: Any) -> None:
        s.sell(data["A"], size=1000, exectype=bt.Order.Stop, price=50)
        s.buy(data["B"], size=2000)

    into_a = lambda s, data: s.buy(data["A"], size=1000)  # noqa: E731
    _, summary = planned(level(A=[100] * 4, B=[20] * 4), into_a, None, leave)
    assert [(order.symbol, order.size) for order in summary.cut] == [("B", 0)]


def test_a_purchase_that_was_cancelled_for_want_of_a_bar_no_longer_takes_room() -> None:
    into_b = lambda s, data: s.buy(data["B"], size=5000)  # noqa: E731
    into_a = lambda s, data: s.buy(data["A"], size=1000)  # noqa: E731
    found, summary = planned(level(A=[100] * 4, B=[20, None, None, None]), into_b, into_a)
    assert found[1].orders[0].reason == "no bar in this session" and summary.cut == ()
    assert sizes(found[-1]) == {"A": 1000}


def test_turnover_and_order_limits_count_every_symbol() -> None:
    def send(s: Any, data: Any) -> None:
        s.buy(data["A"], size=300)
        s.buy(data["B"], size=2000)

    _, summary = planned(level(A=[100] * 3, B=[20] * 3), send, risk=RiskLimits(max_turnover=0.5))
    assert [(order.symbol, order.size) for order in summary.cut] == [("B", 1000)]
    _, summary = planned(level(A=[100] * 3, B=[20] * 3), send, risk=RiskLimits(max_order=0.3))
    assert [(order.symbol, order.size) for order in summary.cut] == [("B", 1500)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(EXECUTIONS), st.floats(0.2, 2.0))
def test_no_orders_of_a_session_carry_the_account_past_its_exposure_limit(
    seed: int, execution: str, most: float
) -> None:
    days = wild_market(seed, 40, "ABCDE")
    how: dict[str, Any] = {"params": {"seed": seed}, "costs": FREE, "execution": execution}
    found, _ = batch("ABCDE", days, Roam, risk=RiskLimits(max_gross_exposure=most), **how)
    orders = [order for record in found for order in record.orders if order.status not in ("refused",)]
    closes, held = dict[str, float](), dict[str, float]()
    for one, record in zip(days, found, strict=True):
        closes |= {symbol: now.close for symbol, now in one.bars.items()}
        if execution != "close":
            held = sizes(record)
        after = dict(held)
        for order in orders:
            if order.session == one.session:
                after[order.symbol] = after.get(order.symbol, 0.0) + order.size
        before, later = ({s: abs(n) * closes[s] for s, n in of.items()} for of in (held, after))
        assert sum(later.values()) <= max(most * record.equity, sum(before.values())) * (1 + 1e-8)
        held = sizes(record)


def test_a_trade_is_not_refused_for_losses_that_the_gains_of_another_symbol_pay_for() -> None:
    """As backtrader counts cash there is none left: 19,000 lost of 10,000, and the gain of A is no cash to it."""
    into = lambda symbol, size: lambda s, data: s.buy(data[symbol], size=size)  # noqa: E731

    def on(s: Any, data: Any) -> None:
        s.close(data["B"])
        s.buy(data["C"], size=100)

    days = level(A=[100, 100, 9000, 9000, 9000, 9000], B=[20, 20, 20, 20, 1, 1], C=[100] * 6)
    plan = (into("A", 50), None, into("B", 1000), None, on)
    how: dict[str, Any] = {"costs": replace(FREE, cash=10_000), "risk": RiskLimits(max_gross_exposure=2)}
    found, summary = planned(days, *plan, symbols="ABC", **how)
    assert sizes(found[-1]) == {"A": 50, "C": 100} and not summary.cut
    assert found[-1].equity == pytest.approx(10_000 + 50 * 8900 - 19_000)
    assert found[-1].cash == pytest.approx(10_000 - 5_000 - 19_000 - 10_000)  # a debt


# Controls.


def test_flatten_closes_every_position_and_waits_for_the_symbol_that_has_no_bar() -> None:
    def start(s: Any, data: Any) -> None:
        s.order_target_percent(data["A"], target=0.5)
        s.order_target_percent(data["B"], target=-0.5)

    days = level(A=[100] * 8, B=[20, 20, 20, None, None, None, 21, 21])
    controls = {day(4): Control(flatten=True), day(5): Control(flatten=True)}
    found, _ = planned(days, start, controls=controls)
    assert [sorted(sizes(record)) for record in found] == [[], *[["A", "B"]] * 3, ["B"], ["B"], [], []]
    assert [[order.symbol for order in record.open] for record in found[3:]] == [["A", "B"], ["B"], ["B"], [], []]
    done = [(order.symbol, order.status, order.reason) for r in found[4:] for order in r.orders]
    assert done == [("A", "completed", "flatten"), ("B", "completed", "flatten")]
    assert found[-1].state == "HALTED" and found[-1].equity == pytest.approx(100_000 - 2500)


def test_a_halt_refuses_the_orders_of_every_symbol_until_a_resume() -> None:
    send = lambda s, data: [s.buy(one, size=1) for one in s.datas]  # noqa: E731
    controls = {day(2): Control(halt=True), day(4): Control(resume=True)}
    found, summary = planned(level(A=[100] * 5, B=[20] * 5), None, send, send, send, controls=controls)
    assert [record.state for record in found] == ["ACTIVE", "HALTED", "HALTED", "ACTIVE", "ACTIVE"]
    assert len(summary.refused) == 4 and sizes(found[-1]) == {"A": 1, "B": 1}


def test_an_order_of_a_symbol_without_a_forecast_is_refused_and_of_another_is_not() -> None:
    days = level(A=[100] * 3, B=[20] * 3)
    nothing = {"A": signal("A", day(1)), "B": replace(signal("B", day(1), None), reason="late")}
    send = lambda s, data: [s.buy(one, size=1) for one in s.datas]  # noqa: E731
    found, summary = planned([replace(days[0], signals=nothing), *days[1:]], send)
    assert [(order.symbol, order.reason) for order in summary.refused] == [("B", "late")]
    assert sizes(found[-1]) == {"A": 1}


def test_an_account_with_nothing_left_stops_the_run() -> None:
    short = lambda s, data: s.order_target_percent(data["A"], target=-1)  # noqa: E731
    with pytest.raises(OrderError, match="2 symbols 2018-01-03: nothing is left of the account"):
        planned(level(A=[100, 100, 250, 250], B=[1] * 4), short)


# Input.


def test_what_does_not_fit_is_refused_at_the_border() -> None:
    good = level(A=[100, 100], B=[20, 20])
    a, stranger = good[0].bars["A"], bar("C", day(1), 1, 1)
    for days, kind, words in (
        ([], NoData, "no sessions"),
        (good[::-1], TimeError, "out of order"),
        ([good[0], good[0]], BadBar, "the same session twice"),
        ([replace(good[0], bars={"C": stranger})], BadBar, "C 2018-01-01: a bar of a symbol that is not in"),
        ([replace(good[0], bars={"B": a})], BadBar, "B 2018-01-01: a bar in another's place"),
        ([replace(good[1], bars={"A": a})], BadBar, "A 2018-01-02: a bar in another's place"),
        ([replace(good[0], signals={"C": signal("C", day(1))})], OrderError, "a signal of a symbol that is not in"),
        ([replace(good[0], signals={"A": signal("B", day(1))})], OrderError, "a signal in another's place"),
        ([replace(good[0], signals={"A": signal("A", day(1), 1.5)})], OrderError, "p_up is not a probability"),
    ):
        with pytest.raises(kind, match=words):
            trade_universe("AB", days, Roam)
    with pytest.raises(OrderError, match="A: a symbol twice in one universe"):
        trade_universe("ABA", good, Roam)
    with pytest.raises(NoData, match="no symbols"):
        trade_universe([], good, Roam)
    with pytest.raises(ConfigError, match=r"Roam has no parameter sed.*did you mean seed"):
        UniverseTrading("AB", Roam, {"sed": 1})
    with pytest.raises(OrderError, match="2 symbols 2018-02-01: a control of a session that is not traded"):
        trade_universe("AB", good, Roam, controls={date(2018, 2, 1): Control(halt=True)})
    with pytest.raises(BadBar, match="A 2018-01-01: two bars of one symbol in one session"):
        by_session([a, replace(a)])
    with pytest.raises(OrderError, match="two signals of one symbol"):
        by_session([], [signal("A", day(1)), signal("A", day(1))])


def test_what_is_refused_at_the_border_changes_nothing() -> None:
    days = level(A=[100, 101, 102], B=[20, 21, 22])
    with UniverseTrading("AB", Roam, {"seed": 2}) as trading:
        found = [trading.push(days[0])]
        with pytest.raises(BadBar, match="same session twice"):
            trading.push(days[0])
        found += [trading.push(one) for one in days[1:]]
    assert found == but_open(batch("AB", days, Roam, params={"seed": 2})[0])
