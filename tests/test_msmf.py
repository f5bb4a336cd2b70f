"""MSMF's modules keep what their names promise: blanking, gates, completion, forward filling, many symbols at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import Days
from models.fitting import InMemory
from models.msmf.config import MsmfConfig
from models.msmf.encoders import Headlines
from models.msmf.fusion import BlankLearning
from models.msmf.model import Msmf
from models.msmf.network import Network, carried_forward
from models.msmf.reader import removed
from models.panel import Part, PooledModel
from trader.errors import ConfigError, ModelError

D, F = 16, 6
SMALL: dict[str, Any] = {
    "lookback": 3,
    "chart_sessions": 5,
    "hidden": 16,
    "token_width": 16,
    "heads": 2,
    "epochs": 2,
    "batch_days": 16,
}
TRAIN, VALIDATION, TEST = range(20, 100), range(103, 123), range(126, 159)


def days(seed: int = 0, sessions: int = 160, silent: float = 0.2) -> Days:
    """Return days of noise, some of them without headlines."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 6, sessions) * (rng.random(sessions) >= silent)
    returns = rng.normal(0, 0.01, sessions)
    market = rng.normal(0, 0.01, (sessions, F))
    market[:, 1] = np.abs(market[:, [0, 3]]).max(1) + 0.001  # high
    market[:, 2] = -market[:, 1]  # low
    market[:, 4] = market[:, 3]
    return Days(
        market=market.astype(np.float32),
        next_return=returns,
        news_offset=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        news_text=rng.integers(1, 40, count.sum()),
        news_sentiment=rng.dirichlet(np.ones(3), count.sum()).astype(np.float32),
        market_text=0,
        texts=InMemory(rng.normal(size=(40, D)).astype(np.float32)),
    )


def trained(on: Days | None = None, **settings: Any) -> Msmf:
    model = Msmf(MsmfConfig(**SMALL | settings))
    model.fit(days() if on is None else on, TRAIN, VALIDATION, seed=3)
    return model


def network(**settings: Any) -> Network:
    torch.manual_seed(0)
    made = Network(MsmfConfig(**SMALL | settings), D, F).eval()
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # so that no layer is at its start of zeros
    return made


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_blank_learning_keeps_exactly_the_stated_share_and_blanks_the_rest_to_zero(share: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 4, 16)
    mask = BlankLearning(16, share)(x).flatten(1)
    kept = (mask > 0).sum(1)
    assert kept.tolist() == [int(np.ceil(share * 64))] * 7
    assert ((mask == 0) | (mask > 0)).all() and torch.allclose(mask.sum(1), kept.float())


def test_of_equal_features_blank_learning_still_keeps_the_stated_share() -> None:
    assert (BlankLearning(16, 0.25)(torch.zeros(3, 4, 16)) > 0).flatten(1).sum(1).tolist() == [16, 16, 16]


def test_blank_learning_passes_no_gradient_to_what_it_blanked() -> None:
    torch.manual_seed(0)
    blank = BlankLearning(16, 0.5)
    blank.score.weight.data = torch.eye(16)  # so that each feature is scored by itself
    x = torch.randn(3, 4, 16, requires_grad=True)
    mask = blank(x)
    (mask * x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[mask == 0] == 0).all() and (x.grad[mask > 0] != 0).all()


def test_gates_sum_to_one_for_each_task_in_each_group() -> None:
    net, B = network(), 5
    x, present = torch.randn(B, 6, 16), torch.rand(B, 6) > 0.3
    shares = net(x, present).shares
    for part in (shares.features, shares.modalities, shares.experts):
        assert torch.allclose(part.sum(2), torch.ones(B, 2))
    assert torch.allclose(shares.scales.view(B, 2, 3, 2).sum(3), torch.ones(B, 2, 3))
    assert not torch.allclose(shares.modalities[:, 0], shares.modalities[:, 1])  # each task has its own


