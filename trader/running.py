"""Wire a paper account: from its name to a service that can be started, as ``trader.engine`` wires a backtest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from typing import Any

from trader.account import Account, Accounts, overrides_by_symbol
from trader.broker import Trading, holding
from trader.clock import Calendar, Clock, SimulatedClock, WallClock
from trader.config import Config
from trader.errors import ConfigError, NoData, StoreError
from trader.host import ModelHost
from trader.lease import Lease
from trader.ledger import Ledger
from trader.live_feeds import feeds_of
from trader.model_source import ModelSource
from trader.outcome import Home
from trader.paper import Service, Source
from trader.parts import (
    Readers,
    about,
    check_chats,
    costs_of,
    cpu_spec,
    model_spec,
    readers_of,
    stock,
    stock_universe,
    strategy_of,
    window_of,
    windows_of,
    with_dtype,
    workers_of,
)
from trader.recording import code_version
from trader.registry import Registry
from trader.replay import Books, UniverseBooks
from trader.scheduler import Scheduler
from trader.service import AccountService, Desk, Outside, Told, check_tradable, first_session
from trader.spans import history_of
from trader.store import FileSource, MarketStore
from trader.stored_signals import StoredSignals
from trader.training import Trainer
from trader.universe import Universe, is_universe, market_of, refuse_universe, universe_of
from trader.universe_broker import UniverseTrading, holding_universe
from trader.universe_engine import check_possible
from trader.universe_events import Moments, UniverseScheduler
from trader.universe_host import host_of
from trader.universe_paper import UniverseService, UniverseSource
from trader.universe_source import StoredUniverse, UniverseModels
from trader.universe_spans import check_store

LOCKED_SECONDS = 120.0  # how long a transaction waits for another program that writes


def silent(event: str, **facts: object) -> None:
    """Log nothing."""


def nobody(kind: str, session: date, text: str) -> None:
    """Tell nobody."""


def never_stale(at: datetime) -> str:
    """Trust what the store holds, as a replay of the past does."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is around a service: its clock, whom it tells, where it logs, which feeds it distrusts, what it reads with.

    patient: wait for a model in training instead of coming back later.   readers: None takes what the config names.
    locked_seconds: how long a transaction waits for another program that writes into the ledger.
    """

    clock: Clock
    log: Callable[..., None] = silent
    tell: Callable[[Ledger, Account], Told] = lambda ledger, account: nobody
    stale: Callable[[datetime], str] = never_stale
    patient: bool = False
    readers: Readers | None = None
    locked_seconds: float = LOCKED_SECONDS


def open_account(
    home: Home, name: str, config: Config, clock: Clock, *, first: date | None = None, signals_run: str | None = None
) -> Account:
    """Open an account in the home's ledger; nothing is decided yet.

    config: its market is a symbol, or a universe's file or text; the account keeps the text.
    first: the first session that it decides, by default the first whose decision is still to come.
    signals_run: number of the run (or latest) whose stored signals it trades, instead of a model of its own.
    Raises ConfigError for a name, part or execution that cannot be, NoData for a run, a market or a news set that is
    not there.
    """
    many = is_universe(config.run.market)
    if many:
        config = config.with_run(market=universe_of(config.run.market).as_text())
        check_possible(config)
    check_tradable(config.run.execution)
    strategy_of(config)
    check_chats(config)
    _check_feeds(config)
    home.make()
    calendar = Calendar(config.inputs.decide_minutes)
    start = first_session(calendar, clock.now()) if first is None else first
    if not calendar.is_session(start):
        start = calendar.sessions(start, date(start.year + 1, start.month, 1))[0]
    with Ledger.open(home.ledger, synchronous="FULL", clock=clock) as ledger:
        run = None
        if signals_run is not None:
            run = ledger.resolve(signals_run)
            facts = ledger.run_facts(run)
            _check_signals(facts["market"], market_of(facts["config"]), config.run.market)
            config = replace(config, run=replace(config.run, model=facts["model"], news=facts["news"]))
        else:
            model_spec(config, config.run.model, "")
            config = with_dtype(config)
        _check_store(home, config)
        return Accounts(ledger, clock).open(name, config, start, signals_run=run, code_version=code_version())


def _check_signals(name: str, market: str, mine: str) -> None:
    """Raise ConfigError where the signals of a run on a market are not those of the account's own."""
    if not is_universe(mine):
        refuse_universe(market, "an account that trades a run's signals")
        if name != mine:
            raise ConfigError("the run's signals are of another market", got=name, expected=mine)
    elif not is_universe(market) or universe_of(market) != universe_of(mine):
        expected = f"the symbols of {universe_of(mine).name}, as its file has them now"
        raise ConfigError("the run's signals are of another market", got=name, expected=expected)


