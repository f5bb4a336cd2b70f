"""The live service: what its clock does to it, who may run it beside another, how it is told to end, what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
import json
import os
from pathlib import Path
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import time_machine

from tests import builders
from tests.builders import CALENDAR
from tests.test_paper import DAYS, FIRST, LAST, TINY, an_account, asked, backtest, befell, ledger_hash, world
from trader import cli, engine, parts, running
from trader.account import AccountEvent, Accounts
from trader.clock import Clock, SimulatedClock, WallClock
from trader.errors import StoreError, TimeError
from trader.events import NewsRows
from trader.ledger import Ledger
from trader.outcome import Home
from trader.paper import Service
from trader.running import World, replay
from trader.scheduler import Scheduler
from trader.store import FileSource, MarketStore
from trader.wake import Bell, serve
from trader.walkforward import WalkForward, is_retrain_session
from trader.world import told_by

GATED, REMEMBERING = "tests.builders:GatedModel", "tests.builders:RememberingModel"
ROOT = Path(__file__).parents[1]
CONFIG = f"""
[run]
market = "toy"
news = "toy"
model = "{TINY}"
lookback = 3
[walkforward]
train = 60
validation = 10
step = 10
[compute]
workers = 1
[evaluation]
resamples = 100
rivals = []
"""


class AnyClock:
    """A clock that may be set back, as a machine's own may."""

    def __init__(self, instant: datetime) -> None:
        self.instant = instant

    def now(self) -> datetime:
        return self.instant


def a_stored_account(home: Path, days: list[date], *, first: date | None = None, news: Any = None) -> int:
    """Make a home of these days with an account "acct" that trades made-up signals from ``first`` on."""
    builders.fill(home, builders.bars(days), builders.headlines(days) if news is None else news)
    builders.signals_run(home, days)
    return an_account(home, first=first or days[0], signals="1", model=TINY)


@contextmanager
def served(home: Path, clock: Clock, **around: Any) -> Iterator[Service]:
    with running.running(Home(home), "acct", world(clock, **around)) as service:
        yield service


def events_of(home: Path, name: str = "acct") -> list[AccountEvent]:
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        return accounts.events(accounts.get(name))


def decided_sessions(home: Path) -> list[str]:
    with sqlite3.connect(home / "ledger.db") as connection:
        return [row[0] for row in connection.execute("SELECT session FROM decisions ORDER BY decided_at, session")]


def due(session: date, **after: float) -> datetime:
    return CALENDAR.decide_at(session) + timedelta(**after)


# When a decision is due


@pytest.mark.parametrize(
    ("session", "hour"),
    [
        (date(2018, 3, 9), 21),  # the last session before summer time
        (date(2018, 3, 12), 20),
        (date(2018, 11, 2), 20),  # the last one before winter time
        (date(2018, 11, 5), 21),
        (date(2018, 7, 3), 17),  # early closes
        (date(2017, 11, 24), 18),
    ],
)
def test_a_decision_is_due_at_the_true_close(tmp_path: Path, session: date, hour: int) -> None:
    days = builders.sessions(3, first=session)
    a_stored_account(tmp_path, days)
    instant = datetime(session.year, session.month, session.day, hour, tzinfo=timezone.utc)
    clock = SimulatedClock(instant - timedelta(microseconds=1))
    with served(tmp_path, clock) as service:
        assert service.next_due() == instant
        assert service.run_due() == 0
        clock.set(instant)
        assert service.run_due() == 1
        assert service.next_due().date() == days[1]
    assert events_of(tmp_path) == []


@pytest.mark.parametrize(
    ("closed", "before", "after"),
    [
        ([date(2004, 6, 11)], date(2004, 6, 10), date(2004, 6, 14)),
        ([date(2007, 1, 2)], date(2006, 12, 29), date(2007, 1, 3)),
        ([date(2012, 10, 29), date(2012, 10, 30)], date(2012, 10, 26), date(2012, 10, 31)),
        ([date(2018, 12, 5)], date(2018, 12, 4), date(2018, 12, 6)),
    ],
)
def test_nothing_is_due_on_a_day_of_mourning_or_storm_and_its_news_is_the_next_sessions(
    tmp_path: Path, closed: list[date], before: date, after: date
) -> None:
    days = builders.sessions(4, first=before)
    assert days[1] == after
    noons = [datetime(day.year, day.month, day.day, 17, tzinfo=timezone.utc) for day in closed]
    news = builders.batch([int(noon.timestamp() * 1e6) for noon in noons], [f"on {day}" for day in closed])
    a_stored_account(tmp_path, days, news=news)
    clock = SimulatedClock(due(before))
    with served(tmp_path, clock) as service:
        assert service.run_due() == 1
        while clock.now() < due(after, minutes=-30):
            clock.set(clock.now() + timedelta(minutes=30))
            assert service.run_due() == 0
        assert service.next_due() == due(after)
        clock.set(due(after))
        assert service.run_due() == 1
    assert decided_sessions(tmp_path) == [str(before), str(after)]
    assert events_of(tmp_path) == [], "neither late nor abstained"
    with MarketStore.open(tmp_path / "market.db") as store:
        made = Scheduler(store, CALENDAR, symbol="toy", news="toy", spec=WalkForward())
        arrived = [event.news.headline for event in made.events(after, after) if hasattr(event, "news")]
    assert [list(one) for one in arrived] == [[f"on {day}" for day in closed]]


