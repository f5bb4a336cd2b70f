"""Which sessions a run reads and trades, from what the store holds; the errors of a run that cannot be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice

from trader.clock import Calendar
from trader.config import Config
from trader.errors import NoData
from trader.store import MarketStore
from trader.walkforward import needed
from trader.window import Window


@dataclass(frozen=True, slots=True)
class Span:
    """Which sessions to read (from ``pump``, history included) and to trade (first … last)."""

    pump: date
    first: date
    last: date


def find_span(
    store: MarketStore,
    calendar: Calendar,
    config: Config,
    news: str,
    first: date,
    last: date,
    lookback: int = 0,
    bars_known: Mapping[date, datetime | None] | None = None,
) -> Span:
    """Find the sessions to read and to trade; raise NoData where the store has no bars or headlines for them.

    news: the set's name in the store.   lookback: sessions that the model reads, where more than the config's.
    bars_known: of an account, see ``trader.scheduler``; its last session is traded though it has no bar.
    The first session traded, and the last but for an account, has a bar that was known when it was decided.
    """
    symbol = config.run.market
    symbols, names = store.symbols(), store.names()
    if symbol not in symbols:
        raise no_such_market(symbol, symbols)
    if news not in names:
        known = ", ".join(sorted({*names, "wire"}))
        do = "import it: python -m trader news import FILE --name NAME"
        raise NoData("no such news", got=news, expected=f"one of {known}", do=do)
    held = symbols[symbol]
    assert held.first is not None and held.last is not None, "a symbol is listed for the bars it has"
    outside = first.year < held.first.year or last.year > held.last.year
    if outside or last < held.first or first > held.last:
        raise NoData(
            f"no bars of {symbol} for some of these days",
            got=f"--from {first} --to {last}",
            expected=f"days within {held.first}..{held.last}",
            do="choose other days or import more prices",
        )
    last = min(last, held.last)
    sessions = sessions_in_time(store, calendar, symbol, held.first, last, bars_known or {})
    start = bisect_left(sessions, first)
    if start == len(sessions):
        raise NoData(f"no bars of {symbol} in these days", got=f"{first}..{last}", do="choose other days")
    view = store.as_of(calendar.decide_at(sessions[-1]))
    if not view.news_count(news, calendar.cutoff(sessions[max(0, start - 1)]), calendar.cutoff(sessions[-1])):
        raise NoData(
            f"the news set {news} has no headline in these days",
            got=f"{sessions[start]}..{sessions[-1]}",
            do="choose other days or another --news; `python -m trader news list` shows the spans",
        )
    end = sessions[-1] if bars_known is None else last
    return Span(pump_of(config, sessions, start, lookback), sessions[start], end)


def no_such_market(symbol: str, known: Iterable[str]) -> NoData:
    """Return the error of a market that is neither in the store nor built in."""
    expected = ", ".join(sorted({*known, "sp500", "nasdaq"}))
    do = "import it: python -m trader prices import FILE --symbol NAME"
    return NoData("no such market", got=symbol, expected=f"one of {expected}", do=do)


def newest_in_time(
    store: MarketStore, calendar: Calendar, symbol: str, first: date, session: date, most: int
) -> list[date]:
    """Return the last ``most`` sessions of first … session whose bar was known when they were decided, oldest first.

    Raises NoData where there is none.
    """
    bars = store.as_of(calendar.decide_at(session)).bars(symbol, first, session)
    newest_first = (bar.session for bar in reversed(bars))
    timely = (day for day in newest_first if store.as_of(calendar.decide_at(day)).bar(symbol, day) is not None)
    if not (found := list(islice(timely, most))):
        raise NoData(f"the store has no bar of {symbol} for this session", where=session)
    return found[::-1]


def history_of(
    store: MarketStore,
    calendar: Calendar,
    config: Config,
    session: date,
    lookback: int,
    bars_known: Mapping[date, datetime | None],
    symbol: str = "",
) -> date:
    """Return the session to begin reading at for a decision on ``session``; the same one where there is no history.

    symbol: whose bars, by default those of the config's market.
    """
    symbol = symbol or config.run.market
    held = store.symbols().get(symbol)
    if held is None or held.first is None or held.first >= session:
        return session
    before = calendar.session(calendar.index(session) - 1)
    sessions = sessions_in_time(store, calendar, symbol, held.first, before, bars_known)
    return pump_of(config, sessions, len(sessions), lookback) if sessions else session


def sessions_in_time(
    store: MarketStore,
    calendar: Calendar,
    symbol: str,
    first: date,
    last: date,
    bars_known: Mapping[date, datetime | None],
) -> list[date]:
    """Return the sessions whose bar was known when they were decided; the others do not count as history.

    bars_known: of an account, see ``trader.scheduler``; an empty one for anything else.
    """
    within = calendar.sessions(first, last) if first <= last else []
    if not within:
        return []
    first_known = store.as_of(calendar.decide_at(within[-1])).first_known(symbol, first, last)

    def known(day: date, at: datetime) -> bool:
        closed = bars_known.get(day, at)
        return closed is not None and closed <= calendar.decide_at(day)

    return [day for day, at in first_known.items() if known(day, at)]


def pump_of(config: Config, sessions: Sequence[date], start: int, lookback: int) -> date:
    """Return the first session to read, for decisions from ``sessions[start]`` on."""
    spec = config.walkforward
    reads = Window.warm_up + max(lookback, config.run.lookback)
    before = needed(spec, config.retrain.kept_back) + spec.step + reads
    return sessions[0] if spec.mode == "expanding" else sessions[max(0, start - before)]


def least_history(config: Config, lookback: int = 0) -> int:
    """Return how many sessions must be held for a first fold, those included that warm up its first decision."""
    kept = config.retrain.kept_back
    return needed(config.walkforward, kept) + Window.warm_up + max(lookback, config.run.lookback) - 1


def too_little(window: Window, config: Config) -> NoData:
    """Return the error of a run whose sessions do not fill a first fold."""
    return NoData(
        "too little history to train a first model",
        where=config.run.market,
        got=f"{len(window)} sessions",
        expected=f"at least {least_history(config) + 1}, and a session to trade",
        do="take a longer span, or lower [walkforward] train and validation",
    )
