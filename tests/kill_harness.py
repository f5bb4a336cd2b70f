"""Kill a paper account's service again and again, and start it again, until its replay is through.

    python -m tests.kill_harness HOME ACCOUNT LAST --kind instant --times 50 --seed 1

Everything is imported once; each service is a fork of that, so a start costs milliseconds. It is killed by SIGKILL,
either by itself at a boundary or by the harness at a random instant:
    transaction   right before a BEGIN, right before a COMMIT, or at the first statement after one
    rename        right before a file is renamed (models that are written)
    job           when the bell rings, in the thread of APScheduler
    instant       whenever
Prints how many were killed and whether torch was ever loaded, as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
import json
import os
from pathlib import Path
import random
import signal
import sqlite3
import sys
import time
import traceback
from typing import Any

from trader.account import Accounts
from trader.clock import Calendar, Clock, SimulatedClock, WallClock
from trader.ledger import Ledger
from trader.outcome import Home
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


class DeadlyBell(Bell):
    """A bell whose ``at``-th ring kills."""

    def __init__(self, at: int) -> None:
        super().__init__(tick_seconds=0.02)
        ring, self._rings = self._ring.set, 0

        def deadly() -> None:
            self._rings += 1
            if self._rings >= at:
                die()
            ring()

        self._scheduler.add_job(deadly, "interval", seconds=0.02, id="tick", replace_existing=True)


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


def child(work: Callable[[], None]) -> int:
    """Fork, do the work there, and return the child's number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 3 if "torch" in sys.modules else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("account")
    parser.add_argument("last", type=date.fromisoformat)
    parser.add_argument("--kind", choices=["transaction", "rename", "job", "instant"], default="instant")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=60, help="boundaries, or milliseconds, that one life lasts at most")
    options = parser.parse_args()
    rng, home, killed, lives = random.Random(options.seed), Home(options.home), 0, 0

    def world(clock: Clock) -> World:
        return World(clock=clock, patient=True)

    def whole() -> None:
        replay(home, options.account, None, options.last, world)

    while True:
        lives += 1
        at, armed = rng.randint(1, options.most), killed < options.times

        def work(at: int = at, armed: bool = armed) -> None:
            if armed and options.kind == "job":
                ring_through(home, options.account, options.last, at)
                return
            if armed and options.kind == "transaction":
                arm_transaction(at)
            if armed and options.kind == "rename":
                arm_rename(at)
            whole()

        pid = child(work)
        if armed and options.kind == "instant":
            time.sleep(at / 1000)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed += 1
            continue
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"killed": killed, "lives": lives, "code": code, "torch": code == 3}))
        sys.exit(code)


if __name__ == "__main__":
    main()
