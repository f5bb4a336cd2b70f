"""MSMF's experiment from the store to its tables, on toy markets: every row runs, resumes, and says what it knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.base import Days
from tests import builders, test_universe_backtest
from tests.test_experiment import readers
from trader import cell_work, cli, experiment
from trader.cells import Cells, ExperimentRow
from trader.config import Config, from_mapping
from trader.errors import ConfigError, NoData
from trader.events import Bar
from trader.experiment import Request
from trader.experiment_panel import PanelInputs, load_panel, plan_panel_cell
from trader.methods import Reading
from trader.methods_msmf import AS_IN_THE_PAPER, TABLES, methods
from trader.msmf_page import as_csv, as_markdown, terminal
from trader.msmf_tables import CONVINCING, FINE, Difference, Results, measure, sentences
from trader.outcome import Home
from trader.progress import Stages, silent
from trader.scores import BETTER

SESSIONS = 230  # 120 of history, then folds
SMALL = {"hidden": 16, "token_width": 16, "heads": 2, "chart_sessions": 5, "epochs": 1, "batch_days": 16, "experts": 2}
REQUEST = Request(markets=("toy",), news="toy", tables=TABLES, paper="msmf")
TOYS = (("toys", test_universe_backtest.UNIVERSE),)


def config(**experiment_keys: Any) -> Config:
    """Return settings for folds of 40 + 10, one worker, one lookback, one seed."""
    few = {"search_lookback": 3, "seeds": 1, "trials": 2, "walk_step": 60}
    network = {"epochs": 2}
    return from_mapping(
        {
            "walkforward": {"train": 40, "validation": 10},
            "compute": {"workers": 1},
            "evaluation": {"resamples": 100},
            "experiment": {**few, **experiment_keys},
            "model": {"msmf": SMALL, "lstm": network, "gru": network, "transformer": network},
        },
        "test",
    )


def run(home: Path, settings: Config | None = None, request: Request = REQUEST) -> ExperimentRow:
    return experiment.run(settings or config(), home, request, readers=readers)


def measured(home: Path, row: ExperimentRow) -> Results:
    with Cells.open(home / "ledger.db") as cells:
        return measure(cells, row)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ExperimentRow]]:
    home = builders.a_home(tmp_path_factory.mktemp("experiment"), SESSIONS)
    yield home, run(home)


def test_every_row_of_every_table_of_the_paper_is_there_under_the_papers_name() -> None:
    rows = methods(Config(), TABLES)
    results = measured_nowhere(rows)
    of = {row.key: row for row in rows}
    printed = {
        (table, method)
        for table, method in results.paper
        if of[method].same_as  # its own name, with the paper's figures
    }
    # Every line of the paper's seven tables, MSMF's own once a table.
    assert len({(table, of[method].same_as) for table, method in printed}) == 26 - 1  # without gates, with: one MSMF
    assert {table for table, _ in printed} == set(TABLES)


def measured_nowhere(rows: Any) -> Results:
    """Return the results of an experiment that has made no cell."""
    facts = {"rows": [{"key": r.key, "title": r.title, "same_as": r.same_as, "tables": list(r.tables)} for r in rows]}
    request = {"markets": ["toy"], "tables": list(TABLES), "seed": 0, "settings": {"evaluation": {"resamples": 100}}}
    now = builders.NOW
    row = ExperimentRow(
        id=1, name="msmf", request=request, status="stopped", facts=facts, started_at=now, finished_at=None
    )

    class Nothing:
        def of(self, experiment: int) -> list[dict[str, Any]]:
            return []

    return measure(Nothing(), row)  # type: ignore[arg-type]


def test_every_row_changes_one_thing_of_the_complete_model() -> None:
    for row in methods(Config(), (3, 4, 5, 6, 7)):
        if row.model == "msmf" and row.key != "msmf":
            changed = {key: value for key, value in row.settings.items() if key not in AS_IN_THE_PAPER}
            assert set(changed) - {"missing_text"} and len(set(changed) - {"missing_text"}) == 1
            assert row.follows == "msmf" and row.seeds == 3


@pytest.mark.parametrize("key", [row.key for row in methods(Config(), TABLES)])
def test_every_row_is_trained_and_measured(key: str, done: tuple[Path, ExperimentRow]) -> None:
    results = measured(*done)
    assert results.held.gaps == {} and done[1].facts["missing"] == {}
    figures = results.of(key, "toy")
    assert figures["accuracy"].value is not None
    forecasts_returns = key not in ("svm", "random_forest", "boosting", "logistic", "movement_only")
    assert (figures["rmse"].value is not None) == forecasts_returns


def test_one_split_protocol_is_tested_and_no_trial_looks_at_a_test_day(done: tuple[Path, ExperimentRow]) -> None:
    home, row = done
    with Cells.open(home / "ledger.db") as cells:
        found = cells.of(row.id)
        assert {cell["protocol"] for cell in found} == {"trial", "walkforward"}
        trials = [cell for cell in found if cell["protocol"] == "trial"]
        assert len(trials) == 2 * 4 and all(cells.days(cell["cell"]) == [] for cell in trials)
        for cell in found:
            if cell["protocol"] != "trial":
                assert cell["validation_last"] < cells.days(cell["cell"])[0]["session"]
                assert cell["lookback"] == 3


def test_variants_take_the_setting_that_the_complete_model_chose(done: tuple[Path, ExperimentRow]) -> None:
    _, row = done
    chosen = row.facts["settings"]
    assert all(
        chosen[key] == chosen["msmf"]
        for key in ("fill_zero", "fill_rbm", "return_only", "movement_only")
        if key in chosen
    )
    assert set(row.facts["tried"]) == {"msmf", "lstm", "gru", "transformer"}


def test_an_experiment_that_was_stopped_gives_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, homes = replace(REQUEST, only=("msmf", "fill_zero")), [tmp_path / "undisturbed", tmp_path / "stopped"]
    for home in homes:
        builders.a_home(home, SESSIONS)
    undisturbed = _page(homes[0], run(homes[0], request=few))
    home, real, made = homes[1], experiment.evaluate, []

    def interrupted(*arguments: Any) -> Any:
        made.append(arguments)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(experiment, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(home, request=few)
    with Cells.open(home / "ledger.db") as cells:
        stopped = cells.experiment(name="msmf", unfinished=True)
        shown = "\n".join(str(part) for part in terminal(measure(cells, stopped)))
        settings, request = experiment.resumed(stopped, Config())
    assert "--resume makes the rest" in shown and request == few
    again = experiment.run(replace(settings, compute=config().compute), home, request, readers=readers)
    assert _page(home, again) == undisturbed


def _page(home: Path, row: ExperimentRow) -> list[str]:
    """Return the page without what was spent and which number it has."""
    lines = as_markdown(measured(home, row), "MSMF").splitlines()
    return [line for line in lines if "of one core" not in line and not line.startswith("Experiment")]


def test_the_page_the_csv_and_the_terminal_say_the_same_and_the_papers_figures_stand_apart(
    done: tuple[Path, ExperimentRow],
) -> None:
    results = measured(*done)
    page, table = as_markdown(results, "MSMF: the paper's tables"), as_csv(results)
    assert "## Table 4: completion of missing text" in page and "(67.9)" in page and "on its own data" in page
    accuracy = results.of("msmf", "toy")["accuracy"]
    assert accuracy.value is not None and f"{accuracy.value * 100:.1f}" in page
    [line] = [line for line in table.splitlines() if line.startswith("2,msmf,") and ",accuracy," in line]
    assert float(line.split(",")[5]) == accuracy.value and line.split(",")[9] == "0.6792"
    assert any("Training mean" in str(part) or "rows that forecast" in str(part) for part in terminal(results))


def test_rows_without_a_forecast_of_the_return_have_no_error_of_it(done: tuple[Path, ExperimentRow]) -> None:
    results = measured(*done)
    assert results.of("movement_only", "toy")["mape"].value is None
    assert results.of("return_only", "toy")["mape"].value is not None
    none = [one for one in results.differences if one.row == "movement_only" and one.score == "rmse"]
    assert [one.verdict for one in none] == ["no figure"]


def test_a_difference_is_called_better_only_after_holm() -> None:
    def difference(value: float, p: float, score: Any = "accuracy") -> Difference:
        from trader.comparison import Contrast

        low, high = sorted((value * 0.5, value * 1.5))
        found = Contrast(value, low, high, p / 10)
        return Difference(table=1, market="toy", row="lstm", score=score, found=found, adjusted=p)

    assert difference(0.02, 0.01).verdict == "better" and difference(-0.02, 0.01).verdict == "worse"
    assert difference(-0.02, 0.01, "rmse").verdict == "better" and BETTER["rmse"] == -1
    assert difference(0.02, 0.2).verdict == "better, not by Holm"


def test_the_draws_are_so_many_that_a_clear_difference_passes_holm(done: tuple[Path, ExperimentRow]) -> None:
    results = measured(*done)  # its settings ask for 100 draws
    known = [one.found.p_value for one in results.differences if one.found.p_value is not None]
    assert len(known) > 50 and FINE * len(known) * CONVINCING > 2 * len(known)
    assert any(0 < p % (2 / 101) < 2 / 101 - 1e-9 for p in known), "finer than 100 draws allow"


def test_p_values_are_adjusted_over_all_comparisons_of_a_market(done: tuple[Path, ExperimentRow]) -> None:
    results = measured(*done)
    known = [one for one in results.differences if one.found.p_value is not None]
    smallest = min(known, key=lambda one: one.found.p_value or 0)
    assert smallest.found.p_value is not None
    assert smallest.adjusted == pytest.approx(min(1.0, smallest.found.p_value * len(known)))
    assert len(list(sentences(results))) >= 2


def test_a_table_a_row_and_an_experiment_that_do_not_exist_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="no such method"):
        run(tmp_path, request=replace(REQUEST, only=("finin",)))
    assert not (tmp_path / "ledger.db").exists()
    for words in (["--tables", "8"], ["--market", "sp500,sp500.toml"], ["--show", "7"]):
        assert cli.main(["experiment", "msmf", "--home", str(tmp_path), *words]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3 and "no such table" in told[0] and "cannot be read" in told[1] and "no experiment" in told[2]


# Many symbols


@pytest.fixture(scope="module")
def universe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentRow]:
    home = tmp_path_factory.mktemp("universe")
    test_universe_backtest.fill(home)
    return home, run(home, panel(), over_toys())


def panel() -> Config:
    made = config(seeds=1, trials=1, walk_step=25)
    return replace(made, walkforward=replace(made.walkforward, train=20, validation=5))


def over_toys(*only: str) -> Request:
    keys = only or ("msmf", "mean_return")
    return replace(REQUEST, markets=("toys",), tables=(1, 2), only=keys, universes=TOYS)


def inputs(home: Path) -> PanelInputs:
    asked = ("toy", None, None)
    stages = Stages(silent)
    return load_panel(panel(), Home(home), "toys", TOYS[0][1], asked, Reading(), builders.readers(), stages)


def test_a_universe_has_one_cell_a_fold_that_holds_every_symbol_on_every_day(
    universe: tuple[Path, ExperimentRow],
) -> None:
    home, row = universe
    results = measured(home, row)
    assert results.held.gaps == {} and results.symbols == {"toys": 3}  # LATE has no 120 sessions of history
    with Cells.open(home / "ledger.db") as cells:
        tested = [cell for cell in cells.of(row.id) if cell["method"] == "msmf"]
        days = [day for cell in tested for day in cells.days(cell["cell"])]
        assert len(tested) >= 2 and {day["symbol"] for day in days} == {"A", "B", "C"}
        assert len({(day["session"], day["symbol"]) for day in days}) == len(days)
        last = max(day["session"] for cell in tested[:1] for day in cells.days(cell["cell"]))
        assert all(day["session"] > last for cell in tested[1:] for day in cells.days(cell["cell"]))
        held = {(day["session"], day["symbol"]): day["target_return"] for day in days}
    bars = {bar.session: bar.close for bar in test_universe_backtest.market("A")}
    sessions = sorted(bars)
    for at, session in enumerate(sessions[:-1]):
        if (str(session), "A") in held:
            assert held[str(session), "A"] == pytest.approx(bars[sessions[at + 1]] / bars[session] - 1)
    holes = {str(test_universe_backtest.DAYS[at]) for at in test_universe_backtest.HOLES["B"]}
    assert not holes & {session for session, symbol in held if symbol == "B"}


def test_no_symbol_trains_on_days_on_which_another_validates_or_is_tested(tmp_path: Path) -> None:
    test_universe_backtest.fill(tmp_path)
    held = inputs(tmp_path)
    folds = held.folds(experiment.walk_of(panel()))
    assert len(folds) >= 2
    for fold in folds:
        numbers = {
            name: [
                n for s, one in fold.shares.items() for n in np.array(held.windows[s].numbers)[list(getattr(one, name))]
            ]
            for name in ("train", "validation", "use")
        }
        assert max(numbers["train"]) < min(numbers["validation"]) and max(numbers["validation"]) < min(numbers["use"])
        assert max(numbers["validation"]) + 1 <= fold.trained_at  # the last label is known when it is trained


def test_what_comes_after_a_test_day_changes_no_forecast_of_it(tmp_path: Path) -> None:
    """Bars of all symbols after the middle of the test days are moved: what was said up to there stays."""
    test_universe_backtest.fill(tmp_path)
    held = inputs(tmp_path)
    fold = held.folds(experiment.walk_of(panel()))[0]
    plan = plan_panel_cell(panel(), _row("msmf"), held, 3, "walkforward", 0, 0, fold, {})
    cut = plan.job.shares[0].sessions[12]
    said = []
    for moved in (0.0, 0.03):
        days = plan.days()
        for share, own in zip(plan.job.shares, days, strict=True):
            for day, session in zip(share.use, share.sessions, strict=True):
                own.market[day] += moved * (session > cut)
        result = cell_work.evaluate(plan.job, days)
        assert not isinstance(result, str)
        said.append({(session, symbol): (p, e) for session, symbol, p, e, *_ in result.panel})
    same = {key: said[0][key] == said[1][key] for key in said[0]}
    assert len(same) > 50 and all(same[key] == (key[0] <= cut) for key in same)


def _row(key: str) -> Any:
    [row] = [one for one in methods(panel(), (1, 2)) if one.key == key]
    return row


def test_a_cell_over_many_symbols_is_named_by_all_that_shapes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = test_universe_backtest.market, []

    def nudged(symbol: str, future: int = 0) -> list[Bar]:
        made = real(symbol, future)
        return [
            replace(bar, high=bar.high * 1.01) if (symbol, at) == ("B", 122) else bar for at, bar in enumerate(made)
        ]

    for at, market in enumerate((real, nudged)):
        monkeypatch.setattr(test_universe_backtest, "market", market)
        home = tmp_path / str(at)
        test_universe_backtest.fill(home)
        held = inputs(home)
        folds = held.folds(experiment.walk_of(panel()))
        names.append(
            [plan_panel_cell(panel(), _row("msmf"), held, 3, "walkforward", 0, 0, f, {}).facts.cell for f in folds]
        )
    assert all(one != other for one, other in zip(*names, strict=True))  # one high of one symbol
    again = [plan_panel_cell(panel(), _row("msmf"), held, 3, "walkforward", 7, 0, f, {}).facts.cell for f in folds]
    assert again == names[1]  # and not by the place where it is shown
    other = plan_panel_cell(panel(), _row("msmf"), held, 3, "walkforward", 0, 0, folds[0], {"hidden": 24}).facts.cell
    assert other not in names[1]


def test_a_model_of_many_symbols_is_handed_no_test_day_of_any(tmp_path: Path) -> None:
    test_universe_backtest.fill(tmp_path)
    held = inputs(tmp_path)
    fold = held.folds(experiment.walk_of(panel()))[0]
    plan = plan_panel_cell(panel(), _row("mean_return"), held, 3, "walkforward", 0, 0, fold, {})
    seen: list[Days] = []

    class Looking(builders.TinyModel):
        def fit_panel(self, parts: Any, seed: int) -> Any:
            seen.extend(part.days for part in parts)
            return self.fit(parts[0].days, parts[0].train, parts[0].validation, seed)

    job = replace(plan.job, spec=replace(plan.job.spec, factory=Looking, code=""))
    cell_work.evaluate(job, plan.days())
    assert len(seen) >= 3
    for days, share in zip(seen, [s for s in plan.job.shares if s.train or s.validation], strict=True):
        assert len(days) == max(share.train.stop, share.validation.stop)  # not one day of the test span


def test_cells_of_a_universe_are_not_carried_to_another_machine_and_say_so(
    universe: tuple[Path, ExperimentRow], tmp_path: Path
) -> None:
    from trader.cell_files import export

    with Cells.open(universe[0] / "ledger.db") as cells, pytest.raises(NoData, match="cannot be carried yet"):
        export(cells, "latest", tmp_path / "cells.gz")
