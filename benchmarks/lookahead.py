"""Look for look-ahead at many cuts: redraw everything after a cut, run again from nothing, compare every signal before.

    python -m benchmarks.lookahead [--cuts 30] [--model finin] [--sessions 400]

The market is made up (tests/builders.py), the chain is the real one with empty caches each time. Ends with exit code 1
if one signal differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys
import tempfile
import time

import numpy as np

from tests import builders
from trader import engine
from trader.events import NewsBatch, Signal


def signals(days: list, cut: int, seed: int, model: str) -> list[Signal]:  # type: ignore[type-arg]
    """Return the signals of a market whose bars and headlines after position ``cut`` come from ``seed``."""
    past = builders.bars(days[: cut + 1])
    bars = [*past, *builders.bars(days[cut + 1 :], seed=seed, start=past[-1].close)]
    parts = [builders.headlines(days[: cut + 1]), builders.headlines(days[cut + 1 :], seed=seed)]
    news = NewsBatch.of([item for part in parts for item in part.items()])
    with tempfile.TemporaryDirectory() as home:
        builders.fill(Path(home), bars, news)
        made = engine.backtest(
            builders.config(model=model), Path(home), days[100], days[-1], readers=builders.readers()
        )
    return list(made.forecasts.signals)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=30)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--model", default="finin")
    options = parser.parse_args()
    days = builders.sessions(options.sessions)
    cuts = np.random.default_rng(0).choice(np.arange(120, options.sessions - 1), options.cuts, replace=False)
    started, differing = time.perf_counter(), 0
    for cut in sorted(int(cut) for cut in cuts):
        one, other = (signals(days, cut, seed, options.model) for seed in (2 * cut + 1, 2 * cut + 2))
        before = [(a, b) for a, b in zip(one, other, strict=True) if a.session <= days[cut]]
        changed = sum(a != b for a, b in before)
        after = sum(a != b for a, b in zip(one, other, strict=True)) - changed
        differing += changed
        print(f"cut after {days[cut]}: {len(before)} signals before it, {changed} differ; {after} after it differ")
    print(f"{options.cuts} cuts, {differing} signals differ, {time.perf_counter() - started:.0f} s")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
