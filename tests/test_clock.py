"""The exchange's sessions, true closes, and clocks that run forwards."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import numpy as np
import pytest

from tests.builders import CALENDAR
from trader.clock import Calendar, SimulatedClock, WallClock
from trader.errors import TimeError
from trader.events import from_us, to_us


def test_2003_to_2018_has_4027_sessions_of_which_35_close_early() -> None:
    days = CALENDAR.sessions(date(2003, 1, 1), date(2018, 12, 31))
    early = [day for day in days if CALENDAR.cutoff(day).hour < 20 and CALENDAR.cutoff(day).hour in (17, 18)]
    assert (len(days), len(early)) == (4027, 35)


def test_the_close_is_true_in_summer_winter_and_before_a_holiday() -> None:
    assert CALENDAR.cutoff(date(2008, 7, 1)) == datetime(2008, 7, 1, 20, tzinfo=timezone.utc)
    assert CALENDAR.cutoff(date(2008, 12, 1)) == datetime(2008, 12, 1, 21, tzinfo=timezone.utc)
    assert CALENDAR.cutoff(date(2008, 11, 28)) == datetime(2008, 11, 28, 18, tzinfo=timezone.utc)


@pytest.mark.parametrize("closed", ["2004-06-11", "2007-01-02", "2012-10-29", "2012-10-30", "2018-12-05"])
def test_the_unscheduled_closures_are_no_sessions(closed: str) -> None:
    assert not CALENDAR.is_session(date.fromisoformat(closed))
    with pytest.raises(TimeError, match="not a session"):
        CALENDAR.index(date.fromisoformat(closed))


def test_news_at_the_close_is_this_sessions_and_a_microsecond_later_the_next_ones() -> None:
    day, following = date(2008, 9, 12), date(2008, 9, 15)
    close = CALENDAR.cutoff(day)
    assert CALENDAR.session_at(close) == day
    assert CALENDAR.session_at(close + timedelta(microseconds=1)) == following
    at = np.array([to_us(close), to_us(close) + 1])
    assert CALENDAR.index_at(at).tolist() == [CALENDAR.index(day), CALENDAR.index(following)]


def test_after_an_early_close_the_afternoon_belongs_to_the_next_session() -> None:
    assert CALENDAR.session_at(datetime(2008, 11, 28, 19, tzinfo=timezone.utc)) == date(2008, 12, 1)


def test_the_decision_comes_after_its_delay() -> None:
    day = date(2008, 7, 1)
    assert Calendar(decide_minutes=15).decide_at(day) == CALENDAR.cutoff(day) + timedelta(minutes=15)


def test_sessions_are_numbered_from_the_second_of_january_1990() -> None:
    assert CALENDAR.session(0) == date(1990, 1, 2)
    assert CALENDAR.index(CALENDAR.session(4321)) == 4321
    with pytest.raises(TimeError, match="outside the calendar"):
        CALENDAR.session(-1)
    with pytest.raises(TimeError, match="outside the calendar"):
        CALENDAR.sessions(date(1980, 1, 1), date(1990, 6, 1))


def test_a_naive_time_is_refused() -> None:
    for use in (to_us, SimulatedClock, CALENDAR.session_at):
        with pytest.raises(TimeError, match="a time without a zone"):
            use(datetime(2008, 7, 1))  # noqa: DTZ001


def test_simulated_time_runs_forwards_only() -> None:
    clock = SimulatedClock(from_us(1_000))
    clock.set(from_us(2_000))
    assert clock.now() == from_us(2_000)
    with pytest.raises(TimeError, match="forwards"):
        clock.set(from_us(1_999))


def test_the_wall_clock_is_aware() -> None:
    assert WallClock().now().utcoffset() == timedelta(0)
