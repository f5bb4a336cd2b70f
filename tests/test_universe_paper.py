"""A paper account of many symbols writes, a session a transaction, what a backtest of the same days writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
import sqlite3
from typing import Any

import pytest

from tests import a_universe, builders
from tests.a_universe import DAYS, FIRST, LAST, POOLED, SYMBOLS, TINY, UNIVERSE, backtest, config, rows, the_same
from tests.builders import CALENDAR
from trader import running
from trader.account import (
    Account,
    AccountEvent,
    Accounts,
    abstentions_by_symbol,
    controls_of,
    overrides_by_symbol,
)
from trader.clock import Calendar, Clock, SimulatedClock, WallClock
from trader.errors import ConfigError, NoData, ReplayError
from trader.ledger import Ledger
from trader.outcome import Home
from trader.running import World, replay
from trader.store import MarketStore

DUE = Calendar(30)


def world(clock: Clock, **around: Any) -> World:
    return World(clock=clock, patient=True, readers=builders.readers(), **around)


def an_account(home: Path, model: str = TINY, *, name: str = "acct", signals: str | None = None, **changes: Any) -> int:
    clock, made = SimulatedClock(builders.NOW), config(model, **changes)
    return running.open_account(Home(home), name, made, clock, first=FIRST, signals_run=signals).run


def replayed(home: Path, last: date = LAST, **around: Any) -> int:
    return replay(Home(home), "acct", None, last, lambda clock: world(clock, **around))


def kept(home: Path) -> tuple[Account, list[AccountEvent], dict[str, Any]]:
    """Return the account, its events, and the bars that it read, by symbol."""
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get("acct")
        return account, accounts.events(account), dict(accounts.bars_of_symbols(account, SYMBOLS))


def asked(home: Path, kind: str) -> None:
    with Ledger.open(home / "ledger.db") as ledger:
        accounts = Accounts(ledger, SimulatedClock(builders.NOW - timedelta(days=3650)))
        accounts.request(accounts.get("acct"), kind)


def its_backtest(home: Path, model: str, last: date = LAST, **changes: Any) -> int:
    """Run the account's days again with all that befell it; return the number of the run."""
    _, events, known = kept(home)
    befell = {"overrides": overrides_by_symbol(events), "controls": controls_of(events)}
    abstain = abstentions_by_symbol(events, SYMBOLS)
    return backtest(home, model, last, abstain=abstain, bars_known=known, **befell, **changes).run


@pytest.mark.parametrize("model", [TINY, POOLED, "msmf"])
def test_a_replayed_account_writes_the_rows_of_the_backtest(tmp_path: Path, model: str) -> None:
    home = a_universe.fill(tmp_path)
    outcome = backtest(home, model)
    run = an_account(home, model)
    assert replayed(home) == len(CALENDAR.sessions(FIRST, LAST))
    the_same(rows(home, run), rows(home, outcome.run))
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        assert ledger.ledger_hash(run) == outcome.ledger_hash
    assert len(rows(home, run)["fills"]) > 8 and len(rows(home, run)["holdings"]) > 20


@pytest.mark.parametrize("model", [TINY, POOLED])
def test_an_account_that_stopped_goes_on_with_the_models_that_it_had(tmp_path: Path, model: str) -> None:
    home = a_universe.fill(tmp_path)
    outcome = backtest(home, model)
    run = an_account(home, model)
    ends = (72, 77, 78, 79, 82, 83, 87, 90, 91, 97, 98, 110, 118)  # at holes, late bars and retrainings
    assert sum(replayed(home, DAYS[at]) for at in ends) == len(CALENDAR.sessions(FIRST, LAST))
    the_same(rows(home, run), rows(home, outcome.run))
    adopted = [(event.session, event.symbol) for event in kept(home)[1] if event.kind == "adopted"]
    assert len(adopted) == len(set(adopted)) >= 5, "each training is told once"


