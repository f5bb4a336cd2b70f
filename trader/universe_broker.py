"""The broker stage for many symbols: one feed a symbol, one account, one record a session.

Beside ``trader.broker``, which trades one; the costs, limits, states and fills are the same broker's. A symbol may
lack its bar in a session: it is not listed yet, it is no longer, or there is a gap. Its feed then repeats its last
close (volume 0, ``traded`` 0, no forecast; NaN prices before its first bar), nothing of it fills, and no order for
it is accepted. Its position is kept at the last close for as long as it does not come back: the record's holdings
say of which session their prices are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trader.errors import BadBar, NoData, OrderError
from trader.events import Bar, Signal
from trader.records import NO_CONTROL, Control, Costs, Execution, SessionRecord, StaleOpen, Today, TradeSummary
from trader.risk import RiskLimits
from trader.stepping import Steps, Tally, Terms, check_controls, check_prices, check_session, check_signal

YARDSTICK = RiskLimits(max_gross_exposure=2.0)  # costs carry a whole purchase past 1; it is to be cut by nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class UniverseSession:
    """What one session brings. bars: of the symbols that traded.   signals: of those that were forecast.

    Both by symbol. A bar without a signal is one whose forecaster abstained; a signal without a bar is not used.
    """

    session: date
    bars: Mapping[str, Bar] = field(default_factory=dict)
    signals: Mapping[str, Signal] = field(default_factory=dict)


def by_session(bars: Iterable[Bar], signals: Iterable[Signal] = ()) -> list[UniverseSession]:
    """Put bars and signals of many symbols, in any order, into one entry a session, oldest first.

    Raises BadBar and OrderError where a symbol has two bars or two signals in one session.
    """
    bars_of: dict[date, dict[str, Bar]] = {}
    signals_of: dict[date, dict[str, Signal]] = {}
    for bar in bars:
        if bars_of.setdefault(bar.session, {}).setdefault(bar.symbol, bar) is not bar:
            raise BadBar("two bars of one symbol in one session", where=f"{bar.symbol} {bar.session}")
    for signal in signals:
        if signals_of.setdefault(signal.session, {}).setdefault(signal.symbol, signal) is not signal:
            raise OrderError("two signals of one symbol in one session", where=f"{signal.symbol} {signal.session}")
    return [
        UniverseSession(session=session, bars=bars_of.get(session, {}), signals=signals_of.get(session, {}))
        for session in sorted({*bars_of, *signals_of})
    ]


def trade_universe(
    symbols: Sequence[str],
    days: Sequence[UniverseSession],
    strategy: type[Any],
    params: Mapping[str, object] | None = None,
    costs: Costs | None = None,
    execution: Execution = "next_open",
    stale_open: StaleOpen = "next_close",
    on_session: Callable[[SessionRecord], None] = lambda record: None,
    risk: RiskLimits | None = None,
    controls: Mapping[date, Control] | None = None,
) -> TradeSummary:
    """Trade the signals of many symbols with one backtrader strategy; hand each session's record to ``on_session``.

    symbols: the order of the strategy's feeds, ``self.datas``; each has its symbol as ``data._name``.
    days: one a session, oldest first.   The rest is as ``trader.broker.trade`` has it, over all symbols together:
    borrow is charged on the sum of the short values, idle cash is equity − the sum of |position values| where that is
    positive, the exposure limit holds that sum, flatten closes every position, and a forecast is one symbol's own.
    Orders of a session are judged one after another, as they are sent, and market orders that wait count as done: a
    sale sent before the purchase that it pays for makes room for it, one sent after does not.
    A market order whose symbol has no bar in the session it was meant for is cancelled ("no bar in this session").
    The records of the first n sessions are those of a run over the first n alone, open orders excepted; over one
    symbol with a bar in each session they are the account of ``trade``.

    Raises as ``trade`` does, BadBar and OrderError for a symbol that is not one of ``symbols`` or stands there twice.
    """
    terms = Terms.of(_checked_symbols(symbols), strategy, params, costs, execution, stale_open, risk, universe=True)
    controls = controls or {}
    if not days:
        raise NoData("no sessions to trade", expected="at least one")
    known, before = frozenset(terms.symbols), None
    for day in days:
        _check_day(day, known, before)
        before = day.session
    check_controls(controls, [day.session for day in days], terms.name)
    tally = Tally(on_session)
    terms.run(_todays(days, controls), tally)
    if tally.sessions != len(days):
        raise terms.stopped(tally.sessions, len(days))
    return tally.summary(_stale_opens(days), optimistic=execution == "close")


class UniverseTrading:
    """One account of many symbols, one session at a time: what ``trade_universe`` does for all at once, bit for bit.

    Use as ``trader.broker.Trading``. The arguments are those of ``trade_universe``.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        strategy: type[Any],
        params: Mapping[str, object] | None = None,
        costs: Costs | None = None,
        execution: Execution = "next_open",
        stale_open: StaleOpen = "next_close",
        risk: RiskLimits | None = None,
    ) -> None:
        terms = Terms.of(_checked_symbols(symbols), strategy, params, costs, execution, stale_open, risk, universe=True)
        self._known, self._name = frozenset(terms.symbols), terms.name
        self._steps = Steps(terms)

    def push(self, day: UniverseSession, control: Control = NO_CONTROL) -> SessionRecord:
        """Trade one session, later than those before; return its record when the strategy has decided on it.

        The record is the one of ``trade_universe`` over the sessions pushed so far, but orders that wait are in
        ``open`` alone. Raises, and is at its end after a fault, as ``trader.broker.Trading`` has it.
        """
        self._steps.check_going(f"{self._name} {day.session}")
        _check_day(day, self._known, self._steps.before)
        return self._steps.push(Today(day.session, day.bars, day.signals, control))

    def close(self) -> None:
        """End the run and its thread; raises what the strategy's ``stop`` raises. A second time does nothing."""
        self._steps.close()

    def __enter__(self) -> UniverseTrading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def always_buy_universe(
    symbols: Sequence[str],
    days: Sequence[UniverseSession],
    sessions: Collection[date] | None = None,
    costs: Costs | None = None,
    execution: Execution = "next_open",
    stale_open: StaleOpen = "next_close",
) -> NDArray[np.float64]:
    """Return the equity at each close, (S,), of buying each symbol once, for an equal share, and holding it.

    A share is the starting equity over the number of symbols, listed yet or not; what waits for a later listing is
    idle cash, and earns its rate. Through the same broker at the same costs, under no limit that would cut it.
    sessions: trade only these; all of them by default. Raises as ``trade_universe`` does.
    """
    from strategies.buy_each import BuyEach

    wanted = None if sessions is None else set(sessions)
    held = [long_signals(day) for day in days if wanted is None or day.session in wanted]
    equity: list[float] = []
    trade_universe(
        symbols,
        held,
        BuyEach,
        costs=costs,
        execution=execution,
        stale_open=stale_open,
        on_session=lambda record: equity.append(record.equity),
        risk=YARDSTICK,
    )
    return np.array(equity, dtype=np.float64)


