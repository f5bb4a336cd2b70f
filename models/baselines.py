"""Rivals of FININ that read a day as a handful of numbers: logistic regression and gradient boosting.

Both see the same days as FININ: market features, the day's sentiment in aggregates, its headlines' mean embedding
reduced to a few directions, each over the lookback. A deep model that loses to them should be seen to.
Letters as in models.base, and
    C numbers that describe one day   P directions of the mean embedding kept
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Standardiser, Weights
from models.fitting import log_loss
from trader.errors import ModelError

DIRECTIONS = 16  # P
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn's LogisticRegression, strongest shrinkage first
ROUNDS, PATIENCE = 300, 20  # boosting: trees at most, trees without a lower validation loss before it stops
TREES: dict[str, Any] = {  # small trees, slowly: a few hundred samples with a signal near zero
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "max_depth": 3,
    "eta": 0.05,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "min_child_weight": 5,
    "reg_lambda": 1.0,
    "nthread": 1,
    "verbosity": 0,
}


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
    def of(cls, days: Days, train: range) -> DayNumbers:
        """Measure on the days of the training decisions."""
        index = np.arange(train.start, train.stop)
        means = _mean_embeddings(days, index, np.full(days.texts.width, np.nan))
        some = means[~np.isnan(means[:, 0])]  # (≤ len(train), D)
        centre = some.mean(axis=0) if len(some) else np.zeros(means.shape[1])
        _, _, rows = np.linalg.svd(some - centre, full_matrices=False)
        directions = np.zeros((means.shape[1], DIRECTIONS))
        directions[:, : len(rows[:DIRECTIONS])] = rows[:DIRECTIONS].T
        bare = cls(centre, directions, Standardiser(np.zeros(1, np.float32), np.ones(1, np.float32)))
        return cls(centre, directions, Standardiser.of(bare(days, index)))

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
        decisions = np.asarray(at, dtype=np.int64)
        if not len(decisions) or decisions.min() < lookback - 1 or decisions.max() >= len(days):
            expected = f"days {lookback - 1}–{len(days) - 1} (lookback {lookback})"
            raise ModelError("a decision lacks its days", got=decisions[:3].tolist(), expected=expected)
        needed = decisions[:, None] + np.arange(1 - lookback, 1)  # (B, t)
        index, position = np.unique(needed, return_inverse=True)
        laid: NDArray[np.float32] = self(days, index)[position.reshape(needed.shape)]  # (B, t, C)
        return laid.reshape(len(decisions), -1)

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


class Logistic:
    """Logistic regression on DayNumbers, shrinkage chosen on validation; expected_return and news_weights are None."""

    def __init__(self, lookback: int = 5) -> None:
        self.lookback = lookback
        self._numbers: DayNumbers | None = None
        self._slope: NDArray[np.float64] = np.zeros(0)  # (t·C + 1,), the constant last

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Fit one regression for each of PENALTIES, keep the best on validation; nothing is random, seed is unused."""
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threadpool_limits(1):  # the rounding of BLAS depends on its threads
            numbers = self._numbers = DayNumbers.of(days, train)
            x, y = numbers.windows(days, train, self.lookback), _labels(days, train)
            unseen, truth = numbers.windows(days, validation, self.lookback), _labels(days, validation)
            best = FitReport(math.inf, 0.0)
            for tried, penalty in enumerate(PENALTIES, start=1):
                slope = np.append(np.zeros(x.shape[1]), _log_odds(y))
                if 0 < y.mean() < 1:
                    fitted = LogisticRegression(C=penalty, max_iter=2_000).fit(x.astype(np.float64), y)
                    slope = np.append(fitted.coef_[0], fitted.intercept_)
                loss, accuracy = log_loss(_probability(unseen, slope), truth)
                if loss < best.validation_loss:
                    best, self._slope = FitReport(loss, accuracy, len(PENALTIES), tried), slope
        return best

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast by numpy alone; see models.base.Model."""
        if self._numbers is None:
            raise ModelError("the regression has not been trained", do="call fit or load first")
        return Prediction(_probability(self._numbers.windows(days, at, self.lookback), self._slope))

    def weights(self) -> Weights:
        """Return statistics and slopes; ModelError before training."""
        if self._numbers is None:
            raise ModelError("the regression has not been trained", do="call fit or load first")
        return self._numbers.arrays() | {"slope": self._slope}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names or shapes differ."""
        numbers = DayNumbers.from_arrays(weights, {"slope"})
        slope = np.array(weights["slope"], np.float64)
        if slope.shape != (self.lookback * len(numbers.scale.mean) + 1,):
            raise ValueError(f"slope has shape {slope.shape}, not that of lookback {self.lookback}")
        self._numbers, self._slope = numbers, slope


