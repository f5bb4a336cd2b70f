"""A paper account writes, session by session, what a backtest writes of the same days, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
import sqlite3
import subprocess
import sys
from typing import Any

import pytest

from tests import builders
from tests.builders import CALENDAR
from trader import engine, running
from trader.account import AccountEvent, Accounts, abstentions_of, controls_of, overrides_of
from trader.clock import Clock, SimulatedClock, WallClock
from trader.errors import ConfigError, NoData, ReplayError, StoreError, TimeError
from trader.ledger import Ledger
from trader.model_source import VERDICTS
from trader.outcome import Home, Outcome
from trader.running import World, replay
from trader.store import MarketStore

DAYS = builders.sessions(140)
TINY = "tests.builders:TinyModel"
FIRST, LAST = DAYS[116], DAYS[138]


def backtest(home: Path, *, first: date = FIRST, last: date = LAST, **how: Any) -> Outcome:
    return engine.backtest(builders.config(**how), home, first, last, readers=builders.readers())


def world(clock: Clock, **around: Any) -> World:
    return World(clock=clock, patient=True, readers=builders.readers(), **around)


# Its expected returns decide, and not its sides alone.
BY_RETURNS: dict[str, Any] = {
    "run": {"strategy": "vol_target"},
    "strategy": {"vol_target": {"edge": "expected_return", "lookback": 3}},
}


def an_account(home: Path, name: str = "acct", *, first: date = FIRST, signals: str | None = None, **how: Any) -> int:
    clock = SimulatedClock(builders.NOW)
    account = running.open_account(Home(home), name, builders.config(**how), clock, first=first, signals_run=signals)
    return account.run


def replayed(home: Path, name: str = "acct", *, last: date = LAST) -> int:
    return replay(Home(home), name, None, last, world)


def ledger_hash(home: Path, run: int) -> str:
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        return ledger.ledger_hash(run)


@pytest.mark.parametrize("strategy", ["long_short", "long_only", "threshold", "vol_target"])
@pytest.mark.parametrize("model", ["logistic", TINY])
def test_a_replayed_account_writes_the_rows_of_the_backtest(tmp_path: Path, model: str, strategy: str) -> None:
    home = builders.a_home(tmp_path)
    outcome = backtest(home, model=model, strategy=strategy)
    assert len({signal.model_id for signal in outcome.forecasts.signals}) >= 3
    run = an_account(home, model=model, strategy=strategy)
    assert replayed(home) == 23
    assert ledger_hash(home, run) == outcome.ledger_hash


def test_an_account_of_msmf_that_trains_its_own_writes_the_rows_of_the_backtest(tmp_path: Path) -> None:
    outcome = backtest(builders.a_home(tmp_path / "backtest"), model="msmf", **BY_RETURNS)
    assert len({signal.model_id for signal in outcome.forecasts.signals}) >= 3
    assert outcome.trading.fills > 5
    home = builders.a_home(tmp_path / "account")
    run = an_account(home, model="msmf", **BY_RETURNS)
    assert replayed(home) == 23
    assert ledger_hash(home, run) == outcome.ledger_hash


def test_an_account_of_stored_signals_writes_the_rows_of_their_run(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    outcome = backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    assert replayed(home) == 23
    assert ledger_hash(home, run) == outcome.ledger_hash


@pytest.mark.parametrize("gone", [(121,), (120, 121, 122), (118, 137)])
def test_an_account_meets_sessions_without_a_bar_as_the_backtest_does(tmp_path: Path, gone: tuple[int, ...]) -> None:
    home = builders.a_home(tmp_path, without=gone)
    outcome = backtest(home, model=TINY)
    run = an_account(home, model=TINY)
    replayed(home)
    assert ledger_hash(home, run) == outcome.ledger_hash


@pytest.mark.parametrize("late", [(121,), (120, 121, 122), (117, 120), (130,)])
def test_a_bar_that_comes_late_fills_what_waited_and_decides_nothing(tmp_path: Path, late: tuple[int, ...]) -> None:
    made = builders.bars(DAYS)
    for at in late:
        made[at] = replace(made[at], known_at=made[at].known_at + timedelta(hours=3))
    builders.fill(tmp_path, made, builders.headlines(DAYS))
    outcome = backtest(tmp_path, model=TINY)
    daily = engine.backtest(builders.config(model=TINY), tmp_path, FIRST, LAST, readers=builders.readers(), daily=True)
    assert daily.ledger_hash == outcome.ledger_hash
    run = an_account(tmp_path, model=TINY)
    replayed(tmp_path)
    assert ledger_hash(tmp_path, run) == outcome.ledger_hash
    with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
        signals = {signal.session: signal for signal in ledger.signals(run)}
        fills = {row["session"] for row in ledger.fills(run)}
        decided = {row["session"] for row in ledger.orders(run)}
    assert all(signals[DAYS[at]].p_up is None for at in late)
    assert not decided & {str(DAYS[at]) for at in late}
    before = min(late) - 1
    if str(DAYS[before]) in decided:
        assert str(DAYS[before + 1]) in fills, "its order gets the open of the session whose bar came late"


def test_the_replay_of_a_version_that_shifts_one_fill_is_refused(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[130])
    with sqlite3.connect(home / "ledger.db") as connection:
        session, ref = connection.execute(
            "SELECT session, ref FROM fills WHERE run = ? ORDER BY session LIMIT 1", (run,)
        ).fetchone()
        following = DAYS[DAYS.index(date.fromisoformat(session)) + 1]
        sql = "UPDATE fills SET session = ? WHERE run = ? AND ref = ?"
        connection.execute(sql, (str(following), run, ref))
    with pytest.raises(ReplayError, match=rf"run {run} fills {session}: .*record is not what its signals"):
        replayed(home)


@pytest.mark.parametrize("column", ["equity", "cash", "position", "borrow", "always_buy_equity"])
def test_an_account_does_not_go_on_from_an_equity_that_is_not_its_own(tmp_path: Path, column: str) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[130])
    with sqlite3.connect(home / "ledger.db") as connection:
        sql = f"UPDATE equity SET {column} = {column} + 0.01 WHERE run = ? AND session = ?"
        connection.execute(sql, (run, str(DAYS[125])))
    with pytest.raises(ReplayError, match=f"equity {DAYS[125]} {column}"):
        replayed(home)


@pytest.mark.parametrize(
    "tampered",
    [
        "UPDATE orders SET size = size * 2 WHERE run = {run} AND ref = 1",
        "UPDATE orders SET status = 'expired' WHERE run = {run} AND ref = 1",
        "INSERT INTO orders VALUES ({run}, '2010-06-22', 99, 'toy', 1.0, 'refused', 'by nobody')",
    ],
)
def test_an_account_does_not_go_on_from_orders_that_are_not_its_own(tmp_path: Path, tampered: str) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[130])
    with sqlite3.connect(home / "ledger.db") as connection:
        assert connection.execute(tampered.format(run=run)).rowcount == 1
    with pytest.raises(ReplayError, match=rf"run {run} order"):
        replayed(home)


def test_a_first_training_that_fails_is_told_and_the_backtest_of_the_account_begins_as_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = tmp_path / "fails"
    monkeypatch.setenv("TRADER_TEST_FAILS", str(fails))
    home, model = builders.a_home(tmp_path), "tests.a_universe:FailingModel"
    run = an_account(home, model=model)
    fails.touch()
    replayed(home)
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts, signals = Accounts(ledger, SimulatedClock(builders.NOW)), ledger.signals(run)
        events = accounts.events(accounts.get("acct"))
    told = [event for event in events if event.kind == "abstain"]
    assert [event.session for event in told] == [FIRST]
    assert told[0].detail.startswith("no model yet: the training of") and told[0].detail.endswith("failed")
    assert signals[0].session == DAYS[DAYS.index(FIRST) + 1] and signals[0].p_up is not None
    assert same_as_its_backtest(home)


def test_an_account_that_stopped_goes_on_where_it_stands(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    outcome = backtest(home, model=TINY)
    run = an_account(home, model=TINY)
    assert [replayed(home, last=DAYS[at]) for at in (118, 118, 127, 128, 138)] == [3, 0, 9, 1, 10]
    assert ledger_hash(home, run) == outcome.ledger_hash


def test_at_every_session_the_account_equals_a_backtest_that_ends_there(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    run = an_account(home, model=TINY)
    for at in range(124, 131):
        replayed(home, last=DAYS[at])
        assert ledger_hash(home, run) == backtest(home, model=TINY, last=DAYS[at]).ledger_hash


# Late, asked for, asleep


def decide_at(session: date, **after: float) -> Any:
    return CALENDAR.decide_at(session) + timedelta(**after)


def test_a_decision_after_the_next_open_is_late_and_keeps_the_position(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[119])
    clock = SimulatedClock(CALENDAR.open_at(DAYS[121]))  # 120 should have been decided before
    with running.running(Home(home), "acct", world(clock)) as service:
        assert service.run_due() == 1
        assert service.run_due() == 0, "a second wake-up finds nothing to do"
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        [late] = [signal for signal in ledger.signals(run) if signal.session == DAYS[120]]
        positions = {row["session"]: row["position"] for row in ledger.equity(run)}
        assert str(DAYS[120]) not in {row["session"] for row in ledger.orders(run)}
        [event] = Accounts(ledger, clock).events(Accounts(ledger, clock).get("acct"))
    assert late.p_up is None and late.reason.startswith("late: decided at ")
    assert (event.kind, event.session, event.detail) == ("late", DAYS[120], late.reason)
    # What was ordered on 119 filled at the open of 120; 120 itself ordered nothing, so 121 holds the same.
    with running.running(Home(home), "acct", world(SimulatedClock(decide_at(DAYS[121])))) as service:
        service.run_due()
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        after = {row["session"]: row["position"] for row in ledger.equity(run)}
    assert after[str(DAYS[121])] == positions[str(DAYS[120])]


def test_a_machine_asleep_for_fifteen_sessions_catches_up_in_order(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    run = an_account(home, model=TINY)
    replayed(home, last=DAYS[119])
    clock = SimulatedClock(decide_at(DAYS[135], minutes=5))
    with running.running(Home(home), "acct", world(clock)) as service:
        assert service.run_due() == 16
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        signals = [signal for signal in ledger.signals(run) if signal.session > DAYS[119]]
    assert [signal.session for signal in signals] == DAYS[120:136]
    assert [bool(signal.reason) for signal in signals] == [True] * 15 + [False], "only the newest is in time"


@pytest.mark.parametrize("adopt", ["challenge", "always"])
@pytest.mark.parametrize("stale", [DAYS[116:121], DAYS[119:132]], ids=["from the start", "over a retraining"])
def test_models_that_came_while_the_account_abstained_are_judged_as_in_its_backtest(
    tmp_path: Path, adopt: str, stale: list[date]
) -> None:
    home = builders.a_home(tmp_path)
    an_account(home, model=TINY, retrain={"adopt": adopt, "challenge": 10})

    def around(clock: Clock) -> World:
        return world(clock, stale=lambda at: "feed toy is stale" if CALENDAR.session_at(at) in stale else "")

    replay(Home(home), "acct", None, LAST, around)
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        events = accounts.events(accounts.get("acct"))
    assert [event.session for event in events if event.kind == "abstain"] == stale
    judged = [event for event in events if event.kind in VERDICTS]
    assert {event.session for event in judged} & set(stale), "no model came while it abstained"
    assert {event.kind for event in judged} == ({"adopted", "refused"} if adopt == "challenge" else {"adopted"})
    assert same_as_its_backtest(home)


def test_the_backtest_of_an_account_applies_what_befell_it(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    run = an_account(home, model=TINY)
    replayed(home, last=DAYS[119])
    asked(home, "halt")
    clock = SimulatedClock(decide_at(DAYS[124], minutes=5))
    with running.running(Home(home), "acct", world(clock)) as service:
        service.run_due()
    asked(home, "resume")
    replayed(home, last=DAYS[130])
    asked(home, "flatten")
    replayed(home, last=DAYS[133])
    asked(home, "resume")
    replayed(home)
    plain = backtest(home, model=TINY)
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        account = Accounts(ledger, clock).get("acct")
        events = Accounts(ledger, clock).events(account)
    again = engine.backtest(account.config, home, FIRST, LAST, readers=builders.readers(), **befell(events))
    assert again.ledger_hash == ledger_hash(home, run)
    assert again.ledger_hash != plain.ledger_hash


def befell(events: list[AccountEvent]) -> dict[str, Any]:
    return {"overrides": overrides_of(events), "controls": controls_of(events), "abstain": abstentions_of(events)}


def same_as_its_backtest(home: Path, name: str = "acct") -> bool:
    """Run the account's days again with all that befell it, as ``backtest --as-account`` does."""
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get(name)
        events, known = accounts.events(account), accounts.bars_known(account)
        last = date.fromisoformat(ledger.equity(account.run)[-1]["session"])
        mine = ledger.ledger_hash(account.run, until=last)
    again = engine.backtest(
        account.config,
        home,
        account.first_session,
        last,
        readers=builders.readers(),
        bars_known=known,
        **befell(events),
    )
    return again.ledger_hash == mine


