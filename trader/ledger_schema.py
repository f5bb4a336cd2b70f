"""The tables of the ledger, and the only place where SQLite's errors become ours; ``trader.ledger`` stands on it.

Every table but ``runs`` has a natural key and only ever grows: a session is written once and never changed, and an
order's outcome is not an update but its fills, joined by the view ``trades``. Sessions are ISO dates, instants are
µs since 1970 UTC, money is in the market's currency, sizes are units of the symbol (negative = sell or short).
The comments of the script are kept by SQLite, so whoever opens the file by another tool reads them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from datetime import date
import math
from pathlib import Path
import sqlite3
from typing import TYPE_CHECKING

from trader.errors import NoData, StoreError, TimeError
from trader.interrupts import HeldInterrupt
from trader.records import Verdict
from trader.store_schema import use_wal

if TYPE_CHECKING:
    from sqlite_utils import Database

VERSION = 1

TABLES = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,                 -- backtest or paper
  status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'stopped', 'failed')),
  started_at INTEGER NOT NULL,        -- µs UTC
  finished_at INTEGER,                -- µs UTC; null while running, and for ever after a kill
  config TEXT NOT NULL,               -- the whole config.toml of the run, as it was used
  seed INTEGER NOT NULL,
  code_version TEXT NOT NULL,
  first_session TEXT NOT NULL,        -- span of the data used, warm-up included
  last_session TEXT NOT NULL,
  data_hash TEXT NOT NULL,
  market TEXT NOT NULL,
  news TEXT NOT NULL,
  model TEXT NOT NULL,
  strategy TEXT NOT NULL,
  execution TEXT NOT NULL,            -- next_open, next_close or close
  ledger_hash TEXT                    -- sha256, see Ledger.ledger_hash
) STRICT;

CREATE TABLE folds (
  run INTEGER NOT NULL REFERENCES runs(id),
  fold INTEGER NOT NULL,
  model_id TEXT NOT NULL,
  train_first TEXT NOT NULL, train_last TEXT NOT NULL,
  validation_first TEXT NOT NULL, validation_last TEXT NOT NULL,
  use_first TEXT NOT NULL, use_last TEXT NOT NULL,
  validation_loss REAL,               -- log loss, nats
  validation_accuracy REAL,           -- share
  epochs INTEGER NOT NULL,
  train_seconds REAL NOT NULL,        -- wall time
  cached INTEGER NOT NULL,            -- 1 where the model came from the cache
  PRIMARY KEY (run, fold)
) STRICT, WITHOUT ROWID;

CREATE TABLE signals (
  run INTEGER NOT NULL REFERENCES runs(id),
  session TEXT NOT NULL,
  symbol TEXT NOT NULL,
  p_up REAL CHECK (p_up BETWEEN 0 AND 1),  -- P(close(d+1) > close(d)); null where the chain abstained
  side INTEGER NOT NULL CHECK (side IN (-1, 0, 1)),
  model_id TEXT NOT NULL,
  reason TEXT NOT NULL,               -- why it abstained, or ''
  news_count INTEGER NOT NULL,
  effective_news REAL NOT NULL,       -- exp of the entropy of the day's weights, headlines
  PRIMARY KEY (run, session, symbol)
) STRICT, WITHOUT ROWID;

CREATE TABLE news_weights (
  run INTEGER NOT NULL,
  session TEXT NOT NULL,
  symbol TEXT NOT NULL,
  rank INTEGER NOT NULL,              -- 1 = the largest weight
  headline TEXT NOT NULL,
  weight REAL NOT NULL,               -- share of the day's attention
  PRIMARY KEY (run, session, symbol, rank),
  FOREIGN KEY (run, session, symbol) REFERENCES signals(run, session, symbol)
) STRICT, WITHOUT ROWID;

CREATE TABLE orders (
  run INTEGER NOT NULL REFERENCES runs(id),
  session TEXT NOT NULL,              -- in which it was decided
  ref INTEGER NOT NULL,               -- 1, 2, 3 … within the run
  symbol TEXT NOT NULL,
  size REAL NOT NULL,
  status TEXT NOT NULL,               -- how it ended: completed, cut, refused, cancelled, expired, open at end
  reason TEXT NOT NULL,               -- why it was cut, refused or cancelled; flatten: the broker's own; or ''
  PRIMARY KEY (run, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE fills (
  run INTEGER NOT NULL,
  session TEXT NOT NULL,              -- in which it was executed
  ref INTEGER NOT NULL,               -- the order's
  part INTEGER NOT NULL,              -- 1, 2 … within order and session
  symbol TEXT NOT NULL,
  size REAL NOT NULL,
  price REAL NOT NULL,                -- paid or received, slippage in it
  reference_price REAL NOT NULL,      -- the market's, before slippage
  commission REAL NOT NULL,
  slippage_cost REAL NOT NULL,
  PRIMARY KEY (run, ref, session, part),
  FOREIGN KEY (run, ref) REFERENCES orders(run, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE equity (
  run INTEGER NOT NULL REFERENCES runs(id),
  session TEXT NOT NULL,
  equity REAL NOT NULL,               -- net of all costs, at the close
  equity_gross REAL NOT NULL,         -- compounded daily returns with each day's costs added back
  cash REAL NOT NULL,
  position REAL NOT NULL,             -- units held at the close
  exposure REAL NOT NULL,             -- position value over equity
  commission REAL NOT NULL,           -- these four: paid or earned in this session
  slippage REAL NOT NULL,
  borrow REAL NOT NULL,
  interest REAL NOT NULL,
  always_buy_equity REAL NOT NULL,    -- the same account, long every day, same costs
  PRIMARY KEY (run, session)
) STRICT, WITHOUT ROWID;

CREATE TABLE metrics (
  run INTEGER NOT NULL REFERENCES runs(id),
  name TEXT NOT NULL,
  "of" TEXT NOT NULL CHECK ("of" IN ('signals', 'net', 'gross', 'always_buy', 'excess')),
  value REAL, low REAL, high REAL,    -- null where undefined; low and high: 95 % interval
  PRIMARY KEY (run, name, "of")
) STRICT, WITHOUT ROWID;
"""

