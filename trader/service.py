"""What runs a paper account, of one symbol or of many: when a session is due, who may decide it, what it takes up.

``trader.paper`` and ``trader.universe_paper`` say what one session's decision is and how it is written. Which sessions
are due comes from the calendar and the ledger and from nothing else. Whoever wakes the service (APScheduler in
``trader.wake``, cron, a replay's simulated clock) may do so too early, twice or a month late. Between transactions
nothing is kept that is not derived again at the next start, so the process may be killed anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Generic, Protocol, TypeVar

from trader.account import Account, AccountEvent, Accounts, controls_of
from trader.clock import Calendar, Clock
from trader.errors import ConfigError, ModelError, TimeError
from trader.events import Bar
from trader.lease import Lease
from trader.ledger import Ledger
from trader.records import Control, SessionRecord


class Models(Protocol):
    """What any source of an account's signals does, whatever it decides."""

    def start(self, following: date) -> None:
        """Get ready to decide this session, the next one of the account."""
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

    def use(self, model_id: str) -> None:
        """Put another model in use from the next decision on."""
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


S = TypeVar("S", bound=Models)
Happened = tuple[date, str, str, str]  # session, kind, detail, and the symbol that it is about, "" for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What an account is run with, of one symbol or of many.

    patient: wait for a model that is being trained, as a replay does, instead of coming back later.
    simulated: its clock is no wall's.
    """

    account: Account
    ledger: Ledger
    accounts: Accounts
    calendar: Calendar
    lease: Lease
    outside: Outside
    patient: bool = False
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One session whose decision is due.

    deadline: from when on it is late.   model: the one that was waited for in vain, or "".   requests: what it takes
    up.   refused: what kept models from being used.
    """

    session: date
    deadline: datetime
    model: str
    requests: Sequence[AccountEvent]
    refused: Sequence[Happened]


class AccountService(ABC, Generic[S]):
    """One account being run. ``start`` first, then ``run_due`` as often as anybody likes, ``stop`` at the end.

    source_of: makes its source, once more where the clock went back.   end_books: ends its brokers and their threads.
    ``waits_for``: the model that kept the last ``run_due`` from a decision, "" where none did.
    """

    def __init__(self, desk: Desk, end_books: Callable[[], None], source_of: Callable[[], S]) -> None:
        self.account, self._ledger, self._accounts = desk.account, desk.ledger, desk.accounts
        self._calendar, self._lease, self._outside = desk.calendar, desk.lease, desk.outside
        self._patient, self._simulated = desk.patient, desk.simulated
        self._end_books, self._source_of = end_books, source_of
        self._source = source_of()
        self._cursor: date | None = None  # the newest session decided
        self._warm = False  # whether the source has what came before
        self._state = "ACTIVE"  # after the newest session that was closed
        self.waits_for = ""

    # What one session is, of one symbol or of many

    @abstractmethod
    def _restore(self, controls: Mapping[date, Control]) -> SessionRecord | None:
        """Derive the broker from the ledger and check it; return the newest record. Raises ReplayError."""

    @abstractmethod
    def _make(self, turn: Turn) -> None:
        """Decide one session and write it in one transaction."""

    # From start to stop

    def start(self) -> None:
        """Take the lease, derive the broker from the ledger and check it; raise StoreError, ReplayError."""
        self._lease.take()
        try:
            last = self._restore(controls_of(self._accounts.events(self.account)))
            self._state = last.state if last else "ACTIVE"
        except BaseException:
            self._lease.give_back()
            raise
        self._cursor = self._accounts.last_decided(self.account)
        self._announce("started", f"the service runs from {self._outside.clock.now():%Y-%m-%d %H:%M:%S} UTC on")

    def end(self) -> None:
        """End the source's processes and the brokers' threads; also of a service that could not start."""
        self._source.close()
        self._end_books()

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
        """Let the source do for the next session what can be done before it is due, so that its decision is quick."""
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
        self._make(Turn(session, deadline, model, requests, self._take_models(session, requests)))
        return True

    def _requests(self, deadline: datetime) -> list[AccountEvent]:
        """Return what a decision takes up: what was asked for before the open that it decides about, and no later.

        What is dated after the account's clock comes from another clock, as in a replay, and was asked for just now.
        """
        now = self._outside.clock.now()
        return [one for one in self._accounts.requests(self.account) if min(one.at, now) < deadline]

    def _take_models(self, session: date, requests: Sequence[AccountEvent]) -> list[Happened]:
        """Put the models in use that were asked for; return what kept one from being used."""
        refused: list[Happened] = []
        for asked in requests:
            if asked.kind in ("promote", "rollback"):
                try:
                    self._source.use(asked.detail)
                except (ModelError, ConfigError) as error:
                    refused.append((session, "damaged", f"{asked.kind} of {asked.detail}: {error}", ""))
        return refused

    def _warm_up(self) -> None:
        if not self._warm:
            self._source.start(self._next())
            self._warm = True

    def _why_not(self, missing: str, turn: Turn) -> tuple[str, str]:
        """Say what keeps a decision from being made: ("", ""), or the kind of event and the reason."""
        if self._outside.clock.now() >= turn.deadline:
            return self._late(turn.deadline, turn.model)
        if missing:
            return "abstain", missing
        stale = self._outside.stale(self._calendar.decide_at(turn.session))
        return ("abstain", stale) if stale else ("", "")

    def _late(self, deadline: datetime, model: str) -> tuple[str, str]:
        waited = f"; {model} was not ready" if model else ""
        now = self._outside.clock.now()
        return "late", f"late: decided at {now:%Y-%m-%d %H:%M} UTC, after {deadline:%Y-%m-%d %H:%M}{waited}"

    # Inside the transaction

    def _write_outside(self, happened: Iterable[Happened]) -> None:
        """Write what befell this decision, and tell of it."""
        for session, kind, detail, symbol in happened:
            self._accounts.happened(self.account, session, kind, detail, symbol)
            self._outside.tell(kind, session, f"{symbol}: {detail}" if symbol else detail)

    def _tell_of(self, record: SessionRecord) -> None:
        """Tell of a session's fills, and of a state when it begins."""
        for fill in record.fills:
            side = "bought" if fill.size > 0 else "sold"
            text = f"{side} {abs(fill.size):,.4f} {fill.symbol} at {fill.price:,.2f}"
            self._outside.tell("filled", record.session, text)
        if record.state not in (self._state, "ACTIVE"):  # when it begins, not every day that it lasts
            self._outside.tell(record.state.lower(), record.session, record.state_reason)
        self._state = record.state

    def _write_decided(self, session: date, latency: float | None, bar: Bar | None) -> None:
        """Write down that the session is decided now; of one symbol with the bar that closed it."""
        self._accounts.decided(self.account, session, self._calendar.decide_at(session), latency, bar)
        if not self._simulated:
            self._accounts.live(self.account)


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
