"""Run a paper account of many symbols: one session of all of them in one transaction; beside ``trader.paper``.

    scheduler's events of a session, symbol by symbol → source → a signal a symbol → broker → ledger

A session is closed when it is decided, with the bars that are there: one that comes late is looked back at by the
models from the next session on, and fills nothing. So no symbol keeps the others waiting, and no order of a session
knows a price that came after its decision. ``trader.universe_engine`` trades by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol

from trader.account import AccountEvent, control_of
from trader.events import Bar, BarClosed, DecisionDue, NewsArrived, RetrainDue, Signal
from trader.records import Control, Fact, SessionRecord
from trader.replay import Closed, UniverseBooks, rebuild_universe
from trader.service import AccountService, Desk, Happened, Models, Turn
from trader.universe_events import UniverseScheduler
from trader.universe_forecast import whole_session


class UniverseSource(Models, Protocol):
    """Where the signals of an account of many symbols come from: its own models, or the stored signals of a run."""

    def take(self, symbol: str, event: NewsArrived | BarClosed) -> None:
        """Take a symbol's news or bar."""
        ...

    def retrain(self, event: RetrainDue) -> None:
        """Be told that models are due."""
        ...

    def decide(self, session: date, missing: Mapping[str, str]) -> tuple[Mapping[str, Signal], float | None]:
        """Return by symbol the signals of those that have a model, and the seconds that they took.

        missing: why a symbol cannot be decided; what is returned of such a one is of no account.
        """
        ...

    def skip(self, session: date) -> None:
        """Be told that a session is not decided, without waiting for a model."""
        ...

    def told(self) -> list[tuple[str, Fact]]:
        """Hand over what happened outside the rules since this was asked last, with its symbol, "" for all."""
        ...


@dataclass(frozen=True, slots=True)
class _Read:
    """What a session brought. bars: in time, by symbol.   late: of the session before.   missing: why not to decide."""

    bars: Mapping[str, Bar]
    late: Mapping[str, Bar]
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Decided:
    """One session's decisions. why: ("", ""), or what kept all of them from being made and the reason.

    unable: the symbols whose own model could not, with the reason.   refused: as ``AccountService`` has it.
    """

    session: date
    signals: Sequence[Signal]
    read: _Read
    why: tuple[str, str]
    unable: Mapping[str, str]
    latency: float | None
    refused: Sequence[Happened]


