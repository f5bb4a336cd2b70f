"""The model hosts of many symbols: the events of all in, a forecast a symbol out, as ``universe_forecast`` has it.

One model for all symbols is trained by one host, a model a symbol by as many, as each symbol alone would have it.
``trader.host`` says how a host trains, abstains and falls back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from datetime import date
from time import perf_counter
from typing import Any, Protocol

from models.devices import lost_device
from models.panel import PooledModel
from trader.adoption import served
from trader.config import Config, Retrain, WalkForward
from trader.errors import in_a_line
from trader.events import BarClosed, DecisionDue, NewsArrived, RetrainDue, Signal
from trader.forecaster import abstain, forecast, unfit
from trader.host import ModelHost
from trader.panel_training import PanelTrainer, panel_at
from trader.progress import Stages
from trader.recording import fold_facts
from trader.records import Fact
from trader.registry import Registry, weights_id
from trader.training import Lane, Loaded, ModelSpec, Trainer
from trader.universe import Universe
from trader.universe_events import WHOLE, UniverseScheduler
from trader.universe_forecast import (
    Overrides,
    Seen,
    UniverseForecasts,
    about_all,
    about_symbol,
    first_use,
    panel_facts,
    universe_forecasts,
    warm_up_of,
    whole_session,
)
from trader.window import Window, resolve_all

LOOK_AGAIN = 0.2  # seconds: how long one training of several is waited for before the others are looked at


class UniverseHost(Protocol):
    """What a running account of many symbols, or a backtest day by day, asks for forecasts; close it in the end."""

    def update(self, symbol: str, event: NewsArrived | BarClosed) -> None:
        """Take a symbol's news or bar."""
        ...

    def retrain(self, event: RetrainDue, but: Collection[str] = ()) -> None:
        """Begin what is due to be trained.   but: of these symbols, or of WHOLE, the verdict is known already."""
        ...

    def decide(self, session: date, missing: Mapping[str, str]) -> dict[str, Signal]:
        """Return the signals of the symbols that have a model; it waits for a training that is under way.

        missing: why a symbol cannot be decided; what is returned of such a one is of no account.
        """
        ...

    def skip(self, session: date) -> None:
        """Be told that a session is not decided, without waiting for what is under way."""
        ...

    def pending(self) -> str:
        """Return in words what the next decision waits for, "" where it waits for nothing."""
        ...

    def poll(self) -> bool:
        """Take up what has been trained, without waiting; tell whether nothing is under way."""
        ...

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for what is under way, at most so long (None: until it has ended)."""
        ...

    def resume_of(self, symbol: str, session: date, model_id: str, trainings: int) -> None:
        """Go on after a session on which this model was a symbol's, or all symbols'; see ``ModelHost.resume``."""
        ...

    def warm_up(self) -> None:
        """Load what the first decision would wait for."""
        ...

    def told(self) -> list[tuple[str, Fact]]:
        """Return what has happened since the last call, with the symbol that it is about, WHOLE for all."""
        ...

    def close(self) -> None:
        """End the trainings under way."""
        ...


def host_of(
    config: Config,
    universe: Universe,
    windows: Mapping[str, Window],
    spec: ModelSpec,
    registry: Registry,
    *,
    first: date,
    overrides: Overrides,
    fallback: ModelSpec | None = None,
    workers: int = 1,
    service: bool = True,
) -> PooledHost | EachHost:
    """Return the host of a model for all symbols where the model can pool, else of one a symbol.

    first, service: see ``ModelHost``.   workers: how many trainings of an account may be under way at once.
    """
    walkforward, retrain, lookback = config.walkforward, config.retrain, spec.lookback
    if isinstance(spec.factory(), PooledModel):
        calendar, about = next(iter(windows.values())).calendar, about_all(config, universe)
        panel = PanelTrainer(windows, spec, registry, calendar, workers=1, about=about, fallback=fallback)
        return PooledHost(
            windows, panel, walkforward, retrain, lookback=lookback, first=first, overrides=overrides, service=service
        )
    lane, hosts = Lane(workers), {}
    for symbol, window in windows.items():
        about = about_symbol(config, universe, symbol)
        trainer = Trainer(window, spec, registry, workers=1, fallback=fallback, about=about, lane=lane)
        hosts[symbol] = ModelHost(
            window,
            trainer,
            walkforward,
            retrain,
            symbol=symbol,
            lookback=lookback,
            first=first,
            overrides=overrides.get(symbol),
            service=service,
        )
    return EachHost(hosts)


class PooledHost(ModelHost):
    """The host of one model for all symbols. windows: by symbol, in the universe's order; the rest as ``ModelHost``."""

    def __init__(
        self,
        windows: Mapping[str, Window],
        trainer: PanelTrainer,
        walkforward: WalkForward,
        retrain: Retrain,
        *,
        lookback: int,
        first: date,
        overrides: Overrides,
        service: bool,
    ) -> None:
        super().__init__(
            next(iter(windows.values())),  # for the calendar, which all share
            trainer,
            walkforward,
            retrain,
            symbol=WHOLE,
            lookback=lookback,
            first=first,
            overrides=overrides.get(WHOLE),
            service=service,
        )
        self.windows, self._warm = windows, warm_up_of(trainer.spec)

    def _fold(self, number: int) -> Any:
        return panel_at(self.windows, number, self._warm, self._spec, {})  # a late bar has not come yet

    def update(self, symbol: str, event: NewsArrived | BarClosed) -> None:
        """Take a symbol's news or bar."""
        self.windows[symbol].update(event)

    def retrain(self, event: RetrainDue, but: Collection[str] = ()) -> None:
        """Begin what is due to be trained."""
        if WHOLE not in but:
            self._retrain(event.session)

    def decide(self, session: date, missing: Mapping[str, str]) -> dict[str, Signal]:
        """Return the signals of the symbols that are warmed up, where there is a model."""
        if session < self._first:
            return {}
        self.wait()
        made = self._decided_by(session, lambda model_id: self._signals(session, missing, model_id), perf_counter())
        if made is None:
            why = self.without
            return {symbol: abstain(session, symbol, "", why) for symbol in self.windows} if why else {}
        return made[0]

    def skip(self, session: date) -> None:
        """Be told that a session is not decided."""
        self._decided_by(session, lambda model_id: None, perf_counter())

    def _signals(self, session: date, missing: Mapping[str, str], model_id: str) -> dict[str, Signal]:
        ready = [one for one, window in self.windows.items() if not missing.get(one) and len(window) > self._warm]
        if not ready:
            return {}
        return self._guarded(
            session,
            model_id,
            lambda: resolve_all(self.windows.values()),
            lambda loaded: {symbol: self._one(session, symbol, loaded) for symbol in ready},
            lambda decided_by, reason: {symbol: abstain(session, symbol, decided_by, reason) for symbol in ready},
        )

    def _one(self, session: date, symbol: str, loaded: Loaded) -> Signal:
        window = self.windows[symbol]
        if old := unfit(window.calendar, loaded, session, self._retrain_spec.max_age):
            return abstain(session, symbol, loaded.model_id, old)
        last = len(window) - 1
        return forecast(window, loaded, range(last, last + 1), symbol, self._lookback)[0]

    def resume_of(self, symbol: str, session: date, model_id: str, trainings: int) -> None:
        """Go on after a session on which this model was all symbols'."""
        self.resume(session, model_id, trainings)

    def warm_up(self, read: Any = None) -> None:
        """Embed what has come and load the model in use; what fails here fails again at the decision."""
        resolve_all(self.windows.values())
        newest = max((window.sessions[-1] for window in self.windows.values() if window.sessions), default=None)
        model_id = None if newest is None else self._adoption.in_use.at(newest)
        if newest is None or model_id is None:
            return
        try:
            self._load(model_id)
        except Exception as error:  # a user's own model may raise anything
            self._note(newest, "damaged", f"model {weights_id(model_id)} at the start: {in_a_line(error)}")

    def told(self) -> list[tuple[str, Fact]]:
        """Return what has happened since the last call."""
        return [(WHOLE, fact) for fact in self.facts()]


