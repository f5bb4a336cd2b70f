"""How each live feed is doing, in the ledger: one row an address, kept across restarts, with what to show its source.

``trader.polling`` writes it after each poll; a service asks ``silent`` before each decision, and abstains for the
reason that it gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from feeds.base import FeedState, LiveFeed
from trader.events import from_us, to_us
from trader.ledger_schema import connect, immediate, plain, store_errors

TABLE = """
CREATE TABLE IF NOT EXISTS feed_health (
  feed TEXT NOT NULL,                 -- its name in [feeds.NAME]; another account may use it for another address
  kind TEXT NOT NULL CHECK (kind IN ('prices', 'news')),
  address TEXT NOT NULL,              -- what the rest of the row is about: URL or symbol
  last_attempt INTEGER NOT NULL,      -- µs UTC
  last_success INTEGER,               -- µs UTC; null before the first
  last_new INTEGER,                   -- µs UTC: when a success last brought something new
  successes INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  failures_in_a_row INTEGER NOT NULL, -- 0 after a success
  items INTEGER NOT NULL,             -- new bars, revisions and headlines brought so far
  rejected INTEGER NOT NULL,          -- entries of its newest document that were refused
  skewed INTEGER NOT NULL,            -- entries of its newest document that claimed to come from the future
  server_ahead REAL,                  -- seconds: its clock minus ours, at the last answer that told
  error TEXT NOT NULL,                -- of the last attempt, one line; '' where that succeeded
  next_due INTEGER NOT NULL,          -- µs UTC
  etag TEXT NOT NULL,                 -- to be shown to the source: conditional GET
  last_modified TEXT NOT NULL,
  PRIMARY KEY (feed, address)
) STRICT, WITHOUT ROWID"""

# One row a success, for some days: whether a feed was well at a decision is asked after it too.
ANSWERS = """
CREATE TABLE IF NOT EXISTS feed_answers (
  feed TEXT NOT NULL,
  address TEXT NOT NULL,
  at INTEGER NOT NULL,                -- µs UTC
  brought INTEGER NOT NULL,           -- 1 where it brought something new
  PRIMARY KEY (feed, address, at)
) STRICT, WITHOUT ROWID"""
KEPT = timedelta(days=30)  # longer than any sensible stale_hours or silent_hours, and than a machine is asleep

_COUNTED = ("successes", "failures", "items")
_WRITE = """
INSERT INTO feed_health VALUES (:feed, :kind, :address, :last_attempt, :last_success, :last_new, :successes, :failures,
  :failures_in_a_row, :items, :rejected, :skewed, :server_ahead, :error, :next_due, :etag, :last_modified)
