"""Measure on real headlines what each of FININ's switches is worth: each one put back to the plain setting, alone.

    python -m benchmarks.reuters_switches FILE… --home DIR                      reading: the same day's return
    python -m benchmarks.reuters_switches FILE… --home DIR --target next-day    the next day's
    python -m benchmarks.reuters_switches --home DIR --rows gate,skip           news imported before; only these rows

The switches are those of ``benchmarks.planted``. Days, folds and cells are those of ``python -m trader experiment
finin`` (its walk-forward, expanding, retrained every 250 sessions), and so are the inputs: for reading those that
docs/experiments.md states (lookback 1, 120 headlines by words), for the next day lookback 5 and 256 headlines. A row
is printed when its last fold is done, and kept in ``switches.db`` of the home: what was stopped goes on, what is there
costs nothing.

Intervals are 95 %, from the block bootstrap of ``trader.comparison``; differences are from the complete model, paired
on the same days. Seeds are averaged first. The last column is the mean wall time of a fit, in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.planted import SWITCHES, named
from models.processes import as_completed
from trader.cell_work import evaluate
from trader.cells import CellResult, Cells
from trader.comparison import Contrast, Positions, Statistic, contrast, figures, paired
from trader.config import Config, day_of, from_mapping
from trader.experiment import ReadersFor, walk_of
from trader.experiment_inputs import Inputs, load, too_short
from trader.experiment_plan import Planned, Target, plan_cell
from trader.methods import Method, Reading
from trader.outcome import Home
from trader.parts import readers_for, stock
from trader.progress import Stages, Watch, silent, watching
from trader.protocol import walking
from trader.store import MarketStore

COMPLETE = "complete"
LOOKBACKS: dict[Target, int] = {"same_day": 1, "next_day": 5}
WORDS = ["stocks", "wall st", "s&p", "dow", "nasdaq"]
SETTINGS: dict[Target, dict[str, Any]] = {
    "same_day": {
        "inputs": {"prefer": WORDS},
        "experiment": {"headlines_a_day": 120},
        "model": {
            "finin": {"recency": True, "return_weight": 2.0, "train_headlines": 40, "patience": 15, "epochs": 60}
        },
    },
    "next_day": {"experiment": {"headlines_a_day": 256}, "model": {"finin": {"train_headlines": 64}}},
}


@dataclass(frozen=True)
class Row:
    """What a row's seeds said of the same n test days.

    p_up, forecast, side: (K, n), a row a seed.   returns: (n,).   seconds: of one fit, mean over folds and seeds.
    """

    p_up: NDArray[np.float64]
    forecast: NDArray[np.float64]
    side: NDArray[np.float64]
    returns: NDArray[np.float64]
    seconds: float

    @property
    def positions(self) -> Positions:
        """The row as ``trader.comparison`` takes it: the folds of a walk-forward adjoin."""
        return Positions(self.side, self.returns, [len(self.returns)], self.forecast)

    @property
    def losses(self) -> NDArray[np.float64]:
        """Log loss of each day's direction in nats (n,), mean over seeds."""
        said = np.where(self.returns > 0, self.p_up, 1 - self.p_up).clip(1e-12)  # (K, n)
        return np.asarray(-np.log(said).mean(axis=0))


def settings_of(target: Target, market: str, workers: int) -> Config:
    """Return the settings of the complete model."""
    run = {"market": market, "lookback": LOOKBACKS[target]}
    return from_mapping(
        {**SETTINGS[target], "run": run, "compute": {"workers": workers}}, "benchmarks.reuters_switches"
    )


def rows_of(config: Config, target: Target, only: Sequence[str]) -> list[Method]:
    """Return the complete model and the switches whose name holds one of ``only``, all where that is empty."""
    other = not config.model["finin"].get("recency", False)
    rows = {**SWITCHES, f"recency = {str(other).lower()}": {"recency": other}}
    if target == "same_day":
        del rows["pretrain_epochs = 3"]  # it teaches the same day's return, which is what is asked here
    wanted = {COMPLETE, *named(rows, only)}
    return [
        Method(key=name, title=name, model="finin", tables=(), settings=changes)
        for name, changes in rows.items()
        if name in wanted
    ]


