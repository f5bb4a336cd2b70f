"""Turn models and the window into signals: for whole folds at once, or for one day (trader.host). Same bits.

Signals never depend on positions, so both ways are the same function of the same rows; the models promise that a
decision's bits depend on its own lookback days alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.base import Prediction
from trader.clock import Calendar
from trader.errors import ModelError
from trader.events import DecisionDue, Signal
from trader.training import Loaded
from trader.window import Window

TOP_HEADLINES = 10
SAME = 1e-6  # a probability; our own models agree to the last bit, a user's may round by the batch


class Stretch(NamedTuple):
    """Decisions at the positions ``use``, made with one model."""

    model_id: str
    use: range


def batched(
    window: Window,
    stretches: Sequence[Stretch],
    load: Callable[[str], Loaded],
    *,
    symbol: str,
    lookback: int,
    max_age: int = 0,
    check_all: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Signal]:
    """Return the signals of all decisions of the stretches, oldest first; one model is loaded at a time.

    load: gives a model by its id.   max_age: see ``unfit``.
    check_all: make every decision a second time from its own lookback days alone, not only two of each stretch; for
        models that are not ours. Raises ModelError where one differs: it read days that it could not know.
    progress: called with (decisions done, all decisions).
    """
    signals: list[Signal] = []
    total = sum(len(stretch.use) for stretch in stretches)
    for model_id, use in stretches:
        loaded = load(model_id)
        reasons = [unfit(window.calendar, loaded, window.sessions[at], max_age) for at in use]
        fit = [at for at, reason in zip(use, reasons, strict=True) if not reason]  # one stretch: it only grows older
        if fit:
            signals += forecast(window, loaded, range(fit[0], fit[-1] + 1), symbol, lookback, check_all)
        for at, reason in zip(use, reasons, strict=True):
            if reason:
                signals.append(abstain(window.sessions[at], symbol, model_id, reason))
        if progress:
            progress(len(signals), total)
    return sorted(signals, key=lambda signal: signal.session)


def unfit(calendar: Calendar, loaded: Loaded, session: date, max_age: int) -> str:
    """Return why a model may not decide a session, "" where it may: it has seen later ones, or is too old.

    max_age: sessions of the exchange since the last one that it saw; 0 sets no limit.
    """
    if loaded.last_seen > session:
        return f"model {loaded.model_id} has seen {loaded.last_seen}, which lies after this session"
    age = calendar.index(session) - calendar.index(loaded.last_seen)
    if not max_age or age <= max_age:
        return ""
    return f"model {loaded.model_id} last saw a session {age} sessions ago, more than max_age {max_age}"


def abstain(session: date, symbol: str, model_id: str, reason: str) -> Signal:
    """Return the signal of a session without a decision; the position stays as it is."""
    return Signal(session=session, symbol=symbol, p_up=None, side=0, model_id=model_id, reason=reason)


def with_abstentions(
    signals: Sequence[Signal], missing: Sequence[DecisionDue], in_use: Callable[[date], str | None], symbol: str
) -> list[Signal]:
    """Put abstentions in the place of the signals of those sessions, oldest first; each names the model in use.

    Sessions before the first model get none, as day by day.
    """
    undecided = {event.session for event in missing}
    added = [signal for signal in signals if signal.session not in undecided]
    for event in missing:
        model_id = in_use(event.session)
        if model_id is not None:
            added.append(abstain(event.session, symbol, model_id, event.missing))
    return sorted(added, key=lambda signal: signal.session)


def forecast(
    window: Window, loaded: Loaded, use: range, symbol: str, lookback: int, check_all: bool = False
) -> list[Signal]:
    """Return a model's signals at the positions ``use``; ModelError where one is no number, or reads other days.

    check_all: see ``batched``.
    """
    model, model_id, first = loaded.model, loaded.model_id, use.start - lookback + 1
    days = window.days(first, use.stop)
    days = replace(days, next_return=np.full(len(days), np.nan))  # nobody who forecasts needs an answer
    at = range(lookback - 1, len(days))
    prediction = model.predict(days, at)
    made = prediction.p_up if prediction.expected_return is None else prediction.p_up + prediction.expected_return
    if not np.isfinite(made).all():
        raise ModelError("a forecast that is not a number", where=f"{model_id} {window.sessions[use.start]}")
    checked = range(len(at)) if check_all else {0, len(at) // 2}
    for row in checked if len(at) > 1 else ():
        alone = model.predict(days.between(row, row + lookback), [lookback - 1])
        for said, own in ((prediction.p_up, alone.p_up), (prediction.expected_return, alone.expected_return)):
            differ = (said is None) != (own is None)
            if said is not None and own is not None:
                differ = not abs(own[0] - said[row]) <= SAME
            if differ:
                raise ModelError(
                    "the forecast changes when the days after it are cut away",
                    where=f"{model_id} {window.sessions[use.start + row]}",
                    got=f"{_at(said, row)} in its batch and {_at(own, 0)} from its own lookback days",
                    do="let predict read no other days than those, see models/base.py",
                )
    return [_signal(window, at, row, prediction, model_id, symbol) for row, at in enumerate(use)]


def _at(said: NDArray[np.float64] | None, row: int) -> object:
    return "none" if said is None else said[row]


def _signal(window: Window, at: int, row: int, prediction: Prediction, model_id: str, symbol: str) -> Signal:
    p_up = float(prediction.p_up[row])
    expected = None if prediction.expected_return is None else float(prediction.expected_return[row])
    weights = prediction.news_weights[row] if prediction.news_weights is not None else np.empty(0, np.float32)
    headlines = window.headlines[at]
    order = np.argsort(-weights, kind="stable")[:TOP_HEADLINES]
    return Signal(
        session=window.sessions[at],
        symbol=symbol,
        p_up=p_up,
        side=(p_up > 0.5) - (p_up < 0.5),
        expected_return=expected,
        model_id=model_id,
        news_count=len(headlines),
        effective_news=_effective_number(weights),
        top=tuple((headlines[one], float(weights[one])) for one in order),
    )


def _effective_number(weights: NDArray[np.float32]) -> float:
    """Return exp(entropy) of weights that sum to 1: how many equal headlines would be as spread; 0 without any."""
    positive = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0
