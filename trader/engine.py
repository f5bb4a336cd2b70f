"""Wire the house: settings in, a finished run out. The only place where models, feeds and strategies are named.

    store → scheduler → window → trainer and forecaster → broker → ledger → report

Each stage is timed. A run writes whole sessions into the ledger; one that is stopped leaves those it finished.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from importlib import metadata
import json
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from trader import broker, forecaster, metrics
from trader.clock import Calendar
from trader.config import Config, as_mapping, build
from trader.errors import ConfigError, NoData
from trader.events import BarClosed, DecisionDue, NewsArrived, NewsRows, Signal
from trader.ledger import FoldFacts, Ledger, RunFacts
from trader.progress import Stages, Watch, silent
from trader.records import Costs, SessionRecord, TradeSummary
from trader.registry import Registry
from trader.scheduler import Scheduler
from trader.store import FileSource, MarketStore
from trader.training import ModelSpec, TrainedFold, Trainer, code_hash
from trader.walkforward import plan
from trader.window import Window

MODELS = {
    "finin": ("models.finin:Finin", "models.finin:FininConfig"),
    "logistic": ("models.baselines:Logistic", "models.baselines:LogisticConfig"),
    "boosting": ("models.baselines:Boosting", "models.baselines:BoostingConfig"),
}
STRATEGIES = {
    "long_short": "strategies.long_short:LongShort",
    "long_only": "strategies.long_only:LongOnly",
    "threshold": "strategies.threshold:Threshold",
    "vol_target": "strategies.vol_target:VolTarget",
}


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything lies: one folder that a user can back up, move or delete."""

    folder: Path

    @property
    def store(self) -> Path:
        """The market store: bars, headlines, quarantine."""
        return self.folder / "market.db"

    @property
    def ledger(self) -> Path:
        """The ledger: runs, signals, trades, equity."""
        return self.folder / "ledger.db"

    @property
    def models(self) -> Path:
        """Trained models by id."""
        return self.folder / "models"

    @property
    def cache(self) -> Path:
        """Embeddings and sentiment scores by text."""
        return self.folder / "cache"


