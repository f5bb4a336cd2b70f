"""Turn a universe's windows into signals: one model for all symbols where the model can pool, else one a symbol.

It stands where ``trader.adoption`` and ``trader.forecaster`` stand for one symbol; every symbol's own signals come from
the same ``forecaster.batched``. Each training is adopted ([retrain] adopt = "always").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache

from models.panel import PooledModel
from trader.adoption import InUse, stretches, stretches_of
from trader.clock import Calendar
from trader.config import Config
from trader.errors import NoData
from trader.events import BarClosed, DecisionDue, Event, Signal
from trader.forecaster import Stretch, abstain, batched
from trader.ledger_schema import FoldFacts
from trader.panel_training import PanelTrainer, TrainedPanel, plan_panel
from trader.progress import Stages
from trader.recording import fold_facts
from trader.registry import Registry
from trader.spans import Span, least_history
from trader.training import Loaded, ModelSpec, TrainedFold, Trainer, train_together
from trader.universe import Universe
from trader.universe_events import WHOLE
from trader.walkforward import Fold, plan
from trader.window import Window

TOO_YOUNG = "too few bars yet"
Progress = Callable[[int, int], None]
Overrides = Mapping[str, Mapping[date, str]]  # by symbol (WHOLE for all): session → model id in use from it on


@dataclass(frozen=True, slots=True)
class Seen:
    """What was read: a window a symbol, in the universe's order, and what was noticed on the way.

    missing: by symbol and session, why there can be no decision.   late: by symbol, the XNYS numbers of late bars.
    """

    universe: Universe
    span: Span
    windows: Mapping[str, Window]
    calendar: Calendar
    missing: Mapping[str, dict[date, str]] = field(default_factory=dict)
    late: Mapping[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, universe: Universe, span: Span, windows: Mapping[str, Window], calendar: Calendar) -> Seen:
        """Return a value in which nothing has been noticed yet."""
        return cls(universe, span, windows, calendar, {one: {} for one in windows}, {one: set() for one in windows})

    def note(self, symbol: str, event: Event) -> None:
        """Notice why a symbol cannot be decided, or that its bar came late."""
        if isinstance(event, BarClosed) and event.at > self.calendar.decide_at(event.session):
            self.late[symbol].add(self.calendar.index(event.session))
        elif isinstance(event, DecisionDue) and event.missing:
            self.missing[symbol][event.session] = event.missing


@dataclass(frozen=True, slots=True)
class UniverseForecasts:
    """The signals of one kind of model.

    sessions: every session of the exchange from the first on which some symbol was decided, oldest first.
    signals: by session, one a symbol, in the universe's order; an abstention says why.
    folds: of each model that decided something, by its first use.   pooled: whether each model is all symbols'.
    """

    model: str
    pooled: bool
    sessions: Sequence[date]
    signals: Mapping[date, Sequence[Signal]]
    folds: Sequence[FoldFacts]

    @property
    def all(self) -> list[Signal]:
        """Every signal, oldest first, within a session in the universe's order."""
        return [signal for session in self.sessions for signal in self.signals[session]]


def forecast_universe(
    config: Config,
    seen: Seen,
    spec: ModelSpec,
    registry: Registry,
    workers: int,
    stages: Stages,
    overrides: Overrides | None = None,
) -> UniverseForecasts:
    """Train every fold that the registry lacks and forecast every symbol, fold by fold.

    A symbol is decided from the session on at which its first decision is warmed up and a model is there: its own, or
    the universe's.   overrides: what an account decided by, whatever the rule says, until the next training.
    Raises NoData where no symbol fills a first fold.
    """
    pooled = isinstance(spec.factory(), PooledModel)
    rival = "" if spec.name == config.run.model else f" {spec.name}"
    with stages(f"train{rival}") as step:
        learn = _pooled if pooled else _each
        asked = _Learning(config, seen, spec, registry, workers, lambda d, t: step(d, t, "models"), overrides or {})
        ready = learn(asked)
    if not any(ready.stretches.values()):
        raise too_little(config, seen, spec)
    made: dict[str, dict[date, Signal]] = {}
    with stages(f"forecast{rival}") as step:
        for done, (symbol, window) in enumerate(seen.windows.items(), start=1):
            signals = batched(
                window,
                ready.stretches[symbol],
                ready.loads[symbol],
                symbol=symbol,
                lookback=spec.lookback,
                max_age=config.retrain.max_age,
                check_all=":" in spec.name,
            )
            made[symbol] = {signal.session: signal for signal in signals}
            step(done, len(seen.windows), symbol)
    newest: dict[str, str] = {}
    whole = {}
    for session in seen.calendar.sessions(seen.span.first, seen.span.last):
        reasons = {symbol: why[session] for symbol, why in seen.missing.items() if session in why}
        of_session = {symbol: signals[session] for symbol, signals in made.items() if session in signals}
        whole[session] = whole_session(session, list(seen.windows), of_session, reasons, newest)
    return universe_forecasts(config, seen, spec, pooled, whole, ready.folds)


