"""Wire the house: settings in, a finished run out. The only place where models, feeds and strategies are named.

    store → scheduler → window → trainer and forecaster → broker → ledger → report

Each stage is timed. A run writes whole sessions into the ledger; one that is stopped leaves those it finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
import hashlib
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np

from feeds import builtin, wire
from trader import broker, forecaster, metrics
from trader.clock import Calendar
from trader.config import Config, as_mapping, build
from trader.errors import ConfigError, StoreError
from trader.events import BarClosed, DecisionDue, NewsArrived, NewsRows, Signal
from trader.ledger import Ledger
from trader.outcome import Forecasts, Home, Outcome, notes
from trader.progress import Stages, Watch, silent
from trader.recording import SessionWriter, fold_facts, next_returns, run_facts
from trader.records import Costs
from trader.registry import Registry
from trader.scheduler import Scheduler
from trader.spans import Span, find_span, too_little
from trader.store import FileSource, MarketStore
from trader.training import ModelSpec, Trainer
from trader.walkforward import plan
from trader.window import Scorer, TextIndex, Window

MODELS = {  # name → class, and the dataclass of its settings
    "finin": ("models.finin:Finin", "models.finin:FininConfig"),
    "logistic": ("models.baselines:Logistic", ""),
    "boosting": ("models.baselines:Boosting", ""),
}
FACTS = "facts"  # a rival only: logistic regression on the numbers that the wire's words are made from
STRATEGIES = {
    "long_short": "strategies.long_short:LongShort",
    "long_only": "strategies.long_only:LongOnly",
    "threshold": "strategies.threshold:Threshold",
    "vol_target": "strategies.vol_target:VolTarget",
}


@dataclass(frozen=True, slots=True)
class Readers:
    """What turns headlines into numbers: embeddings with the fingerprint of their language model, and sentiment."""

    texts: TextIndex
    texts_id: str
    scorer: Scorer


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
    calendar = Calendar(config.inputs.decide_minutes)
    strategy = strategy_of(config)
    readers = readers or readers_of(config, home)
    spec = model_spec(config, run.model, readers.texts_id)
    rivals = _rivals(config, readers.texts_id)
    window = Window(
        calendar,
        readers.texts,
        readers.scorer,
        market_text=config.inputs.market_text or builtin.market_text(run.market),
        headlines_a_day=config.inputs.headlines_a_day,
        levels=config.inputs.market_features == "levels",
    )
    with MarketStore.open(home.store) as store:
        with stages("data"):
            news = stock(store, run.market, run.news)
            span = find_span(store, calendar, config, news, first, last)
        scheduler = Scheduler(store, calendar, symbol=run.market, news=news, spec=config.walkforward)
        if daily:
            made = _forecast_daily(config, home, scheduler, span, window, spec, stages)
        else:
            missing = _read(scheduler, span, window, stages)
            made = _forecast_batched(config, home, span, window, missing, spec, stages)
    beside = [
        _forecast_batched(
            config, home, span, _facts_window(window) if other.name == FACTS else window, [], other, stages
        )
        for other in rivals
    ]
    return _trade(config, home, window, made, beside, strategy, span, stages)


def stock(store: MarketStore, market: str, news: str) -> str:
    """Put the built-in bars and the wire into the store where they are asked for and not there yet.

    Returns the name of the news set in the store: the wire's carries its version.
    """
    if market in builtin.BUILT_IN and market not in store.symbols():
        store.add_bars(builtin.bars(market), source="arch")
    if news != "wire":
        return news
    if wire.SET not in store.names():
        written = wire.headlines(builtin.series())
        rows = NewsRows(news=written, row=np.arange(1, len(written) + 1), rejected=())
        store.add_news(wire.SET, [rows], source=FileSource(name="market wire", options=wire.SET))
    return wire.SET


def model_spec(config: Config, name: str, texts_id: str) -> ModelSpec:
    """Return what is needed to train the named model: a row of MODELS or a ``package.module:Class`` of the user's.

    A user's class is called with ``lookback`` and the keys of its section ``[model."package.module:Class"]``.
    Raises ConfigError for a name, key or value that does not exist.
    """
    if name not in MODELS and ":" not in name:
        raise _unknown("model", name, MODELS)
    where, seed, lookback = f"[model.{name}]", config.run.seed, config.run.lookback
    options = {**config.model.get(name, {}), "lookback": lookback}
    path, settings_path = MODELS.get(name, (name, ""))
    kind = _class(path)
    if settings_path:
        chosen = build(_class(settings_path), {**options, "device": config.compute.device}, where)
        return ModelSpec(name, partial(kind, chosen), asdict(chosen), lookback, texts_id, seed)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"the model does not take these settings ({error})", where=where) from error
    code = "" if name in MODELS else _source_hash(kind)
    return ModelSpec(name, partial(kind, **options), options, lookback, texts_id, seed, code)


def _rivals(config: Config, texts_id: str) -> list[ModelSpec]:
    """Return the models to be scored beside; the wire's facts are there with the wire alone."""
    names = [name for name in config.evaluation.rivals if name not in (config.run.model, FACTS)]
    specs = [model_spec(config, name, texts_id) for name in names]
    if FACTS in config.evaluation.rivals and config.run.news == "wire":
        settings = {"lookback": 1}  # the facts look back by themselves
        factory = partial(_class(MODELS["logistic"][0]), **settings)
        specs.append(ModelSpec(FACTS, factory, settings, 1, "none", config.run.seed))
    return specs


