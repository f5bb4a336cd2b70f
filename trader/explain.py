"""Say what a decision of a run read: every headline of its day with its weight, which headline made which matter, and
how a model of several modalities fused them.

    ledger (settings, model id, P(up)) + market store + registry → explain → trader.why_report, trader.pictures

The ledger keeps the ten headlines of largest weight. The others come from making the forecast again: the run's own
settings, the window as it was known at the decision, the very model. Whether that gave the forecast that the ledger
holds is checked, and said where it is not so. Nothing is written but what the caches of texts (and, of a built-in
market, the store) lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
import json
from pathlib import Path
import re
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.base import Attention, Days, Model, Prediction
from models.fusions import Fusion
from trader.config import Config, from_mapping
from trader.errors import ModelError, NoData, TraderError
from trader.events import BarClosed, NewsArrived, Signal
from trader.ledger import Ledger
from trader.outcome import Home
from trader.parts import Readers, model_spec, readers_of, stock, stock_universe, window_of, windows_of
from trader.registry import Registry, weights_id
from trader.scheduler import Scheduler
from trader.spans import newest_in_time
from trader.store import MarketStore
from trader.training import ModelSpec, code_hash
from trader.universe import is_universe, universe_of
from trader.universe_events import UniverseScheduler
from trader.window import Window

SAME = 1e-6  # of a probability or a weight: what the ledger's may differ by


@runtime_checkable
class Attentive(Protocol):
    """A model that can tell who looked at whom."""

    def attention(self, days: Days, day: int) -> Attention:
        """Return the attention within one of the days."""
        ...


@runtime_checkable
class Fusing(Protocol):
    """A model that can tell how it fused several modalities."""

    def fusion(self, days: Days, day: int) -> Fusion:
        """Return how the decision on one of the days was fused."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """The share of the decision's attention that reached headline ``of`` through headline ``by``, who looked at it.

    Both are places in Explained.headlines.
    """

    by: int
    of: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One decision and what it read.

    signal: as the ledger holds it.   headlines: all of the day, N, in the window's order; where ``whole`` is False
        only the ledger's, by weight.   weights: (N,) float32, shares of the day's attention; None where the model
        does not weigh headlines.
    pairs: (N, N) float32, ``pairs[i, j]`` the share of headline i's attention that went to j; None where the model
        does not say.   notes: what a reader must know, a sentence each.
    fusion: gates, blanks and fillings of the forecast; None where the model fuses nothing, or not ``whole``.
    """

    signal: Signal
    headlines: tuple[str, ...]
    weights: NDArray[np.float32] | None
    pairs: NDArray[np.float32] | None
    whole: bool
    notes: tuple[str, ...] = ()
    fusion: Fusion | None = None

    @property
    def session(self) -> date:
        """The session decided."""
        return self.signal.session

    @property
    def symbol(self) -> str:
        """The market decided on."""
        return self.signal.symbol

    @property
    def p_up(self) -> float | None:
        """P(close(d+1) > close(d)) as the ledger holds it; None where the chain abstained."""
        return self.signal.p_up

    @property
    def model_id(self) -> str:
        """The model in the registry that decided."""
        return self.signal.model_id

    @property
    def order(self) -> NDArray[np.int64]:
        """Places (N,) in ``headlines``, largest weight first, those of equal weight in their order."""
        weights = self.weights if self.weights is not None else np.zeros(len(self.headlines))
        return np.argsort(-weights, kind="stable")

    @property
    def scaled(self) -> NDArray[np.float64] | None:
        """Weights (N,) brought to 0 … 1 within the day; all 1 where all are equal; None where not ``whole``.

        Source: FININ, table 4.
        """
        if self.weights is None or not self.whole or not len(self.weights):
            return None
        weights = self.weights.astype(np.float64)
        low, high = float(weights.min()), float(weights.max())
        return (weights - low) / (high - low) if high > low else np.ones(len(weights))

    @property
    def influence(self) -> NDArray[np.float64] | None:
        """(N,) what each headline gives to the decision, half by itself and half through those that looked at it.

        ``½ weights + ½ weights @ pairs``, which sums to 1: a headline keeps half of what it is and takes half from
        those it looks at. Source: Abnar and Zuidema 2020, attention rollout.
        """
        shares = self.shares()
        if shares is None or self.weights is None:
            return None
        return np.asarray((self.weights.astype(np.float64) + shares.sum(axis=0)) / 2)

    def shares(self, at: Sequence[int] | None = None) -> NDArray[np.float64] | None:
        """Return weights[i]·pairs[i, j] (n, n) among the headlines ``at``, or all: what reaches the decision from j
        through i.
        """
        if self.weights is None or self.pairs is None:
            return None
        places = np.arange(len(self.headlines)) if at is None else np.asarray(at, dtype=np.int64)
        pairs = self.pairs[np.ix_(places, places)].astype(np.float64)
        return self.weights[places].astype(np.float64)[:, None] * pairs

    def strongest(self, count: int, about: Sequence[int] | None = None) -> list[Pair]:
        """Return the ``count`` largest shares between two different headlines, largest first.

        about: only pairs that one of these belongs to.
        """
        shares = self.shares()
        if shares is None:
            return []
        allowed = ~np.eye(len(shares), dtype=bool)
        if about is not None:
            touched = np.isin(np.arange(len(shares)), np.asarray(about, dtype=np.int64))
            allowed &= touched[:, None] | touched[None, :]
        by, of = np.nonzero(allowed)
        found = shares[by, of]
        largest = np.argsort(-found, kind="stable")[:count]
        return [Pair(int(by[one]), int(of[one]), float(found[one])) for one in largest]

    def find(self, words: str) -> list[int]:
        """Return the places, largest weight first, of headlines in which each of the words begins one, in any case.

        >>> signal = Signal(session=date(2008, 10, 24), symbol="sp500", p_up=0.5, side=0, model_id="none")
        >>> read = ("GM to delay a model", "Augment funds, banks say", "GMAC in bank talks")
        >>> said = Explained(signal=signal, headlines=read, weights=None, pairs=None, whole=True)
        >>> said.find("gm"), said.find("bank GM"), said.find("")
        ([0, 2], [2], [0, 1, 2])
        """
        sought = [re.compile(rf"(?<!\w){re.escape(word)}", re.IGNORECASE) for word in words.split()]
        return [int(at) for at in self.order if all(one.search(self.headlines[at]) for one in sought)]


