"""Cells in a file, to carry an experiment from one machine to another: made on a GPU here, shown and finished there.

One line of JSON a cell, gzipped: its name, what it is, and what it said on each test day. A cell's name is the hash of
its data, settings and code, so on a machine with other headlines, prices or code it is simply never asked for. The
returns themselves are not in the file: they are prices' owners', and whoever takes cells in has the prices to make them
from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import date
import gzip
from itertools import pairwise
import json
from pathlib import Path
from typing import Any
import zlib

from trader.cells import CellFacts, CellResult, Cells
from trader.clock import Calendar
from trader.errors import BadFile, NoData
from trader.parts import stock_bars
from trader.store import MarketStore

FORM = "news-trader cells 1"
_FACTS = tuple(one.name for one in fields(CellFacts))
_RESULT = ("validation_loss", "validation_accuracy", "epochs", "best_epoch", "seconds")


def export(cells: Cells, experiment: int | str, path: Path) -> int:
    """Write the cells of an experiment (a number, or latest) into a file; return how many. Raises BadFile, NoData."""
    found = cells.whole(cells.experiment(experiment).id)
    try:
        # No name and no time in its head: the same cells are the same bytes.
        with path.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
            file.write(f"{json.dumps({'form': FORM, 'cells': len(found)})}\n".encode())
            for cell in found:
                said = cells.days(cell["cell"])
                if said and "symbol" in said[0]:
                    raise NoData("cells of a universe cannot be carried yet", where=cell["market"])
                days = [[day["session"], day["p_up"], day["expected_return"]] for day in said]
                line = {name: cell[name] for name in (*_FACTS, *_RESULT)} | {"days": days}
                file.write(f"{json.dumps(line, separators=(',', ':'))}\n".encode())
    except OSError as error:
        raise BadFile("cannot be written", where=path, got=error.strerror, do="choose another file") from error
    return len(found)


def take_in(cells: Cells, path: Path, store: MarketStore) -> tuple[int, int]:
    """Store the cells of a file; return how many the file holds and how many were new.

    The test days' returns are made from the store's prices; a built-in market's are put there. Raises BadFile for a
    file that is not one, damaged or cut off, NoData for a market or a session whose prices are not there; the cells
    before stay.
    """
    known = cells.has(None)
    returns: dict[tuple[str, str], dict[str, float]] = {}
    held = new = 0
    for row, line in enumerate(_lines(path), start=2):
        try:
            facts = CellFacts(**{name: line[name] for name in _FACTS})
            result = {name: line[name] for name in _RESULT}
            days: Sequence[tuple[str, float, float | None]] = [(str(s), float(p), e) for s, p, e in line["days"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile("a line that is no cell", where=f"{path} line {row}", got=f"{error!r}") from error
        held += 1
        if facts.cell in known:
            continue
        key = (facts.market, facts.target)
        if days and key not in returns:
            returns[key] = _returns(store, *key)
        rows = [(s, p, e, int(p > 0.5) - int(p < 0.5), _return(returns[key], facts, s)) for s, p, e in days]
        cells.write(facts, CellResult(days=rows, **result))
        new += 1
    return held, new


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head = json.loads(next(file, "null"))
            if not isinstance(head, dict) or head.get("form") != FORM:
                raise BadFile("not a file of cells", where=path, do="write one with `experiment cells export`")
            count = 0
            for line in file:
                yield json.loads(line)
                count += 1
            if count != head["cells"]:
                raise BadFile("the file is cut off", where=path, got=f"{count} cells", expected=head["cells"])
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, json.JSONDecodeError) as error:
        raise BadFile("cannot be read as a file of cells", where=path, got=str(error)) from error


def _returns(store: MarketStore, market: str, target: str) -> dict[str, float]:
    """Return each session's return to the next one, or with target same_day its own, as a window makes them."""
    stock_bars(store, market)
    held = store.symbols().get(market)
    if held is None or held.first is None or held.last is None:
        do = "import its prices first: python -m trader prices import FILE --symbol NAME"
        raise NoData("no bars of a market that the cells are of", got=market, do=do)
    bars = store.as_of(Calendar().decide_at(held.last)).bars(market, held.first, held.last)
    moves = [after.close / before.close - 1 for before, after in pairwise(bars)]
    days: Sequence[date] = [bar.session for bar in (bars[:-1] if target == "next_day" else bars[1:])]
    return {str(day): move for day, move in zip(days, moves, strict=True)}


def _return(returns: Mapping[str, float], facts: CellFacts, session: str) -> float:
    if session not in returns:
        raise NoData("no price to tell a test day's return by", where=f"{facts.market} {session}")
    return returns[session]
