"""backtrader as this project runs it: its feed, its loop, its recorder, and the loop one session at a time.

Only ``trader.stepping`` and ``trader.broker`` use this room. A session goes: cerebro reveals the bars, the broker
charges what the night cost and fills old orders, the strategy decides, the recorder closes the session and hands out
its record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
import math
from threading import Lock, Thread
from typing import Any
import warnings

from strategies.base import bt
from strategies.signal_data import Row, SignalData
from trader.account_broker import AccountBroker
from trader.events import Bar, Signal
from trader.records import SessionRecord, Today

__all__ = ["AccountBroker", "Handoff", "Recorder", "deaf", "market_rows", "new_cerebro", "revealed"]


def market_rows(bars: Sequence[Bar], signals: Sequence[Signal]) -> list[Row]:
    """Put each bar beside its signal, as SignalData reads them."""
    return [row_of(bar, signal) for bar, signal in zip(bars, signals, strict=True)]


def row_of(bar: Bar, signal: Signal | None) -> Row:
    """Put a bar beside its signal, as SignalData reads them; None is a signal that abstains."""
    side, p_up, expected = 0, math.nan, math.nan
    if signal is not None and signal.p_up is not None:
        side, p_up = signal.side, signal.p_up
        expected = math.nan if signal.expected_return is None else signal.expected_return
    return (bar.session, bar.open, bar.high, bar.low, bar.close, bar.volume, side, p_up, expected, 1)


def row_without(session: date, close: float) -> Row:
    """Return the row of a symbol that has no bar in a session: its last close, NaN before its first; no forecast."""
    return (session, close, close, close, close, 0.0, 0, math.nan, math.nan, 0)


def revealed(days: Iterable[Today], broker: AccountBroker, symbols: Sequence[str]) -> dict[str, Iterator[Row]]:
    """Return the rows of each symbol, one a day for all of them; the broker is told the day with the first's.

    backtrader lets a strategy decide only when every feed has a row (a symbol listed in the tenth year would keep it
    still for ten), so each has one for every session, whether it has a bar or not. Cerebro draws feeds in their order.
    """
    first, *others = symbols
    return {first: _leading(days, broker, first), **{one: _following(broker, one) for one in others}}


def _leading(days: Iterable[Today], broker: AccountBroker, symbol: str) -> Iterator[Row]:
    for day in days:
        broker.reveal(day)
        yield _row(broker, symbol)


def _following(broker: AccountBroker, symbol: str) -> Iterator[Row]:
    seen = None
    while broker.today is not seen:
        seen = broker.today
        yield _row(broker, symbol)


def _row(broker: AccountBroker, symbol: str) -> Row:
    today = broker.today
    bar = today.bars.get(symbol)
    if bar is not None:
        return row_of(bar, today.signals.get(symbol))
    before = broker.last_bars.get(symbol)
    return row_without(today.session, math.nan if before is None else before.close)


def new_cerebro(feeds: Mapping[str, Iterable[Row]], strategy: type[Any], params: Mapping[str, object]) -> Any:
    """Return a Cerebro that draws one session at a time; with preload it would drain the feeds ahead of next()."""
    cerebro = bt.Cerebro(preload=False, runonce=False, stdstats=False)
    for symbol, rows in feeds.items():
        cerebro.adddata(SignalData(dataname=rows), name=symbol)
    cerebro.addstrategy(strategy, **params)
    return cerebro


@contextmanager
def deaf() -> Iterator[None]:
    """Be deaf to the warnings of backtrader's own code (utcnow since Python 3.12) while it runs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"backtrader\b")
        yield


class Recorder(bt.Analyzer):  # type: ignore[misc]
    """Close each session after the strategy's decision and hand out its SessionRecord."""

    def __init__(self, on_session: Callable[[SessionRecord], None], universe: bool = False) -> None:
        super().__init__()
        self._on_session, self._universe = on_session, universe

    def next(self) -> None:
        """Report one session; also called while a strategy's indicators are still filling."""
        broker: Any = self.strategy.broker
        data, today = self.strategy.data, broker.today
        broker.close_session()
        waiting = broker.waiting()
        if today.last:
            broker.ended.extend(waiting)
        equity, fills, orders = broker.getvalue(), tuple(broker.fills), tuple(broker.ended)
        if self._universe:
            holdings, signal, position = broker.holdings(), None, 0.0
            value = math.fsum(one.value for one in holdings)
            gross = math.fsum(abs(one.value) for one in holdings)
        else:
            holdings, signal, position = (), today.signals[data._name], broker.positions[data].size
            value = position * data.close[0]
            gross = abs(value)
        self._on_session(
            SessionRecord(
                session=today.session,
                signal=0 if signal is None else signal.side,
                p_up=None if signal is None else signal.p_up,
                equity=equity,
                cash=equity - value,
                position=position,
                exposure=value / equity,
                commission=sum(fill.commission for fill in fills),
                slippage=sum(fill.slippage_cost for fill in fills),
                borrow=broker.borrow,
                interest=broker.interest,
                orders=orders,
                fills=fills,
                open=waiting,
                state=broker.guard.state,
                state_reason=broker.guard.reason,
                gross=gross / equity,
                holdings=holdings,
            )
        )
        broker.fills.clear()
        broker.ended.clear()
        broker.borrow = broker.interest = 0.0


class Handoff:
    """Let a loop that draws from an iterator run one item at a time, in a thread of its own.

    Of the two threads exactly one ever runs: ``give`` waits until the loop asks for the next item or ends, the loop
    waits until ``give`` or ``end``. So the loop may share whatever it likes with its owner, without a lock.
    A lock that is free is a turn; each is freed by the one thread and taken by the other.
    """

    def __init__(self, loop: Callable[[Iterator[Today]], object], name: str) -> None:
        """Start ``loop(items)`` and wait until it asks for its first item; raises what it raises before that."""
        self._ours, self._theirs = Lock(), Lock()
        self._ours.acquire()
        self._theirs.acquire()
        self._item: Today | None = None
        self._fault: BaseException | None = None
        self._asks = False  # whether the loop stands still and wants an item
        self.ended = False
        # A daemon: whoever forgets to end this one must not be kept from leaving.
        self._thread = Thread(target=self._run, args=(loop,), name=name, daemon=True)
        self._thread.start()
        self._take_turn()

    def give(self, item: Today | None) -> None:
        """Hand over one item and return when the loop is through with it; raises what the loop raises.

        None is the end: the loop finds no more items.
        """
        self._item, self._asks = item, False
        self._theirs.release()
        self._take_turn()

    def end(self) -> None:
        """End the loop and wait until its thread is gone; raises what the loop raises."""
        while not (self._asks or self.ended):  # Ctrl-C came while it was at work: that item first
            self._ours.acquire(timeout=0.05)
        self._ours.acquire(blocking=False)
        if not self.ended:
            self.give(None)
        self._thread.join()
        self._raise_fault()

    def _take_turn(self) -> None:
        self._ours.acquire()
        if self.ended:
            self._thread.join()
            self._raise_fault()

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            try:
                raise fault
            finally:
                del fault  # its traceback leads here, and would keep the whole run alive in a circle

    # In the other thread.

    def _run(self, loop: Callable[[Iterator[Today]], object]) -> None:
        try:
            loop(self._items())
        except BaseException as fault:  # whatever it is, it belongs to the caller
            self._fault = fault
        self.ended = True
        self._ours.release()

    def _items(self) -> Iterator[Today]:
        while True:
            self._asks = True
            self._ours.release()
            self._theirs.acquire()
            item, self._item = self._item, None
            if item is None:
                return
            yield item
