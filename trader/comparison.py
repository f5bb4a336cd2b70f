"""How well methods did on the same test days, and whether one beat another: figures, contrasts, tests of many.

Upstream are the sides that methods took on the test days of an experiment (``trader.cells``); downstream its tables
and ``trader.claims``. The figures are those of ``trader.metrics.signal_metrics``: close to close, no costs. A method
trained from K seeds is ONE method: its daily returns are averaged over seeds first, which makes it the book that
stakes 1/K on each, and the spread over seeds stands beside its interval, never inside it.

Every statistic is a function of sums over days, so that one draw of days serves all methods: differences are paired.
Days are drawn in blocks within windows, never across their joins. Letters: K seeds, n days, W windows, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import astuple, dataclass
import math
from statistics import NormalDist, stdev
from typing import Literal, TypeVar, get_args

import numpy as np

from trader import metrics, resampling
from trader.errors import TraderError
from trader.metrics import DAYS_A_YEAR, RISK_FREE
from trader.resampling import Columns, Floats, Sums

Statistic = Literal["accuracy", "pnl", "sharpe", "correlation"]
Key = TypeVar("Key", bound=Hashable)

_STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
_ROUNDING = 1e-12  # of the figures' own size: below it a difference is none
_UNDEFINED: Mapping[Statistic, str] = {
    "accuracy": "no day with a side whose next close is known",
    "pnl": "no figure",
    "sharpe": "its returns do not vary in at least one window",
    "correlation": "its forecasts or the returns do not vary in at least one window",
}
_NO_INTERVAL = "over 5 % of the resampled days leave it undefined"


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """What a method did on the n test days of all windows one after another, oldest first.

    sides: (K, n) −1, 0, +1, a row a seed; (n,) is one seed.
    next_return: (n,) close(d+1)/close(d) − 1, NaN where not known; such days count nowhere.
    windows: lengths in days, summing to n.
    forecast: (K, n) what is correlated with the return: expected return, or P(up) − ½. None where there is none.
    Raises TraderError for columns that do not fit together, NoData without a day.
    """

    sides: Floats
    next_return: Floats
    windows: Sequence[int]
    forecast: Floats | None = None

    def __post_init__(self) -> None:
        sides = np.atleast_2d(np.asarray(self.sides, dtype=np.float64))  # (K, n)
        returns = np.atleast_1d(np.asarray(self.next_return, dtype=np.float64))  # (n,)
        forecast = sides if self.forecast is None else np.atleast_2d(np.asarray(self.forecast, dtype=np.float64))
        if not sides.shape == forecast.shape == (max(len(sides), 1), len(returns)):
            raise TraderError("columns of unequal length", got=(sides.shape, forecast.shape, returns.shape))
        if not np.isin(sides, (-1, 0, 1)).all():
            raise TraderError("a side must be −1, 0 or +1", got=float(sides[~np.isin(sides, (-1, 0, 1))][0]))
        for name, bad in (("next_return", np.isinf(returns)), ("forecast", ~np.isfinite(forecast).all(axis=0))):
            if bad.any():
                raise TraderError("not a finite number", where=f"{name}, day {int(bad.argmax()) + 1}")
        lengths = tuple(metrics.window_lengths(len(returns), self.windows))
        checked = {"sides": sides, "next_return": returns, "windows": lengths}
        for name, value in (checked if self.forecast is None else checked | {"forecast": forecast}).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a method with its 95 % interval over days, and its spread over seeds.

    value: None where undefined.   low, high: None where there is no interval.   reason: why either is None, else "".
    seed_sd: sample standard deviation of the single seeds' own figures; None for one seed.
    """

    value: float | None
    low: float | None
    high: float | None
    seed_sd: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A linear combination of methods' figures; ``p_value`` is one-sided, of the claim that it is above 0.

    Fields are None where undefined; ``reason`` then says why.
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Paired:
    """One method's figure less another's on the same days; ``p_value`` and ``reason`` as in ``Contrast``."""

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    reason: str = ""


