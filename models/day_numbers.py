"""A day as a handful of numbers, for the plain models: market features, tone of the news, reduced mean embedding.

Logistic regression, boosting, forest, SVM and the plain sequence networks all read the same numbers of the same days,
so that what differs between them is the model. ``describe`` lays out what one of them learns from.
Letters as in models.base, and
    C numbers that describe one day   P directions of the mean embedding kept
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.base import Days, Standardiser, Weights
from models.panel import Part
from trader.errors import ModelError

DIRECTIONS = 16  # P


@dataclass(frozen=True, slots=True)
class DayNumbers:
    """Turn each day into C numbers, by statistics of the TRAINING days alone.

    centre: (D,) mean of the days' mean embeddings.   directions: (D, P) their principal directions.
    scale: Standardiser of all C numbers. A direction or number that never varies in training becomes 0.
    """

    centre: NDArray[np.float64]
    directions: NDArray[np.float64]
    scale: Standardiser

    @classmethod
    def of(cls, parts: Sequence[Part]) -> DayNumbers:
        """Measure on the days of the training decisions of all parts together; ModelError where there are none."""
        learned = [(part.days, np.arange(part.train.start, part.train.stop)) for part in parts if len(part.train)]
        if not learned:
            raise ModelError("no decisions to learn from")
        D = learned[0][0].texts.width
        means = np.concatenate([_mean_embeddings(days, index, np.full(D, np.nan)) for days, index in learned])
        some = means[~np.isnan(means[:, 0])]  # (≤ decisions, D)
        centre = some.mean(axis=0) if len(some) else np.zeros(D)
        _, _, rows = np.linalg.svd(some - centre, full_matrices=False)
        directions = np.zeros((D, DIRECTIONS))
        directions[:, : len(rows[:DIRECTIONS])] = rows[:DIRECTIONS].T
        bare = cls(centre, directions, Standardiser(np.zeros(1, np.float32), np.ones(1, np.float32)))
        return cls(centre, directions, Standardiser.of(np.concatenate([bare(days, index) for days, index in learned])))

    def __call__(self, days: Days, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Describe the days ``index`` → (len(index), C), a day without news by its market and zeros for the rest."""
        offset = _mean_embeddings(days, index, self.centre) - self.centre  # (len(index), D)
        # Day by day, and without BLAS, whose rounding depends on how many days are asked for.
        reduced = np.array([(day[:, None] * self.directions).sum(axis=0) for day in offset])  # (len(index), P)
        numbers = np.concatenate([days.market[index], _sentiment(days, index), reduced], axis=1)  # (len(index), C)
        if not np.isfinite(numbers).all():
            day = int(index[~np.isfinite(numbers).all(axis=1)][0])
            raise ModelError("market, sentiment or an embedding is not a number", where=f"day {day}")
        standard: NDArray[np.float32] = self.scale(numbers.astype(np.float32)).clip(-5, 5)  # a crash is rare, not 20 σ
        return standard

    def windows(self, days: Days, at: Sequence[int] | range, lookback: int) -> NDArray[np.float32]:
        """Lay the numbers of each decision's lookback days side by side, oldest first → (B, t·C)."""
        laid: NDArray[np.float32] = side_by_side(self, days, at, lookback)
        return laid

    def arrays(self) -> Weights:
        """Return the statistics as arrays by name."""
        return {
            "numbers.centre": self.centre,
            "numbers.directions": self.directions,
            "numbers.mean": self.scale.mean,
            "numbers.std": self.scale.std,
        }

    @classmethod
    def from_arrays(cls, weights: Mapping[str, NDArray[np.generic]], names: set[str]) -> DayNumbers:
        """Take what ``arrays()`` returned; ValueError unless the names are these and ``names``, and shapes agree."""
        own = {"numbers.centre", "numbers.directions", "numbers.mean", "numbers.std"}
        if set(weights) != own | names:
            raise ValueError(f"weights do not fit: got {sorted(weights)}, expected {sorted(own | names)}")
        centre, directions = (np.array(weights[f"numbers.{n}"], np.float64) for n in ("centre", "directions"))
        mean, std = (np.array(weights[f"numbers.{n}"], np.float32) for n in ("mean", "std"))
        if directions.shape != (*centre.shape, DIRECTIONS) or mean.shape != std.shape or mean.ndim != 1:
            raise ValueError(f"weights do not fit: directions {directions.shape}, mean {mean.shape}, std {std.shape}")
        return cls(centre, directions, Standardiser(mean, std))


