"""From fused features to the two forecasts: multi-granularity gates, experts (eq. 4), task-targeted layers (eq. 5).

Source: Qin, "MSMF", eqs. 4 and 5; the experts are those of Ma et al. 2018, "Modeling Task Relationships in Multi-task
Learning with Multi-gate Mixture-of-Experts". Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.msmf.config import SCALES, MsmfConfig
from models.msmf.fusion import Fused, groups_of


class Shares(NamedTuple):
    """What a task takes. features: (B, T, C) products of both gates.   modalities: (B, T, modalities).

    scales: (B, T, C) shares within each modality.   experts: (B, T, K). All but ``features`` sum to 1 in their group.
    """

    features: Tensor
    modalities: Tensor
    scales: Tensor
    experts: Tensor


class MultiGranularityGates(nn.Module):
    """For each task how much of fine and coarse within each modality, and how much of each modality.

    Both gates see the features before fusion, and which of them were filled in. Uniform at the start.
    """

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        features, self.groups = config.features, groups_of(config.features)
        C, modalities, self.T = len(features), max(self.groups) + 1, len(config.asked)
        # Matrix products over 198 numbers a row were seen to round a row by its place in the batch, over 200 not.
        self.flags = -(-C // 8) * 8
        seen = C * config.hidden + self.flags
        self.scale, self.modality = nn.Linear(seen, self.T * C), nn.Linear(seen, self.T * modalities)
        for layer in (self.scale, self.modality):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, H), present (B, C) → shares of scales (B, T, C), of modalities (B, T, modalities)."""
        B, C, _ = x.shape
        flags = F.pad(present.to(x.dtype), (0, self.flags - C))  # (B, flags)
        seen = torch.cat([self.norm(x).flatten(1), flags], 1)  # (B, C·H + flags)
        scales, parts, low = self.scale(seen).view(B, self.T, C), [], 0
        for group in dict.fromkeys(self.groups):
            high = low + self.groups.count(group)
            parts.append(scales[:, :, low:high].softmax(2))  # (B, T, scales of this modality)
            low = high
        return torch.cat(parts, 2), self.modality(seen).view(B, self.T, -1).softmax(2)


class TaskTargetedGates(nn.Module):
    """Eq. 4: h_t = Σ_k g_{t,k} · f_k(X_all); K experts, one softmax gate a task.

    With multi-granularity gates each task shows the experts its own X_all; without, there is one gate for all tasks.
    """

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        n, H, K = len(config.features) * config.tokens * config.token_width, config.hidden, config.experts
        self.T, self.K, self.own = len(config.asked), K, config.gates
        self.norm = nn.LayerNorm(n)
        self.first, self.second = nn.Linear(n, K * H), nn.Parameter(torch.empty(K, H, H))
        nn.init.normal_(self.second, std=H**-0.5)
        self.gate = nn.Linear(n, (self.T if config.gates else 1) * K)
        nn.init.zeros_(self.gate.weight)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each task's features (B, T, C·J·W) → h (B, T, H), gates (B, T, K)."""
        B, T, _ = x.shape
        x = self.norm(x)  # (B, T, n)
        experts = F.gelu(self.first(x)).view(B, T, self.K, -1)  # (B, T, K, H)
        experts = torch.einsum("btkh,khg->btkg", self.drop(experts), self.second)  # (B, T, K, H)
        gates = self.gate(x).view(B, T, -1, self.K)  # (B, T, T or 1, K)
        gates = torch.stack([gates[:, t, t if self.own else 0] for t in range(T)], 1).softmax(2)  # (B, T, K)
        return (gates[..., None] * experts).sum(2), gates  # (B, T, H)  eq. 4


class TaskTargetedPrediction(nn.Module):
    """Eq. 5: a tower a task over h_t, with a skip from the fine and the coarse aligned features around the fusion."""

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        H, width = config.hidden, config.tokens * config.token_width
        self.scales = [[c for c, feature in enumerate(config.features) if feature.scale == scale] for scale in SCALES]
        self.skips = nn.ModuleList(nn.Linear(width, H) for _ in SCALES)
        self.towers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(3 * H), nn.Linear(3 * H, H), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(H, 1)
            )
            for _ in config.asked
        )

    def forward(self, h: Tensor, aligned: Tensor) -> Tensor:
        """h (B, T, H), aligned features (B, C, J·W) → outputs (B, T)."""
        skips = [
            skip(aligned[:, at].mean(1)) if at else aligned.new_zeros(len(h), h.shape[2])  # (B, H)
            for skip, at in zip(self.skips, self.scales, strict=True)
        ]
        said = [tower(torch.cat([h[:, t], *skips], 1)) for t, tower in enumerate(self.towers)]  # T of (B, 1)
        return torch.cat(said, 1)


class Tasks(nn.Module):
    """Everything after the fusion: gates, experts, towers."""

    def __init__(self, config: MsmfConfig) -> None:
        super().__init__()
        self.groups, self.T = groups_of(config.features), len(config.asked)
        self.gates = MultiGranularityGates(config) if config.gates else None
        self.experts, self.predict = TaskTargetedGates(config), TaskTargetedPrediction(config)

    def forward(self, x: Tensor, present: Tensor, fused: Fused) -> tuple[Tensor, Shares]:
        """Features (B, C, H) before fusion, present (B, C), Fused → outputs (B, T), Shares."""
        C = x.shape[1]
        if self.gates is not None:
            scales, modalities = self.gates(x, present)  # (B, T, C), (B, T, modalities)
        else:
            scales, modalities = self._even(x)
        shares = scales * modalities[:, :, self.groups]  # (B, T, C); they sum to 1
        own = fused.fused[:, None] * (shares * C)[..., None]  # (B, T, C, J·W); an even share changes nothing
        h, experts = self.experts(own.flatten(2))  # (B, T, H), (B, T, K)
        return self.predict(h, fused.aligned), Shares(shares, modalities, scales, experts)

    def _even(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shares (1, T, C) and (1, T, modalities) that leave every feature as it is."""
        counts = torch.tensor([self.groups.count(group) for group in self.groups], dtype=x.dtype, device=x.device)
        names = list(dict.fromkeys(self.groups))
        weights = torch.tensor([self.groups.count(group) for group in names], dtype=x.dtype, device=x.device)
        scales = (1 / counts).expand(1, self.T, -1)
        return scales, (weights / weights.sum()).expand(1, self.T, -1)