class EachHost:
    """The hosts of a model a symbol, by symbol in the universe's order."""

    def __init__(self, hosts: Mapping[str, ModelHost]) -> None:
        self.hosts = hosts

    def update(self, symbol: str, event: NewsArrived | BarClosed) -> None:
        """Take a symbol's news or bar."""
        self.hosts[symbol].on(event)

    def retrain(self, event: RetrainDue, but: Collection[str] = ()) -> None:
        """Begin every symbol's training; they take their turn."""
        for symbol, host in self.hosts.items():
            if symbol not in but:
                host.on(event)

    def decide(self, session: date, missing: Mapping[str, str]) -> dict[str, Signal]:
        """Return the signals of the symbols that have a model."""
        self.wait()
        try:
            resolve_all(host.window for host in self.hosts.values())
        except Exception as error:
            if not lost_device(error):
                raise  # each host meets a lost device itself, and abstains
        made = {}
        for symbol, host in self.hosts.items():
            at = host.window.calendar.decide_at(session)
            decision = host.on(DecisionDue(session=session, at=at, missing=missing.get(symbol, "")))
            if decision is not None:
                made[symbol] = decision.signal
        return made

    def skip(self, session: date) -> None:
        """Be told that a session is not decided."""
        for host in self.hosts.values():
            host.late(DecisionDue(session=session, at=host.window.calendar.decide_at(session)), "late")

    def pending(self) -> str:
        """Return in words what the next decision waits for."""
        waits = [words for host in self.hosts.values() if (words := host.pending())]
        others = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
        return waits[0] + others if waits else ""

    def poll(self) -> bool:
        """Take up what has been trained, without waiting; tell whether nothing is under way."""
        done = [host.poll() for host in self.hosts.values()]  # each: one that has ended makes room for another
        return all(done)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for all trainings, at most so long."""
        until = None if seconds is None else perf_counter() + seconds
        while not self.poll():
            left = LOOK_AGAIN if until is None else min(LOOK_AGAIN, until - perf_counter())
            if left <= 0:
                return False
            next(host for host in self.hosts.values() if host.pending()).wait(left)
        return True

    def resume_of(self, symbol: str, session: date, model_id: str, trainings: int) -> None:
        """Go on after a session on which this model was a symbol's."""
        self.hosts[symbol].resume(session, model_id, trainings)

    def warm_up(self) -> None:
        """Embed what has come, load the models in use and let each forecast once."""
        resolve_all(host.window for host in self.hosts.values())
        for host in self.hosts.values():
            host.warm_up()

    def told(self) -> list[tuple[str, Fact]]:
        """Return what has happened since the last call, with the symbol that it is about."""
        return [(symbol, fact) for symbol, host in self.hosts.items() for fact in host.facts()]

    def close(self) -> None:
        """End the trainings under way."""
        for host in self.hosts.values():
            host.close()


