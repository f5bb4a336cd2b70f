"""What every rival promises, asked of each in turn: one list of models, one test for a promise.

The market is planted: nine days in ten, tomorrow follows the mood of today's headlines, which shows in their sentiment,
in how many are positive, and in their words. So every model here has inputs that see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load, save

from models import baselines, random_forest
from models.base import Days, Model, Weights
from models.baselines import Boosting, Logistic
from models.ensemble import Ensemble, EnsembleConfig
from models.fitting import InMemory
from models.fpt import Fpt, FptConfig
from models.msmf.model import Msmf, MsmfConfig
from models.naf import Naf, NafConfig
from models.pen import Pen, PenConfig
from models.random_forest import RandomForest, RandomForestConfig
from models.same_day_logistic import SameDayLogistic
from models.sentiments import Sentiments, SentimentsConfig
from models.sequence_return import Gru, GruConfig, Lstm, LstmConfig, Transformer, TransformerConfig
from models.svm import Svm, SvmConfig
from trader.errors import ModelError

S, D = 600, 24
TRAIN, VALIDATION, TEST = range(70, 370), range(373, 423), range(426, S)
SHORT, SIXTEEN = range(70, 134), range(70, 86)  # decisions to train on where little will do


@dataclass(frozen=True)
class Case:
    """A model by name.

    make: as it is used, small.   eager: so set that it may learn 16 days by heart.   rule: how far those follow the
    mood; 0.5 is a coin, which only memory can get right. A blend learns from days held out, so has to be shown a rule;
    so does an SVM's sigmoid.
    """

    name: str
    make: Callable[[], Model]
    eager: Callable[[], Model]
    rule: float = 0.5


EAGER = {"lookback": 3, "trailing": 5, "dropout": 0.0, "weight_decay": 0.0, "epochs": 100, "patience": 100, "batch": 4}
EAGER_RETURN = {name: value for name, value in EAGER.items() if name != "trailing"} | {"learning_rate": 3e-3}
# Two narrow blocks; five days, for of a window's level FPT sees nothing: three days alike tell it nothing.
GPT2 = {"lookback": 5, "hidden": 64, "heads": 2, "blocks": 2, "learning_rate": 3e-3, "epochs": 8}
# Small: a chart of five sessions, two heads.
MSMF = {"lookback": 3, "chart_sessions": 5, "hidden": 16, "token_width": 16, "heads": 2, "epochs": 8, "batch_days": 16}
MSMF |= {"learning_rate": 3e-3, "pretrain_epochs": 1}
CASES = [
    Case("logistic", lambda: Logistic(lookback=3), lambda: Logistic(lookback=3)),
    Case("boosting", lambda: Boosting(lookback=3), lambda: Boosting(lookback=3)),
    Case("naf", lambda: Naf(NafConfig(lookback=3)), lambda: Naf(NafConfig(**EAGER))),  # type: ignore[arg-type]
    Case(
        "sentiments",
        lambda: Sentiments(SentimentsConfig(lookback=3)),
        lambda: Sentiments(SentimentsConfig(**EAGER)),  # type: ignore[arg-type]
    ),
    Case(
        "ensemble",
        lambda: Ensemble(EnsembleConfig(lookback=3)),
        lambda: Ensemble(EnsembleConfig(**EAGER | {"lookback": 1, "held_out": 0.4})),  # type: ignore[arg-type]
        rule=1.0,
    ),
    Case(
        "fpt",
        lambda: Fpt(FptConfig(**GPT2)),  # type: ignore[arg-type]
        lambda: Fpt(FptConfig(**GPT2 | EAGER | {"epochs": 60})),  # type: ignore[arg-type]
    ),
    Case(
        "pen",
        lambda: Pen(PenConfig(lookback=3, epochs=10, learning_rate=2e-3)),
        lambda: Pen(PenConfig(lookback=3, dropout=0, learning_rate=3e-3, epochs=60, patience=60, batch_days=4)),
    ),
    Case("same_day_logistic", lambda: SameDayLogistic(lookback=3), lambda: SameDayLogistic(lookback=3)),
    Case(
        "msmf",
        lambda: Msmf(MsmfConfig(**MSMF)),  # type: ignore[arg-type]
        lambda: Msmf(MsmfConfig(**MSMF | {"dropout": 0.0, "weight_decay": 0.0, "epochs": 60, "patience": 60})),  # type: ignore[arg-type]
    ),
    Case("lstm", lambda: Lstm(LstmConfig(lookback=3)), lambda: Lstm(LstmConfig(**EAGER_RETURN))),  # type: ignore[arg-type]
    Case("gru", lambda: Gru(GruConfig(lookback=3)), lambda: Gru(GruConfig(**EAGER_RETURN))),  # type: ignore[arg-type]
    Case(
        "transformer",
        lambda: Transformer(TransformerConfig(lookback=3)),
        lambda: Transformer(TransformerConfig(**EAGER_RETURN)),  # type: ignore[arg-type]
    ),
    Case("svm", lambda: Svm(SvmConfig(lookback=3)), lambda: Svm(SvmConfig(lookback=1)), rule=1.0),
    Case(
        "random_forest",
        lambda: RandomForest(RandomForestConfig(lookback=3, trees=50)),
        lambda: RandomForest(RandomForestConfig(lookback=3)),
    ),
    # Further models: one Case each, here.
]


def planted(seed: int = 0, *, most: int = 20, rule: float = 0.9) -> Days:
    """Return S days whose headlines show a mood that tomorrow follows with probability ``rule``; a coin without news.

    One day in twenty has no headlines. Prices are white: today's bar says nothing of tomorrow.
    """
    rng = np.random.default_rng(seed)
    mood = rng.random(S) < 0.5  # (S,)
    count = rng.integers(8, most + 1, S) * (rng.random(S) > 0.05) if most else np.zeros(S, np.int64)
    follows = rng.random(S) < np.where(count > 0, rule, 0.5)
    returns = np.where(mood == follows, 1, -1) * rng.uniform(0.005, 0.015, S)
    M = int(count.sum())
    good = rng.random(M) < np.where(np.repeat(mood, count), 0.75, 0.25)  # (M,)
    sure = rng.uniform(0.1, 0.6, M)
    sentiment = np.where(good[:, None], np.column_stack([0 * sure, 1 - sure, sure]), 0)
    sentiment += np.where(good[:, None], 0, np.column_stack([sure, 1 - sure, 0 * sure]))
    words = rng.normal(size=(201, D))
    words[1:101, 0] += 3  # good words
    words[101:, 0] -= 3
    market = rng.normal(0, 0.01, (S, 6))
    market[1:, 3] = np.log1p(returns[:-1])
    return Days(
        market=market.astype(np.float32),
        next_return=returns,
        news_offset=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        news_text=np.where(good, rng.integers(1, 101, M), rng.integers(101, 201, M)),
        news_sentiment=sentiment.astype(np.float32),
        market_text=0,
        texts=InMemory(words.astype(np.float32)),
    )


@cache
def market() -> Days:
    return planted()


@cache
def fitted(case: Case) -> Model:
    """Return the model trained on the planted market, once for all tests, which leave it as it is."""
    model = case.make()
    model.fit(market(), TRAIN, VALIDATION, seed=1)
    return model


def hidden(days: Days) -> Days:
    """Return the same days as a decision sees them: no close after them is known."""
    return replace(days, next_return=np.full(len(days), np.nan))


def same(one: Weights, other: Weights) -> bool:
    """Say whether these are the same names with the same types and bytes."""
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype and np.array_equal(array, other[name]) for name, array in one.items()
    )


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


def test_it_beats_a_coin_where_its_inputs_show_tomorrow(case: Case) -> None:
    p_up = fitted(case).predict(hidden(market()), TEST).p_up
    right = (p_up > 0.5) == (market().label[TEST.start :] > 0.5)
    assert right.mean() > 0.7, f"{right.mean():.3f} of {len(right)}"  # a coin: 0.50, with a standard error of 0.04


def test_it_stays_with_a_coin_where_tomorrow_follows_nothing(case: Case) -> None:
    days, model = planted(seed=3, rule=0.5), case.make()
    model.fit(days, TRAIN, VALIDATION, seed=1)
    right = (model.predict(hidden(days), TEST).p_up > 0.5) == (days.label[TEST.start :] > 0.5)
    assert 0.35 < right.mean() < 0.65


def test_it_learns_sixteen_days_by_heart(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(baselines.TREES, "min_child_weight", 0)  # sixteen days are fewer than a leaf must hold
    monkeypatch.setitem(baselines.TREES, "eta", 0.5)
    monkeypatch.setattr(random_forest, "LEAVES", (1,))
    days, model = planted(seed=5, rule=case.rule), case.eager()
    model.fit(days, SIXTEEN, SIXTEEN, seed=1)
    right = (model.predict(hidden(days), SIXTEEN).p_up > 0.5) == (days.label[SIXTEEN.start : SIXTEEN.stop] > 0.5)
    assert right.sum() >= 15, right


def test_the_same_arguments_give_the_same_weights_whatever_comes_after_validation(case: Case) -> None:
    again = case.make()
    report = again.fit(market().between(0, VALIDATION.stop), TRAIN, VALIDATION, seed=1)
    assert same(again.weights(), fitted(case).weights())
    assert 0 < report.validation_loss < 0.69 and report.validation_accuracy > 0.5


def test_its_statistics_are_those_of_the_training_days(case: Case) -> None:
    days, later = market(), int(market().news_offset[TRAIN.stop])
    bars, sentiment = days.market.copy(), days.news_sentiment.copy()
    bars[TRAIN.stop :], sentiment[later:] = bars[TRAIN.stop :] + 0.3, [1, 0, 0]
    other = case.make()
    other.fit(replace(days, market=bars, news_sentiment=sentiment), TRAIN, VALIDATION, seed=1)
    statistics = {name: array for name, array in fitted(case).weights().items() if name.startswith("numbers.")}
    assert same(statistics, {name: array for name, array in other.weights().items() if name in statistics})


def test_weights_are_plain_arrays_that_forecast_the_same_bits_after_a_journey(case: Case) -> None:
    model, copy = fitted(case), case.make()
    weights = model.weights()
    copy.load(load(save({name: np.ascontiguousarray(array) for name, array in weights.items()})))
    assert same(copy.weights(), weights)
    assert np.array_equal(copy.predict(market(), TEST).p_up, model.predict(market(), TEST).p_up)


def test_weights_that_do_not_fit_are_refused(case: Case) -> None:
    weights = fitted(case).weights()
    for name, array in weights.items():
        with pytest.raises(ValueError, match=r"fit|missing|cannot be read|expected|shape"):
            case.make().load({other: weights[other] for other in weights if other != name})
        if name != "trees":
            with pytest.raises(ValueError, match=r"fit|expected|shape"):
                case.make().load(weights | {name: np.zeros((*array.shape, 2), array.dtype)})
    with pytest.raises(ValueError, match=r"fit|expected"):
        case.make().load(weights | {"stray": np.zeros(3, np.float32)})


def test_the_order_and_number_of_decisions_asked_for_change_no_bit(case: Case) -> None:
    model, together = fitted(case), fitted(case).predict(market(), TEST).p_up
    order = np.random.default_rng(0).permutation(len(TEST))
    for count in (1, 2, 3, 7, 65, len(TEST)):
        asked = [TEST[i] for i in order[:count]]
        assert np.array_equal(model.predict(market(), asked).p_up, together[order[:count]])


def test_a_decision_reads_its_own_lookback_days_and_nothing_after(case: Case) -> None:
    model, together = fitted(case), fitted(case).predict(market(), TEST).p_up
    for row in range(0, len(TEST), 11):
        first, day = TEST[row] - model.lookback + 1, TEST[row]
        alone = model.predict(hidden(market().between(first, day + 1)), [model.lookback - 1])
        assert alone.p_up[0] == together[row]
    half, other = TEST[len(TEST) // 2], planted(seed=9)
    known, after = int(market().news_offset[half]), int(other.news_offset[half])
    changed = replace(
        market(),
        market=np.concatenate([market().market[:half], other.market[half:]]),
        news_offset=np.concatenate([market().news_offset[:half], other.news_offset[half:] - after + known]),
        news_text=np.concatenate([market().news_text[:known], other.news_text[after:]]),
        news_sentiment=np.concatenate([market().news_sentiment[:known], other.news_sentiment[after:]]),
    )
    p_up, before = model.predict(changed, TEST).p_up, half - TEST.start
    assert np.array_equal(p_up[:before], together[:before])
    assert not np.array_equal(p_up[before:], together[before:])


def test_a_day_without_news_is_read_and_so_is_a_market_without_any(case: Case) -> None:
    silent = [day for day in TEST if market().news_offset[day] == market().news_offset[day + 1]]
    assert silent and np.isfinite(fitted(case).predict(market(), silent).p_up).all()
    days, model = planted(most=0), case.make()
    model.fit(days, SHORT, VALIDATION, seed=1)
    assert np.isfinite(model.predict(days, TEST).p_up).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_market_that_only_rises_or_only_falls_is_learned(case: Case, sign: int) -> None:
    model, one_way = case.make(), replace(market(), next_return=sign * np.abs(market().next_return))
    model.fit(one_way, SHORT, VALIDATION, seed=1)
    p_up = model.predict(hidden(one_way), TEST).p_up
    assert np.isfinite(p_up).all() and ((p_up > 0.5) == (sign > 0)).all()


def test_a_bar_that_is_no_number_is_refused(case: Case) -> None:
    bars = market().market.copy()
    bars[[100, 480]] = np.nan
    days = replace(market(), market=bars)
    with pytest.raises(ModelError, match=r"not a number|not finite"):
        case.make().fit(days, TRAIN, VALIDATION, seed=1)
    with pytest.raises(ModelError, match=r"not a number|not finite"):
        fitted(case).predict(days, [482])
    assert np.isfinite(fitted(case).predict(days, [470]).p_up).all()


def test_decisions_without_days_or_labels_and_models_without_training_are_refused(case: Case) -> None:
    model = case.make()
    with pytest.raises(ModelError, match="not been trained"):
        model.predict(market(), TEST)
    with pytest.raises(ModelError, match="not been trained"):
        model.weights()
    with pytest.raises(ModelError, match="lacks its"):
        model.fit(market(), range(model.lookback - 2, TRAIN.stop), VALIDATION, seed=1)
    with pytest.raises(ModelError, match="lacks its"):
        fitted(case).predict(market(), [S])
    with pytest.raises(ModelError, match="no label yet"):
        model.fit(hidden(market()), TRAIN, VALIDATION, seed=1)
