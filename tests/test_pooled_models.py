"""What every model promises that learns from many symbols at once: one list of models, one test for a promise.

MSMF's own are in test_msmf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.base import Days, Weights
from models.baselines import Boosting, Logistic
from models.panel import Part, PooledModel
from models.random_forest import RandomForest, RandomForestConfig
from models.sequence_return import Gru, GruConfig, Lstm, LstmConfig, Transformer, TransformerConfig
from models.svm import Svm, SvmConfig
from tests.test_rival_models import VALIDATION, planted, same
from trader.errors import ModelError

TRAIN, SOME = range(70, 170), {"lookback": 3, "epochs": 3}
MODELS: dict[str, Callable[[], PooledModel]] = {
    "logistic": lambda: Logistic(lookback=3),
    "boosting": lambda: Boosting(lookback=3),
    "lstm": lambda: Lstm(LstmConfig(**SOME)),
    "gru": lambda: Gru(GruConfig(**SOME)),
    "transformer": lambda: Transformer(TransformerConfig(**SOME)),
    "svm": lambda: Svm(SvmConfig(lookback=3)),
    "random_forest": lambda: RandomForest(RandomForestConfig(lookback=3, trees=20)),
}


@pytest.fixture(params=list(MODELS))
def make(request: pytest.FixtureRequest) -> Callable[[], PooledModel]:
    return MODELS[request.param]


def learned(make: Callable[[], PooledModel], parts: Sequence[Part]) -> Weights:
    model = make()
    model.fit_panel(parts, 3)
    return model.weights()


def two() -> list[Part]:
    return [Part(planted(1), TRAIN, VALIDATION), Part(planted(2), TRAIN, VALIDATION)]


def turned(days: Days, at: range) -> Days:
    """Return the days with the moves after the days ``at`` the other way."""
    returns = days.next_return.copy()
    returns[at.start : at.stop] *= -1
    return replace(days, next_return=returns)


def test_one_part_is_learned_as_fit_learns_it(make: Callable[[], PooledModel]) -> None:
    model = make()
    report = model.fit(planted(1), TRAIN, VALIDATION, 3)
    other = make()
    assert other.fit_panel([Part(planted(1), TRAIN, VALIDATION)], 3) == report
    assert isinstance(other, PooledModel) and same(other.weights(), model.weights())


def test_the_training_days_of_every_symbol_are_learned_from(make: Callable[[], PooledModel]) -> None:
    one, other = two()
    both = learned(make, [one, other])
    assert not same(both, learned(make, [one]))
    for parts in (
        [replace(one, days=turned(one.days, TRAIN)), other],
        [one, replace(other, days=turned(other.days, TRAIN))],
    ):
        assert not same(both, learned(make, parts))


def test_statistics_are_those_of_all_symbols_training_days_together(make: Callable[[], PooledModel]) -> None:
    one, other = two()
    found = learned(make, [one, replace(other, days=replace(other.days, market=other.days.market + 1))])
    bars = np.concatenate([one.days.market[70:170], other.days.market[70:170] + 1])
    F = bars.shape[1]
    np.testing.assert_allclose(found["numbers.mean"][:F], bars.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["numbers.std"][:F], bars.std(axis=0), rtol=1e-5)


def test_no_statistic_is_touched_by_a_validation_day_and_nothing_by_a_later_one(
    make: Callable[[], PooledModel],
) -> None:
    one, other = two()
    before = learned(make, [one, other])
    bars = other.days.market.copy()
    bars[VALIDATION.stop :] = 9
    later = replace(other.days, market=bars)
    later = turned(later, range(VALIDATION.stop, len(later)))
    assert same(before, learned(make, [one, replace(other, days=later)]))
    bars = other.days.market.copy()
    bars[VALIDATION.start : VALIDATION.stop] += 0.05
    returns = other.days.next_return.copy()
    returns[VALIDATION.start : VALIDATION.stop] *= 3
    found = learned(make, [one, replace(other, days=replace(other.days, market=bars, next_return=returns))])
    statistics = [name for name in before if name.startswith(("numbers.", "moments"))]
    assert len(statistics) >= 4 and all(np.array_equal(before[name], found[name]) for name in statistics)


def test_a_symbol_may_lack_decisions_of_one_kind_but_not_all_symbols(make: Callable[[], PooledModel]) -> None:
    one, other = two()
    learned(
        make, [replace(one, validation=range(0)), replace(other, train=range(0)), Part(other.days, *[range(0)] * 2)]
    )
    for parts in ([replace(one, validation=range(0))], [replace(one, train=range(0))], []):
        with pytest.raises(ModelError, match="no decisions"):
            make().fit_panel(parts, 3)


def test_symbols_read_through_two_language_models_are_refused(make: Callable[[], PooledModel]) -> None:
    one, other = two()
    narrow = replace(other.days, texts=type(other.days.texts)(other.days.texts.rows(np.arange(201))[:, :5]))  # type: ignore[call-arg]
    with pytest.raises(ModelError, match=r"another language model's.*width 5.*width 24"):
        make().fit_panel([one, replace(other, days=narrow)], 3)
