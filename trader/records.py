"""What the broker is told (costs) and what it reports (orders, fills, one record a session); no backtrader here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
import math
from typing import TYPE_CHECKING, Literal

from trader.errors import ConfigError

if TYPE_CHECKING:  # settings are read with this room, before anything as heavy as numpy is loaded
    from trader.events import Bar, Signal

Execution = Literal["next_open", "next_close", "close"]
StaleOpen = Literal["next_close", "open"]
State = Literal["ACTIVE", "REDUCING", "HALTED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the account's owner asked for; it takes effect at a session's decision, after that session's fills.

    halt: no order is accepted any more, and those that wait are cancelled.
    resume: decide again; the drawdown is measured anew from this equity.
    flatten: close the position by a market order of the broker's own, cancel what waits, halt.
    Raises ConfigError where resume stands beside one of the others: whoever merges what was asked knows the order.
    """

    halt: bool = False
    resume: bool = False
    flatten: bool = False

    def __post_init__(self) -> None:
        if self.resume and (self.halt or self.flatten):
            raise ConfigError("a control that halts and resumes at once", got=self, do="pass on the later of the two")

    def __bool__(self) -> bool:
        return self.halt or self.resume or self.flatten


NO_CONTROL = Control()


@dataclass(frozen=True, slots=True)
class Today:
    """The session at hand, as it is revealed to the broker.

    bars, signals: by symbol; a symbol may lack its bar, its signal or both.   last: whether the run ends with it.
    """

    session: date
    bars: Mapping[str, Bar]
    signals: Mapping[str, Signal]
    control: Control = NO_CONTROL
    last: bool = False


