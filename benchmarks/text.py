"""How fast texts become embeddings and scores, and how fast the caches answer when nothing is new.

    python benchmarks/text.py [headlines]

Real Reuters headlines where TRADER_TEST_DATA names the folder that holds them, else made-up ones of like length.
One line a measurement, and one of JSON at the end. On a shared machine believe the ratios, not the rates.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
import time
from typing import Literal

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.embeddings import EmbeddingCache, create
from models.keytable import digests
from models.sentiment import ScoreCache, Vader
from models.text import TextEncoder

WARM, MANY = 60_000, 2_000_000


def real_or_made_up(count: int) -> list[str]:
    """Distinct headlines, drawn with a fixed seed."""
    folder = os.environ.get("TRADER_TEST_DATA")
    if folder:
        import pyarrow.parquet as parquet

        column = parquet.read_table(Path(folder) / "reuters" / "headlines_2009.parquet", columns=["headline"])
        known = sorted(set(column["headline"].to_pylist()))
        return [known[row] for row in np.random.default_rng(0).permutation(len(known))[:count]]
    words = ("stocks", "oil", "rates", "profit", "falls", "rises", "bank", "dollar", "deal", "outlook", "cuts", "bonds")
    random = np.random.default_rng(0)
    return [f"{' '.join(random.choice(words, random.integers(4, 14)))} {number}" for number in range(count)]


def embed(texts: list[str], dtype: Literal["float32", "bfloat16"], workers: int) -> float:
    """Texts a second into an empty cache, start of the processes and loading of the model included."""
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache.open(Path(folder), TextEncoder.open(dtype=dtype), workers=workers)
        start = time.perf_counter()
        cache.index(texts)
        return len(texts) / (time.perf_counter() - start)


def in_fresh_process(*arguments: object) -> str:
    """Run this file for one figure: a first measurement must not load torch, or take memory, for a second."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def warm_index(folder: Path, texts: list[str]) -> dict[str, float]:
    """Seconds to look up known texts: among themselves, and among two million keys."""
    place = create(folder, "ab" * 32, 384, "float16")
    random = np.random.default_rng(0)
    others = random.integers(0, 256, (MANY - len(texts), 16), dtype=np.uint8)
    seconds = {}
    for name, keys in (("alone", digests(texts)), ("among 2 million", np.vstack([digests(texts), others]))):
        (place / "keys.bin").write_bytes(keys.tobytes())
        with (place / "values.bin").open("wb") as file:
            file.truncate(len(keys) * 384 * 2)  # sparse: no bytes on the disk
        start = time.perf_counter()
        cache = EmbeddingCache.reader(place)
        opened_rows = len(cache)
        opened = time.perf_counter()
        cache.index(texts)
        assert opened_rows == len(keys)
        seconds[f"open, {name}"] = opened - start
        seconds[f"index of {len(texts):,}, {name}"] = time.perf_counter() - opened
    return seconds


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        print(index_memory(known="known" in sys.argv))
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000
    if len(sys.argv) == 4:
        dtype: Literal["float32", "bfloat16"] = "float32" if sys.argv[2] == "float32" else "bfloat16"
        print(embed(real_or_made_up(count), dtype, int(sys.argv[3])))
        return
    figures: dict[str, float] = {}

    def note(name: str, value: float, unit: str) -> None:
        figures[f"{name} [{unit}]"] = round(value, 4)
        print(f"{name:<44}{value:>12,.3f} {unit}", flush=True)

    start = time.perf_counter()
    TextEncoder.open()
    note("open MiniLM: hash its files, load nothing", time.perf_counter() - start, "s")
    for dtype_name, workers in (("float32", 1), ("bfloat16", 1), ("float32", 2), ("bfloat16", 2)):
        rate = float(in_fresh_process(count, dtype_name, workers))
        note(f"embed {count:,}, {dtype_name}, {workers} process(es)", rate, "texts/s")
    texts = real_or_made_up(WARM)
    start = time.perf_counter()
    digests(texts)
    note("key of a text", (time.perf_counter() - start) / len(texts) * 1e6, "µs")
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in warm_index(Path(folder), texts).items():
            note(name, seconds, "s")
        for workers in (1, 2):
            cache = ScoreCache.open(Path(folder) / str(workers), Vader(), workers=workers)
            start = time.perf_counter()
            cache.scores(texts)
            note(f"VADER, {workers} process(es)", len(texts) / (time.perf_counter() - start), "texts/s")
        start = time.perf_counter()
        cache.scores(texts)
        note(f"VADER, {WARM:,} known", time.perf_counter() - start, "s")
    note(f"memory to index {MANY:,} new texts", float(in_fresh_process("memory")), "MiB")
    note(f"memory to index {MANY:,} known texts", float(in_fresh_process("memory", "known")), "MiB")
    print(json.dumps(figures))


class ZeroEncoder:
    """No model at all, so that only the cache's own memory is seen."""

    fingerprint, width = "00" * 32, 4

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        return np.zeros((len(texts), self.width), dtype=np.float16)


def index_memory(known: bool) -> float:
    """MiB that indexing two million texts adds to the peak, the texts themselves apart."""
    texts = [f"a headline of the length that headlines have, number {number}" for number in range(MANY)]
    with tempfile.TemporaryDirectory() as folder:
        place = create(Path(folder), ZeroEncoder.fingerprint, ZeroEncoder.width, "float16")
        cache = EmbeddingCache(place, compute=ZeroEncoder().encode, part=65_536)
        if known:
            (place / "keys.bin").write_bytes(digests(texts).tobytes())
            (place / "values.bin").write_bytes(bytes(MANY * ZeroEncoder.width * 2))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cache.index(texts)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
