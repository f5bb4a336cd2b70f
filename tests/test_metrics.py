"""Figures: what each one is, when it is undefined, and whether its interval can be believed."""

from __future__ import annotations

from dataclasses import replace
import json
import math
import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pytest

from trader.errors import NoData, TraderError
from trader.metrics import (
    EvaluationInputs,
    Metric,
    Report,
    equity_metrics,
    evaluate,
    sharpe_definition,
    signal_metrics,
    verdict,
)
from trader.resampling import block_length

CASH = 100_000.0


def account(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    return CASH * np.cumprod(1 + returns)


def a_run(days: int = 600, seed: int = 0, **changes: Any) -> EvaluationInputs:
    """Random long and short signals on a random market, executed at once and without costs."""
    rng = np.random.default_rng(seed)
    market = rng.normal(0.0004, 0.01, days)
    side = rng.choice([-1.0, 1.0], days)
    values: dict[str, Any] = {
        "side": side,
        "next_return": np.append(market[1:], np.nan),
        "equity": account(np.concatenate([[0.0], side[:-1] * market[1:]])),
        "always_buy_equity": account(market),
        "costs": np.zeros(days),
        "traded": np.zeros(days),
        "exposure": side,
        "start_cash": CASH,
    }
    return EvaluationInputs(**(values | changes))


# Of the signals


def test_a_signal_that_knows_tomorrow_is_always_right_and_earns_every_move() -> None:
    market = np.random.default_rng(1).normal(0, 0.01, 300)
    found = signal_metrics(np.where(market > 0, 1, -1), market)
    assert found["accuracy"] == 1
    assert found["paper_pnl"] == pytest.approx(np.abs(market).sum())
    assert found["paper_sharpe"] is not None
    assert found["paper_sharpe"] > 15


def test_an_unchanged_close_counts_as_not_up() -> None:
    assert signal_metrics([1, -1, 1, -1], [0.0, 0.0, 0.01, 0.01])["accuracy"] == 0.5
    assert signal_metrics([-1, -1], [0.0, 0.0])["accuracy"] == 1


def test_days_without_a_side_are_left_out_of_accuracy_and_earn_nothing() -> None:
    found = signal_metrics([1, 0, -1, 0], [0.01, -0.5, -0.02, 0.7])
    assert found["accuracy"] == 1
    assert found["paper_pnl"] == pytest.approx(0.03)
    daily = [0.01, 0.0, 0.02, 0.0]
    expected = math.sqrt(252) * (statistics.mean(daily) - 0.02 / 252) / statistics.stdev(daily)
    assert found["paper_sharpe"] == pytest.approx(expected, rel=1e-12)


def test_a_day_whose_next_close_is_not_known_counts_nowhere() -> None:
    known = signal_metrics([1, -1, 1], [0.01, 0.02, -0.01])
    assert signal_metrics([1, -1, 1, 1], [0.01, 0.02, -0.01, math.nan]) == known


def test_a_model_that_never_decides_has_no_accuracy_and_no_sharpe() -> None:
    assert signal_metrics(np.zeros(5), np.full(5, 0.01)) == {"accuracy": None, "paper_pnl": 0.0, "paper_sharpe": None}


def test_the_papers_protocol_sums_within_windows_and_averages_over_them() -> None:
    """Always Buy over its ten windows of 49 days: the figures that finin.md found on the same closes."""
    sp500 = pytest.importorskip("arch.data.sp500")
    close = sp500.load().loc["2003":"2018", "Close"].to_numpy()
    returns = close[1:] / close[:-1] - 1
    windows = [returns[391 * w + 450 : 391 * w + 499] for w in range(10)]
    found = signal_metrics(np.ones(490), np.concatenate(windows), [49] * 10)
    assert found["accuracy"] == 255 / 490
    assert found["paper_pnl"] == pytest.approx(0.0139, abs=5e-5)
    assert found["paper_sharpe"] == pytest.approx(0.77, abs=5e-3)
    alone = [signal_metrics(np.ones(49), window) for window in windows]
    for name in ("paper_pnl", "paper_sharpe"):
        assert found[name] == pytest.approx(statistics.mean(one[name] or math.nan for one in alone))


# Of the account


def test_sharpe_is_its_printed_definition() -> None:
    returns = np.random.default_rng(2).normal(0.001, 0.02, 500)
    daily = [float(value) for value in returns]
    expected = math.sqrt(252) * (statistics.fmean(daily) - 0.03 / 252) / statistics.stdev(daily)
    assert equity_metrics(account(returns), CASH, risk_free=0.03)["sharpe"] == pytest.approx(expected, rel=1e-9)
    assert sharpe_definition(0.03).startswith("√252 · mean(daily return − 0.03/252) / sample standard deviation")


def test_sharpe_equals_that_of_backtraders_own_analyzer() -> None:
    """Told to take the sample deviation; its daily rate is the compounded one, so ours is given the same."""
    import backtrader as bt
    import pandas as pd

    close = 100 * np.cumprod(1 + np.random.default_rng(3).normal(0.001, 0.02, 300))
    days = pd.bdate_range("2003-01-02", periods=300, name="datetime")
    prices = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), close) | {"volume": 1.0}, index=days)
    equity: list[float] = []

    class BuyOnce(bt.Strategy):  # type: ignore[misc]
        def next(self) -> None:
            equity.append(self.broker.getvalue())
            if len(self) == 1:
                self.buy(size=500)

    cerebro = bt.Cerebro(stdstats=False)
    cerebro.broker.setcash(CASH)
    cerebro.adddata(bt.feeds.PandasData(dataname=prices))
    cerebro.addstrategy(BuyOnce)
    how = {"timeframe": bt.TimeFrame.Days, "annualize": True, "riskfreerate": 0.02, "stddev_sample": True}
    cerebro.addanalyzer(bt.analyzers.SharpeRatio, _name="sharpe", **how)
    (result,) = cerebro.run()
    theirs = result.analyzers.sharpe.get_analysis()["sharperatio"]
    ours = equity_metrics(equity, CASH, risk_free=252 * (1.02 ** (1 / 252) - 1))["sharpe"]
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_an_account_by_hand() -> None:
    found = equity_metrics([110_000, 99_000, 108_900], CASH)
    assert found["pnl"] == pytest.approx(8_900)
    assert found["total_return"] == pytest.approx(0.089)
    assert found["annual_return"] == pytest.approx(1.089 ** (252 / 3) - 1)
    assert found["annual_volatility"] == pytest.approx(statistics.stdev([0.1, -0.1, 0.1]) * math.sqrt(252))
    assert found["max_drawdown"] == pytest.approx(0.1)


