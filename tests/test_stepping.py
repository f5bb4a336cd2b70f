"""One session at a time: the broker pushed day by day gives the records of the whole run, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
import gc
import random
import subprocess
import sys
import threading
from time import sleep
from typing import Any
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from strategies.base import bt
from strategies.long_only import LongOnly
from strategies.long_short import LongShort
from strategies.threshold import Threshold
from strategies.vol_target import VolTarget
from tests.test_broker import EXECUTIONS, FREE, LEVEL, ROOT, Ask, bar, market, real_bars, signals
from trader.broker import Costs, RiskLimits, SessionRecord, Trading, trade
from trader.errors import BadBar, ConfigError, OrderError, TimeError
from trader.events import Bar, Signal
from trader.records import NO_CONTROL, Control


class Bids(bt.Strategy):  # type: ignore[misc]
    """A user's own: limits that wait and expire, stops, cancellations, several orders a session, an indicator."""

    params = (("seed", 0),)

    def __init__(self) -> None:
        self.rng, self.mine = random.Random(self.p.seed), []
        self.mean = bt.indicators.SMA(self.data.close, period=3)

    def notify_order(self, order: Any) -> None:
        if not order.alive():
            self.mine = [one for one in self.mine if one.ref != order.ref]

    def next(self) -> None:
        draw, close = self.rng.random(), self.data.close[0]
        size = self.rng.randrange(1, 60)
        valid = self.data.datetime.datetime() + timedelta(days=self.rng.randrange(1, 9))
        if draw < 0.3:
            self.mine.append(self.buy(size=size, exectype=bt.Order.Limit, price=close * 0.99, valid=valid))
        elif draw < 0.5:
            self.mine.append(self.sell(size=size, exectype=bt.Order.Stop, price=close * 0.98))
        elif draw < 0.6 and self.mine and self.mine[0] is not None:
            self.cancel(self.mine[0])
        elif draw < 0.8:
            self.order_target_percent(target=self.rng.uniform(-2, 2))
            self.buy(size=size, exectype=bt.Order.Close)
        elif self.mean[0] > close:
            self.close()
        self.mine = [one for one in self.mine if one is not None]


FIVE: list[tuple[type[Any], dict[str, Any]]] = [
    (LongShort, {}),
    (LongOnly, {"rebalance": True}),
    (Threshold, {"band": 0.05, "inside": "keep"}),
    (VolTarget, {"lookback": 5, "band": 0.02}),
    (Bids, {"seed": 3}),
]
LIMITS = RiskLimits(max_order=1.5, max_daily_loss=0.02, max_drawdown=0.08, max_turnover=15.0)


def batch(bars: Sequence[Bar], made: Sequence[Signal], strategy: type[Any], **how: Any) -> list[SessionRecord]:
    found: list[SessionRecord] = []
    trade(bars, made, strategy, on_session=found.append, **how)
    return found


def stepped(
    bars: Sequence[Bar],
    made: Sequence[Signal],
    strategy: type[Any],
    params: Any = None,
    controls: Any = None,
    **how: Any,
) -> list[SessionRecord]:
    with Trading(bars[0].symbol, strategy, params, **how) as trading:
        return [
            trading.push(bar, signal, (controls or {}).get(bar.session, NO_CONTROL))
            for bar, signal in zip(bars, made, strict=True)
        ]


def but_open(found: Sequence[SessionRecord]) -> list[SessionRecord]:
    """The records of a whole run as a step gives them: what waits at the end is no order that came to its end."""
    last = found[-1]
    return [*found[:-1], replace(last, orders=tuple(o for o in last.orders if o not in last.open))]


