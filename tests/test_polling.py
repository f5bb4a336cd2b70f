"""Polling and health: schedules, back-off, what reaches the store, and when a decision must abstain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest

from feeds import rss
from feeds.base import FeedState, Fetched, LiveFeed
from feeds.entries import Entry, rows_of
from tests.misbehaving import Request, serving
from trader.clock import Clock
from trader.errors import ConfigError, SourceError, StoreError, TimeError
from trader.events import Bar, NewsItem
from trader.feed_health import Health, HealthRow, silent
from trader.polling import MOST_RETRY_AFTER_S, Poller
from trader.store import MarketStore

START = datetime(2026, 11, 25, 15, 0, tzinfo=timezone.utc)  # a Wednesday; the close is at 21:00
CLOSE = datetime(2026, 11, 25, 21, 0, tzinfo=timezone.utc)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class WindableClock:
    """A clock that a test may also set back, as an operator may."""

    def __init__(self, instant: datetime) -> None:
        self.instant = instant

    def now(self) -> datetime:
        return self.instant


class Source:
    """A feed whose next answers a test lays out: headlines, bars, or an error to raise; then nothing newer."""

    def __init__(self, *answers: Fetched | Exception | Callable[[], Fetched]) -> None:
        self.answers, self.states = list(answers), list[FeedState]()

    def __call__(self, state: FeedState, clock: Clock) -> Fetched:
        self.states.append(state)
        answer = self.answers.pop(0) if self.answers else Fetched(not_modified=True, state=state)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Fetched) else answer()


class Room:
    """A store, a ledger and a clock, with pollers over them as often as a process starts."""

    def __init__(self, folder: Path, *feeds: LiveFeed) -> None:
        self.folder, self.clock, self.feeds = folder, WindableClock(START), feeds
        self.open()

    def open(self) -> None:
        self.store = MarketStore.open(self.folder / "market.db", clock=self.clock)
        self.health = Health.open(self.folder / "ledger.db")
        self.poller = Poller(self.feeds, self.health, self.store, self.clock)

    def close(self) -> None:
        self.health.close()
        self.store.close()

    def restart(self, *feeds: LiveFeed) -> None:
        self.close()
        self.feeds = feeds or self.feeds
        self.open()

    def after(self, span: timedelta) -> None:
        self.clock.instant += span

    def row(self, name: str = "wire1") -> HealthRow:
        found = self.health.row(next(one for one in self.feeds if one.name == name))
        assert found is not None
        return found

    def news(self, name: str = "live") -> list[NewsItem]:
        return list(self.store.as_of(self.clock.now()).news(name, START - 365 * 24 * HOUR, self.clock.now()).items())

    def reasons(self) -> str:
        return silent(self.health, self.feeds, self.clock.now())


def feed(fetch: Callable[[FeedState, Clock], Fetched], name: str = "wire1", **changes: object) -> LiveFeed:
    plain = LiveFeed(
        name=name, kind="news", into="live", address=f"test {name}", every_seconds=900, stale_after_seconds=6 * 3600,
        silent_after_seconds=96 * 3600, fetch=fetch,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def brought(*titles: str, at: datetime = START, etag: str = "", **stated: datetime) -> Fetched:
    entries = [Entry(item_id=title, title=title, stated=stated.get(title)) for title in titles]
    news, skewed = rows_of(entries, received=at)
    return Fetched(news=news, skewed=skewed, state=FeedState(etag=etag))


def bar(day: date, known_at: datetime, close: float = 100.0) -> Bar:
    return Bar(
        symbol="SPY", session=day, open=close, high=close + 1, low=close - 1, close=close, adj_close=close, volume=1,
        known_at=known_at,
    )  # fmt: skip


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    opened: list[Room] = []

    def make(*feeds: LiveFeed) -> Room:
        opened.append(Room(tmp_path, *feeds))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


MakeRoom = Callable[..., Room]


# The schedule


def test_each_feed_has_its_own_schedule(room: MakeRoom) -> None:
    here = room(feed(Source(), "often", every_seconds=300), feed(Source(), "seldom", every_seconds=3600))
    assert here.poller.due() == ["often", "seldom"], "at first everything is due"
    assert [one.feed for one in here.poller.poll_due()] == ["often", "seldom"]
    assert here.poller.due() == []
    assert here.poller.next_due() == START + 5 * MINUTE
    here.after(5 * MINUTE)
    assert [one.feed for one in here.poller.poll_due()] == ["often"]
    here.after(55 * MINUTE)
    assert here.poller.due() == ["often", "seldom"]


def test_a_schedule_outlives_the_process(room: MakeRoom) -> None:
    here = room(feed(Source()))
    here.poller.poll_due()
    here.restart()
    assert here.poller.due() == []
    assert here.poller.next_due() == START + 15 * MINUTE


def test_no_feed_is_never_due(room: MakeRoom) -> None:
    here = room()
    assert (here.poller.due(), here.poller.next_due(), here.poller.poll_due()) == ([], None, [])


def test_a_clock_that_was_set_back_does_not_hold_up_a_feed(room: MakeRoom) -> None:
    here = room(feed(Source()))
    here.after(26 * HOUR)
    here.poller.poll_due()
    here.after(-26 * HOUR)
    assert here.poller.due() == ["wire1"]
    assert here.poller.poll_due()[0].next_due == START + 15 * MINUTE


def test_a_feed_may_be_asked_out_of_turn_and_a_wrong_name_is_named(room: MakeRoom) -> None:
    source = Source()
    here = room(feed(source))
    here.poller.poll("wire1")
    here.poller.poll("wire1")
    assert len(source.states) == 2
    with pytest.raises(ConfigError, match=r"no such feed .got wire2, expected wire1"):
        here.poller.poll("wire2")
    with pytest.raises(ConfigError, match="two feeds of one name"):
        room(feed(source), feed(source))


# Failures


def test_a_failing_feed_is_written_down_and_the_others_go_on(room: MakeRoom) -> None:
    here = room(
        feed(Source(SourceError("the feed cannot be reached", where="x", do="check"))),
        feed(Source(RuntimeError("a mistake\nof a user's own feed")), "own"),
        feed(Source(brought("good")), "fine"),
    )
    results = here.poller.poll_due()
    assert [one.error for one in results] == [
        "x: the feed cannot be reached; check", "RuntimeError: a mistake of a user's own feed", "",
    ]  # fmt: skip
    assert [item.headline for item in here.news()] == ["good"]
    assert [(row.feed, row.failures, row.successes) for row in here.health.rows()] == [
        ("fine", 0, 1), ("own", 1, 0), ("wire1", 1, 0),
    ]  # fmt: skip
    assert all("\n" not in row.error for row in here.health.rows())


def test_what_is_no_answer_is_a_failure(room: MakeRoom) -> None:
    here = room(feed(lambda state, clock: None))  # type: ignore[arg-type, return-value]
    assert "did not return a Fetched (got NoneType)" in here.poller.poll_due()[0].error


def test_waits_double_up_to_an_hour_and_a_success_ends_them(room: MakeRoom) -> None:
    down = SourceError("down")
    here = room(feed(Source(*[down] * 9, brought("up"))))
    waits = []
    for _ in range(9):
        result = here.poller.poll("wire1")
        waits.append((result.next_due - result.done).total_seconds())
    for at, wait in enumerate(waits):
        assert 0.75 <= wait / min(60 * 2**at, 3600) <= 1.25
    assert len({round(wait / min(60 * 2**at, 3600), 6) for at, wait in enumerate(waits)}) == 9, "jitter"
    assert here.row().failures_in_a_row == 9
    assert here.poller.poll("wire1").next_due == here.clock.now() + 15 * MINUTE
    assert (here.row().failures_in_a_row, here.row().failures, here.row().error) == (0, 9, "")


def test_jitter_is_the_same_in_every_process_and_differs_between_feeds_and_seeds(room: MakeRoom) -> None:
    here = room(*[feed(Source(*[SourceError("down")] * 3), name) for name in ("a", "b")])
    first = [one.next_due for one in here.poller.poll_due()]
    assert first[0] != first[1]
    (here.folder / "again").mkdir()
    for seed, same in ((0, True), (1, False)):
        with Health.open(here.folder / f"again/{seed}.db") as health:
            poller = Poller(here.feeds, health, here.store, here.clock, seed=seed)
            assert ([one.next_due for one in poller.poll_due()] == first) is same


@pytest.mark.parametrize(("asked", "waited"), [(1_800.0, 1_800.0), (10 * 24 * 3600.0, MOST_RETRY_AFTER_S)])
def test_the_time_that_a_server_asks_for_is_kept_to_within_bounds(room: MakeRoom, asked: float, waited: float) -> None:
    busy = SourceError("too many requests")
    busy.retry_after_seconds = asked
    here = room(feed(Source(busy)))
    assert here.poller.poll_due()[0].next_due == START + timedelta(seconds=waited)


def test_the_ledgers_and_the_stores_own_failures_come_out(room: MakeRoom) -> None:
    here = room(feed(Source(brought("x"), brought("y"))))
    with here.store.snapshot(), pytest.raises(StoreError, match="within a snapshot"):
        here.poller.poll_due()
    assert here.poller.due() == ["wire1"], "nothing was stored, so nothing was written down"


# What reaches the store


def test_headlines_are_stored_under_the_feeds_name_and_counted(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a", "b", "a"), brought("b", "c", ""))))
    first = here.poller.poll_due()[0]
    assert (first.new, first.known, first.rejected) == (2, 0, 0)
    here.after(15 * MINUTE)
    second = here.poller.poll_due()[0]
    assert (second.new, second.known, second.rejected) == (1, 1, 1)
    assert sorted(item.headline for item in here.news()) == ["a", "b", "c"]
    assert [one.file for one in here.store.quarantine("live")] == ["wire1"]
    row = here.row()
    assert (row.items, row.rejected, row.successes) == (3, 1, 2)


def test_an_entry_without_a_date_is_stored_once_and_keeps_the_time_of_its_first_receipt(room: MakeRoom) -> None:
    source = Source(*[lambda: brought("undated", at=here.clock.now())] * 3)
    here = room(feed(source))
    for _ in range(3):
        here.poller.poll("wire1")
        here.after(15 * MINUTE)
    assert [(item.published_at, item.known_at) for item in here.news()] == [(START, START)]


def test_an_entry_from_the_future_is_stored_once_also_after_its_time_has_come(room: MakeRoom) -> None:
    claimed = START + HOUR
    here = room(feed(Source(*[lambda: brought("early", at=here.clock.now(), early=claimed)] * 2)))
    assert here.poller.poll("wire1").skewed == 1
    here.after(2 * HOUR)
    assert here.poller.poll("wire1").skewed == 0
    assert [(item.published_at, item.known_at) for item in here.news()] == [(START, START)]


def test_an_edited_headline_is_another_row(room: MakeRoom) -> None:
    def edited(title: str) -> Fetched:
        news, _ = rows_of([Entry(item_id="7", title=title, stated=START - HOUR)], received=here.clock.now())
        return Fetched(news=news)

    here = room(feed(Source(lambda: edited("Shares rise"), lambda: edited("Shares rise sharply"))))
    here.poller.poll("wire1")
    here.after(HOUR)
    here.poller.poll("wire1")
    assert [(one.headline, one.known_at) for one in here.news()] == [
        ("Shares rise", START), ("Shares rise sharply", START + HOUR),
    ]  # fmt: skip


def test_two_feeds_share_a_set_and_each_entry_counts_once(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a", "b"))), feed(Source(brought("b", "c")), "wire2"))
    assert [(one.new, one.known) for one in here.poller.poll_due()] == [(2, 0), (1, 1)]


def test_a_process_killed_between_store_and_ledger_stores_nothing_twice(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a", etag="1"), brought("a", etag="1", at=START + HOUR))))

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    here.poller._health = type("Dying", (), {"state": here.health.state, "row": here.health.row, "record": kill})()
    with pytest.raises(Killed):
        here.poller.poll_due()
    here.restart()
    here.after(HOUR)
    assert (here.poller.poll_due()[0].new, len(here.news())) == (0, 1)
    assert here.row().last_new == here.clock.now(), "what it brought counts, though the store had it already"
    assert here.reasons() == ""


def test_no_feed_can_say_that_it_knew_a_thing_before_we_asked(room: MakeRoom) -> None:
    old = START - 5 * 24 * HOUR
    prices = Source(Fetched(bars=[bar(date(2026, 11, 20), known_at=old)]))
    here = room(feed(Source(brought("a", at=old))), feed(prices, "own", kind="prices", into="SPY"))
    here.poller.poll_due()
    assert here.news()[0].known_at == START
    stored = here.store.as_of(START).bar("SPY", date(2026, 11, 20))
    assert stored is not None and stored.known_at == START
    assert here.store.as_of(START - MINUTE).bar("SPY", date(2026, 11, 20)) is None


def test_a_corrected_bar_is_a_revision_known_when_it_came(room: MakeRoom) -> None:
    day = date(2026, 11, 24)
    source = Source(*[Fetched(bars=[bar(day, START, close)]) for close in (100.0, 100.0, 101.0)])
    here = room(feed(source, kind="prices", into="SPY"))
    outcomes = []
    for _ in range(3):
        result = here.poller.poll("wire1")
        outcomes.append((result.new, result.known, result.revised))
        here.after(HOUR)
    assert outcomes == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    closes = [here.store.as_of(START + span).bar("SPY", day) for span in (HOUR, 2 * HOUR)]
    assert [one.close for one in closes if one] == [100.0, 101.0]
    assert (here.row().items, here.row().last_new) == (2, START + 2 * HOUR)


def test_bars_that_contradict_each_other_are_the_feeds_failure_and_leave_nothing(room: MakeRoom) -> None:
    day = date(2026, 11, 24)
    here = room(feed(Source(Fetched(bars=[bar(day, START), bar(day, START, 7.0)])), kind="prices", into="SPY"))
    assert "twice the same session" in here.poller.poll_due()[0].error
    assert here.store.symbols() == {}


# Prices are looked for when a session closes


def test_prices_are_looked_for_right_after_a_close_and_then_until_the_bar_is_there(room: MakeRoom) -> None:
    day = date(2026, 11, 25)
    nothing = Fetched(bars=[bar(date(2026, 11, 24), START)])
    source = Source(nothing, nothing, nothing, lambda: Fetched(bars=[bar(day, here.clock.now())]))
    here = room(feed(source, kind="prices", into="SPY", every_seconds=12 * 3600))
    assert here.poller.poll_due()[0].next_due == CLOSE + timedelta(seconds=30)
    here.clock.instant = CLOSE + timedelta(seconds=30)
    assert here.poller.poll_due()[0].next_due == here.clock.now() + MINUTE, "Yahoo has it not yet"
    here.after(MINUTE)
    here.poller.poll_due()
    here.after(MINUTE)
    assert here.poller.poll_due()[0].next_due == here.clock.now() + 12 * HOUR
    stored = here.store.as_of(here.clock.now()).bar("SPY", day)
    assert stored is not None and stored.known_at == here.clock.now()


def test_an_early_close_is_met_at_its_own_time_and_a_bar_that_never_comes_is_given_up(room: MakeRoom) -> None:
    here = room(feed(Source(), kind="prices", into="SPY", every_seconds=12 * 3600))
    early = datetime(2026, 11, 27, 18, 0, tzinfo=timezone.utc)  # 13:00 in New York, the day after Thanksgiving
    here.clock.instant = early - 3 * HOUR
    assert here.poller.poll_due()[0].next_due == early + timedelta(seconds=30)
    here.clock.instant = early + 2 * HOUR + MINUTE
    assert here.poller.poll_due()[0].next_due == here.clock.now() + 12 * HOUR


# Health, and why a decision abstains


def test_health_survives_a_restart_with_what_to_show_the_source(room: MakeRoom) -> None:
    source = Source(brought("a", etag="v1"))
    here = room(feed(source))
    here.poller.poll_due()
    before = here.row()
    here.restart()
    assert here.row() == before
    here.poller.poll("wire1")
    assert source.states == [FeedState(), FeedState(etag="v1")]
    assert here.row().etag == "v1"


def test_a_failure_keeps_the_state_and_nothing_newer_keeps_the_counts_of_the_document(room: MakeRoom) -> None:
    source = Source(brought("a", "", etag="v1", a=START + HOUR), SourceError("down"))
    here = room(feed(source))
    for _ in range(3):
        here.poller.poll("wire1")
        here.after(MINUTE)
    row = here.row()
    assert source.states == [FeedState(), FeedState(etag="v1"), FeedState(etag="v1")]
    assert (row.rejected, row.skewed, row.items, row.successes, row.failures) == (1, 1, 1, 2, 1)
    assert (row.last_attempt, row.last_success, row.last_new) == (START + 2 * MINUTE, START + 2 * MINUTE, START)


def test_another_address_under_the_same_name_is_another_feed(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a", etag="v1"))))
    here.poller.poll_due()
    source = Source(brought("b"))
    here.restart(feed(source, address="elsewhere"))
    assert here.poller.due() == ["wire1"]
    assert here.reasons() == "feed wire1 was never asked"
    here.poller.poll_due()
    assert source.states == [FeedState()]
    assert (here.row().successes, here.row().items) == (1, 1)


def test_two_accounts_may_use_one_name_for_two_addresses(room: MakeRoom) -> None:
    one, other = feed(Source(brought("a", etag="v1"))), feed(Source(SourceError("down")), address="elsewhere")
    here = room(one)
    here.poller.poll_due()
    here.restart(other)
    here.poller.poll_due()
    assert (here.row().successes, here.row().failures) == (0, 1)
    here.restart(one)
    assert (here.row().successes, here.row().failures) == (1, 0)
    assert here.health.state(one) == FeedState(etag="v1")
    assert here.poller.due() == [] and here.reasons() == ""


def test_a_feed_that_is_well_lets_a_decision_be_made(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a"))))
    assert here.reasons() == "feed wire1 was never asked"
    here.poller.poll_due()
    assert here.reasons() == ""
    here.after(6 * HOUR)
    assert here.reasons() == ""
    assert silent(here.health, [], START) == ""


def test_a_feed_that_fails_for_too_long_makes_a_decision_abstain_with_the_reason(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a"), SourceError("down"))), feed(Source(SourceError("no")), "wire2"))
    here.poller.poll_due()
    here.after(6 * HOUR + MINUTE)
    here.poller.poll("wire1")
    assert here.reasons() == (
        "feed wire1 is stale: last success 2026-11-25 15:00 UTC, older than 6 h (down); "
        "feed wire2 has never answered (no)"
    )


def test_a_feed_that_answers_but_brings_nothing_is_silent(room: MakeRoom) -> None:
    here = room(
        feed(Source(brought("a"))), feed(Source(brought()), "empty"), feed(Source(), "any", silent_after_seconds=0)
    )
    here.poller.poll_due()
    assert here.reasons() == "feed empty is silent: it has brought nothing yet"
    here.after(97 * HOUR)
    for name in ("wire1", "empty", "any"):
        here.poller.poll(name)
    assert here.reasons() == (
        "feed wire1 is silent: nothing new since 2026-11-25 15:00 UTC, longer than 96 h; "
        "feed empty is silent: it has brought nothing yet"
    )


def test_a_success_of_a_clock_that_was_ahead_proves_nothing(room: MakeRoom) -> None:
    here = room(feed(Source(brought("a"))))
    here.after(26 * HOUR)
    here.poller.poll_due()
    here.after(-26 * HOUR)
    assert (
        here.reasons()
        == "feed wire1 had not answered by 2026-11-25 15:00 UTC; its last success, 2026-11-26 17:00 UTC, is later"
    )


def test_a_naive_instant_is_refused(room: MakeRoom) -> None:
    here = room(feed(Source()))
    with pytest.raises(TimeError, match="without a zone"):
        silent(here.health, here.feeds, datetime(2026, 11, 25))  # noqa: DTZ001


def test_two_processes_count_together(room: MakeRoom) -> None:
    here = room(feed(Source(SourceError("down"))))
    here.poller.poll("wire1")
    with Health.open(here.folder / "ledger.db") as other:
        Poller([feed(Source(SourceError("down")))], other, here.store, here.clock).poll("wire1")
    assert here.row().failures == 2


# With a real server


def test_a_real_feed_is_read_kept_shown_its_tag_and_left_alone_when_it_asks_for_it(room: MakeRoom) -> None:
    def answer(request: Request) -> None:
        turn = len(request.server.asked)
        if turn == 3:
            request.give(b"", 429, Retry_After="1800")
        elif request.headers.get("If-None-Match") == "v1":
            request.give(b"", 304)
        else:
            request.give(
                b"<rss version='2.0'><channel><item><guid>1</guid><title>Shares rise</title></item></channel></rss>",
                ETag="v1",
            )

    with serving() as server:
        url = server.does(answer)
        here = room(feed(lambda state, clock: rss.fetch(url, clock=clock, state=state)))
        first = here.poller.poll_due()[0]
        here.after(15 * MINUTE)
        second = here.poller.poll_due()[0]
        here.after(15 * MINUTE)
        third = here.poller.poll_due()[0]
    assert (first.new, second.not_modified, second.error) == (1, True, "")
    assert third.next_due == here.clock.now() + 30 * MINUTE
    assert third.error.endswith("too many requests (429); raise every_minutes if it goes on")
    assert (here.row().last_success, here.row().last_new) == (START + 15 * MINUTE, START)
    assert [item.headline for item in here.news()] == ["Shares rise"]


def test_what_a_feed_answered_after_a_decision_says_nothing_of_it(room: MakeRoom) -> None:
    source = Source(brought("first"), SourceError("down"), brought("second"))
    made = room(feed(source))
    made.poller.poll("wire1")
    made.after(30 * HOUR)
    decided_at = made.clock.now()
    made.after(MINUTE)
    made.poller.poll("wire1")
    made.after(40 * MINUTE)
    made.poller.poll("wire1")
    assert silent(made.health, made.feeds, made.clock.now()) == ""
    assert silent(made.health, made.feeds, decided_at).startswith("feed wire1 is stale: last success 2026-11-25 15:00")


def test_a_feed_that_was_well_at_a_decision_is_so_for_whoever_asks_the_morning_after(room: MakeRoom) -> None:
    source = Source(brought("first"), brought("second"))
    made = room(feed(source))
    made.poller.poll("wire1")
    decided_at = made.clock.now() + MINUTE
    made.after(14 * HOUR)
    made.poller.poll("wire1")
    made.restart()
    assert silent(made.health, made.feeds, decided_at) == ""
