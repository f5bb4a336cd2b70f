"""What an account may still do: the limits of ``[risk]``, the state that follows from them, the size that is left.

Arithmetic only. The broker (``trader.account_broker``) asks at every decision and for every order; the account's
owner speaks through ``Control``. Nothing here is stored: the state follows from the equity path and the controls, so
a replay gives the same. Every limit fails closed: one that cannot be told refuses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
import math

from trader.errors import ConfigError
from trader.records import Control, State

TURNOVER_SESSIONS = 21  # about a month
SLACK = 1 + 1e-9  # for a size that was itself computed from the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskLimits:
    """The section ``[risk]``; 0 means no limit, except for max_gross_exposure. Shares are fractions: 0.05 is 5 %.

    max_gross_exposure: |position value| over equity at the decision, of many symbols the sum; what the market does
        afterwards may pass it.
    max_order: value of one order over equity; a flip from +1 to −1 is an order of 2.
    max_daily_loss: of the previous session's equity; beyond it only what brings the position down is sent.
    max_drawdown: of the highest equity since the start or the last resume; beyond it the account is halted.
    max_turnover: value traded in 21 sessions over equity.
    max_news_silence: sessions in a row without a headline, after which the forecaster abstains; held here for it.
    Raises ConfigError for what is not a finite number ≥ 0, and a gross exposure of 0.
    """

    max_gross_exposure: float = 1.0
    max_order: float = 0.0
    max_daily_loss: float = 0.0
    max_drawdown: float = 0.0
    max_turnover: float = 0.0
    max_news_silence: int = 0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError("not a number ≥ 0", where=f"[risk] {limit.name}", got=value)
        if not self.max_gross_exposure:
            raise ConfigError("not a positive number", where="[risk] max_gross_exposure", got=self.max_gross_exposure)
        for name in ("max_daily_loss", "max_drawdown"):
            if getattr(self, name) >= 1:
                raise ConfigError("a share that no account survives", where=f"[risk] {name}", expected="less than 1")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is left of an order. size: units to send, 0 for none.   reason: why it is not what was asked, else empty.

    refused: whether the state, an abstention or a limit that cannot be told forbids it, rather than a limit cut it.
    """

    size: float
    reason: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The account at one order. before: units that the position may have when it fills (waiting orders counted).

    close: the decision's.   equity: at that close.   traded: value of this session's fills so far, ≥ 0.
    waiting: value of the orders that wait, at that close, ≥ 0.
    others: what the account's other symbols may be worth when all fills, longs and shorts added up, ≥ 0.
    """

    before: float
    close: float
    equity: float
    traded: float
    waiting: float
    others: float = 0.0


class Guard:
    """The limits of one account as its sessions go by: ``decide``, then ``judge`` each order, then ``close``."""

    def __init__(self, limits: RiskLimits, cash: float, whole: Callable[[float], float]) -> None:
        """Start with ``cash``; ``whole`` rounds a size towards zero to what can be traded."""
        self.limits, self._whole = limits, whole
        self.state: State = "ACTIVE"
        self.reason = ""
        self._halted = ""  # why, until a resume
        self._previous = self._highest = cash
        self._traded: deque[float] = deque(maxlen=TURNOVER_SESSIONS - 1)  # of the sessions before this one

    def decide(self, equity: float, control: Control) -> None:
        """Set the state for this session's decision. equity: at its close, after its fills."""
        limits = self.limits
        if control.resume:
            self._halted, self._highest = "", equity
        if control.flatten:
            self._halted = "flattened by its owner"
        elif control.halt:
            self._halted = "halted by its owner"
        elif not self._halted and _lost(equity, self._highest, limits.max_drawdown):
            self._halted = f"a drawdown of {_share(equity, self._highest)}, limit {limits.max_drawdown:g}"
        if self._halted:
            self.state, self.reason = "HALTED", self._halted
        elif _lost(equity, self._previous, limits.max_daily_loss):
            self.state = "REDUCING"
            self.reason = f"a daily loss of {_share(equity, self._previous)}, limit {limits.max_daily_loss:g}"
        else:
            self.state, self.reason = "ACTIVE", ""

    def close(self, equity: float, traded: float) -> None:
        """End the session. equity: with the costs of all its fills in it.   traded: value of all its fills, ≥ 0."""
        self._previous = equity
        if equity > self._highest:
            self._highest = equity
        self._traded.append(traded)

    def judge(self, size: float, at: Standing) -> Verdict:
        """Return what is left of an order of ``size`` units."""
        if self.state == "HALTED":
            return Verdict(size, f"HALTED: {self.reason}", refused=True)
        after = at.before + size
        if after * at.before >= 0 and abs(after) <= abs(at.before):  # it only brings the position down
            return Verdict(size)
        closing = -at.before if at.before * size < 0 else 0.0
        if self.state == "REDUCING":
            if not closing:
                return Verdict(size, f"REDUCING: {self.reason}", refused=True)
            return Verdict(closing, f"cut from {size:.6g} to {closing:.6g} units: REDUCING: {self.reason}")
        kept, reason = size, ""
        for name, left in self._limited(size, closing, at):
            if math.isnan(left):
                return Verdict(size, f"{name} cannot be told at an equity of {at.equity:g}", refused=True)
            if abs(left) < abs(kept):
                kept, reason = left, f"cut from {size:.6g} to {left:.6g} units: {name}"
        return Verdict(kept, reason)

    def _limited(self, size: float, closing: float, at: Standing) -> Iterator[tuple[str, float]]:
        """Yield each limit by name with the size that it leaves; NaN where that cannot be told."""
        limits = self.limits
        knowable = 0 < at.equity < math.inf and 0 < at.close < math.inf
        after = at.before + size
        most, slack = math.nan, math.nan
        if knowable and 0 <= at.others < math.inf:
            most = max(0.0, limits.max_gross_exposure * at.equity - at.others) / at.close
            slack = at.others * (SLACK - 1) / at.close  # what the others were computed from, the same limit, is rounded
        if not abs(after) <= most * SLACK + slack:
            held = most if after * at.before <= 0 else max(most, abs(at.before))
            left = math.copysign(self._whole(held), after) - at.before + 0.0 if not math.isnan(most) else math.nan
            yield f"exposure limit {limits.max_gross_exposure:g} of equity", left
        if limits.max_order:
            most = limits.max_order * at.equity / at.close if knowable else math.nan
            yield f"order limit {limits.max_order:g} of equity", self._within(most, size, closing)
        if limits.max_turnover:
            spent = sum(self._traded) + at.traded + at.waiting
            most = max(0.0, limits.max_turnover * at.equity - spent) / at.close if knowable else math.nan
            name = f"turnover limit {limits.max_turnover:g} of equity in {TURNOVER_SESSIONS} sessions"
            yield name, self._within(most if spent < math.inf else math.nan, size, closing)

    def _within(self, most: float, size: float, closing: float) -> float:
        """Return as much of ``size`` as ``most`` units leave, but never less than its closing part."""
        if math.isnan(most) or abs(size) <= most * SLACK:
            return most if math.isnan(most) else size
        left = max(self._whole(most), abs(closing))
        return math.copysign(left, size) if left else 0.0


def _lost(equity: float, before: float, limit: float) -> bool:
    """Tell whether more than ``limit`` of ``before`` is gone, or whether that cannot be told; 0 is no limit."""
    return bool(limit) and not (before > 0 and before * (1 - limit) <= equity < math.inf)


def _share(equity: float, before: float) -> str:
    return f"{1 - equity / before:.4g}" if before else "an unknown share"