def universe_forecasts(
    config: Config,
    seen: Seen,
    spec: ModelSpec,
    pooled: bool,
    whole: Mapping[date, Sequence[Signal]],
    folds: Sequence[FoldFacts],
) -> UniverseForecasts:
    """Return what was forecast, from the first session on on which some symbol was decided.

    Raises NoData where there is none. The folds are numbered by their first use.
    """
    decided = (session for session, signals in whole.items() if any(one.p_up is not None for one in signals))
    begin = next(decided, None)
    if begin is None:
        raise too_little(config, seen, spec)
    kept = {session: signals for session, signals in whole.items() if session >= begin}
    return UniverseForecasts(spec.name, pooled, list(kept), kept, _numbered(folds))


def whole_session(
    session: date,
    symbols: Sequence[str],
    made: Mapping[str, Signal],
    reasons: Mapping[str, str],
    newest: dict[str, str],
) -> list[Signal]:
    """Return one signal a symbol, in their order: an abstention wherever one was not decided.

    made: what the models said.   reasons: why a symbol cannot be decided.   newest: by symbol, the model that decided
    it last, which an abstention names ("" before the first); it is brought up to date.
    """
    found = []
    for symbol in symbols:
        signal, reason = made.get(symbol), reasons.get(symbol, "")
        if signal is None or signal.p_up is None or reason:
            said = reason or (TOO_YOUNG if signal is None else signal.reason)
            signal = abstain(session, symbol, newest.get(symbol, ""), said)
        else:
            newest[symbol] = signal.model_id
        found.append(signal)
    return found


@dataclass(frozen=True, slots=True)
class _Learning:
    """What is to be learned, from what; see ``forecast_universe``."""

    config: Config
    seen: Seen
    spec: ModelSpec
    registry: Registry
    workers: int
    train: Progress
    overrides: Overrides


@dataclass(frozen=True, slots=True)
class _Ready:
    """What forecasts: by symbol, which model decides what, and what loads it; and what the ledger keeps of each."""

    stretches: Mapping[str, Sequence[Stretch]]
    loads: Mapping[str, Callable[[str], Loaded]]
    folds: Sequence[FoldFacts]


def warm_up_of(spec: ModelSpec) -> int:
    """Return how many leading positions of a window cannot be decisions."""
    return Window.warm_up + spec.lookback - 1


def first_use(window: Window, seen: Seen) -> int:
    """Return the position of a symbol's first bar of the sessions traded; the window's length where it has none."""
    return bisect_left(window.sessions, seen.span.first)


def about_symbol(config: Config, universe: Universe, symbol: str) -> dict[str, str]:
    """Return what the models of one symbol learn from, as their manifests name it."""
    news = next(member.news for member in universe if member.symbol == symbol)
    return {"market": f"{symbol} of {universe.name}", "news": news or config.run.news}


def about_all(config: Config, universe: Universe) -> dict[str, str]:
    """Return what a model of all symbols learns from, as its manifest names it."""
    market = f"{len(universe)} symbols of {universe.name}"
    return {"market": market, "universe": universe.name, "news": config.run.news}


def _each(asked: _Learning) -> _Ready:
    """Train a model a symbol a fold, as a run of each symbol alone would, all side by side."""
    config, seen, spec = asked.config, asked.seen, asked.spec
    planned: dict[str, tuple[Trainer, list[Fold]]] = {}
    for symbol, window in seen.windows.items():
        late, about = seen.late.get(symbol, ()), about_symbol(config, seen.universe, symbol)
        folds = plan(window.numbers, first_use(window, seen), warm_up_of(spec), config.walkforward, late)
        planned[symbol] = (Trainer(window, spec, asked.registry, workers=asked.workers, about=about), folds)
    trained = dict(zip(planned, train_together(list(planned.values()), asked.train), strict=True))
    uses = {
        symbol: stretches(seen.windows[symbol], own, _in_use(seen.calendar, own, asked.overrides.get(symbol)))
        for symbol, own in trained.items()
    }
    loads = {symbol: trainer.load for symbol, (trainer, _) in planned.items()}
    facts = [fold_facts(seen.windows[symbol], 0, one) for symbol, own in trained.items() for one in own]
    return _Ready(uses, loads, facts)


