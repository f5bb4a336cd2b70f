"""Multi-scale alignment and blank learning (eq. 3), in stages; and what the paper compares them with (table 5).

Source: Qin, "MSMF", eq. 3: X_all = MSA(F) ⊙ BL(F); "applying the softmax operation to features and selecting the top
features based on their probabilities". Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.msmf.config import Feature, MsmfConfig


class Fused(NamedTuple):
    """What fusion makes of features.

    aligned: (B, C, J·W) before anything is blanked.   fused: (B, C, J·W).
    kept_within, kept: (B, C) the share of each that is not blanked in the first stage, and in the end.
    """

    aligned: Tensor
    fused: Tensor
    kept_within: Tensor
    kept: Tensor


class MultiScaleAlignment(nn.Module):
    """MSA of eq. 3: tokens of unlike features, all of one size by now, look at each other.

    x + attention(LayerNorm(x)); ``groups`` says who may look at whom: only those of one group.
    """

    groups: Tensor

    def __init__(self, groups: Sequence[int], J: int, W: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        number = torch.tensor(groups).repeat_interleave(J)  # (C·J,)
        self.register_buffer("groups", number[:, None] == number, persistent=False)  # (C·J, C·J)
        self.norm, self.qkv, self.out = nn.LayerNorm(W), nn.Linear(W, 3 * W), nn.Linear(W, W)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C·J, W) → the same shape."""
        B, n, W = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, n, W/heads)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, heads, n, n)
        y = scores.masked_fill(~self.groups, -math.inf).softmax(-1) @ v  # (B, heads, n, W/heads)
        turned: Tensor = x + self.drop(self.out(y.transpose(1, 2).reshape(B, n, W)))  # (B, n, W)
        return turned


class BlankLearning(nn.Module):
    """BL of eq. 3: a mask in {0} ∪ R+ that keeps the likeliest share of the features and blanks the rest.

    The softmax runs over the kept alone and is scaled so that their mean is 1: what is blanked is exactly 0 and gets
    no gradient, neither through its value nor through its probability. Of n features ⌈share · n⌉ are kept; of equal
    ones those with the lower index.
    """

    def __init__(self, W: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.score = nn.Linear(W, W)

    def count(self, features: int) -> int:
        """Return how many of so many features are kept."""
        return max(1, math.ceil(self.share * features - 1e-9))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, n, W) → the mask (B, n, W)."""
        scores = self.score(x).flatten(1)  # (B, n·W)
        kept = self.count(scores.shape[1])
        best = scores.detach().sort(dim=1, descending=True, stable=True).indices[:, :kept]  # (B, kept)
        mask = scores.gather(1, best).softmax(1) * kept  # (B, kept)
        return torch.zeros_like(scores).scatter(1, best, mask).view_as(x)  # (B, n, W)


class ProgressiveFusion(nn.Module):
    """Eq. 3 in two stages: within each modality across its scales, then across modalities; blanking at each."""

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        C, H, J, W = len(config.features), config.hidden, config.tokens, config.token_width
        self.J, self.W = J, W
        self.groups = groups_of(config.features)
        # Each feature has its own way to the common size: they are unlike.
        self.align = nn.ModuleList(nn.Linear(H, J * W) for _ in range(C))
        self.kind = nn.Parameter(torch.randn(C, 1, W) * 0.02)
        self.within = MultiScaleAlignment(self.groups, J, W, config.heads, config.dropout)
        self.across = MultiScaleAlignment([0] * C, J, W, config.heads, config.dropout)
        self.blank_within = BlankLearning(W, config.keep_within)
        self.blank_across = BlankLearning(W, config.keep_across)

    def forward(self, x: Tensor) -> Fused:
        """Features (B, C, H) → Fused."""
        B, C, _ = x.shape
        tokens = torch.stack([align(x[:, c]) for c, align in enumerate(self.align)], 1)  # (B, C, J·W)
        tokens = (tokens.view(B, C, self.J, self.W) + self.kind).flatten(1, 2)  # (B, C·J, W)
        aligned = self.within(tokens)  # (B, C·J, W)
        mask = torch.cat([self.blank_within(part) for part in self._modalities(tokens)], 1)  # (B, C·J, W)
        first = aligned * mask  # (B, C·J, W)
        within = self._kept(mask)  # (B, C)
        mask = self.blank_across(first)  # (B, C·J, W)
        fused = self.across(first) * mask  # (B, C·J, W)  eq. 3
        return Fused(aligned.view(B, C, -1), fused.view(B, C, -1), within, self._kept(mask))

    def _modalities(self, tokens: Tensor) -> list[Tensor]:
        """Cut tokens (B, C·J, W) into those of each modality (B, scales·J, W)."""
        sizes = [self.groups.count(group) * self.J for group in dict.fromkeys(self.groups)]
        return list(torch.split(tokens, sizes, dim=1))

    def _kept(self, mask: Tensor) -> Tensor:
        """Count what a mask (B, C·J, W) keeps → the share of each feature (B, C)."""
        return (mask > 0).view(len(mask), len(self.groups), -1).to(mask.dtype).mean(2)


class FeatureConcatenation(nn.Module):
    """Table 5's rival: each feature through a layer of its own, side by side, nothing aligned and nothing blanked."""

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        width = config.tokens * config.token_width
        self.align = nn.ModuleList(nn.Linear(config.hidden, width) for _ in config.features)

    def forward(self, x: Tensor) -> Fused:
        """Features (B, C, H) → Fused."""
        y = F.gelu(torch.stack([align(x[:, c]) for c, align in enumerate(self.align)], 1))  # (B, C, J·W)
        whole = torch.ones_like(y[:, :, 0])  # (B, C)
        return Fused(y, y, whole, whole)


class FeatureStack(nn.Module):
    """Table 5's other rival: the features stacked and averaged, one layer for all; each gets the same C-th of it."""

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        self.align = nn.Linear(config.hidden, config.tokens * config.token_width)

    def forward(self, x: Tensor) -> Fused:
        """Features (B, C, H) → Fused."""
        y = F.gelu(self.align(x)).mean(1, keepdim=True).expand(-1, x.shape[1], -1)  # (B, C, J·W)
        whole = torch.ones_like(y[:, :, 0])  # (B, C)
        return Fused(y, y, whole, whole)


FUSIONS = {"progressive": ProgressiveFusion, "concatenate": FeatureConcatenation, "stack": FeatureStack}


def groups_of(features: Sequence[Feature]) -> list[int]:
    """Number the features by their modality.

    >>> groups_of([Feature("image", "fine"), Feature("image", "coarse"), Feature("text", "fine")])
    [0, 0, 1]
    """
    order = list(dict.fromkeys(feature.modality for feature in features))
    return [order.index(feature.modality) for feature in features]
