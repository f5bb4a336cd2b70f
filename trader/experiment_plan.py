"""Plan the cells of an experiment: which days, which model with which settings, and the name that all of it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
import hashlib
from importlib import metadata
import json
from typing import Any, Literal

from models.base import Days
from trader.cell_work import Job
from trader.cells import CellFacts
from trader.config import Config
from trader.errors import ModelError
from trader.experiment_inputs import Inputs
from trader.methods import Method, Settings
from trader.parts import model_spec
from trader.pooling import Part, parts, pooled
from trader.sources import source_hash
from trader.training import fold_seed
from trader.walkforward import Fold
from trader.window import Window

Target = Literal["next_day", "same_day"]

LIBRARIES = ("torch", "numpy", "scikit-learn")


@cache
def own_code() -> tuple[str, ...]:
    """Return what shapes a cell beside its model: the code that cuts it out and runs it, and the libraries."""
    code = [source_hash(module) for module in ("trader.cell_work", "trader.window")]
    return (*code, *(f"{name} {metadata.version(name)}" for name in LIBRARIES))


@dataclass(frozen=True, slots=True)
class Planned:
    """A job, and where its days are taken from when it is due; ``added``: other markets' days, laid before them."""

    job: Job
    window: Window
    first: int
    stop: int
    added: Sequence[Part] = ()

    @property
    def facts(self) -> CellFacts:
        """What the cell is."""
        return self.job.facts

    def days(self) -> Days:
        """Return the days that the job reads, with all their labels: a copy, so made when it is due."""
        own = self.window.learnable(self.first, self.stop)
        return pooled(self.added, own) if self.added else own


def plan_cell(
    config: Config,
    target: Target,
    row: Method,
    inputs: Inputs,
    lookback: int,
    protocol: str,
    split: int,
    seed: int,
    fold: Fold,
    setting: Settings,
    others: Sequence[Inputs] = (),
) -> Planned:
    """Cut a fold of a market's sessions out for a method, and name the cell by all that shapes it.

    protocol: "trial", "windows" or "walkforward".   seed: 0, 1, 2 …, on top of the config's.   setting: wins over the
    method's own settings, which win over the config's.   others: the markets that a method with ``pooled`` learns from
    beside its own, see ``trader.pooling``. Raises ConfigError for a setting that the model does not have, ModelError
    where what it needs is not installed, or where no other market has a day in the training span.
    """
    options = {**config.model.get(row.model, {}), **row.settings, **setting}
    run = replace(config.run, lookback=lookback, market=inputs.market)
    spec = model_spec(replace(config, run=run, model={row.model: options}), row.model, inputs.texts_id)
    same = target == "same_day"
    need = spec.lookback
    added = parts(others, inputs, fold.train, need) if row.pooled else []
    if row.pooled and not added:
        where = f"{inputs.market}, split {split}"
        raise ModelError("no other market has days in the training span", where=where, do="name two: --market A,B")
    first = fold.train.start if added else fold.train.start - need + 1 - same
    stop = max(fold.use.stop, fold.validation.stop)
    shift = sum(map(len, added)) - first
    train = range(need - 1 + same, fold.train.stop + shift)
    validation, use = (range(part.start + shift, part.stop + shift) for part in (fold.validation, fold.use))
    sessions = [str(day) for day in inputs.window.sessions]
    shape = {
        "model": row.model,
        "settings": dict(spec.settings),
        "code": [spec.code, *own_code()],
        "texts": inputs.texts_id,
        "target": target,
        "ranges": [[part.start, part.stop] for part in (train, validation, use)],
        "seed": config.run.seed + seed,
        "market": inputs.window.description,
        # The first ones shape the first day's features, the last one holds the last label.
        "days": inputs.digests[max(0, first - Window.warm_up - 1) : stop + 1],
    }
    if added:
        shape["pooled"] = [source_hash("trader.pooling"), *([len(part), list(part.digests)] for part in added)]
    facts = CellFacts(
        cell=hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest(),
        method=row.key,
        market=inputs.market,
        target=target,
        lookback=lookback,
        protocol=protocol,
        split=split,
        seed=seed,
        setting=json.dumps({**row.settings, **setting}, sort_keys=True),
        train_first=sessions[fold.train.start],
        train_last=sessions[fold.train.stop - 1],
        validation_first=sessions[fold.validation.start],
        validation_last=sessions[fold.validation.stop - 1],
    )
    own_seed = fold_seed(config.run.seed + seed, row.model, facts.train_last)
    shown = [sessions[at] for at in fold.use]
    job = Job(facts, spec, need, own_seed, train, validation, use, shown)
    return Planned(job, inputs.window, first, stop, added)


def place_of(cell: Mapping[str, Any]) -> str:
    """Name the place in the tables that a cell belongs to."""
    return f"{cell['method']}|{cell['market']}|{cell['lookback']}|{cell['protocol']}"
