"""Run a paper account of one symbol: the staircase of a backtest, a session at a time, on a clock that only goes on.

    clock says a session is due → scheduler's events of it → source (model host, or stored signals) → broker → one
    transaction: signal, fills, orders, equity, what happened from outside, what is to be told

``trader.service`` says when; this room says what one session's decision is. ``trader.universe_paper`` is that of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Protocol

from trader.account import AccountEvent, control_of
from trader.events import Bar, BarClosed, DecisionDue, Event, RetrainDue, Signal
from trader.records import Control, Fact, SessionRecord
from trader.replay import Books, Closed, rebuild
from trader.scheduler import Scheduler
from trader.service import AccountService, Desk, Happened, Models, Turn


class Source(Models, Protocol):
    """Where an account's signals come from: its own model, or the stored signals of a run."""

    def on(self, event: Event) -> None:
        """Take news, a bar, or that a model is due."""
        ...

    def decide(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Return the session's signal (None before the first model) and the seconds that it took, None for nothing."""
        ...

    def late(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Abstain for the reason that the event gives, without waiting for a model."""
        ...

    def facts(self) -> list[Fact]:
        """Hand over what happened outside the rules since this was asked last."""
        ...


@dataclass(frozen=True, slots=True)
class _Decided:
    """One session's decision. why: ("", ""), or what kept it from being made and the reason.

    bars: its own, and that of the session before if it came only now.   model: the one that was waited for in vain, or
    "".   refused: what kept models from being used that were asked for, as rows of events.
    """

    session: date
    signal: Signal | None
    bars: Mapping[date, Bar]
    why: tuple[str, str]
    latency: float | None
    model: str
    refused: Sequence[Happened]


class Service(AccountService[Source]):
    """One account of one symbol being run.

    known: which version of its bar closed each session, shared with the scheduler; see there. The rest is as
    ``AccountService`` has it.
    """

    def __init__(
        self,
        desk: Desk,
        scheduler: Scheduler,
        books: Books,
        source_of: Callable[[], Source],
        known: dict[date, datetime | None],
    ) -> None:
        super().__init__(desk, books.close, source_of)
        self._known, self._scheduler, self._books = known, scheduler, books
        self._waiting: Signal | None = None  # decided without its bar, which may still come

    def _restore(self, controls: Mapping[date, Control]) -> SessionRecord | None:
        self._waiting = rebuild(self._books, self._ledger, self.account.run, self._scheduler.closing_bar, controls)
        return self._books.last.record if self._books.last else None

    def _make(self, turn: Turn) -> None:
        session = turn.session
        bars, due, retrain = self._read(session)
        why = self._why_not(due.missing, turn)
        decide = self._source.late if why[0] == "late" else self._source.decide
        signal, latency = decide(replace(due, missing=why[1]))
        if signal is not None and signal.p_up is None and not why[1]:
            why = "abstain", signal.reason  # the model itself could not
        if signal is not None and not why[1] and self._outside.clock.now() >= turn.deadline:
            why = self._late(turn.deadline, "")  # it took too long: its order would fill at an open that is past
            nothing = replace(signal, p_up=None, side=0, expected_return=None, reason=why[1])
            signal = replace(nothing, news_count=0, effective_news=0.0, top=())
        self._write(_Decided(session, signal, bars, why, latency, turn.model, turn.refused), turn.requests)
        if retrain is not None:
            self._source.on(retrain)

    def _read(self, session: date) -> tuple[dict[date, Bar], DecisionDue, RetrainDue | None]:
        """Let the source read a session's news and bars; return the bars, the decision that is due, and the training.

        bars: its own, and that of the session before if it came only now.
        """
        bars: dict[date, Bar] = {}
        due: DecisionDue | None = None
        retrain: RetrainDue | None = None
        before = self._cursor
        if before is not None and self._known.get(before, before) is None:
            late = self._scheduler.bar_by(before, session)
            if late is not None:
                bars[before] = late
                self._source.on(BarClosed(session=before, at=late.known_at, bar=late))
        for event in self._scheduler.events(session, session):
            if isinstance(event, DecisionDue):
                due = event
            elif isinstance(event, RetrainDue):
                retrain = event
            else:
                if isinstance(event, BarClosed) and event.session == session:
                    bars[session] = event.bar
                self._source.on(event)
        assert due is not None, "the scheduler emits a decision for each session"
        return bars, due, retrain

    def _write(self, made: _Decided, requests: Sequence[AccountEvent]) -> None:
        """Write all that one decision brings in one transaction, the session before it if that waited for its bar."""
        signal, session, before = made.signal, made.session, self._cursor
        waited = None
        if self._waiting is not None:
            waited = self._books.close_session(self._waiting, made.bars.get(self._waiting.session), Control())
        bar = made.bars.get(session)
        # Until the first forecast there is no position to keep, and no row: so it is in a backtest too.
        trades = signal is not None and (self._books.last is not None or signal.p_up is not None)
        taken = [one for one in requests if one.kind in ("promote", "rollback")]
        closed = None
        if trades and bar is not None:
            assert signal is not None
            closed, taken = self._books.close_session(signal, bar, control_of(requests)), list(requests)
        with self._ledger.transaction() as connection:
            self._lease.check(connection)
            if waited is not None:
                self._put(waited, signal_is_there=True)
            if before is not None:
                self._accounts.closed_late(self.account, before, made.bars.get(before))
            if closed is not None:
                self._put(closed)
            elif trades and signal is not None:
                self._ledger.write_signal(self.account.run, signal)
            self._accounts.take_up(self.account, taken, session)
            self._write_outside(self._befell(made))
            self._write_decided(session, made.latency, bar)
        if before is not None and before in made.bars:
            self._known[before] = made.bars[before].known_at
        self._known[session] = None if bar is None else bar.known_at
        self._waiting = signal if trades and bar is None else None
        self._cursor = session
        self._say(made, closed)

    def _befell(self, made: _Decided) -> Iterator[Happened]:
        """Yield what befell this decision, and what the source has to say since the last one."""
        if made.why[0]:
            yield made.session, *made.why, ""
        if made.why[0] == "late" and made.model and made.signal is not None:
            # By the rule the model that was not ready decides here: a backtest has to be told which one did.
            yield made.session, "use", made.signal.model_id, ""
        yield from made.refused
        for fact in self._source.facts():
            yield fact.session, fact.kind, fact.detail, ""

    def _put(self, closed: Closed, signal_is_there: bool = False) -> None:
        self._ledger.write_session(
            self.account.run,
            signal=closed.signal,
            record=closed.record,
            always_buy_equity=closed.always_buy,
            waiting=closed.record.open,
            signal_is_there=signal_is_there,
        )
        self._tell_of(closed.record)

    def _say(self, made: _Decided, closed: Closed | None) -> None:
        facts: dict[str, Any] = {"account": self.account.name, "session": str(made.session)}
        if made.signal is not None:
            facts |= {"side": made.signal.side, "p_up": made.signal.p_up, "model": made.signal.model_id}
        if closed is not None:
            facts |= {"equity": round(closed.record.equity, 2), "state": closed.record.state}
        if made.why[0]:
            facts |= {"why": made.why[1]}
        self._outside.log(made.why[0] or "decided", **facts)
