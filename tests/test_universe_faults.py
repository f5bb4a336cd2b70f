"""An account of many symbols whose models are late or damaged goes on, and still equals its backtest."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
import time
from typing import Any

import pytest

from tests import a_universe, builders
from tests.a_universe import DAYS, POOLED, TINY, backtest, rows, the_same
from tests.builders import CALENDAR
from tests.test_universe_paper import DUE, an_account, its_backtest, kept, replayed, world
from trader import host, running, universe_host
from trader.clock import SimulatedClock
from trader.outcome import Home
from trader.window import Window

T = next(at for at in range(72, 90) if CALENDAR.index(DAYS[at]) % 10 == 0)  # models are trained on this session


@pytest.mark.parametrize("model", ["tests.builders:GatedModel", "tests.a_universe:GatedPooledModel"])
def test_models_that_are_not_ready_make_the_next_decisions_late_and_decide_when_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("TRADER_TEST_GATE", str(gate))
    gate.touch()
    home = a_universe.fill(tmp_path)
    backtest(home, model, DAYS[T])  # so that the first models are there
    run = an_account(home, model, compute={"workers": 1})
    replayed(home, DAYS[T - 1])
    gate.unlink()
    clock = SimulatedClock(DUE.decide_at(DAYS[T]))
    with running.running(Home(home), "acct", replace(world(clock), patient=False)) as service:
        assert service.run_due() == 1
        clock.set(DUE.decide_at(DAYS[T + 1]))
        assert service.run_due() == 0 and "due at" in service.waits_for
        assert ("and 1 more" in service.waits_for) == ("Pooled" not in model)
        clock.set(CALENDAR.open_at(DAYS[T + 2]))
        assert service.run_due() == 1
        clock.set(DUE.decide_at(DAYS[T + 2]))
        assert service.run_due() == 0
        gate.touch()
        until = time.perf_counter() + 240
        while not service.run_due():
            assert time.perf_counter() < until
            time.sleep(0.05)
    replayed(home, DAYS[T + 6])
    events = kept(home)[1]
    [late] = [event for event in events if event.kind == "late"]
    assert late.session == DAYS[T + 1] and late.detail.endswith("was not ready")
    used = {event.symbol for event in events if event.kind == "use"}
    assert used == ({""} if "Pooled" in model else {"A", "B"})
    decided = [row["p_up"] for row in rows(home, run)["signals"] if row["session"] == str(DAYS[T + 1])]
    assert decided == [None] * 3
    the_same(rows(home, run), rows(home, its_backtest(home, model, DAYS[T + 6])))


@pytest.mark.parametrize("model", [TINY, POOLED])
def test_a_model_that_fails_abstains_for_its_symbols_and_for_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, model)
    run = an_account(home, model)
    for room in (host, universe_host):
        monkeypatch.setattr(room, "forecast", failing(room.forecast))
    replayed(home, DAYS[T + 6])
    events = [event for event in kept(home)[1] if event.kind in ("damaged", "abstain")]
    assert {event.session for event in events} == {DAYS[T + 3]}
    told = {(event.kind, event.symbol) for event in events}
    one, all_of_them = {("damaged", "A"), ("abstain", "A")}, {("damaged", ""), ("abstain", "")}
    assert told == (one if model == TINY else all_of_them)  # what keeps all from a decision is told once
    the_same(rows(home, run), rows(home, its_backtest(home, model, DAYS[T + 6])))


def failing(forecast: Any) -> Any:
    """Return a forecast that fails for A on one session."""

    def fails(window: Window, loaded: Any, use: range, symbol: str, lookback: int) -> Any:
        if symbol == "A" and window.sessions[use.start] == DAYS[T + 3]:
            raise ValueError("a model of somebody's own")
        return forecast(window, loaded, use, symbol, lookback)

    return fails


def test_a_model_that_is_damaged_at_a_start_keeps_its_symbol_alone_from_a_decision(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, TINY)
    run = an_account(home, TINY)
    replayed(home, DAYS[T + 2])
    day = str(DAYS[T + 2])
    newest = {row["symbol"]: row["model_id"] for row in rows(home, run)["signals"] if row["session"] == day}
    [weights] = (home / "models" / newest["A"]).glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    replayed(home, DAYS[T + 4])
    weights.write_bytes(whole)
    replayed(home, DAYS[T + 6])
    told = {(event.session, event.symbol) for event in kept(home)[1] if event.kind == "abstain"}
    assert told == {(DAYS[T + 3], "A"), (DAYS[T + 4], "A")}
    the_same(rows(home, run), rows(home, its_backtest(home, TINY, DAYS[T + 6])))


@pytest.mark.parametrize("model", ["tests.a_universe:FailingModel", "tests.a_universe:FailingPooledModel"])
def test_a_training_that_fails_is_tried_again_a_session_later_and_the_model_before_decides_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    fails = tmp_path / "fails"
    monkeypatch.setenv("TRADER_TEST_FAILS", str(fails))
    home = a_universe.fill(tmp_path)
    backtest(home, model, DAYS[T])  # so that the first models are there
    run = an_account(home, model)
    replayed(home, DAYS[T - 1])
    fails.touch()
    replayed(home, DAYS[T + 4])
    whose = "" if "Pooled" in model else "A"
    events = kept(home)[1]
    assert [(one.session, one.symbol) for one in events if one.kind == "training failed"] == [(DAYS[T], whose)]
    used = [one.session for one in events if one.kind == "use" and one.symbol == whose]
    assert used == [DAYS[T + 1], DAYS[T + 2]]
    the_same(rows(home, run), rows(home, its_backtest(home, model, DAYS[T + 4])))


@pytest.mark.parametrize("model", ["tests.a_universe:FailingModel", "tests.a_universe:FailingPooledModel"])
def test_a_first_training_that_fails_is_told_and_the_backtest_of_the_account_begins_as_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    fails = tmp_path / "fails"
    monkeypatch.setenv("TRADER_TEST_FAILS", str(fails))
    home = a_universe.fill(tmp_path)
    run = an_account(home, model)
    fails.touch()
    replayed(home, DAYS[74])
    told = [one for one in kept(home)[1] if one.kind == "abstain"]
    assert told and all("the training of" in one.detail and "failed" in one.detail for one in told)
    assert {one.symbol for one in told} == ({""} if "Pooled" in model else {"A"})
    the_same(rows(home, run), rows(home, its_backtest(home, model, DAYS[74])))


def test_models_that_wait_for_their_turn_are_trained_before_the_next_decision_is_due(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, TINY, DAYS[T - 1])
    an_account(home, TINY, compute={"workers": 1})
    replayed(home, DAYS[T - 1])
    before = {path.name for path in (home / "models").iterdir()}
    clock = SimulatedClock(DUE.decide_at(DAYS[T]))
    with running.running(Home(home), "acct", replace(world(clock), patient=False)) as service:
        assert service.run_due() == 1
        until = time.perf_counter() + 120
        while len({path.name for path in (home / "models").iterdir() if path.name[0] != "."} - before) < 2:
            assert time.perf_counter() < until, "the second one never began"
            clock.set(min(clock.now() + timedelta(seconds=20), DUE.decide_at(DAYS[T + 1]) - timedelta(minutes=1)))
            service.read_ahead()
            time.sleep(0.05)


def test_an_account_that_ends_while_one_symbol_trains_goes_on_with_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two models that are due one is adopted and the other under way when the service ends."""
    gate, model = tmp_path / "gate", "tests.a_universe:TicketModel"
    monkeypatch.setenv("TRADER_TEST_GATE", str(gate))
    gate.mkdir()
    home = a_universe.fill(tmp_path)

    def tickets(count: int) -> None:
        for old in gate.iterdir():
            old.unlink()
        for number in range(count):
            (gate / str(number)).touch()

    tickets(50)
    backtest(home, model, DAYS[T])
    run = an_account(home, model, compute={"workers": 1})
    replayed(home, DAYS[T - 1])
    tickets(1)
    clock = SimulatedClock(DUE.decide_at(DAYS[T]))
    with running.running(Home(home), "acct", replace(world(clock), patient=False)) as service:
        assert service.run_due() == 1
        until = time.perf_counter() + 120
        while "and 1 more" in service._source.pending():
            assert time.perf_counter() < until
            time.sleep(0.05)
        clock.set(CALENDAR.open_at(DAYS[T + 2]))
        assert service.run_due() == 1  # too late, but what is there is adopted with it
    adopted = [one.symbol for one in kept(home)[1] if one.kind == "adopted" and one.session == DAYS[T]]
    assert len(adopted) == 1
    tickets(50)
    replayed(home, DAYS[T + 5])
    adopted = [one.symbol for one in kept(home)[1] if one.kind == "adopted" and one.session == DAYS[T]]
    assert sorted(adopted) == ["A", "B"]
    the_same(rows(home, run), rows(home, its_backtest(home, model, DAYS[T + 5])))


