"""Measure on the second planted market (feeds.planted_charts) what its inputs tell alone, and what together.

    python -m benchmarks.planted_charts                    5 markets, regressions and trees
    python -m benchmarks.planted_charts --parts convnet    the same with a small convnet on the chart's pixels (minutes)
    python -m benchmarks.planted_charts --parts trees,convnet --markets 2

A row is the mean over markets drawn with different seeds: 2,000 sessions to train, 200 to choose on, 1,050 to test. A
single kind of input should stay at a coin's 0.5, within the two standard errors shown; two together should not.

    numbers   the market features of the last 5 sessions, as the window has them
    shapes    shadows, body and move of the last 20 sessions, without volume
    pixels    a chart of these 20 sessions, three columns each, without volume
    words     how often each word stands in the day's headlines; topic told: whether they name the topic
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
import math
import re
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from benchmarks.planted import days_of, named
from feeds import planted_charts
from feeds.planted_charts import COUNTS, Dials, Written, best_accuracy, features
from models.base import Days

WARM_UP, TRAIN, VALIDATION, TEST = 20, 2_000, 200, 1_050
RECENT, CHART = 5, 20  # sessions of numbers, sessions of a chart
ROWS = 32  # of pixels
EPOCHS, BATCH, LEARNING_RATE = 40, 64, 1e-3  # of the convnet

Floats = NDArray[np.float64]


class NoTexts:
    """Embeddings of nothing, for Days that are asked for their numbers alone."""

    width = 1

    def index(self, texts: Any, progress: object = None) -> NDArray[np.int64]:
        return np.zeros(len(texts), np.int64)

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros((len(index), 1), np.float32)

    def keys_of(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.zeros((len(index), 16), np.uint8)


@dataclass(frozen=True)
class Market:
    """A market and each kind of its input as plain numbers, one row a session; rows before WARM_UP are not used."""

    dials: Dials
    written: Written

    @cached_property
    def days(self) -> Days:
        return days_of(self.written, NoTexts(), planted_charts.MARKET_TEXT)

    @cached_property
    def up(self) -> NDArray[np.bool_]:
        """(S − 1,) whether the next close is higher."""
        return np.diff([bar.close for bar in self.written.bars]) > 0

    @cached_property
    def rule(self) -> Floats:
        return features(self.written.truth)

    @cached_property
    def numbers(self) -> Floats:
        """(S, RECENT·F)."""
        return _windows(self.days.market.astype(np.float64), RECENT)

    @cached_property
    def prices(self) -> Floats:
        """(S, 4) log open, high, low, close."""
        return np.log([(bar.open, bar.high, bar.low, bar.close) for bar in self.written.bars])

    @cached_property
    def shapes(self) -> Floats:
        """(S, CHART·4): shadow above, shadow below, body, move from the close before; in per cent."""
        opened, high, low, close = self.prices.T
        above, below = high - np.maximum(opened, close), np.minimum(opened, close) - low
        moved = np.diff(close, prepend=close[0])
        return _windows(100 * np.stack([above, below, close - opened, moved], axis=1), CHART)

    @cached_property
    def pixels(self) -> Floats:
        """(S, ROWS·3·CHART) of 0 and 1: ticks at open and close, a bar from low to high, top row first."""
        prices = _windows(self.prices, CHART).reshape(-1, CHART, 4)  # (S, n, 4)
        top, bottom = prices.max(axis=(1, 2), keepdims=True), prices.min(axis=(1, 2), keepdims=True)
        row = np.rint((top - prices) / np.maximum(top - bottom, 1e-9) * (ROWS - 1))  # (S, n, 4), 0 at the top
        opened, high, low, close = row[:, None].transpose(3, 0, 1, 2)  # (S, 1, n) each
        at = np.arange(ROWS)[:, None]  # (P, 1)
        lit = np.stack([at == opened, (at >= high) & (at <= low), at == close], axis=3)  # (S, P, n, 3)
        return lit.reshape(len(lit), -1).astype(np.float64)

    @cached_property
    def words(self) -> Floats:
        """(S, V) counts of each word that stands anywhere."""
        said = [re.findall(r"\w+", text.lower()) for text in self.written.news.headline]
        column = {word: at for at, word in enumerate(sorted({word for text in said for word in text}))}
        counts = np.zeros((len(self.written.bars), len(column)))
        for day, (low, high) in enumerate(zip(self.written.truth.offset, self.written.truth.offset[1:], strict=False)):
            for text in said[low:high]:
                np.add.at(counts[day], [column[word] for word in text], 1)
        return counts

    @cached_property
    def told(self) -> Floats:
        """(S, 1) whether the day's headlines name COUNTS: +1, −1, or 0 without any headline."""
        truth, news = self.written.truth, self.written.news.headline
        days = [news[low:high] for low, high in zip(truth.offset, truth.offset[1:], strict=False)]
        said = [(1 if any(COUNTS in text.lower() for text in day) else -1) if day else 0 for day in days]
        return np.array(said, np.float64)[:, None]

    @cached_property
    def volume(self) -> Floats:
        """(S, 1) the day's volume as the window has it."""
        return self.days.market[:, -1:].astype(np.float64)


