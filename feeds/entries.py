"""Turn the entries of a live answer into headlines: titles cleaned, times put right; used by rss and yahoo.

The rules of time, for an entry that we received at instant R:
known_at is R, for we cannot have known it earlier.
published_at is what the entry states, as the end of its resolution (a bare date lasts until its midnight), but never
after R: an entry "published later than we received it" is one whose clock is wrong. Beyond a tolerance it is counted
as skewed. An entry that states no time, or none in the calendar's years, was published at R as far as we can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
import re

import numpy as np

from feeds.news_text import clean_headlines
from trader.clock import FIRST_DAY, LAST_DAY
from trader.events import NewsBatch, NewsRows, Rejected, to_us

TOLERANCE = timedelta(minutes=2)  # of clocks that are nearly right
LONGEST_TITLE = 2_000  # characters; what is longer is no headline
NO_TITLE, LONG_TITLE = "an entry without a title", f"a title of more than {LONGEST_TITLE} characters"
_DAY = timedelta(days=1) - timedelta(milliseconds=1)
# Nothing in it runs past the next "<", so that a hostile title costs no more than its length.
_TAG = re.compile(r"<(?:/?[A-Za-z][^<>]*>|!--[^<]*?-->|!\[CDATA\[|\?[^<>]*>)|\]\]>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry as the source wrote it.

    stated: the start of the time it states, in UTC, or None.  whole_day: only the day is stated.
    """

    item_id: str
    title: str
    stated: datetime | None = None
    whole_day: bool = False
    symbols: str = ""


def rows_of(entries: Sequence[Entry], *, received: datetime) -> tuple[NewsRows, int]:
    """Return the entries as headlines in the source's order, and how many were skewed; see above for the times.

    Refused entries carry row 0: a live document has no lasting row numbers, and so the store quarantines each once
    however often it is fetched. received: the instant at which the whole answer was here.
    """
    titles = clean_titles([entry.title[: 10 * LONGEST_TITLE] for entry in entries])
    good, rejected = [], []
    for at, (entry, title) in enumerate(zip(entries, titles, strict=True)):
        if title and len(title) <= LONGEST_TITLE:
            good.append(at)
        else:
            what = LONG_TITLE if title else NO_TITLE
            rejected.append(Rejected(row=0, reason=what, text=_whole(f"{entry.item_id} {title}".strip()[:500])))
    kept = [entries[at] for at in good]
    news = NewsBatch(
        published_at=np.array([to_us(_published(entry, received)) for entry in kept], dtype=np.int64),
        known_at=np.full(len(kept), to_us(received), dtype=np.int64),
        headline=[titles[at] for at in good],
        symbols=[entry.symbols for entry in kept],
        sentiment=np.full((len(kept), 3), np.nan, dtype=np.float32),
        item_id=[_whole(entry.item_id) for entry in kept],
    )
    skewed = sum(entry.stated is not None and entry.stated > received + TOLERANCE for entry in kept)
    return NewsRows(news=news, row=np.array(good, dtype=np.int64) + 1, rejected=rejected, live=True), skewed


def clean_titles(titles: Sequence[str]) -> list[str]:
    """Return titles as plain text: tags dropped, entities decoded, white space made single spaces.

    Twice, for many sites escape twice. What looks like no tag ("Q3 < Q2") stays.

    >>> clean_titles(["  <b>AT&amp;amp;T</b> up\\n5 %", "&lt;i&gt;S&amp;P; 500&lt;/i&gt;", "Q3 < Q2"])
    ['AT&T up 5 %', 'S&P 500', 'Q3 < Q2']
    """
    import pyarrow as pa

    texts = [_whole(title) for title in titles]
    for _ in range(2):
        bare = [_TAG.sub("", text) for text in texts]
        texts = clean_headlines(pa.array(bare, type=pa.string()), printed_bytes=False).to_pylist()
    return texts


def in_calendar(day: date) -> bool:
    """Tell whether a stated day is one at which a headline can have come out: a 1970 or a 9999 is none."""
    return FIRST_DAY <= day <= LAST_DAY


def _published(entry: Entry, received: datetime) -> datetime:
    if entry.stated is None or not in_calendar(entry.stated.date()):
        return received
    return min(entry.stated + _DAY if entry.whole_day else entry.stated, received)


def _whole(text: str) -> str:
    """Replace half surrogate pairs, which JSON can state and no file can hold, and drop the character 0."""
    return text.encode(errors="replace").decode().replace("\0", "")
