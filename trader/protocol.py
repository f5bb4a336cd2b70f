"""Which sessions an experiment trains, selects and tests on: the papers' sliding windows, and a walk-forward beside.

    window w   ├──────── 400 train ────────┤ 50 validation ┤ 49 test ┤·     each window 391 sessions after the last

The papers' windows are contiguous, without a purge: a label that crosses a split is known before the first decision
after it. The last session of a window has its label outside, so 49 of its 50 test sessions are measured.
Arithmetic only; positions count the sessions that the window holds.
Source: FININ, section 5.1; the placement is the one that its accuracies, multiples of 1/490, allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trader.config import WalkForward
from trader.walkforward import Fold, plan

Protocol = Literal["windows", "walkforward"]


@dataclass(frozen=True, slots=True)
class Windows:
    """The papers' sliding windows, in sessions; the three parts of a window are split 8 : 1 : 1."""

    length: int = 500
    step: int = 391
    most: int = 10

    @property
    def train(self) -> int:
        """Sessions that are learned from."""
        return self.length * 8 // 10

    @property
    def validation(self) -> int:
        """Sessions that a setting and the epoch to stop at are chosen on."""
        return self.length // 10


def sliding(numbers: Sequence[int], first: int, stop: int, windows: Windows) -> list[Fold]:
    """Return as many windows as the positions first … stop−1 hold, at most ``windows.most``, oldest first.

    numbers: XNYS number of each session held.
    """
    folds = []
    for start in range(first, stop - windows.length + 1, windows.step):
        validation = range(start + windows.train, start + windows.train + windows.validation)
        use = range(validation.stop, start + windows.length - 1)
        folds.append(Fold(numbers[use.start - 1], range(start, validation.start), validation, use))
    return folds[: windows.most]


def walking(numbers: Sequence[int], first: int, stop: int, spec: WalkForward) -> list[Fold]:
    """Return the folds of a contiguous walk-forward over the positions first … stop−2, oldest first.

    Nothing before ``first`` is a training decision; the last position has no label and is no test day. The first
    fold is the first that is full.
    """
    folds = plan(numbers[:stop], first, first, spec)
    return [
        Fold(fold.trained_at, fold.train, fold.validation, range(fold.use.start, min(fold.use.stop, stop - 1)))
        for fold in folds
        if fold.use.start < stop - 1
    ]
