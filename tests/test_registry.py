"""Models on disk: whole or not at all, found by content, refused when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from trader.errors import ModelError
from trader.registry import MANIFEST, WEIGHTS, Registry

ROOT = Path(__file__).parents[1]
NUMBERS = {"slope": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.array([0.5])}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path / "models")
    made.save("toy-1", NUMBERS, {"seed": 7})
    return made


def test_what_was_saved_is_loaded_bit_for_bit(registry: Registry) -> None:
    loaded = registry.load("toy-1")
    assert loaded.keys() == NUMBERS.keys()
    for name, value in NUMBERS.items():
        assert loaded[name].dtype == value.dtype
        assert np.array_equal(loaded[name], value)
    assert registry.manifest("toy-1")["seed"] == 7


def test_an_array_that_is_a_view_is_saved_by_its_values(registry: Registry) -> None:
    registry.save("toy-2", {"turned": NUMBERS["slope"].T}, {})
    assert np.array_equal(registry.load("toy-2")["turned"], NUMBERS["slope"].T)


def test_one_that_is_there_stays(registry: Registry) -> None:
    registry.save("toy-1", {"slope": np.zeros(1)}, {"seed": 8})
    assert registry.manifest("toy-1")["seed"] == 7
    assert [path.name for path in registry.folder.iterdir()] == ["toy-1"], "no temporary folder is left"


def test_one_that_somebody_deleted_by_half_is_written_anew(registry: Registry) -> None:
    (registry.folder / "toy-1" / MANIFEST).unlink()
    assert not registry.has("toy-1")
    registry.save("toy-1", NUMBERS, {"seed": 9})
    assert registry.manifest("toy-1")["seed"] == 9


@pytest.mark.parametrize("keep", [0, 50, -1])
def test_damaged_weights_are_refused(registry: Registry, keep: int) -> None:
    path = registry.folder / "toy-1" / WEIGHTS
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob if keep == -1 else blob[:keep])
    with pytest.raises(ModelError, match=r"weights are damaged.*delete that folder"):
        registry.load("toy-1")


def test_missing_weights_and_unreadable_manifests_are_refused(registry: Registry) -> None:
    with pytest.raises(ModelError, match="weights missing"):
        registry.load("toy-9")
    for text in ("{", "[1, 2]", "\xff"):
        (registry.folder / "toy-1" / MANIFEST).write_text(text, encoding="latin-1")
        with pytest.raises(ModelError, match="no readable manifest"):
            registry.manifest("toy-1")


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file stands in the way")
    with pytest.raises(ModelError, match="the model cannot be written") as caught:
        Registry(tmp_path / "models").save("toy-1", NUMBERS, {})
    assert "\n" not in str(caught.value)


KILLED = """
import os, shutil, signal, sys, tempfile
import numpy as np
from pathlib import Path
from trader import registry
step, calls = int(sys.argv[2]), 0
def point(name):
    global calls
    calls += 1
    print(name, flush=True)
    if calls == step:
        os.kill(os.getpid(), signal.SIGKILL)
def watched(owner, name):
    honest = getattr(owner, name)
    def call(*args, **named):
        point("before " + name)
        result = honest(*args, **named)
        point("after " + name)
        return result
    setattr(owner, name, call)
