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
    """size: units held when all that is sure to fill has filled.   buys, sells: those that may (sells ≤ 0).

    gross: the largest value, long or short, that may come of it.
    """

    size: float = 0.0
    buys: float = 0.0
    sells: float = 0.0
    gross: float = 0.0


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
        one = self._symbol(symbol)
        one.size += size
        _value(one, close)

    def wait(self, symbol: str, size: float, close: float, sure: bool) -> None:
        """Add an order that waits. sure: whether it fills at the next price, whatever that is."""
        self._waiting += abs(size) * close
        one = self._symbol(symbol)
        if sure:
            one.size += size
        elif size > 0:
            one.buys += size
        else:
            one.sells += size
        _value(one, close)

    def standing(self, symbol: str, size: float, close: float, equity: float) -> Standing:
        """Return how the account stands to one more order of ``size`` units."""
        one = self._symbol(symbol)
        return Standing(
            before=one.size + (one.buys if size > 0 else one.sells),
            close=close,
            equity=equity,
            traded=self._traded,
            waiting=self._waiting,
            others=math.fsum(other.gross for other in self._of.values() if other is not one),
        )

    def _symbol(self, symbol: str) -> _Symbol:
        found = self._of.get(symbol)
        if found is None:
            found = self._of[symbol] = _Symbol()
        return found


def _value(one: _Symbol, close: float) -> None:
    one.gross = max(abs(one.size), abs(one.size + one.buys), abs(one.size + one.sells)) * close
