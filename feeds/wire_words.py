"""The market wire's words about one index: a session's facts in, its headlines out.

Each topic is a function that writes one headline or nothing (""). What counts as large or small is a trailing
rank (a quantile of the past year, as it was known at the time), never a threshold chosen today. Numbers are
rounded and phrases few, so that twenty years hold only some thousand distinct texts to embed; which of several
phrasings a day gets is a fixed hash of its date.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b

from feeds.wire_facts import MONTH, QUARTER, YEAR

# Trailing ranks; a NaN rank (too little history) is neither high nor low.
EXTREME, HIGH, LOW = 0.95, 0.8, 0.2

UP = (("edges up", "inches up"), ("rises", "gains"), ("climbs", "jumps"), ("surges", "soars"))
DOWN = (("slips", "edges down"), ("falls", "loses"), ("drops", "slides"), ("plunges", "tumbles"))
SPANS = (
    *((YEAR, "one-year", "a year"), (YEAR // 2, "six-month", "six months")),
    *((QUARTER, "three-month", "three months"), (MONTH, "one-month", "a month")),
)
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True)
class View:
    """One session's facts and trailing ranks, as seen by the topics of one index ("sp500_") or of the market ("")."""

    session: date
    facts: Mapping[str, float]
    ranks: Mapping[str, float]
    prefix: str = ""
    name: str = ""

    def __getitem__(self, fact: str) -> float:
        return self.facts[self.prefix + fact]

    def rank(self, fact: str) -> float:
        """Return where this session's value stands among those of the past year, in (0, 1] or NaN."""
        return self.ranks[self.prefix + fact]

    def pick(self, topic: str, *phrasings: str) -> str:
        """Choose a phrasing by a fixed hash of date and topic."""
        # Not crc32: it is linear, so one day's choices would move together.
        key = f"{self.session}:{self.prefix}{topic}".encode()
        return phrasings[int.from_bytes(blake2b(key, digest_size=4).digest(), "big") % len(phrasings)]


def _move(day: View) -> str:
    move = day["move"]
    if move != move:
        return ""
    size = f"{abs(100 * move):.1f}%"
    if size == "0.0%":
        return day.pick("move", f"{day.name} ends little changed", f"{day.name} closes almost flat")
    strength = sum(day.rank("move") >= bound for bound in (0.25, 0.75, EXTREME)) if day.rank("move") > 0 else 1
    verb = day.pick("verb", *(UP if move > 0 else DOWN)[strength])
    return day.pick("move", f"{day.name} {verb} {size}", f"{day.name} {verb} {size} by the close")


def _shock(day: View) -> str:
    if not day.rank("move") >= EXTREME:
        return ""
    if day["move"] > 0:
        return day.pick(
            "shock", f"{day.name} has one of its best sessions in months", f"Rarely strong session for the {day.name}"
        )
    return day.pick(
        "shock", f"{day.name} has one of its worst sessions in months", f"Rarely weak session for the {day.name}"
    )


def _streak(day: View) -> str:
    length, ended = int(abs(day["streak"])), int(abs(day["ended_streak"]))
    if length >= 3:
        verb, kind = ("rises", "winning") if day["streak"] > 0 else ("falls", "losing")
        return day.pick(
            "streak",
            f"{day.name} {verb} for {_count(length)} sessions in a row",
            f"{day.name} extends {kind} streak to {_count(length)} sessions",
        )
    if ended >= 3:
        kind = "winning" if day["ended_streak"] > 0 else "losing"
        article = "an" if ended in (8, 11, 18) else "a"
        return day.pick(
            "streak",
            f"{day.name} snaps {article} {_count(ended)}-session {kind} streak",
            f"{day.name} ends {article} {_count(ended)}-session run of "
            f"{'gains' if day['ended_streak'] > 0 else 'losses'}",
        )
    return ""


def _extreme_close(day: View) -> str:
    kind, span = ("high", day["high_of"]) if day["high_of"] > day["low_of"] else ("low", day["low_of"])
    for sessions, short, long in SPANS:
        if span >= sessions:
            return day.pick(
                "extreme",
                f"{day.name} closes at a {short} {kind}",
                f"{short.capitalize()} {kind} for the {day.name}",
                f"{day.name} reaches its {kind}est close in {long}",
            )
    return ""


def _span(day: View, fact: str, time: str) -> str:
    move = day[fact]
    if move != move:
        return ""
    size = f"{abs(100 * move):.0f}%"
    if size == "0%":
        return day.pick(fact, f"{day.name} is little changed over the past {time}", f"{day.name} flat on the {time}")
    way, change = ("up", "gain") if move > 0 else ("down", "loss")
    return day.pick(
        fact,
        f"{day.name} is {way} about {size} over the past {time}",
        f"{day.name}'s {change} over the past {time} is about {size}",
    )


