"""The model host: signals as in a backtest, whatever happens to its trainings, its models and its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import partial
import multiprocessing
import os
from pathlib import Path
import signal
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pytest

from models.base import Days, FitReport, Prediction
from models.devices import lost_device
from tests import builders
from tests.builders import TinyModel
from trader import engine
from trader.adoption import overrides_of
from trader.config import Config
from trader.errors import DeviceLost, ModelError
from trader.events import DecisionDue, Event, RetrainDue, Signal
from trader.host import Decision, ModelHost
from trader.outcome import Outcome
from trader.parts import model_spec, window_of
from trader.records import Fact
from trader.registry import MANIFEST, WEIGHTS, Registry
from trader.scheduler import Scheduler
from trader.store import MarketStore
from trader.training import ModelSpec, Trainer, check_promotable

DAYS = builders.sessions(150)
FIRST, LAST = DAYS[116], DAYS[145]
TINY = "tests.builders:TinyModel"
CALENDAR = builders.CALENDAR


class Marked(TinyModel):
    """Leaves a file for each training in ``folder``; ``trouble`` says on which of them, counted from 1, it strikes."""

    def __init__(self, lookback: int = 3, folder: str = "", trouble: str = "") -> None:
        super().__init__(lookback)
        self._folder, self._trouble = Path(folder), {int(one) for one in trouble.split()}

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        number = len(os.listdir(self._folder)) + 1
        (self._folder / f"{number}").touch()
        if number in self._trouble:
            self.strike()
        return super().fit(days, train, validation, seed)

    def strike(self) -> None:
        raise FloatingPointError("a loss is not a number")


class Killed(Marked):
    """Its process is killed, as for want of memory."""

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Marked):
    """Trains for as long as nobody stops it."""

    def strike(self) -> None:
        time.sleep(600)


class NotANumber(Marked):
    """Its second model says NaN, by its weights alone."""

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        report = super().fit(days, train, validation, seed)
        if len(os.listdir(self._folder)) == 2:
            self._numbers[:] = np.nan
        return report


class Gpu(TinyModel):
    """Stands for a model on a GPU whose memory is full: on a device that is not the CPU it does nothing but fail.

    full: which of its works need more memory than there is: fit, load, predict.
    """

    def __init__(self, lookback: int = 3, device: str = "cpu", full: str = "") -> None:
        super().__init__(lookback)
        self._full = full.split() if device != "cpu" else []

    def _need(self, what: str) -> None:
        if what in self._full:
            import torch

            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 20 MiB\nto {what}")

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        self._need("fit")
        return super().fit(days, train, validation, seed)

    def predict(self, days: Days, at: Any) -> Prediction:
        if len(days) < 60:  # a decision, and not validation
            self._need("predict")
        return super().predict(days, at)

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        self._need("load")
        super().load(weights)


class Restarting:
    """A host over a home's store, with the events that it is to take."""

    def __init__(self, home: Path, config: Config, host: ModelHost, events: list[Event]) -> None:
        self.home, self.config, self.host, self.events = home, config, host, events
        self.facts: list[Fact] = []

    def run(self, last: date = LAST) -> list[Signal]:
        """Take the events up to a session; return the signals."""
        return [made.signal for made in self.decisions(last)]

    def decisions(self, last: date = LAST) -> Iterator[Decision]:
        while self.events and self.events[0].session <= last:
            made = self.host.on(self.events.pop(0))
            self.facts += self.host.facts()
            if made is not None:
                yield made

    def kinds(self) -> list[str]:
        return [fact.kind for fact in self.facts if fact.kind not in ("adopted", "refused")]