# Made beside the others when a ledger is opened, so that one from before has it too.
ADDED = {
    "verdicts": """
CREATE TABLE verdicts (
  run INTEGER NOT NULL REFERENCES runs(id),
  fold INTEGER NOT NULL,              -- trainings of the run so far, this one included
  session TEXT NOT NULL,              -- T, at which it was trained; an adopted model decides from the next session on
  newcomer TEXT NOT NULL,             -- model id
  incumbent TEXT NOT NULL,            -- model id of the one in use at T, or ''
  adopted INTEGER NOT NULL CHECK (adopted IN (0, 1)),
  loss_newcomer REAL,                 -- log loss, nats; null where they were not compared
  loss_incumbent REAL,
  sessions INTEGER NOT NULL,          -- on how many sessions they were compared
  reason TEXT NOT NULL,
  PRIMARY KEY (run, fold)
) STRICT, WITHOUT ROWID""",
    "expected_returns": """
CREATE TABLE expected_returns (
  run INTEGER NOT NULL,
  session TEXT NOT NULL,
  symbol TEXT NOT NULL,
  expected_return REAL NOT NULL,      -- of close(d+1) / close(d) − 1; no row where the model forecasts none
  PRIMARY KEY (run, session, symbol),
  FOREIGN KEY (run, session, symbol) REFERENCES signals(run, session, symbol)
) STRICT, WITHOUT ROWID""",
    "holdings": """
CREATE TABLE holdings (
  run INTEGER NOT NULL,
  session TEXT NOT NULL,              -- at whose close it is held
  symbol TEXT NOT NULL,
  size REAL NOT NULL,                 -- units, negative = short, never 0
  price REAL NOT NULL,                -- the newest close, of an earlier session where this one has no bar
  value REAL NOT NULL,                -- size times price
  PRIMARY KEY (run, session, symbol),
  FOREIGN KEY (run, session) REFERENCES equity(run, session)
) STRICT, WITHOUT ROWID""",
    "states": """
CREATE TABLE states (
  run INTEGER NOT NULL REFERENCES runs(id),
  session TEXT NOT NULL,              -- from whose decision on the account is in this state
  state TEXT NOT NULL CHECK (state IN ('ACTIVE', 'REDUCING', 'HALTED')),
  reason TEXT NOT NULL,               -- why it is not ACTIVE, or ''
  PRIMARY KEY (run, session)
) STRICT, WITHOUT ROWID""",
}

