"""Methods on the same test days: figures by hand, differences that are there and that are not, the price of search."""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pytest

from trader.comparison import (
    Paired,
    Positions,
    Statistic,
    contrast,
    deflated_sharpe,
    figures,
    holm,
    moments,
    paired,
    probabilistic_sharpe,
    spa,
)
from trader.errors import NoData, TraderError
from trader.metrics import signal_metrics
from trader.resampling import _counts, block_length, resampled_sums, widening

WINDOWS = [49] * 4
DAYS = sum(WINDOWS)


def market(seed: int = 0, days: int = DAYS) -> NDArray[np.float64]:
    """Return returns with fat tails and a little drift, in clusters of quiet and loud days."""
    rng = np.random.default_rng([seed, 1])
    loudness = np.exp(0.3 * np.convolve(rng.normal(size=days + 9), np.ones(10) / math.sqrt(10), mode="valid"))
    return rng.standard_t(5, days) * 0.008 * loudness + 0.0003


def guesses(
    seed: int, returns: NDArray[np.float64], *, right: float = 0.5, seeds: int = 1, windows: Any = None
) -> Positions:
    """Return a method whose sides are right with a probability, whatever the day."""
    rng = np.random.default_rng([seed, 2])
    truth = np.where(returns > 0, 1.0, -1.0)
    sides = np.where(rng.random((seeds, len(returns))) < right, truth, -truth)
    forecast = sides * 0.002 + rng.normal(0, 0.001, sides.shape)
    return Positions(sides, returns, windows or WINDOWS, forecast)


# Figures


def test_the_figures_of_one_seed_are_those_of_signal_metrics_exactly() -> None:
    returns = market()
    returns[-1] = math.nan
    sides = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], DAYS)
    found = figures(Positions(sides, returns, WINDOWS), seed=0, resamples=50)
    expected = signal_metrics(sides, returns, WINDOWS)
    assert found["accuracy"].value == expected["accuracy"]
    assert found["pnl"].value == expected["paper_pnl"]
    assert found["sharpe"].value == expected["paper_sharpe"]
    for figure in (found["accuracy"], found["pnl"], found["sharpe"]):
        assert figure.low is not None and figure.value is not None and figure.high is not None
        assert figure.low < figure.value < figure.high
        assert (figure.seed_sd, figure.reason) == (None, "")


def test_seeds_are_averaged_before_anything_else() -> None:
    """Two seeds that always disagree hold nothing: each has a Sharpe ratio, their average has none."""
    returns = market()
    sides = np.random.default_rng(4).choice([-1.0, 1.0], DAYS)
    found = figures(Positions(np.array([sides, -sides]), returns, WINDOWS), seed=0, resamples=50)
    assert found["pnl"].value == 0
    assert (found["sharpe"].value, found["sharpe"].reason) == (
        None,
        "its returns do not vary in at least one window",
    )
    assert found["accuracy"].value == 0.5
    each = [signal_metrics(one, returns, WINDOWS) for one in (sides, -sides)]
    assert found["sharpe"].seed_sd == pytest.approx(stdev(one["paper_sharpe"] or math.nan for one in each))
    assert found["accuracy"].seed_sd == pytest.approx(stdev(one["accuracy"] or math.nan for one in each))


def test_the_average_of_seeds_is_the_book_that_stakes_a_share_on_each() -> None:
    found = figures(Positions(np.array([[1, 1, -1], [1, -1, -1]]), [0.02, 0.01, -0.03], [3]), seed=0, resamples=20)  # type: ignore[arg-type]
    daily = [0.02, 0.0, 0.03]
    assert found["pnl"].value == pytest.approx(sum(daily))
    assert found["sharpe"].value == pytest.approx(math.sqrt(252) * (mean(daily) - 0.02 / 252) / stdev(daily))
    assert found["accuracy"].value == pytest.approx(5 / 6)
    assert found["pnl"].seed_sd == pytest.approx(stdev([0.06, 0.04]))


