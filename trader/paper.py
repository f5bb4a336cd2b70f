"""Run a paper account: the same staircase as a backtest, one session at a time, on a clock that only goes forwards.

    clock says a session is due → scheduler's events of it → source (model host, or stored signals) → broker → one
    transaction: signal, fills, orders, equity, what happened from outside, what is to be told

Which sessions are due comes from the calendar and the ledger and from nothing else. Whoever wakes the service
(APScheduler in ``trader.wake``, cron, a replay's simulated clock) may do so too early, twice or a month late. Between
transactions nothing is kept that is not derived again at the next start, so the process may be killed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Protocol

from trader.account import Account, AccountEvent, Accounts, control_of, controls_of
from trader.clock import Calendar, Clock
from trader.errors import ConfigError, ModelError, TimeError
from trader.events import Bar, BarClosed, DecisionDue, Event, RetrainDue, Signal
from trader.lease import Lease
from trader.ledger import Ledger
from trader.records import Control, Fact
from trader.replay import Books, Closed, rebuild
from trader.scheduler import Scheduler


class Source(Protocol):
    """Where an account's signals come from: its own model, or the stored signals of a run."""

    def start(self, following: date) -> None:
        """Get ready to decide this session, the next one of the account."""
        ...

    def on(self, event: Event) -> None:
        """Take news, a bar, or that a model is due."""
        ...

    def read_ahead(self, session: date) -> None:
        """Do what can be done for a session's decision before it is due."""
        ...

    def pending(self) -> str:
        """Name the model that is being trained and that the next decision has to wait for; "" where there is none."""
        ...

    def wait(self, until: datetime) -> None:
        """Wait for it, at most until an instant of the wall."""
        ...

    def decide(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Return the session's signal (None before the first model) and the seconds that it took, None for nothing."""
        ...

    def late(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Abstain for the reason that the event gives, without waiting for a model."""
        ...

    def use(self, model_id: str) -> None:
        """Put another model in use from the next decision on."""
        ...

    def facts(self) -> list[Fact]:
        """Hand over what happened outside the rules since this was asked last."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Told(Protocol):
    """Somebody who is told what happened, inside the transaction that writes it."""

    def __call__(self, kind: str, session: date, text: str) -> None:
        """Take one notice: "filled", "late", "abstained", "halted" …"""
        ...


@dataclass(frozen=True, slots=True)
class Outside:
    """What a service asks of the world: the time, why its feeds cannot be trusted, whom to tell, where to log.

    stale: at an instant, why the feeds are too old to decide on, or "".
    """

    clock: Clock
    stale: Callable[[datetime], str]
    tell: Told
    log: Callable[..., None]


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
    refused: Sequence[tuple[date, str, str]]


class Service:
    """One account being run. ``start`` first, then ``run_due`` as often as anybody likes, ``stop`` at the end.

    source_of: makes its source, once more where the clock went back.
    known: which version of its bar closed each session, shared with the scheduler; see there.
    patient: wait for a model that is being trained, as a replay does, instead of coming back later.
    simulated: its clock is no wall's.
    ``waits_for``: the model that kept the last ``run_due`` from a decision, "" where none did.
    """

    def __init__(
        self,
        account: Account,
        ledger: Ledger,
        accounts: Accounts,
        scheduler: Scheduler,
        calendar: Calendar,
        books: Books,
        source_of: Callable[[], Source],
        lease: Lease,
        outside: Outside,
        *,
        known: dict[date, datetime | None],
        patient: bool = False,
        simulated: bool = False,
    ) -> None:
        self._known, self._simulated = known, simulated
        self.account, self._ledger, self._accounts = account, ledger, accounts
        self._scheduler, self._calendar, self._books = scheduler, calendar, books
        self._source_of, self._lease, self._outside, self._patient = source_of, lease, outside, patient
        self._source = source_of()
        self._waiting: Signal | None = None  # decided without its bar, which may still come
        self._cursor: date | None = None  # the newest session decided
        self._warm = False  # whether the source has what came before
        self._state = "ACTIVE"  # after the newest session that was closed
        self.waits_for = ""

    # From start to stop

    def start(self) -> None:
        """Take the lease, derive the broker from the ledger and check it; raise StoreError, ReplayError."""
        self._lease.take()
        try:
            controls = controls_of(self._accounts.events(self.account))
            self._waiting = rebuild(self._books, self._ledger, self.account.run, self._scheduler.closing_bar, controls)
            self._state = self._books.last.record.state if self._books.last else "ACTIVE"
        except BaseException:
            self._lease.give_back()
            raise
        self._cursor = self._accounts.last_decided(self.account)
        self._announce("started", f"the service runs from {self._outside.clock.now():%Y-%m-%d %H:%M:%S} UTC on")

    def end(self) -> None:
        """End the source's processes and the brokers' threads; also of a service that could not start."""
        self._source.close()
        self._books.close()

    def stop(self) -> None:
        """End everything and give the lease back."""
        self.end()
        self._announce("stopped", f"the service ended at {self._outside.clock.now():%Y-%m-%d %H:%M:%S} UTC")
        self._lease.give_back()

    def failed(self, error: BaseException) -> None:
        """Say by what error the service ends and give the lease back; raise StoreError where that cannot be written."""
        self._announce("error", " ".join(f"{type(error).__name__}: {error}".split()))
        self._lease.give_back()

    def _announce(self, event: str, text: str) -> None:
        self._outside.log(event, account=self.account.name, decided=str(self._cursor or "never"), why=text)
        with self._ledger.transaction():
            self._outside.tell(event, self._next(), text)

    def renew(self) -> None:
        """Keep the lease; raise StoreError where it is lost."""
        self._lease.renew()

    # What is due

    def due(self) -> list[date]:
        """Return the sessions whose decision is due by now and not made, oldest first."""
        first = self._next()
        now = self._outside.clock.now()
        last = now.date()  # a session's decision comes on its own day in UTC or, with a long delay, on the next one
        if first > last:
            return []
        return [day for day in self._calendar.sessions(first, last) if self._calendar.decide_at(day) <= now]

    def next_due(self) -> datetime:
        """Return when the next decision will be due."""
        return self._calendar.decide_at(self._next())

    def deadline(self, session: date) -> datetime:
        """Return from when on the session's decision is late: its order could no longer have been filled."""
        following = self._calendar.session(self._calendar.index(session) + 1)
        at_close = self.account.config.run.execution == "next_close"
        return self._calendar.cutoff(following) if at_close else self._calendar.open_at(following)

    def _next(self) -> date:
        if self._cursor is None:
            return self.account.first_session
        return self._calendar.session(self._calendar.index(self._cursor) + 1)

    def run_due(self, goes_on: Callable[[], bool] = lambda: True) -> int:
        """Decide what is due, session by session; return how many were decided.

        goes_on: asked between two sessions; where it says no the rest waits. Raises TimeError where the clock stands
        before what is written already: time went backwards, and nothing may be decided until it has caught up.
        """
        self.waits_for = ""
        self._refuse_the_past()
        done = 0
        for session in self.due():
            if not goes_on() or not self._decide(session):
                break
            done += 1
        return done

    def _refuse_the_past(self) -> None:
        newest, now = self._accounts.newest_instant(self.account), self._outside.clock.now()
        if newest is not None and now < newest:
            self._forget()
            raise TimeError(
                "the clock stands before the account's newest record",
                where=self.account.name,
                got=now,
                expected=f"at least {newest}",
                do="set the machine's clock right; nothing is decided until then",
            )

    def read_ahead(self) -> None:
        """Let the source read what has come for the next session, so that its decision is quick."""
        self._warm_up()
        self._source.read_ahead(self._next())

    def _forget(self) -> None:
        """Let the source be made again: what is received now may belong to sessions that it has read already."""
        if self._warm:
            self._source.close()
            self._source, self._warm = self._source_of(), False

    # One session

    def _decide(self, session: date) -> bool:
        """Decide one session and write it; return False where its model is not there yet and may still come."""
        deadline = self.deadline(session)
        self._warm_up()
        if (model := self._source.pending()) and self._outside.clock.now() < deadline:
            if not self._patient:
                self.waits_for = model
                return False
            self._source.wait(deadline)
            model = self._source.pending()
        requests = self._requests(deadline)
        refused = self._take_models(session, requests)
        bars, due, retrain = self._read(session)
        why = self._why_not(due, deadline, model)
        decide = self._source.late if why[0] == "late" else self._source.decide
        signal, latency = decide(replace(due, missing=why[1]))
        if signal is not None and signal.p_up is None and not why[1]:
            why = "abstain", signal.reason  # the model itself could not
        if signal is not None and not why[1] and self._outside.clock.now() >= deadline:
            why = self._late(deadline, "")  # it took too long: its order would fill at an open that is past
            nothing = replace(signal, p_up=None, side=0, expected_return=None, reason=why[1])
            signal = replace(nothing, news_count=0, effective_news=0.0, top=())
        self._write(_Decided(session, signal, bars, why, latency, model, refused), requests)
        if retrain is not None:
            self._source.on(retrain)
        return True

    def _requests(self, deadline: datetime) -> list[AccountEvent]:
        """Return what a decision takes up: what was asked for before the open that it decides about, and no later.

        What is dated after the account's clock comes from another clock, as in a replay, and was asked for just now.
        """
        now = self._outside.clock.now()
        return [one for one in self._accounts.requests(self.account) if min(one.at, now) < deadline]

    def _take_models(self, session: date, requests: Sequence[AccountEvent]) -> list[tuple[date, str, str]]:
        """Put the models in use that were asked for; return what kept one from being used."""
        refused = []
        for asked in requests:
            if asked.kind in ("promote", "rollback"):
                try:
                    self._source.use(asked.detail)
                except (ModelError, ConfigError) as error:
                    refused.append((session, "damaged", f"{asked.kind} of {asked.detail}: {error}"))
        return refused

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

    def _warm_up(self) -> None:
        if not self._warm:
            self._source.start(self._next())
            self._warm = True

    def _why_not(self, event: DecisionDue, deadline: datetime, model: str) -> tuple[str, str]:
        """Say what keeps a decision from being made: ("", ""), or the kind of event and the reason."""
        now = self._outside.clock.now()
        if now >= deadline:
            return self._late(deadline, model)
        if event.missing:
            return "abstain", event.missing
        stale = self._outside.stale(event.at)
        return ("abstain", stale) if stale else ("", "")

    def _late(self, deadline: datetime, model: str) -> tuple[str, str]:
        waited = f"; {model} was not ready" if model else ""
        now = self._outside.clock.now()
        return "late", f"late: decided at {now:%Y-%m-%d %H:%M} UTC, after {deadline:%Y-%m-%d %H:%M}{waited}"

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
            self._write_outside(made)
            due_at = self._calendar.decide_at(session)
            self._accounts.decided(self.account, session, due_at, made.latency, bar)
            if not self._simulated:
                self._accounts.live(self.account)
        if before is not None and before in made.bars:
            self._known[before] = made.bars[before].known_at
        self._known[session] = None if bar is None else bar.known_at
        self._waiting = signal if trades and bar is None else None
        self._cursor = session
        self._state = closed.record.state if closed is not None else self._state
        self._say(made, closed)

    def _write_outside(self, made: _Decided) -> None:
        """Write what befell this decision, and what the source has to say since the last one."""
        happened = [(made.session, *made.why)] if made.why[0] else []
        if made.why[0] == "late" and made.model and made.signal is not None:
            # By the rule the model that was not ready decides here: a backtest has to be told which one did.
            happened.append((made.session, "use", made.signal.model_id))
        happened += [*made.refused, *((fact.session, fact.kind, fact.detail) for fact in self._source.facts())]
        for session, kind, detail in happened:
            self._accounts.happened(self.account, session, kind, detail)
            self._outside.tell(kind, session, detail)

    def _put(self, closed: Closed, signal_is_there: bool = False) -> None:
        self._ledger.write_session(
            self.account.run,
            signal=closed.signal,
            record=closed.record,
            always_buy_equity=closed.always_buy,
            waiting=closed.record.open,
            signal_is_there=signal_is_there,
        )
        for fill in closed.record.fills:
            side = "bought" if fill.size > 0 else "sold"
            text = f"{side} {abs(fill.size):,.4f} {fill.symbol} at {fill.price:,.2f}"
            self._outside.tell("filled", closed.record.session, text)
        if closed.record.state not in (self._state, "ACTIVE"):  # when it begins, not every day that it lasts
            self._outside.tell(closed.record.state.lower(), closed.record.session, closed.record.state_reason)
        self._state = closed.record.state

    def _say(self, made: _Decided, closed: Closed | None) -> None:
        facts: dict[str, Any] = {"account": self.account.name, "session": str(made.session)}
        if made.signal is not None:
            facts |= {"side": made.signal.side, "p_up": made.signal.p_up, "model": made.signal.model_id}
        if closed is not None:
            facts |= {"equity": round(closed.record.equity, 2), "state": closed.record.state}
        if made.why[0]:
            facts |= {"why": made.why[1]}
        self._outside.log(made.why[0] or "decided", **facts)


def first_session(calendar: Calendar, now: datetime) -> date:
    """Return the first session whose decision is still to come at an instant."""
    number = int(calendar.index(calendar.session_at(now)))
    while calendar.decide_at(calendar.session(number)) < now:
        number += 1
    return calendar.session(number)


def check_tradable(execution: str) -> None:
    """Raise ConfigError for an execution that nobody can have."""
    if execution == "close":
        raise ConfigError(
            'execution = "close" cannot be paper-traded: nobody gets the close that he decides on',
            where="[run] execution",
            expected="next_open or next_close",
        )
