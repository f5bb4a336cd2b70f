"""Cells travel between machines in a file: the same cells arrive, and the experiment there has nothing left to make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
import gzip
import json
from pathlib import Path
import shutil
import sqlite3

import pytest

from tests import builders
from tests.test_experiment import REQUEST, SESSIONS, config, readers
from trader import experiment
from trader.cell_files import export, take_in
from trader.cells import Cells, ExperimentRow
from trader.errors import BadFile, NoData
from trader.experiment_tables import measure
from trader.store import MarketStore

SMALL = replace(REQUEST, only=("logistic",))


@pytest.fixture(scope="module", params=["next_day", "same_day"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, str]]:
    """A home with a finished experiment, and the file of its cells."""
    home = builders.a_home(tmp_path_factory.mktemp("here"), SESSIONS)
    run(home, request.param)
    file = home / "cells.gz"
    with Cells.open(home / "ledger.db") as cells:
        assert export(cells, "latest", file) > 0
    yield home, file, request.param


def run(home: Path, target: str) -> ExperimentRow:
    return experiment.run(config(), home, replace(SMALL, target=target), readers=readers)  # type: ignore[arg-type]


def taken(home: Path, file: Path) -> tuple[int, int]:
    with Cells.open(home / "ledger.db") as cells, MarketStore.open(home / "market.db") as store:
        return take_in(cells, file, store)


def rows(home: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(home / "ledger.db") as connection:
        found = connection.execute("SELECT * FROM cell_days ORDER BY cell, session").fetchall()
        names = [row[1] for row in connection.execute("PRAGMA table_info(cells)") if row[1] != "made_at"]
        return found + connection.execute(f"SELECT {', '.join(names)} FROM cells ORDER BY cell").fetchall()


def elsewhere(home: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(home / "market.db", folder / "market.db")
    return folder


def test_cells_arrive_bit_for_bit_and_nothing_is_left_to_make(made: tuple[Path, Path, str], tmp_path: Path) -> None:
    home, file, target = made
    there = elsewhere(home, tmp_path / "there")
    held, new = taken(there, file)
    assert held == new > 0
    assert rows(there) == rows(home)
    with sqlite3.connect(there / "ledger.db") as connection:
        connection.execute("UPDATE cells SET made_at = 7")
    row = run(there, target)
    assert row.status == "finished"
    with sqlite3.connect(there / "ledger.db") as connection:
        assert connection.execute("SELECT DISTINCT made_at FROM cells").fetchall() == [(7,)], "not one was trained"
    with Cells.open(home / "ledger.db") as here, Cells.open(there / "ledger.db") as cells:
        assert measure(cells, row).figures == measure(here, here.experiment()).figures


def test_taking_a_file_in_twice_adds_nothing_and_its_bytes_do_not_change(
    made: tuple[Path, Path, str], tmp_path: Path
) -> None:
    home, file, _ = made
    there = elsewhere(home, tmp_path / "there")
    held, _ = taken(there, file)
    assert taken(there, file) == (held, 0)
    again = tmp_path / "again.gz"
    with Cells.open(home / "ledger.db") as cells:
        export(cells, 1, again)
    assert again.read_bytes() == file.read_bytes()


def test_no_price_is_in_the_file(made: tuple[Path, Path, str]) -> None:
    lines = gzip.decompress(made[1].read_bytes()).decode().splitlines()
    days = [day for line in lines[1:] for day in json.loads(line)["days"]]
    assert days and all(len(day) == 3 for day in days)
    assert "return" not in {key for line in lines[1:] for key in json.loads(line)}


def test_a_file_that_is_cut_off_damaged_or_another_is_refused_in_one_line(
    made: tuple[Path, Path, str], tmp_path: Path
) -> None:
    home, file, _ = made
    there = elsewhere(home, tmp_path / "there")
    whole = gzip.decompress(file.read_bytes()).decode().splitlines()
    bad = tmp_path / "bad.gz"
    for text, said in (
        ("\n".join(whole[:-1]) + "\n", "bad.gz: the file is cut off"),
        ("{}\n", "bad.gz: not a file of cells"),
        ("", "bad.gz: not a file of cells"),
        (whole[0] + '\n{"cell": "x"}\n', "bad.gz line 2: a line that is no cell"),
        ("hello\n", "bad.gz: cannot be read as a file of cells"),
    ):
        bad.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(BadFile, match=said):
            taken(there, bad)
    bad.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(BadFile, match="cannot be read as a file of cells"):
        taken(there, bad)
    bad.write_bytes(b"not gzip at all")
    with pytest.raises(BadFile, match="cannot be read as a file of cells"):
        taken(there, bad)


def test_cells_of_a_market_without_prices_say_what_to_import(made: tuple[Path, Path, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with MarketStore.open(empty / "market.db"):
        pass
    with pytest.raises(NoData, match=r"no bars of a market that the cells are of \(got toy\); import its prices first"):
        taken(empty, made[1])


def test_cells_of_a_built_in_market_need_no_import_of_its_prices(made: tuple[Path, Path, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "sp500.gz"
    file.write_bytes(gzip.compress(gzip.decompress(made[1].read_bytes()).replace(b'"toy"', b'"sp500"')))
    held, new = taken(empty, file)
    assert held == new > 0
