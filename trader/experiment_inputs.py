"""What an experiment's methods read: one market's sessions with their headlines, through one set of readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from trader.config import Config
from trader.errors import NoData
from trader.events import BarClosed, NewsArrived
from trader.methods import Reading
from trader.outcome import Home
from trader.parts import Readers, stock, window_of
from trader.progress import Stages
from trader.scheduler import Scheduler
from trader.spans import find_span
from trader.store import MarketStore
from trader.window import Window

HISTORY = 120  # sessions before the first decision: trailing means of 60, a lookback of 20, the volume's 20


@dataclass(frozen=True, slots=True)
class Inputs:
    """One market through one reading: its window, what each day holds, and the decisions first … stop−1."""

    market: str
    window: Window
    texts_id: str
    digests: Sequence[str]
    first: int
    stop: int

    @property
    def spanned(self) -> tuple[date, date]:
        """The first and the last session decided."""
        return self.window.sessions[self.first], self.window.sessions[-1]

    @property
    def start(self) -> int:
        """The first position that every method can decide on: the longest trailing mean reaches back so far."""
        return max(self.first, min(HISTORY, self.stop) - 1)


def load(
    config: Config,
    home: Home,
    market: str,
    asked: tuple[str, date | None, date | None],
    reading: Reading,
    readers: Readers,
    stages: Stages,
) -> Inputs:
    """Send the sessions from HISTORY before the first one on through a window, and embed their headlines.

    asked: news set, first and last day; None takes what the store holds of both bars and headlines.
    """
    config = replace(config, run=replace(config.run, market=market, news=asked[0]))
    cap = config.experiment.headlines_a_day if reading.headlines_a_day < 0 else reading.headlines_a_day
    window = window_of(config, readers, headlines_a_day=cap, rescore=bool(reading.scorer))
    calendar = window.calendar
    with MarketStore.open(home.store) as store:
        news = stock(store, market, config.run.news)
        with store.snapshot(), stages(f"read {market}") as step:
            first, last = _span(store, news, market, asked[1], asked[2])
            span = find_span(store, calendar, config, news, first, last)
            pump = calendar.session(max(0, calendar.index(span.first) - HISTORY))
            scheduler = Scheduler(store, calendar, symbol=market, news=news, spec=config.walkforward)
            for event in scheduler.events(pump, span.last):
                if isinstance(event, NewsArrived | BarClosed):
                    window.update(event)
                step((event.session - pump).days + 1, (span.last - pump).days + 1, str(event.session))
    with stages(f"embed {market}") as step:
        window.resolve(lambda done, total: step(done, total, "texts"), lambda d, t: step(d, t, "sentiment scores"))
        digests = [window.fingerprint(at, at + 1) for at in range(len(window))]
    return Inputs(market, window, readers.texts_id, digests, window.position(span.first), len(window))


def _span(store: MarketStore, news: str, market: str, first: date | None, last: date | None) -> tuple[date, date]:
    """Return the days asked for; where none are, those that have both bars and headlines."""
    held, known = store.symbols().get(market), store.names().get(news)
    if held is None or known is None or held.first is None or known.first is None:
        return first or date(1990, 1, 1), last or date(2018, 12, 31)  # find_span says what is missing
    assert held.last is not None and known.last is not None
    return first or max(held.first, known.first.date()), last or min(held.last, known.last.date())


def too_short(market: str, spanned: tuple[date, date]) -> NoData:
    """Return the error of a market whose sessions fill neither a window nor a fold."""
    return NoData(
        "too few sessions for one window or one fold",
        where=market,
        got=f"{spanned[0]} to {spanned[1]}",
        expected="about 500",
        do="take a longer span, or lower [walkforward] train and validation",
    )