def asked(home: Path, kind: str, detail: str = "") -> None:
    with Ledger.open(home / "ledger.db") as ledger:
        accounts = Accounts(ledger, SimulatedClock(builders.NOW - timedelta(days=3650)))
        accounts.request(accounts.get("acct"), kind, detail)


def test_a_request_is_taken_up_by_one_decision_and_by_no_other(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[119])
    asked(home, "flatten")
    replayed(home, last=DAYS[125])
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        [event] = [one for one in accounts.events(accounts.get("acct")) if one.kind == "flatten"]
        positions = [row["position"] for row in ledger.equity(run)]
        orders = [row for row in ledger.orders(run) if row["session"] == str(DAYS[120])]
    assert event.session == DAYS[120]
    assert positions[4:] and all(position == 0 for position in positions[5:]), "flat, and halted afterwards"
    assert "flatten" in [order["reason"] for order in orders]


@pytest.mark.parametrize("kind", ["halt", "flatten"])
def test_a_request_is_never_taken_up_by_a_decision_from_before_it_was_asked(tmp_path: Path, kind: str) -> None:
    home = builders.a_home(tmp_path)
    run = an_account(home, model=TINY)
    replayed(home, last=DAYS[119])
    asked_at = decide_at(DAYS[135], minutes=5)
    with Ledger.open(home / "ledger.db") as ledger:
        accounts = Accounts(ledger, SimulatedClock(asked_at))
        accounts.request(accounts.get("acct"), kind)
    with running.running(Home(home), "acct", world(SimulatedClock(asked_at + timedelta(minutes=1)))) as service:
        assert service.run_due() == 16, "asleep until then"
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        [event] = [one for one in accounts.events(accounts.get("acct")) if one.kind == kind]
        positions = {row["session"]: row["position"] for row in ledger.equity(run)}
    assert event.session == DAYS[135], "the only decision whose open was still to come"
    assert positions[str(DAYS[134])] != 0
    assert same_as_its_backtest(home)


