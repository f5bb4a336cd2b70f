"""Buy every symbol once and hold: the yardstick of a universe."""

from __future__ import annotations

from typing import Any

from strategies.base import bt, traded_today


class BuyEach(bt.Strategy):  # type: ignore[misc]
    """Buy each symbol in the first session that it trades in, for its equal share of the starting equity, and hold.

    A share is the equity at the start over the number of feeds. It reads no forecast. Where an order came to nothing
    because its symbol had no bar to fill at, the symbol is bought when it trades again.
    """

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def start(self) -> None:
        """Divide what there is at the start."""
        self._share = self.broker.getvalue() / len(self.datas)

    def next(self) -> None:
        """Decide on this close."""
        for data in self.datas:
            if data._name not in self._asked and traded_today(self, data):
                self._asked.add(data._name)
                self.buy(data=data, size=self.broker.getcommissioninfo(data).getsize(data.close[0], self._share))

    def notify_order(self, order: Any) -> None:
        """Ask again for what was not to be had."""
        if order.status == bt.Order.Canceled:
            self._asked.discard(order.data._name)
