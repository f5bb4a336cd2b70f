"""A backtest of many symbols, end to end: honest in time, the same when it is run again, and told whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders
from tests.commands import Say, commands
from trader import engine, universe_engine
from trader.charting import chart_of
from trader.clock import SimulatedClock
from trader.config import Config
from trader.errors import ConfigError, NoData
from trader.events import Bar, NewsBatch, NewsRows, Signal
from trader.explain import explain
from trader.ledger import Ledger
from trader.registry import Registry
from trader.running import open_account
from trader.store import FileSource, MarketStore
from trader.universe import market_of, universe_of
from trader.universe_outcome import UniverseOutcome

DAYS = builders.sessions(190)
FIRST, LAST, CUT = DAYS[104], DAYS[-1], DAYS[140]
SYMBOLS = ("A", "B", "C", "LATE")
LISTED = {"LATE": 106}  # by symbol, the position of its first bar: they fill a fold from the 164th on
HOLES = {"B": (110, 119, 120)}
UNIVERSE = 'name = "toys"\nnews = "toy"\nsymbols = ["A", "B", "C", "LATE"]\n'
TINY = {
    "msmf": {
        "hidden": 16,
        "token_width": 16,
        "heads": 2,
        "chart_sessions": 5,
        "epochs": 2,
        "patience": 2,
        "pretrain_epochs": 0,
        "completion": "zero",
    }
}
OWN = "same_day_logistic"  # a model that learns from one symbol; msmf learns from all
Changes = Mapping[str, Any]


def config(model: str = OWN, **changes: Any) -> Config:
    asked: dict[str, Any] = {"market": UNIVERSE, "model": model, "strategy": "top_k"}
    made = builders.config(**{**asked, "walkforward": {"train": 20, "step": 25}, **changes})
    return replace(made, model={**made.model, **TINY}, strategy={"top_k": {"k": 1}})


def market(symbol: str, future: int = 0) -> list[Bar]:
    """Return a symbol's bars; those after CUT are drawn from the seed ``future``."""
    at, until = SYMBOLS.index(symbol), DAYS.index(CUT) + 1
    past = builders.bars(DAYS[:until], seed=at, symbol=symbol)
    after = builders.bars(DAYS[until:], seed=1000 * future + at, symbol=symbol, start=past[-1].close)
    whole = [*past, *after]
    return [bar for n, bar in enumerate(whole) if n >= LISTED.get(symbol, 0) and n not in HOLES.get(symbol, ())]


def news(future: int = 0) -> NewsBatch:
    """Return headlines, each about one or two symbols; those after CUT are drawn from the seed ``future``."""
    until = DAYS.index(CUT) + 1
    parts = [builders.headlines(DAYS[:until], most=12), builders.headlines(DAYS[until:], seed=50 + future, most=12)]
    made = NewsBatch.of([item for part in parts for item in part.items()])
    rng = np.random.default_rng(7)
    cells = [" ".join(rng.choice(SYMBOLS, int(rng.integers(1, 3)), replace=False)) for _ in range(len(made))]
    return replace(made, symbols=cells)


def fill(home: Path, future: int = 0, nudged: str = "") -> None:
    """Put the toy universe into the store of a home; ``nudged``: the symbol of which one high is another."""
    made = news(future)
    with MarketStore.open(home / "market.db", clock=SimulatedClock(builders.NOW)) as store:
        for symbol in SYMBOLS:
            bars = market(symbol, future)
            if symbol == nudged:
                bars[60] = replace(bars[60], high=bars[60].high * 1.01)
            store.add_bars(bars, source="made here")
        rows = NewsRows(news=made, row=np.arange(1, len(made) + 1), rejected=())
        store.add_news("toy", [rows], source=FileSource(name="made here", options=str(future)))


def run(home: Path, model: str = OWN, last: date = LAST, *, future: int = 0, **changes: Any) -> UniverseOutcome:
    if not (home / "market.db").exists():
        fill(home, future)
    made = config(model, **changes)
    return universe_engine.backtest(made, home, FIRST, last, readers=builders.readers(), as_asked=True)


def rows(outcome: UniverseOutcome, last: date = LAST) -> dict[str, list[Any]]:
    """Return what the ledger holds of a run up to a session; orders that wait at its end are no order's end."""
    tables = ("signals", "expected_returns", "news_weights", "orders", "fills", "equity", "holdings")
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        found = {table: ledger.between(table, outcome.run, date.min, last) for table in tables}
    for table in found:
        found[table] = [{key: value for key, value in row.items() if key != "run"} for row in found[table]]
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, UniverseOutcome]:
    """A run with a model a symbol and one with a model for all, in one home."""
    home = tmp_path_factory.mktemp("home")
    return {model: run(home, model) for model in (OWN, "msmf")}


