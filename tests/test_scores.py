"""The figures of MSMF's tables: what they mean, that a day's symbols are one draw, and when they say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error

from trader.errors import TraderError
from trader.scores import SCORES, Forecasts, compared, scored

DAYS = 400


def forecasts(seed: int = 0, skill: float = 0.0, *, seeds: int = 1, symbols: int = 1) -> Forecasts:
    """Return forecasts of a market drawn from seed 0; ``skill``: how much of the return they know."""
    came = np.random.default_rng(0).normal(0, 0.01, (DAYS, symbols))
    noise = np.random.default_rng(seed + 1).normal(0, 0.01, (seeds, DAYS, symbols))
    expected = skill * came + (1 - skill) * noise
    return Forecasts(1 / (1 + np.exp(-100 * expected)), came, expected)


def test_the_figures_are_those_of_scikit_learn_and_mape_is_that_of_the_implied_close() -> None:
    said = forecasts(skill=0.3)
    up, rose = said.p_up[0, :, 0] > 0.5, said.next_return[:, 0] > 0
    found = {name: figure.value for name, figure in scored(said, seed=0, resamples=100).items()}
    closes = 50 * np.cumprod(np.concatenate([[1.0], 1 + said.next_return[:, 0]]))  # (DAYS + 1,)
    assert said.expected is not None
    implied = closes[:-1] * (1 + said.expected[0, :, 0])
    assert found["accuracy"] == pytest.approx(accuracy_score(rose, up))
    assert found["f1"] == pytest.approx(f1_score(rose, up))
    assert found["mape"] == pytest.approx(np.mean(np.abs(implied - closes[1:]) / closes[1:]))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(said.next_return[:, 0], said.expected[0, :, 0]))


def test_a_method_that_forecasts_no_return_has_no_figure_of_it_and_the_reason_is_said() -> None:
    found = scored(replace(forecasts(), expected=None), seed=0, resamples=100)
    assert [found[name].value is None for name in SCORES] == [False, False, True, True]
    assert found["rmse"].reason == "it forecasts no return"


def test_symbols_that_move_alike_make_no_interval_narrower() -> None:
    one = forecasts(skill=0.2)
    assert one.expected is not None
    ten = Forecasts(
        np.repeat(one.p_up, 10, axis=2), np.repeat(one.next_return, 10, axis=1), np.repeat(one.expected, 10, axis=2)
    )
    for name in SCORES:
        single, many = (scored(said, seed=3, resamples=300)[name] for said in (one, ten))
        assert (many.value, many.low, many.high) == pytest.approx((single.value, single.low, single.high))


def test_symbols_that_move_apart_do() -> None:
    def width(symbols: int) -> float:
        found = scored(forecasts(skill=0.2, symbols=symbols), seed=3, resamples=300)["accuracy"]
        assert found.high is not None and found.low is not None
        return found.high - found.low

    assert width(25) < width(1) / 3


def test_a_place_without_a_forecast_or_without_a_next_close_counts_nowhere() -> None:
    whole = forecasts(skill=0.3, symbols=2)
    assert whole.expected is not None
    p_up, came, expected = whole.p_up.copy(), whole.next_return.copy(), whole.expected.copy()
    p_up[:, :, 1], expected[:, :, 1] = np.nan, np.nan  # said nothing of
    alone = Forecasts(whole.p_up[:, :, :1], whole.next_return[:, :1], whole.expected[:, :, :1])
    silent = scored(Forecasts(p_up, came, expected), seed=0, resamples=100)
    assert silent == scored(alone, seed=0, resamples=100)
    came[:, 1] = np.nan  # not known yet
    assert scored(Forecasts(whole.p_up, came, whole.expected), seed=0, resamples=100) == silent


def test_no_side_is_no_decision_but_its_return_is_measured() -> None:
    said = forecasts(skill=0.3)
    half = said.p_up.copy()
    half[0, ::2] = 0.5
    found, rest = scored(replace(said, p_up=half), seed=0, resamples=100), said.p_up[0, 1::2, 0] > 0.5
    assert found["accuracy"].value == pytest.approx(accuracy_score(said.next_return[1::2, 0] > 0, rest))
    assert found["rmse"].value == scored(said, seed=0, resamples=100)["rmse"].value


def test_seeds_are_measured_together_and_their_spread_stands_beside() -> None:
    said = forecasts(skill=0.3, seeds=3)
    assert said.expected is not None
    singles = [replace(said, p_up=p[None], expected=e[None]) for p, e in zip(said.p_up, said.expected, strict=True)]
    values = [scored(one, seed=0, resamples=100)["accuracy"].value for one in singles]
    found = scored(said, seed=0, resamples=100)["accuracy"]
    assert found.value == pytest.approx(np.mean([value for value in values if value is not None]))
    assert found.seed_sd == pytest.approx(np.std([value for value in values if value is not None], ddof=1))
    assert scored(singles[0], seed=0, resamples=100)["accuracy"].seed_sd is None


def test_a_method_beside_itself_differs_by_nothing() -> None:
    said = forecasts(skill=0.3)
    for name in SCORES:
        found = compared(said, said, name, seed=0, resamples=200)
        assert (found.value, found.p_value) == (0.0, 1.0)


def test_a_better_method_is_told_from_a_worse_one_and_the_other_way_round() -> None:
    good, bad = forecasts(skill=0.6), forecasts(5, skill=0.0)
    for name in SCORES:
        there, back = compared(good, bad, name, seed=0, resamples=500), compared(bad, good, name, seed=0, resamples=500)
        assert there.value is not None and back.value is not None and there.value == -back.value
        assert (there.value > 0) == (name in ("accuracy", "f1"))
        assert there.p_value == back.p_value and there.p_value is not None and there.p_value < 0.05
        assert there.low is not None and there.high is not None and there.low * there.high > 0


def test_two_methods_that_know_nothing_are_called_different_in_about_one_test_in_twenty() -> None:
    came, rng = np.random.default_rng(1), np.random.default_rng(2)
    low = 0
    for _ in range(100):
        returns = came.normal(0, 0.01, (250, 1))
        pair = [Forecasts(rng.uniform(0.01, 0.99, (1, 250, 1)), returns) for _ in range(2)]
        found = compared(*pair, "accuracy", seed=int(rng.integers(1 << 30)), resamples=200)
        assert found.p_value is not None
        low += found.p_value < 0.05
    assert low <= 12  # 5 expected, a standard deviation of 2.2


def test_an_equal_number_of_seeds_is_compared() -> None:
    many, one = forecasts(skill=0.3, seeds=3), forecasts(skill=0.3)
    first = replace(many, p_up=many.p_up[:1], expected=None if many.expected is None else many.expected[:1])
    assert compared(many, one, "rmse", seed=0, resamples=100) == compared(first, one, "rmse", seed=0, resamples=100)


def test_other_days_and_columns_that_do_not_fit_are_refused() -> None:
    said = forecasts()
    with pytest.raises(TraderError, match="measured on different days"):
        compared(said, replace(said, next_return=said.next_return + 1e-9), "f1", seed=0)
    with pytest.raises(TraderError, match="columns of unequal length"):
        replace(said, next_return=said.next_return[1:])
    with pytest.raises(TraderError, match="not a finite number"):
        replace(said, p_up=np.full_like(said.p_up, np.inf))