@contextmanager
def hosted(
    home: Path,
    model: str = TINY,
    *,
    specs: tuple[ModelSpec, ModelSpec] | None = None,
    overrides: Mapping[date, str] | None = None,
    ready: bool = True,
    **how: Any,
) -> Iterator[Restarting]:
    """Open a host as a running account has it. specs: of the model, and of what it falls back to.

    ready: its models are in the registry already, so that no process has to be started.
    """
    config = builders.config(model={model: how.pop("options", {})} if ":" in model else {}, **how)
    config = config.with_run(model=model)
    readers = builders.readers()
    spec, fallback = specs or (model_spec(config, model, readers.texts_id), None)
    window = window_of(config, readers)
    about = {"market": "toy", "news": "toy"}
    trainer = Trainer(window, spec, Registry(home / "models"), workers=1, fallback=fallback, about=about)
    with MarketStore.open(home / "market.db") as store:
        scheduler = Scheduler(store, window.calendar, symbol="toy", news="toy", spec=config.walkforward)
        events = list(scheduler.events(DAYS[0], LAST))
    how_it_runs = {"symbol": "toy", "lookback": spec.lookback, "first": FIRST, "overrides": overrides}
    if ready:
        blank = window_of(config, readers)
        here = Trainer(blank, spec, trainer.registry, workers=1, about=about)
        maker = ModelHost(blank, here, config.walkforward, config.retrain, **how_it_runs, service=False)  # type: ignore[arg-type]
        for event in events:
            if not isinstance(event, DecisionDue):
                maker.on(event)
    with ModelHost(window, trainer, config.walkforward, config.retrain, **how_it_runs) as host:  # type: ignore[arg-type]
        yield Restarting(home, config, host, events)


def backtest(home: Path, config: Config, **how: Any) -> Outcome:
    return engine.backtest(config, home, FIRST, LAST, readers=builders.readers(), **how)


def marked(tmp_path: Path, trouble: str = "") -> dict[str, Any]:
    folder = tmp_path / "trainings"
    folder.mkdir(exist_ok=True)
    return {"options": {"folder": str(folder), "trouble": trouble}}


def ids(signals: list[Signal]) -> list[str]:
    return list(dict.fromkeys(signal.model_id for signal in signals))


@pytest.mark.parametrize("adopt", ["always", "challenge"])
def test_a_service_that_trains_in_a_process_of_its_own_gives_the_signals_of_a_backtest(
    tmp_path: Path, adopt: str
) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home, retrain={"adopt": adopt, "challenge": 10}, ready=False) as one:
        signals = one.run()
        assert one.kinds() == []
    outcome = backtest(home, one.config, daily=True)
    assert signals == outcome.forecasts.signals
    assert len(ids(signals)) >= 2 or adopt == "challenge"
    assert len(one.host.verdicts) >= 2
    within = [verdict for verdict in one.host.verdicts if verdict.session < LAST]
    assert within == list(outcome.forecasts.verdicts)


def test_it_is_told_beside_the_signal_how_long_a_decision_took(tmp_path: Path) -> None:
    with hosted(builders.a_home(tmp_path, 150)) as one:
        seconds = [made.seconds for made in one.decisions(DAYS[118])]
    assert len(seconds) == 3
    assert all(0 < took < 60 for took in seconds)


# Trainings that fail


@pytest.mark.parametrize(
    ("kind", "said"),
    [("Killed", "the worker process died"), ("Marked", "FloatingPointError: a loss is not a number")],
)
def test_a_training_that_fails_once_is_tried_again_and_a_backtest_given_the_facts_agrees(
    tmp_path: Path, kind: str, said: str
) -> None:
    home, model = builders.a_home(tmp_path, 150), f"tests.test_host:{kind}"
    with hosted(home, model, **marked(tmp_path, "2"), ready=False) as one:
        signals = one.run()
    assert one.kinds() == ["training failed", "use", "use"]
    failed, kept, taken = (fact for fact in one.facts if fact.kind not in ("adopted", "refused"))
    assert said in failed.detail and failed.detail.endswith("try 1: " + failed.detail.partition("try 1: ")[2])
    assert failed.detail.endswith("tried again once at the next session")
    t = CALENDAR.index(failed.session)
    assert (CALENDAR.index(kept.session), CALENDAR.index(taken.session)) == (t + 1, t + 2)
    by_session = {signal.session: signal.model_id for signal in signals}
    assert by_session[failed.session] == by_session[kept.session] == kept.detail != taken.detail
    assert by_session[taken.session] == taken.detail
    assert all(signal.p_up is not None for signal in signals)
    assert backtest(home, one.config, overrides=overrides_of(one.facts)).forecasts.signals == signals
    assert backtest(home, one.config).forecasts.signals != signals, "else the facts made no difference"


def test_a_training_that_fails_twice_leaves_the_model_in_use_until_the_next_one(tmp_path: Path) -> None:
    home, model = builders.a_home(tmp_path, 150), "tests.test_host:Killed"
    with hosted(home, model, **marked(tmp_path, "2 3"), ready=False) as one:
        signals = one.run()
    assert one.kinds() == ["training failed", "use", "training failed"]
    first, _, second = (fact for fact in one.facts if fact.kind not in ("adopted", "refused"))
    assert "try 1" in first.detail and "try 2" in second.detail and second.detail.endswith("the model in use stays")
    plain = ids(list(backtest(home, one.config).forecasts.signals))
    assert ids(signals) == [plain[0], *plain[2:]], "the second was never there"
    retold = backtest(home, one.config, overrides=overrides_of(one.facts))
    assert retold.forecasts.signals == signals


