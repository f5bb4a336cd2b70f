"""The broker stage: stored bars and stored signals go through a strategy; one record a session comes out.

Before it stand the market store (bars) and the forecaster (signals), after it the ledger (orders, fills, equity).
Signals never depend on positions, so this stage can be run again on the same signals, and gives the same records.
backtrader itself is imported when it is needed, not when this room is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
from trader.records import Costs, Execution, FillRecord, OrderRecord, SessionRecord, StaleOpen, TradeSummary

__all__ = [
    "Costs",
    "Execution",
    "FillRecord",
    "OrderRecord",
    "SessionRecord",
    "StaleOpen",
    "TradeSummary",
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
    max_exposure: float = 1.0,
) -> TradeSummary:
    """Trade one symbol's signals with a backtrader strategy; hand each session's record to ``on_session``.

    bars, signals: one of each a session, oldest first, of one symbol.  params: the strategy's own.
    execution: what an order decided on the close of session d gets: "next_open" the open of d+1, "next_close" its
        close, "close" the close of d itself (the papers' convention; optimistic).
    stale_open: where the open of d+1 equals the close of d exactly it was no price (an index): "next_close" fills
        at the close of d+1 instead, "open" takes it.
    max_exposure: of equity, at the decision's close; an order beyond it is cut, and its record says so. What the
        market does between decision and fill may carry the exposure past it; no order is refused for that.
    A size is what the strategy asks for on the close of d; nothing of d+1 is known to it.
    The records of the first n sessions are those of a run over the first n alone, open orders excepted.

    Raises NoData for an empty run, TimeError and BadBar for sessions that are zoned, twice or in disorder,
    OrderError for signals that do not fit the bars, an order that backtrader refuses, or an account with nothing
    left, ConfigError for a word or parameter that is not known.
    """
    costs = costs or Costs()
    _check_words(execution, stale_open, max_exposure)
    _check_market(bars, signals)
    from trader.cerebro import AccountBroker, Recorder, market_rows, new_cerebro, run

    check_parameters(strategy, params or {})
    cerebro = new_cerebro(market_rows(bars, signals), strategy, params or {})
    broker = cerebro.broker = AccountBroker(
        costs=costs,
        execution=execution,
        stale_open=stale_open,
        max_exposure=max_exposure,
        sessions=[bar.session for bar in bars],
        symbol=bars[0].symbol,
    )
    tally = _Tally(on_session)
    cerebro.addanalyzer(Recorder, signals=signals, on_session=tally)
    try:
        run(cerebro)
    except (TypeError, ValueError) as error:
        if broker.started:  # a fault in the strategy's next(), whose traceback its author wants to see
            raise
        raise ConfigError("the strategy refuses its parameters", where=strategy.__name__, got=str(error)) from error
    if tally.sessions != len(bars):
        raise OrderError(f"{strategy.__name__} stopped the run", got=tally.sessions, expected=f"{len(bars)} sessions")
    return TradeSummary(
        sessions=tally.sessions,
        stale_opens=sum(today.open == before.close for before, today in pairwise(bars)),
        optimistic=execution == "close",
        orders=tally.orders,
        fills=tally.fills,
        cut=tuple(tally.cut),
    )


class _Tally:
    """Count what passes on its way to the caller."""

    def __init__(self, on_session: Callable[[SessionRecord], None]) -> None:
        self._on_session = on_session
        self.sessions = self.orders = self.fills = 0
        self.cut: list[OrderRecord] = []

    def __call__(self, record: SessionRecord) -> None:
        self.sessions += 1
        if record.orders:
            self.orders += len(record.orders)
            self.cut += [order for order in record.orders if order.reason]
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
    from trader.cerebro import market_rows, new_cerebro, run

    started = perf_counter()
    cerebro = new_cerebro(market_rows(bars, signals), strategy, params or {})
    cerebro.broker.setcash(costs.cash)
    cerebro.broker.set_slippage_perc(costs.slippage_bps / 1e4)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=costs.commission_bps / 1e4))
    run(cerebro)
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


def _check_words(execution: str, stale_open: str, max_exposure: float) -> None:
    for key, word, known in (
        ("execution", execution, ("next_open", "next_close", "close")),
        ("stale_open", stale_open, ("next_close", "open")),
    ):
        if word not in known:
            raise ConfigError(f"an unknown {key}", got=word, expected=" or ".join(known))
    if not (math.isfinite(max_exposure) and max_exposure > 0):
        raise ConfigError("max_exposure must be a positive number", got=max_exposure)


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


def _check_market(bars: Sequence[Bar], signals: Sequence[Signal]) -> None:
    """Refuse what backtrader would run without a word: no bars, zones, a day twice, disorder, signals elsewhere."""
    if not bars:
        raise NoData("no bars to trade", expected="at least one session")
    symbol = bars[0].symbol
    before: date | None = None
    for bar in bars:
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
        before = bar.session
    _check_signals(bars, signals)


def _check_signals(bars: Sequence[Bar], signals: Sequence[Signal]) -> None:
    if len(signals) != len(bars):
        raise OrderError("each session needs one signal", got=f"{len(signals)} signals for {len(bars)} bars")
    for bar, signal in zip(bars, signals, strict=True):
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
