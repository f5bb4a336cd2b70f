"""Which sessions a run reads and trades, from what the store holds; the errors of a run that cannot be."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import date

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
    store: MarketStore, calendar: Calendar, config: Config, news: str, first: date, last: date, lookback: int = 0
) -> Span:
    """Find the sessions to read and to trade; raise NoData where the store has no bars or headlines for them.

    news: the set's name in the store.   lookback: sessions that the model reads, where more than the config's.
    The first and the last session traded have a bar that was known when they were decided.
    """
    symbol, spec = config.run.market, config.walkforward
    symbols, names = store.symbols(), store.names()
    if symbol not in symbols:
        known = ", ".join(sorted({*symbols, "sp500", "nasdaq"}))
        do = "import it: python -m trader prices import FILE --symbol NAME"
        raise NoData("no such market", got=symbol, expected=f"one of {known}", do=do)
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
    bars = store.as_of(calendar.decide_at(held.last)).bars(symbol, held.first, last)
    # A bar known too late makes no row of the window: only those in time count as history.
    days = [bar.session for bar in bars]
    sessions = [day for day in days if store.as_of(calendar.decide_at(day)).bar(symbol, day) is not None]
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
    reads = Window.warm_up + max(lookback, config.run.lookback)
    before = needed(spec, config.retrain.kept_back) + spec.step + reads
    pump = sessions[0] if spec.mode == "expanding" else sessions[max(0, start - before)]
    return Span(pump, sessions[start], sessions[-1])


def too_little(window: Window, config: Config) -> NoData:
    """Return the error of a run whose sessions do not fill a first fold."""
    least = needed(config.walkforward, config.retrain.kept_back) + Window.warm_up + config.run.lookback
    return NoData(
        "too little history to train a first model",
        where=config.run.market,
        got=f"{len(window)} sessions",
        expected=f"at least {least}, and a session to trade",
        do="take a longer span, or lower [walkforward] train and validation",
    )
