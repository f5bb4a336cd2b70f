"""Experiments from the store to their tables, on the toy market: small windows, small models, every promise kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
import os
from pathlib import Path
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest

from tests import builders
from trader import experiment
from trader.cells import Cells, ExperimentRow
from trader.config import Config, from_mapping
from trader.errors import ConfigError, ModelError, NoData
from trader.experiment import Request
from trader.methods import Reading, methods, points
from trader.outcome import Home
from trader.parts import Readers

SESSIONS = 330  # 120 of history, then windows of 60 every 45


def config(**experiment_keys: Any) -> Config:
    """Return settings for windows of 60 sessions and folds of 40 + 10, one worker, two lookbacks."""
    few = {"lookbacks": [1, 3], "search_lookback": 3, "seeds": 2, "trials": 2}
    spans = {"window": 60, "window_step": 45, "walk_step": 40}
    return from_mapping(
        {
            "walkforward": {"train": 40, "validation": 10},
            "compute": {"workers": 1},
            "evaluation": {"resamples": 100},
            "experiment": {**few, **spans, **experiment_keys},
            "model": {"finin": {"hidden": 16, "heads": 1, "qkv": 16, "epochs": 2, "batch_days": 20}},
        },
        "test",
    )


REQUEST = Request(markets=("toy",), news="toy", only=("logistic", "finin", "no_news"))


def readers(config: Config, home: Home, reading: Reading, market: str) -> Readers:
    """Read through TinyTexts; a named language model or scorer has no weights here, as on a machine without the hub."""
    if reading.text or reading.scorer:
        raise ModelError("weights not available", got=reading.text or reading.scorer, do="get them")
    return builders.readers()


def run(home: Path, settings: Config | None = None, request: Request = REQUEST) -> ExperimentRow:
    return experiment.run(settings or config(), home, request, readers=readers)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ExperimentRow]]:
    home = builders.a_home(tmp_path_factory.mktemp("experiment"), SESSIONS)
    yield home, run(home)


def test_every_method_lookback_split_and_seed_is_a_row_with_its_test_days(done: tuple[Path, ExperimentRow]) -> None:
    home, row = done
    with Cells.open(home / "ledger.db") as cells:
        found = [cell for cell in cells.of(row.id) if cell["protocol"] != "trial"]
        windows, folds = 4, 4
        assert len(found) == (windows + folds) * 2 * (1 + 1 + 2 + 1)  # Always Buy, logistic, FININ twice, no news
        for cell in found:
            days = cells.days(cell["cell"])
            assert len(days) == 5 if cell["protocol"] == "windows" else len(days) > 0
            assert cell["train_last"] < cell["validation_first"] <= cell["validation_last"] < days[0]["session"]


def test_trials_look_at_no_test_day(done: tuple[Path, ExperimentRow]) -> None:
    home, row = done
    with Cells.open(home / "ledger.db") as cells:
        trials = [cell for cell in cells.of(row.id) if cell["protocol"] == "trial"]
        assert len(trials) == 4  # two settings of FININ and two of its ablation; the others have nothing to choose
        assert all(cells.days(cell["cell"]) == [] for cell in trials)
        chosen = row.facts["settings"]["finin"]["toy"]
        best = min((cell for cell in trials if cell["shown"] == "finin"), key=lambda cell: cell["validation_loss"])
        assert best["setting"] == _json(chosen)


def test_all_methods_of_a_protocol_are_measured_on_the_same_days(done: tuple[Path, ExperimentRow]) -> None:
    home, row = done
    sessions: dict[str, set[tuple[str, ...]]] = {}
    with Cells.open(home / "ledger.db") as cells:
        for cell in cells.of(row.id):
            days = tuple(day["session"] for day in cells.days(cell["cell"]))
            if days:
                sessions.setdefault(f"{cell['protocol']} {cell['split']}", set()).add(days)
    assert len(sessions) == 8 and all(len(kinds) == 1 for kinds in sessions.values())


def test_a_finished_experiment_is_not_run_again(done: tuple[Path, ExperimentRow], monkeypatch: Any) -> None:
    home, row = done
    monkeypatch.setattr(experiment, "evaluate", None)  # whoever makes a cell fails
    assert run(home) == row


def test_a_stopped_experiment_goes_on_and_ends_as_an_undisturbed_one(
    done: tuple[Path, ExperimentRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    real, made = experiment.evaluate, []

    def interrupted(*arguments: Any) -> Any:
        made.append(arguments)
        if len(made) == 20:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(experiment, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(home)
    assert _statuses(home) == ["stopped"]
    again = run(home)
    assert len(made) == 20 + len(_all_cells(home)) - 19
    assert _all_days(home) == _all_days(done[0]) and again.facts["settings"] == done[1].facts["settings"]


def test_an_experiment_killed_at_any_point_is_resumed_with_its_own_settings(
    done: tuple[Path, ExperimentRow], tmp_path: Path
) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    script = "from tests import test_experiment as t; import pathlib, sys; t.run(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen([sys.executable, "-c", script, str(home)], env=environment)
    deadline = time.monotonic() + 120
    while not _cells_or_none(home) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 0 < len(_all_cells(home)) < len(_all_cells(done[0]))
    with Cells.open(home / "ledger.db") as cells:
        settings, request = experiment.resumed(cells.experiment(unfinished=True), Config())
    assert request == REQUEST and settings.experiment == config().experiment
    one_worker = replace(settings, compute=config().compute)
    experiment.run(one_worker, home, request, readers=readers)
    assert _all_days(home) == _all_days(done[0])


def test_a_row_whose_weights_are_not_there_says_so_and_is_filled_by_no_other(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    asked = replace(REQUEST, only=("roberta", "finbert", "gpt-4"))
    row = run(home, config(lookbacks=[1]), asked)
    missing = row.facts["missing"]
    assert "weights not available" in missing["roberta"]["toy"] and "weights" in missing["finbert"]["toy"]
    assert "no chat model" in missing["gpt-4"]["toy"]
    with Cells.open(home / "ledger.db") as cells:
        assert {cell["shown"] for cell in cells.of(row.id)} == {"always_buy"}


def test_later_news_changes_no_cell_that_could_not_know_it(done: tuple[Path, ExperimentRow], tmp_path: Path) -> None:
    days = builders.sessions(SESSIONS)
    builders.fill(tmp_path, builders.bars(days), builders.headlines(days[:300]))
    row = run(tmp_path)
    shared = 0
    with Cells.open(tmp_path / "ledger.db") as cells, Cells.open(done[0] / "ledger.db") as others:
        whole = {_where(cell): cell["cell"] for cell in others.of(done[1].id)}
        for cell in cells.of(row.id):
            mine = [day for day in cells.days(cell["cell"]) if day["session"] < str(days[300])]
            theirs = others.days(whole[_where(cell)]) if _where(cell) in whole else []
            for one, other in zip(mine, theirs, strict=False):
                assert {**one, "cell": ""} == {**other, "cell": ""}
                shared += 1
    assert shared > 100


def test_same_day_reading_is_a_target_of_its_own(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    row = run(home, config(), replace(REQUEST, target="same_day", only=("ridge", "logistic")))
    bars = {str(bar.session): bar.close for bar in builders.bars(builders.sessions(SESSIONS))}
    names = list(bars)
    with Cells.open(home / "ledger.db") as cells:
        found = [cell for cell in cells.of(row.id) if cell["protocol"] != "trial"]
        assert {cell["shown"] for cell in found} == {"always_buy", "ridge", "logistic"}
        assert {(cell["protocol"], cell["lookback"]) for cell in found} == {("walkforward", 1)}
        for day in cells.days(found[0]["cell"]):
            before = names[names.index(day["session"]) - 1]
            assert day["target_return"] == pytest.approx(bars[day["session"]] / bars[before] - 1)


def test_a_span_that_holds_no_fold_says_what_it_needs(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 150)
    with pytest.raises(NoData, match="too few sessions for one window or one fold"):
        run(home)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="got fnin, expected always_buy, naf, sentiments"):
        methods(Config(), (1, 2, 3), "next_day", ("fnin",))


def test_the_settings_tried_begin_with_the_defaults_and_repeat_none() -> None:
    space = {"layers": (2, 3, 4), "hidden": (16, 32, 64), "heads": (1, 3, 6), "qkv": (32, 64, 128)}
    tried = points(space, 9, 0)
    assert tried[0] == {} and len({str(one) for one in tried}) == 9
    assert tried == points(space, 9, 0) != points(space, 9, 1)


def _where(cell: Any) -> tuple[Any, ...]:
    return tuple(cell[key] for key in ("shown", "lookback", "protocol", "split", "seed", "setting"))


def _json(setting: Any) -> str:
    import json

    return json.dumps(setting, sort_keys=True)


def _query(home: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(home / "ledger.db") as db:
        return db.execute(sql).fetchall()


def _statuses(home: Path) -> list[str]:
    return [status for (status,) in _query(home, "SELECT status FROM experiments")]


def _all_cells(home: Path) -> list[Any]:
    return _query(home, "SELECT cell FROM cells ORDER BY cell")


def _all_days(home: Path) -> list[Any]:
    return _query(home, "SELECT * FROM cell_days ORDER BY cell, session")


def _cells_or_none(home: Path) -> list[Any]:
    try:
        return _all_cells(home)
    except sqlite3.OperationalError:
        return []
