"""What ``trader.broker`` and ``trader.universe_broker`` share: an account made ready, and its two ways through time.

``Terms.run`` goes through all sessions at once, ``Steps`` one session at a time, with the same records bit for bit.
backtrader itself is imported when it is needed, not when this room is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
import difflib
import math
from typing import Any

from trader.errors import BadBar, ConfigError, OrderError, TimeError
from trader.events import Bar, Signal
from trader.records import FLATTEN, NO_BAR, Costs, Execution, OrderRecord, SessionRecord, StaleOpen, Today, TradeSummary
from trader.risk import RiskLimits

OnSession = Callable[[SessionRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an account trades, how, at what costs and within which limits; see ``trader.broker.trade``.

    symbols: in the order of the strategy's feeds.   universe: whether its records are those of many symbols.
    Raises ConfigError for a word or parameter that is not known.
    """

    symbols: tuple[str, ...]
    strategy: type[Any]
    params: Mapping[str, object]
    costs: Costs
    execution: Execution
    stale_open: StaleOpen
    risk: RiskLimits
    universe: bool = False

    def __post_init__(self) -> None:
        _check_words(self.execution, self.stale_open)
        check_parameters(self.strategy, self.params)

    @classmethod
    def of(
        cls,
        symbols: Sequence[str],
        strategy: type[Any],
        params: Mapping[str, object] | None,
        costs: Costs | None,
        execution: Execution,
        stale_open: StaleOpen,
        risk: RiskLimits | None,
        universe: bool = False,
    ) -> Terms:
        """Return the terms with the defaults in place of every None."""
        return cls(
            symbols=tuple(symbols),
            strategy=strategy,
            params=params or {},
            costs=costs or Costs(),
            execution=execution,
            stale_open=stale_open,
            risk=risk or RiskLimits(),
            universe=universe,
        )

    @property
    def name(self) -> str:
        """What the account is called in errors: its symbol, or how many it has."""
        return self.symbols[0] if len(self.symbols) == 1 else f"{len(self.symbols)} symbols"

    def run(self, days: Iterable[Today], on_session: OnSession) -> None:
        """Go through all days; raise what the strategy raises."""
        from trader.cerebro import deaf

        with deaf():
            self.loop(days, on_session)

    def loop(self, days: Iterable[Today], on_session: OnSession) -> None:
        """Do what ``run`` does, in a process that somebody else has made deaf to backtrader's warnings."""
        from trader.cerebro import AccountBroker, Recorder, new_cerebro, revealed

        broker = AccountBroker(self.costs, self.execution, self.stale_open, self.risk, self.symbols)
        cerebro = new_cerebro(revealed(days, broker, self.symbols), self.strategy, self.params)
        cerebro.broker = broker
        cerebro.addanalyzer(Recorder, on_session=on_session, universe=self.universe)
        with _refused_parameters(self.strategy, broker):
            cerebro.run()

    def stopped(self, got: int, expected: int) -> OrderError:
        """Return the error of a run that the strategy ended before its time."""
        return OrderError(f"{self.strategy.__name__} stopped the run", got=got, expected=f"{expected} sessions")


class Steps:
    """One account, one session at a time; backtrader runs in a thread that stands still unless ``push`` waits for it.

    Use from one thread, and close it. Raises ConfigError for a parameter that the strategy refuses.
    """

    def __init__(self, terms: Terms) -> None:
        from trader.cerebro import Handoff, deaf

        self._terms, self._deaf = terms, deaf
        self._made: list[SessionRecord] = []
        self._sessions = 0
        self._whole = True  # whether every session pushed went through to its end
        self.before: date | None = None  # the session that was pushed last
        on_session = self._made.append
        # cerebro asks for its first row when the strategy stands, so its parameters are refused here.
        with deaf():
            self._loop = Handoff(lambda days: terms.loop(days, on_session), name=f"trading {terms.name}")

    def check_going(self, where: str) -> None:
        """Raise OrderError where this trading is at its end."""
        if not self._whole or self._loop.ended:
            raise OrderError("this trading is at its end", where=where, do="open a new one and push its sessions again")

    def push(self, today: Today) -> SessionRecord:
        """Trade one checked session; return its record when the strategy has decided on it."""
        self._whole = False
        with self._deaf():  # here and not in the loop: these filters are the whole process's
            self._loop.give(today)
        if not self._made:
            raise self._terms.stopped(self._sessions, self._sessions + 1)
        self._whole, self.before = True, today.session
        self._sessions += 1
        return self._made.pop()

    def close(self) -> None:
        """End the run and its thread; raises what the strategy's ``stop`` raises. A second time does nothing."""
        with self._deaf():
            self._loop.end()


