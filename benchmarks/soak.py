"""Sixteen years of an account in one process, with a fault every twenty sessions; a part of ``benchmarks.paper``.

The signals are stored ones of a logistic regression; the process that runs the account has no model in it. At its end
nothing may have grown, nothing may be open, a new start must derive every row again, and so must a backtest that is
told what befell the account.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
import gc
import os
from pathlib import Path
import random

import psutil

from benchmarks.accounts import Asked, ledger_hash, opened, say, timed, verdict
from feeds import builtin
from models.processes import Background
from trader import engine, running
from trader.account import Accounts, abstentions_of, controls_of
from trader.clock import Calendar, WallClock
from trader.errors import TimeError, TraderError
from trader.ledger import Ledger
from trader.outcome import Home
from trader.paper import Service
from trader.running import World
from trader.store import MarketStore

EVERY = 20  # sessions from one fault to the next
FAULTS = (
    "restart", "late bar", "missing bar", "halt", "flatten", "late decision", "asleep", "stale feed", "double wake-up",
    "clock back",
)  # fmt: skip


class Wayward:
    """A clock that may be put anywhere, backwards too."""

    def __init__(self, instant: datetime) -> None:
        self.instant = instant

    def now(self) -> datetime:
        return self.instant


def faults_of(days: Sequence[date], seed: int) -> dict[int, str]:
    """Draw a fault for every twentieth session, each kind as often as the others, by position."""
    at = range(EVERY, len(days) - 1, EVERY)
    kinds = [FAULTS[number % len(FAULTS)] for number in range(len(at))]
    random.Random(seed).shuffle(kinds)
    return dict(zip(at, kinds, strict=True))


def faulty_store(home: Path, days: Sequence[date], faults: dict[int, str]) -> None:
    """Fill a store with the S&P 500, some of whose bars come three hours late or never."""
    kind_of = {days[at]: kind for at, kind in faults.items()}
    bars = [bar for bar in builtin.bars("sp500") if kind_of.get(bar.session) != "missing bar"]
    for number, bar in enumerate(bars):
        if kind_of.get(bar.session) == "late bar":
            bars[number] = replace(bar, known_at=bar.known_at + timedelta(hours=3))
    Home(home).make()
    with MarketStore.open(Home(home).store) as store:
        store.add_bars(bars, source="arch, with faults")


def held() -> tuple[int, int, list[str]]:
    """Return resident bytes, the number of threads, and what is open, of this process."""
    gc.collect()
    process = psutil.Process()
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return process.memory_info().rss, process.num_threads(), sorted(found)


class Soak:
    """One account's service, driven through its sessions and the faults; ``troubles`` is what went wrong."""

    def __init__(self, home: Path, name: str, days: Sequence[date], faults: dict[int, str]) -> None:
        self._home, self._name, self._days, self._faults = Home(home), name, days, faults
        self._calendar, self._clock = Calendar(), Wayward(Calendar().decide_at(days[0]))
        self._stale: set[date] = set()
        self._asleep_until = -1
        self._resume_at: set[int] = set()
        self.decided, self.troubles = 0, list[str]()

    def world(self) -> World:
        def stale(at: datetime) -> str:
            return "a feed is stale" if self._calendar.session_at(at) in self._stale else ""

        return World(clock=self._clock, patient=True, stale=stale)

    def run(self) -> tuple[int, int]:
        """Go through all sessions; return resident bytes after an eighth of them and at the end."""
        early = 0
        with ExitStack() as stack:
            service = stack.enter_context(running.running(self._home, self._name, self.world()))
            for at in range(len(self._days)):
                if self._faults.get(at) == "restart":
                    stack.close()
                    gc.collect()  # with a real restart the process ends, and all that waits for the collector
                    service = stack.enter_context(running.running(self._home, self._name, self.world()))
                self._session(service, at)
                if at == len(self._days) // 8:
                    early, threads, files = self._held()
            late, more_threads, more_files = self._held()
            if (threads, len(files)) != (more_threads, len(more_files)):
                self.troubles.append(
                    f"{threads} threads and {len(files)} files became {more_threads} and {len(more_files)}"
                )
        return early, late

    def _held(self) -> tuple[int, int, list[str]]:
        # SQLite keeps the file of a second connection to a locked database for the next one: let there be one.
        with Ledger.open(self._home.ledger):
            pass
        return held()

    def _session(self, service: Service, at: int) -> None:
        kind, session = self._faults.get(at, ""), self._days[at]
        if kind == "asleep":
            self._asleep_until = min(at + EVERY - 5, len(self._days) - 1)
        if at < self._asleep_until:
            return
        if at in self._resume_at:
            self._ask("resume")
        if kind in ("halt", "flatten"):
            self._ask(kind)
            self._resume_at.add(at + 5)
        if kind == "stale feed":
            self._stale.add(session)
        if kind == "clock back":
            self._clock.instant = self._calendar.decide_at(self._days[at - 1]) - timedelta(hours=1)
            try:
                service.run_due()
                self.troubles.append(f"{session}: decided on a clock before its newest record")
            except TimeError:
                pass
        late = kind == "late decision"
        self._clock.instant = self._calendar.open_at(self._days[at + 1]) if late else self._calendar.decide_at(session)
        self.decided += service.run_due()
        if kind == "double wake-up" and service.run_due():
            self.troubles.append(f"{session}: decided twice")

    def _ask(self, kind: str) -> None:
        """Ask as the command line does, by a connection of its own."""
        with Ledger.open(self._home.ledger, synchronous="FULL") as ledger:
            accounts = Accounts(ledger, self._clock)
            accounts.request(accounts.get(self._name), kind)


