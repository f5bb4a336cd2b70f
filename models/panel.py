"""Many symbols at once: what a model that learns from all of them together is handed.

Such a model is one set of weights for a whole universe. It forecasts one symbol at a time, as any Model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from models.base import Days, FitReport, Model


@dataclass(frozen=True, slots=True)
class Part:
    """One symbol's days, and which of its decisions train and which validate; positions in its own ``days``."""

    days: Days
    train: range
    validation: range


@runtime_checkable
class PooledModel(Model, Protocol):
    """A Model that learns from several symbols' days at once."""

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Learn from the training decisions of all parts, stop and select on all their validation decisions.

        Every statistic comes from the training decisions alone. A part may have no decisions of the one or the other
        kind, but not all of them. The order of the parts is part of the arguments: same arguments, same weights.
        """
        ...
