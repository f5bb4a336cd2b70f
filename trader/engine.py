"""Wire the house: settings in, a finished run out. ``trader.parts`` knows which parts.

    store → scheduler → window → trainer and forecaster → broker → ledger → report

Each stage is timed. A run writes whole sessions into the ledger; one that is stopped leaves those it finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date, datetime
import inspect
from pathlib import Path
import traceback
from typing import Any, NamedTuple

from trader import broker, forecaster, metrics
from trader.adoption import Adoption, served, stretches
from trader.config import Config
from trader.errors import ConfigError, StoreError, TraderError
from trader.events import BarClosed, DecisionDue, NewsArrived, RetrainDue, Signal
from trader.host import ModelHost
from trader.ledger import Ledger
from trader.outcome import Forecasts, Home, Outcome, notes
from trader.parts import (
    FACTS,
    Readers,
    about,
    check_chats,
    costs_of,
    cpu_spec,
    facts_window,
    model_spec,
    readers_of,
    rivals_of,
    stock,
    strategy_of,
    window_of,
    workers_of,
)
from trader.progress import Stages, Watch, silent
from trader.recording import SessionWriter, fold_facts, run_facts
from trader.records import Control, Verdict
from trader.registry import Registry
from trader.scheduler import Scheduler
from trader.spans import Span, find_span, too_little
from trader.store import MarketStore
from trader.training import ModelSpec, TrainedFold, Trainer
from trader.universe import refuse_universe
from trader.walkforward import plan
from trader.window import Window


def backtest(
    config: Config,
    home_folder: Path,
    first: date,
    last: date,
    *,
    watch: Watch = silent,
    daily: bool = False,
    readers: Readers | None = None,
    overrides: Mapping[date, str] | None = None,
    controls: Mapping[date, Control] | None = None,
    abstain: Mapping[date, str] | None = None,
    bars_known: Mapping[date, datetime | None] | None = None,
) -> Outcome:
    """Run one walk-forward backtest over the sessions first … last and write it into the ledger.

    daily: forecast event by event instead of by folds; slower, the same signals.
    readers: what reads the headlines; None takes what the config names.
    overrides: session → id of a model in the registry that is in use from it on, whatever the rule says, until the
        next adopted training: the promotions and rollbacks of an account.
    controls, abstain, bars_known: what else befell an account, by session: what its owner asked for, why there was no
        decision, which version of its bar it had (None: none; such a session may be the last one too).
    Raises TraderError for anything that a user can mend; the ledger then keeps what was whole.
    """
    refuse_universe(config.run.market, "a backtest day by day, or of an account,")
    home, stages, run = Home(home_folder), Stages(watch), config.run
    overrides = overrides or {}
    strategy = strategy_of(config)
    check_chats(config)
    home.make()
    readers = readers or readers_of(config, home)
    spec = model_spec(config, run.model, readers.texts_id)
    rivals = rivals_of(config, readers.texts_id)
    window = window_of(config, readers)
    calendar = window.calendar
    with MarketStore.open(home.store) as store:
        with stages("data"):
            news = stock(store, run.market, run.news)
        with store.snapshot():  # an import in the middle of a run must not mix two sets of data
            span = find_span(store, calendar, config, news, first, last, spec.lookback, bars_known)
            scheduler = Scheduler(
                store,
                calendar,
                symbol=run.market,
                news=news,
                spec=config.walkforward,
                abstain=abstain,
                bars_known=bars_known,
                max_silence=config.risk.max_news_silence,
            )
            if daily:
                made = _forecast_daily(config, home, scheduler, span, window, spec, stages, overrides)
            else:
                read = _read(scheduler, span, window, stages)
    if not daily:
        made = _forecast_batched(config, home, span, window, read, spec, stages, overrides)
    beside = []
    for rival in rivals:
        reads = facts_window(window) if rival.name == FACTS else window
        if reads is not None:
            beside.append(_forecast_batched(config, home, span, reads, _Read([], set()), rival, stages, {}))
    return _trade(config, home, window, made, beside, strategy, span, last, stages, controls or {})


class _Read(NamedTuple):
    """What was noticed on the way to the window: the decisions that cannot be made, and the numbers of late bars."""

    missing: list[DecisionDue]
    late: set[int]


def _read(scheduler: Scheduler, span: Span, window: Window, stages: Stages) -> _Read:
    """Send the events of all sessions down to the window; return what cannot be decided, and which bars came late.

    Nothing is read ahead: each session's row is what the store's as_of(decide_at) gave for it.
    """
    missing: list[DecisionDue] = []
    late: set[int] = set()
    days = (span.last - span.pump).days + 1
    with stages("read") as step:
        for event in scheduler.events(span.pump, span.last):
            if isinstance(event, NewsArrived | BarClosed):
                window.update(event)
                if isinstance(event, BarClosed) and event.at > window.calendar.decide_at(event.session):
                    late.add(window.calendar.index(event.session))
            elif isinstance(event, DecisionDue):
                step((event.session - span.pump).days + 1, days, str(event.session))
                if event.missing:
                    missing.append(event)
    with stages("embed") as step:
        window.resolve(
            lambda done, total: step(done, total, "texts"), lambda done, total: step(done, total, "sentiment scores")
        )
    return _Read(missing, late)


def _forecast_batched(
    config: Config,
    home: Home,
    span: Span,
    window: Window,
    read: _Read,
    spec: ModelSpec,
    stages: Stages,
    overrides: Mapping[date, str],
) -> Forecasts:
    """Train every fold that the registry lacks, side by side, adopt one after the other, and forecast fold by fold."""
    symbol, warm_up, first_use = config.run.market, Window.warm_up + spec.lookback - 1, window.position(span.first)
    retrain, lookback = config.retrain, spec.lookback
    folds = plan(window.numbers, first_use, warm_up, config.walkforward, read.late, kept=retrain.kept_back, idle=True)
    if not any(fold.use for fold in folds):
        raise too_little(window, config)
    rival = "" if spec.name == config.run.model else f" {spec.name}"
    fallback = cpu_spec(config, spec.name, spec.texts_id) if spec.name == config.run.model else None
    trainer = Trainer(
        window, spec, Registry(home.models), workers=workers_of(config), fallback=fallback, about=about(config)
    )
    with stages(f"train{rival}") as step:
        trained = trainer.train(folds, lambda done, total: step(done, total, _fold_detail(window, folds, done, total)))
    first = next(fold.use.start for fold in folds if fold.use)
    with stages(f"forecast{rival}") as step:
        adoption = Adoption(
            window,
            trainer.load,
            config.walkforward,
            retrain,
            symbol=symbol,
            lookback=lookback,
            overrides=overrides,
        )
        for one in trained:
            adoption.take(one)
        signals = forecaster.batched(
            window,
            stretches(window, trained, adoption.in_use),
            trainer.load,
            symbol=symbol,
            lookback=lookback,
            max_age=retrain.max_age,
            check_all=":" in spec.name,
            progress=lambda done, total: step(done, total, str(window.sessions[first + done - 1])),
        )
    whole = forecaster.with_abstentions(signals, read.missing, adoption.in_use.at, symbol)
    return _forecasts(spec, whole, span, window, trained, adoption.verdicts)


def _forecasts(
    spec: ModelSpec,
    signals: Sequence[Signal],
    span: Span,
    window: Window,
    trained: Sequence[TrainedFold],
    verdicts: Sequence[Verdict],
) -> Forecasts:
    used = served(trained, verdicts, window.position(span.first), len(window))
    numbers, folds = [number for number, _ in used], [one for _, one in used]
    return Forecasts(spec.name, _from_first_decision(signals, span.first), folds, numbers, verdicts)


def _fold_detail(window: Window, folds: Sequence[Any], done: int, total: int) -> str:
    at = len(folds) - total + done - 1  # those that were cached need no training
    return f"fold {at + 1}, in use from {window.sessions[folds[at].use.start]}"


def _forecast_daily(
    config: Config,
    home: Home,
    scheduler: Scheduler,
    span: Span,
    window: Window,
    spec: ModelSpec,
    stages: Stages,
    overrides: Mapping[date, str],
) -> Forecasts:
    """Go through the events one by one, training when it is due and forecasting at each decision."""
    fallback = cpu_spec(config, spec.name, spec.texts_id)
    trainer = Trainer(window, spec, Registry(home.models), workers=1, fallback=fallback, about=about(config))
    signals: list[Signal] = []
    days = (span.last - span.pump).days + 1
    with (
        stages("day by day") as step,
        ModelHost(
            window,
            trainer,
            config.walkforward,
            config.retrain,
            symbol=config.run.market,
            lookback=spec.lookback,
            first=span.first,
            overrides=overrides,
            service=False,
        ) as host,
    ):
        for event in scheduler.events(span.pump, span.last):
            if isinstance(event, RetrainDue) and event.session == span.last:
                continue  # its model would decide nothing of this run
            decision = host.on(event)
            if decision is not None:
                signals.append(decision.signal)
            step((event.session - span.pump).days + 1, days, f"{event.session}, model {len(host.trained)}")
    if not signals:
        raise too_little(window, config)
    return _forecasts(spec, signals, span, window, host.trained, host.verdicts)


def _from_first_decision(signals: Sequence[Signal], first: date) -> list[Signal]:
    """Drop sessions before the first one that was decided: there is nothing yet to keep a position of."""
    traded = [signal for signal in signals if signal.session >= first]
    start = next((at for at, signal in enumerate(traded) if signal.p_up is not None), len(traded))
    return traded[start:]


def _trade(
    config: Config,
    home: Home,
    window: Window,
    made: Forecasts,
    beside: Sequence[Forecasts],
    strategy: tuple[type[Any], Mapping[str, Any]],
    span: Span,
    last: date,
    stages: Stages,
    controls: Mapping[date, Control],
) -> Outcome:
    """Run the broker over the signals, write each session into the ledger, and measure the whole."""
    costs = costs_of(config)
    bar_of = dict(zip(window.sessions, window.bars, strict=True))
    tradable = [signal for signal in made.signals if signal.session in bar_of]
    bars = [bar_of[signal.session] for signal in tradable]
    traded = {bar.session for bar in bars}
    how = (costs, config.run.execution, config.costs.stale_open)
    with stages("always buy"):
        always_buy = broker.always_buy(bars, None, *how)
    with Ledger.open(home.ledger) as ledger:
        run = ledger.start_run(run_facts(config, window, made, span))
        writer = SessionWriter(
            ledger, run, made.signals, dict(zip((bar.session for bar in bars), always_buy, strict=True))
        )
        with written(ledger, run, writer.flush, config.run.strategy, strategy[0]):
            numbered = zip(made.numbers, made.folds, strict=True)
            ledger.add_folds(run, [fold_facts(window, number, one) for number, one in numbered])
            ledger.add_verdicts(run, made.verdicts)
            with stages("broker"):
                trading = broker.trade(
                    bars,
                    tradable,
                    strategy[0],
                    strategy[1],
                    *how,
                    on_session=writer,
                    risk=config.risk,
                    controls={day: one for day, one in controls.items() if day in traded},
                )
                stages.seconds["broker"] = -writer.seconds  # what the ledger took in between is not the broker's
            writer.finish()
            stages.seconds["ledger"] = writer.seconds
            # A user's strategy is not run a second time: it may write files or talk to somebody.
            own = ":" in config.run.strategy
            bare = None if own else broker.bare_seconds(bars, tradable, strategy[0], strategy[1], costs)
            with stages("evaluate"):
                inputs = writer.evaluation(window, costs, config.evaluation.risk_free)
                drawn = {"seed": config.run.seed, "resamples": config.evaluation.resamples}
                report = metrics.evaluate(inputs, **drawn)
                ledger.write_metrics(run, report.metrics)
                rivals = {other.model: _figures_of(other, made, inputs, drawn) for other in beside}
            ledger_hash = ledger.ledger_hash(run)
        ledger.finish_run(run, "finished", ledger_hash)
    return Outcome(
        run=run,
        config=config,
        home=home,
        forecasts=made,
        report=report,
        rivals=rivals,
        trading=trading,
        bare_seconds=bare,
        stages=dict(stages.seconds),
        ledger_hash=ledger_hash,
        notes=notes(config, window, made, trading, span, last),
    )


@contextmanager
def written(ledger: Ledger, run: int, flush: Callable[[], None], strategy: str, kind: type[Any]) -> Iterator[None]:
    """Keep what was whole of a run that is stopped or fails inside, and say in the ledger which it was.

    flush: writes the sessions that wait.   strategy, kind: its name and class; a fault of a user's own is told as such.
    """
    try:
        yield
    except KeyboardInterrupt:
        flush()
        ledger.finish_run(run, "stopped")
        raise
    except Exception as error:
        with suppress(StoreError):  # the ledger itself may be what failed
            flush()
            ledger.finish_run(run, "failed")
        if (theirs := blamed(strategy, kind, error)) is not None:
            raise theirs from error
        raise


def _figures_of(
    rival: Forecasts, made: Forecasts, inputs: metrics.EvaluationInputs, drawn: Mapping[str, int]
) -> list[metrics.Metric]:
    """Return the figures of a rival's signals on the model's own sessions, with their intervals."""
    side = {signal.session: signal.side for signal in rival.signals}
    beside = replace(inputs, side=[side.get(signal.session, 0) for signal in made.signals])
    return [metric for metric in metrics.evaluate(beside, **drawn).metrics if metric.of == "signals"]


def blamed(name: str, kind: type[Any], error: Exception) -> ConfigError | None:
    """Return what a fault is told as where it is that of a user's own strategy, else None."""
    if ":" in name and not isinstance(error, TraderError) and _is_theirs(kind, error):
        return _in_your_strategy(name, error)
    return None


def _is_theirs(kind: type[Any], error: Exception) -> bool:
    """Tell whether a fault came up through the strategy's own file; what did not is a bug of ours."""
    own = inspect.getsourcefile(kind)
    return any(frame.filename == own for frame in traceback.extract_tb(error.__traceback__))


def _in_your_strategy(name: str, error: Exception) -> ConfigError:
    """Return what a fault in a user's strategy is told as: one line, with its place."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name
    return ConfigError(f"the strategy {name} failed", where=place, got=f"{type(error).__name__}: {error}")