def test_the_order_of_the_session_before_a_closure_is_in_time_until_the_next_open(tmp_path: Path) -> None:
    days = builders.sessions(3, first=date(2012, 10, 26))  # a Friday, then the storm to Tuesday
    a_stored_account(tmp_path, days)
    with served(tmp_path, SimulatedClock(CALENDAR.open_at(days[1]) - timedelta(minutes=1))) as service:
        assert service.run_due() == 1
    assert events_of(tmp_path) == []


# A clock that jumps, a machine that sleeps


def test_a_clock_set_back_while_the_service_runs_is_said_once_and_waited_out(tmp_path: Path) -> None:
    days = builders.sessions(6)
    a_stored_account(tmp_path, days)
    clock, said, steps = AnyClock(due(days[0])), [], iter(range(100))
    with Bell(tick_seconds=0.01) as bell, served(tmp_path, clock, log=lambda event, **f: said.append(event)) as service:

        def poll() -> None:
            at = next(steps)
            if at == 1:
                clock.instant -= timedelta(hours=26)
            elif at < 8:
                clock.instant += timedelta(minutes=1)
            elif at == 8:
                clock.instant = due(days[1])
            else:
                bell.stop()

        serve(service, bell, poll, lambda event, **facts: said.append(event))
    assert said == ["started", "decided", "waiting", "decided", "stopped"]
    assert decided_sessions(tmp_path) == [str(day) for day in days[:2]]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_jumps_a_day_ahead_and_back_decides_nothing_twice(tmp_path: Path, restarted: bool) -> None:
    """The bar and news of the day that was skipped come when the clock is right again, known before the decision."""
    at = 121  # a Monday
    bars, news = builders.bars(DAYS), builders.headlines(DAYS, most=3)
    known = [row for row, instant in enumerate(news.known_at) if instant <= due(DAYS[at]).timestamp() * 1e6]
    builders.fill(tmp_path, bars[: at + 1], _rows(news, known))
    backtest(tmp_path, model=REMEMBERING, last=DAYS[at])  # so that its models are there
    run = an_account(tmp_path, model=REMEMBERING)
    clock = AnyClock(due(FIRST))

    def decide(service: Service, instant: datetime) -> int:
        clock.instant = instant
        return service.run_due()

    with served(tmp_path, clock) as service:
        for day in DAYS[116 : at + 1]:
            assert decide(service, due(day)) == 1
        assert decide(service, due(DAYS[at], hours=26)) == 1, "its bar is not there"
        if not restarted:
            with pytest.raises(TimeError, match="the clock stands before"):
                decide(service, due(DAYS[at], minutes=1))
            with MarketStore.open(tmp_path / "market.db") as store:
                store.add_bars(bars[at + 1 :], source="afterwards")
                rest = [row for row in range(len(news)) if row not in set(known)]
                _add_news(store, _rows(news, rest))
            assert [decide(service, due(day, hours=3)) for day in DAYS[at + 1 : at + 4]] == [0, 1, 1]
    if restarted:
        with MarketStore.open(tmp_path / "market.db") as store:
            store.add_bars(bars[at + 1 :], source="afterwards")
            _add_news(store, _rows(news, [row for row in range(len(news)) if row not in set(known)]))
        for day, count in zip(DAYS[at + 1 : at + 4], [0, 1, 1], strict=True):
            with served(tmp_path, clock) as service:
                assert decide(service, due(day, hours=3)) == count
    events = events_of(tmp_path)
    assert [(event.kind, event.session) for event in events if event.kind == "abstain"] == [("abstain", DAYS[at + 1])]
    account = builders.config(model=REMEMBERING)
    again = engine.backtest(account, tmp_path, FIRST, DAYS[at + 3], readers=builders.readers(), **befell(events))
    assert again.ledger_hash == ledger_hash(tmp_path, run)


