"""Adoption: a newcomer is taken up or refused by what it forecasts on sessions that nobody learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from numpy.typing import NDArray
import pytest

from models.base import Days, FitReport, Prediction, Weights
from tests import builders
from tests.builders import CALENDAR
from trader import engine
from trader.adoption import Adoption, InUse
from trader.config import Retrain, WalkForward, from_mapping
from trader.errors import ConfigError
from trader.events import Bar, BarClosed, NewsArrived, NewsBatch, to_us
from trader.ledger import Ledger
from trader.outcome import Outcome
from trader.records import Verdict
from trader.registry import Registry
from trader.training import ModelSpec, TrainedFold, Trainer
from trader.walkforward import Fold, fold_at, needed
from trader.window import Window

SPEC = WalkForward(train=20, validation=5, step=40)
RULE = Retrain(adopt="challenge", challenge=10)
DAYS = builders.sessions(130)
HELD = 70, 110  # sessions in the window at the two trainings
OLD, NEW = range(HELD[0] - 42, HELD[0] - 22), range(HELD[1] - 42, HELD[1] - 22)  # what each of them trains on
LABELLED = range(HELD[1] - 11, HELD[1] - 1)  # the newest labelled sessions at the second


class Tone:
    """Learns whether good news is followed by a rise, or by a fall: one number."""

    lookback = 1

    def __init__(self) -> None:
        self._slope = np.zeros(1)

    def fit(self, days: Days, train: range, validation: range, seed: int) -> FitReport:
        tone, up = _tones(days, train), days.label[train.start : train.stop] * 2 - 1
        self._slope = np.array([float((tone * up).mean())])
        return FitReport(0.5, 0.5)

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        return Prediction(1 / (1 + np.exp(-2 * self._slope[0] * _tones(days, at))))

    def weights(self) -> Weights:
        return {"slope": self._slope}

    def load(self, weights: Mapping[str, NDArray[np.generic]]) -> None:
        self._slope = np.array(weights["slope"], np.float64)


class Nonsense(Tone):
    """Forecasts well until its training days lie after those of OLD; then no number."""

    def predict(self, days: Days, at: Sequence[int]) -> Prediction:
        made = super().predict(days, at)
        return made if self._slope[0] > 0 else Prediction(np.full(len(at), np.nan))


def _tones(days: Days, at: Sequence[int]) -> NDArray[np.float64]:
    return np.array([float((s := days.news_sentiment[days.news(day)])[0, 2] - s[0, 0]) for day in at])


def a_window(inverted: Sequence[int] = (), days: int = len(DAYS), other: int = len(DAYS)) -> Window:
    """Return sessions whose one headline tells how the next one goes, with the opposite at the positions ``inverted``.

    other: from this position on everything is drawn anew, and headlines tell nothing.
    """
    rng, again, close = np.random.default_rng(3), np.random.default_rng(4), 100.0
    window = Window(CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text="a market")
    rises = True
    for at, day in enumerate(DAYS[:days]):
        drawn = again if at >= other else rng
        close *= 1 + (0.01 if rises else -0.01) * float(drawn.uniform(0.5, 1.5))
        rises = bool(drawn.integers(2))
        wrong = bool(drawn.integers(2)) if at >= other else at in inverted
        text = "oil rise" if rises != wrong else "oil fall"
        cutoff, prices = CALENDAR.cutoff(day), dict.fromkeys(("open", "high", "low", "close", "adj_close"), close)
        news = NewsBatch.of(list(builders.batch([to_us(cutoff)], [text]).items()))
        window.update(NewsArrived(session=day, at=cutoff, news=news))
        bar = Bar(symbol="toy", session=day, volume=1000.0, known_at=cutoff, **prices)
        window.update(BarClosed(session=day, at=cutoff, bar=bar))
    return window


def folds(kept: int = 10) -> list[Fold]:
    numbers = [CALENDAR.index(DAYS[held - 1]) for held in HELD]
    found = [fold_at(number, held, 20, SPEC, kept) for number, held in zip(numbers, HELD, strict=True)]
    return [replace(fold, use=range(fold.use.start, fold.use.start + 15)) for fold in found if fold]


def a_trainer(folder: Path, window: Window, kind: Any = Tone) -> Trainer:
    return Trainer(window, ModelSpec("tone", partial(kind), {}, 1, "tiny", 0, "code"), Registry(folder), workers=1)


def an_adoption(window: Window, trainer: Trainer, rule: Retrain = RULE, **how: Any) -> Adoption:
    return Adoption(window, trainer.load, SPEC, rule, symbol="toy", lookback=1, **how)


def judged(folder: Path, window: Window, rule: Retrain = RULE, kind: Any = Tone) -> tuple[list[Verdict], Adoption]:
    trainer = a_trainer(folder, window, kind)
    adoption = an_adoption(window, trainer, rule)
    return [adoption.take(one) for one in trainer.train(folds())], adoption


def test_a_newcomer_that_learned_garbage_is_refused_and_the_model_in_use_goes_on(tmp_path: Path) -> None:
    (first, second), adoption = judged(tmp_path, a_window(inverted=NEW))
    assert (first.adopted, first.incumbent, first.reason) == (True, "", "the first model")
    assert (second.adopted, second.incumbent, second.newcomer) == (False, first.newcomer, second.newcomer)
    assert second.sessions == 10
    assert second.loss_newcomer is not None and second.loss_incumbent is not None
    assert second.loss_newcomer > np.log(2) > second.loss_incumbent
    assert second.reason.startswith("worse by") and second.reason.endswith("more than margin 0")
    assert second.session == DAYS[HELD[1] - 1]
    assert adoption.in_use.at(DAYS[HELD[1] + 5]) == first.newcomer


def test_a_good_newcomer_takes_the_place_of_one_that_learned_garbage(tmp_path: Path) -> None:
    (first, second), adoption = judged(tmp_path, a_window(inverted=OLD))
    assert second.adopted
    assert second.reason.startswith("better by")
    assert adoption.in_use.at(DAYS[HELD[1] - 1]) == first.newcomer, "at T itself the old one still decides"
    assert adoption.in_use.at(DAYS[HELD[1]]) == second.newcomer


def test_always_adopts_the_one_that_learned_garbage_and_compares_nothing(tmp_path: Path) -> None:
    (_, second), _ = judged(tmp_path, a_window(inverted=NEW), Retrain())
    assert (second.adopted, second.sessions, second.loss_newcomer) == (True, 0, None)


def test_a_newcomer_may_be_worse_by_the_margin_and_by_no_bit_more(tmp_path: Path) -> None:
    window = a_window(inverted=NEW)
    (_, refused), _ = judged(tmp_path, window)
    assert refused.loss_newcomer is not None and refused.loss_incumbent is not None
    worse = refused.loss_newcomer - refused.loss_incumbent
    for margin, adopted in ((worse, True), (float(np.nextafter(worse, 0)), False)):
        (_, verdict), _ = judged(tmp_path, window, replace(RULE, margin=margin))
        assert verdict.adopted == adopted


def test_the_loss_is_that_of_the_newest_labelled_sessions(tmp_path: Path) -> None:
    window = a_window(inverted=OLD)
    trainer = a_trainer(tmp_path, window)
    trained = trainer.train(folds())
    _, verdict = (adoption := an_adoption(window, trainer)).take(trained[0]), adoption.take(trained[1])
    days = window.learnable(0, HELD[1] - 1)
    p_up = trainer.model(trained[1]).predict(days, LABELLED).p_up
    own = [-np.log(p if days.label[at] else 1 - p) for p, at in zip(p_up, LABELLED, strict=True)]
    assert verdict.loss_newcomer == pytest.approx(np.mean(own), rel=1e-12)


def test_a_newcomer_whose_forecast_is_no_number_is_refused_and_one_in_use_is_replaced(tmp_path: Path) -> None:
    (_, refused), _ = judged(tmp_path / "new", a_window(inverted=NEW), kind=Nonsense)
    assert not refused.adopted and refused.loss_newcomer is None
    assert refused.reason.startswith("the newcomer failed: ") and "not a number" in refused.reason
    (_, adopted), _ = judged(tmp_path / "old", a_window(inverted=OLD), kind=Nonsense)
    assert adopted.adopted and adopted.loss_incumbent is None
    assert adopted.reason.startswith("the model in use failed: ")


# Who saw what


@given(
    held=st.integers(100, 500),
    later=st.integers(1, 120),
    kept=st.integers(5, 60),
    mode=st.sampled_from(["sliding", "expanding"]),
)
def test_neither_model_learned_or_stopped_on_the_sessions_that_they_are_compared_on(
    held: int, later: int, kept: int, mode: str
) -> None:
    spec = WalkForward(train=25, validation=10, mode=mode)  # type: ignore[arg-type]
    incumbent, newcomer = (fold_at(4000, count, 24, spec, kept) for count in (held, held + later))
    if incumbent is None or newcomer is None:
        assert held < needed(spec, kept) + 24
        return
    challenge = newcomer.challenge
    assert len(challenge) == kept
    assert challenge[-1] + spec.horizon == held + later - 1, "the newest whose label is known at T"
    for fold in (incumbent, newcomer):
        seen = fold.validation[-1] + spec.horizon  # the session whose close is the last label
        assert challenge.start - fold.validation.stop >= spec.purge
        assert seen < challenge.start
    assert newcomer.validation.start - newcomer.train.stop == spec.purge


def test_without_a_challenge_a_fold_is_what_it_always_was() -> None:
    fold = fold_at(4000, 600, 24, WalkForward())
    assert fold == Fold(4000, range(144, 544), range(547, 597), range(600, 600))
    assert fold.challenge == range(0)


def test_the_sessions_compared_on_change_no_model_when_they_are_drawn_anew(tmp_path: Path) -> None:
    seen = folds()[1].validation.stop  # its close is the last label
    one, _ = judged(tmp_path / "one", a_window())
    other, _ = judged(tmp_path / "other", a_window(other=seen + 1))
    assert [verdict.newcomer for verdict in one] == [verdict.newcomer for verdict in other]
    assert one[1].loss_newcomer != other[1].loss_newcomer, "else nothing was drawn anew"
    earlier, _ = judged(tmp_path / "earlier", a_window(other=seen))
    assert earlier[1].newcomer != one[1].newcomer, "one session earlier it is the newcomer's own label"


def test_what_comes_after_the_training_changes_no_verdict(tmp_path: Path) -> None:
    one, _ = judged(tmp_path / "one", a_window(inverted=OLD))
    for name, window in (("cut", a_window(OLD, HELD[1])), ("anew", a_window(OLD, other=HELD[1]))):
        assert judged(tmp_path / name, window)[0] == one
    assert judged(tmp_path / "before", a_window(OLD, other=HELD[1] - 8))[0] != one


def _trained_until(trainer: Trainer, held: int) -> TrainedFold:
    """Train as ``adopt = "always"`` lays it, so that the newest sessions are learned from."""
    fold = fold_at(CALENDAR.index(DAYS[held - 1]), held, 20, SPEC)
    assert fold is not None
    return trainer.train([fold])[0]


@pytest.mark.parametrize(("held", "compared"), [(HELD[1] - 12, 10), (HELD[1] - 8, 7), (HELD[1] - 1, 0), (125, 0)])
def test_sessions_that_a_model_named_by_hand_has_seen_are_not_compared_on(
    tmp_path: Path, held: int, compared: int
) -> None:
    window = a_window(inverted=NEW)
    trainer = a_trainer(tmp_path, window)
    named = _trained_until(trainer, held)
    first, second = trainer.train(folds())
    adoption = an_adoption(window, trainer, overrides={DAYS[HELD[1] - 20]: named.model_id})
    adoption.take(first)
    verdict = adoption.take(second)
    assert (verdict.incumbent, verdict.sessions) == (named.model_id, compared)
    if not compared:
        assert verdict.adopted
        assert verdict.reason.startswith("the model in use has seen the newest 10 labelled sessions, up to 20")


# Which model is in use


def test_an_override_holds_until_the_next_adoption_and_wins_on_its_own_session() -> None:
    a, b, c, d, e, f = DAYS[:6]
    in_use = InUse({a: "too early", d: "named"})
    assert in_use.at(d) is None
    in_use.adopt(b, "first")
    assert [in_use.at(day) for day in (a, b, c, d, e)] == [None, "first", "first", "named", "named"]
    in_use.adopt(d, "second")
    assert in_use.at(d) == "named"
    in_use.adopt(f, "third")
    assert [in_use.at(day) for day in (e, f)] == ["named", "third"]


def test_what_was_in_use_before_a_restart_is_forgotten_but_for_later_overrides() -> None:
    in_use = InUse({DAYS[0]: "old", DAYS[5]: "new"})
    in_use.resume(DAYS[3], "running")
    assert [in_use.at(day) for day in DAYS[3:7]] == ["running", "running", "new", "new"]


# Through the whole chain

TINY = "tests.builders:TinyModel"
CHALLENGE = {"adopt": "challenge", "challenge": 10}
LONG = builders.sessions(180)


def run(home: Path, *, first: int = 121, last: int = 175, **how: Any) -> Outcome:
    engine_how = {name: how.pop(name) for name in ("daily", "overrides") if name in how}
    settings = builders.config(**{"model": TINY, "retrain": CHALLENGE, **how})
    return engine.backtest(settings, home, LONG[first], LONG[last], readers=builders.readers(), **engine_how)


def verdicts(outcome: Outcome) -> list[Verdict]:
    with Ledger.open(outcome.home.ledger, read_only=True) as ledger:
        return ledger.verdicts(outcome.run)


@pytest.mark.parametrize("how", [{}, {"model": "logistic"}, {"step": 1, "without": (130, 131, 140)}], ids=str)
def test_day_by_day_adopts_the_same_models_as_by_folds(tmp_path: Path, how: dict[str, Any]) -> None:
    home = builders.a_home(tmp_path, 180, without=how.pop("without", ()))
    how |= {"walkforward": {"step": how.pop("step", 10)}}
    by_folds, daily = (run(home, daily=daily, **how) for daily in (False, True))
    assert daily.forecasts.signals == by_folds.forecasts.signals
    assert daily.ledger_hash == by_folds.ledger_hash
    assert verdicts(daily) == verdicts(by_folds) == list(by_folds.forecasts.verdicts)
    assert {verdict.adopted for verdict in verdicts(daily)} == {False, True}, "both must occur, or half was tested"
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        rows = [
            [{**row, "run": 0, "train_seconds": 0, "cached": 0} for row in _folds(ledger, one.run)]
            for one in (daily, by_folds)
        ]
    assert rows[0] == rows[1]
    # Without a bar in between the same model is trained again; it counts as the last of these trainings.
    number = {one.newcomer: one.fold for one in verdicts(daily) if one.adopted and _used(daily, one)}
    assert [row["fold"] for row in rows[0]] == list(number.values())


def _folds(ledger: Ledger, run: int) -> list[dict[str, Any]]:
    return ledger._query("SELECT * FROM folds WHERE run = ? ORDER BY fold", run)


def _used(outcome: Outcome, verdict: Verdict) -> bool:
    return any(one.model_id == verdict.newcomer and one.p_up is not None for one in outcome.forecasts.signals)


def test_by_default_every_model_is_adopted_and_said_to_be(tmp_path: Path) -> None:
    outcome = run(builders.a_home(tmp_path, 180), retrain={})
    found = verdicts(outcome)
    assert [one.adopted for one in found] == [True] * len(outcome.forecasts.folds)
    assert {one.reason for one in found[1:]} == {'adopt = "always"'}
    assert [one.newcomer for one in found] == [one.model_id for one in outcome.forecasts.folds]


def test_a_ledger_from_before_has_no_verdicts_and_gets_the_table_when_it_is_written(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 180)
    old = run(home)
    with Ledger.open(home / "ledger.db") as ledger:
        ledger._conn.execute("DROP TABLE verdicts")
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        assert ledger.verdicts(old.run) == []
    new = run(home)
    assert verdicts(new)
    assert verdicts(old) == []
    assert new.ledger_hash == old.ledger_hash


def test_an_override_decides_until_the_next_adoption_both_ways(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 180)
    plain = run(home, retrain={})
    first, second = (one.model_id for one in plain.forecasts.folds[:2])
    begins = LONG[LONG.index(_first_of(plain, second)) + 3]
    made = [run(home, retrain={}, overrides={begins: first}, daily=daily) for daily in (False, True)]
    assert made[0].ledger_hash == made[1].ledger_hash != plain.ledger_hash
    third = _first_of(plain, plain.forecasts.folds[2].model_id)
    for before, after in zip(plain.forecasts.signals, made[0].forecasts.signals, strict=True):
        named = begins <= before.session < third
        assert after.model_id == (first if named else before.model_id)
        assert named or after == before


def _first_of(outcome: Outcome, model_id: str) -> date:
    return next(signal.session for signal in outcome.forecasts.signals if signal.model_id == model_id)


def test_a_model_past_its_age_abstains_both_ways(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, 180)
    how = {"walkforward": {"step": 20}}
    plain = run(home, **how, retrain={})
    made = [run(home, **how, retrain={"max_age": 12}, daily=daily) for daily in (False, True)]
    assert made[0].ledger_hash == made[1].ledger_hash
    abstained = 0
    for young, aged in zip(plain.forecasts.signals, made[0].forecasts.signals, strict=True):
        last_seen = Registry(home / "models").manifest(young.model_id)["spans"]["last_seen"]
        age = CALENDAR.index(young.session) - CALENDAR.index(date.fromisoformat(last_seen))
        if age <= 12:
            assert aged == young
            continue
        abstained += 1
        assert (aged.p_up, aged.side, aged.model_id) == (None, 0, young.model_id)
        assert aged.reason == f"model {young.model_id} last saw a session {age} sessions ago, more than max_age 12"
    assert abstained > 10


def test_an_age_that_no_model_can_keep_is_refused() -> None:
    assert from_mapping({"retrain": {"max_age": 3}}, "test").retrain.max_age == 3
    with pytest.raises(ConfigError, match=r"\[retrain\] max_age: too small \(got 2, expected 0, or at least 3"):
        from_mapping({"retrain": {"max_age": 2}}, "test")
    with pytest.raises(ConfigError, match="at least 54"):
        from_mapping({"retrain": {"adopt": "challenge", "max_age": 53}}, "test")


def _future(home: Path, seed: int, cut: int) -> tuple[list[Verdict], list[Any]]:
    past = builders.bars(LONG[:cut])
    after = builders.bars(LONG[cut:], seed=seed, start=past[-1].close)
    news = [builders.headlines(LONG[:cut]), builders.headlines(LONG[cut:], seed=seed)]
    builders.fill(home, [*past, *after], NewsBatch.of([item for part in news for item in part.items()]))
    outcome = run(home)
    return verdicts(outcome), list(outcome.forecasts.signals)


def test_a_new_future_changes_no_verdict_before_it(tmp_path: Path) -> None:
    whole, _ = _future(tmp_path / "whole", 1, 150)
    at = next(verdict.session for verdict in whole[2:])
    cut = LONG.index(at) + 1  # everything after the session of this verdict
    (one, signals), (other, others) = (_future(tmp_path / str(seed), seed, cut) for seed in (1, 2))
    assert [v for v in one if v.session <= at] == [v for v in other if v.session <= at]
    assert len([v for v in one if v.session <= at]) >= 2
    assert [v for v in one if v.session > at] != [v for v in other if v.session > at]
    assert [s for s in signals if s.session <= at] == [s for s in others if s.session <= at]