VIEWS = {
    # One row an order, with what became of it; price and reference price are means over its parts.
    "trades": """
SELECT o.run, o.ref, o.session AS decided, o.symbol, o.size,
       o.status, o.reason, max(f.session) AS filled, sum(f.size) AS filled_size,
       sum(f.size * f.price) / sum(f.size) AS price,
       sum(f.size * f.reference_price) / sum(f.size) AS reference_price,
       sum(f.commission) AS commission, sum(f.slippage_cost) AS slippage_cost
FROM orders o LEFT JOIN fills f ON f.run = o.run AND f.ref = o.ref
GROUP BY o.run, o.ref""",
    # What `runs` shows: everything short about a run, with its net Sharpe ratio.
    "overview": """
SELECT r.id, r.kind, r.status, datetime(r.started_at / 1000000, 'unixepoch') AS started_utc,
       datetime(r.finished_at / 1000000, 'unixepoch') AS finished_utc,
       r.market, r.news, r.model, r.strategy, r.execution, r.seed,
       (SELECT count(*) FROM equity e WHERE e.run = r.id) AS sessions,
       (SELECT min(session) FROM equity e WHERE e.run = r.id) AS traded_from,
       (SELECT max(session) FROM equity e WHERE e.run = r.id) AS traded_to,
       m.value AS sharpe, m.low AS sharpe_low, m.high AS sharpe_high, r.ledger_hash
FROM runs r LEFT JOIN metrics m ON m.run = r.id AND m.name = 'sharpe' AND m."of" = 'net'""",
}

_NATIVE = {float, int, str, type(None)}

_ADVICE = {
    "SQLITE_BUSY": "wait for the other program that writes to it, then run again",
    "SQLITE_LOCKED": "wait for the other program that writes to it, then run again",
    "SQLITE_FULL": "free some disk space; the sessions written before are kept",
    "SQLITE_IOERR": "check the disk and its free space; the sessions written before are kept",
    "SQLITE_READONLY": "make the file and its folder writable, or choose another home with --home",
    "SQLITE_CANTOPEN": "check that the folder exists and may be written, or choose another home with --home",
    "SQLITE_NOTADB": "move the file away or choose another home with --home",
    "SQLITE_CORRUPT": "move the file away (sqlite3 FILE .recover may save its rows) or choose another home with --home",
}


@contextmanager
def store_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever SQLite or the file system raises inside into one StoreError that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorname", None) or ""
        advice = next((do for name, do in _ADVICE.items() if code.startswith(name)), None)
        raise StoreError(f"the ledger cannot be used: {error}", where=path, do=advice) from error


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block in one transaction that owns the write lock from its start; undo all of it on any exception.

    sqlite-utils' own ``atomic()`` begins DEFERRED, and a deferred reader that turns writer beside another writer
    fails at once, busy timeout or not.
    """
    interrupt = HeldInterrupt()
    interrupt.hold()
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.commit()
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled back by itself
            connection.rollback()
        raise
    finally:
        interrupt.release()


class Transaction(AbstractContextManager[sqlite3.Connection]):
    """One transaction that owns the write lock from its start; one inside another is part of it.

    A Ctrl-C waits until it is over.   undone: called where its rows are undone.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, undone: Callable[[], object]) -> None:
        self._conn, self._path, self._undone = connection, path, undone
        self._outer = False
        self._interrupt = HeldInterrupt()

    def __enter__(self) -> sqlite3.Connection:
        self._outer = self._conn.in_transaction
        if not self._outer:
            self._interrupt.hold()
            try:
                with store_errors(self._path):
                    self._conn.execute("BEGIN IMMEDIATE")
            except BaseException:
                self._interrupt.release()
                raise
        return self._conn

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._outer:
            return
        try:
            with store_errors(self._path):
                try:
                    if error is not None:
                        raise error
                    self._conn.commit()
                except BaseException:
                    self._undo()
                    raise
        finally:
            self._interrupt.release()

    def _undo(self) -> None:
        self._undone()
        if self._conn.in_transaction:  # a full disk has rolled back by itself
            self._conn.rollback()


