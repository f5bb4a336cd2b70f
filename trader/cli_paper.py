"""The command ``paper``: open an account, run it, look at it, talk to it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
import shlex
from typing import TYPE_CHECKING, Any

from trader.errors import ConfigError, NoData, ReplayError
from trader.terminal import add_log_words, opened_log, print_table, settings

if TYPE_CHECKING:
    from trader.account import Account, AccountEvent
    from trader.config import Config
    from trader.ledger import Ledger
    from trader.outcome import Home, Outcome
    from trader.progress import Watch
    from trader.universe_outcome import UniverseOutcome
    from trader.world import Live


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``paper`` and its words."""
    names = commands.add_parser("paper", help="trade on paper, day by day").add_subparsers(
        required=True, metavar="WHAT"
    )
    parser = _named(names, "open", "fix the settings of a new account")
    parser.add_argument("--signals", metavar="RUN", help="trade the stored signals of a run instead of a model's own")
    parser.add_argument("--from", dest="first", metavar="DAY", help="first session to decide (default: the next one)")
    for word, text in (
        ("market", "a symbol, or a universe's FILE.toml"),
        ("news", "wire, or a news set"),
        ("model", "as for backtest"),
        ("strategy", "as for backtest"),
        ("execution", "next_open or next_close"),
    ):
        parser.add_argument(f"--{word}", metavar="NAME", help=text)
    for word in ("lookback", "seed"):
        parser.add_argument(f"--{word}", type=int, metavar="N")
    parser.set_defaults(command=open_account)
    parser = _named(names, "run", "run it until it is stopped (SIGTERM, Ctrl-C)")
    add_log_words(parser)
    parser.set_defaults(command=run)
    parser = _named(names, "once", "do all that is due, and end; for cron")
    add_log_words(parser)
    parser.set_defaults(command=once)
    parser = _named(names, "replay", "run it through past sessions on a simulated clock")
    parser.add_argument("--from", dest="first", metavar="DAY", help="of an account that has decided nothing yet")
    parser.add_argument("--to", dest="last", metavar="DAY", required=True, help="YYYY, YYYY-MM or YYYY-MM-DD")
    parser.set_defaults(command=replay)
    parser = names.add_parser("status", help="show an account, or all of them")
    _shared(parser)
    parser.add_argument("name", nargs="?")
    parser.set_defaults(command=status)
    for kind, text in (
        ("halt", "send no more orders from the next decision on"),
        ("resume", "trade again from the next decision on"),
        ("flatten", "close the position at the next decision, and halt"),
    ):
        parser = _named(names, kind, text)
        parser.set_defaults(command=request, kind=kind)


def _named(names: argparse._SubParsersAction[argparse.ArgumentParser], word: str, text: str) -> argparse.ArgumentParser:
    parser = names.add_parser(word, help=text)
    _shared(parser)
    parser.add_argument("name")
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml in this folder)")
    parser.add_argument("--home", metavar="DIR", help="stores, caches, models, ledger (default: TRADER_HOME, or var/)")


def _home(options: argparse.Namespace) -> Home:
    from trader.outcome import Home

    return Home(settings(options)[1])


def open_account(options: argparse.Namespace) -> None:
    """Open an account and say what it will do."""
    from trader import running
    from trader.clock import Calendar, WallClock
    from trader.config import day_of
    from trader.notify import check_channels
    from trader.service import first_session
    from trader.universe import is_universe, market_shown, some
    from trader.universe_engine import with_strategy

    config, _ = settings(options)
    check_channels(config.notify)  # a mistake there is better told now than at the first notice
    given = {word: getattr(options, word) for word in ("market", "news", "model", "strategy", "lookback", "execution")}
    config = config.with_run(**given, seed=options.seed)
    if is_universe(config.run.market) and options.strategy is None:
        config = with_strategy(config)
    first = None if options.first is None else day_of(options.first, end=False)
    account = running.open_account(
        _home(options), options.name, config, WallClock(), first=first, signals_run=options.signals
    )
    run = account.config.run
    source = f"run {account.signals_run}'s signals" if account.signals_run else f"{run.model} on {run.news}"
    market = market_shown(run.market)
    print(f"Account {account.name} is run {account.run}: {source}, {market}, {run.strategy}, {run.execution}.")
    print(f"Its first decision is that of {account.first_session}. Its settings are fixed now.")
    words = "".join(
        f" --{word} {shlex.quote(str(value))}" for word in ("config", "home") if (value := getattr(options, word))
    )
    calendar = Calendar(account.config.inputs.decide_minutes)
    if account.first_session < first_session(calendar, WallClock().now()):
        print("That session is past: a replay decides the days up to now, as fast as it can; what a service finds")
        print("undone is late, and trades nothing.")
        print(f"Next: python -m trader paper replay {account.name} --to DAY{words}")
        return
    if without := _without_feed(account.config):
        print(f"No [feeds] section brings bars of {some(without)}: import each in time, or every decision abstains.")
    print(f"Next: python -m trader paper run {account.name}{words}")


