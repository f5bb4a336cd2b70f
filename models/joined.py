"""Lay stretches of Days one behind another, for what learns from several of them as from one.

A decision near the start of a stretch then reads lookback days of the stretch before it: who lays them minds the joins.
Letters as in models.base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.base import Days
from trader.errors import ModelError


def joined(parts: Sequence[Days]) -> Days:
    """Return the days of all parts, in their order, numbered through; texts and market_text are the last one's.

    Raises ModelError for no part, or for parts whose rows belong to different texts.
    """
    if not parts:
        raise ModelError("no days to join")
    last = parts[-1]
    if any(part.texts is not last.texts for part in parts):
        raise ModelError("days of different texts cannot be joined", expected="rows of one and the same texts")
    counts = [np.diff(part.news_offset) for part in parts]
    return replace(
        last,
        market=np.concatenate([part.market for part in parts]),
        next_return=np.concatenate([part.next_return for part in parts]),
        news_offset=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
        news_text=np.concatenate([part.news_text[: part.news_offset[-1]] for part in parts]),
        news_sentiment=np.concatenate([part.news_sentiment[: part.news_offset[-1]] for part in parts]),
    )
