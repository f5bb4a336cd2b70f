"""Turn a news file into batches of headlines for the market store: CSV, TSV, JSON Lines and Parquet.

    file → news_tables (pieces of raw columns) → times, news_text (meaning) → NewsRows → trader.store

Which column is what comes from a preset, from the user, or from the usual names. Every row of the file ends
either in ``news`` or in ``rejected`` with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import compress
from pathlib import Path
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeds.news_tables import Piece, Table, open_table
from feeds.news_text import as_strings, clean_headlines, clean_scores, clean_symbols
from feeds.presets import OURS, PRESETS, Preset
from feeds.times import MINUTE, NO_DATE, OUTSIDE, TimeRule, outside, read_times, require_zone
from trader.errors import BadFile, ConfigError
from trader.events import NewsBatch, NewsRows, Rejected

EMPTY_ROW, EMPTY_HEADLINE = "an empty row", "an empty headline"
SKEWED = "sentiment that is not three numbers ≥ 0 with sum 1"
_SCORES = ("negative", "neutral", "positive")
# The usual names, the surest first; case and everything but letters and digits aside.
_USUAL: Mapping[str, tuple[str, ...]] = {
    "published_at": (
        "publishedat", "published", "publishedutc", "publishdate", "publisheddate", "publicationdate", "publishtime",
        "pubdate", "datetime", "timestamp", "createdat", "created", "sourcetimestamp", "date", "dates", "time", "day",
    ),
    "headline": ("headline", "headlines", "title", "articletitle", "newstitle", "text", "tweet", "news", "content"),
    "negative": ("negative", "sentimentnegative", "neg", "probnegative", "pnegative"),
    "neutral": ("neutral", "sentimentneutral", "neu", "probneutral", "pneutral"),
    "positive": ("positive", "sentimentpositive", "pos", "probpositive", "ppositive"),
    "symbols": ("symbols", "symbol", "tickers", "ticker", "stock", "stocks", "stocksymbol", "assetcodes"),
    "item_id": ("itemid", "id", "sourceid", "newsid", "articleid", "guid", "url", "link"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How one file is read: our name → the file's columns, and what its cells mean."""

    columns: Mapping[str, tuple[str, ...]]
    joined: bool  # several columns of published_at are one text, rather than several times of which the latest counts
    times: TimeRule
    date_in: str
    printed_bytes: bool
    names: tuple[str, ...]
    delay_us: int
    where: str


def read_news(
    path: Path,
    *,
    preset: str | None = None,
    columns: Mapping[str, str] | None = None,
    zone: str | None = None,
    delay_minutes: int = 0,
    batch_rows: int = 50_000,
) -> Iterator[NewsRows]:
    """Read a news file in pieces of at most ``batch_rows`` file rows, in the file's order.

    preset: a key of ``feeds.presets.PRESETS``; without one, and without columns, that of ``detect``.
    columns: our name (published_at, headline, negative, neutral, positive, symbols, item_id) → the file's;
    "Date+Time" joins two. Names left out are the preset's or the usual ones.
    zone: of times that state none; it goes before the preset's.  delay_minutes: from publication until we know.
    known_at is published_at plus the delay; published_at is the END of what the file states (feeds.times).
    Raises, before the first row is read: BadFile (missing, unreadable, columns not found), ConfigError (unknown
    preset, unknown name in columns, negative delay), TimeError (unknown zone); while reading: TimeError for a
    time without a zone where none was given, BadFile where the file is damaged.
    """
    if delay_minutes < 0:
        raise ConfigError("news cannot be known before it is published", got=f"a delay of {delay_minutes} minutes")
    if batch_rows < 1:
        raise ConfigError("batch_rows must be at least 1", got=batch_rows)
    known = None if preset is None else _preset(preset)
    table = open_table(path)
    if known is None and not columns:
        found = _detect(table)
        known = PRESETS[found] if found else None
    plan = _plan(table, known, columns or {}, zone, delay_minutes, path)
    wanted = sorted({name for group in plan.columns.values() for name in group} | ({plan.date_in} - {""}))
    return (_news_rows(piece, plan) for piece in table.pieces(wanted, plan.names, batch_rows))


def detect(path: Path) -> str | None:
    """Return the name of the preset that a file's columns are exactly those of, or None; raise BadFile."""
    return _detect(open_table(path))


def _detect(table: Table) -> str | None:
    return next((name for name, preset in PRESETS.items() if preset.fits(table.header)), None)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        near = get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.4)
        raise ConfigError(
            "no such preset", got=name, expected=", ".join(PRESETS), do=f"did you mean {near[0]}?" if near else None
        )
    return PRESETS[name]


# Which column is what


