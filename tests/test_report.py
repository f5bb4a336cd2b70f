"""What a person and a machine see of a run, and how far it is while it runs."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
import json
from pathlib import Path
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from strategies.base import bt
from tests import builders
from trader import engine, metrics, report
from trader.events import Signal
from trader.ledger import Ledger
from trader.outcome import Outcome
from trader.progress import Stages, silent, watching

DAYS = builders.sessions(140)
FIGURES = ("accuracy", "paper_pnl", "paper_sharpe", "pnl", "sharpe")


def _run(home: Path, first: int = 116, **how: Any) -> Outcome:
    settings = builders.config(model="tests.builders:TinyModel", **how)
    return engine.backtest(settings, home, DAYS[first], DAYS[-1], readers=builders.readers())


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    home = builders.a_home(tmp_path_factory.mktemp("home"), without=(120,))
    return _run(home, evaluation={"rivals": ["logistic", "boosting"]})


def printed(table: Table, width: int = 100) -> list[str]:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_object_for_machines_has_every_key_that_was_promised(outcome: Outcome) -> None:
    made = json.loads(report.as_json(outcome), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for name in (*FIGURES, "excess_sharpe", "excess_return"):
        assert set(made[name]) == {"value", "low", "high"}, name
        assert made[name]["low"] <= made[name]["value"] <= made[name]["high"], name
    for name in FIGURES:
        assert set(made["always_buy"][name]) == {"value", "low", "high"}, name
    assert made["run"] == outcome.run
    assert made["sessions"] == len(outcome.forecasts.signals) == 24
    assert {"data", "read", "embed", "train", "forecast", "broker", "ledger", "evaluate"} <= made["stages"].keys()
    assert all(seconds >= 0 for seconds in made["stages"].values())
    assert Path(made["ledger"]).is_file()
    assert made["rivals"].keys() == {"logistic", "boosting"}


def test_the_hash_is_the_ledgers_own(outcome: Outcome) -> None:
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        assert json.loads(report.as_json(outcome))["ledger_hash"] == ledger.ledger_hash(outcome.run)
        assert ledger.run_facts(outcome.run)["ledger_hash"] == outcome.ledger_hash
        assert ledger.run_facts(outcome.run)["status"] == "finished"


def test_the_figures_are_those_in_the_ledger(outcome: Outcome) -> None:
    made = json.loads(report.as_json(outcome))
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        rows = {(row["name"], row["of"]): row for row in ledger.metrics(outcome.run)}
    for name, of in (("accuracy", "signals"), ("sharpe", "net"), ("excess_sharpe", "excess")):
        assert made[name] == {key: rows[name, of][key] for key in ("value", "low", "high")}


def test_the_table_fits_a_hundred_columns_and_is_cut_nowhere(outcome: Outcome) -> None:
    rich = {"value": -3_456_789.0, "low": -7_654_321.0, "high": -1_000_000.0}  # of a million
    figures = tuple(replace(m, **rich) if m.name == "pnl" else m for m in outcome.report.metrics)
    extreme = replace(outcome, report=replace(outcome.report, metrics=figures))
    with_one_rival = replace(outcome, rivals={"logistic": outcome.rivals["logistic"]})
    assert max(map(len, printed(report.figures(with_one_rival), width=200))) <= 100, "without a fold"
    for one in (outcome, extreme):
        assert not any("…" in line for line in printed(report.figures(one)))
    text = "\n".join(printed(report.figures(outcome)))
    for word in ("accuracy", "Always Buy", "logistic", "Sharpe, net", "excess Sharpe", "costs paid"):
        assert word in text


def test_the_table_gives_each_figure_with_its_interval(outcome: Outcome) -> None:
    sharpe = outcome.report.get("sharpe", "net")
    (line,) = [line for line in printed(report.figures(outcome), width=200) if "Sharpe, net" in line]
    assert f"{sharpe.value:.2f} [{sharpe.low:.2f}, {sharpe.high:.2f}]".replace("-", "−") in line


def test_the_lines_below_give_verdict_notes_definition_times_and_what_to_run_next(outcome: Outcome) -> None:
    lines = report.closing_lines(outcome)
    whole = " ".join(lines)
    assert outcome.report.verdict in whole
    assert outcome.report.sharpe_definition in whole
    assert all(note in whole for note in outcome.notes)
    assert "1 session had no decision, the position was kept, an order waited." in whole
    assert "Bare backtrader over the same bars took" in whole
    assert str(outcome.home.ledger) in whole
    assert lines[-2:] == [
        f"Next: python -m trader trades {outcome.run}",
        f"      python -m trader why {outcome.run} {DAYS[-1]}",
    ]
    assert max(len(line) for line in lines if str(outcome.home.ledger) not in line) <= 100


def test_a_run_of_one_session_has_dashes_where_nothing_can_be_said(tmp_path: Path) -> None:
    one = _run(builders.a_home(tmp_path), first=139)
    assert len(one.forecasts.signals) == 1
    text = "\n".join(printed(report.figures(one)))
    assert report.DASH in text
    assert "nan" not in text.lower()
    made = json.loads(report.as_json(one), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert made["accuracy"] == {"value": None, "low": None, "high": None}
    with Ledger.open(one.home.ledger, read_only=True) as ledger:
        assert any(report.DASH in line for line in printed(report.runs_table(ledger.runs())))


def test_runs_are_listed_newest_first(outcome: Outcome) -> None:
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        lines = printed(report.runs_table(ledger.runs()))
    assert any("finished" in line and " toy " in line and "2010" in line for line in lines)
    assert max(map(len, lines)) <= 100
    sharpe = outcome.report.get("sharpe", "net")
    assert f"[{sharpe.low:.2f}, {sharpe.high:.2f}]".replace("-", "−") in "\n".join(lines)
    days = [word for line in lines for word in line.split() if word.startswith("2010-")]
    assert days == [str(DAYS[116]), str(DAYS[139])], "no day is folded"


def test_a_run_without_an_interval_is_listed_all_the_same() -> None:
    row = dict.fromkeys(("id", "status", "started_utc", "market", "news", "model", "strategy", "sessions"), "x")
    row |= {"traded_from": "a", "traded_to": "b", "sharpe": 0.5, "sharpe_low": None, "sharpe_high": None}  # type: ignore[dict-item]
    assert any("0.50" in line for line in printed(report.runs_table([row])))


def test_trades_are_listed_with_what_became_of_them(outcome: Outcome) -> None:
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        rows = ledger.trades(outcome.run)
        lines = printed(report.trades_table(rows))
    assert rows
    assert sum("completed" in line for line in lines) == sum(row["status"] == "completed" for row in rows) > 0
    assert max(map(len, lines)) <= 100


def a_signal(**how: Any) -> Signal:
    facts: dict[str, Any] = {"session": DAYS[0], "symbol": "toy", "p_up": 0.625, "side": 1, "model_id": "tiny-1"}
    return Signal(**{**facts, **how})


def test_why_shows_a_days_headlines_by_weight() -> None:
    long = "a headline so long that it cannot stand on one line of a hundred columns " * 3
    lines = report.why_lines(a_signal(news_count=4, effective_news=3.2, top=(("oil rise", 0.5), (long, 0.25))))
    assert lines[:4] == [
        "2010-01-04 toy: long, P(up) 0.6250, model tiny-1",
        "4 headlines; the attention is spread as over 3.2 equal ones. The 2 of largest weight:",
        "weight  × mean  headline",
        "0.5000   2.00  oil rise",
    ]
    assert lines[4].startswith("0.2500   1.00  a headline so long")
    assert len(lines) > 5 and max(map(len, lines)) <= 100
    assert "".join(line[14:].strip() + " " for line in lines[4:]).split() == long.split()


def test_why_says_what_it_cannot_show() -> None:
    assert report.why_lines(a_signal())[-1] == "No headline that session."
    assert report.why_lines(a_signal(news_count=3))[-1] == "3 headlines; this model does not weigh them."
    (line,) = report.why_lines(a_signal(p_up=None, side=0, reason="no bar of toy known by then"))
    assert line == "2010-01-04 toy: no decision (no bar of toy known by then); the position was kept."
    assert "short" in report.why_lines(a_signal(side=-1))[0]
    assert "no side" in report.why_lines(a_signal(side=0))[0]


class Greedy(bt.Strategy):
    """Wants three times what it has."""

    def next(self) -> None:
        self.order_target_percent(target=3.0 * self.data.signal[0])


def test_orders_that_were_cut_are_told_with_where_to_look(tmp_path: Path) -> None:
    lines = " ".join(report.closing_lines(_run(builders.a_home(tmp_path), strategy="tests.test_report:Greedy")))
    assert re.search(r"\d+ orders were cut to a limit; `python -m trader trades latest` says which and why", lines)


def test_the_verdict_says_noise_where_the_interval_holds_zero() -> None:
    noise = metrics.verdict(metrics.Metric(name="excess_sharpe", of="excess", value=0.3, low=-0.5, high=1.1))
    assert noise.startswith("Cannot be told from Always Buy")


# Progress


def test_a_stage_entered_again_adds_up() -> None:
    stages = Stages(silent)
    with stages("read"):
        pass
    once = stages.seconds["read"]
    with stages("read") as step:
        step(1, 1, "somewhere")
    assert stages.seconds["read"] > once
    assert list(stages.seconds) == ["read"]


def test_without_a_terminal_each_stage_is_one_plain_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with watching() as watch:
        stages = Stages(watch)
        with stages("train") as step:
            step(1, 1, "fold 1, in use from 2003-01-02")  # the only step of a stage is not its end
        with stages("read"):
            pass
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rsplit(" ", 2)[0] for line in err.splitlines()] == ["train: done in", "read: done in"]
