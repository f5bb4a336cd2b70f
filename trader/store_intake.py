"""What the market store does with rows that arrive, inside its transaction; used by ``trader.store`` alone.

New rows are stored, known ones are counted, repeated and refused ones go to quarantine, corrections of a bar
become a later version of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
import hashlib
from itertools import repeat
from pathlib import Path
import sqlite3
from typing import Any
from zlib import crc32

from trader.errors import BadBar, BadFile
from trader.events import Bar, NewsRows, Rejected, from_us, to_us

DUPLICATE = "duplicate of an earlier row"
QUARANTINE_TEXT = 500  # characters kept of a refused row

_INSERT_NEWS = "INSERT INTO news VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# What live feeds have brought into a set; made when the first of them does.
_LIVE_ITEMS = """CREATE TABLE IF NOT EXISTS live_items (
    news_set INTEGER NOT NULL REFERENCES news_sets, item INTEGER NOT NULL, PRIMARY KEY (news_set, item)
) STRICT, WITHOUT ROWID"""
_NOTE_ITEM = "INSERT INTO live_items VALUES (?, ?) ON CONFLICT DO NOTHING"
_BAR = "symbol, session, known_at, open, high, low, close, adj_close, volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of the rows of one source.

    new: stored now. known_already: stored by an earlier import. revised: bars stored as a later version.
    rejected: refused by the feed, each in quarantine. duplicates: rows repeated within this source.
    """

    new: int = 0
    known_already: int = 0
    revised: int = 0
    rejected: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Where news comes from: a file by name and content, or a live feed by name alone (sha256 empty).

    options: how the file was read (columns, zone, delay), as text; other options make it another import.
    """

    name: str
    sha256: str = ""
    size: int = 0
    options: str = ""

    @classmethod
    def of(cls, path: Path, options: str = "") -> FileSource:
        """Describe a file on disk, reading it once; raise BadFile if it cannot be read."""
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(name=path.name, sha256=digest, size=path.stat().st_size, options=options)
        except OSError as error:
            raise BadFile("cannot be read", where=path, got=error.strerror, do="check the path") from error

    @property
    def key(self) -> str:
        """What quarantined rows are filed under: the content, or the name where there is none."""
        return self.sha256 or self.name


class NewsImport:
    """One import of news in progress, inside its transaction."""

    def __init__(self, db: sqlite3.Connection, news_set: int, source: FileSource) -> None:
        self.db, self.news_set, self.source = db, news_set, source
        self.number = next_id(db, "imports")
        self.first_id = self.next_id = next_id(db, "news")
        self.new = self.known_already = self.rejected = self.duplicates = self.quarantined = 0

    def add(self, piece: NewsRows) -> None:
        """Store a piece; the rows that turn out to be there already are settled one by one."""
        if piece.live:
            piece = self.unseen(piece)
        try:
            records = self.records(piece)
        except UnicodeEncodeError:
            piece = _without_broken_text(piece)
            records = self.records(piece)
        self.reject(piece.rejected)
        self.rejected += len(piece.rejected)
        first, self.next_id = self.next_id, self.next_id + len(records)
        before = self.db.total_changes
        self.db.executemany(f"{_INSERT_NEWS} ON CONFLICT (news_set, published_at, checksum) DO NOTHING", records)
        stored = self.db.total_changes - before
        self.new += stored
        if stored < len(records):
            kept = {row[0] for row in self.db.execute("SELECT id FROM news WHERE id >= ?", (first,))}
            self.reject([twin for record in records if record[0] not in kept for twin in self.settle(record)])

    def unseen(self, piece: NewsRows) -> NewsRows:
        """Leave out the entries that a live feed brought before, noting the others; within this transaction.

        Their published_at cannot tell: an entry without a date is dated anew at each look, and so is one that claims
        to come from the future, until the clock has reached it.
        """
        self.db.execute(_LIVE_ITEMS)
        texts = zip(piece.news.item_id, piece.news.headline, piece.news.symbols, strict=True)
        fresh: dict[int, int] = {}  # key -> position
        for at, key in enumerate(map(_item_key, texts)):
            if key in fresh:
                self.duplicates += 1
            elif self.db.execute(_NOTE_ITEM, (self.news_set, key)).rowcount:
                fresh[key] = at
            else:
                self.known_already += 1
        return _only(piece, list(fresh.values()))

    def records(self, piece: NewsRows) -> list[tuple[Any, ...]]:
        """Turn columns into rows of the table, of plain Python numbers: SQLite takes numpy's for bytes."""
        news = piece.news
        texts = zip(news.item_id, news.headline, news.symbols, strict=True)
        return list(
            zip(
                range(self.next_id, self.next_id + len(news)),
                repeat(self.news_set, len(news)),
                piece.row.tolist(),
                news.published_at.tolist(),
                news.known_at.tolist(),
                [crc32(f"{item}\x1f{headline}\x1f{symbols}".encode()) for item, headline, symbols in texts],
                news.item_id,
                news.headline,
                news.symbols,
                *news.sentiment.T.tolist(),  # NaN is stored as NULL
                strict=True,
            )
        )

    def settle(self, record: tuple[Any, ...]) -> list[Rejected]:
        """Say whether a row whose key is taken is a known one, a duplicate, or another text with the same checksum."""
        key, texts = list(record[1:6]), record[6:9]
        while found := self.db.execute(
            "SELECT id, item_id, headline, symbols FROM news WHERE news_set = ? AND published_at = ? AND checksum = ?",
            (key[0], key[2], key[4]),
        ).fetchone():
            if found[1:] == texts:
                if found[0] < self.first_id:
                    self.known_already += 1
                    return []
                self.duplicates += 1
                return [Rejected(row=record[2], reason=DUPLICATE, text=record[7])]
            key[4] += 1
        self.db.execute(_INSERT_NEWS, (record[0], *key, *record[6:]))
        self.new += 1
        return []

    def reject(self, rows: Sequence[Rejected]) -> None:
        """Put rows into quarantine, each once however often its file is imported."""
        before = self.db.total_changes
        self.db.executemany(
            "INSERT INTO quarantine (import, news_set, file, file_row, reason, text) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (news_set, file, file_row, reason, text) DO NOTHING",
            (
                (self.number, self.news_set, self.source.key, int(r.row), r.reason, _clean(r.text[:QUARANTINE_TEXT]))
                for r in rows
            ),
        )
        self.quarantined += self.db.total_changes - before

    def finish(self, at: int, *, file_is_known: bool) -> Added:
        """Write the row that records the import, unless a known file brought nothing."""
        added = Added(
            new=self.new, known_already=self.known_already, rejected=self.rejected, duplicates=self.duplicates
        )
        if self.new or self.quarantined or not file_is_known:
            span = (self.first_id, self.next_id - 1) if self.new else None
            record_import(self.db, self.number, self.news_set, self.source, at, span, added)
        return added


