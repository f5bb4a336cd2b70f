"""Paper accounts: what was fixed when one was opened, and what happened to it from outside since.

An account is a run of kind "paper" in the ledger. Its signals, orders, fills and equity are rows like any backtest's,
and equal a backtest's of the same days given the events that are kept here: what its owner asked for (halt, resume,
flatten, promote, rollback) and what befell it (late, abstain, a model that failed). ``trader.paper`` runs accounts,
``trader.lease`` keeps two services from running the same one, ``trader.cli_paper`` talks to their owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
import json
import re
from typing import TYPE_CHECKING, Any

from trader.clock import Clock
from trader.config import Config, as_mapping, from_mapping
from trader.errors import ConfigError, NoData
from trader.events import Bar, from_us, to_us
from trader.ledger import Ledger
from trader.ledger_schema import RunFacts, day, plain
from trader.records import NO_CONTROL, Control
from trader.universe import market_name

if TYPE_CHECKING:
    import sqlite3

TABLES = (
    """
CREATE TABLE IF NOT EXISTS accounts (
  run INTEGER PRIMARY KEY REFERENCES runs(id),  -- its settings, signals, orders, fills and equity
  name TEXT NOT NULL UNIQUE,
  opened_at INTEGER NOT NULL,         -- µs UTC
  first_session TEXT NOT NULL,        -- no earlier session is decided
  signals_run INTEGER REFERENCES runs(id),  -- the run whose stored signals it trades; null = its own model
  lived INTEGER NOT NULL DEFAULT 0    -- 1 from its first decision by the wall's clock on: it cannot be replayed then
) STRICT""",
    """
