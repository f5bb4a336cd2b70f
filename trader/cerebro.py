"""backtrader with the holes closed: the broker that fills, charges and limits, and the recorder that reports.

Only ``trader.broker`` uses this room. A session goes: cerebro reveals the bar, the broker charges what the night
cost and fills old orders, the strategy decides, the recorder closes the session and hands out its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
import math
from typing import Any
import warnings

from strategies.base import FractionalSizes, bt, whole_steps
from strategies.signal_data import Row, SignalData
from trader.errors import OrderError
from trader.events import Bar, Signal
from trader.records import Costs, Execution, FillRecord, OrderRecord, SessionRecord, StaleOpen

# backtrader's own check compares an order with cash · leverage, and ends it in Margin without a word: with leverage
# 1 on any gap up, with 2 on a flip from short to long through a gap of a third. Here the margin is ours to mind,
# at the decision, so its check is set so far out that only an account with nothing left can meet it.
LEVERAGE = 1000.0
LARGEST_SIZE = 2**32  # where whole_steps still adds up exactly
REFUSALS = (bt.Order.Margin, bt.Order.Rejected, bt.Order.Partial)  # partial: one leg of a flip went through
ENDINGS = {bt.Order.Completed: "completed", bt.Order.Canceled: "cancelled", bt.Order.Expired: "expired"}


def market_rows(bars: Sequence[Bar], signals: Sequence[Signal]) -> list[Row]:
    """Put each bar beside its signal, as SignalData reads them."""
    return [
        (
            bar.session,
            bar.open,
            bar.high,
            bar.low,
            bar.close,
            bar.volume,
            signal.side,
            math.nan if signal.p_up is None else signal.p_up,
        )
        for bar, signal in zip(bars, signals, strict=True)
    ]


def new_cerebro(rows: Sequence[Row], strategy: type[Any], params: Mapping[str, object]) -> Any:
    """Return a Cerebro that draws one session at a time; with preload it would drain the feed ahead of next()."""
    cerebro = bt.Cerebro(preload=False, runonce=False, stdstats=False)
    cerebro.adddata(SignalData(dataname=rows))
    cerebro.addstrategy(strategy, **params)
    return cerebro


def run(cerebro: Any) -> None:
    """Run to the last bar, deaf to the warnings of backtrader's own code (utcnow since Python 3.12)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"backtrader\b")
        cerebro.run()


