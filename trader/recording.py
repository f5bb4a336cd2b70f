"""Write a run into the ledger session by session, and keep its columns for the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata
import json
import time

import numpy as np

from trader import metrics
from trader.config import Config, as_mapping
from trader.events import Signal
from trader.ledger import FoldFacts, Ledger, RunFacts
from trader.outcome import Forecasts
from trader.records import Costs, SessionRecord, idle
from trader.spans import Span
from trader.training import TrainedFold, code_hash
from trader.window import Window

TOGETHER = 250  # sessions that wait to be written: SQLite between two bars would slow both


class Waiting(ABC):
    """Takes the broker's sessions and writes them some at a time, one transaction each, oldest first.

    ``flush`` writes those that wait, so a run that is stopped loses none.   records: what is written.
    seconds: what the ledger took.
    """

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []
        self.seconds = 0.0
        self._waiting: list[SessionRecord] = []

    @abstractmethod
    def _put(self, record: SessionRecord) -> None:
        """Write one session and append its record."""

    def __call__(self, record: SessionRecord) -> None:
        """Take one session of the broker's."""
        self._waiting.append(record)
        if len(self._waiting) == TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Write the sessions that wait."""
        started = time.perf_counter()
        while self._waiting:  # each leaves only when it is written: a Ctrl-C in between loses none
            self._put(self._waiting[0])
            del self._waiting[0]
        self.seconds += time.perf_counter() - started


class SessionWriter(Waiting):
    """Writes the broker's sessions into the ledger, and those without a bar between them; keeps their figures."""

    def __init__(self, ledger: Ledger, run: int, signals: Sequence[Signal], always_buy: Mapping[date, float]) -> None:
        super().__init__()
        self._ledger, self._run, self._always_buy = ledger, run, always_buy
        self._signals, self._next = signals, 0
        self.always_buy: list[float] = []

    def _put(self, record: SessionRecord) -> None:
        while self._next < len(self._signals) and self._signals[self._next].session <= record.session:
            signal = self._signals[self._next]
            self._write(record if signal.session == record.session else self._idle(signal))

    def finish(self) -> None:
        """Write what waits, and the sessions without a bar that follow the last one with a bar."""
        self.flush()
        for signal in self._signals[self._next :]:
            self._write(self._idle(signal))

    def _write(self, record: SessionRecord) -> None:
        signal = self._signals[self._next]
        always_buy = self._always_buy.get(record.session)
        self.always_buy.append(self.always_buy[-1] if always_buy is None else float(always_buy))
        self._ledger.write_session(self._run, signal=signal, record=record, always_buy_equity=self.always_buy[-1])
        self.records.append(record)
        self._next += 1

    def _idle(self, signal: Signal) -> SessionRecord:
        """Return the record of a session without a bar: the account as it stood, nothing done."""
        return idle(self.records[-1], signal.session)

    def evaluation(self, window: Window, costs: Costs, risk_free: float) -> metrics.EvaluationInputs:
        """Return the written sessions in columns, for the metrics."""
        return metrics.EvaluationInputs(
            side=[signal.side for signal in self._signals],
            next_return=next_returns(window, self._signals),
            equity=[record.equity for record in self.records],
            always_buy_equity=self.always_buy,
            costs=[record.commission + record.slippage + record.borrow for record in self.records],
            traded=[sum(abs(fill.size * fill.price) for fill in record.fills) for record in self.records],
            exposure=[record.exposure for record in self.records],
            start_cash=costs.cash,
            risk_free=risk_free,
        )


def next_returns(window: Window, signals: Sequence[Signal]) -> list[float]:
    """Return close(d+1)/close(d) − 1 of each signal's session; NaN for the last session and for those without a bar."""
    close = {session: bar.close for session, bar in zip(window.sessions, window.bars, strict=True)}
    following = dict(zip(close, [*list(close.values())[1:], np.nan], strict=False))  # an empty window has none
    return [following[s.session] / close[s.session] - 1 if s.session in close else np.nan for s in signals]


def run_facts(config: Config, window: Window, made: Forecasts, span: Span) -> RunFacts:
    """Return what the ledger keeps of a run: its settings whole, and the hashes of code and data."""
    run = config.run
    return RunFacts(
        kind="backtest",
        config=json.dumps(as_mapping(config), sort_keys=True, indent=1),
        seed=run.seed,
        code_version=code_version(),
        first_session=window.sessions[0],
        last_session=made.signals[-1].session,
        data_hash=window.fingerprint(0, len(window)),
        market=run.market,
        news=run.news,
        model=run.model,
        strategy=run.strategy,
        execution=run.execution,
    )


def code_version() -> str:
    """Return the version of the package and the hash of its sources, as the ledger keeps them."""
    return f"{_version()} {code_hash('trader', 'models', 'feeds', 'strategies')}"


def _version() -> str:
    try:
        return metadata.version("news-trader")
    except metadata.PackageNotFoundError:
        return "not installed"


def fold_facts(window: Window, number: int, one: TrainedFold) -> FoldFacts:
    """Return what the ledger keeps of a fold; ``number`` counts from 1 within the run."""
    spans = {
        f"{name}_{end}": window.sessions[part.start if end == "first" else part.stop - 1]
        for name, part in (("train", one.fold.train), ("validation", one.fold.validation), ("use", one.fold.use))
        for end in ("first", "last")
    }
    return FoldFacts(
        fold=number,
        model_id=one.model_id,
        validation_loss=one.report.validation_loss,
        validation_accuracy=one.report.validation_accuracy,
        epochs=one.report.epochs,
        train_seconds=one.seconds,
        cached=one.cached,
        **spans,
    )
