"""What a run wrote is right to the cent: every figure is computed again from its own rows, by arithmetic of its own.

The rows come through sqlite3 and nothing of the trader's is asked but to run: bars, signals and fills in, and from
them cash, equity, Always Buy and the whole table of metrics. All costs differ, so that none can stand for another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
import math
from pathlib import Path
import sqlite3
from statistics import mean, stdev
from typing import Any

import pytest

from tests import builders
from trader import engine
from trader.events import Bar

COUNT, GONE = 190, 151  # sessions: how many, and one without a bar
FIRST = {"next_open": 104, "next_close": 105}  # Always Buy buys a session later: at a stale open, and not at one
CASH, COMMISSION, SLIPPAGE, BORROW, CASH_RATE, RISK_FREE = 50_000.0, 7 / 1e4, 3 / 1e4, 400 / 1e4, 0.05, 0.03
COSTS = {"cash": CASH, "commission_bps": 7, "slippage_bps": 3, "borrow_bps_a_year": 400, "cash_rate": CASH_RATE}
LONG_SHORT = {"model": "tests.builders:TinyModel", "strategy": "long_short", "execution": "next_open"}
VOL_TARGET = {"model": "logistic", "strategy": "vol_target", "execution": "next_close"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """The rows of one run, as SQL gives them; ``bars`` are those of the traded sessions, by session."""

    execution: str
    bars: Mapping[str, Row]
    equity: Sequence[Row]
    signals: Sequence[Row]
    fills: Mapping[str, Sequence[Row]]
    metrics: Mapping[tuple[str, str], Row]

    @property
    def sessions(self) -> list[str]:
        return [row["session"] for row in self.equity]

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.equity]


def _rows(path: Path, sql: str, *values: object) -> list[Row]:
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in db.execute(sql, values)]
    finally:
        db.close()


def _run(home: Path, run: Mapping[str, str], seed: int = 1) -> Written:
    days = builders.sessions(COUNT)
    settings = builders.config(**run, seed=seed, costs=COSTS, evaluation={"risk_free": RISK_FREE})
    made = engine.backtest(settings, home, days[FIRST[run["execution"]]], days[-1], readers=builders.readers())

    def of_run(table: str, order: str) -> list[Row]:
        return _rows(home / "ledger.db", f"SELECT * FROM {table} WHERE run = ? ORDER BY {order}", made.run)

    fills = defaultdict(list)
    for fill in of_run("fills", "session, ref, part"):
        fills[fill["session"]].append(fill)
    equity = of_run("equity", "session")
    bars = _rows(home / "market.db", "SELECT * FROM bars WHERE symbol = 'toy' ORDER BY session")
    traded = {row["session"] for row in equity}
    return Written(
        execution=run["execution"],
        bars={bar["session"]: bar for bar in bars if bar["session"] in traded},
        equity=equity,
        signals=of_run("signals", "session"),
        fills=fills,
        metrics={(row["name"], row["of"]): row for row in of_run("metrics", "name")},
    )


def _with_stale_opens(bars: Sequence[Bar]) -> list[Bar]:
    """Let every third session (105 too) open on the close before to the last digit: no price."""
    made = list(bars)
    for at in range(3, len(made), 3):
        opened = made[at - 1].close
        made[at] = replace(
            made[at], open=opened, high=max(made[at].high, opened * 1.001), low=min(made[at].low, opened * 0.999)
        )
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accounting")
    days = builders.sessions(COUNT)
    bars = [bar for at, bar in enumerate(_with_stale_opens(builders.bars(days, seed=3))) if at != GONE]
    builders.fill(folder, bars, builders.headlines(days))
    return folder


@pytest.fixture(scope="module")
def long_short(home: Path) -> Written:
    return _run(home, LONG_SHORT)


@pytest.fixture(scope="module")
def vol_target(home: Path) -> Written:
    return _run(home, VOL_TARGET)


@pytest.fixture(params=["long_short", "vol_target"])
def written(request: pytest.FixtureRequest) -> Written:
    run: Written = request.getfixturevalue(request.param)
    return run


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-7)


def _reference(written: Written, session: str, before: str) -> float:
    """Return what a market order decided at ``before`` is executed at, before slippage."""
    bar = written.bars[session]
    stale = bar["open"] == written.bars[before]["close"]
    return float(bar["close"] if written.execution == "next_close" or stale else bar["open"])


def test_the_runs_have_all_that_is_to_be_accounted_for(long_short: Written, vol_target: Written) -> None:
    position = [row["position"] for row in long_short.equity]
    flips = [(a, b) for a, b in pairwise(position) if a * b < 0]
    assert {a > 0 for a, _ in flips} == {True, False}, "flips both ways"
    assert len(flips) > 5 and sum(long_short.column("borrow")) > 0
    stale = {
        fill["reference_price"] == long_short.bars[d]["close"] for d, part in long_short.fills.items() for fill in part
    }
    assert stale == {True, False}
    assert min(vol_target.column("position")) < 0 < max(vol_target.column("position"))
    assert min(vol_target.column("interest")[2:]) >= 0 and sum(vol_target.column("interest")) > 50
    days = builders.sessions(COUNT)
    for written in (long_short, vol_target):
        assert written.sessions == [str(day) for day in days[FIRST[written.execution] :]]
        assert str(days[GONE]) not in written.bars


def test_each_fill_pays_its_price_slippage_and_commission(written: Written) -> None:
    with_bar = list(written.bars)
    assert written.fills
    for session, fills in written.fills.items():
        reference = _reference(written, session, with_bar[with_bar.index(session) - 1])
        for fill in fills:
            against = SLIPPAGE if fill["size"] > 0 else -SLIPPAGE
            assert fill["reference_price"] == reference
            assert fill["price"] == near(reference * (1 + against))
            assert fill["slippage_cost"] == near(abs(fill["size"]) * abs(fill["price"] - reference))
            assert fill["commission"] == near(COMMISSION * abs(fill["size"]) * fill["price"])


def test_cash_and_equity_follow_from_the_fills_the_nights_and_the_closes(written: Written) -> None:
    cash, held, before = CASH, 0.0, ""
    for row in written.equity:
        session = row["session"]
        fills, bar = written.fills.get(session, ()), written.bars.get(session)
        borrow = interest = 0.0
        if bar and before:
            years = (date.fromisoformat(session) - date.fromisoformat(before)).days / 365
            value = held * written.bars[before]["close"]
            borrow = max(0.0, -value) * BORROW * years
            interest = max(0.0, cash + value - abs(value)) * CASH_RATE * years
        before = session if bar else before
        cash += interest - borrow - sum(fill["size"] * fill["price"] + fill["commission"] for fill in fills)
        held += sum(fill["size"] for fill in fills)
        value = held * written.bars[before]["close"]
        assert row["position"] == near(held)
        assert (row["borrow"], row["interest"]) == (near(borrow), near(interest))
        assert row["commission"] == near(sum(fill["commission"] for fill in fills))
        assert row["slippage"] == near(sum(fill["slippage_cost"] for fill in fills))
        assert (row["cash"], row["equity"]) == (near(cash), near(cash + value))
        assert row["exposure"] == near(value / (cash + value))


def test_long_short_holds_all_its_equity_on_the_side_of_the_last_signal(long_short: Written) -> None:
    decided, held = list(zip(long_short.equity, long_short.signals, strict=True)), 0.0
    for (before, signal), (after, _) in pairwise(decided):
        session = after["session"]
        if session in long_short.bars and before["session"] in long_short.bars:
            if signal["side"] * held <= 0:  # a side that stays is not traded
                held = signal["side"] * before["equity"] / long_short.bars[before["session"]]["close"]
            assert after["position"] == pytest.approx(held, abs=1e-5)
        held = after["position"]


def test_always_buy_is_one_purchase_at_the_same_costs(written: Written) -> None:
    days = list(written.bars.items())
    size = CASH / days[0][1]["close"]  # decided on the first close
    price = _reference(written, days[1][0], days[0][0]) * (1 + SLIPPAGE)
    cash, held, wanted = CASH, 0.0, {days[0][0]: CASH}
    for (before, old), (session, bar) in pairwise(days):
        nights = (date.fromisoformat(session) - date.fromisoformat(before)).days
        cash += max(0.0, cash + held * old["close"] - abs(held * old["close"])) * CASH_RATE * nights / 365
        if not held:
            cash, held = cash - size * price * (1 + COMMISSION), size
        wanted[session] = cash + held * bar["close"]
    found = {row["session"]: row["always_buy_equity"] for row in written.equity}
    for gone in found.keys() - wanted.keys():  # a session without a bar: as the day before
        wanted[gone] = wanted[max(session for session in wanted if session < gone)]
    assert found == pytest.approx(wanted, rel=1e-8)  # its size is rounded to a millionth of a unit


def _costs(written: Written) -> list[float]:
    return [row["commission"] + row["slippage"] + row["borrow"] for row in written.equity]


def _opening(equity: Sequence[float]) -> list[float]:
    return [CASH, *equity[:-1]]


def test_gross_equity_gives_each_day_its_costs_back(written: Written) -> None:
    gross, equity = CASH, written.column("equity")
    for row, before, costs in zip(written.equity, _opening(equity), _costs(written), strict=True):
        gross *= (row["equity"] + costs) / before
        assert row["equity_gross"] == near(gross)


def _sharpe(returns: Sequence[float]) -> float:
    return math.sqrt(252) * mean(r - RISK_FREE / 252 for r in returns) / stdev(returns)


def _account(returns: Sequence[float]) -> dict[str, float]:
    values = [1.0]
    for r in returns:
        values.append(values[-1] * (1 + r))
    return {
        "pnl": CASH * (values[-1] - 1),
        "total_return": values[-1] - 1,
        "annual_return": values[-1] ** (252 / len(returns)) - 1,
        "annual_volatility": math.sqrt(252) * stdev(returns),
        "sharpe": _sharpe(returns),
        "max_drawdown": max(1 - value / max(values[: at + 1]) for at, value in enumerate(values)),
    }


def _next_returns(written: Written) -> list[float | None]:
    """Return close(d+1)/close(d) − 1 of each session; None on the last one and on one without a bar."""
    close = [bar["close"] for bar in written.bars.values()]
    known = dict(zip(written.bars, [b / a - 1 for a, b in pairwise(close)], strict=False))
    return [known.get(session) for session in written.sessions]


def _signals(sides: Sequence[float], returns: Sequence[float | None], counted: Sequence[bool]) -> dict[str, float]:
    days = [(side, r) for side, r in zip(sides, returns, strict=True) if r is not None]
    right = [(r > 0) == (side > 0) for side, r, c in zip(sides, returns, counted, strict=True) if c and r is not None]
    made = [side * r for side, r in days]
    return {"accuracy": mean(right), "paper_pnl": sum(made), "paper_sharpe": _sharpe(made)}


def _figures(written: Written) -> dict[tuple[str, str], float]:
    equity, costs = written.column("equity"), _costs(written)
    opening, always = _opening(equity), written.column("always_buy_equity")
    net = [after / before - 1 for after, before in zip(equity, opening, strict=True)]
    gross = [(after + cost) / before - 1 for after, cost, before in zip(equity, costs, opening, strict=True)]
    buy = [after / before - 1 for after, before in zip(always, _opening(always), strict=True)]
    sides = [signal["side"] for signal in written.signals]
    decided, returns = [side != 0 for side in sides], _next_returns(written)
    traded = [
        sum(abs(fill["size"]) * fill["price"] for fill in written.fills.get(session, ()))
        for session in written.sessions
    ]
    position = written.column("position")
    with_position = [bool(now or before) for now, before in zip(position, [0.0, *position[:-1]], strict=True)]
    found = {
        "signals": _signals(sides, returns, decided),
        "net": {
            **_account(net),
            "turnover": 252 * mean(money / before for money, before in zip(traded, opening, strict=True)),
            "exposure": mean(abs(exposure) for exposure in written.column("exposure")),
            "hit_rate": mean(r > 0 for r, held in zip(net, with_position, strict=True) if held),
            "costs": sum(costs),
        },
        "gross": _account(gross),
        "always_buy": {**_account(buy), **_signals([1] * len(sides), returns, decided)},
    }
    found["excess"] = {
        "excess_sharpe": found["net"]["sharpe"] - found["always_buy"]["sharpe"],
        "excess_return": found["net"]["annual_return"] - found["always_buy"]["annual_return"],
    }
    return {(name, of): value for of, part in found.items() for name, value in part.items()}


def test_every_figure_of_the_metrics_table_follows_from_the_rows(written: Written) -> None:
    found = {key: row["value"] for key, row in written.metrics.items()}
    assert found == pytest.approx(_figures(written), rel=1e-7, abs=1e-9)
    assert found["pnl", "net"] == near(written.equity[-1]["equity"] - CASH)
    assert found["pnl", "gross"] == pytest.approx(written.equity[-1]["equity_gross"] - CASH)
    assert found["pnl", "always_buy"] == pytest.approx(written.equity[-1]["always_buy_equity"] - CASH)


def test_only_the_intervals_depend_on_the_seed_where_the_model_draws_nothing(home: Path, vol_target: Written) -> None:
    same, other = _run(home, VOL_TARGET), _run(home, VOL_TARGET, seed=2)
    assert same.metrics.keys() == other.metrics.keys() == vol_target.metrics.keys()
    assert other.equity != [] and other.column("equity") == vol_target.column("equity")
    bounds = {}
    for name, run in (("first", vol_target), ("same", same), ("other", other)):
        assert {k: row["value"] for k, row in run.metrics.items()} == {
            k: row["value"] for k, row in vol_target.metrics.items()
        }
        bounds[name] = {k: (row["low"], row["high"]) for k, row in run.metrics.items() if row["low"] is not None}
    assert bounds["first"] == bounds["same"]
    assert bounds["first"].keys() == bounds["other"].keys() != set()
    assert all(bounds["first"][key] != bounds["other"][key] for key in bounds["first"])


def test_the_limits_of_the_config_reach_the_broker_and_its_states_the_ledger(home: Path) -> None:
    days = builders.sessions(COUNT)
    settings = builders.config(**LONG_SHORT, seed=1, costs=COSTS, risk={"max_order": 0.25, "max_drawdown": 0.001})
    made = engine.backtest(settings, home, days[FIRST["next_open"]], days[-1], readers=builders.readers())
    found = _rows(home / "ledger.db", "SELECT * FROM orders WHERE run = ? ORDER BY ref", made.run)
    assert "order limit 0.25 of equity" in found[0]["reason"]
    assert {row["status"] for row in found} >= {"cut", "refused"}
    (state,) = _rows(home / "ledger.db", "SELECT * FROM states WHERE run = ?", made.run)
    assert state["state"] == "HALTED" and state["reason"].endswith("limit 0.001")
    assert any("refused; `python -m trader trades latest` says which and why." in note for note in made.notes)
