"""The command ``experiment``: read the words, run or resume, print tables, write CSV and Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
import math
from pathlib import Path
import textwrap
from typing import TYPE_CHECKING, Any

from trader.errors import ConfigError
from trader.terminal import opened_store, print_table, settings, write

if TYPE_CHECKING:
    from trader.cells import Cells, ExperimentRow
    from trader.experiment import Request

WIDTH = 100
ALL_OF_MSMF = "1,2,3,4,5,6,7"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``experiment`` and the words of each paper."""
    parser = commands.add_parser("experiment", help="rerun a paper's tables on your own news, with error bars")
    names = parser.add_subparsers(required=True, metavar="PAPER")
    parser = names.add_parser("finin", help="FININ: language models, baselines, ablations, claims")
    _add_inputs(parser)
    parser.add_argument(
        "--tables", metavar="N,N", default="1,2,3", help="1 language models, 2 methods, 3 ablations; 4 is `why`"
    )
    parser.add_argument(
        "--target",
        choices=["next-day", "same-day"],
        default="next-day",
        help="same-day measures how well the news is read; it is no trading signal",
    )
    _add_running(parser)
    parser.add_argument("--metric", choices=["sharpe", "accuracy", "pnl"], default="sharpe", help="in the terminal")
    parser.set_defaults(command=experiment, paper="finin")

    parser = names.add_parser("msmf", help="MSMF: rivals, single scales, filling, fusion, tasks, gates")
    _add_inputs(parser)
    parser.add_argument(
        "--tables",
        metavar="N,N",
        default=ALL_OF_MSMF,
        help="1 return, 2 movement, 3 scales, 4 filling, 5 fusion, 6 tasks, 7 gates (default: all)",
    )
    _add_running(parser)
    parser.set_defaults(command=experiment, paper="msmf", target="next-day")

    _add_cells(names)


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", metavar="A,B", help="only these rows; a wrong name lists them")
    parser.add_argument("--quick", action="store_true", help="one seed and two settings tried; marked in the output")
    parser.add_argument("--resume", action="store_true", help="go on with the newest experiment that is not finished")
    parser.add_argument("--again", action="store_true", help="look anew for rows that were missing, though finished")
    parser.add_argument("--show", metavar="N", help="only show an experiment: its number, or latest")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the whole page")


def _add_cells(names: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``experiment cells export`` and ``import``: an experiment begun on one machine goes on on another."""
    words = names.add_parser("cells", help="carry finished cells from one machine to another")
    parsers = words.add_subparsers(required=True, metavar="WHAT")
    for word, text in (("export", "write an experiment's cells into a file"), ("import", "take in a file of cells")):
        parser = parsers.add_parser(word, help=text)
        parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml here)")
        parser.add_argument(
            "--home", metavar="DIR", help="stores, caches, models, ledger (default: TRADER_HOME, or var/)"
        )
        parser.add_argument("file", type=Path, metavar="FILE")
        if word == "export":
            parser.add_argument("--experiment", default="latest", metavar="N", help="its number (default: the newest)")
        parser.set_defaults(command=export_cells if word == "export" else import_cells)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml in this folder)")
    parser.add_argument("--home", metavar="DIR", help="stores, caches, models, ledger (default: TRADER_HOME, or var/)")
    parser.add_argument(
        "--market", metavar="A,B", default=None, help="markets, commas between; of MSMF also FILE.toml (default: sp500)"
    )
    parser.add_argument("--news", metavar="NAME", default=None, help="wire, or a news set you imported")
    parser.add_argument("--from", dest="first", metavar="DAY", help="YYYY, YYYY-MM or YYYY-MM-DD (default: all)")
    parser.add_argument("--to", dest="last", metavar="DAY", help="the same")


def add_search(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``search finin`` and its words."""
    parser = commands.add_parser("search", help="search a model's settings on validation, resumable")
    parser = parser.add_subparsers(required=True, metavar="MODEL").add_parser("finin", help="the paper's 81 settings")
    _add_inputs(parser)
    parser.add_argument("--sampler", choices=["grid", "tpe"], default="grid", help="grid: all of them (default)")
    parser.add_argument("--trials", type=int, metavar="N", help="at most so many settings, earlier calls included")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="show the best N (default 10)")
    parser.set_defaults(command=search)


def search(options: argparse.Namespace) -> None:
    """Search FININ's settings, then print the best of them and the lines for config.toml."""
    from trader.experiment_page import search_table
    from trader.experiment_search import search_finin
    from trader.progress import watching

    config, home = settings(options)
    if options.trials is not None and options.trials < 1:
        raise ConfigError("no trials to run", where="--trials", got=options.trials, expected="at least 1")
    request = _request(options, config.run.market, config.run.news)
    with watching() as watch:
        found = search_finin(config, home, request, sampler=options.sampler, trials=options.trials, watch=watch)
    print_table(search_table(found, options.limit))
    now = sum(trial.now for trial in found.trials)
    print(f"{len(found.trials)} settings tried, {now} of them now. A coin's log loss is {math.log(2):.4f} nats.")
    print("The best one, for config.toml, beside the settings of [model.finin] that are there already:")
    print("\n".join(["[model.finin]", *(f"{key} = {value}" for key, value in found.best.items())]))


def export_cells(options: argparse.Namespace) -> None:
    """Write an experiment's cells into a file."""
    from trader.cell_files import export
    from trader.cells import Cells
    from trader.outcome import Home

    with Cells.open(Home(settings(options)[1]).ledger) as cells:
        count = export(cells, options.experiment, options.file)
    print(f"Written: {options.file}, {count:,} cells. The same experiment elsewhere takes them in by `cells import`.")