def test_a_fall_below_the_start_is_a_drawdown_too() -> None:
    assert equity_metrics([90_000, 95_000], CASH)["max_drawdown"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "equity", [np.full(300, CASH), CASH * 1.0005 ** np.arange(1, 501), CASH * 1.01 ** np.arange(1, 301), [CASH * 1.1]]
)
def test_an_account_that_does_not_vary_has_no_sharpe(equity: NDArray[np.float64]) -> None:
    assert equity_metrics(equity, CASH)["sharpe"] is None


def test_a_ruined_account_has_lost_everything_and_stays_there() -> None:
    found = equity_metrics([120_000, -5_000, 3_000, 9_000], CASH)
    assert (found["pnl"], found["annual_return"], found["max_drawdown"]) == (-CASH, -1, 1)
    report = evaluate(a_run(4, equity=[120_000.0, -5_000.0, 3_000.0, 9_000.0]), seed=0, resamples=50)
    assert report.get("annual_return", "net").value == -1
    assert json.dumps(report.to_json(), allow_nan=False)


def test_windows_of_an_account_start_afresh_and_are_joined() -> None:
    found = equity_metrics([110_000, 121_000, 90_000, 99_000], CASH, [2, 2])
    assert found["total_return"] == pytest.approx(1.21 * 0.99 - 1)
    assert found["max_drawdown"] == pytest.approx(0.1)


def test_gross_adds_each_days_costs_back_before_compounding() -> None:
    run = a_run(3, equity=[99_000.0, 98_000.0, 99_500.0], costs=[1_000.0, 500.0, 250.0])
    growth = 1.0 * (98_500 / 99_000) * (99_750 / 98_000)
    report = evaluate(run, seed=0, resamples=20)
    assert report.get("total_return", "gross").value == pytest.approx(growth - 1)
    assert report.get("total_return", "net").value == pytest.approx(-0.005)
    assert report.get("costs", "net").value == 1_750


def test_without_costs_gross_and_net_are_one() -> None:
    report = evaluate(a_run(), seed=0, resamples=50)
    for name in ("pnl", "sharpe", "annual_return", "max_drawdown"):
        assert replace(report.get(name, "gross"), of="net") == report.get(name, "net")


