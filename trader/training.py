"""Train the models of folds, each from its own days alone, side by side in processes of one thread each.

A fold's model id hashes all that shapes it (settings, code, library versions, the fold's own seed and every training
array), so a model already in the registry is not trained again, and one whose data changed in any bit is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
import hashlib
from importlib import metadata
import json
from pathlib import Path
import time
from typing import Any, Generic, TypeVar, cast

from models.base import Days, FitReport, Model, ModelFactory
from models.devices import lost_device
from models.processes import Background, as_completed
from trader.errors import DeviceLost, ModelError, TraderError
from trader.registry import FALLEN_BACK, Registry
from trader.walkforward import Fold
from trader.window import Window

CPU = "cpu"
T = TypeVar("T")  # a fold with its model
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
class Loaded:
    """A trained model, ready to predict. model_id: as signals name it.

    last_seen: the newest session whose close it learned from or stopped on.
    """

    model_id: str
    model: Model
    last_seen: date


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
    """Trains folds of one window for one model specification, and loads what was trained.

    workers: processes side by side; the results are the same for any number.
    fallback: the same model for the CPU, where ``spec`` is for a GPU that may be lost.
    about: what the window shows, for the manifest: the names of the market and of the news set.
    lane: shared with the trainers that may begin trainings at the same time; None for one that is alone.
    """

    def __init__(
        self,
        window: Window,
        spec: ModelSpec,
        registry: Registry,
        *,
        workers: int,
        fallback: ModelSpec | None = None,
        about: Mapping[str, str] | None = None,
        lane: Lane | None = None,
    ) -> None:
        self._lane = lane or Lane()
        self._window, self.spec, self.registry, self._workers = window, spec, registry, workers
        self.fallback, self._about = fallback, dict(about or {})

    def train(self, folds: Sequence[Fold], progress: Callable[[int, int], None] | None = None) -> list[TrainedFold]:
        """Return each fold with its model, in the order given, training those that the registry lacks.

        Raises ModelError where a training fails.
        """
        return train_together([(self, folds)], progress)[0]

    def begin(self, fold: Fold, *, fall_back: bool = False) -> Training[TrainedFold]:
        """Start to train one fold in a process of its own; one that the registry has is done at once.

        fall_back: train the model for the CPU in place of the other.
        """
        spec = self.fallback if fall_back and self.fallback else self.spec
        job = self._job(fold, spec)

        def start() -> Background[tuple[str, float]]:
            return Background(_fit, job, self._days(job))

        def trained(seconds: float | None) -> TrainedFold:
            return self._trained(fold, job.model_id, seconds)

        return Training(job.model_id, None if self.registry.has(job.model_id) else start, trained, self._lane)

    def model(self, trained: TrainedFold) -> Model:
        """Return the fold's model, ready to predict; raise ModelError if its weights do not fit."""
        return self.load(trained.model_id).model

    def load(self, model_id: str) -> Loaded:
        """Return a model by the id that signals name, ready to predict.

        Raises ModelError if it is missing, damaged, or not of this specification's model and lookback.
        """
        return load_with(self.registry, model_id, self.spec, self.fallback)

    def _trained(self, fold: Fold, model_id: str, seconds: float | None) -> TrainedFold:
        report = report_of(self.registry, model_id)
        return TrainedFold(fold, model_id, report, seconds or 0.0, cached=seconds is None)

    def _job(self, fold: Fold, spec: ModelSpec) -> _Job:
        first = fold.train.start - spec.lookback + 1
        sessions = self._window.sessions
        seed = fold_seed(spec.seed, spec.name, str(sessions[fold.train.stop - 1]))
        train, validation = (range(part.start - first, part.stop - first) for part in (fold.train, fold.validation))
        shape = shape_of(spec, seed) | {
            "train": [train.start, train.stop],
            "validation": [validation.start, validation.stop],
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
            manifest={**shape, **self._about, "spans": spans},
            folder=self.registry.folder,
        )

    def _days(self, job: _Job) -> Days:
        """Return the job's own days: a copy, so made when it is due and not before."""
        return self._window.learnable(job.first, job.first + job.validation.stop)

    def _id(self, shape: Mapping[str, Any], days: Days) -> str:
        return content_id(shape, [(self._window, days)])


