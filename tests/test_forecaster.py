"""Forecasts by folds and day by day are the same; a session's forecast depends on nothing but what was known then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.base import Days, Prediction
from strategies.long_short import LongShort
from tests import builders
from tests.builders import TinyModel
from trader import engine
from trader.errors import ModelError, NoData
from trader.events import Signal
from trader.ledger import Ledger
from trader.outcome import Outcome
from trader.store import MarketStore

DAYS = builders.sessions(140)
FIRST, LAST = DAYS[116], DAYS[138]
TINY = "tests.builders:TinyModel"


def run(home: Path, *, first: int = 116, last: int = 138, **how: Any) -> Outcome:
    engine_how = {name: how.pop(name) for name in ("daily", "watch") if name in how}
    settings = builders.config(**how)
    return engine.backtest(settings, home, DAYS[first], DAYS[last], readers=builders.readers(), **engine_how)


def signals(outcome: Outcome) -> list[Signal]:
    return list(outcome.forecasts.signals)


@pytest.mark.parametrize(
    ("model", "lookback"),
    [("finin", 3), ("finin", 1), ("finin", 10), ("logistic", 5), ("msmf", 3), ("msmf", 1), (TINY, 1), (TINY, 10)],
)
def test_day_by_day_writes_the_same_signals_and_ledger_as_by_folds(tmp_path: Path, model: str, lookback: int) -> None:
    home = builders.a_home(tmp_path)
    by_folds = run(home, model=model, lookback=lookback)
    daily = run(home, model=model, lookback=lookback, daily=True)
    assert len(signals(by_folds)) == 23
    assert len({signal.model_id for signal in signals(by_folds)}) >= 3
    assert signals(daily) == signals(by_folds)
    assert daily.ledger_hash == by_folds.ledger_hash
    assert all(fold.cached for fold in daily.forecasts.folds), "both ways train on the same bits"


@pytest.mark.parametrize("gone", [(121,), (120, 121, 122), (118, 137)])
def test_a_session_without_its_bar_abstains_and_keeps_the_position(tmp_path: Path, gone: tuple[int, ...]) -> None:
    home = builders.a_home(tmp_path, without=gone)
    by_folds, daily = (run(home, model=TINY, daily=daily) for daily in (False, True))
    assert signals(daily) == signals(by_folds)
    assert daily.ledger_hash == by_folds.ledger_hash
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        rows = {row["session"]: row for row in ledger.equity(by_folds.run)}
        trades = ledger.trades(by_folds.run)
    decided = {signal.session: signal for signal in signals(by_folds)}
    assert len(rows) == len(decided) == 23
    for at in gone:
        signal = decided[DAYS[at]]
        assert (signal.p_up, signal.side) == (None, 0)
        assert signal.reason.startswith("no bar of toy known by")
        before, that = (rows[str(DAYS[day])] for day in (at - 1, at))
        assert (that["position"], that["equity"]) == (before["position"], before["equity"])
        assert not any(str(DAYS[at]) in (trade["decided"], trade["filled"]) for trade in trades)


def test_a_bar_that_came_too_late_is_none_even_on_the_first_or_last_session(tmp_path: Path) -> None:
    bars = builders.bars(DAYS)
    for at in (60, 61, 62, 63, 116, 125, 138):
        bars[at] = replace(bars[at], known_at=bars[at].known_at + timedelta(hours=1))
    builders.fill(tmp_path, bars, builders.headlines(DAYS))
    by_folds, daily = (run(tmp_path, model=TINY, daily=daily) for daily in (False, True))
    assert signals(daily) == signals(by_folds)
    found = {signal.session: signal.p_up for signal in signals(by_folds)}
    assert list(found) == DAYS[117:138]
    assert [session for session, p_up in found.items() if p_up is None] == [DAYS[125]]


def test_the_first_day_of_a_run_changes_no_signal(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    early = {signal.session: signal for signal in signals(run(home))}
    for first in (120, 121, 127):
        late = run(home, first=first)
        assert signals(late) == [early[day] for day in DAYS[first:139]]
        assert all(fold.cached for fold in late.forecasts.folds)


def test_the_same_seed_gives_the_same_ledger_and_another_seed_another(tmp_path: Path) -> None:
    hashes = [
        run(builders.a_home(tmp_path / name), seed=seed).ledger_hash for name, seed in (("a", 4), ("b", 4), ("c", 5))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_the_ten_heaviest_headlines_are_kept_with_their_number_and_spread(tmp_path: Path) -> None:
    found = signals(run(builders.a_home(tmp_path, most=30), model=TINY))
    assert any(signal.news_count > 10 for signal in found)
    for signal in found:
        weights = [weight for _, weight in signal.top]
        assert len(weights) == min(10, signal.news_count)
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) <= 1 + 1e-6
        if signal.news_count <= 10:
            assert sum(weights) == pytest.approx(1 if weights else 0)
        assert (0 if not weights else 1) <= signal.effective_news <= signal.news_count


class Flat(TinyModel):
    """Knows nothing, and says so."""

    def predict(self, days: Days, at: Any) -> Prediction:
        return Prediction(np.full(len(at), 0.5))


class NotANumber(TinyModel):
    def predict(self, days: Days, at: Any) -> Prediction:
        made = super().predict(days, at)
        made.p_up[-1] = np.nan if len(days) < 60 else made.p_up[-1]  # not in validation
        return made


def test_even_odds_take_no_side(tmp_path: Path) -> None:
    outcome = run(builders.a_home(tmp_path), model="tests.test_forecaster:Flat")
    assert {(signal.side, signal.p_up) for signal in signals(outcome)} == {(0, 0.5)}
    assert {signal.top for signal in signals(outcome)} == {()}
    assert outcome.trading.fills == 0


def test_a_forecast_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a forecast that is not a number"):
        run(builders.a_home(tmp_path), model="tests.test_forecaster:NotANumber")


def test_too_little_history_is_an_error_that_says_how_much_is_needed(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 90)
    for daily in (False, True):
        with pytest.raises(NoData, match=r"too little history.*got 90 sessions, expected at least 99"):
            run(home, first=50, last=89, model=TINY, daily=daily)


def test_without_history_trading_starts_when_the_first_fold_is_full_and_the_notes_say_so(tmp_path: Path) -> None:
    outcome = run(builders.a_home(tmp_path), first=0, model=TINY)
    start = signals(outcome)[0].session
    assert DAYS[98] <= start <= DAYS[108]
    assert outcome.notes[0].startswith(f"Trading starts on {start}, when the first fold is full")
    assert signals(run(tmp_path, first=0, model=TINY, daily=True)) == signals(outcome)


class Interrupted(LongShort):
    """Somebody presses Ctrl-C in the tenth session."""

    def next(self) -> None:
        if len(self) == 10:
            raise KeyboardInterrupt
        super().next()


class Broken(LongShort):
    def next(self) -> None:
        if len(self) == 10:
            raise RuntimeError("a mistake in somebody's strategy")
        super().next()


def _rows(home: Path) -> Mapping[str, Any]:
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        facts, equity = ledger.run_facts("latest"), ledger.equity("latest")
        for row in equity:  # each session is whole: its signal is there
            ledger.why("latest", DAYS[[str(day) for day in DAYS].index(row["session"])])
    return {"status": facts["status"], "sessions": len(equity), "hash": facts["ledger_hash"]}


def test_a_run_that_is_stopped_leaves_whole_sessions_and_says_so(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(home, model=TINY, strategy="tests.test_forecaster:Interrupted")
    assert _rows(home) == {"status": "stopped", "sessions": 9, "hash": None}
    undisturbed = run(builders.a_home(tmp_path / "other"), model=TINY)
    assert run(home, model=TINY).ledger_hash == undisturbed.ledger_hash


@pytest.mark.parametrize("stage", ["broker", "evaluate"])
def test_a_run_that_is_stopped_between_stages_is_stopped(tmp_path: Path, stage: str) -> None:
    def impatient(name: str, done: int, total: int, detail: str = "") -> None:
        if name == stage:
            raise KeyboardInterrupt

    home = builders.a_home(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(home, model=TINY, watch=impatient)
    assert _rows(home) == {"status": "stopped", "sessions": 0 if stage == "broker" else 23, "hash": None}


def test_a_run_whose_strategy_fails_is_failed_and_keeps_what_was_whole(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    with pytest.raises(Exception, match="a mistake in somebody's strategy"):
        run(home, model=TINY, strategy="tests.test_forecaster:Broken")
    assert _rows(home) == {"status": "failed", "sessions": 9, "hash": None}


def test_a_stop_while_the_models_are_trained_leaves_no_run(tmp_path: Path) -> None:
    def impatient(name: str, done: int, total: int, detail: str = "") -> None:
        if name == "train" and done == 2:
            raise KeyboardInterrupt

    home = builders.a_home(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(home, model=TINY, watch=impatient)
    with pytest.raises(NoData, match="no ledger yet"):
        Ledger.open(home / "ledger.db", read_only=True)
    assert sum(not fold.cached for fold in run(home, model=TINY).forecasts.folds) >= 1, "and the models made are kept"
    assert len(list((home / "models").iterdir())) == len(run(home, model=TINY).forecasts.folds)


def test_the_store_is_not_written_by_a_run(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    with MarketStore.open(home / "market.db") as store:
        before = (store.symbols(), store.names())
    run(home, model=TINY)
    with MarketStore.open(home / "market.db") as store:
        assert (store.symbols(), store.names()) == before