def measure(
    config: Config,
    folder: Path,
    target: Target,
    asked: tuple[str, date | None, date | None],
    only: Sequence[str],
    seeds: int,
    *,
    readers: ReadersFor = readers_for,
    watch: Watch = silent,
) -> Iterator[str]:
    """Make the cells that are not there, the complete model's first; yield each row when it is whole.

    asked: news set, first and last day.   only: see ``rows_of``.
    """
    home, stages, market = Home(folder), Stages(watch), config.run.market
    home.make()
    with MarketStore.open(home.store) as store:
        stock(store, market, asked[0])
    inputs = load(config, home, market, asked, Reading(), readers(config, home, Reading(), market), stages)
    rows = rows_of(config, target, only)
    plans = {row.key: _plans(config, target, row, inputs, seeds) for row in rows}
    days = sum(len(plan.job.use) for plan in plans[COMPLETE][0])
    yield f"{market} {inputs.window.sessions[inputs.first]} to {inputs.window.sessions[-1]}: {days:,} test days"
    yield _header(target)
    with Cells.open(folder / "switches.db") as cells:
        request = {"target": target, "market": market, "asked": [str(one) for one in asked]}
        number = cells.begin("switches", request, json.dumps(request))
        waiting, complete = list(plans), None
        for failed in _made(cells, [plan for row in plans.values() for seed in row for plan in seed], config, stages):
            there = cells.has(plan.facts.cell for row in waiting for seed in plans[row] for plan in seed)
            for name in list(waiting):
                own = [plan for seed in plans[name] for plan in seed]
                if why := [failed[plan.facts.cell] for plan in own if plan.facts.cell in failed]:
                    yield f"{name:<36}{why[0]}"
                elif there.issuperset(plan.facts.cell for plan in own) and (complete or name == COMPLETE):
                    cells.show(number, [plan.facts for plan in own])
                    row = _read(cells, number, plans[name])
                    complete = complete or row
                    yield _told(name, row, complete, target, config)
                else:
                    continue
                waiting.remove(name)
        yield from (f"{name:<36}the complete model, which it is compared with, has failed" for name in waiting)
        cells.end(number, "finished")


def _plans(config: Config, target: Target, row: Method, inputs: Inputs, seeds: int) -> list[list[Planned]]:
    """Return the cells of a row, a list a seed, oldest fold first."""
    folds = walking(inputs.window.numbers, inputs.start, inputs.stop, walk_of(config))
    if not folds:
        raise too_short(inputs)
    return [
        [
            plan_cell(config, target, row, inputs, LOOKBACKS[target], "walkforward", split, seed, fold, {})
            for split, fold in enumerate(folds)
        ]
        for seed in range(seeds)
    ]


def _made(cells: Cells, plans: Sequence[Planned], config: Config, stages: Stages) -> Iterator[Mapping[str, str]]:
    """Make what is not there yet; yield after each cell, and once before, which have failed so far, and why."""
    there, failed = cells.has(plan.facts.cell for plan in plans), dict[str, str]()
    due = {plan.facts.cell: plan for plan in plans if plan.facts.cell not in there}
    yield failed
    jobs = [plan.job for plan in due.values()]
    work = as_completed(evaluate, jobs, lambda job: due[job.facts.cell].days(), config.compute.workers)
    with stages("cells") as step, closing(work):
        for done, (job, result) in enumerate(work, start=1):
            if isinstance(result, CellResult):
                cells.write(job.facts, result)
            else:
                failed[job.facts.cell] = result
            step(done, len(due), f"{job.facts.method}, trained to {job.facts.train_last}")
            yield failed


