"""The ledger: whole sessions only, the same bytes for the same run, and one line for whatever the disk does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
import gc
import math
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
import signal as signals
import sqlite3
import subprocess
import sys
from threading import Timer
import time
from types import FrameType

import numpy as np
import pytest
from sqlite_utils import Database

from trader.clock import Calendar, SimulatedClock
from trader.errors import NoData, StoreError, TimeError
from trader.events import Signal
from trader.ledger import FoldFacts, Ledger, RunFacts, signals_frame
from trader.ledger_schema import prepare
from trader.metrics import EvaluationInputs, Metric, evaluate
from trader.records import FillRecord, OrderRecord, SessionRecord

SESSIONS = Calendar().sessions(date(2003, 1, 2), date(2018, 12, 31))
STARTED = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
FACTS = RunFacts(
    kind="backtest",
    config="[run]\nseed = 7\n",
    seed=7,
    code_version="0.1.0",
    first_session=date(1999, 1, 4),
    last_session=date(2018, 12, 31),
    data_hash="ab12",
    market="sp500",
    news="wire",
    model="finin",
    strategy="long_short",
    execution="next_open",
)
FOLD = FoldFacts(
    fold=1,
    model_id="m1",
    train_first=SESSIONS[0],
    train_last=SESSIONS[399],
    validation_first=SESSIONS[403],
    validation_last=SESSIONS[452],
    use_first=SESSIONS[456],
    use_last=SESSIONS[505],
    validation_loss=0.69,
    validation_accuracy=None,
    epochs=12,
    train_seconds=1.5,
    cached=False,
)


def a_signal(number: int) -> Signal:
    return Signal(
        session=SESSIONS[number],
        symbol="sp500",
        p_up=0.5 + 1 / (number + 3),
        side=1 if number % 2 else -1,
        model_id="m1",
        news_count=40,
        effective_news=12.25,
        top=tuple((f"headline {rank} of day {number}", 0.1 / (rank + 1)) for rank in range(10)),
    )


def a_record(number: int) -> SessionRecord:
    """A session that fills the order decided the day before: flips between +10 and −10 units at 100."""
    order, fills = (), ()
    if number:
        size = (10.0 if number == 1 else 20.0) * (1 if number % 2 else -1)
        session, ref = SESSIONS[number], number
        order = (OrderRecord(session=SESSIONS[number - 1], ref=ref, symbol="sp500", size=size, status="completed"),)
        fills = (
            FillRecord(
                session=session,
                order_ref=ref,
                symbol="sp500",
                size=size,
                price=100.0 + number,
                reference_price=100.0,
                commission=1.0,
                slippage_cost=2.0,
            ),
        )
    return SessionRecord(
        session=SESSIONS[number],
        signal=1,
        p_up=0.5,
        equity=1000.0 + number,
        cash=10.0,
        position=10.0,
        exposure=1.0,
        commission=1.0,
        slippage=2.0,
        borrow=0.5,
        interest=0.25,
        orders=order,
        fills=fills,
    )


def write(ledger: Ledger, run: int, numbers: Sequence[int]) -> None:
    for number in numbers:
        ledger.write_session(run, signal=a_signal(number), record=a_record(number), always_buy_equity=1000.0)


def count(path: Path, table: str) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


# What is kept


def test_an_expected_return_comes_back_with_its_signal_and_is_part_of_the_hash(path: Path) -> None:
    hashes = []
    for expected in (None, 0.0012, 0.0013):
        with Ledger.open(path) as ledger:
            run = ledger.start_run(FACTS)
            signal = replace(a_signal(0), expected_return=expected)
            ledger.write_session(run, signal=signal, record=a_record(0), always_buy_equity=1000.0)
            assert ledger.signals(run) == [signal] == ledger.why(run, SESSIONS[0])
            hashes.append(ledger.ledger_hash(run))
        frame = signals_frame(path, run)
        assert frame["expected_return"].tolist() == pytest.approx(
            [np.nan if expected is None else expected], nan_ok=True
        )
    assert len(set(hashes)) == 3


def test_a_ledger_from_before_expected_returns_is_read_with_the_hash_that_it_had(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        write(ledger, run, [0, 1, 2])
        whole = ledger.ledger_hash(run)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE expected_returns")
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.ledger_hash(run) == whole
        assert [signal.expected_return for signal in ledger.signals(run)] == [None] * 3
        assert ledger.why(run, SESSIONS[1]) == [a_signal(1)]


def test_a_run_is_read_back_as_it_was_written(path: Path) -> None:
    clock = SimulatedClock(STARTED)
    with Ledger.open(path, clock=clock) as ledger:
        run = ledger.start_run(FACTS)
        ledger.add_folds(run, [FOLD])
        write(ledger, run, range(3))
        clock.set(STARTED + timedelta(minutes=2))
        ledger.finish_run(run, "finished", ledger.ledger_hash(run))
    with Ledger.open(path, read_only=True) as ledger:
        facts = ledger.run_facts("latest")
        assert (facts["config"], facts["seed"], facts["first_session"]) == (FACTS.config, 7, "1999-01-04")
        assert (facts["started_at"], facts["finished_at"]) == (STARTED, STARTED + timedelta(minutes=2))
        (shown,) = ledger.runs()
        assert (shown["status"], shown["sessions"], shown["traded_to"]) == ("finished", 3, str(SESSIONS[2]))
        assert shown["ledger_hash"] == ledger.ledger_hash(run)
    assert count(path, "folds") == 1


def test_why_gives_back_the_signal_with_its_headlines_by_weight(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(3))
        assert ledger.why(run, SESSIONS[2]) == [a_signal(2)]
        assert ledger.why("latest", SESSIONS[0]) == [a_signal(0)]


def test_an_abstention_has_no_probability(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        silent = replace(a_signal(0), p_up=None, side=0, reason="no bar", top=())
        ledger.write_session(run, signal=silent, record=a_record(0), always_buy_equity=1000.0)
        assert ledger.why(run, SESSIONS[0]) == [silent]


def test_trades_show_each_order_with_its_fill(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(3))
        open_order = OrderRecord(session=SESSIONS[3], ref=3, symbol="sp500", size=5.0, status="open at end")
        ledger.write_session(
            run,
            signal=a_signal(3),
            record=replace(a_record(3), orders=(open_order,), fills=()),
            always_buy_equity=1.0,
        )
        first, _, last = ledger.trades(run)
    assert (first["decided"], first["filled"]) == (str(SESSIONS[0]), str(SESSIONS[1]))
    assert (first["status"], first["price"], first["commission"]) == ("completed", 101.0, 1.0)
    assert (last["status"], last["filled"], last["price"]) == ("open at end", None, None)


def test_a_reversal_closes_one_round_trip_and_opens_the_next(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(4))  # +10 at 101, −20 at 102, +20 at 103
        first, second, third = ledger.round_trips(run)
    assert (first.size, first.entry_price, first.exit_price) == (10, 101, 102)
    assert first.pnl == pytest.approx(10 * (102 - 101) - 1.0 - 0.5)  # its own fill, and half of the one that flips
    assert (second.size, second.entry, second.exit) == (-10, SESSIONS[2], SESSIONS[3])
    assert second.pnl == pytest.approx(-10 * (103 - 102) - 0.5 - 0.5)
    assert (third.size, third.exit, third.pnl) == (10, None, None)


def test_round_trip_profits_and_open_position_add_up_to_the_money_that_moved(path: Path) -> None:
    rng = np.random.default_rng(3)
    with Ledger.open(path) as ledger:
        run, cash, position = ledger.start_run(FACTS), 0.0, 0.0
        for number in range(1, 200):
            target = rng.uniform(-3, 3) if rng.random() < 0.8 and number < 199 else 0.0  # and flat in the end
            size, price = float(target - position), float(rng.uniform(90, 110))
            fills = (replace(a_record(number).fills[0], size=size, price=price),) if size else ()
            record = replace(a_record(number), fills=fills)
            ledger.write_session(run, signal=a_signal(number), record=record, always_buy_equity=1.0)
            cash, position = cash - size * price - (1.0 if size else 0.0), position + size
        trips = ledger.round_trips(run)
    assert abs(position) < 1e-12
    assert len(trips) > 50
    assert all(trip.pnl is not None for trip in trips)
    assert math.fsum(trip.pnl for trip in trips if trip.pnl is not None) == pytest.approx(cash)


def test_gross_equity_compounds_returns_with_each_days_costs_added_back(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(5))
        gross = [row["equity_gross"] for row in ledger.equity(run)]
    expected = [1003.5]
    for number in range(1, 5):
        expected.append(expected[-1] * (1000 + number + 3.5) / (1000 + number - 1))
    assert gross == pytest.approx(expected)


def test_gross_equity_of_the_ledger_is_the_gross_return_of_the_metrics(path: Path) -> None:
    rng, cash = np.random.default_rng(4), 1000.0
    records = []
    for number in range(50):
        cash *= 1 + rng.normal(0, 0.02)
        records.append(replace(a_record(number), equity=cash, commission=rng.uniform(0, 3)))
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        for number, record in enumerate(records):
            ledger.write_session(run, signal=a_signal(number), record=record, always_buy_equity=1.0)
        gross = ledger.equity(run)[-1]["equity_gross"]
    nothing = np.zeros(50)
    measured = evaluate(
        EvaluationInputs(
            side=nothing,
            next_return=nothing,
            equity=[record.equity for record in records],
            always_buy_equity=nothing + 1000.0,
            costs=[record.commission + record.slippage + record.borrow for record in records],
            traded=nothing,
            exposure=nothing,
            start_cash=1000.0,
        ),
        seed=0,
        resamples=10,
    ).get("pnl", "gross")
    assert measured.value == pytest.approx(gross - 1000.0)


def test_signals_frame_is_ready_for_somebody_elses_cerebro(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(3))
        silent = replace(a_signal(3), p_up=None, side=0, reason="no bar")
        ledger.write_session(run, signal=silent, record=a_record(3), always_buy_equity=1.0)
    frame = signals_frame(path)
    assert list(frame["signal"]) == [-1, 1, -1, 0]
    assert frame["p_up"].iloc[0] == a_signal(0).p_up
    assert math.isnan(frame["p_up"].iloc[-1])
    assert [day.date() for day in frame.index] == list(SESSIONS[:4])
    with pytest.raises(NoData, match=r"name one symbol .*got spy, expected sp500"):
        signals_frame(path, run, symbol="spy")


def test_metrics_are_replaced_by_newer_ones_and_none_stays_none(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        ledger.write_metrics(
            run, [Metric("sharpe", 0.1, 0.0, 0.2, "net"), Metric("accuracy", None, None, None, "signals")]
        )
        ledger.write_metrics(run, [Metric("sharpe", 0.5, 0.25, 0.75, "net")])
        found = {(row["name"], row["of"]): (row["value"], row["low"], row["high"]) for row in ledger.metrics(run)}
        assert ledger.runs()[0]["sharpe_low"] == 0.25
    assert found == {("sharpe", "net"): (0.5, 0.25, 0.75), ("accuracy", "signals"): (None, None, None)}


# The hash


def test_the_same_sessions_have_the_same_hash_in_any_run_of_any_file(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path) as ledger, Ledger.open(tmp_path / "other.db") as other:
        write(ledger, ledger.start_run(FACTS), range(2))
        write(ledger, second := ledger.start_run(FACTS), range(20))
        other.add_folds(elsewhere := other.start_run(replace(FACTS, seed=8)), [FOLD])
        write(other, elsewhere, range(20))
        assert ledger.ledger_hash(second) == other.ledger_hash(elsewhere)


@pytest.mark.parametrize(
    ("column", "table"),
    [("p_up", "signals"), ("weight", "news_weights"), ("size", "orders"), ("price", "fills"), ("cash", "equity")],
)
def test_the_last_bit_of_any_number_changes_the_hash(path: Path, column: str, table: str) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(3))
        before = ledger.ledger_hash(run)
    with sqlite3.connect(path) as connection:
        (value,) = connection.execute(f"SELECT max({column}) FROM {table}").fetchone()
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (math.nextafter(value, 0), value))
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.ledger_hash(run) != before


# What is refused


@pytest.mark.parametrize("run", ["7", 7, "newest", "-1", "1.0", ""])
def test_an_unknown_run_is_named_beside_the_known_ones(path: Path, run: int | str) -> None:
    with Ledger.open(path) as ledger:
        ledger.start_run(FACTS), ledger.start_run(FACTS)
        with pytest.raises(NoData, match=r"no such run .*expected one of 1, 2"):
            ledger.trades(run)


def test_latest_without_any_run_says_what_to_do(path: Path) -> None:
    with Ledger.open(path) as ledger, pytest.raises(NoData, match="run python -m trader backtest first"):
        ledger.resolve("latest")


def test_a_session_outside_the_run_is_answered_with_its_span(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(3))
        with pytest.raises(NoData, match=r"got 2018-12-31, expected a trading day from 2003-01-02 to 2003-01-06"):
            ledger.why(run, SESSIONS[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(path: Path, value: float) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        with pytest.raises(StoreError, match=r"equity 2003-01-02: a number that is not finite .*write None"):
            ledger.write_session(
                run, signal=a_signal(0), record=replace(a_record(0), cash=value), always_buy_equity=1.0
            )
        with pytest.raises(StoreError, match="not finite"):
            ledger.write_metrics(run, [Metric("sharpe", math.nan, None, None, "net")])
    assert count(path, "signals") == 0


def test_numpy_scalars_are_stored_as_plain_numbers(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(replace(FACTS, seed=np.int64(3)))
        signal = replace(a_signal(0), p_up=np.float32(0.5), side=np.int64(1), top=(("a", np.float32(0.25)),))
        record = replace(a_record(0), equity=np.float64(1.5), position=np.int32(2))
        ledger.write_session(run, signal=signal, record=record, always_buy_equity=np.float32(2.5))
        (row,) = ledger.equity(run)
        (shown,) = ledger.why(run, SESSIONS[0])
    assert (row["equity"], row["position"], row["always_buy_equity"]) == (1.5, 2.0, 2.5)
    assert (shown.p_up, shown.side, shown.top) == (0.5, 1, (("a", 0.25),))


def test_sessions_must_come_oldest_first_and_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), [3])
        for number in (3, 2):
            with pytest.raises(TimeError, match=r"a session out of order .*expected one after 2003-01-07"):
                write(ledger, run, [number])
    with Ledger.open(path) as ledger, pytest.raises(TimeError, match="out of order"):
        write(ledger, run, [2])  # a new process knows it too


def test_signal_account_and_fills_must_be_of_one_session(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        with pytest.raises(TimeError, match="different sessions"):
            ledger.write_session(run, signal=a_signal(1), record=a_record(2), always_buy_equity=1.0)
        stray = replace(a_record(2), fills=a_record(1).fills)
        with pytest.raises(TimeError, match="a fill of another session"):
            ledger.write_session(run, signal=a_signal(2), record=stray, always_buy_equity=1.0)
        instant = replace(a_signal(1), session=datetime(2003, 1, 3, 16, 0, tzinfo=timezone.utc))
        with pytest.raises(TimeError, match="a session is a date without a time"):
            ledger.write_session(run, signal=instant, record=a_record(1), always_buy_equity=1.0)


def test_a_fill_without_its_order_undoes_the_whole_session(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(2))
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            ledger.write_session(run, signal=a_signal(2), record=replace(a_record(2), orders=()), always_buy_equity=1.0)
        write(ledger, run, [2])  # and the ledger goes on
    assert [count(path, table) for table in ("signals", "news_weights", "orders", "equity")] == [3, 30, 2, 3]


# Kills, full disks, other programs, other files

CHILD = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parents[1]))
from tests.test_ledger import FACTS, Ledger, write
ledger = Ledger.open(sys.argv[2])
run = ledger.start_run(FACTS)
"""


