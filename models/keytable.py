"""Which row a text has, among millions: 16-byte digests, sorted; no dictionary of Python objects.

``models.embeddings`` keeps the digests on disk beside what was computed of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
_HASHED_AT_ONCE = 65_536  # texts; bounds the memory of their digests as Python objects


def digests(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return the keys of texts, (n, 16): blake2b-128 of their UTF-8 bytes."""
    keys = np.empty((len(texts), KEY_BYTES), dtype=np.uint8)
    blake2b = hashlib.blake2b
    for first in range(0, len(texts), _HASHED_AT_ONCE):
        part = texts[first : first + _HASHED_AT_ONCE]
        # surrogatepass: a lone surrogate from broken JSON is a text like any other
        joined = b"".join(
            [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest() for text in part]
        )
        keys[first : first + len(part)] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES)
    return keys


class KeyTable:
    """Find the row of a key among millions, in 24 bytes a key.

    >>> table = KeyTable(digests(["rates", "oil"]))
    >>> table.find(digests(["oil", "gold"])).tolist()
    [1, -1]
    """

    def __init__(self, keys: NDArray[np.uint8]) -> None:
        """Take keys (n, 16); row i has key i."""
        first, second = _halves(keys)
        self._row = np.argsort(first, kind="stable")
        self._first, self._second = first[self._row], second[self._row]

    def __len__(self) -> int:
        return len(self._row)

    def find(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row of each key (n, 16), −1 where it is absent."""
        first, second = _halves(keys)
        rows = np.full(len(keys), -1, dtype=np.int64)
        place = np.searchsorted(self._first, first)
        looking = np.arange(len(keys))
        while looking.size:  # once, and again for a key whose first half another key shares
            looking = looking[place[looking] < len(self)]
            looking = looking[self._first[place[looking]] == first[looking]]
            same = self._second[place[looking]] == second[looking]
            rows[looking[same]] = self._row[place[looking[same]]]
            looking = looking[~same]
            place[looking] += 1
        return rows


def distinct(keys: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep the first of the ``rows`` of ``keys`` that hold the same key."""
    first, second = _halves(keys[rows])
    order = np.lexsort((second, first))
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
    return rows[np.sort(order[fresh])]


def _halves(keys: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    pairs = np.ascontiguousarray(keys).view("<u8").reshape(-1, 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
