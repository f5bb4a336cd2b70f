"""Trained models on disk: safetensors and a JSON manifest in a folder named by content.

A model's id is the hash of everything that shaped it, its training data included; so a model found under an id IS the
one that training again would give. Files are written under a temporary name, fsynced and renamed. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
import hashlib
import json
import os
from pathlib import Path
import shutil
import socket
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.base import Weights
from trader.errors import ModelError

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
UNFINISHED = ".part-"
FALLEN_BACK = "@"  # between a model's id and the device that it decided on instead of its own
STALE_S = 24 * 3600  # no model takes as long to write, so its writer was killed


class Registry:
    """The folder of trained models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, model_id: str) -> bool:
        """Tell whether a whole model of this id is there."""
        return (self.folder / model_id / MANIFEST).is_file()

    def save(self, model_id: str, weights: Mapping[str, NDArray[np.generic]], manifest: Mapping[str, Any]) -> None:
        """Write a model, whole or not at all; one that is already there stays."""
        from safetensors.numpy import save

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            blob = save({name: np.array(value, order="C") for name, value in weights.items()})
            facts = {**manifest, "weights_sha256": hashlib.sha256(blob).hexdigest()}
            temporary = Path(
                tempfile.mkdtemp(prefix=f"{UNFINISHED}{socket.gethostname()}-{os.getpid()}-", dir=self.folder)
            )
            try:
                self._sweep(temporary)
                _write(temporary / WEIGHTS, blob)
                _write(temporary / MANIFEST, json.dumps(facts, indent=1, sort_keys=True).encode())
                _sync_folder(temporary)
                self._put(temporary, model_id)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise ModelError(
                "the model cannot be written", where=self.folder, got=error.strerror, do="free space or choose --home"
            ) from error

    def sweep(self) -> int:
        """Remove what killed writers left; return how many. What a living process, or another machine, writes stays."""
        left = [one for one in self.folder.glob(f"{UNFINISHED}*") if not _may_be_written(one)]
        for one in left:
            shutil.rmtree(one, ignore_errors=True)
        return len(left)

    def discard(self, model_id: str) -> None:
        """Remove a damaged model, so that training it again writes it anew; one that is not there is no error."""
        aside = self.folder / f"{UNFINISHED}{model_id}"
        with suppress(FileNotFoundError):
            (self.folder / model_id).rename(aside)  # at once, so that no half of it is ever seen
        shutil.rmtree(aside, ignore_errors=True)

    def ids(self) -> list[str]:
        """Return the ids of all models that have a manifest, by name."""
        if not self.folder.is_dir():
            return []
        return sorted(one.name for one in self.folder.iterdir() if one.name[0] != "." and self.has(one.name))

    def size(self, model_id: str) -> int:
        """Return the bytes of a model's weights; 0 where they are missing."""
        path = self.folder / model_id / WEIGHTS
        return path.stat().st_size if path.is_file() else 0

    def check(self, model_id: str) -> dict[str, Any]:
        """Return the manifest of a model whose files are whole; raise ModelError where they are not.

        Whole: the weights are those that the manifest names, and it says what the model learned from and how it went.
        """
        self.load(model_id)
        manifest = self.manifest(model_id)
        for part, key in (("spans", "last_seen"), ("report", "validation_loss")):
            if key not in (manifest.get(part) or {}):
                path = self.folder / model_id / MANIFEST
                raise ModelError(f"the manifest lacks its {part}", where=path, do="delete that folder and run again")
        return manifest

    def _sweep(self, newest: Path) -> None:
        """Remove what killed writers left, of other machines too; the age counts from the folder just made."""
        made = newest.stat().st_mtime
        for left in self.folder.glob(f"{UNFINISHED}*"):
            with suppress(FileNotFoundError):  # its writer, or another sweep, was faster
                if _is_dead(left) or made - left.stat().st_mtime > STALE_S:
                    shutil.rmtree(left, ignore_errors=True)

    def _put(self, temporary: Path, model_id: str) -> None:
        if self.has(model_id):
            return
        target = self.folder / model_id
        shutil.rmtree(target, ignore_errors=True)  # what is left of one that somebody deleted by half
        try:
            temporary.rename(target)
        except OSError:
            if not self.has(model_id):  # else another process was faster, with the same bits
                raise
        _sync_folder(self.folder)

    def manifest(self, model_id: str) -> dict[str, Any]:
        """Return the manifest; raise ModelError if the model is missing or its manifest unreadable."""
        path = self.folder / model_id / MANIFEST
        try:
            found = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError("no readable manifest", where=path, do="delete that folder and run again") from error
        return found

    def load(self, model_id: str) -> Weights:
        """Return the weights; raise ModelError if they are missing or not the ones that the manifest names."""
        from safetensors.numpy import load

        path = self.folder / model_id / WEIGHTS
        try:
            blob = path.read_bytes()
        except OSError as error:
            raise ModelError("weights missing", where=path, do="delete that folder and run again") from error
        if hashlib.sha256(blob).hexdigest() != self.manifest(model_id).get("weights_sha256"):
            raise ModelError(
                "weights are damaged: their hash differs from the manifest's",
                where=path,
                do="delete that folder and run again",
            )
        return dict(load(blob))


def weights_id(model_id: str) -> str:
    """Return the registry's name of the model that a signal names, which may end in the device that it fell back to.

    >>> weights_id("finin-0123@cpu"), weights_id("finin-0123")
    ('finin-0123', 'finin-0123')
    """
    return model_id.partition(FALLEN_BACK)[0]


def _writer_of(unfinished: Path) -> tuple[str, int] | None:
    """Return machine and process that an unfinished folder is named after; None where its name does not say."""
    host, _, pid = unfinished.name.removeprefix(UNFINISHED).rpartition("-")[0].rpartition("-")
    return (host, int(pid)) if host and pid.isdecimal() else None


def _is_dead(unfinished: Path) -> bool:
    """Tell whether the writer is known to be gone. A number that another process has got since then hides it."""
    writer = _writer_of(unfinished)
    if writer is None or writer[0] != socket.gethostname():
        return False
    try:
        os.kill(writer[1], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _may_be_written(unfinished: Path) -> bool:
    return _writer_of(unfinished) is not None and not _is_dead(unfinished)


def _write(path: Path, blob: bytes) -> None:
    with path.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
