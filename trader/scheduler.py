"""Emit each session's events in time order: news, bar closed, decision due, and (when due) retrain.

Everything is read through ``store.as_of(decide_at(session))``: what was not known then cannot be emitted.
In a backtest the sessions come from the calendar; the window and the forecaster are further down the staircase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Protocol

from trader.clock import Calendar
from trader.config import WalkForward
from trader.events import Bar, BarClosed, DecisionDue, Event, NewsArrived, NewsBatch, RetrainDue
from trader.store import MarketStore, View
from trader.walkforward import is_retrain_session


class Headlines(Protocol):
    """Reads the headlines of one symbol through a view of the store; its ``name`` stands in sentences."""

    @property
    def name(self) -> str:
        """What they are headlines of."""
        ...

    def read(self, view: View, after: datetime, until: datetime) -> NewsBatch:
        """Return those with after < known_at ≤ until that the view shows, in the order of ``View.news``."""
        ...

    def count(self, view: View, after: datetime, until: datetime) -> int:
        """Return how many ``read`` would return."""
        ...


@dataclass(frozen=True, slots=True)
class WholeSet:
    """Every headline of a news set, whatever tickers it carries."""

    name: str

    def read(self, view: View, after: datetime, until: datetime) -> NewsBatch:
        """Return the set's headlines of a span."""
        return view.news(self.name, after, until)

    def count(self, view: View, after: datetime, until: datetime) -> int:
        """Return how many there are."""
        return view.news_count(self.name, after, until)


Recent = Mapping[date, Bar]


def recent_bars(view: View, calendar: Calendar, symbols: Sequence[str], session: date) -> dict[str, Recent]:
    """Return by symbol the bars that a session's events are made of, for all symbols in two readings.

    The session's own, and that of the session before if it changed, or came, after that one's decision.
    view: the store as of the session's decide_at.
    """
    number = calendar.index(session)
    found = {symbol: {session: bar} for symbol, bar in view.bars_of(symbols, session).items()}
    if number:
        before = calendar.session(number - 1)
        for symbol, bar in view.bars_of(symbols, before, calendar.decide_at(before)).items():
            found.setdefault(symbol, {})[before] = bar
    return {symbol: found.get(symbol, {}) for symbol in symbols}


