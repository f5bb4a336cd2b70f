"""The modality completion: what it fills, what it leaves alone, and what its bits depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
import torch
from torch import Tensor, nn

from benchmarks.completion import Planted, blocks, crowded, mixture
from models.msmf.boltzmann import CompletionConfig, Rbm
from models.msmf.completion import (
    FARTHEST,
    FILL_BATCH,
    Completion,
    DbnCompletion,
    MeanFilling,
    RbmCompletion,
    Standard,
    ZeroFilling,
)
from trader.errors import ConfigError, ModelError

V = 12
QUICK = CompletionConfig(hidden=(48,), epochs=15, refresh_epochs=5)
STACK = CompletionConfig(hidden=(48, 24), epochs=15, refresh_epochs=5)

MADE: dict[str, Callable[[int], RbmCompletion | DbnCompletion | MeanFilling | ZeroFilling]] = {
    "rbm": lambda width: RbmCompletion(width, QUICK),
    "whitened": lambda width: RbmCompletion(width, QUICK, block=4),
    "dbn": lambda width: DbnCompletion(width, STACK),
    "mean": MeanFilling,
    "zero": ZeroFilling,
}
every_completion = pytest.mark.parametrize("kind", MADE)


def rows(count: int = 300, seed: int = 0, shift: float = 3.0, turn: float = 0.0) -> Tensor:
    """Rows of three blocks of four features that two factors drive; ``turn`` mixes other loadings in."""
    rng = np.random.default_rng(seed)
    loading, other = np.random.default_rng(99).normal(size=(2, 2, V))
    factors = rng.normal(size=(count, 2))
    made = factors @ (np.cos(turn) * loading + np.sin(turn) * other) + 0.3 * rng.normal(size=(count, V))
    return torch.tensor(made * np.linspace(0.5, 5, V) + shift).float()


def masked(count: int, seed: int = 0) -> Tensor:
    """Masks that lack one block each, but for the first row, complete, and the second, of which nothing is there."""
    block = np.random.default_rng(seed).integers(0, 3, count)
    present = torch.tensor(np.repeat(np.arange(3), 4) != block[:, None])
    present[0], present[1] = True, False
    return present


def fitted(kind: str, seed: int = 1) -> RbmCompletion | DbnCompletion | MeanFilling | ZeroFilling:
    model = MADE[kind](V)
    model.fit(rows(), seed)
    return model


def error(planted: Planted, model: Completion) -> float:
    train, truth, present = planted.tensors()
    model.fit(train, seed=0)
    return planted.rmse(model.fill(truth, present).double().numpy())


@pytest.mark.parametrize(("spread", "of_mean", "of_optimum"), [(2.0, 0.55, 1.06), (1.0, 0.80, 1.06)])
def test_it_fills_a_masked_half_of_a_planted_mixture_nearly_as_well_as_who_knows_the_mixture(
    spread: float, of_mean: float, of_optimum: float
) -> None:
    planted = mixture(spread)
    rmse = error(planted, RbmCompletion(64))
    assert rmse < of_mean * planted.mean_rmse
    assert rmse < of_optimum * planted.optimal_rmse
    assert planted.mean_rmse == pytest.approx(error(planted, MeanFilling(64)), rel=1e-5)


@pytest.mark.parametrize(
    ("noise", "block", "of_mean", "of_optimum"),
    [(0.7, 1, 0.65, 1.05), (0.3, 1, 0.40, 1.12), (0.7, 32, 0.65, 1.08), (0.3, 32, 0.40, 1.22)],
)
def test_a_missing_block_is_filled_from_the_factors_it_shares_with_the_others(
    noise: float, block: int, of_mean: float, of_optimum: float
) -> None:
    planted = blocks(noise)
    rmse = error(planted, RbmCompletion(96, block=block))
    assert rmse < of_mean * planted.mean_rmse
    assert rmse < of_optimum * planted.optimal_rmse


def test_a_whitened_block_that_is_there_in_part_is_refused() -> None:
    model, v = fitted("whitened"), rows(4)
    present = torch.ones(4, V, dtype=torch.bool)
    present[2, 5] = False
    with pytest.raises(ModelError, match="a block of features is there in part"):
        model.fill(v, present)


def test_what_two_blocks_share_is_found_though_one_of_them_is_full_of_something_else() -> None:
    planted = crowded()
    whitened, plain = (error(planted, RbmCompletion(64, block=block)) for block in (32, 1))
    assert whitened < 1.5 * planted.optimal_rmse < 0.5 * planted.mean_rmse
    assert plain > 0.8 * planted.mean_rmse, "else the whitening of blocks makes no difference"


def test_whitened_blocks_have_unit_covariance_and_what_does_not_vary_stays_its_mean() -> None:
    made = rows(500)
    made[:, 5] = 7.0  # constant
    made[:, 10] = made[:, 8] + made[:, 9]  # says nothing of its own
    standard = Standard(V, 4)
    standard.measure(made)
    white = standard(made)
    covariance = (white.T @ white / len(made)).numpy()
    for at, rank in ((0, 4), (4, 3), (8, 3)):
        variances = np.linalg.eigvalsh(covariance[at : at + 4, at : at + 4])
        np.testing.assert_allclose(variances[-rank:], 1.0, atol=0.02)
        np.testing.assert_allclose(variances[:-rank], 0.0, atol=1e-6)
    assert white.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(standard.back(white), made, rtol=1e-3, atol=1e-2)
    assert torch.equal(standard.back(torch.randn(9, V))[:, 5], torch.full((9,), 7.0))


def test_blocks_of_one_feature_are_standardised_by_themselves() -> None:
    made, standard = rows(500), Standard(V)
    standard.measure(made)
    mean, std = made.double().mean(0), made.double().std(0, correction=0)
    torch.testing.assert_close(standard(made), ((made - mean) / std).float().clamp(-FARTHEST, FARTHEST))
    torch.testing.assert_close(standard.std, std.float())


def test_blocks_that_do_not_divide_the_features_are_refused() -> None:
    with pytest.raises(ModelError, match=r"blocks do not divide the features .*12 by 5"):
        MeanFilling(V, block=5)


def test_heavy_tails_cost_it_some_but_leave_it_far_better_than_the_mean() -> None:
    planted = blocks(0.7, heavy=True)
    rmse = error(planted, RbmCompletion(96))
    assert rmse < 0.70 * planted.mean_rmse
    assert rmse < 1.15 * planted.optimal_rmse


def test_the_rate_may_be_four_times_as_high_and_the_layer_wide_before_training_runs_away() -> None:
    planted = blocks(0.3, N=600)
    for config in (CompletionConfig(learning_rate=0.04, epochs=10), CompletionConfig(hidden=(1024,), epochs=10)):
        assert error(planted, RbmCompletion(96, config)) < 0.45 * planted.mean_rmse


def test_sixty_rows_are_enough_to_fill_far_better_than_the_mean() -> None:
    planted = blocks(0.5, N=60)
    for hidden, least in ((512, 0.86), (64, 0.75)):
        model = RbmCompletion(96, CompletionConfig(hidden=(hidden,)))
        assert planted.gain(error(planted, model)) > least


def test_a_second_layer_fills_better_than_the_mean_and_no_better_than_the_rbm() -> None:
    planted = blocks(0.7)
    one, two = (CompletionConfig(hidden=hidden, epochs=20) for hidden in ((256,), (256, 128)))
    dbn, rbm = error(planted, DbnCompletion(96, two)), error(planted, RbmCompletion(96, one))
    assert rbm < dbn < 0.70 * planted.mean_rmse


def test_training_tells_rows_that_belong_together_from_shuffled_ones_better_and_better() -> None:
    seen = []
    for epochs in (1, 5, 40):
        model = RbmCompletion(V, CompletionConfig(hidden=(48,), epochs=epochs))
        model.fit(rows(), seed=1)
        seen.append(model.fidelity(rows(seed=5), seed=2))
    gaps, errors = [f.gap for f in seen], [f.reconstruction for f in seen]
    assert gaps[0] < gaps[1] < gaps[2] and gaps[2] > 1.0
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.6


@pytest.mark.parametrize("gaussian", [True, False])
def test_the_free_energy_is_the_energies_summed_over_every_hidden_state(gaussian: bool) -> None:
    rbm = Rbm(5, 4, gaussian=gaussian).double()
    generator = torch.Generator().manual_seed(0)
    for tensor in (rbm.weight, rbm.visible_bias, rbm.hidden_bias):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    v = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)  # (16, 4)
    energies = torch.stack([rbm.energy(v, h.expand(6, 4)) for h in states], dim=1)  # (6, 16)
    assert torch.allclose(rbm.free_energy(v), -torch.logsumexp(-energies, dim=1))
    odds = torch.softmax(-energies, dim=1)  # P(h | v)
    assert torch.allclose(rbm.hidden(v), odds @ states)
    if gaussian:  # E(v, h) = ½|v − visible(h)|² + something without v
        h = states[5].expand(6, 4)
        own = rbm.energy(v, h) - (v - rbm.visible(h)).square().sum(1) / 2
        assert torch.allclose(own, own[:1].expand(6))


@every_completion
def test_a_complete_row_comes_back_bit_for_bit_and_so_does_what_is_present(kind: str) -> None:
    model, v, present = fitted(kind), rows(80, seed=7), masked(80)
    v[0, 0] = -0.0
    v[3:, :] *= 1e4  # far beyond FARTHEST
    assert FARTHEST < 1e3
    filled = model.fill(v, present)
    assert torch.equal(filled[present].view(torch.int32), v[present].view(torch.int32))
    assert bool(filled.isfinite().all()) and not torch.equal(filled[~present], v[~present])
    assert torch.equal(model.fill(v, torch.ones_like(present)).view(torch.int32), v.view(torch.int32))


@every_completion
def test_what_stands_in_a_missing_place_is_not_read(kind: str) -> None:
    model, v, present = fitted(kind), rows(40, seed=7), masked(40)
    nothing = torch.where(present, v, float("nan"))
    assert torch.equal(model.fill(v, present), model.fill(nothing, present))


def test_a_row_of_which_nothing_is_present_gets_the_training_mean_or_zero() -> None:
    v, present = rows(8), torch.zeros(8, V, dtype=torch.bool)
    for kind in ("rbm", "dbn", "mean"):
        mean = rows().double().mean(0).float()
        assert torch.allclose(fitted(kind).fill(v, present), mean.expand(8, V))
    assert not fitted("zero").fill(v, present).any()


def test_a_feature_far_out_is_read_as_so_many_standard_deviations_and_no_more() -> None:
    model, v, present = fitted("rbm"), rows(30, seed=7), masked(30)[2:3].repeat(30, 1)
    column, there = int(present[0].nonzero()[0]), ~present
    filled = []
    for deviations in (FARTHEST / 4, FARTHEST + 1, 1e6):
        v[:, column] = model.standard.mean[column] + deviations * model.standard.std[column]
        filled.append(model.fill(v, present)[there])
    assert torch.equal(filled[1], filled[2]) and not torch.equal(filled[0], filled[1])


@every_completion
@pytest.mark.parametrize("width", [V, 96])
def test_a_rows_bits_depend_neither_on_its_neighbours_nor_on_how_many_there_are(kind: str, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    model, v = MADE[kind](width), torch.randn(3 * FILL_BATCH + 5, width, generator=generator)
    model.fit(v, seed=1)
    block = 4 if kind == "whitened" else 1
    present = (torch.rand(len(v), width // block, generator=generator) < 0.5).repeat_interleave(block, 1)
    together = model.fill(v, present)
    for B in (1, 3, 8, 64, 65, 130):
        assert torch.equal(model.fill(v[-B:], present[-B:]), together[-B:])
    order = torch.randperm(len(v), generator=generator)
    assert torch.equal(model.fill(v[order], present[order]), together[order])


@pytest.mark.parametrize("kind", ["rbm", "whitened", "dbn"])
def test_same_seed_same_bytes_whatever_the_global_stream_and_the_threads(kind: str) -> None:
    first = fitted(kind).state_dict()
    threads, _ = torch.get_num_threads(), torch.manual_seed(12345)
    torch.set_num_threads(threads + 1)
    before = torch.get_rng_state()
    again = fitted(kind).state_dict()
    assert torch.equal(before, torch.get_rng_state()), "the global stream was drawn from"
    torch.set_num_threads(threads)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["dbn.layers.0.weight"], fitted(kind, seed=2).state_dict()["dbn.layers.0.weight"])


@pytest.mark.parametrize("hidden", [(48,), (48, 24)])
def test_fitting_again_goes_on_from_the_present_weights_and_learns_the_refreshed_features(
    hidden: tuple[int, ...],
) -> None:
    config = CompletionConfig(hidden=hidden, epochs=30, refresh_epochs=8, batch=32)
    moved, truth, present = rows(800, 3, -8.0, turn=0.4), rows(200, 4, -8.0, turn=0.4), masked(200)

    def rmse(completion: DbnCompletion) -> float:
        away = (completion.fill(truth, present) - truth) / moved.std(0)
        return float(away[~present].square().mean().sqrt())

    warm, scaled = DbnCompletion(V, config), DbnCompletion(V, config)
    warm.fit(rows(800), seed=1)
    scaled.load_state_dict(warm.state_dict())
    stale = rmse(warm)
    scaled.standard.measure(moved)  # the new scale alone, the old weights
    warm.fit(moved, seed=2)
    brief = DbnCompletion(V, replace(config, epochs=config.refresh_epochs))
    brief.fit(moved, seed=2)  # as many epochs from nothing
    assert rmse(scaled) < 0.2 * stale
    assert rmse(warm) < 0.97 * rmse(scaled)
    assert rmse(warm) < rmse(brief)


def test_fitting_again_moves_the_weights_and_does_not_draw_new_ones() -> None:
    model = fitted("rbm")
    before = model.state_dict()["dbn.layers.0.weight"].clone()
    model.fit(rows(), seed=9)
    after, fresh = (m.state_dict()["dbn.layers.0.weight"] for m in (model, fitted("rbm", seed=9)))

    def likeness(weight: Tensor) -> float:
        return float(torch.cosine_similarity(before.flatten(), weight.flatten(), dim=0))

    assert not torch.equal(before, after)
    assert likeness(after) > 0.9 > 0.5 > likeness(fresh)


@every_completion
def test_gradients_reach_the_present_features_and_nothing_else(kind: str) -> None:
    model, present = fitted(kind), masked(20)
    source = torch.where(present, rows(20), float("nan")).requires_grad_()
    (model.fill(source * 1.0, present) * 3.0).sum().backward()  # type: ignore[no-untyped-call]
    assert source.grad is not None
    assert torch.equal(source.grad, 3.0 * present)
    assert list(model.parameters()) == []  # so no optimiser around it can move it


def test_the_features_it_is_fitted_to_are_detached() -> None:
    features = rows().requires_grad_()
    model = RbmCompletion(V, QUICK)
    model.fit(features * 2.0, seed=1)
    assert not any(tensor.requires_grad for tensor in model.state_dict().values())


@every_completion
def test_everything_it_learned_survives_a_file(kind: str, tmp_path: Path) -> None:
    model, v, present = fitted(kind), rows(70, seed=8), masked(70)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    save_file(arrays, tmp_path / "weights.safetensors")
    other = MADE[kind](V)
    other.load_state_dict(
        {name: torch.from_numpy(array) for name, array in load_file(tmp_path / "weights.safetensors").items()}
    )
    assert torch.equal(other.fill(v, present), model.fill(v, present))
    model.fit(rows(seed=2), seed=3)
    other.fit(rows(seed=2), seed=3)  # and goes on as the first does
    assert torch.equal(other.fill(v, present), model.fill(v, present))


def test_gibbs_steps_come_near_the_mean_field_and_repeat_with_their_generator() -> None:
    model, v, present = fitted("rbm"), rows(60, seed=7), masked(60)
    assert isinstance(model, RbmCompletion)
    drawn = [model.fill(v, present, steps=200, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    away = ((drawn[0] - model.fill(v, present)) / model.standard.std)[2:]
    assert away.square().mean().sqrt() < 0.3 and torch.equal(drawn[0][present], v[present])


@every_completion
def test_what_cannot_be_learned_from_or_filled_is_refused(kind: str) -> None:
    model, v, present = MADE[kind](V), rows(9), masked(9)
    with pytest.raises(ModelError, match="not been fitted"):
        model.fill(v, present)
    with pytest.raises(ModelError, match=r"got \(300, 11\), expected \(2 or more, 12\)"):
        model.fit(rows()[:, 1:], seed=1)
    with pytest.raises(ModelError, match="2 or more"):
        model.fit(rows(1), seed=1)
    bad = rows()
    bad[7, 2] = float("nan")
    with pytest.raises(ModelError, match="row 7, feature 2: a feature is not a number"):
        model.fit(bad, seed=1)
    assert not model.standard.measured
    model.fit(rows(), seed=1)
    for other in (present[:8], present.float(), present[:, :4]):
        with pytest.raises(ModelError, match="features and mask do not fit"):
            model.fill(v, other)
    v[3, 5], present[3, 5] = float("inf"), True
    with pytest.raises(ModelError, match="row 3, feature 5: a present feature is not a number"):
        model.fill(v, present)


def test_no_steps_a_training_that_runs_away_and_settings_without_sense_are_refused() -> None:
    model = fitted("rbm")
    assert isinstance(model, RbmCompletion)
    with pytest.raises(ModelError, match="needs steps"):
        model.fill(rows(3), masked(3), steps=0)
    for rate in (1.0, 1e30):  # large numbers, and none at all
        with pytest.raises(ModelError, match=r"training ran away .*; lower learning_rate"):
            RbmCompletion(V, CompletionConfig(learning_rate=rate)).fit(rows(), seed=1)
    for wrong in ({"hidden": ()}, {"hidden": (8, 0)}, {"epochs": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ConfigError, match="completion"):
            CompletionConfig(**wrong)
    with pytest.raises(ConfigError, match="one layer"):
        RbmCompletion(V, STACK)


@every_completion
def test_a_feature_that_never_varies_and_few_rows_do_no_harm(kind: str) -> None:
    few = rows(5)
    few[:, 3] = 0.1
    model = MADE[kind](V)
    model.fit(few, seed=1)
    filled = model.fill(few, masked(5))
    assert bool(filled.isfinite().all())
    if kind != "zero":
        assert torch.allclose(filled[:, 3], torch.tensor(0.1))


def test_every_completion_is_a_module_that_fits_and_fills() -> None:
    for made in MADE.values():
        completion: Completion = made(V)
        assert isinstance(completion, nn.Module)
