"""The rivals: they learn what is plain, forecast day by day as in batches, and keep their weights without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import sys
import time

import numpy as np
import pytest

from models.base import Days, Model
from models.baselines import Boosting, Logistic
from models.day_numbers import DayNumbers
from models.fitting import InMemory
from models.panel import Part
from models.same_day_logistic import SameDayLogistic
from trader.errors import ModelError

D, TRAIN, VALIDATION = 24, range(4, 204), range(207, 257)


def made_days(count: int = 320, seed: int = 0, *, counts: Sequence[int] | None = None, width: int = D) -> Days:
    """Return random days whose tone, one day in ten aside, tells tomorrow's direction."""
    rng = np.random.default_rng(seed)
    news = np.asarray(counts if counts is not None else rng.integers(0, 9, count))
    up = rng.random(count) < 0.5
    tone = np.repeat(np.where(rng.random(count) < 0.9, up, ~up), news)[:, None]
    M = int(news.sum())
    return Days(
        market=rng.normal(0, 0.01, (count, 6)).astype(np.float32),
        next_return=np.where(up, 0.01, -0.01),
        news_offset=np.concatenate([[0], np.cumsum(news)]).astype(np.int64),
        news_text=rng.integers(1, 200, M),
        news_sentiment=np.where(tone, [0.1, 0.5, 0.4], [0.4, 0.5, 0.1]).astype(np.float32),
        market_text=0,
        texts=InMemory(rng.normal(size=(200, width)).astype(np.float32)),
    )


@pytest.fixture(params=[Logistic, Boosting, SameDayLogistic])
def model(request: pytest.FixtureRequest) -> Model:
    made: Model = request.param(lookback=5)
    return made


def test_what_the_tone_tells_is_learned(model: Model) -> None:
    days = made_days()
    report = model.fit(days, TRAIN, VALIDATION, seed=1)
    p_up = model.predict(days, range(260, 320)).p_up
    assert ((p_up > 0.5) == (days.label[260:] > 0.5)).mean() > 0.7
    assert report.validation_loss < 0.6


def test_one_decision_alone_equals_the_same_decision_among_all(model: Model) -> None:
    days = made_days(width=384)
    model.fit(days, TRAIN, VALIDATION, seed=1)
    together = model.predict(days, range(4, 320)).p_up
    for at in range(4, 320, 9):
        assert model.predict(days, [at]).p_up[0] == together[at - 4]
        assert model.predict(days.between(at - 4, at + 1), [4]).p_up[0] == together[at - 4]


def test_saved_weights_are_plain_arrays_and_forecast_the_same_bits(model: Model) -> None:
    days = made_days()
    model.fit(days, TRAIN, VALIDATION, seed=1)
    weights = {name: array.copy() for name, array in model.weights().items()}
    assert all(array.dtype.kind in "fu" for array in weights.values())
    copy = type(model)(lookback=5)
    copy.load(weights)
    assert np.array_equal(copy.predict(days, range(4, 320)).p_up, model.predict(days, range(4, 320)).p_up)
    assert all(np.array_equal(copy.weights()[name], array) for name, array in weights.items())


def test_weights_that_do_not_fit_are_refused(model: Model) -> None:
    model.fit(made_days(), TRAIN, VALIDATION, seed=1)
    weights = model.weights()
    with pytest.raises(ValueError, match="lookback 3"):
        type(model)(lookback=3).load(weights)
    with pytest.raises(ValueError, match="weights do not fit"):
        type(model)(lookback=5).load({name: weights[name] for name in sorted(weights)[1:]})
    with pytest.raises(ValueError, match="weights do not fit"):
        type(model)(lookback=5).load(weights | {"numbers.directions": np.zeros((D, 3))})
    if "trees" in weights:
        with pytest.raises(ValueError, match="cannot be read"):
            type(model)(lookback=5).load(weights | {"trees": np.arange(50, dtype=np.uint8)})


def test_the_same_arguments_give_the_same_weights(model: Model) -> None:
    days = made_days()
    model.fit(days, TRAIN, VALIDATION, seed=1)
    first = model.weights()
    model.fit(days.between(0, 257), TRAIN, VALIDATION, seed=1)  # nothing after validation is read
    assert all(np.array_equal(array, first[name]) for name, array in model.weights().items())


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_market_that_only_rises_or_only_falls_can_be_learned(model: Model, sign: int) -> None:
    days = made_days()
    one_way = replace(days, next_return=sign * np.abs(days.next_return))
    model.fit(one_way, TRAIN, VALIDATION, seed=1)
    p_up = model.predict(one_way, range(4, 320)).p_up
    assert np.isfinite(p_up).all() and ((p_up > 0.5) == (sign > 0)).all()


def test_days_without_any_news_train_and_forecast(model: Model) -> None:
    days = made_days(counts=[0] * 320)
    model.fit(days, TRAIN, VALIDATION, seed=1)
    assert np.isfinite(model.predict(days, range(4, 320)).p_up).all()


def test_every_statistic_comes_from_training_days_alone(model: Model) -> None:
    days = made_days()
    model.fit(days, TRAIN, VALIDATION, seed=1)
    market, sentiment, text = days.market.copy(), days.news_sentiment.copy(), days.news_text.copy()
    later = int(days.news_offset[204])
    market[204:], sentiment[later:], text[later:] = market[204:] + 3, [1, 0, 0], 5
    other = type(model)(lookback=5)
    other.fit(replace(days, market=market, news_sentiment=sentiment, news_text=text), TRAIN, VALIDATION, seed=1)
    numbers = {name: array for name, array in model.weights().items() if name.startswith("numbers.")}
    assert all(np.array_equal(other.weights()[name], array) for name, array in numbers.items())
    described = DayNumbers.of([Part(days, TRAIN, VALIDATION)])(days, np.arange(4, 204))
    np.testing.assert_allclose(described.mean(axis=0), 0, atol=0.05)  # the cut at ±5 aside


def test_a_number_that_is_none_is_refused_by_day(model: Model) -> None:
    days = made_days()
    market = days.market.copy()
    market[30, 2] = np.nan
    with pytest.raises(ModelError, match=r"day 30: .*not a number"):
        model.fit(replace(days, market=market), TRAIN, VALIDATION, seed=1)


def test_decisions_without_days_or_labels_are_refused(model: Model) -> None:
    days = made_days()
    with pytest.raises(ModelError, match="not been trained"):
        model.predict(days, [10])
    with pytest.raises(ModelError, match="lacks its days"):
        model.fit(days, range(2, 100), VALIDATION, seed=1)
    later = days.next_return.copy()
    later[100] = np.nan
    with pytest.raises(ModelError, match="no label yet"):
        model.fit(replace(days, next_return=later), TRAIN, VALIDATION, seed=1)


def test_boosting_without_xgboost_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)  # what Python itself does where a module cannot be had
    with pytest.raises(ModelError, match=r"needs xgboost; install the extra: pip install '\.\[boost\]'"):
        Boosting().fit(made_days(), TRAIN, VALIDATION, seed=1)


def test_a_fold_of_the_wires_size_is_fitted_in_well_under_a_second() -> None:
    days = made_days(460, counts=[13] * 460, width=384)
    Logistic().fit(days, range(4, 44), range(47, 57), seed=1)  # imports
    begun = time.process_time()
    Logistic().fit(days, range(4, 404), range(407, 457), seed=1)
    assert time.process_time() - begun < 1  # 0.09 s of processor time when written
