"""The command ``paper``: open an account, run it, look at it, talk to it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trader.errors import ConfigError
from trader.terminal import print_table, settings

if TYPE_CHECKING:
    from trader.outcome import Home


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``paper`` and its words."""
    names = commands.add_parser("paper", help="trade on paper, day by day").add_subparsers(
        required=True, metavar="WHAT"
    )
    parser = _named(names, "open", "fix the settings of a new account")
    parser.add_argument("--signals", metavar="RUN", help="trade the stored signals of a run instead of a model's own")
    parser.add_argument("--from", dest="first", metavar="DAY", help="first session to decide (default: the next one)")
    for word, text in (
        ("market", "a symbol"),
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
    _logs(parser)
    parser.set_defaults(command=run)
    parser = _named(names, "once", "do all that is due, and end; for cron")
    _logs(parser)
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


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", choices=["text", "json"], help="one line an event; text on a terminal, else json")


def _home(options: argparse.Namespace) -> Home:
    from trader.outcome import Home

    return Home(settings(options)[1])


def open_account(options: argparse.Namespace) -> None:
    """Open an account and say what it will do."""
    from trader import running
    from trader.clock import WallClock
    from trader.config import day_of

    config, _ = settings(options)
    given = {word: getattr(options, word) for word in ("market", "news", "model", "strategy", "lookback", "execution")}
    config = config.with_run(**given, seed=options.seed)
    first = None if options.first is None else day_of(options.first, end=False)
    account = running.open_account(
        _home(options), options.name, config, WallClock(), first=first, signals_run=options.signals
    )
    run = account.config.run
    source = f"run {account.signals_run}'s signals" if account.signals_run else f"{run.model} on {run.news}"
    print(f"Account {account.name} is run {account.run}: {source}, {run.market}, {run.strategy}, {run.execution}.")
    print(f"Its first decision is that of {account.first_session}. Its settings are fixed now.")
    print(f"Next: python -m trader paper run {account.name}")


def run(options: argparse.Namespace) -> None:
    """Run a service until it is told to stop."""
    from trader.running import running
    from trader.wake import Bell, ends_on_signals, serve
    from trader.world import live

    with (
        live(_home(options), options.name, options.log) as world,
        Bell() as bell,
        ends_on_signals(bell),
        running(_home(options), options.name, world.around()) as service,
    ):
        serve(service, bell, world.poll, world.log)


def once(options: argparse.Namespace) -> None:
    """Do what is due, and say how much that was."""
    from trader.running import running
    from trader.world import live

    with (
        live(_home(options), options.name, options.log) as world,
        running(_home(options), options.name, world.around(patient=True)) as service,
    ):
        world.poll()
        done = service.run_due()
        due = service.next_due()
    print(f"{done} {'decision' if done == 1 else 'decisions'} made; the next is due at {due:%Y-%m-%d %H:%M} UTC")


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
    after = f"the first decision after {decided}" if decided else f"the decision of {account.first_session}"
    print(f"{options.kind} is written down; {after} takes it up.")
    if options.kind == "halt":
        print("Orders that were sent before still fill; flatten cancels them and closes the position.")