def explain(
    home_folder: Path, run: int | str, session: date, symbol: str | None = None, *, readers: Readers | None = None
) -> Explained:
    """Return what a run's decision on a session read, making its forecast again.

    run: a number or "latest".   symbol: which one, of a run over many.
    readers: what reads the headlines; None takes what the run's settings name.
    Where the forecast cannot be made again (the model, the news or the language model is gone) the ledger's ten
    headlines are given, and a note says why. Raises NoData where the ledger has no such run or session, ModelError
    where the chain abstained on it.
    """
    home = Home(home_folder)
    with Ledger.open(home.ledger, read_only=True) as ledger:
        signal, facts = ledger.why_one(run, session, symbol), ledger.run_facts(run)
    if signal.p_up is None:
        raise ModelError("no decision to explain", where=f"{session} {signal.symbol}", got=signal.reason)
    try:
        return _again(home, signal, facts, readers)
    except TraderError as error:
        return _remembered(signal, f"The forecast cannot be made again, so this is what the ledger keeps: {error}")


def _remembered(signal: Signal, note: str) -> Explained:
    weights = np.array([weight for _, weight in signal.top], dtype=np.float32) if signal.top else None
    headlines = tuple(headline for headline, _ in signal.top)
    return Explained(signal=signal, headlines=headlines, weights=weights, pairs=None, whole=False, notes=(note,))


def _again(home: Home, signal: Signal, facts: dict[str, Any], given: Readers | None) -> Explained:
    """Make the forecast again from the run's row of the ledger."""
    config = from_mapping(json.loads(facts["config"]), f"run {facts['id']}")
    registry = Registry(home.models)
    manifest = registry.manifest(weights_id(signal.model_id))
    readers = given or readers_of(config, home)
    spec = _spec(config, manifest, readers.texts_id)
    model = _model(registry, spec, weights_id(signal.model_id))
    first = date.fromisoformat(facts["first_session"])
    window, days = _days(home, config, readers, spec.lookback, first, signal)
    last = spec.lookback - 1
    prediction = model.predict(days, [last])
    headlines = tuple(window.headlines[window.position(signal.session)])
    weights = prediction.news_weights[0] if prediction.news_weights is not None else None
    weighed = weights is not None and len(headlines)
    return Explained(
        signal=signal,
        headlines=headlines,
        weights=weights,
        pairs=model.attention(days, last).pairs if weighed and isinstance(model, Attentive) else None,
        whole=True,
        notes=_differences(signal, prediction, headlines, manifest, spec),
        fusion=model.fusion(days, last) if isinstance(model, Fusing) else None,
    )


