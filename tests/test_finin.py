"""FININ: what it may see, what its bits depend on, and that it learns what averaging cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
import pytest
import torch

from models.base import Days, Standardiser
from models.finin import Finin, FininConfig, Network, targets
from models.fitting import InMemory, Recipe, descend, held, reproducible, require_device
from trader.errors import ConfigError, ModelError

D = 24
RAGGED = (0, 1, 3, 13, 15, 16, 17, 33, 64, 65, 130, 300, 500, 700, 1450)
TRAIN, VALIDATION = range(4, 44), range(47, 57)


def made_days(counts: Sequence[int], seed: int = 0) -> Days:
    """Return random days with these numbers of headlines."""
    rng = np.random.default_rng(seed)
    S, M = len(counts), sum(counts)
    return Days(
        market=rng.normal(0, 0.01, (S, 6)).astype(np.float32),
        next_return=rng.normal(0, 0.01, S),
        news_offset=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        news_text=rng.integers(1, 200, M),
        news_sentiment=rng.dirichlet([1, 2, 1], M).astype(np.float32),
        market_text=0,
        texts=InMemory(rng.normal(size=(200, D)).astype(np.float32)),
    )


def few(count: int = 60, seed: int = 0) -> Days:
    return made_days(np.random.default_rng(seed).integers(0, 9, count).tolist(), seed)


def trained(days: Days, seed: int = 1, **config: object) -> Finin:
    model = Finin(FininConfig(**({"epochs": 2, "hidden": 16} | config)))  # type: ignore[arg-type]
    model.fit(days, TRAIN, VALIDATION, seed)
    return model


@pytest.fixture(scope="module")
def ragged() -> Days:
    return made_days(np.random.default_rng(3).choice(RAGGED, 80).tolist())


@pytest.fixture(scope="module", params=["mlp", "cnn", "lstm"])
def reader(request: pytest.FixtureRequest, ragged: Days) -> Finin:
    return trained(ragged, epochs=1, train_headlines=8, head=request.param)


def test_one_decision_alone_equals_the_same_decision_among_all(reader: Finin, ragged: Days) -> None:
    together = reader.predict(ragged, range(4, 80))
    assert together.news_weights is not None
    for at in range(4, 80):
        alone = reader.predict(ragged, [at])
        assert alone.news_weights is not None
        assert alone.p_up[0] == together.p_up[at - 4]
        assert np.array_equal(alone.news_weights[0], together.news_weights[at - 4])


def test_a_forecast_depends_on_its_own_lookback_days_alone(reader: Finin, ragged: Days) -> None:
    together = reader.predict(ragged, range(4, 80)).p_up
    for at in range(4, 80, 5):
        assert reader.predict(ragged.between(at - 4, at + 1), [4]).p_up[0] == together[at - 4]
    counts = np.diff(ragged.news_offset)
    other = made_days([*counts[:40].tolist(), *[7] * 40], seed=9)
    known = int(ragged.news_offset[40])
    changed = replace(
        other,
        market=np.concatenate([ragged.market[:40], other.market[40:]]),
        news_text=np.concatenate([ragged.news_text[:known], other.news_text[known:]]),
        news_sentiment=np.concatenate([ragged.news_sentiment[:known], other.news_sentiment[known:]]),
        texts=ragged.texts,
    )
    assert np.array_equal(reader.predict(changed, range(4, 80)).p_up[:36], together[:36])
    assert not np.array_equal(reader.predict(changed, range(4, 80)).p_up[36:], together[36:])


def test_the_order_and_number_of_decisions_asked_for_do_not_matter(reader: Finin, ragged: Days) -> None:
    together = reader.predict(ragged, range(4, 80)).p_up
    order = np.random.default_rng(0).permutation(np.arange(4, 80))
    for count in (2, 3, 7, 65, 76):
        assert np.array_equal(reader.predict(ragged, order[:count].tolist()).p_up, together[order[:count] - 4])


def test_news_weights_are_one_for_each_headline_and_sum_to_one(reader: Finin, ragged: Days) -> None:
    weights = reader.predict(ragged, range(4, 80)).news_weights
    assert weights is not None
    counts = np.diff(ragged.news_offset)[4:]
    assert [len(row) for row in weights] == counts.tolist()
    assert all(row.min() >= 0 and row.sum() == pytest.approx(1, abs=1e-5) for row in weights if len(row))
    assert any(len(row) == 0 for row in weights)


def test_with_recency_it_reads_where_in_the_day_a_headline_stands_and_without_it_does_not() -> None:
    days = made_days([6] * 60)
    turned = np.concatenate([np.arange(at + 5, at - 1, -1) for at in range(0, 360, 6)])  # each day, last headline first
    other = replace(days, news_text=days.news_text[turned], news_sentiment=days.news_sentiment[turned])
    for recency in (True, False):
        model = trained(days, recency=recency)
        same = np.allclose(model.predict(days, range(4, 60)).p_up, model.predict(other, range(4, 60)).p_up, atol=1e-6)
        assert same != recency


def test_the_order_of_a_days_headlines_orders_the_weights_and_changes_nothing_else() -> None:
    days = few()
    model = trained(days)
    day = int(np.argmax(np.diff(days.news_offset)[10:])) + 10
    news, order = (
        days.news(day),
        np.random.default_rng(0).permutation(days.news_offset[day + 1] - days.news_offset[day]),
    )
    text, sentiment = days.news_text.copy(), days.news_sentiment.copy()
    text[news], sentiment[news] = text[news][order], sentiment[news][order]
    before = model.predict(days, [day])
    after = model.predict(replace(days, news_text=text, news_sentiment=sentiment), [day])
    assert before.news_weights is not None and after.news_weights is not None
    assert np.ptp(before.news_weights[0]) > 0
    np.testing.assert_allclose(after.news_weights[0], before.news_weights[0][order], atol=1e-6)
    np.testing.assert_allclose(after.p_up, before.p_up, atol=1e-6)


def test_padding_does_not_matter() -> None:
    days, model = few(), Finin(FininConfig(epochs=1))
    model.fit(days, TRAIN, VALIDATION, 1)
    index = np.arange(10, 18)
    network, _ = model._trained()
    rows = model._headlines(days, index)
    narrow = network.encode(model._block(days, index, rows, 8, max(map(len, rows)), dummies=False))
    wide = network.encode(model._block(days, index, rows, 24, 64, dummies=True))
    torch.testing.assert_close(wide[0][:8], narrow[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(wide[1][:8, : narrow[1].shape[1]], narrow[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [{}, {"quantifier": False}, {"news": False}, {"text": False}])
def test_days_without_any_news_train_and_forecast(config: dict[str, object]) -> None:
    days = made_days([0] * 60)
    prediction = trained(days, **config).predict(days, range(4, 60))
    assert np.isfinite(prediction.p_up).all()
    assert prediction.news_weights is None or all(len(row) == 0 for row in prediction.news_weights)


@pytest.mark.parametrize("lookback", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("head", ["mlp", "cnn", "lstm"])
def test_every_head_runs_at_every_lookback(head: str, lookback: int) -> None:
    days, model = few(), Finin(FininConfig(head=head, lookback=lookback, epochs=1))
    model.fit(days, range(lookback - 1, 44), VALIDATION, 1)
    assert ((p := model.predict(days, range(lookback - 1, 60)).p_up) > 0).all() and (p < 1).all() and np.ptp(p) > 0


@pytest.mark.parametrize("config", [{"heads": 6, "qkv": 128, "layers": 4, "hidden": 64}, {"heads": 1, "layers": 3}])
def test_heads_need_not_divide_the_width(config: dict[str, object]) -> None:
    days = few()
    assert np.isfinite(trained(days, epochs=1, **config).predict(days, [50]).p_up).all()


@pytest.mark.parametrize("config", [{}, {"quantifier": False}, {"news": False}, {"text": False}, {"head": "lstm"}])
def test_the_gradient_reaches_every_parameter_and_never_the_language_model(config: dict[str, object]) -> None:
    days = few()
    frozen = days.texts.rows(np.arange(200)).copy()
    model = trained(days, dropout=0.0, **config)
    network, _ = model._trained()
    index = np.arange(0, 44)
    assert (np.diff(days.news_offset)[index] == 0).any()  # the vector of a day without news takes part
    rows = model._headlines(days, index)
    encoded, _ = network.encode(model._block(days, index, rows, 44, max(1, *map(len, rows)), dummies=False))
    network(encoded.unfold(0, 5, 1).transpose(1, 2)).sum().backward()
    names = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not names
    assert not any(p.shape[-1] == D and p.shape[0] == 200 for p in network.parameters())
    assert np.array_equal(days.texts.rows(np.arange(200)), frozen)


def test_one_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others() -> None:
    days = few()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = trained(days).weights()
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's random stream has moved
    torch.rand(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    second = trained(days).weights()
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = trained(days, seed=2).weights()
    assert not np.array_equal(first["network.e_t.weight"], other["network.e_t.weight"])


def test_days_after_validation_and_days_before_the_lookback_do_not_touch_training() -> None:
    days = few(70)
    whole = trained(days)
    part = Finin(whole.config)
    part.fit(days.between(0, 57), TRAIN, VALIDATION, 1)
    assert all(np.array_equal(part.weights()[name], array) for name, array in whole.weights().items())


def test_the_scaler_is_measured_on_training_days_alone() -> None:
    days = few()
    weights = trained(days).weights()
    np.testing.assert_array_equal(weights["market.mean"], days.market[4:44].mean(axis=0, dtype=np.float64).astype("f4"))
    shifted = days.market.copy()
    shifted[44:] += 5
    assert np.array_equal(trained(replace(days, market=shifted)).weights()["market.std"], weights["market.std"])


def test_reading_embeddings_by_block_equals_holding_them_in_memory() -> None:
    days = few()
    assert held(days, most_bytes=0) is days
    kept = held(days)
    assert np.array_equal(kept.texts.rows(kept.news_text), days.texts.rows(days.news_text))
    assert np.array_equal(kept.texts.rows(np.array([kept.market_text])), days.texts.rows(np.array([0])))


@pytest.mark.parametrize("config", [{}, {"quantifier": False}, {"news": False}, {"text": False}, {"head": "lstm"}])
def test_saved_weights_forecast_the_same_bits(config: dict[str, object]) -> None:
    days = few()
    model = trained(days, **config)
    copy = Finin(model.config)
    copy.load({name: array.copy() for name, array in model.weights().items()})
    assert np.array_equal(copy.predict(days, range(4, 60)).p_up, model.predict(days, range(4, 60)).p_up)


def test_weights_of_another_configuration_are_refused() -> None:
    weights = trained(few()).weights()
    for config in ({"hidden": 32}, {"news": False}, {"head": "cnn"}, {"lookback": 3}, {"text": False}):
        with pytest.raises(ValueError, match="weights do not fit"):
            Finin(FininConfig(**({"hidden": 16} | config))).load(weights)  # type: ignore[arg-type]
    same = Finin(FininConfig(hidden=16))
    for wrong in (
        {},
        {k: v for k, v in weights.items() if k != "market.std"},
        {k: v.astype("f8") for k, v in weights.items()},
    ):
        with pytest.raises(ValueError, match="weights do not fit"):
            same.load(wrong)


def test_what_cannot_be_learned_from_or_forecast_is_refused_in_words() -> None:
    days, model = few(), Finin(FininConfig(epochs=1))
    with pytest.raises(ModelError, match="has not been trained"):
        model.predict(days, [10])
    with pytest.raises(ModelError, match=r"lacks its 5 days .*days 4–59"):
        model.fit(days, range(3, 40), VALIDATION, 1)
    open_label = days.next_return.copy()
    open_label[43] = np.nan
    with pytest.raises(ModelError, match="no label yet"):
        model.fit(replace(days, next_return=open_label), TRAIN, VALIDATION, 1)
    model.fit(days, TRAIN, VALIDATION, 1)
    with pytest.raises(ModelError, match="another language model's"):
        model.predict(replace(days, texts=InMemory(np.zeros((200, 7), np.float32))), [10])
    with pytest.raises(ConfigError, match="no such prediction head"):
        FininConfig(head="gru")
    with pytest.raises(ConfigError, match="layers is too small"):
        FininConfig(layers=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(ModelError, match="no CUDA device here"):
        trained(few(), device="cuda")


def test_a_loss_that_is_not_a_number_stops_the_training() -> None:
    days = few()
    broken = days.market.copy()
    broken[20, 3] = np.nan
    with pytest.raises(ModelError, match="training loss is not a number"):
        trained(replace(days, market=broken))
    model = trained(days)
    with pytest.raises(ModelError, match=r"day 20: a forecast is not a number"):
        model.predict(replace(days, market=broken), range(4, 60))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_market_that_only_rises_or_only_falls_can_be_learned(sign: int) -> None:
    days = few()
    one_way = replace(days, next_return=sign * np.abs(days.next_return))
    p_up = trained(one_way, epochs=20).predict(one_way, range(4, 60)).p_up
    assert np.isfinite(p_up).all() and ((p_up > 0.5) == (sign > 0)).all()


def planted(count: int, seed: int, topics: int = 6) -> Days:
    """One headline a topic, good or bad, and one notice that names a topic: the market follows that topic's headline.

    No headline tells the direction by itself, and their average hardly does: the notice has to find its headline.
    """
    K, rng = topics, np.random.default_rng(seed)
    about, notice = rng.normal(size=(K, 16)), rng.normal(size=16)
    texts = np.concatenate([about, about + 1.5 * notice, np.ones((1, 16))]).astype(np.float32)
    tone, named = rng.choice([-1, 1], (count, K)), rng.integers(K, size=count)
    text = np.concatenate([np.tile(np.arange(K), (count, 1)), named[:, None] + K], axis=1)
    score = np.concatenate([tone, np.zeros((count, 1))], axis=1)
    order = rng.permuted(np.tile(np.arange(K + 1), (count, 1)), axis=1)
    text, score = (np.take_along_axis(array, order, axis=1).ravel() for array in (text, score))
    sentiment = np.array([0.2, 0.6, 0.2]) + score[:, None] * np.array([-0.15, 0, 0.15])
    return Days(
        market=rng.normal(0, 0.01, (count, 6)).astype(np.float32),
        next_return=0.01 * tone[np.arange(count), named],
        news_offset=np.arange(count + 1, dtype=np.int64) * (K + 1),
        news_text=text.astype(np.int64),
        news_sentiment=sentiment.astype(np.float32),
        market_text=2 * K,
        texts=InMemory(texts / np.linalg.norm(texts, axis=1, keepdims=True)),
    )


def held_out_accuracy(days: Days, **switches: bool) -> float:
    """Train without early stopping: the loss rests on the averaging plateau before attention finds the rule."""
    config = FininConfig(lookback=1, learning_rate=3e-3, dropout=0.0, epochs=12, patience=12, **switches)  # type: ignore[arg-type]
    model = Finin(config)
    model.fit(days, range(800), range(800, 900), seed=1)
    return float(((model.predict(days, range(900, 1300)).p_up > 0.5) == (days.label[900:] > 0.5)).mean())


def test_the_quantifier_reads_what_headlines_say_of_each_other_and_averaging_trained_alike_does_not() -> None:
    days = planted(1300, seed=1)
    assert held_out_accuracy(days) > 0.8
    assert held_out_accuracy(days, quantifier=False) < 0.75  # tone of the majority: right in two days of three
    assert held_out_accuracy(days, news=False) < 0.6


def test_the_market_description_and_the_headlines_share_one_linear_layer() -> None:
    network = Network(FininConfig(), D=D, features=6)
    wide: list[NDArray[np.float32]] = [p.detach().numpy() for p in network.parameters() if p.shape[-1] == D]
    assert len(wide) == 1


def test_widths_whose_bits_would_depend_on_the_batch_are_refused() -> None:
    for width in (8, 17, 20):
        with pytest.raises(ConfigError, match="hidden is no width"):
            FininConfig(hidden=width)
    with pytest.raises(ConfigError, match="qkv is no width"):
        FininConfig(qkv=7)


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no such device"):
        require_device("gpu")
    with pytest.raises(ModelError, match="no such GPU"):
        require_device("cuda:99")
    require_device("cpu")


SWITCHES: list[dict[str, object]] = [
    {"recency": True},
    {"warm_up": 0.3},
    {"schedule": "constant"},
    {"text_scale": "one"},
    {"text_scale": "layer_norm"},
    {"text_scale": "standardised"},
    {"norm": "post"},
    {"norm": "none"},
    {"skip": False},
    {"feed_forward": True},
    {"uniform_start": False},
    {"alike_start": False},
    {"sharpness": 4.0},
    {"gate": False},
    {"day_norm": True},
    {"head_layers": 2},
    {"return_weight": 0.0},
    {"horizon_weight": 1.0},
    {"volatility_weight": 1.0},
    {"pretrain_epochs": 2},
    {"text_dropout": 0.2},
    {"headline_dropout": 0.3},
    {"text_weight_decay": 2.0},
    {"average": 0.5},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_switch_changes_the_training_and_keeps_the_promises(switch: dict[str, object]) -> None:
    days = few()
    model, again = trained(days, **switch), trained(days, **switch)
    together = model.predict(days, range(4, 60)).p_up
    assert not np.array_equal(together, trained(days).predict(days, range(4, 60)).p_up)
    assert np.array_equal(together, again.predict(days, range(4, 60)).p_up)
    assert [model.predict(days, [at]).p_up[0] for at in (4, 17, 30, 59)] == together[[0, 13, 26, 55]].tolist()
    copy = Finin(model.config)
    copy.load(model.weights())
    assert np.array_equal(copy.predict(days, range(4, 60)).p_up, together)


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_no_switch_reads_labels_or_days_behind_training_and_validation(switch: dict[str, object]) -> None:
    days = few(70)
    part = Finin(trained(days, **switch).config)
    part.fit(days.between(0, 57), TRAIN, VALIDATION, 1)
    hidden = np.where(np.isin(np.arange(70), [*TRAIN, *VALIDATION]), days.next_return, np.nan)
    other = trained(replace(days, next_return=hidden), **switch).weights()
    assert all(np.array_equal(other[name], array) for name, array in part.weights().items())


@pytest.mark.parametrize(
    "switch", [{"pretrain_epochs": 3}, {"text_scale": "standardised"}, {"day_norm": True}], ids=str
)
def test_what_is_measured_before_training_ignores_the_validation_days(switch: dict[str, object]) -> None:
    """Other headlines and returns in validation change which epoch is kept, and nothing else: here all are kept."""
    days = few()
    news, returns = days.news_text.copy(), days.next_return.copy()
    news[days.news_offset[44] :] = 7
    returns[44:] *= -3
    first, second = (Finin(FininConfig(hidden=16, epochs=1, **switch)) for _ in range(2))  # type: ignore[arg-type]
    first.fit(days, TRAIN, VALIDATION, 1)
    second.fit(replace(days, news_text=news, next_return=returns), TRAIN, VALIDATION, 1)
    assert all(np.array_equal(first.weights()[name], array) for name, array in second.weights().items())


def test_a_return_over_several_sessions_stays_inside_the_training_days() -> None:
    days = few()
    config = FininConfig(horizon=5, return_weight=1.0, horizon_weight=1.0, volatility_weight=1.0)
    one, five, size = targets(config, days.next_return, TRAIN)
    assert np.flatnonzero(~np.isnan(one)).tolist() == list(TRAIN) == np.flatnonzero(~np.isnan(size)).tolist()
    assert np.flatnonzero(~np.isnan(five)).tolist() == list(range(4, 40))
    sums = np.array([days.next_return[at : at + 5].sum() for at in range(4, 40)])
    np.testing.assert_allclose(five[4:40], (sums - sums.mean()) / sums.std())
    assert np.isnan(targets(config, days.next_return, range(4, 7))[1]).all()


def test_pretraining_masks_the_days_own_bar_and_leaves_the_market_side_alone() -> None:
    days = few()
    config = FininConfig(hidden=16, pretrain_epochs=2)
    end = max(day for day in TRAIN if np.diff(days.news_offset)[day] > 3)  # a day whose headlines are weighed
    last = days.market.copy()
    last[end] += 0.5  # the last day's own bar: only the main training, after the pretraining, may see it
    starts = []
    for market in (days.market, last):
        model = Finin(config)
        model._scaler = Standardiser.of(days.market[4:44])
        torch.manual_seed(1)
        network = model._network = Network(model.config, D, 6)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with reproducible(1):
            model._pretrain(network, replace(days, market=market), range(4, end + 1), 1)
        starts.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    moved = {name for name, tensor in starts[0].items() if not torch.equal(tensor, before[name])}
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert moved and not any(name.startswith(("e1.", "f1.", "head.")) for name in moved)


def test_the_expected_return_is_forecast_where_it_is_learned_and_nowhere_else() -> None:
    days = few()
    assert trained(days, return_weight=0.0).predict(days, [50]).expected_return is None
    model = trained(days, return_weight=1.0, volatility_weight=0.5)
    expected = model.predict(days, range(4, 60)).expected_return
    assert expected is not None and expected.shape == (56,) and np.isfinite(expected).all()
    assert model.predict(days, [30]).expected_return == expected[26]
    risen = replace(days, next_return=days.next_return + 0.05)
    other = trained(risen, return_weight=1.0, volatility_weight=0.5).predict(days, range(4, 60)).expected_return
    assert other is not None
    assert other.mean() - expected.mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("config", [{}, {"norm": "post", "heads": 1}, {"quantifier": False}, {"text": False}])
def test_attention_shows_the_weights_of_the_forecast_and_who_looked_at_whom(config: dict[str, object]) -> None:
    days = few()
    model = trained(days, **config)
    weights = model.predict(days, range(4, 60)).news_weights
    assert weights is not None
    for day in range(4, 60):
        seen = model.attention(days, day)
        N = len(weights[day - 4])
        assert np.array_equal(seen.weights, weights[day - 4]) and seen.pairs.shape == (N, N)
        np.testing.assert_allclose(seen.pairs.sum(axis=1), np.ones(N), atol=1e-5)
        if not model.config.quantifier:
            np.testing.assert_allclose(seen.pairs, np.full((N, N), 1 / max(1, N)), atol=1e-6)


def test_pairs_are_the_shares_that_the_fused_attention_uses() -> None:
    network = Network(FininConfig(hidden=16, heads=2, dropout=0.0, sharpness=3.0, norm="post"), D, 6).eval()
    layer, r = network.news_news, torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    q, k, v = layer.projected(r)
    shares = (q @ k.transpose(2, 3) * layer.factor).masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    looked = layer.out((shares @ v).transpose(1, 2).reshape(2, 5, -1))
    torch.testing.assert_close(layer(r, mask), layer.norm(r + looked), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.pairs(r, mask), shares.mean(1))
    assert not layer.pairs(r, mask)[1, :, 3:].any()


def test_what_cannot_be_shown_is_refused_in_words() -> None:
    days, blind = few(), trained(few(), news=False)
    with pytest.raises(ModelError, match="reads no news"):
        blind.attention(days, 10)
    with pytest.raises(ModelError, match="no such day"):
        trained(days).attention(days, 60)


@pytest.mark.parametrize(
    ("switch", "complaint"),
    [
        ({"schedule": "linear"}, "no such schedule"),
        ({"text_scale": "whitened"}, "no such text_scale"),
        ({"norm": "batch"}, "no such norm"),
        ({"warm_up": 1.0}, "warm_up is not a share"),
        ({"average": float("nan")}, "average is not a share"),
        ({"headline_dropout": 1.0}, "headline_dropout is not a share"),
        ({"return_weight": -0.1}, "return_weight is too small"),
        ({"horizon": 0}, "horizon is too small"),
        ({"pretrain_epochs": -1}, "pretrain_epochs is too small"),
        ({"sharpness": 0.0}, "sharpness is too small"),
        ({"learning_rate": float("nan")}, "learning_rate is too small"),
    ],
)
def test_a_switch_that_cannot_be_used_is_refused_by_name(switch: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        FininConfig(**switch)  # type: ignore[arg-type]


def test_uniform_start_weighs_all_headlines_alike_and_alike_start_looks_at_the_like() -> None:
    torch.manual_seed(0)
    network = Network(FininConfig(hidden=16, uniform_start=True, dropout=0.0), D, 6)
    r, mask = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)
    _, weights = network.market_news(torch.randn(1, 16), r, mask)
    torch.testing.assert_close(weights, torch.full((1, 4), 0.25))
    alike = Network(FininConfig(hidden=16, alike_start=True, norm="pre", sharpness=4.0), D, 6).news_news
    pairs = alike.pairs(torch.cat([r, r], 1), torch.ones(1, 8, dtype=torch.bool))[0]
    twins = pairs[:4, :4].diagonal() + pairs[:4, 4:].diagonal()
    assert (twins > 0.5).all()


def test_the_learning_rate_warms_up_and_decays_and_the_mean_of_the_weights_is_kept() -> None:
    recipe = Recipe(warm_up=0.25, schedule="cosine")
    assert [round(recipe.share(done), 3) for done in (0.125, 0.25, 0.625, 1.0)] == [0.5, 1.0, 0.5, 0.0]
    assert Recipe(warm_up=0.25).share(1.0) == 1.0 and Recipe().share(0.01) == 1.0
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    seen: list[float] = []

    def loss(_: int) -> torch.Tensor:
        return -layer.weight.sum()

    def validate() -> tuple[float, float]:
        seen.append(float(layer.weight.detach()))
        return -seen[-1], 0.5

    slow = Recipe(learning_rate=0.1, weight_decay=0.0, epochs=3, average=0.5)
    report = descend(layer, slow, 0, lambda _: [0], loss, validate)
    assert np.allclose(seen, [0.05, 0.125, 0.2125], atol=1e-6)  # steps of 0.1: 0.1, 0.2, 0.3, each half forgotten
    assert float(layer.weight.detach()) == pytest.approx(seen[-1]) and report.best_epoch == 3
    bare = descend(layer, slow, 0, lambda _: [0], loss, None)
    assert np.isnan(bare.validation_loss) and bare.epochs == bare.best_epoch == 3


def test_the_decay_of_named_parameters_is_their_own() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    before = [parameter.detach().clone() for parameter in network.parameters()]  # weight, bias, weight, bias
    recipe = Recipe(learning_rate=0.1, weight_decay=0.0, decays={"1.": 1.0}, epochs=1)
    descend(network, recipe, 0, lambda _: [0], lambda _: 0 * network(torch.ones(1, 2)).sum(), None)
    factors = [float((now / then).mean().detach()) for now, then in zip(network.parameters(), before, strict=True)]
    assert factors == pytest.approx([1.0, 1.0, 0.9, 1.0])  # matrices alone decay, and only those named
