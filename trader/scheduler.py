"""Emit each session's events in time order: news, bar closed, decision due, and (when due) retrain.

Everything is read through ``store.as_of(decide_at(session))``: what was not known then cannot be emitted.
In a backtest the sessions come from the calendar; the window and the forecaster are further down the staircase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta

from trader.clock import Calendar
from trader.config import WalkForward
from trader.events import Bar, BarClosed, DecisionDue, Event, NewsArrived, NewsBatch, RetrainDue
from trader.store import MarketStore
from trader.walkforward import is_retrain_session


class Scheduler:
    """The daily events of one symbol and one news set, from a market store.

    symbol: whose bars.  news: name of the news set in the store.  spec: says which sessions retrain.
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
        news: str,
        spec: WalkForward,
        abstain: Mapping[date, str] | None = None,
        bars_known: Mapping[date, datetime | None] | None = None,
        max_silence: int = 0,
    ) -> None:
        self._store, self._calendar = store, calendar
        self._symbol, self._news, self._spec = symbol, news, spec
        self._abstain, self._max_silence = abstain or {}, max_silence
        self._bars_known = {} if bars_known is None else bars_known

    def events(self, first: date, last: date) -> Iterator[Event]:
        """Yield the events of the sessions first … last, oldest first.

        A session whose bar is not known by decide_at yields no BarClosed, and its DecisionDue says why. Where that bar
        is known by the next session's decide_at it comes then, before all else of that session: its own decision is
        past, but what waited for it can be filled and the next ones can look back at it.
        """
        for session in self._calendar.sessions(first, last):
            yield from self._events_of(session)

    def bar(self, session: date) -> Bar | None:
        """Return the session's bar if it was known in time."""
        return self._bar(session, session)

    def late_bar(self, session: date) -> BarClosed | None:
        """Return the bar of the session before this one if it was not known in time, but is by this one's decide_at."""
        number = self._calendar.index(session)
        if not number:
            return None
        before = self._calendar.session(number - 1)
        bar = None if self.bar(before) is not None else self._bar(before, session)
        return None if bar is None else BarClosed(session=before, at=bar.known_at, bar=bar)

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
        return self._store.as_of(known).bar(self._symbol, session)

    def bar_by(self, session: date, by: date) -> Bar | None:
        """Return a session's bar as the store knew it by another one's decision, whatever is recorded of it."""
        return self._store.as_of(self._calendar.decide_at(by)).bar(self._symbol, session)

    def _events_of(self, session: date) -> Iterator[Event]:
        number = self._calendar.index(session)
        cutoff, decide_at = self._calendar.cutoff(session), self._calendar.decide_at(session)
        if (late := self.late_bar(session)) is not None:
            yield late
        # Before the calendar's first session there is no close; a day is long enough for its news.
        before = self._calendar.cutoff(self._calendar.session(number - 1)) if number else cutoff - timedelta(days=1)
        view = self._store.as_of(decide_at)
        yield NewsArrived(session=session, at=cutoff, news=view.news(self._news, before, cutoff))
        bar = self.bar(session)
        if bar is not None:
            yield BarClosed(session=session, at=max(cutoff, bar.known_at), bar=bar)
        yield DecisionDue(session=session, at=decide_at, missing=self._missing(session, bar is not None))
        if is_retrain_session(number, self._spec):
            yield RetrainDue(session=session, at=decide_at)

    def news_so_far(self, session: date, at: datetime) -> NewsBatch:
        """Return the headlines of a session that were known at an instant before its cutoff."""
        number = self._calendar.index(session)
        after = self._calendar.cutoff(self._calendar.session(number - 1))
        return self._store.as_of(at).news(self._news, after, self._calendar.cutoff(session))

    def _missing(self, session: date, has_bar: bool) -> str:
        """Say why there can be no decision on a session, or nothing."""
        decide_at = self._calendar.decide_at(session)
        if session in self._abstain:  # first: what an account recorded is the reason, whatever else there was
            return self._abstain[session]
        if not has_bar:
            return f"no bar of {self._symbol} known by {decide_at:%Y-%m-%d %H:%M} UTC"
        number = self._calendar.index(session)
        if self._max_silence and number >= self._max_silence:
            since = self._calendar.cutoff(self._calendar.session(number - self._max_silence))
            if not self._store.as_of(decide_at).news_count(self._news, since, self._calendar.cutoff(session)):
                return f"no headline of {self._news} in {self._max_silence} sessions"
        return ""
