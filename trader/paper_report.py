"""What a paper account looks like from outside: one line in a table, or the whole of it in a dozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from trader import metrics
from trader.account import Account, AccountEvent, Accounts
from trader.clock import Calendar, WallClock
from trader.lease import holder_of
from trader.ledger import Ledger
from trader.outcome import Home
from trader.report import plain_table
from trader.store import MarketStore
from trader.universe import market_name, market_shown, some, symbols_of

if TYPE_CHECKING:
    from rich.table import Table

ENOUGH = 60  # sessions before a Sharpe ratio is worth its interval
EVENTS_SHOWN = 8
ORDERS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """An account with what the ledger holds of it."""

    account: Account
    decided: date | None
    equity: Sequence[dict[str, Any]]
    events: Sequence[AccountEvent]
    asked: Sequence[AccountEvent]
    latencies: Sequence[float]
    state: tuple[str, str]
    holder: str
    ledger_hash: str
    holdings: Sequence[dict[str, Any]]


def table(home: Home) -> Table:
    """Return all accounts, one a row."""
    with Ledger.open(home.ledger, read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        seen = [_seen(ledger, accounts, name) for name in accounts.names()]
    names = ("account", "run", "market", "model", "strategy", "decided to", "state", "equity", "service")
    rows = [
        (
            one.account.name,
            one.account.run,
            market_name(one.account.config.run.market),
            one.account.config.run.model,
            one.account.config.run.strategy,
            one.decided or "–",
            one.state[0],
            f"{one.equity[-1]['equity']:,.2f}" if one.equity else "–",
            one.holder,
        )
        for one in seen
    ]
    return plain_table(names, rows, right=(1, 7))


def lines(home: Home, name: str) -> list[str]:
    """Return an account in full."""
    with Ledger.open(home.ledger, read_only=True) as ledger:
        accounts = Accounts(ledger, WallClock())
        one = _seen(ledger, accounts, name)
        signals = ledger.signals(one.account.run)
        fills = ledger.fills(one.account.run)
        waiting = [row for row in ledger.orders(one.account.run) if row["status"] == "open at end"]
    run, calendar = one.account.config.run, Calendar(one.account.config.inputs.decide_minutes)
    source = f"run {one.account.signals_run}'s signals" if one.account.signals_run else run.model
    following = one.account.first_session
    if one.decided is not None:
        following = calendar.session(calendar.index(one.decided) + 1)
    said = [
        f"Account {name} (run {one.account.run}): {source} on {market_shown(run.market)}, news {run.news}, "
        f"{run.strategy}, {run.execution}",
        f"Decided from {one.account.first_session} to {one.decided or '–'}; the next decision, {following}, is due at "
        f"{calendar.decide_at(following):%Y-%m-%d %H:%M} UTC. Service: {one.holder}.",
        f"State {one.state[0]}{': ' + one.state[1] if one.state[1] else ''}",
    ]
    symbols = symbols_of(run.market)
    if one.equity:
        said += _money(home, one, signals, fills)
    if symbols and one.equity:
        said += _of_symbols(len(symbols), signals, one)
    told = [f"order {o['ref']} of {o['session']}, {o['size']:+,.4f} {o['symbol']}" for o in waiting]
    said += [f"Waiting: {order}" for order in told[:ORDERS_SHOWN]]
    said += [f"Waiting: {len(told) - ORDERS_SHOWN} more orders"] if len(told) > ORDERS_SHOWN else []
    said += [f"Asked for, not taken up yet: {event.kind} {event.detail}".rstrip() for event in one.asked]
    said += _events(one.events)
    if one.latencies:
        taken = np.array(one.latencies)
        said.append(f"A decision took {np.median(taken):.3f} s in the middle and {taken.max():.3f} s at most.")
    said.append(f"Ledger hash {one.ledger_hash[:16]}")
    return said


def _money(home: Home, one: Seen, signals: Sequence[Any], fills: Sequence[dict[str, Any]]) -> list[str]:
    newest, config = one.equity[-1], one.account.config
    made = newest["equity"] - config.costs.cash
    said = [
        f"Equity {newest['equity']:,.2f} after {len(one.equity):,} sessions ({made:+,.2f}; Always Buy "
        f"{newest['always_buy_equity'] - config.costs.cash:+,.2f}); "
        + ("" if symbols_of(config.run.market) else f"position {newest['position']:,.4f}, ")
        + f"{_invested(one):.1%} of equity"
    ]
    if len(one.equity) < ENOUGH:
        return [*said, f"Sharpe ratio: too few sessions, from {ENOUGH} on it is shown with its interval."]
    report = metrics.evaluate(_inputs(home, one, signals, fills), seed=config.run.seed)
    for name, of, title in (
        ("sharpe", "net", "Sharpe ratio, net"),
        ("sharpe", "always_buy", "of Always Buy"),
        ("excess_sharpe", "excess", "excess"),
    ):
        found = report.get(name, of)  # type: ignore[arg-type]
        value = "undefined" if found.value is None else f"{found.value:.2f}"
        bounds = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
        said.append(f"{title} {value}{bounds}")
    return [said[0], "; ".join(said[1:]), report.verdict]


def _inputs(home: Home, one: Seen, signals: Sequence[Any], fills: Sequence[dict[str, Any]]) -> metrics.EvaluationInputs:
    sessions = [row["session"] for row in one.equity]
    many = bool(symbols_of(one.account.config.run.market))
    side = {} if many else {str(signal.session): signal.side for signal in signals}
    traded: dict[str, float] = {}
    for fill in fills:
        traded[fill["session"]] = traded.get(fill["session"], 0.0) + abs(fill["size"] * fill["price"])
    close = {} if many else _closes(home, one.account, sessions)
    returns = [
        close[after] / close[today] - 1 if today in close and after in close else np.nan
        for today, after in zip(sessions, [*sessions[1:], ""], strict=True)
    ]
    return metrics.EvaluationInputs(
        side=[side.get(session, 0) for session in sessions],
        next_return=returns,
        equity=[row["equity"] for row in one.equity],
        always_buy_equity=[row["always_buy_equity"] for row in one.equity],
        costs=[row["commission"] + row["slippage"] + row["borrow"] for row in one.equity],
        traded=[traded.get(session, 0.0) for session in sessions],
        exposure=[row["exposure"] for row in one.equity],
        start_cash=one.account.config.costs.cash,
        risk_free=one.account.config.evaluation.risk_free,
    )


def _closes(home: Home, account: Account, sessions: Sequence[str]) -> dict[str, float]:
    """Return the closes of an account of one symbol, by session."""
    first, last = date.fromisoformat(sessions[0]), date.fromisoformat(sessions[-1])
    with MarketStore.open(home.store, read_only=True) as store:
        view = store.as_of(Calendar(account.config.inputs.decide_minutes).decide_at(last))
        return {str(bar.session): bar.close for bar in view.bars(account.config.run.market, first, last)}


def _events(events: Sequence[AccountEvent]) -> list[str]:
    counts: dict[str, int] = {}
    for event in events:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    if not counts:
        return ["Nothing came from outside."]
    said = ["From outside: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())]
    if len(events) > EVENTS_SHOWN:
        said.append(f"  the newest {EVENTS_SHOWN} of {len(events)}, as they were written down:")
    return said + [f"  {event.session} {_told(event)}" for event in events[-EVENTS_SHOWN:]]


def _told(event: AccountEvent) -> str:
    if event.symbol:
        return f"{event.symbol}: {_of_one(event)}"
    return _of_one(event)


def _of_one(event: AccountEvent) -> str:
    named = event.detail.startswith((f"{event.kind}:", f"{event.kind} "))  # "late: decided at …" says its kind itself
    return event.detail if named else f"{event.kind} {event.detail}".rstrip()


def _seen(ledger: Ledger, accounts: Accounts, name: str) -> Seen:
    account = accounts.get(name)
    held = holder_of(ledger, account.run)
    holder = "none" if held is None else f"process {held[0].pid} on {held[0].host}"
    if held is not None and held[1]:
        holder = "none (the last one died)"
    return Seen(
        account,
        accounts.last_decided(account),
        ledger.equity(account.run),
        accounts.events(account),
        accounts.requests(account),
        accounts.latencies(account),
        ledger.state(account.run),
        holder,
        ledger.ledger_hash(account.run),
        _held(ledger, account.run),
    )


def _invested(one: Seen) -> float:
    """Return the share of equity that is invested: signed of one symbol, of many long and short added up."""
    newest = one.equity[-1]
    if not symbols_of(one.account.config.run.market):
        return float(newest["exposure"])
    return float(sum(abs(row["value"]) for row in one.holdings) / newest["equity"])


def _held(ledger: Ledger, run: int) -> list[dict[str, Any]]:
    """Return the positions at the newest close of an account of many symbols, the largest first."""
    [span] = ledger.query("SELECT max(session) AS last FROM equity WHERE run = ?", run)
    if span["last"] is None:
        return []
    last = date.fromisoformat(span["last"])
    return sorted(ledger.between("holdings", run, last, last), key=lambda row: (-abs(row["value"]), row["symbol"]))


def _of_symbols(count: int, signals: Sequence[Any], one: Seen) -> list[str]:
    """Return what an account of many symbols holds, and which of them its newest session did not decide.

    A few of each are named, so that a line has at most 100 columns with 88 symbols, too.
    """
    newest = [signal for signal in signals if signal.session == signals[-1].session]
    without = [signal.symbol for signal in newest if signal.p_up is None]
    equity = one.equity[-1]["equity"]
    held = [f"{row['symbol']} {row['value'] / equity:+.1%}" for row in one.holdings]
    decided = f"Decided {count - len(without)} of {count} symbols on {signals[-1].session}"
    return [
        f"Holds {len(held)} of {count} symbols, of equity: {some(held)}" if held else f"Holds none of {count} symbols",
        f"{decided}; not {some(without)}" if without else decided,
    ]
