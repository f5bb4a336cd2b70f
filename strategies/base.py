"""The door to backtrader for every strategy, and what they share: reading a signal and sizing an order.

A strategy is a plain ``bt.Strategy``. It decides on the close of a session, from these lines of its feed:
    self.data.close[0]    the session's close
    self.data.signal[0]   −1 short, 0 none, +1 long
    self.data.p_up[0]     P(next close is higher), NaN where the forecaster abstained
    self.data.expected_return[0]  the forecast of next close / close − 1, NaN where there is none
    self.data.traded[0]   1, or 0 where the symbol has no bar in this session and its close is an older one
It needs neither torch nor news nor a database, so it also runs in anybody's own Cerebro script
(``strategies.signal_data``, ``examples/own_cerebro.py``).

One rule for all: where the forecaster abstained, the position is kept; a forecast of exactly 0.5 (signal 0 with
a number in p_up) is a forecast without a side, and the position is closed.
"""

from __future__ import annotations

import math
from typing import Any
import warnings

with warnings.catch_warnings():
    # backtrader 1.9.78 has invalid escape sequences in its own source: under -W error it cannot be imported.
    warnings.simplefilter("ignore")
    import backtrader as bt

__all__ = [
    "STEPS_A_UNIT",
    "FractionalSizes",
    "abstained",
    "bt",
    "exposure",
    "hold",
    "refuse_many",
    "traded_today",
    "whole_steps",
]


# Sizes are whole multiples of 2⁻²⁰ of a unit, about a millionth, so that sums of them are exact in floating point.
# With arbitrary fractions old + size − old is not always size: backtrader then takes an order for half done, keeps
# it open with 1e-14 units to go, and a flat position for a short one (measured: in 1 of 12,086 orders, which was
# enough to miss a trade and put the equity 1 % off).
STEPS_A_UNIT = 2**20


def whole_steps(size: float) -> float:
    """Return the size, rounded towards zero to a whole number of steps; exact up to 2³² units.

    >>> whole_steps(0.1) * STEPS_A_UNIT
    104857.0
    """
    return math.trunc(size * STEPS_A_UNIT) / STEPS_A_UNIT


class FractionalSizes(bt.CommInfoBase):  # type: ignore[misc]
    """Commission as a fraction of value, and sizes that hit a target of ±100 % to a millionth of a unit.

    backtrader's default truncates sizes to whole units (cash 10,000 and an index at 2,900 buy 87 %) and ends an
    all-in order in ``Margin``, silently, on any commission or gap. ``leverage`` above 1 stops the second;
    ``getsize`` without it stops the first, and the default one that would then sell 200 % for a target of −100 %.
    Whoever uses this minds the margin himself (``trader.broker`` does).
    """

    params = (("leverage", 2.0), ("stocklike", True), ("commtype", bt.CommInfoBase.COMM_PERC), ("percabs", True))

    def getsize(self, price: float, cash: float) -> float:
        """Return how many units ``cash`` buys at ``price``, in whole steps."""
        return whole_steps(cash / price)


def abstained(strategy: Any) -> bool:
    """Tell whether there is no forecast for this session; the position is then kept."""
    return math.isnan(strategy.data.p_up[0])


def refuse_many(strategy: Any) -> None:
    """Raise ValueError where a strategy of one symbol is given several feeds: it would trade the first and not say so.

    ``strategies.top_k`` trades many. An equal share for each symbol's own signal would be another strategy, and one
    whose shares drift past each other's limits where nothing brings them back.
    """
    if len(strategy.datas) > 1:
        name = type(strategy).__name__
        raise ValueError(f"{name} trades one symbol and was given {len(strategy.datas)}; top_k trades many")


def traded_today(strategy: Any, data: Any) -> bool:
    """Tell whether a symbol has a bar in this session, in our broker and in a Cerebro whose feeds lack days alike."""
    return bool(data.traded[0]) and data.datetime[0] == strategy.datetime[0]


def exposure(strategy: Any) -> float:
    """Return the position's value as a fraction of equity at this close; negative for a short one."""
    return float(strategy.position.size * strategy.data.close[0] / strategy.broker.getvalue())


def hold(strategy: Any, fraction: float, band: float = math.inf) -> Any:
    """Order what brings the position to ``fraction`` of equity at this close; return the order or None.

    fraction: −1 is all short, 0 flat, +1 all long.  band: how far the exposure may drift from the fraction before
    it is traded back; a change of direction is always traded. Infinity, the default, trades nothing else: daily
    rebalancing of a position that already points the right way pays commission for no view.
    """
    size = strategy.position.size
    same_direction = (size > 0) - (size < 0) == (fraction > 0) - (fraction < 0)
    if same_direction and (math.isinf(band) or abs(fraction - exposure(strategy)) <= band):
        return None
    return strategy.order_target_percent(target=fraction)