def _rows(news: Any, rows: list[int]) -> Any:
    return builders.batch([int(news.known_at[row]) for row in rows], [news.headline[row] for row in rows])


def _add_news(store: MarketStore, news: Any) -> None:
    rows = NewsRows(news=news, row=np.arange(1, len(news) + 1), rejected=())
    store.add_news("toy", [rows], source=FileSource(name="afterwards"))


def test_a_machine_asleep_for_thirty_sessions_is_late_for_all_but_the_newest_and_in_order(tmp_path: Path) -> None:
    days = builders.sessions(40)
    run = a_stored_account(tmp_path, days)
    replay(Home(tmp_path), "acct", None, days[4], world)
    with served(tmp_path, SimulatedClock(due(days[34], minutes=5))) as service:
        assert service.run_due() == 30
        assert service.run_due() == 0
    events = events_of(tmp_path)
    assert [(event.kind, event.session) for event in events] == [("late", day) for day in days[5:34]]
    with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
        orders = {row["session"] for row in ledger.orders(run)}
        assert [one.session for one in ledger.signals(run)] == days[:35]
    assert not orders & {str(day) for day in days[5:34]}, "a late decision orders nothing"


# A bell


def test_a_ring_for_an_instant_long_past_comes_at_once() -> None:
    with Bell(tick_seconds=60) as bell:
        assert bell.wait()
        started = time.monotonic()
        bell.at(WallClock().now() - timedelta(hours=3))  # missed by more than any grace time
        assert bell.wait()
    assert time.monotonic() - started < 30


def test_a_clock_that_was_wrong_for_a_moment_does_not_make_the_bell_sleep() -> None:
    with Bell(tick_seconds=0.05) as bell:
        bell.wait()
        for hours in (26, -26):
            with time_machine.travel(WallClock().now() + timedelta(hours=hours)):
                bell.at(WallClock().now() + timedelta(milliseconds=50))
                bell.wait()
            started = time.monotonic()
            assert bell.wait()
            assert bell.wait()
            assert time.monotonic() - started < 20


def test_a_bell_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with Bell(tick_seconds=0.01) as bell:
        bell.at(WallClock().now())
        for _ in range(5):
            bell.wait()
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


# A model that is due and not there


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    monkeypatch.setenv("TRADER_TEST_GATE", str(path))
    return path


def a_retrain_session() -> int:
    spec = builders.config().walkforward
    return next(at for at in range(118, 130) if is_retrain_session(CALENDAR.index(DAYS[at]), spec))


def test_a_decision_waits_for_the_model_that_is_due_until_its_open_and_no_longer(tmp_path: Path, gate: Path) -> None:
    home = builders.a_home(tmp_path)
    at = a_retrain_session()
    gate.touch()
    backtest(home, first=DAYS[at - 4], last=DAYS[at], model=GATED)  # so that the model before is there
    an_account(home, first=DAYS[at - 1], model=GATED)
    clock, said = SimulatedClock(due(DAYS[at - 1])), []
    with served(home, clock) as service:
        assert service.run_due() == 1
        gate.unlink()
        clock.set(due(DAYS[at]))
        assert service.run_due() == 1, "the model that is due now is for the next session"
    impatient = replace(world(clock), patient=False)
    with running.running(Home(home), "acct", impatient) as service, Bell(tick_seconds=0.2) as bell:
        clock.set(due(DAYS[at + 1]))
        until = time.monotonic() + 2

        def poll() -> None:
            said.append("look")
            if time.monotonic() > until:
                bell.stop()

        serve(service, bell, poll, lambda event, **facts: said.append(facts["why"]))
        told = [one for one in said if one != "look"]
        assert len(said) < 20, "it does not ask again and again for what is due already"
        assert len(told) == 1
        assert "GatedModel" in told[0]
        assert told[0].endswith("is not ready")
        clock.set(CALENDAR.open_at(DAYS[at + 2]) - timedelta(seconds=1))
        assert service.run_due() == 0, "it is not late before the open"
        clock.set(CALENDAR.open_at(DAYS[at + 2]))
        assert service.run_due() == 1
        gate.touch()
        clock.set(due(DAYS[at + 2]))
        give_up = time.monotonic() + 60
        while not service.run_due():
            assert time.monotonic() < give_up
            time.sleep(0.05)
    late, adopted = [event for event in events_of(home) if event.session in DAYS[at : at + 2] and event.kind != "use"]
    assert (late.kind, late.session) == ("late", DAYS[at + 1])
    assert late.detail.endswith("was not ready")
    model_id = late.detail.split("model ")[1].split(",")[0]
    assert adopted.kind == "adopted"
    assert model_id in adopted.detail
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        signals = {one.session: one for one in ledger.signals("latest")}
    assert signals[DAYS[at + 2]].model_id == model_id
    assert signals[DAYS[at + 2]].p_up is not None


