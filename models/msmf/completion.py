"""Fill the features of a missing modality from those that are there: MSMF's first module, and its simple rivals.

The encoders hand over one row of V features a sample, the modalities side by side, and a mask of which are present.
``RbmCompletion`` learns P(features) on complete TRAINING rows and fills by mean-field steps with the present ones
clamped; ``DbnCompletion`` stacks more layers on it; ``ZeroFilling`` and ``MeanFilling`` are what table 4 sets against
them (forward filling needs the order of days and stands where the days are known).

The RBM of one layer is what we recommend: measured on planted mixtures, factors and heavy tails, a second layer makes
the filling worse (docs/measured.md). Letters as in ``models.msmf.boltzmann``.

Source: Qin, "MSMF", eq. 1; what the paper leaves open is decided there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.fitting import reproducible
from models.msmf.boltzmann import CompletionConfig, Dbn
from trader.errors import ConfigError, ModelError

# Bits come from shapes: incomplete rows are filled so many at a time, the last block padded with dummies, so that a
# row's bits depend neither on its neighbours nor on B. (In products of other sizes the last rows round differently.)
FILL_BATCH = 64

RUNAWAY = 1e3  # standard deviations; a reconstruction so far out is that of weights that ran away
# Deviation of a whitened feature in units of the visible noise. At 1 that noise is all the variance there is, and what
# blocks share is filled in too faint; features that were not whitened repeat each other and need no more.
CONTRAST = 1.5
NARROW = 1e-4  # of a block's largest standard deviation; a direction of less counts as constant
FARTHEST = 10.0  # standard deviations; a feature farther out is read as this far, so that one cannot drown the rest


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a model knows rows.

    reconstruction: root mean square of row − visible(hidden(row)), in standard deviations; 1 for the mean.
    gap: nats; mean free energy of the same rows shuffled within each column, minus that of the rows. A free energy has
        an arbitrary offset, this difference has none: 0 for a model that sees columns alone, larger the better a model
        tells rows that belong together from rows that do not. Of a stack: that of its first layer.
    """

    reconstruction: float
    gap: float


class Completion(Protocol):
    """Something that fills what is missing. An nn.Module whose state_dict, all float32, is everything it learned."""

    def fit(self, rows: Tensor, seed: int) -> None:
        """Learn from complete training rows (N, V); they are detached. Again: go on from the present state."""
        ...

    def fill(self, v: Tensor, present: Tensor) -> Tensor:
        """Return (B, V) where present (B, V) is bit for bit v, and what is missing, whatever v holds there, is filled.

        Gradients flow to the present entries of v; none flow through a filled one, nor into the completion.
        ModelError where shapes do not fit, where a block whitened as one is there in part, where a present number is
        none, or before the first fit.
        """
        ...


