"""Networks over windows: bits that do not depend on neighbours, arrays that come back, and the better of two kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
import pytest
import torch
from torch import Tensor, nn

from models import sequences
from models.base import FitReport
from models.fitting import Recipe, reproducible
from models.sequences import VALUE, BestOf, Mlp, Recurrent, SequenceConfig, arrays, forecast, outputs
from models.tone import frequencies
from tests.spoken import random_days
from trader.errors import ConfigError, ModelError

Array = NDArray[np.float32]
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "regression": lambda t, C: Mlp(t, C, 16, layers=1),
    "mlp": lambda t, C: Mlp(t, C, 24, layers=3),
    "lstm": lambda t, C: Recurrent("lstm", C, 16),
    "gru": lambda t, C: Recurrent("gru", C, 40),
}


def drawn(build: Callable[[int, int], nn.Module], t: int = 4, C: int = 7, seed: int = 1) -> nn.Module:
    with reproducible(seed):
        return build(t, C)


def windows(count: int, t: int = 4, C: int = 7, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, t, C)).astype(np.float32)


def last_sign(x: Array) -> Array:
    return (x[:, -1, 0] > 0).astype(np.float32)


def taught(name: str, seed: int = 1, **recipe: float) -> tuple[nn.Module, FitReport]:
    x, unseen = windows(240), windows(80, seed=9)
    with reproducible(seed):
        network = NETWORKS[name](4, 7)
        chosen = Recipe(**({"learning_rate": 2e-2, "epochs": 15} | recipe))  # type: ignore[arg-type]
        report = sequences.fit(network, x, last_sign(x), unseen, last_sign(unseen), chosen, seed)
    return network, report


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("t", "C"), [(1, 2), (5, 9), (20, 22)])
def test_a_forecast_depends_on_its_own_window_alone_bit_for_bit(name: str, t: int, C: int) -> None:
    network, x = drawn(NETWORKS[name], t, C), windows(150, t, C)
    together = forecast(network, x)
    assert together.dtype == np.float64 and (together > 0).all() and (together < 1).all() and np.ptp(together) > 0
    order = np.random.default_rng(0).permutation(150)
    assert np.array_equal(forecast(network, x[order]), together[order])
    for row in range(0, 150, 7):
        assert forecast(network, x[row : row + 1])[0] == together[row]
    assert forecast(network, x[:0]).shape == (0,)


def test_what_the_last_day_tells_is_learned_and_dropout_rests_afterwards(name: str) -> None:
    network, report = taught(name)
    assert not network.training and report.validation_accuracy > 0.8
    fresh = windows(200, seed=5)
    assert ((forecast(network, fresh) > 0.5) == (last_sign(fresh) > 0.5)).mean() > 0.8


def test_one_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    first, again, other = (arrays(taught(name, seed, epochs=2)[0], "n") for seed in (1, 1, 2))
    assert all(np.array_equal(array, again[key]) for key, array in first.items())
    assert not all(np.array_equal(array, other[key]) for key, array in first.items())


def test_a_network_can_be_fitted_to_values() -> None:
    x, unseen = windows(400), windows(80, seed=9)
    with reproducible(1):
        network = Recurrent("gru", 7, 16, dropout=0.0)
        values, truth = 3 * x[:, -1, 1], 3 * unseen[:, -1, 1]
        report = sequences.fit(network, x, values, unseen, truth, Recipe(1e-2, epochs=25), 1, objective=VALUE)
    assert report.validation_loss < 0.2 * float(truth.var()) and report.validation_accuracy > 0.9
    assert np.corrcoef(outputs(network, unseen), truth)[0, 1] > 0.9


def test_a_window_that_is_no_number_is_refused_by_row() -> None:
    network, x = drawn(NETWORKS["mlp"]), windows(20)
    y, broken = last_sign(x), x.copy()
    broken[13, 2, 1] = np.inf
    with pytest.raises(ModelError, match="row 13 is not finite"):
        forecast(network, broken)
    with pytest.raises(ModelError, match="training window 13 is not finite"):
        sequences.fit(network, broken, y, x, y, Recipe(), 1)
    with pytest.raises(ModelError, match="validation window 13 is not finite"):
        sequences.fit(network, x, y, broken, y, Recipe(), 1)
    with pytest.raises(ModelError, match="training target 0 is not finite"):
        sequences.fit(network, x, y * np.nan, x, y, Recipe(), 1)
    with pytest.raises(ModelError, match="windows and targets do not agree"):
        sequences.fit(network, x, y[1:], x, y, Recipe(), 1)


def test_weights_that_are_no_number_are_refused_when_asked() -> None:
    network = drawn(NETWORKS["mlp"])
    next(network.parameters()).data.fill_(torch.nan)
    with pytest.raises(ModelError, match="the forecast of row 0 is not finite"):
        forecast(network, windows(3))


def test_arrays_come_back_and_their_neighbours_are_left_alone(name: str) -> None:
    network, other = drawn(NETWORKS[name]), drawn(NETWORKS[name], seed=2)
    kept = arrays(network, "level") | {"other.weight": np.zeros(3)}
    sequences.load(other, kept, "level")
    assert np.array_equal(forecast(other, windows(9)), forecast(network, windows(9)))
    next(network.parameters()).data.fill_(0)
    assert not np.array_equal(forecast(other, windows(9)), forecast(network, windows(9)))  # arrays of their own


def test_arrays_that_do_not_fit_are_refused_and_nothing_is_taken(name: str) -> None:
    network, kept = drawn(NETWORKS[name]), arrays(drawn(NETWORKS[name], seed=2), "n")
    before, some = arrays(network, "n"), list(kept)[-1]
    for wrong in (
        {key: array for key, array in kept.items() if key != some},
        kept | {"n.stray": np.zeros(1, np.float32)},
        kept | {some: np.zeros((2, 3, 4), np.float32)},
        kept | {some: kept[some].astype(np.float64)},
    ):
        with pytest.raises(ValueError, match="weights do not fit: n"):
            sequences.load(network, wrong, "n")
    assert all(np.array_equal(array, before[key]) for key, array in arrays(network, "n").items())


def test_settings_that_cannot_be_used_are_refused_by_name() -> None:
    for setting in ({"lookback": 0}, {"trailing": 0}, {"hidden": 12}, {"hidden": 20}, {"dropout": 1.0}, {"batch": 0}):
        with pytest.raises(ConfigError, match=f"sequence: {next(iter(setting))} is"):
            SequenceConfig(**setting)
    with pytest.raises(ConfigError, match="expected lstm, gru"):
        Recurrent("rnn", 7, 16)


class Mute(nn.Module):
    """A network that always says the same."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x))


