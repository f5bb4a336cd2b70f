"""The record of every run, in SQLite: what was forecast, ordered, filled and earned, one transaction a session.

Upstream the engine hands over each finished session; downstream are the reports, ``python -m trader runs``,
``trades`` and ``why``, and anybody with an SQLite browser. A process killed at any point leaves whole sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import date
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trader.clock import Clock, WallClock
from trader.errors import NoData, TimeError
from trader.events import Signal, from_us, to_us
from trader.ledger_rows import (
    HASHED,
    INSERT,
    KEYS,
    OPEN,
    SELECT,
    Row,
    Tail,
    check_order,
    equity_row,
    fill_rows,
    gross_of,
    holding_rows,
    signal_of,
    signal_rows,
    told,
    verdict_of,
)
from trader.ledger_schema import ADDED, FoldFacts, RunFacts, Transaction, connect, day, plain, row_of, store_errors
from trader.records import Verdict
from trader.round_trips import RoundTrip, round_trips_of

if TYPE_CHECKING:
    import sqlite3

    import pandas as pd

    from trader.metrics import Metric
    from trader.records import OrderRecord, SessionRecord

__all__ = ["FoldFacts", "Ledger", "RoundTrip", "RunFacts", "signals_frame"]

Status = Literal["finished", "stopped", "failed"]


class Ledger:
    """One ledger file, open. Use as a context manager, from one thread."""

    def __init__(self, db: Any, path: Path, clock: Clock, read_only: bool = False) -> None:
        self._db, self._conn, self.path, self._clock = db, db.conn, path, clock
        self.read_only = read_only
        self._tails: dict[int, Tail] = {}

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        read_only: bool = False,
        clock: Clock | None = None,
        wait_seconds: float = 5.0,
    ) -> Ledger:
        """Open a ledger, making the file and its folder unless read_only.

        synchronous: FULL survives a power cut with every session, at one fsync each; NORMAL may lose the newest.
        Raises NoData where there is nothing to read, StoreError where the file cannot be used.
        """
        path = Path(path)
        db = connect(path, synchronous=synchronous, read_only=read_only, wait_seconds=wait_seconds)
        return cls(db, path, clock or WallClock(), read_only)

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        with store_errors(self.path):
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def start_run(self, facts: RunFacts) -> int:
        """Open a run with status "running" and return its number."""
        row = {"status": "running", "started_at": to_us(self._clock.now()), **row_of(facts)}
        with self.transaction():
            return int(self._db["runs"].insert(row).last_pk)

    def finish_run(self, run: int, status: Status, ledger_hash: str | None = None) -> None:
        """Close a run; raise NoData if there is none of this number."""
        self.resolve(run)
        with self.transaction():
            row = {"status": status, "finished_at": to_us(self._clock.now()), "ledger_hash": ledger_hash}
            self._db["runs"].update(run, row)

    def add_folds(self, run: int, folds: Iterable[FoldFacts]) -> None:
        """Record trained models, all or none."""
        self.resolve(run)
        rows = [{"run": run, **row_of(fold)} for fold in folds]
        with self.transaction():
            self._db["folds"].insert_all(rows)

    def add_verdicts(self, run: int, verdicts: Iterable[Verdict]) -> None:
        """Record which trained models were taken up, all or none."""
        self.resolve(run)
        rows = [{"run": run, **row_of(verdict)} for verdict in verdicts]
        with self.transaction():
            self._db["verdicts"].insert_all(rows)

    def write_session(
        self,
        run: int,
        *,
        signal: Signal,
        record: SessionRecord,
        always_buy_equity: float,
        waiting: Sequence[OrderRecord] = (),
        signal_is_there: bool = False,
    ) -> None:
        """Record one whole session, or nothing of it; sessions come oldest first.

        waiting: orders that are still open when this is the newest session; a later session takes their rows away and
            writes how they ended. A backtest names them among ``record.orders``, for its end is the end.
        signal_is_there: the signal was written before, by ``write_signal``.
        equity_gross(d) = equity_gross(d−1) · (equity(d) + costs(d)) / equity(d−1), the first one equity + costs.
        Raises TimeError for disorder, StoreError for a number that is not finite or a file that cannot be written.
        """
        self._write(run, () if signal_is_there else (signal,), signal.session, record, always_buy_equity, waiting)

    def write_universe_session(
        self,
        run: int,
        *,
        signals: Sequence[Signal],
        record: SessionRecord,
        always_buy_equity: float,
        waiting: Sequence[OrderRecord] = (),
    ) -> None:
        """Record one whole session of an account of many symbols, its positions at the close included, or nothing.

        signals: one a symbol, all of the record's session. The rest is as ``write_session`` has it; raises TimeError
        too where a signal is of another session.
        """
        for one in signals:
            if one.session != record.session:
                got = f"{one.symbol} {one.session}"
                raise TimeError("signal and account are of different sessions", got=got, expected=record.session)
        self._write(run, signals, record.session, record, always_buy_equity, waiting)

    def _write(
        self,
        run: int,
        signals: Sequence[Signal],
        at: date,
        record: SessionRecord,
        always_buy_equity: float,
        waiting: Sequence[OrderRecord],
    ) -> None:
        session, tail = day(at), self._tail(run)
        check_order(run, session, record, tail)
        gross = gross_of(record, tail)
        rows: dict[str, list[tuple[object, ...]]] = {
            **signal_rows(run, session, signals),
            "orders": [
                (run, day(o.session), o.ref, o.symbol, o.size, o.status, o.reason) for o in (*record.orders, *waiting)
            ],
            "fills": fill_rows(run, record),
            "equity": [equity_row(run, session, record, gross, always_buy_equity)],
            "holdings": holding_rows(run, session, record),
        }
        checked = {table: [plain(row, f"{table} {session}") for row in part] for table, part in rows.items()}
        with self.transaction():
            if self._tails[run].waiting:
                self._conn.execute("DELETE FROM orders WHERE run = ? AND status = ?", (run, OPEN))
            for table, part in checked.items():
                if part:
                    self._conn.executemany(INSERT[table], part)
            if record.state != tail.state:
                change = (run, session, record.state, record.state_reason)
                self._conn.execute("INSERT INTO states (run, session, state, reason) VALUES (?, ?, ?, ?)", change)
        self._tails[run] = Tail(session, float(record.equity), gross, bool(waiting), record.state)

    def write_signal(self, run: int, signal: Signal) -> None:
        """Record a session's signal alone; the rest of the session follows by ``write_session``."""
        session = day(signal.session)
        rows = signal_rows(run, session, (signal,))
        checked = {table: [plain(row, f"{table} {session}") for row in part] for table, part in rows.items()}
        with self.transaction():
            for table, part in checked.items():
                self._conn.executemany(INSERT[table], part)

    def write_metrics(self, run: int, metrics: Iterable[Metric]) -> None:
        """Record a run's figures, in place of any of the same name."""
        self.resolve(run)
        rows = [plain((run, m.name, m.of, m.value, m.low, m.high), f"metric {m.name} of {m.of}") for m in metrics]
        with self.transaction():
            self._conn.executemany(
                'INSERT OR REPLACE INTO metrics (run, name, "of", value, low, high) VALUES (?, ?, ?, ?, ?, ?)', rows
            )

    # Reading

    def resolve(self, run: int | str) -> int:
        """Turn "latest" or a run's number into the number; raise NoData, naming the known ones, if there is none."""
        known = [int(row["id"]) for row in self._query("SELECT id FROM runs ORDER BY id")]
        if known and run == "latest":
            return known[-1]
        if str(run).isdecimal() and int(run) in known:
            return int(run)
        names = ("… " if len(known) > 10 else "") + (", ".join(map(str, known[-10:])) or "none yet")
        do = "name one of them, or latest" if known else "run python -m trader backtest first"
        raise NoData("no such run", where=self.path, got=run, expected=f"one of {names}", do=do)

    def runs(self) -> list[Row]:
        """Return the view ``overview``, newest run first."""
        return self._query("SELECT * FROM overview ORDER BY id DESC")

    def run_facts(self, run: int | str) -> Row:
        """Return the row of ``runs``, its instants as aware datetimes."""
        (row,) = self._query("SELECT * FROM runs WHERE id = ?", self.resolve(run))
        return row | {key: from_us(row[key]) if row[key] is not None else None for key in ("started_at", "finished_at")}

    def trades(self, run: int | str, symbol: str | None = None) -> list[Row]:
        """Return the view ``trades``: every order with what became of it, oldest first; ``symbol``: of that one alone.

        Raises NoData where the run has no such symbol.
        """
        number = self.resolve(run)
        if symbol is not None and symbol not in (known := self.symbols(number)):
            raise _no_symbol(number, symbol, known)
        rows = self._query("SELECT * FROM trades WHERE run = ? ORDER BY ref", number)
        return [row for row in rows if symbol in (None, row["symbol"])]

    def symbols(self, run: int | str) -> list[str]:
        """Return the symbols that a run has signals of, by name."""
        rows = self._query("SELECT DISTINCT symbol FROM signals WHERE run = ? ORDER BY symbol", self.resolve(run))
        return [row["symbol"] for row in rows]

    def round_trips(self, run: int | str) -> list[RoundTrip]:
        """Return each position from its opening to its closing, oldest entry first."""
        sql = "SELECT * FROM fills WHERE run = ? ORDER BY session, ref, part"
        return round_trips_of(self._query(sql, self.resolve(run)))

    def metrics(self, run: int | str) -> list[Row]:
        """Return the figures written for a run: name, of, value, low, high."""
        return self._query('SELECT name, "of", value, low, high FROM metrics WHERE run = ?', self.resolve(run))

    def verdicts(self, run: int | str) -> list[Verdict]:
        """Return what was said of each training of a run, oldest first; none where the ledger is older than that."""
        number = self.resolve(run)
        if not self._query("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'"):
            return []
        rows = self._query("SELECT * FROM verdicts WHERE run = ? ORDER BY fold", number)
        return [verdict_of(row) for row in rows]

    def equity(self, run: int | str) -> list[Row]:
        """Return the table ``equity`` of a run, oldest first."""
        return self._query("SELECT * FROM equity WHERE run = ? ORDER BY session", self.resolve(run))

    def signals(
        self, run: int | str, first: date = date.min, last: date = date.max, *, top: bool = True
    ) -> list[Signal]:
        """Return a run's signals from the first to the last of these days, oldest first; ``top``: with headlines."""
        expected = {(row["session"], row["symbol"]): row for row in self.between("expected_returns", run, first, last)}
        tops: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for row in self.between("news_weights", run, first, last) if top else ():
            tops.setdefault((row["session"], row["symbol"]), []).append((row["headline"], row["weight"]))
        rows = self.between("signals", run, first, last)
        keys = [(row["session"], row["symbol"]) for row in rows]
        return [signal_of(row | expected.get(key, {}), tops.get(key, [])) for row, key in zip(rows, keys, strict=True)]

    def between(self, table: str, run: int | str, first: date, last: date) -> list[Row]:
        """Return a run's rows of one of the hashed tables whose session lies between two days, by natural key."""
        if not self._holds(table):
            return []
        key = ", ".join(HASHED[table].split(", ")[: KEYS[table]])
        sql = f"SELECT * FROM {table} WHERE run = ? AND session BETWEEN ? AND ? ORDER BY {key}"
        return self._query(sql, self.resolve(run), day(first), day(last))

    def states(self, run: int | str) -> list[Row]:
        """Return a run's changes of state (session, state, reason), oldest first; it starts ACTIVE."""
        if not self._query("SELECT 1 FROM sqlite_master WHERE name = 'states'"):
            return []  # a ledger of before, opened to be read
        sql = "SELECT session, state, reason FROM states WHERE run = ? ORDER BY session"
        return self._query(sql, self.resolve(run))

    def state(self, run: int | str) -> tuple[str, str]:
        """Return the state that a run is in after its newest session, and why if it is not ACTIVE."""
        changes = self.states(run)
        return (changes[-1]["state"], changes[-1]["reason"]) if changes else ("ACTIVE", "")

    def orders(self, run: int | str) -> list[Row]:
        """Return the table ``orders`` of a run, in the order of their decisions."""
        return self._query("SELECT * FROM orders WHERE run = ? ORDER BY ref", self.resolve(run))

    def fills(self, run: int | str) -> list[Row]:
        """Return the table ``fills`` of a run, by session and order."""
        return self._query("SELECT * FROM fills WHERE run = ? ORDER BY session, ref, part", self.resolve(run))

    def why(self, run: int | str, session: date) -> list[Signal]:
        """Return a session's signals, one a symbol, whose ``top`` holds the headlines by weight, largest first.

        Raises NoData where the run did not decide on that session.
        """
        number, key = self.resolve(run), day(session)
        rows = self._query("SELECT * FROM signals WHERE run = ? AND session = ?", number, key)
        if not rows:
            (span,) = self._query("SELECT min(session) a, max(session) b FROM signals WHERE run = ?", number)
            expected = f"a trading day from {span['a']} to {span['b']}" if span["a"] else "none: it has no session yet"
            raise NoData("the run has no such session", where=f"run {number}", got=key, expected=expected)
        return [self._signal(row) for row in rows]

    def why_one(self, run: int | str, session: date, symbol: str | None = None) -> Signal:
        """Return a session's signal of one symbol, which need not be named where the run has one alone.

        Raises as ``why`` does, and NoData where several are there and none is named, or another one is.
        """
        found = {signal.symbol: signal for signal in self.why(run, session)}
        symbol = next(iter(found)) if symbol is None and len(found) == 1 else symbol
        if symbol not in found:
            raise _no_symbol(self.resolve(run), symbol, sorted(found))
        return found[symbol]

    def ledger_hash(self, run: int | str, *, until: date | None = None) -> str:
        """Return the sha256 of a run's signals, news weights, orders, fills and equity, by natural key.

        until: the last session that counts, None for all.

        Floats count to the last bit. Run numbers, wall times and paths are left out, so that two runs with the
        same seed have the same hash whenever and wherever they ran. A table of ADDED counts where it has rows of the
        run: those of before keep their hash.
        """
        number, digest = self.resolve(run), hashlib.sha256()
        with store_errors(self.path):
            for table in HASHED:
                if not self._holds(table):
                    continue
                begun = False
                for row in self._conn.execute(SELECT[table], (number, str(until or date.max))):
                    if not begun:
                        digest.update(f"{table}\n".encode())
                        begun = True
                    digest.update(f"{row!r}\n".encode())
                if not begun and table not in ADDED:
                    digest.update(f"{table}\n".encode())
        return digest.hexdigest()

    def first_difference(self, one: int, other: int, *, until: date | None = None) -> str:
        """Name the first row in which two runs differ, by session, with both; "" where their hashes agree.

        until: the last session that counts, None for all.
        """
        found: list[tuple[str, str]] = []
        for table in HASHED:
            if not self._holds(table):
                continue
            mine, theirs = (self._query(SELECT[table], run, str(until or date.max)) for run in (one, other))
            for row in range(max(len(mine), len(theirs))):
                pair = [rows[row] if row < len(rows) else None for rows in (mine, theirs)]
                if pair[0] != pair[1]:
                    session = min(str(held["session"]) for held in pair if held)
                    one_row, other_row = (told(held) for held in pair)
                    found.append((session, f"{table} of {session}: {one_row}; the other: {other_row}"))
                    break
        return min(found)[1] if found else ""

    def _signal(self, row: Row) -> Signal:
        sql = "SELECT headline, weight FROM news_weights WHERE run = ? AND session = ? AND symbol = ? ORDER BY rank"
        key = row["run"], row["session"], row["symbol"]
        top = [(one["headline"], one["weight"]) for one in self._query(sql, *key)]
        sql = "SELECT expected_return FROM expected_returns WHERE run = ? AND session = ? AND symbol = ?"
        expected = self._query(sql, *key) if self._holds("expected_returns") else []
        return signal_of(row | (expected[0] if expected else {}), top)

    def _holds(self, table: str) -> bool:
        """Tell whether the file has a hashed table: one of before, opened to be read, may lack those of ADDED."""
        return table not in ADDED or self.has_table(table)

    def _tail(self, run: int) -> Tail:
        if run not in self._tails:
            sql = """SELECT session, equity, equity_gross AS gross,
                coalesce((SELECT state FROM states s WHERE s.run = e.run ORDER BY s.session DESC LIMIT 1), 'ACTIVE')
                AS state FROM equity e WHERE run = ? ORDER BY session DESC LIMIT 1"""
            last = self._query(sql, self.resolve(run))
            waiting = self._query("SELECT 1 FROM orders WHERE run = ? AND status = ? LIMIT 1", run, OPEN)
            self._tails[run] = Tail(**last[0], waiting=bool(waiting)) if last else Tail()
        return self._tails[run]

    def has_table(self, name: str) -> bool:
        """Tell whether the file has a table of this name; a room that keeps its own asks before it makes it."""
        return bool(self._query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", name))

    def query(self, sql: str, *values: object) -> list[Row]:
        """Return the rows of a SELECT as dicts, for the rooms that keep tables of their own in this file."""
        return self._query(sql, *values)

    def _query(self, sql: str, *values: object) -> list[Row]:
        with store_errors(self.path):
            return list(self._db.query(sql, values))

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Let everything written inside be one transaction, all or nothing; one inside another is part of it.

        Yields the connection, for the rooms that keep tables of their own in this file.
        """
        return Transaction(self._conn, self.path, undone=self._tails.clear)  # they may tell of rows that are undone


def _no_symbol(run: int, symbol: str | None, known: Sequence[str]) -> NoData:
    what = "the run has several symbols" if symbol is None else "the run has no such symbol"
    do = "name one: --symbol SYMBOL" if symbol is None else None
    return NoData(what, where=f"run {run}", got=symbol, expected=f"one of {', '.join(known)}", do=do)


def signals_frame(path: Path | str, run: int | str = "latest", symbol: str | None = None) -> pd.DataFrame:
    """Return a run's signals for somebody's own Cerebro script.

    Index ``session`` (datetime64, oldest first); columns ``signal`` (−1, 0, +1), ``p_up`` (NaN where it abstained) and
    ``expected_return`` (of the next close over this one, less 1; NaN where the model forecasts none).
    Raises NoData where the run or the symbol is not there, or where it has several symbols and none was named.
    """
    import pandas as pd

    with Ledger.open(path, read_only=True) as ledger:
        number = ledger.resolve(run)
        found = ledger.signals(number, top=False)
    symbols = sorted({signal.symbol for signal in found})
    if (symbol is None and len(symbols) > 1) or (symbol is not None and symbol not in symbols):
        raise NoData("name one symbol of the run", where=f"run {number}", got=symbol, expected=", ".join(symbols))
    kept = [signal for signal in found if symbol in (None, signal.symbol)]
    index = pd.DatetimeIndex([signal.session for signal in kept], name="session")
    columns = {
        "signal": [signal.side for signal in kept],
        "p_up": [signal.p_up for signal in kept],
        "expected_return": [signal.expected_return for signal in kept],
    }
    kinds = {"signal": "int64", "p_up": "float64", "expected_return": "float64"}
    return pd.DataFrame(columns, index=index).astype(kinds)
