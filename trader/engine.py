"""Wire the house: settings in, a finished run out. ``trader.parts`` knows which parts.

    store → scheduler → window → trainer and forecaster → broker → ledger → report

Each stage is timed. A run writes whole sessions into the ledger; one that is stopped leaves those it finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
import inspect
from pathlib import Path
import traceback
from typing import Any

from trader import broker, forecaster, metrics
from trader.config import Config, as_mapping
from trader.errors import ConfigError, StoreError, TraderError
from trader.events import BarClosed, DecisionDue, NewsArrived, Signal
from trader.ledger import Ledger
from trader.outcome import Forecasts, Home, Outcome, notes
from trader.parts import (
    FACTS,
    Readers,
    check_chats,
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
from trader.records import Costs
from trader.registry import Registry
from trader.scheduler import Scheduler
from trader.spans import Span, find_span, too_little
from trader.store import MarketStore
from trader.training import ModelSpec, Trainer
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
) -> Outcome:
    """Run one walk-forward backtest over the sessions first … last and write it into the ledger.

    daily: forecast event by event instead of by folds; slower, the same signals.
    readers: what reads the headlines; None takes what the config names.
    Raises TraderError for anything that a user can mend; the ledger then keeps what was whole.
    """
    home, stages, run = Home(home_folder), Stages(watch), config.run
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
            span = find_span(store, calendar, config, news, first, last, spec.lookback)
            scheduler = Scheduler(store, calendar, symbol=run.market, news=news, spec=config.walkforward)
            if daily:
                made = _forecast_daily(config, home, scheduler, span, window, spec, stages)
            else:
                missing = _read(scheduler, span, window, stages)
    if not daily:
        made = _forecast_batched(config, home, span, window, missing, spec, stages)
    beside = []
    for rival in rivals:
        reads = facts_window(window) if rival.name == FACTS else window
        if reads is not None:
            beside.append(_forecast_batched(config, home, span, reads, [], rival, stages))
    return _trade(config, home, window, made, beside, strategy, span, last, stages)


def _read(scheduler: Scheduler, span: Span, window: Window, stages: Stages) -> list[DecisionDue]:
    """Send the events of all sessions down to the window; return the decisions that lack their bar.

    Nothing is read ahead: each session's row is what the store's as_of(decide_at) gave for it.
    """
    missing: list[DecisionDue] = []
    days = (span.last - span.pump).days + 1
    with stages("read") as step:
        for event in scheduler.events(span.pump, span.last):
            if isinstance(event, NewsArrived | BarClosed):
                window.update(event)
            elif isinstance(event, DecisionDue):
                step((event.session - span.pump).days + 1, days, str(event.session))
                if event.missing:
                    missing.append(event)
    with stages("embed") as step:
        window.resolve(
            lambda done, total: step(done, total, "texts"), lambda done, total: step(done, total, "sentiment scores")
        )
    return missing


def _forecast_batched(
    config: Config,
    home: Home,
    span: Span,
    window: Window,
    missing: Sequence[DecisionDue],
    spec: ModelSpec,
    stages: Stages,
) -> Forecasts:
    """Train every fold that the registry lacks, side by side, and forecast fold by fold."""
    symbol, warm_up = config.run.market, Window.warm_up + spec.lookback - 1
    folds = plan(window.numbers, window.position(span.first), warm_up, config.walkforward)
    if not folds:
        raise too_little(window, config)
    rival = "" if spec.name == config.run.model else f" {spec.name}"
    trainer = Trainer(window, spec, Registry(home.models), workers=workers_of(config))
    with stages(f"train{rival}") as step:
        trained = trainer.train(folds, lambda done, total: step(done, total, _fold_detail(window, folds, done, total)))
    first = folds[0].use.start
    with stages(f"forecast{rival}") as step:
        signals = forecaster.batched(
            window,
            trainer,
            trained,
            symbol=symbol,
            lookback=spec.lookback,
            check_all=":" in spec.name,
            progress=lambda done, total: step(done, total, str(window.sessions[first + done - 1])),
        )
    whole = forecaster.with_abstentions(signals, missing, trained, window.calendar, symbol)
    return Forecasts(spec.name, _from_first_decision(whole, span.first), trained)


def _fold_detail(window: Window, folds: Sequence[Any], done: int, total: int) -> str:
    at = len(folds) - total + done - 1  # those that were cached need no training
    return f"fold {at + 1}, in use from {window.sessions[folds[at].use.start]}"


def _forecast_daily(
    config: Config, home: Home, scheduler: Scheduler, span: Span, window: Window, spec: ModelSpec, stages: Stages
) -> Forecasts:
    """Go through the events one by one, training when it is due and forecasting at each decision."""
    trainer = Trainer(window, spec, Registry(home.models), workers=1)
    daily = forecaster.DailyForecaster(
        window, trainer, config.walkforward, symbol=config.run.market, lookback=spec.lookback, first=span.first
    )
    signals: list[Signal] = []
    days = (span.last - span.pump).days + 1
    with stages("day by day") as step:
        for event in scheduler.events(span.pump, span.last):
            signal = daily.on(event)
            if signal is not None:
                signals.append(signal)
            step((event.session - span.pump).days + 1, days, f"{event.session}, model {len(daily.trained)}")
    if not signals:
        raise too_little(window, config)
    used = [
        replace(one, fold=replace(one.fold, use=range(one.fold.use.start, stop)))
        for one, stop in zip(daily.trained, [*(t.fold.use.start for t in daily.trained[1:]), len(window)], strict=True)
    ]
    return Forecasts(spec.name, _from_first_decision(signals, span.first), [one for one in used if one.fold.use])


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
) -> Outcome:
    """Run the broker over the signals, write each session into the ledger, and measure the whole."""
    costs = Costs(**{key: value for key, value in as_mapping(config)["costs"].items() if key != "stale_open"})
    bar_of = dict(zip(window.sessions, window.bars, strict=True))
    tradable = [signal for signal in made.signals if signal.session in bar_of]
    bars = [bar_of[signal.session] for signal in tradable]
    how = (costs, config.run.execution, config.costs.stale_open)
    with stages("always buy"):
        always_buy = broker.always_buy(bars, None, *how)
    with Ledger.open(home.ledger) as ledger:
        run = ledger.start_run(run_facts(config, window, made, span))
        writer = SessionWriter(
            ledger, run, made.signals, dict(zip((bar.session for bar in bars), always_buy, strict=True))
        )
        try:
            ledger.add_folds(run, [fold_facts(window, at, one) for at, one in enumerate(made.folds, start=1)])
            with stages("broker"):
                trading = broker.trade(
                    bars, tradable, strategy[0], strategy[1], *how, on_session=writer, risk=config.risk
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
        except KeyboardInterrupt:
            writer.flush()
            ledger.finish_run(run, "stopped")
            raise
        except Exception as error:
            with suppress(StoreError):  # the ledger itself may be what failed
                writer.flush()
                ledger.finish_run(run, "failed")
            if ":" in config.run.strategy and not isinstance(error, TraderError) and _is_theirs(strategy[0], error):
                raise _in_your_strategy(config.run.strategy, error) from error
            raise
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


def _figures_of(
    rival: Forecasts, made: Forecasts, inputs: metrics.EvaluationInputs, drawn: Mapping[str, int]
) -> list[metrics.Metric]:
    """Return the figures of a rival's signals on the model's own sessions, with their intervals."""
    side = {signal.session: signal.side for signal in rival.signals}
    beside = replace(inputs, side=[side.get(signal.session, 0) for signal in made.signals])
    return [metric for metric in metrics.evaluate(beside, **drawn).metrics if metric.of == "signals"]


def _is_theirs(kind: type[Any], error: Exception) -> bool:
    """Tell whether a fault came up through the strategy's own file; what did not is a bug of ours."""
    own = inspect.getsourcefile(kind)
    return any(frame.filename == own for frame in traceback.extract_tb(error.__traceback__))


def _in_your_strategy(name: str, error: Exception) -> ConfigError:
    """Return what a fault in a user's strategy is told as: one line, with its place."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name
    return ConfigError(f"the strategy {name} failed", where=place, got=f"{type(error).__name__}: {error}")
