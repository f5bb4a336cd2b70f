"""Emit each session's events in time order: news, bar closed, decision due, and (when due) retrain.

Everything is read through ``store.as_of(decide_at(session))``: what was not known then cannot be emitted.
In a backtest the sessions come from the calendar; the window and the forecaster are further down the staircase.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

from trader.clock import Calendar
from trader.config import WalkForward
from trader.events import BarClosed, DecisionDue, Event, NewsArrived, RetrainDue
from trader.store import MarketStore
from trader.walkforward import is_retrain_session


class Scheduler:
    """The daily events of one symbol and one news set, from a market store.

    symbol: whose bars.  news: name of the news set in the store.  spec: says which sessions retrain.
    """

    def __init__(self, store: MarketStore, calendar: Calendar, *, symbol: str, news: str, spec: WalkForward) -> None:
        self._store, self._calendar = store, calendar
        self._symbol, self._news, self._spec = symbol, news, spec

    def events(self, first: date, last: date) -> Iterator[Event]:
        """Yield the events of the sessions first … last, oldest first.

        A session whose bar is not known by decide_at yields no BarClosed, and its DecisionDue says why.
        """
        for session in self._calendar.sessions(first, last):
            yield from self._events_of(session)

    def _events_of(self, session: date) -> Iterator[Event]:
        number = self._calendar.index(session)
        cutoff, decide_at = self._calendar.cutoff(session), self._calendar.decide_at(session)
        # Before the calendar's first session there is no close; a day is long enough for its news.
        before = self._calendar.cutoff(self._calendar.session(number - 1)) if number else cutoff - timedelta(days=1)
        view = self._store.as_of(decide_at)
        yield NewsArrived(session=session, at=cutoff, news=view.news(self._news, before, cutoff))
        bar = view.bar(self._symbol, session)
        if bar is not None:
            yield BarClosed(session=session, at=max(cutoff, bar.known_at), bar=bar)
        missing = "" if bar is not None else f"no bar of {self._symbol} known by {decide_at:%Y-%m-%d %H:%M} UTC"
        yield DecisionDue(session=session, at=decide_at, missing=missing)
        if is_retrain_session(number, self._spec):
            yield RetrainDue(session=session, at=decide_at)
