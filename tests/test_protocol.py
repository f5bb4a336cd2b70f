"""The papers' windows and the walk-forward beside them, as arithmetic."""

from datetime import date

from tests.builders import CALENDAR
from trader.config import WalkForward
from trader.protocol import Windows, sliding, walking

# The paper's span: 4,027 sessions, 2003-01-02 to 2018-12-31, with 120 sessions held before it.
FIRST = CALENDAR.index(date(2003, 1, 2))
HELD = list(range(FIRST - 120, CALENDAR.index(date(2018, 12, 31)) + 1))


def test_the_papers_span_holds_its_ten_windows_of_49_test_days() -> None:
    folds = sliding(HELD, 120, len(HELD), Windows())
    assert len(HELD) - 120 == 4027
    assert [len(fold.use) for fold in folds] == [49] * 10
    assert [fold.use.start - 120 for fold in folds] == [391 * w + 450 for w in range(10)]
    assert [fold.use.stop - 1 - 120 for fold in folds] == [391 * w + 498 for w in range(10)]


def test_a_windows_parts_adjoin_and_stay_inside_it() -> None:
    for start, fold in zip(range(120, 10_000, 391), sliding(HELD, 120, len(HELD), Windows()), strict=False):
        assert (fold.train.start, fold.train.stop) == (start, start + 400)
        assert (fold.validation.start, fold.validation.stop) == (start + 400, start + 450)
        assert fold.use.stop < start + 500  # the label of its last test day is the close of the window's last session


def test_the_span_of_the_reuters_headlines_holds_four_windows() -> None:
    first, stop = CALENDAR.index(date(2007, 1, 3)), CALENDAR.index(date(2013, 12, 31)) + 1
    assert len(sliding(range(first, stop), 0, stop - first, Windows())) == 4


def test_a_span_too_short_for_one_window_holds_none() -> None:
    assert sliding(HELD, 120, 120 + 499, Windows()) == []


def test_the_walk_forward_tests_every_session_once_after_its_first_full_fold() -> None:
    spec = WalkForward(step=250, mode="expanding")
    folds = walking(HELD, 120, len(HELD), spec)
    tested = [at for fold in folds for at in fold.use]
    assert tested == list(range(folds[0].use.start, len(HELD) - 1))  # the last session has no label yet
    assert all(fold.train.start == 120 for fold in folds)
    assert all(fold.validation.stop + spec.purge <= fold.use.start for fold in folds)
    assert all(fold.train.stop + spec.purge == fold.validation.start for fold in folds)


def test_the_walk_forward_learns_nothing_from_before_the_first_session_asked_for() -> None:
    for mode in ("sliding", "expanding"):
        folds = walking(HELD, 120, len(HELD), WalkForward(step=250, mode=mode))
        assert min(fold.train.start for fold in folds) >= 120