def _plan(
    table: Table, preset: Preset | None, columns: Mapping[str, str], zone: str | None, delay_minutes: int, path: Path
) -> _Plan:
    times = preset.times if preset else TimeRule(zero_seconds=table.typed)
    names = preset.names if preset else ()
    header = names or table.header
    chosen = _chosen(header, columns, path)
    mapped = _of_preset(preset, header) if preset else {}
    found = (mapped or _usual(header, path, asked=frozenset(chosen))) | chosen
    missing = [name for name in ("published_at", "headline") if name not in found]
    if missing:
        raise _no_column(missing[0], header, path)
    return _Plan(
        columns=found,
        joined="published_at" in chosen,
        times=replace(times, zone=require_zone(zone)) if zone else times,
        date_in=preset.date_in if preset and preset.date_in in header else "",
        printed_bytes=preset is not None and preset.printed_bytes,
        names=names,
        delay_us=delay_minutes * MINUTE,
        where=path.name,
    )


def _no_column(name: str, header: tuple[str, ...], path: Path) -> BadFile:
    return BadFile(
        f"no column for {name}",
        where=path,
        got=f"columns {', '.join(header)}"[:300],
        do=f"state it, for example --columns published_at={header[0]},headline={header[-1]}",
    )


def _chosen(header: tuple[str, ...], columns: Mapping[str, str], path: Path) -> dict[str, tuple[str, ...]]:
    chosen: dict[str, tuple[str, ...]] = {}
    for ours, theirs in columns.items():
        if ours not in OURS:
            near = get_close_matches(ours, OURS, n=1)
            hint = f"did you mean {near[0]}?" if near else None
            raise ConfigError("no such name in columns", got=ours, expected=", ".join(OURS), do=hint)
        whole = ours != "published_at" or theirs in header
        parts = (theirs,) if whole else tuple(theirs.split("+"))
        absent = [part for part in parts if part not in header]
        if absent:
            raise BadFile(f"no column {absent[0]!r} for {ours}", where=path, got=f"columns {', '.join(header)}"[:300])
        chosen[ours] = parts
    if 0 < len(chosen.keys() & set(_SCORES)) < 3:
        raise ConfigError("sentiment needs all of negative, neutral and positive", got=", ".join(chosen))
    return chosen


