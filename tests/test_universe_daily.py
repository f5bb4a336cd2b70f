"""Many symbols day by day: the rows of the batched run, to the last bit."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tests import a_universe
from tests.a_universe import DAYS, HOLES, LATE, POOLED, SYMBOLS, TINY
from trader.ledger import Ledger


@pytest.mark.parametrize("model", [TINY, POOLED, "logistic", "msmf"])
@pytest.mark.parametrize("late", [LATE, {}], ids=["bars late", "in time"])
def test_day_by_day_has_the_rows_of_the_batched_run(
    tmp_path: Path, model: str, late: dict[str, tuple[int, ...]]
) -> None:
    home = a_universe.fill(tmp_path, late=late)
    batched = a_universe.backtest(home, model)
    daily = a_universe.backtest(home, model, daily=True)
    a_universe.the_same(a_universe.rows(home, daily.run), a_universe.rows(home, batched.run))
    assert daily.ledger_hash == batched.ledger_hash
    assert len({signal.model_id for signal in batched.forecasts.all} - {""}) >= 3
    assert len(a_universe.rows(home, daily.run)["fills"]) > 8
    kept = [(fold.model_id, fold.use_first, fold.use_last) for fold in batched.forecasts.folds]
    assert [(fold.model_id, fold.use_first, fold.use_last) for fold in daily.forecasts.folds] == kept


@pytest.mark.parametrize("adopted", [{"max_age": 8}, {"max_age": 0}])
def test_a_model_that_is_too_old_abstains_alike_both_ways(tmp_path: Path, adopted: dict[str, int]) -> None:
    home = a_universe.fill(tmp_path)
    both = [a_universe.backtest(home, POOLED, daily=daily, retrain=adopted).ledger_hash for daily in (False, True)]
    assert both[0] == both[1]
    reasons = {row["reason"] for row in a_universe.rows(home, 1)["signals"]}
    assert any("more than max_age 8" in reason for reason in reasons) == (adopted["max_age"] == 8)


def test_a_bar_that_comes_late_fills_nothing_and_sizes_no_order_of_the_others(tmp_path: Path) -> None:
    home = a_universe.fill(tmp_path)
    run = a_universe.backtest(home, TINY).run
    found = a_universe.rows(home, run)
    for symbol in SYMBOLS:
        without = {str(DAYS[at]) for at in (*LATE.get(symbol, ()), *HOLES.get(symbol, ()))}
        assert not without & {row["session"] for row in found["fills"] if row["symbol"] == symbol}
        mine = {row["session"]: row for row in found["signals"] if row["symbol"] == symbol}
        assert all(mine[day]["p_up"] is None for day in without)
    priced = {(row["session"], row["symbol"]): row["price"] for row in found["holdings"]}
    close = {str(bar.session): bar.close for bar in a_universe.bars("A")}
    for at in LATE["A"]:
        held = priced.get((str(DAYS[at]), "A"))
        assert held is None or held == close[str(DAYS[at - 1])], "its late close values nothing of that session"


def test_what_a_late_bar_says_changes_no_order_that_was_sent_before_it_came(tmp_path: Path) -> None:
    late = {"A": tuple(range(75, 100, 3))}
    plain, other = a_universe.fill(tmp_path / "plain", late=late), tmp_path / "other"
    nudged = a_universe.fill(other, late=late, nudged=("A", 99))
    one, two = (a_universe.rows(home, a_universe.backtest(home, TINY, DAYS[99]).run) for home in (plain, nudged))
    a_universe.the_same(one, two)
    with Ledger.open(plain / "ledger.db", read_only=True) as ledger:
        assert date.fromisoformat(ledger.equity(1)[-1]["session"]) == DAYS[99]
