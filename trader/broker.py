"""The broker stage: stored bars and stored signals go through a strategy; one record a session comes out.

Before it stand the market store (bars) and the forecaster (signals), after it the ledger (orders, fills, equity).
Signals never depend on positions, so this stage can be run again on the same signals, and gives the same records.
backtrader itself is imported when it is needed, not when this room is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date
import difflib
import importlib
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trader.errors import BadBar, ConfigError, NoData, OrderError
from trader.events import Bar, Signal
from trader.records import (
    NO_CONTROL,
    Control,
    Costs,
    Execution,
    FillRecord,
    OrderRecord,
    SessionRecord,
    StaleOpen,
    Today,
    TradeSummary,
)
from trader.risk import RiskLimits
from trader.stepping import Steps, Tally, Terms, check_controls, check_prices, check_session, check_signal

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
    symbols = [bar.symbol for bar in bars[:1]]
    terms = Terms.of(symbols, strategy, params, costs, execution, stale_open, risk)
    controls = controls or {}
    _check_market(bars, signals, controls)
    last = bars[-1]
    days = (
        _today(bar, signal, controls.get(bar.session, NO_CONTROL), last=bar is last)
        for bar, signal in zip(bars, signals, strict=True)
    )
    tally = Tally(on_session)
    terms.run(days, tally)
    if tally.sessions != len(bars):
        raise terms.stopped(tally.sessions, len(bars))
    stale_opens = sum(today.open == before.close for before, today in pairwise(bars))
    return tally.summary(stale_opens, optimistic=execution == "close")


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
        self._symbol = symbol
        self._steps = Steps(Terms.of((symbol,), strategy, params, costs, execution, stale_open, risk))

    def push(self, bar: Bar, signal: Signal, control: Control = NO_CONTROL) -> SessionRecord:
        """Trade one session, later than those before; return its record when the strategy has decided on it.

        The record is the one of ``trade`` over the sessions pushed so far, but orders that wait are in ``open`` alone.
        Raises as ``trade`` does. What is refused before it reached the strategy changes nothing; after any other
        fault, its own included, this Trading is at its end: open a new one and push its sessions again.
        """
        self._steps.check_going(f"{bar.symbol} {bar.session}")
        _check_bar(bar, self._symbol, self._steps.before)
        _check_signal(bar, signal)
        return self._steps.push(_today(bar, signal, control))

    def close(self) -> None:
        """End the run and its thread; raises what the strategy's ``stop`` raises. A second time does nothing."""
        self._steps.close()

    def __enter__(self) -> Trading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _today(bar: Bar, signal: Signal, control: Control, last: bool = False) -> Today:
    return Today(bar.session, {bar.symbol: bar}, {bar.symbol: signal}, control, last)


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
    cerebro = new_cerebro({bars[0].symbol: market_rows(bars, signals)}, strategy, params or {})
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
    check_controls(controls, [bar.session for bar in bars], symbol)


def _check_bar(bar: Bar, symbol: str, before: date | None) -> None:
    where = f"{bar.symbol} {bar.session}"
    if bar.symbol != symbol:
        raise BadBar("bars of two symbols in one run", where=where, expected=symbol)
    check_session(bar.session, before, where)
    check_prices(bar)


def _check_signal(bar: Bar, signal: Signal) -> None:
    if signal.session != bar.session or signal.symbol != bar.symbol:
        raise OrderError(
            "a signal that is not the bar's",
            where=f"{signal.symbol} {signal.session}",
            expected=f"{bar.symbol} {bar.session}",
        )
    check_signal(signal)
