"""The cache on disk: every text computed once, found again whole, whatever was killed in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import hashlib
import json
import multiprocessing
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray
import pytest

from models.base import Texts
from models.embeddings import EmbeddingCache
from models.keytable import KeyTable, digests
from models.text import TextEncoder
from tests.tiny_models import tiny_model
from trader.errors import ModelError, NoData, StoreError

ROOT = Path(__file__).parents[1]
WIDTH = 8


def vector(text: str) -> NDArray[np.float16]:
    """Eight numbers that only this text has."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:WIDTH], dtype=np.uint8).astype(np.float16)


@dataclass
class HashEncoder:
    """An honest small encoder: a text's vector is its hash; it remembers what it was asked."""

    fingerprint: str = "ab" * 32
    width: int = WIDTH
    seconds_each: float = 0.0
    asked: list[str] = field(default_factory=list)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        self.asked += texts
        time.sleep(self.seconds_each * len(texts))
        return np.array([vector(text) for text in texts], dtype=np.float16).reshape(-1, self.width)


def headlines(count: int) -> list[str]:
    return [f"headline {number} " + "x" * (number % 7) for number in range(count)]


def assert_right(cache: EmbeddingCache, texts: list[str]) -> None:
    expected = np.array([vector(text) for text in texts], dtype=np.float32)
    assert np.array_equal(cache.rows(cache.index(texts)), expected)


def test_each_text_is_computed_once_whatever_the_order_and_however_often_it_comes(tmp_path: Path) -> None:
    encoder = HashEncoder()
    cache = EmbeddingCache.open(tmp_path, encoder)
    texts = ["b", "a", "b", "", "a much longer text"]
    assert_right(cache, texts)
    assert sorted(encoder.asked) == sorted(set(texts))
    assert_right(cache, texts[::-1])
    assert_right(EmbeddingCache.open(tmp_path, encoder), [*texts, "new"])
    assert sorted(encoder.asked) == sorted({*texts, "new"})
    assert cache.index([]).shape == (0,)
    assert cache.rows(cache.index([])).shape == (0, WIDTH)


def test_a_cache_is_what_models_take_for_texts(tmp_path: Path) -> None:
    texts: Texts = EmbeddingCache.open(tmp_path, HashEncoder())
    assert texts.width == WIDTH


def test_progress_counts_the_missing_texts_that_have_reached_the_disk(tmp_path: Path) -> None:
    cache = EmbeddingCache.open(tmp_path, HashEncoder())
    cache.index(headlines(100))
    seen: list[tuple[int, int]] = []
    cache.index(headlines(1200), lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1100), (1024, 1100), (1100, 1100)]