def import_cells(options: argparse.Namespace) -> None:
    """Take in a file of cells."""
    from trader.cell_files import take_in
    from trader.cells import Cells
    from trader.outcome import Home

    home = Home(settings(options)[1])
    home.make()
    with Cells.open(home.ledger) as cells, opened_store(options) as store:
        held, new = take_in(cells, options.file, store)
    print(
        f"{options.file}: {held:,} cells, {new:,} new. An experiment with the same data, settings and code finds them."
    )


def experiment(options: argparse.Namespace) -> None:
    """Run, resume or show an experiment, then print and write what it found."""
    from trader import experiment as engine
    from trader.cells import Cells
    from trader.outcome import Home
    from trader.progress import watching

    config, home = settings(options)
    ledger = Home(home).ledger
    if options.show:
        with Cells.open(ledger) as cells:
            row = cells.experiment(options.show, options.paper)
    else:
        if options.resume:
            _refuse_beside_resume(options)
            with Cells.open(ledger) as cells:
                config, request = engine.resumed(cells.experiment(name=options.paper, unfinished=True), config)
        else:
            request = _request(options, config.run.market, config.run.news)
        with watching() as watch:
            row = engine.run(config, home, request, watch=watch, again=options.again)
    with Cells.open(ledger) as cells:
        shown, table, page = (_finin if options.paper == "finin" else _msmf)(cells, row, options)
    for part in shown:
        if isinstance(part, str):
            print(textwrap.fill(part, WIDTH))
        else:
            print_table(part)
    if options.csv:
        write(options.csv, table)
    if options.markdown:
        write(options.markdown, page)


def _finin(cells: Cells, row: ExperimentRow, options: argparse.Namespace) -> tuple[Iterable[Any], str, str]:
    """Return what the terminal shows, the CSV file and the Markdown page."""
    from trader import experiment_page as page
    from trader.experiment_claims import judge
    from trader.experiment_tables import measure

    results = measure(cells, row)
    verdicts = judge(results)
    written = page.as_markdown(results, verdicts, _title(results.target))
    return page.terminal(results, verdicts, options.metric), page.as_csv(results), written


def _msmf(cells: Cells, row: ExperimentRow, options: argparse.Namespace) -> tuple[Iterable[Any], str, str]:
    """Return what the terminal shows, the CSV file and the Markdown page."""
    from trader import msmf_page as page
    from trader.msmf_tables import measure

    results = measure(cells, row)
    return page.terminal(results), page.as_csv(results), page.as_markdown(results, "MSMF: the paper's tables")


def _title(target: str) -> str:
    return "Does FININ read? News against the same day" if target == "same_day" else "FININ: the paper's tables"


def _request(options: argparse.Namespace, market: str, news: str) -> Request:
    from trader.config import day_of
    from trader.experiment import Request
    from trader.universe import is_universe, refuse_universe, universe_of

    first = day_of(options.first, end=False) if options.first else None
    last = day_of(options.last, end=True) if options.last else None
    if first and last and first > last:
        raise ConfigError("--from lies after --to", got=f"{first} and {last}")
    named = _words(options.market or market)
    if options.command is search or options.paper != "msmf":
        for name in named:
            refuse_universe(name, "an experiment of FININ")
    universes = {name: universe_of(name) for name in named if is_universe(name)}
    markets = tuple(universes[name].name if name in universes else name for name in named)
    if twice := [name for name in markets if markets.count(name) > 1]:
        raise ConfigError("two markets of one name", where="--market", got=twice[0])
    texts = tuple((one.name, one.as_text()) for one in universes.values())
    request = Request(markets=markets, news=options.news or news, first=first, last=last, universes=texts)
    if "tables" not in options:
        return request
    return replace(
        request,
        paper=options.paper,
        tables=_tables(options.tables, options.paper),
        target="same_day" if options.target == "same-day" else "next_day",
        quick=options.quick,
        only=_only(options.methods),
    )


def _refuse_beside_resume(options: argparse.Namespace) -> None:
    """Raise ConfigError for words that --resume would have to ignore: it takes the settings of what it goes on with."""
    given = {"--market": options.market, "--news": options.news, "--from": options.first, "--to": options.last}
    given |= {
        "--methods": options.methods,
        "--quick": options.quick,
        "--tables": options.tables not in ("1,2,3", ALL_OF_MSMF),
    }
    if beside := [word for word, value in given.items() if value]:
        do = "leave it out, or give the whole command again without --resume: it goes on by itself"
        raise ConfigError("--resume goes on with the settings of the experiment", got=beside[0], do=do)


def _tables(listed: str, paper: str) -> tuple[int, ...]:
    try:
        tables = tuple(sorted({int(number) for number in listed.split(",")}))
    except ValueError as error:
        raise ConfigError("--tables wants numbers", got=listed, expected="for example 1,2,3") from error
    if paper == "msmf":
        if set(tables) - set(range(1, 8)):
            raise ConfigError("no such table", got=listed, expected=f"some of {ALL_OF_MSMF}")
    elif set(tables) - {1, 2, 3, 4} or tables == (4,):
        do = "table 4 alone is `python -m trader why RUN SESSION --search WORD`"
        raise ConfigError("no such table", got=listed, expected="some of 1, 2, 3", do=do)
    return tables


def _only(listed: str | None) -> tuple[str, ...]:
    """Return the rows asked for, () for all; raise ConfigError where --methods names none."""
    words = _words(listed or "")
    if listed is not None and not words:
        raise ConfigError("--methods names none", do="leave it out for all; a wrong name lists them")
    return words


def _words(listed: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in listed.split(",") if word.strip()))


RESUMABLE = (experiment, search)  # commands that go on where they were stopped