def figures(
    positions: Positions, *, risk_free: float = RISK_FREE, seed: int, resamples: int = 2000
) -> dict[Statistic, Figure]:
    """Measure a method: accuracy, pnl, sharpe, and correlation, each with its 95 % interval.

    accuracy: share of the days with a side on which the close moved to that side; over seeds, of all their days.
    pnl: Σ side · return over a window, then the mean over windows.
    sharpe: a year's, risk_free taken off, of a window; then the mean over windows.
    correlation: of the forecast with the return in a window, then the mean over windows: what a window's own level
        of the forecasts says about its returns is left out.
    The first three equal ``trader.metrics.signal_metrics`` (accuracy, paper_pnl, paper_sharpe) for one seed.

    Bounds are percentiles of a stationary bootstrap within windows, its draws widened by ``resampling.widening``.
    Source: Politis and Romano 1994; block length Patton, Politis and White 2009, by ``arch.bootstrap``.
    """
    columns = _columns(positions)
    lengths = positions.windows
    estimates = _statistics(resampling.window_sums({"it": columns}, lengths)["it"], risk_free)
    block = resampling.block_length([_influence(columns, lengths, name) for name in estimates], lengths)
    draws = _statistics(resampling.resampled_sums({"it": columns}, lengths, block, seed, resamples)["it"], risk_free)
    draws = {name: widened(drawn, estimates[name], lengths, block) for name, drawn in draws.items()}
    spreads = _seed_spreads(positions, risk_free)
    found = {
        name: _figure(estimates[name], draws[name], spreads[name], _why_not(positions, name)) for name in estimates
    }
    return {name: found.get(name, Figure(None, None, None, None, _why_not(positions, name))) for name in _STATISTICS}


def paired(
    a: Positions,
    b: Positions,
    statistic: Statistic = "sharpe",
    *,
    risk_free: float = RISK_FREE,
    seed: int,
    resamples: int = 2000,
) -> Paired:
    """Compare two methods on the same days: the figure of a less that of b. See ``contrast``.

    Two methods that did the same every day differ by exactly 0, with p-value 1.
    """
    found = contrast(
        {"a": a, "b": b}, {"a": 1.0, "b": -1.0}, statistic, risk_free=risk_free, seed=seed, resamples=resamples
    )
    return Paired(*astuple(found))


