"""Stream a news file as pieces of raw columns: CSV and TSV, JSON Lines (each also .gz) and Parquet.

No piece holds more than ``batch_rows`` rows or about 32 MB of text, so a file of any size passes through.
What cannot be a row is Rejected here; what a row's cells mean is news_files' business. A piece does not depend on
its neighbours, so the rows are the same for any ``batch_rows``.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import csv
from dataclasses import dataclass, field
from functools import partial
import gzip
import io
from itertools import islice
import json
from pathlib import Path
from typing import IO, Any
import zlib

import numpy as np
from numpy.typing import NDArray

from trader.errors import BadFile
from trader.events import Rejected

TEXT_LIMIT = 500  # characters of a row that quarantine keeps
_PIECE_CHARACTERS = 32_000_000
_LONGEST_FIELD = 16_000_000
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Piece:
    """N raw rows: pyarrow columns by name, each row's number in the file, its text, and what was no row at all."""

    columns: dict[str, Any]
    row: NDArray[np.int64]
    text: Callable[[int], str]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """A news file: its column names (for a file without a header row, its first row) and how to stream it.

    typed: its times are stamps rather than texts, so that zeros may only mean that no more was known.
    pieces(wanted, names, batch_rows): the wanted columns; ``names`` are those of a file without a header row.
    """

    header: tuple[str, ...]
    typed: bool
    pieces: Callable[[Sequence[str], Sequence[str], int], Iterator[Piece]]


def open_table(path: Path) -> Table:
    """Read a file's header; raise BadFile where it is missing, empty, damaged or of an unknown kind."""
    if not path.exists():
        raise BadFile("no such file", where=path)
    if path.is_dir():
        raise BadFile("a folder, not a file", where=path, do="name the files in it")
    kind = path.suffixes[-2].lower() if path.suffix.lower() == ".gz" and len(path.suffixes) > 1 else path.suffix.lower()
    with _translated(path):
        if kind == ".parquet" and path.suffix.lower() == ".parquet":
            return _parquet(path)
        if kind in _DELIMITERS:
            return _delimited(path, _DELIMITERS[kind])
        if kind in _JSON_LINES:
            return _json_lines(path)
    raise BadFile(
        "not a kind of news file", where=path, got=path.suffix or "no suffix",
        expected=".csv, .tsv, .jsonl or .ndjson (each also .gz), or .parquet",
    )  # fmt: skip


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise BadFile("cannot be read", where=path, got=str(error) or type(error).__name__) from error


# Parquet


def _parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        header = tuple(file.schema_arrow.names)

    def pieces(wanted: Sequence[str], names: Sequence[str], batch_rows: int) -> Iterator[Piece]:
        first = 1
        with _translated(path), pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=batch_rows, columns=list(wanted)):
                rows = np.arange(first, first + len(batch), dtype=np.int64)
                columns = {name: batch.column(name) for name in wanted}
                yield Piece(columns, rows, partial(_parquet_text, batch))
                first += len(batch)

    return Table(header, True, pieces)


def _parquet_text(batch: Any, at: int) -> str:
    return str(batch.slice(at, 1).to_pylist()[0])[:TEXT_LIMIT]


# Text


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Read the bytes that are not UTF-8 as Windows' Western alphabet, the usual other one, and go on."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error("utf-8-or-cp1252", _as_cp1252)


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    with gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb") as raw:
        wide = raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "utf-8-or-cp1252")
        yield io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="")


