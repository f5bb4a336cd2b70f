"""Derive an account's broker from what is stored: push every recorded session through it, and check what comes out.

The broker's state is nowhere on disk. At each start it is made again from the account's first session, out of stored
signals, recorded requests and the bars as each session knew them; no model and no language model is loaded. Every
order, fill and equity that comes out must be the ledger's own to the last bit, or the account does not go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from typing import Any

from trader.broker import Trading
from trader.errors import ReplayError
from trader.events import Bar, Signal
from trader.ledger import Ledger
from trader.records import Control, OrderRecord, SessionRecord, idle
from trader.universe_broker import UniverseSession, UniverseTrading, long_signals

ALWAYS = "always_buy"


@dataclass(frozen=True, slots=True)
class Closed:
    """One session of an account that is whole: what was decided, what the broker made of it, Always Buy beside.

    signals: one a symbol of the account.
    """

    signals: Sequence[Signal]
    record: SessionRecord
    always_buy: float

    @property
    def signal(self) -> Signal:
        """The signal of an account of one symbol."""
        [one] = self.signals
        return one


class Books:
    """An account's broker and the broker of Always Buy beside it, fed with the same sessions."""

    def __init__(self, trading: Trading, always_buy: Trading) -> None:
        self._trading, self._always = trading, always_buy
        self.last: Closed | None = None

    def close_session(self, signal: Signal, bar: Bar | None, control: Control) -> Closed:
        """Close a session; without a bar the account stays as it stood."""
        if bar is None:
            assert self.last is not None, "an account begins with a session that has a bar"
            closed = Closed((signal,), idle(self.last.record, signal.session), self.last.always_buy)
        else:
            long = replace(signal, p_up=1.0, side=1, model_id=ALWAYS, reason="")
            record = self._trading.push(bar, signal, control)
            closed = Closed((signal,), record, self._always.push(bar, long).equity)
        self.last = closed
        return closed

    def close(self) -> None:
        """End both brokers and their threads; a second time does nothing."""
        self._trading.close()
        self._always.close()


class UniverseBooks:
    """An account's broker of many symbols and that of Always Buy beside it, fed with the same sessions."""

    def __init__(self, trading: UniverseTrading, always_buy: UniverseTrading) -> None:
        self._trading, self._always = trading, always_buy
        self.last: Closed | None = None

    def close_session(self, signals: Sequence[Signal], bars: Mapping[str, Bar], control: Control) -> Closed:
        """Close a session; a symbol without a bar stands at its last close."""
        day = UniverseSession(
            session=signals[0].session, bars=bars, signals={signal.symbol: signal for signal in signals}
        )
        record = self._trading.push(day, control)
        self.last = Closed(tuple(signals), record, self._always.push(long_signals(day)).equity)
        return self.last

    def close(self) -> None:
        """End both brokers and their threads; a second time does nothing."""
        self._trading.close()
        self._always.close()


def rebuild(
    books: Books, ledger: Ledger, run: int, bar_of: Callable[[date], Bar | None], controls: Mapping[date, Control]
) -> Signal | None:
    """Push an account's recorded sessions through its books and compare; return the signal that waits for its bar.

    bar_of: the bar of a session as the account knew it.   controls: by the session that took them up.
    Raises ReplayError that names the first row that differs.
    """

    def close(signals: Sequence[Signal]) -> Closed:
        [signal] = signals
        return books.close_session(signal, bar_of(signal.session), controls.get(signal.session, Control()))

    waiting = _rebuild(ledger, run, close)
    return waiting[0] if waiting else None


def rebuild_universe(
    books: UniverseBooks,
    ledger: Ledger,
    run: int,
    symbols: Sequence[str],
    bars_of: Callable[[date], Mapping[str, Bar]],
    controls: Mapping[date, Control],
) -> None:
    """Push the recorded sessions of an account of many symbols through its books and compare.

    symbols: in the universe's order.   bars_of: the bars of a session that were known when it was decided.
    Raises ReplayError that names the first row that differs.
    """

    def close(signals: Sequence[Signal]) -> Closed:
        of = {signal.symbol: signal for signal in signals}
        session = signals[0].session
        if sorted(of) != sorted(symbols):
            raise _difference(run, f"signals {session}", ", ".join(of), ", ".join(symbols))
        ordered = [of[symbol] for symbol in symbols]
        return books.close_session(ordered, bars_of(session), controls.get(session, Control()))

    if waiting := _rebuild(ledger, run, close):
        raise _difference(run, f"equity {waiting[0].session}", "no row", "one beside its signals")


