"""Small honest fakes: a made-up market on real sessions, headlines, and readers that need no language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
import hashlib
import os
from pathlib import Path
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeds.base import FeedState, Fetched
from models.base import Days, FitReport, Prediction, Weights
from models.panel import Part
from trader.clock import Calendar, Clock, SimulatedClock
from trader.config import Config, from_mapping
from trader.events import Bar, NewsBatch, NewsRows, Signal, to_us
from trader.ledger import Ledger, RunFacts
from trader.parts import Readers
from trader.store import FileSource, MarketStore

CALENDAR = Calendar()
NOW = datetime(2020, 1, 1, tzinfo=timezone.utc)
TOPICS = ("oil", "banks", "rates", "chips", "retail", "exports", "jobs", "housing")
# MSMF with a chart of five sessions. A home's silent days, one in seven, have their text filled in by its RBM.
MSMF = {"chart_sessions": 5, "hidden": 16, "token_width": 16, "heads": 2, "epochs": 2, "pretrain_epochs": 1}
VERBS = ("rise", "fall", "surge", "slump", "stall", "rebound")


def sessions(count: int, first: date = date(2010, 1, 4)) -> list[date]:
    """Return ``count`` real sessions from ``first``."""
    start = CALENDAR.index(first)
    return [CALENDAR.session(start + at) for at in range(count)]


def bars(days: Sequence[date], seed: int = 0, *, symbol: str = "toy", start: float = 100.0) -> list[Bar]:
    """Return a random walk of 1 % a day with opens, highs, lows and volumes of its own."""
    rng = np.random.default_rng(seed)
    made, close = [], start
    for day in days:
        opened = close * float(np.exp(rng.normal(0, 0.004)))
        after = opened * float(np.exp(rng.normal(0, 0.01)))
        high, low = max(opened, after) * 1.002, min(opened, after) * 0.998
        volume = float(rng.integers(1_000, 9_000))
        made.append(
            Bar(
                symbol=symbol,
                session=day,
                open=opened,
                high=high,
                low=low,
                close=after,
                adj_close=after,
                volume=volume,
                known_at=CALENDAR.cutoff(day),
            )
        )
        close = after
    return made


def headlines(days: Sequence[date], seed: int = 0, *, most: int = 6) -> NewsBatch:
    """Return 0 to ``most`` headlines a session, at random minutes of the day before its close."""
    rng = np.random.default_rng(seed)
    at: list[int] = []
    texts: list[str] = []
    for day in days:
        for _ in range(int(rng.integers(0, most + 1))):
            at.append(to_us(CALENDAR.cutoff(day) - timedelta(minutes=int(rng.integers(0, 300)))))
            topic, verb = TOPICS[rng.integers(len(TOPICS))], VERBS[rng.integers(len(VERBS))]
            texts.append(f"{topic} {verb} on day {rng.integers(40)}")
    return batch(at, texts)


def batch(at: Sequence[int], texts: Sequence[str]) -> NewsBatch:
    """Return headlines without sentiment or symbols, published and known at these µs."""
    instants = np.array(at, dtype=np.int64)
    return NewsBatch(
        published_at=instants,
        known_at=instants,
        headline=list(texts),
        symbols=[""] * len(texts),
        sentiment=np.full((len(texts), 3), np.nan, np.float32),
        item_id=[str(row) for row in range(len(texts))],
    )


def fill(home: Path, made: Sequence[Bar], news: NewsBatch) -> None:
    """Put bars and headlines (as the set "toy") into the store of a home."""
    with MarketStore.open(home / "market.db", clock=SimulatedClock(NOW)) as store:
        store.add_bars(made, source="made here")
        rows = NewsRows(news=news, row=np.arange(1, len(news) + 1), rejected=())
        store.add_news("toy", [rows], source=FileSource(name="made here", options=str(len(news))))


class TinyTexts:
    """Embeddings drawn from the text's own hash: 8 wide, the same in every process and order."""

    width = 8

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._row: dict[str, int] = {}

    def index(self, texts: Sequence[str], progress: Any = None) -> NDArray[np.int64]:
        for text in texts:
            if text not in self._row:
                self._row[text] = len(self._texts)
                self._texts.append(text)
        return np.array([self._row[text] for text in texts], dtype=np.int64)

    def rows(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        seeds = [int.from_bytes(key[:8].tobytes(), "big") for key in self.keys_of(index)]
        drawn = [np.random.default_rng(seed).normal(size=self.width) for seed in seeds]
        return np.array(drawn, dtype=np.float32).reshape(-1, self.width)

    def keys_of(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        keys = [hashlib.blake2b(self._texts[row].encode(), digest_size=16).digest() for row in index]
        return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)


class TinyScorer:
    """Sentiment from the verb: up words positive, down words negative."""

    def scores(self, texts: Sequence[str], progress: Any = None) -> NDArray[np.float32]:
        table = {"rise": (0, 0.2, 0.8), "surge": (0, 0, 1), "fall": (0.8, 0.2, 0), "slump": (1, 0, 0)}
        rows = [next((tone for verb, tone in table.items() if verb in text), (0.1, 0.8, 0.1)) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(-1, 3)


def readers() -> Readers:
    """Return readers that load nothing."""
    return Readers(texts=TinyTexts(), texts_id="tiny", scorer=TinyScorer())


def config(**changes: Any) -> Config:
    """Return settings small enough for a test: folds of 60 + 10 sessions every 10, a FININ of 5 epochs, a tiny MSMF.

    Their width is 16: at 8 and less a row of a matrix product is rounded by its place, and the bits are not promised.

    changes: [run] keys, or whole sections given as dicts.
    """
    sections = {name: value for name, value in changes.items() if isinstance(value, dict)}
    run = {name: value for name, value in changes.items() if not isinstance(value, dict)}
    raw: dict[str, Any] = {
        "run": {"market": "toy", "news": "toy", "lookback": 3, **run},
        "walkforward": {"train": 60, "validation": 10, "step": 10},
        "compute": {"workers": 1},
        "evaluation": {"resamples": 100, "rivals": []},
        "model": {"finin": {"hidden": 16, "heads": 1, "qkv": 16, "epochs": 5, "batch_days": 20}, "msmf": MSMF},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return from_mapping(raw, "test")


class TinyModel:
    """A model of three numbers (base rate, momentum, a draw from the seed) that weighs headlines by their tone.

    It stands for a user's own: its name is ``tests.builders:TinyModel`` and ``gain`` a key of its section.
    """

    def __init__(self, lookback: int = 3, gain: float = 5.0) -> None:
        self.lookback, self._gain = lookback, gain
        self._numbers = np.zeros(3)

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        label, move = days.label[train.start : train.stop], days.market[train.start : train.stop, 3]
        self._numbers = np.array(
            [label.mean() - 0.5, (label - label.mean()) @ move, np.random.default_rng(seed).normal()]
        )
        p_up = self.predict(days, validation).p_up
        truth = days.label[validation.start : validation.stop]
        loss = -np.log(np.where(truth > 0, p_up, 1 - p_up)).mean()
        return FitReport(float(loss), float(((p_up > 0.5) == (truth > 0)).mean()), epochs=1, best_epoch=1)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        p_up, weights = [], []
        for day in at:
            momentum = days.market[day - self.lookback + 1 : day + 1, 3].sum(dtype=np.float64)
            tone = days.texts.rows(days.news_text[days.news(day)])[:, 0] + days.news_sentiment[days.news(day)][:, 2]
            odds = self._numbers @ [1, momentum * 10, 0.1] + (tone.mean(dtype=np.float64) if len(tone) else 0.0)
            p_up.append(1 / (1 + np.exp(-odds / self._gain)))
            weights.append((np.exp(tone) / np.exp(tone).sum()).astype(np.float32))
        return Prediction(np.array(p_up), news_weights=weights)

    def weights(self) -> Weights:
        return {"numbers": self._numbers}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        if set(weights) != {"numbers"} or weights["numbers"].shape != (3,):
            raise ValueError(f"not the numbers of this model: {sorted(weights)}")
        self._numbers = np.array(weights["numbers"], np.float64)


class TinyPooledModel(TinyModel):
    """A TinyModel that learns from many symbols at once: base rate and momentum of all their training decisions."""

    def fit_panel(self, parts: Sequence[Part], seed: int) -> FitReport:
        label = np.concatenate([part.days.label[part.train.start : part.train.stop] for part in parts])
        move = np.concatenate([part.days.market[part.train.start : part.train.stop, 3] for part in parts])
        draw = np.random.default_rng(seed).normal()
        self._numbers = np.array([label.mean() - 0.5, (label - label.mean()) @ move, draw])
        return FitReport(0.5, 0.5, epochs=1, best_epoch=1)


def a_home(folder: Path, count: int = 140, *, most: int = 6, without: Sequence[int] = ()) -> Path:
    """Make a home whose store holds ``count`` sessions of bars (but those at the positions ``without``) and news."""
    days = sessions(count)
    made = [bar for at, bar in enumerate(bars(days)) if at not in without]
    fill(folder, made, headlines(days, most=most))
    return folder


def signals_run(home: Path, days: Sequence[date], seed: int = 0) -> int:
    """Write a run with a made-up signal a session into the home's ledger, for accounts that need no model."""
    facts = RunFacts(
        kind="backtest", config="", seed=seed, code_version="made here", first_session=days[0], last_session=days[-1],
        data_hash="", market="toy", news="toy", model="tests.builders:TinyModel", strategy="long_short",
        execution="next_open",
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    with Ledger.open(home / "ledger.db") as ledger:
        run = ledger.start_run(facts)
        with ledger.transaction():
            for session in days:
                p_up = float(rng.uniform(0.3, 0.7))
                side = 1 if p_up > 0.5 else -1
                ledger.write_signal(
                    run,
                    Signal(
                        session=session, symbol="toy", p_up=p_up, side=side, model_id="made", top=(("a line", 1.0),)
                    ),
                )
    return run


class RememberingModel(TinyModel):
    """A TinyModel that also counts the headlines of its earlier sessions, so that a lost one shows later on."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        made = super().predict(days, at)
        seen = [sum(len(days.news_text[days.news(day - back)]) for back in range(self.lookback)) for day in at]
        return Prediction(np.clip(made.p_up + 0.001 * np.array(seen), 0, 1), news_weights=made.news_weights)


class GatedModel(TinyModel):
    """A TinyModel whose training ends when the file that TRADER_TEST_GATE names is there, and not before."""

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        gate = Path(os.environ["TRADER_TEST_GATE"])
        while not gate.exists():
            time.sleep(0.02)
        return super().fit(days, train, validation, seed)


class StuckFeed:
    """A user's live feed that answers when a file is there, and not before."""

    gives = "news"

    def __init__(self, gate: str) -> None:
        self._gate = Path(gate)

    def fetch(self, state: FeedState, clock: Clock) -> Fetched:
        self._gate.with_suffix(".asked").touch()
        while not self._gate.exists():
            time.sleep(0.02)
        return Fetched()
