"""The FININ paper's claims, tested on the days at hand: what each says as a contrast of Sharpe ratios, and what it got.

Upstream is ``trader.comparison``; downstream the experiment's page. A claim is a weighted sum of the Sharpe ratios of
(method, lookback) pairs that would be above 0 were the claim true. The weights are data, so that the paper's own
tables can be put through the same sums. Nothing here says that a claim is false because it was not shown to be true.
Source: FININ, sections 6.2 to 6.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import math
from typing import Literal, TypeVar

from trader.comparison import Contrast, Positions, contrast, holm
from trader.metrics import RISK_FREE

Method = Literal["complete", "no_news", "no_text", "no_quantifier"]
Weights = dict[tuple[str, int], float]  # (method, lookback in days) → weight
Held = TypeVar("Held")

LEVEL = 0.05
# How the tables name the rows that the claims are about.
ROWS: Mapping[str, str] = {
    "complete": "FININ",
    "no_news": "− news",
    "no_text": "− text",
    "no_quantifier": "− quantifier",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a claim says.

    words: in plain English.   measure: what its figure is.   methods: whose Sharpe ratios it needs.
    lookbacks: the fewest that it needs.   weights: of the lookbacks, ascending, → the contrast.
    """

    name: str
    words: str
    measure: str
    methods: tuple[Method, ...]
    lookbacks: int
    weights: Callable[[Sequence[int]], Weights]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim on one market: its figure with 95 % interval, one-sided p-values (single, and after Holm), and verdict.

    lookbacks: those that all its methods have, in days.   days: test days.   reason: why it could not be tested, or "".
    verdict: "holds", "does not hold", "cannot be told on this much data (n test days)" or "cannot be tested: why".
    """

    name: str
    market: str
    statement: str
    measure: str
    lookbacks: tuple[int, ...]
    days: int
    statistic: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Say no more than the figures allow: a claim that was not shown is refuted by its whole interval alone."""
        if self.statistic is None or self.high is None or self.p_holm is None:
            return f"cannot be tested: {self.reason}"
        if self.p_holm < LEVEL:
            return "holds"
        return "does not hold" if self.high < 0 else f"cannot be told on this much data ({self.days:,} test days)"

    @property
    def sentence(self) -> str:
        """One plain sentence with the claim's figures."""
        found = f"{self.market}: “{self.statement}” {self.verdict}"
        if self.statistic is None or self.low is None or self.high is None or self.p_holm is None:
            return f"{found}."
        figures = f"{self.measure} {self.statistic:+.2f}, 95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{found}: {figures}, p {_p(self.p_holm)} after Holm.".replace("-", "−")


def judge_claims(
    markets: Mapping[str, Mapping[tuple[str, int], Positions]],
    *,
    risk_free: float = RISK_FREE,
    seed: int,
    resamples: int = 2000,
) -> list[Claim]:
    """Test every claim on every market, in the order of ``STATEMENTS`` within a market.

    markets: market → (method, lookback in days) → what it did on that market's test days; methods are named as in
    ``Method``, others are left alone. A claim uses the lookbacks that all its methods have. P-values are adjusted over
    all claims that could be tested on all markets (Holm); the fifth, "news helps", is in that family though the paper
    makes no claim of it on its own. Raises TraderError where methods of a market were not measured on the same days.
    """
    found = [
        _tested(statement, market, series, risk_free, seed, resamples)
        for market, series in markets.items()
        for statement in STATEMENTS
    ]
    adjusted = holm({at: claim.p_value for at, claim in enumerate(found) if claim.p_value is not None})
    return [replace(claim, p_holm=adjusted.get(at)) for at, claim in enumerate(found)]


def weighted(statement: Statement, figures: Mapping[tuple[str, int], float]) -> float | None:
    """Return a claim's figure from Sharpe ratios as printed, such as the paper's own; None where some are missing."""
    lookbacks = shared_lookbacks(statement, figures)
    if len(lookbacks) < statement.lookbacks:
        return None
    return math.fsum(weight * figures[key] for key, weight in statement.weights(lookbacks).items())


def shared_lookbacks(statement: Statement, series: Mapping[tuple[str, int], Held]) -> tuple[int, ...]:
    """Return the lookbacks in days, ascending, that all methods of a claim have."""
    each = [{lookback for method, lookback in series if method == wanted} for wanted in statement.methods]
    return tuple(sorted(set.intersection(*each)))


