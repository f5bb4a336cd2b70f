"""The market store: everything ever received, in one SQLite file, read only through ``as_of(instant)``.

It stands between the feeds, which write into it, and the scheduler and window, which read days from it.
Rows are added, never changed or deleted (the database itself refuses): a corrected bar is a new row with a
later ``known_at``, so that what a past decision saw can be seen again. Each call that writes is one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
import sqlite3
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from trader.clock import Clock, WallClock
from trader.errors import ConfigError, NoData, StoreError
from trader.events import Bar, NewsBatch, NewsRows, from_us, to_us
from trader.store_intake import Added, FileSource, NewsImport, add_bar, next_id, one_a_session, record_import
from trader.store_schema import connect, transaction, translated

__all__ = ["Added", "FileSource", "MarketStore", "Quarantined", "Span", "View"]

When = TypeVar("When", date, datetime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A row that could not be used: file name, its row number (the first data row is 1), why, and its text."""

    file: str
    row: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Span(Generic[When]):
    """How many there are, and the first and last session (bars) or known_at (news); None where there are none."""

    count: int
    first: When | None
    last: When | None


class MarketStore:
    """Keep bars and news; open it with ``MarketStore.open``, read it with ``as_of``. Not to be shared by threads."""

    def __init__(self, db: sqlite3.Connection, path: Path, clock: Clock) -> None:
        self._db, self._path, self._clock = db, path, clock

    @classmethod
    def open(
        cls, path: Path, *, clock: Clock | None = None, read_only: bool = False, wait_seconds: float = 60.0
    ) -> MarketStore:
        """Open the store, making its folder and tables where they are missing (unless read_only).

        clock: dates the imports. wait_seconds: how long a writer waits for another one.
        Raises StoreError in one line: not a database or not a market store, a newer or older schema,
        unreadable, locked, disk full.
        """
        return cls(connect(path, read_only=read_only, wait_seconds=wait_seconds), path, clock or WallClock())

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._db.close()

    def __enter__(self) -> MarketStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def as_of(self, instant: datetime) -> View:
        """Return the store as it was known at an instant; the only way to bars and news. Raises TimeError if naive."""
        to_us(instant)
        return View(self, instant)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything read inside be of one state of the file, whatever another program imports meanwhile.

        One inside another changes nothing. Nothing can be written through this store until it ends: StoreError.
        """
        if self._db.in_transaction:
            yield
            return
        with translated(self._path):
            self._db.execute("BEGIN")
        try:
            self._rows("SELECT 1 FROM news_sets LIMIT 1")  # SQLite takes its snapshot at the first read
            yield
        finally:
            with translated(self._path):
                self._db.execute("ROLLBACK")

    def add_bars(self, bars: Sequence[Bar], *, source: str, noticed_at: datetime | None = None) -> Added:
        """Store bars in one transaction, all or none; the same values again are not stored twice.

        Other values for a session that is there already are a revision: a new row beside the old one.
        noticed_at: from when a revision counts that says itself not to be known later than the bar it revises, as
        in a file that states sessions alone; by default there is no such time and it is refused.
        Raises BadBar where two different bars of one session are given or a revision is not known later than
        the bar it revises, StoreError where the database cannot be written.
        """
        unique, noticed = one_a_session(bars), None if noticed_at is None else to_us(noticed_at)
        with self._writing() as db:
            number = next_id(db, "imports")
            fates = [add_bar(db, bar, number, noticed) for bar in unique.values()]
            added = Added(
                new=fates.count("new"),
                known_already=fates.count("known already"),
                revised=fates.count("revised"),
                duplicates=len(bars) - len(unique),
            )
            if added.new or added.revised:
                record_import(db, number, None, FileSource(name=source), to_us(self._clock.now()), None, added)
        return added

    def add_news(self, name: str, pieces: Iterable[NewsRows], *, source: FileSource) -> Added:
        """Store the pieces of one source under a set's name, in one transaction that is open while they are read.

        A row is identified by (set, published_at, item id, headline, symbols). One that an earlier import stored
        is known_already; one repeated within this source goes to quarantine, as do the rows the feed refused.
        A second import of the same source adds nothing. If ``pieces`` raises, nothing of it is stored.
        Raises ConfigError where the set holds headlines of the same content read with other options, since those
        would stay as they are, StoreError where the database cannot be written, and whatever ``pieces`` raises.
        """
        with self._writing() as db:
            db.execute("INSERT INTO news_sets (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            self._refuse_another_reading(name, source)
            running = NewsImport(db, self._set_id(name), source)
            for piece in pieces:
                running.add(piece)
            return running.finish(to_us(self._clock.now()), file_is_known=self.has_file(name, source))

    def has_file(self, name: str, source: FileSource) -> bool:
        """Tell whether this content (where it has none, this name) was imported into the set with these options."""
        found = self._rows(
            "SELECT 1 FROM imports JOIN news_sets ON news_sets.id = news_set WHERE news_sets.name = ? "
            "AND options = ? AND sha256 = ? AND (sha256 <> '' OR source = ?) LIMIT 1",
            (name, source.options, source.sha256, source.name),
        )
        return bool(found)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self._db.in_transaction:
            raise StoreError("nothing can be written within a snapshot", where=self._path)
        with transaction(self._db, self._path) as db:
            yield db

    def _refuse_another_reading(self, name: str, source: FileSource) -> None:
        found = self._rows(
            "SELECT 1 FROM imports WHERE news_set = ? AND sha256 = ? AND sha256 <> '' AND options <> ? "
            "AND new + known_already > 0 LIMIT 1",
            (self._set_id(name), source.sha256, source.options),
        )
        if found:
            raise ConfigError(
                "the file is in this set already, read in another way",
                where=f"{source.name} in {name}",
                do="choose another --name",
            )

    def quarantine(self, name: str, limit: int = 100) -> list[Quarantined]:
        """Return the first rows of a set's quarantine, in order of import and row; raise NoData for an unknown set."""
        rows = self._rows(
            "SELECT source, file_row, reason, text FROM quarantine JOIN imports ON imports.id = quarantine.import "
            "WHERE quarantine.news_set = ? ORDER BY imports.id, file_row, reason, text LIMIT ?",
            (self._set_id(name), limit),
        )
        return [Quarantined(file=file, row=row, reason=reason, text=text) for file, row, reason, text in rows]

    def quarantine_counts(self, name: str) -> dict[str, int]:
        """Return how many rows of a set are in quarantine for each reason, most first; raise NoData likewise."""
        sql = (
            "SELECT reason, count(*) FROM quarantine WHERE news_set = ? GROUP BY reason ORDER BY count(*) DESC, reason"
        )
        return dict(self._rows(sql, (self._set_id(name),)))

    def names(self) -> dict[str, Span[datetime]]:
        """Return each news set with its number of headlines and its first and last known_at, by name."""
        rows = self._rows(
            "SELECT name, (SELECT count(*) FROM news WHERE news_set = s.id), "
            "(SELECT min(known_at) FROM news WHERE news_set = s.id), "
            "(SELECT max(known_at) FROM news WHERE news_set = s.id) FROM news_sets s ORDER BY name"
        )
        return {
            name: Span(count, from_us(first), from_us(last)) if count else Span(0, None, None)
            for name, count, first, last in rows
        }

    def symbols(self) -> dict[str, Span[date]]:
        """Return each symbol with its number of sessions and its first and last session, by symbol."""
        rows = self._rows(
            "SELECT symbol, count(DISTINCT session), min(session), max(session) FROM bars GROUP BY symbol"
        )
        return {s: Span(n, date.fromisoformat(first), date.fromisoformat(last)) for s, n, first, last in rows}

    def last_import(self) -> int:
        """Return the number of the newest import, 0 before the first; it changes with everything that is stored."""
        return int(self._rows("SELECT coalesce(max(id), 0) FROM imports")[0][0])

    def _set_id(self, name: str) -> int:
        found = self._rows("SELECT id FROM news_sets WHERE name = ?", (name,))
        if not found:
            known = ", ".join(row[0] for row in self._rows("SELECT name FROM news_sets ORDER BY name"))
            raise NoData("no such news set", where=self._path, got=name, expected=known or "none is stored yet")
        return int(found[0][0])

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        with translated(self._path):
            return self._db.execute(sql, values).fetchall()