@dataclass(frozen=True, slots=True)
class Forecasts:
    """The signals of one model, oldest first, with the folds that they come from."""

    model: str
    signals: Sequence[Signal]
    folds: Sequence[TrainedFold]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run, for the report.

    report: every figure.  rivals: model name → its signal metrics (name → value), on the same sessions.
    bare_seconds: what backtrader alone took over the same bars.  stages: seconds of each.
    notes: what a reader must know.
    """

    run: int
    config: Config
    home: Home
    forecasts: Forecasts
    report: metrics.Report
    rivals: Mapping[str, Mapping[str, float | None]]
    trading: TradeSummary
    bare_seconds: float
    stages: Mapping[str, float]
    ledger_hash: str
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True)
class _Span:
    """Which sessions to read (from ``pump``, history included) and to trade (first … last)."""

    pump: date
    first: date
    last: date


def backtest(
    config: Config, home_folder: Path, first: date, last: date, *, watch: Watch = silent, daily: bool = False
) -> Outcome:
    """Run one walk-forward backtest over the sessions first … last and write it into the ledger.

    daily: forecast event by event instead of by folds; slower, the same signals.
    Raises TraderError for anything that a user can mend; the ledger then keeps what was whole.
    """
    home, stages, run = Home(home_folder), Stages(watch), config.run
    calendar = Calendar(config.inputs.decide_minutes)
    strategy = strategy_of(config)
    texts, texts_id = _texts(config, home)
    spec = model_spec(config, run.model, texts_id)
    rivals = [model_spec(config, name, texts_id) for name in config.evaluation.rivals if name != run.model]
    window = _window(config, home, calendar, texts)
    with MarketStore.open(home.store) as store:
        with stages("data"):
            stock(store, run.market, run.news)
            span = _span(store, calendar, config, first, last)
        scheduler = Scheduler(store, calendar, symbol=run.market, news=run.news, spec=config.walkforward)
        if daily:
            made = _forecast_daily(config, home, scheduler, span, window, spec, stages)
        else:
            missing = _read(scheduler, span, window, stages)
            made = _forecast_batched(config, home, span, window, missing, spec, stages)
    beside = [_forecast_batched(config, home, span, window, [], other, stages) for other in rivals]
    return _trade(config, home, window, made, beside, strategy, span, stages)


def stock(store: MarketStore, market: str, news: str) -> None:
    """Put the built-in bars and the wire into the store where they are asked for and not there yet."""
    from feeds import builtin, wire

    if market in builtin.BUILT_IN and market not in store.symbols():
        store.add_bars(builtin.bars(market), source="arch")
    if news == "wire" and news not in store.names():
        written = wire.headlines(builtin.series())
        rows = NewsRows(news=written, row=np.arange(1, len(written) + 1), rejected=())
        store.add_news("wire", [rows], source=FileSource(name="market wire", options=code_hash("feeds")))


def model_spec(config: Config, name: str, texts_id: str) -> ModelSpec:
    """Return what is needed to train the named model: a row of MODELS or a ``package.module:Class`` of the user's.

    A user's class is called with ``lookback`` and the keys of its section ``[model."package.module:Class"]``.
    Raises ConfigError for a name, key or value that does not exist.
    """
    options = dict(config.model.get(name, {}))
    lookback = config.run.lookback
    if name in MODELS:
        kind, settings_kind = (broker.load_class(path, object) for path in MODELS[name])
        given = {"lookback": lookback, "device": config.compute.device}
        shared = {key: value for key, value in given.items() if key in settings_kind.__dataclass_fields__}
        chosen = build(settings_kind, {**options, **shared}, f"[model.{name}]")
        factory: Callable[[], Any] = partial(kind, chosen)
        settings = asdict(chosen)
    elif ":" in name:
        settings = {**options, "lookback": lookback}
        factory = partial(broker.load_class(name, object), **settings)
    else:
        raise _unknown("model", name, MODELS)
    return ModelSpec(name, factory, settings, lookback, texts_id, config.run.seed)


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


def _texts(config: Config, home: Home) -> tuple[Any, str]:
    """Return the embedding cache of the configured language model and its fingerprint."""
    from models.embeddings import EmbeddingCache
    from models.text import TextEncoder

    chosen = config.text
    encoder = TextEncoder.open(
        chosen.model, dtype=chosen.dtype, device=config.compute.device, max_tokens=chosen.max_tokens
    )
    return EmbeddingCache.open(home.cache, encoder, workers=_workers(config)), encoder.fingerprint


def _window(config: Config, home: Home, calendar: Calendar, texts: Any) -> Window:
    """Return an empty window over the caches of embeddings and sentiment scores."""
    from feeds import builtin
    from models.sentiment import FinBert, ScoreCache, Vader

    scorer = Vader() if config.sentiment.scorer == "vader" else FinBert.open(config.sentiment.finbert)
    return Window(
        calendar,
        texts,
        ScoreCache.open(home.cache, scorer, workers=_workers(config)),
        market_text=config.inputs.market_text or builtin.market_text(config.run.market),
        headlines_a_day=config.inputs.headlines_a_day,
        levels=config.inputs.market_features == "levels",
    )


def _span(store: MarketStore, calendar: Calendar, config: Config, first: date, last: date) -> _Span:
    """Find the sessions to read and to trade; raise NoData where the store has no bars or headlines for them."""
    symbol, news, spec = config.run.market, config.run.news, config.walkforward
    symbols, names = store.symbols(), store.names()
    if symbol not in symbols:
        known = ", ".join(sorted({*symbols, "sp500", "nasdaq"}))
        do = "import it: python -m trader prices import FILE --symbol NAME"
        raise NoData("no such market", got=symbol, expected=f"one of {known}", do=do)
    if news not in names:
        known = ", ".join(sorted({*names, "wire"}))
        do = "import it: python -m trader news import FILE --name NAME"
        raise NoData("no such news", got=news, expected=f"one of {known}", do=do)
    held = symbols[symbol]
    if last < held.first or first > held.last or (last > held.last and last.year > held.last.year):
        raise NoData(
            f"no bars of {symbol} for some of these days",
            got=f"--from {first} --to {last}",
            expected=f"days within {held.first}..{held.last}",
            do="choose other days or import more prices",
        )
    last = min(last, held.last)
    bars = store.as_of(calendar.decide_at(held.last)).bars(symbol, held.first, last)
    sessions = [bar.session for bar in bars]
    start = bisect_left(sessions, first)
    if start == len(sessions):
        raise NoData(f"no bars of {symbol} in these days", got=f"{first}..{last}", do="choose other days")
    view = store.as_of(calendar.decide_at(sessions[-1]))
    if not view.news_count(news, calendar.cutoff(sessions[max(0, start - 1)]), calendar.cutoff(sessions[-1])):
        raise NoData(
            f"the news set {news} has no headline in these days",
            got=f"{sessions[start]}..{sessions[-1]}",
            do="choose other days or another --news; `python -m trader news list` shows the spans",
        )
    needed = spec.train + spec.validation + 2 * spec.purge + spec.step + Window.warm_up + config.run.lookback
    pump = sessions[0] if spec.mode == "expanding" else sessions[max(0, start - needed)]
    return _Span(pump, sessions[start], sessions[-1])


def _read(scheduler: Scheduler, span: _Span, window: Window, stages: Stages) -> list[DecisionDue]:
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
    span: _Span,
    window: Window,
    missing: Sequence[DecisionDue],
    spec: ModelSpec,
    stages: Stages,
) -> Forecasts:
    """Train every fold that the registry lacks, side by side, and forecast fold by fold."""
    symbol, warm_up = config.run.market, Window.warm_up + spec.lookback - 1
    folds = plan(window.numbers, window.position(span.first), warm_up, config.walkforward)
    if not folds:
        raise _too_little(window, config)
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
    config: Config, home: Home, scheduler: Scheduler, span: _Span, window: Window, spec: ModelSpec, stages: Stages
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
        raise _too_little(window, config)
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


def _too_little(window: Window, config: Config) -> NoData:
    spec = config.walkforward
    needed = spec.train + spec.validation + 2 * spec.purge + Window.warm_up + config.run.lookback
    return NoData(
        "too little history to train a first model",
        where=config.run.market,
        got=f"{len(window)} sessions",
        expected=f"at least {needed}, and a session to trade",
        do="take a longer span, or lower [walkforward] train and validation",
    )


def _trade(
    config: Config,
    home: Home,
    window: Window,
    made: Forecasts,
    beside: Sequence[Forecasts],
    strategy: tuple[type[Any], Mapping[str, Any]],
    span: _Span,
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
        run = ledger.start_run(_facts(config, window, made, span))
        writer = _Writer(ledger, run, made.signals, dict(zip((bar.session for bar in bars), always_buy, strict=True)))
        try:
            ledger.add_folds(run, [_fold_facts(window, at, one) for at, one in enumerate(made.folds, start=1)])
            with stages("broker"):
                trading = broker.trade(bars, tradable, strategy[0], strategy[1], *how, on_session=writer)
            writer.finish()
        except KeyboardInterrupt:
            ledger.finish_run(run, "stopped")
            raise
        except Exception:
            ledger.finish_run(run, "failed")
            raise
        stages.seconds["broker"] -= writer.seconds
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
        notes=_notes(config, window, made, trading, span),
    )


class _Writer:
    """Writes the broker's sessions into the ledger, and those without a bar between them; keeps their figures."""

    def __init__(self, ledger: Ledger, run: int, signals: Sequence[Signal], always_buy: Mapping[date, float]) -> None:
        self._ledger, self._run, self._always_buy = ledger, run, always_buy
        self._signals, self._next = signals, 0
        self.records: list[SessionRecord] = []
        self.always_buy: list[float] = []
        self.seconds = 0.0

    def __call__(self, record: SessionRecord) -> None:
        """Write one session of the broker's, and before it those that had no bar."""
        started = time.perf_counter()
        while self._signals[self._next].session < record.session:
            self._write(self._idle(self._signals[self._next]))
        self._write(record)
        self.seconds += time.perf_counter() - started

    def finish(self) -> None:
        """Write the sessions without a bar that follow the last one with a bar."""
        for signal in self._signals[self._next :]:
            self._write(self._idle(signal))

    def _write(self, record: SessionRecord) -> None:
        signal = self._signals[self._next]
        always_buy = self._always_buy.get(record.session)
        self.always_buy.append(self.always_buy[-1] if always_buy is None else float(always_buy))
        self._ledger.write_session(self._run, signal=signal, record=record, always_buy_equity=self.always_buy[-1])
        self.records.append(record)
        self._next += 1

    def _idle(self, signal: Signal) -> SessionRecord:
        """Return the record of a session without a bar: the account as it stood, nothing done."""
        nothing = {"commission": 0.0, "slippage": 0.0, "borrow": 0.0, "interest": 0.0, "orders": (), "fills": ()}
        return replace(self.records[-1], session=signal.session, signal=0, p_up=None, **nothing)

    def evaluation(self, window: Window, costs: Costs, risk_free: float) -> metrics.EvaluationInputs:
        """Return the written sessions in columns, for the metrics."""
        return metrics.EvaluationInputs(
            side=[signal.side for signal in self._signals],
            next_return=_next_returns(window, self._signals),
            equity=[record.equity for record in self.records],
            always_buy_equity=self.always_buy,
            costs=[record.commission + record.slippage + record.borrow for record in self.records],
            traded=[sum(abs(fill.size * fill.price) for fill in record.fills) for record in self.records],
            exposure=[record.exposure for record in self.records],
            start_cash=costs.cash,
            risk_free=risk_free,
        )


