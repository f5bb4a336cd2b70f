"""A universe in an experiment: its symbols' sessions, the folds over all of them, and the cells that they make.

Beside ``trader.experiment_inputs`` and ``trader.experiment_plan``, which do this for one market. A fold's spans are the
calendar's, as in a backtest (``trader.panel_training``); one training serves all symbols, and a cell holds what it said
of every symbol on every test day.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
import hashlib
import json

from models.base import Days
from trader.cell_work import PanelJob, Share
from trader.cells import CellFacts
from trader.config import Config, WalkForward
from trader.errors import NoData
from trader.events import BarClosed, NewsArrived
from trader.experiment_inputs import HISTORY
from trader.experiment_plan import own_code
from trader.methods import Method, Reading, Settings
from trader.outcome import Home
from trader.panel_training import plan_panel
from trader.parts import Readers, model_spec, stock_universe, windows_of
from trader.progress import Stages
from trader.sources import source_hash
from trader.store import MarketStore
from trader.training import fold_seed
from trader.universe import Universe, universe_of
from trader.universe_events import UniverseScheduler
from trader.universe_spans import check_store, universe_span
from trader.walkforward import Fold
from trader.window import Window, resolve_all


@dataclass(frozen=True)
class PanelInputs:
    """A universe through one reading: each symbol's window, what its days hold, and the sessions decided.

    market: the universe's name.   first, last: XNYS numbers of the sessions to learn from and to decide.
    """

    market: str
    windows: Mapping[str, Window]
    texts_id: str
    digests: Mapping[str, Sequence[str]]
    first: int
    last: int

    @property
    def spanned(self) -> tuple[date, date]:
        """The first and the last session decided."""
        numbered = {n: day for w in self.windows.values() for n, day in zip(w.numbers, w.sessions, strict=True)}
        inside = sorted(n for n in numbered if self.first <= n <= self.last)
        return numbered[inside[0]], numbered[inside[-1]]

    def folds(self, spec: WalkForward) -> list[PanelFold]:
        """Return the folds of a walk-forward, oldest first; the first is the first that is full for some symbol.

        A test day is any whose next close is known, of every symbol with HISTORY sessions before it.
        """
        planned = plan_panel(self.windows, self.first, self.last, HISTORY - 1, spec, {})
        planned = [fold for fold in planned if fold.trained_at >= self.first]
        ends = [*(fold.trained_at for fold in planned[1:]), self.last]
        found = []
        for fold, end in zip(planned, ends, strict=True):
            shares = {}
            for symbol, window in self.windows.items():
                begin = max(bisect_left(window.numbers, fold.trained_at + 1), HISTORY - 1)
                use = range(begin, min(bisect_left(window.numbers, end + 1), len(window) - 1))
                learned = fold.parts.get(symbol)
                train, validation = (learned.train, learned.validation) if learned else (range(0), range(0))
                if learned or use:
                    shares[symbol] = Fold(fold.trained_at, train, validation, use if use else range(0))
            found.append(PanelFold(fold.trained_at, shares))
        return [fold for fold in found if any(len(share.use) for share in fold.shares.values())]


@dataclass(frozen=True)
class PanelFold:
    """One training over many symbols and the days that it decides; a symbol may have no days of a kind."""

    trained_at: int
    shares: Mapping[str, Fold]

    def blind(self) -> PanelFold:
        """Return the same without its test days."""
        learned = {symbol: share for symbol, share in self.shares.items() if share.train or share.validation}
        return PanelFold(self.trained_at, {symbol: replace(one, use=range(0)) for symbol, one in learned.items()})


@dataclass(frozen=True)
class PlannedPanel:
    """A job over many symbols, and where their days are taken from when it is due."""

    job: PanelJob
    cuts: Sequence[tuple[Window, int, int]]

    @property
    def facts(self) -> CellFacts:
        """What the cell is."""
        return self.job.facts

    def days(self) -> list[Days]:
        """Return each share's days, with all their labels: copies, so made when they are due."""
        return [window.learnable(first, stop) for window, first, stop in self.cuts]