CREATE TABLE IF NOT EXISTS account_events (
  run INTEGER NOT NULL REFERENCES accounts(run),
  seq INTEGER NOT NULL,               -- 1, 2, 3 … in the order in which they were written
  session TEXT,                       -- whose decision it belongs to; null = asked for, not taken up yet
  kind TEXT NOT NULL CHECK (kind IN
    ('halt', 'resume', 'flatten', 'promote', 'rollback', 'late', 'abstain',
     'adopted', 'refused', 'training failed', 'damaged', 'fallback', 'use')),
  detail TEXT NOT NULL,               -- the reason, or a model id
  at INTEGER NOT NULL,                -- µs UTC, by the account's clock
  PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE IF NOT EXISTS decisions (
  run INTEGER NOT NULL REFERENCES accounts(run),
  session TEXT NOT NULL,
  due_at INTEGER NOT NULL,            -- µs UTC: decide_at of the session
  decided_at INTEGER NOT NULL,        -- µs UTC, by the account's clock
  latency REAL,                       -- seconds from the call to the signal; null where nothing was computed
  bar_known_at INTEGER,               -- µs UTC: the version of its bar that closed the session; null = none, or not yet
  PRIMARY KEY (run, session)
) STRICT, WITHOUT ROWID""",
)
# Of accounts of many symbols; a ledger of before lacks them until a service runs.
OF_SYMBOLS = {
    "event_symbols": """
CREATE TABLE IF NOT EXISTS event_symbols (
  run INTEGER NOT NULL,
  seq INTEGER NOT NULL,               -- of the event; one without a row here is about all symbols
  symbol TEXT NOT NULL,
  PRIMARY KEY (run, seq),
  FOREIGN KEY (run, seq) REFERENCES account_events(run, seq)
) STRICT, WITHOUT ROWID""",
    "decision_bars": """
CREATE TABLE IF NOT EXISTS decision_bars (
  run INTEGER NOT NULL REFERENCES accounts(run),
  session TEXT NOT NULL,
  symbol TEXT NOT NULL,
  known_at INTEGER NOT NULL,          -- µs UTC: which version of its bar was read; after due_at where it came late
  PRIMARY KEY (run, session, symbol)
) STRICT, WITHOUT ROWID""",
}

REQUESTS = ("halt", "resume", "flatten", "promote", "rollback")
ABSTENTIONS = ("late", "abstain")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account as it was opened; ``config`` is fixed for good, later edits of the file do not touch it."""

    run: int
    name: str
    config: Config
    opened_at: datetime
    first_session: date
    signals_run: int | None
    lived: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountEvent:
    """Something from outside. session: the decision that it belongs to, None while a request waits for one.

    kind: one of REQUESTS; "late" (decided after the next open: no order), "abstain" (no decision, detail says why);
    or what happened to its models, see ``trader.records.Fact``.   at: by the clock of whoever wrote it.
    symbol: which one of many it is about, "" for all.
    """

    seq: int
    session: date | None
    kind: str
    detail: str
    at: datetime
    symbol: str = ""


class Accounts:
    """The accounts of an open ledger."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        """Make the tables where they are missing; a ledger opened read-only has none to make."""
        self._ledger, self._clock = ledger, clock
        if not ledger.read_only and not all(ledger.has_table(one) for one in ("accounts", *OF_SYMBOLS)):
            with ledger.transaction() as connection:
                for statement in (*TABLES, *OF_SYMBOLS.values()):
                    connection.execute(statement)

    def open(
        self, name: str, config: Config, first: date, *, signals_run: int | None = None, code_version: str = ""
    ) -> Account:
        """Open an account and return it; raise ConfigError for a name that is taken or no name.

        first: the first session that it decides.   signals_run: the run whose stored signals it trades.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError("no name for an account", got=name, expected="letters, digits, '.', '_' and '-'")
        if name in self.names():
            raise ConfigError("there is an account of this name already", got=name, do="choose another name")
        run = config.run
        facts = RunFacts(
            kind="paper",
            config=json.dumps(as_mapping(config, live=True), sort_keys=True, indent=1),
            seed=run.seed,
            code_version=code_version,
            first_session=first,
            last_session=first,
            data_hash="",
            market=market_name(run.market),
            news=run.news,
            model=run.model,
            strategy=run.strategy,
            execution=run.execution,
        )
        with self._ledger.transaction() as connection:
            number = self._ledger.start_run(facts)
            row = (number, name, to_us(self._clock.now()), day(first), signals_run)
            connection.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, 0)", row)
        return self.get(name)

    def begin_at(self, account: Account, first: date | None) -> Account:
        """Let an account that has decided nothing yet begin at another session; raise ConfigError for one that has.

        first: its first session, or a day before it; None changes nothing, and so does the one that it has.
        """
        if first is None or first == account.first_session:
            return account
        if (decided := self.last_decided(account)) is not None:
            raise ConfigError(
                "the account has begun already",
                where=account.name,
                got=first,
                expected=f"{account.first_session}; it goes on after {decided}",
                do="leave --from out, or open another account",
            )
        with self._ledger.transaction() as connection:
            sql = "UPDATE accounts SET first_session = ? WHERE run = ?"
            connection.execute(sql, (day(first), account.run))
        return self.get(account.name)

    def names(self) -> list[str]:
        """Return the names of all accounts, in the order of their opening."""
        return [row["name"] for row in self._rows("SELECT name FROM accounts ORDER BY run")]

    def get(self, name: str) -> Account:
        """Return an account; raise NoData, naming those that there are."""
        rows = self._rows("SELECT a.*, r.config FROM accounts a JOIN runs r ON r.id = a.run WHERE a.name = ?", name)
        if not rows:
            known = ", ".join(self.names()) or "none yet"
            do = f"open one: python -m trader paper open {name}" if known == "none yet" else None
            raise NoData("no such account", where=self._ledger.path, got=name, expected=f"one of {known}", do=do)
        row = rows[0]
        return Account(
            run=row["run"],
            name=row["name"],
            config=from_mapping(json.loads(row["config"]), f"account {name}"),
            opened_at=from_us(row["opened_at"]),
            first_session=date.fromisoformat(row["first_session"]),
            signals_run=row["signals_run"],
            lived=bool(row["lived"]),
        )

    # What comes from outside

    def request(self, account: Account, kind: str, detail: str = "") -> None:
        """Write down what the owner asks for; the next decision takes it up."""
        assert kind in REQUESTS, kind
        with self._ledger.transaction() as connection:
            self._add(connection, account, None, kind, detail)

    def requests(self, account: Account) -> list[AccountEvent]:
        """Return what was asked for and not taken up yet, oldest first."""
        return self._events("run = ? AND session IS NULL", account.run)

    def events(self, account: Account) -> list[AccountEvent]:
        """Return what belongs to a decision already made, oldest first."""
        return self._events("run = ? AND session IS NOT NULL", account.run)

    def take_up(self, account: Account, requests: Iterable[AccountEvent], session: date) -> None:
        """Say which decision took these requests up; part of that decision's transaction."""
        with self._ledger.transaction() as connection:
            sql = "UPDATE account_events SET session = ? WHERE run = ? AND seq = ?"
            connection.executemany(sql, [(day(session), account.run, one.seq) for one in requests])

    def happened(self, account: Account, session: date, kind: str, detail: str, symbol: str = "") -> None:
        """Write down what befell a decision, of one symbol or of all; part of its transaction."""
        with self._ledger.transaction() as connection:
            seq = self._add(connection, account, day(session), kind, detail)
            if symbol:
                connection.execute("INSERT INTO event_symbols VALUES (?, ?, ?)", (account.run, seq, symbol))

    def _add(
        self, connection: sqlite3.Connection, account: Account, session: str | None, kind: str, detail: str
    ) -> int:
        sql = "SELECT coalesce(max(seq), 0) + 1 FROM account_events WHERE run = ?"
        (seq,) = connection.execute(sql, (account.run,)).fetchone()
        row = (account.run, seq, session, kind, detail, to_us(self._clock.now()))
        connection.execute("INSERT INTO account_events VALUES (?, ?, ?, ?, ?, ?)", row)
        return int(seq)

    # Decisions

    def decided(
        self, account: Account, session: date, due_at: datetime, latency: float | None, bar: Bar | None
    ) -> None:
        """Write down that a session's decision was made (or abstained from) now; part of its transaction.

        bar: the one that closed the session, None where there is none yet.
        """
        known = None if bar is None else to_us(bar.known_at)
        row = (account.run, day(session), to_us(due_at), to_us(self._clock.now()), latency, known)
        with self._ledger.transaction() as connection:
            connection.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?)", plain(row, f"decision {session}"))

    def closed_late(self, account: Account, session: date, bar: Bar | None) -> None:
        """Write down which bar closed a session that was decided without one; part of the next one's transaction."""
        if bar is not None:
            sql = "UPDATE decisions SET bar_known_at = ? WHERE run = ? AND session = ?"
            with self._ledger.transaction() as connection:
                connection.execute(sql, (to_us(bar.known_at), account.run, day(session)))

    def bars_known(self, account: Account) -> dict[date, datetime | None]:
        """Return for each session that was decided which version of its bar closed it, by known_at; None for none."""
        rows = self._rows("SELECT session, bar_known_at AS at FROM decisions WHERE run = ?", account.run)
        return {date.fromisoformat(r["session"]): None if r["at"] is None else from_us(r["at"]) for r in rows}

    def bars_read(self, account: Account, session: date, bars: Iterable[Bar]) -> None:
        """Write down which version of each symbol's bar of a session was read; part of a decision's transaction."""
        rows = [(account.run, day(session), bar.symbol, to_us(bar.known_at)) for bar in bars]
        with self._ledger.transaction() as connection:
            connection.executemany("INSERT INTO decision_bars VALUES (?, ?, ?, ?)", rows)

    def bars_of_symbols(self, account: Account, symbols: Iterable[str]) -> dict[str, dict[date, datetime | None]]:
        """Return ``bars_known`` by symbol, of an account of many."""
        decided = dict.fromkeys(self.bars_known(account))
        found: dict[str, dict[date, datetime | None]] = {symbol: dict(decided) for symbol in symbols}
        sql = "SELECT session, symbol, known_at FROM decision_bars WHERE run = ?"
        for row in self._rows(sql, account.run) if self._ledger.has_table("decision_bars") else ():
            found[row["symbol"]][date.fromisoformat(row["session"])] = from_us(row["known_at"])
        return found

    def live(self, account: Account) -> None:
        """Write down that the account decides by the wall's clock from now on; part of a decision's transaction."""
        with self._ledger.transaction() as connection:
            connection.execute("UPDATE accounts SET lived = 1 WHERE run = ? AND lived = 0", (account.run,))

    def last_decided(self, account: Account) -> date | None:
        """Return the newest session that was decided or abstained from; None before the first."""
        rows = self._rows("SELECT max(session) AS session FROM decisions WHERE run = ?", account.run)
        return date.fromisoformat(rows[0]["session"]) if rows and rows[0]["session"] else None

    def newest_instant(self, account: Account) -> datetime | None:
        """Return when the newest decision was made, by the account's own clock."""
        found = self._rows("SELECT max(decided_at) AS at FROM decisions WHERE run = ?", account.run)
        return None if not found or found[0]["at"] is None else from_us(found[0]["at"])

    def latencies(self, account: Account) -> list[float]:
        """Return the seconds that each computed decision took, oldest first."""
        sql = "SELECT latency FROM decisions WHERE run = ? AND latency IS NOT NULL ORDER BY session"
        return [row["latency"] for row in self._rows(sql, account.run)]

    def _events(self, where: str, *values: object) -> list[AccountEvent]:
        rows = self._rows(f"SELECT * FROM account_events WHERE {where} ORDER BY seq", *values)
        about: dict[int, str] = {}
        if rows and self._ledger.has_table("event_symbols"):
            of_symbols = self._rows("SELECT seq, symbol FROM event_symbols WHERE run = ?", rows[0]["run"])
            about = {row["seq"]: row["symbol"] for row in of_symbols}
        return [
            AccountEvent(
                seq=row["seq"],
                session=date.fromisoformat(row["session"]) if row["session"] else None,
                kind=row["kind"],
                detail=row["detail"],
                at=from_us(row["at"]),
                symbol=about.get(row["seq"], ""),
            )
            for row in rows
        ]

    def _rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        return self._ledger.query(sql, *values) if self._ledger.has_table("accounts") else []


