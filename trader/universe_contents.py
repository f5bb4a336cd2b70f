"""What the store holds for each symbol of a universe: bars, gaps, headlines, sessions with news. For a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
from numpy.typing import NDArray

from trader.clock import Calendar
from trader.events import to_us
from trader.store import MarketStore
from trader.universe import Universe
from trader.universe_news import TickerNews

SESSIONS_AT_ONCE = 250  # of news read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is held for one symbol.

    bars: sessions with a bar, first and last of them; gaps: sessions between these two without one.
    headlines: those of the sessions first … last, on ``news_sessions`` different ones. outside: those of other
    sessions; of them, the ones before the first bar wait for it, and those after the last one wait for ever.
    """

    symbol: str
    bars: int
    first: date | None
    last: date | None
    gaps: int
    headlines: int
    news_sessions: int
    outside: int


def contents_of(store: MarketStore, calendar: Calendar, universe: Universe, now: datetime) -> list[Contents]:
    """Return what the store holds for each member, in the universe's order, as known at an instant.

    universe: each member with the name that its news set has in the store. What the store lacks is counted as none.
    """
    symbols, numbers = store.symbols(), _news_numbers(store, calendar, universe, now)
    made = []
    for member in universe:
        held, news = symbols.get(member.prices), numbers[member.symbol]
        if held is None or held.first is None or held.last is None:
            count, first, last, gaps, inside = 0, None, None, 0, np.zeros(len(news), np.bool_)
        else:
            count, first, last = held.count, held.first, held.last
            start, end = calendar.index(first), calendar.index(last)
            gaps, inside = end - start + 1 - count, (news >= start) & (news <= end)
        made.append(
            Contents(
                symbol=member.symbol,
                bars=count,
                first=first,
                last=last,
                gaps=gaps,
                headlines=int(inside.sum()),
                news_sessions=len(np.unique(news[inside])),
                outside=int((~inside).sum()),
            )
        )
    return made


def _news_numbers(
    store: MarketStore, calendar: Calendar, universe: Universe, now: datetime
) -> dict[str, NDArray[np.int64]]:
    """Return by symbol the number of the session to which each of its headlines belongs, oldest first."""
    found: dict[str, list[NDArray[np.int64]]] = {member.symbol: [np.empty(0, np.int64)] for member in universe}
    view, names = store.as_of(now), store.names()
    for news in dict.fromkeys(member.news for member in universe):
        members = [member for member in universe if member.news == news]
        split = TickerNews(news, members)
        span = names.get(news)
        if span is None or span.first is None or span.last is None:
            continue
        for after, until in _pieces(calendar, span.first, span.last):
            for member, batch in zip(members, split.split(view, after, until), strict=True):
                found[member.symbol].append(calendar.index_at(batch.known_at))
    return {symbol: np.concatenate(parts) for symbol, parts in found.items()}


def _pieces(calendar: Calendar, first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield spans of some sessions each, (after, until], that hold first … last."""
    start, end = (int(number) for number in calendar.index_at(np.array([to_us(first), to_us(last)])))
    for at in range(max(start, 1), end + 1, SESSIONS_AT_ONCE):
        stop = min(at + SESSIONS_AT_ONCE - 1, end)
        yield calendar.cutoff(calendar.session(at - 1)), calendar.cutoff(calendar.session(stop))