def test_an_account_of_stored_signals_writes_the_rows_of_their_run(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    outcome = backtest(home)
    run = an_account(home, signals="1")
    replayed(home)
    the_same(rows(home, run), rows(home, outcome.run))


def test_at_a_session_the_account_equals_a_backtest_that_ends_there(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, POOLED)
    run = an_account(home, POOLED)
    for at in (82, 90, 93):  # a bar came late on the first two
        replayed(home, DAYS[at])
        the_same(rows(home, run), rows(home, backtest(home, POOLED, DAYS[at]).run))


@pytest.mark.parametrize("model", [TINY, POOLED])
def test_an_account_trains_by_itself_at_the_sessions_of_the_backtest(tmp_path: Path, model: str) -> None:
    home = a_universe.fill(tmp_path)
    run = an_account(home, model, compute={"workers": 2})
    replayed(home, DAYS[81])
    the_same(rows(home, run), rows(home, backtest(home, model, DAYS[81]).run))
    assert len({event.session for event in kept(home)[1] if event.kind == "adopted"}) >= 2


@pytest.mark.parametrize("model", [TINY, POOLED])
def test_the_backtest_of_an_account_applies_what_befell_it(tmp_path: Path, model: str) -> None:
    home = a_universe.fill(tmp_path)
    plain = backtest(home, model)
    run = an_account(home, model)
    stale = DAYS[84:87]
    replayed(home, DAYS[76], stale=lambda at: "feed toy is stale" if CALENDAR.session_at(at) in stale else "")
    asked(home, "halt")
    replayed(home, DAYS[79])
    asked(home, "resume")
    replayed(home, DAYS[87], stale=lambda at: "feed toy is stale" if CALENDAR.session_at(at) in stale else "")
    asleep = SimulatedClock(DUE.decide_at(DAYS[103]) + timedelta(minutes=5))  # over a retraining
    with running.running(Home(home), "acct", world(asleep)) as service:
        assert service.run_due() == 16
    replayed(home, DAYS[105])
    asked(home, "flatten")
    replayed(home, DAYS[108])
    asked(home, "resume")
    replayed(home)
    again = its_backtest(home, model)
    the_same(rows(home, run), rows(home, again))
    assert rows(home, run)["signals"] != rows(home, plain.run)["signals"]
    kinds = {event.kind for event in kept(home)[1]}
    assert {"halt", "resume", "flatten", "late", "abstain", "adopted"} <= kinds
    flat = [row["session"] for row in rows(home, run)["holdings"]]
    assert str(DAYS[107]) not in flat and str(DAYS[110]) in flat


def test_what_holds_for_all_symbols_is_one_event_and_late_sends_no_order(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home)
    run = an_account(home, signals="1")
    replayed(home, DAYS[79])
    with running.running(Home(home), "acct", world(SimulatedClock(CALENDAR.open_at(DAYS[81])))) as service:
        assert service.run_due() == 1
    [event] = [event for event in kept(home)[1] if event.kind == "late"]
    late = [row for row in rows(home, run)["signals"] if row["session"] == str(DAYS[80])]
    assert [row["symbol"] for row in late] == sorted(SYMBOLS) and event.symbol == ""
    assert {row["reason"] for row in late} == {event.detail} and event.detail.startswith("late: decided at")
    assert str(DAYS[80]) not in {row["session"] for row in rows(home, run)["orders"]}


def test_a_bar_that_an_import_dates_back_reaches_neither_the_account_nor_its_backtest(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, POOLED)
    run = an_account(home, POOLED)
    replayed(home, DAYS[85])
    hole = [bar for bar in builders.bars(DAYS, seed=1, symbol="B") if bar.session in (DAYS[78], DAYS[85])]
    with MarketStore.open(home / "market.db") as store:
        store.add_bars(hole, source="an import that dates them at their closes")
    replayed(home)
    the_same(rows(home, run), rows(home, its_backtest(home, POOLED)))
    known = kept(home)[2]["B"]
    assert known[DAYS[78]] is None and known[DAYS[85]] is None
    assert known[DAYS[90]] == CALENDAR.cutoff(DAYS[90]) + timedelta(hours=3), "that one came late, and was read"


@pytest.mark.parametrize(
    "tampered",
    [
        "UPDATE equity SET cash = cash + 0.01 WHERE run = {run} AND session = '{day}'",
        "UPDATE holdings SET size = size * 2 WHERE run = {run} AND session = '{day}'",
        "DELETE FROM holdings WHERE run = {run} AND session = '{day}'",
        "UPDATE orders SET size = size * 2 WHERE run = {run} AND ref = 1",
        "DELETE FROM signals WHERE run = {run} AND session = '{day}' AND symbol = 'LATE'",
        "UPDATE fills SET price = price + 0.01 WHERE run = {run}",
    ],
)
def test_an_account_does_not_go_on_from_rows_that_are_not_its_own(tmp_path: Path, tampered: str) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home, last=DAYS[82])
    run = an_account(home, signals="1")
    replayed(home, DAYS[80])
    with sqlite3.connect(home / "ledger.db") as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        assert connection.execute(tampered.format(run=run, day=DAYS[80])).rowcount
    with pytest.raises(ReplayError, match=rf"run {run} "):
        replayed(home, DAYS[82])


