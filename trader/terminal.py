"""What every command shares: its settings and home, the market store, and how a table is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from trader.errors import StoreError

if TYPE_CHECKING:
    from rich.table import Table

    from trader.clock import Clock
    from trader.config import Config
    from trader.logs import Log
    from trader.store import MarketStore


def settings(options: argparse.Namespace) -> tuple[Config, Path]:
    """Return the config and the home folder; config.toml in this folder is read where it exists."""
    from trader.config import home_of, load

    path: Path | None = options.config
    if path is None and Path("config.toml").is_file():
        path = Path("config.toml")
    return load(path), home_of(options.home, path)


def opened_store(options: argparse.Namespace) -> MarketStore:
    """Open the market store of the home that the words name."""
    from trader.outcome import Home
    from trader.store import MarketStore

    return MarketStore.open(Home(settings(options)[1]).store)


def add_log_words(parser: argparse.ArgumentParser) -> None:
    """Let a command that serves say where its log goes and what it looks like."""
    parser.add_argument("--log", choices=["json", "text"], help="form of the log (default: text on a terminal)")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append the log to a file instead of stderr")


def opened_log(options: argparse.Namespace, clock: Clock) -> Log:
    """Open the log that the words of ``add_log_words`` name; raise StoreError where the file cannot be opened."""
    from trader.logs import Log

    if options.log_file:
        return Log.to_file(clock, options.log_file, options.log)
    return Log.to_stderr(clock, options.log)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or 100 columns where there is none."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def print_parts(parts: Sequence[str | Table]) -> None:
    """Print lines and tables in order."""
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            print_table(part)


def write(path: Path, content: str | bytes) -> None:
    """Write a file that was asked for, text as UTF-8, and say so; raise StoreError where that cannot be done."""
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        do = "choose another file"
        raise StoreError("the file cannot be written", where=path, got=error.strerror, do=do) from error
    print(f"Written: {path}")
