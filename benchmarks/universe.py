"""How fast many symbols go from files to windows: ``python -m benchmarks.universe``.

Reads the StockNet files (88 symbols, 106,338 tweets) under TRADER_TEST_DATA. The language model is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
import os
from pathlib import Path
import sys
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from feeds.news_files import read_news
from feeds.price_sets import price_files
from tests import builders
from trader.clock import Calendar
from trader.config import Config
from trader.events import BarClosed, NewsArrived
from trader.parts import windows_of
from trader.store import FileSource, MarketStore
from trader.universe import Member, Universe
from trader.universe_events import UniverseScheduler
from trader.universe_spans import universe_span

FIRST, LAST = date(2013, 9, 9), date(2017, 8, 31)


@contextmanager
def timed(what: str) -> Iterator[None]:
    wall, own = perf_counter(), process_time()
    yield
    print(f"{what:<58}{perf_counter() - wall:6.1f} s, of the processor {process_time() - own:5.1f} s")


def main() -> int:
    folder = Path(os.environ["TRADER_TEST_DATA"]) / "stocknet"
    config, calendar = Config(), Calendar()
    with TemporaryDirectory() as home, MarketStore.open(Path(home) / "market.db") as store:
        with timed("import the prices"):
            for file in price_files([folder / "price_raw.tar.gz"]):
                store.add_bars(file.read([]), source=file.where)
        tweets = folder / "tweets_preprocessed.csv.gz"
        with timed("import the tweets"):
            store.add_news("tweets", read_news(tweets, preset="stocknet"), source=FileSource.of(tweets))
        universe = Universe("stocknet", tuple(Member.plain(symbol, news="tweets") for symbol in store.symbols()))
        with timed("find the span"):
            print(universe_span(store, calendar, config, universe, date(2015, 1, 1), date(2015, 12, 31)).span)
        days, events = calendar.sessions(FIRST, LAST), 0
        scheduler = UniverseScheduler(store, calendar, universe, spec=config.walkforward)
        with timed(f"emit the events of {len(universe)} symbols × {len(days):,} sessions"):
            events = sum(1 for _ in scheduler.events(FIRST, LAST))
        windows = windows_of(config, universe, builders.readers())
        with timed(f"the same {events:,} events again, into the windows"):
            for symbol, event in scheduler.events(FIRST, LAST):
                if isinstance(event, NewsArrived | BarClosed):
                    windows[symbol].update(event)
        print(f"{sum(len(day) for one in windows.values() for day in one.headlines):,} headlines held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
