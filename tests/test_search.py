"""The search for settings: all of a grid once, after a kill as if nothing had been, and what cannot be in one line."""

from __future__ import annotations

from collections.abc import Mapping
import math
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any

import pytest

from trader.errors import ConfigError, ModelError, StoreError
from trader.search import FININ_SPACE, SearchResult, search

ROOT = Path(__file__).parents[1]
BOWL = {"width": tuple(range(12)), "rate": tuple(0.1 * at for at in range(12))}


def bowl(settings: Mapping[str, Any]) -> float:
    """Lowest, at 0, in width 8 and rate 0.3."""
    return float((settings["width"] - 8) ** 2 + (settings["rate"] * 10 - 3) ** 2)


def what(found: SearchResult) -> list[tuple[Mapping[str, Any], float | None, str]]:
    return [(one.settings, one.value, one.reason) for one in found.trials]


def run(storage: Path, objective: Any = bowl, **changes: Any) -> SearchResult:
    given: dict[str, Any] = {"study": "bowl", "storage": storage, "trials": 12, "sampler": "tpe"}
    return search(objective, changes.pop("space", BOWL), **(given | changes))


def test_the_papers_grid_of_81_is_gone_through_once(tmp_path: Path) -> None:
    met: list[tuple[int, ...]] = []
    steps: list[tuple[int, int]] = []

    def objective(settings: Mapping[str, Any]) -> float:
        met.append(tuple(settings.values()))
        return abs(settings["hidden"] - 32) + settings["layers"] + abs(settings["heads"] - 3) + settings["qkv"]

    with_grid = {"sampler": "grid", "trials": None, "space": FININ_SPACE}
    found = run(tmp_path / "s.db", objective, **with_grid, progress=lambda *step: steps.append(step))
    assert len(met) == len(set(met)) == len(found.trials) == 81
    assert found.best == {"layers": 2, "hidden": 32, "heads": 3, "qkv": 32} and found.value == 34
    assert steps == [(at, 81) for at in range(1, 82)]
    assert what(run(tmp_path / "s.db", objective, **with_grid)) == what(found)
    assert len(met) == 81, "what was finished is not run again"


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_search_in_pieces_is_the_search_in_one_piece(tmp_path: Path, sampler: str) -> None:
    whole = run(tmp_path / "whole.db", sampler=sampler, trials=14)
    for trials in (3, 11, 14):
        pieces = run(tmp_path / "pieces.db", sampler=sampler, trials=trials)
    assert what(pieces) == what(whole)
    assert [one.now for one in pieces.trials] == [False] * 11 + [True] * 3
    assert what(run(tmp_path / "pieces.db", sampler=sampler, trials=5)) == what(whole)[:5]
    other = run(tmp_path / "other.db", sampler=sampler, trials=14, seed=1)
    assert what(other) != what(whole)


CHILD = """
from pathlib import Path
import sys, time
from tests.test_search import bowl, run
def slow(settings):
    count = Path(sys.argv[2])
    done = int(count.read_text() or 0)
    if done == 5:
        print("in the middle", flush=True)
        time.sleep(60)
    count.write_text(str(done + 1))
    return bowl(settings)
run(Path(sys.argv[1]), slow, sampler=sys.argv[3])
"""


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_killed_search_goes_on_as_if_nothing_had_been(tmp_path: Path, sampler: str) -> None:
    storage, count = tmp_path / "a folder" / "s.db", tmp_path / "count"
    count.write_text("0")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(storage), str(count), sampler]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "in the middle\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    ran: list[Mapping[str, Any]] = []

    def counting(settings: Mapping[str, Any]) -> float:
        ran.append(settings)
        return bowl(settings)

    resumed = run(storage, counting, sampler=sampler)
    assert len(ran) == 7, "five were finished, the sixth was killed and is run anew"
    assert what(resumed) == what(run(tmp_path / "undisturbed.db", sampler=sampler))


def test_tpe_comes_lower_than_its_first_draws(tmp_path: Path) -> None:
    found = run(tmp_path / "s.db", trials=40)
    values = [one.value for one in found.trials if one.value is not None]
    assert found.value == min(values) < min(values[:10])
    assert sum(values[-10:]) < 0.5 * sum(values[:10])
    tried = [tuple(one.settings.values()) for one in found.trials]
    assert len(set(tried)) == 40, "no setting twice"


def test_tpe_ends_with_the_space(tmp_path: Path) -> None:
    space = {"head": ("mlp", "cnn"), "news": (True, False), "cap": (None, 16)}
    found = run(tmp_path / "s.db", lambda settings: float(settings["news"]), space=space, trials=99)
    assert len(found.trials) == 8 and found.value == 0
    assert what(run(tmp_path / "s.db", space=space, trials=99)) == what(found)


def test_a_failing_setting_is_a_row_with_its_reason(tmp_path: Path) -> None:
    def objective(settings: Mapping[str, Any]) -> float:
        if settings["width"] % 3 == 0:
            raise ModelError("no such width", got=settings["width"])
        return math.nan if settings["width"] % 3 == 1 else bowl(settings)

    found = run(tmp_path / "s.db", objective, trials=24)
    reasons = {one.reason for one in found.trials if one.value is None}
    assert "the objective is nan" in reasons and any("no such width (got" in one for one in reasons)
    assert found.best["width"] % 3 == 2
    assert what(run(tmp_path / "s.db", trials=24)) == what(found), "failed ones are not run again"


def test_a_search_where_all_fails_says_so(tmp_path: Path) -> None:
    def objective(settings: Mapping[str, Any]) -> float:
        raise ModelError("too small")

    with pytest.raises(ModelError, match=r"bowl: every setting failed \(got 3 trials, the first: too small\)"):
        run(tmp_path / "s.db", objective, trials=3)


def test_a_bug_of_the_objective_passes_and_leaves_no_row(tmp_path: Path) -> None:
    def objective(settings: Mapping[str, Any]) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "s.db", objective)
    assert all(one.now for one in run(tmp_path / "s.db", trials=2).trials)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"space": {"width": (1, 2), "rate": (0.5,)}}, "space"),
        ({"sampler": "grid"}, "sampler"),
        ({"seed": 7}, "seed"),
        ({"about": "other headlines"}, "about"),
    ],
)
def test_a_study_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    run(tmp_path / "s.db", trials=2, about="these headlines")
    with pytest.raises(ConfigError, match=f"the study was made with another {key} .*another name"):
        run(tmp_path / "s.db", **{"about": "these headlines", "trials": 2, **changes})


@pytest.mark.parametrize("values", [(), (1, 1), ([1], [2])], ids=["none", "twice", "lists"])
def test_a_space_that_cannot_be_searched_is_refused(tmp_path: Path, values: Any) -> None:
    with pytest.raises(ConfigError, match="width: a space that cannot be searched"):
        run(tmp_path / "s.db", space={"width": values})


def test_no_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trials to run"):
        run(tmp_path / "s.db", trials=0)


@pytest.mark.parametrize("name", ["a b.db", "50%20 why?.db"])
def test_a_storage_may_have_any_name(tmp_path: Path, name: str) -> None:
    run(tmp_path / "my home" / name, trials=1)
    assert (tmp_path / "my home" / name).is_file()


def test_a_file_that_is_no_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("not a database, but long enough to look like one" * 40)
    with pytest.raises(StoreError, match=r"the storage of the search cannot be used \(got .*not a database"):
        run(tmp_path / "s.db")


def test_nothing_is_printed_and_a_missing_optuna_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "s.db", trials=3)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"optuna, which is not installed; pip install .*\[search\]"):
        run(tmp_path / "s.db")