def _next_returns(window: Window, signals: Sequence[Signal]) -> list[float]:
    """Return close(d+1)/close(d) − 1 of each signal's session; NaN for the last session and for those without a bar."""
    following = dict(zip(window.sessions, [*(bar.close for bar in window.bars[1:]), np.nan], strict=True))
    close = {session: bar.close for session, bar in zip(window.sessions, window.bars, strict=True)}
    return [following[s.session] / close[s.session] - 1 if s.session in close else np.nan for s in signals]


def _signal_figures(window: Window, made: Forecasts, config: Config) -> dict[str, float | None]:
    side = [signal.side for signal in made.signals]
    return metrics.signal_metrics(side, _next_returns(window, made.signals), risk_free=config.evaluation.risk_free)


def _facts(config: Config, window: Window, made: Forecasts, span: _Span) -> RunFacts:
    run = config.run
    return RunFacts(
        kind="backtest",
        config=json.dumps(as_mapping(config), sort_keys=True, indent=1),
        seed=run.seed,
        code_version=f"{_version()} {code_hash('trader', 'models', 'feeds', 'strategies')}",
        first_session=made.signals[0].session,
        last_session=made.signals[-1].session,
        data_hash=window.fingerprint(window.position(span.pump), len(window)),
        market=run.market,
        news=run.news,
        model=run.model,
        strategy=run.strategy,
        execution=run.execution,
    )