def train_together(
    work: Sequence[tuple[Trainer, Sequence[Fold]]], progress: Callable[[int, int], None] | None = None
) -> list[list[TrainedFold]]:
    """Return each trainer's folds with their models, in the order given, all that are lacking trained side by side.

    The trainers share a registry and a number of workers, as those of one run do. Raises ModelError where a training
    fails.
    """
    jobs = [[trainer._job(fold, trainer.spec) for fold in folds] for trainer, folds in work]
    due: dict[str, _Job] = {}
    owner: dict[str, Trainer] = {}
    for (trainer, _), own in zip(work, jobs, strict=True):
        for job in own:
            if job.model_id not in due and not trainer.registry.has(job.model_id):
                due[job.model_id], owner[job.model_id] = job, trainer
    seconds: dict[str, float] = {}
    workers = max((trainer._workers for trainer, _ in work), default=1)
    with closing(_fit_all(list(due.values()), lambda job: owner[job.model_id]._days(job), workers)) as fitted:
        for done, (model_id, took) in enumerate(fitted, start=1):
            seconds[model_id] = took
            if progress:
                progress(done, len(due))
    return [
        [trainer._trained(fold, job.model_id, seconds.get(job.model_id)) for fold, job in zip(folds, own, strict=True)]
        for (trainer, folds), own in zip(work, jobs, strict=True)
    ]


class Lane:
    """How many trainings may be under way at once, None for no limit: those of many trainers take their turn."""

    def __init__(self, most: int | None = None) -> None:
        self._most, self._running = most, 0

    @property
    def free(self) -> bool:
        """Whether another one may start."""
        return self._most is None or self._running < self._most

    def enter(self) -> None:
        """Count one that starts."""
        self._running += 1

    def leave(self) -> None:
        """Count one that has ended."""
        self._running -= 1


class Training(Generic[T]):
    """The training of one fold, done, under way in a process of its own, or waiting for its turn; ``close`` it always.

    start: begins it; None where the model is there already.   trained: gives its result, from the seconds it took.
    """

    def __init__(
        self,
        model_id: str,
        start: Callable[[], Background[tuple[str, float]]] | None,
        trained: Callable[[float | None], T],
        lane: Lane,
    ) -> None:
        self.model_id = model_id
        self._start, self._trained, self._lane = start, trained, lane
        self._running: Background[tuple[str, float]] | None = None
        self.wait(0.0)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, at most so long (None: without end); tell whether it has.

        With 0 seconds it starts if it is its turn; whoever really waits for it does not wait for the others too.
        """
        if self._start is not None and (self._lane.free or seconds != 0):
            start, self._start = self._start, None
            self._running = start()
            self._lane.enter()
        if self._start is not None:
            return False
        return self._running is None or self._running.wait(seconds)

    def result(self) -> T:
        """Wait for the fold with its model; raise ModelError where the training failed or its process died."""
        self.wait()
        try:
            seconds = self._running.result()[1] if self._running else None
        except OSError as error:  # of the pipe to the process
            raise ModelError("the training failed", where=self.model_id, got=error) from error
        return self._trained(seconds)

    def close(self) -> None:
        """End its process, if there is one; a half-written model is never seen. A second time does nothing."""
        self._start = None
        if self._running:
            running, self._running = self._running, None
            self._lane.leave()
            running.close()


def check_promotable(
    registry: Registry, model_id: str, spec: ModelSpec, about: Mapping[str, str], first: date
) -> dict[str, Any]:
    """Return the manifest of a model that this specification could use from a session on.

    about: what the account's own models are trained on, see ``Trainer``.   first: the session that it decides first.
    Raises ModelError where its files are missing or damaged, where it is of another model, lookback, language model,
    market or news set, and where it has seen a later session.
    """
    if not registry.has(model_id):
        raise ModelError("no such model", where=registry.folder, got=model_id, do="`models list` shows all")
    manifest = registry.check(model_id)
    fitting(registry, model_id, manifest, spec)
    for key, expected in about.items():
        if manifest.get(key) != expected:
            raise ModelError(f"the model does not fit: {key}", where=model_id, got=manifest.get(key), expected=expected)
    seen = last_seen_of(manifest, model_id)
    if seen > first:
        raise ModelError(
            "the model has seen sessions that the account has not", where=model_id, got=seen, expected=f"up to {first}"
        )
    return manifest


def fitting(registry: Registry, model_id: str, manifest: Mapping[str, Any], spec: ModelSpec) -> Model:
    """Load a model into what the specification makes; raise ModelError where it is of another kind."""
    for key, expected in (("model", spec.name), ("lookback", spec.lookback), ("texts", spec.texts_id)):
        if manifest.get(key) != expected:
            what = "the model does not fit: its language model" if key == "texts" else f"the model does not fit: {key}"
            raise ModelError(what, where=model_id, got=manifest.get(key), expected=expected)
    model = spec.factory()
    try:
        model.load(registry.load(model_id))
    except ValueError as error:
        raise ModelError("weights do not fit the model", where=model_id, got=error) from error
    return model


def load_with(registry: Registry, model_id: str, spec: ModelSpec, fallback: ModelSpec | None) -> Loaded:
    """Return a model by the id that signals name, ready to predict, on the CPU where its id says that it fell back.

    Raises ModelError if it is missing, damaged, or not of this specification's model and lookback.
    """
    name, _, device = model_id.partition(FALLEN_BACK)
    manifest = registry.manifest(name)
    if fallback and (device or manifest.get("settings") == _plain(fallback.settings)):
        spec = fallback
    if device and device != spec.settings.get("device", CPU):
        raise ModelError("the model fell back to another device", where=model_id, expected=spec.settings["device"])
    return Loaded(model_id, fitting(registry, name, manifest, spec), last_seen_of(manifest, name))


def last_seen_of(manifest: Mapping[str, Any], model_id: str) -> date:
    """Return the newest session whose close a model learned from or stopped on; ModelError where it does not say."""
    try:
        return date.fromisoformat(manifest["spans"]["last_seen"])
    except (KeyError, TypeError, ValueError) as error:
        do = "delete that folder and run again"
        raise ModelError("the manifest does not say what the model saw last", where=model_id, do=do) from error


def report_of(registry: Registry, model_id: str) -> FitReport:
    """Return how a model's training went; raise ModelError where its manifest does not say."""
    try:
        return FitReport(**registry.manifest(model_id)["report"])
    except (KeyError, TypeError) as error:
        raise ModelError(
            "a manifest without its report",
            where=registry.folder / model_id,
            do="delete that folder and run again",
        ) from error