def forecast_daily(
    config: Config,
    seen: Seen,
    spec: ModelSpec,
    registry: Registry,
    scheduler: UniverseScheduler,
    stages: Stages,
    overrides: Overrides,
) -> UniverseForecasts:
    """Go through the events session by session, training when it is due and forecasting at each decision.

    It fills ``seen``. The signals are those of ``forecast_universe``. Raises NoData where no symbol was ever decided.
    """
    span, calendar = seen.span, seen.calendar
    host = host_of(
        config, seen.universe, seen.windows, spec, registry, first=span.first, overrides=overrides, service=False
    )
    newest: dict[str, str] = {}
    whole: dict[date, Sequence[Signal]] = {}
    days = (span.last - span.pump).days + 1
    with stages("day by day") as step, closing(host):
        for session in calendar.sessions(span.pump, span.last):
            for symbol, event in scheduler.until_decision(session):
                if isinstance(event, NewsArrived | BarClosed):
                    host.update(symbol, event)
                seen.note(symbol, event)
            if session >= span.first:
                missing = {symbol: why[session] for symbol, why in seen.missing.items() if session in why}
                made = host.decide(session, missing)
                whole[session] = whole_session(session, list(seen.windows), made, missing, newest)
            retrain = scheduler.retraining(session)
            if retrain is not None and session != span.last:  # the model of that one would decide nothing of this run
                host.retrain(retrain)
            step((session - span.pump).days + 1, days, str(session))
    pooled = isinstance(host, PooledHost)
    return universe_forecasts(config, seen, spec, pooled, whole, _folds(host, seen, spec, registry))


def _folds(host: PooledHost | EachHost, seen: Seen, spec: ModelSpec, registry: Registry) -> list[Any]:
    """Return what the ledger keeps of the models that decided something."""
    if isinstance(host, PooledHost):
        return panel_facts(registry, seen, spec, host.trained)
    found = []
    for symbol, one in host.hosts.items():
        window = seen.windows[symbol]
        used = served(one.trained, one.verdicts, first_use(window, seen), len(window)) if one.trained else []
        found += [fold_facts(window, 0, trained) for _, trained in used]
    return found
