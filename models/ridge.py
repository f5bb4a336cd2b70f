"""The sketch that a reading model has to beat: ridge regression of the return on principal components of the news.

A day is the mean embedding of its headlines; nothing else is read, neither prices nor sentiment.
Letters as in models.base, and
    P principal components kept
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Weights
from models.day_numbers import side_by_side
from models.fitting import log_loss
from trader.errors import ConfigError, ModelError

# Shares of the training days: a penalty of n on a component of unit variance halves its slope.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeConfig:
    """What is chosen before training; ConfigError where a value cannot be used."""

    lookback: int = 5  # t, sessions
    components: int = 40  # P, of each day; fewer where the training days span fewer

    def __post_init__(self) -> None:
        for name in ("lookback", "components"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", where="ridge", got=getattr(self, name), expected="at least 1")


@dataclass(frozen=True, slots=True)
class Components:
    """Turn a day's news into P numbers, by statistics of the TRAINING days alone.

    mean, std: (D,) of the days' mean embeddings.   directions: (D, P) principal directions of the standardised ones,
    each divided by the standard deviation along it; zeros where the training days span fewer.
    """

    mean: Floats
    std: Floats
    directions: Floats

    @classmethod
    def of(cls, days: Days, train: range, components: int) -> Components:
        """Measure on the days of the training decisions."""
        means = _mean_embeddings(days, np.arange(train.start, train.stop))  # (len(train), D)
        some = means[np.isfinite(means[:, 0])]  # days with news
        D, n = days.texts.width, len(some)
        mean, std = (some.mean(axis=0), some.std(axis=0)) if n else (np.zeros(D), np.ones(D))
        std = np.where(std > 1e-12, std, 1.0)
        _, size, rows = np.linalg.svd((some - mean) / std, full_matrices=False)  # (≤ n,), (≤ n, D)
        kept = min(components, int((size > 1e-9 * size.max(initial=0)).sum()))
        directions = np.zeros((D, components))
        directions[:, :kept] = rows[:kept].T / (size[:kept] / math.sqrt(max(n, 1)))  # (D, P)
        return cls(mean, std, directions)

    def windows(self, days: Days, at: Sequence[int] | range, lookback: int) -> Floats:
        """Lay the numbers of each decision's lookback days side by side, oldest first → (B, t·P)."""
        laid: Floats = side_by_side(self._numbers, days, at, lookback)
        return laid

    def _numbers(self, days: Days, index: NDArray[np.int64]) -> Floats:
        """Describe the days ``index`` → (len(index), P); zeros, the mean of training, for a day without news."""
        means = _mean_embeddings(days, index)  # (len(index), D)
        bare = np.diff(days.news_offset)[index] == 0
        standard = np.where(bare[:, None], 0.0, (means - self.mean) / self.std)  # (len(index), D)
        if not np.isfinite(standard).all():
            day = int(index[~np.isfinite(standard).all(axis=1)][0])
            raise ModelError("an embedding is not a number", where=f"day {day}")
        # Day by day, and without BLAS, whose rounding depends on how many days are asked for.
        return np.array([(day[:, None] * self.directions).sum(axis=0) for day in standard])  # (len(index), P)


