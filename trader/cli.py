"""The command line: read the words, call the engine, print. The only room that catches TraderError.

Heavy packages (torch, transformers, pandas) are imported by the commands that need them, so that --help is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
import sys
from typing import TYPE_CHECKING, NoReturn

from trader import (
    cli_chart,
    cli_experiment,
    cli_feeds,
    cli_intake,
    cli_models,
    cli_notify,
    cli_paper,
    cli_universe,
)
from trader.errors import ConfigError, TraderError
from trader.terminal import print_parts, print_table, settings, write

if TYPE_CHECKING:
    from trader.config import Config
    from trader.ledger import Ledger

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
FUSING = ("msmf",)  # models that `why` asks again: how they fused what they read is not in the ledger


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
        how = "goes on" if options.command in cli_experiment.RESUMABLE else "starts anew"
        print(f"trader: stopped; what was written is whole, and the same command {how}", file=sys.stderr)
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
    cli_universe.add(commands, _shared)
    cli_feeds.add(commands)
    cli_experiment.add(commands)
    cli_experiment.add_search(commands)
    _add_reviews(commands)
    cli_chart.add(commands, _shared)
    cli_notify.add(commands)
    cli_models.add(commands, _shared)
    cli_paper.add(commands)
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml in this folder)")
    parser.add_argument("--home", metavar="DIR", help="stores, caches, models, ledger (default: TRADER_HOME, or var/)")


def _add_backtest(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("backtest", help="trade a span of history, out of sample, day by day")
    _shared(parser)
    parser.add_argument("--from", dest="first", metavar="DAY", help="YYYY, YYYY-MM or YYYY-MM-DD")
    parser.add_argument("--to", dest="last", metavar="DAY", help="the same; a year means its last session")
    parser.add_argument("--market", metavar="SYMBOL", help="sp500, nasdaq, a symbol you imported, FILE.toml")
    parser.add_argument("--news", metavar="NAME", help="wire, or a news set you imported")
    parser.add_argument("--model", metavar="NAME", help="finin, logistic, boosting, or package.module:Class")
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="long_short, long_only, threshold, vol_target, top_k, or package.module:Class",
    )
    parser.add_argument("--lookback", type=int, metavar="N", help="sessions of input")
    parser.add_argument("--execution", metavar="WHEN", help="next_open, next_close or close")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same bytes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument(
        "--as-account", metavar="NAME", help="a paper account's days again, with all that befell it; compares the rows"
    )
    parser.add_argument("--daily", action="store_true", help="forecast event by event (slower; the same signals)")
    parser.set_defaults(command=_backtest)


def _add_prices(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prices = commands.add_parser("prices", help="import and list prices").add_subparsers(required=True, metavar="WHAT")
    parser = prices.add_parser("import", help="read CSV or Parquet files in Yahoo's columns, one symbol each")
    _shared(parser)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="a file, a folder, or a tar archive of CSVs"
    )
    parser.add_argument("--symbol", metavar="NAME", help="the name for --market (default: the file's own)")
    parser.add_argument("--skip-empty", action="store_true", help="leave out rows that hold a date and no number")
    parser.set_defaults(command=cli_intake.prices_import)
    parser = prices.add_parser("download", help="fetch daily bars from Yahoo")
    _shared(parser)
    parser.add_argument("ticker", help="Yahoo's name, such as SPY or ^GSPC; also the name for --market")
    parser.add_argument("--from", dest="first", required=True, metavar="DAY")
    parser.add_argument("--to", dest="last", required=True, metavar="DAY")
    parser.set_defaults(command=cli_intake.prices_download)
    parser = prices.add_parser("list", help="show what is stored")
    _shared(parser)
    parser.set_defaults(command=cli_intake.prices_list)


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
    parser.set_defaults(command=cli_intake.news_import)
    parser = news.add_parser("list", help="show what is stored")
    _shared(parser)
    parser.set_defaults(command=cli_intake.news_list)
    parser = news.add_parser("quarantine", help="show rows that could not be used")
    _shared(parser)
    parser.add_argument("name")
    parser.set_defaults(command=cli_intake.news_quarantine)
    parser = news.add_parser("presets", help="list the known file formats")
    parser.set_defaults(command=cli_intake.news_presets)
    parser = news.add_parser("download", help="fetch a public set from the hub")
    _shared(parser)
    parser.add_argument("set", choices=["fnspid"])
    parser.set_defaults(command=cli_intake.news_download)


def _add_reviews(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("runs", help="list the runs in the ledger")
    _shared(parser)
    parser.set_defaults(command=_runs)
    parser = commands.add_parser("trades", help="list a run's trades")
    _shared(parser)
    parser.add_argument("run", help="a run's number, or latest")
    parser.add_argument("--symbol", metavar="SYMBOL", help="of one symbol only")
    parser.add_argument("--limit", type=int, metavar="N", help="the newest N only")
    parser.set_defaults(command=_trades)
    parser = commands.add_parser("why", help="show a day's headlines by weight")
    _shared(parser)
    parser.add_argument("run", help="a run's number, or latest")
    parser.add_argument("session", help="YYYY-MM-DD")
    parser.add_argument("--symbol", metavar="SYMBOL", help="which one, of a run over many symbols")
    # With any of these the forecast is made again, so that all headlines are there and not the ledger's ten alone.
    parser.add_argument("--search", metavar="WORDS", help="only headlines in which each of these words begins a word")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N headlines, 0 for all (20, or all found)")
    parser.add_argument("--pairs", type=int, metavar="N", help="the N strongest pairs: who made whom matter")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it: .png, .svg or .pdf (extra pictures)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the headlines with their weights")
    parser.set_defaults(command=_why)


def _backtest(options: argparse.Namespace) -> None:
    if options.as_account:
        cli_paper.as_account(options)
        return
    from trader.config import day_of

    for word, given in (("--from", options.first), ("--to", options.last)):
        if given is None:
            raise ConfigError("a backtest needs its days", where=word, expected="YYYY, YYYY-MM or YYYY-MM-DD")
    config, home = settings(options)
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
    from trader.universe import is_universe

    if is_universe(config.run.market):
        _backtest_universe(options, config, home, first, last)
        return
    with watching() as watch:
        outcome = engine.backtest(config, home, first, last, watch=watch, daily=options.daily)
    if options.json:
        print(report.as_json(outcome))
        return
    print_table(report.figures(outcome))
    for line in report.closing_lines(outcome):
        print(line)


def _backtest_universe(options: argparse.Namespace, config: Config, home: Path, first: date, last: date) -> None:
    from trader import universe_engine, universe_report
    from trader.progress import watching

    with watching() as watch:
        asked = options.strategy is not None
        outcome = universe_engine.backtest(config, home, first, last, watch=watch, daily=options.daily, as_asked=asked)
    if options.json:
        print(universe_report.as_json(outcome))
        return
    print_table(universe_report.figures(outcome))
    for line in universe_report.closing_lines(outcome):
        print(line)


def _runs(options: argparse.Namespace) -> None:
    from trader.report import runs_table

    with _opened_ledger(options) as ledger:
        print_table(runs_table(ledger.runs()))


def _trades(options: argparse.Namespace) -> None:
    from trader.report import trades_table

    with _opened_ledger(options) as ledger:
        rows = ledger.trades(options.run, options.symbol)
    shown = rows[-options.limit :] if options.limit else rows
    print_table(trades_table(shown))
    print(f"{len(shown):,} of {len(rows):,} orders. Money in the market's currency, sizes in units.")


def _why(options: argparse.Namespace) -> None:
    from trader.config import day_of
    from trader.report import why_lines

    session = day_of(options.session, end=False)
    if any(getattr(options, word) is not None for word in ("search", "limit", "pairs", "picture", "csv")):
        _explain(options, session)
        return
    with _opened_ledger(options) as ledger:
        run = ledger.resolve(options.run)
        signal, fuses = ledger.why_one(run, session, options.symbol), ledger.run_facts(run)["model"] in FUSING
    decision, *headlines = why_lines(signal)
    print(decision)
    if fuses and signal.p_up is not None:
        from trader.explain import explain
        from trader.why_report import below

        print_parts(below(explain(settings(options)[1], run, session, options.symbol)))
    for line in headlines:
        print(line)


def _explain(options: argparse.Namespace, session: date) -> None:
    from trader import why_report
    from trader.explain import explain
    from trader.pictures import draw

    explained = explain(settings(options)[1], options.run, session, options.symbol)
    print_parts(why_report.parts(explained, search=options.search, pairs=options.pairs or 0, limit=options.limit))
    if options.csv:
        write(options.csv, why_report.as_csv(explained, options.search))
    if options.picture:
        draw(explained, options.picture, options.search)
        print(f"Written: {options.picture}")


def _opened_ledger(options: argparse.Namespace) -> Ledger:
    from trader.ledger import Ledger
    from trader.outcome import Home

    return Ledger.open(Home(settings(options)[1]).ledger, read_only=True)
