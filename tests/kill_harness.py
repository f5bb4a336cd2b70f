"""Kill a paper account's service again and again, and start it again, until its replay is through.

    python -m tests.kill_harness HOME ACCOUNT LAST --kind instant --times 50 --seed 1

Everything but torch (with --tiny, where no language model reads, torch and MSMF too) is imported once; each service is
a fork of that, so a start costs milliseconds. It is killed by SIGKILL, either by itself at a boundary or by the harness
at a random instant:
    transaction   right before a BEGIN, right before a COMMIT, or at the first statement after one
    rename        right before a file is renamed (models that are written)
    job           when the bell rings, in the thread of APScheduler
    training      so many milliseconds after a training has begun, in a process of its own: after this life's first
                  one for an even number, its second one for an odd number
    instant       at any instant of a start, or of a decision: the harness follows each life by its beats (started,
                  decided, decided …), so that a busy machine does not turn all of them into kills of a start
With --tiny the tests' readers read, so that an account's own models decide; they should be in the registry already.
Prints how many were killed, how many of those had decided something before, how many lives there were, and whether
torch was ever loaded in a service, as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from datetime import date
import json
import os
from pathlib import Path
import random
import signal
import sqlite3
import sys
from threading import Timer
import time
import traceback
from typing import Any

from tests import builders
from trader import training
from trader.account import Accounts
from trader.clock import Calendar, Clock, SimulatedClock, WallClock
from trader.ledger import Ledger
from trader.outcome import Home
from trader.parts import STRATEGIES
from trader.running import World, replay, running
from trader.wake import Bell, serve


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm_transaction(at: int) -> None:
    """Die at the ``at``-th boundary: every BEGIN IMMEDIATE, every COMMIT, and the first statement after each COMMIT."""
    seen, after = 0, False

    def statement(text: str) -> None:
        nonlocal seen, after
        boundary = after or text.startswith(("BEGIN IMMEDIATE", "COMMIT"))
        after = text.startswith("COMMIT")
        seen += boundary
        if seen >= at:
            die()

    plain = sqlite3.connect

    def traced(*words: Any, **how: Any) -> sqlite3.Connection:
        connection = plain(*words, **how)
        connection.set_trace_callback(statement)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


def arm_rename(at: int) -> None:
    """Die right before the ``at``-th rename."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "os.rename":
            seen += 1
            if seen >= at:
                die()

    sys.addaudithook(hook)


def arm_training(milliseconds: int) -> None:
    """Die so long after the first training of this life (the second, for an odd number) began, ended or not by then."""
    begin, begun = training.Background.__init__, 0

    def deadly(self: Any, *words: Any) -> None:
        nonlocal begun
        begin(self, *words)
        begun += 1
        if begun != 1 + milliseconds % 2:
            return
        timer = Timer(milliseconds / 1000, die)
        timer.daemon = True
        timer.start()

    training.Background.__init__ = deadly  # type: ignore[method-assign]


def preload(tiny: bool) -> None:
    """Import and compute what each life would have to, for a life that ends before it has begun tries nothing."""
    from importlib import import_module

    models = ("models.msmf.model", "tests.builders") if tiny else ()
    for name in ("sqlite_utils", "trader.cerebro", *(path.partition(":")[0] for path in STRATEGIES.values()), *models):
        import_module(name)
    Calendar()


def decisions(home: Home) -> int:
    """Count what all accounts of a home have decided."""
    with sqlite3.connect(home.ledger) as connection:
        (count,) = connection.execute("SELECT count(*) FROM decisions").fetchone()
    connection.close()
    return int(count)


class DeadlyBell(Bell):
    """A bell whose ``at``-th ring kills, whoever rings: APScheduler's thread, but for the first one."""

    def __init__(self, at: int) -> None:
        super().__init__(tick_seconds=5)
        self._rings, self._last = 0, at

    def ring(self) -> None:
        self._rings += 1
        if self._rings >= self._last:
            die()
        super().ring()


