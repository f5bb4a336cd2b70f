"""Emit each session's events for all symbols of a universe: each symbol's own, in their order, then one retraining.

Each symbol has the ``trader.scheduler`` that it would have alone; they share the view of the store, and so the reading
of their news. What is missing for one symbol (its bar, its headlines) keeps that symbol alone from a decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime

from trader.clock import Calendar
from trader.config import WalkForward
from trader.events import Bar, Event, RetrainDue
from trader.scheduler import Scheduler, recent_bars
from trader.store import MarketStore
from trader.universe import Universe
from trader.universe_news import headlines_of

WHOLE = ""  # stands for the symbol of what is due for the whole universe

Moments = Mapping[date, datetime | None]


class UniverseScheduler:
    """The daily events of a universe, from a market store.

    universe: each member with the name that its news set has in the store.   spec: says which sessions retrain.
    abstain, bars_known: of an account, by symbol; a symbol that is not there has none. max_silence: sessions without
        a headline of that symbol's own. All three as ``Scheduler`` has them.
    """

    def __init__(
        self,
        store: MarketStore,
        calendar: Calendar,
        universe: Universe,
        *,
        spec: WalkForward,
        abstain: Mapping[str, Mapping[date, str]] | None = None,
        bars_known: Mapping[str, Moments] | None = None,
        max_silence: int = 0,
    ) -> None:
        self._store, self._calendar = store, calendar
        self._prices = {member.symbol: member.prices for member in universe}
        news = headlines_of(universe)
        self.of_symbol = {
            member.symbol: Scheduler(
                store,
                calendar,
                symbol=member.prices,
                news=news[member.symbol],
                spec=spec,
                abstain=(abstain or {}).get(member.symbol),
                bars_known=(bars_known or {}).get(member.symbol),
                max_silence=max_silence,
                bars_named=member.symbol,
            )
            for member in universe
        }

    def events(self, first: date, last: date) -> Iterator[tuple[str, Event]]:
        """Yield (symbol, event) of the sessions first … last, oldest session first.

        Within a session: symbol by symbol, in the universe's order, what ``Scheduler.events`` yields but for
        RetrainDue; then one ("", RetrainDue) where a model is due. A bar carries the member's symbol, whatever name
        its prices have in the store.
        """
        for session in self._calendar.sessions(first, last):
            yield from self.until_decision(session)
            retrain = self.retraining(session)
            if retrain is not None:
                yield WHOLE, retrain

    def retraining(self, session: date) -> RetrainDue | None:
        """Return the event that ends a session on which models are to be trained, None on the others."""
        return next(iter(self.of_symbol.values())).retraining(session)

    def until_decision(self, session: date) -> Iterator[tuple[str, Event]]:
        """Yield the session's events up to the last symbol's decision."""
        view = self._store.as_of(self._calendar.decide_at(session))
        recent = recent_bars(view, self._calendar, list(dict.fromkeys(self._prices.values())), session)
        for symbol, scheduler in self.of_symbol.items():
            for event in scheduler.until_decision(session, view, recent[self._prices[symbol]]):
                yield symbol, event

    def texts_so_far(self, session: date, at: datetime) -> list[str]:
        """Return the headlines of a session, of all symbols, that were known at an instant before its cutoff."""
        view = self._store.as_of(at)
        batches = [scheduler.news_so_far(session, at, view) for scheduler in self.of_symbol.values()]
        return list(dict.fromkeys(text for batch in batches for text in batch.headline))

    def bars_in_time(self, session: date) -> dict[str, Bar]:
        """Return by symbol the bars of a session that were known when it was decided."""
        found = {symbol: scheduler.bar(session) for symbol, scheduler in self.of_symbol.items()}
        return {symbol: bar for symbol, bar in found.items() if bar is not None}

    def late_bars(self, session: date, by: date) -> dict[str, Bar]:
        """Return by symbol the bars of a session that came after its decision and by that of another session.

        One that the store learned of later and dates back to the session itself is none of them.
        """
        decided_at = self._calendar.decide_at(session)
        found = {symbol: scheduler.bar_by(session, by) for symbol, scheduler in self.of_symbol.items()}
        return {symbol: bar for symbol, bar in found.items() if bar is not None and bar.known_at > decided_at}
