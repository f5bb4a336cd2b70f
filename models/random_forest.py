"""Random forest on daily numbers, for the next movement: a baseline of MSMF's table 2.

scikit-learn grows the trees; what is kept of them, written down and asked for a forecast are plain arrays.
Letters as in models.day_numbers, and
    T trees   N nodes of all trees together   n = t·C numbers of a decision

Source: Breiman 2001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.base import Days, FitReport, Prediction, Weights
from models.day_numbers import DayNumbers, describe
from models.fitting import log_loss
from models.panel import Part
from trader.errors import ConfigError, ModelError

Floats = NDArray[np.float64]

LEAVES = (5, 20, 80)  # training decisions that a leaf must hold; chosen on validation
BLOCK = 512  # decisions asked of all trees at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomForestConfig:
    """What is chosen before training; ConfigError where a value cannot be used."""

    lookback: int = 5  # t, sessions
    trees: int = 200  # T
    rows: int = 10_000  # decisions drawn for a tree, with replacement: as many as there are, but at most these

    def __post_init__(self) -> None:
        for name in ("lookback", "trees", "rows"):
            if (got := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is too small", where="random_forest", got=got, expected="at least 1")


@dataclass(frozen=True, slots=True)
class Trees:
    """T trees as arrays over their N nodes, one tree after the other, a node's children behind it.

    feature: (N,) which number of a decision a node asks for; −1 at a leaf.   threshold: (N,) float64; a decision whose
    number is at most that goes ``left``, else ``right``: (N,) nodes.   share: (N,) float64, of ups among a node's
    training decisions.   root: (T,) the trees' first nodes.
    """

    feature: NDArray[np.int32]
    threshold: Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    share: Floats
    root: NDArray[np.int32]

    @classmethod
    def of(cls, forest: Any) -> Trees:
        """Take the trees of a RandomForestClassifier of the labels 0 and 1."""
        grown = [one.tree_ for one in forest.estimators_]
        root = np.cumsum([0, *(tree.node_count for tree in grown)])
        leaf = np.concatenate([tree.children_left for tree in grown]) < 0  # (N,)
        left, right = (
            np.concatenate([getattr(tree, f"children_{side}") + at for tree, at in zip(grown, root, strict=False)])
            for side in ("left", "right")
        )
        here = np.arange(len(leaf))
        return cls(
            np.where(leaf, -1, np.concatenate([tree.feature for tree in grown])).astype(np.int32),
            np.where(leaf, 0.0, np.concatenate([tree.threshold for tree in grown])),
            np.where(leaf, here, left).astype(np.int32),
            np.where(leaf, here, right).astype(np.int32),
            np.concatenate([tree.value[:, 0, 1] for tree in grown]),
            root[:-1].astype(np.int32),
        )

    @classmethod
    def alike(cls, label: NDArray[np.float32]) -> Trees:
        """Return the tree of labels that are all alike: their share, drawn towards even by one of each kind."""
        nothing, share = np.zeros(1, np.int32), (float(label.sum()) + 1) / (len(label) + 2)
        return cls(nothing - 1, np.zeros(1), nothing, nothing, np.array([share]), nothing)

    def chances(self, x: NDArray[np.float32]) -> Floats:
        """(B, n) → (B,), the mean share over the trees; a decision's bits do not depend on its neighbours."""
        blocks = [self._block(x[low : low + BLOCK]) for low in range(0, len(x), BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _block(self, x: NDArray[np.float32]) -> Floats:
        row, node = np.arange(len(x))[:, None], np.tile(self.root, (len(x), 1))  # (B, 1), (B, T)
        while (inside := self.feature[node] >= 0).any():
            left = x[row, self.feature[node]] <= self.threshold[node]  # (B, T); at a leaf both ways lead to itself
            node = np.where(inside & left, self.left[node], self.right[node])
        return np.asarray(self.share[node].sum(axis=1) / len(self.root))

    def arrays(self) -> Weights:
        """Return the trees as arrays by name."""
        return {f"trees.{one.name}": getattr(self, one.name).copy() for one in fields(self)}

    @classmethod
    def from_arrays(cls, weights: Mapping[str, NDArray[np.generic]], n: int) -> Trees:
        """Take what ``arrays()`` returned, for decisions of n numbers; ValueError where these are no such trees."""
        found = {one.name: np.array(weights[f"trees.{one.name}"]) for one in fields(cls)}
        for name, array in found.items():
            if array.dtype != (np.float64 if name in ("threshold", "share") else np.int32) or array.ndim != 1:
                raise ValueError(f"weights do not fit: trees.{name} is {array.dtype} {array.shape}")
        trees, here = cls(**found), np.arange(len(found["share"]))
        if {len(array) for name, array in found.items() if name != "root"} != {len(here)} or not len(trees.root):
            raise ValueError("weights do not fit: the trees' arrays are not of one shape")
        inside = trees.feature >= 0
        low, high = np.minimum(trees.left, trees.right), np.maximum(trees.left, trees.right)
        # Children lie behind their node, so that every way down ends.
        if (low < here + inside).any() or (high >= len(here)).any() or (high[~inside] != here[~inside]).any():
            raise ValueError("weights do not fit: the trees' nodes do not lead to their leaves")
        if (trees.root < 0).any() or (trees.root >= len(here)).any() or (trees.feature >= n).any():
            raise ValueError(f"weights do not fit: trees of other numbers than the {n} expected")
        return trees


class RandomForest:
    """Random forest on DayNumbers, size of the leaves chosen on validation, as a Model and a PooledModel.

    Each of ``trees`` trees sees decisions drawn with replacement, as many as there are but at most ``rows``, and at
    each node √n of the numbers; P(up) is the mean over the trees of the share of ups in the leaf.
    expected_return and news_weights are None. ModelError where it is untrained, where a decision lacks its days or its
    label, where a number is none.
    """

    def __init__(self, config: RandomForestConfig | None = None) -> None:
        self.config = config or RandomForestConfig()
        self.lookback = self.config.lookback
        self._kept: tuple[DayNumbers, Trees] | None = None

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        """Learn from decisions on ``train``, choose by the log loss of ``validation``; see models.base.Model."""
        return self.fit_panel([Part(days, train, validation)], seed)

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        """Learn from several symbols at once; see models.panel. FitReport: choices tried, and which was kept."""
        numbers, learned, unseen = describe(parts, self.lookback)
        best = FitReport(math.inf, 0.0)
        for tried, leaf in enumerate(LEAVES, start=1):
            trees = self._grow(learned.x, learned.label, leaf, seed)
            loss, accuracy = log_loss(trees.chances(unseen.x), unseen.label)
            if loss < best.validation_loss:
                best, self._kept = FitReport(loss, accuracy, len(LEAVES), tried), (numbers, trees)
        return best

    def _grow(self, x: NDArray[np.float32], label: NDArray[np.float32], leaf: int, seed: int) -> Trees:
        from sklearn.ensemble import RandomForestClassifier

        if not 0 < label.mean() < 1:
            return Trees.alike(label)
        forest = RandomForestClassifier(
            n_estimators=self.config.trees,
            min_samples_leaf=leaf,
            max_features="sqrt",
            max_samples=min(self.config.rows, len(x)),
            random_state=seed % 2**32,
            n_jobs=1,
        )
        return Trees.of(forest.fit(x, label))

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        """Forecast by numpy alone; see models.base.Model."""
        numbers, trees = self._trained()
        return Prediction(trees.chances(numbers.windows(days, at, self.lookback)))

    def weights(self) -> Weights:
        """Return statistics and trees as arrays; ModelError before training."""
        numbers, trees = self._trained()
        return numbers.arrays() | trees.arrays()

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        """Take what ``weights()`` returned; ValueError where names, shapes or nodes are not such trees'."""
        numbers = DayNumbers.from_arrays(weights, {f"trees.{one.name}" for one in fields(Trees)})
        self._kept = numbers, Trees.from_arrays(weights, self.lookback * len(numbers.scale.mean))

    def _trained(self) -> tuple[DayNumbers, Trees]:
        if self._kept is None:
            raise ModelError("the forest has not been trained", do="call fit or load first")
        return self._kept
