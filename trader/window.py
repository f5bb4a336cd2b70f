"""The rolling window: bars and headlines as the model sees them, one row a session, filled by events.

A session's row is made from what was known at its own decide_at and never changes afterwards; the one thing that
a later event adds to it is its label, the close of the session after. News of a session without a bar is read
together with that of the next session that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
import copy
from datetime import date, datetime
import hashlib
import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.base import MARKET_FEATURES, Days, Texts
from trader.clock import Calendar
from trader.errors import NoData, TimeError
from trader.events import Bar, BarClosed, NewsArrived

VOLUME_SESSIONS = 20
Progress = Callable[[int, int], None]


class TextIndex(Texts, Protocol):
    """A text cache: gives each text a row of its embedding table, embedding what is new."""

    def index(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.int64]:
        """Return the row of each text."""
        ...

    def keys_of(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the digest (n, 16) of the text of each row."""
        ...


class Scorer(Protocol):
    """Gives texts sentiment scores."""

    def scores(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Return (n, 3) negative, neutral, positive."""
        ...


class Window:
    """The sessions seen so far of one symbol, oldest first, numbered by position from 0.

    headlines_a_day: keep at most so many of a session's headlines, those whose text has the smallest hash (a choice
    that depends on nothing else); 0 keeps all.  prefer: words, in lower case; headlines that hold one of them come
    before all others in that choice.  levels: give raw price levels instead of log returns.  rescore: leave out the
    scores that the source gave.
    """

    warm_up = VOLUME_SESSIONS  # the first positions' volume mean would be over fewer sessions

    def __init__(
        self,
        calendar: Calendar,
        texts: TextIndex,
        scorer: Scorer,
        *,
        market_text: str,
        headlines_a_day: int = 0,
        prefer: Sequence[str] = (),
        levels: bool = False,
        rescore: bool = False,
    ) -> None:
        self.calendar, self._texts, self._scorer = calendar, texts, scorer
        self._market_text, self._levels, self._rescore = market_text, levels, rescore
        self._cap, self._prefer = headlines_a_day, tuple(word.lower() for word in prefer)
        self.sessions: list[date] = []
        self.numbers: list[int] = []
        self.bars: list[Bar] = []
        self.headlines: list[list[str]] = []
        self._market: list[NDArray[np.float32]] = []
        self._next_return: list[float] = []
        self._sentiment: list[NDArray[np.float32]] = []
        self._rows: list[NDArray[np.int64]] = []  # of the sessions resolved so far
        self._pending: tuple[list[str], list[NDArray[np.float32]]] = ([], [])
        self._news_at: datetime | None = None

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def description(self) -> str:
        """The description of the market that models read."""
        return self._market_text

    def update(self, event: NewsArrived | BarClosed) -> None:
        """Take one event; raise TimeError if it is older than what is already held."""
        if isinstance(event, NewsArrived):
            self._take_news(event)
        else:
            self._take_bar(event)

    def _take_news(self, event: NewsArrived) -> None:
        if self._news_at is not None and event.at <= self._news_at:
            raise TimeError("news out of order", where=event.session, got=event.at, expected=f"after {self._news_at}")
        self._news_at = event.at
        chosen = _capped(event.news.headline, self._cap, self._prefer)
        self._pending[0].extend(event.news.headline[row] for row in chosen)
        given = event.news.sentiment[chosen]
        self._pending[1].append(np.full_like(given, np.nan) if self._rescore else given)

    def _take_bar(self, event: BarClosed) -> None:
        bar, number = event.bar, self.calendar.index(event.session)
        if self.numbers and number <= self.numbers[-1]:
            raise TimeError("bars out of order", where=event.session, expected=f"after {self.sessions[-1]}")
        if self.bars:
            self._next_return[-1] = bar.close / self.bars[-1].close - 1
        self._market.append(self._features(bar))
        self._next_return.append(math.nan)
        self.sessions.append(event.session)
        self.numbers.append(number)
        self.bars.append(bar)
        headlines, scores = self._pending
        self.headlines.append(headlines)
        self._sentiment.append(np.concatenate(scores) if scores else np.empty((0, 3), np.float32))
        self._pending = ([], [])

    def _features(self, bar: Bar) -> NDArray[np.float32]:
        """Return the F market features of MARKET_FEATURES; zeros for the very first bar, which has no predecessor."""
        if self._levels:
            levels = (bar.open, bar.high, bar.low, bar.close, bar.adj_close, bar.volume)
            return np.array(levels, dtype=np.float32)
        if not self.bars:
            return np.zeros(len(MARKET_FEATURES), np.float32)
        before = self.bars[-1]
        prices = [math.log(price / before.close) for price in (bar.open, bar.high, bar.low, bar.close)]
        recent = [math.log1p(one.volume) for one in (*self.bars[-(VOLUME_SESSIONS - 1) :], bar)]
        volume = recent[-1] - sum(recent) / len(recent)
        return np.array([*prices, math.log(bar.adj_close / before.adj_close), volume], dtype=np.float32)

    def resolve(self, embedded: Progress | None = None, scored: Progress | None = None) -> None:
        """Give every headline its embedding row and, where the source gave none, its sentiment."""
        resolve_all([self], embedded, scored)

    def _unresolved(self) -> list[str]:
        """Return the market text and the headlines that have no embedding row yet; none where all have one."""
        waiting = self.headlines[len(self._rows) :]
        return [self._market_text, *(text for day in waiting for text in day)] if waiting else []

    def _unscored(self) -> NDArray[np.intp]:
        """Return which of the headlines of ``_unresolved`` came without a score."""
        return np.flatnonzero(np.isnan(np.concatenate(self._sentiment[len(self._rows) :])).any(axis=1))

    def _take_numbers(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Take the rows of what ``_unresolved`` gave, and the scores of what ``_unscored`` gave."""
        first = len(self._rows)
        ends = np.cumsum([len(day) for day in self.headlines[first:]])
        whole = np.concatenate(self._sentiment[first:])
        whole[self._unscored()] = scores
        self._rows.extend(np.split(rows[1:], ends[:-1]))
        self._sentiment[first:] = np.split(whole, ends[:-1])

    def days(self, first: int, stop: int) -> Days:
        """Return positions first … stop−1 as known at the last one's decision: its own label is NaN.

        Raises NoData if a position is not held.
        """
        if not 0 <= first < stop <= len(self):
            raise NoData("sessions that the window does not hold", got=f"{first}..{stop}", expected=f"0..{len(self)}")
        self.resolve()
        rows, sentiment = self._rows[first:stop], self._sentiment[first:stop]
        next_return = np.array(self._next_return[first:stop])
        next_return[-1] = math.nan
        return Days(
            market=np.stack(self._market[first:stop]),
            next_return=next_return,
            news_offset=np.concatenate([[0], np.cumsum([len(day) for day in rows])]).astype(np.int64),
            news_text=np.concatenate(rows),
            news_sentiment=np.concatenate(sentiment),
            market_text=int(self._texts.index([self._market_text])[0]),
            texts=self._texts,
        )

    def learnable(self, first: int, stop: int) -> Days:
        """Return positions first … stop−1 with every label, of which the last is the close of position ``stop``."""
        return self.days(first, stop + 1).between(0, stop - first)

    def with_numbers(self, numbers: Mapping[date, NDArray[np.float32]]) -> Window:
        """Return the same sessions with these numbers for market features, and without headlines.

        numbers: (F,) for each session held, known at its close; for rivals that read no text.
        """
        other = copy.copy(self)
        other._market = [numbers[session] for session in self.sessions]
        other.headlines = [[] for _ in self.sessions]
        other._rows = [np.empty(0, np.int64) for _ in self.sessions]
        other._sentiment = [np.empty((0, 3), np.float32) for _ in self.sessions]
        return other

    def text_keys(self, days: Days) -> NDArray[np.uint8]:
        """Return the digests (1 + M, 16) of the market text and of all headlines of ``days``."""
        return self._texts.keys_of(np.concatenate([[days.market_text], days.news_text]).astype(np.int64))

    def position(self, session: date) -> int:
        """Return the position of a session; raise NoData if it is not held."""
        try:
            return self.numbers.index(self.calendar.index(session))
        except ValueError as error:
            raise NoData("the window has no bar of this session", where=session) from error

    def fingerprint(self, first: int, stop: int) -> str:
        """Return the sha256 of everything held of positions first … stop−1: bars, features, headlines, scores."""
        self.resolve()
        digest = hashlib.sha256()
        for at in range(first, stop):
            digest.update(f"{self.sessions[at]}|{self.bars[at]}|{len(self.headlines[at])}\n".encode())
            digest.update(self._market[at].tobytes())
            digest.update("\n".join(self.headlines[at]).encode())
            digest.update(self._sentiment[at].tobytes())
        return digest.hexdigest()


