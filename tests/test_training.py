"""Training: a model is named by all that shaped it, and is the same however and wherever it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any
import weakref

import numpy as np
from numpy.typing import NDArray
import pytest

from models.base import Days, FitReport
from models.processes import pool
from tests import builders
from tests.builders import CALENDAR, TinyModel
from trader.errors import ModelError, OrderError
from trader.events import Bar, BarClosed, NewsArrived, NewsBatch, to_us
from trader.registry import MANIFEST, Registry
from trader.training import ModelSpec, Trainer, fold_seed
from trader.walkforward import Fold
from trader.window import Window

ROOT = Path(__file__).parents[1]
DAYS = builders.sessions(60)
FOLD = Fold(trained_at=0, train=range(22, 42), validation=range(45, 50), use=range(53, 55))
FOLDS = [replace(FOLD, train=range(22, stop), validation=range(stop + 3, stop + 8)) for stop in range(32, 48, 4)]
SPEC = ModelSpec("tiny", partial(TinyModel, lookback=3), {"gain": 5.0}, 3, "texts-1", seed=0)


def a_window(
    *, bars: list[Bar] | None = None, last_text: str = "rates stall", score: float = 0.5, market_text: str = "a market"
) -> Window:
    """Return 60 sessions with two headlines each; the arguments change one bit each at session 40 or in the text."""
    window = Window(CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text=market_text)
    for at, bar in enumerate(bars or builders.bars(DAYS)):
        close = CALENDAR.cutoff(bar.session)
        news = builders.batch([to_us(close)] * 2, [f"oil rise on day {at}", last_text if at == 40 else "rates stall"])
        news.sentiment[:] = (0.5, 0.5 - (score / 2 if at == 40 else 0.25), score / 2 if at == 40 else 0.25)
        window.update(NewsArrived(session=bar.session, at=close, news=NewsBatch.of(list(news.items()))))
        window.update(BarClosed(session=bar.session, at=close, bar=bar))
    return window


def a_trainer(folder: Path, window: Window | None = None, spec: ModelSpec = SPEC, workers: int = 1) -> Trainer:
    return Trainer(window or a_window(), spec, Registry(folder), workers=workers)


def the_id(folder: Path, window: Window | None = None, spec: ModelSpec = SPEC, fold: Fold = FOLD) -> str:
    return a_trainer(folder, window, spec).train([fold])[0].model_id


def test_the_same_data_gives_the_same_model_and_trains_it_once(tmp_path: Path) -> None:
    [first] = a_trainer(tmp_path).train([FOLD])
    [again] = a_trainer(tmp_path).train([FOLD])
    assert (first.cached, again.cached) == (False, True)
    assert again.seconds == 0
    assert (first.model_id, first.report) == (again.model_id, again.report)


def _nudged(at: int, name: str) -> list[Bar]:
    bars = builders.bars(DAYS)
    nudged = float(np.nextafter(np.float32(getattr(bars[at], name)), np.float32(1e9)))
    bars[at] = replace(bars[at], **{name: nudged})
    return bars


@pytest.mark.parametrize(
    "change",
    [
        {"window": {"bars": _nudged(40, "open")}},
        {"window": {"bars": _nudged(40, "volume")}},
        {"window": {"bars": _nudged(50, "close")}},  # the label of session 49, the last of validation
        {"window": {"last_text": "rates stell"}},
        {"window": {"score": 0.5000001}},
        {"window": {"market_text": "another market"}},
        {"spec": {"seed": 1}},
        {"spec": {"settings": {"gain": 5.0001}}},
        {"spec": {"texts_id": "texts-2"}},
        {"spec": {"code": "changed"}},
        {"spec": {"lookback": 4, "factory": partial(TinyModel, lookback=4)}},
        {"fold": {"train": range(23, 42)}},
        {"fold": {"validation": range(44, 50)}},
    ],
    ids=str,
)
def test_any_changed_bit_of_what_shapes_a_model_gives_it_another_name(
    tmp_path: Path, change: dict[str, dict[str, Any]]
) -> None:
    window = a_window(**change.get("window", {}))
    spec, fold = replace(SPEC, **change.get("spec", {})), replace(FOLD, **change.get("fold", {}))
    assert the_id(tmp_path, window, spec, fold) != the_id(tmp_path)


@pytest.mark.parametrize("at", [18, 51, 55])
def test_days_that_it_never_saw_do_not_change_its_name(tmp_path: Path, at: int) -> None:
    # Bar 18 lies before the first lookback day: only through the volume's trailing mean could it be heard.
    assert the_id(tmp_path, a_window(bars=_nudged(at, "open"))) == the_id(tmp_path)


def test_a_folds_seed_comes_from_what_names_it() -> None:
    seeds = {
        fold_seed(seed, model, end)
        for seed in (0, 1)
        for model in ("finin", "tiny")
        for end in ("2010-01-04", "2010-01-05")
    }
    assert len(seeds) == 8
    assert fold_seed(0, "finin", "2010-01-04") == fold_seed(0, "finin", "2010-01-04")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_trained_model_forecasts_as_it_did_when_it_was_fitted(tmp_path: Path) -> None:
    window = a_window()
    trainer = a_trainer(tmp_path, window)
    [trained] = trainer.train([FOLD])
    days = window.learnable(20, 50)
    fitted = TinyModel(3)
    fitted.fit(days, range(2, 22), range(25, 30), fold_seed(0, "tiny", str(DAYS[41])))
    assert np.array_equal(trainer.model(trained).predict(days, [25, 29]).p_up, fitted.predict(days, [25, 29]).p_up)


def test_folds_come_back_in_order_with_progress_of_those_that_were_due(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path)
    trainer.train(FOLDS[1:2])
    told: list[tuple[int, int]] = []
    trained = trainer.train(FOLDS, lambda done, total: told.append((done, total)))
    assert [one.fold for one in trained] == FOLDS
    assert [one.cached for one in trained] == [False, True, False, False]
    assert told == [(1, 3), (2, 3), (3, 3)]


class PidModel(TinyModel):
    """Tells where it was trained, by a file beside the models."""

    def __init__(self, lookback: int, folder: str) -> None:
        super().__init__(lookback)
        self._folder = folder

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        (Path(self._folder) / f"{os.getpid()}").touch()
        return super().fit(days, train, validation, seed)


def test_the_number_of_processes_changes_no_bit(tmp_path: Path) -> None:
    weights: list[list[bytes]] = []
    for workers in (1, 2):
        seen = tmp_path / f"seen{workers}"
        seen.mkdir()
        spec = replace(SPEC, factory=partial(PidModel, 3, str(seen)))
        trainer = a_trainer(tmp_path / str(workers), spec=spec, workers=workers)
        trained = trainer.train(FOLDS)
        assert (str(os.getpid()) in os.listdir(seen)) == (workers == 1), "else it was not trained where it was meant"
        weights.append([np.concatenate(list(trainer.model(one).weights().values())).tobytes() for one in trained])
    assert weights[0] == weights[1]


class Failing(TinyModel):
    """Fails as a user's own model may: in any way."""

    error: Exception = ZeroDivisionError("by zero\nin two lines")

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        raise self.error


