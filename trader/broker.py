"""The broker stage: stored bars and stored signals go through a strategy; one record a session comes out.

Before it stand the market store (bars) and the forecaster (signals), after it the ledger (orders, fills, equity).
Signals never depend on positions, so this stage can be run again on the same signals, and gives the same records.
backtrader itself is imported when it is needed, not when this room is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
import difflib
import importlib
from itertools import pairwise
import math
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trader.errors import BadBar, ConfigError, NoData, OrderError, TimeError
from trader.events import Bar, Signal
from trader.records import (
    FLATTEN,
    NO_CONTROL,
    Control,
    Costs,
    Execution,
    FillRecord,
    OrderRecord,
    SessionRecord,
    StaleOpen,
    TradeSummary,
)
from trader.risk import RiskLimits

__all__ = [
    "Control",
    "Costs",
    "Execution",
    "FillRecord",
    "OrderRecord",
    "RiskLimits",
    "SessionRecord",
    "StaleOpen",
    "TradeSummary",
    "Trading",
    "always_buy",
    "bare_seconds",
    "load_class",
    "trade",
]


def trade(
    bars: Sequence[Bar],
    signals: Sequence[Signal],
    strategy: type[Any],
    params: Mapping[str, object] | None = None,
    costs: Costs | None = None,
    execution: Execution = "next_open",
    stale_open: StaleOpen = "next_close",
    on_session: Callable[[SessionRecord], None] = lambda record: None,
    risk: RiskLimits | None = None,
    controls: Mapping[date, Control] | None = None,
) -> TradeSummary:
    """Trade one symbol's signals with a backtrader strategy; hand each session's record to ``on_session``.

    bars, signals: one of each a session, oldest first, of one symbol. Where a signal abstains (p_up None) no order is
        accepted, whatever the strategy; those that wait still fill.   params: the strategy's own.
    execution: what an order decided on the close of session d gets: "next_open" the open of d+1, "next_close" its
        close, "close" the close of d itself (the papers' convention; optimistic).
    stale_open: where the open of d+1 equals the close of d exactly it was no price (an index): "next_close" fills
        at the close of d+1 instead, "open" takes it.
    risk: the limits, None the default ones; an order beyond one is cut, and its record says so. They are held at the
        decision's close: what the market does between decision and fill may carry the exposure past its limit.
    controls: by session, what the account's owner asked for; see ``Control``.
    A size is what the strategy asks for on the close of d; nothing of d+1 is known to it.
    The records of the first n sessions are those of a run over the first n alone, open orders excepted.

    Raises NoData for an empty run, TimeError and BadBar for sessions that are zoned, twice or in disorder,
    OrderError for signals and controls that do not fit the bars, an order that backtrader refuses, or an account with
    nothing left, ConfigError for a word or parameter that is not known.
    """
    controls = controls or {}
    _check_words(execution, stale_open)
    _check_market(bars, signals, controls)
    from trader.cerebro import Today, deaf, revealed

    last = bars[-1]
    days = (
        Today(bar, signal, controls.get(bar.session, NO_CONTROL), bar is last)
        for bar, signal in zip(bars, signals, strict=True)
    )
    tally = _Tally(on_session)
    cerebro, broker = _account(
        lambda broker: revealed(days, broker), strategy, params, costs, execution, stale_open, risk, last.symbol, tally
    )
    with _refused_parameters(strategy, broker), deaf():
        cerebro.run()
    if tally.sessions != len(bars):
        raise _stopped(strategy, tally.sessions, f"{len(bars)} sessions")
    return TradeSummary(
        sessions=tally.sessions,
        stale_opens=sum(today.open == before.close for before, today in pairwise(bars)),
        optimistic=execution == "close",
        orders=tally.orders,
        fills=tally.fills,
        cut=tuple(tally.cut),
        refused=tuple(tally.refused),
    )


class Trading:
    """One account's broker, one session at a time: what ``trade`` does for all at once, bit for bit.

    Use as a context manager, from one thread. backtrader can only be run as a loop, so it runs in a thread of its
    own that stands still unless ``push`` waits for it. The arguments are those of ``trade``.
    Raises ConfigError for a word or parameter that is not known.
    """

    def __init__(
        self,
        symbol: str,
        strategy: type[Any],
        params: Mapping[str, object] | None = None,
        costs: Costs | None = None,
        execution: Execution = "next_open",
        stale_open: StaleOpen = "next_close",
        risk: RiskLimits | None = None,
    ) -> None:
        _check_words(execution, stale_open)
        from trader.cerebro import Handoff, Today, deaf, revealed

        self._symbol, self._strategy, self._deaf, self._today = symbol, strategy, deaf, Today
        self._made: list[SessionRecord] = []
        self._sessions = 0
        self._before: date | None = None
        self._whole = True  # whether every session pushed went through to its end
        # cerebro asks for its first row when the strategy stands, so its parameters are refused here.
        on_session = self._made.append

        def loop(days: Iterator[Any]) -> None:
            cerebro, broker = _account(
                lambda broker: revealed(days, broker),
                strategy,
                params,
                costs,
                execution,
                stale_open,
                risk,
                symbol,
                on_session,
            )
            with _refused_parameters(strategy, broker):
                cerebro.run()

        with deaf():
            self._loop = Handoff(loop, name=f"trading {symbol}")

    def push(self, bar: Bar, signal: Signal, control: Control = NO_CONTROL) -> SessionRecord:
        """Trade one session, later than those before; return its record when the strategy has decided on it.

        The record is the one of ``trade`` over the sessions pushed so far, but orders that wait are in ``open`` alone.
        Raises as ``trade`` does. What is refused before it reached the strategy changes nothing; after any other
        fault, its own included, this Trading is at its end: open a new one and push its sessions again.
        """
        if not self._whole or self._loop.ended:
            raise OrderError(
                "this trading is at its end",
                where=f"{bar.symbol} {bar.session}",
                do="open a new one and push its sessions again",
            )
        _check_bar(bar, self._symbol, self._before)
        _check_signal(bar, signal)
        self._whole = False
        with self._deaf():  # here and not in the loop: these filters are the whole process's
            self._loop.give(self._today(bar, signal, control))
        if not self._made:
            raise _stopped(self._strategy, self._sessions, f"{self._sessions + 1} sessions")
        self._whole, self._before = True, bar.session
        self._sessions += 1
        return self._made.pop()

    def close(self) -> None:
        """End the run and its thread; raises what the strategy's ``stop`` raises. A second time does nothing."""
        with self._deaf():
            self._loop.end()

    def __enter__(self) -> Trading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _account(
    rows: Callable[[Any], Iterable[Any]],
    strategy: type[Any],
    params: Mapping[str, object] | None,
    costs: Costs | None,
    execution: Execution,
    stale_open: StaleOpen,
    risk: RiskLimits | None,
    symbol: str,
    on_session: Callable[[SessionRecord], None],
) -> tuple[Any, Any]:
    """Return a cerebro that is ready to run, and its broker, to which ``rows`` are made."""
    from trader.cerebro import AccountBroker, Recorder, new_cerebro

    check_parameters(strategy, params or {})
    broker = AccountBroker(
        costs=costs or Costs(),
        execution=execution,
        stale_open=stale_open,
        risk=risk or RiskLimits(),
        symbol=symbol,
    )
    cerebro = new_cerebro(rows(broker), strategy, params or {})
    cerebro.broker = broker
    cerebro.addanalyzer(Recorder, on_session=on_session)
    return cerebro, broker


@contextmanager
def _refused_parameters(strategy: type[Any], broker: Any) -> Iterator[None]:
    """Translate what a strategy raises while it is built; what its next() raises keeps its traceback for its author."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if broker.started:
            raise
        raise ConfigError("the strategy refuses its parameters", where=strategy.__name__, got=str(error)) from error


def _stopped(strategy: type[Any], got: int, expected: str) -> OrderError:
    return OrderError(f"{strategy.__name__} stopped the run", got=got, expected=expected)


class _Tally:
    """Count what passes on its way to the caller."""

    def __init__(self, on_session: Callable[[SessionRecord], None]) -> None:
        self._on_session = on_session
        self.sessions = self.orders = self.fills = 0
        self.cut: list[OrderRecord] = []
        self.refused: list[OrderRecord] = []

    def __call__(self, record: SessionRecord) -> None:
        self.sessions += 1
        if record.orders:
            self.orders += len(record.orders)
            for order in record.orders:
                if order.status == "refused":
                    self.refused.append(order)
                elif order.reason and order.reason != FLATTEN:
                    self.cut.append(order)
        self.fills += len(record.fills)
        self._on_session(record)


def always_buy(
    bars: Sequence[Bar],
    sessions: Collection[date] | None = None,
    costs: Costs | None = None,
    execution: Execution = "next_open",
    stale_open: StaleOpen = "next_close",
) -> NDArray[np.float64]:
    """Return the equity at each close, (S,), of buying once and holding, through the same broker at the same costs.

    sessions: trade only the bars of these days; all of them by default. Raises as ``trade`` does.
    """
    from strategies.long_short import LongShort

    wanted = None if sessions is None else set(sessions)
    held = [bar for bar in bars if wanted is None or bar.session in wanted]
    signals = [Signal(session=bar.session, symbol=bar.symbol, p_up=1.0, side=1, model_id="always_buy") for bar in held]
    equity: list[float] = []
    trade(held, signals, LongShort, {}, costs, execution, stale_open, lambda record: equity.append(record.equity))
    return np.array(equity, dtype=np.float64)


def holding(
    symbol: str,
    costs: Costs | None = None,
    execution: Execution = "next_open",
    stale_open: StaleOpen = "next_close",
) -> Trading:
    """Return what ``always_buy`` does, one session at a time: push bars with signals that say long."""
    from strategies.long_short import LongShort

    return Trading(symbol, LongShort, {}, costs, execution, stale_open)


def bare_seconds(
    bars: Sequence[Bar],
    signals: Sequence[Signal],
    strategy: type[Any],
    params: Mapping[str, object] | None = None,
    costs: Costs | None = None,
) -> float:
    """Return the seconds that backtrader alone takes: same feed, flags and strategy, its own broker, no records.

    The yardstick for ``trade``; orders fill at the next open.
    """
    costs = costs or Costs()
    from strategies.base import FractionalSizes
    from trader.cerebro import deaf, market_rows, new_cerebro

    started = perf_counter()
    cerebro = new_cerebro(market_rows(bars, signals), strategy, params or {})
    cerebro.broker.setcash(costs.cash)
    cerebro.broker.set_slippage_perc(costs.slippage_bps / 1e4)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=costs.commission_bps / 1e4))
    with deaf():
        cerebro.run()
    return perf_counter() - started


def load_class(spec: str, base: type) -> type[Any]:
    """Return the class that ``package.module:Class`` names; raise ConfigError unless it is a subclass of ``base``.

    >>> load_class("datetime:timedelta", object).__name__
    'timedelta'
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ConfigError("a class is named by its module and its name", got=spec, expected="package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise ConfigError(
            f"the module {module_name} cannot be imported", where=spec, got=f"{type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, vars(module), n=1)
        raise ConfigError(
            f"the module {module_name} has no {name}", where=spec, do=f"did you mean {near[0]}?" if near else None
        )
    if not isinstance(found, type):
        raise ConfigError(f"{name} is not a class", where=spec, got=repr(found))
    if not issubclass(found, base):
        raise ConfigError(f"{name} is not a {base.__module__}.{base.__qualname__}", where=spec, got=repr(found))
    return found


def _check_words(execution: str, stale_open: str) -> None:
    for key, word, known in (
        ("execution", execution, ("next_open", "next_close", "close")),
        ("stale_open", stale_open, ("next_close", "open")),
    ):
        if word not in known:
            raise ConfigError(f"an unknown {key}", got=word, expected=" or ".join(known))


def check_parameters(strategy: type[Any], params: Mapping[str, object]) -> None:
    """Raise ConfigError for a parameter that the strategy does not have, naming the nearest."""
    known = list(strategy.params._getkeys())
    for key in params:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"{strategy.__name__} has no parameter {key}",
                expected=", ".join(known) or "none",
                do=f"did you mean {near[0]}?" if near else None,
            )


def _check_market(bars: Sequence[Bar], signals: Sequence[Signal], controls: Mapping[date, Control]) -> None:
    """Refuse what backtrader would run without a word: no bars, zones, a day twice, disorder, signals elsewhere."""
    if not bars:
        raise NoData("no bars to trade", expected="at least one session")
    symbol = bars[0].symbol
    before: date | None = None
    for bar in bars:
        _check_bar(bar, symbol, before)
        before = bar.session
    if len(signals) != len(bars):
        raise OrderError("each session needs one signal", got=f"{len(signals)} signals for {len(bars)} bars")
    for bar, signal in zip(bars, signals, strict=True):
        _check_signal(bar, signal)
    astray = controls.keys() - {bar.session for bar in bars} if controls else None
    if astray:  # it would never take effect, and nobody would hear of it
        raise OrderError("a control of a session that is not traded", where=f"{symbol} {min(astray)}")


def _check_bar(bar: Bar, symbol: str, before: date | None) -> None:
    where = f"{bar.symbol} {bar.session}"
    if isinstance(bar.session, datetime):
        raise TimeError("a session is a day, without a time or zone", where=where, got=bar.session)
    if bar.symbol != symbol:
        raise BadBar("bars of two symbols in one run", where=where, expected=symbol)
    if before is not None and bar.session <= before:
        if bar.session == before:
            raise BadBar("the same session twice", where=where)
        raise TimeError("sessions out of order", where=where, got=f"it after {before}", expected="oldest first")
    # Bar refuses NaN itself; this is for what got past it (a subclass, object.__new__).
    if not (bar.open > 0 and bar.high > 0 and bar.low > 0 and bar.close > 0):
        raise BadBar("a price is not a positive number", where=where)


def _check_signal(bar: Bar, signal: Signal) -> None:
    where = f"{signal.symbol} {signal.session}"
    if signal.session != bar.session or signal.symbol != bar.symbol:
        raise OrderError("a signal that is not the bar's", where=where, expected=f"{bar.symbol} {bar.session}")
    if signal.side not in (-1, 0, 1):
        raise OrderError("a side that is none", where=where, got=signal.side, expected="-1, 0 or 1")
    if signal.p_up is None:
        if signal.side:
            raise OrderError("a side without a probability", where=where, got=signal.side, expected="0")
    elif not 0 <= signal.p_up <= 1:
        raise OrderError("p_up is not a probability", where=where, got=signal.p_up)
    if signal.expected_return is not None:
        if signal.p_up is None:
            raise OrderError(
                "an expected return where the forecaster abstained", where=where, got=signal.expected_return
            )
        if not math.isfinite(signal.expected_return):
            raise OrderError("expected_return is not a number", where=where, got=signal.expected_return)
