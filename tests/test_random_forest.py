"""The forest: scikit-learn's probabilities from plain arrays, leaves whose size validation chooses, no endless walk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models import random_forest
from models.random_forest import LEAVES, RandomForest, RandomForestConfig, Trees
from tests.test_rival_models import TEST, TRAIN, VALIDATION, market, planted
from trader.errors import ConfigError


def trained(seed: int = 1, **settings: Any) -> RandomForest:
    model = RandomForest(RandomForestConfig(**{"lookback": 3, "trees": 30} | settings))
    model.fit(market(), TRAIN, VALIDATION, seed=seed)
    return model


def nodes_of(model: RandomForest) -> Any:
    """Return how many nodes each tree has."""
    weights = model.weights()
    return np.diff([*weights["trees.root"], len(weights["trees.share"])])


@pytest.mark.parametrize("leaf", [1, 5, 60])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_arrays_say_what_scikit_learn_says(leaf: int, rounded: bool) -> None:
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(leaf)
    x = rng.normal(size=(1_300, 12)).astype(np.float32)
    x = x.round() if rounded else x  # whole numbers: many a decision lies on a threshold, or beside it by half
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) > 0).astype(np.float32)
    forest = RandomForestClassifier(40, min_samples_leaf=leaf, random_state=3).fit(x[:500], y[:500])
    trees = Trees.of(forest)
    np.testing.assert_allclose(trees.chances(x), forest.predict_proba(x)[:, 1], rtol=0, atol=1e-12)
    on = np.tile(x[:1], (len(trees.threshold), 1))  # each decision lies on one node's threshold
    inside = trees.feature >= 0
    on[inside, trees.feature[inside]] = trees.threshold[inside].astype(np.float32)
    np.testing.assert_allclose(trees.chances(on), forest.predict_proba(on)[:, 1], rtol=0, atol=1e-12)


def test_a_trained_forest_is_scikit_learns_with_these_settings() -> None:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForest(RandomForestConfig(lookback=3, trees=30, rows=150))
    report = model.fit(market(), TRAIN, VALIDATION, seed=7)
    numbers, _ = model._trained()
    x, y = numbers.windows(market(), TRAIN, 3), market().label[TRAIN.start : TRAIN.stop]
    leaf = LEAVES[report.best_epoch - 1]
    reference = RandomForestClassifier(30, min_samples_leaf=leaf, max_samples=150, random_state=7).fit(x, y)
    said = reference.predict_proba(numbers.windows(market(), TEST, 3))[:, 1]
    np.testing.assert_allclose(model.predict(market(), TEST).p_up, said, rtol=0, atol=1e-12)


def test_validation_chooses_how_much_a_leaf_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for days in (market(), planted(3, rule=0.5), planted(4, rule=0.7)):
        losses = []
        for leaf in LEAVES:
            monkeypatch.setattr(random_forest, "LEAVES", (leaf,))
            model = RandomForest(RandomForestConfig(lookback=3, trees=30))
            losses.append(model.fit(days, TRAIN, VALIDATION, seed=1).validation_loss)
        monkeypatch.undo()
        model = RandomForest(RandomForestConfig(lookback=3, trees=30))
        report = model.fit(days, TRAIN, VALIDATION, seed=1)
        assert report.validation_loss == min(losses) < max(losses) and report.epochs == len(LEAVES)
        kept.append(report.best_epoch)
        assert losses.index(min(losses)) + 1 == kept[-1]
    assert len(set(kept)) > 1


def test_a_tree_draws_no_more_rows_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_forest, "LEAVES", (5,))
    assert nodes_of(trained(rows=10)).max() <= 3 < nodes_of(trained()).min(), "two leaves of five"
    assert len(nodes_of(trained(trees=12))) == 12


def test_a_seed_is_another_forest() -> None:
    one, other = (trained(seed).predict(market(), TEST).p_up for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_trees_that_lead_nowhere_are_refused() -> None:
    weights = trained().weights()
    inside = int(np.flatnonzero(weights["trees.feature"] >= 0)[3])
    for name, value in (("left", inside), ("right", 0), ("left", -1), ("right", len(weights["trees.share"]))):
        array = weights[f"trees.{name}"].copy()
        array[inside] = value
        with pytest.raises(ValueError, match="weights do not fit: the trees' nodes do not lead"):
            RandomForest(RandomForestConfig(lookback=3)).load(weights | {f"trees.{name}": array})
    with pytest.raises(ValueError, match="not of one shape"):
        RandomForest(RandomForestConfig(lookback=3)).load(weights | {"trees.left": weights["trees.left"][1:]})
    with pytest.raises(ValueError, match=r"trees\.share is float32"):
        share = weights["trees.share"].astype(np.float32)
        RandomForest(RandomForestConfig(lookback=3)).load(weights | {"trees.share": share})
    with pytest.raises(ValueError, match="trees of other numbers"):
        RandomForest(RandomForestConfig(lookback=1)).load(weights)


@pytest.mark.parametrize("name", ["lookback", "trees", "rows"])
def test_sizes_that_cannot_be_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"random_forest: {name} is too small"):
        RandomForestConfig(**{name: 0})