def holding_universe(
    symbols: Sequence[str],
    costs: Costs | None = None,
    execution: Execution = "next_open",
    stale_open: StaleOpen = "next_close",
) -> UniverseTrading:
    """Return what ``always_buy_universe`` does, one session at a time: push what ``long_signals`` makes of each."""
    from strategies.buy_each import BuyEach

    return UniverseTrading(symbols, BuyEach, {}, costs, execution, stale_open, YARDSTICK)


def long_signals(day: UniverseSession) -> UniverseSession:
    """Return the session with a signal that says long beside every bar, in place of its own."""
    signals = {
        symbol: Signal(session=day.session, symbol=symbol, p_up=1.0, side=1, model_id="always_buy")
        for symbol in day.bars
    }
    return UniverseSession(session=day.session, bars=day.bars, signals=signals)


def _todays(days: Sequence[UniverseSession], controls: Mapping[date, Control]) -> Iterable[Today]:
    for day in days:
        control = controls.get(day.session, NO_CONTROL)
        yield Today(day.session, day.bars, day.signals, control, last=day is days[-1])


def _stale_opens(days: Sequence[UniverseSession]) -> int:
    """Count the bars whose open equals their symbol's close before exactly."""
    count, closes = 0, dict[str, float]()
    for day in days:
        for symbol, bar in day.bars.items():
            count += bar.open == closes.get(symbol)
            closes[symbol] = bar.close
    return count


def _checked_symbols(symbols: Sequence[str]) -> Sequence[str]:
    if not symbols:
        raise NoData("no symbols to trade", expected="at least one")
    if twice := sorted({one for one in symbols if symbols.count(one) > 1}):
        raise OrderError("a symbol twice in one universe", where=", ".join(twice), expected="each once")
    return symbols


def _check_day(day: UniverseSession, symbols: Collection[str], before: date | None) -> None:
    check_session(day.session, before, f"{len(symbols)} symbols {day.session}")
    for symbol, bar in day.bars.items():
        where = f"{symbol} {day.session}"
        if symbol not in symbols:
            raise BadBar("a bar of a symbol that is not in the universe", where=where)
        if bar.symbol != symbol or bar.session != day.session:
            raise BadBar("a bar in another's place", where=where, got=f"{bar.symbol} {bar.session}")
        check_prices(bar)
    for symbol, signal in day.signals.items():
        where = f"{symbol} {day.session}"
        if symbol not in symbols:
            raise OrderError("a signal of a symbol that is not in the universe", where=where)
        if signal.symbol != symbol or signal.session != day.session:
            raise OrderError("a signal in another's place", where=where, got=f"{signal.symbol} {signal.session}")
        check_signal(signal)
