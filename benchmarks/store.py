"""How fast the market store imports, opens and reads: ``python benchmarks/store.py [HEADLINES]``.

Reads the Reuters files of TRADER_TEST_DATA where that is set, else writes 2 million headlines of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timezone
from itertools import pairwise
import os
from pathlib import Path
import resource
import sys
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from trader.clock import Calendar
from trader.events import Bar, NewsBatch, NewsRows
from trader.store import FileSource, MarketStore

PIECE = 50_000
SESSIONS = Calendar().sessions(date(2003, 1, 2), date(2018, 12, 31))


def synthetic(count: int) -> Iterator[NewsRows]:
    """Yield count headlines spread evenly over 2003–2018, oldest first."""
    start, stop = (int(datetime(y, 1, 2, tzinfo=timezone.utc).timestamp() * 1e6) for y in (2003, 2018))
    for first in range(0, count, PIECE):
        number = np.arange(first, min(first + PIECE, count))
        at = start + number * ((stop - start) // count)
        yield _piece(
            at,
            [f"Company {n * 7919 % 5003} says quarter {n} beat what analysts had forecast" for n in number.tolist()],
            [f"S{n}" for n in number.tolist()],
            number,
        )


def reuters(folder: Path) -> Iterator[NewsRows]:
    """Yield the Reuters headlines, file by file."""
    import pandas as pd

    for path in sorted(folder.glob("*.parquet")):
        frame = pd.read_parquet(path)
        at = frame["published_at"].astype("datetime64[us, UTC]").astype("int64").to_numpy()
        headline, item = frame["headline"].tolist(), frame["source_id"].tolist()
        for first in range(0, len(frame), PIECE):
            part = slice(first, first + PIECE)
            yield _piece(at[part], headline[part], item[part], np.arange(first, first + len(at[part])))


def _piece(at: np.ndarray, headline: list[str], item_id: list[str], row: np.ndarray) -> NewsRows:
    count = len(headline)
    sentiment = np.full((count, 3), np.nan, dtype=np.float32)
    news = NewsBatch(
        published_at=at, known_at=at, headline=headline, symbols=[""] * count, sentiment=sentiment, item_id=item_id
    )
    return NewsRows(news=news, row=row + 1)


def timed_import(store: MarketStore, pieces: Iterator[NewsRows], name: str) -> tuple[float, float]:
    """Return the seconds of the import in all, and those that went into making its pieces."""
    making = 0.0

    def watched() -> Iterator[NewsRows]:
        nonlocal making
        while True:
            start = perf_counter()
            piece = next(pieces, None)
            making += perf_counter() - start
            if piece is None:
                return
            yield piece

    start = perf_counter()
    store.add_news("all", watched(), source=FileSource(name=name))
    return perf_counter() - start, making


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    data = os.environ.get("TRADER_TEST_DATA")

    def pieces() -> Iterator[NewsRows]:
        return reuters(Path(data) / "reuters") if data else synthetic(count)

    with TemporaryDirectory() as folder:
        path = Path(folder) / "market.db"
        with MarketStore.open(path) as store:
            total, making = timed_import(store, pieces(), "first")
            size = store.names()["all"].count
            store.add_bars([_bar(day) for day in SESSIONS], source="benchmark")
        with MarketStore.open(path) as store:
            again, again_making = timed_import(store, pieces(), "second")

        calendar = Calendar()
        cutoffs = [calendar.cutoff(day) for day in SESSIONS]
        start = perf_counter()
        with MarketStore.open(path, read_only=True) as store:
            opened = perf_counter() - start
            view = store.as_of(cutoffs[-1])
            counts = [view.news_count("all", a, b) for a, b in pairwise(cutoffs)]
            bars = len(view.bars("SPX", SESSIONS[0], SESSIONS[-1]))
            counted = perf_counter() - start
            busiest = sorted(range(len(counts)), key=counts.__getitem__)[-200:]
            start = perf_counter()
            read = sum(len(view.news("all", cutoffs[day], cutoffs[day + 1])) for day in busiest)
            reading = perf_counter() - start
        rows = [
            ("headlines", f"{size:,}", "Reuters" if data else "synthetic"),
            ("import, store alone", f"{size / (total - making):,.0f} /s", f"{total - making:.1f} s"),
            ("import with its reading", f"{size / total:,.0f} /s", f"{total:.1f} s"),
            ("the same again", f"{size / (again - again_making):,.0f} /s", "all known already"),
            ("open", f"{opened * 1e3:.1f} ms", f"{path.stat().st_size / 1e6:,.0f} MB"),
            ("open + counts + bars", f"{counted:.2f} s", f"{len(counts):,} sessions, {bars:,} bars"),
            ("news of one session", f"{reading / 200 * 1e3:.2f} ms", f"{read / 200:,.0f} headlines each"),
            ("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB", ""),
        ]
    sys.stdout.writelines(f"{what:<26}{figure:>14}   {note}\n" for what, figure, note in rows)


def _bar(day: date) -> Bar:
    known_at = datetime(day.year, day.month, day.day, 21, tzinfo=timezone.utc)
    return Bar(
        symbol="SPX", session=day, open=1.0, high=1.0, low=1.0, close=1.0, adj_close=1.0, volume=1.0, known_at=known_at
    )


if __name__ == "__main__":
    main()
