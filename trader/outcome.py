"""A finished run as one value, and the sentences without which its figures would mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from trader import metrics
from trader.config import Config
from trader.errors import StoreError
from trader.events import Signal
from trader.records import TradeSummary, Verdict
from trader.spans import Span
from trader.training import TrainedFold
from trader.window import Window


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything lies: one folder that a user can back up, move or delete."""

    folder: Path

    def make(self) -> None:
        """Make the folder; raise StoreError where that cannot be done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                "the home folder cannot be made", where=self.folder, got=error.strerror, do="choose another --home"
            ) from error

    @property
    def store(self) -> Path:
        """The market store: bars, headlines, quarantine."""
        return self.folder / "market.db"

    @property
    def ledger(self) -> Path:
        """The ledger: runs, signals, trades, equity."""
        return self.folder / "ledger.db"

    @property
    def models(self) -> Path:
        """Trained models by id."""
        return self.folder / "models"

    @property
    def cache(self) -> Path:
        """Embeddings and sentiment scores by text."""
        return self.folder / "cache"


@dataclass(frozen=True, slots=True)
class Forecasts:
    """The signals of one kind of model, oldest first, with the folds that they come from.

    folds: of the models that were taken up, each used until the next one.   numbers: of each of them, which training
    of the run it was, from 1.   verdicts: what was said of every training.
    """

    model: str
    signals: Sequence[Signal]
    folds: Sequence[TrainedFold]
    numbers: Sequence[int]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run, for the report.

    report: every figure.  rivals: model name → the figures of its signals, on the same sessions.
    bare_seconds: what backtrader alone took over the same bars; None with a user's own strategy.
    stages: seconds of each.
    notes: what a reader must know.
    """

    run: int
    config: Config
    home: Home
    forecasts: Forecasts
    report: metrics.Report
    rivals: Mapping[str, Sequence[metrics.Metric]]
    trading: TradeSummary
    bare_seconds: float | None
    stages: Mapping[str, float]
    ledger_hash: str
    notes: Sequence[str] = field(default=())


def notes(config: Config, window: Window, made: Forecasts, trading: TradeSummary, span: Span, last: date) -> list[str]:
    """Return what a reader must know to read the figures rightly, a sentence each; ``last`` is the day asked for."""
    run, first = config.run, made.folds[0]
    trained_on = f"{window.sessions[first.fold.train.start]} to {window.sessions[first.fold.validation.stop - 1]}"
    if made.signals[0].session == span.first:
        found = [f"Trading starts at the first session, {span.first}, with a model trained on {trained_on}."]
    else:
        found = [
            f"Trading starts on {made.signals[0].session}, when the first fold is full (trained on {trained_on}): "
            f"there is too little history before {span.first}."
        ]
    if run.news == "wire":
        found.append("The wire is written from prices: it tests the chain, and can tell nothing that prices do not.")
    learned = range(first.fold.train.start, first.fold.validation.stop)
    silent = sum(not window.headlines[at] for at in learned)
    if silent:
        found.append(f"Of the {len(learned)} sessions that the first model learned from, {silent} had no headline.")
    without = sum(signal.news_count == 0 for signal in made.signals)
    if without:
        found.append(f"{without} of {len(made.signals)} sessions had no headline.")
    abstained = sum(signal.p_up is None for signal in made.signals)
    if abstained:
        sessions = "1 session" if abstained == 1 else f"{abstained} sessions"
        found.append(f"{sessions} had no decision, the position was kept, an order waited.")
    if trading.optimistic:
        found.append("Execution at the very close that was decided on is the papers' convention, and optimistic.")
    elif trading.stale_opens and run.execution == "next_open":
        fills = "at that day's close" if config.costs.stale_open == "next_close" else "at that open all the same"
        found.append(
            f"On {trading.stale_opens:,} of {trading.sessions:,} sessions the open equals the close before, so it was "
            f"no price; orders then fill {fills}."
        )
        if run.market == "sp500":
            found.append(
                "Until 2013 its other opens lie unusually near the close before, too: --execution next_close is the "
                "conservative choice (README)."
            )
    if span.last < last:
        found.append(f"The bars end on {span.last}.")
    if run.market in ("sp500", "nasdaq"):
        found.append("A price index: dividends are not in it, and nobody can trade it as such.")
    return [*found, *limit_notes(trading)]


def limit_notes(trading: TradeSummary) -> list[str]:
    """Return how many orders the limits cut or refused, a sentence each."""
    found = []
    for what, orders in (("cut to a limit", trading.cut), ("refused", trading.refused)):
        if orders:
            were = "1 order was" if len(orders) == 1 else f"{len(orders)} orders were"
            found.append(f"{were} {what}; `python -m trader trades latest` says which and why.")
    return found
