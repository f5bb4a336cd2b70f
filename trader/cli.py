"""The command line: read the words, call the engine, print. The only room that prints and that catches TraderError.

Heavy packages (torch, transformers, pandas) are imported by the commands that need them, so that --help is quick.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, timedelta
from itertools import pairwise
import math
from pathlib import Path
import sys
from typing import TYPE_CHECKING, NoReturn

from trader.errors import ConfigError, NoData, TraderError

if TYPE_CHECKING:
    from rich.table import Table

    from trader.config import Config
    from trader.events import Bar, NewsRows
    from trader.ledger import Ledger
    from trader.store import MarketStore

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
BUILT_IN_MARKETS, BUILT_IN_NEWS = ("sp500", "nasdaq"), "wire"  # those of trader.parts, which is slow to import
JUMP, MOST_JUMPS = 0.35, 5  # |log(close / close before)| that is worth a line; lines of it
FEW_ROWS, MOST_AT_ONE_TIME = 100, 0.9  # a share of as many headlines at one time of day is worth a line
DAY_S = 24 * 3600


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except TraderError as error:
        print(f"trader: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("trader: stopped; what was written is whole, and the same command starts anew", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has gone: nobody is left to tell
    return 0


class _Parser(argparse.ArgumentParser):
    """Says in one line which word is wrong, as every other error does."""

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with code 2."""
        self.exit(EXIT_BAD_INPUT, f"trader: {' '.join(message.split())}; `{self.prog} --help` shows the words\n")


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="python -m trader", description="An event-driven paper-trading backtester that reads the news."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_backtest(commands)
    _add_prices(commands)
    _add_news(commands)
    _add_reviews(commands)
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml in this folder)")
    parser.add_argument("--home", metavar="DIR", help="stores, caches, models, ledger (default: TRADER_HOME, or var/)")


