"""What an account holds and waits for, symbol by symbol, at one session's close: what a new order is judged beside.

Arithmetic only. The broker (``trader.account_broker``) writes it down once a session, adds each order that it sends,
and asks ``trader.risk`` with the standing that comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

from trader.risk import Standing


@dataclass(slots=True)
class _Symbol:
    """size: units held when all that is sure to fill has filled.   buys, sells: those that may (sells ≤ 0)."""

    close: float
    size: float = 0.0
    buys: float = 0.0
    sells: float = 0.0
    _gross: float | None = None  # once it was asked for, until something is added

    def add(self, size: float, sure: bool) -> None:
        self._gross = None
        if sure:
            self.size += size
        elif size > 0:
            self.buys += size
        else:
            self.sells += size

    def gross(self) -> float:
        """Return the largest value, long or short, that may come of it."""
        if self._gross is None:
            self._gross = max(abs(self.size), abs(self.size + self.buys), abs(self.size + self.sells)) * self.close
        return self._gross


class Commitments:
    """The account at one session's close, in units by symbol.

    A market order counts as done: it fills at the next price there is. A limit or stop order counts where it makes
    the position larger and not where it makes it smaller: it may never fill.
    """

    def __init__(self, traded: float) -> None:
        """Start with an account that holds nothing. traded: value of this session's fills so far, ≥ 0."""
        self._traded, self._waiting = traded, 0.0
        self._of: dict[str, _Symbol] = {}

    def hold(self, symbol: str, size: float, close: float) -> None:
        """Add a position."""
        self._symbol(symbol, close).add(size, sure=True)

    def wait(self, symbol: str, size: float, close: float, sure: bool) -> None:
        """Add an order that waits. sure: whether it fills at the next price, whatever that is."""
        self._waiting += abs(size) * close
        self._symbol(symbol, close).add(size, sure)

    def standing(self, symbol: str, size: float, close: float, equity: float) -> Standing:
        """Return how the account stands to one more order of ``size`` units."""
        one, others = self._symbol(symbol, close), 0.0
        if len(self._of) > 1:
            others = math.fsum(other.gross() for other in self._of.values() if other is not one)
        return Standing(
            before=one.size + (one.buys if size > 0 else one.sells),
            close=close,
            equity=equity,
            traded=self._traded,
            waiting=self._waiting,
            others=others,
        )

    def _symbol(self, symbol: str, close: float) -> _Symbol:
        found = self._of.get(symbol)
        if found is None:
            found = self._of[symbol] = _Symbol(close)
        return found