class AccountBroker(bt.brokers.BackBroker):  # type: ignore[misc]
    """Fill market orders where ``execution`` says, charge every cost, cut what exceeds the exposure limit.

    next_open: at the next session's open; where that is the previous close to the last digit it is no price, and
    ``stale_open`` says whether to take it anyhow ("open") or that session's close ("next_close").
    next_close: at the next session's close.  close: at the close of the decision, dated to that session.
    Limit and stop orders of a user's strategy fill as backtrader fills them, from the next session on.
    """

    def __init__(
        self,
        costs: Costs,
        execution: Execution,
        stale_open: StaleOpen,
        max_exposure: float,
        sessions: Sequence[date],
        symbol: str,
    ) -> None:
        super().__init__()
        self._costs, self._execution, self._stale_open = costs, execution, stale_open
        self._max_exposure, self._sessions, self._symbol = max_exposure, sessions, symbol
        self.p.cash = costs.cash
        self.p.checksubmit = False  # its check at submission knows leverage only; ours stands in _within_limit
        self._slip = costs.slippage_bps / 1e4
        self.set_slippage_perc(self._slip)  # stops and limits: capped by the day's range and the limit
        self.addcommissioninfo(FractionalSizes(commission=costs.commission_bps / 1e4, leverage=LEVERAGE))
        self._open: dict[int, OrderRecord] = {}  # by backtrader's ref, which counts through the whole process
        self._sent = 0
        self._reference: float | None = None
        self._day = math.nan
        self._short_value = self._idle_cash = 0.0
        self.borrow = self.interest = 0.0
        self.ended: list[OrderRecord] = []
        self.fills: list[FillRecord] = []

    @property
    def started(self) -> bool:
        """Whether a bar has been seen; before that the strategy is still being built."""
        return not math.isnan(self._day)

    # Night and fills: called by cerebro before the strategy.

    def next(self) -> None:
        """Charge the days since the last session, then fill the orders that were waiting."""
        data = self.cerebro.datas[0]
        if self.started:
            years = (data.datetime[0] - self._day) / 365.0
            self.borrow = self._short_value * years * self._costs.borrow_bps_a_year / 1e4
            self.interest = self._idle_cash * years * self._costs.cash_rate
            self.cash += self.interest - self.borrow
        self._day = data.datetime[0]
        super().next()
        self._check_solvent()

    def _try_exec(self, order: Any) -> None:
        self._reference = None
        super()._try_exec(order)

    def _try_exec_market(self, order: Any, popen: float, phigh: float, plow: float) -> None:
        data = order.data
        if data.datetime[0] <= order.created.dt:
            return
        no_price = self._stale_open == "next_close" and popen == data.close[-1]
        self._fill(order, popen if self._execution == "next_open" and not no_price else data.close[0])

    def _try_exec_close(self, order: Any, pclose: float) -> None:
        if order.data.datetime[0] > order.created.dt:  # backtrader would fill it without slippage
            self._fill(order, pclose)

    def _fill(self, order: Any, reference: float) -> None:
        self._reference = reference
        # Not capped by the day's range, as backtrader's slippage is: on an index the open is often the day's low.
        self._execute(order, ago=0, price=reference * (1 + self._slip if order.isbuy() else 1 - self._slip))

    def _slip_up(self, pmax: float, price: float, doslip: bool = True, lim: bool = False) -> Any:
        self._reference = price
        return super()._slip_up(pmax, price, doslip, lim)

    def _slip_down(self, pmin: float, price: float, doslip: bool = True, lim: bool = False) -> Any:
        self._reference = price
        return super()._slip_down(pmin, price, doslip, lim)

    def notify(self, order: Any) -> None:
        """Write down how an order ended; raise OrderError where backtrader refused it."""
        status = order.status
        if status in REFUSALS:
            raise OrderError(
                "backtrader refused an order",
                where=self._where(),
                got=f"{order.getstatusname()} for {order.size:g} units at an equity of {self._value:,.2f}",
                do="lower the exposure or the costs",
            )
        if status in ENDINGS:
            record = self._open.pop(order.ref)
            if status == bt.Order.Completed:
                self._write_fill(order, record.ref)
            cut = record.status == "cut" and status == bt.Order.Completed
            self.ended.append(record if cut else replace(record, status=ENDINGS[status]))
        super().notify(order)

    def _write_fill(self, order: Any, ref: int) -> None:
        done = order.executed
        reference = done.price if self._reference is None else self._reference
        self.fills.append(
            FillRecord(
                session=self._session(),
                order_ref=ref,
                symbol=self._symbol,
                size=done.size,
                price=done.price,
                reference_price=reference,
                commission=done.comm,
                slippage_cost=abs(done.size) * abs(done.price - reference),
            )
        )

    # Decisions: called by the strategy.

    def buy(self, owner: Any, data: Any, size: float, *args: Any, **kwargs: Any) -> Any:
        """Send a purchase, cut to the exposure limit; return None where nothing is left of it."""
        return self._send(super().buy, size, owner, data, args, kwargs)

    def sell(self, owner: Any, data: Any, size: float, *args: Any, **kwargs: Any) -> Any:
        """Send a sale, cut to the exposure limit; return None where nothing is left of it."""
        return self._send(super().sell, -size, owner, data, args, kwargs)

    def _send(self, submit: Callable[..., Any], size: float, owner: Any, data: Any, args: Any, kwargs: Any) -> Any:
        if not abs(size) <= LARGEST_SIZE:
            raise OrderError(
                "an order of no size", where=self._where(), got=size, expected=f"up to {LARGEST_SIZE} units"
            )
        if kwargs.get("parent") is not None or not kwargs.get("transmit", True):
            raise OrderError(
                "a bracket order",
                where=self._where(),
                do="send its orders one by one: the exposure limit may cut the first, and the others would not follow",
            )
        size = whole_steps(size)
        allowed = self._within_limit(data, size)
        self._sent += 1
        reason = ""
        if allowed != size:
            reason = f"cut from {size:.6g} to {allowed:.6g} units: exposure limit {self._max_exposure:g} of equity"
        elif not allowed:
            reason = "nothing left of it: sizes are whole multiples of a millionth of a unit"
        record = OrderRecord(
            session=self._session(),
            ref=self._sent,
            symbol=self._symbol,
            size=allowed,
            status="cut" if reason else "open at end",
            reason=reason,
        )
        if not allowed:
            self.ended.append(record)
            return None
        # backtrader announces an order from within submit, when it is only accepted; it cannot end there.
        order = submit(owner, data, abs(allowed), *args, **kwargs)
        self._open[order.ref] = record
        return order

    def _within_limit(self, data: Any, size: float) -> float:
        """Return as much of ``size`` as keeps |position| at this close within the limit, open orders counted.

        An order that brings an exposure down is never cut, also where it stays above the limit.
        """
        before = self.positions[data].size + sum(
            order.size for order in self.pending if order.exectype == bt.Order.Market or (order.size > 0) == (size > 0)
        )
        after = before + size
        limit: float = max(0.0, self._max_exposure * self._value / data.close[0])
        if abs(after) <= limit * (1 + 1e-9) or (after * before >= 0 and abs(after) <= abs(before)):
            return size
        kept = limit if after * before <= 0 else max(limit, abs(before))
        return float(math.copysign(whole_steps(kept), after) - before)

    def get_cash(self) -> float:
        """Return equity − position value; backtrader's figure has the leverage in it."""
        return float(self._value - self._valuemktlever)

    getcash = get_cash

    # The session's end: called by the recorder after the strategy.

    def close_session(self) -> None:
        """Fill market orders at this close where the execution says so, and note what the night will cost."""
        data = self.cerebro.datas[0]
        if self._execution == "close":
            for order in [order for order in self.pending if order.exectype == bt.Order.Market]:
                self.pending.remove(order)
                self._fill(order, data.close[0])
            self._get_value()
            self._check_solvent()
        value = self.positions[data].size * data.close[0]
        self._short_value = max(0.0, -value)
        self._idle_cash = max(0.0, self._value - abs(value))

    def leave_open(self) -> list[OrderRecord]:
        """Return the orders that are still waiting, for the last session's record."""
        return [replace(record, status="open at end") for record in self._open.values()]

    def _check_solvent(self) -> None:
        if self._value <= 0:
            raise OrderError(
                "nothing is left of the account",
                where=self._where(),
                got=f"an equity of {self._value:,.2f}",
                do="use a strategy that keeps its exposure down; backtrader would trade on",
            )

    def _session(self) -> date:
        return self._sessions[len(self.cerebro.datas[0]) - 1]

    def _where(self) -> str:
        return f"{self._symbol} {self._session()}"


