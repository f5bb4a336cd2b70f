"""The day's events come in order, and each is only what was known by its session's decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from tests import builders
from trader.clock import Calendar, SimulatedClock
from trader.config import WalkForward
from trader.events import Bar, BarClosed, DecisionDue, Event, NewsArrived, NewsRows, RetrainDue, to_us
from trader.scheduler import Scheduler
from trader.store import FileSource, MarketStore
from trader.window import Window

# Friday 2008-11-28 closes at 13:00; Thursday is Thanksgiving.
WEDNESDAY, FRIDAY, MONDAY = date(2008, 11, 26), date(2008, 11, 28), date(2008, 12, 1)
DAYS = [WEDNESDAY, FRIDAY, MONDAY]
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MarketStore]:
    with MarketStore.open(tmp_path / "market.db", clock=SimulatedClock(builders.NOW)) as opened:
        yield opened


def add(store: MarketStore, bars: list[Bar], news: dict[datetime, str] | None = None) -> None:
    store.add_bars(bars, source="made here")
    batch = builders.batch([to_us(at) for at in news or {}], list((news or {}).values()))
    rows = NewsRows(news=batch, row=np.arange(1, len(batch) + 1))
    store.add_news("toy", [rows], source=FileSource(name="made here"))


def events(
    store: MarketStore, first: date, last: date, *, decide_minutes: int = 0, step: int = 50, **how: Any
) -> list[Event]:
    spec = WalkForward(step=step)
    scheduler = Scheduler(store, Calendar(decide_minutes), symbol="toy", news="toy", spec=spec, **how)
    return list(scheduler.events(first, last))


Kind = TypeVar("Kind", NewsArrived, BarClosed, DecisionDue, RetrainDue)


def of_kind(found: list[Event], kind: type[Kind]) -> dict[date, Kind]:
    return {event.session: event for event in found if isinstance(event, kind)}


def test_a_session_is_news_then_bar_then_decision_then_retraining(store: MarketStore) -> None:
    add(store, builders.bars(DAYS))
    found = events(store, WEDNESDAY, MONDAY, step=1)
    assert [type(event) for event in found] == [NewsArrived, BarClosed, DecisionDue, RetrainDue] * 3
    assert [event.session for event in found[::4]] == DAYS
    assert [event.at for event in found] == sorted(event.at for event in found)


def test_a_model_is_due_on_the_sessions_that_the_step_divides(store: MarketStore) -> None:
    days = builders.sessions(30, date(2008, 11, 3))
    add(store, builders.bars(days))
    due = of_kind(events(store, days[0], days[-1], step=7), RetrainDue)
    assert list(due) == [day for day in days if builders.CALENDAR.index(day) % 7 == 0]
    assert len(due) in (4, 5)


def test_a_bar_known_too_late_decides_nothing_and_comes_with_the_next_session(store: MarketStore) -> None:
    on_time, late, after = builders.bars(DAYS)
    late = replace(late, known_at=late.known_at + MICROSECOND)
    add(store, [on_time, late, after])
    found = events(store, WEDNESDAY, MONDAY)
    decisions = of_kind(found, DecisionDue)
    assert [bool(event.missing) for event in decisions.values()] == [False, True, False]
    assert decisions[FRIDAY].missing == "no bar of toy known by 2008-11-28 18:00 UTC"
    order = [(type(event), event.session) for event in found if not isinstance(event, RetrainDue)]
    comes = order.index((BarClosed, FRIDAY))
    assert order[comes - 1] == (DecisionDue, FRIDAY)
    assert order[comes + 1] == (NewsArrived, MONDAY)
    assert of_kind(found, BarClosed)[FRIDAY].bar == late


def test_a_bar_that_is_still_unknown_at_the_next_decision_never_comes(store: MarketStore) -> None:
    on_time, late, after = builders.bars(DAYS)
    too_late = builders.CALENDAR.decide_at(MONDAY) + MICROSECOND
    add(store, [on_time, replace(late, known_at=too_late), after])
    assert list(of_kind(events(store, WEDNESDAY, MONDAY), BarClosed)) == [WEDNESDAY, MONDAY]


def test_a_session_is_the_same_events_alone_as_among_others(store: MarketStore) -> None:
    on_time, late, after = builders.bars(DAYS)
    add(store, [on_time, replace(late, known_at=late.known_at + MICROSECOND), after])
    together = [str(event) for event in events(store, WEDNESDAY, MONDAY)]
    assert [str(event) for day in DAYS for event in events(store, day, day)] == together


def test_recorded_abstentions_and_silence_keep_a_decision_from_being_made(store: MarketStore) -> None:
    close = builders.CALENDAR.cutoff(WEDNESDAY)
    add(store, builders.bars(DAYS), {close: "at the close"})
    found = events(store, WEDNESDAY, MONDAY, abstain={WEDNESDAY: "late: decided on Friday"}, max_silence=2)
    said = [event.missing for event in of_kind(found, DecisionDue).values()]
    assert said == ["late: decided on Friday", "", "no headline of toy in 2 sessions"]


def test_a_decision_delay_waits_for_the_bar_but_not_for_news(store: MarketStore) -> None:
    first, late, after = builders.bars(DAYS)
    late = replace(late, known_at=late.known_at + timedelta(minutes=20))
    close = builders.CALENDAR.cutoff(FRIDAY)
    add(store, [first, late, after], {close + timedelta(minutes=5): "after the close"})
    found = events(store, WEDNESDAY, MONDAY, decide_minutes=20)
    bar = of_kind(found, BarClosed)[FRIDAY]
    assert bar.at == close + timedelta(minutes=20)
    assert of_kind(found, DecisionDue)[FRIDAY].at == close + timedelta(minutes=20)
    assert not of_kind(found, DecisionDue)[FRIDAY].missing
    news = of_kind(found, NewsArrived)
    assert (len(news[FRIDAY].news), list(news[MONDAY].news.headline)) == (0, ["after the close"])
    assert of_kind(events(store, WEDNESDAY, MONDAY, decide_minutes=19), DecisionDue)[FRIDAY].missing


def test_a_revision_after_the_decision_never_reaches_that_session(store: MarketStore) -> None:
    bars = builders.bars(DAYS)
    add(store, bars)
    revised = replace(bars[1], close=bars[1].close * 1.001, high=bars[1].high * 1.01)
    store.add_bars([replace(revised, known_at=bars[1].known_at + MICROSECOND)], source="a correction")
    assert of_kind(events(store, FRIDAY, FRIDAY), BarClosed)[FRIDAY].bar == bars[1]
    seen = of_kind(events(store, FRIDAY, FRIDAY, decide_minutes=1), BarClosed)[FRIDAY].bar
    assert seen.close == revised.close, "one that was known by the decision does"


def _headlines(store: MarketStore, **how: int) -> dict[date, list[str]]:
    """Send the events through a window; return what it holds of each session."""
    window = Window(builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a toy market")
    for event in events(store, WEDNESDAY, MONDAY, **how):
        if isinstance(event, NewsArrived | BarClosed):
            window.update(event)
    return dict(zip(window.sessions, window.headlines, strict=True))


def test_news_after_the_close_belongs_to_the_next_session(store: MarketStore) -> None:
    close = builders.CALENDAR.cutoff(WEDNESDAY)
    add(store, builders.bars(DAYS), {close: "at the close", close + MICROSECOND: "a microsecond later"})
    assert _headlines(store) == {WEDNESDAY: ["at the close"], FRIDAY: ["a microsecond later"], MONDAY: []}


def test_news_of_the_afternoon_after_an_early_close_belongs_to_monday(store: MarketStore) -> None:
    one_in_new_york = datetime(2008, 11, 28, 18, tzinfo=timezone.utc)
    add(store, builders.bars(DAYS), {one_in_new_york: "at 13:00", one_in_new_york + timedelta(hours=2): "at 15:00"})
    assert _headlines(store) == {WEDNESDAY: [], FRIDAY: ["at 13:00"], MONDAY: ["at 15:00"]}


def test_news_of_a_holiday_and_a_weekend_waits_for_the_session_after(store: MarketStore) -> None:
    thursday, sunday = (datetime(2008, 11, day, 15, tzinfo=timezone.utc) for day in (27, 30))
    add(store, builders.bars(DAYS), {thursday: "on Thanksgiving", sunday: "on Sunday"})
    assert _headlines(store) == {WEDNESDAY: [], FRIDAY: ["on Thanksgiving"], MONDAY: ["on Sunday"]}


def test_every_headline_arrives_exactly_once_whatever_the_decision_delay(store: MarketStore) -> None:
    start = builders.CALENDAR.cutoff(WEDNESDAY) - timedelta(hours=20)
    news = {start + timedelta(minutes=7 * at): f"headline {at}" for at in range(800)}
    last = builders.CALENDAR.cutoff(MONDAY)
    add(store, builders.bars(DAYS), news)
    expected = [text for at, text in news.items() if at <= last]
    for minutes in (0, 30):
        arrived = [text for texts in _headlines(store, decide_minutes=minutes).values() for text in texts]
        assert arrived == expected
