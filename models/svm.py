"""Support vector machine on daily numbers, for the next movement: a baseline of MSMF's table 2.

    DayNumbers of the lookback days ── RBF kernel over the support vectors ──→ decision value ── sigmoid ──→ P(up)

Letters as in models.day_numbers, and
    N support vectors   n = t·C numbers of a decision

Source: Cortes and Vapnik 1995; the sigmoid is Platt's 1999.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Weights
from models.day_numbers import DayNumbers, describe, log_odds
from models.fitting import log_loss
from models.panel import Part
from trader.errors import ConfigError, ModelError

Floats = NDArray[np.float64]

COSTS = (0.1, 1.0, 10.0)  # C of scikit-learn's SVC, what a unit of slack costs
WIDTHS = (0.3, 1.0, 3.0)  # gamma times n: 1 is scikit-learn's "scale" for numbers of unit variance
HELD_OUT = 5  # one in five of a symbol's training decisions, its last, tells the sigmoid


@dataclass(frozen=True, slots=True, kw_only=True)
class SvmConfig:
    """What is chosen before training; ConfigError where a value cannot be used."""

    lookback: int = 5  # t, sessions
    rows: int = 4_000  # training decisions at most, evenly spaced over all of them: the time grows as their square

    def __post_init__(self) -> None:
        if self.lookback < 1:
            raise ConfigError("lookback is too small", where="svm", got=self.lookback, expected="at least 1")
        if self.rows < 10:
            raise ConfigError("rows is too small", where="svm", got=self.rows, expected="at least 10")


@dataclass(frozen=True, slots=True)
class Machine:
    """f(x) = Σ_i coefficient_i · exp(−gamma · |x − vector_i|²) + intercept.

    vectors: (N, n) float32.   coefficients: (N,), the dual ones times the labels ±1.   N may be 0.
    """

    vectors: NDArray[np.float32]
    coefficients: Floats
    intercept: float
    gamma: float

    @classmethod
    def fit(cls, x: NDArray[np.float32], label: NDArray[np.float32], cost: float, gamma: float) -> Machine:
        """Fit to x (B, n) with labels 0 and 1 (B,); where all labels are alike, the machine that says 0."""
        from sklearn.svm import SVC

        if not 0 < label.mean() < 1:
            return cls(x[:0], np.zeros(0), 0.0, gamma)
        fitted = SVC(C=cost, kernel="rbf", gamma=gamma).fit(x.astype(np.float64), label)
        vectors = fitted.support_vectors_.astype(np.float32)  # exact: they were float32
        return cls(vectors, fitted.dual_coef_[0].copy(), float(fitted.intercept_[0]), gamma)

    def decide(self, x: NDArray[np.float32]) -> Floats:
        """(B, n) → (B,); row by row without BLAS, so that a row does not depend on its neighbours."""
        vectors = self.vectors.astype(np.float64)
        squares = np.einsum("ij,ij->i", vectors, vectors)  # (N,)
        decided = np.empty(len(x))
        for at, row in enumerate(x.astype(np.float64)):
            distances = squares - 2 * np.einsum("ij,j->i", vectors, row) + np.einsum("j,j->", row, row)  # (N,)
            decided[at] = (self.coefficients * np.exp(-self.gamma * distances)).sum() + self.intercept
        return decided


def platt(decided: Floats, label: NDArray[np.float32]) -> tuple[float, float]:
    """Return slope and offset of P(up) = σ(slope · f + offset) by maximum likelihood, from decision values f (B,).

    A label counts as (ups + 1)/(ups + 2) or 1/(downs + 2), as Platt has it, so that the answer is finite.

    >>> slope, offset = platt(np.array([-1.0, -1.0, 1.0, 1.0]), np.array([0, 0, 1, 1], dtype=np.float32))
    >>> round(slope, 6) == round(math.log(3), 6), abs(offset) < 1e-9
    (True, True)
    """
    from sklearn.linear_model import LogisticRegression

    if not np.ptp(decided):
        return 0.0, log_odds(label)
    up, B = float((label > 0.5).sum()), len(label)
    target = np.where(label > 0.5, (up + 1) / (up + 2), 1 / (B - up + 2))  # (B,)
    # Each decision stands there twice, as a rise with the weight of its target and as a fall with the rest.
    twice, kinds, weights = np.tile(decided, 2)[:, None], np.repeat([1, 0], B), np.concatenate([target, 1 - target])
    fitted = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(twice, kinds, weights)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


class Svm:
    """SVM with an RBF kernel on DayNumbers, cost and width chosen on validation, as a Model and a PooledModel.

    The sigmoid never meets a decision that its machine was fitted to, nor one of validation: of each symbol's training
    decisions the last fifth is held out, the one before it left away, and a machine on the rest decides the held out.
    What is kept is a machine on all of them under that sigmoid. Where the decision values say nothing of the held-out
    labels (a slope of 0 or less), P(up) is the share of ups in training: a machine that misleads is not turned around.
    More than ``rows`` training decisions are thinned to that many, evenly spaced. Nothing is random.
    expected_return and news_weights are None. ModelError where it is untrained, where a decision lacks its days or its
    label, where a number is none.
    """

    def __init__(self, config: SvmConfig | None = None) -> None:
        self.config = config or SvmConfig()
        self.lookback = self.config.lookback
        self._kept: tuple[DayNumbers, Machine, tuple[float, float]] | None = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, choose by the log loss of ``validation``; see models.base.Model."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Learn from several symbols at once; see models.panel. FitReport: choices tried, and which was kept."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        numbers, learned, unseen = describe(parts, self.lookback)
        every, first, held_out = split(learned.counts, self.config.rows)
        x, y = learned.x, learned.label
        best, tried = FitReport(math.inf, 0.0), 0
        with threadpool_limits(1):  # the rounding of BLAS depends on its threads
            for cost in COSTS:
                for width in WIDTHS:
                    tried += 1
                    gamma = width / x.shape[1]
                    sigmoid = 0.0, log_odds(y)  # of the share of ups in training
                    if len(held_out) and 0 < y[first].mean() < 1:
                        apart = Machine.fit(x[first], y[first], cost, gamma)
                        found = platt(apart.decide(x[held_out]), y[held_out])
                        sigmoid = found if found[0] > 0 else sigmoid
                    machine = Machine.fit(x[every], y[every], cost, gamma)
                    loss, accuracy = log_loss(_chances(machine.decide(unseen.x), sigmoid), unseen.label)
                    if loss < best.validation_loss:
                        best = FitReport(loss, accuracy, len(COSTS) * len(WIDTHS), tried)
                        self._kept = numbers, machine, sigmoid
        return best

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast by numpy alone; see models.base.Model."""
        numbers, machine, sigmoid = self._trained()
        return Prediction(_chances(machine.decide(numbers.windows(days, at, self.lookback)), sigmoid))

    def weights(self) -> Weights:
        """Return statistics, support vectors and sigmoid as arrays; ModelError before training."""
        numbers, machine, sigmoid = self._trained()
        return numbers.arrays() | {
            "svm.vectors": machine.vectors.copy(),
            "svm.coefficients": machine.coefficients.copy(),
            "svm.intercept": np.array([machine.intercept]),
            "svm.gamma": np.array([machine.gamma]),
            "svm.sigmoid": np.array(sigmoid),
        }

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names or shapes differ."""
        names = ("vectors", "coefficients", "intercept", "gamma", "sigmoid")
        numbers = DayNumbers.from_arrays(weights, {f"svm.{name}" for name in names})
        n, N = self.lookback * len(numbers.scale.mean), weights["svm.coefficients"].size
        expected = dict(zip(names, ((N, n), (N,), (1,), (1,), (2,)), strict=True))
        for name, shape in expected.items():
            if (got := weights[f"svm.{name}"].shape) != shape:
                what = f"svm.{name} has shape {got}, expected {shape}"
                raise ValueError(f"weights do not fit lookback {self.lookback}: {what}")
        coefficients, intercept, gamma, sigmoid = (np.array(weights[f"svm.{name}"], np.float64) for name in names[1:])
        vectors = np.array(weights["svm.vectors"], np.float32)
        machine = Machine(vectors, coefficients, float(intercept[0]), float(gamma[0]))
        self._kept = numbers, machine, (float(sigmoid[0]), float(sigmoid[1]))

    def _trained(self) -> tuple[DayNumbers, Machine, tuple[float, float]]:
        if self._kept is None:
            raise ModelError("the SVM has not been trained", do="call fit or load first")
        return self._kept


def split(counts: Sequence[int], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return which training decisions are learned from, which of them decide the held-out ones, and which are these.

    counts: decisions of each symbol, which follow one another, oldest first.   most: decisions in all; more are thinned
    evenly. Of each symbol's the last fifth is held out, and the one before it does not decide them: its label is in
    the bar of the first held out. A symbol of fewer than five has none held out.

    >>> [rows.tolist() for rows in split([6, 5], 100)]
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 6, 7, 8], [5, 10]]
    """
    total = sum(counts)
    kept = np.arange(total) if total <= most else np.arange(most) * total // most
    own = np.split(kept, np.searchsorted(kept, np.cumsum(counts)[:-1]))  # a symbol's decisions each
    first = [part[: max(0, len(part) - len(part) // HELD_OUT - 1)] if len(part) >= HELD_OUT else part for part in own]
    held_out = [part[len(part) - len(part) // HELD_OUT :] for part in own]
    return kept, np.concatenate(first), np.concatenate(held_out)


def _chances(decided: Floats, sigmoid: tuple[float, float]) -> Floats:
    """Decision values (B,) → P(up) (B,); never overflows."""
    return np.array([0.5 + 0.5 * math.tanh((sigmoid[0] * one + sigmoid[1]) / 2) for one in decided])
