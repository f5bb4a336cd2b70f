"""How good a run was, in two kinds of figures that are never mixed, each with its 95 % interval.

Of the signals ("signals"): direction against the next close, close to close, no costs; the papers' figures.
Of the account ("net", "gross"): what the executed equity did, after and before costs.
Beside both stands Always Buy (long every day, the same days, the same costs), and for the account the excess
over it. Upstream are the broker's sessions and the signals; downstream the ledger and the table on the screen.

A window is a stretch of consecutive sessions; a walk-forward run is one window, the papers' protocol is ten.
Every statistic is a function of sums over days, so one pass draws the resampled days and the same functions turn
their sums into the estimate and into its distribution. Letters: n days, W windows, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trader.errors import NoData, TraderError
from trader.resampling import Columns, Floats, Sums, block_length, resampled_sums, starts, window_sums

DAYS_A_YEAR = 252
RISK_FREE = 0.02
_LEVEL = (0.025, 0.975)
_WITH_INTERVAL = (
    *("accuracy", "paper_pnl", "paper_sharpe", "pnl", "total_return", "sharpe", "annual_return"),
    *("excess_sharpe", "excess_return"),
)

Of = Literal["signals", "net", "gross", "always_buy", "excess"]

_ACCOUNTS: tuple[Of, ...] = ("net", "gross", "always_buy")
_COLUMNS = ("side", "next_return", "equity", "always_buy_equity", "costs", "traded", "exposure")


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure; ``low`` and ``high`` bound its 95 % interval; None where it is undefined or has none."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    of: Of


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationInputs:
    """The n days of a run, oldest first, the days of all windows one after another.

    side: (n,) −1, 0, +1.   next_return: (n,) close(d+1)/close(d) − 1, NaN where that close is not known yet.
    equity, always_buy_equity: (n,) money at the close, net of costs.
    costs: (n,) money: the session's commission, slippage and borrow.   traded: (n,) money: Σ |size · price| of fills.
    exposure: (n,) position value over equity at the close, signed.
    start_cash: what each window's account starts with.   windows: lengths in days, summing to n; None is one window.
    risk_free: a year, as a share.
    """

    side: ArrayLike
    next_return: ArrayLike
    equity: ArrayLike
    always_buy_equity: ArrayLike
    costs: ArrayLike
    traded: ArrayLike
    exposure: ArrayLike
    start_cash: float
    windows: Sequence[int] | None = None
    risk_free: float = RISK_FREE


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every figure of a run, the verdict in words, and how the intervals were drawn (block_length in days)."""

    metrics: tuple[Metric, ...]
    verdict: str
    sharpe_definition: str
    block_length: int
    resamples: int

    def get(self, name: str, of: Of) -> Metric:
        """Return one figure; raise KeyError if there is none of this name."""
        for metric in self.metrics:
            if (metric.name, metric.of) == (name, of):
                return metric
        raise KeyError(f"{name} of {of}")

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts: figures of signals, net and excess by name, those of gross and always_buy one level down.

        Each figure is {"value", "low", "high"}, null where undefined.
        """
        found: dict[str, Any] = {"always_buy": {}, "gross": {}}
        for metric in self.metrics:
            figure = {"value": metric.value, "low": metric.low, "high": metric.high}
            found.get(metric.of, found)[metric.name] = figure
        return found | {
            "verdict": self.verdict,
            "sharpe_definition": self.sharpe_definition,
            "block_length": self.block_length,
            "resamples": self.resamples,
        }


def sharpe_definition(risk_free: float = RISK_FREE) -> str:
    """Say in one line what ``sharpe`` and ``paper_sharpe`` are, to be printed beside them."""
    excess = f"daily return − {risk_free:g}/{DAYS_A_YEAR}"
    return f"√{DAYS_A_YEAR} · mean({excess}) / sample standard deviation of the daily return"


def verdict(excess_sharpe: Metric) -> str:
    """Say in words what the paired interval of the excess Sharpe ratio over Always Buy allows to say."""
    value, low, high = excess_sharpe.value, excess_sharpe.low, excess_sharpe.high
    if value is None or low is None or high is None:
        return "Cannot be compared with Always Buy: a Sharpe ratio is undefined, its returns do not vary."
    if value == low == high == 0:
        return "The same as Always Buy on every day."
    word = "Better than" if low > 0 else "Worse than" if high < 0 else "Cannot be told from"
    figures = f"excess Sharpe {value:.2f}, 95 % interval {low:.2f} to {high:.2f}".replace("-", "−")
    return f"{word} Always Buy: {figures}."


def signal_metrics(
    side: ArrayLike, next_return: ArrayLike, windows: Sequence[int] | None = None, *, risk_free: float = RISK_FREE
) -> dict[str, float | None]:
    """Measure signals against the next close, close to close and without costs.

    side: (n,) −1, 0, +1.   next_return: (n,) close(d+1)/close(d) − 1, NaN where not known yet; such days count nowhere.

    accuracy: share of the days with a side on which the close moved to that side; an unchanged close counts as
        not up. Days without a side are left out.
    paper_pnl: Σ side · (close(d+1) − close(d)) / close(d) over a window, then the mean over windows: a share of a
        constant stake. Days without a side count 0. Source: FININ eq. 8, read as direction (as printed, a correct
        short would count as a loss); summed in each of its ten test windows and averaged, as its section 5.4 says.
    paper_sharpe: √252 · mean(side · return − risk_free/252) / sample standard deviation in a window, then the mean
        over windows. None where any window's returns do not vary. Source: FININ eq. 9, its R_f = 0.02 read as a year's.
    """
    lengths = window_lengths(len(np.atleast_1d(side)), windows)
    sums = window_sums({"signals": signal_columns(_floats(side), _floats(next_return))}, lengths)
    return {name: _number(values[0]) for name, values in signal_statistics(sums["signals"], risk_free).items()}


def equity_metrics(
    equity: ArrayLike, start_cash: float, windows: Sequence[int] | None = None, *, risk_free: float = RISK_FREE
) -> dict[str, float | None]:
    """Measure an account by its equity at each close; of several windows the days are joined to one account.

    equity: (n,) money, each window's account beginning with start_cash.

    pnl: money.   total_return: pnl over start_cash.   annual_return: geometric, (1 + total_return)^(252/n) − 1.
    sharpe: see ``sharpe_definition``; None where the daily returns do not vary.
    annual_volatility: √252 · sample standard deviation of daily returns.
    max_drawdown: largest fall from a high of the equity, as a share of that high, ≥ 0.
    An account at 0 or below has lost everything: −100 % that day and 0 from then on.
    """
    values = _floats(equity)
    lengths = window_lengths(len(values), windows)
    returns = _returns(values, _opening(values, start_cash, lengths), lengths)
    sums = window_sums({"account": _account_columns(returns)}, lengths)
    found = _account_statistics(sums["account"], start_cash, risk_free)
    return {name: _number(values[0]) for name, values in found.items()} | {"max_drawdown": _max_drawdown(returns)}


def evaluate(inputs: EvaluationInputs, *, seed: int, resamples: int = 2000) -> Report:
    """Compute every figure of a run, with 95 % stationary-bootstrap intervals.

    Blocks are drawn within windows, never across their joins, and all series share each draw, so the interval of the
    excess over Always Buy is the paired one. Block length: the largest of the optima for the series, at most a third
    of the shortest window. Bounds are percentiles; None where over 5 % of the draws leave the figure undefined.

    gross: daily net returns with the day's costs, over the equity before that day, added back.
    excess_sharpe, excess_return: net less Always Buy's, of sharpe and annual_return.
    turnover: mean daily traded money over the equity before that day, times 252: equities a year.
    exposure: mean of |position value / equity|.   costs: money.
    hit_rate: share of gaining sessions among those with a position at this close or the one before.
    The rest: ``signal_metrics`` and ``equity_metrics``. Always Buy's accuracy is over the days on which the model
    took a side. Same arguments, same figures.

    Raises NoData without a day, TraderError for columns that do not fit together or are not finite.
    Source: Politis and Romano 1994; block length Patton, Politis and White 2009, by ``arch.bootstrap``.
    """
    days = _checked(inputs)
    lengths = window_lengths(len(days["equity"]), inputs.windows)
    accounts = _accounts(days, inputs.start_cash, lengths)
    always = np.ones_like(days["side"])
    columns = {
        "signals": signal_columns(days["side"], days["next_return"]),
        "always_signals": signal_columns(always, days["next_return"], decided=days["side"] != 0),
    } | {of: _account_columns(returns) for of, returns in accounts.items()}
    series = [columns["signals"]["x"], columns["always_signals"]["x"], *accounts.values()]
    block = block_length(series, lengths)
    estimate = _statistics(window_sums(columns, lengths), inputs)
    draws = _statistics(resampled_sums(columns, lengths, block, seed, resamples), inputs)
    metrics = [_metric(name, of, estimate[name, of], draws[name, of]) for name, of in estimate]
    metrics += _plain_metrics(days, accounts, inputs.start_cash, lengths)
    excess = next(metric for metric in metrics if metric.name == "excess_sharpe")
    return Report(
        metrics=tuple(metrics),
        verdict=verdict(excess),
        sharpe_definition=sharpe_definition(inputs.risk_free),
        block_length=block,
        resamples=resamples,
    )


# From days to columns: what is summed


def _checked(inputs: EvaluationInputs) -> dict[str, Floats]:
    days = {name: _floats(getattr(inputs, name)) for name in _COLUMNS}
    if {len(values) for values in days.values()} != {len(days["equity"])}:
        raise TraderError("columns of unequal length", got={name: len(values) for name, values in days.items()})
    for name, values in days.items():
        bad = ~np.isfinite(values) & ~(np.isnan(values) & (name == "next_return"))
        if bad.any():
            raise TraderError("not a finite number", where=f"{name}, day {int(np.argmax(bad)) + 1}", got=values[bad][0])
    if not np.isin(days["side"], (-1, 0, 1)).all():
        raise TraderError("a side must be −1, 0 or +1", got=float(days["side"][~np.isin(days["side"], (-1, 0, 1))][0]))
    if not inputs.start_cash > 0:
        raise TraderError("an account must start with money", got=inputs.start_cash, expected="more than 0")
    return days


def _floats(values: ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def window_lengths(days: int, windows: Sequence[int] | None) -> list[int]:
    """Return the windows' lengths in days, None being one window; raise TraderError where they do not sum to days."""
    if not days:
        raise NoData("no session to measure")
    lengths = [days] if windows is None else [int(length) for length in windows]
    if sum(lengths) != days or min(lengths, default=0) < 1:
        raise TraderError("windows do not cover the days", got=lengths, expected=f"lengths ≥ 1 that sum to {days}")
    return lengths