class Standard(nn.Module):
    """Mean 0 and covariance 1 for the features of each block, measured on rows; what it learned is in its buffers.

    V features are n blocks of ``width``, whose features come or are missing together. Each is whitened by the inverse
    square root of its own covariance (ZCA: Bell and Sejnowski 1997; for Gaussian RBMs: Krizhevsky 2009). Otherwise the
    features of an encoder, most of which say much the same, draw all hidden units to their own block, and what two
    modalities share gets none (measured: docs/msmf.md). Of the square roots this one moves least, and smoothly, as the
    encoders learn, so that weights learned before still fit. With width 1 it is mean and standard deviation.
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor
    rows: Tensor

    def __init__(self, V: int, width: int = 1) -> None:
        super().__init__()
        if V % width:
            raise ModelError("blocks do not divide the features", got=f"{V} by {width}")
        self.register_buffer("mean", torch.zeros(V))
        self.register_buffer("root", torch.eye(width).repeat(V // width, 1, 1))  # (n, width, width), of the covariance
        self.register_buffer("inverse", torch.eye(width).repeat(V // width, 1, 1))  # of root, 0 where that is 0
        self.register_buffer("rows", torch.zeros(1))  # how many; 0 before the first measure

    @property
    def measured(self) -> bool:
        """Whether it has seen rows."""
        return bool(self.rows > 0)

    @property
    def std(self) -> Tensor:
        """Standard deviation of each feature (V,)."""
        return self.root.square().sum(2).sqrt().flatten()

    def measure(self, rows: Tensor) -> None:
        """Take over the statistics of (N, V); a direction that varies by rounding alone counts as constant."""
        mean = rows.double().mean(0)
        n, width, _ = self.root.shape
        parts = (rows - mean).reshape(-1, n, width).transpose(0, 1)  # (n, N, width)
        variance, axes = torch.linalg.eigh(parts.transpose(1, 2) @ parts / len(rows))  # (n, width), (n, width, width)
        least = (1e-6 * mean.abs() + 1e-12).view(n, width).amax(1, keepdim=True)  # (n, 1)
        least = torch.maximum(least, NARROW * variance.clamp_min(0).amax(1, keepdim=True).sqrt())
        std = variance.clamp_min(0).sqrt()
        std = torch.where(std > least, std, 0.0)[:, None]  # (n, 1, width)
        self.mean.copy_(mean)
        self.root.copy_((axes * std) @ axes.transpose(1, 2))
        self.inverse.copy_((axes * torch.where(std > 0, 1 / std, 0.0)) @ axes.transpose(1, 2))
        self.rows.fill_(len(rows))

    def forward(self, v: Tensor) -> Tensor:
        """(B, V) features → (B, V) whitened, no farther out than FARTHEST."""
        return self._through(v - self.mean, self.inverse).clamp(-FARTHEST, FARTHEST)

    def back(self, x: Tensor) -> Tensor:
        """(B, V) whitened → (B, V) features; a constant one is its mean, whatever x says."""
        return self._through(x, self.root) + self.mean

    def _through(self, x: Tensor, matrices: Tensor) -> Tensor:
        n, width, _ = matrices.shape
        parts = x.reshape(-1, n, width).transpose(0, 1)  # (n, B, width)
        return (parts @ matrices).transpose(0, 1).reshape(-1, n * width)


class DbnCompletion(nn.Module):
    """Fill by a DBN over standardised features; a Completion. Same rows and seed, same bytes.

    block: how many features side by side come or are missing together, see Standard.
    Rows fitted to later (the encoders move, their features are refreshed) are standardised by their own statistics,
    and the weights go on from where they are.
    """

    def __init__(self, V: int, config: CompletionConfig | None = None, *, block: int = 1) -> None:
        super().__init__()
        self.config = config or CompletionConfig(hidden=(512, 256))
        self.standard = Standard(V, block)
        self.contrast = CONTRAST if block > 1 else 1.0
        self.dbn = Dbn(V, self.config.hidden)

    @torch.no_grad()
    def fit(self, rows: Tensor, seed: int) -> None:
        """Learn from complete rows (N, V); see Completion. ModelError where they cannot be learned from."""
        rows = checked_rows(rows, self.standard)
        with reproducible(device=str(rows.device)):
            generator = torch.Generator(rows.device).manual_seed(seed)
            fresh = not self.standard.measured
            self.standard.measure(rows)
            x = self.contrast * self.standard(rows)  # (N, V)
            self.dbn.learn(x, self.config, fresh, generator)
            far = float(self.dbn.round_trip(x).abs().max()) / self.contrast
        if not far <= RUNAWAY:  # NaN too
            raise ModelError("a completion's training ran away", got=f"{far:.3g} deviations", do="lower learning_rate")

    def fill(
        self, v: Tensor, present: Tensor, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Fill what is missing; see Completion.

        By ``steps`` mean-field round trips from the mean, the present features clamped: nothing is drawn. A row of
        which nothing is present gets the training mean, which is what a trained model's mean is (∂log P/∂a = 0); the
        mean-field steps alone would run to one mode. With a generator by Gibbs steps instead, the mean over the later
        half of them; then a row's draws do depend on its place among the incomplete ones.
        """
        steps = steps if steps is not None else self.config.fill_steps
        if steps < 1:
            raise ModelError("a filling needs steps", got=steps, expected="at least 1")

        def guess(known: Tensor, there: Tensor) -> Tensor:
            clamped = self.contrast * self.standard(known)  # (FILL_BATCH, V)
            x = torch.where(there, clamped, 0.0)
            found = self._settle(x, there, steps) if generator is None else self._gibbs(x, there, steps, generator)
            return self.standard.back(torch.where(there.any(1, keepdim=True), found / self.contrast, 0.0))

        return complete(v, present, self.standard, guess)

    @torch.no_grad()
    def fidelity(self, rows: Tensor, seed: int) -> Fidelity:
        """Measure reconstruction and free-energy gap on complete rows (N, V); the seed shuffles."""
        rows = checked_rows(rows, self.standard)
        require_fitted(self.standard)
        with reproducible(device=str(rows.device)):
            generator = torch.Generator(rows.device).manual_seed(seed)
            x = self.contrast * self.standard(rows)  # (N, V)
            order = torch.rand(x.shape, generator=generator, device=x.device).argsort(0)  # (N, V), each column its own
            lowest, error = self.dbn.stack[0], self.dbn.round_trip(x) - x
            gap = lowest.free_energy(x.gather(0, order)).mean() - lowest.free_energy(x).mean()
            return Fidelity(float(error.square().mean().sqrt()) / self.contrast, float(gap))

    def _settle(self, x: Tensor, there: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x = torch.where(there, x, self.dbn.round_trip(x))  # (B, V)
        return x

    def _gibbs(self, x: Tensor, there: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        total, burnt = torch.zeros_like(x), steps // 2
        for step in range(steps):
            mean, sample = self.dbn.wander(x, generator)  # (B, V) each
            x = torch.where(there, x, sample)
            total += mean if step >= burnt else 0.0
        return total / (steps - burnt)


class RbmCompletion(DbnCompletion):
    """Fill by a single RBM, which is a DBN of one layer: the recommended completion."""

    def __init__(self, V: int, config: CompletionConfig | None = None, *, block: int = 1) -> None:
        super().__init__(V, config or CompletionConfig(), block=block)
        if len(self.config.hidden) != 1:
            raise ConfigError("an RBM has one layer", where="completion", got=self.config.hidden, expected="one number")


class ZeroFilling(nn.Module):
    """Fill with zeros, in the features' own units; a Completion."""

    def __init__(self, V: int, *, block: int = 1) -> None:
        super().__init__()
        self.standard = Standard(V, block)

    @torch.no_grad()
    def fit(self, rows: Tensor, seed: int) -> None:
        """Measure rows (N, V); nothing is drawn."""
        self.standard.measure(checked_rows(rows, self.standard))

    def fill(self, v: Tensor, present: Tensor) -> Tensor:
        """Fill what is missing; see Completion."""
        return complete(v, present, self.standard, lambda known, there: self.constant().expand_as(known))

    def constant(self) -> Tensor:
        """Return what stands for each missing feature (V,)."""
        return torch.zeros_like(self.standard.mean)


class MeanFilling(ZeroFilling):
    """Fill with each feature's mean over the training rows; a Completion."""

    def constant(self) -> Tensor:
        """Return what stands for each missing feature (V,)."""
        return self.standard.mean


def checked_rows(rows: Tensor, standard: Standard) -> Tensor:
    """Return complete rows detached, as float32; ModelError unless they are (N ≥ 2, V) numbers."""
    V = len(standard.mean)
    if rows.ndim != 2 or rows.shape[1] != V or len(rows) < 2:
        raise ModelError("a completion cannot learn from this", got=tuple(rows.shape), expected=f"(2 or more, {V})")
    if not rows.isfinite().all():
        row, column = (~rows.isfinite()).nonzero()[0].tolist()
        do = "learn from rows with every modality present"
        raise ModelError("a feature is not a number", where=f"row {row}, feature {column}", do=do)
    return rows.detach().float()


def require_fitted(standard: Standard) -> None:
    """Raise ModelError before the first fit."""
    if not standard.measured:
        raise ModelError("the completion has not been fitted", do="call fit, or load a state_dict")


def complete(v: Tensor, present: Tensor, standard: Standard, guess: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return v (B, V) where present, and elsewhere what ``guess`` says.

    guess: from FILL_BATCH rows, zero where missing, and their mask, (FILL_BATCH, V) each, to all their features. It
    sees incomplete rows and, to a full batch, complete dummies; it is called without gradients, on one thread.
    """
    V = len(standard.mean)
    if v.ndim != 2 or v.shape[1] != V or present.shape != v.shape or present.dtype != torch.bool:
        got = f"{tuple(v.shape)} and {tuple(present.shape)} {present.dtype}"
        raise ModelError("features and mask do not fit", got=got, expected=f"(B, {V}) each, the mask of bool")
    each = present.reshape(len(v), -1, standard.root.shape[1])  # (B, n, width)
    if (each.any(2) != each.all(2)).any():
        raise ModelError("a block of features is there in part", expected="all of it, or nothing")
    require_fitted(standard)
    with torch.no_grad(), reproducible(device=str(v.device)):
        known = torch.where(present, v.detach(), 0.0)  # (B, V)
        if not known.isfinite().all():
            row, column = (~known.isfinite()).nonzero()[0].tolist()
            do = "mark it as missing, or look for NaN in the encoders"
            raise ModelError("a present feature is not a number", where=f"row {row}, feature {column}", do=do)
        filled = known.clone()
        for part in torch.split((~present).any(1).nonzero()[:, 0], FILL_BATCH):
            block, there = v.new_zeros(FILL_BATCH, V), present.new_ones(FILL_BATCH, V)
            block[: len(part)], there[: len(part)] = known[part], present[part]
            filled[part] = guess(block.float(), there)[: len(part)].to(v.dtype)
    return torch.where(present, v, filled)
