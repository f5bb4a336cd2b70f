"""The signal's direction, sized so that the position's volatility stays near a target."""

from __future__ import annotations

import math
from statistics import stdev

from strategies.base import abstained, bt, hold

SESSIONS_A_YEAR = 252


class VolTarget(bt.Strategy):  # type: ignore[misc]
    """Hold side · min(max_exposure, target_vol / realised volatility) of equity; keep it where it abstained.

    target_vol: annual, as a fraction (0.10 is 10 %).
    lookback: sessions of log returns in the realised volatility (sample standard deviation × √252); until there
        are that many, no position is taken.
    max_exposure: the largest fraction of equity, also where the volatility is zero.
    band: how far the exposure may be from the wanted one before it is traded (0.1 is 10 % of equity).
    Raises ValueError for a target_vol or max_exposure that is not positive, or a lookback under 2.
    """

    params = (("target_vol", 0.10), ("lookback", 20), ("max_exposure", 1.0), ("band", 0.1))

    def __init__(self) -> None:
        if not (self.p.target_vol > 0 and self.p.max_exposure > 0 and self.p.lookback >= 2 and self.p.band >= 0):
            raise ValueError(
                "VolTarget: target_vol and max_exposure must be positive, lookback at least 2, band not negative; got "
                f"{self.p.target_vol!r}, {self.p.max_exposure!r}, {self.p.lookback!r}, {self.p.band!r}"
            )
        self._closes: list[float] = []

    def next(self) -> None:
        """Decide on this close."""
        self._closes.append(self.data.close[0])
        del self._closes[: -self.p.lookback - 1]
        if len(self._closes) <= self.p.lookback or abstained(self):
            return
        hold(self, self.data.signal[0] * self._size(), band=self.p.band)

    def _size(self) -> float:
        returns = [math.log(after / before) for before, after in zip(self._closes, self._closes[1:], strict=False)]
        vol = stdev(returns) * math.sqrt(SESSIONS_A_YEAR)
        return float(self.p.max_exposure if vol == 0 else min(self.p.max_exposure, self.p.target_vol / vol))
