"""What flows down the staircase: bars and headlines, one by one or in columns, and the day's events.

Every input has a ``known_at``: the earliest UTC instant at which we could have known it.
Inside the program an instant is an aware ``datetime``; in columns and in SQLite it is an int64 count of
microseconds since 1970-01-01 UTC ("µs"). Naive times, NaN and disorder are refused here, at the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
import math

import numpy as np
from numpy.typing import NDArray

from trader.errors import BadBar, BadNews, TimeError

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


def to_us(instant: datetime) -> int:
    """Turn an aware instant into µs since 1970 UTC; raise TimeError if it is naive.

    >>> to_us(datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc))
    1000000
    """
    return (require_aware(instant) - EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """Turn µs since 1970 UTC into an aware instant in UTC."""
    return EPOCH + timedelta(microseconds=int(us))


def require_aware(instant: datetime) -> datetime:
    """Return the instant if it carries a zone; raise TimeError if it is naive."""
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise TimeError("a time without a zone", got=instant, do="state its zone, for example --zone America/New_York")
    return instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One session of one symbol, in the symbol's currency; volume in units traded.

    Raises BadBar unless all prices are positive and finite, low ≤ open, close ≤ high and volume ≥ 0,
    TimeError where known_at is naive.
    """

    symbol: str
    session: date
    open: float
    high: float
    low: float
    close: float
    adj_close: float
    volume: float
    known_at: datetime

    def __post_init__(self) -> None:
        require_aware(self.known_at)
        where = f"{self.symbol} {self.session}"
        for name in ("open", "high", "low", "close", "adj_close"):
            price = getattr(self, name)
            if not (math.isfinite(price) and price > 0):
                raise BadBar(f"{name} is not a positive number", where=where, got=price)
        if not (math.isfinite(self.volume) and self.volume >= 0):
            raise BadBar("volume is not a number ≥ 0", where=where, got=self.volume)
        # A relative tolerance: vendors round each column on its own.
        slack = 1e-6 * self.close
        if self.low > min(self.open, self.close) + slack or self.high < max(self.open, self.close) - slack:
            raise BadBar(
                "open and close must lie between low and high",
                where=where,
                got=f"open {self.open} high {self.high} low {self.low} close {self.close}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewsItem:
    """One headline. ``symbols`` empty means the whole market; ``sentiment`` is (negative, neutral, positive).

    Raises TimeError where an instant is naive or known_at lies before published_at, BadNews where the
    headline is empty or the sentiment is not three numbers ≥ 0 that sum to 1 (± 0.02).
    """

    headline: str
    published_at: datetime
    known_at: datetime
    symbols: tuple[str, ...] = ()
    sentiment: tuple[float, float, float] | None = None
    item_id: str = ""

    def __post_init__(self) -> None:
        if require_aware(self.known_at) < require_aware(self.published_at):
            raise TimeError("known before it was published", where=self.headline, got=self.known_at)
        if not self.headline.strip():
            raise BadNews("an empty headline", where=self.published_at)
        if self.sentiment is not None:
            _check_sentiment(np.asarray([self.sentiment], dtype=np.float64))


def _check_sentiment(scores: NDArray[np.floating]) -> None:
    stated = scores[~np.isnan(scores).all(axis=1)]
    bad = ~((stated >= 0).all(axis=1) & (np.abs(stated.sum(axis=1) - 1) <= 0.02))
    if bad.any():
        raise BadNews("sentiment must be three numbers ≥ 0 that sum to 1", got=stated[bad][0].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class NewsBatch:
    """N headlines in columns, in any order of the source's; the fast form of a list of NewsItem.

    published_at, known_at: (N,) int64 µs UTC.  headline, item_id: N strings.
    symbols: N strings of space-separated tickers, "" for the whole market.
    sentiment: (N, 3) float32 negative, neutral, positive; a row of NaN where the source gives none.
    Raises as NewsItem does.
    """

    published_at: NDArray[np.int64]
    known_at: NDArray[np.int64]
    headline: Sequence[str]
    symbols: Sequence[str]
    sentiment: NDArray[np.float32]
    item_id: Sequence[str]

    def __post_init__(self) -> None:
        count = len(self.headline)
        lengths = {
            len(self.published_at),
            len(self.known_at),
            len(self.symbols),
            len(self.item_id),
            len(self.sentiment),
        }
        if lengths != {count} or self.sentiment.shape != (count, 3):
            raise BadNews("columns of unequal length", got=sorted(lengths | {count}))
        if (self.known_at < self.published_at).any():
            row = int(np.argmax(self.known_at < self.published_at))
            raise TimeError("known before it was published", where=self.headline[row])
        if not all(text and not text.isspace() for text in self.headline):
            raise BadNews("an empty headline")
        _check_sentiment(self.sentiment)

    def __len__(self) -> int:
        return len(self.headline)

    @classmethod
    def of(cls, items: Sequence[NewsItem]) -> NewsBatch:
        """Put single items into columns, in the order given."""
        nothing = (math.nan, math.nan, math.nan)
        return cls(
            published_at=np.array([to_us(item.published_at) for item in items], dtype=np.int64),
            known_at=np.array([to_us(item.known_at) for item in items], dtype=np.int64),
            headline=[item.headline for item in items],
            symbols=[" ".join(item.symbols) for item in items],
            sentiment=np.array([item.sentiment or nothing for item in items], dtype=np.float32).reshape(-1, 3),
            item_id=[item.item_id for item in items],
        )

    def items(self) -> Iterator[NewsItem]:
        """Yield single items, in the order held."""
        for row, headline in enumerate(self.headline):
            scores = self.sentiment[row]
            yield NewsItem(
                headline=headline,
                published_at=from_us(self.published_at[row]),
                known_at=from_us(self.known_at[row]),
                symbols=tuple(self.symbols[row].split()),
                sentiment=None if np.isnan(scores).all() else (float(scores[0]), float(scores[1]), float(scores[2])),
                item_id=self.item_id[row],
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row of a source that cannot be used; it goes to the store's quarantine table.

    row: its number in the file, the first data row being 1.  text: the row itself, cut to 500 characters.
    """

    row: int
    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewsRows:
    """A piece of a news file: its good rows in columns, where each stood, and the rows refused.

    row: (N,) int64, for each headline of ``news`` its row number in the file, the first data row being 1.
    live: from a feed that shows the same entries again at each look, some under another time. There an entry is
    known already if the set has had its item id, headline and symbols from a live feed, whatever its published_at.
    Raises BadNews where ``row`` and ``news`` differ in length.
    """

    news: NewsBatch
    row: NDArray[np.int64]
    rejected: Sequence[Rejected] = ()
    live: bool = False

    def __post_init__(self) -> None:
        if len(self.row) != len(self.news):
            raise BadNews("one row number for each headline", got=len(self.row), expected=len(self.news))


# The day's events, in the order in which the scheduler emits them.


@dataclass(frozen=True, slots=True, kw_only=True)
class NewsArrived:
    """The headlines of one session: cutoff(session before) < known_at ≤ cutoff(session), oldest first."""

    session: date
    at: datetime
    news: NewsBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class BarClosed:
    """The session's bar, as it was known at decide_at."""

    session: date
    at: datetime
    bar: Bar


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionDue:
    """It is decide_at(session); ``missing`` says why there can be no decision, or is empty."""

    session: date
    at: datetime
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainDue:
    """A model is to be trained on what is known at ``at``; it is used from the next session on."""

    session: date
    at: datetime


Event = NewsArrived | BarClosed | DecisionDue | RetrainDue


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One session's forecast for one symbol, made only from what was known by its close.

    p_up: P(close(d+1) > close(d)), or None where the chain abstained; side: −1 short, 0 none, +1 long.
    expected_return: the model's forecast of close(d+1)/close(d) − 1, a fraction; None where it gives none, and
        always where the chain abstained.
    top: the ten headlines of largest weight as (headline, weight), largest first; weights sum to at most 1.
    effective_news: exp of the entropy of the day's weights, a number of headlines (0 without news).
    """

    session: date
    symbol: str
    p_up: float | None
    side: int
    model_id: str
    reason: str = ""
    news_count: int = 0
    effective_news: float = 0.0
    top: tuple[tuple[str, float], ...] = field(default=())
    expected_return: float | None = None
