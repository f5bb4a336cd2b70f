"""Adoption: whether a newly trained model is taken up, and which model decides a session. One rule for all runs.

    trainer → a trained fold → Adoption.take → verdict; in_use.at(session) → forecaster, host

A whole backtest takes all its folds one after the other, a day takes the one that is due: the same calls on the same
days, so the same verdicts to the last bit. With adopt = "challenge" the model in use depends on the models before it,
so two runs share it where they share their first session; with "always" it is the same in every run.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import groupby

import numpy as np

from trader.config import Retrain, WalkForward
from trader.errors import ModelError, TraderError, in_a_line
from trader.forecaster import Stretch, forecast
from trader.records import Fact, Verdict
from trader.training import Loaded, TrainedFold
from trader.walkforward import Fold
from trader.window import Window

ADOPTED, NAMED = 0, 1  # of one session's changes the later kind wins: what a person named, over what the rule says


class InUse:
    """Which model decides each session: the last one that was adopted for it or before, or named by an override.

    overrides: session → id of the model in use from it on, whatever the rule says, until the next adoption. One from
        before the first adopted model's first session is without effect.
    """

    def __init__(self, overrides: Mapping[date, str] | None = None) -> None:
        self._changes = sorted((session, NAMED, model_id) for session, model_id in (overrides or {}).items())
        self._first: date | None = None

    def at(self, session: date) -> str | None:
        """Return the id of the model that decides a session; None before the first model."""
        if self._first is None or session < self._first:
            return None
        return self._changes[bisect_left(self._changes, (session, NAMED + 1)) - 1][2]

    def adopt(self, session: date, model_id: str) -> None:
        """Let a trained model decide from this session on."""
        insort(self._changes, (session, ADOPTED, model_id))
        self._first = session if self._first is None else min(self._first, session)

    def name(self, session: date, model_id: str) -> None:
        """Let this model decide from this session on, over what the rule says, until the next adoption."""
        self._changes = [one for one in self._changes if one[:2] != (session, NAMED)]
        insort(self._changes, (session, NAMED, model_id))

    def is_named(self, session: date) -> bool:
        """Tell whether an override begins at this session."""
        return any(one[:2] == (session, NAMED) for one in self._changes)

    def resume(self, session: date, model_id: str) -> None:
        """Forget what led up to a session, and remember that this model decided it."""
        later = [one for one in self._changes if one[0] > session]
        self._changes, self._first = [(date.min, ADOPTED, model_id), *later], date.min


class Adoption:
    """Applies the rule to one training after the other, oldest first.

    load: gives a model by its id.   verdicts: what was said of each training so far; ``taken`` counts them.
    """

    def __init__(
        self,
        window: Window,
        load: Callable[[str], Loaded],
        walkforward: WalkForward,
        retrain: Retrain,
        *,
        symbol: str,
        lookback: int,
        overrides: Mapping[date, str] | None = None,
    ) -> None:
        self._window, self._load, self._purge, self._retrain = window, load, walkforward.purge, retrain
        self._symbol, self._lookback = symbol, lookback
        self.in_use = InUse(overrides)
        self.verdicts: list[Verdict] = []
        self.taken = 0

    def take(self, trained: TrainedFold, broken: str = "") -> Verdict:
        """Say whether a trained model is adopted, and let it decide from the session after its training if so.

        broken: why the model in use cannot be asked, where it cannot; the newcomer is then adopted.
        Raises ModelError where a model cannot be loaded.
        """
        calendar, trained_at = self._window.calendar, trained.fold.trained_at
        session = calendar.session(trained_at)
        incumbent = self.in_use.at(session) or ""
        self.taken += 1
        verdict = Verdict(
            session=session, fold=self.taken, newcomer=trained.model_id, incumbent=incumbent, adopted=True
        )
        verdict = self._judged(verdict, trained.fold, broken)
        if verdict.adopted:
            self.in_use.adopt(calendar.session(trained_at + 1), trained.model_id)
        self.verdicts.append(verdict)
        return verdict

    def _judged(self, verdict: Verdict, fold: Fold, broken: str) -> Verdict:
        if not verdict.incumbent:
            return replace(verdict, reason="the first model")
        if self._retrain.adopt == "always":
            return replace(verdict, reason='adopt = "always"')
        if verdict.incumbent == verdict.newcomer:
            return replace(verdict, reason="the model in use, trained again on the same days")
        if broken:
            return replace(verdict, reason=broken)
        newcomer, incumbent = self._load(verdict.newcomer), self._load(verdict.incumbent)
        at = self._unseen(fold.challenge, incumbent)
        if not at:
            seen = f"the model in use has seen the newest {len(fold.challenge)} labelled sessions"
            return replace(verdict, reason=f"{seen}, up to {incumbent.last_seen}: nothing to compare on")
        verdict = replace(verdict, sessions=len(at))
        own = self._loss(newcomer, at)
        if isinstance(own, str):
            return replace(verdict, adopted=False, reason=f"the newcomer failed: {own}")
        other = self._loss(incumbent, at)
        if isinstance(other, str):
            return replace(verdict, loss_newcomer=own, reason=f"the model in use failed: {other}")
        return self._compared(replace(verdict, loss_newcomer=own, loss_incumbent=other), own - other)

    def _compared(self, verdict: Verdict, worse: float) -> Verdict:
        margin = self._retrain.margin
        said = f"{'worse' if worse > 0 else 'better'} by {abs(worse):.6f} nats" if worse else "as good"
        limit = f"{'more' if worse > margin else 'no more'} than margin {margin:g}" if worse > 0 else ""
        return replace(verdict, adopted=not worse > margin, reason=", ".join(filter(None, (said, limit))))

    def _unseen(self, challenge: range, model: Loaded) -> range:
        """Return the newest of these positions that lie ``purge`` or more sessions after the last one it saw."""
        seen = bisect_left(self._window.sessions, model.last_seen)
        return range(max(challenge.start, seen + self._purge), challenge.stop)

    def _loss(self, model: Loaded, at: range) -> float | str:
        """Return a model's log loss in nats at these positions, by the forecasts that it would have traded on.

        In words why there is none, where it fails.
        """
        from models.fitting import log_loss  # it loads torch

        try:
            signals = forecast(self._window, model, at, self._symbol, self._lookback)
        except Exception as error:  # a user's own model may raise anything
            if isinstance(error, TraderError) and not isinstance(error, ModelError):
                raise  # a disk's, and none of the model's doing
            return in_a_line(error)
        p_up = np.array([signal.p_up for signal in signals], dtype=np.float64)
        return log_loss(p_up, self._window.learnable(at.start, at.stop).label)[0]


def stretches(window: Window, trained: Sequence[TrainedFold], in_use: InUse) -> list[Stretch]:
    """Return which model makes which decisions of the folds, oldest first; a fold with an override is several."""
    return [stretch for one in trained for stretch in stretches_of(window, one.fold.use, in_use)]


def stretches_of(window: Window, use: range, in_use: InUse) -> list[Stretch]:
    """Return which model makes which of the decisions at these positions, none of which lies before the first model."""
    found = []
    for model_id, run in groupby(use, lambda at: in_use.at(window.sessions[at])):
        positions = list(run)
        assert model_id is not None, "the first fold's own model was adopted"
        found.append(Stretch(model_id, range(positions[0], positions[-1] + 1)))
    return found


def served(
    trained: Sequence[TrainedFold], verdicts: Sequence[Verdict], first_use: int, stop: int
) -> list[tuple[int, TrainedFold]]:
    """Return (number, fold) of the adopted models, each used until the next one adopted; overrides are not looked at.

    verdicts: one for each of ``trained``.   first_use, stop: positions of the first decision and after the last.
    """
    adopted = [(said.fold, one) for said, one in zip(verdicts, trained, strict=True) if said.adopted]
    ends = [*(one.fold.use.start for _, one in adopted[1:]), stop]
    used = [
        (number, replace(one, fold=replace(one.fold, use=range(max(one.fold.use.start, first_use), end))))
        for (number, one), end in zip(adopted, ends, strict=True)
    ]
    return [(number, one) for number, one in used if one.fold.use]


def overrides_of(facts: Sequence[Fact]) -> dict[date, str]:
    """Return session → model id in use from it on, from the facts of an account, oldest first."""
    return {fact.session: fact.detail for fact in facts if fact.kind == "use"}