ON CONFLICT (feed, address) DO UPDATE SET kind = :kind, last_attempt = :last_attempt,
  last_success = :last_success, last_new = :last_new, successes = :successes, failures = :failures,
  failures_in_a_row = :failures_in_a_row, items = :items, rejected = :rejected, skewed = :skewed,
  server_ahead = :server_ahead, error = :error, next_due = :next_due, etag = :etag, last_modified = :last_modified"""
_MICROSECOND = timedelta(microseconds=1)
_INSTANTS = ("last_attempt", "last_success", "last_new", "next_due")


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResult:
    """What became of one poll.

    at: when it began.  done: when its answer was stored.  next_due: when the feed is asked again.
    new, revised: stored now.  known: seen before.  rejected, skewed: see ``feed_health``.
    error: one line, "" for a success.  state: to be shown at the next fetch.
    """

    feed: str
    kind: str
    address: str
    at: datetime
    done: datetime
    next_due: datetime
    new: int = 0
    revised: int = 0
    known: int = 0
    rejected: int = 0
    skewed: int = 0
    not_modified: bool = False
    server_ahead_seconds: float | None = None
    error: str = ""
    state: FeedState = field(default_factory=FeedState)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRow:
    """A row of ``feed_health``, its instants aware."""

    feed: str
    kind: str
    address: str
    last_attempt: datetime
    last_success: datetime | None
    last_new: datetime | None
    successes: int
    failures: int
    failures_in_a_row: int
    items: int
    rejected: int
    skewed: int
    server_ahead: float | None
    error: str
    next_due: datetime
    etag: str
    last_modified: str


class Health:
    """The table ``feed_health`` of a ledger file, open. Use as a context manager, from one thread."""

    def __init__(self, db: Any, path: Path) -> None:
        self._db, self._path = db, path

    @classmethod
    def open(cls, path: Path, *, wait_seconds: float = 5.0) -> Health:
        """Open the ledger, making file and table where they are missing; raise StoreError where that cannot be.

        wait_seconds: how long a write waits for another program that writes.
        """
        db = connect(path, wait_seconds=wait_seconds)
        with store_errors(path), immediate(db.conn):
            db.conn.execute(TABLE)
            db.conn.execute(ANSWERS)
        return cls(db, path)

    def __enter__(self) -> Health:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with store_errors(self._path):
            self._db.close()

    def rows(self) -> list[HealthRow]:
        """Return every feed that was ever asked, by name and address."""
        return self._read("SELECT * FROM feed_health ORDER BY feed, address")

    def row(self, feed: LiveFeed | PollResult) -> HealthRow | None:
        """Return one feed's row, None where it was never asked at its address."""
        name = feed.name if isinstance(feed, LiveFeed) else feed.feed
        found = self._read("SELECT * FROM feed_health WHERE feed = ? AND address = ?", name, feed.address)
        return found[0] if found else None

    def state(self, feed: LiveFeed) -> FeedState:
        """Return what to show the source; nothing where it was never asked at its address."""
        row = self.row(feed)
        return FeedState() if row is None else FeedState(etag=row.etag, last_modified=row.last_modified)

    def record(self, result: PollResult) -> HealthRow:
        """Write one poll into its feed's row, in one transaction, and return the row.

        A feed whose address changed starts another row. A failure leaves what is about the last success as it was.
        """
        with store_errors(self._path), immediate(self._db.conn):
            after = _after(self.row(result), result)
            values = plain(tuple(after.values()), f"feed {result.feed}")
            self._db.conn.execute(_WRITE, dict(zip(after, values, strict=True)))
            if not result.error:
                self._keep(result, brought=after["last_new"] == after["last_success"])
        found = self.row(result)
        assert found is not None
        return found

    def _keep(self, result: PollResult, brought: bool) -> None:
        """Keep one success, and forget those of before ``KEPT``."""
        done = to_us(result.done)
        row = (result.feed, result.address, done, int(brought))
        self._db.conn.execute("INSERT OR REPLACE INTO feed_answers VALUES (?, ?, ?, ?)", row)
        self._db.conn.execute("DELETE FROM feed_answers WHERE at < ?", (done - KEPT // _MICROSECOND,))

    def _as_of(self, row: HealthRow, at: datetime) -> HealthRow:
        """Return a feed's row with its last success and its last news as they were at an instant that is past."""
        if row.last_success is None or row.last_success <= at:
            return row
        sql = "SELECT max(at) AS success, max(CASE WHEN brought THEN at END) AS new FROM feed_answers WHERE feed = ? "
        with store_errors(self._path):
            [held] = self._db.query(sql + "AND address = ? AND at <= ?", (row.feed, row.address, to_us(at)))
        if held["success"] is None:
            return row
        new = None if held["new"] is None else from_us(held["new"])
        return replace(row, last_success=from_us(held["success"]), last_new=new, error="")

    def stale(self, feed: LiveFeed, now: datetime) -> str:
        """Say in one line why nothing should be decided on this feed, "" where it is well.

        now: the decision's instant; what the feed answered later counts for nothing.
        It was never asked, never answered, has not answered for ``stale_after_seconds``, or has brought nothing
        new for ``silent_after_seconds``. A last success far after ``now`` (asked too late, or the clock was set back)
        proves nothing.
        """
        row = self.row(feed)
        row = row if row is None else self._as_of(row, now)
        if row is None:
            return f"feed {feed.name} was never asked"
        error = f" ({row.error})" if row.error else ""
        if row.last_success is None:
            return f"feed {feed.name} has never answered{error}"
        allowed = timedelta(seconds=feed.stale_after_seconds)
        stale = f"feed {feed.name} is stale: last success {_minute(row.last_success)}"
        if now - row.last_success > allowed:
            return f"{stale}, older than {_span(feed.stale_after_seconds)}{error}"
        if row.last_success - now > allowed:
            by, later = _minute(now), _minute(row.last_success)
            return f"feed {feed.name} had not answered by {by}; its last success, {later}, is later{error}"
        if not feed.silent_after_seconds:
            return ""
        if row.last_new is None:
            return f"feed {feed.name} is silent: it has brought nothing yet"
        if now - row.last_new > timedelta(seconds=feed.silent_after_seconds):
            limit = _span(feed.silent_after_seconds)
            return f"feed {feed.name} is silent: nothing new since {_minute(row.last_new)}, longer than {limit}"
        return ""

    def _read(self, sql: str, *values: object) -> list[HealthRow]:
        with store_errors(self._path):
            found = list(self._db.query(sql, values))
        return [HealthRow(**{name: _instant(name, value) for name, value in row.items()}) for row in found]


def silent(health: Health, feeds: Iterable[LiveFeed], at: datetime) -> str:
    """Say why a decision at this instant must abstain: every feed that is stale or silent; "" where none is.

    at: when the decision is made. Raises TimeError if it is naive.
    """
    to_us(at)
    return "; ".join(reason for feed in feeds if (reason := health.stale(feed, at)))


def _after(before: HealthRow | None, result: PollResult) -> dict[str, object]:
    """Return the row after a poll, instants in µs."""
    good, done = not result.error, to_us(result.done)
    brought = result.new + result.revised
    last_success, last_new = (_us(before.last_success), _us(before.last_new)) if before else (None, None)
    # What another feed, or an import, brought before is new from this feed as long as it has brought nothing.
    if good and (brought or (last_new is None and result.known)):
        last_new = done
    document = good and not result.not_modified  # else the newest document is still the one before
    state = result.state if good else FeedState()
    if before and not good:
        state = FeedState(etag=before.etag, last_modified=before.last_modified)
    ahead = result.server_ahead_seconds
    counts = {"successes": int(good), "failures": int(not good), "items": brought}
    return {
        "feed": result.feed, "kind": result.kind, "address": result.address, "last_attempt": to_us(result.at),
        "last_success": done if good else last_success, "last_new": last_new,
        **{name: counts[name] + (getattr(before, name) if before else 0) for name in _COUNTED},
        "failures_in_a_row": 0 if good else 1 + (before.failures_in_a_row if before else 0),
        "rejected": result.rejected if document else before.rejected if before else 0,
        "skewed": result.skewed if document else before.skewed if before else 0,
        "server_ahead": ahead if ahead is not None else before.server_ahead if before else None,
        "error": result.error, "next_due": to_us(result.next_due),
        "etag": state.etag, "last_modified": state.last_modified,
    }  # fmt: skip


def _us(instant: datetime | None) -> int | None:
    return None if instant is None else to_us(instant)


def _instant(name: str, value: Any) -> Any:
    return from_us(value) if name in _INSTANTS and value is not None else value


def _minute(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
