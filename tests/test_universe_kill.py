"""A service of many symbols that is killed, at every kind of boundary, ends with the rows of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import sqlite3
import subprocess
import sys
from typing import Any

import pytest

from tests import a_universe, builders
from tests.a_universe import FIRST, LAST, POOLED, TINY, backtest, config, rows, the_same
from trader import running
from trader.clock import SimulatedClock
from trader.outcome import Home

AT_THE_CLOSE = {"inputs": {"decide_minutes": 0}}  # the harness rings then


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, int]]]:
    """A home with a finished run of each kind of model, and the numbers of those runs."""
    folder = a_universe.fill(tmp_path_factory.mktemp("kill"))
    yield folder, {model: backtest(folder, model, **AT_THE_CLOSE).run for model in (TINY, POOLED)}


def opened(home: Path, name: str, model: str, signals: str | None) -> int:
    clock, made = SimulatedClock(builders.NOW), config(model, **AT_THE_CLOSE)
    return running.open_account(Home(home), name, made, clock, first=FIRST, signals_run=signals).run


def killed(home: Path, account: str, *words: str, **how: object) -> dict[str, Any]:
    asked = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.kill_harness", str(home), account, str(LAST), *asked, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode in ((0, 3) if "--tiny" in words else (0,)), done.stderr[-2000:]  # 3: torch was loaded
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def whole(home: Path) -> bool:
    with sqlite3.connect(home / "ledger.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    return not [path.name for path in home.rglob("*") if path.name.startswith((".part-", "tmp"))]


@pytest.mark.parametrize(
    ("kind", "times", "most"), [("transaction", 6, 60), ("transaction", 6, 12), ("job", 4, 15), ("instant", 15, 7)]
)
def test_a_killed_service_ends_with_the_rows_of_an_undisturbed_one(
    home: tuple[Path, dict[str, int]], kind: str, times: int, most: int
) -> None:
    folder, runs = home
    account = f"{kind}{most}"
    run = opened(folder, account, TINY, str(runs[TINY]))
    said = killed(folder, account, kind=kind, times=times, most=most, seed=most)
    assert said["killed"] == times and said["torch"] is False
    the_same(rows(folder, run), rows(folder, runs[TINY]))
    assert whole(folder)


@pytest.mark.parametrize("model", [TINY, POOLED])
def test_a_killed_service_goes_on_with_the_models_that_the_rule_says(
    home: tuple[Path, dict[str, int]], model: str
) -> None:
    folder, runs = home
    name = "pooled" if model == POOLED else "each"
    run = opened(folder, name, model, None)
    said = killed(folder, name, "--tiny", kind="transaction", times=6, most=30, seed=3)
    assert said["killed"] == 6
    the_same(rows(folder, run), rows(folder, runs[model]))
    assert whole(folder)
    with sqlite3.connect(folder / "ledger.db") as connection:
        sql = """SELECT e.session, coalesce(symbol, '') FROM account_events e LEFT JOIN event_symbols USING (run, seq)
                 WHERE run = ? AND kind = 'adopted'"""
        told = connection.execute(sql, (run,)).fetchall()
    assert len(told) == len(set(told)) >= 5, "each training is told once"


def test_the_harness_would_see_a_session_that_is_left_out(home: tuple[Path, dict[str, int]]) -> None:
    folder, runs = home
    run = opened(folder, "shorter", TINY, str(runs[TINY]))
    last = a_universe.DAYS[117]
    running.replay(Home(folder), "shorter", None, last, lambda clock: running.World(clock=clock, patient=True))
    assert rows(folder, run)["equity"] == rows(folder, runs[TINY])["equity"][:-1]