def shape_of(spec: ModelSpec, seed: int) -> dict[str, Any]:
    """Return what shapes a model beside its days: it is hashed into the model's id and written into its manifest."""
    return {
        "model": spec.name,
        "settings": dict(spec.settings),
        "lookback": spec.lookback,
        "texts": spec.texts_id,
        "seed": seed,
        "code": spec.code or code_hash("models"),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")},
    }


def content_id(shape: Mapping[str, Any], learned: Sequence[tuple[Window, Days]]) -> str:
    """Return a model's id: the hash of its shape and of every day that it learns from, each of its window."""
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for window, days in learned:
        # A text's digest and the language model's fingerprint stand for its embedding: the one is a function of them.
        keys = window.text_keys(days)
        for array in (days.market, days.next_return, days.news_offset, keys, days.news_sentiment):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return f"{shape['model']}-{digest.hexdigest()[:20]}"


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(settings)))  # as a manifest holds them: tuples are lists there


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
    def learn(model: Any) -> FitReport:
        return cast(FitReport, model.fit(days, job.train, job.validation, job.seed))

    return fit_and_save(job.spec, job.model_id, Registry(job.folder), job.manifest, learn)


def fit_and_save(
    spec: ModelSpec,
    model_id: str,
    registry: Registry,
    manifest: Mapping[str, Any],
    learn: Callable[[Any], FitReport],
) -> tuple[str, float]:
    """Make a model, let it learn, write it with its manifest; return its id and the seconds that it took.

    Raises DeviceLost where its GPU was lost, ModelError for whatever else goes wrong inside the model.
    """
    started = time.perf_counter()
    try:
        model = spec.factory()
        report = learn(model)
    except Exception as error:  # the model may be the user's own, so it may raise anything
        if why := lost_device(error):
            raise DeviceLost("the training lost its device", where=model_id, got=why) from error
        if isinstance(error, TraderError):
            raise
        raise ModelError("the training failed", where=model_id, got=f"{type(error).__name__}: {error}") from error
    registry.save(model_id, model.weights(), {**manifest, "report": asdict(report)})
    return model_id, time.perf_counter() - started


def _fit_all(jobs: Sequence[_Job], days_of: Callable[[_Job], Days], workers: int) -> Fitted:
    """Fit jobs as they get done, in any order."""
    with closing(as_completed(_fit, jobs, days_of, workers)) as done:
        for _, result in done:
            yield result
