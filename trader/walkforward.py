"""Folds: which sessions a model learns from, stops on, and is used for. Arithmetic only.

    ├──────── train ────────┤ purge ├─ validation ─┤ purge ├T│ use …
                                                            ▲ trained here, in use from the next session

With ``kept`` sessions kept back for a challenge (trader.adoption) they are the newest whose label is known at T:

    ├─── train ───┤ purge ├─ validation ─┤ purge ├─ challenge ─┤T│ use …

T is a session whose XNYS number (0 = 1990-01-02) is divisible by ``step``, whatever the run's first day, so that a
session has the same model in every run. Positions below count the sessions that the window holds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trader.config import WalkForward


@dataclass(frozen=True, slots=True)
class Fold:
    """One training and what it is used for; all ranges are positions in the window.

    trained_at: XNYS number of T.  use: the decisions made with this model.
    challenge: what a newcomer and the model in use are compared on; it neither trains nor validates. Empty by default.
    The label of the last validation session is known at T (its gap to the first use is ``purge`` sessions, or more).
    """

    trained_at: int
    train: range
    validation: range
    use: range
    challenge: range = range(0)


def is_retrain_session(number: int, spec: WalkForward) -> bool:
    """Tell whether a model is trained at the session with this XNYS number."""
    return number % spec.step == 0


def needed(spec: WalkForward, kept: int = 0) -> int:
    """Return how many sessions a fold takes, from its first training decision to T."""
    return spec.train + spec.validation + 2 * spec.purge + (kept + spec.horizon if kept else 0)


def fold_at(trained_at: int, held: int, warm_up: int, spec: WalkForward, kept: int = 0) -> Fold | None:
    """Return the fold trained at session ``trained_at`` with ``held`` sessions in the window, or None if too few.

    warm_up: leading positions that cannot be decisions (their features or lookback are incomplete).
    kept: labelled sessions kept back for a challenge.
    """
    labelled = held - spec.horizon
    challenge = range(labelled - kept, labelled) if kept else range(0)
    newest = challenge.start if kept else held
    validation = range(newest - spec.purge - spec.validation, newest - spec.purge)
    train_stop = validation.start - spec.purge
    first = train_stop - spec.train
    if first < warm_up:
        return None
    train = range(warm_up if spec.mode == "expanding" else first, train_stop)
    return Fold(trained_at, train, validation, use=range(held, held), challenge=challenge)


def plan(
    numbers: Sequence[int],
    first_use: int,
    warm_up: int,
    spec: WalkForward,
    late: Collection[int] = (),
    *,
    kept: int = 0,
    idle: bool = False,
) -> list[Fold]:
    """Return the folds whose models decide positions first_use … len(numbers)−1, oldest first.

    numbers: XNYS number of each session held, increasing.  late: of those whose bar was only known a session later,
        so that a model trained on that very day does not have it.   kept: see ``fold_at``.
    idle: keep folds that decide nothing for want of bars, too, as a run day by day trains them.
    The first fold is the latest one trained before ``first_use`` where there is enough history, else the first that
    is full.
    """
    folds: list[Fold] = []
    if not numbers:
        return folds
    held_numbers = np.asarray(numbers)
    start = -(-int(held_numbers[0]) // spec.step) * spec.step
    for trained_at in range(start, int(held_numbers[-1]), spec.step):
        after = int(np.searchsorted(held_numbers, trained_at, side="right"))
        fold = fold_at(trained_at, after - (trained_at in late), warm_up, spec, kept)
        if fold is None:
            continue
        stop = min(int(np.searchsorted(held_numbers, trained_at + spec.step, side="right")), len(numbers))
        use = range(max(after, first_use), stop)
        if use or (idle and trained_at + spec.step >= held_numbers[first_use]):
            folds.append(replace(fold, use=use or range(use.start, use.start)))
    return folds