def child(path: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, __file__, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", ["INSERT INTO news_weights", "INSERT INTO equity", "COMMIT"])
def test_a_kill_in_the_middle_of_a_session_leaves_whole_sessions(path: Path, moment: str) -> None:
    kill = f"""
write(ledger, run, range(25))
def kill(sql):
    if sql.startswith({moment!r}):
        os.kill(os.getpid(), signal.SIGKILL)
ledger._conn.set_trace_callback(kill)
write(ledger, run, range(25, 30))
"""
    process = child(path, kill)
    _, error = process.communicate(timeout=60)
    assert process.returncode == -signals.SIGKILL, error
    assert [count(path, table) for table in ("signals", "news_weights", "orders", "fills", "equity")] == [
        *(25, 250, 24, 24, 25),
    ]
    with Ledger.open(path) as ledger:
        assert ledger.runs()[0]["status"] == "running"
        write(ledger, 1, range(25, 30))  # the next process carries on
        write(ledger, undisturbed := ledger.start_run(FACTS), range(30))
        assert ledger.ledger_hash(1) == ledger.ledger_hash(undisturbed)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt, which a shell's job in the background ignores."""
    before = signals.signal(signals.SIGINT, signals.default_int_handler)
    yield
    signals.signal(signals.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_stop_from_the_keyboard_at_any_point_leaves_whole_sessions(path: Path) -> None:
    before = signals.signal(signals.SIGALRM, lambda *_: signals.raise_signal(signals.SIGINT))
    gc.disable()  # hypothesis, where it is loaded, watches the collector, and swallows a Ctrl-C that meets it there
    try:
        with Ledger.open(path) as ledger:
            for attempt in range(20):
                run = ledger.start_run(FACTS)
                signals.setitimer(signals.ITIMER_REAL, 0.005 + 0.0011 * attempt)
                with pytest.raises(KeyboardInterrupt):
                    write(ledger, run, range(4000))
                ledger.finish_run(run, "stopped")
            assert {row["status"] for row in ledger.runs()} == {"stopped"}
            for run in range(1, 21):
                days = len(ledger.equity(run))
                assert len(signals_frame(path, run)) == days
                assert ledger._query("SELECT count(*) n FROM news_weights WHERE run = ?", run) == [{"n": 10 * days}]
    finally:
        gc.enable()
        signals.setitimer(signals.ITIMER_REAL, 0)
        signals.signal(signals.SIGALRM, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_stop_from_the_keyboard_at_any_line_of_a_transaction_leaves_none_open(path: Path) -> None:
    stops = 0

    def stop_at(number: int) -> Callable[..., object]:
        """Return a tracer that presses Ctrl-C at the number-th line from now on."""
        left = number

        def trace(frame: FrameType, event: str, value: object) -> object:
            nonlocal left, stops
            left -= event == "line"
            if left == 0 and event == "line":
                stops += 1
                signals.raise_signal(signals.SIGINT)
            return trace

        return trace

    gc.disable()  # see above
    try:
        with Ledger.open(path) as ledger:
            for number in range(1, 2000):
                before = stops
                sys.settrace(stop_at(number))
                try:
                    run = ledger.start_run(FACTS)
                except KeyboardInterrupt:
                    run = None
                finally:
                    sys.settrace(None)
                assert not ledger._conn.in_transaction, f"left open by a stop at line {number}"
                if stops == before:
                    break
            assert run is not None
            assert stops > 20
            assert signals.getsignal(signals.SIGINT) is signals.default_int_handler
    finally:
        sys.settrace(None)
        gc.enable()


def test_a_full_database_is_one_line_and_keeps_the_sessions_before(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, run := ledger.start_run(FACTS), range(10))
        (pages,) = ledger._conn.execute("PRAGMA page_count").fetchone()
        ledger._conn.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(
            StoreError, match="full; free some disk space; the sessions written before are kept"
        ) as caught:
            write(ledger, run, range(10, 500))
        assert "\n" not in str(caught.value)
        whole = len(ledger.equity(run))
    assert 10 <= whole < 500
    assert count(path, "news_weights") == 10 * whole
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_disk_that_takes_no_more_is_one_line_and_keeps_the_sessions_before(path: Path) -> None:
    fill = """
from trader.errors import StoreError
write(ledger, run, range(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    write(ledger, run, range(10, 1000))
except StoreError as error:
    print(error)
"""
    process = child(path, fill)
    output, error = process.communicate(timeout=60)
    assert "check the disk and its free space" in output, error
    assert len(output.splitlines()) == 1
    with Ledger.open(path) as ledger:
        whole = len(ledger.equity(1))
        assert 10 <= whole < 1000
        assert ledger._conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert count(path, "news_weights") == 10 * whole


def test_a_reader_sees_whole_sessions_while_another_process_writes(path: Path) -> None:
    process = child(path, "print('ready', flush=True)\nwrite(ledger, run, range(1500))")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    seen: list[int] = []
    while process.poll() is None or not seen:
        with Ledger.open(path, read_only=True) as ledger:
            (row,) = ledger._query(
                "SELECT (SELECT count(*) FROM equity) e, (SELECT count(*) FROM signals) s,"
                " (SELECT count(*) FROM news_weights) w"
            )
        assert (row["s"], row["w"]) == (row["e"], 10 * row["e"])
        seen.append(row["e"])
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(set(seen)) > 2, "the reader never saw the run grow"


def test_two_writers_wait_for_each_other(path: Path) -> None:
    processes = [child(path, "write(ledger, run, range(200))") for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    with Ledger.open(path, read_only=True) as ledger:
        assert [row["sessions"] for row in ledger.runs()] == [200, 200]


def test_a_lock_that_is_not_released_is_one_line(path: Path) -> None:
    with Ledger.open(path) as ledger, sqlite3.connect(path) as other:
        ledger._conn.execute("PRAGMA busy_timeout = 10")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; wait for the other program"):
            ledger.start_run(FACTS)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("not a database, but long enough to look like one " * 50)
    with pytest.raises(StoreError, match="file is not a database; move the file away"):
        Ledger.open(path)
    assert path.read_text().startswith("not a database")


def test_a_database_of_another_kind_is_refused_and_left_as_it_was(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bars (session TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"not a ledger of this version .*tables bars"):
        Ledger.open(path)
    assert path.read_bytes() == before


def test_a_damaged_ledger_is_one_line(path: Path) -> None:
    with Ledger.open(path) as ledger:
        write(ledger, ledger.start_run(FACTS), range(50))
    pages = path.read_bytes()
    path.write_bytes(pages[:8192] + b"\xff" * (len(pages) - 8192))
    with pytest.raises(StoreError, match=r"malformed; move the file away"), Ledger.open(path) as ledger:
        ledger.ledger_hash(1)


def test_writing_to_a_ledger_opened_for_reading_is_refused(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.start_run(FACTS)
    with (
        Ledger.open(path, read_only=True) as ledger,
        pytest.raises(StoreError, match="readonly database; make the file"),
    ):
        ledger.start_run(FACTS)


def test_reading_where_there_is_no_ledger_says_what_to_do(path: Path) -> None:
    with pytest.raises(NoData, match="there is no ledger yet; run python -m trader backtest first"):
        Ledger.open(path, read_only=True)
    assert not path.parent.exists()


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="the ledger cannot be used"):
        Ledger.open(tmp_path / "home" / "ledger.db")


def test_a_new_ledger_that_another_process_is_making_is_waited_for(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = Timer(0.3, other.rollback)
    done.start()
    with Ledger.open(path) as ledger:  # SQLite itself would not wait before it switches to the WAL
        assert ledger.runs() == []
    done.join()
    other.close()


def test_a_ledger_that_another_process_made_in_this_very_moment_is_ours(path: Path) -> None:
    made: list[str] = []

    def make(sql: str) -> None:
        if "sqlite_master" in sql and not made:
            made.append(sql)
            Ledger.open(path).close()

    path.parent.mkdir()
    db = Database(sqlite3.connect(path))
    db.conn.set_trace_callback(make)
    prepare(db, path)
    assert made
    db.close()


def open_new_ones(folder: Path, together: Barrier, count: int) -> None:
    for number in range(count):
        together.wait(60)
        Ledger.open(folder / f"{number}.db").close()


def test_processes_that_make_one_ledger_at_once_all_get_it(tmp_path: Path) -> None:
    context, count = multiprocessing.get_context("spawn"), 20
    together = context.Barrier(4)
    openers = [context.Process(target=open_new_ones, args=(tmp_path, together, count)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(120)
    assert [opener.exitcode for opener in openers] == [0] * 4
    assert len(list(tmp_path.glob("*.db"))) == count


# What the file promises


def test_the_tables_are_strict_the_keys_enforced_and_the_journal_a_wal(path: Path) -> None:
    for synchronous, level in (("NORMAL", 1), ("FULL", 2)):
        with Ledger.open(path, synchronous=synchronous) as ledger:  # type: ignore[arg-type]
            pragma = {
                name: ledger._conn.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "foreign_keys", "synchronous")
            }
            assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": level}
            tables = ledger._query(
                "SELECT name, strict FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
            assert len(tables) == 12
            assert all(table["strict"] for table in tables)


def test_sixteen_years_of_sessions_are_written_in_seconds(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
        days = [(a_signal(number), a_record(number)) for number in range(len(SESSIONS))]
        started = time.perf_counter()
        for signal, record in days:
            ledger.write_session(run, signal=signal, record=record, always_buy_equity=1000.0)
        seconds = time.perf_counter() - started
    assert seconds < 10  # 0.6 s alone on two cores; the bound is for a machine that is busy