def _in_use(
    calendar: Calendar, trained: Sequence[TrainedFold] | Sequence[TrainedPanel], overrides: Mapping[date, str] | None
) -> InUse:
    """Return which model decides each session where every training is adopted."""
    found = InUse(overrides)
    for one in trained:
        found.adopt(calendar.session(one.fold.trained_at + 1), one.model_id)
    return found


def _pooled(asked: _Learning) -> _Ready:
    """Train one model a fold over all symbols that have enough history at it."""
    config, seen, spec = asked.config, asked.seen, asked.spec
    calendar, about = seen.calendar, about_all(config, seen.universe)
    trainer = PanelTrainer(seen.windows, spec, asked.registry, calendar, workers=asked.workers, about=about)
    first, last = calendar.index(seen.span.first), calendar.index(seen.span.last)
    folds = plan_panel(seen.windows, first, last, warm_up_of(spec), config.walkforward, seen.late)
    trained = trainer.train(folds, asked.train)
    in_use = _in_use(calendar, trained, asked.overrides.get(WHOLE))
    found: dict[str, list[Stretch]] = {symbol: [] for symbol in seen.windows}
    for _, used in _panel_uses(seen, spec, trained):
        for symbol, use in used.items():
            found[symbol] += stretches_of(seen.windows[symbol], use, in_use)
    load = cache(trainer.load)  # kept, for every symbol asks for it
    return _Ready(found, dict.fromkeys(seen.windows, load), panel_facts(asked.registry, seen, spec, trained))


def _panel_uses(
    seen: Seen, spec: ModelSpec, trained: Sequence[TrainedPanel]
) -> list[tuple[TrainedPanel, dict[str, range]]]:
    """Return with each model the positions of each symbol that it decides."""
    ends = [*(one.fold.trained_at for one in trained[1:]), seen.calendar.index(seen.span.last)]
    found = []
    for one, end in zip(trained, ends, strict=True):
        used = {}
        for symbol, window in seen.windows.items():
            after = bisect_left(window.numbers, one.fold.trained_at + 1)
            use = range(max(after, first_use(window, seen), warm_up_of(spec)), bisect_left(window.numbers, end + 1))
            if use:
                used[symbol] = use
        found.append((one, used))
    return found


def panel_facts(registry: Registry, seen: Seen, spec: ModelSpec, trained: Sequence[TrainedPanel]) -> list[FoldFacts]:
    """Return what the ledger keeps of the models of all symbols that decide something by the rule."""
    found = []
    for one, used in _panel_uses(seen, spec, trained):
        ends = [seen.windows[symbol].sessions[at] for symbol, use in used.items() for at in (use.start, use.stop - 1)]
        if ends:
            found.append(_panel_facts(registry, one, min(ends), max(ends)))
    return found


def _panel_facts(registry: Registry, one: TrainedPanel, first: date, last: date) -> FoldFacts:
    spans = registry.manifest(one.model_id)["spans"]
    return FoldFacts(
        fold=0,
        model_id=one.model_id,
        train_first=date.fromisoformat(spans["train"][0]),
        train_last=date.fromisoformat(spans["train"][1]),
        validation_first=date.fromisoformat(spans["validation"][0]),
        validation_last=date.fromisoformat(spans["validation"][1]),
        use_first=first,
        use_last=last,
        validation_loss=one.report.validation_loss,
        validation_accuracy=one.report.validation_accuracy,
        epochs=one.report.epochs,
        train_seconds=one.seconds,
        cached=one.cached,
    )


def _numbered(folds: Sequence[FoldFacts]) -> list[FoldFacts]:
    """Return the folds by their first use, those of one session in the universe's order, numbered from 1."""
    ordered = sorted(folds, key=lambda one: one.use_first)
    return [replace(one, fold=number) for number, one in enumerate(ordered, start=1)]


def too_little(config: Config, seen: Seen, spec: ModelSpec) -> NoData:
    """Return the error of a run in which no symbol fills a first fold."""
    longest = max(len(window) for window in seen.windows.values())
    return NoData(
        "too little history to train a first model",
        where=seen.universe.name,
        got=f"{longest} sessions of the symbol that has most",
        expected=f"at least {least_history(config, spec.lookback) + 1}, and a session to trade",
        do="take a longer span, or lower [walkforward] train and validation",
    )