def resolve_all(windows: Iterable[Window], embedded: Progress | None = None, scored: Progress | None = None) -> None:
    """Give the new headlines of many windows their embedding rows and scores, in one pass over the language model.

    The windows share their text cache and scorer, as those of ``trader.parts.windows_of`` do.
    embedded, scored: told how many of the texts that are new to the cache are done.
    """
    waiting = [window for window in windows if window._unresolved()]
    if not waiting:
        return
    texts, scorer = waiting[0]._texts, waiting[0]._scorer
    assert all(window._texts is texts and window._scorer is scorer for window in waiting), "readers are shared"
    new = [window._unresolved() for window in waiting]
    bare = [window._unscored() for window in waiting]
    rows = texts.index([text for part in new for text in part], embedded)
    unscored = [part[1 + at] for part, places in zip(new, bare, strict=True) for at in places]
    scores = scorer.scores(unscored, scored) if unscored else np.empty((0, 3), np.float32)
    for window, some_rows, some_scores in zip(waiting, _parts(rows, new), _parts(scores, bare), strict=True):
        window._take_numbers(some_rows, some_scores)


def _parts(numbers: NDArray[Any], like: Sequence[Sized]) -> list[NDArray[Any]]:
    """Cut an array into pieces as long as those of ``like``."""
    return np.split(numbers, np.cumsum([len(part) for part in like])[:-1])


def _capped(headlines: Sequence[str], cap: int, prefer: Sequence[str] = ()) -> list[int]:
    """Return which headlines to keep, in their order: all, or the ``cap`` first by (no preferred word, text hash)."""
    if not cap or len(headlines) <= cap:
        return list(range(len(headlines)))

    def rank(row: int) -> tuple[bool, bytes]:
        text = headlines[row]
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return not any(word in text.lower() for word in prefer), digest

    return sorted(sorted(range(len(headlines)), key=rank)[:cap])
