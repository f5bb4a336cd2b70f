"""Read the times that news files state, and say when each headline was out at the latest.

A stated time is a span: "16:00" lasts a minute, "2016-07-28" a day, "Jul-18" a month. We take its END
(16:00:59.999, 23:59:59.999, the month's last millisecond), so that nothing is known too early: when in
doubt, the later time. For the same reason a local time that a clock change makes ambiguous is the later of
the two, and one that a clock change skips is read with the offset before the change. Called by news_files.

Local wall times are int64 µs since 1970 in that zone's own clock; instants are int64 µs UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
import re
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
from numpy.typing import NDArray

from trader.clock import DAY_US, FIRST_DAY, LAST_DAY
from trader.errors import TimeError

MS, SECOND, MINUTE = 1_000, 1_000_000, 60_000_000
NO_DATE, UNREADABLE = "no date", "a date that cannot be read"
EITHER_ORDER = "day and month could be either way round; state --preset day-first or month-first"
OUTSIDE = f"a year outside {FIRST_DAY.year}–{LAST_DAY.year}"

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_MONTH_WORDS = {word: at for at, name in enumerate(_MONTHS, 1) for word in (name, name[:3])} | {"sept": 9}
_FILLERS = ("st", "nd", "rd", "th", "at", "on", "of", "the")
# Standard and summer abbreviations are fixed offsets; the bare "ET" of newspapers follows the clock on the wall.
_ZONES = {
    "Z": "UTC", "UT": "UTC", "UTC": "UTC", "GMT": "UTC", "BST": "+01:00", "CET": "+01:00", "CEST": "+02:00",
    "ET": "America/New_York", "EST": "-05:00", "EDT": "-04:00", "CT": "America/Chicago", "CST": "-06:00",
    "CDT": "-05:00", "MT": "America/Denver", "MST": "-07:00", "MDT": "-06:00", "PT": "America/Los_Angeles",
    "PST": "-08:00", "PDT": "-07:00",
}  # fmt: skip
_ZONE = rf"({'|'.join(sorted(_ZONES, key=len, reverse=True))}|[+-]\d\d(?::?\d\d)?)"
_CLOCK = re.compile(
    rf"(?<!\d)(\d\d?):(\d\d)(?::(\d\d)(?:[.,](\d{{1,9}}))?)?(?:\s*([AaPp])\.?[Mm]\b\.?)?(?:\s*{_ZONE}(?![A-Za-z\d]))?"
)
_ISO = re.compile(
    rf"(\d{{4}})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{{1,9}}))?)?(?: ?{_ZONE})?)?", re.ASCII
)
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d\d?)\2(\d\d?)", re.ASCII)
_YEAR_LAST = re.compile(r"(\d\d?)([-/.])(\d\d?)\2(\d{4}|\d\d)", re.ASCII)
_COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T?(\d\d)(\d\d)(\d\d)?(Z)?)?", re.ASCII)
_YEAR_MONTH = re.compile(r"(\d{4})[-/](\d\d)", re.ASCII)
_EPOCH = re.compile(r"(\d{10}|\d{13}|\d{16}|\d{19})(?:\.(\d+))?", re.ASCII)  # seconds, ms, µs, ns
_WORDS = re.compile(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")
_WEEKDAY = re.compile(r"(mon|tue(s)?|wed(nes)?|thu(r|rs)?|fri|sat(ur)?|sun)(day)?", re.IGNORECASE)

Stated = tuple[int, int, str]  # start as local wall µs, width µs, zone ("" where none is stated)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRule:
    """How a source writes its times, where the text alone does not say.

    zone: of times that state none; "" where the user has to say.
    day_first: the order of 6/9/2017; None where unknown, and then such a date is refused.
    zero_seconds: :00 means that only the minute is known.  midnight: 00:00:00 means that only the day is known.
    """

    zone: str = ""
    day_first: bool | None = None
    zero_seconds: bool = False
    midnight: bool = True


def read_times(cells: Any, rule: TimeRule, where: str) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return each cell's END as µs UTC, and for cells that cannot be used {position: reason} (their µs are 0).

    cells: a pyarrow array of strings, numbers, dates or timestamps.  where: the file, for errors.
    Raises TimeError where a time states no zone and the rule has none, or for a zone that does not exist.
    """
    import pyarrow as pa

    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        local, utc, width, zones, bad = _from_stamps(cells, rule)
    else:
        local, width, zones, bad = _from_texts(cells, rule)
        utc = None
    missing = (at for at, zone in enumerate(zones) if not zone and at not in bad) if "" in zones else iter(())
    if (first := next(missing, None)) is not None:
        raise TimeError(
            "a time without a zone",
            where=where,
            got=str(cells[first]).strip(),
            do="state its zone, for example --zone America/New_York",
        )
    ends = _ends(local, utc, _coarser(local, width, rule), zones)
    for at in np.flatnonzero(outside(ends)).tolist():
        bad.setdefault(at, OUTSIDE)
    ends[list(bad)] = 0
    return ends, bad


