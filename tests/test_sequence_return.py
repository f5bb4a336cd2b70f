"""LSTM, GRU and Transformer for the next return: sizes and signs, whose bits are a decision's own, and what is kept."""

from __future__ import annotations

from dataclasses import replace
import math
from typing import Any

import numpy as np
import pytest

from models import sequence_return
from models.fitting import log_loss
from models.sequence_return import Gru, GruConfig, Lstm, LstmConfig, SequenceReturn, Transformer, TransformerConfig
from models.sequences import Objective, outputs
from tests.test_rival_models import TEST, TRAIN, VALIDATION, market, planted
from trader.errors import ConfigError

KINDS: dict[str, tuple[Any, Any]] = {
    "lstm": (Lstm, LstmConfig),
    "gru": (Gru, GruConfig),
    "transformer": (Transformer, TransformerConfig),
}


def made(kind: str, **settings: Any) -> SequenceReturn:
    model, config = KINDS[kind]
    built: SequenceReturn = model(config(**{"lookback": 3, "epochs": 15} | settings))
    return built


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


def test_a_return_is_forecast_in_sign_and_size_and_its_probability_is_a_normal_ones(kind: str) -> None:
    model = made(kind, epochs=40)
    model.fit(market(), TRAIN, VALIDATION, seed=1)
    said, truth = model.predict(market(), TEST), market().next_return[TEST.start :]
    assert said.expected_return is not None and said.news_weights is None
    assert np.corrcoef(said.expected_return, truth)[0, 1] > 0.5
    assert 0.4 < said.expected_return.std() / truth.std() < 1
    std = market().next_return[TRAIN.start : TRAIN.stop].std()
    normal = [0.5 * (1 + math.erf(one / std / math.sqrt(2))) for one in said.expected_return]
    np.testing.assert_allclose(said.p_up, normal, rtol=1e-9)
    assert np.array_equal(said.p_up > 0.5, said.expected_return > 0)


@pytest.mark.parametrize("settings", [{"lookback": 1}, {"lookback": 20, "hidden": 40, "layers": 2}, {"hidden": 16}])
def test_a_forecast_is_the_same_bits_alone_and_among_others(kind: str, settings: dict[str, Any]) -> None:
    model = made(kind, epochs=2, **settings)
    model.fit(market(), TRAIN, VALIDATION, seed=1)
    together = model.predict(market(), TEST)
    assert together.expected_return is not None and len(np.unique(together.p_up)) > 100
    for row in range(0, len(TEST), 9):
        own = market().between(TEST[row] - model.lookback + 1, TEST[row] + 1)
        alone = model.predict(own, [model.lookback - 1])
        assert alone.expected_return is not None
        assert alone.expected_return[0] == together.expected_return[row] and alone.p_up[0] == together.p_up[row]
    backwards = model.predict(market(), TEST[::-1]).p_up
    assert np.array_equal(backwards[::-1], together.p_up)


def test_each_day_of_the_window_is_read_and_so_is_their_order(kind: str) -> None:
    model = made(kind)
    model.fit(market(), TRAIN, VALIDATION, seed=1)
    day = TEST[20]
    before = model.predict(market(), [day]).p_up[0]
    for lag in range(3):
        bars = market().market.copy()
        bars[day - lag] += 0.01
        assert model.predict(replace(market(), market=bars), [day]).p_up[0] != before
    _, network = model._trained()
    x = np.random.default_rng(0).normal(size=(64, 3, 27)).astype(np.float32)
    moved = outputs(network, x[:, [1, 0, 2]]) - outputs(network, x)
    assert np.abs(moved).min() > 0 and np.abs(moved).mean() > 1e-4, "more than rounding"


def test_the_epoch_of_least_squared_error_is_kept_and_its_log_loss_told(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[float] = []

    def score(outputs: Any, truth: Any) -> tuple[float, float]:
        errors.append(own.score(outputs, truth)[0])
        assert errors[-1] == pytest.approx(np.square(outputs - truth).mean())
        return errors[-1], 0.0

    own = sequence_return.RETURN
    monkeypatch.setattr(sequence_return, "RETURN", Objective(own.loss, score))
    model, days = made(kind, patience=3, epochs=60, learning_rate=1e-2), planted(3, rule=0.6)
    report = model.fit(days, TRAIN, VALIDATION, seed=1)
    assert report.epochs == len(errors) == report.best_epoch + 3, "it stopped, three epochs after the best"
    assert report.best_epoch == np.argmin(errors) + 1
    said = model.predict(days, VALIDATION)
    label, returned = (array[VALIDATION.start : VALIDATION.stop] for array in (days.label, days.next_return))
    assert (report.validation_loss, report.validation_accuracy) == log_loss(said.p_up, label)
    std = days.next_return[TRAIN.start : TRAIN.stop].std()
    assert said.expected_return is not None
    kept = np.square((said.expected_return - returned) / std).mean()
    assert kept == pytest.approx(min(errors), rel=1e-5)


def test_returns_of_any_scale_are_learned_alike(kind: str) -> None:
    small, large = made(kind), made(kind)
    small.fit(market(), TRAIN, VALIDATION, seed=1)
    large.fit(replace(market(), next_return=64 * market().next_return), TRAIN, VALIDATION, seed=1)
    one, other = (model.predict(market(), TEST).expected_return for model in (small, large))
    assert one is not None and other is not None
    np.testing.assert_allclose(64 * one, other, rtol=1e-9)


def test_a_seed_is_another_training(kind: str) -> None:
    one, other = made(kind, epochs=2), made(kind, epochs=2)
    one.fit(market(), TRAIN, VALIDATION, seed=1)
    other.fit(market(), TRAIN, VALIDATION, seed=2)
    assert not np.array_equal(one.predict(market(), TEST).p_up, other.predict(market(), TEST).p_up)


def test_weights_of_other_sizes_are_refused(kind: str) -> None:
    model = made(kind, epochs=1)
    model.fit(market(), TRAIN, VALIDATION, seed=1)
    with pytest.raises(ValueError, match="weights do not fit"):
        made(kind, hidden=40).load(model.weights())
    with pytest.raises(ValueError, match="weights do not fit"):
        made(kind, layers=3).load(model.weights())
    with pytest.raises(ValueError, match="weights do not fit: moments"):
        made(kind).load(model.weights() | {"moments": np.zeros(3)})


def test_a_window_of_another_length_is_refused_where_positions_are_learned() -> None:
    model = made("transformer", epochs=1)
    model.fit(market(), TRAIN, VALIDATION, seed=1)
    with pytest.raises(ValueError, match=r"weights do not fit: network\.positions"):
        made("transformer", lookback=5).load(model.weights())


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"hidden": 20}, "hidden is no width"),
        ({"hidden": 8}, "hidden is no width"),
        ({"layers": 0}, "layers is too small"),
        ({"lookback": 0}, "lookback is too small"),
        ({"batch": 0}, "batch is too small"),
        ({"learning_rate": 0.0}, "learning_rate is too small"),
        ({"weight_decay": -0.1}, "weight_decay is negative"),
        ({"dropout": 1.0}, "dropout is not a share"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(kind: str, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind}: {what}"):
        made(kind, **settings)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads do not divide hidden"):
        made("transformer", heads=3)