def test_a_whole_history_pushed_day_by_day_equals_the_run_at_once() -> None:
    bars, rng = real_bars(), random.Random(1)
    made = signals(bars, [rng.choice((-1, 0, 1, None)) for _ in bars])
    whole = batch(bars, made, LongShort, costs=Costs())
    assert stepped(bars, made, LongShort, costs=Costs()) == but_open(whole)


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("strategy", "params"), FIVE, ids=[kind.__name__ for kind, _ in FIVE])
def test_stepping_equals_the_batch_bit_for_bit(
    strategy: type[Any], params: dict[str, Any], execution: str, limits: RiskLimits | None
) -> None:
    bars, rng = real_bars()[1300:1480], random.Random(7)  # autumn 2008: wide moves, stops and losses
    made = signals(bars, [rng.choice((-1, 0, 1, 1, None)) for _ in bars])
    controls = {
        bars[60].session: Control(halt=True),
        bars[64].session: Control(resume=True),
        bars[110].session: Control(flatten=True),
        bars[112].session: Control(resume=True),
    }
    how: dict[str, Any] = {"costs": Costs(), "execution": execution, "params": params, "risk": limits}
    whole = batch(bars, made, strategy, controls=controls, **how)
    steps = stepped(bars, made, strategy, controls=controls, **how)
    assert steps == but_open(whole)
    assert repr(steps) == repr(but_open(whole))  # == calls 0.0 and −0.0 the same
    assert sum(len(record.fills) for record in steps) > 5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_push_is_the_last_record_of_a_run_over_the_sessions_so_far(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    strategy, params = data.draw(st.sampled_from(FIVE))
    how: dict[str, Any] = {
        "params": params,
        "costs": data.draw(st.sampled_from([FREE, Costs()])),
        "execution": data.draw(st.sampled_from(EXECUTIONS)),
        "stale_open": data.draw(st.sampled_from(["open", "next_close"])),
        "risk": data.draw(st.sampled_from([None, LIMITS, RiskLimits(max_gross_exposure=0.4, max_order=0.3)])),
    }
    bars, close, day = [], 100.0, date(2018, 1, 1)
    for _ in range(data.draw(st.integers(1, 25))):
        open_ = close if rng.random() < 0.2 else close * rng.uniform(0.97, 1.03)
        close = open_ * rng.uniform(0.96, 1.04)
        day += timedelta(days=rng.choice((1, 1, 1, 3)))
        bars.append(bar(day, open_, close))
    made = signals(bars, [rng.choice((-1, 0, 1, None)) for _ in bars])
    asked = (Control(halt=True), Control(resume=True), Control(flatten=True))
    controls = {bar.session: rng.choice(asked) for bar in bars if rng.random() < 0.1}
    steps = stepped(bars, made, strategy, controls=controls, **how)
    for count in range(1, len(bars) + 1):
        early = {session: control for session, control in controls.items() if session <= bars[count - 1].session}
        assert steps[:count] == but_open(batch(bars[:count], made[:count], strategy, controls=early, **how))


def test_what_waits_is_open_in_every_record_and_the_last_one_of_a_run_has_it_among_its_orders_too() -> None:
    bid = lambda s: s.buy(size=5, price=50, exectype=bt.Order.Limit)  # noqa: E731
    bars = LEVEL
    made = signals(bars, [0] * 4)
    whole = batch(bars, made, Ask, params={"plan": (bid, None, bid)})
    assert [[order.ref for order in record.open] for record in whole] == [[1], [1], [1, 2], [1, 2]]
    assert {order.status for record in whole for order in record.open} == {"open at end"}
    assert whole[-1].orders == whole[-1].open and not any(record.orders for record in whole[:-1])
    last = stepped(bars, made, Ask, {"plan": (bid, None, bid)})[-1]
    assert last.open == whole[-1].open and last.orders == ()


# One session and not the next.


def test_push_returns_after_the_decision_and_before_the_next_session_exists() -> None:
    seen: list[tuple[int, float]] = []

    class Watching(LongShort):  # type: ignore[misc]
        def next(self) -> None:
            seen.append((len(self), self.data.close[0]))
            super().next()

    bars = market((99, 101), (103, 107), (108, 109))
    with Trading("SPX", Watching, costs=FREE) as trading:
        for count, (bar_, signal) in enumerate(zip(bars, signals(bars, [1, 1, 1]), strict=True), start=1):
            record = trading.push(bar_, signal)
            sleep(0.01)  # a loop that ran ahead would be seen now
            assert seen == [(n, bars[n - 1].close) for n in range(1, count + 1)]
            assert record.session == bar_.session and len(record.open) == (count == 1)


def test_only_one_of_the_two_threads_ever_runs() -> None:
    running: list[int] = []

    class Alone(bt.Strategy):  # type: ignore[misc]
        def next(self) -> None:
            running.append(1)
            sleep(0.001)
            assert running.pop() and not running

    with Trading("SPX", Alone) as trading:
        for bar_, signal in zip(LEVEL, signals(LEVEL, [0] * 4), strict=True):
            trading.push(bar_, signal)
            assert not running


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("trading")}


