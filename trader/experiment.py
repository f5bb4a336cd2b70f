"""Run a paper's experiment: plan its cells, choose a setting on validation, train and test what is not there yet.

    methods × markets × lookbacks × splits × seeds → cells → ledger → trader.experiment_tables

Each cell is trained and tested in a worker process of one thread and written when it is done, so an experiment that is
killed goes on where it stopped. A cell's forecasts are made without labels, and one of them a second time from its own
lookback days alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
import hashlib
import json
from pathlib import Path
from typing import Any

from models.processes import as_completed
from trader.cell_work import evaluate
from trader.cells import CellResult, Cells, ExperimentRow
from trader.config import Config, WalkForward, as_mapping, from_mapping
from trader.errors import ModelError
from trader.experiment_inputs import Inputs, load, too_short
from trader.experiment_plan import OWN, Planned, Target, place_of, plan_cell
from trader.methods import Method, Reading, Settings, methods, points
from trader.outcome import Home
from trader.parts import Readers, check_chats, readers_for, workers_of
from trader.progress import Stages, Watch, silent
from trader.protocol import Windows, sliding, walking
from trader.store import MarketStore
from trader.training import code_hash

ReadersFor = Callable[[Config, Home, Reading, str], Readers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for. first, last: None takes what the news set spans.   only: keys of methods, () for all."""

    markets: tuple[str, ...]
    news: str
    first: date | None = None
    last: date | None = None
    tables: tuple[int, ...] = (1, 2, 3)
    target: Target = "next_day"
    quick: bool = False
    only: tuple[str, ...] = ()

    def key(self, config: Config) -> tuple[dict[str, Any], str]:
        """Return the request with all settings as a plain dict, and its hash."""
        settings = as_mapping(config)
        for section in ("run", "costs", "compute", "strategy"):  # none of them shapes a cell, but for these
            settings.pop(section)
        asked = {**json.loads(json.dumps(asdict(self), default=str)), "device": config.compute.device}
        whole = {**asked, "seed": config.run.seed, "settings": json.loads(json.dumps(settings, default=str))}
        return whole, hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def run(
    config: Config,
    home_folder: Path,
    request: Request,
    *,
    watch: Watch = silent,
    readers: ReadersFor = readers_for,
) -> ExperimentRow:
    """Run an experiment to its end and return its row in the ledger; one that is finished costs nothing.

    Where the store or the code has changed since, the cells that this touches are made again.
    readers: what reads the headlines.
    Raises TraderError for what a user can mend. Ctrl-C leaves it stopped, with every finished cell.
    """
    home, stages = Home(home_folder), Stages(watch)
    home.make()
    check_chats(config)
    if request.quick:
        config = _quick(config)
    asked, asked_hash = request.key(config)
    with Cells.open(home.ledger) as cells:
        done = cells.finished(asked_hash)
        if done is not None and done.facts.get("state") == _state(home):
            return done
        number = cells.begin("finin", asked, asked_hash)
        try:
            _Run(config, home, request, cells, number, stages, readers).go()
        except BaseException:
            cells.end(number, "stopped")
            raise
        cells.end(number, "finished")
        return cells.experiment(number)


def _state(home: Home) -> list[Any]:
    """Return what changes with the store and with the code of the models."""
    with MarketStore.open(home.store) as store:
        return [store.last_import(), code_hash("models"), OWN]


def resumed(row: ExperimentRow, config: Config) -> tuple[Config, Request]:
    """Return the settings and the request that an experiment was begun with; processes and paths are today's."""
    asked = row.request
    settings = dict(asked["settings"])
    whole = from_mapping({**settings, "run": {"seed": asked["seed"]}}, f"experiment {row.id}")
    compute = replace(config.compute, device=asked["device"])
    request = Request(
        markets=tuple(asked["markets"]),
        news=asked["news"],
        first=date.fromisoformat(asked["first"]) if asked["first"] else None,
        last=date.fromisoformat(asked["last"]) if asked["last"] else None,
        tables=tuple(asked["tables"]),
        target=asked["target"],
        quick=asked["quick"],
        only=tuple(asked["only"]),
    )
    return replace(whole, compute=compute), request


