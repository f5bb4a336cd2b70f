"""The command that shows a universe against the store, and writes one from what is stored."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trader.errors import ConfigError
from trader.terminal import opened_store, print_table, settings, write

if TYPE_CHECKING:
    from trader.store import MarketStore
    from trader.universe import Universe


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add the words of `universe`."""
    parser = commands.add_parser("universe", help="show the symbols of a universe, or write its file")
    shared(parser)
    parser.add_argument("file", type=Path, help="a TOML file (docs/universe.md)")
    parser.add_argument("--news", metavar="NAME", help="the run's news set (default: that of [run])")
    parser.add_argument(
        "--make", nargs="*", metavar="SYMBOL", help="write the file first, from these symbols or all that you imported"
    )
    parser.add_argument("--market-news", action="store_true", help="with --make: read headlines without a ticker, too")
    parser.set_defaults(command=show)


def show(options: argparse.Namespace) -> None:
    """Print what the store holds for each symbol; with --make, write the file before."""
    from trader.clock import Calendar, WallClock
    from trader.parts import stock_universe
    from trader.report import universe_table
    from trader.universe import load_universe, some
    from trader.universe_contents import contents_of
    from trader.universe_spans import check_store

    config, _ = settings(options)
    with opened_store(options) as store:
        if options.make is not None:
            _make(options, store)
        universe = stock_universe(store, load_universe(options.file), options.news or config.run.news)
        check_store(store, universe)
        rows = contents_of(store, Calendar(), universe, WallClock().now())
    print_table(universe_table(rows))
    print(f"{universe.name}: {len(universe):,} symbols, {sum(row.headlines for row in rows):,} headlines read.")
    silent = [row.symbol for row in rows if not row.headlines]
    if silent:
        print(f"No headline on a session with a bar: {some(silent)} (`tickers` says which headlines are a symbol's).")


def _make(options: argparse.Namespace, store: MarketStore) -> None:
    """Write the file; raise ConfigError where it is there already."""
    if options.file.exists():
        raise ConfigError("the file is there already", where=options.file, do="choose another name, or delete it")
    write(options.file, _made(options, store).as_text())


def _made(options: argparse.Namespace, store: MarketStore) -> Universe:
    from trader.cli_intake import BUILT_IN_MARKETS
    from trader.universe import Member, Universe

    names = options.make or [name for name in store.symbols() if name not in BUILT_IN_MARKETS]
    if not names:
        raise ConfigError("no symbol to write", do="import prices first: python -m trader prices import FILE…")
    plain = [Member.plain(name, news=options.news or "", market_news=options.market_news) for name in names]
    made = Universe(options.file.stem, tuple(plain))
    return Universe.from_text(made.as_text(), options.file)  # checks the names
