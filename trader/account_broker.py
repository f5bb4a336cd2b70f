"""backtrader's broker with the holes closed: it fills, charges, and sends only what the limits leave.

Only ``trader.cerebro`` uses this room. A session goes: the bar is revealed, the broker charges what the night cost
and fills old orders, the owner's control and the limits set the state, the strategy decides, the session is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
import math
from typing import Any

from strategies.base import FractionalSizes, bt, whole_steps
from trader.commitments import Commitments
from trader.errors import OrderError
from trader.events import Bar
from trader.records import FLATTEN, NO_BAR, Costs, Execution, FillRecord, Holding, OrderRecord, StaleOpen, Today
from trader.risk import Guard, RiskLimits, Verdict

# backtrader's own check compares an order with cash · leverage, and ends it in Margin without a word: with leverage
# 1 on any gap up, with 2 on a flip from short to long through a gap of a third. Here the margin is ours to mind,
# at the decision, so its check is set so far out that only an account with nothing left can meet it.
LEVERAGE = 1000.0
LARGEST_SIZE = 2**32  # where whole_steps still adds up exactly
REFUSALS = (bt.Order.Margin, bt.Order.Rejected, bt.Order.Partial)  # partial: one leg of a flip went through
ENDINGS = {bt.Order.Completed: "completed", bt.Order.Canceled: "cancelled", bt.Order.Expired: "expired"}


class _Positions(dict[Any, Any]):
    """Positions by feed. One of a symbol without a price yet is not kept: nothing times NaN would be the value."""

    def __missing__(self, data: Any) -> Any:
        position = bt.position.Position()
        if len(data) and data.close[0] == data.close[0]:
            self[data] = position
        return position


class AccountBroker(bt.brokers.BackBroker):  # type: ignore[misc]
    """Fill market orders where ``execution`` says, charge every cost, send what state and limits leave.

    next_open: at the next session's open; where that is the previous close to the last digit it is no price, and
    ``stale_open`` says whether to take it anyhow ("open") or that session's close ("next_close").
    next_close: at the next session's close.  close: at the close of the decision, dated to that session.
    Limit and stop orders of a user's strategy fill as backtrader fills them, from the next session on.
    A symbol without a bar in a session takes no order and fills none in it. A market order that was meant for that
    session is cancelled (its decision is stale by the next one; but for the broker's own, which waits), limits and
    stops wait, and a position is valued at the last close.
    """

    def __init__(
        self,
        costs: Costs,
        execution: Execution,
        stale_open: StaleOpen,
        risk: RiskLimits,
        symbols: Sequence[str],
    ) -> None:
        super().__init__()
        self._costs, self._execution, self._stale_open, self._symbols = costs, execution, stale_open, symbols
        self.guard = Guard(risk, costs.cash, whole_steps)
        self.today: Today  # revealed before anything here is called
        self.last_bars: dict[str, Bar] = {}  # by symbol, today's included
        self._commitments: Commitments | None = None  # of this session, once an order asks; None after a change
        self.p.cash = costs.cash
        self.p.checksubmit = False  # its check at submission knows leverage only; ours stands in _judge
        self._slip = costs.slippage_bps / 1e4
        self.set_slippage_perc(self._slip)  # stops and limits: capped by the day's range and the limit
        self._fees = FractionalSizes(commission=costs.commission_bps / 1e4, leverage=LEVERAGE)
        self.addcommissioninfo(self._fees)
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

    def init(self) -> None:
        """Begin anew, with no position."""
        super().init()
        self.positions = _Positions()

    def reveal(self, today: Today) -> None:
        """Be told what session it is."""
        self.today = today
        self.last_bars.update(today.bars)

    # Night and fills: called by cerebro before the strategy.

    def next(self) -> None:
        """Charge the days since the last session, fill the orders that were waiting, then hear the account's owner."""
        data = self.cerebro.datas[0]  # all have a row for every session
        if self.started:
            years = (data.datetime[0] - self._day) / 365.0
            self.borrow = self._short_value * years * self._costs.borrow_bps_a_year / 1e4
            self.interest = self._idle_cash * years * self._costs.cash_rate
            self.cash += self.interest - self.borrow
        self._day = data.datetime[0]
        self._commitments = None
        if len(self.today.bars) < len(self._symbols):
            self._cancel_without_bar()
        if len(self.comminfo) == 1 and self.comminfo[None] is self._fees:
            self._fill_waiting()
        else:  # a strategy's own, and what it says of interest and futures holds
            super().next()
        self._check_solvent()
        self._set_state()

    def _fill_waiting(self) -> None:
        """Do what backtrader's ``next`` does for shares without interest, brackets or a history of orders.

        That is a loop over the orders that wait. What is left out comes to nothing with our fees, and took a tenth of
        the time: a calendar date for each position in each session, to charge it no interest.
        """
        self.pending.append(None)
        while (order := self.pending.popleft()) is not None:
            if order.expire():
                self.notify(order)
                self._ococheck(order)
                self._bracketize(order, cancel=True)
                continue
            self._try_exec(order)
            if order.alive():
                self.pending.append(order)
            elif order.status == bt.Order.Completed:
                self._bracketize(order)
        self._get_value()

    def _set_state(self) -> None:
        """Let control and limits set the state of this decision; halted, no order of before may fill any more."""
        guard, control = self.guard, self.today.control
        guard.decide(self._value, control)
        if guard.state != "HALTED":
            return
        for order in list(self.pending):
            if self._open[order.ref].reason != FLATTEN:  # which waits where its symbol has had no bar
                self._open[order.ref] = replace(self._open[order.ref], reason=f"HALTED: {guard.reason}")
                self.cancel(order)
        if control.flatten:
            closing = {order.data._name: order.size for order in self.pending}
            for data in self.cerebro.datas:
                self._flatten(data, self.positions[data].size + closing.get(data._name, 0))

    def _flatten(self, data: Any, position: float) -> None:
        """Close a position on a way past every limit: it only closes, and the state that forbids orders is its own."""
        if position:
            record = self._record(data, -position, "open at end", FLATTEN)
            submit = super().sell if position > 0 else super().buy
            order = submit(self.cerebro.runningstrats[0], data, abs(position))
            self._open[order.ref] = record

    def _cancel_without_bar(self) -> None:
        for order in list(self.pending):
            record = self._open[order.ref]
            at_once = order.exectype in (bt.Order.Market, bt.Order.Close) and record.reason != FLATTEN
            if at_once and not self._has_bar(order.data):
                self._open[order.ref] = replace(record, reason=NO_BAR)
                self.cancel(order)

    def _has_bar(self, data: Any) -> bool:
        return data._name in self.today.bars

    def cancel(self, order: Any, bracket: bool = False) -> Any:
        """Cancel an order that waits; tell whether it did."""
        self._commitments = None
        return super().cancel(order, bracket)

    def _try_exec(self, order: Any) -> None:
        if not self._has_bar(order.data):
            return
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

    def _execute(self, order: Any, ago: int | None = None, price: float | None = None, *args: Any, **how: Any) -> None:
        # backtrader refuses what would leave its cash below nothing, and counts a long position's gain as no cash:
        # with many symbols the losses of one may so forbid a trade that the gains of another pay for. What is lent
        # for the moment of the trade keeps it quiet; an account with nothing left stops the run all the same.
        lent = 0.0
        if len(self._symbols) > 1 and price is not None:
            position = self.positions[order.data]
            needed = abs(order.executed.remsize) * price + abs(position.size) * position.price
            lent = max(0.0, needed - self.cash)
        self.cash += lent
        super()._execute(order, ago, price, *args, **how)
        self.cash -= lent

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
                where=self._where(order.data),
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
                session=self.today.session,
                order_ref=ref,
                symbol=order.data._name,
                size=done.size,
                price=done.price,
                reference_price=reference,
                commission=done.comm,
                slippage_cost=abs(done.size) * abs(done.price - reference),
            )
        )

    # Decisions: called by the strategy.

    def buy(self, owner: Any, data: Any, size: float, *args: Any, **kwargs: Any) -> Any:
        """Send what the limits leave of a purchase; return None where that is nothing."""
        return self._send(super().buy, size, owner, data, args, kwargs)

    def sell(self, owner: Any, data: Any, size: float, *args: Any, **kwargs: Any) -> Any:
        """Send what the limits leave of a sale; return None where that is nothing."""
        return self._send(super().sell, -size, owner, data, args, kwargs)

    def _send(self, submit: Callable[..., Any], size: float, owner: Any, data: Any, args: Any, kwargs: Any) -> Any:
        if not abs(size) <= LARGEST_SIZE:
            raise OrderError(
                "an order of no size", where=self._where(data), got=size, expected=f"up to {LARGEST_SIZE} units"
            )
        if kwargs.get("parent") is not None or not kwargs.get("transmit", True):
            raise OrderError(
                "a bracket order",
                where=self._where(data),
                do="send its orders one by one: a limit may cut the first, and the others would not follow",
            )
        size = whole_steps(size)
        verdict = self._judge(data, size)
        reason = verdict.reason
        if not verdict.size and not reason:
            reason = "nothing left of it: sizes are whole multiples of a millionth of a unit"
        status = "refused" if verdict.refused else "cut" if reason else "open at end"
        record = self._record(data, verdict.size, status, reason)
        if verdict.refused or not verdict.size:
            self.ended.append(record)
            return None
        # backtrader announces an order from within submit, when it is only accepted; it cannot end there.
        order = submit(owner, data, abs(verdict.size), *args, **kwargs)
        self._open[order.ref] = record
        if self._commitments is not None:
            self._wait(self._commitments, order)
        return order

    def _record(self, data: Any, size: float, status: str, reason: str) -> OrderRecord:
        """Return the record of one more order, decided now."""
        self._sent += 1
        return OrderRecord(
            session=self.today.session, ref=self._sent, symbol=data._name, size=size, status=status, reason=reason
        )

    def _judge(self, data: Any, size: float) -> Verdict:
        """Return what abstention, state and limits leave of ``size`` at this close, open orders counted."""
        signal = self.today.signals.get(data._name)
        if not self._has_bar(data):
            return Verdict(size, NO_BAR, refused=True)
        if signal is None or signal.p_up is None:
            return Verdict(size, (signal and signal.reason) or "no forecast", refused=True)
        if self._commitments is None:
            self._commitments = self._committed()
        return self.guard.judge(size, self._commitments.standing(data._name, size, data.close[0], self._value))

    def _committed(self) -> Commitments:
        """Write down what is held and what waits at this close."""
        made = Commitments(traded=sum(abs(fill.size) * fill.price for fill in self.fills))
        for data, position in self.positions.items():
            if position.size:
                made.hold(data._name, position.size, data.close[0])
        for order in self.pending:
            self._wait(made, order)
        return made

    def _wait(self, made: Commitments, order: Any) -> None:
        data = order.data
        sure = order.exectype == bt.Order.Market and self._has_bar(data)
        made.wait(data._name, order.size, data.close[0], sure)

    def get_cash(self) -> float:
        """Return equity − position value; backtrader's figure has the leverage in it."""
        return float(self._value - self._valuemktlever)

    getcash = get_cash

    # The session's end: called by the recorder after the strategy.

    def close_session(self) -> None:
        """Fill market orders at this close where the execution says so, and note what the night will cost."""
        if self._execution == "close":
            for order in [order for order in self.pending if order.exectype == bt.Order.Market]:
                if self._has_bar(order.data):
                    self.pending.remove(order)
                    self._fill(order, order.data.close[0])
            self._get_value()
            self._check_solvent()
        self.guard.close(self._value, sum(abs(fill.size) * fill.price for fill in self.fills))
        values = [position.size * data.close[0] for data, position in self.positions.items() if position.size]
        self._short_value = math.fsum(-value for value in values if value < 0)
        self._idle_cash = max(0.0, self._value - math.fsum(map(abs, values)))
        self._forget()

    def holdings(self) -> tuple[Holding, ...]:
        """Return every position, in the order of the symbols."""
        found = []
        for data in self.cerebro.datas:
            size, price = self.positions[data].size, data.close[0]
            if size:
                priced = self.last_bars[data._name].session
                found.append(Holding(symbol=data._name, size=size, price=price, value=size * price, priced=priced))
        return tuple(found)

    def _forget(self) -> None:
        """Let go of orders and trades that have ended: backtrader keeps each for ever, and accounts run for years."""
        strategy = self.cerebro.runningstrats[0]
        strategy._orders.clear()
        for by_id in strategy._trades.values():
            for trades in by_id.values():
                del trades[:-1]  # the newest is the one that the next fill goes on with
        for ref in [ref for ref, family in self._pchildren.items() if not any(one.alive() for one in family)]:
            del self._pchildren[ref]

    def waiting(self) -> tuple[OrderRecord, ...]:
        """Return the orders that wait for a next session, oldest first."""
        return tuple(
            record if record.status == "open at end" else replace(record, status="open at end")
            for record in self._open.values()
        )

    def _check_solvent(self) -> None:
        if not self._value > 0:
            raise OrderError(
                "nothing is left of the account",
                where=self._where(),
                got=f"an equity of {self._value:,.2f}",
                do="use a strategy that keeps its exposure down; backtrader would trade on",
            )

    def _where(self, data: Any = None) -> str:
        one = self._symbols[0] if len(self._symbols) == 1 else f"{len(self._symbols)} symbols"
        return f"{one if data is None else data._name} {self.today.session}"
