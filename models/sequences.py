"""Networks over windows of daily numbers: one place where they are fitted, asked and written down.

A model turns each decision's days into a window (t, C) of standardised numbers and hands the windows over; what the
numbers mean is the model's own affair (models.tone makes such numbers). Any network here takes (B, t, C), oldest day
first, and returns (B,): logits of P(up), or the value it was fitted to.

Letters, beside those of models.base (B t H):
    C numbers that describe one day
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Days, FitReport, Prediction, Weights
from models.fitting import Recipe, descend, log_loss, reproducible
from models.tone import Measure, Windows, labels
from trader.errors import ConfigError, ModelError

# Every forecast runs through batches of this one size, so that a row's bits cannot depend on how many are asked for.
# A multiple of 4: matrix products of other numbers of rows round their last rows otherwise than the first.
FORECAST_BATCH = 64

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """What is chosen before a network over daily numbers is trained; ConfigError where a value cannot be used.

    The defaults are ours, set for the few hundred samples of a fold, whose signal is near zero.
    """

    lookback: int = 5  # t, sessions that enter the network
    hidden: int = 32  # H, units of a hidden layer or of a state
    dropout: float = 0.2  # share of units
    learning_rate: float = 1e-3  # AdamW's
    weight_decay: float = 0.1  # AdamW's, on matrices
    clip: float = 1.0  # largest gradient norm
    epochs: int = 60  # at most
    patience: int = 10  # epochs without a lower validation loss
    batch: int = 32  # decisions in a training step
    device: str = "cpu"  # or "cuda"

    at_least_one: ClassVar[tuple[str, ...]] = ("lookback", "epochs", "patience", "batch")
    decays: ClassVar[Mapping[str, float]] = {}  # as Recipe has them

    def __post_init__(self) -> None:
        where = type(self).__name__.removesuffix("Config").lower()
        for name in self.at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", where=where, got=getattr(self, name), expected="at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is too small", where=where, got=getattr(self, name), expected="above 0")
        if not self.weight_decay >= 0:
            raise ConfigError("weight_decay is negative", where=where, got=self.weight_decay, expected="0 or more")
        if self.hidden < 16 or self.hidden % 8:  # narrower products were seen to round by a row's place in its batch
            raise ConfigError("hidden is no width", where=where, got=self.hidden, expected="16, 24, 32 or more by 8")
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is not a share", where=where, got=self.dropout, expected="0 ≤ dropout < 1")

    @property
    def recipe(self) -> Recipe:
        """How to descend."""
        own = self.learning_rate, self.weight_decay, self.clip, self.epochs, self.patience
        return Recipe(*own, decays=self.decays)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig(NetworkConfig):
    """The same of a network that reads trailing means: a decision reads trailing − 1 sessions more."""

    trailing: int = 20  # sessions of the trailing means, the day itself included

    at_least_one: ClassVar[tuple[str, ...]] = ("lookback", "trailing", "epochs", "patience", "batch")


class Mlp(nn.Module):
    """All days side by side through ``layers`` linear layers, t·C → H → … → 1; one layer is a logistic regression."""

    def __init__(self, t: int, C: int, H: int, layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        width, stack = t * C, []
        for _ in range(layers - 1):
            stack += [nn.Linear(width, H), nn.GELU(), nn.Dropout(dropout)]
            width = H
        self.head = nn.Sequential(nn.Flatten(), *stack, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, t, C) → (B,)."""
        y: Tensor = self.head(x)  # (B, t, C) → (B, t·C) → (B, 1)
        return y.squeeze(1)  # (B,)


