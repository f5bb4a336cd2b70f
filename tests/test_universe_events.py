"""The events of many symbols: each symbol's own, honest in time, and the same as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders
from tests.builders import CALENDAR
from trader.clock import Calendar, SimulatedClock
from trader.config import WalkForward
from trader.errors import NoData
from trader.events import Bar, BarClosed, DecisionDue, Event, NewsArrived, NewsBatch, NewsRows, RetrainDue, to_us
from trader.parts import stock_universe, windows_of
from trader.scheduler import Scheduler
from trader.store import FileSource, MarketStore
from trader.universe import EVERY, Member, Universe
from trader.universe_events import WHOLE, UniverseScheduler
from trader.universe_news import headlines_of
from trader.window import Window, resolve_all

DAYS = builders.sessions(12)
MICROSECOND = timedelta(microseconds=1)
SPEC = WalkForward(step=5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MarketStore]:
    with MarketStore.open(tmp_path / "market.db", clock=SimulatedClock(builders.NOW)) as opened:
        yield opened


def universe(*symbols: str, **how: Any) -> Universe:
    """Return plain members that read the set "toy"."""
    return Universe("toys", tuple(replace(Member.plain(symbol, news="toy"), **how) for symbol in symbols))


def add_news(store: MarketStore, news: NewsBatch, name: str = "toy") -> None:
    rows = NewsRows(news=news, row=np.arange(1, len(news) + 1))
    store.add_news(name, [rows], source=FileSource(name=f"made here {len(news)}"))


def said(*items: tuple[date, int, str, str]) -> NewsBatch:
    """Return headlines of (session, microseconds from its close, tickers, text)."""
    at = [to_us(CALENDAR.cutoff(day)) + offset for day, offset, _, _ in items]
    return replace(builders.batch(at, [text for *_, text in items]), symbols=[tickers for _, _, tickers, _ in items])


def random_news(days: Sequence[date], seed: int) -> NewsBatch:
    """Return headlines that carry none, one or two of the tickers A, B, C and Z."""
    news, rng = builders.headlines(days, seed), np.random.default_rng(seed)
    cells = [
        " ".join(rng.choice(["A", "B", "C", "Z"], int(rng.integers(0, 3)), replace=False)) for _ in range(len(news))
    ]
    return replace(news, symbols=cells)


def scheduled(store: MarketStore, made: Universe, calendar: Calendar = CALENDAR, **how: Any) -> list[tuple[str, Event]]:
    return list(UniverseScheduler(store, calendar, made, spec=SPEC, **how).events(DAYS[0], DAYS[-1]))


def shown(event: Event) -> tuple[Any, ...]:
    """Return all of an event, to the last bit, as a value that can be compared."""
    if isinstance(event, NewsArrived):
        news = event.news
        return (
            event.session, event.at, news.published_at.tobytes(), news.known_at.tobytes(), tuple(news.headline),
            tuple(news.symbols), news.sentiment.tobytes(), tuple(news.item_id),
        )  # fmt: skip
    return (event,)


def headlines(found: list[tuple[str, Event]], symbol: str) -> dict[date, list[str]]:
    return {
        event.session: list(event.news.headline)
        for whose, event in found
        if whose == symbol and isinstance(event, NewsArrived) and len(event.news)
    }


def missing(found: list[tuple[str, Event]], symbol: str) -> list[str]:
    return [event.missing for whose, event in found if whose == symbol and isinstance(event, DecisionDue)]


def bars_of_three() -> dict[str, list[Bar]]:
    """Return A whole, B with a bar that is late and one that never comes, C listed on the sixth session."""
    whole, holed, late = (builders.bars(DAYS, seed, symbol=name) for seed, name in enumerate("ABC"))
    holed[3] = replace(holed[3], known_at=holed[3].known_at + timedelta(hours=3))
    del holed[7]
    return {"A": whole, "B": holed, "C": late[5:]}


def filled(store: MarketStore) -> None:
    store.add_bars([bar for bars in bars_of_three().values() for bar in bars], source="made here")
    add_news(store, random_news(DAYS, seed=4))


def test_a_universe_of_one_symbol_emits_what_its_scheduler_emits(store: MarketStore) -> None:
    filled(store)
    for symbol in "ABC":
        for minutes in (0, 200):
            calendar, how = Calendar(minutes), {"max_silence": 2, "spec": SPEC}
            alone = Scheduler(store, calendar, symbol=symbol, news="toy", **how).events(DAYS[0], DAYS[-1])  # type: ignore[arg-type]
            made = UniverseScheduler(store, calendar, universe(symbol, tickers=(EVERY,)), **how)  # type: ignore[arg-type]
            together = list(made.events(DAYS[0], DAYS[-1]))
            assert [shown(event) for _, event in together] == [shown(event) for event in alone]
            assert {whose for whose, _ in together} == {symbol, WHOLE}


def test_each_symbol_of_many_has_the_events_that_it_has_alone(store: MarketStore) -> None:
    filled(store)
    together = scheduled(store, universe("C", "A", "B"))
    for symbol in "ABC":
        alone = [shown(event) for whose, event in scheduled(store, universe(symbol)) if whose == symbol]
        assert [shown(event) for whose, event in together if whose == symbol] == alone


def test_a_session_goes_symbol_by_symbol_and_ends_with_one_retraining(store: MarketStore) -> None:
    filled(store)
    found = scheduled(store, universe("C", "A", "B"))
    days = [event.session for _, event in found if isinstance(event, DecisionDue)]
    assert days == [day for day in DAYS for _ in range(3)]
    of_last = [(whose, type(event)) for whose, event in found if event.session == DAYS[-1] and whose]
    assert of_last == [(whose, kind) for whose in "CAB" for kind in (NewsArrived, BarClosed, DecisionDue)]
    due = [at for at, (_, event) in enumerate(found) if isinstance(event, RetrainDue)]
    assert [found[at][1].session for at in due] == [day for day in DAYS if CALENDAR.index(day) % 5 == 0]
    assert all(found[at][0] == WHOLE and found[at - 1][0] == "B" for at in due)
    assert all(found[at + 1][1].session > found[at][1].session for at in due if at + 1 < len(found))


def test_a_symbol_without_its_bar_abstains_alone(store: MarketStore) -> None:
    filled(store)
    found = scheduled(store, universe("A", "B", "C"))
    assert not any(missing(found, "A"))
    assert [at for at, why in enumerate(missing(found, "B")) if why] == [3, 7]
    assert [at for at, why in enumerate(missing(found, "C")) if why] == [0, 1, 2, 3, 4], "listed on the sixth session"
    assert missing(found, "B")[7].startswith("no bar of B known by")
    late = next(at for at, (_, event) in enumerate(found) if isinstance(event, BarClosed) and event.bar.symbol == "B"
                and event.session == DAYS[3])  # fmt: skip
    assert isinstance(found[late + 1][1], NewsArrived) and found[late + 1][1].session == DAYS[4], "before all else"


def test_a_headline_goes_to_every_symbol_whose_ticker_it_carries_and_in_the_set_s_order(store: MarketStore) -> None:
    store.add_bars([bar for bars in bars_of_three().values() for bar in bars], source="made here")
    day = DAYS[6]
    add_news(
        store,
        said(
            (day, -5, "B A", "of both"), (day, -4, "A.N", "another exchange"), (day, -3, "", "the whole market"),
            (day, -2, "A", "of A"), (day, -1, "a", "another case"), (day, 0, "A A.O", "twice of A"),
        ),
    )  # fmt: skip
    made = universe("A", "B", "C")
    assert headlines(scheduled(store, made), "A") == {day: ["of both", "of A", "twice of A"]}
    assert headlines(scheduled(store, made), "B") == {day: ["of both"]}
    assert headlines(scheduled(store, made), "C") == {}
    market = universe("A", "B", market_news=True)
    assert headlines(scheduled(store, market), "A")[day] == ["of both", "the whole market", "of A", "twice of A"]
    assert headlines(scheduled(store, market), "B")[day] == ["of both", "the whole market"]
    suffixed = universe("A", tickers=("A.O", "A"))
    assert headlines(scheduled(store, suffixed), "A")[day] == ["of both", "of A", "twice of A"], "each once"
    every = universe("A", tickers=(EVERY,))
    assert len(headlines(scheduled(store, every), "A")[day]) == 6
    assert headlines(scheduled(store, universe("A", tickers=())), "A") == {}


def test_news_after_the_close_belongs_to_the_next_session_of_each_symbol(store: MarketStore) -> None:
    store.add_bars([bar for bars in bars_of_three().values() for bar in bars], source="made here")
    add_news(
        store,
        said(
            (DAYS[6], 0, "A B", "at the close"), (DAYS[6], 1, "A B", "after"), (DAYS[6], 1_000_000, "A B", "a second")
        ),
    )
    for minutes in (0, 30):
        found = scheduled(store, universe("A", "B"), Calendar(minutes))
        for symbol in "AB":
            assert headlines(found, symbol) == {DAYS[6]: ["at the close"], DAYS[7]: ["after", "a second"]}


def test_silence_is_each_symbol_s_own(store: MarketStore) -> None:
    store.add_bars([bar for bars in bars_of_three().values() for bar in bars], source="made here")
    add_news(store, said((DAYS[5], 0, "A", "of A")))
    found = scheduled(store, universe("A", "B"), max_silence=3)
    assert [at for at, why in enumerate(missing(found, "A")) if not why] == [5, 6, 7]
    assert missing(found, "A")[8] == "no headline of toy for A in 3 sessions"
    assert all(missing(found, "B"))


def test_recorded_abstentions_and_bars_belong_to_one_symbol(store: MarketStore) -> None:
    filled(store)
    abstain = {"A": {DAYS[2]: "late: decided on Friday"}}
    known = {"B": {DAYS[2]: None}}
    found = scheduled(store, universe("A", "B", "C"), abstain=abstain, bars_known=known)
    plain = scheduled(store, universe("A", "B", "C"))
    assert missing(found, "A")[2] == "late: decided on Friday"
    assert missing(found, "B")[2].startswith("no bar of B")
    assert [shown(e) for whose, e in found if whose == "C"] == [shown(e) for whose, e in plain if whose == "C"]
    assert DAYS[2] not in [e.session for whose, e in found if whose == "B" and isinstance(e, BarClosed)]


def test_a_bar_carries_the_member_s_symbol_whatever_its_prices_are_called(store: MarketStore) -> None:
    filled(store)
    found = scheduled(store, universe("Apple", prices="A"))
    bars = [event.bar for _, event in found if isinstance(event, BarClosed)]
    assert {bar.symbol for bar in bars} == {"Apple"}
    assert [replace(bar, symbol="A") for bar in bars] == bars_of_three()["A"]


def test_members_may_read_different_sets_and_a_member_without_one_is_refused(store: MarketStore) -> None:
    filled(store)
    add_news(store, said((DAYS[2], 0, "B", "elsewhere")), name="other")
    a, b = universe("A", "B")
    found = scheduled(store, Universe("toys", (a, replace(b, news="other"))))
    assert headlines(found, "B") == {DAYS[2]: ["elsewhere"]}
    assert headlines(found, "A") == headlines(scheduled(store, universe("A")), "A")
    with pytest.raises(NoData, match="toys A: a symbol without a news set"):
        headlines_of(Universe("toys", (replace(a, news=""),)))


def test_what_is_imported_between_two_looks_is_seen_by_the_second(store: MarketStore) -> None:
    filled(store)
    made = UniverseScheduler(store, CALENDAR, universe("A", "B"), spec=SPEC)
    before = list(made.events(DAYS[6], DAYS[6]))
    add_news(
        store,
        said(
            (DAYS[6], 0, "A", "it came in since"),
        ),
    )
    after = list(made.events(DAYS[6], DAYS[6]))
    assert headlines(after, "A")[DAYS[6]] == [*headlines(before, "A").get(DAYS[6], []), "it came in since"]


def _with_future(folder: Path, seed: int, cut: int) -> list[tuple[str, Event]]:
    """Return the events of a store whose bars and headlines known after the cut's decision are drawn from the seed."""
    rng = np.random.default_rng(seed)
    with MarketStore.open(folder / "market.db", clock=SimulatedClock(builders.NOW)) as store:
        for at, (symbol, bars) in enumerate(bars_of_three().items()):
            known = [bar for bar in bars if bar.session <= DAYS[cut]]
            start = known[-1].close if known else float(rng.uniform(50, 150))
            drawn = builders.bars(DAYS[cut + 1 :], seed * 10 + at, symbol=symbol, start=start)
            store.add_bars([*known, *drawn], source="made here")
            if known:  # and a later correction of what was known
                last = replace(known[-1], close=known[-1].close * 1.0001, high=known[-1].high * rng.uniform(1.01, 1.5))
                last = replace(last, known_at=max(last.known_at, CALENDAR.decide_at(DAYS[cut])) + MICROSECOND)
                store.add_bars([last], source="corrected")
        past = random_news(DAYS[: cut + 1], seed=4)
        late = said(*((DAYS[cut], 1_000_000, symbol, f"{symbol} {seed} a second late") for symbol in "ABC"))
        parts = [past, late, random_news(DAYS[cut + 1 :], seed)]
        add_news(store, NewsBatch.of([item for part in parts for item in part.items()]))
        return scheduled(store, universe("A", "B", "C", market_news=True))


