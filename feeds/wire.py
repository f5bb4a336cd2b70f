"""The market wire: the project's own headlines, written each session from real series; no network, no publisher.

They are facts about real days, known when they say, but a function of prices: they test the chain, not the worth
of news. ``feeds.wire_facts`` makes the numbers, ``feeds.wire_words`` the sentences, this module puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date

import numpy as np
import pandas as pd

from feeds.wire_facts import INDICES, WireSeries, facts, trailing_rank
from feeds.wire_market_words import MARKET_TOPICS
from feeds.wire_words import INDEX_TOPICS, View
from trader.clock import Calendar
from trader.events import NewsBatch

__all__ = ["WireSeries", "facts", "headlines"]

# The name of the set in a market store. A store only grows, so another wording is another set: change the number
# whenever a headline changes (a test compares the wire's hash).
SET = "wire-1"
NAMES = {"sp500": "S&P 500", "nasdaq": "Nasdaq Composite"}
SIZE_RANKED = ("move", "move_5", "move_60")  # by size, whatever the sign
VALUE_RANKED = ("range", "place", "volume", "volatility", "rebound")


def headlines(series: WireSeries) -> NewsBatch:
    """Write the wire of every session of the series, oldest first, for the whole market, without sentiment.

    Each headline is published and known at its session's close, exactly, so it belongs to that session. Its id
    ("wire:2008-09-15:sp500-move") and its words depend on what was known by then alone: series cut at any session
    give exactly the first part of this batch.
    """
    table = facts(series)
    sessions = [stamp.date() for stamp in table.index]
    texts, ids, counts = list[str](), list[str](), list[int]()
    for session, numbers, ranked in zip(sessions, _records(table), _records(_ranks(table)), strict=True):
        before = len(texts)
        for slot, text in _headlines_of(session, numbers, ranked):
            texts.append(text)
            ids.append(f"wire:{session}:{slot}")
        counts.append(len(texts) - before)
    at_close = np.repeat(Calendar().closes_us(sessions), counts)
    return NewsBatch(
        published_at=at_close,
        known_at=at_close,
        headline=texts,
        symbols=[""] * len(texts),
        sentiment=np.full((len(texts), 3), np.nan, dtype=np.float32),
        item_id=ids,
    )


def _headlines_of(session: date, facts: Mapping[str, float], ranks: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the session's (slot, headline), always in the same order; slots are unique within a session."""
    for index in INDICES:
        view = View(session, facts, ranks, f"{index}_", NAMES[index])
        for topic, write in INDEX_TOPICS.items():
            if text := write(view):
                yield f"{index}-{topic}", text
    view = View(session, facts, ranks)
    for topic, write in MARKET_TOPICS.items():
        if text := write(view):
            yield topic, text


def _records(table: pd.DataFrame) -> list[dict[str, float]]:
    names = list(table.columns)
    return [dict(zip(names, row, strict=True)) for row in table.to_numpy().tolist()]


def _ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Return each session's trailing rank of the facts that the words call large or small."""
    ranked = {f"{index}_{name}": table[f"{index}_{name}"].abs() for index in INDICES for name in SIZE_RANKED}
    ranked |= {f"{index}_{name}": table[f"{index}_{name}"] for index in INDICES for name in VALUE_RANKED}
    # Among the opens that were prices: where most are copies, every real gap would seem large.
    ranked |= {f"{index}_gap": table[f"{index}_gap"].abs().where(table[f"{index}_gap"] != 0) for index in INDICES}
    ranked |= {name: table[name].abs() for name in ("lead", "lead_20", "crude_move", "crude_move_20")}
    return pd.DataFrame({name: trailing_rank(values) for name, values in ranked.items()})