def prices_of(config: Config) -> list[str]:
    """Return the names that an account's bars have in the store, of a universe in its order."""
    market = config.run.market
    return [member.prices for member in universe_of(market)] if is_universe(market) else [market]


def _check_feeds(config: Config) -> None:
    """Raise ConfigError for feeds that cannot be made, and for live bars that can never come in time."""
    own = prices_of(config)
    prices = [feed for feed in feeds_of(config) if feed.kind == "prices" and feed.into in own]
    if prices and not config.inputs.decide_minutes:
        raise ConfigError(
            "live bars come minutes after the close, so no decision at the close itself would have its bar",
            where=f"[inputs] decide_minutes with [feeds.{prices[0].name}]",
            got=0,
            do="set decide_minutes = 30, say",
        )


def _check_store(home: Home, config: Config) -> None:
    """Stock the store with what is built in; raise NoData where it has not what the account reads.

    A news set that a live feed will fill begins empty here: its first session may be due before its first headline.
    """
    market, news = config.run.market, config.run.news
    with MarketStore.open(home.store) as store:
        if is_universe(market):
            for feed in feeds_of(config):
                if feed.kind == "news":
                    store.add_news(feed.into, [], source=FileSource(name=feed.name))
            check_store(store, stock_universe(store, universe_of(market), news))
            return
        news = stock(store, market, news)
        if market not in store.symbols():
            do = "import or download its prices first: python -m trader prices --help"
            raise NoData("no bars of this market", got=market, do=do)
        for feed in feeds_of(config):
            if feed.kind == "news":
                store.add_news(feed.into, [], source=FileSource(name=feed.name))
        if news not in store.names():
            known, do = ", ".join(store.names()) or "none", "import it first, or name a live feed that fills it"
            raise NoData("no such news set", got=news, expected=f"one of {known}", do=do)


@contextmanager
def running(home: Home, name: str, world: World) -> Iterator[AccountService[Any]]:
    """Open everything that an account needs, start its service, and end it in order whatever happens inside.

    Raises what ``AccountService.start`` raises, NoData for an account that is not there.
    """
    clock = world.clock
    with (
        Ledger.open(home.ledger, synchronous="FULL", clock=clock, wait_seconds=world.locked_seconds) as ledger,
        MarketStore.open(home.store, clock=clock) as store,
        ExitStack() as stack,
    ):
        accounts = Accounts(ledger, clock)
        account = accounts.get(name)
        made = _service_of_many if is_universe(account.config.run.market) else _service_of_one
        service = made(_Opened(home, world, ledger, store, accounts, account), stack)
        try:
            service.start()
        except BaseException:
            service.end()
            raise
        try:
            yield service
        except BaseException as error:
            service.end()
            with suppress(StoreError):  # the ledger itself may be what failed; the lease then runs out with the process
                service.failed(error)
            raise
        service.stop()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a service is made from."""

    home: Home
    world: World
    ledger: Ledger
    store: MarketStore
    accounts: Accounts
    account: Account

    def desk(self, calendar: Calendar) -> Desk:
        """Return what the account's service is run with."""
        world = self.world
        return Desk(
            account=self.account,
            ledger=self.ledger,
            accounts=self.accounts,
            calendar=calendar,
            lease=Lease(self.ledger, self.account.run, self.account.name, WallClock()),
            outside=Outside(world.clock, world.stale, world.tell(self.ledger, self.account), world.log),
            patient=world.patient,
            simulated=isinstance(world.clock, SimulatedClock),
        )


def _service_of_one(of: _Opened, stack: ExitStack) -> Service:
    account, config = of.account, of.account.config
    calendar, known = Calendar(config.inputs.decide_minutes), of.accounts.bars_known(account)
    scheduler = Scheduler(
        of.store,
        calendar,
        symbol=config.run.market,
        news=stock(of.store, config.run.market, config.run.news),
        spec=config.walkforward,
        bars_known=known,
        max_silence=config.risk.max_news_silence,
    )
    books = stack.enter_context(closing(_books(config)))
    read = partial(_source, of.home, account, of.ledger, of.store, scheduler, calendar, of.world, known)
    return Service(of.desk(calendar), scheduler, books, read, known)


def _service_of_many(of: _Opened, stack: ExitStack) -> UniverseService:
    account, config = of.account, of.account.config
    universe = universe_of(config.run.market)
    symbols = [member.symbol for member in universe]
    calendar, known = Calendar(config.inputs.decide_minutes), of.accounts.bars_of_symbols(account, symbols)
    scheduler = UniverseScheduler(
        of.store,
        calendar,
        stock_universe(of.store, universe, config.run.news),
        spec=config.walkforward,
        bars_known=known,
        max_silence=config.risk.max_news_silence,
    )
    books = stack.enter_context(closing(_books_of_many(config, symbols)))
    return UniverseService(
        of.desk(calendar), scheduler, books, lambda: _source_of_many(of, universe, scheduler, calendar, known), known
    )