def test_correlation_is_taken_within_windows_and_averaged() -> None:
    """Each window's forecasts follow its returns, at a level that goes against the windows' own returns."""
    rng = np.random.default_rng(5)
    returns = np.concatenate([rng.normal(0.01, 0.01, 30), rng.normal(-0.01, 0.01, 30)])
    forecast = returns + np.repeat([-1.0, 1.0], 30) + rng.normal(0, 0.01, 60)
    found = figures(Positions(np.ones(60), returns, [30, 30], forecast), seed=0, resamples=50)["correlation"]
    parts = [np.corrcoef(forecast[part], returns[part])[0, 1] for part in (slice(30), slice(30, 60))]
    assert found.value == pytest.approx(mean(parts))
    assert np.corrcoef(forecast, returns)[0, 1] < 0 < 0.5 < mean(parts)


def test_the_forecasts_of_seeds_are_averaged_too_and_a_constant_one_has_no_correlation() -> None:
    returns = market()
    noise = np.random.default_rng(6).normal(0, 0.05, DAYS)
    both = Positions(np.ones((2, DAYS)), returns, WINDOWS, np.array([returns + noise, returns - noise]))
    assert figures(both, seed=0, resamples=20)["correlation"].value == pytest.approx(1)
    always = figures(Positions(np.ones(DAYS), returns, WINDOWS, np.full(DAYS, 0.03)), seed=0, resamples=20)
    assert always["correlation"].value is None
    assert "do not vary" in always["correlation"].reason
    assert figures(Positions(np.ones(DAYS), returns, WINDOWS), seed=0, resamples=20)["correlation"].reason == (
        "it gives no forecast"
    )


def test_a_method_that_never_decides_says_why_it_has_no_figures() -> None:
    found = figures(Positions(np.zeros(DAYS), market(), WINDOWS), seed=0, resamples=20)
    assert found["accuracy"].value is None and "no day with a side" in found["accuracy"].reason
    assert found["pnl"].value == 0
    assert found["sharpe"].value is None


def test_a_figure_that_many_draws_leave_undefined_has_a_value_without_an_interval() -> None:
    sides = np.zeros(60)
    sides[7] = 1
    found = figures(Positions(sides, market(days=60), [60]), seed=0, resamples=100)["accuracy"]
    assert found.value is not None
    assert (found.low, found.high) == (None, None)
    assert found.reason == "over 5 % of the resampled days leave it undefined"


def test_days_are_never_drawn_across_windows() -> None:
    """Each window holds one constant: whatever is drawn within windows, every window keeps its own sum."""
    returns = np.repeat([0.01, -0.02, 0.03], 40)
    found = figures(Positions(np.ones(120), returns, [40] * 3), seed=0, resamples=50)["pnl"]
    assert found.low == pytest.approx(found.value) == pytest.approx(40 * 0.02 / 3)
    assert found.high == pytest.approx(found.value)


def test_draws_are_widened_by_what_short_windows_lose() -> None:
    """The mean of independent days: what its draws lack in variance, the factor gives back."""
    days = np.random.default_rng(7).normal(size=(200, 49))
    for block in (1, 4, 16):
        columns = {"it": {str(at): values for at, values in enumerate(days)}}
        sums = resampled_sums(columns, [49], block, 0, 500)["it"]
        drawn = mean(float(values.var()) for values in sums.values()) / 49
        assert drawn * widening([49], block) ** 2 == pytest.approx(1, abs=0.08)
    assert widening([100_000], 4) == pytest.approx(1, abs=1e-4)
    assert widening([1, 1], 1) == pytest.approx(math.sqrt(10))


# One against another