def ring_through(home: Home, account: str, last: date, at: int) -> None:
    """Run the service as ``paper run`` does, woken by a bell, on a clock that each ring moves to the next decision."""
    calendar = Calendar()
    with Ledger.open(home.ledger) as ledger:
        accounts = Accounts(ledger, WallClock())
        held = accounts.get(account)
        done = accounts.last_decided(held)
    start = held.first_session if done is None else calendar.session(calendar.index(done) + 1)
    if start > last:
        return
    clock = SimulatedClock(calendar.decide_at(start))
    with DeadlyBell(at) as bell, running(home, account, World(clock=clock, patient=True)) as service:

        def forwards() -> None:
            due = service.next_due()
            if due > calendar.decide_at(last):
                bell.stop()
            elif due > clock.now():
                clock.set(due)

        serve(service, bell, forwards, lambda event, **facts: None)


class Striker:
    """Kills lives at random instants of what comes after a number of beats, at the pace of the lives before."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._start, self._pace = rng, 0.05, 0.005  # seconds of a start and of a decision

    def strike(self, pid: int, pulse: int, beats: int) -> None:
        """Read so many beats (1 = started), wait a random part of what the next one takes, and kill."""
        seen, at = 0, [time.perf_counter()]
        while seen < beats and os.read(pulse, 1):
            seen += 1
            at.append(time.perf_counter())
        if len(at) > 1:
            self._start = at[1] - at[0]
        if len(at) > 2:
            self._pace = (at[-1] - at[1]) / (len(at) - 2)
        time.sleep(self._rng.random() * (self._pace if seen else self._start))
        os.kill(pid, signal.SIGKILL)


def child(work: Callable[[], None], *closed: int) -> int:
    """Fork, do the work there, and return the child's number. closed: descriptors that only the parent keeps."""
    pid = os.fork()
    if pid == 0:
        code = 1
        for one in closed:
            os.close(one)
        try:
            work()
            code = 3 if "torch" in sys.modules else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def beating(clock: Clock, beat: int, tiny: bool) -> World:
    """Return a world that writes a byte into a pipe at the service's start and after each decision."""
    readers = builders.readers() if tiny else None

    def log(event: str, **facts: object) -> None:
        with suppress(BlockingIOError):  # nobody counts any more, and the pipe is full
            os.write(beat, b".")

    os.set_blocking(beat, False)
    return World(clock=clock, patient=True, log=log, readers=readers)


ARMS = {"transaction": arm_transaction, "rename": arm_rename, "training": arm_training}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("account")
    parser.add_argument("last", type=date.fromisoformat)
    parser.add_argument("--kind", choices=["transaction", "rename", "job", "training", "instant"], default="instant")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=60, help="that one life lasts: boundaries, milliseconds, or beats")
    parser.add_argument("--tiny", action="store_true", help="read with texts and sentiment that need no language model")
    options = parser.parse_args()
    rng, home, killed, lives = random.Random(options.seed), Home(options.home), 0, 0
    preload(options.tiny)
    decided, advanced, striker = decisions(home), 0, Striker(rng)

    while True:
        lives += 1
        at, armed = rng.randint(options.kind != "instant", options.most), killed < options.times
        pulse, beat = os.pipe()

        def work(at: int = at, armed: bool = armed, beat: int = beat) -> None:
            if armed and options.kind == "job":
                ring_through(home, options.account, options.last, at)
                return
            if armed and options.kind in ARMS:
                ARMS[options.kind](at)
            replay(home, options.account, None, options.last, lambda clock: beating(clock, beat, options.tiny))

        pid = child(work, pulse)
        os.close(beat)
        if armed and options.kind == "instant":
            striker.strike(pid, pulse, at)
        _, status = os.waitpid(pid, 0)
        os.close(pulse)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            before, decided = decided, decisions(home)
            killed, advanced = killed + 1, advanced + (decided > before)
            continue
        code = os.waitstatus_to_exitcode(status)
        said = {"killed": killed, "advanced": advanced, "lives": lives, "code": code, "torch": code == 3}
        print(json.dumps(said))
        sys.exit(code)


if __name__ == "__main__":
    main()