@pytest.mark.parametrize("gone", [(138,), (137, 138), (121, 138)])
def test_an_account_whose_newest_session_waits_for_its_bar_equals_its_backtest(
    tmp_path: Path, gone: tuple[int, ...]
) -> None:
    home = builders.a_home(tmp_path, without=gone)
    an_account(home, model=TINY)
    replayed(home, last=DAYS[138])
    clock = SimulatedClock(decide_at(DAYS[138], minutes=1))
    with running.running(Home(home), "acct", world(clock)) as service:
        service.run_due()
    assert same_as_its_backtest(home)


def test_bars_that_fill_a_gap_afterwards_reach_neither_the_account_nor_its_backtest(tmp_path: Path) -> None:
    made = builders.bars(DAYS)
    builders.fill(tmp_path, [bar for at, bar in enumerate(made) if at not in (121, 125, 126)], builders.headlines(DAYS))
    run = an_account(tmp_path, model=TINY)
    replayed(tmp_path, last=DAYS[124])
    waiting = SimulatedClock(decide_at(DAYS[125], minutes=1))
    with running.running(Home(tmp_path), "acct", world(waiting)) as service:
        service.run_due()
    before = ledger_hash(tmp_path, run)
    with MarketStore.open(tmp_path / "market.db") as store:
        store.add_bars([made[121], made[125], made[126]], source="an import that dates them at their closes")
    replayed(tmp_path, last=DAYS[130])
    assert ledger_hash(tmp_path, run) != before
    with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        known = accounts.bars_known(accounts.get("acct"))
        signals = {signal.session: signal for signal in ledger.signals(run)}
    assert known[DAYS[121]] is None, "it was closed without a bar"
    assert known[DAYS[125]] == made[125].known_at, "it still waited for its bar"
    assert signals[DAYS[125]].p_up is None and signals[DAYS[126]].p_up is not None
    assert same_as_its_backtest(tmp_path)