class Recurrent(nn.Module):
    """An LSTM or a GRU over the days, oldest first, and a linear head on its last state."""

    def __init__(self, kind: str, C: int, H: int, dropout: float = 0.2) -> None:
        super().__init__()
        if kind not in RECURRENT:
            raise ConfigError("no such recurrent network", got=kind, expected=", ".join(RECURRENT))
        self.recur = RECURRENT[kind](C, H, batch_first=True)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, t, C) → (B,)."""
        states: Tensor = self.recur(x)[0]  # (B, t, H)
        y: Tensor = self.head(self.drop(states[:, -1]))  # (B, H) → (B, 1)
        return y.squeeze(1)  # (B,)


class Objective(NamedTuple):
    """What a network is fitted to.

    loss: of outputs (B,) against targets (B,), its mean.   score: (validation loss, accuracy) of the same as arrays.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[NDArray[np.float64], NDArray[np.float32]], tuple[float, float]]


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))  # never overflows


def _square(outputs: NDArray[np.float64], truth: NDArray[np.float32]) -> tuple[float, float]:
    return float(np.square(outputs - truth).mean()), float(((outputs > 0) == (truth > 0)).mean())


DIRECTION = Objective(F.binary_cross_entropy_with_logits, lambda logits, y: log_loss(_sigmoid(logits), y))
VALUE = Objective(F.mse_loss, _square)


def fit(
    network: nn.Module,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    unseen: NDArray[np.float32],
    truth: NDArray[np.float32],
    recipe: Recipe,
    seed: int,
    device: str = "cpu",
    batch: int = 32,
    objective: Objective = DIRECTION,
) -> FitReport:
    """Fit to windows x (B, t, C) with targets y (B,), in shuffled batches, and keep the best weights on ``unseen``.

    y: 0 and 1 for DIRECTION, any value for VALUE.   unseen, truth: the same of the validation decisions.
    seed: of the order of the windows; the caller builds the network inside ``models.fitting.reproducible(seed)`` and
    stays there, for that frame rules its initial weights and its dropout. Leaves the network in evaluation mode.
    ModelError where a window is not finite, where there is nothing to fit or to validate on.
    """
    for windows, targets, name in ((x, y, "training"), (unseen, truth, "validation")):
        if not len(windows) or len(windows) != len(targets):
            raise ModelError(f"{name} windows and targets do not agree", got=f"{len(windows)} and {len(targets)}")
        _require_finite(windows, f"{name} window")
        _require_finite(targets, f"{name} target")
    network.to(device)
    # torch's own memory, not numpy's: it is aligned alike each time, and BLAS may round by alignment.
    inputs = torch.tensor(x, dtype=torch.float32, device=device)  # (B, t, C)
    targets_ = torch.tensor(y, dtype=torch.float32, device=device)  # (B,)

    def batches(rng: np.random.Generator) -> Iterator[Tensor]:
        order = torch.from_numpy(rng.permutation(len(inputs))).to(device)  # (B,)
        yield from torch.split(order, batch)

    def loss(index: Tensor) -> Tensor:
        return objective.loss(network(inputs[index]), targets_[index])

    def validate() -> tuple[float, float]:
        return objective.score(outputs(network, unseen, device), truth)

    return descend(network, recipe, seed, batches, loss, validate, steps=-(-len(x) // batch))


def outputs(network: nn.Module, x: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float64]:
    """Return what the network says of windows x (B, t, C) → (B,), each row independent of its neighbours, bit for bit.

    ModelError naming the row whose window or whose output is not finite.
    """
    _require_finite(x, "row")
    network.eval()
    said = np.empty(len(x))
    with reproducible(device=device), torch.no_grad():
        for low in range(0, len(x), FORECAST_BATCH):
            part = x[low : low + FORECAST_BATCH]
            full = torch.zeros(FORECAST_BATCH, *x.shape[1:])  # (64, t, C), dummies after the part; memory from torch
            full.numpy()[: len(part)] = part
            said[low : low + len(part)] = network(full.to(device)).cpu().numpy()[: len(part)]  # (64,) → (≤ 64,)
    _require_finite(said, "the forecast of row")
    return said


def forecast(network: nn.Module, x: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float64]:
    """Return P(up) of windows x (B, t, C) → (B,) float64, from logits; otherwise as ``outputs``."""
    return _sigmoid(outputs(network, x, device))


def arrays(network: nn.Module, prefix: str) -> Weights:
    """Return the network's parameters and buffers as arrays of their own, named ``prefix.name``."""
    return {f"{prefix}.{name}": t.detach().cpu().numpy().copy() for name, t in network.state_dict().items()}


def load(network: nn.Module, weights: Mapping[str, NDArray[np.generic]], prefix: str) -> None:
    """Put what ``arrays`` returned into a network of the same build, and set it to evaluation.

    Arrays under other prefixes are left alone. ValueError where names, shapes or dtypes differ; then nothing is put.
    """
    expected = {name: (array.shape, array.dtype) for name, array in arrays(network, prefix).items()}
    got = {name: (array.shape, array.dtype) for name, array in weights.items() if name.startswith(f"{prefix}.")}
    if wrong := sorted(name for name in expected | got if expected.get(name) != got.get(name)):
        name = wrong[0]
        raise ValueError(f"weights do not fit: {name} is {got.get(name)}, expected {expected.get(name)}")
    for name, tensor in network.state_dict().items():
        tensor.copy_(torch.from_numpy(np.array(weights[f"{prefix}.{name}"])))
    network.eval()


def _require_finite(numbers: NDArray[np.float32] | NDArray[np.float64], what: str) -> None:
    """Raise ModelError naming the first of (B, …) rows that holds a number that is none."""
    finite = np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim)))  # (B,)
    if not finite.all():
        raise ModelError(f"{what} {int(np.argmin(finite))} is not finite", do="look for NaN in its lookback days")