def control_of(events: Iterable[AccountEvent]) -> Control:
    """Return what the broker is told at a decision that takes these requests up: the newest of them counts.

    >>> at = datetime(2026, 1, 2)
    >>> asked = [AccountEvent(seq=n, session=None, kind=k, detail="", at=at) for n, k in enumerate(("halt", "resume"))]
    >>> control_of(asked)
    Control(halt=False, resume=True, flatten=False)
    """
    kinds = [event.kind for event in events if event.kind in ("halt", "resume", "flatten")]
    return Control(**{kinds[-1]: True}) if kinds else NO_CONTROL


def controls_of(events: Sequence[AccountEvent]) -> dict[date, Control]:
    """Return what the broker was told at each decision that took requests up."""
    by_session: dict[date, list[AccountEvent]] = {}
    for event in events:
        if event.session is not None and event.kind in ("halt", "resume", "flatten"):
            by_session.setdefault(event.session, []).append(event)
    return {session: control_of(asked) for session, asked in by_session.items()}


def abstentions_of(events: Iterable[AccountEvent]) -> dict[date, str]:
    """Return why there was no decision, by session."""
    return {event.session: event.detail for event in events if event.kind in ABSTENTIONS and event.session is not None}


def overrides_of(events: Iterable[AccountEvent]) -> Mapping[date, str]:
    """Return the model ids that were put in use from outside the rule, by the session from which on they are."""
    return {
        event.session: event.detail
        for event in events
        if event.kind in ("promote", "rollback", "use") and event.session is not None
    }


def overrides_by_symbol(events: Sequence[AccountEvent]) -> dict[str, Mapping[date, str]]:
    """Return ``overrides_of`` of an account of many symbols, by symbol; by "" those of a model of all of them."""
    about = dict.fromkeys(event.symbol for event in events)
    return {symbol: overrides_of(event for event in events if event.symbol == symbol) for symbol in about}


def abstentions_by_symbol(events: Sequence[AccountEvent], symbols: Iterable[str]) -> dict[str, dict[date, str]]:
    """Return ``abstentions_of`` of an account of many symbols, by symbol: its own and those of all at once."""
    return {symbol: abstentions_of(event for event in events if event.symbol in ("", symbol)) for symbol in symbols}