def soak_process(home: Path, name: str, days: Sequence[date], faults: dict[int, str]) -> list[str]:
    """Drive the account in this process, start it once more, and return what is wrong."""
    _, threads, files = held()
    one = Soak(home, name, days, faults)
    (early, late), seconds = timed(one.run)
    growth = late / early - 1
    say(f"  {one.decided:,} of {len(days):,} sessions decided in {seconds:.1f} s")
    say(f"  resident {early / 2**20:.1f} MiB after an eighth, {late / 2**20:.1f} MiB at the end: {growth:+.1%}")
    try:
        with running.running(Home(home), name, one.world()):
            say("  a new start derives every row again")
    except TraderError as error:
        one.troubles.append(str(error))
    _, more_threads, more_files = held()
    say(f"  threads {threads} before, {more_threads} after; files {len(files)} before, {len(more_files)} after")
    checks = {
        f"{one.decided} sessions decided": one.decided == len(days),
        f"resident memory grew by {growth:.1%}": growth < 0.05,
        f"threads left: {more_threads - threads}": more_threads <= threads,
        f"files left: {[file for file in more_files if file not in files]}": len(more_files) <= len(files),
    }
    return [*one.troubles, *(what for what, fine in checks.items() if not fine)]


def soak(asked: Asked) -> bool:
    home, days = asked.home / "soak", Calendar().sessions(asked.first, asked.last)
    faults, config = faults_of(days, asked.seed), asked.config({"model": "logistic"})
    faulty_store(home, days, faults)
    made, seconds = timed(lambda: engine.backtest(config, home, days[0], days[-1]))
    say(f"  signals of {len(days):,} sessions: {seconds:.1f} s; {len(faults)} faults")
    account = opened(home, "soak", config, days[0], made.run)
    process = Background(soak_process, home, "soak", days, faults)  # with nothing in it but what an account needs
    try:
        troubles = process.result()
    finally:
        process.close()
    with Ledger.open(Home(home).ledger, read_only=True) as ledger:
        events = Accounts(ledger, WallClock()).events(account)
    befell = {"controls": controls_of(events), "abstain": abstentions_of(events)}
    again = engine.backtest(config, home, days[0], days[-1], **befell)
    same = again.ledger_hash == ledger_hash(home, account.run)
    say(f"  a backtest with its {len(events)} events writes {'the same rows' if same else 'OTHER ROWS'}")
    troubles += [] if same else [f"account run {account.run} is not backtest run {again.run}"]
    return verdict("soak", "no divergence, no growth, nothing left open", troubles)
