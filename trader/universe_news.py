"""Split a news set by ticker: one reading of the store for a session, a batch for each symbol of a universe.

It stands between the store and ``trader.scheduler``, which asks for one symbol's headlines at a time. Nothing is kept
from one view of the store to the next, so no symbol sees more than the view that it is asked through shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trader.errors import NoData
from trader.events import NewsBatch
from trader.scheduler import Headlines
from trader.store import View
from trader.universe import EVERY, Member, Universe

NOTHING = NewsBatch.of([])


class TickerNews:
    """One news set, split for the members that read it.

    A headline goes to each member one of whose tickers it carries (once, if it carries two of them), to those that
    read every headline, and, where it carries none, to those that read market news. The set's order is kept.
    """

    def __init__(self, news: str, members: Sequence[Member]) -> None:
        self._news, self._members = news, members
        self._readers: dict[str, list[int]] = {}  # ticker -> which members read it
        for at, member in enumerate(members):
            for ticker in member.tickers:
                self._readers.setdefault(ticker, []).append(at)
        self._of_cell: dict[str, tuple[int, ...]] = {"": self._who("")}  # a headline's tickers -> which members
        self._view: View | None = None
        self._read: dict[tuple[datetime, datetime], list[NewsBatch]] = {}

    def split(self, view: View, after: datetime, until: datetime) -> Sequence[NewsBatch]:
        """Return each member's headlines with after < known_at ≤ until; the same view and span are read once."""
        if view is not self._view:  # the very object: a view of the same instant may show what came in since
            self._view, self._read = view, {}
        if (after, until) not in self._read:
            self._read[after, until] = self._split(view.news(self._news, after, until))
        return self._read[after, until]

    def _split(self, whole: NewsBatch) -> list[NewsBatch]:
        rows: list[list[int]] = [[] for _ in self._members]
        for row, cell in enumerate(whole.symbols):
            who = self._of_cell.get(cell)
            if who is None:
                who = self._of_cell[cell] = self._who(cell)
            for at in who:
                rows[at].append(row)
        return [self._part(whole, chosen) for chosen in rows]

    def _who(self, cell: str) -> tuple[int, ...]:
        """Return which members read a headline that carries these space-separated tickers, in their order."""
        tickers = cell.split()
        chosen = {at for ticker in (*tickers, EVERY) for at in self._readers.get(ticker, ())}
        if not tickers:
            chosen |= {at for at, member in enumerate(self._members) if member.market_news}
        return tuple(sorted(chosen))

    @staticmethod
    def _part(whole: NewsBatch, rows: list[int]) -> NewsBatch:
        if len(rows) == len(whole):
            return whole
        return whole.take(rows) if rows else NOTHING


@dataclass(frozen=True, slots=True)
class MemberNews:
    """One member's part of a split news set, for its scheduler."""

    name: str
    split: TickerNews
    at: int

    def read(self, view: View, after: datetime, until: datetime) -> NewsBatch:
        """Return the member's headlines of a span."""
        return self.split.split(view, after, until)[self.at]

    def count(self, view: View, after: datetime, until: datetime) -> int:
        """Return how many there are."""
        return len(self.read(view, after, until))


def headlines_of(universe: Universe) -> dict[str, Headlines]:
    """Return what reads each symbol's headlines; members of one news set share its reading.

    Raises NoData for a member without a news set (``trader.parts.stock_universe`` names the run's).
    """
    groups: dict[str, list[Member]] = {}
    for member in universe:
        if not member.news:
            raise NoData("a symbol without a news set", where=f"{universe.name} {member.symbol}")
        groups.setdefault(member.news, []).append(member)
    found: dict[str, Headlines] = {}
    for news, members in groups.items():
        shared = TickerNews(news, members)
        for at, member in enumerate(members):
            about = "" if EVERY in member.tickers else f" for {member.symbol}"
            found[member.symbol] = MemberNews(f"{news}{about}", shared, at)
    return found