def drawn(dials: Dials) -> Market:
    """Draw a market for these dials."""
    return Market(dials, planted_charts.write(dials))


def _windows(rows: Floats, count: int) -> Floats:
    """Lay the last ``count`` rows (S, C) side by side, oldest first → (S, count·C); zeros before the first."""
    padded = np.concatenate([np.zeros((count - 1, rows.shape[1])), rows])
    return sliding_window_view(padded, count, axis=0).transpose(0, 2, 1).reshape(len(rows), -1)


def products(one: Floats, other: Floats) -> Floats:
    """Return ``one`` (S, A), ``other`` (S, 1) and their products, side by side (S, 2A + 1)."""
    return np.concatenate([one, other, one * other], axis=1)


Input = Callable[[Market], Floats]
ALONE: dict[str, Input] = {
    "numbers": lambda on: on.numbers,
    "shapes": lambda on: on.shapes,
    "pixels": lambda on: on.pixels,
    "words": lambda on: on.words,
}
TOGETHER: dict[str, Input] = {
    "shapes × topic told": lambda on: products(on.shapes, on.told),
    "shapes × volume": lambda on: products(on.shapes, on.volume),
}


def spans() -> tuple[slice, slice, slice]:
    """Return the decisions to train on, to choose on and to test."""
    ends = np.cumsum([WARM_UP, TRAIN, VALIDATION, TEST]).tolist()
    return slice(ends[0], ends[1]), slice(ends[1], ends[2]), slice(ends[2], ends[3])


