"""Rules that learn nothing of a day: buy always, expect the mean, or follow the sign of what the headlines say.

All are Models (models.base), so they stand in every table on the same days as the others. A rule is no probability:
its p_up is 1 for long, 0 for short and 0.5 for out of the market, and its log loss means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Weights
from models.fitting import log_loss
from models.panel import Part
from models.tone import labels, tone
from trader.errors import ConfigError, ModelError

LONG, OUT, SHORT = 1.0, 0.5, 0.0
ON_ZERO = {"buy": LONG, "out": OUT}


class AlwaysBuy:
    """Long every day: what any forecast has to beat."""

    def __init__(self, lookback: int = 1) -> None:
        """lookback: days that a decision must have, so that all methods of a table decide on the same ones."""
        if lookback < 1:
            raise ConfigError("lookback is too small", where="always_buy", got=lookback, expected="at least 1")
        self.lookback = lookback

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn nothing; report how the rule does on ``validation``."""
        return FitReport(*log_loss(self.predict(days, validation).p_up, labels(days, validation)))

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Say up for each of the decisions ``at``; ModelError where one lacks its days."""
        _require(days, at, self.lookback)
        return Prediction(np.full(len(at), LONG))

    def weights(self) -> Weights:
        """Return nothing: there is nothing to keep."""
        return {}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take nothing; ValueError where there is something."""
        _require_none(weights)


class MeanReturn:
    """Expect the training days' mean return and their share of rises every day: what every forecast has to beat.

    It needs no input. As a PooledModel it takes the mean over all symbols' training decisions.
    """

    def __init__(self, lookback: int = 1) -> None:
        """lookback: days that a decision must have, so that all methods of a table decide on the same ones."""
        if lookback < 1:
            raise ConfigError("lookback is too small", where="mean_return", got=lookback, expected="at least 1")
        self.lookback = lookback
        self._means: NDArray[np.float64] | None = None  # (2,): P(up), return

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Take both means over ``train``; report how they do on ``validation``."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Take both means over the training decisions of all parts; see models.panel."""
        up = np.concatenate([labels(part.days, part.train) for part in parts])
        came = np.concatenate([part.days.next_return[part.train.start : part.train.stop] for part in parts])
        if not len(up):
            raise ModelError("no decisions to learn from")
        self._means = np.array([(up.sum() + 1) / (len(up) + 2), came.mean()])  # never certain: one more of each kind
        truth = np.concatenate([labels(part.days, part.validation) for part in parts])
        return FitReport(*log_loss(np.full(len(truth), self._means[0]), truth))

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Say the same of each of the decisions ``at``; ModelError where one lacks its days."""
        if self._means is None:
            raise ModelError("the means have not been taken", do="call fit or load first")
        _require(days, at, self.lookback)
        return Prediction(np.full(len(at), self._means[0]), np.full(len(at), self._means[1]))

    def weights(self) -> Weights:
        """Return both means; ModelError before training."""
        if self._means is None:
            raise ModelError("the means have not been taken", do="call fit or load first")
        return {"means": self._means}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names or shapes differ."""
        if set(weights) != {"means"} or weights["means"].shape != (2,):
            raise ValueError(f"weights do not fit: got {', '.join(sorted(weights))}, expected two means")
        self._means = np.array(weights["means"], np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToneSignConfig:
    """What is chosen before the first decision; ConfigError where a value cannot be used."""

    lookback: int = 5  # sessions whose headlines vote
    on_zero: str = "buy"  # where good and bad balance: "buy", the side that a market pays for; "out" of the market

    def __post_init__(self) -> None:
        if self.lookback < 1:
            raise ConfigError("lookback is too small", where="tone_sign", got=self.lookback, expected="at least 1")
        if self.on_zero not in ON_ZERO:
            raise ConfigError("no such choice", where="on_zero", got=self.on_zero, expected=", ".join(ON_ZERO))


class ToneSign:
    """Follow the sign of the headlines' mean score over the lookback; nothing is trained.

    A headline scores +1 where its probability of positive exceeds that of negative, −1 where it is below, 0 where
    they are equal (a chat model's UNKNOWN); a day its headlines' mean, 0 without any; the side is the sign of the
    mean of the lookback's days. Averages are exact fractions: ⅓ + ⅓ − ⅔ is a tie.

    Source: Lopez-Lira, Tang, "Can ChatGPT Forecast Stock Price Movements?", 2023, whose scores come from a chat model
    and whose position is held a day; the lookback is FININ's (arXiv 2410.10614). Who scored is not known here.
    """

    def __init__(self, config: ToneSignConfig | None = None) -> None:
        self.config = config or ToneSignConfig()
        self.lookback = self.config.lookback

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn nothing; report how the rule does on ``validation``."""
        return FitReport(*log_loss(self.predict(days, validation).p_up, labels(days, validation)))

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Say up, down or neither for each of the decisions ``at``; ModelError for NaN scores or days that lack."""
        _require(days, at, self.lookback)
        first = min(at) - self.lookback + 1
        said = tone(days, range(first, max(at) + 1))
        net, items = said.positive - said.negative, said.items  # whole numbers, (S,) each
        scores = [Fraction(int(n), max(1, int(of))) for n, of in zip(net, items, strict=True)]
        sides = {-1: SHORT, 0: ON_ZERO[self.config.on_zero], 1: LONG}
        totals = [sum(scores[day - first - self.lookback + 1 : day - first + 1]) for day in at]
        return Prediction(np.array([sides[(total > 0) - (total < 0)] for total in totals]))

    def weights(self) -> Weights:
        """Return nothing: there is nothing to keep."""
        return {}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take nothing; ValueError where there is something."""
        _require_none(weights)


def _require(days: Days, at: Sequence[int], lookback: int) -> None:
    if not len(at):
        raise ModelError("no decisions to forecast")
    if min(at) < lookback - 1 or max(at) >= len(days):
        expected = f"days {lookback - 1}–{len(days) - 1}"
        raise ModelError(f"a decision lacks its {lookback} days", got=f"days {min(at)}–{max(at)}", expected=expected)


def _require_none(weights: Mapping[str, NDArray[np.generic]]) -> None:
    if weights:
        raise ValueError(f"weights do not fit: a rule has none, got {', '.join(sorted(weights)[:5])}")
