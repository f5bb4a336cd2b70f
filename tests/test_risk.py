"""Limits, states and controls: what the broker still sends, and that what cannot be told is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
import math
from pathlib import Path
import random
import sqlite3
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from strategies.base import bt, whole_steps
from tests.test_broker import EXECUTIONS, FREE, LEVEL, Ask, ask, market, records, signals
from tests.test_ledger import FACTS, a_record, a_signal
from trader.broker import Costs, trade
from trader.config import Config, from_mapping
from trader.errors import ConfigError, OrderError
from trader.events import Bar
from trader.ledger import Ledger
from trader.records import Control, SessionRecord
from trader.report import trades_table
from trader.risk import Guard, RiskLimits, Standing

HALT, RESUME, FLATTEN = Control(halt=True), Control(resume=True), Control(flatten=True)
NONE = Control()
SIX = market(*[(100, 100)] * 6)


def day(number: int) -> date:
    return date(2018, 1, number)


def target(share: float) -> Callable[[Any], Any]:
    return lambda s: s.order_target_percent(target=share)


def orders(found: Sequence[SessionRecord]) -> list[tuple[int, float, str]]:
    """Every order as (day decided, size, status), in the order of their numbers."""
    ended = sorted((order for record in found for order in record.orders), key=lambda order: order.ref)
    return [(order.session.day, round(order.size, 6), order.status) for order in ended]


def states(found: Sequence[SessionRecord]) -> list[str]:
    return [record.state for record in found]


# Settings.


def test_the_defaults_limit_what_was_always_limited_and_nothing_else() -> None:
    assert Config().risk == RiskLimits() == RiskLimits(max_gross_exposure=1.0)
    assert from_mapping({"risk": {"max_order": 2, "max_news_silence": 3}}, "test").risk.max_order == 2.0


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"max_order": -0.1}, r"\[risk\] max_order: not a number ≥ 0 \(got -0.1\)"),
        ({"max_turnover": math.nan}, r"\[risk\] max_turnover: not a number ≥ 0 \(got nan\)"),
        ({"max_order": math.inf}, "not a number ≥ 0"),
        ({"max_gross_exposure": 0.0}, r"\[risk\] max_gross_exposure: not a positive number"),
        ({"max_drawdown": 1.0}, "a share that no account survives.*expected less than 1"),
        ({"max_news_silence": -1}, r"\[risk\] max_news_silence"),
    ],
)
def test_a_limit_that_is_none_is_refused(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_mapping({"risk": given_}, "test")


def test_a_control_that_halts_and_resumes_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"halts and resumes at once.*pass on the later of the two"):
        Control(halt=True, resume=True)
    with pytest.raises(ConfigError, match="halts and resumes"):
        Control(flatten=True, resume=True)


def test_a_control_of_a_session_that_is_not_traded_is_refused() -> None:
    with pytest.raises(OrderError, match="SPX 2018-02-01: a control of a session that is not traded"):
        ask(bars=LEVEL, controls={date(2018, 2, 1): HALT})


# Controls.


def test_halted_no_order_is_accepted_until_a_resume_and_the_position_stays() -> None:
    found, summary = ask(
        target(0.5), None, target(0), target(1), target(1), bars=SIX, controls={day(3): HALT, day(5): RESUME}
    )
    assert orders(found) == [
        (1, 500.0, "completed"),
        (3, -500.0, "refused"),
        (4, 500.0, "refused"),
        (5, 500.0, "completed"),
    ]
    assert [record.position for record in found] == [0, 500, 500, 500, 500, 1000]
    assert states(found) == ["ACTIVE", "ACTIVE", "HALTED", "HALTED", "ACTIVE", "ACTIVE"]
    assert [record.state_reason for record in found][1:4] == ["", "halted by its owner", "halted by its owner"]
    assert {order.reason for order in summary.refused} == {"HALTED: halted by its owner"} and not summary.cut


def test_a_halt_cancels_the_orders_that_wait() -> None:
    bid = lambda s: s.buy(size=5, price=50, exectype=bt.Order.Limit)  # noqa: E731
    found, _ = ask(bid, bars=LEVEL, controls={day(3): HALT})
    assert [len(record.open) for record in found] == [1, 1, 0, 0]
    (order,) = found[2].orders
    assert (order.status, order.reason) == ("cancelled", "HALTED: halted by its owner")


@pytest.mark.parametrize(
    ("execution", "filled", "price"), [("next_open", 4, 103), ("next_close", 4, 107), ("close", 3, 100)]
)
@pytest.mark.parametrize("side", [1, -1])
def test_flatten_closes_the_position_where_the_execution_says_and_halts(
    execution: str, filled: int, price: float, side: int
) -> None:
    bars = market((100, 100), (100.5, 100), (100, 100), (103, 107), (107.5, 107), (107, 107))
    found = records(bars, [side] * 6, execution=execution, controls={day(3): FLATTEN}, stale_open="open")
    (flat,) = [order for record in found for order in record.orders if order.reason == "flatten"]
    assert (flat.session, flat.status, flat.size) == (day(3), "completed", -found[1].position)
    (fill,) = [fill for record in found for fill in record.fills if fill.order_ref == flat.ref]
    assert (fill.session, fill.reference_price) == (day(filled), price)
    assert states(found) == ["ACTIVE", "ACTIVE", "HALTED", "HALTED", "HALTED", "HALTED"]
    assert found[-1].position == 0 and {r.state_reason for r in found[2:]} == {"flattened by its owner"}
    assert {o.status for r in found for o in r.orders if o.session > day(3)} == {"refused"}


def test_flatten_cancels_what_waits_and_a_flat_account_sends_nothing() -> None:
    bid = lambda s: s.buy(size=5, price=50, exectype=bt.Order.Limit)  # noqa: E731
    found, summary = ask(bid, bars=LEVEL, controls={day(2): FLATTEN})
    assert orders(found) == [(1, 5, "cancelled")] and states(found)[1:] == ["HALTED"] * 3
    assert summary.orders == 1


def test_flatten_is_heard_on_a_session_that_abstains_and_on_a_halted_account() -> None:
    found = records(SIX, [1, 1, None, None, None, None], controls={day(3): HALT, day(4): FLATTEN})
    assert [record.position for record in found] == [0, 1000, 1000, 1000, 0, 0]


# Abstentions with a bar.


def test_where_the_signal_abstains_no_order_of_any_strategy_is_accepted_and_what_waits_still_fills() -> None:
    bars = LEVEL
    made = signals(bars, [0, None, None, 0])
    made[1] = replace(made[1], reason="late")
    bid = lambda s: s.buy(size=5, price=100, exectype=bt.Order.Limit)  # noqa: E731
    found: list[SessionRecord] = []
    plan = (bid, target(0.5), target(-1), target(0.25))
    summary = trade(bars, made, Ask, {"plan": plan}, FREE, on_session=found.append)
    assert orders(found) == [
        (1, 5, "completed"),
        (2, 495, "refused"),
        (3, -1005, "refused"),
        (4, 245, "open at end"),
    ]
    assert [order.reason for order in summary.refused] == ["late", "no forecast"]
    assert [record.position for record in found] == [0, 5, 5, 5]
    assert states(found) == ["ACTIVE"] * 4  # an abstention is the forecast's, not the account's


# Limits, both sides of their edges.


@pytest.mark.parametrize(("close", "state"), [(95.0, "ACTIVE"), (94.99, "REDUCING")])
def test_a_daily_loss_beyond_its_limit_reduces_for_that_decision_alone(close: float, state: str) -> None:
    bars = market((100, 100), (100, 100), (100, close), (close, close), (close, close))
    limits = RiskLimits(max_daily_loss=0.05)
    found, summary = ask(target(1), None, target(-1), bars=bars, risk=limits, stale_open="open")
    assert states(found) == ["ACTIVE", "ACTIVE", state, "ACTIVE", "ACTIVE"]
    if state == "ACTIVE":
        assert found[3].position < 0 and not summary.cut
    else:
        assert found[3].position == 0
        (cut,) = summary.cut
        assert (cut.size, cut.status) == (-1000, "cut")
        assert cut.reason.endswith("to -1000 units: REDUCING: a daily loss of 0.0501, limit 0.05")


def test_reducing_lets_the_position_down_and_refuses_what_would_open_or_enlarge() -> None:
    bars = market((100, 100), (100, 100), (100, 90), (90, 90), (90, 90))

    def much(s: Any) -> None:
        s.buy(size=10)
        for size in (300, 900, 1):
            s.sell(size=size)

    found, summary = ask(target(0.8), None, much, bars=bars, risk=RiskLimits(max_daily_loss=0.05))
    assert orders(found)[1:] == [(3, 10, "refused"), (3, -300, "completed"), (3, -500, "cut"), (3, -1, "refused")]
    assert found[-1].position == 0 and len(summary.refused) == 2


@pytest.mark.parametrize(("close", "state"), [(90.0, "ACTIVE"), (89.99, "HALTED")])
def test_a_drawdown_beyond_its_limit_halts(close: float, state: str) -> None:
    bars = market((100, 100), (100, 100), (100, close), (close, 200), (200, 200))
    found, summary = ask(target(1), None, target(0), bars=bars, risk=RiskLimits(max_drawdown=0.1))
    assert states(found) == ["ACTIVE", "ACTIVE", state, state, state]  # a recovery does not end it
    assert bool(summary.refused) == (state == "HALTED")
    if state == "HALTED":
        assert found[4].state_reason == "a drawdown of 0.1001, limit 0.1"


def test_a_resume_ends_the_halt_and_measures_the_drawdown_from_that_equity() -> None:
    bars = market((100, 100), (100, 100), (100, 80), (80, 80), (80, 73), (73, 71.9), (71.9, 71.9))
    found, _ = ask(target(1), bars=bars, risk=RiskLimits(max_drawdown=0.1), controls={day(4): RESUME})
    assert states(found) == ["ACTIVE", "ACTIVE", "HALTED", "ACTIVE", "ACTIVE", "HALTED", "HALTED"]
    assert found[5].state_reason == "a drawdown of 0.1012, limit 0.1"  # of 80, not of 100


def test_a_resume_that_meets_a_daily_loss_reduces() -> None:
    bars = market((100, 100), (100, 100), (100, 80), (80, 80))
    limits = RiskLimits(max_drawdown=0.1, max_daily_loss=0.1)
    found, _ = ask(target(1), bars=bars, risk=limits, controls={day(2): HALT, day(3): RESUME})
    assert states(found) == ["ACTIVE", "HALTED", "REDUCING", "ACTIVE"]


def test_the_equity_of_the_start_counts_for_loss_and_drawdown() -> None:
    guard = Guard(RiskLimits(max_daily_loss=0.05, max_drawdown=0.1), 100.0, whole_steps)
    guard.decide(94.0, NONE)
    assert guard.state == "REDUCING"
    guard.decide(89.0, NONE)
    assert guard.state == "HALTED"


@pytest.mark.parametrize(("share", "size", "status"), [(0.5, 500, "completed"), (0.5001, 500, "cut")])
def test_an_order_beyond_max_order_is_cut(share: float, size: float, status: str) -> None:
    found, summary = ask(target(share), bars=LEVEL, risk=RiskLimits(max_order=0.5))
    assert orders(found) == [(1, size, status)]
    assert [order.reason for order in summary.cut] == (
        [] if status == "completed" else ["cut from 500.1 to 500 units: order limit 0.5 of equity"]
    )


def test_a_flip_is_an_order_of_two_and_is_never_cut_below_its_closing_part() -> None:
    for most, kept in ((2.0, -2000), (1.5, -1500), (1.0, -1000), (0.3, -1000)):
        found, _ = ask(lambda s: s.buy(size=1000), target(-1), bars=LEVEL, risk=RiskLimits(max_order=max(most, 1.0)))
        assert found[1].position == 1000
        guard = Guard(RiskLimits(max_order=most), 1e5, whole_steps)
        at = Standing(before=1000.0, close=100.0, equity=1e5, traded=0.0, waiting=0.0)
        assert guard.judge(-2000.0, at).size == kept
        if most >= 1:
            assert found[2].position == 1000 + kept


def test_what_only_closes_passes_order_turnover_and_exposure_limits() -> None:
    limits = RiskLimits(max_gross_exposure=0.1, max_order=0.01, max_turnover=0.01)
    guard = Guard(limits, 1e5, whole_steps)
    at = Standing(before=1000.0, close=100.0, equity=1e5, traded=1e6, waiting=0.0)
    assert guard.judge(-1000.0, at).size == -1000 and guard.judge(-1.0, at).reason == ""
    assert guard.judge(-1001.0, at).size == -1000
    guard.decide(1e5, HALT)
    assert guard.judge(-1000.0, at).refused


@pytest.mark.parametrize(("share", "status"), [(0.5, "completed"), (0.51, "cut")])
def test_an_order_beyond_the_turnover_of_21_sessions_is_cut(share: float, status: str) -> None:
    bars = market(*[(100, 100)] * 5)
    found, summary = ask(
        target(0.5), None, target(0.5 + share), bars=bars, risk=RiskLimits(max_turnover=1, max_gross_exposure=2)
    )
    assert orders(found) == [(1, 500, "completed"), (3, 500, status)]
    assert all("turnover limit 1 of equity in 21 sessions" in order.reason for order in summary.cut)


@pytest.mark.parametrize(("later", "size"), [(20, 500.0), (21, 1000.0)])
def test_turnover_is_that_of_21_sessions_and_an_older_fill_is_forgotten(later: int, size: float) -> None:
    bars = market(*[(100, 100)] * 30)
    plan: list[Any] = [None] * 30
    plan[0], plan[2] = target(0.5), target(0)  # fills of 50,000 on the second and fourth session
    plan[1 + later + 2] = target(1)
    found, _ = ask(*plan, bars=bars, risk=RiskLimits(max_turnover=1))
    # At 21 sessions after the fourth its fill is out; at 20 it still counts, the second session's no longer.
    assert [fill.size for record in found for fill in record.fills][2] == size


def test_orders_that_wait_count_as_turnover() -> None:
    bid = lambda s: s.buy(size=600, price=50, exectype=bt.Order.Limit)  # noqa: E731
    found, summary = ask(bid, target(1), bars=LEVEL, risk=RiskLimits(max_turnover=1, max_gross_exposure=3))
    assert [round(order.size) for order in summary.cut] == [400] and found[-1].position == 400


# What cannot be told is refused.

STANDING = Standing(before=0.0, close=100.0, equity=1e5, traded=0.0, waiting=0.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("what", ["equity", "close"])
@pytest.mark.parametrize("limits", [RiskLimits(), RiskLimits(max_order=9.0), RiskLimits(max_turnover=9.0)])
def test_a_limit_that_cannot_be_told_refuses(limits: RiskLimits, what: str, wrong: float) -> None:
    guard = Guard(limits, 1e5, whole_steps)
    assert guard.judge(1.0, STANDING).size == 1.0
    verdict = guard.judge(1.0, replace(STANDING, **{what: wrong}))
    assert verdict.refused and "cannot be told" in verdict.reason
    assert not guard.judge(-1.0, replace(STANDING, before=1.0, **{what: wrong})).refused  # the way out stays open


def test_a_turnover_that_is_not_known_refuses() -> None:
    guard = Guard(RiskLimits(max_turnover=9.0), 1e5, whole_steps)
    assert guard.judge(1.0, replace(STANDING, traded=math.nan)).refused
    assert guard.judge(1.0, replace(STANDING, waiting=math.inf)).refused
    guard.close(1e5, math.nan)
    assert guard.judge(1.0, STANDING).refused


@pytest.mark.parametrize("equity", [math.nan, math.inf, -math.inf])
def test_a_loss_that_cannot_be_told_reduces_and_a_drawdown_halts(equity: float) -> None:
    guard = Guard(RiskLimits(max_daily_loss=0.5), 1e5, whole_steps)
    guard.decide(equity, NONE)
    assert guard.state == "REDUCING"
    guard.close(equity, 0.0)
    guard.decide(1e5, NONE)
    assert guard.state == "REDUCING"  # nothing to compare with
    guard = Guard(RiskLimits(max_drawdown=0.5), 1e5, whole_steps)
    guard.decide(equity, NONE)
    guard.close(equity, 0.0)
    guard.decide(1e5, NONE)
    assert guard.state == "HALTED"


# Whatever a strategy asks for.


class Wild(bt.Strategy):  # type: ignore[misc]
    """Ask for anything, several times a session."""

    params = (("seed", 0),)

    def __init__(self) -> None:
        self.rng = random.Random(self.p.seed)

    def next(self) -> None:
        for _ in range(self.rng.randrange(3)):
            size = self.rng.uniform(-3000, 3000)
            (self.buy if size > 0 else self.sell)(size=abs(size))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(EXECUTIONS),
    st.floats(0.1, 2.0),
    st.sampled_from([0.0, 0.2, 0.7, 1.5]),
    st.sampled_from([0.0, 1.0, 6.0]),
    st.sampled_from([0.0, 0.01, 0.03]),
)
def test_no_order_passes_a_limit(
    seed: int, execution: str, exposure: float, most: float, turnover: float, loss: float
) -> None:
    rng, prices, close = random.Random(seed), [], 100.0
    for _ in range(45):
        open_, close = close * rng.uniform(0.99, 1.01), close * rng.uniform(0.97, 1.03)
        prices.append((open_, close))
    bars = market(*prices)
    limits = RiskLimits(
        max_gross_exposure=exposure, max_order=most, max_turnover=turnover, max_daily_loss=loss, max_drawdown=0.3
    )
    found: list[SessionRecord] = []
    made = signals(bars, [0] * len(bars))
    trade(bars, made, Wild, {"seed": seed}, FREE, execution, on_session=found.append, risk=limits)  # type: ignore[arg-type]
    _check_fills(bars, found, limits, execution)


def _check_fills(bars: Sequence[Bar], found: Sequence[SessionRecord], limits: RiskLimits, execution: str) -> None:
    index = {bar.session: at for at, bar in enumerate(bars)}
    decided = {order.ref: index[order.session] for record in found for order in record.orders}
    held, slack, traded = 0.0, 1 + 1e-6, [0.0] * len(bars)
    for record in found:
        for fill in record.fills:
            before, held, at = held, held + fill.size, decided[fill.order_ref]
            value, equity = bars[at].close, found[at].equity
            traded[index[record.session]] += abs(fill.size) * bars[at].close
            reduces = held * before >= 0 and abs(held) <= abs(before)
            if reduces:
                continue
            assert found[at].state == "ACTIVE"
            assert abs(held) * value <= limits.max_gross_exposure * equity * slack
            closing = abs(before) if before * fill.size < 0 else 0.0
            if limits.max_order:
                assert abs(fill.size) * value <= max(limits.max_order * equity, closing * value) * slack
            if limits.max_turnover and abs(fill.size) > closing:
                # At the prices of the decisions, which is what could be known; fills moved with the market.
                spent = sum(traded[max(0, index[record.session] - 20) :])
                assert spent <= limits.max_turnover * equity * 1.25


def test_states_follow_from_the_equity_path_and_the_controls_alone() -> None:
    rng = random.Random(5)
    prices, close = [], 100.0
    for _ in range(120):
        close *= rng.uniform(0.96, 1.04)
        prices.append((close * rng.uniform(0.99, 1.01), close))
    bars, limits = market(*prices, first=date(2018, 1, 1)), RiskLimits(max_daily_loss=0.02, max_drawdown=0.1)
    controls = {bar.session: RESUME for bar in bars[30::30]}
    found = records(bars, [rng.choice((-1, 1)) for _ in bars], costs=Costs(), risk=limits, controls=controls)
    guard = Guard(limits, Costs().cash, whole_steps)
    for record in found:
        guard.decide(record.equity, controls.get(record.session, NONE))
        assert (record.state, record.state_reason) == (guard.state, guard.reason)
        guard.close(record.equity, 0.0)
    assert set(states(found)) == {"ACTIVE", "REDUCING", "HALTED"}


# The ledger.


def test_the_ledger_keeps_each_change_of_state_and_its_hash_does_not_know_of_it(tmp_path: Path) -> None:
    told = [("ACTIVE", ""), ("REDUCING", "a loss"), ("REDUCING", "another"), ("HALTED", "a drawdown"), ("ACTIVE", "")]
    hashes = []
    for name, kept in (("states", told), ("none", [("ACTIVE", "")] * 5)):
        with Ledger.open(tmp_path / name) as ledger:
            run = ledger.start_run(FACTS)
            for number, (state, reason) in enumerate(kept[:3]):
                record = replace(a_record(number), state=state, state_reason=reason)
                ledger.write_session(run, signal=a_signal(number), record=record, always_buy_equity=1.0)
        with Ledger.open(tmp_path / name) as ledger:  # opened again: the state is known from its rows
            for number, (state, reason) in list(enumerate(kept))[3:]:
                record = replace(a_record(number), state=state, state_reason=reason)
                ledger.write_session(run, signal=a_signal(number), record=record, always_buy_equity=1.0)
            hashes.append(ledger.ledger_hash(run))
            rows = [(row["state"], row["reason"]) for row in ledger.states(run)]
            assert rows == ([told[1], told[3], told[4]] if name == "states" else [])
    assert hashes[0] == hashes[1]


def test_a_ledger_of_before_is_read_as_it_is_and_gets_the_table_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        run = ledger.start_run(FACTS)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE states")
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.states(run) == []
    with Ledger.open(path) as ledger:
        record = replace(a_record(0), state="HALTED", state_reason="halted by its owner")
        ledger.write_session(run, signal=a_signal(0), record=record, always_buy_equity=1.0)
        assert [row["state"] for row in ledger.states("latest")] == ["HALTED"]


def test_trades_shows_refused_and_cut_orders_with_their_reasons(tmp_path: Path) -> None:
    found, _ = ask(target(0.7), None, target(0), bars=LEVEL, risk=RiskLimits(max_order=0.5), controls={day(3): HALT})
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        run = ledger.start_run(FACTS)
        for record, signal in zip(found, signals(LEVEL, [0] * 4), strict=True):
            ledger.write_session(run, signal=signal, record=record, always_buy_equity=1.0)
        table = trades_table(ledger.trades(run))
    status = [str(cell) for cell in table.columns[-1].cells]
    assert status == [
        "cut: cut from 700 to 500 units: order limit 0.5 of equity",
        "refused: HALTED: halted by its owner",
    ]
