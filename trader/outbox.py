"""What is to be told to people, in the ledger: one row a notification, one a notification and channel that tried it.

A service calls ``enqueue`` inside the transaction that writes what the notification tells of, so that both are there
or neither is. ``trader.notify`` reads what is due, sends it, and writes what became of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
import json
import re
import sqlite3
from typing import Any
from urllib.parse import quote

from trader.errors import StoreError
from trader.events import from_us, to_us
from trader.ledger_schema import day, immediate

KINDS = (
    "halted",  # by a risk limit or by hand
    "reducing",  # only orders that make the position smaller
    "late",  # a decision that came too late for its open: no new order
    "abstained",  # a decision that was not taken, and why
    "filled",
    "retrained",
    "refused_model",  # a newcomer that was worse, or a model with a wrong hash or NaN
    "feed_stale",
    "error",
    "started",
    "stopped",
)

TABLES = (
    """
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY,
  account TEXT NOT NULL,
  event_id TEXT NOT NULL UNIQUE,      -- the same for every repetition, so that a receiver can drop repeats
  kind TEXT NOT NULL,                 -- halted, late, filled …
  session TEXT,                       -- null for what belongs to none
  text TEXT NOT NULL,                 -- one sentence
  body TEXT NOT NULL,                 -- JSON: the same as facts
  made_at INTEGER NOT NULL            -- µs UTC
) STRICT""",
    """
CREATE TABLE IF NOT EXISTS outbox_deliveries (
  id INTEGER NOT NULL REFERENCES outbox(id),
  channel TEXT NOT NULL,              -- NAME of [notify.NAME]
  attempts INTEGER NOT NULL,
  next_try INTEGER,                   -- µs UTC; null once there is none
  delivered_at INTEGER,               -- µs UTC
  given_up_at INTEGER,                -- µs UTC
  error TEXT,                         -- what the last attempt met, or who refused though others took it
  PRIMARY KEY (id, channel)
) STRICT, WITHOUT ROWID""",
)

# The channel's own row beside each notification; none before its first attempt.
_JOINED = "outbox o LEFT JOIN outbox_deliveries d ON d.id = o.id AND d.channel = ?"
_OPEN = "d.delivered_at IS NULL AND d.given_up_at IS NULL"
_COLUMNS = "o.id, o.event_id, o.account, o.kind, o.session, o.text, o.body, o.made_at, coalesce(d.attempts, 0), d.error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One thing to tell. session: an ISO date or None.   attempts, error: of the channel that it was read for."""

    id: int
    event_id: str
    account: str
    kind: str
    session: str | None
    text: str
    body: Mapping[str, Any]
    made_at: datetime
    attempts: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one notification on one channel; all instants in µs UTC."""

    id: int
    channel: str
    attempts: int
    next_try: int | None = None
    delivered_at: int | None = None
    given_up_at: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """How a channel stands: counts of notifications, and what the newest attempt that failed met."""

    channel: str
    delivered: int
    waiting: int
    given_up: int
    error: str | None


def prepare(connection: sqlite3.Connection) -> None:
    """Make the two tables where they are missing; part of the caller's transaction if one is open, else its own."""
    if connection.in_transaction:
        for statement in TABLES:
            connection.execute(statement)
        return
    sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('outbox', 'outbox_deliveries')"
    if connection.execute(sql).fetchone()[0] < len(TABLES):  # else no lock is needed
        with immediate(connection):
            prepare(connection)


def stable_id(account: str, kind: str, session: date | None, *more: object) -> str:
    """Return an event id that a replay makes again: the same for the same words.

    >>> stable_id("my account", "filled", date(2018, 1, 3), "order", 7)
    'my%20account/filled/2018-01-03/order/7'
    """
    words = (account, kind, day(session) if session else "-", *more)
    return "/".join(quote(str(word), safe="", errors="replace") for word in words)