# What each claim sums


def slope(method: str, lookbacks: Sequence[int]) -> Weights:
    """Return the weights of the least-squares slope of a method's Sharpe ratio on log2 of its lookback in days."""
    places = [math.log2(lookback) for lookback in lookbacks]
    centre = math.fsum(places) / len(places)
    spread = math.fsum((place - centre) ** 2 for place in places)
    slopes = [(place - centre) / spread for place in places]
    return {(method, lookback): weight for lookback, weight in zip(lookbacks, slopes, strict=True)}


def mean_difference(better: str, worse: str, lookbacks: Sequence[int]) -> Weights:
    """Return the weights of one method's Sharpe ratio less another's, mean over lookbacks."""
    share = 1 / len(lookbacks)
    return {(better, t): share for t in lookbacks} | {(worse, t): -share for t in lookbacks}


def growing_difference(better: str, worse: str, lookbacks: Sequence[int]) -> Weights:
    """Return the weights of one method's lead over another at the longest lookback less that at the shortest."""
    shortest, longest = lookbacks[0], lookbacks[-1]
    return {(better, longest): 1.0, (worse, longest): -1.0, (better, shortest): -1.0, (worse, shortest): 1.0}


STATEMENTS: tuple[Statement, ...] = (
    Statement(
        name="long memory",
        words="the Sharpe ratio rises with the lookback",
        measure="Sharpe gained each time the lookback doubles",
        methods=("complete",),
        lookbacks=2,
        weights=lambda lookbacks: slope("complete", lookbacks),
    ),
    Statement(
        name="news at long lookbacks",
        words="news helps most at long lookbacks",
        measure="Sharpe gained from news at the longest lookback less at the shortest",
        methods=("complete", "no_news"),
        lookbacks=2,
        weights=lambda lookbacks: growing_difference("complete", "no_news", lookbacks),
    ),
    Statement(
        name="news helps",
        words="news helps, all lookbacks taken together",
        measure="Sharpe gained from news, mean over lookbacks",
        methods=("complete", "no_news"),
        lookbacks=1,
        weights=lambda lookbacks: mean_difference("complete", "no_news", lookbacks),
    ),
    Statement(
        name="averaging hurts",
        words="averaging the news is worse than no news",
        measure="Sharpe without news less with averaged news, mean over lookbacks",
        methods=("no_news", "no_quantifier"),
        lookbacks=1,
        weights=lambda lookbacks: mean_difference("no_news", "no_quantifier", lookbacks),
    ),
    Statement(
        name="text beyond sentiment",
        words="sentiment alone misses what text holds",
        measure="Sharpe gained from text, mean over lookbacks",
        methods=("complete", "no_text"),
        lookbacks=1,
        weights=lambda lookbacks: mean_difference("complete", "no_text", lookbacks),
    ),
)


def _tested(
    statement: Statement,
    market: str,
    series: Mapping[tuple[str, int], Positions],
    risk_free: float,
    seed: int,
    resamples: int,
) -> Claim:
    """Return a claim on one market, its p-value not yet adjusted."""
    lookbacks, reason = shared_lookbacks(statement, series), _why_not(statement, series)
    found, days = Contrast(None, None, None, None, reason), 0
    if not reason:
        days = len(series[statement.methods[0], lookbacks[0]].next_return)
        weights = statement.weights(lookbacks)
        found = contrast(series, weights, "sharpe", risk_free=risk_free, seed=seed, resamples=resamples)
    return Claim(
        name=statement.name,
        market=market,
        statement=statement.words,
        measure=statement.measure,
        lookbacks=lookbacks,
        days=days,
        statistic=found.value,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        p_holm=None,
        reason=found.reason,
    )


def _why_not(statement: Statement, series: Mapping[tuple[str, int], Held]) -> str:
    """Return why a claim cannot be tested, or ""."""
    there = {method for method, _ in series}
    missing = [f"“{ROWS[method]}”" for method in statement.methods if method not in there]
    if missing:
        return f"{' and '.join(missing)} {'was' if len(missing) == 1 else 'were'} not run"
    lookbacks = len(shared_lookbacks(statement, series))
    if lookbacks < statement.lookbacks:
        return f"it needs {statement.lookbacks} lookbacks that all its methods have, and there are {lookbacks}"
    return ""


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