def _without_feed(config: Config) -> list[str]:
    """Return the names of an account's bars that no live feed brings."""
    from trader.live_feeds import feeds_of
    from trader.running import prices_of

    fed = {feed.into for feed in feeds_of(config) if feed.kind == "prices"}
    return [name for name in dict.fromkeys(prices_of(config)) if name not in fed]


def run(options: argparse.Namespace) -> None:
    """Run a service until it is told to stop."""
    from trader.running import running
    from trader.wake import Bell, ends_on_signals, serve

    with (
        _live(options) as world,
        Bell() as bell,
        ends_on_signals(bell),
        running(_home(options), options.name, world.around()) as service,
    ):
        serve(service, bell, world.poll, world.log)


def once(options: argparse.Namespace) -> None:
    """Do what is due, and say how much that was."""
    from trader.running import running

    with (
        _live(options) as world,
        running(_home(options), options.name, world.around(once=True)) as service,
    ):
        world.poll()
        done = service.run_due()
        due = service.next_due()
    if not options.log_file:  # cron posts whatever is printed, and the log holds each decision
        print(f"{done} {'decision' if done == 1 else 'decisions'} made; the next is due at {due:%Y-%m-%d %H:%M} UTC")


@contextmanager
def _live(options: argparse.Namespace) -> Iterator[Live]:
    """Open the surroundings of a live account, with its log and the channels of today's config file."""
    from trader.clock import WallClock
    from trader.notify import open_channels
    from trader.world import live

    clock = WallClock()
    log = opened_log(options, clock)
    try:
        with live(_home(options), options.name, open_channels(settings(options)[0].notify), log, clock) as world:
            yield world
    finally:
        log.close()


def replay(options: argparse.Namespace) -> None:
    """Run an account through past sessions."""
    from trader import paper_report, running
    from trader.config import day_of
    from trader.running import World

    first = None if options.first is None else day_of(options.first, end=False)
    last = day_of(options.last, end=True)
    if first is not None and first > last:
        raise ConfigError("--from lies after --to", got=f"{first} and {last}")
    home = _home(options)
    done = running.replay(home, options.name, first, last, lambda clock: World(clock=clock, patient=True))
    print(f"{done} {'decision' if done == 1 else 'decisions'} replayed.")
    for line in paper_report.lines(home, options.name):
        print(line)