def _quick(config: Config) -> Config:
    fewer = replace(config.experiment, seeds=1, trials=min(2, config.experiment.trials))
    return replace(config, experiment=fewer)


class _Run:
    """One experiment on its way: what was loaded, what was chosen, what is missing and why."""

    def __init__(
        self,
        config: Config,
        home: Home,
        request: Request,
        cells: Cells,
        number: int,
        stages: Stages,
        readers: ReadersFor,
    ) -> None:
        self.config, self.home, self.request, self.cells, self.number = config, home, request, cells, number
        self.stages, self.readers = stages, readers
        self.loaded: dict[tuple[str, Reading], Inputs | str] = {}
        self.chosen: dict[tuple[str, str], Settings] = {}
        self.missing: dict[str, dict[str, str]] = {}  # method → market → why
        self.facts: dict[str, Any] = {"spans": {}, "settings": {}, "missing": self.missing, "planned": {}}

    def go(self) -> None:
        """Choose settings, then make every cell."""
        rows = methods(self.config, self.request.tables, self.request.target, self.request.only)
        self.facts["rows"] = [
            {"key": row.key, "title": row.title, "same_as": row.same_as, "tables": list(row.tables)} for row in rows
        ]
        pairs = [(row, market) for market in self.request.markets for row in rows]
        trials = [(row, market, self._trials(row, market)) for row, market in pairs if not self._lacking(row, market)]
        made = self._make("choose", [job for _, _, jobs in trials for job in jobs])
        for row, market, jobs in trials:
            self._choose(row, market, jobs, made)
        jobs = [job for pair in pairs if not self._lacking(*pair) for job in self._tests(*pair)]
        self._plan(jobs)
        failed = self._make("cells", sorted(jobs, key=_order))
        for job in jobs:
            if isinstance(why := failed.get(job.facts.cell), str):
                self.missing.setdefault(job.facts.method, {})[job.facts.market] = why
        self.facts["state"] = _state(self.home)
        self.cells.note(self.number, self.facts)

    # Inputs

    def _lacking(self, row: Method, market: str) -> bool:
        """Tell whether a row cannot be run on a market, and note why."""
        why = row.why_not
        if not why and isinstance(found := self._inputs(row.reading, market), str):
            why = found
        if why:
            self.missing.setdefault(row.key, {})[market] = why
        return bool(why) or market in self.missing.get(row.key, {})

    def _inputs(self, reading: Reading, market: str) -> Inputs | str:
        if (market, reading) not in self.loaded:
            try:
                # Readers first: where weights are not there, nothing needs to be read.
                readers = self.readers(self.config, self.home, reading, market)
                span = (self.request.news, self.request.first, self.request.last)
                loaded = load(self.config, self.home, market, span, reading, readers, self.stages)
                self.loaded[market, reading] = loaded
                self.facts["spans"][market] = [str(loaded.window.sessions[at]) for at in (loaded.first, -1)]
            except ModelError as error:
                if reading == Reading():
                    raise
                self.loaded[market, reading] = str(error)
        return self.loaded[market, reading]

    # Cells

    def _trials(self, row: Method, market: str) -> list[Planned]:
        """Return the trials of a row: trainings on the first window, of which only the validation is looked at."""
        inputs = self._inputs(row.reading, market)
        assert isinstance(inputs, Inputs)
        tried = points(row.space, self.config.experiment.trials, self.config.run.seed)
        if len(tried) == 1:
            self.chosen[row.key, market] = tried[0]
            return []
        lookback = self.config.experiment.search_lookback
        start = inputs.start
        fold = next(iter(sliding(inputs.window.numbers, start, inputs.stop, self._windows())), None)
        fold = fold or next(iter(walking(inputs.window.numbers, start, inputs.stop, self._walk())), None)
        if fold is None:
            raise too_short(inputs)
        blind = replace(fold, use=range(fold.validation.stop, fold.validation.stop))
        return [self._cell(row, inputs, lookback, "trial", 0, 0, blind, setting) for setting in tried]

    def _choose(self, row: Method, market: str, jobs: Sequence[Planned], made: Mapping[str, CellResult | str]) -> None:
        """Freeze the setting of the lowest validation loss; the first one where two are alike."""
        if not jobs:
            return
        losses = [self.cells.loss(job.facts.cell) for job in jobs]
        known = [(loss, at) for at, loss in enumerate(losses) if loss is not None]
        if not known:
            self.missing.setdefault(row.key, {})[market] = str(made[jobs[0].facts.cell])
            return
        best = json.loads(jobs[min(known)[1]].facts.setting)
        self.chosen[row.key, market] = {key: value for key, value in best.items() if key not in row.settings}
        self.facts["settings"].setdefault(row.key, {})[market] = self.chosen[row.key, market]

    def _tests(self, row: Method, market: str) -> list[Planned]:
        inputs = self._inputs(row.reading, market)
        assert isinstance(inputs, Inputs)
        setting, start = self.chosen[row.key, market], inputs.start
        windows = sliding(inputs.window.numbers, start, inputs.stop, self._windows())
        walk = walking(inputs.window.numbers, start, inputs.stop, self._walk())
        if not walk:
            raise too_short(inputs)
        asked = (1,) if self.request.target == "same_day" else self.config.experiment.lookbacks
        lookbacks = [t for t in asked if row.lookbacks is None or t in row.lookbacks or len(asked) == 1]
        splits = [("walkforward", at, fold) for at, fold in enumerate(walk)]
        if self.request.target == "next_day":
            splits = [("windows", at, fold) for at, fold in enumerate(windows)] + splits
        return [
            self._cell(row, inputs, t, protocol, at, seed, fold, setting)
            for t in lookbacks
            for protocol, at, fold in splits
            for seed in range(row.seeds)
        ]

    def _windows(self) -> Windows:
        asked = self.config.experiment
        return Windows(asked.window, asked.window_step, asked.windows)

    def _walk(self) -> WalkForward:
        step, mode = self.config.experiment.walk_step, self.config.experiment.walk_mode
        return replace(self.config.walkforward, step=step, mode=mode)

    def _cell(self, row: Method, inputs: Inputs, lookback: int, *place: Any) -> Planned:
        return plan_cell(self.config, self.request.target, row, inputs, lookback, *place)

    def _plan(self, jobs: Sequence[Planned]) -> None:
        """Write down how many cells each place of the tables needs, so that a gap is seen as one."""
        planned: dict[str, list[int]] = {}  # place → how many splits, how many seeds
        for job in jobs:
            splits, seeds = planned.setdefault(place_of(asdict(job.facts)), [0, 0])
            planned[place_of(asdict(job.facts))] = [max(splits, job.facts.split + 1), max(seeds, job.facts.seed + 1)]
        self.facts["planned"] = planned
        self.cells.note(self.number, self.facts)

    def _make(self, stage: str, jobs: Sequence[Planned]) -> dict[str, CellResult | str]:
        """Make the cells that are not there, each written as soon as it is done; return those, or why they failed."""
        there = self.cells.has(job.facts.cell for job in jobs)
        self.cells.belong(self.number, [(job.facts.method, job.facts.cell) for job in jobs if job.facts.cell in there])
        due = list({job.facts.cell: job for job in jobs if job.facts.cell not in there}.values())
        found: dict[str, CellResult | str] = {}
        workers = workers_of(self.config)
        own = {job.facts.cell: job for job in due}
        sent = [job.job for job in due]
        with (
            self.stages(stage) as step,
            closing(as_completed(evaluate, sent, lambda job: own[job.facts.cell].days(), workers)) as results,
        ):
            for done, (job, result) in enumerate(results, start=1):
                found[job.facts.cell] = result
                if isinstance(result, CellResult):
                    self.cells.write(self.number, job.facts, result)
                step(done, len(due), f"{job.facts.method} {job.facts.market} {job.facts.lookback}")
        return found


def _order(job: Planned) -> tuple[int, int, str]:
    """First seeds first: a stopped experiment has whole rows, if wider ones."""
    return job.facts.seed, job.facts.lookback, job.facts.protocol
