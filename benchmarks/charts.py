"""How many charts are drawn a second on one core: ``python -m benchmarks.charts [CHARTS]``."""

from __future__ import annotations

import sys
from time import perf_counter, process_time

import numpy as np

from models.charts import ChartConfig, charts

ROUNDS = 5


def market(count: int) -> np.ndarray:
    """Return made-up features (count, 6): moves of 1 % a session."""
    rng = np.random.default_rng(0)
    opened, close = rng.normal(0, 0.004, count), rng.normal(0, 0.01, count)
    spread = np.abs(rng.normal(0, 0.004, (2, count)))
    high, low = np.maximum(opened, close) + spread[0], np.minimum(opened, close) - spread[1]
    return np.column_stack([opened, high, low, close, close, rng.normal(0, 0.4, count)]).astype(np.float32)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000
    for sessions in (5, 20, 60):
        how = ChartConfig(sessions)
        made, at = market(count + how.reads), np.arange(how.reads, count + how.reads)
        charts(made, at[:100], how)
        walls, cpus = [], []
        for _ in range(ROUNDS):
            wall, cpu = perf_counter(), process_time()
            charts(made, at, how)
            walls.append(perf_counter() - wall)
            cpus.append(process_time() - cpu)
        rates = f"{count / min(cpus):>10,.0f} a CPU second, {count / min(walls):>10,.0f} a second"
        sys.stdout.write(f"{sessions:>3} sessions, {how.width:>3} × {how.height}: {rates} (best of {ROUNDS})\n")


if __name__ == "__main__":
    main()