def test_what_is_read_ahead_changes_no_row(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    outcome = backtest(home, POOLED, DAYS[80])
    run = an_account(home, POOLED)
    replayed(home, DAYS[75])
    clock = SimulatedClock(CALENDAR.open_at(DAYS[76]))
    with running.running(Home(home), "acct", world(clock)) as service:
        for at in range(76, 81):
            clock.set(DUE.decide_at(DAYS[at]) - timedelta(hours=2))
            service.read_ahead()
            assert service.run_due() == 0
            clock.set(DUE.decide_at(DAYS[at]))
            assert service.run_due() == 1
    the_same(rows(home, run), rows(home, outcome.run))


def test_a_scorer_that_takes_until_after_the_open_makes_the_whole_session_late(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, POOLED)
    run = an_account(home, POOLED)
    replayed(home, DAYS[75])
    clock = SimulatedClock(CALENDAR.open_at(DAYS[77]) - timedelta(seconds=1))

    class Slow(builders.TinyScorer):
        """Takes two seconds of the account's own time."""

        def scores(self, texts: object, progress: object = None) -> object:
            if clock.now() < CALENDAR.open_at(DAYS[77]):
                clock.set(clock.now() + timedelta(seconds=2))
            return super().scores(texts, progress)  # type: ignore[arg-type]

    readers = replace(builders.readers(), scorer=Slow())
    with running.running(Home(home), "acct", replace(world(clock), readers=readers)) as service:
        service._warm_up()
        clock = SimulatedClock(CALENDAR.open_at(DAYS[77]) - timedelta(seconds=1))
        service._outside = replace(service._outside, clock=clock)
        assert service.run_due() == 1
    made = [row for row in rows(home, run)["signals"] if row["session"] == str(DAYS[76])]
    assert {row["p_up"] for row in made} == {None}
    assert all(row["reason"].startswith("late: ") for row in made)
    replayed(home, DAYS[80])
    the_same(rows(home, run), rows(home, its_backtest(home, POOLED, DAYS[80])))
