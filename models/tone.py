"""The tone of a day's headlines as daily numbers, and windows of such numbers for the models that read no text.

A headline's tone is its probability of positive minus that of negative; it is a positive item where that is above
zero, a negative one where below. Everything is computed from days up to and including the day it describes.

Trailing means run over ``trailing`` sessions that END with the day itself, so a day's numbers need the trailing − 1
days before it as well, and a decision over t such days needs ``lookback`` = t + trailing − 1. Because the day is part
of its own mean, a number of items is at most ``trailing`` times its mean, and the mean is 0 only where the day is.

Source: the indicators that Wang et al. 2018, Mohan et al. 2019 and Jing et al. 2021 draw from headlines scored one by
one; the frequencies of Huynh & Smith 2017, "Stock Price Reaction to News: The Joint Effect of Tone and Attention on
Momentum". Both in the shape that a baseline of FININ (arXiv 2410.10614) has; no paper fixes every number here, and
what each is stands where it is made.

Letters, beside those of models.base (S F B t):
    C numbers that describe one day
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.base import Days, Standardiser, Weights
from trader.errors import ModelError

Array = NDArray[np.float64]
Measure = Callable[[Days, range, int], Array]  # (days, span, trailing) → (len(span), C)


class Tone(NamedTuple):
    """The headlines of S days in numbers; zeros on a day without any."""

    items: Array  # (S,) headlines
    positive: Array  # (S,) items whose tone is above zero
    negative: Array  # (S,) items whose tone is below zero
    scores: Array  # (S, 3) mean probability of negative, neutral, positive
    spread: Array  # (S,) standard deviation of the items' tones

    @property
    def mean(self) -> Array:
        """(S,) mean tone, −1 … 1."""
        return np.asarray(self.scores[:, 2] - self.scores[:, 0])


def tone(days: Days, span: range) -> Tone:
    """Measure the days of ``span``; ModelError naming the day where a score is not a number."""
    S = len(span)
    counts, scores, spread = np.zeros((S, 3)), np.zeros((S, 3)), np.zeros(S)
    for row, day in enumerate(span):
        rows = days.news_sentiment[days.news(day)].astype(np.float64)  # (N, 3)
        if not np.isfinite(rows).all():
            raise ModelError("a headline's sentiment is not a number", where=f"day {day}", do="score the news again")
        if len(rows):
            each = rows[:, 2] - rows[:, 0]  # (N,)
            counts[row] = len(rows), (each > 0).sum(), (each < 0).sum()
            scores[row], spread[row] = rows.mean(axis=0), each.std()
    return Tone(counts[:, 0], counts[:, 1], counts[:, 2], scores, spread)


def indicators(days: Days, span: range, trailing: int) -> Array:
    """Describe each day of ``span`` by its tone, and by the change of that → (len(span), 16).

    Eight numbers: mean negative, neutral and positive; (P − N)/(P + N) of the numbers of positive and negative items;
    share of positive items; standard deviation of the tones; number of items; log(1 + number). Then each less its
    mean over the ``trailing`` sessions that end with the day. The first six have no value on a day without news: such
    a day is left out of their means, and has its mean for a value, so no change (0 where no day of them had news).
    """
    said = tone(days, reach(span, trailing))
    some = said.items > 0  # (S,)
    balance = _ratio(said.positive - said.negative, said.positive + said.negative)
    share = _ratio(said.positive, said.items)
    of_items = np.column_stack([said.scores, balance, share, said.spread])  # (S, 6)
    logs = np.array([math.log1p(n) for n in said.items])
    of_days = np.column_stack([said.items, logs])  # (S, 2)
    usual = trailing_mean(of_items, trailing, some)  # (len(span), 6)
    of_items = np.where(some[trailing - 1 :, None], of_items[trailing - 1 :], usual)  # (len(span), 6)
    of_days, usual_days = of_days[trailing - 1 :], trailing_mean(of_days, trailing)  # (len(span), 2) each
    return np.concatenate([of_items, of_days, of_items - usual, of_days - usual_days], axis=1)  # (len(span), 16)


def frequencies(days: Days, span: range, trailing: int) -> Array:
    """Describe each day of ``span`` by how often news of either tone appears → (len(span), 8).

    For positive, then for negative items: their number; their abnormal frequency, the number over its mean of the
    ``trailing`` sessions that end with the day (1 where none of these had any: as quiet as ever); both times the
    day's mean tone.
    """
    said = tone(days, reach(span, trailing))
    counts = np.column_stack([said.positive, said.negative])  # (S, 2)
    number, usual = counts[trailing - 1 :], trailing_mean(counts, trailing)  # (len(span), 2) each
    abnormal = np.where(usual > 0, _ratio(number, usual), 1.0)  # (len(span), 2)
    mean = said.mean[trailing - 1 :, None]  # (len(span), 1)
    columns = np.stack([number, abnormal, number * mean, abnormal * mean], axis=2)  # (len(span), 2, 4)
    return columns.reshape(len(span), 8)


def prices_and_indicators(days: Days, span: range, trailing: int) -> Array:
    """Describe each day of ``span`` by its market features, then its indicators → (len(span), F + 16)."""
    return np.concatenate([days.market[span.start : span.stop], indicators(days, span, trailing)], axis=1)


def reach(span: range, trailing: int) -> range:
    """Return ``span`` with the trailing − 1 days before it that its trailing means need."""
    return range(span.start - trailing + 1, span.stop)


def trailing_mean(numbers: Array, trailing: int, some: NDArray[np.bool_] | None = None) -> Array:
    """Mean of each ``trailing`` consecutive rows (S, C) → (S − trailing + 1, C), the row itself the last of them.

    some: (S,) the rows that count; a mean of none is 0. Summed oldest first whatever S, so a day's bits are its own.

    >>> trailing_mean(np.array([[1.0], [3.0], [8.0]]), 2).tolist()
    [[2.0], [5.5]]
    """
    weight = np.ones((len(numbers), 1)) if some is None else some[:, None].astype(np.float64)  # (S, 1)
    rows, weighed = len(numbers) - trailing + 1, numbers * weight
    total, counted = np.zeros((rows, numbers.shape[1])), np.zeros((rows, 1))
    for lag in range(trailing):
        total += weighed[lag : lag + rows]
        counted += weight[lag : lag + rows]
    return _ratio(total, counted)


def _ratio(above: Array, below: Array) -> Array:
    """Divide, 0 where ``below`` is 0."""
    return np.asarray(above / np.where(below > 0, below, 1.0) * (below > 0))


@dataclass(frozen=True, slots=True)
class Windows:
    """Lay the numbers of each decision's last t days in a window (t, C), standardised on the TRAINING days.

    measure: makes the numbers that describe a day.   t: days of a window.   trailing: sessions of its trailing means.
    scale: mean and std (C,) of each number over the training days; what never varied there stays unscaled.
    """

    measure: Measure
    t: int
    trailing: int
    scale: Standardiser

    @classmethod
    def of(cls, measure: Measure, t: int, trailing: int, days: Days, train: range) -> Windows:
        """Measure the scale on the days of the training decisions."""
        bare = cls(measure, t, trailing, Standardiser(np.zeros(1, np.float32), np.ones(1, np.float32)))
        bare.require(days, train)
        return cls(measure, t, trailing, Standardiser.of(bare.numbers(days, train)))

    @property
    def lookback(self) -> int:
        """Sessions that a decision reads: its t days and what the first of them needs for its trailing means."""
        return self.t + self.trailing - 1

    def numbers(self, days: Days, span: range) -> NDArray[np.float32]:
        """Describe the days of ``span`` → (len(span), C), not standardised; ModelError naming a day with NaN."""
        made = self.measure(days, span, self.trailing).astype(np.float32)  # (len(span), C)
        if not (finite := np.isfinite(made).all(axis=1)).all():
            day = span[int(np.argmin(finite))]
            raise ModelError("a market number is not a number", where=f"day {day}", do="look for NaN in its bar")
        return made

    def __call__(self, days: Days, at: Sequence[int]) -> NDArray[np.float32]:
        """Return the windows of the decisions ``at`` → (B, t, C), oldest day first; ModelError where days lack."""
        self.require(days, at)
        first = min(at) - self.t + 1
        numbers = self.numbers(days, range(first, max(at) + 1))  # (days, C)
        if numbers.shape[1] != len(self.scale.mean):
            raise ModelError("these days have other numbers", got=numbers.shape[1], expected=len(self.scale.mean))
        standard = self.scale(numbers).clip(-5, 5)  # (days, C); a crash is rare, not 20 σ
        place = np.asarray(at, dtype=np.int64)[:, None] + np.arange(1 - self.t, 1) - first  # (B, t)
        laid: NDArray[np.float32] = standard[place]  # (B, t, C)
        return laid

    def require(self, days: Days, at: Sequence[int]) -> None:
        """Raise ModelError unless every decision has its ``lookback`` days."""
        if not len(at):
            raise ModelError("no decisions to learn from or to forecast")
        first, last = self.lookback - 1, len(days) - 1
        if min(at) < first or max(at) > last:
            what = f"a decision lacks its {self.lookback} days, {self.t} and {self.trailing - 1} for trailing means"
            raise ModelError(what, got=f"days {min(at)}–{max(at)}", expected=f"days {first}–{last}")

    def arrays(self) -> Weights:
        """Return the statistics as arrays by name."""
        return {"numbers.mean": self.scale.mean.copy(), "numbers.std": self.scale.std.copy()}

    @classmethod
    def from_arrays(
        cls, measure: Measure, t: int, trailing: int, weights: Mapping[str, NDArray[np.generic]]
    ) -> Windows:
        """Take what ``arrays`` returned; ValueError where one is missing, or their shapes or dtypes do not fit."""
        mean, std = (np.array(weights.get(f"numbers.{name}", np.empty(()))) for name in ("mean", "std"))
        if mean.ndim != 1 or mean.shape != std.shape or not mean.dtype == std.dtype == np.float32:
            raise ValueError(f"weights do not fit: numbers.mean {mean.shape}, numbers.std {std.shape}, one is no (C,)")
        return cls(measure, t, trailing, Standardiser(mean, std))


def labels(days: Days, at: range) -> NDArray[np.float32]:
    """Return the labels of the decisions ``at`` → (B,); ModelError where a close is not known yet."""
    label = days.label[at.start : at.stop]  # (B,)
    if np.isnan(label).any():
        raise ModelError(
            "a decision has no label yet",
            where=f"days {at.start}–{at.stop - 1}",
            do="leave out days whose next close is open",
        )
    return label