@pytest.mark.parametrize("statistic", ["sharpe", "pnl", "accuracy", "correlation"])
def test_a_method_against_itself_differs_by_exactly_nothing_with_p_1(statistic: Statistic) -> None:
    method = guesses(1, market(), seeds=3)
    again = Positions(method.sides.copy(), method.next_return.copy(), WINDOWS, method.forecast)
    assert paired(method, again, statistic, seed=0, resamples=100) == Paired(0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("statistic", ["sharpe", "pnl", "accuracy", "correlation"])
def test_a_planted_difference_is_found_and_its_opposite_is_not(statistic: Statistic) -> None:
    returns = market()
    good, bad = guesses(1, returns, right=0.7), guesses(2, returns, right=0.45)
    found, opposite = (paired(a, b, statistic, seed=0, resamples=400) for a, b in ((good, bad), (bad, good)))
    assert found.low is not None and found.p_value is not None and opposite.p_value is not None
    assert found.low > 0 and found.p_value < 0.01
    assert opposite.p_value > 0.99
    assert opposite.difference == -(found.difference or math.nan)


def test_the_difference_is_that_of_the_figures() -> None:
    returns = market()
    a, b = guesses(1, returns), guesses(2, returns)
    one, other = (figures(method, seed=0, resamples=20) for method in (a, b))
    for statistic in one:
        expected = (one[statistic].value or math.nan) - (other[statistic].value or math.nan)
        assert paired(a, b, statistic, seed=0, resamples=20).difference == pytest.approx(expected, rel=1e-12)


def test_pairing_sees_through_the_market_that_both_hold() -> None:
    """A method that shuns a few bad days: its own interval holds anything, the difference's does not."""
    returns = market(days=400)
    sides = np.ones(400)
    sides[np.argsort(returns)[20:60]] = 0
    better, always = Positions(sides, returns, [400]), Positions(np.ones(400), returns, [400])
    alone = figures(better, seed=0, resamples=300)["sharpe"]
    beside = paired(better, always, seed=0, resamples=300)
    assert None not in (alone.low, alone.high, beside.low, beside.high)
    assert beside.high - beside.low < 0.6 * (alone.high - alone.low)  # type: ignore[operator]


@pytest.mark.parametrize(("windows", "most"), [([49] * 4, 0.11), ([400], 0.09)])
def test_of_tests_between_equals_about_1_in_20_rejects(windows: list[int], most: float) -> None:
    """200 pairs of coins: one in twenty, give or take what 200 pairs leave open (standard error 0.015)."""
    p_values = []
    for seed in range(200):
        returns = market(seed, sum(windows))
        a, b = (guesses(2 * seed + at, returns, windows=windows) for at in (0, 1))
        p_values.append(paired(a, b, seed=0, resamples=199).p_value or 0.0)
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= most
    assert 0.35 <= np.mean(np.array(p_values) <= 0.5) <= 0.65


def test_p_is_the_share_of_draws_that_go_as_far_from_the_estimate_as_it_is_from_0() -> None:
    """By hand from the draws of the daily difference, widened."""
    returns = market()
    a, b = guesses(1, returns, right=0.55), guesses(2, returns)
    gain = (a.sides[0] - b.sides[0]) * returns
    block = block_length([gain], WINDOWS)
    draws = resampled_sums({"it": {"gain": gain}}, WINDOWS, block, 0, 400)["it"]["gain"].mean(axis=1)
    estimate = gain.sum() / len(WINDOWS)
    reached = np.sum((draws - estimate) * widening(WINDOWS, block) >= estimate)
    found = paired(a, b, "pnl", seed=0, resamples=400)
    assert found.p_value == (1 + reached) / 401
    assert 10 < reached < 200
    low, high = estimate + (np.quantile(draws, [0.025, 0.975]) - estimate) * widening(WINDOWS, block)
    assert [found.low, found.high] == pytest.approx([low, high])


def test_the_same_seed_gives_the_same_figures_and_another_does_not() -> None:
    method = guesses(1, market())
    first = figures(method, seed=1, resamples=50)
    _counts.cache_clear()
    assert figures(method, seed=1, resamples=50) == first
    assert figures(method, seed=2, resamples=50)["sharpe"].low != first["sharpe"].low


def test_p_is_never_0_and_counts_itself() -> None:
    returns = market()
    truth = np.where(returns > 0, 1.0, -1.0)
    best, worst = (Positions(sides, returns, WINDOWS) for sides in (truth, -truth))
    assert paired(best, worst, seed=0, resamples=99).p_value == 1 / 100


def test_a_contrast_is_the_weighted_sum_of_the_figures() -> None:
    returns = market()
    series = {("m", t): guesses(t, returns) for t in (1, 5, 20)}
    weights = {("m", 1): -1.5, ("m", 5): 0.5, ("m", 20): 1.0}
    each = {key: figures(method, seed=0, resamples=20)["sharpe"].value or math.nan for key, method in series.items()}
    found = contrast(series, weights, seed=0, resamples=100)
    assert found.value == pytest.approx(sum(weights[key] * each[key] for key in weights))
    assert found.low is not None and found.high is not None and found.value is not None
    assert found.low < found.value < found.high


def test_a_contrast_of_equals_is_nothing_in_spite_of_rounding() -> None:
    method = guesses(1, market())
    weights = {"a": 0.1, "b": 0.2, "c": -0.3}  # they sum to 5.6e-17
    found = contrast(dict.fromkeys("abc", method), weights, seed=0, resamples=50)
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_contrast_with_an_undefined_figure_says_whose() -> None:
    returns = market()
    idle = Positions(np.zeros(DAYS), returns, WINDOWS)
    series = {("finin", 5): guesses(1, returns), ("idle", 5): idle}
    found = contrast(series, {("finin", 5): 1, ("idle", 5): -1}, seed=0, resamples=20)
    assert (found.value, found.p_value) == (None, None)
    assert found.reason == "idle, 5: its returns do not vary in at least one window"
    assert contrast(series, {("finin", 5): 1, ("idle", 5): 0}, seed=0, resamples=20).value is not None
    assert "it gives no forecast" in paired(series["finin", 5], idle, "correlation", seed=0, resamples=20).reason


def test_methods_of_different_days_are_not_compared() -> None:
    with pytest.raises(TraderError, match="methods measured on different days"):
        paired(guesses(1, market(1)), guesses(1, market(2)), seed=0)
    returns = market()
    with pytest.raises(TraderError, match="methods measured on different days"):
        paired(guesses(1, returns), guesses(1, returns, windows=[98, 98]), seed=0)
    with pytest.raises(TraderError, match="a weight without a series"):
        contrast({"a": guesses(1, returns)}, {"a": 1.0, "b": -1.0}, seed=0)
    with pytest.raises(TraderError, match="nothing to combine"):
        contrast({"a": guesses(1, returns)}, {}, seed=0)


@pytest.mark.parametrize(
    ("sides", "returns", "windows", "forecast", "message"),
    [
        ([1, 1, 1], [0.1, 0.1], [2], None, "columns of unequal length"),
        ([1, 1], [0.1, 0.1], [2], [[0.1, 0.1], [0.1, 0.1]], "columns of unequal length"),
        ([0.5, 1], [0.1, 0.1], [2], None, "a side must be −1, 0 or \\+1"),
        ([1, 1], [0.1, math.inf], [2], None, "next_return, day 2: not a finite number"),
        ([1, 1], [0.1, 0.1], [2], [math.nan, 0.1], "forecast, day 1: not a finite number"),
        ([1, 1], [0.1, 0.1], [1], None, "windows do not cover the days"),
    ],
)
def test_positions_that_do_not_fit_are_refused(
    sides: Any, returns: Any, windows: Any, forecast: Any, message: str
) -> None:
    with pytest.raises(TraderError, match=message):
        Positions(sides, returns, windows, forecast)


def test_positions_without_a_day_are_refused() -> None:
    with pytest.raises(NoData):
        Positions(np.empty((1, 0)), np.empty(0), [])


# Many at once


def test_holm_by_hand() -> None:
    """0.005·4, 0.01·3, 0.03·2 and 0.04·1, each at least the one before."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_test_over_all_methods_finds_a_truly_better_one_among_many() -> None:
    returns = market()
    coins = {f"coin {seed}": guesses(10 + seed, returns) for seed in range(8)}
    found = spa(guesses(1, returns), coins | {"good": guesses(2, returns, right=0.7)}, seed=0, resamples=200)
    assert found.best == "good"
    assert found.lower <= found.consistent <= found.upper < 0.05


def test_the_test_over_all_methods_does_not_fall_for_the_luckiest_of_many() -> None:
    """Forty times the best of ten coins against a coin: 5 % of them, give or take, and the naive test far more."""
    rejected, naive = 0, 0
    for seed in range(40):
        returns = market(seed)
        coins = {str(at): guesses(100 * seed + at, returns) for at in range(10)}
        benchmark = guesses(100 * seed + 99, returns)
        found = spa(benchmark, coins, seed=0, resamples=99)
        rejected += found.consistent <= 0.05
        naive += (paired(coins[found.best], benchmark, "pnl", seed=0, resamples=99).p_value or 0) <= 0.05
    assert rejected <= 6
    assert naive >= rejected + 3


def test_methods_that_do_what_the_benchmark_does_are_not_better() -> None:
    method = guesses(1, market())
    found = spa(method, {"same": method}, seed=0, resamples=50)
    assert (found.lower, found.consistent, found.upper, found.best) == (1, 1, 1, "")
    with pytest.raises(TraderError, match="the benchmark and other"):
        spa(method, {"other": guesses(1, market(9))}, seed=0)


def test_the_test_over_one_method_is_the_paired_test_of_its_mean() -> None:
    """With one method there is no search, and arch draws the same days as we do, within the same windows."""
    returns = market()
    method, benchmark = guesses(1, returns, right=0.55), guesses(2, returns)
    found = spa(benchmark, {"it": method}, seed=0, resamples=400)
    assert found.upper == pytest.approx(paired(method, benchmark, "pnl", seed=0, resamples=400).p_value)


# The price of search


def test_the_worked_example_of_the_deflated_sharpe_ratio() -> None:
    """Bailey and López de Prado 2014, their numerical example: 250 days a year, 5 years, 100 trials."""
    best = 2.5 / math.sqrt(250)
    found = deflated_sharpe(best, 0.5 / 250, 100, days=1250, skew=-3, kurtosis=10)
    assert found.expected_maximum == pytest.approx(0.1132, abs=5e-5)
    assert found.probability == pytest.approx(0.9004, abs=5e-5)
    fewer = deflated_sharpe(best, 0.5 / 250, 46, days=1250, skew=-3, kurtosis=10)
    assert fewer.probability == pytest.approx(0.9505, abs=5e-4)  # and after 46 trials it would have convinced


def test_a_single_trial_is_no_search() -> None:
    found = deflated_sharpe(0.1, 0.002, 1, days=500, skew=0, kurtosis=3)
    assert found.expected_maximum == 0
    assert found.probability == probabilistic_sharpe(0.1, 0, days=500, skew=0, kurtosis=3)
    with pytest.raises(TraderError, match="not a set of trials"):
        deflated_sharpe(0.1, 0.002, 0, days=500, skew=0, kurtosis=3)


def test_a_sharpe_ratio_is_as_likely_above_itself_as_below() -> None:
    assert probabilistic_sharpe(0.07, 0.07, days=490, skew=-0.5, kurtosis=6) == 0.5
    assert probabilistic_sharpe(0.07, 0, days=490, skew=0, kurtosis=3) == pytest.approx(0.9391, abs=1e-3)
    with pytest.raises(TraderError, match="no distribution has these moments"):
        probabilistic_sharpe(1.0, 0, days=490, skew=3, kurtosis=1)


def test_the_expected_maximum_is_that_of_simulated_trials() -> None:
    maxima = np.random.default_rng(8).normal(0, 0.03, (20_000, 50)).max(axis=1)
    found = deflated_sharpe(0.1, 0.03**2, 50, days=490, skew=0, kurtosis=3)
    assert found.expected_maximum == pytest.approx(maxima.mean(), rel=0.02)


def test_moments_by_hand() -> None:
    found = moments(Positions([1, 1, -1, 0, 1], [0.01, -0.01, -0.03, 0.5, math.nan], [2, 3]), risk_free=0)  # type: ignore[arg-type]
    daily = [0.01, -0.01, 0.03, 0.0]
    centred = [value - mean(daily) for value in daily]
    variance = mean(value**2 for value in centred)
    assert found is not None
    assert found.days == 4
    assert found.daily_sharpe == pytest.approx(mean(daily) / stdev(daily))
    assert found.skew == pytest.approx(mean(value**3 for value in centred) / variance**1.5)
    assert found.kurtosis == pytest.approx(mean(value**4 for value in centred) / variance**2)
    assert moments(Positions(np.zeros(5), np.full(5, 0.1), [5])) is None
    assert moments(Positions(np.ones(5), np.full(5, 0.1), [5])) is None
