"""The ridge sketch: what it reads, what its bits depend on, and that it forecasts returns, not signs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import math

import numpy as np
import pytest

from models.base import Days
from models.fitting import InMemory
from models.ridge import PENALTIES, Ridge, RidgeConfig
from trader.errors import ConfigError, ModelError

D, TRAIN, VALIDATION, LATER = 24, range(4, 204), range(207, 257), range(260, 320)


def made_days(count: int = 320, seed: int = 0, *, counts: Sequence[int] | None = None, width: int = D) -> Days:
    """Return random days whose return is, but for a little noise, a mean over their headlines."""
    rng = np.random.default_rng(seed)
    news = np.asarray(counts if counts is not None else rng.integers(0, 9, count))
    table = rng.normal(size=(200, width)).astype(np.float32)
    text, offset = rng.integers(1, 200, int(news.sum())), np.concatenate([[0], np.cumsum(news)]).astype(np.int64)
    sums = np.concatenate([[0.0], np.cumsum(table[text, 0], dtype=np.float64)])
    told = (sums[offset[1:]] - sums[offset[:-1]]) / np.maximum(news, 1)
    return Days(
        market=rng.normal(0, 0.01, (count, 6)).astype(np.float32),
        next_return=0.01 * told + rng.normal(0, 0.002, count),
        news_offset=offset,
        news_text=text,
        news_sentiment=rng.dirichlet([1, 2, 1], len(text)).astype(np.float32),
        market_text=0,
        texts=InMemory(table),
    )


def trained(days: Days, lookback: int = 5, components: int = D) -> Ridge:
    model = Ridge(RidgeConfig(lookback=lookback, components=components))
    model.fit(days, TRAIN, VALIDATION, seed=1)
    return model


def test_what_the_news_tells_of_the_return_is_forecast_in_size_and_sign() -> None:
    days = made_days()
    said = trained(days, lookback=1).predict(days, LATER)
    assert said.expected_return is not None and said.news_weights is None
    assert np.corrcoef(said.expected_return, days.next_return[LATER.start :])[0, 1] > 0.8
    assert np.array_equal(said.p_up > 0.5, said.expected_return > 0)


def test_the_regression_is_that_of_scikit_learn_on_whitened_components() -> None:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge as Reference
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    days = made_days(counts=[5] * 320)
    means = days.texts.rows(days.news_text).reshape(320, 5, D).mean(axis=1).astype(np.float64)
    model = Ridge(RidgeConfig(lookback=1, components=10))
    penalty = PENALTIES[model.fit(days, TRAIN, VALIDATION, seed=1).best_epoch - 1]
    n = len(TRAIN)  # scikit-learn whitens by n − 1
    reference = make_pipeline(StandardScaler(), PCA(10, whiten=True), Reference(alpha=penalty * (n - 1)))
    reference.fit(means[TRAIN.start : TRAIN.stop], days.next_return[TRAIN.start : TRAIN.stop])
    said = model.predict(days, LATER).expected_return
    assert said is not None
    np.testing.assert_allclose(said, reference.predict(means[LATER.start :]), rtol=1e-5, atol=1e-8)


def test_news_of_each_lookback_day_is_read() -> None:
    days = made_days()
    later = replace(days, next_return=np.append(np.zeros(2), days.next_return[:-2]))  # told two days before
    said = trained(later, lookback=3).predict(later, LATER).expected_return
    assert said is not None
    assert np.corrcoef(said, later.next_return[LATER.start :])[0, 1] > 0.6
    short = trained(later, lookback=2).predict(later, LATER).expected_return
    assert short is not None
    assert abs(np.corrcoef(short, later.next_return[LATER.start :])[0, 1]) < 0.4


def test_a_day_without_news_is_forecast_the_mean_return_of_training() -> None:
    days = made_days(counts=[5] * 300 + [0] * 20)
    said = trained(days, lookback=1).predict(days, range(300, 320)).expected_return
    assert said is not None
    np.testing.assert_allclose(said, days.next_return[TRAIN.start : TRAIN.stop].mean(), rtol=1e-9)


def test_a_probability_is_the_normal_distributions_at_the_forecast_over_the_residuals() -> None:
    days = made_days()
    model = trained(days, lookback=1)
    said, residual = model.predict(days, LATER), model.predict(days, TRAIN).expected_return
    assert said.expected_return is not None and residual is not None
    sigma = (residual - days.next_return[TRAIN.start : TRAIN.stop]).std()
    expected = [0.5 * (1 + math.erf(one / sigma / math.sqrt(2))) for one in said.expected_return]
    np.testing.assert_allclose(said.p_up, expected, rtol=1e-9)


def test_prices_and_sentiment_are_not_read() -> None:
    days = made_days()
    other = replace(days, market=days.market + 1, news_sentiment=days.news_sentiment[::-1])
    assert np.array_equal(trained(days).predict(days, LATER).p_up, trained(other).predict(other, LATER).p_up)


def test_the_less_the_news_tells_the_more_validation_shrinks() -> None:
    days = made_days()
    model = Ridge(RidgeConfig(lookback=1, components=D))
    report = model.fit(days, TRAIN, VALIDATION, seed=1)
    assert report.epochs == len(PENALTIES)
    assert report.best_epoch < 4, "the news tells much: little shrinkage"
    noise = replace(days, next_return=np.random.default_rng(1).normal(0, 0.01, len(days)))
    assert model.fit(noise, TRAIN, VALIDATION, seed=1).best_epoch > 5, "the news tells nothing: much shrinkage"


def test_one_decision_alone_equals_the_same_decision_among_all() -> None:
    days = made_days(width=384)
    model = trained(days, components=40)
    together = model.predict(days, range(4, 320))
    assert together.expected_return is not None
    for at in range(4, 320, 9):
        alone, short = model.predict(days, [at]), model.predict(days.between(at - 4, at + 1), [4])
        assert alone.expected_return is not None and short.expected_return is not None
        assert alone.p_up[0] == together.p_up[at - 4] == short.p_up[0]
        assert alone.expected_return[0] == together.expected_return[at - 4] == short.expected_return[0]


def test_saved_weights_are_plain_arrays_and_forecast_the_same_bits() -> None:
    days = made_days()
    model = trained(days)
    weights = {name: array.copy() for name, array in model.weights().items()}
    assert all(array.dtype.kind == "f" for array in weights.values())
    copy = Ridge(model.config)
    copy.load(weights)
    assert np.array_equal(copy.predict(days, LATER).p_up, model.predict(days, LATER).p_up)
    assert all(np.array_equal(copy.weights()[name], array) for name, array in weights.items())


def test_weights_that_do_not_fit_are_refused() -> None:
    model = trained(made_days())
    weights = model.weights()
    with pytest.raises(ValueError, match="slope"):
        Ridge(RidgeConfig(lookback=3, components=D)).load(weights)
    with pytest.raises(ValueError, match=r"news\.directions"):
        Ridge(RidgeConfig(lookback=5, components=7)).load(weights)
    with pytest.raises(ValueError, match=r"weights do not fit.*sigma"):
        model.load({name: weights[name] for name in weights if name != "sigma"})


def test_the_same_arguments_give_the_same_weights() -> None:
    days = made_days()
    first, again = trained(days).weights(), trained(days.between(0, 257)).weights()  # nothing later is read
    assert all(np.array_equal(array, first[name]) for name, array in again.items())


def test_labels_are_not_read_in_a_forecast() -> None:
    days = made_days()
    model = trained(days)
    blind = replace(days, next_return=np.full(len(days), np.nan))
    assert np.array_equal(model.predict(blind, LATER).p_up, model.predict(days, LATER).p_up)


def test_every_statistic_comes_from_training_days_alone() -> None:
    days = made_days()
    text = days.news_text.copy()
    text[int(days.news_offset[204]) :] = 5
    changed = replace(days, news_text=text)
    one, other = trained(days).weights(), trained(changed).weights()
    for name in ("news.mean", "news.std", "news.directions"):
        assert np.array_equal(one[name], other[name])


def test_more_components_than_the_training_days_span_stay_zero() -> None:
    days = made_days()
    model = Ridge(RidgeConfig(lookback=1, components=40))
    model.fit(days, range(4, 14), VALIDATION, seed=1)
    directions = model.weights()["news.directions"]
    spanned = np.abs(directions).max(axis=0) > 0
    assert directions.shape == (D, 40) and 1 < spanned.sum() < 10 and not spanned[10:].any()
    assert np.isfinite(model.predict(days, LATER).p_up).all()


@pytest.mark.parametrize("counts", [[0] * 320, [3] * 320])
def test_days_without_news_or_all_alike_give_the_mean_return(counts: list[int]) -> None:
    days = made_days(counts=counts)
    alike = replace(days, news_text=np.full(len(days.news_text), 7))
    said = trained(alike).predict(alike, LATER).expected_return
    assert said is not None
    np.testing.assert_allclose(said, days.next_return[TRAIN.start : TRAIN.stop].mean(), rtol=1e-6)


def test_a_number_that_is_none_is_refused_by_day() -> None:
    days = made_days(counts=[2] * 320)
    table = days.texts.rows(np.arange(200))
    table[int(days.news_text[days.news(280)][0])] = np.nan
    first = next(day for day in range(4, 320) if np.isnan(table[days.news_text[days.news(day)]]).any())
    model = trained(days)
    with pytest.raises(ModelError, match=rf"day {first}: .*not a number"):
        model.predict(replace(days, texts=InMemory(table)), range(4, 320))


def test_training_on_a_number_that_is_none_is_refused() -> None:
    days = made_days(counts=[2] * 320)
    table = days.texts.rows(np.arange(200))
    table[int(days.news_text[days.news(50)][0])] = np.nan
    with pytest.raises(ModelError, match="not a number"):
        trained(replace(days, texts=InMemory(table)))


def test_decisions_without_days_or_labels_are_refused() -> None:
    days = made_days()
    with pytest.raises(ModelError, match="not been trained"):
        Ridge().predict(days, [10])
    with pytest.raises(ModelError, match="not been trained"):
        Ridge().weights()
    with pytest.raises(ModelError, match="lacks its days"):
        Ridge().fit(days, range(2, 100), VALIDATION, seed=1)
    later = days.next_return.copy()
    later[100] = np.nan
    with pytest.raises(ModelError, match="no label yet"):
        Ridge().fit(replace(days, next_return=later), TRAIN, VALIDATION, seed=1)


@pytest.mark.parametrize("name", ["lookback", "components"])
def test_a_value_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is too small"):
        RidgeConfig(**{name: 0})