@dataclass(frozen=True, slots=True)
class View:
    """The store as it was known at ``instant``: nothing with a later known_at is visible through it."""

    store: MarketStore
    instant: datetime

    def bar(self, symbol: str, session: date) -> Bar | None:
        """Return the newest version known of one bar, or None."""
        found = self.bars(symbol, session, session)
        return found[0] if found else None

    def bars(self, symbol: str, first: date, last: date) -> list[Bar]:
        """Return the bars of the sessions first..last, both included, one a session, oldest first.

        Each is the newest version known at the instant; a session without one is left out.
        """
        rows = self.store._rows(
            # SQLite takes the other columns from the row that holds the max().
            "SELECT symbol, session, max(known_at), open, high, low, close, adj_close, volume FROM bars "
            "WHERE symbol = ? AND session BETWEEN ? AND ? AND known_at <= ? GROUP BY session ORDER BY session",
            (symbol, first.isoformat(), last.isoformat(), to_us(self.instant)),
        )
        return [_bar(row) for row in rows]

    def bars_of(self, symbols: Sequence[str], session: date, after: datetime | None = None) -> dict[str, Bar]:
        """Return one session's bars of many symbols, the newest version known of each; a symbol without is left out.

        after: only those whose newest version became known later than this instant.
        """
        since = -1 if after is None else to_us(after)
        rows = self.store._rows(
            "SELECT symbol, session, max(known_at), open, high, low, close, adj_close, volume FROM bars "
            f"WHERE symbol IN ({', '.join('?' * len(symbols))}) AND session = ? AND known_at > ? AND known_at <= ? "
            "GROUP BY symbol",
            (*symbols, session.isoformat(), since, to_us(self.instant)),
        )
        return {row[0]: _bar(row) for row in rows}

    def first_known(self, symbol: str, first: date, last: date) -> dict[date, datetime]:
        """Return when the first version of each bar of the sessions first..last became known, oldest session first."""
        rows = self.store._rows(
            "SELECT session, min(known_at) FROM bars WHERE symbol = ? AND session BETWEEN ? AND ? AND known_at <= ? "
            "GROUP BY session ORDER BY session",
            (symbol, first.isoformat(), last.isoformat(), to_us(self.instant)),
        )
        return {date.fromisoformat(session): from_us(known_at) for session, known_at in rows}

    def news(self, name: str, after: datetime, until: datetime) -> NewsBatch:
        """Return the headlines of a set with after < known_at ≤ min(until, instant).

        Order: known_at, published_at, then item id, headline and symbols, so that it never depends on the order
        of import. Raises NoData for an unknown set, TimeError where an instant is naive.
        """
        rows = self.store._rows(
            "SELECT published_at, known_at, headline, symbols, item_id, negative, neutral, positive FROM news "
            "WHERE news_set = ? AND known_at > ? AND known_at <= ? "
            "ORDER BY known_at, published_at, item_id, headline, symbols",
            self._span(name, after, until),
        )
        published, known, headline, symbols, item_id, *sentiment = list(zip(*rows, strict=True)) or [()] * 8
        return NewsBatch(
            published_at=np.array(published, dtype=np.int64),
            known_at=np.array(known, dtype=np.int64),
            headline=headline,
            symbols=symbols,
            sentiment=np.array(sentiment, dtype=np.float32).T.copy(),  # (3, N) -> (N, 3); NULL becomes NaN
            item_id=item_id,
        )

    def news_count(self, name: str, after: datetime, until: datetime) -> int:
        """Return how many headlines ``news`` would return."""
        sql = "SELECT count(*) FROM news WHERE news_set = ? AND known_at > ? AND known_at <= ?"
        return int(self.store._rows(sql, self._span(name, after, until))[0][0])

    def _span(self, name: str, after: datetime, until: datetime) -> tuple[int, int, int]:
        return self.store._set_id(name), to_us(after), min(to_us(until), to_us(self.instant))


def _bar(row: tuple[Any, ...]) -> Bar:
    symbol, session, known_at, open_, high, low, close, adj_close, volume = row
    return Bar(
        symbol=symbol, session=date.fromisoformat(session), known_at=from_us(known_at), open=open_, high=high, low=low,
        close=close, adj_close=adj_close, volume=volume,
    )  # fmt: skip
