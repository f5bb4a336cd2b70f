"""Which sessions many symbols are read and traded on; what a universe lacks in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests import builders
from tests.builders import CALENDAR
from tests.test_universe_events import add_news, said, universe
from trader.clock import SimulatedClock
from trader.errors import NoData
from trader.spans import find_span
from trader.store import MarketStore
from trader.universe import EVERY, Member, Universe
from trader.universe_spans import UniverseSpan, check_store, universe_span
from trader.walkforward import fold_at, needed
from trader.window import Window

DAYS = builders.sessions(200)
CONFIG = builders.config()  # a fold takes 60 + 10 sessions and two purges of 3
WARM_UP = Window.warm_up + CONFIG.run.lookback - 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MarketStore]:
    with MarketStore.open(tmp_path / "market.db", clock=SimulatedClock(builders.NOW)) as opened:
        yield opened


def fill(store: MarketStore, **days: Sequence[date]) -> None:
    for seed, (symbol, own) in enumerate(days.items()):
        store.add_bars(builders.bars(own, seed, symbol=symbol), source="made here")
    add_news(store, said(*((day, 0, " ".join(days), f"headline of {day}") for day in DAYS[::5])))


def spanned(store: MarketStore, *symbols: str, first: date = DAYS[150], last: date = DAYS[-1]) -> UniverseSpan:
    return universe_span(store, CALENDAR, CONFIG, universe(*symbols), first, last)


def test_one_symbol_has_the_span_that_it_has_as_a_market(store: MarketStore) -> None:
    fill(store, toy=[day for day in DAYS if day != DAYS[70]])
    for first, last in ((DAYS[150], DAYS[180]), (DAYS[3], DAYS[-1]), (DAYS[70], DAYS[-1])):
        for minutes_lookback in (0, 40):
            expected = find_span(store, CALENDAR, CONFIG, "toy", first, last, minutes_lookback)
            one = universe("toy", tickers=(EVERY,))
            assert universe_span(store, CALENDAR, CONFIG, one, first, last, minutes_lookback).span == expected


def test_reading_begins_where_the_earliest_symbol_s_own_run_would(store: MarketStore) -> None:
    fill(store, A=DAYS, B=[day for at, day in enumerate(DAYS) if at % 10], C=DAYS[120:])
    own = {symbol: spanned(store, symbol).span.pump for symbol in "ABC"}
    assert own["B"] < own["A"] < own["C"] == DAYS[120], "holes reach further back"
    assert spanned(store, "A", "B", "C").span.pump == own["B"]


def test_a_session_is_traded_where_any_symbol_has_its_bar(store: MarketStore) -> None:
    fill(store, A=DAYS[:170], B=DAYS[160:190])
    assert spanned(store, "A", "B").span.last == DAYS[189]
    assert spanned(store, "B", first=DAYS[150]).span.first == DAYS[160]
    assert spanned(store, "A", "B", first=DAYS[150]).span.first == DAYS[150]


def test_a_bar_that_came_after_its_decision_is_no_history(store: MarketStore) -> None:
    bars = [replace(bar, known_at=bar.known_at + timedelta(hours=1)) if at in (100, 150, 199) else bar
            for at, bar in enumerate(builders.bars(DAYS, symbol="A"))]  # fmt: skip
    store.add_bars(bars, source="made here")
    fill(store, B=[DAYS[0]])
    add_news(store, said(*((day, -1, "A", "a headline") for day in DAYS)))
    found = spanned(store, "A").span
    assert (found.first, found.last) == (DAYS[151], DAYS[198])
    before = needed(CONFIG.walkforward) + CONFIG.walkforward.step + WARM_UP + 1
    assert found.pump == DAYS[151 - before - 2], "two late ones lie between"


def test_a_symbol_with_too_little_history_is_told_and_no_error(store: MarketStore) -> None:
    fill(store, A=DAYS, B=DAYS[90:], C=DAYS[150:])
    found = spanned(store, "A", "B", "C")
    start = DAYS.index(found.span.pump)
    for symbol, listed in (("A", start), ("B", 90)):
        enough = found.enough_from[symbol]
        assert enough is not None
        held = DAYS.index(enough) - listed + 1
        assert fold_at(0, held, WARM_UP, CONFIG.walkforward) is not None
        assert fold_at(0, held - 1, WARM_UP, CONFIG.walkforward) is None
    assert found.enough_from["C"] is None


def test_days_without_bars_or_headlines_are_refused(store: MarketStore) -> None:
    fill(store, A=DAYS, B=DAYS[100:])
    store.add_bars(builders.bars(DAYS, symbol="D"), source="made here")
    cases = {
        "no bars of toys for some of these days .*expected days within 2010": ("A", date(2008, 1, 2), date(2010, 5, 3)),
        "no bars of toys for some": ("B", date(2011, 1, 3), date(2011, 1, 31)),
        "not one headline for a symbol of toys in these days.*trader universe": ("D", DAYS[150], DAYS[160]),
    }
    for words, (symbol, first, last) in cases.items():
        with pytest.raises(NoData, match=words):
            spanned(store, symbol, first=first, last=last)


def test_an_account_s_last_session_is_traded_though_it_has_no_bar(store: MarketStore) -> None:
    fill(store, A=DAYS[:180], B=DAYS[:190])
    known = {"B": dict.fromkeys(DAYS[185:190])}
    made = universe("A", "B")
    found = universe_span(store, CALENDAR, CONFIG, made, DAYS[150], DAYS[189], bars_known=known)
    assert found.span.last == DAYS[189]
    assert universe_span(store, CALENDAR, CONFIG, made, DAYS[150], DAYS[184]).span.last == DAYS[184]


def test_symbols_without_prices_are_named_and_counted(store: MarketStore) -> None:
    fill(store, AAPL=DAYS)
    made = universe("AAPL", "APPL", *"BCDEFG")
    with pytest.raises(NoData, match=r"toys: no prices .* for 7 of 8 symbols \(got APPL, B, C, D, E and 2 more, "
                       r"expected such as AAPL\); import them"):  # fmt: skip
        check_store(store, made)
    with pytest.raises(NoData, match=r"toys: no such news \(got tweets, expected one of toy, wire"):
        check_store(store, Universe("toys", (replace(Member.plain("AAPL"), news="tweets"),)))