FLATTEN = "flatten"  # the reason of an order of the broker's own
NO_BAR = "no bar in this session"  # the reason of one that could not be sent, or filled, for want of a bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What an account starts with and pays.

    cash: at the start, in the symbol's currency.
    commission_bps: of the value traded.   slippage_bps: of the price, against us, on every market order.
    borrow_bps_a_year: of the value sold short at the previous close, for each calendar day, a 365th a day.
    cash_rate: a year, as a fraction; what idle cash earns, also a 365th for each calendar day, and what the Sharpe
        ratio charges. Idle cash is equity − |position value| where that is positive: the proceeds of a short sale
        and its collateral earn nothing, and the hair by which costs carry an all-in position past 100 % costs nothing.
    Raises ConfigError for cash that is not positive and a cost that is not a number ≥ 0.
    """

    cash: float = 100_000.0
    commission_bps: float = 1.0
    slippage_bps: float = 1.0
    borrow_bps_a_year: float = 50.0
    cash_rate: float = 0.02

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cash) and self.cash > 0):
            raise ConfigError("cash must be a positive number", got=self.cash)
        for name in ("commission_bps", "slippage_bps", "borrow_bps_a_year", "cash_rate"):
            cost = getattr(self, name)
            if not (math.isfinite(cost) and cost >= 0):
                raise ConfigError(f"{name} must be a number ≥ 0", got=cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class FillRecord:
    """An executed order. session: of the fill.   size: units, negative where sold.

    price: paid or got, slippage in it.   reference_price: the open, close, stop or limit it was executed at.
    commission, slippage_cost: in currency; slippage_cost = |size| · |price − reference_price|.
    """

    session: date
    order_ref: int
    symbol: str
    size: float
    price: float
    reference_price: float
    commission: float
    slippage_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRecord:
    """An order that has come to its end. session: of the decision.   ref: counted from 1 in each run.

    size: units as sent, negative for a sale; 0 where a limit left nothing to send; where it was refused, as wanted.
    status: "completed"; "cut" (completed, or dropped, at a smaller size than the strategy wanted); "refused" (never
    sent); "cancelled" (by the strategy, because the account was halted, or because its symbol had no bar in the
    session it was meant for) or "expired"; "open at end" (it waits: at the end of a run for ever).
    reason: why it was cut, refused or cancelled by the broker; "flatten" for the broker's own; else empty.
    """

    session: date
    ref: int
    symbol: str
    size: float
    status: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One symbol's position at the end of a session, in an account that trades many.

    size: units, negative if short, never 0.   price: the close that values it.   value: size · price.
    priced: the session of that close. It lies before the record's own where the symbol has no bar in that one: a gap,
    or a symbol that does not come back and is held at its last close.
    """

    symbol: str
    size: float
    price: float
    value: float
    priced: date


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One session of the account, after its close and, with execution "close", after the fills at that close.

    signal, p_up: this session's side and probability (None where the forecaster abstained).
    equity: net of all costs, at the close.   cash: equity − position value.   position: units, negative if short.
    exposure: position value / equity.   gross: |position value| / equity.
    Of an account of many symbols (``trade_universe``): ``holdings`` has each position, in the order of the symbols;
    cash, exposure and gross are of their sums (exposure is long less short, gross long plus short), and the three
    fields that are one symbol's own, signal, p_up and position, are 0, None and 0. Empty for an account of one.
    commission, slippage, borrow: paid this session, ≥ 0.   interest: earned this session by idle cash.
    orders: those that came to their end in this session, decided now or before.   fills: of this session.
    open: the orders that wait at the end of this session, oldest first; a run's last record has them in ``orders`` too.
    state: ACTIVE, REDUCING or HALTED at this session's decision.   state_reason: why it is not ACTIVE, else empty.
    """

    session: date
    signal: int
    p_up: float | None
    equity: float
    cash: float
    position: float
    exposure: float
    commission: float
    slippage: float
    borrow: float
    interest: float
    orders: tuple[OrderRecord, ...]
    fills: tuple[FillRecord, ...]
    open: tuple[OrderRecord, ...] = ()
    state: State = "ACTIVE"
    state_reason: str = ""
    gross: float = 0.0
    holdings: tuple[Holding, ...] = ()


def idle(before: SessionRecord, session: date) -> SessionRecord:
    """Return the record of a session without a bar: the account as it stood, nothing done."""
    return replace(
        before,
        session=session,
        signal=0,
        p_up=None,
        commission=0.0,
        slippage=0.0,
        borrow=0.0,
        interest=0.0,
        orders=(),
        fills=(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a newly trained model was taken up. session: T, when it was trained; what is taken up decides from T+1.

    fold: trainings of the run so far, this one included.   newcomer, incumbent: model ids; "" where none was in use.
    loss_newcomer, loss_incumbent: log loss in nats over ``sessions`` sessions; None where they were not compared.
    reason: in one line why.
    """

    session: date
    fold: int
    newcomer: str
    incumbent: str
    adopted: bool
    loss_newcomer: float | None = None
    loss_incumbent: float | None = None
    sessions: int = 0
    reason: str = ""


FactKind = Literal["adopted", "refused", "training failed", "damaged", "fallback", "use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that happened to the models of a running account, for its record.

    "adopted" and "refused" follow from the rule; what does not is one of the others. session: in which it came about;
    of "use" the first that the model named in ``detail`` decides, whatever the rule says, until the next adoption.
    A backtest that is given the facts of kind "use" as its overrides decides by the same models.
    """

    session: date
    kind: FactKind
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeSummary:
    """What a run has to say of itself.

    stale_opens: on how many sessions the open equals the previous close exactly: it was not a price. Of many symbols:
        how many bars of theirs.
    optimistic: whether orders got the very close they were decided on.
    orders, fills: how many.   cut: the orders cut to a limit, with the reason of each.
    refused: those refused by a state, an abstention or a limit that cannot be told.
    """

    sessions: int
    stale_opens: int
    optimistic: bool
    orders: int
    fills: int
    cut: tuple[OrderRecord, ...]
    refused: tuple[OrderRecord, ...] = ()