def test_a_model_that_comes_in_time_decides(tmp_path: Path, gate: Path) -> None:
    home = builders.a_home(tmp_path)
    at = a_retrain_session()
    gate.touch()
    backtest(home, first=DAYS[at - 4], last=DAYS[at], model=GATED)  # so that the model before is there
    run = an_account(home, first=DAYS[at], model=GATED)
    clock = SimulatedClock(due(DAYS[at]))
    with served(home, clock) as service:
        assert service.run_due() == 1
        gate.unlink()
    with running.running(Home(home), "acct", replace(world(clock), patient=False)) as service:
        clock.set(due(DAYS[at + 1]))
        assert service.run_due() == 0
        assert service.waits_for
        gate.touch()
        give_up = time.monotonic() + 60
        while not service.run_due():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert service.waits_for == ""
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        old, new = ledger.signals(run)
    assert new.p_up is not None
    assert new.model_id != old.model_id


# Real processes


def recent(count: int) -> list[date]:
    """Return the newest sessions whose decision is due by the machine's own clock, and some to come."""
    now = WallClock().now()
    days = CALENDAR.sessions(now.date() - timedelta(days=3 * count), now.date())
    return [day for day in days if CALENDAR.decide_at(day) <= now][-count:]


def paper(home: Path, *words: str, config: str = "", **how: Any) -> subprocess.Popen[str]:
    path = home / "own.toml"
    path.write_text(config)
    command = [sys.executable, "-m", "trader", "paper", *words, "--home", str(home), "--config", str(path)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **how}
    )


def test_once_beside_run_finds_the_account_taken_and_sigterm_ends_the_service_in_order(tmp_path: Path) -> None:
    days = recent(12)
    a_stored_account(tmp_path, days)
    service = paper(tmp_path, "run", "acct", "--log", "json")
    assert service.stderr
    lines = [json.loads(service.stderr.readline()) for _ in range(len(days) + 1)]
    once = paper(tmp_path, "once", "acct")
    out, error = once.communicate(timeout=120)
    assert (once.returncode, out) == (2, "")
    assert f"acct: another service runs this account (got process {service.pid} on " in error
    assert len(error.splitlines()) == 1
    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=60) == 0
    lines += [json.loads(line) for line in service.stderr.read().splitlines()]
    assert [line["event"] for line in lines[:: len(days) + 1]] == ["started", "stopped"]
    assert [line["session"] for line in lines[1:-1]] == [str(day) for day in days]
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT holder FROM leases").fetchall() == [("",)]
        assert connection.execute("SELECT count(*), count(DISTINCT session) FROM decisions").fetchone() == (12, 12)
    after = paper(tmp_path, "once", "acct")
    assert after.communicate(timeout=120)[0].startswith("0 decisions made; the next is due at ")
    assert after.returncode == 0


def test_many_services_at_once_make_one_decision_a_session(tmp_path: Path) -> None:
    days = recent(12)
    a_stored_account(tmp_path, days)
    several = [paper(tmp_path, "once", "acct") for _ in range(2)]
    said = [one.communicate(timeout=120) for one in several]
    codes = [one.returncode for one in several]
    assert 0 in codes
    assert set(codes) <= {0, 2}
    for code, (_, error) in zip(codes, said, strict=True):
        assert ("another service runs this account" in error) == (code == 2)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT session) FROM decisions").fetchone() == (12, 12)


def test_a_second_sigterm_kills_and_the_dead_holder_is_succeeded(tmp_path: Path, capsys: Any) -> None:
    days = recent(3)
    gate = tmp_path / "answer"
    feed = f'[feeds.slow]\nkind = "tests.builders:StuckFeed"\ngate = "{gate}"\n'
    builders.fill(tmp_path, builders.bars(days), builders.headlines(days))
    builders.signals_run(tmp_path, days)
    an_account(
        tmp_path, first=days[0], signals="1", feeds={"slow": {"kind": "tests.builders:StuckFeed", "gate": str(gate)}}
    )
    service = paper(tmp_path, "run", "acct", "--log", "json", config=feed)
    give_up = time.monotonic() + 100
    while not gate.with_suffix(".asked").exists():
        assert time.monotonic() < give_up and service.poll() is None, service.communicate()
        time.sleep(0.02)
    service.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert service.poll() is None, "what is at hand is finished first"
    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=60) == -signal.SIGTERM
    gate.touch()
    assert "Service: none (the last one died)." in status(tmp_path, capsys)
    with served(tmp_path, WallClock()) as following:
        assert following.run_due() == 3


