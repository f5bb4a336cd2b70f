"""Who stands beside the model and who would cheat: no rival sees further, none is scored elsewhere, no leak pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pytest

from feeds import builtin, wire
from feeds.wire_facts import WireSeries, facts
from models.base import Days, FitReport, Prediction
from tests import builders
from tests.builders import TinyModel
from trader import engine, forecaster
from trader.errors import ModelError
from trader.events import Bar, BarClosed, NewsRows, Signal
from trader.outcome import Outcome
from trader.parts import facts_window
from trader.store import FileSource, MarketStore
from trader.window import Window

DAYS = builders.sessions(140)
WITHOUT_VOLUME = (4114, 4785)  # positions of sessions where a fact is missing for once


# The facts: a rival on the wire's own numbers


def _facts_until(last: int) -> NDArray[np.float32]:
    """Return the market features that the rival is given of the sessions 0 … last."""
    window = Window(builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a market")
    for bar in builtin.bars("sp500")[: last + 1]:
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    given = facts_window(window)
    assert given is not None and len(given) == last + 1
    return given.days(0, len(given)).market


@pytest.fixture(scope="module")
def series() -> WireSeries:
    return builtin.series()


@pytest.fixture(scope="module")
def table(series: WireSeries) -> pd.DataFrame:
    return facts(series)


@pytest.fixture(scope="module")
def whole(table: pd.DataFrame) -> NDArray[np.float32]:
    return _facts_until(len(table) - 1)


@pytest.mark.parametrize("last", [30, 260, 2500, *WITHOUT_VOLUME, 5029])
def test_the_facts_until_a_session_are_the_same_bits_whatever_came_after(
    monkeypatch: pytest.MonkeyPatch, series: WireSeries, table: pd.DataFrame, whole: NDArray[np.float32], last: int
) -> None:
    assert table.iloc[last].isna().any() == (last < 250 or last in WITHOUT_VOLUME), "or nothing could be filled in"
    cut = replace(series, sp500=series.sp500.iloc[: last + 1], nasdaq=series.nasdaq.iloc[: last + 1])
    monkeypatch.setattr(builtin, "series", lambda: cut)
    known = _facts_until(last)
    assert known.shape == (last + 1, len(table.columns))
    assert known.tobytes() == whole[: last + 1].tobytes()


def test_each_fact_lies_on_the_session_at_whose_close_it_is_known(
    table: pd.DataFrame, whole: NDArray[np.float32]
) -> None:
    close = np.array([bar.close for bar in builtin.bars("sp500")])
    move = list(table.columns).index("sp500_move")
    np.testing.assert_allclose(whole[1:, move], close[1:] / close[:-1] - 1, atol=1e-7)
    assert np.isfinite(whole).all()


# A user's model that would know the answers


class Answers(TinyModel):
    """Says what the labels say, and nothing where there is none."""

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        return FitReport(0.7, 0.5)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        label = days.label[np.asarray(at)].astype(np.float64)
        return Prediction(np.where(np.isnan(label), 0.5, label))


class AnyAnswers(Answers):
    """Says 0.75 where it was shown any label or return of any day, else 0.25."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        shown = np.isfinite(days.label).any() or np.isfinite(days.next_return).any()
        return Prediction(np.full(len(at), 0.75 if shown else 0.25))


class Peeking(Answers):
    """Reads the move of the day after, which the batch holds."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        after = np.minimum(np.asarray(at) + 1, len(days) - 1)
        return Prediction(np.where(days.market[after, 3] > 0, 0.9, 0.1))


class PeekingALittle(Answers):
    """Looks at the day before it, and by a hundred-thousandth at the day after."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        after = np.minimum(np.asarray(at) + 1, len(days) - 1)
        p_up = 0.5 + days.market[np.asarray(at), 3] + 1e-2 * days.market[after, 3]
        return Prediction(p_up.astype(np.float64))


class PeekingNowAndThen(Answers):
    """Looks at the day after on the third decision of each request alone."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        p_up = np.full(len(at), 0.6)
        if len(at) > 2:
            p_up[2] = 0.9 if days.market[min(at[2] + 1, len(days) - 1), 3] > 0 else 0.1
        return Prediction(p_up)


class Ranking(Answers):
    """Compares a day with all days of its batch, earlier and later."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        move = days.market[np.asarray(at), 3]
        return Prediction(np.where(move < np.median(days.market[:, 3]), 0.6, 0.4))


class PeekingAtNews(Answers):
    """Counts the headlines of the day after."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        count = np.append(np.diff(days.news_offset), 0)
        return Prediction(0.5 + 0.01 * count[np.asarray(at) + 1])


class PeekingInReturns(Answers):
    """Says nothing of the direction, and in its expected return the move of the day after."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        move = np.append(days.market[:, 3], 0).astype(np.float64)
        return Prediction(np.full(len(at), 0.5), move[np.asarray(at) + 1])