def test_turnover_exposure_and_hit_rate_by_hand() -> None:
    run = a_run(
        4,
        equity=[100_000.0, 101_000.0, 100_500.0, 100_500.0],
        traded=[100_000.0, 0.0, 101_000.0, 0.0],
        exposure=[1.0, -0.5, 0.0, 0.0],
    )
    report = evaluate(run, seed=0, resamples=20)
    assert report.get("turnover", "net").value == pytest.approx((1 + 0 + 1 + 0) / 4 * 252)
    assert report.get("exposure", "net").value == pytest.approx(0.375)
    # Held on the first three (the third was left in its course); one of them gained.
    assert report.get("hit_rate", "net").value == pytest.approx(1 / 3)


def test_an_account_that_never_held_anything_has_no_hit_rate() -> None:
    report = evaluate(a_run(5, equity=np.full(5, CASH), exposure=np.zeros(5)), seed=0, resamples=20)
    assert report.get("hit_rate", "net").value is None
    assert report.get("sharpe", "net") == Metric("sharpe", None, None, None, "net")
    assert report.verdict.startswith("Cannot be compared with Always Buy")


# Intervals


def test_the_interval_of_sharpe_is_as_wide_as_theory_says_on_independent_days() -> None:
    """The standard error of an annualised Sharpe ratio from n independent days is about √(252/n)."""
    report = evaluate(a_run(1000, seed=5), seed=0)
    metric = report.get("sharpe", "always_buy")
    assert metric.low is not None and metric.high is not None
    assert (metric.high - metric.low) / (2 * 1.96) == pytest.approx(math.sqrt(252 / 1000), rel=0.2)
    accuracy = report.get("accuracy", "signals")
    assert accuracy.low is not None and accuracy.high is not None
    assert (accuracy.high - accuracy.low) / (2 * 1.96) == pytest.approx(math.sqrt(0.25 / 999), rel=0.2)


def test_about_95_of_100_intervals_hold_the_true_sharpe() -> None:
    truth = math.sqrt(252) * (0.0004 - 0.02 / 252) / 0.01
    held = 0
    for seed in range(100):
        metric = evaluate(a_run(300, seed=seed), seed=seed, resamples=200).get("sharpe", "always_buy")
        assert metric.low is not None and metric.high is not None
        held += metric.low <= truth <= metric.high
    assert 87 <= held <= 100


def test_the_paired_interval_of_the_excess_is_narrower_where_the_series_move_together() -> None:
    rng = np.random.default_rng(7)
    market = rng.normal(0.0004, 0.01, 800)
    close = evaluate(
        a_run(800, equity=account(market + rng.normal(0, 0.001, 800)), always_buy_equity=account(market)), seed=0
    )

    def width(metric: Metric) -> float:
        assert metric.low is not None and metric.high is not None
        return metric.high - metric.low

    unpaired = math.hypot(width(close.get("sharpe", "net")), width(close.get("sharpe", "always_buy")))
    assert width(close.get("excess_sharpe", "excess")) < 0.2 * unpaired


def test_an_account_equal_to_always_buy_has_an_excess_of_exactly_nothing() -> None:
    run = a_run()
    report = evaluate(replace(run, equity=run.always_buy_equity), seed=0, resamples=100)
    for name in ("excess_sharpe", "excess_return"):
        assert report.get(name, "excess") == Metric(name, 0.0, 0.0, 0.0, "excess")
    assert report.verdict == "The same as Always Buy on every day."


def test_days_are_never_drawn_across_windows() -> None:
    """Each window holds one constant: whatever is drawn within windows, every window keeps its own sum."""
    days = np.repeat([0.01, -0.02, 0.03], 40)
    report = evaluate(a_run(120, next_return=days, side=np.ones(120), windows=[40] * 3), seed=0, resamples=100)
    metric = report.get("paper_pnl", "signals")
    expected = pytest.approx(40 * 0.02 / 3)
    assert (metric.value, metric.low, metric.high) == (expected, expected, expected)


def test_blocks_grow_with_dependence_and_fit_into_the_windows() -> None:
    rng = np.random.default_rng(4)
    persistent = np.convolve(rng.normal(0, 0.003, 1030), np.ones(31), mode="valid")
    run = a_run(1000, equity=account(persistent))
    assert evaluate(run, seed=0, resamples=10).block_length > 20
    assert evaluate(replace(run, windows=[30] * 33 + [10]), seed=0, resamples=10).block_length <= 3


def test_the_same_seed_gives_the_same_figures_and_another_does_not() -> None:
    first, again, other = (evaluate(a_run(), seed=seed, resamples=100) for seed in (1, 1, 2))
    assert first == again
    assert first.get("sharpe", "net").low != other.get("sharpe", "net").low
    assert first.get("sharpe", "net").value == other.get("sharpe", "net").value