def _version() -> str:
    try:
        return metadata.version("news-trader")
    except metadata.PackageNotFoundError:
        return "not installed"


def _fold_facts(window: Window, number: int, one: TrainedFold) -> FoldFacts:
    spans = {
        f"{name}_{end}": window.sessions[part.start if end == "first" else part.stop - 1]
        for name, part in (("train", one.fold.train), ("validation", one.fold.validation), ("use", one.fold.use))
        for end in ("first", "last")
    }
    return FoldFacts(
        fold=number,
        model_id=one.model_id,
        validation_loss=one.report.validation_loss,
        validation_accuracy=one.report.validation_accuracy,
        epochs=one.report.epochs,
        train_seconds=one.seconds,
        cached=one.cached,
        **spans,
    )


def _notes(config: Config, window: Window, made: Forecasts, trading: TradeSummary, span: _Span) -> list[str]:
    """Return what a reader must know to read the figures rightly, a sentence each."""
    run, first = config.run, made.folds[0]
    trained_on = f"{window.sessions[first.fold.train.start]} to {window.sessions[first.fold.validation.stop - 1]}"
    if made.signals[0].session == span.first:
        notes = [f"Trading starts at the first session, {span.first}, with a model trained on {trained_on}."]
    else:
        notes = [
            f"Trading starts on {made.signals[0].session}, when the first fold is full (trained on {trained_on}): "
            f"there is too little history before {span.first}."
        ]
    if run.news == "wire":
        notes.append(
            "The wire is written from prices: it tests the chain, and can tell nothing that prices do not."
        )
    without = sum(signal.news_count == 0 for signal in made.signals)
    if without:
        notes.append(f"{without} of {len(made.signals)} sessions had no headline.")
    abstained = sum(signal.p_up is None for signal in made.signals)
    if abstained:
        notes.append(f"{abstained} sessions had no bar: no decision, the position was kept.")
    if trading.optimistic:
        notes.append("Execution at the very close that was decided on is the papers' convention, and optimistic.")
    elif trading.stale_opens and run.execution == "next_open":
        fills = "at that day's close" if config.costs.stale_open == "next_close" else "at that open all the same"
        notes.append(
            f"On {trading.stale_opens:,} of {trading.sessions:,} sessions the open equals the close before, so it was "
            f"no price; orders then fill {fills}."
        )
    if run.market in ("sp500", "nasdaq"):
        notes.append("A price index: dividends are not in it, and nobody can trade it as such.")
    if trading.cut:
        notes.append(f"{len(trading.cut)} orders were cut to the exposure limit; `trader trades {{run}}` says which.")
    return notes
