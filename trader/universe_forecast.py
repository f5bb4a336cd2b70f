"""Turn a universe's windows into signals: one model for all symbols where the model can pool, else one a symbol.

It stands where ``trader.adoption`` and ``trader.forecaster`` stand for one symbol; every symbol's own signals come from
the same ``forecaster.batched``. Each training is adopted ([retrain] adopt = "always").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from models.panel import PooledModel
from trader.clock import Calendar
from trader.config import Config
from trader.errors import NoData
from trader.events import Signal
from trader.forecaster import Stretch, abstain, batched
from trader.ledger_schema import FoldFacts
from trader.panel_training import PanelTrainer, TrainedPanel, plan_panel
from trader.progress import Stages
from trader.recording import fold_facts
from trader.registry import Registry
from trader.spans import Span, least_history
from trader.training import Loaded, ModelSpec, Trainer, train_together
from trader.universe import Universe
from trader.walkforward import Fold, plan
from trader.window import Window

TOO_YOUNG = "too few bars yet"
Progress = Callable[[int, int], None]


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
    config: Config, seen: Seen, spec: ModelSpec, registry: Registry, workers: int, stages: Stages
) -> UniverseForecasts:
    """Train every fold that the registry lacks and forecast every symbol, fold by fold.

    A symbol is decided from the session on at which its first decision is warmed up and a model is there: its own, or
    the universe's. Raises NoData where no symbol fills a first fold.
    """
    pooled = isinstance(spec.factory(), PooledModel)
    rival = "" if spec.name == config.run.model else f" {spec.name}"
    with stages(f"train{rival}") as step:
        learn = _pooled if pooled else _each
        ready = learn(config, seen, spec, registry, workers, lambda done, total: step(done, total, "models"))
    if not any(ready.stretches.values()):
        raise _too_little(config, seen, spec)
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
    sessions, whole = _whole(seen, made)
    if not sessions:
        raise _too_little(config, seen, spec)
    return UniverseForecasts(spec.name, pooled, sessions, whole, _numbered(ready.folds))


@dataclass(frozen=True, slots=True)
class _Ready:
    """What forecasts: by symbol, which model decides what, and what loads it; and what the ledger keeps of each."""

    stretches: Mapping[str, Sequence[Stretch]]
    loads: Mapping[str, Callable[[str], Loaded]]
    folds: Sequence[FoldFacts]


def _warm_up(spec: ModelSpec) -> int:
    return Window.warm_up + spec.lookback - 1


def _first_use(window: Window, seen: Seen) -> int:
    """Return the position of a symbol's first bar of the sessions traded; the window's length where it has none."""
    return bisect_left(window.sessions, seen.span.first)


def _each(config: Config, seen: Seen, spec: ModelSpec, registry: Registry, workers: int, train: Progress) -> _Ready:
    """Train a model a symbol a fold, as a run of each symbol alone would, all side by side."""
    planned: dict[str, tuple[Trainer, list[Fold]]] = {}
    for member in seen.universe:
        window, first = seen.windows[member.symbol], _first_use(seen.windows[member.symbol], seen)
        about = {"market": f"{member.symbol} of {seen.universe.name}", "news": member.news or config.run.news}
        folds = plan(window.numbers, first, _warm_up(spec), config.walkforward, seen.late.get(member.symbol, ()))
        planned[member.symbol] = (Trainer(window, spec, registry, workers=workers, about=about), folds)
    trained = dict(zip(planned, train_together(list(planned.values()), train), strict=True))
    stretches = {symbol: [Stretch(one.model_id, one.fold.use) for one in own] for symbol, own in trained.items()}
    loads = {symbol: trainer.load for symbol, (trainer, _) in planned.items()}
    facts = [fold_facts(seen.windows[symbol], 0, one) for symbol, own in trained.items() for one in own]
    return _Ready(stretches, loads, facts)


def _pooled(config: Config, seen: Seen, spec: ModelSpec, registry: Registry, workers: int, train: Progress) -> _Ready:
    """Train one model a fold over all symbols that have enough history at it."""
    calendar, name = seen.calendar, seen.universe.name
    about = {"market": f"{len(seen.universe)} symbols of {name}", "universe": name, "news": config.run.news}
    trainer = PanelTrainer(seen.windows, spec, registry, calendar, workers=workers, about=about)
    first, last = calendar.index(seen.span.first), calendar.index(seen.span.last)
    folds = plan_panel(seen.windows, first, last, _warm_up(spec), config.walkforward, seen.late)
    trained = trainer.train(folds, train)
    ends = [*(one.fold.trained_at for one in trained[1:]), last]
    stretches: dict[str, list[Stretch]] = {symbol: [] for symbol in seen.windows}
    facts = []
    for one, end in zip(trained, ends, strict=True):
        used: list[date] = []
        for symbol, window in seen.windows.items():
            begin = max(bisect_left(window.numbers, one.fold.trained_at + 1), _first_use(window, seen), _warm_up(spec))
            use = range(begin, bisect_left(window.numbers, end + 1))
            if use:
                stretches[symbol].append(Stretch(one.model_id, use))
                used += [window.sessions[use.start], window.sessions[use.stop - 1]]
        if used:
            facts.append(_panel_facts(registry, one, min(used), max(used)))
    return _Ready(stretches, dict.fromkeys(seen.windows, trainer.load), facts)


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


def _whole(seen: Seen, made: Mapping[str, Mapping[date, Signal]]) -> tuple[list[date], dict[date, list[Signal]]]:
    """Put an abstention wherever a symbol was not decided, and drop the sessions before the first decision.

    An abstention names the model that decided the symbol last, "" before the first.
    """
    sessions = seen.calendar.sessions(seen.span.first, seen.span.last)
    whole: dict[date, list[Signal]] = {session: [] for session in sessions}
    for symbol in seen.windows:
        reasons, newest = seen.missing.get(symbol, {}), ""
        for session in sessions:
            signal = made[symbol].get(session)
            if signal is None or session in reasons:
                signal = abstain(session, symbol, newest, reasons.get(session) or TOO_YOUNG)
            newest = signal.model_id
            whole[session].append(signal)
    decided = (session for session in sessions if any(one.p_up is not None for one in whole[session]))
    begin = next(decided, None)
    kept = [session for session in sessions if begin is not None and session >= begin]
    return kept, {session: whole[session] for session in kept}


def _numbered(folds: Sequence[FoldFacts]) -> list[FoldFacts]:
    """Return the folds by their first use, those of one session in the universe's order, numbered from 1."""
    ordered = sorted(folds, key=lambda one: one.use_first)
    return [replace(one, fold=number) for number, one in enumerate(ordered, start=1)]


def _too_little(config: Config, seen: Seen, spec: ModelSpec) -> NoData:
    """Return the error of a run in which no symbol fills a first fold."""
    longest = max(len(window) for window in seen.windows.values())
    return NoData(
        "too little history to train a first model",
        where=seen.universe.name,
        got=f"{longest} sessions of the symbol that has most",
        expected=f"at least {least_history(config, spec.lookback) + 1}, and a session to trade",
        do="take a longer span, or lower [walkforward] train and validation",
    )
