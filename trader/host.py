"""The model host: what a running account, or a backtest day by day, asks for forecasts. Events in, a signal a day.

    scheduler's events → window → RetrainDue: training (apart) → trader.adoption → the model in use
                                → DecisionDue: that model's forecast → signal, and the seconds it took

A training due at session T is in use from T+1, so T+1's decision waits for it. As a service the host does not fall over
its models: a training that fails leaves the model in use, one that is damaged, too old or talks nonsense abstains, one
that loses its GPU goes on with the CPU; each is a fact, and facts of kind "use" say what a backtest needs to be told.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

from models.devices import lost_device
from trader.adoption import Adoption
from trader.config import Retrain, WalkForward
from trader.errors import DeviceLost, in_a_line
from trader.events import DecisionDue, Event, RetrainDue, Signal
from trader.forecaster import abstain, forecast, unfit
from trader.records import Fact, FactKind, Verdict
from trader.registry import FALLEN_BACK, Registry, weights_id
from trader.training import CPU, Loaded, ModelSpec, Training
from trader.walkforward import fold_at
from trader.window import Window

TRIES = 2  # of one training: when it is due, and once more at the next session


Made = TypeVar("Made")


class Trains(Protocol):
    """What a host has its folds trained by: ``trader.training.Trainer``, or ``trader.panel_training.PanelTrainer``."""

    registry: Registry
    fallback: ModelSpec | None

    def train(self, folds: Sequence[Any]) -> Sequence[Any]:
        """Return each fold with its model."""
        ...

    def begin(self, fold: Any, *, fall_back: bool = False) -> Training[Any]:
        """Start to train one fold beside everything else."""
        ...

    def load(self, model_id: str) -> Loaded:
        """Return a model by its id, ready to predict."""
        ...


class Decision(NamedTuple):
    """A session's signal, and how many seconds passed from the call to it; they are no part of any hash."""

    signal: Signal
    seconds: float


@dataclass(slots=True)
class _Attempt:
    """A fold that is due. number: its attempts so far.   fell_back: it trains for the CPU, for the GPU was lost.

    training: None while it waits for the next session to be tried again.
    """

    fold: Any
    session: date
    training: Training[Any] | None = None
    number: int = 0
    fell_back: bool = False


