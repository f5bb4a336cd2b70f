"""What the broker stage costs beside backtrader alone, on 4,027 real sessions; promised: at most 1.5 times.

    python -m benchmarks.broker [REPEATS]

The heaviest case (a random side every day, so two trades in three days) and the usual one (a side kept ten days).
Runs alternate, and the fastest of each is compared, in CPU seconds: other work on the machine then cancels out.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
import random
import sys
from time import process_time

from arch.data import sp500

from strategies.long_short import LongShort
from trader.broker import bare_seconds, trade
from trader.events import Bar, Signal


def real_bars() -> list[Bar]:
    known_at = datetime(2019, 1, 1, tzinfo=timezone.utc)
    return [
        Bar(
            symbol="sp500",
            session=day.date(),
            open=row["Open"],
            high=row["High"],
            low=row["Low"],
            close=row["Close"],
            adj_close=row["Adj Close"],
            volume=row["Volume"],
            known_at=known_at,
        )
        for day, row in sp500.load().loc["2003":"2018"].iterrows()
    ]


def random_signals(bars: list[Bar], keep: int) -> list[Signal]:
    rng = random.Random(1)
    side, signals = 0, []
    for index, bar in enumerate(bars):
        if index % keep == 0:
            side = rng.choice((-1, 0, 1))
        signals.append(Signal(session=bar.session, symbol="sp500", p_up=0.5 + side / 10, side=side, model_id="random"))
    return signals


def cpu_seconds(work: Callable[[], object]) -> float:
    started = process_time()
    work()
    return process_time() - started


def main(repeats: int = 7) -> None:
    bars = real_bars()
    for keep in (1, 10):
        signals = random_signals(bars, keep)
        ours, bare = [], []
        for _ in range(repeats):
            ours.append(cpu_seconds(lambda signals=signals: trade(bars, signals, LongShort)))
            bare.append(cpu_seconds(lambda signals=signals: bare_seconds(bars, signals, LongShort)))
        print(
            f"{len(bars)} sessions, a side kept {keep:2} days: trade {min(ours):.3f} s, "
            f"bare backtrader {min(bare):.3f} s, ratio {min(ours) / min(bare):.2f} (promised ≤ 1.5)"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
