"""What was computed of a text, kept on disk and found again by the text itself.

``ArrayCache`` holds one row of numbers for each text: ``EmbeddingCache`` the vectors of a frozen language model,
``models.sentiment.ScoreCache`` three scores. Each model's fingerprint has a folder of its own:

    manifest.json   fingerprint, width and dtype of a row
    values.bin      rows, one after the other: float16 or float32, little-endian; only ever appended to
    keys.bin        blake2b-128 of each row's text, in the same order

Values reach the disk before their keys do, so the rows that both files hold whole are the valid ones. Writers take
turns by a lock file, and each cuts what a killed one left half-written; readers need no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
import json
import os
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from models.keytable import KEY_BYTES, KeyTable, digests, distinct
from models.processes import pool
from trader.errors import ModelError, NoData, StoreError

Compute = Callable[[Sequence[str]], NDArray[np.floating]]
Results = Generator[NDArray[np.floating], None, None]
Progress = Callable[[int, int], None]

_MANIFEST, _VALUES, _KEYS = "manifest.json", "values.bin", "keys.bin"


class Encoder(Protocol):
    """What an EmbeddingCache asks of a language model; models.text.TextEncoder is one."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that change with everything that can change an embedding."""
        ...

    @property
    def width(self) -> int:
        """D, the length of one embedding."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embed texts: (n, D), each row from its own text alone."""
        ...