class _Lines:
    """Lines for csv.reader that can be given back; ``taken`` are those of the record being read."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._stream.readline(_LONGEST_FIELD)
        if not line:
            self.ended = True
            raise StopIteration
        line = line.replace("\0", "") if "\0" in line else line
        self.taken.append(line)
        return line

    def give_back(self, lines: Sequence[str]) -> None:
        self._again.extendleft(reversed(lines))
        self.ended = False


def _records(stream: IO[str], delimiter: str, width: int | None) -> Iterator[tuple[list[str], int]]:
    """Yield each record's fields and its length in characters; blank lines are skipped.

    A stray quote makes csv swallow the lines after it. Such a record (it spans lines, and has not ``width``
    fields, goes on behind its closing quote, or never ends) is cut down to its first line, read with quotes
    as plain characters, and the other lines are read anew, so that one bad row costs one row.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.taken = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a field longer than any text: its closing quote is missing
            fields = []
        if len(lines.taken) > 1 and not (fields and _is_whole(lines, delimiter, width or len(fields))):
            lines.give_back(lines.taken[1:])
            del lines.taken[1:]
            fields = next(csv.reader(lines.taken, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        if fields:
            yield fields, sum(map(len, lines.taken))


def _is_whole(lines: _Lines, delimiter: str, width: int) -> bool:
    """Tell whether the lines taken are one record by the letter of the format, which csv reads generously."""
    try:
        records = list(csv.reader(lines.taken, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return not lines.ended and len(records) == 1 and len(records[0]) == width


def _delimited(path: Path, delimiter: str) -> Table:
    with _opened(path) as stream:
        line = stream.readline()
        if line.count(delimiter) == 0:  # a .csv may be split by semicolons, and a .tsv by commas
            delimiter = max((";", "\t", ",", "|"), key=line.count) if line.strip() else delimiter
    with _opened(path) as stream:
        header = tuple(name.strip() for name in next(_records(stream, delimiter, None), ([""], 0))[0])
    if not any(header):
        raise BadFile("an empty file", where=path, do="give a file with a header row")

    def pieces(wanted: Sequence[str], names: Sequence[str], batch_rows: int) -> Iterator[Piece]:
        import pyarrow as pa

        columns = tuple(names) or header
        places = {name: columns.index(name) for name in wanted}
        with _translated(path), _opened(path) as opened:
            records = _records(opened, delimiter, len(columns))
            if not names:
                next(records)
            for rows, numbers, rejected in _grouped(records, delimiter, len(columns), batch_rows):
                cells = {name: pa.array([row[at] for row in rows], type=pa.string()) for name, at in places.items()}
                yield Piece(cells, numbers, partial(_delimited_text, rows, delimiter), rejected)

    return Table(header, False, pieces)


def _delimited_text(rows: list[list[str]], delimiter: str, at: int) -> str:
    return delimiter.join(rows[at])[:TEXT_LIMIT]


def _grouped(
    records: Iterator[tuple[list[str], int]], delimiter: str, width: int, batch_rows: int
) -> Iterator[tuple[list[list[str]], NDArray[np.int64], list[Rejected]]]:
    rows: list[list[str]] = []
    numbers: list[int] = []
    rejected: list[Rejected] = []
    size = 0
    for number, (fields, length) in enumerate(records, start=1):
        if len(fields) > width and not any(cell.strip() for cell in fields[width:]):
            fields = fields[:width]  # commas at the end of a line hold nothing
        if len(fields) == width:
            rows.append(fields)
            numbers.append(number)
        else:
            reason = "too few fields" if len(fields) < width else "too many fields"
            rejected.append(Rejected(row=number, reason=reason, text=delimiter.join(fields)[:TEXT_LIMIT]))
        size += length
        if len(rows) >= batch_rows or len(rejected) >= batch_rows or size >= _PIECE_CHARACTERS:
            yield rows, np.array(numbers, dtype=np.int64), rejected
            rows, numbers, rejected, size = [], [], [], 0
    if rows or rejected:
        yield rows, np.array(numbers, dtype=np.int64), rejected


# JSON Lines


def _json_lines(path: Path) -> Table:
    names: dict[str, None] = {}
    with _opened(path) as stream:
        for line in islice(stream, 1000):  # later rows may lack a name, or have more
            names.update(dict.fromkeys(_json_object(line) or ()))
    if not names:
        raise BadFile("no JSON object in its first 1,000 lines", where=path, expected='one {"headline": …} a line')

    def pieces(wanted: Sequence[str], names: Sequence[str], batch_rows: int) -> Iterator[Piece]:
        with _translated(path), _opened(path) as opened:
            numbered = enumerate((line for line in opened if line.strip()), start=1)
            while lines := list(_up_to(numbered, batch_rows)):
                yield _json_piece(lines, wanted)

    return Table(tuple(names), False, pieces)


def _up_to(numbered: Iterator[tuple[int, str]], batch_rows: int) -> Iterator[tuple[int, str]]:
    size = 0
    for number, line in islice(numbered, batch_rows):
        yield number, line
        size += len(line)
        if size >= _PIECE_CHARACTERS:
            return


def _json_piece(lines: Sequence[tuple[int, str]], wanted: Sequence[str]) -> Piece:
    import pyarrow as pa

    read = [(number, line, _json_object(line)) for number, line in lines]
    good = [(number, line, found) for number, line, found in read if found is not None]
    rejected = [
        Rejected(row=number, reason="not a JSON object", text=line.strip()[:TEXT_LIMIT])
        for number, line, found in read
        if found is None
    ]
    columns = {
        name: pa.array([_json_text(found.get(name)) for _, _, found in good], type=pa.string()) for name in wanted
    }
    row = np.array([number for number, _, _ in good], dtype=np.int64)
    return Piece(columns, row, lambda at: good[at][1].strip()[:TEXT_LIMIT], rejected)


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _json_text(cell: object) -> str | None:
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else " ".join(map(str, cell)) if isinstance(cell, list) else str(cell)
    # Half a surrogate pair is legal in JSON and in no database.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