def contrast(
    series: Mapping[Key, Positions],
    weights: Mapping[Key, float],
    statistic: Statistic = "sharpe",
    *,
    risk_free: float = RISK_FREE,
    seed: int,
    resamples: int = 2000,
) -> Contrast:
    """Estimate Σ weight · figure over methods on the same days: a difference, a slope, a difference of differences.

    A draw takes the same days for all methods; interval as in ``figures``. The p-value is one-sided, for the claim
    that the combination is above 0: the draws, centred at the estimate, stand for what chance alone would give were
    it 0, so p = (1 + number of draws with draw − estimate ≥ estimate) / (1 + R), never 0. Block length: the optimum
    for the combination's own daily contributions, not for the single series, whose common moves cancel.

    Raises TraderError for a weight without a series, or methods that were not measured on the same days.
    Source: Politis and Romano 1994; Davison and Hinkley 1997, section 4.4 (bootstrap tests and their + 1).
    """
    used = {key: weight for key, weight in weights.items() if weight}
    _check_same_days(series, list(used))
    lengths = series[next(iter(used))].windows
    columns = {str(at): _columns(series[key]) for at, key in enumerate(used)}
    factors = dict(zip(columns, used.values(), strict=True))
    single = _each(resampling.window_sums(columns, lengths), statistic, risk_free)  # (1,) each
    for key, found in zip(used, single.values(), strict=True):
        if not np.isfinite(found[0]):
            return Contrast(None, None, None, None, f"{_said(key)}: {_why_not(series[key], statistic)}")
    influences = {at: _influence(columns[at], lengths, statistic) for at in columns}  # (n,) each
    block = resampling.block_length([_combination(influences, factors)], lengths)
    drawn = _each(
        resampling.resampled_sums(columns, lengths, block, seed, resamples), statistic, risk_free
    )  # (R,) each
    estimate = _combination(single, factors)
    draws = widened(_combination(drawn, factors), estimate, lengths, block)
    size = _combination({at: np.abs(found) for at, found in single.items()}, {at: abs(f) for at, f in factors.items()})
    return judged(estimate, draws, _ROUNDING * float(size[0]))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust p-values so that a rejection at 5 % errs in at most 5 % of all families, whatever their dependence.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}

    Source: Holm 1979.
    """
    adjusted, highest = {}, 0.0
    for rank, (key, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[key] = highest
    return {key: adjusted[key] for key in p_values}


@dataclass(frozen=True, slots=True)
class SuperiorAbility:
    """P-values that no method beats the benchmark, and the best of them by mean daily return in standard deviations.

    consistent is the one to read; lower and upper bound it. best: "" where no method ever differs from the benchmark.
    """

    lower: float
    consistent: float
    upper: float
    best: str


def spa(benchmark: Positions, methods: Mapping[str, Positions], *, seed: int, resamples: int = 2000) -> SuperiorAbility:
    """Test whether the best of many methods earns more a day than the benchmark, the search for the best accounted for.

    Tested is the mean daily return over the benchmark's, each method's in units of its own standard deviation (a test
    of means, not of Sharpe ratios). A method that does what the benchmark does on every day is left out; where none
    is left, the p-values are 1. Raises TraderError for methods not measured on the same days.
    Source: Hansen 2005, by ``arch.bootstrap.SPA``; see ``trader.resampling.superior_ability``.
    """
    _check_same_days({"the benchmark": benchmark, **methods}, ["the benchmark", *methods])
    known = ~np.isnan(benchmark.next_return)
    base = _columns(benchmark)["x"]
    gains = {name: (_columns(one)["x"] - base)[known] for name, one in methods.items()}
    gains = {name: values for name, values in gains.items() if np.ptp(values) > 0}
    if not gains:
        return SuperiorAbility(1.0, 1.0, 1.0, "")
    lengths = [int(part.sum()) for part in np.split(known, resampling.starts(benchmark.windows)[1:]) if part.any()]
    block = resampling.block_length(list(gains.values()), lengths)
    lower, consistent, upper = resampling.superior_ability(
        np.column_stack([*gains.values()]), lengths, block, seed, resamples
    )
    best = max(gains, key=lambda name: float(gains[name].mean() / gains[name].std()))
    return SuperiorAbility(lower, consistent, upper, best)


# The Sharpe ratio of the best of many trials


@dataclass(frozen=True, slots=True)
class Moments:
    """Of n daily returns: Sharpe ratio of a day, skewness, kurtosis (3 for a normal), and how many there are."""

    daily_sharpe: float
    skew: float
    kurtosis: float
    days: int


@dataclass(frozen=True, slots=True)
class DeflatedSharpe:
    """The Sharpe ratio of a day that the best of N worthless trials is expected to show, and P(truth is above it).

    probability: that the true ratio is above 0 once the search is accounted for; it convinces from 0.95 on.
    """

    expected_maximum: float
    probability: float


def moments(positions: Positions, *, risk_free: float = RISK_FREE) -> Moments | None:
    """Return the moments of the daily returns of all windows together, risk_free/252 taken off; None without variance.

    Here windows ARE pooled, since a skewness of 49 days means nothing: so √252 · daily_sharpe is near, but not equal
    to, the mean of the windows' Sharpe ratios.
    """
    returns = _columns(positions)["x"][~np.isnan(positions.next_return)]
    deviation = returns - returns.mean() if len(returns) else returns
    variance = float(np.mean(deviation**2)) if len(returns) else 0.0
    if len(returns) < 2 or variance <= _ROUNDING * float(np.mean(returns**2)):
        return None
    return Moments(
        daily_sharpe=float((returns.mean() - risk_free / DAYS_A_YEAR) / returns.std(ddof=1)),
        skew=float(np.mean(deviation**3)) / variance**1.5,
        kurtosis=float(np.mean(deviation**4)) / variance**2,
        days=len(returns),
    )


def probabilistic_sharpe(daily_sharpe: float, against: float, *, days: int, skew: float, kurtosis: float) -> float:
    """Return the probability that the true Sharpe ratio is above another, both of a day; kurtosis is 3 for a normal.

    Raises TraderError for under two days, or for moments that no distribution has.
    Source: Bailey and López de Prado 2012, The Sharpe Ratio Efficient Frontier, equation 11.
    """
    spread = 1 - skew * daily_sharpe + (kurtosis - 1) / 4 * daily_sharpe**2
    if days < 2 or spread <= 0:
        raise TraderError("no distribution has these moments", got={"days": days, "skew": skew, "kurtosis": kurtosis})
    return NormalDist().cdf((daily_sharpe - against) * math.sqrt((days - 1) / spread))


def deflated_sharpe(
    best_daily_sharpe: float, trials_variance: float, trials: int, *, days: int, skew: float, kurtosis: float
) -> DeflatedSharpe:
    """Deflate the best Sharpe ratio of a day by how many were tried: nothing here is annualised.

    trials: N, how many methods were measured on test days (what was chosen on validation does not count).
    trials_variance: V, variance of their Sharpe ratios of a day.   days, skew, kurtosis: of the best one's returns.
    Raises TraderError for fewer than one trial or a negative variance.
    Source: Bailey and López de Prado 2014, The Deflated Sharpe Ratio, equations 1 and 2.
    """
    if trials < 1 or not trials_variance >= 0:
        raise TraderError("not a set of trials", got={"trials": trials, "variance": trials_variance})
    expected, normal = 0.0, NormalDist()
    if trials > 1:  # one trial is no search
        share = float(np.euler_gamma)
        late, later = normal.inv_cdf(1 - 1 / trials), normal.inv_cdf(1 - 1 / (trials * math.e))
        expected = math.sqrt(trials_variance) * ((1 - share) * late + share * later)
    probability = probabilistic_sharpe(best_daily_sharpe, expected, days=days, skew=skew, kurtosis=kurtosis)
    return DeflatedSharpe(expected, probability)


# From days to columns, and from their sums to figures


def _columns(positions: Positions, chosen: slice = slice(None)) -> Columns:
    """Return what is summed, (n,) each; the seeds, or those chosen, are averaged here, before anything else."""
    seeds = [metrics.signal_columns(side, positions.next_return) for side in positions.sides[chosen]]
    found = {name: np.mean([one[name] for one in seeds], axis=0) for name in ("days", "decided", "right", "x")}
    found["xx"] = found["x"] ** 2
    if positions.forecast is not None:
        forecast = positions.forecast[chosen].mean(axis=0) * found["days"]
        returns = np.nan_to_num(positions.next_return)
        found |= {"f": forecast, "ff": forecast**2, "r": returns, "rr": returns**2, "fr": forecast * returns}
    return found


def _statistics(sums: Columns, risk_free: float) -> dict[Statistic, Floats]:
    """Return each figure that a method has, (R,), NaN where undefined."""
    signals = metrics.signal_statistics(sums, risk_free)
    found: dict[Statistic, Floats] = {
        "accuracy": signals["accuracy"],
        "pnl": signals["paper_pnl"],
        "sharpe": signals["paper_sharpe"],
    }
    if "f" in sums:
        found["correlation"] = _correlation(sums).mean(axis=1)
    return found


def _correlation(sums: Columns) -> Floats:
    """Return (R, W) the correlation of forecast and return in each window."""
    days = sums["days"]
    covariance = (sums["fr"] - sums["f"] * sums["r"] / np.maximum(days, 1)) / np.where(days > 1, days - 1, np.nan)
    of_forecast = metrics.sample_variance(days, sums["f"], sums["ff"])
    product = of_forecast * metrics.sample_variance(days, sums["r"], sums["rr"])
    found: Floats = np.clip(covariance / np.sqrt(np.where(product > 0, product, np.nan)), -1.0, 1.0)
    return found


def _each(sums: Sums, statistic: Statistic, risk_free: float) -> dict[str, Floats]:
    """Return one figure of each method, (R,); NaN for a correlation without forecasts."""
    return {key: _statistics(own, risk_free).get(statistic, np.full(1, np.nan)) for key, own in sums.items()}


def _influence(columns: Columns, lengths: Sequence[int], statistic: Statistic) -> Floats:
    """Return (n,) what each day adds to a figure, to first order and up to a factor: its dependence sets the blocks."""
    if statistic in ("pnl", "sharpe"):
        return columns["x"] if statistic == "pnl" else _standardised(columns["x"], [len(columns["x"])])
    if statistic == "accuracy":
        accuracy = float(columns["right"].sum()) / max(float(columns["decided"].sum()), 1.0)
        return columns["right"] - columns["decided"] * accuracy
    return _standardised(columns["f"], lengths) * _standardised(columns["r"], lengths)


def _standardised(values: Floats, lengths: Sequence[int]) -> Floats:
    """Return values in standard deviations of their window; 0 where they do not vary."""
    parts = np.split(values, resampling.starts(lengths)[1:])
    return np.concatenate([(part - part.mean()) / (float(part.std()) or 1.0) for part in parts])


def _seed_spreads(positions: Positions, risk_free: float) -> dict[Statistic, float | None]:
    """Return the sample standard deviation over seeds of each seed's own figure."""
    columns = {str(at): _columns(positions, slice(at, at + 1)) for at in range(len(positions.sides))}
    sums = resampling.window_sums(columns, positions.windows)
    single = [_statistics(own, risk_free) for own in sums.values()]
    found: dict[Statistic, float | None] = dict.fromkeys(_STATISTICS)
    for name in single[0]:
        values = [float(one[name][0]) for one in single]
        found[name] = stdev(values) if len(values) > 1 and np.isfinite(values).all() else None
    return found