class Boosting:
    """Gradient-boosted trees (xgboost) on DayNumbers, stopped on validation; as Logistic otherwise.

    ModelError where xgboost is not installed. Its trees are kept as xgboost's own UBJSON bytes: nothing is unpickled.
    """

    def __init__(self, lookback: int = 5) -> None:
        self.lookback = lookback
        self._numbers: DayNumbers | None = None
        self._trees: Any = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Grow trees on ``train`` until ROUNDS or PATIENCE ends it; keep those up to the best validation loss."""
        from threadpoolctl import threadpool_limits

        xgboost = _xgboost()
        with threadpool_limits(1):
            numbers = self._numbers = DayNumbers.of(days, train)
        x, y = numbers.windows(days, train, self.lookback), _labels(days, train)
        unseen, truth = numbers.windows(days, validation, self.lookback), _labels(days, validation)
        # The share of up days is stated: xgboost's own estimate of it is infinite where all labels are alike.
        share = 1 / (1 + math.exp(-_log_odds(y)))
        grown = xgboost.train(
            TREES | {"seed": seed % 2**31, "base_score": share},
            xgboost.DMatrix(x, y),
            ROUNDS,
            evals=[(xgboost.DMatrix(unseen, truth), "validation")],
            early_stopping_rounds=PATIENCE,
            verbose_eval=False,
        )
        self._trees = grown[: grown.best_iteration + 1]
        loss, accuracy = log_loss(self.predict(days, validation).p_up, truth)
        return FitReport(loss, accuracy, grown.num_boosted_rounds(), grown.best_iteration + 1)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast; see models.base.Model."""
        if self._numbers is None:
            raise ModelError("the trees have not been trained", do="call fit or load first")
        x = self._numbers.windows(days, at, self.lookback)
        return Prediction(np.asarray(self._trees.predict(_xgboost().DMatrix(x, nthread=1)), np.float64))

    def weights(self) -> Weights:
        """Return statistics and trees, the trees as uint8; ModelError before training."""
        if self._numbers is None:
            raise ModelError("the trees have not been trained", do="call fit or load first")
        return self._numbers.arrays() | {"trees": np.frombuffer(self._trees.save_raw("ubj"), np.uint8)}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or bytes are not these."""
        numbers, xgboost = DayNumbers.from_arrays(weights, {"trees"}), _xgboost()
        trees = xgboost.Booster({"nthread": 1})
        try:
            trees.load_model(bytearray(weights["trees"].tobytes()))
        except xgboost.core.XGBoostError as error:
            raise ValueError("the trees cannot be read") from error
        if trees.num_features() != self.lookback * len(numbers.scale.mean):
            raise ValueError(f"trees of {trees.num_features()} numbers, not those of lookback {self.lookback}")
        self._numbers, self._trees = numbers, trees


def _xgboost() -> Any:
    try:
        import xgboost
    except ImportError as error:
        raise ModelError("gradient boosting needs xgboost", do="install the extra: pip install '.[boost]'") from error
    return xgboost


def _labels(days: Days, at: range) -> NDArray[np.float32]:
    label = days.label[at.start : at.stop]
    if np.isnan(label).any():
        raise ModelError("a decision has no label yet", where=f"days {at.start}–{at.stop - 1}")
    return label


def _log_odds(label: NDArray[np.float32]) -> float:
    """Log odds of up days, drawn towards even by one day of each kind, so that it is finite."""
    up = float(label.sum())
    return math.log((up + 1) / (len(label) - up + 1))


def _probability(x: NDArray[np.float32], slope: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, t·C) → (B,); row by row without BLAS, so that a row does not depend on its neighbours."""
    return np.array([1 / (1 + math.exp(-float((row * slope[:-1]).sum() + slope[-1]))) for row in x])


def _mean_embeddings(days: Days, index: NDArray[np.int64], none: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean embedding of each day's headlines (len(index), D); ``none`` (D,) for a day without news."""
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