def _of_preset(preset: Preset, header: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the preset's columns that the file has; a copy of a public set may lack some."""
    groups = {ours: (names,) if isinstance(names, str) else names for ours, names in preset.columns.items()}
    present = {ours: tuple(name for name in names if name in header) for ours, names in groups.items()}
    return _whole_scores({ours: names for ours, names in present.items() if names})


def _usual(header: tuple[str, ...], path: Path, asked: frozenset[str]) -> dict[str, tuple[str, ...]]:
    plain: dict[str, str] = {}
    for name in header:
        plain.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    found = {ours: next((plain[name] for name in usual if name in plain), None) for ours, usual in _USUAL.items()}
    date, time = plain.get("date"), plain.get("time")
    if date and time and found["published_at"] == date and "published_at" not in asked:
        raise BadFile(
            "both a date and a time column",
            where=path,
            do=f"state which is meant: --columns published_at={date}+{time} joins them",
        )
    return _whole_scores({ours: (name,) for ours, name in found.items() if name})


def _whole_scores(columns: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    whole = all(name in columns for name in _SCORES)
    return columns if whole else {ours: names for ours, names in columns.items() if ours not in _SCORES}


# From raw columns to headlines


def _news_rows(piece: Piece, plan: _Plan) -> NewsRows:
    """Turn one piece into its usable headlines and the rows refused, both in the file's order."""
    copies = len(plan.columns["headline"])  # 25 where a row is a day of the Dow file
    headlines = clean_headlines(_interleaved(piece, plan.columns["headline"]), printed_bytes=plan.printed_bytes)
    texts: list[str] = headlines.to_pylist()
    published, undated = _published(piece, plan)
    published = np.repeat(published, copies)
    scores, skewed = _scores(piece, plan)
    scores, skewed = np.repeat(scores, copies, axis=0), np.repeat(skewed, copies)
    known = published + plan.delay_us
    undated = {at * copies + one: why for at, why in undated.items() for one in range(copies)}
    reasons = _reasons(texts, undated, skewed, outside(known))
    good = np.ones(len(texts), dtype=np.bool_)
    good[list(reasons)] = False
    rows = np.repeat(piece.row, copies)
    news = NewsBatch(
        published_at=published[good],
        known_at=known[good],
        headline=_kept(texts, good),
        symbols=_kept(_symbols(piece, plan, copies), good),
        sentiment=scores[good],
        item_id=_kept(_item_ids(piece, plan, copies), good),
    )
    refused = [Rejected(row=int(rows[at]), reason=why, text=piece.text(at // copies)) for at, why in reasons.items()]
    return NewsRows(news=news, row=rows[good], rejected=sorted([*piece.rejected, *refused], key=lambda one: one.row))


def _reasons(
    texts: list[str], undated: Mapping[int, str], skewed: NDArray[np.bool_], late: NDArray[np.bool_]
) -> dict[int, str]:
    """Say for each headline that cannot be used why; the first reason found is the one given."""
    reasons: dict[int, str] = {}
    if "" in texts:
        for at in (at for at, text in enumerate(texts) if not text):
            reasons[at] = EMPTY_ROW if undated.get(at) == NO_DATE else EMPTY_HEADLINE
    for at, why in undated.items():
        reasons.setdefault(at, why)
    for marks, why in ((skewed, SKEWED), (late, OUTSIDE)):
        for at in np.flatnonzero(marks).tolist():
            reasons.setdefault(at, why)
    return reasons


def _interleaved(piece: Piece, names: tuple[str, ...]) -> Any:
    """Return row 1's headlines, then row 2's, …: as many a row as there are columns of them."""
    import pyarrow as pa

    columns = [as_strings(piece.columns[name]) for name in names]
    if len(columns) == 1:
        return columns[0]
    order = np.arange(len(names) * len(piece.row)).reshape(len(names), -1).T.ravel()
    return pa.concat_arrays(columns).take(pa.array(order))


def _published(piece: Piece, plan: _Plan) -> tuple[NDArray[np.int64], dict[int, str]]:
    cells = [piece.columns[name] for name in plan.columns["published_at"]]
    if plan.joined and len(cells) > 1:
        cells = [_joined(cells, " ")]
    ends, bad = read_times(cells[0], plan.times, plan.where)
    for others in cells[1:]:
        more, unread = read_times(others, plan.times, plan.where)
        ends = np.maximum(ends, more)
        bad |= {at: why for at, why in unread.items() if why != NO_DATE and at not in bad}
    if plan.date_in and bad:
        _redate(ends, bad, piece, plan)
    return ends, bad


_DATE_IN_ADDRESS = re.compile(r"(?<!\d)((?:19|20)\d\d)[-/](\d\d)[-/](\d\d)(?!\d)")


def _redate(ends: NDArray[np.int64], bad: dict[int, str], piece: Piece, plan: _Plan) -> None:
    """Date rows by their address where the date column is damaged (0201-04-27 for 2015-04-27), in place.

    Where the damaged date still has its day and month, and they are later in the year than the address', they count.
    """
    import pyarrow as pa

    damaged = list(bad)
    stated = as_strings(piece.columns[plan.columns["published_at"][0]])
    addresses = as_strings(piece.columns[plan.date_in])
    dates = []
    for at in damaged:
        found = _DATE_IN_ADDRESS.search(addresses[at].as_py() or "")
        rest = re.fullmatch(r"\d{4}(-\d\d-\d\d)", (stated[at].as_py() or "").strip())
        dates.append(max("-".join(found.groups()), found[1] + rest[1] if rest else "") if found else "")
    mended, still = read_times(pa.array(dates, type=pa.string()), plan.times, plan.where)
    for place, at in enumerate(damaged):
        if place not in still:
            ends[at] = mended[place]
            del bad[at]


def _scores(piece: Piece, plan: _Plan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    count = len(piece.row)
    if _SCORES[0] not in plan.columns:
        return np.full((count, 3), np.nan, dtype=np.float32), np.zeros(count, dtype=np.bool_)
    return clean_scores([piece.columns[plan.columns[name][0]] for name in _SCORES])


def _symbols(piece: Piece, plan: _Plan, copies: int) -> list[str]:
    if "symbols" not in plan.columns:
        return [""] * (len(piece.row) * copies)
    return _repeated(clean_symbols(piece.columns[plan.columns["symbols"][0]]), copies)


def _item_ids(piece: Piece, plan: _Plan, copies: int) -> list[str]:
    if "item_id" not in plan.columns:
        return [""] * (len(piece.row) * copies)
    ids: list[str] = _joined([piece.columns[name] for name in plan.columns["item_id"]], "/").to_pylist()
    return _repeated(ids, copies)


def _joined(cells: list[Any], between: str) -> Any:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*(pc.fill_null(as_strings(one), "") for one in cells), between)


def _repeated(cells: list[str], copies: int) -> list[str]:
    return cells if copies == 1 else [cell for cell in cells for _ in range(copies)]


def _kept(cells: list[str], good: NDArray[np.bool_]) -> list[str]:
    return cells if good.all() else list(compress(cells, good.tolist()))