def test_without_granularity_gates_one_gate_over_the_experts_serves_both_tasks() -> None:
    shares = network(gates=False)(torch.randn(5, 6, 16), torch.ones(5, 6, dtype=torch.bool)).shares
    assert torch.equal(shares.experts[:, 0], shares.experts[:, 1])
    assert torch.allclose(shares.features, torch.full((), 1 / 6))


def test_permuting_the_padding_or_what_stands_in_it_changes_nothing() -> None:
    text = network().text
    assert text is not None
    block = Headlines(torch.randn(2, 16, D), torch.rand(2, 16, 3), torch.arange(16) < torch.tensor([[5], [9]]))
    other = Headlines(*(part.clone() for part in block))
    other.text[~other.mask], other.sentiment[~other.mask] = 7.0, -3.0
    for one, two in zip(text.day(block), text.day(other), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("completion", ["rbm", "dbn", "mean", "zero", "forward"])
def test_with_every_modality_present_completion_changes_nothing(completion: str) -> None:
    net = network(completion=completion)
    net.completion.fit(torch.randn(64, (6 + net.beside) * 16), 0)
    x = torch.randn(8, 6 + net.beside, 16)
    assert torch.equal(net.fill(x, torch.ones(8, 6, dtype=torch.bool)), x[:, :6])
    some = torch.rand(8, 6) > 0.5
    filled = net.fill(x, some)
    assert torch.equal(filled[some], x[:, :6][some])
    assert not torch.equal(filled[~some], x[:, :6][~some])


def test_a_modality_is_filled_from_the_whole_ones_and_not_from_what_is_left_of_itself() -> None:
    net = network(completion="rbm")
    net.completion.fit(torch.randn(64, (6 + net.beside) * 16), 0)
    x, there = torch.randn(8, 6 + net.beside, 16), torch.ones(8, 6, dtype=torch.bool)
    at = {feature: place for place, feature in enumerate(net.config.features)}
    there[:, at["text", "fine"]] = False

    def filled(changed: int) -> Tensor:
        other = x.clone()
        other[:, changed] += 1.0
        return net.fill(other, there)[:, at["text", "fine"]]

    assert torch.equal(filled(at["text", "coarse"]), net.fill(x, there)[:, at["text", "fine"]])
    assert torch.equal(net.fill(x, there)[:, at["text", "coarse"]], x[:, at["text", "coarse"]])
    for seen in (at["numeric", "fine"], at["image", "coarse"], 6):  # the last: the numbers themselves
        assert not torch.equal(filled(seen), net.fill(x, there)[:, at["text", "fine"]])


def test_the_completion_learns_from_features_as_a_forecast_makes_them_without_dropout() -> None:
    on = days()
    model = trained(on, dropout=0.5, lookback=1, epochs=3, patience=3)
    reader = model._trained()
    with torch.no_grad():
        x, present, _ = reader.features(on, np.asarray(TRAIN))
        standard = reader.network.completion.standard
        white = standard(x[present.all(1)].flatten(1)).view(-1, *x.shape[1:])  # (n, C + E, H)
    rank = torch.linalg.matrix_rank(standard.inverse)  # (C + E,)
    moved = white.square().sum(2).mean(0) / rank
    assert moved.sub(1).abs().max() < 0.05, moved


def test_the_pairs_of_an_untrained_network_add_little_and_its_first_step_lets_them_learn_for_each_task() -> None:
    torch.manual_seed(0)
    net = Network(MsmfConfig(**SMALL), D, F).eval()
    x, present = torch.randn(400, 6, 16), torch.ones(400, 6, dtype=torch.bool)  # standardised, as the pairs see them
    assert net.pairs is not None
    added = net.pairs(x)  # (400, 2)
    assert float(added.detach().square().mean().sqrt()) <= 0.1  # log odds, and deviations of the return
    net.loss(net(x, present).outputs, torch.arange(400) % 2.0, torch.randn(400)).backward()  # type: ignore[no-untyped-call]
    steps = net.pairs.out.grad
    assert steps is not None and (steps != 0).all() and not torch.equal(steps[0], steps[1])


def test_forward_filling_takes_the_last_value_that_was_there_and_looks_no_further_than_it_may() -> None:
    x = torch.arange(5.0).view(5, 1, 1)
    present = torch.tensor([True, True, False, False, False])[:, None]
    rows = torch.arange(3)[:, None] + torch.arange(3)  # (back + 1, B): decisions 2, 3, 4 with two sessions before each
    filled, there = carried_forward(x, present, rows)
    assert filled[:2].flatten().tolist() == [1.0, 1.0]
    assert there.flatten().tolist() == [True, True, False]


def test_a_modality_that_is_taken_away_leaves_no_trace_of_what_it_said() -> None:
    on = days(silent=0.0)
    model = trained(on, missing_text=0.5)
    gone = removed(on, np.array(TEST), "text", 0.5)
    assert 0.2 < gone.mean() < 0.8
    quiet = [day for day in TEST if removed(on, np.arange(day - 2, day + 1), "text", 0.5).all()]
    assert quiet
    other = replace(on, texts=InMemory(np.random.default_rng(9).normal(size=(40, D)).astype(np.float32)))
    one, two = model.predict(on, quiet), model.predict(other, quiet)
    assert np.array_equal(one.p_up, two.p_up)
    assert not np.array_equal(model.predict(on, TEST).p_up, model.predict(other, TEST).p_up)


@pytest.mark.parametrize("completion", ["rbm", "zero", "forward"])
def test_a_day_whose_text_is_taken_away_is_forecast_as_one_that_never_had_any(completion: str) -> None:
    on, settings = days(silent=0.0), {"completion": completion, "missing_text": 0.5}
    model, whole = trained(on, **settings), Msmf(MsmfConfig(**SMALL | settings | {"missing_text": 0.0}))
    whole.load(model.weights())
    gone = removed(on, np.arange(len(on)), "text", 0.5)
    kept = np.repeat(~gone, np.diff(on.news_offset))
    hushed = replace(
        on,
        news_offset=np.concatenate([[0], np.cumsum(np.diff(on.news_offset) * ~gone)]),
        news_text=on.news_text[kept],
        news_sentiment=on.news_sentiment[kept],
    )
    p_up = model.predict(on, TEST).p_up
    assert np.array_equal(p_up, whole.predict(hushed, TEST).p_up)
    assert not np.isin(p_up[gone[list(TEST)]], whole.predict(on, TEST).p_up).any(), "the texts must tell something"


@pytest.mark.parametrize(
    "settings",
    [
        {"completion": "dbn"},
        {"completion": "forward", "missing_text": 0.3},
        {"fusion": "stack"},
        {"fusion": "concatenate", "pair_rank": 0},
        {"tasks": "return"},
        {"tasks": "movement"},
        {"gates": False, "weighting": "uncertainty"},
        {"modalities": ("text",)},
        {"modalities": ("image", "numeric"), "image_scales": "coarse", "numeric_scales": "fine"},
        {"missing_image": 0.3, "missing_numeric": 0.3, "completion": "mean"},
    ],
)
def test_every_row_of_the_papers_tables_trains_and_forecasts_a_day_alone_as_in_its_batch(
    settings: dict[str, Any],
) -> None:
    on, model = days(), trained(**settings)
    together = model.predict(on, TEST)
    assert np.isfinite(together.p_up).all()
    assert (together.expected_return is None) == (settings.get("tasks") == "movement")
    for row in range(0, len(TEST), 7):
        first = TEST[row] - model.lookback + 1
        alone = model.predict(on.between(first, TEST[row] + 1), [model.lookback - 1])
        assert alone.p_up[0] == together.p_up[row]
        if together.expected_return is not None and alone.expected_return is not None:
            assert alone.expected_return[0] == together.expected_return[row]


def test_a_model_of_many_symbols_learns_from_each_of_them_and_from_their_training_days_alone() -> None:
    one, other = days(1), days(2)
    parts = [Part(one, TRAIN, VALIDATION), Part(other, TRAIN, VALIDATION)]
    model = Msmf(MsmfConfig(**SMALL))
    assert isinstance(model, PooledModel)
    model.fit_panel(parts, 3)
    again = Msmf(MsmfConfig(**SMALL))
    later = replace(other, market=np.concatenate([other.market[:124], -other.market[124:]]))
    again.fit_panel([parts[0], Part(later, TRAIN, VALIDATION)], 3)
    assert all(np.array_equal(array, again.weights()[name]) for name, array in model.weights().items())
    changed = replace(other, next_return=np.concatenate([-other.next_return[:60], other.next_return[60:]]))
    again.fit_panel([parts[0], Part(changed, TRAIN, VALIDATION)], 3)
    assert not all(np.array_equal(array, again.weights()[name]) for name, array in model.weights().items())


def test_a_symbol_without_decisions_of_one_kind_may_stand_in_a_panel_but_not_alone() -> None:
    parts = [Part(days(1), TRAIN, range(0)), Part(days(2), range(0), VALIDATION), Part(days(3), range(0), range(0))]
    Msmf(MsmfConfig(**SMALL)).fit_panel(parts, 3)
    with pytest.raises(ModelError, match="no decisions"):
        Msmf(MsmfConfig(**SMALL)).fit_panel(parts[:1], 3)


def test_nothing_of_the_network_learns_from_days_whose_loss_is_weighed_by_zero() -> None:
    net = network(tasks="both")
    outputs = torch.randn(4, 2, requires_grad=True)
    label, returned = torch.ones(4), torch.zeros(4)
    loss: Tensor = Network.loss(net, outputs, label, returned)
    loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None and (outputs.grad != 0).all()
    weighed = network(return_weight=0.0)
    outputs = torch.randn(4, 2, requires_grad=True)
    Network.loss(weighed, outputs, label, returned).backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None and (outputs.grad[:, 1] == 0).all() and (outputs.grad[:, 0] != 0).all()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"hidden": 20}, "no width"),
        ({"heads": 3}, "heads do not divide"),
        ({"chart_sessions": 7}, "no chart"),
        ({"modalities": ()}, "no such modalities"),
        ({"modalities": ("text", "sound")}, "no such modalities"),
        ({"completion": "hope"}, "no such completion"),
        ({"keep_within": 0.0}, "cannot be used"),
        ({"keep_across": 1.5}, "cannot be used"),
        ({"missing_text": 1.0}, "not a share"),
        ({"learning_rate": float("nan")}, "cannot be used"),
        ({"epochs": 0}, "too small"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        MsmfConfig(**settings)


def test_texts_of_another_language_model_are_refused() -> None:
    with pytest.raises(ModelError, match="another language model"):
        trained().predict(replace(days(), texts=InMemory(np.zeros((40, D + 8), np.float32))), TEST)


def test_nothing_of_the_validation_days_but_when_to_stop_reaches_the_weights() -> None:
    # One epoch cannot stop earlier, so whatever validation says the same weights are kept.
    settings = {"epochs": 1, "pretrain_epochs": 1}
    rows = np.random.default_rng(9).normal(size=(80, D)).astype(np.float32)
    rows[40:] = 5 + 3 * rows[40:]  # words that no training day knows, far from all that one does
    one, other = replace(days(), texts=InMemory(rows)), days(seed=8)
    first, later = VALIDATION.start, int(one.news_offset[VALIDATION.start])
    texts, sentiment = one.news_text.copy(), one.news_sentiment.copy()
    texts[later:], sentiment[later:] = texts[later:] + 40, [0.9, 0.1, 0.0]
    changed = replace(
        one,
        market=np.concatenate([one.market[:first], other.market[first:]]),
        next_return=np.concatenate([one.next_return[:first], -one.next_return[first:]]),
        news_text=texts,
        news_sentiment=sentiment,
    )
    mine, theirs = trained(one, **settings).weights(), trained(changed, **settings).weights()
    assert all(np.array_equal(array, theirs[name]) for name, array in mine.items())
    changed = replace(changed, market=np.concatenate([other.market[:60], one.market[60:]]))
    theirs = trained(changed, **settings).weights()
    assert not np.array_equal(mine["numbers.mean"], theirs["numbers.mean"])
