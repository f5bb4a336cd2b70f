"""Write a run of many symbols into the ledger session by session, and keep its columns for the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json

import numpy as np

from trader import metrics
from trader.config import Config, as_mapping
from trader.events import Signal
from trader.ledger import Ledger, RunFacts
from trader.recording import Waiting, code_version, next_returns
from trader.records import Costs, SessionRecord
from trader.universe_forecast import Seen, UniverseForecasts
from trader.universe_metrics import Decisions
from trader.window import Window


class UniverseWriter(Waiting):
    """Writes the broker's sessions into the ledger, all symbols of one together; keeps their records."""

    def __init__(self, ledger: Ledger, run: int, made: UniverseForecasts, always_buy: Sequence[float]) -> None:
        super().__init__()
        self._ledger, self._run, self._made = ledger, run, made
        self._always_buy = dict(zip(made.sessions, always_buy, strict=True))

    def _put(self, record: SessionRecord) -> None:
        self._ledger.write_universe_session(
            self._run,
            signals=self._made.signals[record.session],
            record=record,
            always_buy_equity=float(self._always_buy[record.session]),
        )
        self.records.append(record)

    def account(self, costs: Costs, risk_free: float) -> metrics.EvaluationInputs:
        """Return the written sessions in columns, for the metrics of the account; its signals are not in them.

        The exposure is gross: long and short added up.
        """
        nothing = np.zeros(len(self.records))
        return metrics.EvaluationInputs(
            side=nothing,
            next_return=np.full(len(self.records), np.nan),
            equity=[record.equity for record in self.records],
            always_buy_equity=[self._always_buy[record.session] for record in self.records],
            costs=[record.commission + record.slippage + record.borrow for record in self.records],
            traded=[sum(abs(fill.size * fill.price) for fill in record.fills) for record in self.records],
            exposure=[record.gross for record in self.records],
            start_cash=costs.cash,
            risk_free=risk_free,
        )


def decisions_of(windows: Mapping[str, Window], made: UniverseForecasts, like: UniverseForecasts) -> Decisions:
    """Return what was said on the sessions of ``like`` and what came; symbols in the windows' order."""
    shape = (len(like.sessions), len(windows))
    p_up, expected, came = (np.full(shape, np.nan) for _ in range(3))
    column = {symbol: at for at, symbol in enumerate(windows)}
    for row, session in enumerate(like.sessions):
        for signal in made.signals.get(session, ()):
            if signal.p_up is not None:
                p_up[row, column[signal.symbol]] = signal.p_up
                if signal.expected_return is not None:
                    expected[row, column[signal.symbol]] = signal.expected_return
    for symbol, window in windows.items():
        own = [Signal(session=day, symbol=symbol, p_up=None, side=0, model_id="") for day in like.sessions]
        came[:, column[symbol]] = next_returns(window, own)
    return Decisions(p_up=p_up, expected_return=expected, next_return=came)


def universe_run_facts(config: Config, seen: Seen, made: UniverseForecasts) -> RunFacts:
    """Return what the ledger keeps of a run: its settings whole, the universe's text among them, and its hashes."""
    run = config.run
    whole = config.with_run(market=seen.universe.as_text())
    digest = hashlib.sha256()
    for symbol, window in seen.windows.items():
        digest.update(f"{symbol}|{window.fingerprint(0, len(window))}\n".encode())
    return RunFacts(
        kind="backtest",
        config=json.dumps(as_mapping(whole), sort_keys=True, indent=1),
        seed=run.seed,
        code_version=code_version(),
        first_session=min(window.sessions[0] for window in seen.windows.values() if window.sessions),
        last_session=made.sessions[-1],
        data_hash=digest.hexdigest(),
        market=seen.universe.name,
        news=run.news,
        model=run.model,
        strategy=run.strategy,
        execution=run.execution,
    )