def _rebuild(ledger: Ledger, run: int, close: Callable[[Sequence[Signal]], Closed]) -> list[Signal]:
    """Close each recorded session anew and compare; return the signals of one that is not closed yet."""
    orders = 0
    waiting: list[Signal] = []
    last_closed: Closed | None = None
    for first, last in _years(ledger, run):  # year by year: a service that runs for decades reads no more at a time
        equity = {row["session"]: row for row in ledger.between("equity", run, first, last)}
        ended: list[OrderRecord] = []
        fills: dict[str, list[dict[str, Any]]] = {}
        for row in ledger.between("fills", run, first, last):
            fills.setdefault(row["session"], []).append(row)
        held: dict[str, list[dict[str, Any]]] = {}
        for row in ledger.between("holdings", run, first, last):
            held.setdefault(row["session"], []).append(row)
        made = ledger.signals(run, first, last, top=False)
        for session, of_session in groupby(made, lambda signal: signal.session):
            key, signals = session.isoformat(), list(of_session)
            if key not in equity:
                waiting = signals
                continue
            last_closed = closed = close(signals)
            ended += closed.record.orders
            _compare_equity(run, equity[key], closed)
            _compare_fills(run, key, fills.pop(key, []), closed.record)
            _compare_holdings(run, key, held.pop(key, []), closed.record)
        if fills:
            raise _difference(run, f"fills {min(fills)}", f"{len(fills[min(fills)])} rows", "none")
        if held:
            raise _difference(run, f"holdings {min(held)}", f"{len(held[min(held)])} rows", "none")
        orders += _compare_orders(ledger, run, ended)
    orders += _compare_orders(ledger, run, last_closed.record.open if last_closed else ())
    [counted] = ledger.query("SELECT count(*) AS n FROM orders WHERE run = ?", run)
    if counted["n"] != orders:
        raise _difference(run, "orders", f"{counted['n']} rows", f"{orders} rows")
    return waiting


def _years(ledger: Ledger, run: int) -> list[tuple[date, date]]:
    """Return the first and the last day of each year that a run has signals in."""
    [span] = ledger.query("SELECT min(session) AS first, max(session) AS last FROM signals WHERE run = ?", run)
    if span["first"] is None:
        return []
    return [(date(y, 1, 1), date(y, 12, 31)) for y in range(int(span["first"][:4]), int(span["last"][:4]) + 1)]


def _compare_equity(run: int, row: Mapping[str, Any], closed: Closed) -> None:
    record = closed.record
    names = ("equity", "cash", "position", "exposure", "commission", "slippage", "borrow", "interest")
    made: dict[str, float] = {name: float(getattr(record, name)) for name in names}
    made["always_buy_equity"] = float(closed.always_buy)
    for name, value in made.items():
        if row[name] != value:
            raise _difference(run, f"equity {row['session']} {name}", row[name], value)


def _compare_fills(run: int, session: str, rows: Sequence[Mapping[str, Any]], record: SessionRecord) -> None:
    names = ("symbol", "size", "price", "reference_price", "commission", "slippage_cost")
    held = sorted((row["ref"], *(row[name] for name in names)) for row in rows)
    made = sorted((fill.order_ref, *(_plain(getattr(fill, name)) for name in names)) for fill in record.fills)
    if held != made:
        raise _difference(run, f"fills {session}", held, made)


def _compare_holdings(run: int, session: str, rows: Sequence[Mapping[str, Any]], record: SessionRecord) -> None:
    names = ("symbol", "size", "price", "value")
    held = sorted(tuple(row[name] for name in names) for row in rows)
    made = sorted(tuple(_plain(getattr(one, name)) for name in names) for one in record.holdings)
    if held != made:
        raise _difference(run, f"holdings {session}", held, made)


def _compare_orders(ledger: Ledger, run: int, made: Sequence[OrderRecord]) -> int:
    """Compare orders with their rows; return how many there were."""
    if not made:
        return 0
    names = ("session", "ref", "symbol", "size", "status", "reason")
    refs = [order.ref for order in made]
    rows = ledger.query("SELECT * FROM orders WHERE run = ? AND ref BETWEEN ? AND ?", run, min(refs), max(refs))
    held = {row["ref"]: tuple(row[name] for name in names) for row in rows}
    for o in made:
        again = (o.session.isoformat(), o.ref, o.symbol, _plain(o.size), o.status, o.reason)
        if held.get(o.ref) != again:
            raise _difference(run, f"order {o.ref}", held.get(o.ref), again)
    return len(made)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _difference(run: int, where: str, held: object, made: object) -> ReplayError:
    return ReplayError(
        "the account's record is not what its signals and bars give",
        where=f"run {run} {where}",
        got=made,
        expected=f"{held}, as recorded",
        do="look for a changed version, strategy or store; the account is left as it is",
    )