def test_a_write_torn_at_any_byte_loses_nothing_that_was_whole(tmp_path: Path) -> None:
    texts, random = headlines(40), np.random.default_rng(3)
    for trial in range(25):
        folder = tmp_path / str(trial)
        encoder = HashEncoder()
        whole = EmbeddingCache.open(folder, encoder)
        whole.index(texts)
        order = encoder.asked.copy()
        values, keys = whole.folder / "values.bin", whole.folder / "keys.bin"
        kept = []
        for path, row in ((values, 2 * WIDTH), (keys, 16)):
            size = int(random.integers(0, path.stat().st_size + 1))
            with path.open("r+b") as file:
                file.truncate(size)
            kept.append(size // row)
        encoder.asked.clear()
        again = EmbeddingCache.open(folder, encoder)
        assert len(again) == min(kept)
        assert_right(again, texts)
        assert sorted(encoder.asked) == sorted(order[min(kept) :])
        assert values.stat().st_size == 40 * 2 * WIDTH
        assert keys.stat().st_size == 40 * 16
        assert_right(EmbeddingCache.reader(again.folder), texts)


def append_slowly(folder: Path, first: int, count: int) -> None:
    cache = EmbeddingCache(
        EmbeddingCache.open(folder, HashEncoder()).folder, compute=HashEncoder(seconds_each=1e-4).encode, part=50
    )
    for start in range(first, first + count, 100):
        texts = headlines(first + count)[start : start + 100]
        assert_right(cache, texts)


def test_two_processes_that_append_at_once_keep_each_others_rows(tmp_path: Path) -> None:
    start = multiprocessing.get_context("spawn").Process
    writers = [start(target=append_slowly, args=(tmp_path, first, 1000)) for first in (0, 500)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    encoder = HashEncoder()
    cache = EmbeddingCache.open(tmp_path, encoder)
    assert_right(cache, headlines(1500))
    assert (encoder.asked, len(cache)) == ([], 1500)


def test_a_writer_that_is_killed_leaves_a_cache_that_goes_on(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.test_embeddings import append_slowly; "
        f"append_slowly(Path({str(tmp_path)!r}), 0, 99_999)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    cache = EmbeddingCache.open(tmp_path, HashEncoder())
    deadline = time.perf_counter() + 60
    while len(cache) < 200 and time.perf_counter() < deadline:
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    assert len(cache) >= 200
    assert_right(cache, headlines(len(cache) + 300))


def test_the_number_of_processes_changes_no_bit(tmp_path: Path) -> None:
    encoder = TextEncoder.open(str(tiny_model(tmp_path / "model")), dtype="float32")
    texts = [f"oil {number} " + "rises " * (number % 20) for number in range(2100)]
    one = EmbeddingCache.open(tmp_path / "one", encoder)
    two = EmbeddingCache.open(tmp_path / "two", encoder, workers=2)
    assert np.array_equal(one.rows(one.index(texts)), two.rows(two.index(texts[::-1]))[::-1])


class FailingEncoder(HashEncoder):
    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        if "headline 0 " in texts:
            raise ModelError("the model cannot be loaded", where="a folder", got="damaged")
        return super().encode(texts)


def test_a_worker_that_fails_is_reported_in_its_own_words(tmp_path: Path) -> None:
    cache = EmbeddingCache.open(tmp_path, FailingEncoder(), workers=2)
    with pytest.raises(ModelError, match=r"a folder: the model cannot be loaded \(got damaged\)"):
        cache.index(headlines(5000))
    assert len(cache) == 0


def read_in_child(cache: EmbeddingCache, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], str]:
    try:
        cache.index(["never seen"])
    except NoData as error:
        return cache.rows(index), str(error)
    raise AssertionError("a reader computed")


def test_a_worker_process_gets_a_reader_that_computes_nothing(tmp_path: Path) -> None:
    cache = EmbeddingCache.open(tmp_path, HashEncoder())
    index = cache.index(headlines(10))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        values, said = pool.apply(read_in_child, (cache, index))
    assert np.array_equal(values, cache.rows(index))
    assert "never computed" in said
    assert "never seen" in said


def test_a_reader_sees_rows_that_were_written_after_it_was_opened(tmp_path: Path) -> None:
    cache = EmbeddingCache.open(tmp_path, HashEncoder())
    reader = EmbeddingCache.reader(cache.folder)
    index = cache.index(headlines(10))
    assert np.array_equal(reader.rows(index), cache.rows(index))


def test_a_row_that_is_not_there_is_an_error_and_never_another_row(tmp_path: Path) -> None:
    cache = EmbeddingCache.open(tmp_path, HashEncoder())
    cache.index(["a", "b"])
    for wrong in (2, -1):
        with pytest.raises(IndexError, match="holds rows 0 … 1"):
            cache.rows(np.array([wrong]))


def test_keys_name_the_texts_whatever_rows_they_have(tmp_path: Path) -> None:
    texts = headlines(20)
    one = EmbeddingCache.open(tmp_path / "one", HashEncoder())
    two = EmbeddingCache.open(tmp_path / "two", HashEncoder())
    two.index(texts[10:])
    assert not np.array_equal(one.index(texts), two.index(texts))
    assert np.array_equal(one.keys_of(one.index(texts)), two.keys_of(two.index(texts)))
    assert np.array_equal(one.keys_of(one.index(texts)), digests(texts))


def test_two_keys_that_share_their_first_half_are_told_apart() -> None:
    keys = np.zeros((6, 16), dtype=np.uint8)
    keys[:, 15] = [3, 1, 2, 5, 4, 0]
    keys[5, 0] = 1
    table = KeyTable(keys)
    assert table.find(keys).tolist() == [0, 1, 2, 3, 4, 5]
    stranger = np.zeros((1, 16), dtype=np.uint8)
    assert table.find(stranger).tolist() == [-1]
    stranger[0, 15] = 9
    assert table.find(stranger).tolist() == [-1]


def test_each_model_has_a_folder_of_its_own_and_refuses_that_of_another(tmp_path: Path) -> None:
    one = EmbeddingCache.open(tmp_path, HashEncoder())
    other = EmbeddingCache.open(tmp_path, HashEncoder(fingerprint="cd" * 32))
    assert one.folder != other.folder
    with pytest.raises(StoreError, match="a cache of another model"):
        EmbeddingCache.open(tmp_path, HashEncoder(fingerprint="ab" * 31 + "00"))
    (one.folder / "manifest.json").write_text('{"fingerprint": ')
    with pytest.raises(StoreError, match="remove the folder"):
        EmbeddingCache.open(tmp_path, HashEncoder())
    with pytest.raises(StoreError, match="not a cache"):
        EmbeddingCache.reader(tmp_path)


def test_a_disk_that_fills_up_is_one_clear_line_and_what_was_whole_stays(tmp_path: Path) -> None:
    EmbeddingCache.open(tmp_path, HashEncoder()).index(["a"])
    code = (
        "import resource; from pathlib import Path; from tests.test_embeddings import *; "
        f"cache = EmbeddingCache.open(Path({str(tmp_path)!r}), HashEncoder()); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"  # room for six rows and a torn seventh
        "try: cache.index(headlines(50))\n"
        "except StoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "cannot be written (got File too large); free some space" in done.stdout, done.stderr
    encoder = HashEncoder()
    cache = EmbeddingCache.open(tmp_path, encoder)
    assert (cache.folder / "values.bin").stat().st_size == 100
    assert_right(cache, [*headlines(50), "a"])
    assert "a" not in encoder.asked


def test_an_encoder_that_returns_the_wrong_number_of_rows_is_refused(tmp_path: Path) -> None:
    class Careless(HashEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
            return super().encode(texts[1:])

    with pytest.raises(ModelError, match="rows of another shape"):
        EmbeddingCache.open(tmp_path, Careless()).index(["a", "b"])


def test_a_warm_cache_of_the_embedded_model_never_imports_torch(tmp_path: Path) -> None:
    EmbeddingCache.open(tmp_path, TextEncoder.open()).index(["oil falls"])
    code = (
        "import sys; from pathlib import Path; from models.text import TextEncoder; "
        "from models.embeddings import EmbeddingCache; "
        f"cache = EmbeddingCache.open(Path({str(tmp_path)!r}), TextEncoder.open()); "
        "print(cache.rows(cache.index(['oil falls'])).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(1, 384) False", done.stderr


def test_the_manifest_says_what_a_row_is(tmp_path: Path) -> None:
    cache = EmbeddingCache.open(tmp_path, HashEncoder())
    found = json.loads((cache.folder / "manifest.json").read_text())
    assert found == {"fingerprint": "ab" * 32, "width": WIDTH, "dtype": "float16"}
