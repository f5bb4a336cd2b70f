"""The SVM: scikit-learn's decision values from plain arrays, and a sigmoid that has seen nothing it should not have."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
import pytest

from models import svm
from models.base import Days
from models.day_numbers import DayNumbers
from models.fitting import log_loss
from models.panel import Part
from models.svm import Machine, Svm, SvmConfig, platt, split
from tests.test_rival_models import TEST, TRAIN, VALIDATION, market, planted, same
from trader.errors import ConfigError

Floats = NDArray[np.float64]


@pytest.fixture
def one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing to choose on validation."""
    monkeypatch.setattr(svm, "COSTS", (1.0,))
    monkeypatch.setattr(svm, "WIDTHS", (1.0,))


def trained(days: Days, rows: int = 4_000) -> Svm:
    model = Svm(SvmConfig(lookback=3, rows=rows))
    model.fit(days, TRAIN, VALIDATION, seed=1)
    return model


def turned(days: Days, at: range) -> Days:
    """Return the days with the moves after the days ``at`` the other way."""
    returns = days.next_return.copy()
    returns[at.start : at.stop] *= -1
    return replace(days, next_return=returns)


def samples(days: Days) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    numbers = DayNumbers.of([Part(days, TRAIN, VALIDATION)])
    return numbers.windows(days, TRAIN, 3), days.label[TRAIN.start : TRAIN.stop]