class Ridge:
    """Ridge regression of the return on Components, penalty chosen on validation; a Model (models.base).

    expected_return is the forecast; p_up = Φ(forecast / σ), σ the residuals' standard deviation in training, so that
    p_up > 0.5 just where the forecast is positive. news_weights is None.
    Source: Hoerl and Kennard 1970.
    """

    def __init__(self, config: RidgeConfig | None = None) -> None:
        self.config = config or RidgeConfig()
        self.lookback = self.config.lookback
        self._components: Components | None = None
        self._slope: Floats = np.zeros(0)  # (t·P + 1,), the constant last
        self._sigma: Floats = np.ones(1)  # (1,)

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Fit one regression for each of PENALTIES, keep the least squared error on validation; seed is unused."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threadpool_limits(1):  # the rounding of BLAS depends on its threads
            components = Components.of(days, train, self.config.components)
            x, y = components.windows(days, train, self.lookback), _returns(days, train)
            unseen, truth = components.windows(days, validation, self.lookback), _returns(days, validation)
            kept, least = 0, math.inf
            for tried, penalty in enumerate(PENALTIES, start=1):
                slope = _regress(x, y, penalty * len(x))
                error = float(np.square(_forecast(unseen, slope) - truth).mean())
                if error < least:
                    kept, least, self._slope = tried, error, slope
        self._components = components
        self._sigma = np.array([max(float((_forecast(x, self._slope) - y).std()), 1e-12)])
        up = days.label[validation.start : validation.stop]
        loss, accuracy = log_loss(self.predict(days, validation).p_up, up)
        return FitReport(loss, accuracy, len(PENALTIES), kept)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast by numpy alone; see models.base.Model."""
        forecast = _forecast(self._trained().windows(days, at, self.lookback), self._slope)
        p_up = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in forecast / self._sigma])
        return Prediction(p_up, expected_return=forecast)

    def weights(self) -> Weights:
        """Return statistics and slopes, float64; ModelError before training."""
        components = self._trained()
        return {
            "news.mean": components.mean.copy(),
            "news.std": components.std.copy(),
            "news.directions": components.directions.copy(),
            "slope": self._slope.copy(),
            "sigma": self._sigma.copy(),
        }

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names or shapes differ."""
        P, D = self.config.components, weights.get("news.mean", np.empty(0)).size
        expected = {"news.mean": (D,), "news.std": (D,), "news.directions": (D, P), "sigma": (1,)}
        expected["slope"] = (self.lookback * P + 1,)
        got = {name: array.shape for name, array in weights.items()}
        if got != expected:
            wrong = sorted(name for name in expected | got if expected.get(name) != got.get(name))
            raise ValueError(f"weights do not fit {self.config}: {', '.join(wrong)}")
        mean, std, directions, slope, sigma = (
            np.array(weights[name], np.float64)
            for name in ("news.mean", "news.std", "news.directions", "slope", "sigma")
        )
        self._components, self._slope, self._sigma = Components(mean, std, directions), slope, sigma

    def _trained(self) -> Components:
        if self._components is None:
            raise ModelError("the regression has not been trained", do="call fit or load first")
        return self._components


def _regress(x: Floats, y: Floats, penalty: float) -> Floats:
    """(B, C), (B,) → (C + 1,) slopes that minimise squared error + penalty · |slope|², the constant free and last."""
    centre, mean = x.mean(axis=0), float(y.mean())
    gram = (x - centre).T @ (x - centre) + penalty * np.eye(x.shape[1])  # (C, C)
    slope = np.linalg.solve(gram, (x - centre).T @ (y - mean))  # (C,)
    return np.append(slope, mean - centre @ slope)


def _forecast(x: Floats, slope: Floats) -> Floats:
    """(B, C) → (B,); row by row without BLAS, so that a row does not depend on its neighbours."""
    return np.array([float((row * slope[:-1]).sum() + slope[-1]) for row in x])


def _returns(days: Days, at: range) -> Floats:
    found = days.next_return[at.start : at.stop]
    if np.isnan(found).any():
        raise ModelError("a decision has no label yet", where=f"days {at.start}–{at.stop - 1}")
    return found


def _mean_embeddings(days: Days, index: NDArray[np.int64]) -> Floats:
    """Mean embedding of each day's headlines (len(index), D); NaN for a day without news."""
    means = np.full((len(index), days.texts.width), np.nan)
    for row, news in enumerate(map(days.news, index)):
        if news.stop > news.start:
            means[row] = days.texts.rows(days.news_text[news]).mean(axis=0, dtype=np.float64)
    return means
