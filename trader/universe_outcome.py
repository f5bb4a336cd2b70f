"""A finished run of many symbols as one value, and the sentences without which its figures would mislead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from trader import metrics
from trader.config import Config
from trader.outcome import Home, limit_notes
from trader.records import TradeSummary
from trader.universe import Universe, some
from trader.universe_forecast import TOO_YOUNG, Seen, UniverseForecasts
from trader.universe_metrics import DecisionReport
from trader.universe_spans import UniverseSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class UniverseOutcome:
    """A finished run, for the report.

    report: the account's figures.   decisions: those of the signals.   rivals: model → those of its signals.
    config: with the strategy that traded.   stages: seconds of each.   notes: what a reader must know.
    """

    run: int
    config: Config
    home: Home
    universe: Universe
    forecasts: UniverseForecasts
    report: metrics.Report
    decisions: DecisionReport
    rivals: Mapping[str, DecisionReport]
    trading: TradeSummary
    stages: Mapping[str, float]
    ledger_hash: str
    notes: Sequence[str]


def universe_notes(
    config: Config,
    seen: Seen,
    span: UniverseSpan,
    made: UniverseForecasts,
    trading: TradeSummary,
    last: date,
    *,
    stood_in: bool,
) -> list[str]:
    """Return what a reader must know to read the figures rightly, a sentence each.

    last: the day asked for.   stood_in: the strategy is not the config's, which trades one symbol.
    """
    return list(_notes(config, seen, span, made, trading, last, stood_in))


def _notes(
    config: Config,
    seen: Seen,
    span: UniverseSpan,
    made: UniverseForecasts,
    trading: TradeSummary,
    last: date,
    stood_in: bool,
) -> Iterator[str]:
    first, run = made.folds[0], config.run
    if stood_in:
        yield f"Strategy {run.strategy}: long_short, which the config names, trades one symbol."
    one = "One model for all symbols a fold" if made.pooled else "A model a symbol a fold"
    yield (
        f"{one}; trading starts on {made.sessions[0]}, the first one learned from {first.train_first} to "
        f"{first.validation_last}."
    )
    if made.sessions[0] != seen.span.first:
        yield f"From {seen.span.first} until then there was no model: too little history."
    yield from _left_out(span, made)
    if run.news == "wire":
        yield "The wire is written from prices: it tests the chain, and can tell nothing that prices do not."
    if trading.optimistic:
        yield "Execution at the very close that was decided on is the papers' convention, and optimistic."
    elif trading.stale_opens and run.execution == "next_open":
        fills = "at that day's close" if config.costs.stale_open == "next_close" else "at that open all the same"
        yield (
            f"{trading.stale_opens:,} bars open at the very close before, which was then no price; orders fill {fills}."
        )
    if seen.span.last < last:
        yield f"The bars end on {seen.span.last}."
    yield "The symbols are those of the universe's file: where it was chosen later, by who lasted, all is too good."
    yield from limit_notes(trading)


def _left_out(span: UniverseSpan, made: UniverseForecasts) -> Iterator[str]:
    """Say of which symbols nothing was learned, and how often there was no decision, by reason."""
    short = [symbol for symbol, enough in span.enough_from.items() if enough is None]
    if short:
        what = "learned from" if made.pooled else "decided"
        yield f"Never with enough history to be {what} ({len(short)} in all): {some(short)}."
    signals = made.all
    young = sum(one.p_up is None and one.reason == TOO_YOUNG for one in signals)
    others = sum(one.p_up is None for one in signals) - young
    silent = sum(one.p_up is not None and one.news_count == 0 for one in signals)
    yield (
        f"Of {len(signals):,} times that a symbol was asked for, {young:,} had no decision for want of bars before it, "
        f"{others:,} for another reason (no bar, mostly), and {silent:,} decisions had no headline to read."
    )
