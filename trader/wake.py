"""Wake a running service: at every decision that comes due, every few seconds in between, and at once by a signal.

APScheduler only rings. It keeps no store and no list of what is due: a ring that is lost, doubled or late changes
nothing, for the service asks the calendar and the ledger each time. It reads the wall clock and sleeps until what it
read, so a clock that jumps may make it sleep for a day: the looks in between are counted by time that only goes
forwards. Everything is done in the thread that called ``serve``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
import os
import select
import signal
from types import FrameType
from typing import Any

from trader.errors import SourceError, TimeError
from trader.service import AccountService

TICK_SECONDS = 20


class Bell:
    """Rings until somebody says stop: ``wait`` returns at each ring, and says whether to go on.

    A ring is a byte in a pipe: writing one takes no lock, so that a signal handler may ring wherever it interrupted.
    """

    def __init__(self, tick_seconds: float = TICK_SECONDS) -> None:
        from apscheduler.schedulers.background import BackgroundScheduler

        self._heard, self._rope = os.pipe()
        for end in (self._heard, self._rope):
            os.set_blocking(end, False)
        self.stopped, self._tick_seconds = False, tick_seconds
        # A ring is never too late to be of use, and many missed ones are one.
        defaults = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        self._scheduler: Any = BackgroundScheduler(timezone=timezone.utc, job_defaults=defaults)

    def ring(self) -> None:
        """Ring now; from any thread and from a signal handler."""
        with suppress(BlockingIOError):  # the pipe is full of rings that nobody has heard yet
            os.write(self._rope, b"!")

    def at(self, instant: datetime) -> None:
        """Ring at an instant too, at once where it is past; the newest call counts."""
        self._scheduler.add_job(self.ring, "date", run_date=instant, id="due", replace_existing=True)

    def stop(self) -> None:
        """Let ``wait`` say no from now on; from any thread and from a signal handler."""
        self.stopped = True
        self.ring()

    def wait(self) -> bool:
        """Wait for the next ring, ``tick_seconds`` at most; return whether to go on."""
        if select.select([self._heard], [], [], self._tick_seconds)[0]:
            with suppress(BlockingIOError):
                os.read(self._heard, 4096)
        return not self.stopped

    def __enter__(self) -> Bell:
        self._scheduler.start()
        self.ring()  # whatever came due before is done at once
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.remove_all_jobs()  # one that comes due while the scheduler stops would not be found
        self._scheduler.shutdown()  # and waits for its threads: all that they do is ring
        os.close(self._heard)
        os.close(self._rope)


def serve(service: AccountService[Any], bell: Bell, poll: Callable[[], None], log: Callable[..., None]) -> None:
    """Decide whatever comes due until the bell is stopped; the transaction at hand is finished first.

    poll: asks the feeds that are due, before each look at the calendar. A clock that went backwards, a feed that fails
    and a model that is still being trained are logged once and waited out; everything else that is raised ends the
    service, for only a new start derives it afresh.
    """
    said: object = None
    while bell.wait():
        why, about = "", None
        try:
            poll()
            service.renew()
            service.run_due(lambda: not bell.stopped)
            service.read_ahead()
            if service.waits_for:  # its decision is due already: a ring for it would come at once, again and again
                why = about = f"{service.waits_for}, is not ready"
            else:
                bell.at(service.next_due())
        except (TimeError, SourceError) as error:
            why, about = str(error), f"{error.where}: {error.what}"  # the whole sentence may tell the time
        if why and about != said:  # once, not every tick
            log("waiting", why=why)
        said = about


@contextmanager
def ends_on_signals(bell: Bell) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the bell instead of the process; a second one does what it always does."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])  # first: a second one does what it always does
        bell.stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
