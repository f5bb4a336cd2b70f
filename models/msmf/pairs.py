"""Products of modalities: where one says which way to read another, in the open instead of by luck.

An exclusive-or of two modalities (a chart that means the opposite on some news) leaves no trace in either alone. A
multilayer perceptron finds such a product among hundreds of features only with far more days than there are; a
product of few directions on each side is found with some hundreds (measured: benchmarks/planted_charts.py).
This is ours, a switch (``pair_rank``), and not in the paper. Letters as in ``models.msmf.config``.

They start silent: w is zero, so that each task takes up what it has learned and an untrained network says nothing of
them. Products of random directions, let in at full size, outweighed all else on days that few labels explain.

Source: Kim et al. 2017, "Hadamard Product for Low-rank Bilinear Pooling".
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from models.msmf.config import MsmfConfig
from models.msmf.fusion import groups_of


class PairedModalities(nn.Module):
    """o_t = Σ over pairs (a, b) of Σ_r w_{t,r} (U_r · x_a)(V_r · x_b), on standardised features; added to eq. 5."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        groups, H, R = groups_of(config.features), config.hidden, config.pair_rank
        self.sizes = [groups.count(group) * H for group in dict.fromkeys(groups)]
        self.pairs = list(combinations(range(len(self.sizes)), 2))
        self.sides = nn.ModuleList(nn.Linear(self.sizes[m], R, bias=False) for pair in self.pairs for m in pair)
        for size, weight in zip(
            (self.sizes[m] for pair in self.pairs for m in pair), self.sides.parameters(), strict=True
        ):
            nn.init.normal_(weight, std=size**-0.5)
        self.out = nn.Parameter(torch.zeros(len(config.asked), len(self.pairs) * R))  # w
        self.drop = nn.Dropout(config.dropout)
        self.register_buffer("mean", torch.zeros(len(groups) * H))
        self.register_buffer("std", torch.ones(len(groups) * H))

    @torch.no_grad()
    def measure(self, rows: Tensor) -> None:
        """Take over mean and deviation of training features (n, C·H)."""
        std, mean = torch.std_mean(rows, dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H), filled → what is added to the outputs (B, T)."""
        parts = self.drop((x.flatten(1) - self.mean) / self.std).split(self.sizes, 1)  # (B, scales·H) each
        sides = [side(parts[m]) for side, m in zip(self.sides, (m for pair in self.pairs for m in pair), strict=True)]
        products = [one * other for one, other in zip(sides[::2], sides[1::2], strict=True)]  # (B, R) each
        added: Tensor = torch.cat(products, 1) @ self.out.T  # (B, T)
        return added