def logistic(x: Floats, up: NDArray[np.bool_]) -> float:
    """Accuracy of a logistic regression on standardised numbers, shrinkage chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    train, validation, test = spans()
    spread = x[train].std(axis=0)
    standard = (x - x[train].mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    fitted = [LogisticRegression(C=c, max_iter=500).fit(standard[train], up[train]) for c in (1e-4, 1e-3, 1e-2, 1e-1)]
    chosen = up[validation].astype(int)
    best = max(
        fitted, key=lambda one: float(one.predict_log_proba(standard[validation])[range(VALIDATION), chosen].mean())
    )
    return float(best.score(standard[test], up[test]))


def boosting(x: Floats, up: NDArray[np.bool_]) -> float:
    """Accuracy of gradient-boosted trees four splits deep, stopped on validation."""
    import xgboost

    (train, validation, test), rounds, patience = spans(), 300, 30
    settings = {"objective": "binary:logistic", "max_depth": 4, "eta": 0.05, "subsample": 0.8, "nthread": 1, "seed": 0}
    settings |= {"colsample_bytree": 0.5, "tree_method": "hist", "verbosity": 0, "base_score": 0.5}
    matrices = [xgboost.DMatrix(x[at], up[at]) for at in (train, validation, test)]
    trees = xgboost.train(
        settings,
        matrices[0],
        rounds,
        evals=[(matrices[1], "validation")],
        early_stopping_rounds=patience,
        verbose_eval=False,
    )
    p_up = trees.predict(matrices[2], iteration_range=(0, trees.best_iteration + 1))
    return float(((p_up > 0.5) == up[test]).mean())


def convnet(pixels: Floats, beside: Floats, up: NDArray[np.bool_], seed: int = 0) -> float:
    """Accuracy of two convolutions over the chart, joined with the numbers ``beside`` (S, V), stopped on validation."""
    import torch
    from torch import nn

    torch.set_num_threads(1)  # more than one would round differently on each machine
    torch.manual_seed(seed)
    see = nn.Sequential(  # (B, 1, ROWS, 3n) → (B, 24·n)
        nn.Conv2d(1, 12, (5, 3), stride=(1, 3), padding=(2, 0)),  # (B, 12, ROWS, n)
        nn.LeakyReLU(0.01),
        nn.MaxPool2d((2, 1)),
        nn.Conv2d(12, 24, (5, 3), padding=(2, 1)),
        nn.LeakyReLU(0.01),
        nn.AdaptiveAvgPool2d((1, CHART)),  # (B, 24, 1, n): where it stands matters, at which price it does not
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(24 * CHART, 64),
        nn.ReLU(),
    )
    hear = nn.Linear(beside.shape[1], 8)
    join = nn.Sequential(nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 1))
    weights = [weight for part in (see, hear, join) for weight in part.parameters()]
    optimiser = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=0.01)
    images = torch.from_numpy(pixels.reshape(-1, 1, ROWS, 3 * CHART)).float()
    centred = beside - beside[spans()[0]].mean(axis=0)  # a product is all there is to learn
    numbers, label = torch.from_numpy(centred).float(), torch.from_numpy(up).float()

    def logits(at: Any) -> Any:
        return join(torch.cat([see(images[at]), hear(numbers[at])], dim=1)).squeeze(1)

    (train, validation, test), least, reached = spans(), math.inf, 0.0
    loss = nn.functional.binary_cross_entropy_with_logits
    for _ in range(EPOCHS):
        see.train()
        for rows in (torch.randperm(TRAIN) + train.start).split(BATCH):
            optimiser.zero_grad()
            loss(logits(rows), label[rows]).backward()
            optimiser.step()
        see.eval()
        with torch.no_grad():
            if (now := float(loss(logits(validation), label[validation]))) < least:
                least, reached = now, float(((logits(test) > 0) == (label[test] > 0.5)).float().mean())
    return reached


def standard_error(markets: int) -> float:
    """Standard error of a coin's accuracy over the test sessions of so many markets."""
    return 0.5 / math.sqrt(TEST * markets)


def rows(part: str) -> Iterator[tuple[str, Callable[[Market], float]]]:
    """Yield each row of a part: its name, and what it measures on a market."""
    if part == "convnet":
        yield "convnet: pixels alone", lambda on: convnet(on.pixels, np.zeros((len(on.pixels), 1)), on.up)
        yield "convnet: pixels + topic told", lambda on: convnet(on.pixels, on.told, on.up)
        yield "convnet: pixels + words", lambda on: convnet(on.pixels, on.words, on.up)
        return
    yield "logistic: the rule’s own features", lambda on: logistic(on.rule, on.up)
    for name, input_of in (ALONE | TOGETHER).items():
        yield f"logistic: {name}", lambda on, of=input_of: logistic(of(on), on.up)
        if name != "pixels":  # its 1,920 columns say what the shapes do, and trees are slow on them
            yield f"boosting: {name}", lambda on, of=input_of: boosting(of(on), on.up)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="trees", help="of trees, convnet")
    parser.add_argument("--rows", default="", metavar="TEXT,…", help="only rows whose name holds one of these")
    parser.add_argument("--markets", type=int, default=5, help="how many, by seeds 0, 1, …")
    options = parser.parse_args()
    dials = Dials(sessions=WARM_UP + TRAIN + VALIDATION + TEST + 1)
    markets = [drawn(replace(dials, seed=seed)) for seed in range(options.markets)]
    print(dials)
    for name, missing in {"chart and words": 0.0, "40 % of words missing": 0.4, "chart and volume": 1.0}.items():
        print(f"{'best reachable: ' + name:<40}{best_accuracy(dials, missing):7.3f}")
    print(f"{'two standard errors of a coin':<40}{2 * standard_error(options.markets):7.3f}")
    chosen = dict(row for part in options.parts.split(",") for row in rows(part))
    for name in named(chosen, [text for text in options.rows.split(",") if text]):
        reached = np.array([chosen[name](on) for on in markets])
        print(f"{name:<40}{reached.mean():7.3f} ±{reached.std():5.3f}", flush=True)


if __name__ == "__main__":
    main()