@pytest.mark.parametrize("cut", [2, 3, 5, 8])
def test_a_new_future_of_any_symbol_changes_no_earlier_event_of_any(tmp_path: Path, cut: int) -> None:
    one, other = (_with_future(tmp_path / str(seed), seed, cut) for seed in (1, 2))

    def until(found: list[tuple[str, Event]]) -> list[Any]:
        return [(symbol, shown(event)) for symbol, event in found if event.at <= CALENDAR.decide_at(DAYS[cut])]

    assert until(one) == until(other)
    assert len(until(one)) >= 3 * 2 * cut
    after = [[(s, shown(e)) for s, e in found if e.session > DAYS[cut]] for found in (one, other)]
    for symbol in "ABC":
        futures = [[event for whose, event in found if whose == symbol] for found in after]
        assert futures[0] != futures[1], "the futures must differ, or nothing was tested"


# Down to the windows


def test_each_symbol_has_a_window_of_its_own_and_one_call_embeds_all_texts(store: MarketStore) -> None:
    filled(store)
    made = universe("C", "A", "B")
    readers = builders.readers()
    calls: list[list[str]] = []
    index = readers.texts.index
    readers.texts.index = lambda texts, progress=None: (calls.append(list(texts)), index(texts, progress))[1]  # type: ignore[method-assign]
    windows = windows_of(builders.config(), made, readers)
    assert list(windows) == ["C", "A", "B"]
    assert windows["A"].description == "A is a security traded in the United States stock market."
    _fill(windows, store, made)
    resolve_all(windows.values())
    assert len(calls) == 1
    for symbol in "ABC":
        alone = windows_of(builders.config(), universe(symbol), builders.readers())
        _fill(alone, store, universe(symbol))
        assert windows[symbol].fingerprint(0, len(windows[symbol])) == alone[symbol].fingerprint(0, len(alone[symbol]))
        keys = [window[symbol].text_keys(window[symbol].days(0, len(window[symbol]))) for window in (windows, alone)]
        assert (keys[0] == keys[1]).all()
        days = windows[symbol].days(0, len(windows[symbol]))
        texts = [text for day in windows[symbol].headlines for text in day]
        assert (keys[0] == readers.texts.keys_of(index([windows[symbol].description, *texts]))).all(), "each its own"
        assert (days.news_sentiment == readers.scorer.scores(texts)).all()
    resolve_all(windows.values())
    new = [texts for texts in calls[1:] if len(texts) > 1]
    assert new == [], "nothing is embedded twice"