def connect(path: Path, *, synchronous: str = "NORMAL", read_only: bool = False, wait_seconds: float = 5.0) -> Database:
    """Open a ledger file, making it, its folder and its tables unless read_only.

    wait_seconds: how long a transaction waits for another program that writes.
    Raises NoData where there is nothing to read, StoreError where the file cannot be used.
    """
    from sqlite_utils import Database  # it imports pandas, too slow for --help

    with store_errors(path):
        if read_only and not path.exists():
            raise NoData(
                "there is no ledger yet", where=path, do="run python -m trader backtest first, or open a paper account"
            )
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        mode = "ro" if read_only else "rwc"
        address = f"{path.resolve().as_uri()}?mode={mode}"
        db = Database(sqlite3.connect(address, uri=True, timeout=wait_seconds))
        try:
            db.conn.execute("PRAGMA foreign_keys = ON")
            db.conn.execute(f"PRAGMA synchronous = {synchronous}")
            prepare(db, path)
            if not read_only:
                _add_missing(db)
        except BaseException:
            db.close()
            raise
    return db


def prepare(db: Database, path: Path | str) -> None:
    """Create the tables in an empty file; raise StoreError if the file holds something else."""
    if _is_ours(db, path):
        return
    use_wal(db.conn)
    with immediate(db.conn):
        if _is_ours(db, path):  # another process may have made them while this one waited
            return
        for statement in TABLES.split(";\n"):
            db.conn.execute(statement)
        for name, sql in VIEWS.items():
            db.create_view(name, sql)
        db.conn.execute(f"PRAGMA user_version = {VERSION}")


def _add_missing(db: Database) -> None:
    """Make the tables that a ledger of an earlier code of this version lacks."""

    def lacking() -> list[str]:
        held = {name for (name,) in db.conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return [sql for name, sql in ADDED.items() if name not in held]

    if lacking():
        with immediate(db.conn):
            for sql in lacking():  # again: another process may have made them while this one waited
                db.conn.execute(sql)


def _is_ours(db: Database, path: Path | str) -> bool:
    # One statement, so that no other process makes the tables between the one answer and the other.
    sql = """SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table')
             FROM pragma_user_version"""
    ((found, names),) = db.conn.execute(sql).fetchall()
    tables = names.split(",") if names else []
    if found == VERSION and "runs" in tables:
        return True
    if found or tables:
        raise StoreError(
            "the file is an SQLite database but not a ledger of this version",
            where=path,
            got=f"version {found}, tables {', '.join(tables[:5]) or 'none'}",
            expected=f"version {VERSION}",
            do="move it away or choose another home with --home",
        )
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a run is, stated before it starts; ``config`` is the whole text, the sessions are the data's span."""

    kind: str
    config: str
    seed: int
    code_version: str
    first_session: date
    last_session: date
    data_hash: str
    market: str
    news: str
    model: str
    strategy: str
    execution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldFacts:
    """One trained model: its spans (both ends included), its validation log loss (nats) and accuracy or None."""

    fold: int
    model_id: str
    train_first: date
    train_last: date
    validation_first: date
    validation_last: date
    use_first: date
    use_last: date
    validation_loss: float | None
    validation_accuracy: float | None
    epochs: int
    train_seconds: float
    cached: bool


def row_of(facts: RunFacts | FoldFacts | Verdict) -> dict[str, object]:
    """Turn facts into a row by column: dates to ISO text, flags to 0 and 1."""
    values = {column.name: getattr(facts, column.name) for column in fields(facts)}
    for name, value in values.items():
        if isinstance(value, date):
            values[name] = day(value)
        elif isinstance(value, bool):
            values[name] = int(value)
    return dict(zip(values, plain(tuple(values.values()), type(facts).__name__), strict=True))


def day(session: date) -> str:
    """Return a session as its key; raise TimeError for anything that is more than a date."""
    if type(session) is not date:  # a datetime is a date too, and would be another key
        raise TimeError("a session is a date without a time", got=session)
    return session.isoformat()


def plain(row: Sequence[object], where: str) -> tuple[object, ...]:
    """Turn numpy scalars into Python's; raise StoreError for NaN and infinity, which SQLite would make NULL."""
    plain = tuple(v if type(v) in _NATIVE else v.item() if hasattr(v, "item") else v for v in row)
    for value in plain:
        if type(value) is float and not math.isfinite(value):
            raise StoreError("a number that is not finite", where=where, got=value, do="write None for what is unknown")
    return plain
