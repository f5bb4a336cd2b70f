"""LSTM, GRU and Transformer on daily numbers, for the next return: what MSMF's return is compared with.

All three read models.day_numbers.DayNumbers of the lookback days as a sequence, oldest first, and give one number, the
next return in standard deviations of the training returns. Read top to bottom: configurations, networks, then
``SequenceReturn``, which feeds them.

Source: table 1 of Qin, "MSMF", names them and says no more. LSTM: Hochreiter and Schmidhuber 1997; GRU: Cho et al.
2014; Transformer: the encoder of Vaswani et al. 2017, with learned positions, GELU, and norms before the sublayers
(Xiong et al. 2020). Sizes, loss and training are ours.

Letters, beside those of models.base (B t H):
    C numbers that describe one day
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Days, FitReport, Prediction, Weights
from models.day_numbers import DayNumbers, Samples, describe
from models.fitting import log_loss, reproducible
from models.panel import Part
from models.sequences import RECURRENT, VALUE, NetworkConfig, Objective, arrays, fit, load, outputs
from trader.errors import ConfigError, ModelError

# Huber's loss of the standardised return, as MSMF's: a crash weighs by its size, not by its square.
# Stopped on the mean squared error, in which table 1 is told.
RETURN = Objective(F.huber_loss, VALUE.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceReturnConfig(NetworkConfig):
    """What is chosen before training; ConfigError where a value cannot be used."""

    layers: int = 1  # one on the other, dropout between them

    at_least_one: ClassVar[tuple[str, ...]] = ("lookback", "layers", "epochs", "patience", "batch")
    decays: ClassVar[Mapping[str, float]] = {"positions": 0.0}  # places in a window: no slopes to shrink


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmConfig(SequenceReturnConfig):
    """Settings of ``Lstm``; see SequenceReturnConfig."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GruConfig(SequenceReturnConfig):
    """Settings of ``Gru``; see SequenceReturnConfig."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig(SequenceReturnConfig):
    """Settings of ``Transformer``; see SequenceReturnConfig."""

    layers: int = 2
    heads: int = 2  # of H/heads units each

    def __post_init__(self) -> None:
        SequenceReturnConfig.__post_init__(self)  # super() does not know a class with slots
        if self.heads < 1 or self.hidden % self.heads:
            got = f"{self.heads} heads, hidden {self.hidden}"
            raise ConfigError("heads do not divide hidden", where="transformer", got=got, expected="a divisor")


class RecurrentNetwork(nn.Module):
    """LSTMs or GRUs one on the other over the days, oldest first, and a linear head on the last state."""

    def __init__(self, kind: str, C: int, H: int, layers: int, dropout: float) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.recur = RECURRENT[kind](C, H, layers, batch_first=True, dropout=between)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, t, C) → (B,)."""
        states: Tensor = self.recur(x)[0]  # (B, t, H)
        y: Tensor = self.head(self.drop(states[:, -1]))  # (B, H) → (B, 1)
        return y.squeeze(1)  # (B,)


