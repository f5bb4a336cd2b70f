"""The logistic regression that first reads the same day: what it learns that from, and what never reaches it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.base import Days
from models.baselines import Logistic
from models.fitting import InMemory
from models.joined import joined
from models.same_day_logistic import SameDayLogistic, scored_apart
from tests.test_rival_models import same
from trader.errors import ModelError

S, D, T = 400, 12, 3
TRAIN, VALIDATION, TEST = range(40, 240), range(243, 293), range(296, S - 1)


def reported(seed: int = 0) -> Days:
    """Return days whose news report the day's own move, nine times in ten; tomorrow goes the other way, as often.

    Bars are noise. So the news say tomorrow only through the move that they report.
    """
    rng = np.random.default_rng(seed)
    up = np.empty(S, dtype=bool)
    up[0] = True
    for day in range(1, S):
        up[day] = up[day - 1] ^ (rng.random() < 0.9)
    count = np.full(S, 6)
    said = np.repeat(np.where(rng.random(S) < 0.9, up, ~up), count)
    words = rng.normal(size=(81, D))
    words[1:41, 0] += 2
    words[41:, 0] -= 2
    M = int(count.sum())
    moves = np.where(up, 1, -1) * rng.uniform(0.005, 0.015, S)
    return Days(
        market=rng.normal(0, 0.01, (S, 6)).astype(np.float32),
        next_return=np.append(moves[1:], np.nan),
        news_offset=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        news_text=np.where(said, rng.integers(1, 41, M), rng.integers(41, 81, M)),
        news_sentiment=np.tile(np.array([0, 1, 0], np.float32), (M, 1)),
        market_text=0,
        texts=InMemory(words.astype(np.float32)),
    )


def fitted(days: Days) -> SameDayLogistic:
    model = SameDayLogistic(T)
    model.fit(days, TRAIN, VALIDATION, seed=1)
    return model


def test_its_reading_says_how_the_day_itself_went_and_its_forecast_what_follows() -> None:
    days, model = reported(), fitted(reported())
    numbers = model.weights()["ahead.numbers.mean"]
    assert numbers.shape == (6 + 1 + 5 + 16,)  # market, score, sentiment, directions
    right = (model.predict(days, TEST).p_up > 0.5) == (days.label[TEST.start : TEST.stop] > 0.5)
    assert right.mean() > 0.75
    slope = model.weights()["ahead.slope"][:-1].reshape(T, -1)
    assert slope[-1, 6] < -0.02  # the newest day's score: up is followed by down


def test_no_return_outside_training_and_validation_and_no_bar_reaches_the_reading() -> None:
    days, before = reported(), fitted(reported()).weights()
    returns = np.random.default_rng(9).normal(0, 0.1, S)
    for span in (TRAIN, VALIDATION):
        returns[span.start : span.stop] = days.next_return[span.start : span.stop]
    assert same(fitted(replace(days, next_return=returns)).weights(), before)
    bars = np.random.default_rng(9).normal(0, 0.1, days.market.shape).astype(np.float32)
    assert np.array_equal(fitted(replace(days, market=bars)).weights()["reading"], before["reading"])
    inside = returns.copy()
    inside[TRAIN.start] *= -3  # the own return of the second training day
    assert not np.array_equal(fitted(replace(days, next_return=inside)).weights()["reading"], before["reading"])


def test_no_training_decision_meets_a_score_that_has_seen_its_label() -> None:
    rng = np.random.default_rng(3)
    known, returns, first = rng.normal(size=(S, 9)), rng.normal(0, 0.01, S), TRAIN.start - T + 1
    scores = scored_apart(known, returns, TRAIN, T, 0.01)
    assert len(scores) == len(TRAIN) + T - 1
    for day in TRAIN:
        other = returns.copy()
        other[day] += 1.0
        moved = np.flatnonzero(scored_apart(known, other, TRAIN, T, 0.01) != scores) + first
        assert not set(moved) & set(range(day - T + 1, day + 1))
        assert len(moved) > 100 or day == TRAIN[-1]  # whose label is the own return of a day outside


def test_where_the_news_says_nothing_of_the_day_it_is_no_better_and_no_worse_than_without() -> None:
    days = reported()
    silent = replace(days, news_text=np.random.default_rng(1).permutation(days.news_text))
    plain = Logistic(T)
    loss = plain.fit(silent, TRAIN, VALIDATION, seed=1).validation_loss
    assert SameDayLogistic(T).fit(silent, TRAIN, VALIDATION, seed=1).validation_loss == pytest.approx(loss, abs=0.02)


def test_days_joined_are_the_days_of_each_one_behind_the_other() -> None:
    days = reported()
    parts = [days.between(5, 9), days.between(100, 101), days.between(2, 4)]
    whole = joined(parts)
    assert len(whole) == 7
    for first, part in zip((0, 4, 5), parts, strict=True):
        again = whole.between(first, first + len(part))
        for name in ("market", "next_return", "news_offset", "news_text", "news_sentiment"):
            assert np.array_equal(getattr(again, name), getattr(part, name)), name


def test_days_of_different_texts_and_no_days_are_not_joined() -> None:
    with pytest.raises(ModelError, match="different texts"):
        joined([reported(), replace(reported(), texts=InMemory(np.zeros((81, D), np.float32)))])
    with pytest.raises(ModelError, match="no days to join"):
        joined([])
