"""The market wire's words about the market as a whole: the two indices side by side, crude, yields, inflation.

The topics follow ``feeds.wire_words``, which see. What is published late says so.
"""

from __future__ import annotations

from collections.abc import Callable

from feeds.wire_facts import CPI_DELAY
from feeds.wire_words import EXTREME, HIGH, View

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def _lead(day: View) -> str:
    lead, sp500, nasdaq = day["lead"], day["sp500_move"], day["nasdaq_move"]
    size = f"{abs(100 * lead):.1f}"
    if sp500 * nasdaq < 0 and min(abs(sp500), abs(nasdaq)) >= 0.0005:
        up, down = ("Nasdaq", "S&P 500") if nasdaq > 0 else ("S&P 500", "Nasdaq")
        return day.pick(
            "lead", f"Markets split: {up} rises while {down} falls", f"{up} up, {down} down in a mixed session"
        )
    if not day.rank("lead") >= 0.5 or size == "0.0":
        return ""
    if lead > 0:
        return day.pick(
            "lead",
            f"Technology-heavy Nasdaq beats the S&P 500 by {_points(size)}",
            f"Nasdaq outperforms the S&P 500 by {_points(size)}",
        )
    return day.pick(
        "lead",
        f"Technology-heavy Nasdaq trails the S&P 500 by {_points(size)}",
        f"Nasdaq underperforms the S&P 500 by {_points(size)}",
    )


def _lead_month(day: View) -> str:
    size = f"{abs(100 * day['lead_20']):.0f}"
    if not day.rank("lead_20") >= HIGH or size == "0":
        return ""
    way = "ahead of" if day["lead_20"] > 0 else "behind"
    return f"Over the past month the Nasdaq is {_points(size)} {way} the S&P 500"


def _crude(day: View) -> str:
    """A crude price is a week old when it is known, and says so."""
    move = day["crude_move"]
    if not day["crude_fresh"] or move != move:
        return ""
    size = f"{abs(100 * move):.1f}%"
    if size == "0.0%":
        return "Crude oil was unchanged a week earlier, delayed data show"
    strength = sum(day.rank("crude_move") >= bound for bound in (HIGH, EXTREME))
    verb = (("rose", "jumped", "soared") if move > 0 else ("fell", "dropped", "plunged"))[strength]
    return day.pick(
        "crude",
        f"Crude oil {verb} {size} a week earlier, delayed data show",
        f"Delayed data: crude oil {verb} {size} a week ago",
    )


def _crude_level(day: View) -> str:
    if not day["crude_fresh"] or not day.rank("crude_move_20") >= HIGH:
        return ""
    size, way = f"{abs(100 * day['crude_move_20']):.0f}%", "up" if day["crude_move_20"] > 0 else "down"
    dollars = 5 * round(day["crude"] / 5)
    return day.pick(
        "crude-month",
        f"Oil near ${dollars} a barrel after a month {way} about {size}",
        f"Crude {way} about {size} in a month to near ${dollars} a barrel",
    )


def _yield(day: View, grade: str, words: str) -> str:
    if not day["aaa_fresh"] or day[f"{grade}_change"] != day[f"{grade}_change"]:
        return ""
    month = MONTHS[(day.session.month - 2) % 12]
    level, change = f"{day[grade]:.1f}%", day[f"{grade}_change"]
    size = f"{abs(change):.1f}"
    if size == "0.0":
        return f"{words} yields averaged {level} in {month}, little changed on the month"
    return f"{words} yields averaged {level} in {month}, {'up' if change > 0 else 'down'} {_points(size)}"


def _aaa(day: View) -> str:
    return _yield(day, "aaa", "Top-rated corporate bond")


def _baa(day: View) -> str:
    return _yield(day, "baa", "Lower-rated corporate bond")


def _spread(day: View) -> str:
    if not day["aaa_fresh"] or day["spread_change"] != day["spread_change"]:
        return ""
    size = _points(f"{day['spread']:.1f}")
    if f"{abs(day['spread_change']):.1f}" == "0.0":
        return f"Credit spread steady near {size}"
    verb = "widens" if day["spread_change"] > 0 else "narrows"
    return f"Credit spread {verb} to {size}"


def _cpi(day: View) -> str:
    if not day["core_cpi_fresh"] or day["core_cpi_change"] != day["core_cpi_change"]:
        return ""
    month = MONTHS[(day.session - CPI_DELAY).month - 1]
    level, change = f"{day['core_cpi']:.1f}%", day["core_cpi_change"]
    before = f"{day['core_cpi'] - change:.1f}%"
    trend = "unchanged from" if change == 0 else f"{'up' if change > 0 else 'down'} from {before} in"
    return f"Core inflation was {level} in {month}, {trend} the month before, revised figures show"


def _points(size: str) -> str:
    return f"{size} point" if size == "1" else f"{size} points"


MARKET_TOPICS: dict[str, Callable[[View], str]] = {
    "lead": _lead,
    "lead-month": _lead_month,
    "crude": _crude,
    "crude-month": _crude_level,
    "yields-aaa": _aaa,
    "yields-baa": _baa,
    "spread": _spread,
    "core-cpi": _cpi,
}
