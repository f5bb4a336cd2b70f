"""FPT: patches of a short series through the first blocks of GPT-2, whose attention and feed-forward stay as they are.

Source: Zhou et al., "One Fits All: Power General Time Series Analysis by Pretrained LM", NeurIPS 2023, arXiv
2302.11939 (GPT4TS), its classification form, as a baseline of FININ (arXiv 2410.10614). The claim under test is that
what a language model has learned from text serves on series: with ``weights = "random"`` nothing has been learned,
and whoever prints such a row says so.

    x ← (x − mean) / std         of each channel over the window, both detached        instance normalisation
    patches of p days, s apart   after the last day has been repeated, flattened
    linear embedding → GPT-2's blocks (layer norms and positions trained) → GELU → flatten → LayerNorm → linear

Where we differ: one logit in the place of two classes; the embedding is a linear layer, as the paper has it, where
the authors' code has a convolution; a window of one day is not normalised, for nothing would be left of it.
The channels of a day are models.tone.prices_and_indicators; a day's text is never read.

Letters, beside those of models.sequences (B t C H):
    p days of a patch   s days from one patch to the next   n patches
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Weights
from models.gpt2 import RANDOM, Blocks, fingerprint
from models.sequences import BestOf, SequenceConfig
from models.tone import prices_and_indicators
from trader.errors import ConfigError

FROZEN = "frozen.sha256"
EPSILON = 1e-5  # added to a variance


@dataclass(frozen=True, slots=True, kw_only=True)
class FptConfig(SequenceConfig):
    """What is chosen before training; see SequenceConfig. Epochs are few: at t = 20 a step takes a core 0.7 s."""

    weights: str = RANDOM  # of the blocks: "random", or a GPT-2's folder or hub id
    weights_seed: int = 0  # of random blocks: the same in every fold, as a pretrained model is
    blocks: int = 6  # of GPT-2, the first
    hidden: int = 768  # H, GPT-2's width
    heads: int = 12  # of random blocks; a pretrained model brings its own
    patch: int = 4  # p; the paper: 16, on long series
    stride: int = 2  # s; the paper: 8
    dropout: float = 0.1
    epochs: int = 3
    patience: int = 2

    def __post_init__(self) -> None:
        SequenceConfig.__post_init__(self)
        for name in ("blocks", "heads", "patch", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", where="fpt", got=getattr(self, name), expected="at least 1")
        if self.hidden % self.heads:
            raise ConfigError("heads do not divide hidden", where="fpt", got=f"{self.heads} and {self.hidden}")


class Network(nn.Module):
    """Windows of C channels through GPT-2's blocks."""

    def __init__(self, config: FptConfig, C: int) -> None:
        super().__init__()
        c, H = config, config.hidden
        self.p, self.s = c.patch, c.stride
        n = patch_count(c.lookback, c.patch, c.stride)
        self.embed = nn.Linear(c.patch * C, H)
        self.blocks = Blocks(
            c.weights, layers=c.blocks, width=H, heads=c.heads, n=n, dropout=c.dropout, seed=c.weights_seed
        )
        self.norm, self.drop, self.head = nn.LayerNorm(n * H), nn.Dropout(c.dropout), nn.Linear(n * H, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, t, C) → logits (B,)."""
        patched = patches(instance_norm(x), self.p, self.s)  # (B, n, p·C)
        hidden = self.blocks(self.embed(patched))  # (B, n, H)
        flat = self.norm(F.gelu(hidden).flatten(1))  # (B, n·H)
        y: Tensor = self.head(self.drop(flat))  # (B, 1)
        return y.squeeze(1)  # (B,)


def instance_norm(x: Tensor) -> Tensor:
    """Bring each channel of each window (B, t, C) to mean 0 and variance 1 over its days; one day stays as it is."""
    if x.shape[1] == 1:
        return x
    mean = x.mean(dim=1, keepdim=True).detach()  # (B, 1, C)
    variance = x.var(dim=1, keepdim=True, correction=0).detach()  # (B, 1, C)
    return (x - mean) / (variance + EPSILON).sqrt()  # (B, t, C)


def patch_count(t: int, p: int, s: int) -> int:
    """Count the patches of a window of t days: n.

    >>> [patch_count(t, 4, 2) for t in (1, 3, 5, 10, 20)]
    [2, 2, 2, 5, 10]
    """
    return (max(t, p) + s - p) // s + 1


def patches(x: Tensor, p: int, s: int) -> Tensor:
    """Cut windows (B, t, C) into patches (B, n, p·C), oldest first, each holding its days one after the other.

    The last day is repeated s times, so that it lies in a patch whatever t is; more often where t is below p.
    """
    t = x.shape[1]
    padded = F.pad(x.transpose(1, 2), (0, max(0, p - t) + s), mode="replicate")  # (B, C, max(t, p) + s)
    return padded.unfold(2, p, s).permute(0, 2, 3, 1).flatten(2)  # (B, C, n, p) → (B, n, p, C) → (B, n, p·C)


class Fpt(BestOf):
    """FPT as a Model (models.base); its weights hold what was trained, and the sha256 of what was frozen."""

    config: FptConfig

    def __init__(self, config: FptConfig | None = None) -> None:
        c = config or FptConfig()
        super().__init__(c, prices_and_indicators, {"fpt": lambda C: Network(c, C)})

    def weights(self) -> Weights:
        """Return trained parts, the scale of the numbers and a fingerprint; ModelError before training."""
        return super().weights() | {FROZEN: self._fingerprint()}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where it does not fit, or the frozen blocks are others here."""
        before = self._kept
        super().load({name: array for name, array in weights.items() if name != FROZEN})
        if not np.array_equal(weights.get(FROZEN, np.empty(0)), own := self._fingerprint()):
            self._kept = before
            raise ValueError(f"weights do not fit: trained on other frozen blocks than {own.tobytes().hex()[:16]}…")

    def _fingerprint(self) -> NDArray[np.uint8]:
        network = self._trained()[1]
        assert isinstance(network, Network)
        return fingerprint(network.blocks)
