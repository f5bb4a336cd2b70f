"""How good the forecasts of many symbols were: right or wrong, and in the right order, each with its 95 % interval.

Beside ``trader.metrics``, which measures an account and the signals of one symbol. The bootstrap draws SESSIONS, all
symbols of a session together: what moves a market moves them all, so they are no independent observations.
Letters: D sessions, K symbols, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trader.errors import NoData, TraderError
from trader.metrics import Metric, Of, interval
from trader.resampling import Columns, Floats, block_length, resampled_sums, window_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What was said of K symbols on D sessions, oldest first, and what came; (D, K) each, NaN where there is none.

    p_up: P(close(d+1) > close(d)).   expected_return: of that close over this, less 1.   next_return: what it was.
    """

    p_up: Floats
    expected_return: Floats
    next_return: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionReport:
    """Every figure of the decisions, and how the intervals were drawn (block_length in sessions).

    decisions: with a side and a known next close, over ``sessions`` sessions.   ranked: sessions with a rank
    correlation.   score: what was ranked, "expected return", "P(up)" or both, by the session.
    """

    metrics: tuple[Metric, ...]
    decisions: int
    sessions: int
    ranked: int
    score: str
    block_length: int
    resamples: int

    def get(self, name: str, of: Of = "signals") -> Metric:
        """Return one figure; raise KeyError if there is none of this name."""
        for metric in self.metrics:
            if (metric.name, metric.of) == (name, of):
                return metric
        raise KeyError(f"{name} of {of}")

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts: figures of the signals by name, those of Always Buy one level down."""
        found: dict[str, Any] = {"always_buy": {}}
        for metric in self.metrics:
            figure = {"value": metric.value, "low": metric.low, "high": metric.high}
            found.get(metric.of, found)[metric.name] = figure
        counts = {"decisions": self.decisions, "sessions": self.sessions, "ranked_sessions": self.ranked}
        return found | counts | {"score": self.score, "block_length": self.block_length}


def evaluate_decisions(said: Decisions, *, seed: int, resamples: int = 2000) -> DecisionReport:
    """Measure the decisions of many symbols, with 95 % stationary-bootstrap intervals over sessions.

    A decision counts where there is a side (P(up) is not a half) and the next close is known; an unchanged close is
    not up. accuracy: share right.   f1: of up, 2·tp / (2·tp + fp + fn).   mcc: Matthews' correlation of side and
    movement; undefined where one of them never changes.   Always Buy: the same decisions, all up.
    rank_ic: the mean over sessions of Spearman's correlation between score and next return over the symbols of a
    session; the score is the expected return where every symbol forecast in that session has one, else P(up).
    Sessions on which either does not vary have none.   hit_sessions: share of ranked sessions on which it is above 0.

    Raises NoData without a session, TraderError for arrays of other shapes.
    Source: Politis and Romano 1994, by ``arch.bootstrap``.
    """
    D = len(said.p_up)
    if not D:
        raise NoData("no session to measure")
    if not said.p_up.shape == said.expected_return.shape == said.next_return.shape:
        raise TraderError("decisions of unequal shape", got=(said.p_up.shape, said.next_return.shape))
    counts = _counts(said.p_up, said.next_return)
    score, kind = _score(said)
    ic = np.array([spearman(one, came) for one, came in zip(score, said.next_return, strict=True)])
    ranked = ~np.isnan(ic)
    order = {"ic": np.where(ranked, ic, 0.0), "days": ranked.astype(np.float64), "above": (ic > 0).astype(np.float64)}
    columns: dict[str, Columns] = {"counts": counts, "order": order}
    decided = counts["tp"] + counts["fp"] + counts["tn"] + counts["fn"]
    right = np.divide(counts["tp"] + counts["tn"], decided, out=np.full(D, 0.5), where=decided > 0)
    block = block_length([right, order["ic"]], [D])
    estimate = _statistics(window_sums(columns, [D]))
    draws = _statistics(resampled_sums(columns, [D], block, seed, resamples))
    return DecisionReport(
        metrics=tuple(_metric(name, of, estimate[name, of], draws[name, of]) for name, of in estimate),
        decisions=int(decided.sum()),
        sessions=int((decided > 0).sum()),
        ranked=int(ranked.sum()),
        score=kind,
        block_length=block,
        resamples=resamples,
    )


def spearman(score: Floats, came: Floats) -> float:
    """Return the rank correlation of two (K,) arrays where both are known; NaN where either does not vary.

    Equal values have the mean of their ranks.

    >>> spearman(np.array([0.1, 0.2, 0.3, np.nan]), np.array([-1.0, 5.0, 9.0, 2.0]))
    1.0
    """
    both = ~(np.isnan(score) | np.isnan(came))
    a, b = (_ranks(values[both]) for values in (score, came))
    a, b = a - (len(a) - 1) / 2, b - (len(b) - 1) / 2
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else float("nan")


def _ranks(values: Floats) -> Floats:
    """Return ranks from 0; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Floats = (last - (count + 1) / 2)[place]
    return ranks


def _counts(p_up: Floats, next_return: Floats) -> Columns:
    """Return by session how many decisions were up and up came (tp), and so on, (D,) each."""
    counted = ~np.isnan(p_up) & (p_up != 0.5) & ~np.isnan(next_return)
    said, came = p_up > 0.5, next_return > 0
    cells = {"tp": said & came, "fp": said & ~came, "tn": ~said & ~came, "fn": ~said & came}
    return {name: (cell & counted).sum(axis=1).astype(np.float64) for name, cell in cells.items()}


def _score(said: Decisions) -> tuple[Floats, str]:
    """Return what is ranked (D, K), and its name."""
    forecast = ~np.isnan(said.p_up)
    known: NDArray[np.bool_] = ~np.isnan(said.expected_return) | ~forecast
    whole = np.all(known, axis=1) & np.any(forecast, axis=1)
    score = np.where(whole[:, None], said.expected_return, said.p_up)
    some = whole[forecast.any(axis=1)]
    kind = "expected return" if some.all() and len(some) else "expected return or P(up)" if some.any() else "P(up)"
    return np.where(forecast, score, np.nan), kind


def _statistics(sums: Mapping[str, Columns]) -> dict[tuple[str, Of], Floats]:
    """Return each figure, (R,) and NaN where undefined, from sums (R, 1)."""
    tp, fp, tn, fn = (sums["counts"][name][:, 0] for name in ("tp", "fp", "tn", "fn"))
    ic, days, above = (sums["order"][name][:, 0] for name in ("ic", "days", "above"))
    ups, downs = tp + fn, fp + tn
    margins = np.sqrt((tp + fp) * (tn + fn) * ups * downs)
    return {
        ("accuracy", "signals"): _share(tp + tn, ups + downs),
        ("f1", "signals"): _share(2 * tp, 2 * tp + fp + fn),
        ("mcc", "signals"): _share(tp * tn - fp * fn, margins),
        ("rank_ic", "signals"): _share(ic, days),
        ("hit_sessions", "signals"): _share(above, days),
        ("accuracy", "always_buy"): _share(ups, ups + downs),
        ("f1", "always_buy"): _share(2 * ups, 2 * ups + downs),
    }


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _metric(name: str, of: Of, estimate: Floats, draws: Floats) -> Metric:
    if not np.isfinite(estimate[0]):
        return Metric(name, None, None, None, of)
    low, high = interval(draws)
    return Metric(name, float(estimate[0]), low, high, of)
