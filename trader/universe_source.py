"""The two sources of an account of many symbols: its own models, and the stored signals of a run.

Beside ``trader.model_source`` and ``trader.stored_signals``, which are those of one symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from time import perf_counter

from trader.account import Account, AccountEvent, Accounts
from trader.adoption import InUse
from trader.clock import Calendar, Clock
from trader.errors import ConfigError
from trader.events import BarClosed, NewsArrived, RetrainDue, Signal
from trader.forecaster import abstain
from trader.ledger import Ledger
from trader.model_source import VERDICTS
from trader.records import Fact
from trader.universe_events import UniverseScheduler
from trader.universe_forecast import TOO_YOUNG
from trader.universe_host import UniverseHost


class UniverseModels:
    """Forecasts by the models in use, which are trained when they are due (``trader.universe_paper.UniverseSource``).

    first_read: the session to begin reading at, for a first decision on a session.   clock: of the account.
    read: loads the language model ahead of the first decision.   embed: reads headlines into its cache.
    """

    def __init__(
        self,
        host: UniverseHost,
        scheduler: UniverseScheduler,
        calendar: Calendar,
        ledger: Ledger,
        account: Account,
        clock: Clock,
        first_read: Callable[[date], date],
        read: Callable[[], object] | None,
        embed: Callable[[Sequence[str]], object],
    ) -> None:
        self._host, self._scheduler, self._calendar, self._ledger = host, scheduler, calendar, ledger
        self._account, self._clock, self._first_read, self._language = account, clock, first_read, read
        self._embed = embed

    def start(self, following: date) -> None:
        """Read the sessions before ``following``, and take up the models that were in use on the last one.

        What was due to be trained and has no verdict yet is begun anew; before the first decision, all that is due.
        """
        calendar, host = self._calendar, self._host
        last = calendar.session(calendar.index(following) - 1)
        accounts = Accounts(self._ledger, self._clock)
        known, began = accounts.events(self._account), accounts.last_decided(self._account) is not None
        verdicts = [event for event in known if event.kind in VERDICTS]
        for symbol, model_id in _in_use(known, calendar, last).items():
            host.resume_of(symbol, last, model_id, sum(event.symbol == symbol for event in verdicts))
        first = self._first_read(following)
        newest = max((day for day in calendar.sessions(first, last) if self._scheduler.retraining(day)), default=None)
        for symbol, event in self._scheduler.events(first, last):
            if isinstance(event, NewsArrived | BarClosed):
                host.update(symbol, event)
            elif isinstance(event, RetrainDue) and (not began or event.session == newest):
                host.retrain(event, [one.symbol for one in verdicts if one.session == event.session])
        if self._language:
            self._language()
        host.warm_up()

    def take(self, symbol: str, event: NewsArrived | BarClosed) -> None:
        """Take a symbol's news or bar."""
        self._host.update(symbol, event)

    def retrain(self, event: RetrainDue) -> None:
        """Begin what is due to be trained."""
        self._host.retrain(event)

    def read_ahead(self, session: date) -> None:
        """Take up what has been trained, begin what waits, and embed the headlines that have come so far."""
        self._host.poll()
        self._embed(self._scheduler.texts_so_far(session, self._clock.now()))

    def pending(self) -> str:
        """Name the models in training that the next decision has to wait for; "" where there are none."""
        self._host.poll()
        return self._host.pending()

    def wait(self, until: datetime) -> None:
        """Wait for them, at most until an instant of the account's clock."""
        self._host.wait((until - self._clock.now()).total_seconds())

    def decide(self, session: date, missing: Mapping[str, str]) -> tuple[Mapping[str, Signal], float | None]:
        """Return by symbol the signals of those that have a model, and the seconds that they took."""
        started = perf_counter()
        made = self._host.decide(session, missing)
        return made, perf_counter() - started if made else None

    def skip(self, session: date) -> None:
        """Be told that a session is not decided."""
        self._host.skip(session)

    def use(self, model_id: str) -> None:
        """Refuse: which symbols a model is for cannot be said yet."""
        raise ConfigError("an account of many symbols takes no model by name", got=model_id)

    def told(self) -> list[tuple[str, Fact]]:
        """Hand over what happened to the models since this was asked last."""
        return self._host.told()

    def close(self) -> None:
        """End the trainings under way."""
        self._host.close()


def _in_use(events: Sequence[AccountEvent], calendar: Calendar, session: date) -> dict[str, str]:
    """Return by symbol, WHOLE for all, the model that was in use on a session, by what the account recorded."""
    found: dict[str, InUse] = {}
    for event in events:
        if event.session is not None and event.kind == "adopted":
            model_id = event.detail.partition(": ")[0].removeprefix("model ")
            found.setdefault(event.symbol, InUse()).adopt(calendar.session(calendar.index(event.session) + 1), model_id)
    for event in events:
        if event.session is not None and event.kind == "use" and event.symbol in found:
            found[event.symbol].name(event.session, event.detail)
    at = {symbol: in_use.at(session) for symbol, in_use in found.items()}
    return {symbol: model_id for symbol, model_id in at.items() if model_id is not None}


class StoredUniverse:
    """Trade what another run forecast of the same universe; a session that it has not is abstained from.

    ledger: holds the run.   run: its number.
    """

    def __init__(self, ledger: Ledger, run: int) -> None:
        self._ledger, self._run = ledger, run

    def start(self, following: date) -> None:
        """Nothing has to be got ready."""

    def take(self, symbol: str, event: NewsArrived | BarClosed) -> None:
        """Nothing is learned."""

    def retrain(self, event: RetrainDue) -> None:
        """Nothing is trained."""

    def read_ahead(self, session: date) -> None:
        """Nothing is read."""

    def pending(self) -> str:
        """Nothing is ever waited for."""
        return ""

    def wait(self, until: datetime) -> None:
        """Nothing is ever waited for."""

    def decide(self, session: date, missing: Mapping[str, str]) -> tuple[Mapping[str, Signal], float | None]:
        """Return the stored signals of the session; nothing before the run's first, abstentions where it has none."""
        found = self._ledger.signals(self._run, session, session)
        if found:  # that one was too young is said of itself
            return {one.symbol: one for one in found if one.p_up is not None or one.reason != TOO_YOUNG}, 0.0
        [span] = self._ledger.query("SELECT min(session) AS first FROM signals WHERE run = ?", self._run)
        if span["first"] is None or session < date.fromisoformat(span["first"]):
            return {}, None
        reason = f"run {self._run} has no signal of this session"
        return {symbol: abstain(session, symbol, "", reason) for symbol in self._ledger.symbols(self._run)}, None

    def skip(self, session: date) -> None:
        """Nothing is waited for."""

    def use(self, model_id: str) -> None:
        """Refuse: stored signals have no models to choose from."""
        raise ConfigError("an account of stored signals has no model to promote", got=model_id)

    def told(self) -> list[tuple[str, Fact]]:
        """Nothing happens here."""
        return []

    def close(self) -> None:
        """Nothing is open."""
