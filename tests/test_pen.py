"""PEN: its equations written out by hand, what its salience tells, and what its bits depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import math

import numpy as np
from numpy.typing import NDArray
import pytest
import torch
from torch import Tensor

from models.base import Days
from models.fitting import InMemory
from models.pen import Cell, J, Network, Pen, PenConfig, Told, objective, picked
from trader.errors import ConfigError, ModelError

D = 24
TRAIN, VALIDATION = range(20, 220), range(222, 262)


def made_days(counts: Sequence[int], seed: int = 0) -> tuple[Days, NDArray[np.int64]]:
    """Return days of random texts, of which one a day tells which way tomorrow goes, and where that one stands.

    Rows 1–99 of the texts say nothing, 100–149 are good, 150–199 bad. A day without texts is followed by a coin.
    """
    rng = np.random.default_rng(seed)
    S, M = len(counts), sum(counts)
    up, axis = rng.choice([-1, 1], S), rng.normal(size=D)
    texts = rng.normal(size=(200, D))
    texts[100:] += 5 * np.repeat([1, -1], 50)[:, None] * axis / np.linalg.norm(axis)
    offset = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    news, where = rng.integers(1, 100, M), np.full(S, -1)
    for day in range(S):
        if counts[day]:
            where[day] = rng.choice(picked(counts[day]))
            news[offset[day] + where[day]] = rng.integers(100, 150) + (0 if up[day] > 0 else 50)
    days = Days(
        market=rng.normal(0, 0.01, (S, 6)).astype(np.float32),
        next_return=0.01 * up,
        news_offset=offset,
        news_text=news,
        news_sentiment=rng.dirichlet([1, 2, 1], M).astype(np.float32),
        market_text=0,
        texts=InMemory(texts.astype(np.float32)),
    )
    return days, where


RAGGED = np.random.default_rng(3).choice([0, 1, 2, 5, 19, 20, 21, 40, 130], 400).tolist()


@pytest.fixture(scope="module")
def ragged() -> tuple[Days, NDArray[np.int64]]:
    return made_days(RAGGED)


@pytest.fixture(scope="module")
def reader(ragged: tuple[Days, NDArray[np.int64]]) -> Pen:
    model = Pen(PenConfig(lookback=3, epochs=15))
    model.fit(ragged[0], TRAIN, VALIDATION, seed=1)
    return model


# The equations


def test_the_cell_equals_its_equations_written_out() -> None:
    torch.manual_seed(0)
    H, N = 4, 3
    cell = Cell(H)
    S, x = torch.randn(1, 5, H), torch.randn(1, 3)
    h, v = torch.randn(1, H), torch.randn(1, H)
    new_h, new_v, P = cell(S, torch.arange(5)[None] < N, x, h, v)

    def rows(weight: Tensor) -> list[list[list[float]]]:
        """Cut a stack of matrices (k·H, …) into k of them."""
        return [part.tolist() for part in weight.detach().chunk(len(weight) // H)]

    def times(W: list[list[float]], vector: list[float]) -> list[float]:
        return [sum(w * one for w, one in zip(row, vector, strict=True)) for row in W]

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    old_h, old_v, prices = h[0].tolist(), v[0].tolist(), x[0].tolist()
    b = cell.of_h.bias.detach().chunk(7)
    ha, hf, ho, ht, hk, hv, hs = (
        [p + float(q) for p, q in zip(times(W, old_h), c, strict=True)]
        for W, c in zip(rows(cell.of_h.weight), b, strict=True)
    )
    f_, o_, t_ = rows(cell.of_text.weight)
    vk, vv = rows(cell.of_v.weight)
    xk, xs = rows(cell.of_x.weight)
    (sa,) = rows(cell.of_S.weight)
    texts = [S[0, j].tolist() for j in range(N)]
    score = []
    for text in texts:
        a = [math.tanh(p + q) for p, q in zip(times(sa, text), ha, strict=True)]
        score.append(sum(p * q for p, q in zip(a, cell.v_a.tolist(), strict=True)))
    total = sum(map(math.exp, score))
    salience = [math.exp(one) / total for one in score]
    mean = [sum(p * text[i] for p, text in zip(salience, texts, strict=True)) for i in range(H)]
    f = [sigmoid(p + q) for p, q in zip(times(f_, mean), hf, strict=True)]
    o = [sigmoid(p + q) for p, q in zip(times(o_, mean), ho, strict=True)]
    tone = [math.tanh(p + q) for p, q in zip(times(t_, mean), ht, strict=True)]
    v_ = [f[i] * old_v[i] + o[i] * tone[i] for i in range(H)]
    k = [sigmoid(p + q + r) for p, q, r in zip(times(xk, prices), hk, times(vk, v_), strict=True)]
    by_text = [math.tanh(p + q) for p, q in zip(hv, times(vv, v_), strict=True)]
    by_price = [math.tanh(p + q) for p, q in zip(times(xs, prices), hs, strict=True)]
    h_ = [(1 - k[i]) * by_text[i] + k[i] * by_price[i] for i in range(H)]
    np.testing.assert_allclose(P[0].tolist(), [*salience, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(new_v[0].tolist(), v_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new_h[0].tolist(), h_, rtol=1e-4, atol=1e-6)


def test_the_divergence_is_that_of_two_normal_distributions_and_z_has_the_posteriors_moments() -> None:
    torch.manual_seed(0)
    network, n = Network(PenConfig(), D), 4000
    r, y = torch.randn(1, 2, 32).expand(n, 2, 32), torch.tensor([[0.0, 1.0]]).expand(n, 2)
    with torch.no_grad():
        z, kl = network._latent(r, y)
        m, s = network.prior(r[0]).chunk(2, dim=1)
        M, L = network.posterior(torch.cat([r[0], y[0][:, None]], dim=1)).chunk(2, dim=1)
        normal = torch.distributions.Normal
        expected = torch.distributions.kl_divergence(normal(M, L.exp()), normal(m, s.exp())).sum(1)
        torch.testing.assert_close(kl[0], expected)
        torch.testing.assert_close(z.mean(0), M, atol=0.12, rtol=0)
        torch.testing.assert_close(z.std(0), L.exp(), atol=0.12, rtol=0)
        at_forecast, none = network._latent(r[:2], None)
        torch.testing.assert_close(at_forecast[0], m)
        assert not none.any()


def test_temporal_attention_weighs_the_earlier_days_by_information_and_by_dependency() -> None:
    torch.manual_seed(0)
    network = Network(PenConfig(hidden=16), D)
    g = torch.randn(1, 4, 16)
    W, w, W_ = (tensor.detach().numpy() for tensor in (network.W.weight, network.w, network.W_.weight))
    days = g[0].numpy()
    raw = [float(w @ np.tanh(W @ days[d])) * float(np.tanh(W_ @ days[d]) @ days[3]) for d in range(3)]
    expected = np.exp(raw) / np.exp(raw).sum()
    np.testing.assert_allclose(network._scores(g)[0].detach().numpy(), expected, rtol=1e-4)


def test_the_objective_adds_what_it_says() -> None:
    told = Told(
        target=torch.tensor([0.3]),
        days=torch.tensor([[1.0, -2.0, 0.5]]),
        scores=torch.tensor([[0.25, 0.75]]),
        kl=torch.tensor([[0.1, 0.2, 0.4]]),
        P=torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]]),
    )
    y, known = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[True, True, True]])
    config = PenConfig(alpha=0.5, concentration=0.1)

    def nll(logit: float, up: bool) -> float:
        return math.log1p(math.exp(-logit if up else logit))

    first, second = 0.25 * (nll(1.0, True) + 2 * 0.1), 0.75 * (nll(-2.0, False) + 2 * 0.2)
    rest = nll(0.3, True) + 2 * 0.4 + 0.1 * math.log(2) / 2  # the second day's entropy is 0, the third has no texts
    assert float(objective(told, y, known, 2.0, config)) == pytest.approx(rest + 0.5 * (first + second), rel=1e-5)
    known = torch.tensor([[False, True, True]])
    assert float(objective(told, y, known, 2.0, config)) == pytest.approx(rest + 0.5 * second, rel=1e-5)


def test_the_gradient_reaches_every_parameter_and_a_forecast_is_not_drawn() -> None:
    torch.manual_seed(0)
    network = Network(PenConfig(dropout=0.0), D)
    S, mask = torch.randn(8, 3, J, D), torch.rand(8, 3, J) < 0.5
    x, y = torch.randn(8, 3, 3), (torch.rand(8, 3) < 0.5).float()
    told = network(network.e_t(S), mask, x, y)
    objective(told, y, torch.ones(8, 3, dtype=torch.bool), 0.5, PenConfig()).backward()  # type: ignore[no-untyped-call]
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    network.eval()
    first, second = (network(network.e_t(S), mask, x) for _ in range(2))
    assert torch.equal(first.target, second.target)
    assert not torch.equal(network(network.e_t(S), mask, x, y).target, network(network.e_t(S), mask, x, y).target)


# What is read


def test_at_most_twenty_texts_of_a_day_are_read_evenly_spaced() -> None:
    for N in (0, 1, 19, 20):
        assert picked(N).tolist() == list(range(N))
    for N in (21, 39, 41, 1953):
        rows = picked(N)
        assert len(rows) == J and rows[0] == 0 and rows[-1] < N
        assert set(np.diff(rows)) <= {N // J, N // J + 1}


def test_padding_does_not_matter(reader: Pen, ragged: tuple[Days, NDArray[np.int64]]) -> None:
    network, _ = reader._trained()
    index = np.arange(300, 316)
    block = reader._block(ragged[0], index, 16)
    S, windows = network.encode(block), torch.arange(14)[:, None] + torch.arange(3)
    with torch.no_grad():
        told = network(S[windows], block.mask[windows], block.prices[windows])
        junk = torch.where(block.mask[:, :, None], S, 100.0)
        again = network(junk[windows], block.mask[windows], block.prices[windows])
    assert (~block.mask).any()
    assert torch.equal(told.target, again.target) and torch.equal(told.P, again.P)


def test_the_telling_text_stands_out_and_texts_that_were_not_read_weigh_nothing(
    reader: Pen, ragged: tuple[Days, NDArray[np.int64]]
) -> None:
    days, where = ragged
    prediction = reader.predict(days, range(270, 400))
    weights = prediction.news_weights
    assert weights is not None
    assert [len(row) for row in weights] == RAGGED[270:]
    ratios = []
    for day, row in zip(range(270, 400), weights, strict=True):
        if len(row):
            assert row.sum() == pytest.approx(1, abs=1e-5) and row.min() >= 0
            assert not np.delete(row, picked(len(row))).any()
            ratios.append(row[where[day]] * min(len(row), J))
    assert np.mean(ratios) > 2, "the telling text weighs more than twice its even share"
    told = where[270:] >= 0
    assert ((prediction.p_up > 0.5) == (days.label[270:] > 0.5))[told].mean() > 0.9


def test_a_text_that_is_not_read_changes_no_bit_and_one_that_is_does(
    reader: Pen, ragged: tuple[Days, NDArray[np.int64]]
) -> None:
    days, _ = ragged
    day = 270 + RAGGED[270:].index(130)
    for place in (1, 0):  # of 130 texts, every sixth or seventh is read
        texts = days.news_text.copy()
        texts[days.news_offset[day] + place] = 7
        before, after = (reader.predict(one, [day]) for one in (days, replace(days, news_text=texts)))
        assert before.news_weights is not None and after.news_weights is not None
        assert np.array_equal(before.news_weights[0], after.news_weights[0]) == (place == 1)
        assert place == 0 or before.p_up[0] == after.p_up[0]


def test_the_salience_follows_the_state_that_earlier_days_have_left(
    reader: Pen, ragged: tuple[Days, NDArray[np.int64]]
) -> None:
    days, _ = ragged
    day = 270 + RAGGED[270:].index(20)
    bars = days.market.copy()
    bars[day - 1] *= -1
    before, after = (reader.predict(one, [day]).news_weights for one in (days, replace(days, market=bars)))
    assert before is not None and after is not None
    assert not np.array_equal(before[0], after[0])


# What bits and weights depend on


def test_one_decision_alone_equals_the_same_decision_among_all(
    reader: Pen, ragged: tuple[Days, NDArray[np.int64]]
) -> None:
    days, _ = ragged
    blind = replace(days, next_return=np.full(len(days), np.nan))
    together = reader.predict(blind, range(2, 400))
    assert together.news_weights is not None
    for day in range(2, 400, 7):
        alone = reader.predict(blind.between(day - 2, day + 1), [2])
        assert alone.news_weights is not None
        assert alone.p_up[0] == together.p_up[day - 2]
        assert np.array_equal(alone.news_weights[0], together.news_weights[day - 2])
    order = np.random.default_rng(0).permutation(np.arange(2, 400))
    for count in (2, 3, 7, 65, 130):
        assert np.array_equal(reader.predict(blind, order[:count].tolist()).p_up, together.p_up[order[:count] - 2])


@pytest.mark.parametrize("lookback", [1, 10, 20])
def test_every_lookback_trains_and_forecasts_bit_for_bit(lookback: int, ragged: tuple[Days, NDArray[np.int64]]) -> None:
    days, _ = ragged
    model = Pen(PenConfig(lookback=lookback, epochs=1))
    model.fit(days, TRAIN, VALIDATION, seed=1)
    together = model.predict(days, range(270, 400)).p_up
    assert np.ptp(together) > 0
    for day in (270, 333, 399):
        assert model.predict(days.between(day - lookback + 1, day + 1), [lookback - 1]).p_up[0] == together[day - 270]


def test_an_earlier_movement_that_is_not_known_is_left_out_and_no_target_may_be(
    ragged: tuple[Days, NDArray[np.int64]],
) -> None:
    days, returns = ragged[0], ragged[0].next_return.copy()
    returns[: TRAIN.start] = np.nan
    model = Pen(PenConfig(lookback=5, epochs=1))
    assert math.isfinite(model.fit(replace(days, next_return=returns), TRAIN, VALIDATION, seed=1).validation_loss)
    returns[TRAIN.start] = np.nan
    with pytest.raises(ModelError, match="no label yet"):
        model.fit(replace(days, next_return=returns), TRAIN, VALIDATION, seed=1)


def test_the_charge_on_the_divergence_rises_from_nothing(ragged: tuple[Days, NDArray[np.int64]]) -> None:
    def trained(**changes: object) -> NDArray[np.float32]:
        model = Pen(PenConfig(lookback=2, epochs=2, **changes))  # type: ignore[arg-type]
        model.fit(ragged[0], TRAIN, VALIDATION, seed=1)
        return model.weights()["network.posterior.2.weight"].astype(np.float32)

    without, slow, fast = trained(kl=0.0), trained(kl=5.0, anneal=10**9), trained(kl=5.0, anneal=1)
    np.testing.assert_allclose(slow, without, atol=1e-4)
    assert np.abs(fast - without).max() > 1e-2


def test_settings_texts_and_weights_that_do_not_fit_are_refused(
    reader: Pen, ragged: tuple[Days, NDArray[np.int64]]
) -> None:
    for name, value in (("hidden", 20), ("latent", 8), ("anneal", 0), ("kl", -1.0), ("dropout", 1.0)):
        with pytest.raises(ConfigError, match=name):
            PenConfig(**{name: value})  # type: ignore[arg-type]
    other = replace(ragged[0], texts=InMemory(np.zeros((200, 7), np.float32)))
    with pytest.raises(ModelError, match="another language model's"):
        reader.predict(other, [10])
    with pytest.raises(ValueError, match="weights do not fit"):
        Pen(PenConfig(lookback=3, hidden=16)).load(reader.weights())