def orders_in_memory() -> int:
    gc.collect()
    return sum(isinstance(one, bt.Order) for one in gc.get_objects())


@pytest.mark.parametrize(("strategy", "params"), FIVE, ids=[kind.__name__ for kind, _ in FIVE])
def test_an_account_keeps_no_order_that_has_ended(strategy: type[Any], params: dict[str, Any]) -> None:
    bars, rng = real_bars()[:300], random.Random(1)
    before = orders_in_memory()
    with Trading(bars[0].symbol, strategy, params) as trading:
        made = signals(bars, [rng.choice((-1, 1)) for _ in bars])
        *_, last = [trading.push(*pair) for pair in zip(bars, made, strict=True)]
        assert orders_in_memory() - before <= 3 * len(last.open) + 3, "backtrader keeps each, and clones of it"


def test_close_leaves_no_thread_and_may_be_called_twice() -> None:
    assert not threads()
    trading = Trading("SPX", LongShort)
    assert len(threads()) == 1 and all(thread.daemon for thread in threads())
    trading.push(LEVEL[0], signals(LEVEL, [1] * 4)[0])
    trading.close()
    trading.close()
    assert not threads()
    with pytest.raises(OrderError, match="SPX 2018-01-02: this trading is at its end; open a new one"):
        trading.push(LEVEL[1], signals(LEVEL, [1] * 4)[1])


def test_close_lets_the_strategy_end_as_a_run_does() -> None:
    ended = []

    class Ending(LongShort):  # type: ignore[misc]
        def stop(self) -> None:
            ended.append(len(self))
            raise ZeroDivisionError("in stop")

    trading = Trading("SPX", Ending)
    trading.push(LEVEL[0], signals(LEVEL, [1] * 4)[0])
    assert ended == []
    with pytest.raises(ZeroDivisionError, match="in stop"):
        trading.close()
    assert ended == [1] and not threads()


