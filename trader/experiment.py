"""Run a paper's experiment: plan its cells, choose a setting on validation, train and test what is not there yet.

    methods × markets × lookbacks × splits × seeds → cells → ledger → trader.experiment_tables

Each cell is trained and tested in a worker process of one thread and written when it is done, so an experiment that is
killed goes on where it stopped. A cell's forecasts are made without labels, and three of them a second time from their
own lookback days alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from models.processes import as_completed
from trader import methods_msmf
from trader.cell_work import evaluate
from trader.cells import CellResult, Cells, ExperimentRow
from trader.config import Config, WalkForward, as_mapping, from_mapping
from trader.errors import ModelError, StoreError
from trader.experiment_inputs import Inputs, load, too_short
from trader.experiment_panel import PanelFold, PanelInputs, PlannedPanel, load_panel, plan_panel_cell
from trader.experiment_plan import Planned, Target, own_code, place_of, plan_cell
from trader.methods import Method, Reading, Settings, methods, points
from trader.outcome import Home
from trader.parts import Readers, check_chats, readers_for, stock, stock_universe, workers_of
from trader.progress import Stages, Watch, silent
from trader.protocol import Windows, sliding, walking
from trader.sources import source_hash
from trader.store import MarketStore
from trader.training import code_hash
from trader.universe import universe_of
from trader.walkforward import Fold

Paper = Literal["finin", "msmf"]
AnyPlanned = Planned | PlannedPanel
ReadersFor = Callable[[Config, Home, Reading, str], Readers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for: which tables of which paper, on what.

    first, last: None takes what the news set spans.   only: keys of methods, () for all.
    universes: of those markets that are many symbols, the name and the text of their file.
    """

    markets: tuple[str, ...]
    news: str
    first: date | None = None
    last: date | None = None
    tables: tuple[int, ...] = (1, 2, 3)
    target: Target = "next_day"
    quick: bool = False
    only: tuple[str, ...] = ()
    paper: Paper = "finin"
    universes: tuple[tuple[str, str], ...] = ()

    def rows(self, config: Config) -> list[Method]:
        """Return the rows of the paper's tables that are asked for; ConfigError where ``only`` has one that is none."""
        if self.paper == "msmf":
            return methods_msmf.methods(config, self.tables, self.only)
        return methods(config, self.tables, self.target, self.only)

    def lookbacks(self, config: Config) -> tuple[int, ...]:
        """Return the sessions of input at which rows are tested: those of FININ's tables, else one."""
        if self.target == "same_day":
            return (1,)
        asked = config.experiment
        return asked.lookbacks if self.paper == "finin" else (asked.search_lookback,)

    @property
    def windowed(self) -> bool:
        """Whether the paper's own sliding windows are tested on, beside the walk-forward."""
        return self.paper == "finin" and self.target == "next_day"

    def key(self, config: Config) -> tuple[dict[str, Any], str]:
        """Return the request with all settings as a plain dict, and its hash."""
        settings = as_mapping(config)
        for section in ("run", "retrain", "risk", "costs", "compute", "strategy"):  # they shape no cell, but for these
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
    again: bool = False,
) -> ExperimentRow:
    """Run an experiment to its end and return its row in the ledger; one that is finished costs nothing.

    Where the store or the code has changed since, the cells that this touches are made again.
    readers: what reads the headlines.   again: look anew for what was missing, though the experiment is finished.
    Raises TraderError for what a user can mend; StoreError where another experiment runs in this home. Ctrl-C leaves
    it stopped, with every finished cell.
    """
    home, stages = Home(home_folder), Stages(watch)
    home.make()
    check_chats(config)
    if request.quick:
        config = _quick(config)
    request.rows(config)  # a wrong name is found before anything is begun
    asked, asked_hash = request.key(config)
    with _alone(home), Cells.open(home.ledger) as cells:
        done, state = cells.finished(asked_hash), _state(home, request)
        if done is not None and done.facts.get("state") == state and not again:
            return done
        number = cells.begin(request.paper, asked, asked_hash)
        try:
            _Run(config, home, request, cells, number, stages, readers, state).go()
        except BaseException:
            cells.stop(number)
            raise
        cells.end(number, "finished")
        return cells.experiment(number)


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Let one experiment run in a home at a time: two would make the same cells and write each other's places."""
    try:
        with FileLock(home.folder / "experiment.lock", timeout=0):
            yield
    except Timeout as error:
        do = "wait for it, or choose another --home"
        raise StoreError("another experiment is running here", where=home.folder, do=do) from error


