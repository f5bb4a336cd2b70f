"""The commands that bring in prices and headlines, and show what is stored; ``trader.cli`` reads their words."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
import math
from pathlib import Path
from typing import TYPE_CHECKING

from trader.errors import BadBar, BadFile, ConfigError, NoData
from trader.terminal import opened_store, print_table, settings

if TYPE_CHECKING:
    from feeds.price_sets import PriceFile
    from trader.events import Bar, NewsRows
    from trader.store import MarketStore

# Those of trader.parts, which is slow to import.
BUILT_IN_MARKETS, BUILT_IN_NEWS = (
    ("sp500", "nasdaq", "planted", "planted_charts"),
    ("wire", "planted", "planted_charts"),
)
JUMP, MOST_JUMPS = 0.35, 5  # |log(close / close before)| that is worth a line; lines of it
FEW_ROWS, MOST_AT_ONE_TIME = 100, 0.9  # a share of as many headlines at one time of day is worth a line
DAY_S = 24 * 3600


def prices_import(options: argparse.Namespace) -> None:
    """Store the bars of a file, or of many."""
    from feeds.price_sets import holds_many, price_files

    if holds_many(options.files):
        if options.symbol:
            raise ConfigError("--symbol names the symbol of one file", got=options.symbol, do="leave it out for many")
        _import_many(options, price_files(options.files))
        return
    (file,) = price_files(options.files)
    symbol = options.symbol or file.symbol
    _refuse_built_in(symbol)
    empty: list[date] | None = [] if options.skip_empty else None
    bars = replace(file, symbol=symbol).read(empty)
    _say_empty(symbol, empty)
    _store_bars(options, bars, symbol, str(options.files[0]))


def _import_many(options: argparse.Namespace, files: Iterable[PriceFile]) -> None:
    """Store each file's bars, all or none of a file; raise BadFile at the end where some were refused."""
    from trader.clock import WallClock
    from trader.outcome import Home
    from trader.progress import Stages, watching
    from trader.store import MarketStore

    added: Counter[str] = Counter()
    spans: dict[str, tuple[date, date]] = {}
    said: list[str] = []
    refused: list[str] = []
    with (
        watching() as watch,
        Stages(watch)("prices") as step,
        MarketStore.open(Home(settings(options)[1]).store) as store,
    ):
        for done, file in enumerate(files, start=1):
            step(done, done, file.where)  # how many there are is known at the end
            empty: list[date] | None = [] if options.skip_empty else None
            try:
                if file.symbol in spans:
                    raise BadFile("a second file of the same symbol", where=file.where, got=file.symbol)
                _refuse_built_in(file.symbol)
                bars = file.read(empty)
                fate = store.add_bars(bars, source=file.where, noticed_at=WallClock().now())
            except (BadBar, BadFile, ConfigError) as error:
                refused.append(f"Refused: {error}")
                continue
            added.update(new=fate.new, known=fate.known_already, revised=fate.revised)
            spans[file.symbol] = (bars[0].session, bars[-1].session)
            said += [f"{file.symbol}: left out {day}, a row without a number" for day in empty or ()]
            said += _jump_lines(store, file.symbol, bars)
    for line in [*said, *_span_lines(spans), *refused]:
        print(line)
    many = "symbol" if len(spans) == 1 else "symbols"
    fates = f"{added['new']:,} new bars, {added['known']:,} known already, {added['revised']:,} revised"
    print(f"{len(spans):,} {many}: {fates}")
    if refused:
        do = "mend or leave out those files; --skip-empty leaves out rows that hold a date alone"
        raise BadFile(f"{len(refused)} of {len(refused) + len(spans)} files refused, the others are stored", do=do)
    print("Next: python -m trader universe my_universe.toml --make writes a universe of what is stored")


def _say_empty(symbol: str, days: Sequence[date] | None) -> None:
    for day in days or ():
        print(f"{symbol}: left out {day}, a row without a number")


def _span_lines(spans: Mapping[str, tuple[date, date]]) -> list[str]:
    """Say which symbols begin later and end earlier than most do, and between which sessions the others lie."""
    if not spans:
        return []
    (first, _), *_ = Counter(first for first, _ in spans.values()).most_common(1)
    (last, _), *_ = Counter(last for _, last in spans.values()).most_common(1)
    late = [f"{symbol} {start}" for symbol, (start, _) in spans.items() if start > first]
    early = [f"{symbol} {end}" for symbol, (_, end) in spans.items() if end < last]
    lines = [f"Most have {first} to {last}."]
    lines += [f"Begin later: {', '.join(late)}"] if late else []
    return [*lines, *([f"End earlier: {', '.join(early)}"] if early else [])]


