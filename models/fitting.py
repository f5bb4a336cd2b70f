"""One training loop for every network here: AdamW, clipped gradients, early stopping, the best weights kept.

A model hands over its network and three functions (an epoch's batches, a batch's loss, the validation score);
the loop knows nothing of days or headlines. ``reproducible`` is the frame around it, and around every forecast:
one thread and a random stream of its own, so that bits depend neither on the machine's cores nor on what ran before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
import math
import os
import re
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from models.base import Days, FitReport
from trader.errors import ConfigError, ModelError

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to descend.

    learning_rate, weight_decay: AdamW's (decay on matrices alone, as in nanoGPT).   clip: largest gradient norm.
    epochs: at most.   patience: epochs without a lower validation loss before it stops.
    warm_up: share of all steps over which the rate rises in a line to learning_rate.
    schedule: constant, or cosine: after the warm-up the rate falls to zero at the end of the last epoch.
    decays: for parameters whose name begins so, the weight decay of their matrices instead.
    average: decay a step of the running mean of the weights, which is what is validated and kept; 0 keeps them as is.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    epochs: int = 30
    patience: int = 6
    warm_up: float = 0.0
    schedule: str = "constant"
    decays: Mapping[str, float] = field(default_factory=dict)
    average: float = 0.0

    def share(self, progress: float) -> float:
        """Return the learning rate as a share of its largest, when this share of all steps is done.

        >>> recipe = Recipe(warm_up=0.5, schedule="cosine")
        >>> [round(recipe.share(done), 2) for done in (0.25, 0.5, 0.75, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
        """
        if progress < self.warm_up:
            return progress / self.warm_up
        if self.schedule == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - self.warm_up) / (1 - self.warm_up)))


def require_device(device: str) -> None:
    """Raise ConfigError unless this is the name of a device, ModelError where torch has no such device here."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError("no such device", where="[compute] device", got=device, expected="cpu, cuda or cuda:N")
    index = int(device.partition(":")[2] or 0)
    if device != "cpu" and not index < torch.cuda.device_count():
        do = 'set device = "cpu", or install a build of torch for your GPU'
        raise ModelError("torch finds no such GPU here", where="[compute] device", got=device, do=do)


@contextmanager
def reproducible(seed: int | None = None, device: str = "cpu") -> Iterator[None]:
    """Run one thread, with torch's random stream seeded apart; give threads and streams back as they were.

    seed: of everything random in torch inside the frame; None draws nothing and leaves the streams alone.
    device: "cpu" or "cuda"; on cuda only deterministic kernels run. ModelError where there is no such device.
    """
    threads, place = torch.get_num_threads(), torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here", got=device, do='set device = "cpu"')
    torch.set_num_threads(1)
    try:
        with ExitStack() as frame:
            if place.type == "cuda":
                frame.enter_context(_deterministic_kernels())
            if seed is not None:
                frame.enter_context(torch.random.fork_rng([place] if place.type == "cuda" else []))
                torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _deterministic_kernels() -> Iterator[None]:
    """Refuse kernels that add up in any order. Never entered on a CPU: asking costs an import of 1.5 seconds."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first call
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def descend(
    network: nn.Module,
    recipe: Recipe,
    seed: int,
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    loss: Callable[[Batch], Tensor],
    validate: Callable[[], tuple[float, float]] | None,
    steps: int = 1,
) -> FitReport:
    """Train in place and leave the network with its best weights, in evaluation mode.

    batches: from a generator seeded by ``seed``, one epoch's batches in order.   loss: of one batch, its mean, in nats.
    validate: (log loss in nats, accuracy) of the network as it stands; called in evaluation mode without gradients.
        None: all epochs are run, the last weights are kept, and the report holds NaN.
    steps: batches in an epoch, about; only the warm-up and the schedule ask for it.
    Raises ModelError where a loss is not a number.
    """
    optimizer = _adamw(network, recipe)
    parameters = list(network.parameters())
    mean = _copy(network) if recipe.average else {}
    rng = np.random.default_rng(seed)
    best, kept = FitReport(math.inf, 0.0), _copy(network)
    epoch = 0
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        total = torch.zeros((), device=parameters[0].device)
        for step, batch in enumerate(batches(rng), start=1):
            for group in optimizer.param_groups:
                done = (epoch - 1 + min(step, steps) / steps) / recipe.epochs
                group["lr"] = recipe.learning_rate * recipe.share(done)
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            total += value.detach()  # read once an epoch: reading each would wait for a GPU
            _move(mean, network, recipe.average)
        score, accuracy = _evaluate(network, validate, mean)
        if not (math.isfinite(float(total)) and (validate is None or math.isfinite(score))):
            raise ModelError(
                "the training loss is not a number",
                where=f"epoch {epoch}",
                got=f"training {float(total)}, validation {score}",
                do="look for NaN in market, sentiment or embeddings, or lower learning_rate",
            )
        if score < best.validation_loss or validate is None:
            best, kept = FitReport(score, accuracy, epoch, epoch), dict(mean) or _copy(network)
        elif epoch - best.best_epoch >= recipe.patience:
            break
    network.load_state_dict(kept)
    network.eval()
    return FitReport(best.validation_loss, best.validation_accuracy, epoch, best.best_epoch)


def log_loss(p_up: NDArray[np.float64], label: NDArray[np.float32]) -> tuple[float, float]:
    """Return (mean log loss in nats, accuracy) of P(up) against labels 0 and 1, (B,) each.

    >>> log_loss(np.array([0.5, 0.5]), np.array([0, 1], dtype=np.float32))
    (0.6931471805599453, 0.5)
    """
    p = np.clip(p_up, 1e-12, 1 - 1e-12)
    loss = -np.where(label > 0.5, np.log(p), np.log1p(-p)).mean()
    return float(loss), float(((p_up > 0.5) == (label > 0.5)).mean())


def runs(train: range, length: int, rng: np.random.Generator) -> list[range]:
    """Cut training decisions into runs of ``length`` consecutive ones, from a random offset, in random order."""
    begin = train.start - int(rng.integers(length))
    cut = [range(max(s, train.start), min(s + length, train.stop)) for s in range(begin, train.stop, length)]
    return [cut[i] for i in rng.permutation(len(cut)) if len(cut[i])]


class InMemory(NamedTuple):
    """Texts whose embeddings (rows, D) are held in memory."""

    array: NDArray[np.float32]

    @property
    def width(self) -> int:
        """D, the length of one embedding."""
        return int(self.array.shape[1])

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings (len(index), D) of these rows."""
        return self.array[index]


def held(days: Days, most_bytes: int = 64 << 20) -> Days:
    """Return the same days with each embedding read once and held for all epochs, if that takes at most ``most_bytes``.

    Days whose embeddings take more are returned as they are: their texts are read block by block.
    """
    used, place = np.unique(np.append(days.news_text, days.market_text), return_inverse=True)
    if len(used) * days.texts.width * 4 > most_bytes:
        return days
    return replace(days, texts=InMemory(days.texts.rows(used)), news_text=place[:-1], market_text=int(place[-1]))


def _evaluate(
    network: nn.Module, validate: Callable[[], tuple[float, float]] | None, mean: dict[str, Tensor]
) -> tuple[float, float]:
    """Score the mean of the weights in the network's place, or the network itself where no mean is kept."""
    network.eval()
    if validate is None:
        return math.nan, math.nan
    own = _copy(network) if mean else {}
    if mean:
        network.load_state_dict(mean)
    with torch.no_grad():
        scored = validate()
    if mean:
        network.load_state_dict(own)
    return scored


@torch.no_grad()
def _move(mean: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move the running mean of the weights by one step; none where none is kept."""
    if mean:
        for name, tensor in network.state_dict().items():
            mean[name] = torch.lerp(tensor, mean[name], decay)


def _adamw(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            own = next((decay for start, decay in recipe.decays.items() if name.startswith(start)), recipe.weight_decay)
            groups.setdefault(own if parameter.dim() >= 2 else 0.0, []).append(parameter)
    grouped = [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
    return torch.optim.AdamW(grouped, lr=recipe.learning_rate, fused=True)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
