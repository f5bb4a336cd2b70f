"""Days made of headlines' scores alone: what the tests of models that read tone are fed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.base import Days
from models.fitting import InMemory


def spoken(*days: Sequence[list[float]]) -> Days:
    """Return days with these headlines' scores."""
    S, scores = len(days), [score for day in days for score in day]
    return Days(
        market=(np.arange(S * 6).reshape(S, 6) / 100).astype(np.float32),
        next_return=np.where(np.arange(S) % 2, 0.01, -0.01),
        news_offset=np.cumsum([0, *map(len, days)]).astype(np.int64),
        news_text=np.zeros(len(scores), np.int64),
        news_sentiment=np.array(scores, np.float32).reshape(-1, 3),
        market_text=0,
        texts=InMemory(np.zeros((1, 4), np.float32)),
    )


def random_days(count: int = 200, seed: int = 0) -> Days:
    """Return days of random scores, one in ten without news."""
    rng = np.random.default_rng(seed)
    items = rng.integers(1, 9, count) * (rng.random(count) > 0.1)
    return spoken(*(rng.dirichlet([1, 2, 1], n).tolist() for n in items))