class UniverseService(AccountService[UniverseSource]):
    """One account of many symbols being run.

    known: by symbol, which version of its bar was read of each session, shared with the scheduler; see
    ``trader.scheduler``. The rest is as ``AccountService`` has it.
    """

    def __init__(
        self,
        desk: Desk,
        scheduler: UniverseScheduler,
        books: UniverseBooks,
        source_of: Callable[[], UniverseSource],
        known: Mapping[str, dict[date, datetime | None]],
    ) -> None:
        super().__init__(desk, books.close, source_of)
        self._known, self._scheduler, self._books = known, scheduler, books
        self._symbols = list(scheduler.of_symbol)

    def _restore(self, controls: Mapping[date, Control]) -> SessionRecord | None:
        run, scheduler = self.account.run, self._scheduler
        rebuild_universe(self._books, self._ledger, run, self._symbols, scheduler.bars_in_time, controls)
        return self._books.last.record if self._books.last else None

    @property
    def _newest(self) -> dict[str, str]:
        """By symbol, the model that decided it last."""
        last = self._books.last
        return {signal.symbol: signal.model_id for signal in last.signals if signal.model_id} if last else {}

    def _make(self, turn: Turn) -> None:
        session = turn.session
        read = self._read(session)
        why, latency = self._why_not("", turn), None
        missing, made = dict(read.missing), dict[str, Signal]()
        if why[0] == "late":
            self._source.skip(session)
        else:
            given = dict.fromkeys(self._symbols, why[1]) if why[0] else missing
            signals, latency = self._source.decide(session, given)
            made.update(signals)
            if not why[0] and self._outside.clock.now() >= turn.deadline:
                why = self._late(turn.deadline, "")  # it took too long: its orders would fill at an open that is past
        if why[0]:
            missing = dict.fromkeys(self._symbols, why[1])
        unable = {symbol: one.reason for symbol, one in made.items() if one.p_up is None and not missing.get(symbol)}
        if set(unable) == set(self._symbols) and len(set(unable.values())) == 1:  # what keeps all is told once
            why, missing, unable = ("abstain", unable[self._symbols[0]]), unable, {}
        whole = whole_session(session, self._symbols, made, missing, self._newest)
        self._write(_Decided(session, whole, read, why, unable, latency, turn.refused), turn.requests)
        if (retrain := self._scheduler.retraining(session)) is not None:
            self._source.retrain(retrain)

    def _read(self, session: date) -> _Read:
        """Let the source read a session's news and bars, first the bars of the session before that came only now."""
        late: dict[str, Bar] = {}
        if self._cursor is not None:
            without = {one for one in self._symbols if self._known[one].get(self._cursor, session) is None}
            found = self._scheduler.late_bars(self._cursor, session) if without else {}
            late = {symbol: bar for symbol, bar in found.items() if symbol in without}
        for symbol, bar in late.items():
            self._source.take(symbol, BarClosed(session=bar.session, at=bar.known_at, bar=bar))
        bars: dict[str, Bar] = {}
        missing: dict[str, str] = {}
        for symbol, event in self._scheduler.until_decision(session):
            if isinstance(event, DecisionDue):
                missing[symbol] = event.missing
            elif isinstance(event, NewsArrived | BarClosed):
                if isinstance(event, BarClosed) and event.session == session:
                    bars[symbol] = event.bar
                self._source.take(symbol, event)
        return _Read(bars, late, missing)

    def _write(self, made: _Decided, requests: Sequence[AccountEvent]) -> None:
        """Write all that one session's decisions bring in one transaction."""
        session, before, read = made.session, self._cursor, made.read
        # Until the first forecast there is no position to keep, and no row: so it is in a backtest too.
        trades = self._books.last is not None or any(signal.p_up is not None for signal in made.signals)
        taken = [one for one in requests if trades or one.kind in ("promote", "rollback")]
        closed = self._books.close_session(made.signals, read.bars, control_of(taken)) if trades else None
        with self._ledger.transaction() as connection:
            self._lease.check(connection)
            if before is not None:
                self._accounts.bars_read(self.account, before, read.late.values())
            if closed is not None:
                self._put(closed)
            self._accounts.take_up(self.account, taken, session)
            self._write_outside(self._befell(made))
            self._write_decided(session, made.latency, None)
            self._accounts.bars_read(self.account, session, read.bars.values())
        for symbol, known in self._known.items():
            if before is not None and symbol in read.late:
                known[before] = read.late[symbol].known_at
            known[session] = read.bars[symbol].known_at if symbol in read.bars else None
        self._cursor = session
        self._say(made, closed)

    def _befell(self, made: _Decided) -> Iterator[Happened]:
        """Yield what befell these decisions, and what the source has to say since the last ones."""
        if made.why[0]:
            yield made.session, *made.why, ""
        for symbol, reason in made.unable.items():
            yield made.session, "abstain", reason, symbol
        yield from made.refused
        for symbol, fact in self._source.told():
            yield fact.session, fact.kind, fact.detail, symbol

    def _put(self, closed: Closed) -> None:
        self._ledger.write_universe_session(
            self.account.run,
            signals=closed.signals,
            record=closed.record,
            always_buy_equity=closed.always_buy,
            waiting=closed.record.open,
        )
        self._tell_of(closed.record)

    def _say(self, made: _Decided, closed: Closed | None) -> None:
        decided = sum(signal.p_up is not None for signal in made.signals)
        facts: dict[str, object] = {"account": self.account.name, "session": str(made.session)}
        facts |= {"decided": decided, "symbols": len(self._symbols)}
        if closed is not None:
            facts |= {"equity": round(closed.record.equity, 2), "state": closed.record.state}
        if made.why[0]:
            facts |= {"why": made.why[1]}
        self._outside.log(made.why[0] or "decided", **facts)
