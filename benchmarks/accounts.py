"""What the parts of ``benchmarks.paper`` share: settings, accounts to compare, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
import shutil
import sqlite3
import time
from typing import Any

from trader import running
from trader.account import Account, Accounts
from trader.clock import WallClock
from trader.config import Config, from_mapping
from trader.ledger import Ledger
from trader.model_source import VERDICTS
from trader.outcome import Home
from trader.running import World


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    home: Path
    first: date
    last: date
    workers: int
    kills: int
    training_kills: int
    seed: int

    def config(self, run: dict[str, Any], **sections: dict[str, Any]) -> Config:
        """Return the defaults with these changes, and without what a ledger's rows do not hang on."""
        fixed = {"compute": {"workers": self.workers}, "evaluation": {"resamples": 100, "rivals": []}}
        return from_mapping({"run": run, **fixed, **sections}, "benchmarks.paper")


def say(text: str) -> None:
    print(text, flush=True)


def verdict(part: str, promise: str, troubles: Sequence[str]) -> bool:
    """Print whether a part's promise holds."""
    for trouble in troubles:
        say(f"  {trouble}")
    say(f"{part}: {promise}: {'holds' if not troubles else f'DOES NOT HOLD ({len(troubles)} troubles)'}")
    return not troubles


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def opened(home: Path, name: str, config: Config, first: date, signals: int | None = None) -> Account:
    source = None if signals is None else str(signals)
    return running.open_account(Home(home), name, config, WallClock(), first=first, signals_run=source)


def replayed(home: Path, name: str, last: date) -> int:
    return running.replay(Home(home), name, None, last, lambda clock: World(clock=clock, patient=True))


def ledger_hash(home: Path, run: int) -> str:
    with Ledger.open(Home(home).ledger, read_only=True) as ledger:
        return ledger.ledger_hash(run)


def trainings(home: Path, name: str) -> int:
    """Count the models that an account trained, adopted or not."""
    with Ledger.open(Home(home).ledger, read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        return sum(event.kind in VERDICTS for event in accounts.events(accounts.get(name)))


def copied(home: Path, other: Path) -> None:
    """Make another home of the same market and the same embeddings, without a model and without a ledger."""
    if not other.exists():
        other.mkdir(parents=True)
        shutil.copytree(home / "cache", other / "cache")
        with sqlite3.connect(home / "market.db") as source, sqlite3.connect(other / "market.db") as target:
            source.backup(target)
