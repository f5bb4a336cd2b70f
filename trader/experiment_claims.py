"""What an experiment allows to say: the paper's claims, what beats what, and the best Sharpe ratio deflated.

All of it on the contiguous walk-forward, whose test days are several times those of the paper's windows, and with as
many seeds of each method as the one with the fewest: an average over seeds is smoother, and would win by that alone.
``trader.experiment_tables`` gathers the test days, ``trader.claims`` and ``trader.comparison`` judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import statistics

from trader import claims as paper
from trader.claims import Claim
from trader.comparison import (
    Contrast,
    Moments,
    Positions,
    Statistic,
    SuperiorAbility,
    contrast,
    deflated_sharpe,
    holm,
    moments,
    spa,
)
from trader.experiment_tables import Results

CONVINCING = 0.05
_ABLATIONS = {"finin": "complete", "no_news": "no_news", "no_text": "no_text", "no_quantifier": "no_quantifier"}
Walks = Mapping[tuple[str, int], Positions]  # (method, lookback) → what it did


@dataclass(frozen=True, slots=True)
class Difference:
    """How much one method's figure lies above another's on a market, paired on the same days."""

    market: str
    method: str
    against: str
    statistic: Statistic
    found: Contrast


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The paper's claims on each market, FININ (or each reader) against the others, and plain sentences."""

    claims: Sequence[Claim]
    differences: Sequence[Difference]
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """How intervals are drawn."""

    risk_free: float
    seed: int
    resamples: int


def judge(results: Results) -> Verdicts:
    """Judge what an experiment has so far; the same arguments give the same words."""
    asked = results.experiment.request["settings"]["evaluation"]
    seed = int(results.experiment.request["seed"])
    drawn = _Drawn(float(asked["risk_free"]), seed, int(asked["resamples"]))
    walks = {market: _walks(results, market) for market in results.markets}
    if results.target == "same_day":
        found = [one for market, held in walks.items() for one in _readers(market, held, drawn)]
        return Verdicts([], found, [])
    claims: Sequence[Claim] = []
    if set(_ABLATIONS) & {row.key for row in results.rows if 3 in row.tables}:
        held = {market: _ablations(walk) for market, walk in walks.items()}
        claims = paper.judge_claims(held, risk_free=drawn.risk_free, seed=drawn.seed, resamples=drawn.resamples)
    differences = [one for market, walk in walks.items() for one in _beside_finin(market, walk, drawn)]
    return Verdicts(claims, differences, list(_search(results, walks, drawn)))


def _walks(results: Results, market: str) -> Walks:
    """Return what each method and lookback did in the walk-forward of a market."""
    return {
        (place.method, place.lookback): held
        for place, held in results.positions.items()
        if (place.market, place.protocol) == (market, "walkforward")
    }


def _with_seeds(walk: Walks) -> Walks:
    """Return the same with as many seeds of each as the one with the fewest has."""
    fewest = min((len(held.sides) for held in walk.values()), default=1)
    return {
        key: replace(
            held, sides=held.sides[:fewest], forecast=None if held.forecast is None else held.forecast[:fewest]
        )
        for key, held in walk.items()
    }


def _ablations(walk: Walks) -> Walks:
    held = {(_ABLATIONS[method], t): one for (method, t), one in walk.items() if method in _ABLATIONS}
    return _with_seeds(held)


def _beside_finin(market: str, walk: Walks, drawn: _Drawn) -> Iterator[Difference]:
    """Compare FININ with each other method by the mean Sharpe ratio over the lookbacks that both have."""
    finin = {t for method, t in walk if method == "finin"}
    for other in dict.fromkeys(method for method, _ in walk if method != "finin"):
        shared = sorted(finin & {t for method, t in walk if method == other})
        if shared:
            pair = _with_seeds({(method, t): walk[method, t] for method in ("finin", other) for t in shared})
            weights = {key: (1 if key[0] == "finin" else -1) / len(shared) for key in pair}
            yield Difference(market, "finin", other, "sharpe", _contrast(pair, weights, "sharpe", drawn))


def _readers(market: str, walk: Walks, drawn: _Drawn) -> Iterator[Difference]:
    """Compare each method's same-day correlation with that of the ridge sketch."""
    for key in walk:
        if key[0] not in ("ridge", "always_buy") and ("ridge", key[1]) in walk:
            pair = _with_seeds({key: walk[key], ("ridge", key[1]): walk["ridge", key[1]]})
            found = _contrast(pair, {key: 1.0, ("ridge", key[1]): -1.0}, "correlation", drawn)
            yield Difference(market, key[0], "ridge", "correlation", found)


def _contrast(pair: Walks, weights: Mapping[tuple[str, int], float], of: Statistic, drawn: _Drawn) -> Contrast:
    return contrast(pair, weights, of, risk_free=drawn.risk_free, seed=drawn.seed, resamples=drawn.resamples)


def _search(results: Results, walks: Mapping[str, Walks], drawn: _Drawn) -> Iterator[str]:
    """Say whether the best of all methods beats Always Buy, and what its Sharpe ratio is worth given the search."""
    titles = {row.key: row.title for row in results.rows}
    tested: dict[str, SuperiorAbility] = {}
    ratios: dict[str, Moments] = {}
    count: dict[str, int] = {}
    for market, walk in walks.items():
        single = _with_seeds(walk)
        named = {f"{titles[method]} at t = {t}": held for (method, t), held in single.items() if method != "always_buy"}
        benchmark = next((held for (method, _), held in single.items() if method == "always_buy"), None)
        count[market] = len(named)
        if benchmark is not None and len(named) > 1:
            tested[market] = spa(benchmark, named, seed=drawn.seed, resamples=drawn.resamples)
        for name, held in named.items():
            if (one := moments(held, risk_free=drawn.risk_free)) is not None:
                ratios[f"{name} on {market}"] = one
    adjusted = holm({market: one.consistent for market, one in tested.items()})
    for market, ability in tested.items():
        word = "is" if adjusted[market] < CONVINCING else "is not"
        yield (
            f"{market}: the best of {count[market]} methods and lookbacks by mean daily return "
            f"({ability.best or 'none'}) {word} shown to earn more than Always Buy (superior predictive ability, "
            f"p = {adjusted[market]:.2f} after Holm over the markets)."
        )
    if len(ratios) > 1:
        yield _deflated(ratios)


def _deflated(ratios: Mapping[str, Moments]) -> str:
    name, best = max(ratios.items(), key=lambda item: item[1].daily_sharpe)
    variance = statistics.variance(one.daily_sharpe for one in ratios.values())
    found = deflated_sharpe(
        best.daily_sharpe, variance, len(ratios), days=best.days, skew=best.skew, kurtosis=best.kurtosis
    )
    figures = [f"{value:.3f}".replace("-", "−") for value in (best.daily_sharpe, found.expected_maximum)]
    return (
        f"The best Sharpe ratio of all is that of {name}, {figures[0]} a day over {best.days:,} days. The best of "
        f"{len(ratios)} worthless ones (all methods, lookbacks and markets, one seed each; V = {variance:.2g}) would "
        f"be expected at {figures[1]}, so its deflated Sharpe ratio, the probability that the true one is above 0 "
        f"given the search, is {found.probability:.2f}; from 0.95 on it would convince."
    )
