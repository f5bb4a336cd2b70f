"""A rival that gets what FININ's pretraining gets: it first learns to read how the SAME day went, then looks ahead.

    the day's news ── ridge regression of the day's own return ──→ reading score
    reading scores of the lookback days + models.day_numbers.DayNumbers ── logistic regression ──→ P(up)

Closing reports describe the day's move, so words can be learned from it far better than from the next day's. The day's
own bar is kept out of the reading. Letters as in models.base, and
    C numbers that describe one day, as in models.day_numbers: F of the market, then those of the news
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Weights
from models.baselines import Logistic
from models.day_numbers import DayNumbers
from models.joined import joined
from models.panel import Part
from models.ridge import PENALTIES
from trader.errors import ModelError

BLOCKS = 5  # contiguous parts of the training days, each read by a regression that has not seen it
_AHEAD = "ahead."  # before the names of the second step's weights

Floats = NDArray[np.float64]


class SameDayLogistic:
    """Logistic regression on DayNumbers and, for each lookback day, a score of how its news say that day went.

    The score's regression reads the numbers of the day's news alone, not its bar. It learns inside the training span:
    of the training days but the first, whose own return belongs to the day before it. On the days of one
    market the second step never meets a score that has seen its label: the training days are scored in BLOCKS by
    regressions that leave out the block and the ``lookback`` days after it; every other day, in validation and
    forecasts, by the regression on all of them. (Of markets laid one after the other, each day has a twin elsewhere.)
    expected_return and news_weights are None.
    """

    def __init__(self, lookback: int = 5) -> None:
        self.lookback = lookback
        self._numbers: DayNumbers | None = None
        self._reading: Floats = np.zeros(0)  # (C + 1,), zeros for the market, the constant last
        self._ahead = Logistic(lookback)

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn to read, then to look ahead; both penalties are chosen on validation, nothing is random.

        The reading's has the least squared error of the own returns of the validation days but the first.
        """
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        for part in (train, validation):
            self._check(days, part)
        with threadpool_limits(1):  # the rounding of BLAS depends on its threads
            numbers = self._numbers = DayNumbers.of([Part(days, train, validation)])
            needed = np.union1d(self._days_of(train), self._days_of(validation))
            known = np.zeros((len(days), len(numbers.scale.mean)))  # (S, C), of days that nobody asks for zeros
            known[needed] = numbers(days, needed)
            known[:, : days.market.shape[1]] = 0  # the day's own bar
            penalty, self._reading = _read(known, days.next_return, train, validation)
            scores = scored_apart(known, days.next_return, train, self.lookback, penalty)
        learned = _with_scores(days, self._days_of(train), scores)
        asked = self._days_of(validation)
        unseen = _with_scores(days, asked, _scores(known[asked], self._reading))
        seam, before = len(learned), self.lookback - 1
        both = range(before, seam), range(seam + before, seam + len(unseen))
        return self._ahead.fit(joined([learned, unseen]), *both, seed)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast by numpy alone; see models.base.Model."""
        numbers = self._trained()
        self._check(days, at, labelled=False)
        first, stop = min(at) - self.lookback + 1, max(at) + 1
        needed = np.unique(np.asarray(at, dtype=np.int64)[:, None] + np.arange(1 - self.lookback, 1))
        scores = np.zeros(stop - first)  # of other days nothing is asked
        scores[needed - first] = _scores(numbers(days, needed).astype(np.float64), self._reading)
        laid = _with_scores(days, np.arange(first, stop), scores)
        return self._ahead.predict(laid, [day - first for day in at])

    def weights(self) -> Weights:
        """Return statistics and slopes of both steps; ModelError before training."""
        own = self._trained().arrays() | {"reading": self._reading.copy()}
        return own | {_AHEAD + name: array for name, array in self._ahead.weights().items()}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names or shapes differ."""
        ahead = {name.removeprefix(_AHEAD): array for name, array in weights.items() if name.startswith(_AHEAD)}
        own = {name: array for name, array in weights.items() if not name.startswith(_AHEAD)}
        numbers, second = DayNumbers.from_arrays(own, {"reading"}), Logistic(self.lookback)
        second.load(ahead)
        reading, C = np.array(weights["reading"], np.float64), len(numbers.scale.mean)
        if reading.shape != (C + 1,) or ahead["numbers.mean"].shape != (C + 1,):
            got = f"reading {reading.shape}, the second step's numbers {ahead['numbers.mean'].shape}"
            raise ValueError(f"weights do not fit: {got}, expected {(C + 1,)}")
        self._numbers, self._reading, self._ahead = numbers, reading, second

    def _days_of(self, at: range) -> NDArray[np.int64]:
        """Return the days that decisions read."""
        return np.arange(at.start - self.lookback + 1, at.stop)

    def _check(self, days: Days, at: Sequence[int], labelled: bool = True) -> None:
        first, last = self.lookback - 1, len(days) - 1
        if not len(at) or min(at) < first or max(at) > last:
            raise ModelError("a decision lacks its days", got=list(at[:3]), expected=f"days {first}–{last}")
        if labelled and np.isnan(days.next_return[list(at)]).any():
            raise ModelError("a decision has no label yet", where=f"days {min(at)}–{max(at)}")

    def _trained(self) -> DayNumbers:
        if self._numbers is None:
            raise ModelError("the regression has not been trained", do="call fit or load first")
        return self._numbers