def as_account(options: argparse.Namespace) -> None:
    """Backtest the days of an account with all that befell it, and say whether the rows are the same."""
    from trader.account import Accounts
    from trader.clock import WallClock
    from trader.ledger import Ledger
    from trader.progress import watching
    from trader.universe import symbols_of

    given = [word for word in ("first", "last", "market", "news", "model", "strategy") if getattr(options, word)]
    if given:
        raise ConfigError("an account has days and settings of its own", where="--as-account", got=f"--{given[0]}")
    home = _home(options)
    with Ledger.open(home.ledger, read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get(options.as_account)
        if account.signals_run is not None:
            do = "its own start checks every row: python -m trader paper status"
            raise ConfigError("an account of stored signals forecasts nothing", where=account.name, do=do)
        events, recorded = accounts.events(account), ledger.equity(account.run)
        symbols = symbols_of(account.config.run.market)
        bars_known = accounts.bars_of_symbols(account, symbols) if symbols else accounts.bars_known(account)
        if not recorded:
            raise NoData("the account has traded no session yet", where=account.name)
        first, newest = account.first_session, date.fromisoformat(recorded[-1]["session"])
        last = newest if symbols else _last_bar(home, account, newest)  # one of many closes sessions without a bar
        mine, later = (
            ledger.ledger_hash(account.run, until=last),
            [row for row in recorded if row["session"] > str(last)],
        )
        moved = ledger.between("fills", account.run, last + timedelta(days=1), newest)
    with watching() as watch:
        made = _again(home, account, (first, last), events, bars_known, watch)
    same = made.ledger_hash == mine and not moved
    sessions = len(recorded) - len(later)
    print(f"Account {account.name}, {recorded[0]['session']} to {last}: {sessions:,} sessions, hash {mine[:16]}")
    print(f"Backtest of the same days, run {made.run}, with its {len(events)} events: hash {made.ledger_hash[:16]}")
    if later:
        print(f"After {last} no bar has come: {len(later):,} more sessions of the account wait, without a fill.")
    held = "signal, order, fill, holding" if symbols else "signal, order, fill"
    print(f"Every {held} and equity is the same." if same else "They differ.")
    if not same:
        with Ledger.open(home.ledger, read_only=True) as ledger:
            where = ledger.first_difference(account.run, made.run, until=last)
        where = where or f"a fill of {moved[0]['session']}, after the last bar"
        raise ReplayError("the account is not its backtest", where=account.name, got=where)


def _again(
    home: Home,
    account: Account,
    days: tuple[date, date],
    events: Sequence[AccountEvent],
    bars_known: Any,
    watch: Watch,
) -> Outcome | UniverseOutcome:
    """Backtest an account's days with all that befell it, of one symbol or of many."""
    from trader import engine, universe_engine
    from trader.account import abstentions_by_symbol, abstentions_of, controls_of, overrides_by_symbol, overrides_of
    from trader.universe import symbols_of

    config, controls = account.config, controls_of(events)
    if symbols := symbols_of(config.run.market):
        return universe_engine.backtest(
            config,
            home.folder,
            *days,
            watch=watch,
            as_asked=True,
            overrides=overrides_by_symbol(events),
            controls=controls,
            abstain=abstentions_by_symbol(events, symbols),
            bars_known=bars_known,
        )
    return engine.backtest(
        config,
        home.folder,
        *days,
        watch=watch,
        overrides=overrides_of(events),
        controls=controls,
        abstain=abstentions_of(events),
        bars_known=bars_known,
    )


def _last_bar(home: Home, account: Account, newest: date) -> date:
    """Return the last session, up to the account's newest, whose bar is stored: a backtest ends there."""
    from trader.running import prices_of
    from trader.store import MarketStore
    from trader.universe import market_name

    with MarketStore.open(home.store) as store:
        held = store.symbols()
    lasts = [held[one].last for one in prices_of(account.config) if one in held]
    last = max((day for day in lasts if day is not None), default=None)
    if last is None or last < account.first_session:
        market, do = market_name(account.config.run.market), "import or download them first"
        raise NoData(f"no bars of {market} in the account's days", where=account.name, do=do)
    return min(newest, last)


def promote(options: argparse.Namespace) -> None:
    """Ask that a model be used from the next decision on, whatever the rule says, until the next adopted one."""
    _name_model(options, "promote", options.model_id)


def rollback(options: argparse.Namespace) -> None:
    """Ask for the model that was in use before the present one."""
    from trader.account import Accounts
    from trader.clock import WallClock
    from trader.ledger import Ledger

    with Ledger.open(_home(options).ledger, read_only=True) as ledger:
        _refuse_many(Accounts(ledger, WallClock()).get(options.account))
        before = _models_used(ledger, options.account)[:-1]
    if not before:
        raise NoData("the account has used no other model before", where=options.account)
    _name_model(options, "rollback", before[-1])


def _refuse_many(account: Account) -> None:
    """Raise ConfigError for an account of many symbols: which of them a model would be for cannot be said yet."""
    from trader.universe import refuse_universe

    refuse_universe(account.config.run.market, "a model that is chosen by hand")


def _models_used(ledger: Ledger, name: str) -> list[str]:
    """Return the models that an account decided by, each where it was taken up, oldest first."""
    from trader.account import Accounts
    from trader.clock import WallClock

    account = Accounts(ledger, WallClock()).get(name)
    ids = [signal.model_id for signal in ledger.signals(account.run)]
    return [one for at, one in enumerate(ids) if at == 0 or ids[at - 1] != one]


def _name_model(options: argparse.Namespace, kind: str, model_id: str) -> None:
    from trader.account import Accounts
    from trader.clock import Calendar, WallClock
    from trader.ledger import Ledger
    from trader.parts import about, model_spec, readers_of
    from trader.registry import Registry
    from trader.training import check_promotable

    home = _home(options)
    with Ledger.open(home.ledger, read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get(options.account)
        _refuse_many(account)
        decided, used = accounts.last_decided(account), _models_used(ledger, options.account)
    if account.signals_run is not None:
        do = f"it trades the signals of run {account.signals_run}"
        raise ConfigError("an account of stored signals has no model to choose", where=account.name, do=do)
    config, calendar = account.config, Calendar()
    spec = model_spec(config, config.run.model, readers_of(config, home).texts_id)
    first = calendar.session(calendar.index(decided) + 1) if decided else account.first_session
    check_promotable(Registry(home.models), model_id, spec, {} if model_id in used else about(config), first)
    with Ledger.open(home.ledger, synchronous="FULL") as ledger:
        accounts = Accounts(ledger, WallClock())
        accounts.request(accounts.get(options.account), kind, model_id)
    print(f"{model_id} is asked for. {_taken_up(decided, account)}")


def _taken_up(decided: date | None, account: Account) -> str:
    """Say which decision takes up what was just asked."""
    after = f"after {decided}" if decided else f"from {account.first_session} on"
    return f"The first decision {after} that is in time for its open takes it up."


def status(options: argparse.Namespace) -> None:
    """Show one account in full, or all in a table."""
    from trader import paper_report

    home = _home(options)
    if options.name is None:
        print_table(paper_report.table(home))
        return
    for line in paper_report.lines(home, options.name):
        print(line)


def request(options: argparse.Namespace) -> None:
    """Write down what the owner asks for; the service takes it up at its next decision."""
    from trader.account import Accounts
    from trader.clock import WallClock
    from trader.ledger import Ledger

    path = _home(options).ledger
    with Ledger.open(path, read_only=True):  # a wrong home is told so, and not made
        pass
    with Ledger.open(path, synchronous="FULL") as ledger:
        accounts = Accounts(ledger, WallClock())
        account = accounts.get(options.name)
        accounts.request(account, options.kind)
        decided = accounts.last_decided(account)
    print(f"{options.kind} is written down. {_taken_up(decided, account)}")
    if options.kind == "halt":
        print("Orders that still wait are cancelled then; the position stays. flatten closes it.")
