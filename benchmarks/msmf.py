"""Measure MSMF on the second planted market (feeds.planted_charts): does it join the chart with the news?

    python -m benchmarks.msmf                          all rows, 5 seeds
    python -m benchmarks.msmf --rows complete --seeds 1
    python -m benchmarks.msmf --missing 0.4 --rows rbm,mean,zero,forward
    python -m benchmarks.msmf --missing 0.4 --rows rbm,mean,zero,forward --outage      headlines fail after training

2,000 sessions to train, 200 to stop on, the rest to test. Each seed draws a market and a training; a row is the mean
over seeds with the 95 % interval of Student's t, its share that of the best reachable gain over a coin. The last column
is by how much the first row is ahead of this one, paired on the same markets and days. With ``--missing`` headlines
of that share of all days are gone, in training too unless ``--outage``. The chart has no bars of volume: they would
show the topic too.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from benchmarks.planted import days_of
from feeds import planted_charts
from feeds.planted_charts import Dials, best_accuracy
from models.base import Days
from models.embeddings import EmbeddingCache
from models.fitting import held
from models.msmf.model import Msmf, MsmfConfig
from models.text import TextEncoder

# Clearer than the default dials: twice the shadows, and the news is about one of two industries.
CLEAR = Dials(shadow_bps=300.0, topics=2, noise=5)
FIRST, TRAIN, VALIDATION, GAP = 60, 2_000, 200, 3
SETTINGS: dict[str, Any] = {"chart_volume": False, "pretrain_epochs": 10, "patience": 8, "learning_rate": 3e-3}
ROWS: dict[str, dict[str, Any]] = {
    "complete": {},
    "no products": {"pair_rank": 0},
    "no pretraining": {"pretrain_epochs": 0},
    "as in the paper": {"pair_rank": 0, "pretrain_epochs": 0},
    "numbers alone": {"modalities": ("numeric",)},
    "chart alone": {"modalities": ("image",)},
    "text alone": {"modalities": ("text",)},
    "chart and text": {"modalities": ("image", "text")},
}
FILLINGS: dict[str, dict[str, Any]] = {name: {"completion": name} for name in ("rbm", "dbn", "mean", "zero", "forward")}


@cache
def market(dials: Dials, folder: str) -> Days:
    """Write the market and embed its headlines with MiniLM."""
    written = planted_charts.write(dials)
    texts = EmbeddingCache.open(Path(folder), TextEncoder.open("minilm"), workers=1)
    return held(days_of(written, texts, planted_charts.MARKET_TEXT), 1 << 30)


def fitted(settings: dict[str, Any], seed: int, dials: Dials, outage: bool, folder: str) -> tuple[float, float, float]:
    """Train once; return accuracy on the test days, that on the silent ones (NaN without any), and CPU seconds.

    outage: nothing is missing before the test days.
    """
    days = market(replace(dials, seed=seed), folder)
    learned = market(replace(dials, seed=seed, missing=0.0), folder) if outage else days
    train = range(FIRST, FIRST + TRAIN)
    validation = range(train.stop + GAP, train.stop + GAP + VALIDATION)
    test = range(validation.stop + GAP, len(days) - 1)
    started = process_time()
    model = Msmf(MsmfConfig(**SETTINGS | settings))
    model.fit(learned, train, validation, seed)
    seconds = process_time() - started
    p_up = model.predict(replace(days, next_return=np.full(len(days), np.nan)), test).p_up
    right = (p_up > 0.5) == (days.label[test.start : test.stop] > 0.5)
    silent = np.diff(days.news_offset)[test.start : test.stop] == 0
    return float(right.mean()), float(right[silent].mean()) if silent.any() else np.nan, seconds


def half_width(figures: NDArray[np.float64]) -> float:
    """Return half the 95 % interval of a mean over K seeds (K,), by Student's t; NaN of one."""
    K = len(figures)
    return float(t.ppf(0.975, K - 1) * figures.std(ddof=1) / K**0.5) if K > 1 else np.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="TEXT,…", help="only rows whose name holds one of these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--missing", type=float, default=0.0, help="share of days without any headline")
    parser.add_argument("--outage", action="store_true", help="they are missing on the test days alone")
    parser.add_argument("--hard", action="store_true", help="at the market's default dials")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", help="keep the embeddings here (default: a new folder, deleted afterwards)")
    asked = parser.parse_args()
    rows = FILLINGS if asked.missing else ROWS
    wanted = [text for text in asked.rows.split(",") if text]
    rows = {name: row for name, row in rows.items() if not wanted or any(text in name for text in wanted)}
    dials = replace(Dials() if asked.hard else CLEAR, missing=asked.missing)
    best = best_accuracy(dials)
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    print(f"best reachable {best:.3f}, {asked.seeds} seeds from {asked.first_seed} on")
    print(
        f"{'':<18}{'accuracy':>10}{'±':>8}{'of the gain':>13}{'silent days':>13}{'CPU s':>8}{'first row ahead by':>21}",
        flush=True,
    )
    with TemporaryDirectory() as new, ProcessPoolExecutor(asked.workers) as pool:
        folder = asked.cache or new
        for seed in seeds:
            market(replace(dials, seed=seed, missing=0.0), folder)  # embedded once, before the processes ask for it
        first = None
        for name, row in rows.items():
            jobs = [pool.submit(fitted, row, seed, dials, asked.outage, folder) for seed in seeds]
            accuracy, silent, seconds = np.array([job.result() for job in jobs]).T
            first = accuracy if first is None else first
            share, ahead = (accuracy.mean() - 0.5) / (best - 0.5), first - accuracy
            said = f"{ahead.mean():>+13.3f} ± {half_width(ahead):.3f}" if name != next(iter(rows)) else ""
            print(
                f"{name:<18}{accuracy.mean():>10.3f}{half_width(accuracy):>8.3f}{share:>12.0%} {silent.mean():>13.3f}"
                f"{seconds.mean():>8.0f}{said}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
