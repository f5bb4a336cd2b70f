"""Tell what a decision read, as tables and as a CSV file: every headline by weight, and the pairs that mattered.

Upstream ``trader.explain``, and ``trader.why_fusion`` for how several modalities were fused. Beside it
``trader.pictures`` draws the headlines.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import io
import textwrap

import numpy as np
from rich.table import Table

from trader.errors import ConfigError
from trader.explain import Explained
from trader.report import DASH, WIDTH, decision_line, plain_table
from trader.why_fusion import fusion_parts

SHOWN = 20  # headlines, unless a number was asked for or words were sought

CSV_COLUMNS = ("session", "symbol", "rank", "weight", "scaled", "influence", "headline")


def parts(
    explained: Explained, *, search: str | None = None, pairs: int = 0, limit: int | None = None
) -> list[str | Table]:
    """Return what is printed, in order: lines of at most 100 columns, how it was fused, the headlines, the pairs.

    search: only headlines that hold these words (Explained.find); ranks and scaling stay those of the whole day.
    pairs: how many of the strongest pairs to show, those that touch what was found where words were sought.
    limit: at most so many headlines, 0 for all; None for all that were found, or the 20 of largest weight.
    Raises ConfigError for a negative number.
    """
    for name, number in (("--pairs", pairs), ("--limit", limit or 0)):
        if number < 0:
            raise ConfigError("a negative number", where=name, got=number, expected="0 or more")
    told = [*textwrap.wrap(decision_line(explained.signal), WIDTH), *below(explained)]
    if explained.weights is None:
        read = "this model does not weigh them" if explained.whole else "the ledger holds no weight of them"
        return [*told, f"{explained.signal.news_count:,} headlines; {read}."]
    if not explained.headlines:
        return [*told, "No headline that session."]
    found = explained.find(search or "")
    if not found:
        return [*told, f"None of the {len(explained.headlines):,} headlines has a word that begins with {search!r}."]
    most = (len(found) if search else SHOWN) if limit is None else limit or len(found)
    lines = textwrap.wrap(_counted(explained, search, len(found), min(most, len(found))), WIDTH)
    made: list[str | Table] = [*told, *lines, _headlines(explained, found[:most])]
    made += textwrap.wrap(_meaning(explained), WIDTH)
    if pairs and explained.pairs is None:
        made.append("This model does not say which headline looked at which.")
    elif pairs:
        made += _pairs(explained, pairs, found if search else None)
    return made


def below(explained: Explained) -> list[str | Table]:
    """Return what stands right below the decision: the notes, and how it was fused where the model fuses."""
    noted: list[str | Table] = [line for note in explained.notes for line in textwrap.wrap(note, WIDTH)]
    return noted + (fusion_parts(explained.fusion) if explained.fusion else [])


def as_csv(explained: Explained, search: str | None = None) -> str:
    """Return the day's headlines, or those found, as CSV, largest weight first; what is not known is empty."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(CSV_COLUMNS)
    rank = _ranks(explained)
    columns = (explained.weights, explained.scaled, explained.influence)
    for at in explained.find(search or ""):
        numbers = ("" if column is None else repr(float(column[at])) for column in columns)
        known = rank[at] if explained.weights is not None else ""
        rows.writerow([explained.session, explained.symbol, known, *numbers, explained.headlines[at]])
    return written.getvalue()


def _counted(explained: Explained, search: str | None, found: int, shown: int) -> str:
    day = (
        f"{explained.signal.news_count:,} headlines; the attention is spread as over "
        f"{explained.signal.effective_news:.1f} equal ones."
    )
    if search:
        day += f" Found with {search!r}: {found:,}."
    if shown < found:
        day += f" The {shown:,} of largest weight (--limit 0 shows all):"
    return day


def _ranks(explained: Explained) -> list[int]:
    ranks = np.empty(len(explained.headlines), dtype=int)
    ranks[explained.order] = np.arange(1, len(explained.headlines) + 1)
    return [int(rank) for rank in ranks]


def _headlines(explained: Explained, shown: Sequence[int]) -> Table:
    rank, scaled, influence = _ranks(explained), explained.scaled, explained.influence
    assert explained.weights is not None, "asked before"
    names = ["rank", "weight\n%", "scaled", *(["influence\n%"] if influence is not None else []), "headline"]
    rows = []
    for at in shown:
        row = [rank[at], f"{100 * explained.weights[at]:.3f}", DASH if scaled is None else f"{scaled[at]:.2f}"]
        if influence is not None:
            row.append(f"{100 * influence[at]:.3f}")
        rows.append([*row, explained.headlines[at]])
    return plain_table(names, rows, right=range(len(names) - 1))


def _meaning(explained: Explained) -> str:
    said = "weight: share of the day's attention"
    if explained.scaled is not None:
        said += "; scaled: the same from 0 to 1 within the day"
    if explained.influence is not None:
        said += "; influence: what the headline gives by itself and through headlines that looked at it"
    return said + "."


def _pairs(explained: Explained, count: int, about: Sequence[int] | None) -> list[str | Table]:
    found, rank = explained.strongest(count, about), _ranks(explained)
    if not found:
        return ["One headline makes no pair."]
    rows = [
        (
            f"{100 * pair.share:.3f}",
            rank[pair.of],
            explained.headlines[pair.of],
            rank[pair.by],
            explained.headlines[pair.by],
        )
        for pair in found
    ]
    said = f"Which made which matter: the share of the decision's attention that each of these {len(found)} got "
    table = plain_table(("share\n%", "rank", "headline", "rank", "through"), rows, right=(0, 1, 3))
    return [*textwrap.wrap(said + "through another that looked at it.", WIDTH), table]
