"""An account's own model as its source of signals: the model host, got ready from what ledger and store hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime

from trader.account import Account, Accounts
from trader.clock import Calendar, Clock
from trader.events import BarClosed, DecisionDue, Event, NewsArrived, RetrainDue, Signal
from trader.host import Decision, ModelHost
from trader.ledger import Ledger
from trader.records import Fact
from trader.scheduler import Scheduler

VERDICTS = ("adopted", "refused")


class ModelSource:
    """Forecasts by the model in use, which is trained when it is due (``trader.paper.Source``).

    first_read: the session to begin reading at, for a first decision on a session.   clock: of the account.
    warm_up: loads the language model ahead of the first decision.   embed: reads headlines into its cache.
    """

    def __init__(
        self,
        host: ModelHost,
        scheduler: Scheduler,
        calendar: Calendar,
        ledger: Ledger,
        account: Account,
        clock: Clock,
        first_read: Callable[[date], date],
        warm_up: Callable[[], object] | None,
        embed: Callable[[Sequence[str]], object],
    ) -> None:
        self._host, self._scheduler, self._calendar, self._ledger = host, scheduler, calendar, ledger
        self._account, self._clock, self._first_read, self._read = account, clock, first_read, warm_up
        self._embed = embed

    def start(self, following: date) -> None:
        """Read the sessions before ``following``, and take up the model that decided the last one."""
        calendar = self._calendar
        last = calendar.session(calendar.index(following) - 1)
        events = list(self._scheduler.events(self._first_read(following), last))
        model_id = self._model_in_use()
        for event in events:
            if isinstance(event, NewsArrived | BarClosed) or (model_id is None and isinstance(event, RetrainDue)):
                self._host.on(event)
        if model_id is not None:
            known = Accounts(self._ledger, self._clock).events(self._account)
            judged = {event.session for event in known if event.kind in VERDICTS}
            self._host.resume(last, model_id, sum(event.kind in VERDICTS for event in known))
            due = [event for event in events if isinstance(event, RetrainDue)][-1:]
            if due and due[0].session not in judged:
                self._host.on(due[0])
        self._host.warm_up(self._read)

    def _model_in_use(self) -> str | None:
        sql = "SELECT model_id FROM signals WHERE run = ? ORDER BY session DESC LIMIT 1"
        rows = self._ledger.query(sql, self._account.run)
        return rows[0]["model_id"] if rows else None

    def on(self, event: Event) -> None:
        """Take news, a bar, or that a model is due."""
        self._host.on(event)

    def read_ahead(self, session: date) -> None:
        """Take up what has been trained, and embed the headlines of a session that have come so far."""
        self._host.poll()
        self._embed(self._scheduler.news_so_far(session, self._clock.now()).headline)

    def pending(self) -> str:
        """Name the model that is being trained and that the next decision has to wait for; "" where there is none."""
        self._host.poll()
        return self._host.pending()

    def wait(self, until: datetime) -> None:
        """Wait for it, at most until an instant of the account's clock."""
        self._host.wait((until - self._clock.now()).total_seconds())

    def decide(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Return the session's signal (None before the first model) and the seconds that it took."""
        return _plain(self._host.on(event))

    def late(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Abstain for the reason that the event gives, without waiting for a model."""
        return _plain(self._host.late(event, event.missing))

    def use(self, model_id: str) -> None:
        """Put another model in use from the next decision on; raise ModelError where it cannot be."""
        self._host.use(model_id)

    def facts(self) -> list[Fact]:
        """Hand over what happened to the models since this was asked last."""
        return self._host.facts()

    def close(self) -> None:
        """End the training under way."""
        self._host.close()


def _plain(made: Decision | None) -> tuple[Signal | None, float | None]:
    return (None, None) if made is None else (made.signal, made.seconds)
