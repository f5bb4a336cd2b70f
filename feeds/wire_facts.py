"""The market wire's numbers: facts about each session, every one known at that session's close.

Everything here looks backwards only: shifts, trailing windows and carried-forward values, so that facts made
from series cut at any session are exactly the first rows of the facts made from the whole. ``feeds.wire`` turns
them into headlines; a logistic regression on the same numbers stands beside the model that reads those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from trader.clock import FIRST_DAY, LAST_DAY, Calendar

INDICES = ("sp500", "nasdaq")
YEAR, QUARTER, MONTH, WEEK = 250, 60, 20, 5  # in sessions
ENOUGH = 60  # sessions before a trailing quantile is trusted
CRUDE_DELAY = 5  # sessions from its date until a crude price is out
YIELDS_SESSION = 3  # a month's average yields are known on this session of the next month
CPI_DELAY = timedelta(days=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireSeries:
    """The real series behind the wire, each oldest first.

    sp500, nasdaq: daily Open, High, Low, Close, Volume in points and units, one row a session, the same sessions.
    crude: US dollars a barrel by day (WTI spot).   yields: AAA and BAA corporate yields in per cent, monthly
    averages stamped on the first of their month.   core_cpi: index level, stamped likewise.
    """

    sp500: pd.DataFrame
    nasdaq: pd.DataFrame
    crude: pd.Series
    yields: pd.DataFrame
    core_cpi: pd.Series


def facts(series: WireSeries) -> pd.DataFrame:
    """Return S sessions × named facts, float64, oldest first, indexed by session; each known at its row's close.

    Returns and distances are fractions, yields and inflation are per cent, streaks are sessions (below 0 for
    falls). NaN where the history is too short or the source gave nothing (a session without volume).
    A name ending in ``_fresh`` is 1 on the session at whose close that figure became known, else 0.
    """
    sp500, nasdaq = index_facts(series.sp500), index_facts(series.nasdaq)
    table = pd.concat([sp500.add_prefix("sp500_"), nasdaq.add_prefix("nasdaq_")], axis=1)
    table["lead"] = nasdaq["move"] - sp500["move"]
    table["lead_20"] = nasdaq["move_20"] - sp500["move_20"]
    days = [stamp.date() for stamp in series.sp500.index]
    slow = [crude_facts(series.crude), yield_facts(series.yields), cpi_facts(series.core_cpi)]
    return pd.concat([table, *(_as_known(part, days).set_axis(table.index) for part in slow)], axis=1)


def index_facts(prices: pd.DataFrame) -> pd.DataFrame:
    """Return one index's facts from its daily Open, High, Low, Close and Volume."""
    opened, high, low, close = (prices[name].astype("float64") for name in ("Open", "High", "Low", "Close"))
    volume = prices["Volume"].astype("float64").where(lambda units: units > 0)
    before = close.shift(1)
    move = close / before - 1
    streak = _streak(np.sign(move.fillna(0).to_numpy()))
    previous = np.concatenate([[0.0], streak[:-1]])
    return pd.DataFrame(
        {
            "move": move,
            "move_5": close / close.shift(WEEK) - 1,
            "move_20": close / close.shift(MONTH) - 1,
            "move_60": close / close.shift(QUARTER) - 1,
            "streak": streak,
            "ended_streak": np.where(streak * previous < 0, previous, 0.0),
            "ups_10": (move > 0).astype("float64").rolling(10).sum(),
            # Exactly 0 where the open is only a copy of the close before: no price, no gap.
            "gap": (opened / before - 1).where(opened != before, 0.0).where(before.notna()),
            "after_open": close / opened - 1,
            "range": (high - low) / before,
            "place": ((close - low) / (high - low)).where(high > low, 0.5),
            "volume": volume / volume.shift(1).rolling(MONTH, min_periods=MONTH // 2).mean() - 1,
            "volatility": move.rolling(MONTH).std() * np.sqrt(YEAR),
            "drawdown": close / close.rolling(YEAR).max() - 1,
            "rebound": close / close.rolling(YEAR).min() - 1,
            "high_of": _sessions_beaten(close.to_numpy(np.float64)),
            "low_of": _sessions_beaten(-close.to_numpy(np.float64)),
            "trend_50": close / close.rolling(50).mean() - 1,
            "trend_200": close / close.rolling(200).mean() - 1,
        },
        index=prices.index,
    ).assign(**{f"crossed_{span}": lambda table, span=span: _crossed(table[f"trend_{span}"]) for span in (50, 200)})


def crude_facts(crude: pd.Series) -> pd.DataFrame:
    """Return crude's price, its one-day and 20-day change, indexed by the session at whose close they are known."""
    table = pd.DataFrame(
        {"crude": crude, "crude_move": crude / crude.shift(1) - 1, "crude_move_20": crude / crude.shift(MONTH) - 1}
    )
    calendar, stamps = _calendar_days(), crude.index.to_numpy().astype("datetime64[D]")
    known = np.searchsorted(calendar, stamps, side="right") + CRUDE_DELAY - 1
    return _stamped(table, calendar, known)


def yield_facts(yields: pd.DataFrame) -> pd.DataFrame:
    """Return last month's average yields, their spread and monthly changes (points), by the session they are known."""
    aaa, baa = yields["AAA"], yields["BAA"]
    spread = (baa - aaa).round(4)
    table = pd.DataFrame({"aaa": aaa, "baa": baa, "spread": spread})
    table = table.assign(**{f"{name}_change": table[name].diff().round(4) for name in ("aaa", "baa", "spread")})
    calendar = _calendar_days()
    next_month = yields.index.to_numpy().astype("datetime64[M]") + 1
    known = np.searchsorted(calendar, next_month.astype("datetime64[D]")) + YIELDS_SESSION - 1
    return _stamped(table, calendar, known)


def cpi_facts(core_cpi: pd.Series) -> pd.DataFrame:
    """Return the 12-month change of core prices, per cent to one decimal, and its change, by the session known.

    To one decimal because the series is the revised one of today, which nobody had at the time.
    """
    inflation = (100 * (core_cpi / core_cpi.shift(12) - 1)).round(1)
    table = pd.DataFrame({"core_cpi": inflation, "core_cpi_change": inflation.diff().round(1)})
    calendar = _calendar_days()
    out = core_cpi.index.to_numpy().astype("datetime64[D]") + np.timedelta64(CPI_DELAY)
    return _stamped(table, calendar, np.searchsorted(calendar, out))


def trailing_rank(values: pd.Series) -> pd.Series:
    """Return each value's rank among the last 250 sessions, itself included, in (0, 1]; NaN before 60 are there."""
    return values.rolling(YEAR, min_periods=ENOUGH).rank(pct=True)


def _calendar_days() -> NDArray[np.datetime64]:
    """Return all XNYS sessions: days are placed by the calendar, never by the prices, which may be cut."""
    return np.array(Calendar().sessions(FIRST_DAY, LAST_DAY), dtype="datetime64[D]")


def _stamped(table: pd.DataFrame, calendar: NDArray[np.datetime64], known: NDArray[np.int64]) -> pd.DataFrame:
    """Index rows by the session number known[i]; of several known at once the newest stays. Outside 1990–2035: none."""
    inside = known < len(calendar)
    inside[:-1] &= known[:-1] != known[1:]
    inside &= known > 0
    return table[inside].set_index(pd.DatetimeIndex(calendar[known[inside]]))


def _as_known(table: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    """Carry each figure forward over the sessions from the one it is known at, and flag where it was fresh."""
    sessions = pd.DatetimeIndex(list(days))
    name = f"{table.columns[0]}_fresh"
    return table.reindex(sessions, method="ffill").assign(**{name: sessions.isin(table.index).astype("float64")})


def _streak(signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the number of sessions in a row with the same sign, times it; an unchanged close ends a streak."""
    lengths, run = np.zeros(len(signs)), 0.0
    for row, sign in enumerate(signs):
        run = run + sign if sign * run > 0 else sign
        lengths[row] = run
    return lengths


def _crossed(distance: pd.Series) -> pd.Series:
    """Return 1 on a session that closes above the average after one below it, −1 on the reverse, else 0."""
    side = np.sign(distance)
    crossed: pd.Series = ((side - side.shift(1)) / 2).where(side * side.shift(1) < 0, 0.0)
    return crossed


def _sessions_beaten(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how many of the sessions just before lay strictly below each value, counted back to the first that did
    not and at most a year."""
    beaten, higher = np.zeros(len(values)), list[int]()
    for row, value in enumerate(values):
        while higher and values[higher[-1]] < value:
            higher.pop()
        beaten[row] = min(row - higher[-1] - 1 if higher else row, YEAR)
        higher.append(row)
    return beaten