def _facts_window(window: Window) -> Window:
    """Return the window with the wire's facts as numbers, each known at its session's close, instead of its words."""
    table = wire.facts(builtin.series()).fillna(0.0)  # missing in the first year, and where a volume is
    rows = zip((stamp.date() for stamp in table.index), table.to_numpy(dtype=np.float32), strict=True)
    return window.with_numbers(dict(rows))


def _source_hash(kind: type[Any]) -> str:
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):  # a class that has no file
        return ""


def _class(path: str) -> Any:
    return broker.load_class(path, object)


def strategy_of(config: Config) -> tuple[type[Any], Mapping[str, Any]]:
    """Return the strategy's class and its parameters; raise ConfigError for a name that does not exist."""
    from strategies.base import bt

    name = config.run.strategy
    if name not in STRATEGIES and ":" not in name:
        raise _unknown("strategy", name, STRATEGIES)
    return broker.load_class(STRATEGIES.get(name, name), bt.Strategy), dict(config.strategy.get(name, {}))


def _unknown(what: str, name: str, table: Mapping[str, object]) -> ConfigError:
    return ConfigError(f"no such {what}", got=name, expected=f"{', '.join(table)} or package.module:Class")


def _workers(config: Config) -> int:
    return config.compute.workers or os.cpu_count() or 1


def readers_of(config: Config, home: Home) -> Readers:
    """Return the configured language model and sentiment scorer, each behind its cache on disk.

    Raises ModelError where their weights are not there or not the ones expected.
    """
    from models.embeddings import EmbeddingCache
    from models.sentiment import FinBert, ScoreCache, Vader
    from models.text import TextEncoder

    text, workers = config.text, _workers(config)
    encoder = TextEncoder.open(text.model, dtype=text.dtype, device=config.compute.device, max_tokens=text.max_tokens)
    scorer = Vader() if config.sentiment.scorer == "vader" else FinBert.open(config.sentiment.finbert)
    return Readers(
        texts=EmbeddingCache.open(home.cache, encoder, workers=workers),
        texts_id=encoder.fingerprint,
        scorer=ScoreCache.open(home.cache, scorer, workers=workers),
    )


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
    trainer = Trainer(window, spec, Registry(home.models), workers=_workers(config))
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
                trading = broker.trade(bars, tradable, strategy[0], strategy[1], *how, on_session=writer)
                stages.seconds["broker"] = -writer.seconds
            writer.finish()
            stages.seconds["ledger"] = writer.seconds
            bare = broker.bare_seconds(bars, tradable, strategy[0], strategy[1], costs)
            with stages("evaluate"):
                report = metrics.evaluate(
                    writer.evaluation(window, costs, config.evaluation.risk_free),
                    seed=config.run.seed,
                    resamples=config.evaluation.resamples,
                )
                ledger.write_metrics(run, report.metrics)
            ledger_hash = ledger.ledger_hash(run)
        except KeyboardInterrupt:
            writer.flush()
            ledger.finish_run(run, "stopped")
            raise
        except Exception:
            with suppress(StoreError):  # the ledger itself may be what failed
                writer.flush()
                ledger.finish_run(run, "failed")
            raise
        ledger.finish_run(run, "finished", ledger_hash)
    return Outcome(
        run=run,
        config=config,
        home=home,
        forecasts=made,
        report=report,
        rivals={other.model: _signal_figures(window, other, config) for other in beside},
        trading=trading,
        bare_seconds=bare,
        stages=dict(stages.seconds),
        ledger_hash=ledger_hash,
        notes=notes(config, window, made, trading, span),
    )


def _signal_figures(window: Window, made: Forecasts, config: Config) -> dict[str, float | None]:
    side = [signal.side for signal in made.signals]
    return metrics.signal_metrics(side, next_returns(window, made.signals), risk_free=config.evaluation.risk_free)