def side_by_side(
    describe: Callable[[Days, NDArray[np.int64]], NDArray[Any]], days: Days, at: Sequence[int] | range, lookback: int
) -> NDArray[Any]:
    """Lay what describes each decision's lookback days side by side, oldest first → (B, t·C).

    describe: days (n,) → (n, C); each day is described once.   ModelError where a decision lacks its days.
    """
    decisions = np.asarray(at, dtype=np.int64)
    if not len(decisions) or decisions.min() < lookback - 1 or decisions.max() >= len(days):
        expected = f"days {lookback - 1}–{len(days) - 1} (lookback {lookback})"
        raise ModelError("a decision lacks its days", got=decisions[:3].tolist(), expected=expected)
    needed = decisions[:, None] + np.arange(1 - lookback, 1)  # (B, t)
    index, position = np.unique(needed, return_inverse=True)
    laid: NDArray[Any] = describe(days, index)[position.reshape(needed.shape)]  # (B, t, C)
    return laid.reshape(len(decisions), -1)


class Samples(NamedTuple):
    """B decisions to learn from or to validate on, symbol after symbol, oldest first within each.

    x: (B, t·C) float32, the numbers of the lookback days side by side, oldest first.
    label: (B,) float32, 0 or 1.   next_return: (B,) float64.   counts: decisions of each part; they sum to B.
    """

    x: NDArray[np.float32]
    label: NDArray[np.float32]
    next_return: NDArray[np.float64]
    counts: tuple[int, ...]


def describe(parts: Sequence[Part], lookback: int) -> tuple[DayNumbers, Samples, Samples]:
    """Measure the numbers on the training days of all parts, and lay out training and validation decisions by them.

    ModelError where there are none of the one or the other, where a decision lacks its days or its label.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # the rounding of BLAS depends on its threads
        numbers = DayNumbers.of(parts)
    train = _samples(numbers, [(part.days, part.train) for part in parts], lookback)
    return numbers, train, _samples(numbers, [(part.days, part.validation) for part in parts], lookback)


def _samples(numbers: DayNumbers, asked: Sequence[tuple[Days, range]], lookback: int) -> Samples:
    some = [(days, at) for days, at in asked if len(at)]
    if not some:
        raise ModelError("no decisions to learn from or to validate on")
    return Samples(
        np.concatenate([numbers.windows(days, at, lookback) for days, at in some]),
        np.concatenate([_labels(days, at) for days, at in some]),
        np.concatenate([days.next_return[at.start : at.stop] for days, at in some]),
        tuple(len(at) for _, at in asked),
    )


def log_odds(label: NDArray[np.float32]) -> float:
    """Log odds of up days, drawn towards even by one day of each kind, so that it is finite."""
    up = float(label.sum())
    return math.log((up + 1) / (len(label) - up + 1))


def _labels(days: Days, at: range) -> NDArray[np.float32]:
    label = days.label[at.start : at.stop]
    if np.isnan(label).any():
        raise ModelError("a decision has no label yet", where=f"days {at.start}–{at.stop - 1}")
    return label


def _mean_embeddings(days: Days, index: NDArray[np.int64], none: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean embedding of each day's headlines (len(index), D); ``none`` (D,) for a day without news.

    ModelError where the texts have another width than ``none``: they are another language model's.
    """
    if days.texts.width != len(none):
        got, expected = f"width {days.texts.width}", f"width {len(none)}"
        raise ModelError("these texts are another language model's", got=got, expected=expected)
    means = np.tile(none, (len(index), 1))
    for row, news in enumerate(map(days.news, index)):
        if news.stop > news.start:
            means[row] = days.texts.rows(days.news_text[news]).mean(axis=0, dtype=np.float64)
    return means


def _sentiment(days: Days, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean negative, neutral, positive; share of headlines more positive than negative; log(1 + count) → (…, 5)."""
    numbers = np.zeros((len(index), 5))
    for row, news in enumerate(map(days.news, index)):
        scores = days.news_sentiment[news]
        if len(scores):
            numbers[row, :3] = scores.mean(axis=0, dtype=np.float64)
            numbers[row, 3] = (scores[:, 2] > scores[:, 0]).mean()
            numbers[row, 4] = math.log1p(len(scores))
    return numbers