@pytest.mark.parametrize("cost", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("gamma", [0.003, 0.01, 0.3])
def test_decision_values_are_those_of_scikit_learn(cost: float, gamma: float) -> None:
    from sklearn.svm import SVC

    x, y = samples(planted(2, rule=0.7))
    reference = SVC(C=cost, gamma=gamma).fit(x[:200].astype(np.float64), y[:200])
    decided = Machine.fit(x[:200], y[:200], cost, gamma).decide(x)
    np.testing.assert_allclose(decided, reference.decision_function(x.astype(np.float64)), rtol=0, atol=1e-9)
    assert decided.std() > 1e-3


def test_forecasts_are_the_sigmoid_of_a_machine_on_all_and_the_sigmoid_that_of_one_on_four_fifths(
    one_choice: None,
) -> None:
    from sklearn.svm import SVC

    x, y = samples(market())
    x, n = x.astype(np.float64), len(TRAIN)
    held_out = n - n // 5
    early = SVC(C=1.0, gamma=1 / x.shape[1]).fit(x[: held_out - 1], y[: held_out - 1])
    slope, offset = platt(early.decision_function(x[held_out:]), y[held_out:])
    whole = SVC(C=1.0, gamma=1 / x.shape[1]).fit(x, y)
    model = trained(market())
    expected = 1 / (1 + np.exp(-(slope * whole.decision_function(x) + offset)))
    np.testing.assert_allclose(model.predict(market(), TRAIN).p_up, expected, atol=1e-6)
    assert slope > 0.5
    np.testing.assert_allclose(model.weights()["svm.sigmoid"], [slope, offset], rtol=1e-6)


def test_no_label_of_validation_or_later_is_in_machine_or_sigmoid(one_choice: None) -> None:
    before = trained(market()).weights()
    other = turned(market(), range(TRAIN.stop, len(market())))
    assert not np.array_equal(other.label[VALIDATION.start : VALIDATION.stop], market().label[373:423])
    assert same(trained(other).weights(), before)
    assert not same(trained(turned(market(), range(TRAIN.stop - 5, TRAIN.stop))).weights(), before)


@pytest.mark.parametrize(("seed", "rule"), [(0, 0.9), (4, 0.7), (6, 0.6)])
def test_validation_chooses_by_its_log_loss(monkeypatch: pytest.MonkeyPatch, seed: int, rule: float) -> None:
    days, model = planted(seed, rule=rule), Svm(SvmConfig(lookback=3))
    report = model.fit(days, TRAIN, VALIDATION, seed=1)
    label, said = days.label[VALIDATION.start : VALIDATION.stop], model.predict(days, VALIDATION).p_up
    assert (report.validation_loss, report.validation_accuracy) == log_loss(said, label)
    losses = []
    for cost, width in product(svm.COSTS, svm.WIDTHS):
        with monkeypatch.context() as only:
            only.setattr(svm, "COSTS", (cost,))
            only.setattr(svm, "WIDTHS", (width,))
            losses.append(Svm(SvmConfig(lookback=3)).fit(days, TRAIN, VALIDATION, seed=1).validation_loss)
    assert report.epochs == len(losses) and report.validation_loss == min(losses) < max(losses)
    assert report.best_epoch == 1 + losses.index(min(losses))


def test_a_machine_that_misleads_is_not_turned_around(one_choice: None) -> None:
    days = turned(market(), range(TRAIN.stop - len(TRAIN) // 5, TRAIN.stop))  # the rule turns where it is held out
    p_up = trained(days).predict(days, TEST).p_up
    ups, n = int(days.label[TRAIN.start : TRAIN.stop].sum()), len(TRAIN)
    np.testing.assert_allclose(p_up, (ups + 1) / (n + 2), rtol=1e-12)


def test_the_sigmoid_is_that_of_greatest_likelihood_of_platts_targets() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    decided = rng.normal(0.3, 1.0, 80)
    label = (rng.random(80) < 1 / (1 + np.exp(-2 * decided))).astype(np.float32)
    up, down = label.sum(), 80 - label.sum()
    target = np.where(label > 0.5, (up + 1) / (up + 2), 1 / (down + 2))
    twice, weight = np.tile(decided, 2)[:, None], np.concatenate([target, 1 - target])
    reference = LogisticRegression(C=1e9, tol=1e-10, max_iter=5_000)
    reference.fit(twice, np.repeat([1, 0], 80), sample_weight=weight)
    np.testing.assert_allclose(platt(decided, label), [reference.coef_[0, 0], reference.intercept_[0]], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_sigmoid_is_finite_where_the_values_part_the_labels(scale: float) -> None:
    decided, label = scale * np.linspace(-1, 1, 41), (np.linspace(-1, 1, 41) > 0).astype(np.float32)
    slope, offset = platt(decided, label)
    assert slope > 0 and np.isfinite([slope, offset]).all()
    loss, accuracy = log_loss(1 / (1 + np.exp(-(slope * decided + offset))), label)
    assert accuracy == 1 and loss < 0.2


def test_thinned_decisions_span_all_symbols_and_all_of_their_time() -> None:
    every, first, held_out = split([700, 300], 100)
    assert len(every) == 100 and every.min() == 0 and every.max() >= 985
    assert (every < 700).sum() == 70 and len(np.unique(every)) == 100
    assert set(first) | set(held_out) < set(every) and not set(first) & set(held_out)
    for low, high in ((0, 700), (700, 1000)):
        early, late = ([at for at in part if low <= at < high] for part in (first, held_out))
        assert max(early) < min(late) and len(early) + len(late) == (every < high).sum() - (every < low).sum() - 1
    for most in range(1, 40):
        assert len(np.unique(split([40], most)[0])) == most


def test_no_more_rows_are_learned_from_than_allowed() -> None:
    few, many = trained(market(), rows=60).weights(), trained(market()).weights()
    assert len(few["svm.vectors"]) <= 60 < len(many["svm.vectors"])


def test_weights_of_other_shapes_are_refused_by_name() -> None:
    weights = trained(market()).weights()
    with pytest.raises(ValueError, match=r"weights do not fit lookback 5: svm\.vectors"):
        Svm(SvmConfig(lookback=5)).load(weights)
    with pytest.raises(ValueError, match=r"svm\.sigmoid has shape \(3,\), expected \(2,\)"):
        Svm(SvmConfig(lookback=3)).load(weights | {"svm.sigmoid": np.zeros(3)})


def test_sizes_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="svm: rows is too small"):
        SvmConfig(rows=9)
    with pytest.raises(ConfigError, match="svm: lookback is too small"):
        SvmConfig(lookback=0)
