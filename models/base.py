"""What every model takes and gives: ``Days`` in, ``Prediction`` out, weights as a dict of arrays.

Letters used in all shapes of this package:
    S sessions   F market features   M headlines of all days together   N headlines of one day
    D width of the frozen language model   B decisions   t lookback (sessions of input)   H hidden width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.generic]]

MARKET_FEATURES = ("open", "high", "low", "close", "adjusted", "volume")


class Texts(Protocol):
    """Embeddings of texts by row: a frozen language model's outputs, computed once and cached."""

    @property
    def width(self) -> int:
        """D, the length of one embedding."""
        ...

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings (len(index), D) of these rows."""
        ...


@dataclass(frozen=True, slots=True)
class Days:
    """S consecutive sessions of one symbol as a model sees them, oldest first.

    market: (S, F) float32, the features named in MARKET_FEATURES, not standardised: log open, high, low, close
        over the previous close; log adjusted return; log volume minus its trailing 20-session mean.
    next_return: (S,) float64, close(d+1)/close(d) − 1; NaN where that close is not known yet.
    news_offset: (S+1,) int64; the headlines of day i are news_text[news_offset[i]:news_offset[i+1]].
    news_text: (M,) int64, rows of ``texts``.   news_sentiment: (M, 3) float32 negative, neutral, positive.
    market_text: row of ``texts`` with the description of the market.
    """

    market: NDArray[np.float32]
    next_return: NDArray[np.float64]
    news_offset: NDArray[np.int64]
    news_text: NDArray[np.int64]
    news_sentiment: NDArray[np.float32]
    market_text: int
    texts: Texts

    def __len__(self) -> int:
        return len(self.market)

    @property
    def label(self) -> NDArray[np.float32]:
        """(S,) 1 where close(d+1) > close(d), else 0; NaN where not known yet."""
        return np.where(np.isnan(self.next_return), np.nan, self.next_return > 0).astype(np.float32)

    def news(self, day: int) -> slice:
        """Return the slice of the day's headlines in news_text and news_sentiment."""
        return slice(int(self.news_offset[day]), int(self.news_offset[day + 1]))

    def between(self, first: int, stop: int) -> Days:
        """Return days first … stop−1 alone, renumbered from 0, holding nothing of the others."""
        low, high = int(self.news_offset[first]), int(self.news_offset[stop])
        return replace(
            self,
            market=self.market[first:stop].copy(),
            next_return=self.next_return[first:stop].copy(),
            news_offset=self.news_offset[first : stop + 1] - low,
            news_text=self.news_text[low:high].copy(),
            news_sentiment=self.news_sentiment[low:high].copy(),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of B decisions.

    p_up: (B,) float64 P(close(d+1) > close(d)).   expected_return: (B,) or None.
    news_weights: for each decision the weights (N,) float32 of its last day's headlines, in Days order,
        summing to 1 (empty without news); None for models that do not weigh headlines.
    """

    p_up: NDArray[np.float64]
    expected_return: NDArray[np.float64] | None = None
    news_weights: Sequence[NDArray[np.float32]] | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Who looked at whom on one day of N headlines, in Days order; means over the heads.

    weights: (N,) float32, the share of the decision's attention that each headline got; sums to 1.
    pairs: (N, N) float32, ``pairs[i, j]`` the share of headline i's attention that went to headline j; rows sum to 1.
    """

    weights: NDArray[np.float32]
    pairs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a training went: validation log loss (nats) and accuracy of the kept weights, epochs run and kept."""

    validation_loss: float
    validation_accuracy: float
    epochs: int = 0
    best_epoch: int = 0


class Model(Protocol):
    """A trainable forecaster. It sees only the Days it is handed; who hands them minds the time.

    ``lookback``: sessions of input, so a decision on day i reads days i−lookback+1 … i.
    """

    lookback: int

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on the days ``train``; stop and select on ``validation``.

        Every statistic (scalers included) comes from ``train`` alone. Same arguments, same weights, bit for bit.
        """
        ...

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``; each depends on its own lookback days alone, bit for bit."""
        ...

    def weights(self) -> Weights:
        """Return everything that predict needs, as arrays that safetensors can hold."""
        ...

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take weights that ``weights()`` returned; raise ValueError where names or shapes differ."""
        ...


ModelFactory = Callable[[], Model]


@dataclass(frozen=True, slots=True)
class Standardiser:
    """Mean and standard deviation of each market feature over the TRAINING days; (F,) each."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def of(cls, market: NDArray[np.float32]) -> Standardiser:
        """Measure (S, F) features; a feature that never varies keeps a std of 1."""
        std = market.std(axis=0, dtype=np.float64)
        return cls(
            market.mean(axis=0, dtype=np.float64).astype(np.float32), np.where(std > 1e-12, std, 1.0).astype(np.float32)
        )

    def __call__(self, market: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (market − mean) / std."""
        return ((market - self.mean) / self.std).astype(np.float32)