def _read(cells: Cells, number: int, plans: Sequence[Sequence[Planned]]) -> Row:
    """Gather what a row's cells said; ``number``: the record that shows them."""
    held = [[day for plan in seed for day in cells.days(plan.facts.cell)] for seed in plans]  # K lists of n days
    p_up = np.array([[day["p_up"] for day in days] for days in held])
    expected = np.array([[day["expected_return"] for day in days] for days in held], dtype=np.float64)  # None is NaN
    return Row(
        p_up=p_up,
        forecast=np.where(np.isnan(expected), p_up - 0.5, expected),
        side=np.array([[day["side"] for day in days] for days in held], dtype=np.float64),
        returns=np.array([day["target_return"] for day in held[0]]),
        seconds=float(np.mean([cell["seconds"] for cell in cells.of(number)])),
    )


def _header(target: Target) -> str:
    reading = ("correlation", "less the complete model's", "right signs, %")
    ahead = ("log loss less, 0.001 nats", "Sharpe ratio", "less the complete model's")
    return f"{'':<36}" + "".join(f"{one:<28}" for one in (reading if target == "same_day" else ahead)) + "   s a fit"


def _told(name: str, row: Row, complete: Row, target: Target, config: Config) -> str:
    """Write a row of the table: three figures with their intervals, and the seconds of a fit."""
    drawn: dict[str, Any] = {"risk_free": config.evaluation.risk_free, "resamples": config.evaluation.resamples}
    drawn["seed"] = config.run.seed
    found = figures(row.positions, **drawn)
    statistic: Statistic = "correlation" if target == "same_day" else "sharpe"
    own, less = found[statistic], paired(row.positions, complete.positions, statistic, **drawn)
    shown = [_figure(own.value, own.low, own.high, "+.3f"), _figure(less.difference, less.low, less.high, "+.3f")]
    if target == "same_day":
        right = found["accuracy"]
        shown.append(_figure(right.value, right.low, right.high, ".1f", 100))
    else:
        more = _log_loss(row, complete, drawn)
        shown.insert(0, _figure(more.value, more.low, more.high, "+.2f", 1000))
    return f"{name:<36}" + "".join(f"{one:<28}" for one in shown) + f"{row.seconds:10.1f}"


def _log_loss(row: Row, complete: Row, drawn: Mapping[str, Any]) -> Contrast:
    """Return the mean log loss less the complete model's: a sum over days, as the profit of who earns it is."""
    n = len(row.returns)
    earned = Positions(np.ones(n), (row.losses - complete.losses) / n, [n])
    return contrast({"it": earned}, {"it": 1.0}, "pnl", **drawn)


def _figure(value: float | None, low: float | None, high: float | None, form: str, unit: float = 1.0) -> str:
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" [{low * unit:{form}}, {high * unit:{form}}]"
    return f"{value * unit:{form}}{interval}"


def _import(files: Sequence[str], news: str, folder: Path) -> None:
    """Put news files into the home; those that it has are left alone."""
    command = [sys.executable, "-m", "trader", "news", "import", *files, "--name", news, "--home", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("the news could not be imported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="news files to import first")
    parser.add_argument("--target", choices=["same-day", "next-day"], default="same-day")
    parser.add_argument("--market", default="sp500")
    parser.add_argument("--news", default="reuters", help="name of the news set in the home")
    parser.add_argument("--from", dest="first", metavar="DAY", help="YYYY, YYYY-MM or YYYY-MM-DD (default: all)")
    parser.add_argument("--to", dest="last", metavar="DAY", help="the same")
    parser.add_argument("--rows", default="", metavar="TEXT,…", help="only rows whose name holds one of these")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--home", help="store, embeddings and cells (default: a new folder, deleted afterwards)")
    options = parser.parse_args()
    target: Target = "same_day" if options.target == "same-day" else "next_day"
    first = day_of(options.first, end=False) if options.first else None
    last = day_of(options.last, end=True) if options.last else None
    only = [text for text in options.rows.split(",") if text]
    config = settings_of(target, options.market, options.workers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.home or temporary)
        if options.files:
            _import(options.files, options.news, folder)
        print(f"target {options.target}, lookback {LOOKBACKS[target]}, the complete model: {config.model['finin']}")
        with watching() as watch:
            asked = (options.news, first, last)
            for line in measure(config, folder, target, asked, only, options.seeds, watch=watch):
                print(line, flush=True)


if __name__ == "__main__":
    main()
