"""A small universe for tests: three symbols on real sessions, one listed late, one with holes, and their news."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from models.base import Days, FitReport
from models.panel import Part
from tests import builders
from trader import universe_engine
from trader.clock import SimulatedClock
from trader.config import Config
from trader.events import Bar, NewsRows
from trader.ledger import Ledger
from trader.store import FileSource, MarketStore
from trader.universe_outcome import UniverseOutcome

TINY, POOLED = "tests.builders:TinyModel", "tests.builders:TinyPooledModel"
MSMF = {"hidden": 16, "token_width": 16, "heads": 2, "chart_sessions": 5, "epochs": 2, "patience": 2}
MSMF |= {"pretrain_epochs": 0, "completion": "zero"}
COUNT = 125
DAYS = builders.sessions(COUNT)
FIRST, LAST = DAYS[70], DAYS[118]
SYMBOLS = ("A", "B", "LATE")
LISTED = {"LATE": 52}  # by symbol, the position of its first bar
HOLES = {"B": (78, 85, 86)}
LATE = {"A": (82, 90), "B": (90,)}  # of these the bar comes three hours after the decision
UNIVERSE = 'name = "toys"\nnews = "toy"\nsymbols = ["A", "B", "LATE"]\n'
TABLES = ("signals", "expected_returns", "news_weights", "orders", "fills", "equity", "holdings")


def config(model: str = TINY, **changes: Any) -> Config:
    """Return settings of folds of 20 + 10 sessions every 10; top_k holds one of the three symbols."""
    asked: dict[str, Any] = {"market": UNIVERSE, "model": model, "strategy": "top_k"}
    folds = {"train": 20, "validation": 10, "step": 10}
    made = builders.config(**{**asked, "walkforward": folds, "inputs": {"decide_minutes": 30}, **changes})
    return replace(made, model={**made.model, "msmf": MSMF}, strategy={"top_k": {"k": 1}, **made.strategy})


def bars(symbol: str, late: Mapping[str, tuple[int, ...]] = LATE) -> list[Bar]:
    """Return a symbol's bars; those that are ``late`` come three hours after their decision."""
    walk = builders.bars(DAYS, seed=SYMBOLS.index(symbol), symbol=symbol)
    after = timedelta(hours=3)
    came = [
        replace(bar, known_at=bar.known_at + after) if n in late.get(symbol, ()) else bar for n, bar in enumerate(walk)
    ]
    return [bar for n, bar in enumerate(came) if n >= LISTED.get(symbol, 0) and n not in HOLES.get(symbol, ())]


def fill(home: Path, *, late: Mapping[str, tuple[int, ...]] = LATE, nudged: tuple[str, int] | None = None) -> Path:
    """Put the universe into the store of a home; each headline is about one or two of its symbols.

    nudged: a symbol, and the position of the session whose close is another.
    """
    made = builders.headlines(DAYS, most=8)
    rng = np.random.default_rng(7)
    cells = [" ".join(rng.choice(SYMBOLS, int(rng.integers(1, 3)), replace=False)) for _ in range(len(made))]
    made = replace(made, symbols=cells)
    with MarketStore.open(home / "market.db", clock=SimulatedClock(builders.NOW)) as store:
        for symbol in SYMBOLS:
            made_of = bars(symbol, late)
            if nudged is not None and nudged[0] == symbol:
                at = DAYS[nudged[1]]
                made_of = [replace(bar, close=bar.high) if bar.session == at else bar for bar in made_of]
            store.add_bars(made_of, source="made here")
        rows = NewsRows(news=made, row=np.arange(1, len(made) + 1), rejected=())
        store.add_news("toy", [rows], source=FileSource(name="made here"))
    return home


def backtest(home: Path, model: str = TINY, last: date = LAST, **how: Any) -> UniverseOutcome:
    """Run a backtest of the universe; what is no keyword of the engine's changes the config."""
    known = ("daily", "overrides", "controls", "abstain", "bars_known")
    asked = {name: how.pop(name) for name in known if name in how}
    return universe_engine.backtest(config(model, **how), home, FIRST, last, readers=builders.readers(), **asked)


def rows(home: Path, run: int) -> dict[str, list[dict[str, Any]]]:
    """Return all that the hash of a run counts, by table."""
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        found = {table: ledger.between(table, run, date.min, date.max) for table in TABLES}
    return {table: [{k: v for k, v in row.items() if k != "run"} for row in held] for table, held in found.items()}


def the_same(one: Mapping[str, list[Any]], other: Mapping[str, list[Any]]) -> None:
    """Compare two runs table by table, so that what differs is seen."""
    for table in one:
        assert one[table] == other[table], table


class GatedPooledModel(builders.TinyPooledModel):
    """A TinyPooledModel whose training ends when the file that TRADER_TEST_GATE names is there, as a GatedModel's."""

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        gate = Path(os.environ["TRADER_TEST_GATE"])
        while not gate.exists():
            time.sleep(0.02)
        return super().fit_panel(parts, seed)


class TicketModel(builders.TinyModel):
    """A TinyModel of which a training waits for a file to take out of the folder that TRADER_TEST_GATE names."""

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        while True:
            for ticket in Path(os.environ["TRADER_TEST_GATE"]).iterdir():
                with suppress(FileNotFoundError):
                    ticket.unlink()
                    return super().fit(days, train, validation, seed)
            time.sleep(0.02)


def _fail_once() -> None:
    """Fail where the file that TRADER_TEST_FAILS names is there, and take it away."""
    fails = Path(os.environ["TRADER_TEST_FAILS"])
    if fails.exists():
        fails.unlink()
        raise ValueError("a training that fails once")


class FailingModel(builders.TinyModel):
    """A TinyModel of which one training fails."""

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        _fail_once()
        return super().fit(days, train, validation, seed)


class FailingPooledModel(builders.TinyPooledModel):
    """A TinyPooledModel of which one training fails."""

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        _fail_once()
        return super().fit_panel(parts, seed)
