"""The market store's file: its tables, how it is opened, what SQLite's errors mean; for ``trader.store`` alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import sqlite3
import time

from trader.errors import StoreError

APPLICATION_ID = 0x4E574D53  # "NWMS" in the file's header: one of our market stores, not some other SQLite file
WAL_SECONDS = 10.0  # how long a process that opens a new file waits for the others that do
SCHEMA_VERSION = 1
_MAGIC = b"SQLite format 3\0"
_TABLES = {
    "news_sets": "id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE",
    # One row for each import that brought something. The headlines it brought are news.id first_news .. last_news:
    # a range instead of a column in two million rows.
    "imports": """
        id INTEGER PRIMARY KEY, news_set INTEGER REFERENCES news_sets, source TEXT NOT NULL, sha256 TEXT NOT NULL,
        size INTEGER NOT NULL, options TEXT NOT NULL, imported_at INTEGER NOT NULL,
        first_news INTEGER, last_news INTEGER, new INTEGER NOT NULL, known_already INTEGER NOT NULL,
        revised INTEGER NOT NULL, rejected INTEGER NOT NULL, duplicates INTEGER NOT NULL""",
    "bars": """
        symbol TEXT NOT NULL, session TEXT NOT NULL, known_at INTEGER NOT NULL,
        open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL, adj_close REAL NOT NULL,
        volume REAL NOT NULL, import INTEGER NOT NULL REFERENCES imports DEFERRABLE INITIALLY DEFERRED,
        PRIMARY KEY (symbol, session, known_at)""",
    # Identity is (set, published_at, item id, headline, symbols). An index over the texts would double the file, so
    # the key holds their CRC-32 instead; other texts that share one take the next free number (NewsImport.settle).
    # CRC-32 because it is the same in every version of every library, and time-ordered keys keep inserts local.
    "news": """
        id INTEGER PRIMARY KEY, news_set INTEGER NOT NULL REFERENCES news_sets, file_row INTEGER NOT NULL,
        published_at INTEGER NOT NULL, known_at INTEGER NOT NULL CHECK (known_at >= published_at),
        checksum INTEGER NOT NULL, item_id TEXT NOT NULL, headline TEXT NOT NULL, symbols TEXT NOT NULL,
        negative REAL, neutral REAL, positive REAL, UNIQUE (news_set, published_at, checksum)""",
    "quarantine": """
        id INTEGER PRIMARY KEY, import INTEGER NOT NULL REFERENCES imports DEFERRABLE INITIALLY DEFERRED,
        news_set INTEGER NOT NULL REFERENCES news_sets, file TEXT NOT NULL, file_row INTEGER NOT NULL,
        reason TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (news_set, file, file_row, reason, text)""",
}
_SCHEMA = (
    *(f"CREATE TABLE {table} ({columns}) STRICT" for table, columns in _TABLES.items()),
    *(
        f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in _TABLES
        for verb in ("UPDATE", "DELETE")
    ),
    "CREATE INDEX news_by_known_at ON news (news_set, known_at)",
    """CREATE TRIGGER bars_forwards BEFORE INSERT ON bars WHEN EXISTS (
           SELECT 1 FROM bars WHERE symbol = NEW.symbol AND session = NEW.session AND known_at >= NEW.known_at)
       BEGIN SELECT RAISE(ABORT, 'a revision must be known later than the bar it revises'); END""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_MEANING = {  # SQLite's primary result code: what it means here, what to do
    sqlite3.SQLITE_NOTADB: ("not a SQLite database", "name another file, or move this one away"),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", "restore it from a copy, or import the sources again"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened as a database file", "check the path and its permissions"),
    sqlite3.SQLITE_PERM: ("cannot be opened as a database file", "check the path and its permissions"),
    sqlite3.SQLITE_READONLY: ("cannot be written", "check its permissions, or open it for writing"),
    sqlite3.SQLITE_BUSY: ("another program is writing to it", "wait until that is done and run this again"),
    sqlite3.SQLITE_FULL: ("the disk is full, nothing of this was kept", "make room and run this again"),
    sqlite3.SQLITE_IOERR: ("the disk failed, nothing of this was kept", "check its space and health, then try again"),
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into StoreError; the only place that does."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in _MEANING:
            what, do = _MEANING[code]
            raise StoreError(what, where=path, do=do) from error
        raise StoreError("the database refused", where=path, got=str(error)) from error


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """Hold one transaction; IMMEDIATE, so that a second writer waits for the first instead of failing later."""
    with translated(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:  # Ctrl-C too
            if db.in_transaction:  # a full disk has rolled back already
                db.execute("ROLLBACK")
            raise


def connect(path: Path, *, read_only: bool, wait_seconds: float) -> sqlite3.Connection:
    """Open the file, making folder and tables where they are missing (unless read_only); raise StoreError."""
    if read_only and not path.exists():
        raise StoreError("there is no market store", where=path, do="import prices or news first")
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError("cannot make the store's folder", where=path.parent, got=error.strerror) from error
    _refuse_what_is_no_database(path)
    mode = "ro" if read_only else "rwc"
    with translated(path):
        # isolation_level None: Python begins no transactions of its own, ``transaction`` does.
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=wait_seconds, isolation_level=None
        )
        try:
            _prepare(db, path, read_only)
        except BaseException:
            db.close()
            raise
    return db


