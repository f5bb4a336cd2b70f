"""A run's stored signals as an account's source: no model, no language model, nothing to train."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime

from trader.errors import ConfigError
from trader.events import DecisionDue, Event, Signal
from trader.ledger import Ledger
from trader.records import Fact


class StoredSignals:
    """Trade what another run forecast; a session that it has not is abstained from (``trader.paper.Source``).

    ledger: holds the run.   run: its number.
    """

    def __init__(self, ledger: Ledger, run: int) -> None:
        self._ledger, self._run = ledger, run
        sql = "SELECT min(session) AS first, max(session) AS last FROM signals WHERE run = ?"
        [span] = ledger.query(sql, run)
        self._first = None if span["first"] is None else date.fromisoformat(span["first"])
        self._last = None if span["last"] is None else date.fromisoformat(span["last"])

    def _signal(self, session: date | None) -> Signal | None:
        found = [] if session is None else self._ledger.signals(self._run, session, session)
        return found[0] if found else None

    def start(self, following: date) -> None:
        """Nothing has to be got ready."""

    def on(self, event: Event) -> None:
        """Nothing is learned."""

    def read_ahead(self, session: date) -> None:
        """Nothing is read."""

    def pending(self) -> str:
        """Nothing is ever waited for."""
        return ""

    def wait(self, until: datetime) -> None:
        """Nothing is ever waited for."""

    def decide(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Return the stored signal; one that abstains where the event says why, or where the run has none."""
        stored = self._signal(event.session)
        if stored is not None and not event.missing:
            return stored, 0.0
        model = stored or self._signal(self._last)
        if model is None or self._first is None or event.session < self._first:
            return None, None
        reason = event.missing or f"run {self._run} has no signal of this session"
        nothing = replace(model, session=event.session, p_up=None, side=0, expected_return=None, reason=reason)
        return replace(nothing, news_count=0, effective_news=0.0, top=()), None

    def late(self, event: DecisionDue) -> tuple[Signal | None, float | None]:
        """Abstain for the reason that the event gives."""
        return self.decide(event)

    def use(self, model_id: str) -> None:
        """Refuse: stored signals have no models to choose from."""
        raise ConfigError("an account of stored signals has no model to promote", got=model_id)

    def facts(self) -> list[Fact]:
        """Nothing happens here."""
        return []

    def close(self) -> None:
        """Nothing is open."""
