"""What an experiment allows to say: the paper's claims, whether anything beats Always Buy, the best Sharpe deflated.

All of it on the contiguous walk-forward, whose test days are several times those of the paper's windows.
``trader.experiment_tables`` gathers the test days, ``trader.claims`` and ``trader.comparison`` judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import statistics

from trader import claims as paper
from trader.claims import Claim
from trader.comparison import Moments, Positions, contrast, deflated_sharpe, moments, spa
from trader.experiment_tables import Place, Results

CONVINCING = 0.05
_ABLATIONS = {"finin": "complete", "no_news": "no_news", "no_text": "no_text", "no_quantifier": "no_quantifier"}


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The paper's claims on each market, and plain sentences about all methods together."""

    claims: Sequence[Claim]
    sentences: Sequence[str]


def judge(results: Results) -> Verdicts:
    """Judge what an experiment has so far; the same arguments give the same words."""
    seed = int(results.experiment.request["seed"])
    asked = results.experiment.request["settings"]["evaluation"]
    resamples, risk_free = int(asked["resamples"]), float(asked["risk_free"])
    if results.target == "same_day":
        return Verdicts([], list(_reading(results, seed, resamples)))
    claims: Sequence[Claim] = []
    if 3 in results.experiment.request["tables"]:
        held = {market: _ablations(results, market) for market in results.markets}
        claims = paper.judge_claims(held, risk_free=risk_free, seed=seed, resamples=resamples)
    sentences = [line for market in results.markets for line in _search(results, market, seed, resamples, risk_free)]
    return Verdicts(claims, sentences)


def _walks(results: Results, market: str) -> dict[tuple[str, int], Positions]:
    """Return what each method and lookback did in the walk-forward of a market."""
    return {
        (place.method, place.lookback): held
        for place, held in results.positions.items()
        if (place.market, place.protocol) == (market, "walkforward")
    }


def _ablations(results: Results, market: str) -> dict[tuple[str, int], Positions]:
    walks = _walks(results, market).items()
    return {(_ABLATIONS[method], lookback): held for (method, lookback), held in walks if method in _ABLATIONS}


def _search(results: Results, market: str, seed: int, resamples: int, risk_free: float) -> Iterator[str]:
    """Say whether the best of all methods beats Always Buy, the search for it accounted for."""
    walks = _walks(results, market)
    titles = {row.key: row.title for row in results.rows}
    named = {f"{titles[method]} at t = {t}": held for (method, t), held in walks.items() if method != "always_buy"}
    benchmark = next((held for (method, _), held in walks.items() if method == "always_buy"), None)
    if benchmark is not None and len(named) > 1:
        found = spa(benchmark, named, seed=seed, resamples=resamples)
        word = "is" if found.consistent < CONVINCING else "is not"
        yield (
            f"{market}: the best of {len(named)} methods and lookbacks by mean daily return ({found.best or 'none'}) "
            f"{word} shown to earn more than Always Buy (superior predictive ability, p = {found.consistent:.2f})."
        )
    ratios = {name: one for name, held in named.items() if (one := moments(held, risk_free=risk_free)) is not None}
    if len(ratios) > 1:
        yield _deflated(market, ratios)


def _deflated(market: str, ratios: dict[str, Moments]) -> str:
    name, best = max(ratios.items(), key=lambda item: item[1].daily_sharpe)
    variance = statistics.variance(one.daily_sharpe for one in ratios.values())
    found = deflated_sharpe(
        best.daily_sharpe, variance, len(ratios), days=best.days, skew=best.skew, kurtosis=best.kurtosis
    )
    return (
        f"{market}: the best Sharpe ratio is that of {name}, {best.daily_sharpe:.3f} a day; the best of {len(ratios)} "
        f"worthless ones would be expected at {found.expected_maximum:.3f}, so its deflated Sharpe ratio (the "
        f"probability that the true one is above 0, given the search) is {found.probability:.2f}; from 0.95 on it "
        f"would convince."
    ).replace("-", "−")


def _reading(results: Results, seed: int, resamples: int) -> Iterator[str]:
    """Say whether FININ reads better than the sketch, on the same days."""
    for market in results.markets:
        pair = [Place(method, market, 1, "walkforward") for method in ("finin", "ridge")]
        if any(place not in results.positions for place in pair):
            continue
        series = {place.method: results.positions[place] for place in pair}
        found = contrast(series, {"finin": 1.0, "ridge": -1.0}, "correlation", seed=seed, resamples=resamples)
        if found.value is None or found.low is None or found.high is None:
            continue
        word = (
            "better than"
            if found.low > 0
            else "worse than"
            if found.high < 0
            else "no better, as far as one can tell, than"
        )
        figures = f"{found.value:+.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−")
        yield f"{market}: FININ reads {word} the ridge sketch: {figures}, paired on the same days."
