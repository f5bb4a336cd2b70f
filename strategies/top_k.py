"""Long the best, short the worst: a portfolio of many symbols, ranked by their forecasts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from typing import Any

from strategies.base import bt, traded_today

BY = ("auto", "expected_return", "p_up")
WEIGHTS = ("equal", "volatility")
STILL = 1e-9  # a daily volatility that is rounding and no movement


@dataclass(slots=True)
class _Ranked:
    """A symbol that was forecast in this session. now, target: shares of equity, negative if short."""

    data: Any
    score: float
    volatility: float
    now: float
    target: float = 0.0


class TopK(bt.Strategy):  # type: ignore[misc]
    """Hold the k symbols with the best forecasts long and the k with the worst short, at ``gross`` of equity in all.

    k: how many on each side. With n symbols forecast and n < 2k it is n // 2 (long_only: n < k, n); where that is 0
        nothing is traded: of one symbol alone nobody can say whether it is the best or the worst.
    by: what is ranked: "expected_return"; "p_up", less a half; "auto": the expected return where every symbol that is
        forecast in this session has one, p_up otherwise, for the two are of different sizes and one list cannot hold
        both. Equal scores go by name, A before B.
    weights: within a side, "equal" or "volatility": in inverse proportion to the standard deviation of the last
        ``lookback`` daily log returns; a symbol with fewer counts as one without a forecast, and one that never moved
        has the smallest volatility of the others on its side.
    long_only: hold the best at ``gross`` and sell nothing short; otherwise each side gets half.
    gross: of equity, long and short added up.
    turnover_cap: share of equity traded in one rebalance, 0 for any. What goes beyond it is scaled back in proportion:
        every weight goes the same part of its way, so the sides stay in balance and the rest follows next time.
    rebalance_every: sessions; in those between nothing is traded.
    hold_band: share of equity; a weight on the right side and within it of its target is left alone. Where what is
        held would so come to more than ``gross``, those furthest above their targets are brought down after all, as
        many as it takes.
    A symbol without a forecast or a bar in a session keeps its position, and what that takes of ``gross`` is not given
    to the others. Orders that bring exposure down are sent first, so that a limit on it cuts nothing of the rest.
    Raises ValueError for parameters that make no sense, and for feeds without names of their own.
    """

    params = (
        ("k", 10),
        ("by", "auto"),
        ("weights", "equal"),
        ("lookback", 20),
        ("long_only", False),
        ("gross", 1.0),
        ("turnover_cap", 0.0),
        ("rebalance_every", 1),
        ("hold_band", 0.0),
    )

    def __init__(self) -> None:
        p = self.p
        if p.by not in BY or p.weights not in WEIGHTS:
            raise ValueError(
                f"TopK: by must be one of {', '.join(BY)}, weights one of {', '.join(WEIGHTS)}; got "
                f"{p.by!r}, {p.weights!r}"
            )
        for name, least in (("k", 1), ("lookback", 2), ("rebalance_every", 1)):
            value = getattr(p, name)
            if value != int(value) or value < least:
                raise ValueError(f"TopK: {name} must be a whole number ≥ {least}, got {value!r}")
        if not (0 < p.gross < math.inf and 0 <= p.turnover_cap < math.inf and 0 <= p.hold_band < math.inf):
            raise ValueError(
                "TopK: gross must be positive, turnover_cap and hold_band not negative; got "
                f"{p.gross!r}, {p.turnover_cap!r}, {p.hold_band!r}"
            )
        names = [data._name for data in self.datas]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"TopK: each feed needs a name of its own, cerebro.adddata(…, name=…); got {names}")
        self._sessions = 0
        self._closes: dict[str, float] = {}
        self._returns: dict[str, deque[float]] = {
            name: deque(maxlen=int(p.lookback)) for name in names if p.weights == "volatility"
        }

    def next(self) -> None:
        """Decide on this close."""
        trading = [data for data in self.datas if traded_today(self, data)]
        if self._returns:
            self._see(trading)
        due = self._sessions % self.p.rebalance_every == 0
        self._sessions += 1
        if not due:
            return
        equity = self.broker.getvalue()
        ranked = self._ranked(trading, equity)
        if self._choose(ranked, max(0.0, self.p.gross - self._kept(ranked, equity))):
            self._leave_alone(ranked)
            self._cap(ranked)
            self._send(ranked, equity)

    def _see(self, trading: Sequence[Any]) -> None:
        """Take down today's returns: close to close, over a gap too."""
        for data in trading:
            close, before = data.close[0], self._closes.get(data._name)
            if before is not None:
                self._returns[data._name].append(math.log(close / before))
            self._closes[data._name] = close

    def _ranked(self, trading: Sequence[Any], equity: float) -> list[_Ranked]:
        """Return the symbols that are forecast today, the best first, equal ones by name."""
        scores = self._scores(trading)
        ranked = []
        for data in trading:
            volatility = self._volatility(data._name)
            if data._name in scores and not math.isnan(volatility):
                now = self.getposition(data).size * data.close[0] / equity
                ranked.append(_Ranked(data, scores[data._name], volatility, now))
        return sorted(ranked, key=lambda one: (-one.score, one.data._name))

    def _scores(self, trading: Sequence[Any]) -> Mapping[str, float]:
        forecast = [data for data in trading if not math.isnan(data.p_up[0])]
        expected = {data._name: data.expected_return[0] for data in forecast}
        known = {name: value for name, value in expected.items() if not math.isnan(value)}
        if self.p.by == "expected_return" or (self.p.by == "auto" and len(known) == len(expected)):
            return known
        return {data._name: data.p_up[0] - 0.5 for data in forecast}

    def _volatility(self, name: str) -> float:
        """Return the standard deviation of daily log returns, NaN while there are too few; 1 where it is not used."""
        if not self._returns:
            return 1.0
        returns = self._returns[name]
        if len(returns) < self.p.lookback:
            return math.nan
        mean = math.fsum(returns) / len(returns)
        # Not statistics.stdev: its exact fractions took half of the time of a run over 88 symbols.
        return math.sqrt(math.fsum((one - mean) ** 2 for one in returns) / (len(returns) - 1))

    def _kept(self, ranked: Sequence[_Ranked], equity: float) -> float:
        """Return the share of equity in symbols that keep their positions today, longs and shorts added up."""
        names = {one.data._name for one in ranked}
        kept = (data for data in self.datas if data._name not in names and self.getposition(data).size)
        return math.fsum(abs(self.getposition(data).size * data.close[0]) for data in kept) / equity

    def _choose(self, ranked: Sequence[_Ranked], gross: float) -> int:
        """Set the targets of the best and the worst; return how many a side has."""
        sides = 1 if self.p.long_only else 2
        k = min(self.p.k, len(ranked) // sides)
        if k:
            _share_out(ranked[:k], gross / sides)
            if not self.p.long_only:
                _share_out(ranked[-k:], -gross / sides)
        return int(k)

    def _leave_alone(self, ranked: Sequence[_Ranked]) -> None:
        """Take for a target what is within the band of it."""
        wanted = math.fsum(abs(one.target) for one in ranked)
        near = [one for one in ranked if one.now * one.target > 0 and abs(one.target - one.now) <= self.p.hold_band]
        held = wanted + math.fsum(abs(one.now) - abs(one.target) for one in near)
        for one in sorted(near, key=lambda one: (abs(one.target) - abs(one.now), one.data._name)):
            over = abs(one.now) - abs(one.target)
            if held > wanted and over > 0:
                held -= over
            else:
                one.target = one.now

    def _cap(self, ranked: Sequence[_Ranked]) -> None:
        """Go only that part of the way to the targets which the cap allows."""
        turnover = math.fsum(abs(one.target - one.now) for one in ranked)
        if self.p.turnover_cap and turnover > self.p.turnover_cap:
            for one in ranked:
                one.target = one.now + (one.target - one.now) * self.p.turnover_cap / turnover

    def _send(self, ranked: Sequence[_Ranked], equity: float) -> None:
        """Order what brings each position to its target; what brings exposure down most comes first."""
        for one in sorted(ranked, key=lambda one: (abs(one.target) - abs(one.now), one.data._name)):
            if one.target != one.now:
                units = self.broker.getcommissioninfo(one.data).getsize(one.data.close[0], abs(one.target) * equity)
                self.order_target_size(one.data, target=math.copysign(units, one.target) if units else 0)


def _share_out(side: Sequence[_Ranked], gross: float) -> None:
    """Divide ``gross`` in inverse proportion to the volatilities; negative is short."""
    floor = min((one.volatility for one in side if one.volatility > STILL), default=1.0)
    inverse = [1 / max(one.volatility, floor) for one in side]
    total = math.fsum(inverse)
    for one, share in zip(side, inverse, strict=True):
        one.target = gross * share / total
