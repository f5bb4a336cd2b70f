"""How a model of several modalities made one decision: what each task took, what was blanked, what had been missing.

``models.msmf`` tells it, ``trader.explain`` asks for it. Apart from models.base, on which the ids of all models depend.

Letters: C features, each one modality at one scale   M modalities   T tasks   K experts
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Filled:
    """A feature that was missing, and what stood in for it.

    method: "rbm", "dbn", "mean", "zero", or "forward", which carries a value of ``sessions_back`` sessions before.
    deviation: root mean square distance of the filled numbers from the training mean, in standard deviations of
        training; 0 is the mean itself, and a training day's own numbers lie about 1 away.
    taken: whether a setting took the modality away that day (``missing_text`` and its like).
    """

    modality: str
    scale: str
    method: str
    deviation: float
    sessions_back: int | None = None
    taken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """How one decision was fused.

    features: C of (modality, scale), those of a modality side by side; modalities: M; tasks: T: their names, in the
        order of the arrays.
    modality_gates: (T, M) float32, rows sum to 1.   scale_gates: (T, C) float32, sum to 1 within each modality.
    gated: False where there are none: all features enter alike, and one gate over the experts serves all tasks.
    expert_gates: (T, K) float32, rows sum to 1.
    kept_within, kept_across: (C,) float32, the share of each feature's numbers that blank learning left other than 0,
        across the scales of its modality and then across modalities; None where nothing is blanked.
    method: how features are fused.   filled: what was missing, in the order of ``features``.
    outputs: (T,) float32, of the movement the log odds, of the return standard deviations of training around its mean.
    paired: (T,) float32, what products of modalities added to them; None where there are none.
    """

    features: tuple[tuple[str, str], ...]
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    modality_gates: NDArray[np.float32]
    scale_gates: NDArray[np.float32]
    gated: bool
    expert_gates: NDArray[np.float32]
    method: str
    kept_within: NDArray[np.float32] | None
    kept_across: NDArray[np.float32] | None
    filled: tuple[Filled, ...]
    outputs: NDArray[np.float32]
    paired: NDArray[np.float32] | None

    def of(self, modality: str) -> list[int]:
        """Return the places of a modality's features among the C."""
        return [at for at, (name, _) in enumerate(self.features) if name == modality]

    @property
    def present(self) -> tuple[tuple[str, str], ...]:
        """The features that were there, whose values are the day's own."""
        missing = {(one.modality, one.scale) for one in self.filled}
        return tuple(feature for feature in self.features if feature not in missing)
