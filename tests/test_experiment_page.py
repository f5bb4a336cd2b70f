"""An experiment's figures as people read them: on the terminal, as CSV, as one Markdown page."""

from __future__ import annotations

import csv
from dataclasses import replace
import io
from pathlib import Path
import sqlite3
from typing import Any

import numpy as np
import pytest

from tests import builders
from tests.test_experiment import REQUEST, SESSIONS, config, run
from trader import experiment_page as page
from trader.cells import Cells
from trader.experiment_claims import Verdicts, judge
from trader.experiment_tables import Place, Results, measure
from trader.metrics import signal_metrics
from trader.terminal import print_table

ROWS = ("always_buy", "logistic", "finin", "no_news", "no_text", "no_quantifier", "roberta_lm")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = builders.a_home(tmp_path_factory.mktemp("page"), SESSIONS)
    run(folder, config(finin_trials=1), replace(REQUEST, only=ROWS[1:]))
    return folder


@pytest.fixture(scope="module")
def found(home: Path) -> tuple[Results, Verdicts]:
    with Cells.open(home / "ledger.db") as cells:
        results = measure(cells, cells.experiment())
    return results, judge(results)


def test_a_figure_is_that_of_the_cells_days(home: Path, found: tuple[Results, Verdicts]) -> None:
    sql = """SELECT side, target_return, e.split
             FROM cell_days JOIN cells USING (cell) JOIN experiment_cells e USING (cell)
             WHERE e.method = 'logistic' AND e.lookback = 3 AND e.protocol = 'windows' ORDER BY e.split, session"""
    with sqlite3.connect(home / "ledger.db") as db:
        sides, returns, splits = (np.array(column) for column in zip(*db.execute(sql).fetchall(), strict=True))
    expected = signal_metrics(sides, returns, np.bincount(splits).tolist())
    figures = found[0].figures[Place("logistic", "toy", 3, "windows")]
    for name, of in (("accuracy", "accuracy"), ("pnl", "paper_pnl"), ("sharpe", "paper_sharpe")):
        assert figures[name].value == pytest.approx(expected[of])


def test_several_seeds_are_one_figure_with_its_spread(found: tuple[Results, Verdicts]) -> None:
    results, _ = found
    assert results.positions[Place("finin", "toy", 3, "walkforward")].sides.shape[0] == 2
    assert results.figures[Place("finin", "toy", 3, "walkforward")]["sharpe"].seed_sd is not None
    assert results.figures[Place("logistic", "toy", 3, "walkforward")]["sharpe"].seed_sd is None


def test_every_place_has_a_figure_or_a_reason(found: tuple[Results, Verdicts]) -> None:
    text = page.as_csv(found[0])
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["method"] for line in lines} == set(ROWS)
    for line in lines:
        assert line["value"] or line["why_not"], line
    assert sum(bool(line["value"]) for line in lines) > 80
    [roberta] = [line for line in lines if line["method"] == "roberta_lm"]
    assert "weights not available" in roberta["why_not"]


def test_the_page_shows_intervals_gaps_claims_and_what_was_spent(found: tuple[Results, Verdicts]) -> None:
    text = page.as_markdown(*found, "FININ on the toy market")
    assert "| FININ, RoBERTa | – | – |" in text and "weights not available" in text
    assert "Of the 10 windows asked for the span holds 4 on toy." in text
    for words in ("the Sharpe ratio rises with the lookback", "Always Buy", "deflated Sharpe ratio", "then frozen"):
        assert words in text
    [row] = [line for line in text.splitlines() if line.startswith("| Logistic regression")][:1]
    assert row.count("[") == 2  # an interval at each lookback


def test_the_terminal_keeps_to_a_hundred_columns(
    found: tuple[Results, Verdicts], capsys: pytest.CaptureFixture[str]
) -> None:
    for part in page.terminal(*found):
        if not isinstance(part, str):
            print_table(part)
    printed = capsys.readouterr().out
    assert "FININ" in printed and "weights not" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_an_unfinished_place_says_how_many_of_its_cells_are_there(home: Path, tmp_path: Path) -> None:
    with sqlite3.connect(home / "ledger.db") as source, sqlite3.connect(tmp_path / "ledger.db") as copy:
        source.backup(copy)
        own = "SELECT cell FROM cells WHERE method = 'finin' AND lookback = 3 AND protocol = 'windows' AND "
        for where in ("seed = 1 AND split = 2", "seed = 0 AND split = 3"):
            copy.execute(f"DELETE FROM experiment_cells WHERE cell IN ({own + where})")
            if "seed = 1" in where:
                copy.commit()
                with Cells.open(tmp_path / "ledger.db") as cells:
                    partly = measure(cells, cells.experiment())
                held = partly.positions[Place("finin", "toy", 3, "windows")]
                assert held.sides.shape[0] == 1  # the seed that has every split stands alone
    with Cells.open(tmp_path / "ledger.db") as cells:
        results = measure(cells, cells.experiment())
    place = Place("finin", "toy", 3, "windows")
    assert place not in results.figures and results.gaps[place].startswith("not run yet: 6 of 8 cells")
    assert "--resume makes the rest" in page.as_markdown(results, judge(results), "x")


def test_the_papers_figures_stand_beside_its_windows_alone(found: tuple[Results, Verdicts]) -> None:
    results, _ = found
    from trader.experiment_tables import _paper

    rows = [replace(row) for row in results.rows]
    at = [Place(key, "sp500", 20, "windows") for key in ("finin", "no_news", "always_buy", "roberta_lm")]
    at.append(Place("finin", "sp500", 20, "walkforward"))
    paper = _paper(rows, at)
    assert paper[2, at[0]] == {"accuracy": 0.522, "pnl": 0.014, "sharpe": 1.772}
    assert paper[3, at[0]]["pnl"] == 0.041  # its own tables disagree
    assert paper[3, at[1]]["sharpe"] == 1.126 and paper[1, at[3]]["sharpe"] == 1.772
    assert (1, at[0]) not in paper and not any(place == at[4] for _, place in paper)


def test_the_command_runs_shows_and_writes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trader import cli

    words = ["experiment", "finin", "--home", str(home), "--show", "latest"]
    files = ["--csv", str(tmp_path / "all.csv"), "--markdown", str(tmp_path / "page.md")]
    assert cli.main([*words, *files]) == 0
    assert "Table 3: what each input is worth, toy, walk-forward" in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("# FININ: the paper's tables")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tables", "4"), "table 4 alone is `python -m trader why"),
        (("--tables", "1,5"), "no such table"),
        (("--tables", "x"), "--tables wants numbers"),
        (("--show", "9"), "no such experiment"),
        (("--resume",), "--resume goes on with the settings of the experiment"),
        (("--from", "2011", "--to", "2010"), "--from lies after --to"),
        (("--methods", "fnin"), "no such method in these tables"),
        (("--market", "moon"), "no such market"),
    ],
)
def test_a_word_that_cannot_be_used_is_one_line(
    home: Path, words: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from trader import cli

    arguments = ["experiment", "finin", "--home", str(home), "--news", "toy", "--market", "toy", *words]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and "Traceback" not in error


def test_where_nothing_was_stopped_there_is_nothing_to_resume(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trader import cli

    assert cli.main(["experiment", "finin", "--home", str(home), "--resume"]) == 2
    assert "no experiment waits to be resumed" in capsys.readouterr().err