def test_an_abandoned_trading_does_not_keep_the_process_alive() -> None:
    code = """if True:
        from strategies.long_short import LongShort
        from trader.broker import Trading
        trading = Trading("SPX", LongShort)
        print("left")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_many_accounts_may_be_stepped_side_by_side() -> None:
    bars, made = real_bars()[:60], signals(real_bars()[:60], [1, -1, 0] * 20)
    how: list[dict[str, Any]] = [{"execution": word} for word in EXECUTIONS]
    accounts = [Trading("SPX", LongShort, **one) for one in how]
    found = [[trading.push(b, s) for trading in accounts] for b, s in zip(bars, made, strict=True)]
    for trading in accounts:
        trading.close()
    for number, one in enumerate(how):
        assert [row[number] for row in found] == but_open(batch(bars, made, LongShort, **one))


def test_the_warnings_filters_of_the_process_are_as_before_while_a_trading_stands() -> None:
    before = list(warnings.filters)
    with Trading("SPX", LongShort) as trading:
        assert warnings.filters == before
        trading.push(LEVEL[0], signals(LEVEL, [1] * 4)[0])
        assert warnings.filters == before


# Faults.


def failing(session: int, fault: Callable[[], BaseException]) -> type[Any]:
    class Failing(LongShort):  # type: ignore[misc]
        def next(self) -> None:
            if len(self) == session:
                raise fault()
            super().next()

    return Failing


@pytest.mark.parametrize("fault", [ValueError, KeyError, SystemExit, StopIteration])
def test_a_fault_in_next_comes_out_of_push_with_its_traceback(fault: type[BaseException]) -> None:
    made = signals(LEVEL, [1] * 4)
    trading = Trading("SPX", failing(2, lambda: fault("the user's own")))
    trading.push(LEVEL[0], made[0])
    with pytest.raises(fault, match="the user's own") as caught:
        trading.push(LEVEL[1], made[1])
    assert [entry.name for entry in caught.traceback][-1] == "next"
    assert not threads()
    with pytest.raises(OrderError, match="at its end"):
        trading.push(LEVEL[2], made[2])
    trading.close()


def test_parameters_that_the_strategy_refuses_are_refused_before_any_push() -> None:
    with pytest.raises(ConfigError, match=r"the strategy refuses its parameters.*band must lie in \[0, 0.5\)"):
        Trading("SPX", Threshold, {"band": 0.7})
    with pytest.raises(ConfigError, match=r"LongShort has no parameter rebalanse.*did you mean rebalance"):
        Trading("SPX", LongShort, {"rebalanse": True})
    with pytest.raises(ConfigError, match="unknown execution"):
        Trading("SPX", LongShort, execution="open")  # type: ignore[arg-type]
    assert not threads()


def test_an_account_with_nothing_left_ends_the_trading() -> None:
    bars = market((100, 100), (101, 101), (250, 250), (250, 250))
    made = signals(bars, [-1] * 4)
    with Trading("SPX", LongShort, costs=FREE) as trading:
        trading.push(bars[0], made[0])
        trading.push(bars[1], made[1])
        with pytest.raises(OrderError, match=r"SPX 2018-01-03: nothing is left of the account"):
            trading.push(bars[2], made[2])


def test_what_is_refused_at_the_border_changes_nothing() -> None:
    bars = market((99, 101), (103, 107), (108, 109))
    made = signals(bars, [1, -1, 0])
    with Trading("SPX", LongShort) as trading:
        found = [trading.push(bars[0], made[0])]
        with pytest.raises(BadBar, match="same session twice"):
            trading.push(bars[0], made[0])
        with pytest.raises(OrderError, match="not the bar's"):
            trading.push(bars[1], made[2])
        found.append(trading.push(bars[1], made[1]))
        with pytest.raises(TimeError, match="out of order"):
            trading.push(bars[0], made[0])
        with pytest.raises(BadBar, match="two symbols"):
            trading.push(replace(bars[2], symbol="NDX"), made[2])
        found.append(trading.push(bars[2], made[2]))
    assert found == but_open(batch(bars, made, LongShort))


def test_a_strategy_that_stops_the_run_is_told_as_trade_tells_it() -> None:
    made = signals(LEVEL, [1] * 4)

    class Stopping(LongShort):  # type: ignore[misc]
        def next(self) -> None:
            super().next()
            self.env.runstop()

    with Trading("SPX", Stopping) as trading:
        assert [trading.push(LEVEL[0], made[0])] == but_open(batch(LEVEL[:1], made[:1], Stopping))
        with pytest.raises(OrderError, match="at its end"):
            trading.push(LEVEL[1], made[1])
    assert not threads()


def test_after_a_ctrl_c_in_the_middle_of_a_session_the_trading_is_at_its_end_and_closes() -> None:
    code = """if True:
        import _thread, signal, threading, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
        from strategies.long_short import LongShort
        from tests.test_broker import LEVEL, signals
        from trader.broker import Trading
        from trader.errors import OrderError

        class Slow(LongShort):
            def next(self):
                _thread.interrupt_main()
                time.sleep(0.5)
                super().next()

        made = signals(LEVEL, [1] * 4)
        trading = Trading("SPX", Slow)
        try:
            trading.push(LEVEL[0], made[0])
        except KeyboardInterrupt:
            print("interrupted")
        try:
            trading.push(LEVEL[1], made[1])
        except OrderError as error:
            print(error)
        trading.close()
        print(threading.active_count())
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == (
        "interrupted\nSPX 2018-01-02: this trading is at its end; open a new one and push its sessions again\n1\n"
    )


def test_a_strategy_cannot_push() -> None:
    made = signals(LEVEL, [1] * 4)
    box: list[Trading] = []
    met: list[str] = []

    class Climbing(LongShort):  # type: ignore[misc]
        def next(self) -> None:
            with suppress(OrderError):
                box[0].push(LEVEL[1], made[1])
                met.append("pushed")

    with Trading("SPX", Climbing) as trading:
        box.append(trading)
        trading.push(LEVEL[0], made[0])
    assert met == []
