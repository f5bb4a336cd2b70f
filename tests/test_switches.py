"""What each switch is worth on real headlines: the benchmark's rows, on the made-up market."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import reuters_switches as benchmark
from benchmarks.planted import SWITCHES
from benchmarks.reuters_switches import Row, measure, rows_of, settings_of
from tests import builders
from tests.test_experiment import SESSIONS, readers
from trader.config import Config
from trader.experiment_plan import Target

ASKED = ("toy", None, None)


def small(target: Target) -> Config:
    config = settings_of(target, "toy", 1)
    finin = {**config.model["finin"], "hidden": 16, "heads": 1, "qkv": 16, "epochs": 2, "batch_days": 20}
    return replace(
        config,
        model={"finin": finin},
        walkforward=replace(config.walkforward, train=40, validation=10),
        experiment=replace(config.experiment, walk_step=60),
        evaluation=replace(config.evaluation, resamples=100),
    )


def lines(home: Path, target: Target, *only: str, seeds: int = 1) -> list[str]:
    return list(measure(small(target), home, target, ASKED, only, seeds, readers=readers))


def test_the_complete_model_stands_beside_each_switch_that_was_asked_for_and_differs_from_itself_by_nothing(
    tmp_path: Path,
) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    first, header, complete, gate = lines(home, "same_day", "gate = false, feed")
    assert "test days" in first and header.split()[0] == "correlation"
    assert complete.startswith("complete ") and "+0.000 [+0.000, +0.000]" in complete
    assert gate.startswith("gate = false, feed_forward = true ") and "+0.000 [+0.000, +0.000]" not in gate


def test_what_was_made_is_not_made_again_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    before = lines(home, "next_day", "skip", "post", seeds=2)
    assert [line.split("  ")[0] for line in before[2:]] == ["complete", "norm = post", "skip = false"]
    monkeypatch.setattr(benchmark, "evaluate", None)  # whoever makes a cell fails
    assert lines(home, "next_day", "skip", "post", seeds=2) == before


def test_a_row_that_fails_says_why_and_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, real = builders.a_home(tmp_path, SESSIONS), benchmark.evaluate

    def fails(job: Any, days: Any) -> Any:
        return "it did not converge" if job.facts.method == "skip = false" and job.facts.split else real(job, days)

    monkeypatch.setattr(benchmark, "evaluate", fails)
    found = lines(home, "same_day", "skip", "dropout = 0")
    assert [line for line in found if line.startswith("skip = false")] == [f"{'skip = false':<36}it did not converge"]
    assert any(line.startswith("dropout = 0 ") and "[" in line for line in found)


@pytest.mark.parametrize(("target", "gone", "more"), [("same_day", 1, "false"), ("next_day", 0, "true")])
def test_the_switches_are_those_of_the_planted_market_and_recency(target: Target, gone: int, more: str) -> None:
    rows = [row.key for row in rows_of(settings_of(target, "toy", 1), target, ())]
    assert rows[0] == "complete" and rows[-1] == f"recency = {more}"
    assert set(SWITCHES) - set(rows) == ({"pretrain_epochs = 3"} if gone else set())


def test_the_log_loss_is_that_of_the_direction_averaged_over_seeds() -> None:
    p_up = np.array([[0.8, 0.3], [0.6, 0.5]])
    row = Row(p_up, p_up - 0.5, np.sign(p_up - 0.5), np.array([0.01, -0.02]), 1.0)
    assert row.losses == pytest.approx(-np.log([[0.8, 0.7], [0.6, 0.5]]).mean(axis=0))
    drawn = {"seed": 0, "resamples": 100, "risk_free": 0.0}
    other = replace(row, p_up=p_up[:, ::-1])
    found = benchmark._log_loss(row, other, drawn)
    assert found.value == pytest.approx(float((row.losses - other.losses).mean()))