def _add_backtest(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("backtest", help="trade a span of history, out of sample, day by day")
    _shared(parser)
    parser.add_argument("--from", dest="first", required=True, metavar="DAY", help="YYYY, YYYY-MM or YYYY-MM-DD")
    parser.add_argument(
        "--to", dest="last", required=True, metavar="DAY", help="the same; a year means its last session"
    )
    parser.add_argument("--market", metavar="SYMBOL", help="sp500, nasdaq, or a symbol you imported")
    parser.add_argument("--news", metavar="NAME", help="wire, or a news set you imported")
    parser.add_argument("--model", metavar="NAME", help="finin, logistic, boosting, or package.module:Class")
    parser.add_argument(
        "--strategy", metavar="NAME", help="long_short, long_only, threshold, vol_target, or package.module:Class"
    )
    parser.add_argument("--lookback", type=int, metavar="N", help="sessions of input")
    parser.add_argument("--execution", metavar="WHEN", help="next_open, next_close or close")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same bytes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--daily", action="store_true", help="forecast event by event (slower; the same signals)")
    parser.set_defaults(command=_backtest)


def _add_prices(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prices = commands.add_parser("prices", help="import and list prices").add_subparsers(required=True, metavar="WHAT")
    parser = prices.add_parser("import", help="read a CSV or Parquet file in Yahoo's columns")
    _shared(parser)
    parser.add_argument("file", type=Path)
    parser.add_argument("--symbol", required=True, metavar="NAME", help="the name for --market")
    parser.set_defaults(command=_prices_import)
    parser = prices.add_parser("download", help="fetch daily bars from Yahoo")
    _shared(parser)
    parser.add_argument("ticker", help="Yahoo's name, such as SPY or ^GSPC; also the name for --market")
    parser.add_argument("--from", dest="first", required=True, metavar="DAY")
    parser.add_argument("--to", dest="last", required=True, metavar="DAY")
    parser.set_defaults(command=_prices_download)
    parser = prices.add_parser("list", help="show what is stored")
    _shared(parser)
    parser.set_defaults(command=_prices_list)


def _add_news(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    news = commands.add_parser("news", help="import, list and download headlines").add_subparsers(
        required=True, metavar="WHAT"
    )
    parser = news.add_parser("import", help="read CSV, TSV, Parquet or JSON Lines")
    _shared(parser)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--name", metavar="NAME", help="the name for --news (default: the first file's own)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--preset", metavar="P", help="a known format; `news presets` lists them")
    how.add_argument("--columns", metavar="OURS=THEIRS,…", help="for example published_at=Date,headline=Title")
    parser.add_argument("--zone", metavar="ZONE", help="of times that state none, such as America/New_York")
    parser.add_argument("--delay-minutes", type=int, default=0, metavar="N", help="from publication until we know")
    parser.set_defaults(command=_news_import)
    parser = news.add_parser("list", help="show what is stored")
    _shared(parser)
    parser.set_defaults(command=_news_list)
    parser = news.add_parser("quarantine", help="show rows that could not be used")
    _shared(parser)
    parser.add_argument("name")
    parser.set_defaults(command=_news_quarantine)
    parser = news.add_parser("presets", help="list the known file formats")
    parser.set_defaults(command=_news_presets)
    parser = news.add_parser("download", help="fetch a public set from the hub")
    _shared(parser)
    parser.add_argument("set", choices=["fnspid"])
    parser.set_defaults(command=_news_download)


def _add_reviews(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("runs", help="list the runs in the ledger")
    _shared(parser)
    parser.set_defaults(command=_runs)
    parser = commands.add_parser("trades", help="list a run's trades")
    _shared(parser)
    parser.add_argument("run", help="a run's number, or latest")
    parser.add_argument("--limit", type=int, metavar="N", help="the newest N only")
    parser.set_defaults(command=_trades)
    parser = commands.add_parser("why", help="show a day's headlines by weight")
    _shared(parser)
    parser.add_argument("run", help="a run's number, or latest")
    parser.add_argument("session", help="YYYY-MM-DD")
    parser.set_defaults(command=_why)


def _settings(options: argparse.Namespace) -> tuple[Config, Path]:
    """Return the config and the home folder; config.toml in this folder is read where it exists."""
    from trader.config import home_of, load

    path: Path | None = options.config
    if path is None and Path("config.toml").is_file():
        path = Path("config.toml")
    return load(path), home_of(options.home, path)


def _backtest(options: argparse.Namespace) -> None:
    from trader.config import day_of

    config, home = _settings(options)
    config = config.with_run(
        market=options.market,
        news=options.news,
        model=options.model,
        strategy=options.strategy,
        lookback=options.lookback,
        execution=options.execution,
        seed=options.seed,
    )
    first, last = day_of(options.first, end=False), day_of(options.last, end=True)
    if first > last:
        raise ConfigError("--from lies after --to", got=f"{first} and {last}")
    from trader import engine, report
    from trader.progress import watching

    with watching() as watch:
        outcome = engine.backtest(config, home, first, last, watch=watch, daily=options.daily)
    if options.json:
        print(report.as_json(outcome))
        return
    _print_table(report.figures(outcome))
    for line in report.closing_lines(outcome):
        print(line)


def _prices_import(options: argparse.Namespace) -> None:
    from feeds.price_files import read_prices

    _refuse_built_in(options.symbol)
    _store_bars(options, read_prices(options.file, symbol=options.symbol), options.symbol, str(options.file))


def _prices_download(options: argparse.Namespace) -> None:
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

    _, home = _settings(options)
    if not bars:
        raise NoData("no session of these days has closed yet", where=symbol, do="name earlier days")
    with MarketStore.open(Home(home).store) as store:
        added = store.add_bars(bars, source=source, noticed_at=WallClock().now())
        jumps = _jumps(store, symbol, bars)
    print(f"{symbol}: {added.new:,} new bars, {added.known_already:,} known already, {added.revised:,} revised")
    if added.revised:
        print("A revision counts from now on; a backtest goes on with each bar as it was first known.")
        print("Where the whole series was adjusted anew (dividends, a split), import it under another --symbol.")
    for day, before, close in jumps[:MOST_JUMPS]:
        print(f"Warning: {symbol} {day}: the close went from {before:g} to {close:g}: a split, or a damaged row?")
    print(f"{bars[0].session} to {bars[-1].session}. Next: python -m trader backtest --market {symbol} --from … --to …")


def _jumps(store: MarketStore, symbol: str, bars: Sequence[Bar]) -> list[tuple[date, float, float]]:
    """Return (session, close before, close) where a backtest would see a move that hardly any market makes."""
    from trader.clock import Calendar, WallClock

    near, now, calendar = timedelta(days=15), store.as_of(WallClock().now()), Calendar()
    series = [
        store.as_of(calendar.cutoff(bar.session)).bar(symbol, bar.session) or bar  # as it was first known
        for bar in now.bars(symbol, bars[0].session - near, bars[-1].session + near)
    ]
    pairs = [(bar.session, before.close, bar.close) for before, bar in pairwise(series)]
    return [pair for pair in pairs if abs(math.log(pair[2] / pair[1])) > JUMP]


def _prices_list(options: argparse.Namespace) -> None:
    from trader.report import plain_table

    with _opened_store(options) as store:
        rows = [(name, f"{span.count:,}", span.first, span.last) for name, span in store.symbols().items()]
    _print_table(plain_table(("market", "sessions", "first", "last"), rows, right=(1,)))
    print(f"Built in: {', '.join(BUILT_IN_MARKETS)} (stored at their first use).")


def _news_import(options: argparse.Namespace) -> None:
    from feeds.news_files import read_news
    from trader.outcome import Home
    from trader.store import FileSource, MarketStore

    _, home = _settings(options)
    name = options.name or options.files[0].name.split(".")[0]
    if name == BUILT_IN_NEWS or name.startswith(f"{BUILT_IN_NEWS}-"):  # its versions are sets wire-1, wire-2 …
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


def _news_list(options: argparse.Namespace) -> None:
    from trader.report import plain_table

    with _opened_store(options) as store:
        rows = [
            (name, f"{span.count:,}", *(f"{at:%Y-%m-%d}" if at else "–" for at in (span.first, span.last)))
            for name, span in store.names().items()
        ]
    _print_table(plain_table(("news", "headlines", "known from", "to"), rows, right=(1,)))
    print(f"Built in: {BUILT_IN_NEWS} (stored at its first use).")


def _news_quarantine(options: argparse.Namespace) -> None:
    from trader.report import plain_table

    with _opened_store(options) as store:
        rows = [(one.file, one.row, one.reason, one.text[:60]) for one in store.quarantine(options.name)]
        total = sum(store.quarantine_counts(options.name).values())
    _print_table(plain_table(("file", "row", "reason", "text"), rows, right=(1,)))
    print(f"{len(rows):,} of {total:,} rows shown; all are in the table quarantine of the market store.")


def _news_presets(options: argparse.Namespace) -> None:
    from feeds.presets import PRESETS
    from trader.report import plain_table

    _print_table(plain_table(("preset", "for"), [(name, preset.about) for name, preset in PRESETS.items()]))


def _news_download(options: argparse.Namespace) -> None:
    from feeds.hub import download_fnspid
    from trader.progress import watching

    _, home = _settings(options)
    with watching() as watch:
        path = download_fnspid(home / "downloads", progress=lambda done, total: watch("download", done, total))
    print(f"{path}\nNext: python -m trader news import {path} --preset fnspid --name fnspid")


def _runs(options: argparse.Namespace) -> None:
    from trader.report import runs_table

    with _opened_ledger(options) as ledger:
        _print_table(runs_table(ledger.runs()))


def _trades(options: argparse.Namespace) -> None:
    from trader.report import trades_table

    with _opened_ledger(options) as ledger:
        rows = ledger.trades(options.run)
    shown = rows[-options.limit :] if options.limit else rows
    _print_table(trades_table(shown))
    print(f"{len(shown):,} of {len(rows):,} orders. Money in the market's currency, sizes in units.")


def _why(options: argparse.Namespace) -> None:
    from trader.config import day_of
    from trader.report import why_lines

    with _opened_ledger(options) as ledger:
        for signal in ledger.why(options.run, day_of(options.session, end=False)):
            for line in why_lines(signal):
                print(line)


def _opened_store(options: argparse.Namespace) -> MarketStore:
    from trader.outcome import Home
    from trader.store import MarketStore

    return MarketStore.open(Home(_settings(options)[1]).store)


def _opened_ledger(options: argparse.Namespace) -> Ledger:
    from trader.ledger import Ledger
    from trader.outcome import Home

    return Ledger.open(Home(_settings(options)[1]).ledger, read_only=True)


def _print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or 100 columns where there is none."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(table)
