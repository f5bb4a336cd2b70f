"""Train the models of folds, each from its own days alone, side by side in processes of one thread each.

A fold's model id hashes all that shapes it (settings, code, library versions, the fold's own seed and every training
array), so a model already in the registry is not trained again, and one whose data changed in any bit is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
import hashlib
from importlib import metadata
import json
import multiprocessing
import os
from pathlib import Path
import time
from typing import Any

from models.base import Days, FitReport, Model, ModelFactory
from trader.errors import ModelError, TraderError
from trader.registry import Registry
from trader.walkforward import Fold
from trader.window import Window


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to train. ``factory`` must be importable by other processes; ``settings`` must fit into JSON.

    texts_id: fingerprint of the language model whose embeddings it reads.
    code: hash of the model's own source where it is none of ours, so that changed code is never mistaken.
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
    """What one process needs to train one fold; positions are those of ``days``."""

    spec: ModelSpec
    model_id: str
    days: Days
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
        for done, (model_id, took) in enumerate(_fit_all(list(due.values()), self._workers), start=1):
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
        days = self._window.learnable(first, fold.validation.stop)
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
            "code": [code_hash("models"), spec.code],
            "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
        }
        spans = {
            "train": [str(sessions[fold.train.start]), str(sessions[fold.train.stop - 1])],
            "validation": [str(sessions[fold.validation.start]), str(sessions[fold.validation.stop - 1])],
            "last_seen": str(sessions[fold.validation.stop]),  # its close is the last label
        }
        return _Job(
            spec=spec,
            model_id=self._id(shape, days),
            days=days,
            train=train,
            validation=validation,
            seed=seed,
            manifest={**shape, "spans": spans},
            folder=self._registry.folder,
        )

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


def _fit(job: _Job) -> tuple[str, float]:
    started = time.perf_counter()
    try:
        model = job.spec.factory()
        report = model.fit(job.days, job.train, job.validation, job.seed)
    except TraderError:
        raise
    except Exception as error:  # the model may be the user's own, so it may raise anything
        raise ModelError("the training failed", where=job.model_id, got=f"{type(error).__name__}: {error}") from error
    Registry(job.folder).save(job.model_id, model.weights(), {**job.manifest, "report": asdict(report)})
    return job.model_id, time.perf_counter() - started


def _fit_all(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[str, float]]:
    """Fit jobs as they get done, in any order; few or quick ones stay in this process."""
    if min(workers, len(jobs)) < 2:
        yield from map(_fit, jobs)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        waiting = list(reversed(jobs))
        running: set[Future[tuple[str, float]]] = set()
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:  # bounded: each job in flight holds a copy of its days
                    running.add(pool.submit(_fit, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ModelError(
                "a training process died", do="look for lack of memory, or lower [compute] workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