def test_a_figure_that_many_draws_leave_undefined_has_no_interval() -> None:
    side = np.zeros(60)
    side[7] = 1  # a third of the draws miss this one day
    report = evaluate(a_run(60, side=side), seed=0, resamples=200)
    metric = report.get("accuracy", "signals")
    assert metric.value is not None
    assert (metric.low, metric.high) == (None, None)


def test_one_day_alone_gives_figures_without_a_sharpe() -> None:
    report = evaluate(a_run(1), seed=0, resamples=10)
    assert report.get("pnl", "net").value == pytest.approx(0)
    assert report.get("sharpe", "net").value is None


# Always Buy, the verdict, JSON


def test_always_buy_is_measured_on_the_days_on_which_the_model_took_a_side() -> None:
    report = evaluate(a_run(4, side=[1, 0, 1, 1], next_return=[0.1, -0.1, -0.1, math.nan]), seed=0, resamples=20)
    assert report.get("accuracy", "always_buy").value == 0.5
    assert report.get("paper_pnl", "always_buy").value == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("value", "low", "high", "sentence"),
    [
        (-0.12, -0.61, 0.38, "Cannot be told from Always Buy: excess Sharpe −0.12, 95 % interval −0.61 to 0.38."),
        (0.5, 0.01, 0.99, "Better than Always Buy: excess Sharpe 0.50, 95 % interval 0.01 to 0.99."),
        (0.5, 0.0, 0.99, "Cannot be told from Always Buy: excess Sharpe 0.50, 95 % interval 0.00 to 0.99."),
        (-0.7, -1.2, -0.1, "Worse than Always Buy: excess Sharpe −0.70, 95 % interval −1.20 to −0.10."),
        (None, None, None, "Cannot be compared with Always Buy: a Sharpe ratio is undefined, its returns do not vary."),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(
    value: float | None, low: float | None, high: float | None, sentence: str
) -> None:
    assert verdict(Metric("excess_sharpe", value, low, high, "excess")) == sentence


def test_foresight_is_called_better_and_its_opposite_worse() -> None:
    run = a_run(500)
    market = np.diff(np.log(np.concatenate([[CASH], np.asarray(run.always_buy_equity)])))
    assert evaluate(replace(run, equity=account(np.abs(market))), seed=0).verdict.startswith("Better than")
    assert evaluate(replace(run, equity=account(-np.abs(market))), seed=0).verdict.startswith("Worse than")


def test_json_holds_every_promised_figure_with_its_interval() -> None:
    found = evaluate(a_run(), seed=0, resamples=50).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name in ("accuracy", "paper_pnl", "paper_sharpe", "pnl", "sharpe", "excess_sharpe", "excess_return"):
        assert found[name].keys() == {"value", "low", "high"}
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    for name in ("accuracy", "paper_pnl", "paper_sharpe", "pnl", "sharpe"):
        assert found["always_buy"][name]["low"] < found["always_buy"][name]["high"]
    assert {"pnl", "sharpe"} <= found["gross"].keys()


def test_a_figure_that_does_not_exist_is_a_key_error() -> None:
    report = Report(metrics=(), verdict="", sharpe_definition="", block_length=1, resamples=0)
    with pytest.raises(KeyError, match="sharpe of net"):
        report.get("sharpe", "net")


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equity": [1.0, math.nan, 1.0]}, r"equity, day 2: not a finite number"),
        ({"costs": [0.0, 0.0]}, "columns of unequal length"),
        ({"side": [1, 2, 0]}, r"a side must be −1, 0 or \+1 \(got 2.0\)"),
        ({"next_return": [0.1, math.inf, 0.1]}, r"next_return, day 2: not a finite number"),
        ({"start_cash": 0.0}, "an account must start with money"),
        ({"windows": [2, 2]}, r"windows do not cover the days \(got \[2, 2\], expected lengths ≥ 1 that sum to 3\)"),
        ({"windows": [3, 0]}, "windows do not cover the days"),
    ],
)
def test_columns_that_cannot_be_measured_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TraderError, match=message):
        evaluate(a_run(3, **changes), seed=0, resamples=10)


def test_a_run_without_a_session_cannot_be_measured() -> None:
    with pytest.raises(NoData, match="no session to measure"):
        equity_metrics([], CASH)


@pytest.mark.parametrize("days", range(1, 13))
def test_a_record_of_a_few_days_has_a_block_too(days: int) -> None:
    returns = np.random.default_rng(days).normal(0, 0.01, days)
    assert 1 <= block_length([returns], [days]) <= max(1, days // 3)