def _spec(config: Config, manifest: dict[str, Any], texts_id: str) -> ModelSpec:
    """Return the model's specification with the settings that it was trained with, whatever today's defaults are."""
    name, kept = config.run.model, dict(manifest.get("settings", {}))
    own = {key: value for key, value in kept.items() if key not in ("lookback", "device")}
    return model_spec(replace(config, model={**config.model, name: own}), name, texts_id)


def _model(registry: Registry, spec: ModelSpec, model_id: str) -> Model:
    model = spec.factory()
    try:
        model.load(registry.load(model_id))
    except ValueError as error:
        raise ModelError("weights do not fit the model's code", where=model_id, got=error) from error
    return model


def _days(
    home: Home, config: Config, readers: Readers, lookback: int, first: date, signal: Signal
) -> tuple[Window, Days]:
    """Fill a window up to a signal's session as it was known at its decision; return it and its last ``lookback`` days.

    first: the run's own first session, before which it knew nothing.
    """
    if not home.store.is_file():
        raise NoData("the market store is gone", where=home.store)
    with MarketStore.open(home.store) as store:
        window, scheduler, prices = _reading(store, config, readers, signal.symbol)
        held = newest_in_time(store, window.calendar, prices, first, signal.session, lookback + Window.warm_up)
        silent = held[-lookback - 1] if len(held) > lookback else None  # no headline of it or before is read
        for event in scheduler.events(held[0], signal.session):
            if isinstance(event, BarClosed) or (
                isinstance(event, NewsArrived) and (silent is None or event.session > silent)
            ):
                window.update(event)
    at = window.position(signal.session)
    days = window.days(at - lookback + 1, at + 1)
    return window, replace(days, next_return=np.full(lookback, np.nan))


def _reading(store: MarketStore, config: Config, readers: Readers, symbol: str) -> tuple[Window, Scheduler, str]:
    """Return an empty window, what fills it, and the name of its bars: of the run's market, or one of its universe."""
    run, spec = config.run, config.walkforward
    if not is_universe(run.market):
        window, news = window_of(config, readers), stock(store, run.market, run.news)
        return window, Scheduler(store, window.calendar, symbol=run.market, news=news, spec=spec), run.market
    universe = universe_of(run.market)
    window = windows_of(config, universe, readers)[symbol]
    stocked = stock_universe(store, universe, run.news)
    scheduler = UniverseScheduler(store, window.calendar, stocked, spec=spec).of_symbol[symbol]
    return window, scheduler, next(one.prices for one in stocked if one.symbol == symbol)


def _differences(
    signal: Signal, made: Prediction, headlines: Sequence[str], manifest: dict[str, Any], spec: ModelSpec
) -> tuple[str, ...]:
    """Return a note where the forecast made now is not the ledger's, with what is known of the reason; else none."""
    assert signal.p_up is not None, "an abstention is not made again"
    p_up, same = float(made.p_up[0]), len(headlines) == signal.news_count
    if same and made.news_weights is not None:
        largest = np.sort(made.news_weights[0])[::-1][: len(signal.top)]
        kept = np.array([weight for _, weight in signal.top])
        same = largest.shape == kept.shape and bool(np.allclose(largest, kept, rtol=0, atol=SAME))
    if same and abs(p_up - signal.p_up) <= SAME:
        return ()
    changed = ["the language model"] if manifest.get("texts") != spec.texts_id else []
    changed += ["the model's code"] if manifest.get("code") != (spec.code or code_hash("models")) else []
    count = "" if len(headlines) == signal.news_count else f", which read {signal.news_count:,} headlines"
    return (
        f"Not the forecast of the ledger: made again it is P(up) {p_up:.6f} from {len(headlines):,} headlines, there "
        f"{signal.p_up:.6f}{count}. Changed since: {' and '.join(changed) or 'prices, headlines or libraries'}.",
    )
