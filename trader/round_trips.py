"""Positions from their opening to their closing, put together from fills; for ``trader.ledger``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
import math
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """A position from flat to flat, or to its reversal; ``exit`` and pnl are None while it is open.

    size: the most units held, negative for a short.  entry_price, exit_price: means over the units.
    pnl: money, net of slippage and commission but not of borrow and interest, which are the account's.
    """

    symbol: str
    entry: date
    exit: date | None = None
    size: float
    entry_price: float
    exit_price: float | None = None
    pnl: float | None = None


def round_trips_of(fills: Sequence[Row]) -> list[RoundTrip]:
    """Put a run's fills, by session and order, together into positions, oldest entry first."""
    trips: list[RoundTrip] = []
    held: dict[str, list[tuple[float, Row]]] = {}  # (units, fill) of the open position of a symbol
    for fill in fills:
        parts = held.setdefault(fill["symbol"], [])
        position = math.fsum(units for units, _ in parts)
        against = position * fill["size"] < 0
        closing = math.copysign(min(abs(position), abs(fill["size"])), fill["size"]) if against else fill["size"]
        parts.append((closing, fill))
        if against and abs(position + closing) <= 1e-9 * abs(position):
            trips.append(_trip(parts, closed=True))
            rest = fill["size"] - closing
            held[fill["symbol"]] = [(rest, fill)] if abs(rest) > 1e-9 * abs(fill["size"]) else []
    return sorted(trips + [_trip(parts, closed=False) for parts in held.values() if parts], key=lambda trip: trip.entry)


def _trip(parts: Sequence[tuple[float, Row]], *, closed: bool) -> RoundTrip:
    """Sum up one position from the units that each fill brought to it or took from it."""
    first, last = parts[0], parts[-1]
    entered = [(units, fill["price"]) for units, fill in parts if units * first[0] > 0]
    left = [(units, fill["price"]) for units, fill in parts if units * first[0] < 0]
    commission = math.fsum(fill["commission"] * units / fill["size"] for units, fill in parts)
    sizes = list(accumulate(units for units, _ in parts))
    return RoundTrip(
        symbol=first[1]["symbol"],
        entry=date.fromisoformat(first[1]["session"]),
        exit=date.fromisoformat(last[1]["session"]) if closed else None,
        size=max(sizes, key=abs),
        entry_price=_mean_price(entered),
        exit_price=_mean_price(left) if closed else None,
        pnl=-math.fsum(units * price for units, price in entered + left) - commission if closed else None,
    )


def _mean_price(parts: Sequence[tuple[float, float]]) -> float:
    return math.fsum(units * price for units, price in parts) / math.fsum(units for units, _ in parts)