def _refuse_what_is_no_database(path: Path) -> None:
    """Look at the file's first bytes: SQLite itself would overwrite a file shorter than its header."""
    try:
        with path.open("rb") as file:
            header = file.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        what, do = _MEANING[sqlite3.SQLITE_CANTOPEN]
        raise StoreError(what, where=path, got=error.strerror, do=do) from error
    if header not in (b"", _MAGIC):
        what, do = _MEANING[sqlite3.SQLITE_NOTADB]
        raise StoreError(what, where=path, do=do)


def _prepare(db: sqlite3.Connection, path: Path, read_only: bool) -> None:
    """Make sure that the file is ours before anything is written to it, then set the connection up."""
    if not read_only and _is_blank(db):
        with transaction(db, path):  # another process may have made the tables while this one waited for the lock
            for statement in _SCHEMA if _is_blank(db) else ():
                db.execute(statement)
    ((application, version),) = db.execute("SELECT * FROM pragma_application_id, pragma_user_version").fetchall()
    if application != APPLICATION_ID:
        raise StoreError("not a market store", where=path, do="name another file, or move this one away")
    if version != SCHEMA_VERSION:
        age, do = ("a newer", "update this program") if version > SCHEMA_VERSION else ("an older", "import anew")
        raise StoreError(
            f"made by {age} version of this program", where=path, got=version, expected=SCHEMA_VERSION, do=do
        )
    if not read_only and db.execute("PRAGMA journal_mode").fetchall() != [("wal",)]:
        use_wal(db)
    for setting in (
        "foreign_keys = ON",
        "recursive_triggers = ON",  # else INSERT OR REPLACE deletes past the append-only triggers
        "synchronous = FULL",  # an import that was reported outlives a power cut
        "cache_size = -16384",  # KiB
        "journal_size_limit = 67108864",  # bytes; an import of millions leaves no file of that size behind
    ):
        db.execute(f"PRAGMA {setting}")


def _is_blank(db: sqlite3.Connection) -> bool:
    sql = "SELECT count(*) + (SELECT application_id FROM pragma_application_id) FROM sqlite_schema"
    return db.execute(sql).fetchall() == [(0,)]


def use_wal(connection: sqlite3.Connection) -> None:
    """Let readers go on while somebody writes; SQLite does not wait for the lock that this needs, so ask again."""
    give_up = time.perf_counter() + WAL_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.perf_counter() > give_up:
                raise
            time.sleep(0.01)
