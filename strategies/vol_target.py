"""The forecast's direction, sized so that the position's volatility stays near a target."""

from __future__ import annotations

import math
from statistics import stdev

from strategies.base import abstained, bt, hold, refuse_many

SESSIONS_A_YEAR = 252


class VolTarget(bt.Strategy):  # type: ignore[misc]
    """Hold side · min(max_exposure, target_vol / realised volatility) of equity; keep it where it abstained.

    target_vol: annual, as a fraction (0.10 is 10 %).
    lookback: sessions of log returns in the realised volatility (sample standard deviation × √252); until there
        are that many, no position is taken.
    max_exposure: the largest fraction of equity, also where the volatility is zero.
    band: how far the exposure may be from the wanted one before it is traded (0.1 is 10 % of equity).
    edge: "side" takes the side of the signal; "expected_return" takes the sign of the expected return, and that size
        times min(1, |expected return| / (full_edge · the volatility of one day)). A forecast without an expected
        return is then none, and the position is kept.
    full_edge: the expected return, in volatilities of one day, from which on the whole size is held.
    Raises ValueError for a target_vol, max_exposure or full_edge that is not positive, a lookback under 2, and any
    other word for edge.
    """

    params = (
        ("target_vol", 0.10),
        ("lookback", 20),
        ("max_exposure", 1.0),
        ("band", 0.1),
        ("edge", "side"),
        ("full_edge", 0.1),
    )

    def __init__(self) -> None:
        refuse_many(self)
        if self.p.edge not in ("side", "expected_return") or not self.p.full_edge > 0:
            raise ValueError(
                "VolTarget: edge must be 'side' or 'expected_return' and full_edge positive; got "
                f"{self.p.edge!r}, {self.p.full_edge!r}"
            )
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
        daily = self._daily_volatility()
        if self.p.edge == "side":
            hold(self, self.data.signal[0] * self._size(daily), band=self.p.band)
        elif not math.isnan(self.data.expected_return[0]):
            hold(self, self._conviction(daily) * self._size(daily), band=self.p.band)

    def _daily_volatility(self) -> float:
        return stdev([math.log(after / before) for before, after in zip(self._closes, self._closes[1:], strict=False)])

    def _conviction(self, daily: float) -> float:
        """Return the share of the size that the expected return deserves, −1 to 1."""
        expected = self.data.expected_return[0]
        share = 1.0 if daily == 0 else min(1.0, abs(expected) / (self.p.full_edge * daily))
        return math.copysign(share, expected) if expected else 0.0

    def _size(self, daily: float) -> float:
        vol = daily * math.sqrt(SESSIONS_A_YEAR)
        return float(self.p.max_exposure if vol == 0 else min(self.p.max_exposure, self.p.target_vol / vol))
