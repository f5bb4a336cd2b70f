"""When the exchange is open, and what time it is; the only room that may read the wall clock.

The calendar gives each session (one trading day of XNYS) its true close, early closes too, and the two
instants that gate every input: the cutoff for news and decide_at for the bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Protocol
import warnings

import numpy as np
from numpy.typing import NDArray

from trader.errors import TimeError
from trader.events import from_us, require_aware, to_us

FIRST_DAY, LAST_DAY = date(1990, 1, 1), date(2035, 12, 31)
DAY_US = 24 * 3600 * 1_000_000


class Clock(Protocol):
    """Something that tells the time in UTC."""

    def now(self) -> datetime:
        """Return the present instant, aware."""
        ...


class WallClock:
    """The machine's own time."""

    def now(self) -> datetime:
        """Return the present instant in UTC."""
        return datetime.now(timezone.utc)


class SimulatedClock:
    """A clock that stands where it was put; for tests and replays."""

    def __init__(self, instant: datetime) -> None:
        self._instant = require_aware(instant)

    def now(self) -> datetime:
        """Return the instant it was set to."""
        return self._instant

    def set(self, instant: datetime) -> None:
        """Move to an instant; raise TimeError if that is in its past."""
        if require_aware(instant) < self._instant:
            raise TimeError("time runs forwards only", got=instant, expected=f"at least {self._instant}")
        self._instant = instant


@lru_cache(maxsize=1)
def _xnys() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sessions as days since 1970, their opens and their closes in µs UTC, 1990–2035.

    The bounds are always stated: exchange_calendars' defaults move with today's date.
    """
    import exchange_calendars

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exchange_calendars 4.13 on pandas 3 warns of its own code
        calendar = exchange_calendars.get_calendar("XNYS", start=FIRST_DAY.isoformat(), end=LAST_DAY.isoformat())
    days = calendar.sessions.to_numpy().astype("datetime64[D]").astype(np.int64)
    opens, closes = (
        of.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
        for of in (calendar.opens, calendar.closes)
    )
    return days, opens, closes


@lru_cache(maxsize=1)
def _numbers() -> dict[date, int]:
    """The number of each session; a look into it costs a tenth of a search, and every event asks several times."""
    epoch = date(1970, 1, 1).toordinal()
    return {date.fromordinal(epoch + day): number for number, day in enumerate(_xnys()[0].tolist())}


class Calendar:
    """XNYS sessions, numbered from 0 = 1990-01-02, with their cutoff and decide_at.

    decide_minutes: delay from the close to the decision; the session's bar must be known by then.
    """

    def __init__(self, decide_minutes: int = 0) -> None:
        self._days, self._opens, self._closes = _xnys()
        self._number_of = _numbers()
        self._delay = timedelta(minutes=decide_minutes)

    def index(self, session: date) -> int:
        """Return the session's number; raise TimeError if the exchange was closed that day."""
        at = self._number_of.get(session)
        if at is None:
            raise TimeError(
                "not a session of the exchange", got=session, expected=f"a trading day {FIRST_DAY}..{LAST_DAY}"
            )
        return at

    def session(self, index: int) -> date:
        """Return the day of the session with this number; raise TimeError outside 1990–2035."""
        if not 0 <= index < len(self._days):
            raise TimeError("a session outside the calendar", got=index, expected=f"0..{len(self._days) - 1}")
        return date(1970, 1, 1) + timedelta(days=int(self._days[index]))

    def sessions(self, first: date, last: date) -> list[date]:
        """Return the sessions from first to last, both included, oldest first; raise TimeError outside 1990–2035."""
        if first < FIRST_DAY or last > LAST_DAY:
            raise TimeError("days outside the calendar", got=f"{first}..{last}", expected=f"{FIRST_DAY}..{LAST_DAY}")
        low = int(np.searchsorted(self._days, _days_since_1970(first)))
        high = int(np.searchsorted(self._days, _days_since_1970(last), side="right"))
        return [self.session(index) for index in range(low, high)]

    def is_session(self, day: date) -> bool:
        """Tell whether the exchange was open that day."""
        at = int(np.searchsorted(self._days, _days_since_1970(day)))
        return at < len(self._days) and self._days[at] == _days_since_1970(day)

    def cutoff(self, session: date) -> datetime:
        """Return the session's true close in UTC; news known later belongs to the next session."""
        return from_us(int(self._closes[self.index(session)]))

    def open_at(self, session: date) -> datetime:
        """Return the session's opening in UTC; a decision that is not made by the next one is late."""
        return from_us(int(self._opens[self.index(session)]))

    def decide_at(self, session: date) -> datetime:
        """Return the instant of the session's decision: its close plus the decision delay."""
        return self.cutoff(session) + self._delay

    def closes_us(self, sessions: Sequence[date]) -> NDArray[np.int64]:
        """Return the closes of many sessions as µs UTC; raise TimeError for a day that is no session."""
        return np.array([self._closes[self.index(session)] for session in sessions], dtype=np.int64)

    def index_at(self, known_at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each instant (µs UTC) the number of the session whose news it is.

        That is the first session with cutoff ≥ known_at: one microsecond after the close is the next session's.
        """
        return np.searchsorted(self._closes, known_at, side="left").astype(np.int64)

    def session_at(self, known_at: datetime) -> date:
        """Return the session to which news known at this instant belongs."""
        return self.session(int(self.index_at(np.array([to_us(known_at)]))[0]))


def _days_since_1970(day: date) -> int:
    return (day - date(1970, 1, 1)).days