def _opening(equity: Floats, start_cash: float, lengths: Sequence[int]) -> Floats:
    """Return (n,) the equity before each day."""
    before = np.concatenate([[start_cash], equity[:-1]])
    before[starts(lengths)] = start_cash
    return before


def _returns(equity: Floats, opening: Floats, lengths: Sequence[int]) -> Floats:
    """Return (n,) daily returns; an account that has reached 0 stays there."""
    alive = np.concatenate([np.minimum.accumulate(part > 0) for part in np.split(opening, starts(lengths)[1:])])
    return np.where(alive, np.maximum(equity / np.where(alive, opening, 1.0) - 1, -1.0), 0.0)


def _accounts(days: Mapping[str, Floats], start_cash: float, lengths: Sequence[int]) -> dict[Of, Floats]:
    """Return daily returns (n,) net, gross of costs, and of Always Buy."""
    opening = _opening(days["equity"], start_cash, lengths)
    always = days["always_buy_equity"]
    return {
        "net": _returns(days["equity"], opening, lengths),
        "gross": _returns(days["equity"] + days["costs"], opening, lengths),
        "always_buy": _returns(always, _opening(always, start_cash, lengths), lengths),
    }


def signal_columns(side: Floats, next_return: Floats, decided: NDArray[np.bool_] | None = None) -> Columns:
    """Return what ``signal_statistics`` needs summed, (n,) each: days, decided, right (0 or 1), x, xx (x: return)."""
    known = ~np.isnan(next_return)
    decided = known & (side != 0 if decided is None else decided)
    right = np.where(side > 0, next_return > 0, ~(next_return > 0)) & decided
    x = np.where(known, side * next_return, 0.0)
    flags = {"days": known, "decided": decided, "right": right}
    return {name: flag.astype(np.float64) for name, flag in flags.items()} | {"x": x, "xx": x * x}