def _read(known: Floats, next_return: Floats, train: range, validation: range) -> tuple[float, Floats]:
    """Fit one regression for each of PENALTIES → the one that validation likes best, and its slopes (C + 1,)."""
    able, asked = np.arange(train.start + 1, train.stop), np.arange(validation.start + 1, validation.stop)
    slopes = {penalty: _regress(known, next_return, able, penalty) for penalty in PENALTIES}
    truth = next_return[asked - 1]
    errors = {penalty: float(np.square(_scores(known[asked], slopes[penalty]) - truth).sum()) for penalty in PENALTIES}
    best = min(errors, key=lambda penalty: errors[penalty])
    return best, slopes[best]


def scored_apart(known: Floats, next_return: Floats, train: range, lookback: int, penalty: float) -> Floats:
    """Score the days that training decisions read (lookback − 1 + len(train),), each by labels other than its own.

    known: (S, C) numbers of the days' news.   next_return: (S,).
    The days are cut into BLOCKS; each is read by a regression that leaves out the block and ``lookback`` days after it:
    a decision that reads a day of the block has its label in the own return of at most that many days later.
    """
    able, scores = np.arange(train.start + 1, train.stop), []
    for block in np.array_split(np.arange(train.start - lookback + 1, train.stop), BLOCKS):
        if len(block):
            others = able[(able < block[0]) | (able > block[-1] + lookback)]
            scores.append(_scores(known[block], _regress(known, next_return, others, penalty)))
    return np.concatenate(scores)


def _regress(known: Floats, next_return: Floats, at: NDArray[np.int64], penalty: float) -> Floats:
    """Regress the own returns of the days ``at`` on the numbers ``known`` of them → slopes (C + 1,)."""
    from sklearn.linear_model import Ridge

    if not len(at):
        return np.zeros(known.shape[1] + 1)
    fitted = Ridge(alpha=penalty * len(at), solver="cholesky").fit(known[at], next_return[at - 1])
    return np.append(fitted.coef_, fitted.intercept_)  # of a column of zeros the slope is 0


def _scores(known: Floats, slope: Floats) -> Floats:
    """(B, C) → (B,); row by row without BLAS, so that a row does not depend on its neighbours."""
    return np.array([float((row * slope[:-1]).sum() + slope[-1]) for row in known])


def _with_scores(days: Days, at: NDArray[np.int64], scores: Floats) -> Days:
    """Return the consecutive days ``at`` alone, their scores behind their market features: (len(at), F + 1)."""
    own = days.between(int(at[0]), int(at[-1]) + 1)
    return replace(own, market=np.column_stack([own.market, scores]).astype(np.float32))