def next_id(db: sqlite3.Connection, table: str) -> int:
    """Return the id after the newest; safe because the writer holds the lock."""
    return int(db.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0])


def record_import(
    db: sqlite3.Connection,
    number: int,
    news_set: int | None,
    source: FileSource,
    at: int,
    news_ids: tuple[int, int] | None,
    added: Added,
) -> None:
    """Write the row of ``imports`` that bars, headlines and quarantined rows of this transaction point at."""
    db.execute(
        f"INSERT INTO imports VALUES ({', '.join('?' * 14)})",
        (number, news_set, source.name, source.sha256, source.size, source.options, at, *(news_ids or (None, None)),
         added.new, added.known_already, added.revised, added.rejected, added.duplicates),
    )  # fmt: skip


def one_a_session(bars: Sequence[Bar]) -> dict[tuple[str, date], Bar]:
    """Drop exact repetitions; raise BadBar where two bars of one session differ."""
    unique: dict[tuple[str, date], Bar] = {}
    for bar in bars:
        first = unique.setdefault((bar.symbol, bar.session), bar)
        if first != bar:
            raise BadBar(
                "twice the same session with different values",
                where=f"{bar.symbol} {bar.session}",
                got=f"close {first.close} and close {bar.close}",
                do="remove one of the two rows",
            )
    return unique


def add_bar(db: sqlite3.Connection, bar: Bar, number: int, noticed: int | None) -> str:
    """Store one bar; return "new", "revised" or "known already"; noticed: see ``MarketStore.add_bars``, in µs."""
    prices = tuple(float(v) for v in (bar.open, bar.high, bar.low, bar.close, bar.adj_close, bar.volume))
    known_at, session = to_us(bar.known_at), bar.session.isoformat()
    versions = db.execute(
        f"SELECT {_BAR} FROM bars WHERE symbol = ? AND session = ? ORDER BY known_at DESC", (bar.symbol, session)
    ).fetchall()
    if (versions and versions[0][3:] == prices) or (known_at, *prices) in [row[2:] for row in versions]:
        return "known already"
    if versions and known_at <= versions[0][2] and noticed is not None:
        known_at = noticed
    if versions and known_at <= versions[0][2]:
        raise BadBar(
            "other values for a stored bar, but not known later than it", where=f"{bar.symbol} {bar.session}",
            got=f"close {bar.close} known at {bar.known_at}",
            expected=f"close {versions[0][6]}, or known after {from_us(versions[0][2])}",
            do="import a correction with the time at which it became known",
        )  # fmt: skip
    db.execute(
        "INSERT INTO bars VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (bar.symbol, session, known_at, *prices, number)
    )
    return "revised" if versions else "new"


def _clean(text: str) -> str:
    """Replace what is not Unicode text (half a surrogate pair), which SQLite cannot hold."""
    return text.encode(errors="replace").decode()


def _without_broken_text(piece: NewsRows) -> NewsRows:
    """Move the rows that hold half a surrogate pair from the good to the rejected ones."""
    news, good = piece.news, []
    rejected = list(piece.rejected)
    for at, texts in enumerate(zip(news.item_id, news.headline, news.symbols, strict=True)):
        if all(_clean(text) == text for text in texts):
            good.append(at)
        else:
            rejected.append(Rejected(row=int(piece.row[at]), reason="not Unicode text", text=texts[1]))
    return replace(_only(piece, good), rejected=rejected)


def _only(piece: NewsRows, good: list[int]) -> NewsRows:
    """Keep the good rows at these positions."""
    return replace(piece, news=piece.news.take(good), row=piece.row[good])


def _item_key(texts: tuple[str, str, str]) -> int:
    """Return 64 bits of the hash of item id, headline and symbols, as SQLite's signed integer."""
    digest = hashlib.blake2b("\x1f".join(texts).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
