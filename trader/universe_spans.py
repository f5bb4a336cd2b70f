"""Which sessions a run of many symbols reads and trades, and from when each symbol has enough history to learn from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
import difflib

from trader.clock import Calendar
from trader.config import Config
from trader.errors import NoData
from trader.spans import Span, least_history, pump_of, sessions_in_time
from trader.store import MarketStore
from trader.universe import Universe, some
from trader.universe_events import Moments
from trader.universe_news import headlines_of


@dataclass(frozen=True, slots=True)
class UniverseSpan:
    """Which sessions to read and to trade, and how far back each symbol reaches.

    enough_from: by symbol, the first session by whose close it has as many bars as a fold of its own takes; None where
        it has not by the last session traded. Until then it is left out of folds, which is no error.
    """

    span: Span
    enough_from: Mapping[str, date | None]


def universe_span(
    store: MarketStore,
    calendar: Calendar,
    config: Config,
    universe: Universe,
    first: date,
    last: date,
    lookback: int = 0,
    bars_known: Mapping[str, Moments] | None = None,
) -> UniverseSpan:
    """Find the sessions to read and to trade; raise NoData where the store has no bars or headlines for them.

    universe: each member with the name that its news set has in the store.
    lookback, bars_known: as ``trader.spans.find_span`` has them, the latter by symbol.
    The first session traded, and the last but for an account, has a bar of some symbol that was known when it was
    decided. Reading begins where the earliest symbol's own run would begin.
    """
    check_store(store, universe)
    symbols = store.symbols()
    held = [symbols[name] for name in dict.fromkeys(member.prices for member in universe)]
    firsts = [span.first for span in held if span.first is not None]
    lasts = [span.last for span in held if span.last is not None]
    beyond = bars_known is None and last.year > max(lasts).year  # an account closes sessions without a bar, too
    if first.year < min(firsts).year or beyond or last < min(firsts) or first > max(lasts):
        raise NoData(
            f"no bars of {universe.name} for some of these days",
            got=f"--from {first} --to {last}",
            expected=f"days within {min(firsts)}..{max(lasts)}",
            do="choose other days or import more prices",
        )
    if bars_known is None:
        last = min(last, max(lasts))
    known = bars_known or {}
    sessions = {
        member.symbol: sessions_in_time(store, calendar, member.prices, min(firsts), last, known.get(member.symbol, {}))
        for member in universe
    }
    traded = sorted({day for days in sessions.values() for day in days if day >= first})
    if not traded:
        raise NoData(f"no bars of {universe.name} in these days", got=f"{first}..{last}", do="choose other days")
    if not any(_news(store, calendar, universe, traded)):
        raise NoData(
            f"not one headline for a symbol of {universe.name} in these days",
            got=f"{traded[0]}..{traded[-1]}",
            do=f"choose other days, another --news, or its tickers; `python -m trader universe {universe.name}.toml` "
            "shows what each symbol reads",
        )
    pump = min(_pump(config, days, traded[0], lookback) for days in sessions.values() if days)
    end = traded[-1] if bars_known is None else last
    least = least_history(config, lookback)
    return UniverseSpan(
        Span(pump, traded[0], end), {symbol: _enough(days, pump, least) for symbol, days in sessions.items()}
    )


def _pump(config: Config, sessions: Sequence[date], first: date, lookback: int) -> date:
    """Return where a symbol's own run would begin to read; with no session to trade, where its history ends."""
    return pump_of(config, sessions, min(bisect_left(sessions, first), len(sessions) - 1), lookback)


def _enough(sessions: Sequence[date], pump: date, least: int) -> date | None:
    """Return the session by whose close ``least`` of those read are held."""
    at = bisect_left(sessions, pump) + least - 1
    return sessions[at] if at < len(sessions) else None


def _news(store: MarketStore, calendar: Calendar, universe: Universe, sessions: Sequence[date]) -> Iterator[int]:
    """Yield how many headlines each symbol has on each session; asked until one has some."""
    headlines = headlines_of(universe).values()
    for session in calendar.sessions(sessions[0], sessions[-1]):
        view, number = store.as_of(calendar.decide_at(session)), calendar.index(session)
        after = calendar.cutoff(calendar.session(max(number - 1, 0)))
        yield from (reader.count(view, after, calendar.cutoff(session)) for reader in headlines)


def check_store(store: MarketStore, universe: Universe) -> None:
    """Raise NoData where the store lacks prices or a news set of a member, naming the first few and how many."""
    symbols, sets = store.symbols(), store.names()
    without = [member.prices for member in universe if member.prices not in symbols]
    if without:
        near = difflib.get_close_matches(without[0], symbols, 1, cutoff=0.6)
        raise NoData(
            f"no prices in the store for {len(without)} of {len(universe)} symbols",
            where=universe.name,
            got=some(without),
            expected=f"such as {near[0]}" if near else None,
            do="import them: python -m trader prices import FILE…; or take them out",
        )
    unknown = list(dict.fromkeys(member.news for member in universe if member.news not in sets))
    if unknown:
        raise NoData(
            "no such news",
            where=universe.name,
            got=some(unknown),
            expected=f"one of {', '.join(sorted({*sets, 'wire'}))}",
            do="import it: python -m trader news import FILE --name NAME",
        )
