"""Ensemble: an LSTM and a GRU guess the next return; a net learns, on days held out, what their guesses are worth.

Source: Li, Pan, "A novel ensemble deep learning model for stock prediction based on stock prices and news",
International Journal of Data Science and Analytics 13, 2022. Two levels, BLENDED: what the meta-learner learns from
are guesses for days that the base learners have not been fitted to; in-sample guesses would look better than they are.

    training decisions   [ base learners: the first 1 − held_out | gap | meta-learner: the rest ]
    validation           stops all three, and teaches none of them

Where we differ: they predict a price, and score its direction; here the base learners predict the next return (in
standard deviations of the returns taught, cut at ±5) and the meta-learner says P(up). Scales are those of the base
learners' part, so that the days held out are new to the first level in every respect.
The numbers of a day are models.tone.prices_and_indicators; a day's text is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.base import Days, FitReport, Prediction, Standardiser, Weights
from models.fitting import reproducible
from models.sequences import VALUE, Mlp, Recurrent, SequenceConfig, arrays, fit, forecast, load, outputs
from models.tone import Windows, labels, prices_and_indicators
from trader.errors import ConfigError, ModelError

BASE = ("lstm", "gru")
GAP = 1  # decisions left out between the two parts, so that no return taught to the first opens the second


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig(SequenceConfig):
    """What is chosen before training; see SequenceConfig."""

    held_out: float = 0.3  # share of the training decisions, the last of them, that the meta-learner learns from
    meta_learning_rate: float = 1e-2  # AdamW's for the meta-learner, whose days are few and inputs two

    def __post_init__(self) -> None:
        SequenceConfig.__post_init__(self)
        if not 0 < self.held_out < 1:
            raise ConfigError("held_out is not a share", where="ensemble", got=self.held_out, expected="0 < share < 1")


class _Trained(NamedTuple):
    base: dict[str, nn.Module]  # by the names of BASE
    guesses: Standardiser  # of the base learners' guesses, (2,), over the days held out
    meta: nn.Module
    windows: Windows


class Ensemble:
    """Two-level blending as a Model (models.base): fit, predict, weights, load.

    ``lookback`` is config.lookback + config.trailing − 1: what the networks see, and what trailing means need before.
    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(self, config: EnsembleConfig | None = None) -> None:
        self.config = config or EnsembleConfig()
        self.lookback = self.config.lookback + self.config.trailing - 1
        self._trained_: _Trained | None = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Fit both levels; the report is the meta-learner's, whose validation loss is log loss in nats."""
        c = self.config
        first, held = blend(train, c.held_out)
        windows = Windows.of(prices_and_indicators, c.lookback, c.trailing, days, first)
        up, truth = labels(days, held), labels(days, validation)  # (B,) each
        y, returns = _values(days, first, first), _values(days, first, validation)  # (B,) each
        x, unseen = windows(days, first), windows(days, validation)  # (B, t, C) each
        base: dict[str, nn.Module] = {}
        for kind in BASE:
            with reproducible(seed, c.device):
                base[kind] = self._base(kind, x.shape[2])
                fit(base[kind], x, y, unseen, returns, c.recipe, seed, c.device, c.batch, VALUE)
        raw = self._guess(base, windows(days, held))  # (B, 2)
        scale = Standardiser.of(raw)
        guesses, unseen = scale(raw)[:, None], scale(self._guess(base, unseen))[:, None]  # (B, 1, 2) each
        with reproducible(seed, c.device):
            meta = self._meta()
            recipe = replace(c.recipe, learning_rate=c.meta_learning_rate)
            report = fit(meta, guesses, up, unseen, truth, recipe, seed, c.device, c.batch)
        self._trained_ = _Trained(base, scale, meta, windows)
        return report

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``; see models.base.Model."""
        t = self._trained()
        guesses = t.guesses(self._guess(t.base, t.windows(days, at)))  # (B, 2)
        return Prediction(forecast(t.meta, guesses[:, None], self.config.device))

    def weights(self) -> Weights:
        """Return the three networks and the scales between them; ModelError before training."""
        t = self._trained()
        made = arrays(t.meta, "meta") | t.windows.arrays()
        made |= {"guesses.mean": t.guesses.mean.copy(), "guesses.std": t.guesses.std.copy()}
        for kind in BASE:
            made |= arrays(t.base[kind], kind)
        return made

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        c = self.config
        windows = Windows.from_arrays(prices_and_indicators, c.lookback, c.trailing, weights)
        if surplus := {name.partition(".")[0] for name in weights} - {*BASE, "meta", "guesses", "numbers"}:
            raise ValueError(f"weights do not fit: of {sorted(surplus)}, which are none of the ensemble's")
        mean, std = (np.array(weights.get(f"guesses.{name}", np.empty(0))) for name in ("mean", "std"))
        if not all(array.shape == (2,) and array.dtype == np.float32 for array in (mean, std)):
            raise ValueError(f"weights do not fit: guesses {mean.shape} and {std.shape}, expected (2,)")
        with reproducible(0):  # initial weights are drawn, to be overwritten
            base = {kind: self._base(kind, len(windows.scale.mean)) for kind in BASE}
            meta = self._meta()
        for prefix, network in {**base, "meta": meta}.items():
            load(network, weights, prefix)
            network.to(c.device)
        self._trained_ = _Trained(base, Standardiser(mean, std), meta, windows)

    def _base(self, kind: str, C: int) -> nn.Module:
        return Recurrent(kind, C, self.config.hidden, self.config.dropout)

    def _meta(self) -> nn.Module:
        return Mlp(1, len(BASE), self.config.hidden, layers=2, dropout=self.config.dropout)

    def _guess(self, base: Mapping[str, nn.Module], x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what each base learner guesses of windows (B, t, C) → (B, 2)."""
        return np.stack([outputs(base[kind], x, self.config.device) for kind in BASE], axis=1).astype(np.float32)

    def _trained(self) -> _Trained:
        if self._trained_ is None:
            raise ModelError("Ensemble has not been trained", do="call fit or load first")
        return self._trained_


def blend(train: range, held_out: float) -> tuple[range, range]:
    """Split training decisions into the base learners' and, GAP later, the meta-learner's; ModelError if too few.

    >>> blend(range(10, 30), 0.25)
    (range(10, 24), range(25, 30))
    """
    begin = train.stop - round(len(train) * held_out)
    first, held = range(train.start, begin - GAP), range(begin, train.stop)
    if not first or not held:
        raise ModelError("too few decisions to hold some out", got=f"{len(train)} and held_out {held_out}")
    return first, held


def _values(days: Days, first: range, at: range) -> NDArray[np.float32]:
    """Next returns of the decisions ``at`` in standard deviations of those of ``first``, cut at ±5 → (B,)."""
    labels(days, first)  # refuses days whose next close is open
    unit = float(days.next_return[first.start : first.stop].std()) or 1.0
    return (days.next_return[at.start : at.stop] / unit).clip(-5, 5).astype(np.float32)
