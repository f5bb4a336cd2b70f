"""Wire the house for many symbols: as ``trader.engine`` for one, with the universe's own scheduler, broker and figures.

store → universe scheduler → a window a symbol → trainer(s) and forecaster → many-symbol broker → ledger → report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from trader import metrics
from trader.config import Config
from trader.engine import written
from trader.errors import ConfigError
from trader.events import BarClosed, DecisionDue, NewsArrived
from trader.ledger import Ledger
from trader.outcome import Home
from trader.parts import (
    FACTS,
    Readers,
    check_chats,
    costs_of,
    model_spec,
    readers_of,
    rivals_of,
    stock_universe,
    strategy_of,
    trades_many,
    windows_of,
    workers_of,
)
from trader.progress import Stages, Watch, silent
from trader.records import Control
from trader.registry import Registry
from trader.store import MarketStore
from trader.universe import universe_of
from trader.universe_broker import UniverseSession, always_buy_universe, trade_universe
from trader.universe_events import Moments, UniverseScheduler
from trader.universe_forecast import Overrides, Seen, UniverseForecasts, forecast_universe
from trader.universe_host import forecast_daily
from trader.universe_metrics import DecisionReport, evaluate_decisions
from trader.universe_outcome import UniverseOutcome, universe_notes
from trader.universe_recording import UniverseWriter, decisions_of, universe_run_facts
from trader.universe_spans import UniverseSpan, universe_span
from trader.window import resolve_all

DEFAULT_STRATEGY = "top_k"
ONE_MARKETS_DEFAULT = "long_short"


def backtest(
    config: Config,
    home_folder: Path,
    first: date,
    last: date,
    *,
    watch: Watch = silent,
    daily: bool = False,
    readers: Readers | None = None,
    as_asked: bool = False,
    overrides: Overrides | None = None,
    controls: Mapping[date, Control] | None = None,
    abstain: Mapping[str, Mapping[date, str]] | None = None,
    bars_known: Mapping[str, Moments] | None = None,
) -> UniverseOutcome:
    """Run one walk-forward backtest of a universe over the sessions first … last and write it into the ledger.

    config: its market is a universe's file or its text.   daily: forecast session by session instead of by folds;
    slower, the same signals.   readers: what reads the headlines; None takes what the config names.
    as_asked: keep the strategy long_short, which trades one symbol, and so refuse it; else top_k stands in for it,
    which the notes then say.
    overrides, controls, abstain, bars_known: what befell an account, as ``trader.engine.backtest`` has them, all but
    the controls by symbol.
    Raises TraderError for anything that a user can mend; the ledger then keeps what was whole.
    """
    stages, home = Stages(watch), Home(home_folder)
    universe = universe_of(config.run.market)
    asked, config = config.run.strategy, config if as_asked else with_strategy(config)
    stood_in = config.run.strategy != asked
    check_possible(config)
    strategy = strategy_of(config)
    check_chats(config)
    home.make()
    readers = readers or readers_of(config, home)
    spec = model_spec(config, config.run.model, readers.texts_id)
    rivals = [one for one in rivals_of(config, readers.texts_id) if one.name != FACTS]
    registry, workers = Registry(home.models), workers_of(config)
    windows = windows_of(config, universe, readers)
    calendar, used = next(iter(windows.values())).calendar, overrides or {}
    with MarketStore.open(home.store) as store:
        with stages("data"):
            stocked = stock_universe(store, universe, config.run.news)
        with store.snapshot():  # an import in the middle of a run must not mix two sets of data
            span = universe_span(store, calendar, config, stocked, first, last, spec.lookback, bars_known)
            scheduler = UniverseScheduler(
                store,
                calendar,
                stocked,
                spec=config.walkforward,
                abstain=abstain,
                bars_known=bars_known,
                max_silence=config.risk.max_news_silence,
            )
            seen = Seen.of(universe, span.span, windows, calendar)
            if daily:
                made = forecast_daily(config, seen, spec, registry, scheduler, stages, used)
            else:
                _read(scheduler, seen, stages)
    if not daily:
        made = forecast_universe(config, seen, spec, registry, workers, stages, used)
    beside = [forecast_universe(config, seen, one, registry, workers, stages) for one in rivals]
    work = _Work(config, home, seen, span, made, beside, strategy, last, stood_in, controls or {})
    return _trade(work, stages)


def with_strategy(config: Config) -> Config:
    """Return the config with top_k in the place of long_short, which is the default and trades one symbol."""
    return config.with_run(strategy=DEFAULT_STRATEGY) if config.run.strategy == ONE_MARKETS_DEFAULT else config


def check_possible(config: Config) -> None:
    """Raise ConfigError for settings that a universe cannot have yet."""
    if config.retrain.adopt != "always":
        raise ConfigError(
            "a universe adopts every training", where="[retrain] adopt", got=config.retrain.adopt, expected="always"
        )
    if config.inputs.market_features == "levels":
        do = 'set market_features = "returns", or take one symbol'
        raise ConfigError(
            "a universe is not read as price levels", where="[inputs] market_features", got="levels", do=do
        )
    if not trades_many(config.run.strategy):
        raise ConfigError(
            "this strategy trades one symbol",
            where="[run] strategy",
            got=config.run.strategy,
            expected=f"{DEFAULT_STRATEGY}, or package.module:Class",
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """All that is known before the first order."""

    config: Config
    home: Home
    seen: Seen
    span: UniverseSpan
    made: UniverseForecasts
    beside: Sequence[UniverseForecasts]
    strategy: tuple[type[Any], Any]
    last: date
    stood_in: bool
    controls: Mapping[date, Control]


def _read(scheduler: UniverseScheduler, seen: Seen, stages: Stages) -> None:
    """Send the events of all sessions down to the windows; note what cannot be decided, and which bars came late.

    Nothing is read ahead: each session's row is what the store's as_of(decide_at) gave for it.
    """
    span, before = seen.span, None
    days = (span.last - span.pump).days + 1
    with stages("read") as step:
        for symbol, event in scheduler.events(span.pump, span.last):
            if isinstance(event, NewsArrived | BarClosed):
                seen.windows[symbol].update(event)
            elif isinstance(event, DecisionDue) and event.session != before:
                step((event.session - span.pump).days + 1, days, str(event.session))
                before = event.session
            seen.note(symbol, event)
    with stages("embed") as step:
        resolve_all(
            seen.windows.values(),
            lambda done, total: step(done, total, "texts"),
            lambda done, total: step(done, total, "sentiment scores"),
        )


def _trade(work: _Work, stages: Stages) -> UniverseOutcome:
    """Run the broker over the signals, write each session into the ledger, and measure the whole."""
    config, seen, made = work.config, work.seen, work.made
    costs, symbols = costs_of(config), list(seen.windows)
    days = days_of(seen, made)
    how = (costs, config.run.execution, config.costs.stale_open)
    with stages("always buy"):
        always_buy = always_buy_universe(symbols, days, None, *how)
    with Ledger.open(work.home.ledger) as ledger:
        run = ledger.start_run(universe_run_facts(config, seen, made))
        writer = UniverseWriter(ledger, run, made, always_buy.tolist())
        with written(ledger, run, writer.flush, config.run.strategy, work.strategy[0]):
            ledger.add_folds(run, made.folds)
            with stages("broker"):
                kind, params = work.strategy
                traded = {day: one for day, one in work.controls.items() if day in made.signals}
                trading = trade_universe(
                    symbols, days, kind, params, *how, on_session=writer, risk=config.risk, controls=traded
                )
                stages.seconds["broker"] = -writer.seconds  # what the ledger took in between is not the broker's
            writer.flush()
            stages.seconds["ledger"] = writer.seconds
            with stages("evaluate"):
                report, decisions, rivals = _measured(work, writer)
                ledger.write_metrics(run, [*report.metrics, *decisions.metrics])
            ledger_hash = ledger.ledger_hash(run)
        ledger.finish_run(run, "finished", ledger_hash)
    return UniverseOutcome(
        run=run,
        config=config,
        home=work.home,
        universe=seen.universe,
        forecasts=made,
        report=report,
        decisions=decisions,
        rivals=rivals,
        trading=trading,
        stages=dict(stages.seconds),
        ledger_hash=ledger_hash,
        notes=universe_notes(config, seen, work.span, made, trading, work.last, stood_in=work.stood_in),
    )


def days_of(seen: Seen, made: UniverseForecasts) -> list[UniverseSession]:
    """Return what the broker is given of each session: the bars that came in time, and the signals of all symbols.

    A bar that came late is none here: the other symbols' orders of that session were decided without it.
    """
    bars: dict[date, dict[str, Any]] = {session: {} for session in made.sessions}
    for symbol, window in seen.windows.items():
        late = seen.late.get(symbol, ())
        for number, session, bar in zip(window.numbers, window.sessions, window.bars, strict=True):
            if session in bars and number not in late:
                bars[session][symbol] = bar
    return [
        UniverseSession(
            session=session,
            bars=bars[session],
            signals={signal.symbol: signal for signal in made.signals[session]},
        )
        for session in made.sessions
    ]


def _measured(work: _Work, writer: UniverseWriter) -> tuple[metrics.Report, DecisionReport, dict[str, DecisionReport]]:
    """Return the figures of the account, of the decisions, and of each rival's decisions on the same sessions."""
    config = work.config
    seed, resamples = config.run.seed, config.evaluation.resamples
    inputs = writer.account(costs_of(config), config.evaluation.risk_free)
    report = metrics.evaluate(inputs, seed=seed, resamples=resamples)
    own = tuple(one for one in report.metrics if one.name not in ("accuracy", "paper_pnl", "paper_sharpe"))
    measured = {
        made.model: evaluate_decisions(decisions_of(work.seen.windows, made, work.made), seed=seed, resamples=resamples)
        for made in (work.made, *work.beside)
    }
    decisions = measured.pop(work.made.model)
    return replace(report, metrics=own), decisions, measured