def replay(home: Home, name: str, first: date | None, last: date, world_of: Callable[[Clock], World]) -> int:
    """Run an account's service through the sessions up to ``last`` on a simulated clock; return how many it decided.

    first: of an account that has decided nothing yet, the session to begin with. An account goes on where it stands,
        and no further than the newest bar that is stored.
    Raises ConfigError for an account that has decided by the wall's clock: a replay would call its late days timely.
    """
    calendar = Calendar()
    if first is not None and not calendar.is_session(first):
        first = calendar.sessions(first, date(first.year + 1, first.month, 1))[0]
    with Ledger.open(home.ledger, synchronous="FULL") as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get(name)
        if account.lived:
            do = "let it catch up: python -m trader paper once, or open another account for a replay"
            raise ConfigError("an account that has run live cannot be replayed", where=name, do=do)
        account = accounts.begin_at(account, first)
        done = accounts.last_decided(account)
    with MarketStore.open(home.store) as store:
        symbols = store.symbols()
    held = [symbols[one].last for one in prices_of(account.config) if one in symbols]
    newest = max((day for day in held if day is not None), default=last)
    last = min(last, newest)
    calendar = Calendar(account.config.inputs.decide_minutes)
    start = account.first_session if done is None else calendar.session(calendar.index(done) + 1)
    sessions = calendar.sessions(start, last) if start <= last else []
    if not sessions:
        return 0
    clock = SimulatedClock(calendar.decide_at(sessions[0]))
    decided = 0
    with running(home, name, world_of(clock)) as service:
        for session in sessions:
            clock.set(calendar.decide_at(session))
            decided += service.run_due()
    return decided


def _how(config: Config) -> dict[str, Any]:
    return {"costs": costs_of(config), "execution": config.run.execution, "stale_open": config.costs.stale_open}


def _books(config: Config) -> Books:
    kind, params = strategy_of(config)
    how, symbol = _how(config), config.run.market
    return Books(Trading(symbol, kind, params, risk=config.risk, **how), holding(symbol, **how))


def _books_of_many(config: Config, symbols: list[str]) -> UniverseBooks:
    kind, params = strategy_of(config)
    how = _how(config)
    trading = UniverseTrading(symbols, kind, params, risk=config.risk, **how)
    return UniverseBooks(trading, holding_universe(symbols, **how))


def _source(
    home: Home,
    account: Account,
    ledger: Ledger,
    store: MarketStore,
    scheduler: Scheduler,
    calendar: Calendar,
    world: World,
    known: Mapping[date, datetime | None],
) -> Source:
    if account.signals_run is not None:
        return StoredSignals(ledger, account.signals_run)
    config = account.config
    readers = world.readers or readers_of(config, home)
    window = window_of(config, readers)
    spec = model_spec(config, config.run.model, readers.texts_id)
    registry = Registry(home.models)
    registry.sweep()  # a training that was killed with this service may have left half a model
    host = ModelHost(
        window,
        Trainer(
            window,
            spec,
            registry,
            workers=1,
            fallback=cpu_spec(config, spec.name, spec.texts_id),
            about=about(config),
        ),
        config.walkforward,
        config.retrain,
        symbol=config.run.market,
        lookback=spec.lookback,
        first=account.first_session,
    )

    def first_read(session: date) -> date:
        return history_of(store, calendar, config, session, spec.lookback, known)

    return ModelSource(
        host, scheduler, calendar, ledger, account, world.clock, first_read, readers.warm_up, readers.texts.index
    )


def _source_of_many(
    of: _Opened, universe: Universe, scheduler: UniverseScheduler, calendar: Calendar, known: Mapping[str, Moments]
) -> UniverseSource:
    account, config = of.account, of.account.config
    if account.signals_run is not None:
        return StoredUniverse(of.ledger, account.signals_run)
    readers = of.world.readers or readers_of(config, of.home)
    spec = model_spec(config, config.run.model, readers.texts_id)
    registry = Registry(of.home.models)
    registry.sweep()  # a training that was killed with this service may have left half a model
    host = host_of(
        config,
        universe,
        windows_of(config, universe, readers),
        spec,
        registry,
        first=account.first_session,
        overrides=overrides_by_symbol(of.accounts.events(account)),
        fallback=cpu_spec(config, spec.name, spec.texts_id),
        workers=workers_of(config),
    )

    def first_read(session: date) -> date:
        return min(
            history_of(of.store, calendar, config, session, spec.lookback, known[one.symbol], one.prices)
            for one in universe
        )

    clock, embed = of.world.clock, readers.texts.index
    return UniverseModels(host, scheduler, calendar, of.ledger, account, clock, first_read, readers.warm_up, embed)