def _account_columns(returns: Floats) -> Columns:
    lost = returns <= -1
    log = np.log1p(np.where(lost, 0.0, returns))
    return {"days": np.ones_like(returns), "x": returns, "xx": returns**2, "log": log, "lost": lost.astype(np.float64)}


# From sums to figures, the same for the estimate (R = 1) and its distribution


def _statistics(sums: Sums, inputs: EvaluationInputs) -> dict[tuple[str, Of], Floats]:
    """Return each figure that has a distribution, (R,)."""
    found: dict[tuple[str, Of], Floats] = {}
    pairs: tuple[tuple[Of, str], ...] = (("signals", "signals"), ("always_buy", "always_signals"))
    for of, key in pairs:
        found |= {(name, of): values for name, values in signal_statistics(sums[key], inputs.risk_free).items()}
    for of in _ACCOUNTS:
        figures = _account_statistics(sums[of], inputs.start_cash, inputs.risk_free)
        found |= {(name, of): values for name, values in figures.items()}
    found["excess_sharpe", "excess"] = found["sharpe", "net"] - found["sharpe", "always_buy"]
    found["excess_return", "excess"] = found["annual_return", "net"] - found["annual_return", "always_buy"]
    return found


def signal_statistics(sums: Mapping[str, Floats], risk_free: float) -> dict[str, Floats]:
    """Return the figures of ``signal_metrics``, (R,) each and NaN where undefined, from sums (R, W)."""
    decided = sums["decided"].sum(axis=1)
    right = sums["right"].sum(axis=1)
    return {
        "accuracy": np.divide(right, decided, out=np.full_like(right, np.nan), where=decided > 0),
        "paper_pnl": sums["x"].mean(axis=1),
        "paper_sharpe": _sharpe(sums["days"], sums["x"], sums["xx"], risk_free).mean(axis=1),
    }


