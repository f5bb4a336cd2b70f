"""Train one model over all symbols of a universe: a training a fold, side by side in processes of one thread each.

Beside ``trader.training``, which trains on one symbol's window. A fold's spans are the calendar's, so that no symbol
trains on days that another validates on; the id hashes every part that is learned from, in the universe's order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from models.base import FitReport
from models.panel import Part, PooledModel
from models.processes import Background, as_completed
from trader.clock import Calendar
from trader.config import WalkForward
from trader.registry import Registry
from trader.training import (
    Lane,
    Loaded,
    ModelSpec,
    Training,
    content_id,
    fit_and_save,
    fold_seed,
    load_with,
    report_of,
    shape_of,
)
from trader.walkforward import Fold, fold_at
from trader.window import Window


@dataclass(frozen=True, slots=True)
class PanelFold:
    """One training over many symbols: ``parts`` has the symbols with enough history, in the universe's order.

    trained_at: XNYS number of T.   parts: symbol → its fold, positions in its own window; none is used for anything.
    """

    trained_at: int
    parts: Mapping[str, Fold]


@dataclass(frozen=True, slots=True)
class TrainedPanel:
    """A fold with its model, as ``trader.training.TrainedFold``."""

    fold: PanelFold
    model_id: str
    report: FitReport
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class _Job:
    spec: ModelSpec
    model_id: str
    fold: PanelFold
    seed: int
    manifest: Mapping[str, Any]
    folder: Path


def plan_panel(
    windows: Mapping[str, Window],
    first: int,
    last: int,
    warm_up: int,
    spec: WalkForward,
    late: Mapping[str, Collection[int]],
) -> list[PanelFold]:
    """Return the folds whose models decide the sessions with XNYS numbers first … last, oldest first.

    warm_up, late: as ``trader.walkforward.plan`` has them, the latter by symbol.
    The first fold is the latest one trained before ``first`` in which some symbol has enough history, else the first
    that is. Which symbols a fold holds depends on what is known at its T alone.
    """
    held = [window.numbers[0] for window in windows.values() if window.numbers]
    begin = max(min(held, default=last), first - spec.step)  # the latest T before ``first`` lies no further back
    times = range(-(-begin // spec.step) * spec.step, last, spec.step)
    found = [panel_at(windows, trained_at, warm_up, spec, late) for trained_at in times]
    return [fold for fold in found if fold is not None]


def panel_at(
    windows: Mapping[str, Window],
    trained_at: int,
    warm_up: int,
    spec: WalkForward,
    late: Mapping[str, Collection[int]],
) -> PanelFold | None:
    """Return the fold trained at the session with this XNYS number, None where no symbol has enough history."""
    parts = {
        symbol: part
        for symbol, window in windows.items()
        if (part := _part(window.numbers, trained_at, warm_up, spec, late.get(symbol, ()))) is not None
    }
    return PanelFold(trained_at, parts) if parts else None


def _part(
    numbers: Sequence[int], trained_at: int, warm_up: int, spec: WalkForward, late: Collection[int]
) -> Fold | None:
    """Return a symbol's share of a fold, cut to the calendar's spans; None where it has too little, or ended before.

    A symbol that lacks bars reaches further back than the others: what lies outside their spans is cut away.
    """
    fold = fold_at(trained_at, bisect_right(numbers, trained_at) - (trained_at in late), warm_up, spec)
    if fold is None:
        return None
    validated_from = trained_at + 1 - spec.purge - spec.validation
    start = bisect_left(numbers, validated_from, fold.validation.start, fold.validation.stop)
    stop = bisect_left(numbers, validated_from - spec.purge, fold.train.start, fold.train.stop)
    cut = replace(fold, validation=range(start, fold.validation.stop), train=range(fold.train.start, stop))
    return cut if cut.validation and cut.train else None


class PanelTrainer:
    """Trains the folds of a universe's windows for one PooledModel, and loads what was trained.

    workers: processes side by side; the results are the same for any number.   about: for the manifest.
    fallback: the same model for the CPU, where ``spec`` is for a GPU that may be lost.
    """

    def __init__(
        self,
        windows: Mapping[str, Window],
        spec: ModelSpec,
        registry: Registry,
        calendar: Calendar,
        *,
        workers: int,
        about: Mapping[str, Any],
        fallback: ModelSpec | None = None,
    ) -> None:
        self._windows, self.spec, self.registry, self._calendar = windows, spec, registry, calendar
        self._workers, self._about, self.fallback = workers, dict(about), fallback

    def train(
        self, folds: Sequence[PanelFold], progress: Callable[[int, int], None] | None = None
    ) -> list[TrainedPanel]:
        """Return each fold with its model, in the order given, training those that the registry lacks.

        Raises ModelError where a training fails.
        """
        jobs = [self._job(fold, self.spec) for fold in folds]
        due = {job.model_id: job for job in jobs if not self.registry.has(job.model_id)}
        seconds: dict[str, float] = {}
        with closing(as_completed(_fit, list(due.values()), self._parts, self._workers)) as fitted:
            for done, (_, (model_id, took)) in enumerate(fitted, start=1):
                seconds[model_id] = took
                if progress:
                    progress(done, len(due))
        return [
            self._trained(fold, job.model_id, seconds.get(job.model_id)) for fold, job in zip(folds, jobs, strict=True)
        ]

    def begin(self, fold: PanelFold, *, fall_back: bool = False) -> Training[TrainedPanel]:
        """Start to train one fold in a process of its own; see ``trader.training.Trainer.begin``."""
        job = self._job(fold, self.fallback if fall_back and self.fallback else self.spec)

        def start() -> Background[tuple[str, float]]:
            return Background(_fit, job, self._parts(job))

        def trained(seconds: float | None) -> TrainedPanel:
            return self._trained(fold, job.model_id, seconds)

        return Training(job.model_id, None if self.registry.has(job.model_id) else start, trained, Lane())

    def _trained(self, fold: PanelFold, model_id: str, seconds: float | None) -> TrainedPanel:
        return TrainedPanel(fold, model_id, report_of(self.registry, model_id), seconds or 0.0, cached=seconds is None)

    def load(self, model_id: str) -> Loaded:
        """Return a model by the id that signals name, ready to predict.

        Raises ModelError if it is missing, damaged, or not of this specification's model and lookback.
        """
        return load_with(self.registry, model_id, self.spec, self.fallback)

    def _first(self, fold: Fold) -> int:
        """Return the first position that the decisions of a part read."""
        return fold.train.start - self.spec.lookback + 1

    def _job(self, fold: PanelFold, spec: ModelSpec) -> _Job:
        spans = self._spans(fold)
        seed = fold_seed(spec.seed, spec.name, spans["train"][1])
        learned = [(symbol, part, self._first(part)) for symbol, part in fold.parts.items()]
        shape = shape_of(spec, seed) | {
            "parts": [
                [symbol, *(at - first for span in (part.train, part.validation) for at in (span.start, span.stop))]
                for symbol, part, first in learned
            ]
        }
        days = [
            (self._windows[symbol], self._windows[symbol].learnable(first, part.validation.stop))
            for symbol, part, first in learned
        ]
        manifest = {**shape, **self._about, "spans": spans}
        return _Job(spec, content_id(shape, days), fold, seed, manifest, self.registry.folder)

    def _spans(self, fold: PanelFold) -> dict[str, Any]:
        """Return the sessions from the first to the last of any symbol."""
        found: dict[str, Any] = {}
        for name in ("train", "validation"):
            ends = [
                (self._windows[symbol].sessions[span.start], self._windows[symbol].sessions[span.stop - 1])
                for symbol, part in fold.parts.items()
                for span in [getattr(part, name)]
            ]
            found[name] = [str(min(first for first, _ in ends)), str(max(last for _, last in ends))]
        seen = (self._windows[symbol].sessions[part.validation.stop] for symbol, part in fold.parts.items())
        return found | {"last_seen": str(max(seen))}  # its close is the last label

    def _parts(self, job: _Job) -> list[Part]:
        """Return the job's own days: copies, so made when it is due and not before."""
        made = []
        for symbol, part in job.fold.parts.items():
            first = self._first(part)
            days = self._windows[symbol].learnable(first, part.validation.stop)
            spans = (range(span.start - first, span.stop - first) for span in (part.train, part.validation))
            made.append(Part(days, *spans))
        return made


def _fit(job: _Job, parts: Sequence[Part]) -> tuple[str, float]:
    def learn(model: Any) -> FitReport:
        return cast(PooledModel, model).fit_panel(parts, job.seed)

    return fit_and_save(job.spec, job.model_id, Registry(job.folder), job.manifest, learn)