class Tally:
    """Count what passes on its way to the caller."""

    def __init__(self, on_session: OnSession) -> None:
        self._on_session = on_session
        self.sessions = self.orders = self.fills = 0
        self._cut: list[OrderRecord] = []
        self._refused: list[OrderRecord] = []

    def __call__(self, record: SessionRecord) -> None:
        """Count one session's record and hand it on."""
        self.sessions += 1
        if record.orders:
            self.orders += len(record.orders)
            for order in record.orders:
                if order.status == "refused":
                    self._refused.append(order)
                elif order.reason not in ("", FLATTEN, NO_BAR):
                    self._cut.append(order)
        self.fills += len(record.fills)
        self._on_session(record)

    def summary(self, stale_opens: int, optimistic: bool) -> TradeSummary:
        """Return what the whole run amounts to."""
        return TradeSummary(
            sessions=self.sessions,
            stale_opens=stale_opens,
            optimistic=optimistic,
            orders=self.orders,
            fills=self.fills,
            cut=tuple(self._cut),
            refused=tuple(self._refused),
        )


@contextmanager
def _refused_parameters(strategy: type[Any], broker: Any) -> Iterator[None]:
    """Translate what a strategy raises while it is built; what its next() raises keeps its traceback for its author."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if broker.started:
            raise
        raise ConfigError("the strategy refuses its parameters", where=strategy.__name__, got=str(error)) from error


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


def check_session(session: date, before: date | None, where: str) -> None:
    """Refuse what backtrader would run without a word: a zone, a day twice, disorder."""
    if isinstance(session, datetime):
        raise TimeError("a session is a day, without a time or zone", where=where, got=session)
    if before is not None and session <= before:
        if session == before:
            raise BadBar("the same session twice", where=where)
        raise TimeError("sessions out of order", where=where, got=f"it after {before}", expected="oldest first")


def check_prices(bar: Bar) -> None:
    """Refuse a price that is none: Bar does so itself; this is for what got past it (a subclass, object.__new__)."""
    if not (bar.open > 0 and bar.high > 0 and bar.low > 0 and bar.close > 0):
        raise BadBar("a price is not a positive number", where=f"{bar.symbol} {bar.session}")


def check_signal(signal: Signal) -> None:
    """Refuse a side, probability or expected return that makes no sense."""
    where = f"{signal.symbol} {signal.session}"
    if signal.side not in (-1, 0, 1):
        raise OrderError("a side that is none", where=where, got=signal.side, expected="-1, 0 or 1")
    if signal.p_up is None:
        if signal.side:
            raise OrderError("a side without a probability", where=where, got=signal.side, expected="0")
        if signal.expected_return is not None:
            raise OrderError("an expected return of one who abstained", where=where, got=signal.expected_return)
        return
    if not 0 <= signal.p_up <= 1:
        raise OrderError("p_up is not a probability", where=where, got=signal.p_up)
    if signal.expected_return is not None and not math.isfinite(signal.expected_return):
        raise OrderError("expected_return is not a number", where=where, got=signal.expected_return)


def check_controls(controls: Iterable[date], traded: Sequence[date], where: str) -> None:
    """Refuse a control of a session that is not traded: it would never take effect, and nobody would hear of it."""
    astray = set(controls) - set(traded) if controls else None
    if astray:
        raise OrderError("a control of a session that is not traded", where=f"{where} {min(astray)}")