def _state(home: Home, request: Request) -> list[Any]:
    """Return what changes with the store and with the code that shapes the cells, their names and their choice.

    What is built in is stored first, so that its first use changes nothing.
    """
    names = ("methods", "methods_msmf", "protocol", "experiment", "experiment_plan", "experiment_panel", "pooling")
    code = [source_hash(f"trader.{name}") for name in names]
    with MarketStore.open(home.store) as store:
        universes = dict(request.universes)
        for market in request.markets:
            if market in universes:
                stock_universe(store, universe_of(universes[market]), request.news)
            else:
                stock(store, market, request.news)
        return [store.last_import(), code_hash("models"), *code, *own_code()]


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
        paper=asked.get("paper", "finin"),
        universes=tuple((name, text) for name, text in asked.get("universes", [])),
    )
    return replace(whole, compute=compute), request


def walk_of(config: Config) -> WalkForward:
    """Return the spans of the experiment's walk-forward."""
    return replace(config.walkforward, step=config.experiment.walk_step, mode=config.experiment.walk_mode)


def _quick(config: Config) -> Config:
    asked = config.experiment
    fewer = replace(
        asked, seeds=1, ablation_seeds=1, trials=min(2, asked.trials), finin_trials=min(2, asked.finin_trials)
    )
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
        state: list[Any],
    ) -> None:
        self.config, self.home, self.request, self.cells, self.number = config, home, request, cells, number
        self.stages, self.readers, self.state = stages, readers, state
        self.loaded: dict[tuple[str, Reading], Inputs | PanelInputs | str] = {}
        self.chosen: dict[tuple[str, str], Settings] = {}
        self.missing: dict[str, dict[str, str]] = {}  # method → market → why
        self.facts: dict[str, Any] = {"spans": {}, "settings": {}, "tried": {}, "missing": self.missing, "planned": {}}

    def go(self) -> None:
        """Choose settings, then make every cell; afterwards each place has its cells or a reason."""
        self.facts["state"] = self.state  # of before anything is read: what is imported meanwhile is not in it
        rows = self.request.rows(self.config)
        self.facts["rows"] = [
            {"key": row.key, "title": row.title, "same_as": row.same_as, "tables": list(row.tables)} for row in rows
        ]
        pairs = [(row, market) for market in self.request.markets for row in rows]
        keys = {row.key for row in rows}
        leaders = [(row, market) for row, market in pairs if row.follows not in keys]
        trials = [(row, market, self._planned(self._trials, row, market)) for row, market in leaders]
        failed = self._make("choose", [job for _, _, jobs in trials for job in jobs])
        for row, market, jobs in trials:
            self._choose(row, market, jobs, failed)
        for row, market in pairs:
            if (leader := (row.follows, market)) in self.chosen and (row.key, market) not in self.chosen:
                self.chosen[row.key, market] = self.chosen[leader]
        jobs = [job for row, market in pairs for job in self._planned(self._tests, row, market)]
        self._plan(jobs)
        tried = [job for _, _, jobs in trials for job in jobs]
        self.cells.show(self.number, [job.facts for job in [*tried, *jobs]])
        failed = self._make("cells", sorted(jobs, key=self._order))
        self.facts["failed"] = {
            place_of(asdict(job.facts)): failed[job.facts.cell] for job in jobs if job.facts.cell in failed
        }
        self.cells.show(self.number, [job.facts for job in [*tried, *jobs]])  # with those that two places share
        self.cells.note(self.number, self.facts)

    def _planned(self, plan: Callable[[Method, str], list[AnyPlanned]], row: Method, market: str) -> list[AnyPlanned]:
        """Return what a row needs on a market; where it cannot be had, nothing, and why is noted."""
        if self._lacking(row, market):
            return []
        try:
            return plan(row, market)
        except ModelError as error:
            self.missing.setdefault(row.key, {})[market] = str(error)
            return []

    # Inputs

    def _lacking(self, row: Method, market: str) -> bool:
        """Tell whether a row cannot be run on a market, and note why."""
        why = row.why_not
        if row.pooled and len(self.request.markets) < 2:
            why = "one market alone has no other to be pooled with: name two or more, --market A,B"
        if not why and isinstance(found := self._inputs(row.reading, market), str):
            why = found
        if why:
            self.missing.setdefault(row.key, {})[market] = why
        return bool(why) or market in self.missing.get(row.key, {})

    def _inputs(self, reading: Reading, market: str) -> Inputs | PanelInputs | str:
        if (market, reading) not in self.loaded:
            try:
                # Readers first: where weights are not there, nothing needs to be read.
                readers = self.readers(self.config, self.home, reading, market)
                span = (self.request.news, self.request.first, self.request.last)
                text, how = dict(self.request.universes).get(market, ""), (reading, readers, self.stages)
                loaded = (
                    load_panel(self.config, self.home, market, text, span, *how)
                    if text
                    else load(self.config, self.home, market, span, *how)
                )
                self.loaded[market, reading] = loaded
                self.facts["spans"][market] = [str(day) for day in loaded.spanned]
            except ModelError as error:
                if reading == Reading():
                    raise
                self.loaded[market, reading] = str(error)
        return self.loaded[market, reading]

    # Cells

    def _trials(self, row: Method, market: str) -> list[AnyPlanned]:
        """Return the trials of a row: trainings on the first window, of which only the validation is looked at."""
        inputs = self._inputs(row.reading, market)
        assert not isinstance(inputs, str)
        asked = self.config.experiment
        trials = asked.finin_trials if row.model == "finin" else asked.trials
        tried = points(row.space, trials, self.config.run.seed)
        if len(tried) == 1:
            self.chosen[row.key, market] = tried[0]
            return []
        lookback = 1 if self.request.target == "same_day" else asked.search_lookback
        windows = self._windows(inputs) if self.request.paper == "finin" else []
        folds = [*windows[:1], *self._walk(inputs)[:1]]
        if not folds:
            raise too_short(inputs.market, inputs.spanned)
        blind = self._blind(folds)
        return [self._cell(row, inputs, lookback, "trial", 0, 0, blind, setting) for setting in tried]

    def _blind(self, folds: Sequence[Fold | PanelFold]) -> Fold | PanelFold:
        """Return, of these folds, the one that is validated first, without its test days: before those of all."""
        if isinstance(folds[0], PanelFold):
            return folds[0].blind()
        fold = min((one for one in folds if isinstance(one, Fold)), key=lambda one: one.validation.stop)
        return replace(fold, use=range(fold.validation.stop, fold.validation.stop))

    def _choose(self, row: Method, market: str, jobs: Sequence[AnyPlanned], failed: Mapping[str, str]) -> None:
        """Freeze the setting of the lowest validation loss; the first one where two are alike."""
        if not jobs:
            return
        losses = [(self.cells.loss(job.facts.cell), at) for at, job in enumerate(jobs)]
        known = [(loss, at) for loss, at in losses if loss is not None]
        self.facts["tried"].setdefault(row.key, {})[market] = [len(known), len(jobs)]
        if not known:
            reason = failed.get(jobs[0].facts.cell, "no setting has a validation loss")
            self.missing.setdefault(row.key, {})[market] = reason
            return
        best = json.loads(jobs[min(known)[1]].facts.setting)
        self.chosen[row.key, market] = {key: value for key, value in best.items() if key not in row.settings}
        self.facts["settings"].setdefault(row.key, {})[market] = self.chosen[row.key, market]

    def _tests(self, row: Method, market: str) -> list[AnyPlanned]:
        inputs = self._inputs(row.reading, market)
        assert not isinstance(inputs, str)
        if (row.key, market) not in self.chosen:
            raise ModelError(f"the row {row.follows}, whose setting it takes, has none")
        setting, walk = self.chosen[row.key, market], self._walk(inputs)
        if not walk:
            raise too_short(inputs.market, inputs.spanned)
        asked = self.request.lookbacks(self.config)
        lookbacks = [t for t in asked if row.lookbacks is None or t in row.lookbacks or len(asked) == 1]
        splits = [("walkforward", at, fold) for at, fold in enumerate(walk)]
        if self.request.windowed:
            splits = [("windows", at, fold) for at, fold in enumerate(self._windows(inputs))] + splits
        return [
            self._cell(row, inputs, t, protocol, at, seed, fold, setting)
            for t in lookbacks
            for protocol, at, fold in splits
            for seed in range(row.seeds)
        ]

    def _windows(self, inputs: Inputs | PanelInputs) -> Sequence[Fold | PanelFold]:
        asked = self.config.experiment
        windows = Windows(asked.window, asked.window_step, asked.windows)
        assert isinstance(inputs, Inputs), "the windows are those of one market"
        return sliding(inputs.window.numbers, inputs.start, inputs.stop, windows)

    def _walk(self, inputs: Inputs | PanelInputs) -> Sequence[Fold | PanelFold]:
        spec = walk_of(self.config)
        if isinstance(inputs, PanelInputs):
            return inputs.folds(spec)
        return walking(inputs.window.numbers, inputs.start, inputs.stop, spec)

    def _cell(self, row: Method, inputs: Inputs | PanelInputs, lookback: int, *place: Any) -> AnyPlanned:
        if isinstance(inputs, PanelInputs):
            return plan_panel_cell(self.config, row, inputs, lookback, *place)
        plan = partial(plan_cell, others=self._others(row, inputs.market) if row.pooled else [])
        return plan(self.config, self.request.target, row, inputs, lookback, *place)

    def _others(self, row: Method, market: str) -> list[Inputs]:
        """Return the inputs of the experiment's other markets; ModelError where one cannot be had."""
        found = [self._inputs(row.reading, other) for other in self.request.markets if other != market]
        if why := [one for one in found if isinstance(one, str)]:
            raise ModelError("another market cannot be read", got=why[0])
        return [one for one in found if isinstance(one, Inputs)]

    def _plan(self, jobs: Sequence[AnyPlanned]) -> None:
        """Write down how many cells each place of the tables needs, so that a gap is seen as one."""
        planned: dict[str, list[int]] = {}  # place → how many splits, how many seeds
        for job in jobs:
            place = place_of(asdict(job.facts))
            splits, seeds = planned.get(place, (0, 0))
            planned[place] = [max(splits, job.facts.split + 1), max(seeds, job.facts.seed + 1)]
        self.facts["planned"] = planned
        self.cells.note(self.number, self.facts)

    def _order(self, job: AnyPlanned) -> tuple[int, int, str]:
        """First seeds first, and lookbacks near the one searched at: a stopped experiment then has whole rows."""
        facts = job.facts
        return facts.seed, abs(facts.lookback - self.config.experiment.search_lookback), facts.protocol

    def _make(self, stage: str, jobs: Sequence[AnyPlanned]) -> dict[str, str]:
        """Make the cells that are not there, each written as soon as it is done; return those that failed, and why."""
        there = self.cells.has(job.facts.cell for job in jobs)
        due = {job.facts.cell: job for job in jobs if job.facts.cell not in there}
        failed: dict[str, str] = {}
        work = as_completed(
            evaluate, [job.job for job in due.values()], lambda job: due[job.facts.cell].days(), workers_of(self.config)
        )
        with self.stages(stage) as step, closing(work) as results:
            for done, (job, result) in enumerate(results, start=1):
                if isinstance(result, CellResult):
                    self.cells.write(job.facts, result)
                    self.cells.add(self.number, job.facts)
                else:
                    failed[job.facts.cell] = result
                step(done, len(due), f"{job.facts.method} {job.facts.market} {job.facts.lookback}")
        return failed
