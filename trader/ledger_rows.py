"""The rows of the ledger: which columns are hashed, how a session becomes rows, and rows become values again.

``trader.ledger`` reads and writes them; the tables themselves are in ``trader.ledger_schema``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from trader.errors import TimeError
from trader.events import Signal
from trader.ledger_schema import day
from trader.records import Verdict

if TYPE_CHECKING:
    from trader.records import SessionRecord

Row = dict[str, Any]
OPEN = "open at end"  # status of an order that waits when the record ends; see trader.records

# What makes two runs the same: these columns in this order, and nothing of runs, folds (seconds) or metrics.
HASHED = {
    "signals": "session, symbol, p_up, side, model_id, reason, news_count, effective_news",
    "expected_returns": "session, symbol, expected_return",
    "news_weights": "session, symbol, rank, headline, weight",
    "orders": "session, ref, symbol, size, status, reason",
    "fills": "session, ref, part, symbol, size, price, reference_price, commission, slippage_cost",
    "equity": "session, equity, equity_gross, cash, position, exposure, commission, slippage, borrow, interest, "
    "always_buy_equity",
    "holdings": "session, symbol, size, price, value",
}
KEYS = {
    "signals": 2,
    "expected_returns": 2,
    "news_weights": 3,
    "orders": 2,
    "fills": 3,
    "equity": 1,
    "holdings": 2,
}  # leading columns to sort by
SELECT = {
    table: f"SELECT {columns} FROM {table} WHERE run = ? AND session <= ? "
    f"ORDER BY {', '.join(columns.split(', ')[: KEYS[table]])}"
    for table, columns in HASHED.items()
}  # a run's rows up to a session
INSERT = {
    table: f"INSERT INTO {table} (run, {columns}) VALUES (?{', ?' * len(columns.split(','))})"
    for table, columns in HASHED.items()
}


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a run's record ends, so that each session can be checked against the one before; "" before the first."""

    session: str = ""
    equity: float = 0.0
    gross: float = 0.0
    waiting: bool = False  # whether orders are open that a next session has to end
    state: str = "ACTIVE"


def told(row: Row | None) -> str:
    """Return a row in one line."""
    return ", ".join(f"{name} {value}" for name, value in row.items()) if row else "no such row"


def signal_of(row: Row, top: Sequence[tuple[str, float]]) -> Signal:
    """Return the signal of a row of ``signals`` and its headlines."""
    values = {key: value for key, value in row.items() if key not in ("run", "session")}
    return Signal(**values, session=date.fromisoformat(row["session"]), top=tuple(top))


def check_order(run: int, session: str, record: SessionRecord, tail: Tail) -> None:
    """Raise TimeError where a record does not follow the run's newest session."""
    if day(record.session) != session:
        raise TimeError("signal and account are of different sessions", got=record.session, expected=session)
    if session <= tail.session:
        raise TimeError("a session out of order", where=f"run {run}", got=session, expected=f"one after {tail.session}")
    for fill in record.fills:
        if fill.session != record.session:
            raise TimeError("a fill of another session", where=f"run {run}", got=fill.session, expected=session)


def verdict_of(row: Row) -> Verdict:
    """Return the verdict of a row."""
    values = {key: value for key, value in row.items() if key != "run"}
    return Verdict(**values | {"session": date.fromisoformat(row["session"]), "adopted": bool(row["adopted"])})


def signal_rows(run: int, session: str, signals: Sequence[Signal]) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of a session's signals, one a symbol, by table."""
    rows: dict[str, list[tuple[object, ...]]] = {"signals": [], "expected_returns": [], "news_weights": []}
    for one in signals:
        facts = (one.p_up, one.side, one.model_id, one.reason, one.news_count, one.effective_news)
        rows["signals"].append((run, session, one.symbol, *facts))
        if one.expected_return is not None:
            rows["expected_returns"].append((run, session, one.symbol, one.expected_return))
        rows["news_weights"] += [(run, session, one.symbol, rank, *top) for rank, top in enumerate(one.top, start=1)]
    return rows


def holding_rows(run: int, session: str, record: SessionRecord) -> list[tuple[object, ...]]:
    """Return the rows of the positions at a session's close; none of an account of one symbol."""
    return [(run, session, one.symbol, one.size, one.price, one.value) for one in record.holdings]


def fill_rows(run: int, record: SessionRecord) -> list[tuple[object, ...]]:
    """Return the rows of a session's fills, those of one order numbered."""
    rows: list[tuple[object, ...]] = []
    parts: Counter[int] = Counter()
    for fill in record.fills:
        parts[fill.order_ref] += 1
        money = (fill.size, fill.price, fill.reference_price, fill.commission, fill.slippage_cost)
        rows.append((run, day(fill.session), fill.order_ref, parts[fill.order_ref], fill.symbol, *money))
    return rows


def equity_row(
    run: int, session: str, record: SessionRecord, gross: float, always_buy_equity: float
) -> tuple[object, ...]:
    """Return the row of a session's account."""
    held = (record.cash, record.position, record.exposure)
    flows = (record.commission, record.slippage, record.borrow, record.interest)
    return (run, session, record.equity, gross, *held, *flows, always_buy_equity)


def gross_of(record: SessionRecord, tail: Tail) -> float:
    """Return equity_gross: what the account would hold had each day's return been spared that day's costs."""
    before_costs = float(record.equity + record.commission + record.slippage + record.borrow)
    if not tail.session:
        return before_costs
    if tail.equity <= 0:  # ruined: a return on nothing has no meaning, so count money
        return tail.gross + before_costs - tail.equity
    return tail.gross * before_costs / tail.equity
