"""The record of experiments, in the ledger: one row a cell, with what it said on each of its test days.

A cell is method × market × lookback × protocol × split × seed × setting on given data and code; its name is the hash of
all that, so a cell that is there is never made again, whichever experiment asks. ``trader.experiment`` writes, one
transaction a cell; ``trader.experiment_tables`` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
import json
from pathlib import Path
from typing import Any, Literal

from trader.clock import Clock, WallClock
from trader.errors import NoData
from trader.events import from_us, to_us
from trader.ledger_schema import connect, immediate, plain, store_errors

TABLES = (
    """
CREATE TABLE IF NOT EXISTS experiments (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,                 -- the paper: finin or msmf
  request TEXT NOT NULL,              -- JSON: what was asked for, all settings in it
  request_hash TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'stopped')),
  facts TEXT NOT NULL,                -- JSON: what was found on the way (spans, windows, settings chosen)
  started_at INTEGER NOT NULL,        -- µs UTC
  finished_at INTEGER                 -- µs UTC; null while running, and after a kill
) STRICT""",
    """
CREATE TABLE IF NOT EXISTS cells (
  cell TEXT PRIMARY KEY,              -- sha256 of all that shapes it: data, code, settings, spans, seed
  method TEXT NOT NULL,               -- this and the next ones: the place that it was first made for;
  market TEXT NOT NULL,               -- experiment_cells has those that show it
  target TEXT NOT NULL,               -- next_day or same_day
  lookback INTEGER NOT NULL,          -- sessions
  protocol TEXT NOT NULL,             -- trial (validation only), windows or walkforward
  split INTEGER NOT NULL,             -- 0, 1, 2 …: which window or fold
  seed INTEGER NOT NULL,
  setting TEXT NOT NULL,              -- JSON: what differs from the model's defaults
  train_first TEXT NOT NULL, train_last TEXT NOT NULL,
  validation_first TEXT NOT NULL, validation_last TEXT NOT NULL,
  validation_loss REAL,               -- log loss, nats
  validation_accuracy REAL,           -- share
  epochs INTEGER NOT NULL,
  best_epoch INTEGER NOT NULL,
  seconds REAL NOT NULL,              -- of the processor, for training and forecast
  made_at INTEGER NOT NULL            -- µs UTC
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE IF NOT EXISTS cell_days (
  cell TEXT NOT NULL REFERENCES cells(cell),
  session TEXT NOT NULL,
  p_up REAL NOT NULL,
  expected_return REAL,               -- null where the model gives none
  side INTEGER NOT NULL CHECK (side IN (-1, 0, 1)),
  target_return REAL NOT NULL,        -- of the session after, or of the same one
  PRIMARY KEY (cell, session)
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE IF NOT EXISTS cell_panel_days (  -- of a cell over many symbols, in place of cell_days
  cell TEXT NOT NULL REFERENCES cells(cell),
  session TEXT NOT NULL,
  symbol TEXT NOT NULL,
  p_up REAL NOT NULL,
  expected_return REAL,
  side INTEGER NOT NULL CHECK (side IN (-1, 0, 1)),
  target_return REAL NOT NULL,
  PRIMARY KEY (cell, session, symbol)
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE IF NOT EXISTS experiment_cells (
  experiment INTEGER NOT NULL REFERENCES experiments(id),
  method TEXT NOT NULL,               -- the row, and the rest of the place that the experiment shows the cell at;
  market TEXT NOT NULL,               -- one cell may stand at several
  lookback INTEGER NOT NULL,
  protocol TEXT NOT NULL,
  split INTEGER NOT NULL,
  seed INTEGER NOT NULL,              -- 0, 1, 2 … of this experiment
  setting TEXT NOT NULL,
  cell TEXT NOT NULL REFERENCES cells(cell),
  PRIMARY KEY (experiment, method, market, lookback, protocol, split, seed, setting)
) STRICT, WITHOUT ROWID""",
)

Status = Literal["finished", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFacts:
    """What a cell is; see the columns of the table ``cells``."""

    cell: str
    method: str
    market: str
    target: str
    lookback: int
    protocol: str
    split: int
    seed: int
    setting: str
    train_first: str
    train_last: str
    validation_first: str
    validation_last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What came out of a cell: how the training went, and one row a test day (none for a trial).

    days: session, p_up, expected return or None, side, target return.   panel: of a cell over many symbols, the same
        with the symbol after the session.
    """

    validation_loss: float | None
    validation_accuracy: float | None
    epochs: int
    best_epoch: int
    seconds: float
    days: Sequence[tuple[str, float, float | None, int, float]]
    panel: Sequence[tuple[str, str, float, float | None, int, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRow:
    """An experiment as it is recorded; ``request`` and ``facts`` are plain dicts."""

    id: int
    name: str
    request: Mapping[str, Any]
    status: str
    facts: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None


class Cells:
    """Experiments and their cells in a ledger file, open. Use as a context manager, from one thread."""

    def __init__(self, db: Any, path: Path, clock: Clock) -> None:
        self._db, self._conn, self._path, self._clock = db, db.conn, path, clock

    @classmethod
    def open(cls, path: Path, *, clock: Clock | None = None) -> Cells:
        """Open the ledger, making file and tables where they are missing; raise StoreError where that cannot be."""
        db = connect(path)
        with store_errors(path), immediate(db.conn):
            for statement in TABLES:
                db.conn.execute(statement)
        return cls(db, path, clock or WallClock())

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        with store_errors(self._path):
            self._db.close()

    # Experiments

    def begin(self, name: str, request: Mapping[str, Any], request_hash: str) -> int:
        """Return the number of the experiment of this request: the newest there is, else a new one, running."""
        found = self._query("SELECT id FROM experiments WHERE request_hash = ? ORDER BY id DESC LIMIT 1", request_hash)
        with store_errors(self._path), immediate(self._conn):
            if found:
                number = int(found[0]["id"])
                self._conn.execute("UPDATE experiments SET status = 'running' WHERE id = ?", (number,))
                return number
            written = json.dumps(request, sort_keys=True)
            sql = (
                "INSERT INTO experiments (name, request, request_hash, status, facts, started_at) "
                "VALUES (?, ?, ?, 'running', '{}', ?)"
            )
            cursor = self._conn.execute(sql, (name, written, request_hash, to_us(self._clock.now())))
            return int(cursor.lastrowid or 0)

    def note(self, experiment: int, facts: Mapping[str, Any]) -> None:
        """Write what an experiment found on the way, in place of what was noted before."""
        with store_errors(self._path), immediate(self._conn):
            self._conn.execute("UPDATE experiments SET facts = ? WHERE id = ?", (json.dumps(facts), experiment))

    def end(self, experiment: int, status: Status) -> None:
        """Write how an experiment ended."""
        with store_errors(self._path), immediate(self._conn):
            sql = "UPDATE experiments SET status = ?, finished_at = ? WHERE id = ?"
            self._conn.execute(sql, (status, to_us(self._clock.now()), experiment))

    def stop(self, experiment: int) -> None:
        """Write that an experiment was stopped; forget one that has nothing to show yet."""
        if self._query("SELECT 1 FROM experiment_cells WHERE experiment = ? LIMIT 1", experiment):
            self.end(experiment, "stopped")
            return
        with store_errors(self._path), immediate(self._conn):
            self._conn.execute("DELETE FROM experiments WHERE id = ?", (experiment,))

    def experiment(self, number: int | str = "latest", name: str = "", *, unfinished: bool = False) -> ExperimentRow:
        """Return an experiment by its number, or the newest (that is not finished); raise NoData if there is none.

        name: only one of this paper, "" for any.
        """
        wanted = [("id = ?", number)] if number != "latest" else []
        wanted += [("name = ?", name)] if name else []
        clauses = [clause for clause, _ in wanted] + ["status != 'finished'"] * (unfinished and number == "latest")
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        sql = f"SELECT * FROM experiments {where} ORDER BY id DESC LIMIT 1"
        rows = self._query(sql, *(value for _, value in wanted))
        if not rows:
            of = "WHERE name = ?" if name else ""
            found = self._query(f"SELECT id FROM experiments {of} ORDER BY id", *([name] if name else []))
            known, paper = ", ".join(str(row["id"]) for row in found), name or "finin"
            start = f"start one: python -m trader experiment {paper} --news NAME"
            if unfinished or not known:
                what = "no experiment waits to be resumed" if unfinished else "there is no experiment yet"
                raise NoData(what, where=self._path, do=start)
            raise NoData("no such experiment", where=self._path, got=number, expected=f"one of {known}, or latest")
        return _experiment(rows[0])

    def finished(self, request_hash: str) -> ExperimentRow | None:
        """Return the newest finished experiment of this request, if there is one."""
        sql = "SELECT * FROM experiments WHERE request_hash = ? AND status = 'finished' ORDER BY id DESC LIMIT 1"
        rows = self._query(sql, request_hash)
        return _experiment(rows[0]) if rows else None

    # Cells

    def has(self, cells: Iterable[str] | None) -> set[str]:
        """Return which of these cells are there; None asks for all."""
        known = {row["cell"] for row in self._query("SELECT cell FROM cells")}
        return known if cells is None else known & set(cells)

    def whole(self, experiment: int) -> list[dict[str, Any]]:
        """Return the cells that an experiment shows, each once, with all columns of its own, by name."""
        sql = "SELECT * FROM cells WHERE cell IN (SELECT cell FROM experiment_cells WHERE experiment = ?) ORDER BY cell"
        return self._query(sql, experiment)

    def write(self, facts: CellFacts, result: CellResult) -> None:
        """Write one cell with its test days, all or nothing; one that is there already stays as it is."""
        row = (
            *(getattr(facts, name) for name in CellFacts.__slots__),
            result.validation_loss,
            result.validation_accuracy,
            result.epochs,
            result.best_epoch,
            result.seconds,
            to_us(self._clock.now()),
        )
        days = [plain((facts.cell, *day), f"cell {facts.method} {day[0]}") for day in result.days]
        panel = [plain((facts.cell, *day), f"cell {facts.method} {day[0]} {day[1]}") for day in result.panel]
        with store_errors(self._path), immediate(self._conn):
            marks = ", ".join("?" * len(row))
            added = self._conn.execute(f"INSERT OR IGNORE INTO cells VALUES ({marks})", plain(row, facts.method))
            if added.rowcount:
                self._conn.executemany("INSERT INTO cell_days VALUES (?, ?, ?, ?, ?, ?)", days)
                self._conn.executemany("INSERT INTO cell_panel_days VALUES (?, ?, ?, ?, ?, ?, ?)", panel)

    def show(self, experiment: int, places: Iterable[CellFacts]) -> None:
        """Let the experiment show, of these places, those whose cells are there, and nothing else."""
        known = {row["cell"] for row in self._query("SELECT cell FROM cells")}
        rows = {
            (experiment, one.method, one.market, one.lookback, one.protocol, one.split, one.seed, one.setting): one.cell
            for one in places
            if one.cell in known
        }
        with store_errors(self._path), immediate(self._conn):
            self._conn.execute("DELETE FROM experiment_cells WHERE experiment = ?", (experiment,))
            sql = "INSERT INTO experiment_cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            self._conn.executemany(sql, [(*place, cell) for place, cell in rows.items()])

    def add(self, experiment: int, one: CellFacts) -> None:
        """Let the experiment show one more cell, which is there, at its place."""
        row = (experiment, one.method, one.market, one.lookback, one.protocol, one.split, one.seed, one.setting)
        with store_errors(self._path), immediate(self._conn):
            sql = "INSERT OR REPLACE INTO experiment_cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            self._conn.execute(sql, (*row, one.cell))

    def of(self, experiment: int) -> list[dict[str, Any]]:
        """Return an experiment's cells, each as a dict of its place in the experiment and of its own columns."""
        # By name: the place is the experiment's, for the cell may have been made for another one.
        sql = """SELECT e.method, e.market, e.lookback, e.protocol, e.split, e.seed, e.setting, c.cell, c.target,
                        c.train_first, c.train_last, c.validation_first, c.validation_last, c.validation_loss,
                        c.validation_accuracy, c.epochs, c.best_epoch, c.seconds
                 FROM experiment_cells e JOIN cells c USING (cell) WHERE e.experiment = ?
                 ORDER BY e.method, e.market, e.lookback, e.protocol, e.split, e.seed, e.setting"""
        return self._query(sql, experiment)

    def loss(self, cell: str) -> float | None:
        """Return a cell's validation log loss, None where it is not there or has none."""
        rows = self._query("SELECT validation_loss FROM cells WHERE cell = ?", cell)
        return rows[0]["validation_loss"] if rows else None

    def days(self, cell: str) -> list[dict[str, Any]]:
        """Return a cell's test days, oldest first; of a cell over many symbols each symbol's, with its name."""
        panel = self._query("SELECT * FROM cell_panel_days WHERE cell = ? ORDER BY session, symbol", cell)
        return panel or self._query("SELECT * FROM cell_days WHERE cell = ? ORDER BY session", cell)

    def _query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        with store_errors(self._path):
            return list(self._db.query(sql, values))


def _experiment(row: Mapping[str, Any]) -> ExperimentRow:
    return ExperimentRow(
        id=row["id"],
        name=row["name"],
        request=json.loads(row["request"]),
        status=row["status"],
        facts=json.loads(row["facts"]),
        started_at=from_us(row["started_at"]),
        finished_at=from_us(row["finished_at"]) if row["finished_at"] is not None else None,
    )