BOTH = pytest.mark.parametrize("model", [OWN, "msmf"])


def of(outcome: UniverseOutcome, symbol: str) -> list[Signal]:
    return [signal for signal in outcome.forecasts.all if signal.symbol == symbol]


@BOTH
def test_every_symbol_has_a_signal_a_session_and_the_account_is_written(
    done: dict[str, UniverseOutcome], model: str
) -> None:
    outcome = done[model]
    found = rows(outcome)
    assert outcome.forecasts.sessions == DAYS[104:]
    assert len(found["signals"]) == len(SYMBOLS) * len(DAYS[104:])
    assert len(found["equity"]) == len(DAYS[104:]) and len(found["fills"]) > 20
    assert bool(found["expected_returns"]) == (model == "msmf")
    assert {row["symbol"] for row in found["holdings"]} >= {"A", "B", "C"}
    by_day = {row["session"]: 0.0 for row in found["equity"]}
    for row in found["holdings"]:
        assert row["value"] == row["size"] * row["price"]
        by_day[row["session"]] += row["value"]
    for row in found["equity"]:
        assert row["equity"] == pytest.approx(row["cash"] + by_day[row["session"]], abs=1e-6)


@BOTH
def test_a_symbol_listed_later_abstains_until_it_has_enough_and_holes_abstain_alone(
    done: dict[str, UniverseOutcome], model: str
) -> None:
    late = of(done[model], "LATE")
    first = next(at for at, signal in enumerate(late) if signal.p_up is not None)
    listed = DAYS[LISTED["LATE"]]
    assert {signal.reason.partition(" of ")[0] for signal in late if signal.session < listed} == {"no bar"}
    assert {signal.reason for signal in late[:first] if signal.session >= listed} == {"too few bars yet"}
    assert all(signal.p_up is not None for signal in late[first:])
    holes = [DAYS[at] for at in HOLES["B"]]
    assert [signal.session for signal in of(done[model], "B") if signal.p_up is None] == holes
    assert all(signal.p_up is not None for signal in of(done[model], "A"))


def test_a_model_for_all_decides_a_symbol_before_it_could_have_one_of_its_own(
    done: dict[str, UniverseOutcome],
) -> None:
    undecided = {name: sum(signal.p_up is None for signal in of(made, "LATE")) for name, made in done.items()}
    assert undecided["msmf"] < undecided[OWN]


def test_a_pooled_model_is_one_for_all_symbols_and_the_others_are_one_a_symbol(
    done: dict[str, UniverseOutcome],
) -> None:
    pooled, own = done["msmf"], done[OWN]
    assert pooled.forecasts.pooled and not own.forecasts.pooled
    for session in DAYS[121:]:
        day = [signal for signal in pooled.forecasts.signals[session] if signal.p_up is not None]
        assert len({signal.model_id for signal in day}) == 1
        mine = [signal.model_id for signal in own.forecasts.signals[session] if signal.p_up is not None]
        assert len(set(mine)) == len(mine)
    manifest = Registry(pooled.home.models).check(pooled.forecasts.folds[0].model_id)
    assert manifest["universe"] == "toys"
    assert [part[0] for part in manifest["parts"]] == ["A", "B", "C"], "LATE has too little history"
    newest = Registry(pooled.home.models).check(pooled.forecasts.folds[-1].model_id)
    assert [part[0] for part in newest["parts"]] == list(SYMBOLS[: len(newest["parts"])])


def test_the_parts_of_a_pooled_fold_share_the_calendars_spans(done: dict[str, UniverseOutcome]) -> None:
    for fold in done["msmf"].forecasts.folds:
        step = config().walkforward.step
        trained_at = (builders.CALENDAR.index(fold.use_first) - 1) // step * step
        purge = config().walkforward.purge
        assert builders.CALENDAR.index(fold.validation_first) >= trained_at + 1 - purge - 10
        gap = builders.CALENDAR.index(fold.validation_first) - builders.CALENDAR.index(fold.train_last)
        assert gap > purge, "no symbol trains where another validates"


@BOTH
def test_a_symbol_alone_has_the_signals_of_a_run_of_one_symbol(
    done: dict[str, UniverseOutcome], tmp_path: Path, model: str
) -> None:
    if model == "msmf":
        return  # its model is that of all symbols
    fill(tmp_path)
    alone = config().with_run(market="A", strategy="long_short")
    items = [item for item in news().items() if "A" in item.symbols]
    mine = NewsBatch.of(items)
    with MarketStore.open(tmp_path / "market.db", clock=SimulatedClock(builders.NOW)) as store:
        counted = NewsRows(news=mine, row=np.arange(1, len(mine) + 1), rejected=())
        store.add_news("mine", [counted], source=FileSource(name="mine"))
    made = engine.backtest(alone.with_run(news="mine"), tmp_path, FIRST, LAST, readers=builders.readers())
    together = {signal.session: signal for signal in of(done[model], "A")}
    assert [signal.p_up for signal in made.forecasts.signals] == [
        together[signal.session].p_up for signal in made.forecasts.signals
    ]


