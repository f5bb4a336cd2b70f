"""Train the models of folds, each from its own days alone, side by side in processes of one thread each.

A fold's model id hashes all that shapes it (settings, code, library versions, the fold's own seed and every training
array), so a model already in the registry is not trained again, and one whose data changed in any bit is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
import hashlib
from importlib import metadata
import json
from pathlib import Path
import time
from typing import Any

from models.base import Days, FitReport, Model, ModelFactory
from models.processes import as_completed
from trader.errors import ModelError, TraderError
from trader.registry import Registry
from trader.walkforward import Fold
from trader.window import Window

Fitted = Generator[tuple[str, float], None, None]  # model id, seconds


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to train. ``factory`` must be importable by other processes; ``settings`` must fit into JSON.

    texts_id: fingerprint of the language model whose embeddings it reads.
    code: hash of the model's source and of what it imports, so that changed code is never mistaken; "" hashes all of
        models/.
    """

    name: str
    factory: ModelFactory
    settings: Mapping[str, Any]
    lookback: int
    texts_id: str
    seed: int
    code: str = ""


@dataclass(frozen=True, slots=True)
class TrainedFold:
    """A fold with its model. ``cached``: found in the registry, not trained now; seconds 0 then."""

    fold: Fold
    model_id: str
    report: FitReport
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class _Job:
    """What one process needs to train one fold, but for its days; their positions count from ``first``."""

    spec: ModelSpec
    model_id: str
    first: int
    train: range
    validation: range
    seed: int
    manifest: Mapping[str, Any]
    folder: Path


class Trainer:
    """Trains folds of one window for one model specification.

    workers: processes side by side; the results are the same for any number.
    """

    def __init__(self, window: Window, spec: ModelSpec, registry: Registry, *, workers: int) -> None:
        self._window, self._spec, self._registry, self._workers = window, spec, registry, workers

    def train(self, folds: Sequence[Fold], progress: Callable[[int, int], None] | None = None) -> list[TrainedFold]:
        """Return each fold with its model, in the order given, training those that the registry lacks.

        Raises ModelError where a training fails.
        """
        jobs = [self._job(fold) for fold in folds]
        due = {job.model_id: job for job in jobs if not self._registry.has(job.model_id)}
        seconds: dict[str, float] = {}
        with closing(_fit_all(list(due.values()), self._days, self._workers)) as fitted:
            for done, (model_id, took) in enumerate(fitted, start=1):
                seconds[model_id] = took
                if progress:
                    progress(done, len(due))
        return [
            self._trained(fold, job.model_id, seconds.get(job.model_id)) for fold, job in zip(folds, jobs, strict=True)
        ]

    def model(self, trained: TrainedFold) -> Model:
        """Return the fold's model, ready to predict; raise ModelError if its weights do not fit."""
        model = self._spec.factory()
        try:
            model.load(self._registry.load(trained.model_id))
        except ValueError as error:
            raise ModelError("weights do not fit the model", where=trained.model_id, got=error) from error
        return model

    def _trained(self, fold: Fold, model_id: str, seconds: float | None) -> TrainedFold:
        try:
            report = FitReport(**self._registry.manifest(model_id)["report"])
        except (KeyError, TypeError) as error:
            raise ModelError(
                "a manifest without its report",
                where=self._registry.folder / model_id,
                do="delete that folder and run again",
            ) from error
        return TrainedFold(fold, model_id, report, seconds or 0.0, cached=seconds is None)

    def _job(self, fold: Fold) -> _Job:
        spec, first = self._spec, fold.train.start - self._spec.lookback + 1
        sessions = self._window.sessions
        seed = fold_seed(spec.seed, spec.name, str(sessions[fold.train.stop - 1]))
        train, validation = (range(part.start - first, part.stop - first) for part in (fold.train, fold.validation))
        shape = {
            "model": spec.name,
            "settings": dict(spec.settings),
            "lookback": spec.lookback,
            "texts": spec.texts_id,
            "seed": seed,
            "train": [train.start, train.stop],
            "validation": [validation.start, validation.stop],
            "code": spec.code or code_hash("models"),
            "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
        }
        spans = {
            "train": [str(sessions[fold.train.start]), str(sessions[fold.train.stop - 1])],
            "validation": [str(sessions[fold.validation.start]), str(sessions[fold.validation.stop - 1])],
            "last_seen": str(sessions[fold.validation.stop]),  # its close is the last label
        }
        return _Job(
            spec=spec,
            model_id=self._id(shape, self._window.learnable(first, fold.validation.stop)),
            first=first,
            train=train,
            validation=validation,
            seed=seed,
            manifest={**shape, "spans": spans},
            folder=self._registry.folder,
        )

    def _days(self, job: _Job) -> Days:
        """Return the job's own days: a copy, so made when it is due and not before."""
        return self._window.learnable(job.first, job.first + job.validation.stop)

    def _id(self, shape: Mapping[str, Any], days: Days) -> str:
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        # A text's digest and the language model's fingerprint stand for its embedding: the one is a function of them.
        keys = self._window.text_keys(days)
        for array in (days.market, days.next_return, days.news_offset, keys, days.news_sentiment):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        return f"{self._spec.name}-{digest.hexdigest()[:20]}"


def fold_seed(seed: int, model: str, train_end: str) -> int:
    """Return the seed of one fold's generator, from what names the fold and never from a running stream."""
    digest = hashlib.sha256(f"{seed}|{model}|{train_end}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=8)
def code_hash(*packages: str) -> str:
    """Return the sha256 of the Python sources of these packages of ours, so that changed code is never mistaken."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _fit(job: _Job, days: Days) -> tuple[str, float]:
    started = time.perf_counter()
    try:
        model = job.spec.factory()
        report = model.fit(days, job.train, job.validation, job.seed)
    except TraderError:
        raise
    except Exception as error:  # the model may be the user's own, so it may raise anything
        raise ModelError("the training failed", where=job.model_id, got=f"{type(error).__name__}: {error}") from error
    Registry(job.folder).save(job.model_id, model.weights(), {**job.manifest, "report": asdict(report)})
    return job.model_id, time.perf_counter() - started


def _fit_all(jobs: Sequence[_Job], days_of: Callable[[_Job], Days], workers: int) -> Fitted:
    """Fit jobs as they get done, in any order."""
    with closing(as_completed(_fit, jobs, days_of, workers)) as done:
        for _, result in done:
            yield result