@pytest.mark.parametrize("names", [("mute", "hears"), ("hears", "mute")])
def test_of_two_networks_the_better_on_validation_is_kept_and_written_down(names: tuple[str, str]) -> None:
    kinds: dict[str, Callable[[int], nn.Module]] = {"mute": lambda C: Mute(), "hears": lambda C: Mlp(1, C, 16)}
    days = random_days(300)
    positive = frequencies(days, range(4, 300), 5)[:, 0]
    days.next_return[4:] = np.where(positive > np.median(positive), 0.01, -0.01)
    config = SequenceConfig(lookback=1, trailing=5, learning_rate=1e-2)
    model = BestOf(config, frequencies, {name: kinds[name] for name in names})
    report = model.fit(days, range(4, 200), range(203, 253), seed=1)
    assert {key.partition(".")[0] for key in model.weights()} == {"hears", "numbers"}
    assert model.lookback == 5 and report.validation_accuracy > 0.9
    again = BestOf(config, frequencies, {name: kinds[name] for name in names})
    again.load(model.weights())
    assert np.array_equal(again.predict(days, range(253, 300)).p_up, model.predict(days, range(253, 300)).p_up)
    with pytest.raises(ValueError, match="expected one of"):
        again.load(model.weights() | {"mute.bias": np.zeros(1, np.float32)})
