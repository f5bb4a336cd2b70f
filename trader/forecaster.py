"""Turn models and the window into signals: for whole folds at once, or day by day as events come. Same bits.

Signals never depend on positions, so both ways are the same function of the same rows; the models promise that a
decision's bits depend on its own lookback days alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from models.base import Model, Prediction
from trader.clock import Calendar
from trader.config import WalkForward
from trader.errors import ModelError
from trader.events import DecisionDue, Event, RetrainDue, Signal
from trader.training import TrainedFold, Trainer
from trader.walkforward import fold_at
from trader.window import Window

TOP_HEADLINES = 10
SAME = 1e-6  # a probability; our own models agree to the last bit, a user's may round by the batch


def batched(
    window: Window,
    trainer: Trainer,
    folds: Sequence[TrainedFold],
    *,
    symbol: str,
    lookback: int,
    check_all: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Signal]:
    """Return the signals of all decisions of the folds, oldest first; one model is loaded at a time.

    check_all: make every decision a second time from its own lookback days alone, not only two of each fold; for
        models that are not ours. Raises ModelError where one differs: it read days that it could not know.
    progress: called with (decisions done, all decisions).
    """
    signals: list[Signal] = []
    total = sum(len(trained.fold.use) for trained in folds)
    for trained in folds:
        model = trainer.model(trained)
        signals += _forecast(window, model, trained.model_id, trained.fold.use, symbol, lookback, check_all)
        if progress:
            progress(len(signals), total)
    return signals


class DailyForecaster:
    """Forecasts day by day: feed it the scheduler's events, take a signal at each DecisionDue.

    Before the first fold is full there is no signal. A session without its bar gets a signal that abstains.
    first: the first session that is to have a signal; models that would be replaced before it are not trained.
    """

    def __init__(
        self, window: Window, trainer: Trainer, spec: WalkForward, *, symbol: str, lookback: int, first: date
    ) -> None:
        self._window, self._trainer, self._spec = window, trainer, spec
        self._symbol, self._lookback, self._first = symbol, lookback, first
        self._model: tuple[str, Model] | None = None
        self.trained: list[TrainedFold] = []

    def on(self, event: Event) -> Signal | None:
        """Take one event; return the session's signal if it is a decision and there is a model."""
        if isinstance(event, RetrainDue):
            self._retrain(event)
        elif isinstance(event, DecisionDue):
            return self._decide(event)
        else:
            self._window.update(event)
        return None

    def _decide(self, event: DecisionDue) -> Signal | None:
        if self._model is None or event.session < self._first:
            return None
        model_id, model = self._model
        if event.missing:
            return abstain(event, self._symbol, model_id)
        last = len(self._window) - 1
        return _forecast(self._window, model, model_id, range(last, last + 1), self._symbol, self._lookback)[0]

    def _retrain(self, event: RetrainDue) -> None:
        number = self._window.calendar.index(event.session)
        if self._window.calendar.session(number + self._spec.step) < self._first:
            return
        warm_up = self._window.warm_up + self._lookback - 1
        fold = fold_at(number, len(self._window), warm_up, self._spec)
        if fold is not None:
            [trained] = self._trainer.train([fold])
            self._model = trained.model_id, self._trainer.model(trained)
            self.trained.append(trained)


def abstain(event: DecisionDue, symbol: str, model_id: str) -> Signal:
    """Return the signal of a session without a decision; the position stays as it is."""
    return Signal(session=event.session, symbol=symbol, p_up=None, side=0, model_id=model_id, reason=event.missing)


def with_abstentions(
    signals: Sequence[Signal],
    missing: Iterable[DecisionDue],
    folds: Sequence[TrainedFold],
    calendar: Calendar,
    symbol: str,
) -> list[Signal]:
    """Add to the signals those of the sessions without a bar, oldest first; each names the model in use that day.

    Sessions before the first model get none, as day by day.
    """
    trained_at = [trained.fold.trained_at for trained in folds]
    added = []
    for event in missing:
        in_use = bisect_left(trained_at, calendar.index(event.session)) - 1
        if in_use >= 0:
            added.append(abstain(event, symbol, folds[in_use].model_id))
    return sorted([*signals, *added], key=lambda signal: signal.session)


def _forecast(
    window: Window, model: Model, model_id: str, use: range, symbol: str, lookback: int, check_all: bool = False
) -> list[Signal]:
    first = use.start - lookback + 1
    days = window.days(first, use.stop)
    days = replace(days, next_return=np.full(len(days), np.nan))  # nobody who forecasts needs an answer
    at = range(lookback - 1, len(days))
    prediction = model.predict(days, at)
    if not np.isfinite(prediction.p_up).all():
        raise ModelError("a forecast that is not a number", where=f"{model_id} {window.sessions[use.start]}")
    checked = range(len(at)) if check_all else {0, len(at) // 2}
    for row in checked if len(at) > 1 else ():
        alone = model.predict(days.between(row, row + lookback), [lookback - 1]).p_up[0]
        if not abs(alone - prediction.p_up[row]) <= SAME:
            raise ModelError(
                "the forecast changes when the days after it are cut away",
                where=f"{model_id} {window.sessions[use.start + row]}",
                got=f"{prediction.p_up[row]} in its batch and {alone} from its own lookback days",
                do="let predict read no other days than those, see models/base.py",
            )
    return [_signal(window, at, row, prediction, model_id, symbol) for row, at in enumerate(use)]


def _signal(window: Window, at: int, row: int, prediction: Prediction, model_id: str, symbol: str) -> Signal:
    p_up = float(prediction.p_up[row])
    weights = prediction.news_weights[row] if prediction.news_weights is not None else np.empty(0, np.float32)
    headlines = window.headlines[at]
    order = np.argsort(-weights, kind="stable")[:TOP_HEADLINES]
    return Signal(
        session=window.sessions[at],
        symbol=symbol,
        p_up=p_up,
        side=(p_up > 0.5) - (p_up < 0.5),
        model_id=model_id,
        news_count=len(headlines),
        effective_news=_effective_number(weights),
        top=tuple((headlines[one], float(weights[one])) for one in order),
    )


def _effective_number(weights: NDArray[np.float32]) -> float:
    """Return exp(entropy) of weights that sum to 1: how many equal headlines would be as spread; 0 without any."""
    positive = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0