def _account_statistics(sums: Mapping[str, Floats], start_cash: float, risk_free: float) -> dict[str, Floats]:
    days, x, xx, log, lost = (sums[name].sum(axis=1) for name in ("days", "x", "xx", "log", "lost"))
    growth = np.where(lost > 0, 0.0, np.exp(log))
    return {
        "pnl": start_cash * (growth - 1),
        "total_return": growth - 1,
        "sharpe": _sharpe(days, x, xx, risk_free),
        "annual_return": growth ** (DAYS_A_YEAR / days) - 1,
        "annual_volatility": np.sqrt(DAYS_A_YEAR * sample_variance(days, x, xx)),
    }


def sample_variance(days: Floats, x: Floats, xx: Floats) -> Floats:
    """Return the sample variance from n, Σx and Σx²; 0 where it is nothing but rounding, NaN for n < 2."""
    variance = (xx - x * x / np.maximum(days, 1)) / np.where(days > 1, days - 1, np.nan)
    return np.where(variance > 1e-12 * xx / np.maximum(days, 1), variance, variance * 0)


def _sharpe(days: Floats, x: Floats, xx: Floats, risk_free: float) -> Floats:
    variance = sample_variance(days, x, xx)
    deviation = np.sqrt(np.where(variance > 0, variance, np.nan))
    excess: Floats = x / np.maximum(days, 1) - risk_free / DAYS_A_YEAR
    return excess / deviation * math.sqrt(DAYS_A_YEAR)


def interval(draws: Floats) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % percentile interval of draws (R,); (None, None) where over 5 % of them are undefined."""
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.95 * len(draws) or not len(defined):
        return None, None
    low, high = np.quantile(defined, _LEVEL)
    return float(low), float(high)


def _metric(name: str, of: Of, estimate: Floats, draws: Floats) -> Metric:
    value = _number(estimate[0])
    low, high = (None, None) if value is None or name not in _WITH_INTERVAL else interval(draws)
    return Metric(name, value, low, high, of)


def _plain_metrics(
    days: Mapping[str, Floats], accounts: Mapping[Of, Floats], start_cash: float, lengths: Sequence[int]
) -> list[Metric]:
    """Return the figures that carry no interval."""
    opening = _opening(days["equity"], start_cash, lengths)
    turnover = np.divide(days["traded"], opening, out=np.zeros_like(opening), where=opening > 0).mean() * DAYS_A_YEAR
    before = np.concatenate([[0.0], days["exposure"][:-1]])
    before[starts(lengths)] = 0.0
    held = (days["exposure"] != 0) | (before != 0)
    net = {
        "turnover": float(turnover),
        "exposure": float(np.abs(days["exposure"]).mean()),
        "hit_rate": float((accounts["net"] > 0)[held].mean()) if held.any() else None,
        "costs": float(days["costs"].sum()),
    }
    falls = [Metric("max_drawdown", _max_drawdown(returns), None, None, of) for of, returns in accounts.items()]
    return falls + [Metric(name, value, None, None, "net") for name, value in net.items()]


def _max_drawdown(returns: Floats) -> float:
    equity = np.concatenate([[1.0], np.cumprod(1 + returns)])
    return float(np.max(1 - equity / np.maximum.accumulate(equity)))


def _number(value: np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None
