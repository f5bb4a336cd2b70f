"""Experiments from the store to their tables, on the toy market: small windows, small models, every promise kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
import json
import os
from pathlib import Path
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

from filelock import FileLock
import numpy as np
import pytest

from models.base import Days, Prediction
from tests import builders
from tests.test_chat import KEY, Server, servers
from trader import cell_work, experiment
from trader.cell_work import Job
from trader.cells import CellFacts, CellResult, Cells, ExperimentRow
from trader.config import Config, from_mapping
from trader.errors import ConfigError, ModelError, NoData, StoreError, TraderError
from trader.events import BarClosed, NewsArrived
from trader.experiment import Request
from trader.experiment_tables import Place, measure
from trader.methods import Reading, methods, points
from trader.outcome import Home
from trader.parts import Readers, model_spec
from trader.window import Window

SESSIONS = 330  # 120 of history, then windows of 60 every 45


def config(**experiment_keys: Any) -> Config:
    """Return settings for windows of 60 sessions and folds of 40 + 10, one worker, two lookbacks."""
    few = {"lookbacks": [1, 3], "search_lookback": 3, "seeds": 2, "ablation_seeds": 2, "trials": 2, "finin_trials": 2}
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


__all__ = ["servers"]  # a fixture of test_chat's

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
        assert len(found) == (windows + folds) * 2 * (1 + 1 + 2 + 2)  # FININ and its ablation twice
        for cell in found:
            days = cells.days(cell["cell"])
            assert len(days) == 5 if cell["protocol"] == "windows" else len(days) > 0
            assert cell["train_last"] < cell["validation_first"] <= cell["validation_last"] < days[0]["session"]


def test_trials_look_at_no_test_day(done: tuple[Path, ExperimentRow]) -> None:
    home, row = done
    with Cells.open(home / "ledger.db") as cells:
        trials = [cell for cell in cells.of(row.id) if cell["protocol"] == "trial"]
        assert len(trials) == 2  # of FININ: its ablation takes its setting, and the others have nothing to choose
        assert all(cells.days(cell["cell"]) == [] for cell in trials)
        chosen = row.facts["settings"]["finin"]["toy"]
        best = min((cell for cell in trials if cell["method"] == "finin"), key=lambda cell: cell["validation_loss"])
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
    asked = replace(REQUEST, only=("roberta_lm", "finbert", "gpt-4"))
    row = run(home, config(lookbacks=[1]), asked)
    missing = row.facts["missing"]
    assert "weights not available" in missing["roberta_lm"]["toy"] and "weights" in missing["finbert"]["toy"]
    assert "no chat model" in missing["gpt-4"]["toy"]
    with Cells.open(home / "ledger.db") as cells:
        assert {cell["method"] for cell in cells.of(row.id)} == {"always_buy"}


def test_a_chat_model_is_a_row_its_answers_are_replayed_and_its_key_is_nowhere(
    servers: Callable[[], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, server = builders.a_home(tmp_path, SESSIONS, most=1), servers()
    server.behave = lambda handler, attempt: handler.say("YES" if "rise" in handler.headline else "NO")
    section = {"endpoint": server.url, "model": "tiny", "input_price": 0, "output_price": 0}
    paid = {"key_variable": "CHAT_TEST_KEY", "max_cost": 1.0}
    base = config(lookbacks=[1], finin_trials=1)
    settings = replace(base, chat={"gpt-4": {**section, **paid}})
    row = experiment.run(settings, home, replace(REQUEST, only=("gpt-4",)))
    assert "gpt-4" not in row.facts["missing"] and len(server.asked) == len(set(server.asked)) > 50
    with Cells.open(home / "ledger.db") as cells:
        [cell] = [one for one in cells.of(row.id) if one["method"] == "gpt-4" and one["split"] == 0][:1]
        assert {day["side"] for day in cells.days(cell["cell"])} == {-1, 1}
    held = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in held)
    asked = len(server.asked)
    monkeypatch.delenv("CHAT_TEST_KEY")
    replayed = replace(settings, chat={"gpt-4": {**section, **paid, "replay": True}})
    again = experiment.run(replayed, home, replace(REQUEST, only=("gpt-4",)))
    assert "gpt-4" not in again.facts["missing"] and len(server.asked) == asked


def test_a_key_pasted_into_the_config_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    section = {"endpoint": "http://127.0.0.1:9/v1", "model": "tiny", "input_price": 0, "output_price": 0}
    with pytest.raises(ConfigError, match="unknown key api_key") as refused:
        run(home, replace(config(), chat={"gpt-4": {**section, "api_key": KEY}}))
    assert KEY not in str(refused.value)
    assert not (home / "ledger.db").exists()


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


def test_every_test_cell_has_the_setting_that_was_chosen(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    row = run(home, config(finin_trials=4, lookbacks=[1]), replace(REQUEST, only=("finin", "no_text")))
    with Cells.open(home / "ledger.db") as cells:
        found = cells.of(row.id)
        trials = [cell for cell in found if cell["protocol"] == "trial"]
        best = min(trials, key=lambda cell: cell["validation_loss"])
        assert len({cell["validation_loss"] for cell in trials}) == 4 and best["setting"] != "{}"
        chosen = json.loads(best["setting"])
        for cell in found:
            if cell["method"] in ("finin", "no_text") and cell["protocol"] != "trial":
                own = {"text": False} if cell["method"] == "no_text" else {}
                assert json.loads(cell["setting"]) == {**chosen, **own}


def test_rows_that_share_a_cell_both_show_it(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)  # no day has more headlines than the cap: uncapped is the same cell
    row = run(home, config(finin_trials=1, seeds=1, lookbacks=[3]), replace(REQUEST, only=("finin", "finin_uncapped")))
    with Cells.open(home / "ledger.db") as cells:
        found = [cell for cell in cells.of(row.id) if cell["protocol"] == "windows"]
        by_method = {key: {c["cell"] for c in found if c["method"] == key} for key in ("finin", "finin_uncapped")}
    assert by_method["finin"] == by_method["finin_uncapped"] and len(by_method["finin"]) == 4


def test_another_seed_takes_the_cells_that_it_shares_and_shows_them_as_its_own(tmp_path: Path) -> None:
    home, asked = builders.a_home(tmp_path, SESSIONS), replace(REQUEST, only=("finin",))
    settings = config(finin_trials=1, lookbacks=[1])
    run(home, settings, asked)
    before = len(_all_cells(home))
    row = run(home, replace(settings, run=replace(settings.run, seed=1)), asked)
    with Cells.open(home / "ledger.db") as cells:
        found = [cell for cell in cells.of(row.id) if cell["method"] == "finin" and cell["protocol"] == "windows"]
    assert [(cell["split"], cell["seed"]) for cell in found] == [(at, seed) for at in range(4) for seed in (0, 1)]
    assert len(_all_cells(home)) < 2 * before  # seed 1 of the one is seed 0 of the other


def test_what_shapes_the_days_is_in_a_cells_name(tmp_path: Path) -> None:
    home, asked = builders.a_home(tmp_path, SESSIONS), replace(REQUEST, only=("logistic",))
    base = config(lookbacks=[1])
    run(home, base, asked)
    names = set(_all_cells(home))
    for section, key, value in (
        ("inputs", "market_features", "levels"),
        ("inputs", "market_text", "another market"),
        ("experiment", "headlines_a_day", 2),
    ):
        changed = replace(base, **{section: replace(getattr(base, section), **{key: value})})
        run(home, changed, asked)
        now = set(_all_cells(home))
        assert len(now) == len(names) + 16, key  # Always Buy and logistic, four windows and four folds each
        names = now


def test_news_that_came_since_makes_the_same_command_look_again(tmp_path: Path, monkeypatch: Any) -> None:
    home, asked = builders.a_home(tmp_path, SESSIONS), replace(REQUEST, only=("logistic",))
    run(home, config(lookbacks=[1]), asked)
    before = len(_all_cells(home))
    days = builders.sessions(SESSIONS)
    builders.fill(home, builders.bars(days), builders.headlines(days[200:210], seed=5))
    run(home, config(lookbacks=[1]), asked)
    assert len(_all_cells(home)) > before


def test_one_experiment_runs_in_a_home_at_a_time(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    with FileLock(home / "experiment.lock"), pytest.raises(StoreError, match="another experiment is running here"):
        run(home)


def test_a_failed_cell_says_why_in_its_place_and_the_others_are_made(tmp_path: Path, monkeypatch: Any) -> None:
    home, real = builders.a_home(tmp_path, SESSIONS), experiment.evaluate

    def fails(job: Any, days: Any) -> Any:
        return (
            "the blend did not converge" if job.facts.method == "logistic" and job.facts.split == 2 else real(job, days)
        )

    monkeypatch.setattr(experiment, "evaluate", fails)
    row = run(home, config(lookbacks=[1]), replace(REQUEST, only=("logistic",)))
    assert row.status == "finished"
    with Cells.open(home / "ledger.db") as cells:
        results = measure(cells, row)
    assert results.gaps[Place("logistic", "toy", 1, "windows")] == "the blend did not converge"
    assert Place("always_buy", "toy", 1, "windows") in results.figures


def test_a_cell_masks_its_own_bar_when_the_same_day_is_asked(tmp_path: Path) -> None:
    job, days = _job("same_day")
    others = replace(days, market=days.market.copy())
    others.market[job.use[-1]] += 3.0  # the last test day's own bar
    seen, again = cell_work.evaluate(job, days), cell_work.evaluate(job, others)
    assert isinstance(seen, CellResult) and isinstance(again, CellResult)
    assert seen.days == again.days
    moved = replace(days, market=days.market.copy())
    moved.market[job.use[-1] - 1] += 3.0  # the bar of the day before is what it reads
    other = cell_work.evaluate(job, moved)
    assert isinstance(other, CellResult) and other.days[-1] != seen.days[-1]


def test_a_model_that_reads_later_days_is_caught_in_its_cell() -> None:
    job, days = _job("next_day")
    peeking = replace(job, spec=replace(job.spec, factory=Peeking, code=""))
    with pytest.raises(TraderError, match="changes when the days after it are cut away"):
        cell_work.evaluate(peeking, days)


def test_a_model_whose_code_changed_during_the_run_is_refused() -> None:
    job, days = _job("next_day")
    with pytest.raises(TraderError, match="the model's code has changed since the run began"):
        cell_work.evaluate(replace(job, spec=replace(job.spec, code="0123456789abcdef")), days)


class Peeking(builders.TinyModel):
    """Reads the newest bar that it is handed, whatever day it decides on."""

    def predict(self, days: Days, at: Any) -> Prediction:
        known = super().predict(days, at)
        return Prediction(np.clip(known.p_up + days.market[-1, 3], 0.01, 0.99))


def _job(target: str) -> tuple[Job, Days]:
    """Return a job of a logistic regression on 60 toy days: 30 to learn from, 10 to select, 10 to test."""
    window = Window(builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="toy")
    days = builders.sessions(90)
    for bar in builders.bars(days):
        window.update(NewsArrived(session=bar.session, at=bar.known_at, news=builders.batch([0], ["oil rise"])))
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    spec = model_spec(builders.config(lookback=1), "logistic", "tiny")
    facts = CellFacts(
        **dict.fromkeys(CellFacts.__slots__, "") | {"target": target, "lookback": 1, "split": 0, "seed": 0}  # type: ignore[arg-type]
    )
    use = range(51, 61)
    sessions = [str(day) for day in days[21:][use.start : use.stop]]
    return Job(facts, spec, 1, 0, range(1, 31), range(35, 45), use, sessions), window.learnable(21, 21 + use.stop)


def test_same_day_reading_is_a_target_of_its_own(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    row = run(home, config(), replace(REQUEST, target="same_day", only=("ridge", "logistic")))
    bars = {str(bar.session): bar.close for bar in builders.bars(builders.sessions(SESSIONS))}
    names = list(bars)
    with Cells.open(home / "ledger.db") as cells:
        found = [cell for cell in cells.of(row.id) if cell["protocol"] != "trial"]
        assert {cell["method"] for cell in found} == {"always_buy", "ridge", "logistic"}
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
    return tuple(cell[key] for key in ("method", "lookback", "protocol", "split", "seed", "setting"))


def _json(setting: Any) -> str:
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
