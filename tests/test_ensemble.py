"""The blend: its first level never learns from the days that its second level learns from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.base import Days, Weights
from models.ensemble import Ensemble, EnsembleConfig, blend
from tests.spoken import random_days
from trader.errors import ConfigError, ModelError

TRAIN, VALIDATION = range(12, 112), range(115, 155)
CONFIG = EnsembleConfig(lookback=3, trailing=10, epochs=3)


def level(weights: Weights, *names: str) -> bytes:
    """Return the bytes of these networks' arrays."""
    return b"".join(weights[key].tobytes() for key in sorted(weights) if key.partition(".")[0] in names)


def weights_of(days: Days) -> Weights:
    model = Ensemble(CONFIG)
    model.fit(days, TRAIN, VALIDATION, seed=1)
    return model.weights()


def turned(days: Days, at: range) -> Days:
    """Return the days with the next returns of ``at`` turned round."""
    returns = days.next_return.copy()
    returns[at.start : at.stop] *= -1
    return replace(days, next_return=returns)


def test_the_training_days_are_split_in_time_with_a_day_left_out_between() -> None:
    first, held = blend(TRAIN, 0.3)
    assert (first, held) == (range(12, 81), range(82, 112))


def test_the_base_learners_learn_nothing_from_the_days_held_out() -> None:
    days = random_days()
    first, held = blend(TRAIN, CONFIG.held_out)
    plain, other = weights_of(days), weights_of(turned(days, range(first.stop, held.stop)))
    assert level(other, "lstm", "gru", "numbers", "guesses") == level(plain, "lstm", "gru", "numbers", "guesses")
    assert level(other, "meta") != level(plain, "meta")


def test_the_meta_learner_learns_from_guesses_and_the_guesses_from_the_first_part() -> None:
    days = random_days()
    first, _ = blend(TRAIN, CONFIG.held_out)
    plain, other = weights_of(days), weights_of(turned(days, range(first.start, first.start + 20)))
    for kind in ("lstm", "gru", "meta"):
        assert level(other, kind) != level(plain, kind)


def test_a_base_learner_that_is_wrong_throughout_is_turned_round_by_the_meta_learner() -> None:
    rng = np.random.default_rng(0)
    days = random_days(400)
    days.market[:] = rng.normal(0, 0.01, (400, 6))
    _, held = blend(range(12, 312), CONFIG.held_out)
    up = days.market[:, 0] > 0
    up[held.start :] = ~up[held.start :]  # the rule turns round where the days held out begin
    days.next_return[:] = np.where(up, 0.01, -0.01)
    model = Ensemble(replace(CONFIG, lookback=1, epochs=60, patience=60, learning_rate=1e-2))
    model.fit(days, range(12, 312), range(315, 345), seed=1)
    right = (model.predict(days, range(345, 400)).p_up > 0.5) == up[345:]
    assert right.mean() > 0.75


def test_a_share_that_leaves_either_level_without_days_is_refused() -> None:
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ConfigError, match="held_out is not a share"):
            EnsembleConfig(held_out=share)
    with pytest.raises(ModelError, match="too few decisions to hold some out"):
        blend(range(12, 14), 0.9)
    with pytest.raises(ModelError, match="too few decisions to hold some out"):
        blend(range(12, 14), 0.1)