def test_bars_of_slept_through_sessions_that_come_late_leave_the_account_equal_to_its_backtest(tmp_path: Path) -> None:
    made = builders.bars(DAYS)
    came = decide_at(DAYS[130], minutes=2)
    made = [replace(bar, known_at=max(bar.known_at, came)) if 120 <= at <= 130 else bar for at, bar in enumerate(made)]
    builders.fill(tmp_path, made, builders.headlines(DAYS))
    an_account(tmp_path, model=TINY)
    replayed(tmp_path, last=DAYS[119])
    with running.running(Home(tmp_path), "acct", world(SimulatedClock(came + timedelta(minutes=1)))) as service:
        service.run_due()
    replayed(tmp_path)
    assert same_as_its_backtest(tmp_path)


def test_a_decision_that_takes_until_after_the_open_is_late(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    run = an_account(home, model=TINY)
    replayed(home, last=DAYS[119])
    clock = SimulatedClock(CALENDAR.open_at(DAYS[121]) - timedelta(seconds=1))

    class Slow(builders.TinyScorer):
        """Takes two seconds of the account's own time."""

        def scores(self, texts: Any, progress: Any = None) -> Any:
            if clock.now() < CALENDAR.open_at(DAYS[121]):
                clock.set(clock.now() + timedelta(seconds=2))
            return super().scores(texts, progress)

    plain = builders.readers()
    readers = replace(plain, scorer=Slow())
    with running.running(Home(home), "acct", replace(world(clock), readers=readers)) as service:
        service._warm_up()
        clock_before = clock.now()
        assert service.run_due() == 1
    assert clock.now() >= clock_before
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        [signal] = [one for one in ledger.signals(run) if one.session == DAYS[120]]
        decided = {row["session"] for row in ledger.orders(run)}
    assert clock.now() >= CALENDAR.open_at(DAYS[121]), "the scorer took until after the open"
    assert signal.p_up is None and signal.reason.startswith("late: ")
    assert str(DAYS[120]) not in decided


def test_a_model_that_cannot_be_promoted_is_told_and_does_not_stop_the_account(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    run = an_account(home, model=TINY)
    replayed(home, last=DAYS[119])
    asked(home, "promote", "tiny-that-is-gone")
    assert replayed(home, last=DAYS[122]) == 3
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        kinds = [(one.session, one.kind) for one in accounts.events(accounts.get("acct"))]
        models = {signal.model_id for signal in ledger.signals(run)}
    assert (DAYS[120], "promote") in kinds and (DAYS[120], "damaged") in kinds
    assert "tiny-that-is-gone" not in models


def test_an_account_that_has_run_live_is_not_replayed(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    an_account(home, model=TINY)
    with running.running(Home(home), "acct", world(WallClock())) as service:
        assert service.run_due() > 0, "all of them late"
    with pytest.raises(ConfigError, match="acct: an account that has run live cannot be replayed"):
        replayed(home)


def test_a_replay_ends_with_the_newest_bar_and_begins_with_a_session(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    an_account(home, model=TINY)
    assert replay(Home(home), "acct", date(2010, 7, 4), date(2010, 12, 31), world) > 0
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get("acct")
        assert account.first_session == date(2010, 7, 6), "the fourth is a Sunday, the fifth a holiday"
        assert accounts.last_decided(account) == DAYS[139]


# What may not happen


def test_a_clock_before_the_newest_record_decides_nothing(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[120])
    clock = SimulatedClock(decide_at(DAYS[120], hours=-26))
    with running.running(Home(home), "acct", world(clock)) as service:
        with pytest.raises(TimeError, match="acct: the clock stands before the account's newest record"):
            service.run_due()
        clock.set(decide_at(DAYS[121]))
        assert service.run_due() == 1


def test_a_second_service_of_the_same_account_is_told_who_holds_it(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    an_account(home, signals="1", model=TINY)
    code = """
import sys
from datetime import date
from pathlib import Path
from trader import running
from trader.errors import StoreError
from trader.outcome import Home
from trader.running import World
try:
    running.replay(Home(Path(sys.argv[1])), "acct", None, date(2010, 7, 1), lambda clock: World(clock=clock))
except StoreError as error:
    print(error)
"""
    clock = SimulatedClock(decide_at(DAYS[116]))
    with running.running(Home(home), "acct", world(clock)):
        said = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, check=True).stdout
    assert "acct: another service runs this account (got process" in said
    assert "stop it first" in said


def test_a_service_that_lost_its_lease_writes_nothing_more(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    clock = SimulatedClock(decide_at(DAYS[116]))
    with running.running(Home(home), "acct", world(clock)) as service:
        assert service.run_due() == 1
        with sqlite3.connect(home / "ledger.db") as connection:
            connection.execute("UPDATE leases SET token = token + 1")
        clock.set(decide_at(DAYS[117]))
        with pytest.raises(StoreError, match="acct: this service has lost its account to another one"):
            service.run_due()
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        assert len(ledger.equity(run)) == 1


def test_settings_are_fixed_at_the_opening(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    an_account(home, model=TINY, costs={"cash": 5_000.0})
    with Ledger.open(home / "ledger.db") as ledger:
        accounts = Accounts(ledger, WallClock())
        held = accounts.get("acct").config
        assert held.text.dtype != "auto", "what auto means here and now is fixed too"
        asked_for = builders.config(model=TINY, costs={"cash": 5_000.0}, text={"dtype": held.text.dtype})
        assert held == asked_for
        with pytest.raises(ConfigError, match="there is an account of this name already"):
            accounts.open("acct", builders.config(), FIRST)
        with pytest.raises(NoData, match=r"no such account .*expected one of acct"):
            accounts.get("other")


def test_an_execution_that_nobody_gets_cannot_be_paper_traded(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    with pytest.raises(ConfigError, match="nobody gets the close that he decides on"):
        an_account(home, model=TINY, execution="close")


def test_a_revised_price_never_reaches_what_was_filled(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    replayed(home, last=DAYS[125])
    before = ledger_hash(home, run)
    with MarketStore.open(home / "market.db") as store:
        [bar] = store.as_of(decide_at(DAYS[138])).bars("toy", DAYS[120], DAYS[120])
        store.add_bars([replace(bar, close=bar.high, known_at=decide_at(DAYS[122]))], source="a correction")
    replayed(home, last=DAYS[125])
    assert ledger_hash(home, run) == before
    assert replayed(home) == 13


def test_a_stale_feed_makes_the_decision_abstain_with_the_reason(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)

    def stale(at: Any) -> str:
        return "feed toy is stale" if CALENDAR.session_at(at) == DAYS[118] else ""

    def around(clock: Clock) -> World:
        return world(clock, stale=stale)

    replay(Home(home), "acct", None, DAYS[122], around)
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        reasons = {signal.session: signal.reason for signal in ledger.signals(run) if signal.reason}
    assert reasons == {DAYS[118]: "feed toy is stale"}


def test_no_language_model_is_loaded_to_go_on_from_stored_signals(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    an_account(home, signals="1", model=TINY)
    code = """
import sys
from datetime import date
from pathlib import Path
from trader import running
from trader.outcome import Home
from trader.running import World
for last in (date(2010, 7, 1), date(2010, 7, 15)):
    print(running.replay(Home(Path(sys.argv[1])), "acct", None, last, lambda clock: World(clock=clock)))
print([name for name in ("torch", "transformers", "sklearn") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[2] == "[]"
    assert int(said.split("\n")[1]) > 0


# Told inside the transaction


def test_what_is_told_is_told_once_and_with_its_session(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    backtest(home, model=TINY)
    run = an_account(home, signals="1", model=TINY)
    told: list[tuple[str, date]] = []

    def tell(ledger: Ledger, account: Any) -> Callable[[str, date, str], None]:
        return lambda kind, session, text: told.append((kind, session))

    def around(clock: Clock) -> World:
        return world(clock, tell=tell)

    for at in (120, 130, 138):
        replay(Home(home), "acct", None, DAYS[at], around)
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        fills = [("filled", date.fromisoformat(row["session"])) for row in ledger.fills(run)]
    assert [one for one in told if one[0] == "filled"] == fills
    assert [kind for kind, _ in told if kind != "filled"] == ["started", "stopped"] * 3