class ModelHost:
    """Trains when it is due and forecasts at each decision; use as a context manager, from one thread.

    Before the first fold is full there is no signal. A session without its bar gets a signal that abstains.
    first: the first session that is to have a signal; models that would be replaced before it are not trained.
    overrides: session → model id in use from it on, whatever the rule says, until the next adopted training.
    service: train in a process of its own and turn failures into facts and abstentions, for an account; False trains
        here and lets failures rise, for a backtest.
    """

    def __init__(
        self,
        window: Window,
        trainer: Trains,
        walkforward: WalkForward,
        retrain: Retrain,
        *,
        symbol: str,
        lookback: int,
        first: date,
        overrides: Mapping[date, str] | None = None,
        service: bool = True,
    ) -> None:
        self.window, self._trainer, self._spec, self._retrain_spec = window, trainer, walkforward, retrain
        self._symbol, self._lookback, self._first, self._service = symbol, lookback, first, service
        self._adoption = Adoption(
            window, self._load, walkforward, retrain, symbol=symbol, lookback=lookback, overrides=overrides
        )
        self.trained: list[Any] = []
        self._held: dict[str, Loaded] = {}
        self._facts: list[Fact] = []
        self._due: _Attempt | None = None
        self._asked = ""
        self._decided: date | None = None
        self.without = ""  # why there is no model yet though one was due, "" where none was or there is one

    @property
    def verdicts(self) -> list[Verdict]:
        """What was said of each training that this host took, oldest first."""
        return self._adoption.verdicts

    def in_use(self, session: date) -> str | None:
        """Return the id of the model that decides a session, as far as is known now; None before the first."""
        return self._adoption.in_use.at(session)

    # What comes down the staircase

    def on(self, event: Event) -> Decision | None:
        """Take one event; return the session's signal if it is a decision and there is a model.

        A decision waits for the training that is under way; ``late`` does not.
        """
        if isinstance(event, RetrainDue):
            self._retrain(event.session)
        elif isinstance(event, DecisionDue):
            return self._decide(event)
        else:
            self.window.update(event)
        return None

    def late(self, event: DecisionDue, reason: str) -> Decision | None:
        """Abstain from a decision for this reason, without waiting for what is under way."""
        started = perf_counter()
        made = self._decided_by(event.session, lambda model_id: self._abstained(event, model_id, reason), started)
        return None if made is None else Decision(*made)

    def _decide(self, event: DecisionDue) -> Decision | None:
        started = perf_counter()
        if event.session < self._first:
            return None
        self.wait()
        made = self._decided_by(event.session, lambda model_id: self._signal(event, model_id), started)
        if made is None and self.without:  # a backtest, whose training does not fail, has to be told
            return Decision(self._abstained(event, "", self.without), 0.0)
        return None if made is None else Decision(*made)

    def _decided_by(self, session: date, decide: Callable[[str], Made], started: float) -> tuple[Made, float] | None:
        if self._asked:
            self._name(session, self._asked)
            self._asked = ""
        self._decided = session
        model_id = self._adoption.in_use.at(session)
        made = None if model_id is None else (decide(model_id), perf_counter() - started)
        self._drop_unused(session)
        if self._due and self._due.training is None and session > self._due.session:
            self._try(self._due)
        return made

    def _signal(self, event: DecisionDue, model_id: str) -> Signal:
        if event.missing:
            return self._abstained(event, model_id, event.missing)
        return self._guarded(
            event.session,
            model_id,
            self.window.resolve,
            lambda loaded: self._forecast(event, loaded),
            lambda decided_by, reason: self._abstained(event, decided_by, reason),
        )

    def _guarded(
        self,
        session: date,
        model_id: str,
        resolve: Callable[[], object],
        forecast: Callable[[Loaded], Made],
        refused: Callable[[str, str], Made],
    ) -> Made:
        """Read the news, load the model and let it forecast; of a service, what fails there abstains or falls back.

        refused: gives what there is instead, from the model's id and the reason.
        """
        if not self._service:
            return forecast(self._load(model_id))
        try:
            resolve()
        except Exception as error:
            if not (why := lost_device(error)):
                raise  # a disk or a source, and none of a model's doing
            return refused(model_id, self._refused(session, model_id, f"the language model lost its device: {why}"))

        def other_way(error: Exception, said: str) -> Made:
            fallen = self._on_cpu(session, model_id, error)
            if fallen is not None:
                return self._guarded(session, fallen, resolve, forecast, refused)
            return refused(model_id, self._refused(session, model_id, said))

        try:
            loaded = self._load(model_id)
        except Exception as error:  # a user's own model may raise anything
            return other_way(error, _damaged(model_id, error))
        try:
            return forecast(loaded)
        except Exception as error:  # the same
            return other_way(error, f"model {model_id} failed: {in_a_line(error)}")

    def _forecast(self, event: DecisionDue, loaded: Loaded) -> Signal:
        old = unfit(self.window.calendar, loaded, event.session, self._retrain_spec.max_age)
        if old:
            return self._abstained(event, loaded.model_id, old)
        last = len(self.window) - 1
        return forecast(self.window, loaded, range(last, last + 1), self._symbol, self._lookback)[0]

    def _abstained(self, event: DecisionDue, model_id: str, reason: str) -> Signal:
        return abstain(event.session, self._symbol, model_id, reason)

    def _refused(self, session: date, model_id: str, reason: str) -> str:
        self._note(session, "damaged", reason)
        self._held.pop(model_id, None)  # so that the next session looks at the disk again
        return reason

    def _on_cpu(self, session: date, model_id: str, error: Exception) -> str | None:
        """Name the same weights on the CPU where the error is a lost GPU; None where it is another."""
        why = lost_device(error)
        if not why or self._trainer.fallback is None or FALLEN_BACK in model_id:
            return None
        fallen = f"{model_id}{FALLEN_BACK}{CPU}"
        self._note(session, "fallback", f"model {model_id} goes on with the {CPU}: {why}")
        self._held.pop(model_id, None)
        self._name(session, fallen)
        return fallen

    # Training

    def _retrain(self, session: date) -> None:
        calendar = self.window.calendar
        number = calendar.index(session)
        if calendar.session(number + self._spec.step) < self._first:
            return
        fold = self._fold(number)
        if fold is None:
            return
        if not self._service:
            [trained] = self._trainer.train([fold])
            self._take(trained)
            return
        self.wait()
        self._due = _Attempt(fold, session)
        self._try(self._due)

    def _fold(self, number: int) -> Any:
        """Return what is to be trained at the session with this number, None where there is too little history."""
        held = bisect_right(self.window.numbers, number)
        warm_up = self.window.warm_up + self._lookback - 1
        return fold_at(number, held, warm_up, self._spec, self._retrain_spec.kept_back)

    def _try(self, due: _Attempt) -> None:
        due.number += 1
        due.training = self._trainer.begin(due.fold, fall_back=due.fell_back)
        self.poll()

    def pending(self) -> str:
        """Return in words what the next decision waits for, "" where it waits for nothing."""
        if self._due is None or self._due.training is None:
            return ""
        return f"model {self._due.training.model_id}, due at {self._due.session}"

    def poll(self) -> bool:
        """Take up a training that has ended, without waiting; tell whether nothing is under way."""
        return self.wait(0.0)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the training under way, at most so long (None: until it has ended), and take it up.

        Returns whether nothing is under way any more.
        """
        while self._due and self._due.training:
            if not self._due.training.wait(seconds):
                return False
            self._ended(self._due, self._due.training)
        return True

    def _ended(self, due: _Attempt, training: Training[Any]) -> None:
        due.training = None
        try:
            trained = training.result()
            self._held[trained.model_id] = self._trainer.load(trained.model_id)  # the old one is still there
        except Exception as error:  # a user's own model may raise anything
            lost = isinstance(error, DeviceLost) or bool(lost_device(error))
            if lost and self._trainer.fallback and not due.fell_back:
                self._note(due.session, "fallback", f"trained for the {CPU}: {in_a_line(error)}")
                due.fell_back = True
                due.number -= 1
                training.close()  # it gives its place among those side by side back
                self._try(due)
            else:
                self._failed(due, training, error)
        else:
            self._due = None
            self._take_late(due, trained)
        finally:
            training.close()

    def _failed(self, due: _Attempt, training: Training[Any], error: Exception) -> None:
        """Record an attempt that failed; the model in use stays so until the next adoption."""
        following, incumbent = self._next(due.session), self._adoption.in_use.at(due.session)
        again = due.number < TRIES
        without = "the model in use stays" if incumbent else "there is no model until the next one"
        then = "tried again once at the next session" if again else without
        self._note(
            due.session, "training failed", f"model {training.model_id}, try {due.number}: {in_a_line(error)}; {then}"
        )
        if due.number == 1 and incumbent and not self._adoption.in_use.is_named(following):
            self._name(following, incumbent)
        if not incumbent:
            self.without = f"no model yet: the training of {due.session} failed"
        if again:
            self._trainer.registry.discard(training.model_id)  # where what failed is the reading of it
        else:
            self._due = None

    def _take_late(self, due: _Attempt, trained: Any) -> None:
        """Take up a model; where that is not what a backtest would do at T, say so by a fact of kind "use"."""
        following = self._next(due.session)
        broken = self._broken(due.session)
        verdict = self._take(trained, broken)
        deviates = due.number > 1 or due.fell_back or bool(broken) or (self._decided or due.session) > due.session
        if verdict.adopted and deviates:
            begins = following if self._decided is None else max(following, self._next(self._decided))
            if begins == following and self._adoption.in_use.is_named(following):
                return  # what a person named for that session goes before
            self._name(begins, verdict.newcomer)

    def _broken(self, session: date) -> str:
        """Return why the model in use at a session cannot be compared with a newcomer, "" where it can."""
        incumbent = self._adoption.in_use.at(session)
        if incumbent is None or not self._retrain_spec.kept_back:
            return ""
        try:
            self._load(incumbent)
        except Exception as error:  # a user's own model may raise anything
            return _damaged(incumbent, error)
        return ""

    def _take(self, trained: Any, broken: str = "") -> Verdict:
        verdict = self._adoption.take(trained, broken)
        self.trained.append(trained)
        self.without = ""
        said = f"model {verdict.newcomer}: {verdict.reason}"
        self._note(verdict.session, "adopted" if verdict.adopted else "refused", said)
        return verdict

    # Models

    def use(self, model_id: str) -> None:
        """Let this model decide from the next decision on, whatever the rule says, until the next adopted training.

        Raises ModelError where it is missing, damaged or does not fit.
        """
        self._held[model_id] = self._trainer.load(model_id)
        self._asked = model_id

    def resume(self, session: date, model_id: str, trainings: int) -> None:
        """Go on after a session that this model decided, with so many trainings behind; for an account that restarts.

        Feed the bars and news of the sessions before first; then again the RetrainDue that has no verdict yet.
        """
        self._adoption.in_use.resume(session, model_id)
        self._adoption.taken, self._decided = trainings, session

    def warm_up(self, read: Callable[[], object] | None = None) -> None:
        """Load what the first decision would wait for: the language model (by ``read``), and the model in use.

        What fails here fails again at the decision, and is told there.
        """
        if read:
            read()
        last = len(self.window) - 1
        model_id = self._adoption.in_use.at(self.window.sessions[last]) if last >= 0 else None
        if model_id is None or last < self.window.warm_up + self._lookback:
            return
        self.window.resolve()
        try:
            forecast(self.window, self._load(model_id), range(last, last + 1), self._symbol, self._lookback)
        except Exception as error:
            if not self._service:
                raise
            self._note(
                self.window.sessions[last], "damaged", f"model {weights_id(model_id)} at the start: {in_a_line(error)}"
            )

    def facts(self) -> list[Fact]:
        """Return what has happened since the last call, oldest first."""
        found, self._facts = self._facts, []
        return found

    def close(self) -> None:
        """End a training under way; no process or thread is left."""
        if self._due and self._due.training:
            self._due.training.close()
        self._due = None

    def __enter__(self) -> ModelHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, model_id: str) -> Loaded:
        if model_id not in self._held:
            self._held[model_id] = self._trainer.load(model_id)
        return self._held[model_id]

    def _drop_unused(self, session: date) -> None:
        """Let go of the models that decide neither this session nor, as far as is known, the next one."""
        kept = {self._adoption.in_use.at(session), self._adoption.in_use.at(self._next(session)), self._asked}
        self._held = {model_id: loaded for model_id, loaded in self._held.items() if model_id in kept}

    def _name(self, session: date, model_id: str) -> None:
        self._adoption.in_use.name(session, model_id)
        self._note(session, "use", model_id)

    def _note(self, session: date, kind: FactKind, detail: str) -> None:
        self._facts.append(Fact(session=session, kind=kind, detail=detail))

    def _next(self, session: date) -> date:
        calendar = self.window.calendar
        return calendar.session(calendar.index(session) + 1)


def _damaged(model_id: str, error: Exception) -> str:
    return f"model {model_id} is damaged: {in_a_line(error)}"