def test_the_account_keeps_its_universe_though_the_file_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = a_universe.fill(tmp_path)
    outcome = backtest(home)
    (tmp_path / "toys.toml").write_text(UNIVERSE)
    run = an_account(home, market="toys.toml")
    (tmp_path / "toys.toml").write_text(UNIVERSE.replace('"A", ', ""))
    replayed(home)
    the_same(rows(home, run), rows(home, outcome.run))
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        assert ledger.run_facts(run)["market"] == "toys"


OTHER = UNIVERSE.replace('"LATE"', '"C"')


@pytest.mark.parametrize(
    ("changes", "signals", "said"),
    [
        ({"retrain": {"adopt": "challenge"}}, None, "a universe adopts every training"),
        ({"strategy": "long_only"}, None, "trades one symbol"),
        ({"execution": "close", "inputs": {"decide_minutes": 0}}, None, "nobody gets the close"),
        ({"market": UNIVERSE.replace('"B"', '"NOWHERE"')}, None, "no prices in the store for 1 of 3 symbols"),
        ({"market": UNIVERSE.replace('"B", ', "")}, "1", "the run's signals are of another market"),
        ({"market": "A", "strategy": "long_short"}, "1", "takes one symbol, not a universe"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_opened(
    tmp_path: Path, changes: Mapping[str, Any], signals: str | None, said: str
) -> None:
    home = a_universe.fill(tmp_path)
    if signals:
        backtest(home, last=DAYS[75])
    with pytest.raises((ConfigError, NoData), match=said):
        an_account(home, signals=signals, **changes)


def test_what_befalls_one_symbol_is_written_with_its_name(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    backtest(home)
    an_account(home)
    replayed(home, DAYS[90])
    events: Sequence[AccountEvent] = kept(home)[1]
    assert {event.symbol for event in events if event.kind == "adopted"} == {"A", "B"}
    assert not [event for event in events if event.kind == "abstain"], "a bar that is not there tells it by itself"


@pytest.mark.parametrize("model", [TINY, POOLED])
def test_a_hole_that_is_filled_in_afterwards_changes_no_training_of_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    hole = tuple(range(73, 93))  # longer than from one training to the next
    monkeypatch.setattr(a_universe, "HOLES", {"B": hole})
    home = a_universe.fill(tmp_path)
    run = an_account(home, model)
    replayed(home, DAYS[92])
    whole = builders.bars(DAYS, seed=SYMBOLS.index("B"), symbol="B")
    with MarketStore.open(home / "market.db") as store:
        store.add_bars([bar for bar in whole if bar.session in {DAYS[at] for at in hole}], source="dated back")
    replayed(home)
    the_same(rows(home, run), rows(home, its_backtest(home, model)))


def test_sessions_that_the_run_traded_has_not_are_told_once_each_and_those_before_it_not_at_all(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    made = config(TINY)
    a_universe.universe_engine.backtest(made, home, DAYS[74], DAYS[80], readers=builders.readers())
    run = an_account(home, signals="1")
    replayed(home, DAYS[83])
    told = [(one.session, one.symbol) for one in kept(home)[1] if one.kind == "abstain"]
    assert [one for one in told if one[0] != DAYS[82]] == [(DAYS[81], ""), (DAYS[83], "")]
    # One without its bar has a reason of its own; then the others are told by name.
    reasons = {row["symbol"]: row["reason"] for row in rows(home, run)["signals"] if row["session"] == str(DAYS[82])}
    [late] = [name for name, at in a_universe.LATE.items() if 82 in at]
    assert {symbol for session, symbol in told if session == DAYS[82]} == set(SYMBOLS) - {late}
    assert reasons[late].startswith(f"no bar of {late} known by")
    assert all("run 1 has no signal" in reasons[name] for name in set(SYMBOLS) - {late})
    assert min(row["session"] for row in rows(home, run)["signals"]) == str(DAYS[74])