class Refusing(Failing):
    error = OrderError("a sentence of ours")


class Dying(TinyModel):
    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        os._exit(9)


class Unfitting(TinyModel):
    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        raise ValueError("other shapes")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_that_fails_says_so_in_one_line(tmp_path: Path, workers: int) -> None:
    spec = replace(SPEC, factory=partial(Failing, 3))
    with pytest.raises(ModelError, match=r"tiny-.*the training failed.*ZeroDivisionError: by zero in two lines"):
        a_trainer(tmp_path, spec=spec, workers=workers).train(FOLDS[:2])
    assert not any(tmp_path.iterdir())


def test_an_error_of_ours_comes_through_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OrderError, match="a sentence of ours"):
        a_trainer(tmp_path, spec=replace(SPEC, factory=partial(Refusing, 3))).train([FOLD])


def test_a_process_that_dies_is_an_error_not_a_wait(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a worker process died"):
        a_trainer(tmp_path, spec=replace(SPEC, factory=partial(Dying, 3)), workers=2).train(FOLDS[:2])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    trainer = a_trainer(tmp_path, spec=replace(SPEC, factory=partial(Unfitting, 3)))
    with pytest.raises(ModelError, match=r"weights do not fit the model \(got other shapes\)"):
        trainer.model(trainer.train([FOLD])[0])


def test_a_manifest_without_its_report_is_refused(tmp_path: Path) -> None:
    model_id = the_id(tmp_path)
    (tmp_path / model_id / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match="a manifest without its report"):
        the_id(tmp_path)


def test_the_manifest_says_from_what_the_model_was_made(tmp_path: Path) -> None:
    manifest = Registry(tmp_path).manifest(the_id(tmp_path))
    assert manifest["spans"] == {
        "train": [str(DAYS[22]), str(DAYS[41])],
        "validation": [str(DAYS[45]), str(DAYS[49])],
        "last_seen": str(DAYS[50]),
    }
    assert {"model", "settings", "seed", "code", "versions", "report", "weights_sha256"} <= manifest.keys()


class WatchedWindow(Window):
    """Counts how many of the days that it handed out are held by somebody at once, at most."""

    def __init__(self, window: Window) -> None:
        vars(self).update(vars(window))
        self._references: list[weakref.ref[NDArray[np.float32]]] = []
        self.most = 0

    def learnable(self, first: int, stop: int) -> Days:
        days = super().learnable(first, stop)
        alive = [reference for reference in self._references if reference() is not None]
        self._references = [*alive, weakref.ref(days.market)]
        self.most = max(self.most, len(self._references))
        return days


@pytest.mark.parametrize(("workers", "most"), [(1, 2), (2, 5)])
def test_only_the_jobs_in_flight_hold_a_copy_of_their_days(tmp_path: Path, workers: int, most: int) -> None:
    window = WatchedWindow(a_window())
    folds = [replace(FOLD, train=range(22, stop), validation=range(stop + 3, stop + 8)) for stop in range(32, 48)]
    a_trainer(tmp_path, window, workers=workers).train(folds)
    assert 0 < window.most <= most


# Worker processes

PARENT = """
import multiprocessing, signal, time
from models.processes import pool
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
with pool(2) as processes:
    for job in [processes.submit(time.sleep, 0.2) for _ in range(2)]:
        job.result()
    jobs = [processes.submit(time.sleep, 600) for _ in range({jobs})]
    time.sleep(0.3)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("jobs", [1, 5], ids=["one worker idle", "jobs waiting"])
@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGINT, True)],
    ids=["kill -9", "interrupt", "Ctrl-C in a terminal"],
)
def test_workers_end_with_their_parent(number: signal.Signals, group: bool, jobs: int) -> None:
    argv = [sys.executable, "-c", PARENT.format(jobs=jobs)]
    parent = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    try:
        (os.killpg if group else os.kill)(parent.pid, number)
        _, said = parent.communicate(timeout=10)  # to the end of the pipe, which the workers hold too
    except subprocess.TimeoutExpired:
        os.killpg(parent.pid, signal.SIGKILL)
        raise
    assert parent.returncode == -number
    assert said.count("Traceback") == (number == signal.SIGINT), "the parent's own and no worker's"


def test_an_error_beside_large_results_ends_the_pool(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), pool(2) as processes:
        jobs = [processes.submit(bytes, 20_000_000) for _ in range(6)]
        jobs[0].result()
        raise ZeroDivisionError


def test_workers_compute_with_one_thread_and_the_parents_own_environment_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pool(1) as processes:
        assert processes.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert processes.submit(os.getenv, "OMP_WAIT_POLICY").result() == "PASSIVE"
    assert (os.environ["OMP_NUM_THREADS"], os.getenv("OMP_WAIT_POLICY")) == ("7", None)