class Recorder(bt.Analyzer):  # type: ignore[misc]
    """Close each session after the strategy's decision and hand out its SessionRecord."""

    def __init__(self, signals: Sequence[Signal], on_session: Callable[[SessionRecord], None]) -> None:
        super().__init__()
        self._signals, self._on_session, self._done = signals, on_session, 0

    def next(self) -> None:
        """Report one session; also called while a strategy's indicators are still filling."""
        broker: Any = self.strategy.broker
        data = self.strategy.data
        signal: Signal = self._signals[self._done]
        self._done += 1
        broker.close_session()
        if self._done == len(self._signals):
            broker.ended.extend(broker.leave_open())
        position, equity = broker.positions[data].size, broker.getvalue()
        value = position * data.close[0]
        fills, orders = tuple(broker.fills), tuple(broker.ended)
        self._on_session(
            SessionRecord(
                session=signal.session,
                signal=signal.side,
                p_up=signal.p_up,
                equity=equity,
                cash=equity - value,
                position=position,
                exposure=value / equity,
                commission=sum(fill.commission for fill in fills),
                slippage=sum(fill.slippage_cost for fill in fills),
                borrow=broker.borrow,
                interest=broker.interest,
                orders=orders,
                fills=fills,
            )
        )
        broker.fills.clear()
        broker.ended.clear()
        broker.borrow = broker.interest = 0.0