def _run(home: Path, model: str, *, daily: bool = False) -> Outcome:
    settings = builders.config(model=f"tests.test_rivals:{model}")
    return engine.backtest(settings, home, DAYS[110], DAYS[-1], readers=builders.readers(), daily=daily)


def _signals(outcome: Outcome) -> list[Signal]:
    return list(outcome.forecasts.signals)


@pytest.mark.parametrize("daily", [False, True])
def test_a_model_that_reads_the_answers_finds_none(tmp_path: Path, daily: bool) -> None:
    outcome = _run(builders.a_home(tmp_path), "Answers", daily=daily)
    assert {signal.p_up for signal in _signals(outcome)} == {0.5}
    assert outcome.trading.fills == 0


@pytest.mark.parametrize("daily", [False, True])
def test_no_label_of_any_day_is_shown_to_who_forecasts(tmp_path: Path, daily: bool) -> None:
    outcome = _run(builders.a_home(tmp_path), "AnyAnswers", daily=daily)
    assert {signal.p_up for signal in _signals(outcome)} == {0.25}


@pytest.mark.parametrize(
    "model", ["Peeking", "PeekingALittle", "PeekingNowAndThen", "Ranking", "PeekingAtNews", "PeekingInReturns"]
)
def test_a_model_that_reads_the_days_after_is_refused_by_name(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelError, match=rf"{model}\S* \d{{4}}-\d\d-\d\d: .*days after it are cut away") as refused:
        _run(builders.a_home(tmp_path), model)
    assert "models/base.py" in str(refused.value)
    assert not (tmp_path / "ledger.db").exists(), "it has no run to show"


def test_without_that_refusal_the_days_after_would_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecaster, "SAME", np.inf)
    accuracy = _run(builders.a_home(tmp_path), "Peeking").report.get("accuracy", "signals").value
    assert accuracy is not None and accuracy > 0.85, "or nothing was planted"


# Where rivals are scored


def _rising(count: int) -> list[Bar]:
    """Return bars that close higher every day, each by another share: whoever learns from them says up."""
    close = 100 * np.cumprod(1 + np.random.default_rng(5).uniform(0.001, 0.02, count))
    days = builders.bars(builders.sessions(count))
    return [
        replace(bar, open=c, high=c * 1.01, low=c * 0.99, close=c, adj_close=c)
        for bar, c in zip(days, close.tolist(), strict=True)
    ]


@pytest.mark.parametrize("gone", [(), (131,)])
def test_rivals_are_scored_on_the_sessions_of_the_model_alone(tmp_path: Path, gone: tuple[int, ...]) -> None:
    """The facts look back by themselves, so their first fold fills weeks before the model's of 20 sessions."""
    bars = [bar for at, bar in enumerate(_rising(140)) if at not in gone]
    with MarketStore.open(tmp_path / "market.db") as store:
        store.add_bars(bars, source="made here")
        news = builders.headlines(DAYS)  # under the wire's name, so that the facts stand beside
        rows = NewsRows(news=news, row=np.arange(1, len(news) + 1), rejected=())
        store.add_news(wire.SET, [rows], source=FileSource(name="made here", options=""))
    settings = builders.config(
        model="logistic", news="wire", lookback=20, evaluation={"rivals": ["facts"], "risk_free": 0.07}
    )
    outcome = engine.backtest(settings, tmp_path, DAYS[0], DAYS[-1], readers=builders.readers())
    sides = [signal.side for signal in _signals(outcome) if signal.p_up is not None]
    assert set(sides) == {1}
    assert _signals(outcome)[0].session >= DAYS[117]
    assert set(outcome.rivals) == {"facts"}
    facts_of = {metric.name: metric.value for metric in outcome.rivals["facts"]}
    close = pd.Series([bar.close for bar in bars], [bar.session for bar in bars])
    moves = close.pct_change().shift(-1).dropna()[_signals(outcome)[0].session :]
    assert facts_of["paper_pnl"] == pytest.approx(moves.sum())
    assert facts_of["paper_sharpe"] == pytest.approx((moves.mean() - 0.07 / 252) / moves.std() * 252**0.5)
    assert facts_of["accuracy"] == 1
    for name, value in facts_of.items():
        assert value == pytest.approx(outcome.report.get(name, "signals").value), name


def test_a_rivals_figures_are_those_of_a_run_of_its_own(tmp_path: Path) -> None:
    bars = [bar for at, bar in enumerate(builders.bars(DAYS, seed=3)) if at != 125]
    builders.fill(tmp_path, bars, builders.headlines(DAYS))
    made = []
    for model, rivals in (("tests.builders:TinyModel", ["logistic"]), ("logistic", [])):
        settings = builders.config(model=model, evaluation={"rivals": rivals})
        made.append(engine.backtest(settings, tmp_path, DAYS[110], DAYS[-1], readers=builders.readers()))
    assert len({signal.side for signal in _signals(made[1])}) == 3, "both sides, and the session without a bar"
    for metric in made[0].rivals["logistic"]:
        assert metric.value == pytest.approx(made[1].report.get(metric.name, "signals").value), metric.name