class Halved:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, blob):
        self.file.write(blob[: len(blob) // 2])
        self.file.flush()
        point("half of a write")
        self.file.write(blob[len(blob) // 2 :])
    def flush(self):
        self.file.flush()
    def fileno(self):
        return self.file.fileno()
opened = Path.open
def open_(path, mode="r", *args, **named):
    file = opened(path, mode, *args, **named)
    return Halved(file) if mode == "wb" else file
Path.open = open_
for owner, name in ((tempfile, "mkdtemp"), (os, "fsync"), (Path, "rename")):
    watched(owner, name)
registry.Registry(Path(sys.argv[1])).save("toy-1", {"slope": np.arange(6.0)}, {"seed": 7})
"""
# What a save does, in its order; a kill comes at each of these points.
POINTS = [
    *("before mkdtemp", "after mkdtemp"),
    *("half of a write", "before fsync", "after fsync"),  # the weights
    *("half of a write", "before fsync", "after fsync"),  # the manifest
    *("before fsync", "after fsync"),  # their folder
    *("before rename", "after rename"),
    *("before fsync", "after fsync"),  # the registry's folder
]


def _kill_at(folder: Path, step: int) -> list[str]:
    argv = [sys.executable, "-c", KILLED, str(folder), str(step)]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if step > 0 else 0), done.stderr
    return done.stdout.splitlines()


def test_a_kill_at_any_point_of_saving_leaves_a_whole_model_or_none(tmp_path: Path) -> None:
    assert _kill_at(tmp_path / "whole", 0) == POINTS
    renamed = POINTS.index("after rename")
    for step in range(1, len(POINTS) + 1):
        folder = tmp_path / str(step)
        assert _kill_at(folder, step) == POINTS[:step]
        registry = Registry(folder)
        there = step > renamed
        assert registry.has("toy-1") == there, "it appears by one rename, after everything in it is on the disk"
        assert registry.ids() == (["toy-1"] if there else [])
        left = [path for path in folder.iterdir() if path.name.startswith(".part-")]
        assert len(left) == (0 if there or step == 1 else 1)
        assert registry.sweep() == len(left)
        assert [path.name for path in folder.iterdir()] == (["toy-1"] if there else [])
        registry.save("toy-1", {"slope": np.arange(6.0)}, {"seed": 7})
        assert np.array_equal(registry.load("toy-1")["slope"], np.arange(6.0))


def test_nothing_in_a_model_is_a_pickle(registry: Registry) -> None:
    folder = registry.folder / "toy-1"
    assert sorted(os.listdir(folder)) == [MANIFEST, WEIGHTS]
    json.loads((folder / MANIFEST).read_text())
    length = int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
    assert set(json.loads((folder / WEIGHTS).read_bytes()[8 : 8 + length])) == {"slope", "bias"}


def test_what_killed_writers_left_is_removed_after_a_day(registry: Registry) -> None:
    for name, hours in ((".part-old", 30), (".part-new", 1), ("toy-0", 30)):
        (registry.folder / name).mkdir()
        (registry.folder / name / WEIGHTS).write_text("half")
        made = (registry.folder / name).stat().st_mtime - hours * 3600
        os.utime(registry.folder / name, (made, made))
    registry.save("toy-2", NUMBERS, {})
    assert sorted(os.listdir(registry.folder)) == [".part-new", "toy-0", "toy-1", "toy-2"]


def test_a_sweep_leaves_whole_models_alone_and_needs_no_folder(registry: Registry, tmp_path: Path) -> None:
    (registry.folder / ".part-new").mkdir()
    (registry.folder / ".part-new" / WEIGHTS).write_text("half")
    assert registry.sweep() == 1
    assert registry.ids() == ["toy-1"]
    assert Registry(tmp_path / "nowhere").sweep() == 0
    assert Registry(tmp_path / "nowhere").ids() == []


def test_a_sweep_leaves_what_a_living_process_or_another_machine_writes(registry: Registry) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host, dead = socket.gethostname(), int(gone.stdout)
    names = [f".part-{host}-{os.getpid()}-abc", f".part-{host}-{dead}-abc", f".part-elsewhere-{dead}-abc"]
    for name in names:
        (registry.folder / name).mkdir()
    registry.save("toy-2", NUMBERS, {})
    assert sorted(os.listdir(registry.folder)) == sorted([names[0], names[2], "toy-1", "toy-2"]), "the dead one is gone"
    (registry.folder / names[1]).mkdir()
    assert registry.sweep() == 1
    assert sorted(os.listdir(registry.folder)) == sorted([names[0], names[2], "toy-1", "toy-2"])


def test_a_discarded_model_is_gone_at_once_and_can_be_written_anew(registry: Registry) -> None:
    registry.discard("toy-1")
    registry.discard("toy-1")
    assert list(registry.folder.iterdir()) == []
    registry.save("toy-1", NUMBERS, {"seed": 9})
    assert registry.manifest("toy-1")["seed"] == 9


def test_a_model_is_whole_when_it_says_what_it_learned_from_and_its_hash_is_right(registry: Registry) -> None:
    whole = {"spans": {"last_seen": "2010-01-04"}, "report": {"validation_loss": 0.7}}
    registry.save("toy-2", NUMBERS, whole)
    assert registry.check("toy-2")["spans"] == whole["spans"]
    with pytest.raises(ModelError, match="the manifest lacks its spans"):
        registry.check("toy-1")
    registry.save("toy-3", NUMBERS, {"spans": whole["spans"]})
    with pytest.raises(ModelError, match="the manifest lacks its report"):
        registry.check("toy-3")
    (registry.folder / "toy-2" / WEIGHTS).write_bytes(b"other")
    with pytest.raises(ModelError, match="weights are damaged"):
        registry.check("toy-2")