def _figure(estimate: Floats, draws: Floats, seed_sd: float | None, why_not: str) -> Figure:
    if not np.isfinite(estimate[0]):
        return Figure(None, None, None, seed_sd, why_not)
    low, high = metrics.interval(draws)
    return Figure(float(estimate[0]), low, high, seed_sd, _NO_INTERVAL if low is None else "")


def _why_not(positions: Positions, statistic: Statistic) -> str:
    """Return why a method has no such figure, if it has none."""
    lacks = statistic == "correlation" and positions.forecast is None
    return "it gives no forecast" if lacks else _UNDEFINED[statistic]


def widened(draws: Floats, estimate: Floats, lengths: Sequence[int], block: int) -> Floats:
    """Return draws (R,) spread about the estimate (1,) as they would be were windows long."""
    return estimate + (draws - estimate) * resampling.widening(lengths, block)


def _combination(values: Mapping[str, Floats], factors: Mapping[str, float]) -> Floats:
    found: Floats = np.sum([factors[at] * values[at] for at in factors], axis=0)
    return found


def judged(estimate: Floats, draws: Floats, rounding: float) -> Contrast:
    """Return value, interval and p-value from the estimate (1,) and its draws (R,); up to rounding 0 is 0."""
    value = float(estimate[0]) if abs(estimate[0]) > rounding else 0.0
    draws = np.where(np.abs(draws) > rounding, draws, draws * 0)
    low, high = metrics.interval(draws)
    if low is None:
        return Contrast(value, None, None, None, _NO_INTERVAL)
    defined = draws[np.isfinite(draws)]
    reached = int(np.sum(defined - value >= value - rounding))
    return Contrast(value, low, high, (1 + reached) / (1 + len(defined)))


def _check_same_days(series: Mapping[Key, Positions], used: Sequence[Key]) -> None:
    if not used:
        raise TraderError("nothing to combine", expected="at least one weight that is not 0")
    if lacking := [key for key in used if key not in series]:
        raise TraderError("a weight without a series", got=_said(lacking[0]))
    first, *others = used
    for key in others:
        one, other = series[first], series[key]
        same = np.array_equal(one.next_return, other.next_return, equal_nan=True)
        if not same or tuple(one.windows) != tuple(other.windows):
            raise TraderError("methods measured on different days", got=f"{_said(first)} and {_said(key)}")


def _said(key: object) -> str:
    return ", ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
