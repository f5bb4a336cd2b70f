"""The same-day question: the day's own return is asked for, and its own bar is not shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.base import Days
from models.baselines import Logistic
from models.fitting import InMemory
from models.targets import same_day
from tests import builders
from trader.errors import ModelError
from trader.events import BarClosed, NewsArrived, to_us
from trader.window import Window

S = 120


def made_days(seed: int = 0) -> Days:
    """Return random days whose first coordinate of the news tells that day's own direction."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, S)))
    up = np.diff(close, prepend=100.0) > 0
    market = rng.normal(0, 0.01, (S, 6)).astype(np.float32)
    return Days(
        market=market,
        next_return=np.append(close[1:] / close[:-1] - 1, np.nan),
        news_offset=np.arange(S + 1, dtype=np.int64),
        news_text=np.where(up, 1, 2).astype(np.int64),
        news_sentiment=np.full((S, 3), 1 / 3, np.float32),
        market_text=0,
        texts=InMemory(np.array([[0, 1], [1, 0], [-1, 0]], np.float32)),
    )


def test_the_days_own_bar_leaves_no_trace_in_any_input_up_to_that_day() -> None:
    days = made_days()
    for day in (1, 7, S - 1):
        market = days.market.copy()
        market[day:] = 99.0
        changed, plain = same_day(replace(days, market=market)), same_day(days)
        assert np.array_equal(changed.market[: day + 1], plain.market[: day + 1])
        assert day == S - 1 or (changed.market[day + 1 :] == 99).all(), "or it was not shown at all"


def test_each_day_keeps_its_news_and_is_shown_the_bar_of_the_day_before() -> None:
    days = made_days()
    asked = same_day(days)
    assert len(asked) == S
    assert np.array_equal(asked.market[1:], days.market[:-1])
    assert asked.news_offset is days.news_offset and asked.news_text is days.news_text
    assert asked.news_sentiment is days.news_sentiment and asked.market_text == days.market_text


def test_the_return_asked_for_is_the_days_own_and_the_last_one_is_known() -> None:
    days_of_month = builders.sessions(40)
    bars = builders.bars(days_of_month)
    window = Window(builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a market")
    for bar in bars:
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    asked = same_day(window.days(0, 40))
    close = np.array([bar.close for bar in bars])
    np.testing.assert_allclose(asked.next_return[1:], close[1:] / close[:-1] - 1, rtol=1e-12)
    assert np.array_equal(asked.label[1:], (close[1:] > close[:-1]).astype(np.float32))
    np.testing.assert_allclose(asked.market[1:, 3], window.days(0, 40).market[:-1, 3])


def test_the_news_is_that_of_the_session_whose_return_is_asked_for() -> None:
    session = builders.sessions(3)
    bars = builders.bars(session)
    window = Window(builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a market")
    for at, bar in enumerate(bars):
        known = to_us(bar.known_at)
        batch = builders.batch([known - 60_000_000], [f"headline of session {at}"])
        window.update(NewsArrived(session=bar.session, at=bar.known_at, news=batch))
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    asked = same_day(window.days(0, 3))
    row = window.days(0, 3).news_text[1]
    assert asked.news_text[asked.news(1)].tolist() == [row]
    assert asked.next_return[1] == pytest.approx(bars[1].close / bars[0].close - 1)


def test_the_first_day_has_neither_bar_nor_return_and_is_refused_as_a_training_day() -> None:
    asked = same_day(made_days())
    assert not asked.market[0].any()
    assert np.isnan(asked.next_return[0]) and np.isnan(asked.label[0])
    assert np.isfinite(asked.next_return[1:]).all()
    with pytest.raises(ModelError, match="no label yet"):
        Logistic(1).fit(asked, range(0, 60), range(60, 80), seed=1)


def test_a_return_that_is_not_known_stays_unknown() -> None:
    days = made_days()
    next_return = days.next_return.copy()
    next_return[50] = np.nan
    assert np.flatnonzero(np.isnan(same_day(replace(days, next_return=next_return)).next_return)).tolist() == [0, 51]


def test_the_days_handed_in_are_left_as_they_were() -> None:
    days = made_days()
    market, next_return = days.market.copy(), days.next_return.copy()
    same_day(days)
    assert np.array_equal(days.market, market) and np.array_equal(days.next_return, next_return, equal_nan=True)


def test_an_unchanged_model_learns_the_same_day_from_news_that_says_nothing_of_the_next() -> None:
    days = made_days()
    model, asked = Logistic(1), same_day(days)
    model.fit(asked, range(1, 70), range(71, 90), seed=1)
    right = (model.predict(asked, range(91, S)).p_up > 0.5) == (asked.label[91:] > 0.5)
    assert right.mean() > 0.95
    model.fit(days, range(1, 70), range(71, 90), seed=1)
    right = (model.predict(days, range(91, S - 1)).p_up > 0.5) == (days.label[91 : S - 1] > 0.5)
    assert right.mean() < 0.75