class BestOf:
    """Networks fitted to the same windows, of which the one with the lowest validation log loss is kept, as a Model.

    ``lookback`` is config.lookback + config.trailing − 1: what the network sees, and what trailing means need before.
    The weights hold the kept network alone, and its name stands before theirs.
    ModelError where it is untrained, where a decision lacks its days or its label, where a number is none.
    """

    def __init__(
        self, config: SequenceConfig, measure: Measure, candidates: Mapping[str, Callable[[int], nn.Module]]
    ) -> None:
        """measure: makes the C numbers of a day.   candidates: name → builder of a network over (B, t, C), given C."""
        self.config, self._measure, self._candidates = config, measure, candidates
        self.lookback = config.lookback + config.trailing - 1
        self._kept: tuple[str, nn.Module, Windows] | None = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Fit every candidate on ``train``, keep the better on ``validation``; see models.base.Model."""
        c = self.config
        windows = Windows.of(self._measure, c.lookback, c.trailing, days, train)
        x, y = windows(days, train), labels(days, train)
        unseen, truth = windows(days, validation), labels(days, validation)
        tried = []
        for name, build in self._candidates.items():
            with reproducible(seed, c.device):
                network = build(x.shape[2])
                report = fit(network, x, y, unseen, truth, c.recipe, seed, c.device, c.batch)
            tried.append((report, name, network))
        best, name, network = min(tried, key=lambda candidate: candidate[0].validation_loss)
        self._kept = name, network, windows
        return best

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast decisions on the days ``at``; see models.base.Model."""
        _, network, windows = self._trained()
        return Prediction(forecast(network, windows(days, at), self.config.device))

    def weights(self) -> Weights:
        """Return the kept network and the scale of its numbers; ModelError before training."""
        name, network, windows = self._trained()
        return arrays(network, name) | windows.arrays()

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or dtypes differ from this configuration."""
        c = self.config
        windows = Windows.from_arrays(self._measure, c.lookback, c.trailing, weights)
        names = {name.partition(".")[0] for name in weights} - {"numbers"}
        if len(names) != 1 or not names <= set(self._candidates):
            raise ValueError(f"weights do not fit: of {sorted(names)}, expected one of {sorted(self._candidates)}")
        name = names.pop()
        with reproducible(0):  # initial weights are drawn, to be overwritten
            network = self._candidates[name](len(windows.scale.mean))
        load(network, weights, name)
        self._kept = name, network.to(c.device), windows

    def _trained(self) -> tuple[str, nn.Module, Windows]:
        if self._kept is None:
            raise ModelError(f"{type(self).__name__} has not been trained", do="call fit or load first")
        return self._kept
