"""All long or all short: the papers' strategy."""

from __future__ import annotations

import math

from strategies.base import abstained, bt, hold, refuse_many


class LongShort(bt.Strategy):  # type: ignore[misc]
    """Hold +100 % of equity on signal +1, −100 % on −1, nothing on 0; keep the position where it abstained.

    rebalance: trade the drift back to ±100 % every session, instead of only where the side changes.
    Source: FININ, the trading simulation.
    """

    params = (("rebalance", False),)

    def __init__(self) -> None:
        refuse_many(self)

    def next(self) -> None:
        """Decide on this close."""
        if not abstained(self):
            hold(self, self.data.signal[0], band=0.0 if self.p.rebalance else math.inf)
