"""Folds: which sessions a model learns from, stops on, and is used for. Arithmetic only.

    ├──────── train ────────┤ purge ├─ validation ─┤ purge ├T│ use …
                                                            ▲ trained here, in use from the next session

T is a session whose XNYS number (0 = 1990-01-02) is divisible by ``step``, whatever the run's first day, so that a
session has the same model in every run. Positions below count the sessions that the window holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trader.config import WalkForward


@dataclass(frozen=True, slots=True)
class Fold:
    """One training and what it is used for; all ranges are positions in the window.

    trained_at: XNYS number of T.  use: the decisions made with this model.
    The label of the last validation session is known at T (its gap to the first use is ``purge`` sessions).
    """

    trained_at: int
    train: range
    validation: range
    use: range


def is_retrain_session(number: int, spec: WalkForward) -> bool:
    """Tell whether a model is trained at the session with this XNYS number."""
    return number % spec.step == 0


def fold_at(trained_at: int, held: int, warm_up: int, spec: WalkForward) -> Fold | None:
    """Return the fold trained at session ``trained_at`` with ``held`` sessions in the window, or None if too few.

    warm_up: leading positions that cannot be decisions (their features or lookback are incomplete).
    """
    validation = range(held - spec.purge - spec.validation, held - spec.purge)
    train_stop = validation.start - spec.purge
    first = train_stop - spec.train
    if first < warm_up:
        return None
    train = range(warm_up if spec.mode == "expanding" else first, train_stop)
    return Fold(trained_at=trained_at, train=train, validation=validation, use=range(held, held))


def plan(numbers: Sequence[int], first_use: int, warm_up: int, spec: WalkForward) -> list[Fold]:
    """Return the folds whose models decide positions first_use … len(numbers)−1, oldest first.

    numbers: XNYS number of each session held, increasing.  The first fold is the latest one trained before
    ``first_use`` where there is enough history, else the first that is full.
    """
    folds: list[Fold] = []
    if not numbers:
        return folds
    held_numbers = np.asarray(numbers)
    start = -(-int(held_numbers[0]) // spec.step) * spec.step
    for trained_at in range(start, int(held_numbers[-1]), spec.step):
        held = int(np.searchsorted(held_numbers, trained_at, side="right"))
        fold = fold_at(trained_at, held, warm_up, spec)
        if fold is None:
            continue
        stop = min(int(np.searchsorted(held_numbers, trained_at + spec.step, side="right")), len(numbers))
        use = range(max(held, first_use), stop)
        if use:
            folds.append(Fold(fold.trained_at, fold.train, fold.validation, use))
    return folds