class Scheduler:
    """The daily events of one symbol and its headlines, from a market store.

    symbol: whose bars.  news: name of the news set in the store, of which every headline is read, or what reads the
        symbol's own (trader.universe_news).  spec: says which sessions retrain.
    bars_named: the symbol that the bars are given, where it is not the one that they have in the store.
    abstain: why there was no decision, by session; of a paper account, whose backtest abstains there too.
    bars_known: of an account: which version of its bar closed each session, by known_at, or None where none did. What
        the store learns about those sessions afterwards (an import that fills a gap, say) does not reach them.
    max_silence: after so many sessions in a row without a headline there is no decision; 0 = never.
    """

    def __init__(
        self,
        store: MarketStore,
        calendar: Calendar,
        *,
        symbol: str,
        news: str | Headlines,
        spec: WalkForward,
        abstain: Mapping[date, str] | None = None,
        bars_known: Mapping[date, datetime | None] | None = None,
        max_silence: int = 0,
        bars_named: str = "",
    ) -> None:
        self._store, self._calendar = store, calendar
        self._symbol, self._spec, self._name = symbol, spec, bars_named or symbol
        self._news = WholeSet(news) if isinstance(news, str) else news
        self._abstain, self._max_silence = abstain or {}, max_silence
        self._bars_known = {} if bars_known is None else bars_known

    def events(self, first: date, last: date) -> Iterator[Event]:
        """Yield the events of the sessions first … last, oldest first.

        A session whose bar is not known by decide_at yields no BarClosed, and its DecisionDue says why. Where that bar
        is known by the next session's decide_at it comes then, before all else of that session: its own decision is
        past, but what waited for it can be filled and the next ones can look back at it.
        """
        for session in self._calendar.sessions(first, last):
            yield from self.until_decision(session, self._store.as_of(self._calendar.decide_at(session)))
            if (retrain := self.retraining(session)) is not None:
                yield retrain

    def retraining(self, session: date) -> RetrainDue | None:
        """Return the event that ends a session on which a model is to be trained, None on the others."""
        if not is_retrain_session(self._calendar.index(session), self._spec):
            return None
        return RetrainDue(session=session, at=self._calendar.decide_at(session))

    def bar(self, session: date) -> Bar | None:
        """Return the session's bar if it was known in time."""
        return self._bar(session, session)

    def late_bar(self, session: date, recent: Recent | None = None) -> BarClosed | None:
        """Return the bar of the session before this one if it was not known in time, but is by this one's decide_at."""
        number = self._calendar.index(session)
        if not number:
            return None
        before = self._calendar.session(number - 1)
        bar = self._newest(before, session, recent)
        if bar is None or self.bar(before) is not None:
            return None
        return BarClosed(session=before, at=bar.known_at, bar=bar)

    def closing_bar(self, session: date) -> Bar | None:
        """Return the bar that a session is closed by: the one in time, else the one known by the session after."""
        following = self._calendar.session(self._calendar.index(session) + 1)
        return self._bar(session, session) or self._bar(session, following)

    def _bar(self, session: date, by: date) -> Bar | None:
        """Return a session's bar as it was known by another one's decision."""
        if session not in self._bars_known:
            return self.bar_by(session, by)
        known = self._bars_known[session]
        if known is None or known > self._calendar.decide_at(by):
            return None
        return self._named(self._store.as_of(known).bar(self._symbol, session))

    def _newest(self, session: date, by: date, recent: Recent | None) -> Bar | None:
        """Return what ``_bar`` does, from what was read already where nothing is recorded of the session."""
        if recent is None or session in self._bars_known:
            return self._bar(session, by)
        return self._named(recent.get(session))

    def bar_by(self, session: date, by: date) -> Bar | None:
        """Return a session's bar as the store knew it by another one's decision, whatever is recorded of it."""
        return self._named(self._store.as_of(self._calendar.decide_at(by)).bar(self._symbol, session))

    def _named(self, bar: Bar | None) -> Bar | None:
        return bar if bar is None or bar.symbol == self._name else replace(bar, symbol=self._name)

    def until_decision(self, session: date, view: View, recent: Recent | None = None) -> Iterator[Event]:
        """Yield the session's events up to its decision; the view is the store's as of its decide_at.

        Many symbols that share the view share the reading of their news set, too.
        recent: what ``recent_bars`` gives for this symbol where it was read for many; None reads it here.
        """
        number = self._calendar.index(session)
        cutoff, decide_at = self._calendar.cutoff(session), self._calendar.decide_at(session)
        if (late := self.late_bar(session, recent)) is not None:
            yield late
        # Before the calendar's first session there is no close; a day is long enough for its news.
        before = self._calendar.cutoff(self._calendar.session(number - 1)) if number else cutoff - timedelta(days=1)
        yield NewsArrived(session=session, at=cutoff, news=self._news.read(view, before, cutoff))
        bar = self._newest(session, session, recent)
        if bar is not None:
            yield BarClosed(session=session, at=max(cutoff, bar.known_at), bar=bar)
        yield DecisionDue(session=session, at=decide_at, missing=self._missing(session, view, bar is not None))

    def news_so_far(self, session: date, at: datetime, view: View | None = None) -> NewsBatch:
        """Return the headlines of a session that were known at an instant before its cutoff.

        view: the store's as of that instant, which many symbols share; None makes one.
        """
        number = self._calendar.index(session)
        after = self._calendar.cutoff(self._calendar.session(number - 1))
        return self._news.read(view or self._store.as_of(at), after, self._calendar.cutoff(session))

    def _missing(self, session: date, view: View, has_bar: bool) -> str:
        """Say why there can be no decision on a session, or nothing."""
        if session in self._abstain:  # first: what an account recorded is the reason, whatever else there was
            return self._abstain[session]
        if not has_bar:
            return f"no bar of {self._symbol} known by {self._calendar.decide_at(session):%Y-%m-%d %H:%M} UTC"
        number = self._calendar.index(session)
        if self._max_silence and number >= self._max_silence:
            since = self._calendar.cutoff(self._calendar.session(number - self._max_silence))
            if not self._news.count(view, since, self._calendar.cutoff(session)):
                return f"no headline of {self._news.name} in {self._max_silence} sessions"
        return ""
