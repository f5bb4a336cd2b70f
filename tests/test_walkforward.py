"""Folds: anchored to the exchange's own count of sessions, purged, and full."""

from __future__ import annotations

from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import CALENDAR
from trader.config import WalkForward
from trader.walkforward import fold_at, is_retrain_session, plan

YEARS = CALENDAR.sessions(date(1999, 1, 4), date(2018, 12, 31))
NUMBERS = [CALENDAR.index(day) for day in YEARS]
START = YEARS.index(date(2003, 1, 2))
WARM_UP = 24


def test_2003_to_2018_needs_82_models_and_decides_every_session_once() -> None:
    folds = plan(NUMBERS, START, WARM_UP, WalkForward())
    decided = [at for fold in folds for at in fold.use]
    assert len(folds) == 82
    assert decided == list(range(START, len(YEARS)))
    assert len(decided) == 4027


def test_models_are_trained_on_sessions_that_the_step_divides_and_used_from_the_next() -> None:
    for fold in plan(NUMBERS, START, WARM_UP, WalkForward()):
        assert fold.trained_at % 50 == 0
        assert NUMBERS[fold.use.start] > fold.trained_at
    assert not is_retrain_session(4051, WalkForward())


def test_a_session_has_the_same_model_whatever_the_first_day_of_the_run() -> None:
    def spans(start: int) -> dict[int, tuple[int, range, range]]:
        folds = plan(NUMBERS, start, WARM_UP, WalkForward())
        return {at: (fold.trained_at, fold.train, fold.validation) for fold in folds for at in fold.use}

    early, late = spans(START), spans(START + 777)
    assert all(early[at] == late[at] for at in late)


@given(held=st.integers(0, 900), mode=st.sampled_from(["sliding", "expanding"]), validation=st.integers(5, 60))
def test_no_label_of_a_fold_is_later_than_its_training(held: int, mode: str, validation: int) -> None:
    spec = WalkForward(train=100, validation=validation, mode=mode)  # type: ignore[arg-type]
    fold = fold_at(4000, held, WARM_UP, spec)
    if held < 100 + validation + 2 * spec.purge + WARM_UP:
        assert fold is None
        return
    assert fold is not None
    last_session = held - 1
    assert fold.validation[-1] + spec.horizon <= last_session, "its label must be known when it trains"
    assert fold.validation.start - fold.train.stop == spec.purge
    assert held - fold.validation.stop == spec.purge
    assert len(fold.validation) == validation
    assert fold.train.start >= WARM_UP
    assert len(fold.train) == 100 if mode == "sliding" else fold.train.start == WARM_UP


def test_too_little_history_gives_no_fold() -> None:
    assert plan(NUMBERS[:450], 0, WARM_UP, WalkForward()) == []
    assert plan([], 0, WARM_UP, WalkForward()) == []


def test_without_history_trading_starts_when_the_first_fold_is_full() -> None:
    folds = plan(NUMBERS[:700], 0, WARM_UP, WalkForward())
    assert folds[0].use.start >= 400 + 50 + 6 + WARM_UP
    assert folds[0].use.start < 400 + 50 + 6 + WARM_UP + 50