@BOTH
def test_a_new_future_of_any_symbol_changes_nothing_before_it(tmp_path: Path, model: str) -> None:
    one, other = (run(tmp_path / str(future), model, future=future) for future in (1, 2))
    mine, theirs = rows(one, CUT), rows(other, CUT)
    for table in mine:
        ended = [[row for row in found[table] if row.get("status") == "completed"] for found in (mine, theirs)]
        assert (ended[0] == ended[1] and ended[0]) if table == "orders" else mine[table] == theirs[table], table
    assert rows(one)["signals"] != rows(other)["signals"], "the futures must differ, or nothing was tested"


@BOTH
def test_a_run_that_ends_earlier_is_a_prefix(done: dict[str, UniverseOutcome], tmp_path: Path, model: str) -> None:
    for end in (DAYS[119], CUT):  # the first lies in a hole of B's
        short, whole = rows(run(tmp_path, model, end)), rows(done[model], end)
        for table in ("signals", "expected_returns", "news_weights", "fills", "equity", "holdings"):
            assert short[table] == whole[table], table


@BOTH
def test_the_same_seed_gives_the_same_hash_from_scratch_and_from_kept_models(
    done: dict[str, UniverseOutcome], tmp_path: Path, model: str
) -> None:
    fresh, again = run(tmp_path, model), run(tmp_path, model)
    assert fresh.ledger_hash == again.ledger_hash == done[model].ledger_hash
    assert not any(fold.cached for fold in fresh.forecasts.folds)
    assert all(fold.cached for fold in again.forecasts.folds)
    assert run(tmp_path, model, seed=5).ledger_hash != fresh.ledger_hash or model == OWN


def test_workers_side_by_side_train_the_same_models(done: dict[str, UniverseOutcome], tmp_path: Path) -> None:
    made = run(tmp_path, "msmf", compute={"workers": 2})
    assert made.ledger_hash == done["msmf"].ledger_hash


def test_other_bars_of_one_symbol_give_another_model_for_all(done: dict[str, UniverseOutcome], tmp_path: Path) -> None:
    fill(tmp_path, nudged="C")
    made = run(tmp_path, "msmf")
    assert made.forecasts.folds[0].model_id != done["msmf"].forecasts.folds[0].model_id


def test_the_figures_count_their_decisions_and_sessions(done: dict[str, UniverseOutcome]) -> None:
    for outcome in done.values():
        said = outcome.decisions
        counted = [signal for signal in outcome.forecasts.all if signal.p_up is not None and signal.session != LAST]
        assert said.decisions == len(counted) and said.sessions == len(DAYS[104:]) - 1
        accuracy = said.get("accuracy")
        assert accuracy.low is not None and accuracy.high is not None and accuracy.value is not None
        assert 0 < accuracy.low <= accuracy.value <= accuracy.high < 1
        with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
            kept = {(row["name"], row["of"]) for row in ledger.metrics(outcome.run)}
        assert {("mcc", "signals"), ("rank_ic", "signals"), ("sharpe", "net")} <= kept
    assert (done["msmf"].decisions.score, done[OWN].decisions.score) == ("expected return", "P(up)")


def test_a_rival_is_scored_on_the_same_sessions(tmp_path: Path) -> None:
    outcome = run(tmp_path, OWN, evaluation={"rivals": ["logistic", "facts"]})
    assert list(outcome.rivals) == ["logistic"]
    assert outcome.rivals["logistic"].decisions > 100


def test_the_stored_config_holds_the_universe_itself(done: dict[str, UniverseOutcome]) -> None:
    with Ledger.open(done["msmf"].home.ledger, read_only=True) as ledger:
        facts = ledger.run_facts(done["msmf"].run)
    assert facts["market"] == "toys"
    assert universe_of(market_of(facts["config"])) == universe_of(UNIVERSE)


def test_a_decision_is_made_again_from_the_symbols_own_news(done: dict[str, UniverseOutcome]) -> None:
    for outcome in done.values():
        for symbol in ("A", "B"):
            made = explain(outcome.home.folder, outcome.run, CUT, symbol, readers=builders.readers())
            assert made.whole and made.notes == () and made.symbol == symbol
            assert (made.fusion is not None) == (outcome is done["msmf"])
    with pytest.raises(NoData, match="several symbols"):
        explain(done["msmf"].home.folder, done["msmf"].run, CUT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retrain": {"adopt": "challenge"}}, "a universe adopts every training"),
        ({"inputs": {"market_features": "levels"}}, "not read as price levels"),
    ],
)
def test_what_a_universe_cannot_have_yet_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, **changes)
    assert not (tmp_path / "ledger.db").exists()