def enqueue(
    connection: sqlite3.Connection,
    *,
    account: str,
    kind: str,
    event_id: str,
    text: str,
    made_at: datetime,
    session: date | None = None,
    body: Mapping[str, Any] | None = None,
) -> bool:
    """Put a notification into the outbox within the caller's transaction; return False where its event_id is known.

    event_id: of visible ASCII, such as ``stable_id`` makes; known ones are left as they are, so that what is replayed
    is not told twice.   body: facts in JSON's own types.
    Raises StoreError for a kind that is not of KINDS, for what JSON cannot hold, and where no transaction is open:
    a notification alone could be there without what it tells of.
    """
    where = f"notification {event_id[:80]}"
    if not connection.in_transaction:
        raise StoreError(
            "no transaction is open", where=where, do="enqueue inside the one that writes what it tells of"
        )
    if kind not in KINDS:
        raise StoreError("an unknown kind", where=where, got=kind, expected=f"one of {', '.join(KINDS)}")
    if not re.fullmatch(r"[!-~]{1,500}", event_id):
        raise StoreError("an event id of other than visible ASCII", where=where, do="make it by outbox.stable_id")
    try:
        facts = json.dumps(body or {}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError("facts that JSON cannot hold", where=where, got=str(error)[:100]) from error
    row = (_storable(account), event_id, kind, day(session) if session else None, _storable(text), facts)
    sql = """INSERT INTO outbox (account, event_id, kind, session, text, body, made_at) VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (event_id) DO NOTHING"""
    return connection.execute(sql, (*row, to_us(made_at))).rowcount == 1


def due(
    connection: sqlite3.Connection, account: str, channel: str, kinds: Sequence[str], now: datetime, longest: timedelta
) -> Notification | None:
    """Return the oldest notification that the channel should try now, None where there is none.

    longest: no wait is longer, so a next_try beyond that was written before the clock was set back, and counts as due.
    """
    at, last = to_us(now), to_us(now + longest)
    sql = f"""SELECT {_COLUMNS} FROM {_JOINED}
              WHERE o.account = ? AND o.kind IN ({_marks(kinds)}) AND {_OPEN}
                AND (d.next_try IS NULL OR d.next_try <= ? OR d.next_try > ?) ORDER BY o.id LIMIT 1"""
    row = connection.execute(sql, (channel, account, *kinds, at, last)).fetchone()
    return _notification(row) if row else None


def overdue(
    connection: sqlite3.Connection, account: str, channel: str, kinds: Sequence[str], made_before: datetime
) -> list[Notification]:
    """Return what the channel has not delivered though it was made before an instant, oldest first."""
    sql = f"""SELECT {_COLUMNS} FROM {_JOINED}
              WHERE o.account = ? AND o.kind IN ({_marks(kinds)}) AND {_OPEN} AND o.made_at < ? ORDER BY o.id"""
    values = (channel, account, *kinds, to_us(made_before))
    return [_notification(row) for row in connection.execute(sql, values).fetchall()]


def waiting(connection: sqlite3.Connection, account: str, channel: str, kinds: Sequence[str]) -> int:
    """Count what the channel has neither delivered nor given up."""
    sql = f"SELECT count(*) FROM {_JOINED} WHERE o.account = ? AND o.kind IN ({_marks(kinds)}) AND {_OPEN}"
    return int(connection.execute(sql, (channel, account, *kinds)).fetchone()[0])


def record(connection: sqlite3.Connection, outcomes: Iterable[Outcome]) -> None:
    """Write what became of attempts, in one transaction; what was delivered stays so."""
    sql = """INSERT INTO outbox_deliveries (id, channel, attempts, next_try, delivered_at, given_up_at, error)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id, channel) DO UPDATE SET attempts = excluded.attempts, next_try = excluded.next_try,
               delivered_at = excluded.delivered_at, given_up_at = excluded.given_up_at, error = excluded.error
             WHERE delivered_at IS NULL"""
    rows = [(o.id, o.channel, o.attempts, o.next_try, o.delivered_at, o.given_up_at, o.error) for o in outcomes]
    with immediate(connection):
        connection.executemany(sql, rows)


def states(connection: sqlite3.Connection, account: str) -> list[ChannelState]:
    """Return how the channels that have tried anything stand, by name."""
    sql = """SELECT d.channel, count(d.delivered_at),
                    sum(d.delivered_at IS NULL AND d.given_up_at IS NULL), count(d.given_up_at),
                    (SELECT e.error FROM outbox_deliveries e JOIN outbox p USING (id)
                     WHERE e.channel = d.channel AND p.account = o.account AND e.delivered_at IS NULL
                     ORDER BY e.id DESC LIMIT 1)
             FROM outbox_deliveries d JOIN outbox o USING (id) WHERE o.account = ? GROUP BY d.channel ORDER BY 1"""
    return [
        ChannelState(channel=row[0], delivered=row[1], waiting=row[2], given_up=row[3], error=row[4])
        for row in connection.execute(sql, (account,)).fetchall()
    ]


def _notification(row: Sequence[Any]) -> Notification:
    number, event_id, account, kind, session, text, body, made_at, attempts, error = row
    return Notification(
        id=number,
        event_id=event_id,
        account=account,
        kind=kind,
        session=session,
        text=text,
        body=json.loads(body),
        made_at=from_us(made_at),
        attempts=attempts,
        error=error,
    )


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, from a headline, is no UTF-8