def prices_download(options: argparse.Namespace) -> None:
    """Store the bars that Yahoo gives."""
    from feeds.yahoo import fetch_bars
    from trader.clock import WallClock
    from trader.config import day_of

    _refuse_built_in(options.ticker)
    first, last = day_of(options.first, end=False), day_of(options.last, end=True)
    _store_bars(options, fetch_bars(options.ticker, first, last, now=WallClock().now()), options.ticker, "Yahoo")


def _refuse_built_in(symbol: str) -> None:
    if symbol in BUILT_IN_MARKETS:
        raise ConfigError("the name of a built-in market", got=symbol, do="choose another name for yours")


def _store_bars(options: argparse.Namespace, bars: Sequence[Bar], symbol: str, source: str) -> None:
    from trader.clock import WallClock
    from trader.outcome import Home
    from trader.store import MarketStore

    _, home = settings(options)
    if not bars:
        raise NoData("no session of these days has closed yet", where=symbol, do="name earlier days")
    with MarketStore.open(Home(home).store) as store:
        added = store.add_bars(bars, source=source, noticed_at=WallClock().now())
        jumps = _jump_lines(store, symbol, bars)
    print(f"{symbol}: {added.new:,} new bars, {added.known_already:,} known already, {added.revised:,} revised")
    if added.revised:
        print("A revision counts from now on; a backtest goes on with each bar as it was first known.")
        print("Where the whole series was adjusted anew (dividends, a split), import it under another --symbol.")
    for line in jumps:
        print(line)
    print(f"{bars[0].session} to {bars[-1].session}. Next: python -m trader backtest --market {symbol} --from … --to …")


def _jump_lines(store: MarketStore, symbol: str, bars: Sequence[Bar]) -> list[str]:
    """Return a warning for each of the first few jumps of a symbol's closes."""
    return [
        f"Warning: {symbol} {day}: the close went from {before:g} to {close:g}: a split, or a damaged row?"
        for day, before, close in _jumps(store, symbol, bars)[:MOST_JUMPS]
    ]


def _jumps(store: MarketStore, symbol: str, bars: Sequence[Bar]) -> list[tuple[date, float, float]]:
    """Return (session, close before, close) where a backtest would see a move that hardly any market makes."""
    from trader.clock import Calendar, WallClock

    near, now, calendar = timedelta(days=15), store.as_of(WallClock().now()), Calendar()
    newest = now.bars(symbol, bars[0].session - near, bars[-1].session + near)
    closes = [calendar.cutoff(bar.session) for bar in newest]
    series = [  # as each was first known
        bar if bar.known_at <= close else store.as_of(close).bar(symbol, bar.session) or bar
        for bar, close in zip(newest, closes, strict=True)
    ]
    pairs = [(bar.session, before.close, bar.close) for before, bar in pairwise(series)]
    return [pair for pair in pairs if abs(math.log(pair[2] / pair[1])) > JUMP]


def prices_list(options: argparse.Namespace) -> None:
    """Print each symbol with its sessions."""
    from trader.report import plain_table

    with opened_store(options) as store:
        rows = [(name, f"{span.count:,}", span.first, span.last) for name, span in store.symbols().items()]
    print_table(plain_table(("market", "sessions", "first", "last"), rows, right=(1,)))
    print(f"Built in: {', '.join(BUILT_IN_MARKETS)} (stored at their first use).")


def news_import(options: argparse.Namespace) -> None:
    """Store the headlines of files; print what became of their rows."""
    from feeds.news_files import read_news
    from trader.outcome import Home
    from trader.store import FileSource, MarketStore

    _, home = settings(options)
    name = options.name or options.files[0].name.split(".")[0]
    if any(name == own or name.startswith(f"{own}-") for own in BUILT_IN_NEWS):  # versions are sets wire-1, wire-2 …
        raise ConfigError("the name of the built-in news", got=name, do="choose another --name")
    how = {
        "preset": options.preset,
        "columns": _columns(options.columns),
        "zone": options.zone,
        "delay_minutes": options.delay_minutes,
    }
    with MarketStore.open(Home(home).store) as store:
        for file in options.files:
            source = FileSource.of(file, repr(sorted(how.items(), key=str)))
            if store.has_file(name, source):
                print(f"{file}: imported before, nothing to add")
                continue
            seconds: Counter[int] = Counter()
            added = store.add_news(name, _counted(read_news(file, **how), seconds), source=source)
            print(
                f"{file}: {added.new:,} new headlines, {added.known_already:,} known already, "
                f"{added.duplicates:,} repeated, {added.rejected:,} rejected"
            )
            if added.new:
                _warn_of_one_time_of_day(file, seconds)
        counts = store.quarantine_counts(name)
        for reason, count in sorted(counts.items(), key=lambda pair: -pair[1])[:10]:
            print(f"  quarantine: {count:,} × {reason}")
        span = store.names()[name]
    if counts:
        print(f"`python -m trader news quarantine {name}` shows the rows.")
    if span.first is None:
        raise NoData(
            "not one usable headline",
            where=", ".join(file.name for file in options.files),
            got=f"{sum(counts.values()):,} rows in quarantine",
            do="check the file, or state --columns and --zone",
        )
    print(f"{name}: {span.count:,} headlines, {span.first:%Y-%m-%d} to {span.last:%Y-%m-%d}.")
    print(f"Next: python -m trader backtest --news {name} --from … --to …")


