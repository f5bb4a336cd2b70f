"""Rivals of FININ that read a day as a handful of numbers: logistic regression and gradient boosting.

Both see the same days as FININ: market features, the day's sentiment in aggregates, its headlines' mean embedding
reduced to a few directions, each over the lookback. A deep model that loses to them should be seen to.
Letters as in models.day_numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Weights
from models.day_numbers import DayNumbers, describe, log_odds
from models.fitting import log_loss
from models.panel import Part
from trader.errors import ModelError

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


class Logistic:
    """Logistic regression on DayNumbers, shrinkage chosen on validation, as a Model and a PooledModel.

    expected_return and news_weights are None.
    """

    def __init__(self, lookback: int = 5) -> None:
        self.lookback = lookback
        self._numbers: DayNumbers | None = None
        self._slope: NDArray[np.float64] = np.zeros(0)  # (t·C + 1,), the constant last

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, choose on ``validation``; see models.base.Model."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Fit one regression for each of PENALTIES, keep the best on validation; nothing is random, seed is unused."""
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self._numbers, learned, unseen = describe(parts, self.lookback)
        x, y = learned.x, learned.label
        best = FitReport(math.inf, 0.0)
        with threadpool_limits(1):  # the rounding of BLAS depends on its threads
            for tried, penalty in enumerate(PENALTIES, start=1):
                slope = np.append(np.zeros(x.shape[1]), log_odds(y))
                if 0 < y.mean() < 1:
                    fitted = LogisticRegression(C=penalty, max_iter=2_000).fit(x.astype(np.float64), y)
                    slope = np.append(fitted.coef_[0], fitted.intercept_)
                loss, accuracy = log_loss(_probability(unseen.x, slope), unseen.label)
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

    Its trees are kept as xgboost's own UBJSON bytes: nothing is unpickled. ModelError where xgboost is not installed.
    Source: Chen and Guestrin 2016.
    """

    def __init__(self, lookback: int = 5) -> None:
        self.lookback = lookback
        self._numbers: DayNumbers | None = None
        self._trees: Any = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, stop on ``validation``; see models.base.Model."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Grow trees on the training decisions until ROUNDS or PATIENCE ends it; keep those up to the best loss."""
        xgboost = _xgboost()
        self._numbers, learned, unseen = describe(parts, self.lookback)
        # The share of up days is stated: xgboost's own estimate of it is infinite where all labels are alike.
        share = 1 / (1 + math.exp(-log_odds(learned.label)))
        grown = xgboost.train(
            TREES | {"seed": seed % 2**31, "base_score": share},
            xgboost.DMatrix(learned.x, learned.label),
            ROUNDS,
            evals=[(xgboost.DMatrix(unseen.x, unseen.label), "validation")],
            early_stopping_rounds=PATIENCE,
            verbose_eval=False,
        )
        self._trees = grown[: grown.best_iteration + 1]
        loss, accuracy = log_loss(self._chances(unseen.x), unseen.label)
        return FitReport(loss, accuracy, grown.num_boosted_rounds(), grown.best_iteration + 1)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast; see models.base.Model."""
        if self._numbers is None:
            raise ModelError("the trees have not been trained", do="call fit or load first")
        return Prediction(self._chances(self._numbers.windows(days, at, self.lookback)))

    def _chances(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, t·C) → P(up) (B,)."""
        return np.asarray(self._trees.predict(_xgboost().DMatrix(x, nthread=1)), np.float64)

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


def _probability(x: NDArray[np.float32], slope: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, t·C) → (B,); row by row without BLAS, so that a row does not depend on its neighbours."""
    return np.array([1 / (1 + math.exp(-float((row * slope[:-1]).sum() + slope[-1]))) for row in x])