class ArrayCache:
    """One row of ``width`` numbers for each text ever asked for, computed on first use.

    Pickles as its path, so a worker process gets a reader of the same folder that computes nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        compute: Compute | None,
        part: int = 512,
        workers: int = 1,
        parallel_from: int = 2000,
    ) -> None:
        """Open a folder that has a manifest; ``create`` makes one.

        compute: texts to (n, width), or None for a reader.  part: texts computed and written at a time.
        workers: processes that compute where at least ``parallel_from`` texts are missing; the bits are the same.
        """
        manifest = _read_manifest(folder)
        self.folder, self.fingerprint, self.width = folder, str(manifest["fingerprint"]), int(manifest["width"])
        self._dtype = np.dtype(str(manifest["dtype"])).newbyteorder("<")
        self._compute, self._part, self._workers, self._parallel_from = compute, part, workers, parallel_from
        self._reset(0)

    @classmethod
    def reader(cls, folder: Path) -> Self:
        """Open a fingerprint's folder for look-ups only; raise StoreError where it is none."""
        cache = cls.__new__(cls)
        ArrayCache.__init__(cache, folder, compute=None)
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).reader, (self.folder,)

    def __len__(self) -> int:
        self._refresh()
        return self._rows

    def index(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.int64]:
        """Return the row of each text, (n,), after computing those that are not held yet.

        progress: called with (texts done, texts to compute) after each part that has reached the disk.
        Raise NoData where a reader meets a text that is not held, StoreError where the disk refuses.
        """
        keys = digests(texts)
        self._refresh()
        rows = self._table.find(keys)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            self._add(texts, keys, missing, progress)
            rows[missing] = self._table.find(keys[missing])
        return rows

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the numbers of these rows, (len(index), width); raise IndexError where there is no such row."""
        self._require(index)
        return np.asarray(self._values[index], dtype=np.float32)

    def keys_of(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the digests (n, 16) of the texts of these rows: a name for them that holds in every cache."""
        self._require(index)
        return np.asarray(self._keys[index])

    def _require(self, index: NDArray[np.int64]) -> None:
        if len(index) and int(np.max(index)) >= self._rows:
            self._refresh()  # the writing process may have added rows since
        if len(index) and not 0 <= int(np.min(index)) <= int(np.max(index)) < self._rows:
            raise IndexError(f"{self.folder} holds rows 0 … {self._rows - 1}")

    @property
    def _row_bytes(self) -> int:
        return self.width * self._dtype.itemsize

    def _on_disk(self) -> int:
        sizes = [(self.folder / _VALUES, self._row_bytes), (self.folder / _KEYS, KEY_BYTES)]
        return min(path.stat().st_size // size if path.exists() else 0 for path, size in sizes)

    def _refresh(self) -> None:
        rows = self._on_disk()
        if rows != self._rows:
            self._reset(rows)

    def _reset(self, rows: int) -> None:
        self._rows = rows
        if rows:  # an empty file cannot be mapped
            self._values: NDArray[Any] = np.memmap(self.folder / _VALUES, self._dtype, "r", shape=(rows, self.width))
            self._keys: NDArray[np.uint8] = np.memmap(self.folder / _KEYS, np.uint8, "r", shape=(rows, KEY_BYTES))
        else:
            self._values = np.empty((0, self.width), self._dtype)
            self._keys = np.empty((0, KEY_BYTES), np.uint8)
        self._table = KeyTable(self._keys)

    def _add(
        self, texts: Sequence[str], keys: NDArray[np.uint8], missing: NDArray[np.int64], progress: Progress | None
    ) -> None:
        from filelock import FileLock

        if self._compute is None:
            raise NoData("a text that was never computed", where=self.folder, got=texts[int(missing[0])][:80])
        # Held while computing: a second process that wants the same texts waits and then finds them.
        with FileLock(self.folder / "lock"):
            self._refresh()
            self._cut_torn_tail()
            missing = distinct(keys, missing[self._table.find(keys[missing]) < 0])
            # Texts of like length share a batch shape, so fewer dummies fill the last batch of each.
            lengths = np.fromiter((len(texts[row]) for row in missing), dtype=np.int64, count=len(missing))
            missing = missing[np.argsort(lengths, kind="stable")]
            parts = np.split(missing, range(self._part, len(missing), self._part)) if missing.size else []
            done = 0
            with closing(self._computed(texts, parts)) as results:  # stops the workers if the disk refuses
                for part, values in zip(parts, results, strict=True):
                    self._append(values, keys[part])
                    done += len(part)
                    if progress is not None:
                        progress(done, len(missing))
            self._refresh()

    def _computed(self, texts: Sequence[str], parts: Sequence[NDArray[np.int64]]) -> Results:
        assert self._compute is not None
        work = ([texts[row] for row in part] for part in parts)
        if self._workers > 1 and sum(map(len, parts)) >= self._parallel_from:
            yield from _in_processes(self._compute, work, min(self._workers, len(parts)))
        else:
            yield from map(self._compute, work)

    def _append(self, values: NDArray[np.floating], keys: NDArray[np.uint8]) -> None:
        if values.shape != (len(keys), self.width):
            raise ModelError("rows of another shape", where=self.folder, got=values.shape, expected=self.width)
        try:
            for name, rows in ((_VALUES, values.astype(self._dtype)), (_KEYS, keys)):
                with (self.folder / name).open("ab") as file:
                    file.write(np.ascontiguousarray(rows).tobytes())
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def _cut_torn_tail(self) -> None:
        try:
            for name, size in ((_VALUES, self._row_bytes), (_KEYS, KEY_BYTES)):
                path = self.folder / name
                if path.exists() and path.stat().st_size != self._rows * size:
                    os.truncate(path, self._rows * size)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


class EmbeddingCache(ArrayCache):
    """The embeddings of one frozen language model, half precision, memory-mapped; a ``models.base.Texts``."""

    @classmethod
    def open(cls, folder: Path, encoder: Encoder, *, workers: int = 1) -> EmbeddingCache:
        """Open or make the encoder's folder under ``folder``; the encoder is asked only for what is missing.

        workers: processes that embed where 2,000 texts or more are missing.
        """
        place = create(folder, encoder.fingerprint, encoder.width, "float16")
        return cls(place, compute=encoder.encode, workers=workers)


def create(folder: Path, fingerprint: str, width: int, dtype: str) -> Path:
    """Make the folder of a fingerprint under ``folder`` unless it is there; return it.

    Raise StoreError where it cannot be written or belongs to something else.
    """
    place = folder / fingerprint[:16]
    wanted = {"fingerprint": fingerprint, "width": width, "dtype": dtype}
    if not (place / _MANIFEST).exists():
        _write_manifest(place, wanted)
    found = _read_manifest(place)
    if {name: found.get(name) for name in wanted} != wanted:
        raise StoreError("a cache of another model", where=place, got=found, expected=wanted, do="remove the folder")
    return place


def _write_manifest(place: Path, manifest: dict[str, Any]) -> None:
    unfinished = place / f"{_MANIFEST}.{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(place / _MANIFEST)
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unwritable(place, error) from error


def _read_manifest(place: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        return {name: manifest[name] for name in ("fingerprint", "width", "dtype")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError("not a cache that can be read", where=place, got=error, do="remove the folder") from error


def _unwritable(place: Path, error: OSError) -> StoreError:
    return StoreError(
        "the cache cannot be written",
        where=place,
        got=error.strerror or error,
        do="free some space or choose another --home",
    )


_worker_compute: Compute | None = None


def _in_processes(compute: Compute, work: Iterable[list[str]], workers: int) -> Results:
    try:
        with pool(workers, _start_worker, compute) as processes:
            yield from processes.map(_compute_in_worker, work)
    except BrokenProcessPool as error:
        raise ModelError("a worker process died", got=error, do="set workers to 1, or free memory") from error


def _start_worker(compute: Compute) -> None:
    global _worker_compute
    _worker_compute = compute


def _compute_in_worker(texts: list[str]) -> NDArray[np.floating]:
    assert _worker_compute is not None
    return _worker_compute(texts)