def _fill(windows: dict[str, Window], store: MarketStore, made: Universe) -> None:
    for symbol, event in scheduled(store, made):
        if isinstance(event, NewsArrived | BarClosed):
            windows[symbol].update(event)


def test_news_of_sessions_without_a_bar_waits_for_the_next_one(store: MarketStore) -> None:
    store.add_bars([bar for bars in bars_of_three().values() for bar in bars], source="made here")
    add_news(
        store, said((DAYS[7], 0, "B", "no bar today"), (DAYS[8], 0, "B", "a bar"), (DAYS[1], 0, "C", "not listed"))
    )
    made = universe("B", "C")
    windows = windows_of(builders.config(), made, builders.readers())
    _fill(windows, store, made)
    b, c = windows.values()
    assert b.headlines[b.position(DAYS[8])] == ["no bar today", "a bar"]
    assert c.sessions[0] == DAYS[5] and c.headlines[0] == ["not listed"]


def test_a_member_s_own_text_goes_before_the_config_s_and_the_built_in_one() -> None:
    made = Universe("two", (Member.plain("A"), replace(Member.plain("B"), text="B makes things."),
                            Member(symbol="spx", prices="sp500")))  # fmt: skip
    texts = [window.description for window in windows_of(builders.config(), made, builders.readers()).values()]
    assert texts[:2] == ["A is a security traded in the United States stock market.", "B makes things."]
    assert texts[2].startswith("The S&P 500 is a stock market index")
    told = builders.config(inputs={"market_text": "a market"})
    texts = [window.description for window in windows_of(told, made, builders.readers()).values()]
    assert texts == ["a market", "B makes things.", "a market"]