def load_panel(
    config: Config,
    home: Home,
    market: str,
    text: str,
    asked: tuple[str, date | None, date | None],
    reading: Reading,
    readers: Readers,
    stages: Stages,
) -> PanelInputs:
    """Send a universe's sessions from HISTORY before the first one on through its windows, and embed their headlines.

    text: the universe, as its file has it.   asked: news set, first and last day; None takes what the store holds of
    both bars and headlines. Raises NoData where it lacks prices or news.
    """
    universe = universe_of(text)
    config = replace(config, run=replace(config.run, market=text, news=asked[0]))
    cap = config.experiment.headlines_a_day if reading.headlines_a_day < 0 else reading.headlines_a_day
    windows = windows_of(config, universe, readers, headlines_a_day=cap, rescore=bool(reading.scorer))
    calendar = next(iter(windows.values())).calendar
    with MarketStore.open(home.store) as store:
        stocked = stock_universe(store, universe, config.run.news)
        with store.snapshot(), stages(f"read {market}") as step:
            first, last = _asked(store, stocked, asked[1], asked[2])
            span = universe_span(store, calendar, config, stocked, first, last).span
            begin = calendar.index(span.first)
            pump = calendar.session(max(0, begin - HISTORY))
            for symbol, event in UniverseScheduler(store, calendar, stocked, spec=config.walkforward).events(
                pump, span.last
            ):
                if isinstance(event, NewsArrived | BarClosed):
                    windows[symbol].update(event)
                    step((event.session - pump).days + 1, (span.last - pump).days + 1, str(event.session))
    with stages(f"embed {market}") as step:
        resolve_all(
            windows.values(),
            lambda done, total: step(done, total, "texts"),
            lambda d, t: step(d, t, "sentiment scores"),
        )
        windows = {symbol: window for symbol, window in windows.items() if len(window)}
        digests = {
            symbol: [window.fingerprint(at, at + 1) for at in range(len(window))] for symbol, window in windows.items()
        }
    return PanelInputs(market, windows, readers.texts_id, digests, begin, calendar.index(span.last))


def _asked(store: MarketStore, universe: Universe, first: date | None, last: date | None) -> tuple[date, date]:
    """Return the days asked for; where none are, those that have both bars and headlines of some symbol."""
    check_store(store, universe)
    symbols, sets = store.symbols(), store.names()
    bars = [symbols[member.prices] for member in universe]
    news = [sets[name] for name in dict.fromkeys(member.news for member in universe)]
    starts = [[one.first for one in bars if one.first], [one.first.date() for one in news if one.first]]
    ends = [[one.last for one in bars if one.last], [one.last.date() for one in news if one.last]]
    if not all((*starts, *ends)):
        raise NoData("no bars or no headlines", where=universe.name)
    return first or max(map(min, starts)), last or min(map(max, ends))


def plan_panel_cell(
    config: Config,
    row: Method,
    inputs: PanelInputs,
    lookback: int,
    protocol: str,
    split: int,
    seed: int,
    fold: PanelFold,
    setting: Settings,
) -> PlannedPanel:
    """Cut a fold out of every symbol's sessions for a method, and name the cell by all that shapes it.

    As ``trader.experiment_plan.plan_cell``; the target is the next day's return.
    """
    options = {**config.model.get(row.model, {}), **row.settings, **setting}
    run = replace(config.run, lookback=lookback, market=inputs.market)
    spec = model_spec(replace(config, run=run, model={row.model: options}), row.model, inputs.texts_id)
    shares, cuts, named, spans = [], [], [], []
    for symbol, one in fold.shares.items():
        window, held = inputs.windows[symbol], [span for span in (one.train, one.validation, one.use) if span]
        first, stop = min(span.start for span in held) - spec.lookback + 1, max(span.stop for span in held)
        ranges = [
            range(s.start - first, s.stop - first) if s else range(0) for s in (one.train, one.validation, one.use)
        ]
        train, validation, use = ranges
        shares.append(Share(symbol, train, validation, use, [str(window.sessions[at]) for at in one.use]))
        cuts.append((window, first, stop))
        named.append(
            [
                symbol,
                window.description,
                [[part.start, part.stop] for part in ranges],
                inputs.digests[symbol][max(0, first - Window.warm_up - 1) : stop + 1],
            ]
        )
        spans.append((window, one))
    ends = {
        f"{name}_{end}": pick(
            str(window.sessions[getattr(one, name)[0 if end == "first" else -1]])
            for window, one in spans
            if getattr(one, name)
        )
        for name in ("train", "validation")
        for end, pick in (("first", min), ("last", max))
    }
    shape = {
        "model": row.model,
        "settings": dict(spec.settings),
        "code": [spec.code, *own_code(), source_hash("trader.experiment_panel")],
        "texts": inputs.texts_id,
        "target": "next_day",
        "seed": config.run.seed + seed,
        "symbols": named,
    }
    facts = CellFacts(
        cell=hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest(),
        method=row.key,
        market=inputs.market,
        target="next_day",
        lookback=lookback,
        protocol=protocol,
        split=split,
        seed=seed,
        setting=json.dumps({**row.settings, **setting}, sort_keys=True),
        **ends,
    )
    own_seed = fold_seed(config.run.seed + seed, row.model, facts.train_last)
    return PlannedPanel(PanelJob(facts, spec, spec.lookback, own_seed, shares), cuts)
