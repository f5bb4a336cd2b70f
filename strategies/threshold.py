"""Long or short only where the forecast is clear of 0.5: fewer trades, less cost."""

from __future__ import annotations

import math

from strategies.base import abstained, bt, hold, refuse_many


class Threshold(bt.Strategy):  # type: ignore[misc]
    """Hold +100 % where p_up > 0.5 + band, −100 % where p_up < 0.5 − band; keep the position where it abstained.

    band: half width of the dead band around 0.5, a probability.
    inside: what to do within the band, edges included: "flat" closes the position, "keep" leaves it.
    rebalance: trade the drift back to ±100 % every session, instead of only where the side changes.
    Raises ValueError for a band outside [0, 0.5) and any other word for ``inside``.
    """

    params = (("band", 0.02), ("inside", "flat"), ("rebalance", False))

    def __init__(self) -> None:
        refuse_many(self)
        if not 0 <= self.p.band < 0.5:
            raise ValueError(f"Threshold: band must lie in [0, 0.5), got {self.p.band!r}")
        if self.p.inside not in ("flat", "keep"):
            raise ValueError(f"Threshold: inside must be 'flat' or 'keep', got {self.p.inside!r}")

    def next(self) -> None:
        """Decide on this close."""
        if abstained(self):
            return
        edge = self.data.p_up[0] - 0.5
        side = (edge > self.p.band) - (edge < -self.p.band)
        if side or self.p.inside == "flat":
            hold(self, float(side), band=0.0 if self.p.rebalance else math.inf)
