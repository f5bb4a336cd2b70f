"""How well forecasts met what came: accuracy and F1 of the movement, MAPE and RMSE of the return, with intervals.

The figures of MSMF's tables. Upstream are the test days of an experiment (``trader.cells``), downstream its tables.
A day's contributions are summed over its symbols before anything is drawn: symbols move together, so a day is what is
resampled, never a symbol of a day. Every figure is a function of sums over days, so that one draw of days serves all
methods and differences are paired.

Letters: K seeds, n days, X symbols, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trader import metrics, resampling
from trader.comparison import Contrast, Figure, judged, widened
from trader.errors import TraderError
from trader.resampling import Columns, Floats

Score = Literal["accuracy", "f1", "mape", "rmse"]

SCORES: tuple[Score, ...] = get_args(Score)
BETTER: Mapping[Score, int] = {"accuracy": 1, "f1": 1, "mape": -1, "rmse": -1}  # +1: more is better
_UNDEFINED: Mapping[Score, str] = {
    "accuracy": "no day with a side whose next close is known",
    "f1": "no day was said to rise, and none rose",
    "mape": "it forecasts no return",
    "rmse": "it forecasts no return",
}


@dataclass(frozen=True, slots=True, eq=False)
class Forecasts:
    """What a method said of n consecutive test days and X symbols, and what came.

    p_up: (K, n, X), NaN where it said nothing.   expected: the same of the return, None where it forecasts none.
    next_return: (n, X) close(d+1)/close(d) − 1, NaN where there is none; such places count nowhere.
    Raises TraderError for columns that do not fit together, or that are infinite.
    """

    p_up: Floats
    next_return: Floats
    expected: Floats | None = None

    def __post_init__(self) -> None:
        shapes = {"p_up": self.p_up.shape[1:], "next_return": self.next_return.shape}
        if self.expected is not None:
            shapes["expected"] = self.expected.shape[1:]
        if len(set(shapes.values())) > 1 or self.p_up.ndim != 3 or not self.next_return.size:
            raise TraderError("columns of unequal length", got=shapes, expected="(seeds, days, symbols)")
        for name, values in (("p_up", self.p_up), ("expected", self.expected), ("next_return", self.next_return)):
            if values is not None and np.isinf(values).any():
                raise TraderError("not a finite number", where=name)

    def seeds(self, chosen: slice) -> Forecasts:
        """Return the same of some seeds."""
        expected = None if self.expected is None else self.expected[chosen]
        return replace(self, p_up=self.p_up[chosen], expected=expected)


def scored(said: Forecasts, *, seed: int, resamples: int = 2000) -> dict[Score, Figure]:
    """Measure a method's accuracy, F1, MAPE and RMSE, each with its 95 % interval over days.

    accuracy: share of the decisions with a side on which the close moved to that side; no rise counts as a fall.
    f1: 2·hits / (said to rise + rose), of the rises; saying "up" every day gets 2q/(1 + q) of it, q the share of rises.
    mape: mean of |close(d)·(1 + r̂) − close(d+1)| / close(d+1), that is |(1 + r̂)/(1 + r) − 1|: of the implied price,
        for a return near zero has no percentage.   rmse: root mean square of r̂ − r.   All as shares of 1.
    Over seeds: of all their decisions together; their spread stands beside.

    Bounds are percentiles of a stationary bootstrap over days. Source: MSMF, section 4; Politis and Romano 1994.
    """
    columns, lengths = _columns(said), [len(said.next_return)]
    estimates = _statistics(resampling.window_sums({"it": columns}, lengths)["it"])
    found = {}
    for name, estimate in estimates.items():
        if not np.isfinite(estimate[0]):
            found[name] = Figure(None, None, None, None, _UNDEFINED[name])
            continue
        block = resampling.block_length([_influence(columns, name)], lengths)
        drawn = _statistics(resampling.resampled_sums({"it": columns}, lengths, block, seed, resamples)["it"])[name]
        low, high = metrics.interval(widened(drawn, estimate, lengths, block))
        found[name] = Figure(float(estimate[0]), low, high, _spread(said, name))
    return {name: found.get(name, Figure(None, None, None, None, _UNDEFINED[name])) for name in SCORES}


def compared(a: Forecasts, b: Forecasts, score: Score, *, seed: int, resamples: int = 2000) -> Contrast:
    """Compare two methods on the same days, with as many seeds of each: the figure of a less that of b.

    The p-value is two-sided, twice the smaller one-sided of ``comparison.contrast``.
    Raises TraderError for methods that were not measured on the same days and symbols.
    """
    if not np.array_equal(a.next_return, b.next_return, equal_nan=True):
        raise TraderError("methods measured on different days")
    count, lengths = min(len(a.p_up), len(b.p_up)), [len(a.next_return)]
    columns = {"a": _columns(a.seeds(slice(count))), "b": _columns(b.seeds(slice(count)))}
    sums = resampling.window_sums(columns, lengths)
    single = {key: _statistics(own).get(score, np.full(1, np.nan)) for key, own in sums.items()}
    if not all(np.isfinite(value[0]) for value in single.values()):
        return Contrast(None, None, None, None, _UNDEFINED[score])
    block = resampling.block_length([_influence(columns["a"], score) - _influence(columns["b"], score)], lengths)
    drawn = resampling.resampled_sums(columns, lengths, block, seed, resamples)
    draws = {key: _statistics(own)[score] for key, own in drawn.items()}
    estimate = single["a"] - single["b"]
    spread = widened(draws["a"] - draws["b"], estimate, lengths, block)
    rounding = 1e-12 * float(abs(single["a"][0]) + abs(single["b"][0]))
    found, other = judged(estimate, spread, rounding), judged(-estimate, -spread, rounding)
    if found.p_value is None or other.p_value is None:
        return found
    return replace(found, p_value=min(1.0, 2 * min(found.p_value, other.p_value)))


def _columns(said: Forecasts) -> Columns:
    """Return what is summed, (n,) each: over symbols, averaged over seeds."""
    came = said.next_return[None]  # (1, n, X)
    side = np.sign(np.nan_to_num(said.p_up, nan=0.5) - 0.5)  # (K, n, X)
    decided = ~np.isnan(came) & (side != 0)
    rose, up = decided & (came > 0), decided & (side > 0)
    right = np.where(side > 0, came > 0, ~(came > 0)) & decided
    found: dict[str, NDArray[Any]] = {"decided": decided, "right": right, "hits": rose & up, "up": up, "rose": rose}
    if said.expected is not None:
        known = ~np.isnan(came) & ~np.isnan(said.expected)
        error = np.where(known, said.expected - came, 0.0)
        share = np.abs(error) / np.where(known, 1 + came, 1.0)
        found |= {"forecast": known, "share": share, "square": error**2}
    return {name: values.astype(np.float64).sum(axis=2).mean(axis=0) for name, values in found.items()}


def _statistics(sums: Mapping[str, Floats]) -> dict[Score, Floats]:
    """Return each figure, (R,) and NaN where undefined, from sums (R, 1)."""
    total = {name: values.sum(axis=1) for name, values in sums.items()}
    found: dict[Score, Floats] = {
        "accuracy": _share(total["right"], total["decided"]),
        "f1": _share(2 * total["hits"], total["up"] + total["rose"]),
    }
    if "forecast" in total:
        found["mape"] = _share(total["share"], total["forecast"])
        found["rmse"] = np.sqrt(_share(total["square"], total["forecast"]))
    return found


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _influence(columns: Columns, score: Score) -> Floats:
    """Return (n,) what each day adds to a figure, to first order and up to a factor; a root's is its square's."""
    part, whole = {
        "accuracy": ("right", ("decided",)),
        "f1": ("hits", ("up", "rose")),
        "mape": ("share", ("forecast",)),
        "rmse": ("square", ("forecast",)),
    }[score]
    under = sum((columns[name] for name in whole), np.zeros(len(columns[part])))
    found: Floats = columns[part] - under * (columns[part].sum() / max(float(under.sum()), 1.0))
    return found


def _spread(said: Forecasts, score: Score) -> float | None:
    """Return the sample standard deviation over seeds of each seed's own figure; None for one seed."""
    single = {str(at): _columns(said.seeds(slice(at, at + 1))) for at in range(len(said.p_up))}
    sums = resampling.window_sums(single, [len(said.next_return)])
    values = [float(_statistics(own)[score][0]) for own in sums.values()]
    return stdev(values) if len(values) > 1 and np.isfinite(values).all() else None
