"""A backtrader feed that carries the project's signals beside the prices, for our broker and for your own Cerebro.

    from strategies.base import FractionalSizes
    from strategies.long_short import LongShort
    from strategies.signal_data import SignalData

    cerebro = bt.Cerebro(preload=False, runonce=False)
    cerebro.adddata(SignalData(dataname=prices.join(signals, how="inner")))
    cerebro.addstrategy(LongShort)
    cerebro.broker.addcommissioninfo(FractionalSizes(commission=0.0001))
    cerebro.run()

``preload=False, runonce=False`` makes Cerebro draw one session at a time; otherwise it drains the feed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
import math
from typing import Any

from strategies.base import bt

PRICE_COLUMNS = ("open", "high", "low", "close", "volume")
SIGNAL_COLUMNS = ("signal", "p_up")
OPTIONAL_COLUMNS = {"expected_return": math.nan, "traded": 1.0}  # and what stands for one that is not there

# (session, open, high, low, close, volume, signal, p_up, expected_return, traded); the last two may be left out.
Row = (
    tuple[date, float, float, float, float, float, float, float]
    | tuple[date, float, float, float, float, float, float, float, float]
    | tuple[date, float, float, float, float, float, float, float, float, float]
)


class SignalData(bt.feed.DataBase):  # type: ignore[misc]
    """Feed daily bars with the lines ``signal`` (−1, 0, +1), ``p_up`` and ``expected_return`` of the next session.

    p_up is NaN where the forecaster abstained, expected_return (a fraction, 0.01 is 1 %) where it gave none. The line
    ``traded`` is 1, and 0 in a row that only repeats the last close of a symbol without a bar in that session.

    dataname: a pandas DataFrame, one row a session, oldest first, indexed by day without a zone, with the columns
        open, high, low, close, volume (in any case: Yahoo's and arch's names do), signal, p_up and, where the
        forecaster has one, expected_return (and traded, 1 by default); or a sequence of ``Row``, taken as it is.
    Raises ValueError for a frame that backtrader would run without a word: a missing column, no rows, a day twice,
    disorder, a zone, a price that is not a number, a signal that is not −1, 0 or +1, a side or an expected_return
    without p_up, an expected_return that is infinite, a traded that is not 0 or 1.
    """

    lines = (*SIGNAL_COLUMNS, *OPTIONAL_COLUMNS)

    def start(self) -> None:
        """Check the frame and stand before its first row."""
        super().start()
        source = self.p.dataname
        rows = frame_rows(source) if hasattr(source, "columns") else source
        self._rows: Iterator[Row] = iter(rows)
        names = ("datetime", *PRICE_COLUMNS, *SIGNAL_COLUMNS, *OPTIONAL_COLUMNS)
        self._day, *self._targets = [getattr(self.lines, name) for name in names]
        self._left_out = list(OPTIONAL_COLUMNS.values())
        aliases = [alias for alias in self.getlinealiases() if alias != "datetime"]
        self._ticks = [(f"tick_{alias}", getattr(self.lines, alias)) for alias in aliases]
        self._ticks.append(("tick_last", getattr(self.lines, aliases[0])))

    def _load(self) -> bool:
        row = next(self._rows, None)
        if row is None:
            return False
        session, *numbers = row
        missing = len(self._targets) - len(numbers)
        if missing:
            numbers += self._left_out[-missing:]
        # backtrader counts days as date.toordinal() does; a whole day is midnight, which no zone may shift.
        self._day[0] = float(session.toordinal())
        for line, number in zip(self._targets, numbers, strict=True):
            line[0] = number
        return True

    def _tick_fill(self, force: bool = False) -> None:
        # What backtrader's own does, without looking each line up by name again in every session.
        if force or getattr(self, self._ticks[0][0], None) is None:
            for name, line in self._ticks:
                setattr(self, name, line[0])


def frame_rows(frame: Any) -> Sequence[Row]:
    """Turn a checked DataFrame into rows; raise ValueError as SignalData does."""
    columns = {str(name).lower(): name for name in frame.columns}
    missing = [name for name in (*PRICE_COLUMNS, *SIGNAL_COLUMNS) if name not in columns]
    if missing:
        raise ValueError(
            f"SignalData: the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}"
        )
    if not len(frame):
        raise ValueError("SignalData: the frame has no rows; do the days of prices and signals overlap?")
    days = _days(frame.index)
    names = (*PRICE_COLUMNS, *SIGNAL_COLUMNS, *OPTIONAL_COLUMNS)
    values = [
        frame[columns[name]].astype(float).tolist() if name in columns else [OPTIONAL_COLUMNS[name]] * len(days)
        for name in names
    ]
    rows: list[Row] = list(zip(days, *values, strict=True))
    for row in rows:
        _check_row(row)
    return rows


def _days(index: Any) -> list[date]:
    if not hasattr(index, "to_pydatetime"):
        raise ValueError(f"SignalData: the index must be days (a DatetimeIndex), got {type(index).__name__}")
    if index.tz is not None:
        raise ValueError(f"SignalData: the index is in {index.tz}; use days without a zone, index.tz_localize(None)")
    if not (index == index.normalize()).all():
        raise ValueError("SignalData: the index has times of day; one row a session, at midnight")
    if not (index.is_monotonic_increasing and index.is_unique):
        raise ValueError("SignalData: the days must rise, oldest first, each once")
    return [instant.date() for instant in index.to_pydatetime()]


def _check_row(row: Row) -> None:
    session, *prices, volume, signal, p_up, expected, traded = row
    if not all(math.isfinite(price) and price > 0 for price in prices) or not volume >= 0:
        raise ValueError(f"SignalData: {session}: a price is not a positive number, got {(*prices, volume)}")
    if signal not in (-1, 0, 1):
        raise ValueError(f"SignalData: {session}: signal must be -1, 0 or 1, got {signal}; join with how='inner'")
    if signal != 0 if math.isnan(p_up) else not 0 <= p_up <= 1:
        raise ValueError(f"SignalData: {session}: p_up must lie in [0, 1], or be NaN with signal 0; got {p_up}")
    if math.isinf(expected) or (math.isnan(p_up) and not math.isnan(expected)):
        raise ValueError(
            f"SignalData: {session}: expected_return must be a number, or NaN (always where p_up is); got {expected}"
        )
    if traded not in (0, 1):
        raise ValueError(f"SignalData: {session}: traded must be 0 or 1, got {traded}")