class EncoderNetwork(nn.Module):
    """Days and their learned positions through encoder layers, and a linear head on the last day's state.

    Every day looks at every day of the window, for all are past.
    """

    def __init__(self, t: int, C: int, H: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.positions = nn.Linear(C, H), nn.Parameter(0.02 * torch.randn(t, H))
        kind = partial(nn.TransformerEncoderLayer, activation="gelu", batch_first=True, norm_first=True)
        # Each made for itself: nn.TransformerEncoder would start them all alike.
        self.layers = nn.Sequential(*(kind(H, heads, 4 * H, dropout) for _ in range(layers)))
        self.norm, self.drop, self.head = nn.LayerNorm(H), nn.Dropout(dropout), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, t, C) → (B,)."""
        states = self.layers(self.enter(x) + self.positions)  # (B, t, H)
        y: Tensor = self.head(self.drop(self.norm(states[:, -1])))  # (B, H) → (B, 1)
        return y.squeeze(1)  # (B,)


class SequenceReturn(ABC):
    """A network over the daily numbers, fitted to the standardised next return, as a Model and a PooledModel.

    Huber's loss; stopped on the validation decisions' mean squared error, whose best epoch is kept. FitReport tells
    that epoch's log loss and accuracy of P(up), by which this project compares.
    expected_return is the forecast. p_up is that of a normal return around it, as wide as the training returns, as
    MSMF's where it is asked for the return alone; so p_up > 0.5 just where the forecast is positive.
    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(self, config: SequenceReturnConfig) -> None:
        self.config, self.lookback = config, config.lookback
        self._kept: tuple[DayNumbers, nn.Module] | None = None
        self._moments: NDArray[np.float64] = np.array([0.0, 1.0])  # mean and std of the training returns

    @abstractmethod
    def build(self, C: int) -> nn.Module:
        """Return an untrained network over windows (B, t, C)."""

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, stop on those on ``validation``; see models.base.Model."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Learn from several symbols at once, their decisions shuffled together; see models.panel."""
        c = self.config
        numbers, learned, unseen = describe(parts, c.lookback)
        C = len(numbers.scale.mean)
        mean, std = self._moments = np.array([learned.next_return.mean(), learned.next_return.std() or 1.0])

        def asked(samples: Samples) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            """(B, t, C) and (B,), the standardised returns."""
            return samples.x.reshape(-1, c.lookback, C), ((samples.next_return - mean) / std).astype(np.float32)

        with reproducible(seed, c.device):
            network = self.build(C)
            report = fit(network, *asked(learned), *asked(unseen), c.recipe, seed, c.device, c.batch, RETURN)
        self._kept = numbers, network
        loss, accuracy = log_loss(self._told(unseen.x).p_up, unseen.label)
        return FitReport(loss, accuracy, report.epochs, report.best_epoch)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``; see models.base.Model."""
        return self._told(self._trained()[0].windows(days, at, self.lookback))

    def _told(self, x: NDArray[np.float32]) -> Prediction:
        """(B, t·C) → p_up (B,), expected_return (B,)."""
        numbers, network = self._trained()
        windows = x.reshape(-1, self.lookback, len(numbers.scale.mean))  # (B, t, C)
        mean, std = self._moments
        expected = outputs(network, windows, self.config.device) * std + mean  # (B,)
        p_up = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in expected / std])
        return Prediction(p_up, expected_return=expected)

    def weights(self) -> Weights:
        """Return network, scale of the numbers and moments of the returns as arrays; ModelError before training."""
        numbers, network = self._trained()
        return arrays(network, "network") | numbers.arrays() | {"moments": self._moments.copy()}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        own = {name for name in weights if name.startswith("network.")}
        numbers = DayNumbers.from_arrays(weights, own | {"moments"})
        moments = np.array(weights["moments"], np.float64)
        if moments.shape != (2,):
            raise ValueError(f"weights do not fit: moments {moments.shape}, expected (2,)")
        with reproducible(0):  # initial weights are drawn, to be overwritten
            network = self.build(len(numbers.scale.mean))
        load(network, weights, "network")
        self._kept, self._moments = (numbers, network.to(self.config.device)), moments

    def _trained(self) -> tuple[DayNumbers, nn.Module]:
        if self._kept is None:
            raise ModelError(f"{type(self).__name__} has not been trained", do="call fit or load first")
        return self._kept


class Lstm(SequenceReturn):
    """LSTM on daily numbers for the next return; see SequenceReturn. Source: Hochreiter and Schmidhuber 1997."""

    def __init__(self, config: LstmConfig | None = None) -> None:
        super().__init__(config or LstmConfig())

    def build(self, C: int) -> nn.Module:
        """Return an untrained network over windows (B, t, C)."""
        c = self.config
        return RecurrentNetwork("lstm", C, c.hidden, c.layers, c.dropout)


class Gru(SequenceReturn):
    """GRU on daily numbers for the next return; see SequenceReturn. Source: Cho et al. 2014."""

    def __init__(self, config: GruConfig | None = None) -> None:
        super().__init__(config or GruConfig())

    def build(self, C: int) -> nn.Module:
        """Return an untrained network over windows (B, t, C)."""
        c = self.config
        return RecurrentNetwork("gru", C, c.hidden, c.layers, c.dropout)


class Transformer(SequenceReturn):
    """Transformer encoder on daily numbers for the next return; see SequenceReturn. Source: Vaswani et al. 2017."""

    def __init__(self, config: TransformerConfig | None = None) -> None:
        self._heads = (config := config or TransformerConfig()).heads
        super().__init__(config)

    def build(self, C: int) -> nn.Module:
        """Return an untrained network over windows (B, t, C)."""
        c = self.config
        return EncoderNetwork(c.lookback, C, c.hidden, c.layers, self._heads, c.dropout)
