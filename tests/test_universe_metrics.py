"""The figures of many symbols are the textbook's: compared with scikit-learn and pandas on made-up decisions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from trader.errors import NoData
from trader.universe_metrics import Decisions, evaluate_decisions, spearman

D, K = 60, 7


def decisions(seed: int = 0, *, returns: bool = True, skill: float = 0.3) -> Decisions:
    """Draw decisions, some of them without a forecast, without a known close, or on a tie."""
    rng = np.random.default_rng(seed)
    came = rng.normal(0, 0.01, (D, K)).round(3)
    score = skill * came / 0.01 + rng.normal(size=(D, K)).round(1)
    p_up = np.where(rng.random((D, K)) < 0.1, np.nan, 1 / (1 + np.exp(-score)))
    expected = np.where(np.isnan(p_up), np.nan, score / 100) if returns else np.full((D, K), np.nan)
    came[rng.random((D, K)) < 0.05] = np.nan
    return Decisions(p_up=p_up, expected_return=expected, next_return=came)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracy_f1_and_matthews_correlation_are_scikit_learns(seed: int) -> None:
    said = decisions(seed)
    figures = {(m.name, m.of): m.value for m in evaluate_decisions(said, seed=1, resamples=50).metrics}
    counted = ~np.isnan(said.p_up) & ~np.isnan(said.next_return) & (said.p_up != 0.5)
    mine, truth = said.p_up[counted] > 0.5, said.next_return[counted] > 0
    assert figures["accuracy", "signals"] == pytest.approx(accuracy_score(truth, mine))
    assert figures["f1", "signals"] == pytest.approx(f1_score(truth, mine))
    assert figures["mcc", "signals"] == pytest.approx(matthews_corrcoef(truth, mine))
    assert figures["accuracy", "always_buy"] == pytest.approx(truth.mean())
    assert figures["f1", "always_buy"] == pytest.approx(f1_score(truth, np.ones_like(truth)))


@pytest.mark.parametrize("returns", [True, False])
def test_the_rank_correlation_is_pandas_own_with_ties_meaned_over_sessions(returns: bool) -> None:
    said = decisions(3, returns=returns)
    report = evaluate_decisions(said, seed=1, resamples=50)
    score = said.expected_return if returns else said.p_up
    each = [
        pd.Series(one).corr(pd.Series(came).where(~np.isnan(one)), method="spearman")
        for one, came in zip(score, said.next_return, strict=True)
    ]
    figures = {m.name: m.value for m in report.metrics if m.of == "signals"}
    assert figures["rank_ic"] == pytest.approx(np.nanmean(each))
    assert figures["hit_sessions"] == pytest.approx(np.mean(np.array(each)[~np.isnan(each)] > 0))
    assert report.score == ("expected return" if returns else "P(up)")


def test_a_session_whose_scores_are_all_alike_has_no_rank_correlation() -> None:
    assert np.isnan(spearman(np.full(4, 0.5), np.arange(4.0)))


def test_the_interval_covers_no_skill_where_there_is_none_and_leaves_it_where_there_is() -> None:
    none = {m.name: m for m in evaluate_decisions(decisions(5, skill=0.0), seed=1).metrics if m.of == "signals"}
    some = {m.name: m for m in evaluate_decisions(decisions(5, skill=1.0), seed=1).metrics if m.of == "signals"}
    assert none["rank_ic"].low is not None and none["rank_ic"].high is not None and some["rank_ic"].low is not None
    assert none["rank_ic"].low < 0 < none["rank_ic"].high
    assert some["rank_ic"].low > 0.3


def test_without_a_session_there_is_nothing_to_measure() -> None:
    nothing = np.empty((0, 3))
    with pytest.raises(NoData, match="no session"):
        evaluate_decisions(Decisions(p_up=nothing, expected_return=nothing, next_return=nothing), seed=1)
