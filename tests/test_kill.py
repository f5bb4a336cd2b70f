"""A service that is killed, at every kind of boundary and at any instant, ends with the rows of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
import json
from pathlib import Path
import sqlite3
import subprocess
import sys
from typing import Any

import pytest

from tests import builders
from tests.test_paper import TINY, an_account, backtest, ledger_hash, replayed

SESSIONS = 390  # 140 of history and 250 that are replayed
DAYS = builders.sessions(SESSIONS)
FIRST, LAST = DAYS[139], DAYS[388]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A home with a finished run, whose signals accounts trade, and the hash of an undisturbed account of them."""
    folder = builders.a_home(tmp_path_factory.mktemp("kill"), SESSIONS)
    backtest(folder, model=TINY, first=FIRST, last=LAST)
    run = an_account(folder, "undisturbed", first=FIRST, signals="1", model=TINY)
    assert replayed(folder, "undisturbed", last=LAST) == 250
    yield folder, ledger_hash(folder, run)


def killed(home: Path, account: str, *flags: str, last: date = LAST, **how: object) -> dict[str, Any]:
    words = [*flags, *(word for name, value in how.items() for word in (f"--{name}", str(value)))]
    command = [sys.executable, "-m", "tests.kill_harness", str(home), account, str(last), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 3), done.stderr[-2000:]  # 3: through, and with torch
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize(
    ("kind", "times", "most"), [("transaction", 5, 150), ("transaction", 5, 12), ("job", 5, 40), ("instant", 50, 7)]
)
def test_a_killed_service_ends_with_the_rows_of_an_undisturbed_one(
    home: tuple[Path, str], kind: str, times: int, most: int
) -> None:
    folder, undisturbed = home
    account = f"{kind}{most}"
    run = an_account(folder, account, first=FIRST, signals="1", model=TINY)
    said = killed(folder, account, kind=kind, times=times, most=most, seed=most)
    assert said["killed"] == times
    if kind == "instant":
        assert said["advanced"] > times / 4, "a service that is killed before it decides anything tries little"
    assert said["torch"] is False, "stored signals need no model"
    assert ledger_hash(folder, run) == undisturbed
    assert_whole(folder)


def assert_whole(home: Path) -> None:
    """No half of anything: in the ledger, and among the files."""
    with sqlite3.connect(home / "ledger.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert [path.name for path in home.rglob("*") if path.name.startswith((".part-", "tmp"))] == []


@pytest.mark.parametrize(("kind", "times", "most", "last"), [("transaction", 3, 16, 128), ("training", 1, 600, 118)])
def test_an_account_of_msmf_that_is_killed_ends_with_the_rows_of_its_backtest(
    tmp_path: Path, kind: str, times: int, most: int, last: int
) -> None:
    span = {"first": DAYS[116], "last": DAYS[last]}
    expected = backtest(builders.a_home(tmp_path / "backtest"), model="msmf", **span).ledger_hash
    # An account beside the backtest finds its models there; in a home of its own it trains them, and is killed at that.
    home = tmp_path / "backtest" if kind != "training" else builders.a_home(tmp_path / "account")
    run = an_account(home, first=DAYS[116], model="msmf")
    said = killed(home, "acct", "--tiny", last=DAYS[last], kind=kind, times=times, most=most, seed=3)
    assert said["killed"] == times and said["torch"] is True
    assert ledger_hash(home, run) == expected
    replayed(home, last=DAYS[last])  # a start sweeps away what a killed training left
    assert_whole(home)


def test_the_harness_would_see_a_service_that_decides_twice_or_leaves_one_out(home: tuple[Path, str]) -> None:
    folder, undisturbed = home
    run = an_account(folder, "shorter", first=FIRST, signals="1", model=TINY)
    replayed(folder, "shorter", last=DAYS[387])
    assert ledger_hash(folder, run) != undisturbed
    with pytest.raises(sqlite3.IntegrityError), sqlite3.connect(folder / "ledger.db") as connection:
        row = connection.execute("SELECT * FROM decisions WHERE run = ? LIMIT 1", (run,)).fetchone()
        connection.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?)", row)


def test_the_days_are_those_of_the_issue() -> None:
    assert len([day for day in DAYS if FIRST <= day <= LAST]) == 250
    assert isinstance(FIRST, date)