def test_a_holder_that_is_alive_keeps_its_account_when_its_lease_has_run_out(tmp_path: Path) -> None:
    days = builders.sessions(3)
    a_stored_account(tmp_path, days)
    code = """
import sys, time
from trader.running import World, running
from trader.clock import WallClock
from trader.outcome import Home
from pathlib import Path
with running(Home(Path(sys.argv[1])), "acct", World(clock=WallClock())):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == "held\n"
    with sqlite3.connect(tmp_path / "ledger.db") as connection:  # it trains a model for longer than a lease lasts
        connection.execute("UPDATE leases SET expires_at = 0")
    with pytest.raises(StoreError, match=f"got process {holder.pid} on .*; stop it first$"):
        served(tmp_path, SimulatedClock(due(days[0]))).__enter__()
    holder.kill()
    holder.wait()
    with served(tmp_path, SimulatedClock(due(days[0]))) as service:
        assert service.run_due() == 1


# Promoted, rolled back, and the backtest of all that


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose models are trained already."""
    home = builders.a_home(tmp_path_factory.mktemp("trained"))
    backtest(home, model=TINY)
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


@pytest.fixture
def say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command on a home; without a language model, as tests/test_cli.py does."""
    for room in (engine, running, parts):
        monkeypatch.setattr(room, "readers_of", lambda config, home: builders.readers())
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([*(str(word) for word in words), "--home", str(tmp_path / "home")])
        except SystemExit as left:
            code = int(left.code or 0)
        out, error = capsys.readouterr()
        return code, out, "\n".join(line for line in error.splitlines() if line.startswith("trader: "))

    return command


def models_by_session(home: Path, run: int) -> dict[date, str]:
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        return {one.session: one.model_id for one in ledger.signals(run)}


def test_a_promoted_model_is_taken_up_by_the_next_decision_and_the_backtest_of_the_account_knows_it(
    home: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    run = an_account(home, model=TINY)
    replay(Home(home), "acct", None, DAYS[131], world)
    used = models_by_session(home, run)
    old, new = used[DAYS[116]], used[DAYS[131]]
    assert old != new
    assert say("models", "promote", old, "--account", "acct")[:2] == (
        0,
        f"{old} is asked for. The first decision after {DAYS[131]} that is in time for its open takes it up.\n",
    )
    replay(Home(home), "acct", None, DAYS[133], world)
    code, out, _ = say("models", "rollback", "--account", "acct")
    assert (code, out.split()[0]) == (0, new)
    replay(Home(home), "acct", None, DAYS[135], world)
    used = models_by_session(home, run)
    assert [used[DAYS[at]] for at in range(131, 136)] == [new, old, old, new, new]
    named = [
        (event.kind, event.session, event.detail) for event in events_of(home) if event.kind in ("promote", "rollback")
    ]
    assert named == [("promote", DAYS[132], old), ("rollback", DAYS[134], new)]
    code, out, _ = say("backtest", "--as-account", "acct")
    assert (code, out.splitlines()[-1]) == (0, "Every signal, order, fill and equity is the same.")


def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    home: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    run = an_account(home, model=TINY)
    replay(Home(home), "acct", None, FIRST, world)
    [model_id] = set(models_by_session(home, run).values())
    folder = home / "models" / model_id
    assert say("models", "rollback", "--account", "acct") == (
        2, "", "trader: acct: the account has used no other model before",
    )  # fmt: skip
    code, out, error = say("models", "promote", "nosuch-1", "--account", "acct")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert "nosuch-1" in error
    other = json.loads((folder / "manifest.json").read_text()) | {"lookback": 5}
    shutil.copytree(folder, home / "models" / "other")
    (home / "models" / "other" / "manifest.json").write_text(json.dumps(other))
    code, out, error = say("models", "promote", "other", "--account", "acct")
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, error = say("models", "promote", model_id, "--account", "acct")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert model_id in error
    assert [event for event in events_of(home) if event.kind == "promote"] == []
    assert "not taken up yet" not in say("paper", "status", "acct")[1]


def an_eventful_account(home: Path) -> int:
    """Run an account through late sessions with and without their bars, a silent feed, halt, flatten and promote."""
    run = an_account(home, model=TINY)
    replay(Home(home), "acct", None, DAYS[117], world)
    with served(home, SimulatedClock(due(DAYS[120], minutes=5))) as service:
        assert service.run_due() == 3, "two of them late"
    with served(home, SimulatedClock(due(DAYS[121])), stale=lambda at: "feed toy is stale") as service:
        assert service.run_due() == 1
    for kind, until in (("halt", 124), ("resume", 126), ("flatten", 129), ("resume", 131)):
        asked(home, kind)
        replay(Home(home), "acct", None, DAYS[until], world)
    asked(home, "promote", models_by_session(home, run)[DAYS[117]])
    replay(Home(home), "acct", None, LAST, world)
    return run


def test_the_backtest_of_an_account_with_all_that_can_befall_it_is_the_same_until_a_row_is_tampered_with(
    home: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    run = an_eventful_account(home)
    kinds = {event.kind for event in events_of(home)}
    assert kinds >= {"late", "abstain", "halt", "resume", "flatten", "promote", "adopted"}
    code, out, error = say("backtest", "--as-account", "acct")
    assert (code, error, out.splitlines()[-1]) == (0, "", "Every signal, order, fill and equity is the same.")
    with sqlite3.connect(home / "ledger.db") as connection:
        connection.execute("UPDATE signals SET p_up = p_up + 1e-9 WHERE run = ? AND session = ?", (run, str(DAYS[128])))
    code, out, error = say("backtest", "--as-account", "acct")
    assert code == 2
    assert out.splitlines()[-1] == "They differ."
    assert error.startswith(f"trader: acct: the account is not its backtest (got signals of {DAYS[128]}: session 2010")
    assert "; the other: session 2010" in error


def test_an_account_whose_last_bars_have_not_come_is_compared_up_to_them(
    home: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    an_account(home, model=TINY)
    replay(Home(home), "acct", None, LAST, world)
    with MarketStore.open(home / "market.db") as store:
        newest = store.symbols()["toy"].last
    assert newest is not None
    later = [CALENDAR.session(CALENDAR.index(newest) + number) for number in range(1, 4)]
    with served(home, SimulatedClock(due(later[-1], minutes=5))) as service:
        assert service.run_due() == CALENDAR.index(later[-1]) - CALENDAR.index(LAST)
    code, out, error = say("backtest", "--as-account", "acct")
    assert (code, error) == (0, ""), out
    assert out.splitlines()[-2:] == [
        f"After {newest} no bar has come: 2 more sessions of the account wait, without a fill.",
        "Every signal, order, fill and equity is the same.",
    ]


def test_a_model_of_another_market_or_from_the_future_is_not_promoted(
    home: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    backtest(home, model=TINY, last=LAST)
    run = an_account(home, model=TINY)
    replay(Home(home), "acct", None, DAYS[120], world)
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        late = ledger.signals(1)[-1].model_id
    assert late not in models_by_session(home, run).values()
    code, out, error = say("models", "promote", late, "--account", "acct")
    assert (code, out) == (2, "")
    assert f"{late}: the model has seen sessions that the account has not (got 2010-" in error
    assert say("models", "promote", "nosuch", "--account", "acct")[2].endswith("`models list` shows all")


def test_opening_names_the_next_command_whole_and_a_past_account_is_to_be_replayed(
    home: Path, tmp_path: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    words = ("--config", tmp_path / "config.toml", "--market", "toy", "--news", "toy")
    code, out, error = say("paper", "open", "now", *words)
    assert code == 0, error
    where = f" --config {tmp_path / 'config.toml'} --home {tmp_path / 'home'}"
    assert out.splitlines()[-1] == f"Next: python -m trader paper run now{where}"
    code, out, _ = say("paper", "open", "past", "--from", str(FIRST), *words)
    assert out.splitlines()[-1] == f"Next: python -m trader paper replay past --to DAY{where}"
    assert "That session is past" in out
    (tmp_path / "config.toml").write_text(CONFIG + '[notify.hook]\nkind = "webhook"\nurl = "http://example.org/x"\n')
    code, out, error = say("paper", "open", "third", *words)
    assert (code, out) == (2, "")
    assert "plain http" in error


def test_a_month_asleep_without_its_bars_equals_its_backtest(tmp_path: Path) -> None:
    """What a live feed brings after a sleep is known from then on, so those sessions have neither decision nor bar."""
    slept, woke = range(121, 126), due(DAYS[126], minutes=-30)
    bars = builders.bars(DAYS)
    for at in slept:
        bars[at] = replace(bars[at], known_at=woke)
    builders.fill(tmp_path, bars, builders.headlines(DAYS))
    backtest(tmp_path, model=TINY, last=DAYS[129])  # so that its models are there
    run = an_account(tmp_path, model=TINY)
    replay(Home(tmp_path), "acct", None, DAYS[120], world)
    with served(tmp_path, SimulatedClock(due(DAYS[126]))) as service:
        assert service.run_due() == 6
    replay(Home(tmp_path), "acct", None, DAYS[129], world)
    events = events_of(tmp_path)
    assert [event.session for event in events if event.kind == "late"] == [DAYS[at] for at in slept]
    config = builders.config(model=TINY)
    again = engine.backtest(config, tmp_path, FIRST, DAYS[129], readers=builders.readers(), **befell(events))
    assert again.ledger_hash == ledger_hash(tmp_path, run)


def test_an_account_whose_newcomers_are_challenged_writes_the_rows_of_its_backtest(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path)
    rule = {"adopt": "challenge", "challenge": 10, "margin": 0.0}
    outcome = backtest(home, model=TINY, retrain=rule)
    run = an_account(home, model=TINY, retrain=rule)
    assert replay(Home(home), "acct", None, LAST, world) == 23
    assert ledger_hash(home, run) == outcome.ledger_hash
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        verdicts = [(one.session, one.adopted) for one in ledger.verdicts(outcome.run)]
    written = [(one.session, one.kind == "adopted") for one in events_of(home) if one.kind in ("adopted", "refused")]
    assert written == verdicts
    assert {adopted for _, adopted in verdicts} == {True, False}, "or the rule was not needed"


# What is told


def outbox(home: Path) -> list[tuple[str, str, str]]:
    with sqlite3.connect(home / "ledger.db") as connection:
        return connection.execute("SELECT kind, session, text FROM outbox ORDER BY id").fetchall()


def test_each_thing_is_told_once_whatever_is_started_again(tmp_path: Path) -> None:
    days = builders.sessions(30)
    run = a_stored_account(tmp_path, days)

    def around(clock: Clock) -> World:
        return world(clock, tell=told_by(clock))

    def replayed_to(at: int) -> None:
        replay(Home(tmp_path), "acct", None, days[at], around)

    replayed_to(5)
    with served(tmp_path, SimulatedClock(due(days[8], minutes=5)), tell=told_by(WallClock())) as service:
        service.run_due()
    stale = {"stale": lambda at: "feed toy is stale", "tell": told_by(WallClock())}
    with served(tmp_path, SimulatedClock(due(days[9])), **stale) as service:
        service.run_due()
    asked(tmp_path, "halt")
    for at in (10, 10, 12, 15):  # three services see the account halted
        replayed_to(at)
    asked(tmp_path, "resume")
    replayed_to(20)
    told = outbox(tmp_path)
    assert len(told) == len(set(told))
    assert [(kind, session) for kind, session, _ in told if kind in ("late", "abstained", "halted")] == [
        ("late", str(days[6])),
        ("late", str(days[7])),
        ("abstained", str(days[9])),
        ("halted", str(days[10])),
    ]
    with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
        fills = [row["session"] for row in ledger.fills(run)]
    assert [session for kind, session, _ in told if kind == "filled"] == fills
    assert fills


def test_nothing_is_told_of_what_was_rolled_back(tmp_path: Path) -> None:
    days = builders.sessions(30)
    a_stored_account(tmp_path, days)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute(
            f"CREATE TRIGGER full BEFORE INSERT ON decisions WHEN NEW.session = '{days[6]}' "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )

    def around(clock: Clock) -> World:
        return world(clock, tell=told_by(clock))

    with pytest.raises(StoreError, match="no room"):
        replay(Home(tmp_path), "acct", None, days[20], around)
    told = outbox(tmp_path)
    decided = [session for kind, session, _ in told if kind not in ("started", "error")]
    assert decided, "or nothing could have been left"
    assert max(decided) <= str(days[5])
    assert [text for kind, _, text in told if kind == "error"] != []
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DROP TRIGGER full")
    replay(Home(tmp_path), "acct", None, days[20], around)
    again = outbox(tmp_path)
    assert again[: len(told)] == told
    assert len(again) == len(set(again)) > len(told)


# What an account looks like


def status(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["paper", "status", *(words or ("acct",)), "--home", str(home)]) == 0
    return str(capsys.readouterr().out)


def test_the_status_of_a_new_account_says_what_comes(tmp_path: Path, capsys: Any) -> None:
    days = builders.sessions(5)
    a_stored_account(tmp_path, days)
    said = status(tmp_path, capsys)
    assert f"Decided from {days[0]} to –; the next decision, {days[0]}, is due at {days[0]} 21:00 UTC." in said
    assert "Service: none." in said
    assert "State ACTIVE" in said
    assert "Nothing came from outside." in said
    assert "Equity" not in said
    assert "acct" in status(tmp_path, capsys, "--config", os.devnull)


def test_the_status_of_sixty_sessions_shows_a_sharpe_ratio_with_its_interval(tmp_path: Path, capsys: Any) -> None:
    days = builders.sessions(63)
    a_stored_account(tmp_path, days)
    replay(Home(tmp_path), "acct", None, days[58], world)
    assert "Sharpe ratio: too few sessions, from 60 on" in status(tmp_path, capsys)
    replay(Home(tmp_path), "acct", None, days[61], world)
    said = status(tmp_path, capsys)
    [line] = [one for one in said.splitlines() if one.startswith("Sharpe ratio, net")]
    assert re.fullmatch(
        r"Sharpe ratio, net (-?\d+\.\d\d \[-?\d+\.\d\d, -?\d+\.\d\d\](; of Always Buy |; excess |$)){3}", line
    )


def test_the_status_of_a_halted_account_says_why_and_which_order_waits(tmp_path: Path, capsys: Any) -> None:
    days = builders.sessions(30)
    run = a_stored_account(tmp_path, days)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        sides = {one.session: one.side for one in ledger.signals(1)}
    turn = next(at for at in range(5, 20) if sides[days[at]] != sides[days[at - 1]])
    replay(Home(tmp_path), "acct", None, days[turn], world)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        [waiting] = [row for row in ledger.orders(run) if row["status"] == "open at end"]
    said = status(tmp_path, capsys)
    assert f"Waiting: order {waiting['ref']} of {days[turn]}, {waiting['size']:+,.4f} toy" in said
    capsys.readouterr()
    assert cli.main(["paper", "halt", "acct", "--home", str(tmp_path)]) == 0
    assert f"halt is written down. The first decision after {days[turn]} that is in time for" in capsys.readouterr().out
    assert "Asked for, not taken up yet: halt" in status(tmp_path, capsys)
    replay(Home(tmp_path), "acct", None, days[turn + 1], world)
    said = status(tmp_path, capsys)
    assert "State HALTED: " in said
    assert f"{days[turn + 1]} halt" in said
    assert "Asked for" not in said


# What cannot be opened


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--market", "nosuch"], "no bars of this market"),
        (["--execution", "close"], "nobody gets the close that he decides on"),
        (["--signals", "7"], "no such run"),
        (["--strategy", "nosuch"], "nosuch"),
        (["--model", "nosuch"], "nosuch"),
        (["--news", "nosuch"], "nosuch"),
    ],
)
def test_an_account_that_cannot_be_is_refused_in_one_line(
    home: Path, say: Callable[..., tuple[int, str, str]], words: list[str], said: str
) -> None:
    code, out, error = say("paper", "open", "one", *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert "no such account" in say("paper", "status", "one")[2]


def test_a_name_twice_is_refused_in_one_line(home: Path, say: Callable[..., tuple[int, str, str]]) -> None:
    assert say("paper", "open", "one")[0] == 0
    code, out, error = say("paper", "open", "one")
    assert (code, out) == (2, "")
    assert error == "trader: there is an account of this name already (got one); choose another name"
    assert say("paper", "open", "an account")[0] == 2


FEED = '[feeds.live]\nkind = "yahoo_prices"\nsymbol = "toy"\n'


def test_live_bars_need_some_minutes_after_the_close(
    home: Path, say: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(CONFIG + FEED)
    code, out, error = say("paper", "open", "one")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert "live bars come minutes after the close" in error
    assert error.endswith("set decide_minutes = 30, say")
    (tmp_path / "config.toml").write_text(CONFIG + "[inputs]\ndecide_minutes = 30\n" + FEED)
    assert say("paper", "open", "one")[0] == 0
    (tmp_path / "config.toml").write_text(CONFIG + '[feeds.wire1]\nkind = "rss"\nurl = "http://127.0.0.1:1/feed"\n')
    assert say("paper", "open", "two")[0] == 0, "headlines alone may come before the close"


def test_a_feed_that_cannot_be_made_is_refused_before_it_is_written_down(
    home: Path, say: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(CONFIG + FEED + 'token = "secret"\n')
    code, out, error = say("paper", "open", "one")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert "unknown key token" in error
    assert b"secret" not in (home / "ledger.db").read_bytes()