def _counted(pieces: Iterable[NewsRows], seconds: Counter[int]) -> Iterator[NewsRows]:
    """Pass the pieces on, counting their headlines by the second of the day, UTC, from which each counts."""
    import numpy as np

    for piece in pieces:
        found, counts = np.unique(piece.news.published_at // 1_000_000 % DAY_S, return_counts=True)
        seconds.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        yield piece


def _warn_of_one_time_of_day(file: Path, seconds: Counter[int]) -> None:
    """Print a line where nearly all headlines state one time: dates that somebody turned into instants.

    Days and minutes count from their last second, :59, and are safe. Midnight in a zone is two times in UTC, an hour
    apart in summer and winter.
    """
    rows = seconds.total()
    stated = [second for second in seconds if second % 60 != 59]
    shares = {second: (seconds[second] + seconds[(second + 3600) % DAY_S]) / max(rows, 1) for second in stated}
    if rows < FEW_ROWS or max(shares.values(), default=0.0) <= MOST_AT_ONE_TIME:
        return
    at = max(shares, key=lambda second: (shares[second], seconds[second]))
    print(
        f"Warning: {shares[at]:.0%} of the headlines of {file} state the time {at // 3600:02}:{at // 60 % 60:02}:"
        f"{at % 60:02} UTC or one hour later. They look like bare dates that were turned into times: each headline "
        "would be known before its day began, and a backtest would trade on the future. Unless they did come out "
        "then, import the file under another --name with --delay-minutes 1440."
    )


def _columns(text: str | None) -> dict[str, str] | None:
    """Read published_at=Date,headline=Title; raise ConfigError for anything else."""
    if text is None:
        return None
    pairs = [part.split("=", 1) for part in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ConfigError("--columns cannot be read", got=text, expected="published_at=Date,headline=Title,…")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


def news_list(options: argparse.Namespace) -> None:
    """Print each news set with its span."""
    from trader.report import plain_table

    with opened_store(options) as store:
        rows = [
            (name, f"{span.count:,}", *(f"{at:%Y-%m-%d}" if at else "–" for at in (span.first, span.last)))
            for name, span in store.names().items()
        ]
    print_table(plain_table(("news", "headlines", "known from", "to"), rows, right=(1,)))
    print(f"Built in: {', '.join(BUILT_IN_NEWS)} (stored at their first use).")


def news_quarantine(options: argparse.Namespace) -> None:
    """Print rows that could not be used."""
    from trader.report import plain_table

    with opened_store(options) as store:
        rows = [(one.file, one.row, one.reason, one.text[:60]) for one in store.quarantine(options.name)]
        total = sum(store.quarantine_counts(options.name).values())
    print_table(plain_table(("file", "row", "reason", "text"), rows, right=(1,)))
    print(f"{len(rows):,} of {total:,} rows shown; all are in the table quarantine of the market store.")


def news_presets(options: argparse.Namespace) -> None:
    """Print the known file formats."""
    from feeds.presets import PRESETS
    from trader.report import plain_table

    print_table(plain_table(("preset", "for"), [(name, preset.about) for name, preset in PRESETS.items()]))


def news_download(options: argparse.Namespace) -> None:
    """Fetch a public set into the home folder."""
    from feeds.hub import download_fnspid
    from trader.progress import watching

    _, home = settings(options)
    with watching() as watch:
        path = download_fnspid(home / "downloads", progress=lambda done, total: watch("download", done, total))
    print(f"{path}\nNext: python -m trader news import {path} --preset fnspid --name fnspid")