def test_built_in_bars_are_put_into_the_store_and_sets_get_their_stored_names(store: MarketStore) -> None:
    filled(store)
    made = stock_universe(store, Universe("two", (Member(symbol="spx", prices="planted", news="planted"),
                                                  Member.plain("A"))), "toy")  # fmt: skip
    assert "planted" in store.symbols()
    assert [member.news for member in made] == [next(n for n in store.names() if n.startswith("planted")), "toy"]


@pytest.mark.skipif(not os.environ.get("TRADER_TEST_DATA"), reason="TRADER_TEST_DATA is not set: no StockNet tweets")
def test_real_tweets_reach_the_symbols_that_they_name(store: MarketStore) -> None:
    from feeds.news_files import read_news
    from feeds.price_sets import price_files

    folder = Path(os.environ["TRADER_TEST_DATA"]) / "stocknet"
    names = ("AAPL", "BABA", "GMRE", "PTR")
    for file in price_files([folder / "price_raw.tar.gz"]):
        if file.symbol in names:
            store.add_bars(file.read([]), source=file.where)
    tweets = folder / "tweets_preprocessed.csv.gz"
    pieces = (piece for at, piece in enumerate(read_news(tweets, preset="stocknet", batch_rows=4_000)) if at < 2)
    store.add_news("tweets", pieces, source=FileSource.of(tweets, "two pieces"))
    made = Universe("four", tuple(Member.plain(name, news="tweets") for name in names))
    days = CALENDAR.sessions(date(2014, 1, 2), date(2014, 10, 31))
    found = list(UniverseScheduler(store, CALENDAR, made, spec=SPEC).events(days[0], days[-1]))
    for symbol in names:
        whole = [e for s, e in found if s == symbol and isinstance(e, NewsArrived)]
        assert [event.session for event in whole] == days
        assert all(set(event.news.symbols) <= {symbol} for event in whole)
    heard = {symbol: sum(map(len, headlines(found, symbol).values())) for symbol in names}
    assert heard["AAPL"] > 1_000 and heard["GMRE"] == 0
    assert [bool(why) for why in missing(found, "BABA")] == [day < date(2014, 9, 19) for day in days]
    assert all(missing(found, "GMRE")), "it was listed in 2016"