def _week(day: View) -> str:
    return _span(day, "move_5", "week") if day.rank("move_5") >= HIGH else ""


def _month(day: View) -> str:
    return _span(day, "move_20", "month")


def _quarter(day: View) -> str:
    return _span(day, "move_60", "quarter") if day.rank("move_60") >= HIGH else ""


def _breadth(day: View) -> str:
    ups = day["ups_10"]
    if 3 < ups < 7 or ups != ups:
        return ""
    return f"{day.name} has risen on {_count(int(ups))} of the last ten sessions"


def _gap(day: View) -> str:
    """Only where the open was a price: a copied open has no gap, and no rank."""
    gap, size = day["gap"], f"{abs(100 * day['gap']):.1f}%"
    if not day.rank("gap") >= HIGH or size == "0.0%":
        return ""
    way = "higher" if gap > 0 else "lower"
    opened = f"{day.name} opens {size} {way}"
    if gap * day["move"] <= 0:
        return f"{opened} but turns round"
    if gap * day["after_open"] <= 0:
        return f"{opened} and {'gives' if gap > 0 else 'wins'} part of it back"
    return f"{opened} and keeps going"


def _range(day: View) -> str:
    size = f"{100 * day['range']:.1f}%"
    if day.rank("range") >= HIGH:
        return day.pick(
            "range",
            f"{day.name} swings {size} between high and low, a wide session",
            f"Wide session: {day.name} travels {size} from low to high",
        )
    if day.rank("range") <= LOW:
        return day.pick(
            "range", f"{day.name} trades within a narrow {size} range", f"Quiet session: {day.name} stays within {size}"
        )
    return ""


def _place(day: View) -> str:
    if day.rank("place") >= HIGH and day["place"] > 0.5:
        return day.pick(
            "place",
            f"{day.name} finishes near its high of the day",
            f"Buyers in control as the {day.name} closes near its high",
        )
    if day.rank("place") <= LOW and day["place"] < 0.5:
        return day.pick(
            "place",
            f"{day.name} finishes near its low of the day",
            f"Sellers in control as the {day.name} closes near its low",
        )
    return ""


def _volume(day: View) -> str:
    size = 5 * round(20 * abs(day["volume"])) if day["volume"] == day["volume"] else 0
    if size and day.rank("volume") >= HIGH and day["volume"] > 0:
        return day.pick(
            "volume",
            f"Heavy trading: {day.name} volume about {size}% above average",
            f"{day.name} volume runs about {size}% above its 20-session average",
        )
    if size and day.rank("volume") <= LOW and day["volume"] < 0:
        return day.pick(
            "volume",
            f"Thin trading: {day.name} volume about {size}% below average",
            f"{day.name} volume runs about {size}% below its 20-session average",
        )
    return ""


def _volatility(day: View) -> str:
    size, rank = f"{100 * day['volatility']:.0f}%", day.rank("volatility")
    if rank >= HIGH:
        return day.pick(
            "volatility",
            f"{day.name} volatility is high at an annual {size}",
            f"Nervous market: {day.name} swings at an annual rate of {size}",
        )
    if rank <= LOW:
        return day.pick(
            "volatility",
            f"{day.name} volatility is low at an annual {size}",
            f"Calm market: {day.name} swings at an annual rate of {size}",
        )
    return ""


def _drawdown(day: View) -> str:
    size = f"{abs(100 * day['drawdown']):.0f}%"
    if day["drawdown"] != day["drawdown"] or size == "0%":
        return ""
    return day.pick(
        "drawdown",
        f"{day.name} stands {size} below its one-year high",
        f"{day.name} is {size} off its highest close of the past year",
    )


def _rebound(day: View) -> str:
    size = f"{abs(100 * day['rebound']):.0f}%"
    if not day.rank("rebound") >= HIGH or size == "0%":
        return ""
    return day.pick(
        "rebound",
        f"{day.name} stands {size} above its one-year low",
        f"{day.name} is {size} up from its lowest close of the past year",
    )


def _trend(day: View) -> str:
    for span in (200, 50):
        if day[f"crossed_{span}"]:
            side = "above" if day[f"crossed_{span}"] > 0 else "below"
            return day.pick(
                "trend",
                f"{day.name} crosses {side} its {span}-session average",
                f"{day.name} closes back {side} its {span}-session average",
            )
    return ""


def _count(number: int) -> str:
    return COUNTS[number] if number < len(COUNTS) else str(number)


INDEX_TOPICS: dict[str, Callable[[View], str]] = {
    "move": _move,
    "shock": _shock,
    "streak": _streak,
    "extreme": _extreme_close,
    "week": _week,
    "month": _month,
    "quarter": _quarter,
    "breadth": _breadth,
    "gap": _gap,
    "range": _range,
    "place": _place,
    "volume": _volume,
    "volatility": _volatility,
    "drawdown": _drawdown,
    "rebound": _rebound,
    "trend": _trend,
}