def test_a_training_killed_from_outside_is_a_fact_and_pending_names_what_is_awaited(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home, "tests.test_host:Slow", **marked(tmp_path, "1"), ready=False) as one:
        due = _until_retraining(one)
        started = time.perf_counter()
        one.host.on(due)
        assert one.host.pending().startswith("model tests.test_host:Slow-")
        assert one.host.pending().endswith(f"due at {due.session}")
        assert not one.host.poll() and not one.host.wait(0.2)
        assert time.perf_counter() - started < 60, "it does not wait for the training"
        [child] = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        assert one.host.wait(60)
        [fact] = one.host.facts()
        assert fact.kind == "training failed" and "the worker process died" in fact.detail
        assert one.host.pending() == ""


def _until_retraining(one: Restarting) -> RetrainDue:
    """Feed events until a training is due that this host makes; return its event."""
    step = CALENDAR.session(CALENDAR.index(FIRST) - 10)
    while True:
        event = one.events.pop(0)
        if isinstance(event, RetrainDue) and event.session > step:
            return event
        one.host.on(event)


def test_no_process_and_no_thread_is_left_after_close(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    home = builders.a_home(tmp_path, 150)
    with hosted(home, "tests.test_host:Slow", **marked(tmp_path, "1"), ready=False) as one:
        one.host.on(_until_retraining(one))
        assert len(multiprocessing.active_children()) == 1
        assert set(threading.enumerate()) != threads
    assert multiprocessing.active_children() == []
    assert set(threading.enumerate()) == threads
    assert list((home / "models").glob("*")) == []


def test_a_late_session_abstains_without_waiting_and_the_model_is_taken_up_after(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        one.run(DAYS[120])
        while not isinstance(one.events[0], RetrainDue):
            one.host.on(one.events.pop(0))
        one.host.facts()
        due = one.events.pop(0)
        before = one.host.in_use(due.session)
        one.host.on(due)
        while not isinstance(event := one.events.pop(0), DecisionDue):
            one.host.on(event)
        late = one.host.late(event, "late: the model was not ready by the open")
        assert late is not None and late.signal.p_up is None
        assert late.signal.reason == "late: the model was not ready by the open"
        assert late.signal.model_id in (before, one.host.in_use(event.session))
        one.host.wait()
        assert one.host.in_use(one.events[0].session) != before


# Models that cannot be used


def quiet(signals: list[Signal]) -> int:
    """Return the place of the first of four signals that one model gave, with no training in between."""
    return next(n for n in range(len(signals)) if len(ids(signals[n : n + 4])) == 1)


def _resume(one: Restarting, session: date, model_id: str, trainings: int = 1) -> None:
    """Bring a host to just after a session, as an account that starts again does."""
    while one.events and one.events[0].session <= session:
        event = one.events.pop(0)
        if not isinstance(event, DecisionDue | RetrainDue):
            one.host.window.update(event)
    one.host.resume(session, model_id, trainings)


def test_a_host_that_starts_again_goes_on_with_the_same_signals(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        whole = one.run()
    with hosted(home) as again:
        behind = sum(verdict.session <= whole[4].session for verdict in one.host.verdicts)
        _resume(again, whole[4].session, whole[4].model_id, behind)
        again.host.warm_up()
        assert again.run() == whole[5:]
        assert [v.fold for v in again.host.verdicts] == [v.fold for v in one.host.verdicts if v.fold > behind]


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a flipped bit": (lambda folder: _flip(folder / WEIGHTS), "weights are damaged"),
    "weights gone": (lambda folder: (folder / WEIGHTS).unlink(), "weights missing"),
    "manifest gone": (lambda folder: (folder / MANIFEST).unlink(), "no readable manifest"),
}


def _flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_abstains_with_its_reason_until_it_is_whole_again(tmp_path: Path, name: str) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        whole = one.run()
    before, hurt, healed = whole[quiet(whole) :][:3]
    folder = home / "models" / hurt.model_id
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage, said = DAMAGES[name]
    damage(folder)
    with hosted(home, ready=False) as again:
        _resume(again, before.session, before.model_id)
        [signal_] = again.run(hurt.session)
        assert (signal_.p_up, signal_.side, signal_.model_id) == (None, 0, hurt.model_id)
        assert signal_.reason.startswith(f"model {hurt.model_id} is damaged: ") and said in signal_.reason
        assert "\n" not in signal_.reason
        assert again.facts == [Fact(session=hurt.session, kind="damaged", detail=signal_.reason)]
        for file, blob in kept.items():
            (folder / file).write_bytes(blob)
        assert again.run(healed.session) == [healed]


def test_a_newcomer_that_is_damaged_on_disk_is_trained_again(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        whole = one.run()
    second = ids(whole)[1]
    _flip(home / "models" / second / WEIGHTS)
    with hosted(home, ready=False) as again:
        signals = again.run()
    assert again.kinds() == ["training failed", "use", "use"]
    assert again.facts[1].detail.count("weights are damaged") == 1
    assert ids(signals) == ids(whole)
    Registry(home / "models").check(second)


def test_a_model_that_says_nan_abstains_and_is_a_fact(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home, "tests.test_host:NotANumber", **marked(tmp_path)) as one:
        signals = one.run()
    second = ids(signals)[1]
    for made in signals:
        assert (made.p_up is None) == (made.model_id == second)
        if made.p_up is None:
            assert made.reason.startswith(f"model {second} failed: ")
            assert "a forecast that is not a number" in made.reason
    assert [fact.session for fact in one.facts if fact.kind == "damaged"] == [s.session for s in signals if not s.side]


def test_a_backtest_of_a_damaged_model_is_an_error_and_no_abstention(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    config = builders.config(model=TINY)
    made = backtest(home, config)
    _flip(home / "models" / made.forecasts.folds[1].model_id / WEIGHTS)
    for daily in (False, True):
        with pytest.raises(ModelError, match="weights are damaged"):
            backtest(home, config, daily=daily)


# Promotion and rollback


def test_a_model_named_by_hand_decides_from_the_next_decision_until_the_next_adoption(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        plain = one.run()
    first, second = ids(plain)[:2]
    with hosted(home) as one:
        at = next(n for n, made in enumerate(plain) if made.model_id == second)
        signals = one.run(plain[at].session)
        one.host.use(first)
        signals += one.run()
        assert [fact for fact in one.facts if fact.kind == "use"] == [
            Fact(session=plain[at + 1].session, kind="use", detail=first)
        ]
    assert [s.model_id for s in signals[at : at + 3]] == [second, first, first]
    assert signals[-1] == plain[-1]
    assert backtest(home, one.config, overrides=overrides_of(one.facts)).forecasts.signals == signals
    with hosted(home, overrides=overrides_of(one.facts)) as replayed:
        assert replayed.run() == signals


def test_a_model_that_does_not_fit_is_not_promoted(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        first = one.run(DAYS[118])[0].model_id
        registry, spec = Registry(home / "models"), model_spec(one.config, TINY, "tiny")
        check = partial(check_promotable, registry, spec=spec, about={"market": "toy", "news": "toy"}, first=DAYS[119])
        assert check(first)["model"] == TINY
        with pytest.raises(ModelError, match="no readable manifest"):
            one.host.use("nobody")
    with pytest.raises(ModelError, match=r"no such model \(got nobody\); `models list` shows all"):
        check("nobody")
    other = {"model": "another", "lookback": 4, "texts": "other", "market": "moon", "news": "gossip"}
    for key, value in other.items():
        weights, manifest = registry.load(first), {**registry.manifest(first), key: value}
        registry.save(f"odd-{key}", weights, manifest)
        with pytest.raises(ModelError, match=rf"odd-{key}: the model does not fit.*got {value}"):
            check(f"odd-{key}")
    registry.save("odd-weights", {"slope": np.zeros(2)}, registry.manifest(first))
    with pytest.raises(ModelError, match="weights do not fit"):
        check("odd-weights")


def test_a_model_that_has_seen_what_the_account_has_not_is_not_promoted_and_decides_nothing(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        late = one.run(DAYS[144])[-1].model_id
    registry, spec = Registry(home / "models"), model_spec(one.config, TINY, "tiny")
    seen = date.fromisoformat(registry.manifest(late)["spans"]["last_seen"])
    assert seen > DAYS[125]
    with pytest.raises(ModelError, match=rf"seen sessions that the account has not \(got {seen}, expected up to"):
        check_promotable(registry, late, spec, {}, DAYS[125])
    # However it came there, the chain asks again.
    told = backtest(home, one.config, overrides={DAYS[120]: late}).forecasts.signals
    early = [signal for signal in told if signal.model_id == late and signal.session < seen]
    assert early and all(signal.p_up is None and "lies after this session" in signal.reason for signal in early)
    with hosted(home) as other:
        other.run(DAYS[119])
        other.host.use(late)
        assert "lies after this session" in other.run(DAYS[120])[-1].reason


# Devices


def gpu_specs(full: str) -> tuple[ModelSpec, ModelSpec]:
    def spec(device: str) -> ModelSpec:
        settings = {"device": device}
        return ModelSpec("gpu", partial(Gpu, 3, device, full), settings, 3, "tiny", 0, "code")

    return spec("cuda"), spec("cpu")


@pytest.mark.parametrize("full", ["load", "predict"])
def test_a_model_whose_gpu_is_full_goes_on_with_the_cpu_and_the_signals_say_so(tmp_path: Path, full: str) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home, specs=gpu_specs("")) as healthy:
        whole = healthy.run()
    whole = whole[quiet(whole) :]
    with hosted(home, specs=gpu_specs(full), ready=False) as one:
        _resume(one, whole[0].session, whole[0].model_id)
        signals = one.run(whole[2].session)
    assert [s.model_id for s in signals] == [f"{s.model_id}@cpu" for s in whole[1:3]]
    assert [s.p_up for s in signals] == [s.p_up for s in whole[1:3]]
    assert one.kinds()[:2] == ["fallback", "use"]
    assert one.facts[0].detail.startswith(f"model {whole[1].model_id} goes on with the cpu: OutOfMemoryError: CUDA out")
    assert one.facts[1].detail == f"{whole[1].model_id}@cpu"
    assert one.facts[1].session == whole[1].session
    assert len(one.facts) == 2, "it stays there and is told once"


def test_a_training_whose_gpu_is_full_is_made_for_the_cpu(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home, specs=gpu_specs("fit"), ready=False) as one:
        signals = one.run(DAYS[121])
    assert one.kinds()[:2] == ["fallback", "use"]
    assert "the training lost its device" in one.facts[0].detail and "CUDA out of memory" in one.facts[0].detail
    manifest = Registry(home / "models").manifest(signals[0].model_id)
    assert manifest["settings"] == {"device": "cpu"}
    assert all(made.p_up is not None for made in signals)


def test_without_a_fallback_a_full_gpu_abstains(tmp_path: Path) -> None:
    home, (cuda, _) = builders.a_home(tmp_path, 150), gpu_specs("predict")
    with hosted(home, specs=gpu_specs("")):
        pass  # trained while there was room
    with hosted(home, specs=(cuda, None), ready=False) as one:  # type: ignore[arg-type]
        [made] = one.run(FIRST)
    assert made.p_up is None
    assert "CUDA out of memory. Tried to allocate 20 MiB to predict" in made.reason


def test_a_lost_gpu_is_told_from_other_faults() -> None:
    import torch

    from models.fitting import reproducible, require_device

    lost = [
        torch.cuda.OutOfMemoryError("full"),
        RuntimeError("CUDA error: device-side assert"),
        DeviceLost("CUDA error"),
    ]
    if not torch.cuda.is_available():
        for ask in (
            lambda: require_device("cuda"),
            lambda: reproducible(0, "cuda").__enter__(),
            lambda: torch.zeros(1).cuda(),
        ):
            with pytest.raises(Exception) as caught:
                ask()
            lost.append(caught.value)
    assert all(lost_device(error) for error in lost)
    wrapped = ModelError("the training failed")
    wrapped.__cause__ = lost[0]
    assert lost_device(wrapped) == "OutOfMemoryError: full"
    assert not any(map(lost_device, (MemoryError(), ValueError("shapes"), ModelError("a forecast is not a number"))))


def test_warming_up_reads_and_forecasts_and_leaves_no_trace(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with hosted(home) as one:
        whole = one.run()
    whole = whole[quiet(whole) :]
    read: list[int] = []
    with hosted(home) as again:
        again.host.warm_up(lambda: read.append(1))  # nothing to warm yet but the language model
        _resume(again, whole[0].session, whole[0].model_id)
        again.host.warm_up(lambda: read.append(2))
        assert read == [1, 2]
        assert again.run(whole[2].session) == whole[1:3]
        assert again.facts == []