def test_a_strategy_of_one_symbol_is_refused_or_stood_in_for(tmp_path: Path) -> None:
    fill(tmp_path)
    made = config().with_run(strategy="long_short")
    with pytest.raises(ConfigError, match="trades one symbol"):
        universe_engine.backtest(made, tmp_path, FIRST, LAST, readers=builders.readers(), as_asked=True)
    outcome = universe_engine.backtest(made, tmp_path, FIRST, LAST, readers=builders.readers())
    assert outcome.config.run.strategy == "top_k"
    assert any("long_short, which the config names, trades one symbol" in note for note in outcome.notes)


def test_what_takes_one_symbol_refuses_a_universe(tmp_path: Path) -> None:
    said = "takes one symbol, not a universe"
    for name in (UNIVERSE, "toys.toml"):
        with pytest.raises(ConfigError, match=said):
            engine.backtest(config().with_run(market=name), tmp_path, FIRST, LAST, readers=builders.readers())
    with MarketStore.open(tmp_path / "market.db") as store, pytest.raises(ConfigError, match=said):
        chart_of(store, config(), CUT, None)  # type: ignore[arg-type]


def test_an_account_cannot_trade_the_signals_of_many_symbols(done: dict[str, UniverseOutcome]) -> None:
    outcome = done[OWN]
    asked = config().with_run(market="toys", strategy="long_short")
    with pytest.raises(ConfigError, match="takes one symbol, not a universe"):
        open_account(outcome.home, "mine", asked, SimulatedClock(builders.NOW), signals_run=str(outcome.run))


def test_too_little_history_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"toys: too little history to train a first model"):
        run(tmp_path, walkforward={"train": 500, "validation": 10, "step": 10})


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Say:
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(universe_engine, "readers_of", lambda config, home: builders.readers())
    fill(tmp_path / "home")
    (tmp_path / "toys.toml").write_text(UNIVERSE)
    (tmp_path / "config.toml").write_text(
        f'[run]\nnews = "toy"\nmodel = "{OWN}"\nlookback = 3\n'
        "[walkforward]\ntrain = 20\nvalidation = 10\nstep = 25\n"
        "[compute]\nworkers = 1\n[evaluation]\nresamples = 100\nrivals = []\n[strategy.top_k]\nk = 1\n"
    )

    return commands(capsys)


def test_the_commands_run_show_and_explain_a_universe(say: Say) -> None:
    days = ("--from", FIRST, "--to", LAST)
    code, out, err = say("backtest", "--market", "toys.toml", *days)
    assert code == 0, err
    assert f"{OWN} on toys (4 symbols)" in out and "rank IC" in out and "Strategy top_k: long_short" in out
    assert "decisions, 85 sessions" in out.replace("\n", " ")
    assert "toys" in say("runs")[1]
    every, one = say("trades", "latest")[1], say("trades", "latest", "--symbol", "A")[1]
    assert " B " in every and " B " not in one and " A " in one
    assert "no such symbol (got Z, expected one of A, B, C, LATE)" in say("trades", "latest", "--symbol", "Z")[2]
    code, _, err = say("why", "latest", CUT)
    assert code == 2 and "several symbols" in err and "--symbol SYMBOL" in err and err.count("\n") == 1
    assert f"{CUT} B: " in say("why", "latest", CUT, "--symbol", "B")[1]
    assert '"rank_ic"' in say("backtest", "--market", "toys.toml", *days, "--json")[1]


def test_the_commands_refuse_in_one_line(say: Say) -> None:
    days = ("--from", FIRST, "--to", LAST)
    for words, said in (
        (("backtest", "--market", "toys.toml", *days, "--strategy", "long_only"), "trades one symbol"),
        (("backtest", "--market", "nowhere.toml", *days), "cannot be read"),
        (("experiment", "finin", "--market", "toys.toml"), "takes one symbol, not a universe"),
    ):
        code, _, err = say(*words)
        assert code == 2 and said in err and err.count("\n") == 1, err


def test_a_symbol_that_is_listed_after_the_run_abstains_to_its_end_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LISTED, "LATE", 160)
    outcome = run(tmp_path, "logistic", DAYS[150])
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        said = ledger.between("signals", outcome.run, date.min, DAYS[150])
    assert {row["p_up"] for row in said if row["symbol"] == "LATE"} == {None}
    assert any(row["p_up"] is not None for row in said if row["symbol"] == "A")
    assert outcome.decisions.decisions > 0
