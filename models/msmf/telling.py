"""Tell how MSMF fused one decision: its forecast made again in the same shapes, and this time its gates kept.

Upstream ``models.msmf.reader``; what is told is ``models.fusions``. Letters as in ``models.msmf.config``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from models.base import Days
from models.fusions import Filled, Fusion
from models.msmf.reader import Reader, removed


def fusion_of(reader: Reader, days: Days, day: int) -> Fusion:
    """Return how the decision on one of the days was fused; the numbers are bit for bit those of its forecast."""
    network, c = reader.network, reader.config
    x, present, _ = reader.features(days, np.array([day]))  # (1, C + E, H), (1, C)
    filled, said = reader.said(x, present, 0)  # of a whole batch, this decision its every row
    blanked = c.fusion == "progressive"
    return Fusion(
        features=tuple((feature.modality, feature.scale) for feature in c.features),
        modalities=tuple(dict.fromkeys(feature.modality for feature in c.features)),
        tasks=c.asked,
        modality_gates=_first(said.shares.modalities),
        scale_gates=_first(said.shares.scales),
        gated=c.gates,
        expert_gates=_first(said.shares.experts),
        method=c.fusion,
        kept_within=_first(said.fused.kept_within) if blanked else None,
        kept_across=_first(said.fused.kept) if blanked else None,
        filled=_filled(reader, days, day, filled),
        outputs=_first(said.outputs),
        paired=_first(network.pairs(filled)) if network.pairs is not None else None,
    )


def _first(rows: Tensor) -> NDArray[np.float32]:
    return np.array(rows[0].cpu().numpy(), np.float32)


def _filled(reader: Reader, days: Days, day: int, x: Tensor) -> tuple[Filled, ...]:
    """Say of each missing feature what stands in its place in x (B, C, H), whose first row is the decision."""
    c = reader.config
    there = reader.presence(days, np.arange(day - reader.back, day + 1))  # (back + 1, C), oldest first
    far = reader.network.away(x)[0]  # (C,)
    # With nothing to go by a distribution says its mean.
    alone = not reader.network.whole(torch.from_numpy(there[-1:])).any()
    method = "mean" if c.completion == "forward" or (c.completion != "zero" and alone) else c.completion
    made = []
    for at, feature in enumerate(c.features):
        if there[-1, at]:
            continue
        before = np.flatnonzero(there[:, at])
        back = reader.back - int(before[-1]) if len(before) else None
        taken = bool(removed(days, np.array([day]), feature.modality, getattr(c, f"missing_{feature.modality}"))[0])
        made.append(Filled(*feature, method if back is None else "forward", float(far[at]), back, taken))
    return tuple(made)
