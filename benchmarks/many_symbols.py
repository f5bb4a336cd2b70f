"""What many symbols cost: TopK over made-up random walks, in CPU seconds on one core; promised: 88 × 504 under 20.

    python -m benchmarks.many_symbols [SYMBOLS] [SESSIONS]

Every symbol has a forecast in every session, so TopK rebalances all it holds each day; a tenth of the symbols are
listed later, and one bar in fifty is missing.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
import math
import random
import sys
from time import process_time

from strategies.top_k import TopK
from trader.events import Bar, Signal
from trader.universe_broker import UniverseSession, UniverseTrading, always_buy_universe, by_session, trade_universe


def made_up(symbols: list[str], count: int) -> list[UniverseSession]:
    rng, known_at = random.Random(1), datetime(2030, 1, 1, tzinfo=timezone.utc)
    bars, signals = [], []
    for symbol in symbols:
        close, first = 100.0, 0 if rng.random() < 0.9 else rng.randrange(count)
        for at in range(first, count):
            session = date(2020, 1, 1) + timedelta(days=at)
            opened = close * math.exp(rng.gauss(0, 0.004))
            close = opened * math.exp(rng.gauss(0, 0.015))
            p_up, expected = rng.uniform(0.4, 0.6), rng.gauss(0, 0.01)
            if rng.random() < 0.02:
                continue
            prices = {"open": opened, "high": max(opened, close), "low": min(opened, close), "close": close}
            bars.append(Bar(symbol=symbol, session=session, **prices, adj_close=close, volume=1.0, known_at=known_at))
            side = 1 if p_up > 0.5 else -1
            signals.append(
                Signal(session=session, symbol=symbol, p_up=p_up, side=side, model_id="made", expected_return=expected)
            )
    return by_session(bars, signals)


def main(count: int = 88, sessions: int = 504) -> None:
    symbols = [f"S{number:03}" for number in range(count)]
    days = made_up(symbols, sessions)

    started = process_time()
    summary = trade_universe(symbols, days, TopK, {"weights": "volatility"})
    print(
        f"{count} symbols × {sessions} sessions, TopK by volatility: {process_time() - started:.1f} s, "
        f"{summary.orders} orders, {len(summary.cut)} cut, {summary.fills} fills"
    )
    started = process_time()
    with UniverseTrading(symbols, TopK, {"weights": "volatility"}) as trading:
        for day in days:
            trading.push(day)
    print(f"the same, one session at a time: {process_time() - started:.1f} s")
    started = process_time()
    always_buy_universe(symbols, days)
    print(f"Always Buy over them: {process_time() - started:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