def outside(instants: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which instants (µs UTC) the calendar does not cover."""
    return (instants < _day(FIRST_DAY)) | (instants >= _day(LAST_DAY) + DAY_US)


def to_utc(local: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Turn wall times of a zone into instants, the later one where a clock change leaves a choice.

    That is: the new offset holds from (change + new offset) on the wall, whichever way the clock moved.
    In autumn the repeated hour so gets the new, smaller offset, in spring the skipped hour the old, smaller
    one, and the smaller offset is the later instant. Raises TimeError for an unknown zone.
    """
    changes, offsets = _offsets(zone)
    return local - offsets[np.searchsorted(changes + offsets[1:], local, side="right")]


def require_zone(zone: str) -> str:
    """Return the name if it is a zone ("America/New_York", "UTC", "+05:30"); raise TimeError naming the nearest."""
    _zone(zone)
    return zone


def _from_texts(
    cells: Any, rule: TimeRule
) -> tuple[NDArray[np.int64], NDArray[np.int64], Sequence[str], dict[int, str]]:
    bad: dict[int, str] = {}
    nothing: Stated = (0, 0, "")
    rows: list[Stated] = []
    for at, cell in enumerate(cells.to_pylist()):
        try:
            rows.append(_stated(_as_text(cell), rule.day_first))
        except ValueError as error:
            bad[at] = str(error) if str(error) in (NO_DATE, EITHER_ORDER) else UNREADABLE
            rows.append(nothing)
    start, width, zones = zip(*rows, strict=True) if rows else ((), (), ())
    named = [zone or rule.zone for zone in zones]
    return np.array(start, dtype=np.int64), np.array(width, dtype=np.int64), named, bad


def _from_stamps(
    cells: Any, rule: TimeRule
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.int64], Sequence[str], dict[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    bad = dict.fromkeys(np.flatnonzero(cells.is_null().to_numpy(zero_copy_only=False)).tolist(), NO_DATE)
    zone = getattr(cells.type, "tz", None)
    values = pc.cast(cells, pa.timestamp("us", zone), safe=False)  # ns are cut to µs
    values = pc.fill_null(values.view(pa.int64()), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_date(cells.type):
        return values, None, np.full(len(values), DAY_US), [rule.zone] * len(values), bad
    width = np.where(values % SECOND == 0, SECOND, np.where(values % MS == 0, MS, 1))
    if zone is None:
        return values, None, width, [rule.zone] * len(values), bad
    changes, offsets = _offsets(zone)
    local = values + offsets[np.searchsorted(changes, values, side="right")]
    return local, values, width, [zone] * len(values), bad


def _coarser(local: NDArray[np.int64], width: NDArray[np.int64], rule: TimeRule) -> NDArray[np.int64]:
    """Widen, row by row, the spans whose zeros the rule takes for "not known"; no row depends on its neighbours."""
    if rule.zero_seconds:
        width = np.where((width == SECOND) & (local % MINUTE == 0), MINUTE, width)
    if rule.midnight:
        width = np.where((width <= MINUTE) & (width >= SECOND) & (local % DAY_US == 0), DAY_US, width)
    return width


def _ends(
    local: NDArray[np.int64], utc: NDArray[np.int64] | None, width: NDArray[np.int64], zones: Sequence[str]
) -> NDArray[np.int64]:
    last = np.where(width > MS, width - MS, 0)
    kinds = sorted(set(zones) - {""})
    ends = to_utc(local + last, kinds[0]) if kinds else np.zeros(len(local), dtype=np.int64)
    for zone in kinds[1:]:  # rare: rows that state different zones
        mine = np.fromiter((one == zone for one in zones), dtype=np.bool_, count=len(zones))
        ends[mine] = to_utc((local + last)[mine], zone)
    # A stamp that came as an instant is exact through clock changes; only whole days need the wall clock.
    return ends if utc is None else np.where(width < DAY_US, utc + last, ends)


@lru_cache(maxsize=64)
def _offsets(zone: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the instants (µs UTC) at which a zone's offset changes and the offsets (µs) before, between and after."""
    rules = _zone(zone)
    if isinstance(rules, timezone):
        return np.zeros(0, dtype=np.int64), np.array([_offset(rules, 0)], dtype=np.int64)
    days = range(_day(FIRST_DAY) - 2 * DAY_US, _day(LAST_DAY) + 3 * DAY_US, DAY_US)
    changes: list[int] = []
    offsets = [_offset(rules, days[0])]
    for low, high in pairwise(days):
        if (new := _offset(rules, high)) != offsets[-1]:
            while high - low > SECOND:  # DAY_US is whole seconds, so the halves are kept whole too
                middle = low + (high - low) // SECOND // 2 * SECOND
                low, high = (middle, high) if _offset(rules, middle) == offsets[-1] else (low, middle)
            changes.append(high)
            offsets.append(new)
    return np.array(changes, dtype=np.int64), np.array(offsets, dtype=np.int64)


def _offset(rules: tzinfo, us: int) -> int:
    wall = datetime.fromtimestamp(us // SECOND, timezone.utc).astimezone(rules).utcoffset()
    assert wall is not None
    return wall // timedelta(microseconds=1)


def _zone(name: str) -> tzinfo:
    fixed = re.fullmatch(r"([+-])(\d\d):?(\d\d)?", name)
    if fixed and int(fixed[2]) < 24 and int(fixed[3] or 0) < 60:
        minutes = int(fixed[2]) * 60 + int(fixed[3] or 0)
        return timezone(timedelta(minutes=-minutes if fixed[1] == "-" else minutes))
    try:
        return timezone.utc if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        near = get_close_matches(name.strip().replace(" ", "_"), available_timezones(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "give an IANA name such as America/New_York"
        raise TimeError("not a time zone", got=name, do=hint) from error


def _as_text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.6f}" if cell == cell else ""
    return str(cell)


@lru_cache(maxsize=100_000)  # dates repeat; a hit is twenty times faster than a parse
def _stated(text: str, day_first: bool | None) -> Stated:
    """Read one stated time; raise ValueError(NO_DATE, UNREADABLE or EITHER_ORDER).

    >>> _stated("Jul-18", None)[1] // DAY_US
    31
    """
    iso = _ISO.fullmatch(text)
    if iso:
        year, month, day, hour, minute, second, fraction, zone = iso.groups()
        start = _day(date(int(year), int(month), int(day)))
        return (start, DAY_US, "") if hour is None else _at(start, hour, minute, second, fraction, zone)
    text = text.strip().strip("\"'").strip()
    if not text or text.lower() in ("nan", "nat", "none", "null"):
        raise ValueError(NO_DATE)
    if epoch := _EPOCH.fullmatch(text):
        return _from_epoch(epoch[1])
    if compact := _COMPACT.fullmatch(text):
        year, month, day, hour, minute, second, zone = compact.groups()
        start = _day(date(int(year), int(month), int(day)))
        return (start, DAY_US, "") if hour is None else _at(start, hour, minute, second, None, zone)
    clock = _CLOCK.search(text)
    if clock is None:
        return (*_span(text, day_first), "")
    rest = f"{text[: clock.start()].rstrip().removesuffix('T')} {text[clock.end() :]}".strip(" ,")
    start, width = _span(rest, day_first)
    if width != DAY_US:
        raise ValueError(UNREADABLE)  # an hour of an unnamed day
    hour, minute, second, fraction, half, zone = clock.groups()
    if half:
        if not 1 <= int(hour) <= 12:
            raise ValueError(UNREADABLE)
        hour = str(int(hour) % 12 + (12 if half in "Pp" else 0))
    return _at(start, hour, minute, second, fraction, zone)


def _at(start: int, hour: str, minute: str, second: str | None, fraction: str | None, zone: str | None) -> Stated:
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if hours > 23 or minutes > 59 or seconds > 60:  # 60 is a leap second
        raise ValueError(UNREADABLE)
    start += ((hours * 60 + minutes) * 60 + seconds) * SECOND
    place = "UTC" if zone == "Z" else _ZONES.get(zone, zone) if zone else ""
    if second is None:
        return start, MINUTE, place
    if fraction is None or not fraction.strip("0"):  # pandas writes .000000 behind whole seconds
        return start, SECOND, place
    digits = fraction[:6]
    return start + int(digits.ljust(6, "0")), 10 ** (6 - len(digits)), place


def _from_epoch(digits: str) -> Stated:
    scale = {10: 0, 13: 3, 16: 6, 19: 9}[len(digits)]
    us = int(digits) * 10**6 // 10**scale
    return us, SECOND if us % SECOND == 0 else MS if us % MS == 0 else 1, "UTC"


@lru_cache(maxsize=20_000)  # many times share a day
def _span(text: str, day_first: bool | None) -> tuple[int, int]:
    """Read a date without a clock: its first wall µs and its width, a day or a month."""
    if match := _YEAR_FIRST.fullmatch(text):
        return _day(date(int(match[1]), int(match[3]), int(match[4]))), DAY_US
    if match := _YEAR_MONTH.fullmatch(text):
        return _month(int(match[1]), int(match[2]))
    if match := _YEAR_LAST.fullmatch(text):
        return _ordered(int(match[1]), int(match[3]), _year(match[4]), day_first), DAY_US
    return _worded([word for word in _WORDS.findall(text) if word not in ("-", "/", ",", ".", "(", ")")])


def _ordered(first: int, second: int, year: int, day_first: bool | None) -> int:
    readings: set[int] = set()
    for day, month, allowed in ((first, second, day_first is not False), (second, first, day_first is not True)):
        if allowed and 1 <= month <= 12:
            readings.add(_day(date(year, month, day)))
    if len(readings) != 1:
        raise ValueError(EITHER_ORDER if readings else UNREADABLE)
    return readings.pop()


def _worded(words: list[str]) -> tuple[int, int]:
    """Read "Fri 17 July 2020", "July 17, 2020", "18-Jul-20", "Jul-18" (a month) from their words and numbers."""
    words = [word for word in words if not (_WEEKDAY.fullmatch(word) or word.lower() in _FILLERS)]
    names = [at for at, word in enumerate(words) if word.lower() in _MONTH_WORDS]
    numbers = [word for word in words if word.isdigit()]
    if len(names) != 1 or len(numbers) + 1 != len(words):
        raise ValueError(UNREADABLE)
    month = _MONTH_WORDS[words[names[0]].lower()]
    if len(numbers) == 1 and names[0] == 0 and len(numbers[0]) in (2, 4):
        return _month(_year(numbers[0]), month)
    if len(numbers) != 2:
        raise ValueError(UNREADABLE)
    day, year = (numbers[1], numbers[0]) if len(numbers[0]) == 4 else (numbers[0], numbers[1])
    return _day(date(_year(year), month, int(day))), DAY_US


def _year(digits: str) -> int:
    if len(digits) not in (2, 4):
        raise ValueError(UNREADABLE)
    return int(digits) if len(digits) == 4 else int(digits) + (1900 if int(digits) > 68 else 2000)  # as POSIX does


def _month(year: int, month: int) -> tuple[int, int]:
    start = _day(date(year, month, 1))
    return start, _day(date(year + month // 12, month % 12 + 1, 1)) - start


def _day(day: date) -> int:
    return (day.toordinal() - _EPOCH_DAY) * DAY_US
