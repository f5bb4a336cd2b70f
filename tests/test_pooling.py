"""Pooled markets: what a fold learns from others, under what name, and that nothing later than its span is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import json
from pathlib import Path

import numpy as np
import pytest

from models.base import Days
from tests import builders
from tests.test_experiment import REQUEST, SESSIONS, config, readers
from trader import experiment
from trader.cell_work import evaluate
from trader.cells import CellResult, Cells
from trader.config import Config
from trader.errors import ModelError
from trader.events import Bar, BarClosed, NewsArrived
from trader.experiment_inputs import Inputs
from trader.experiment_plan import Planned, plan_cell
from trader.experiment_tables import Place, measure
from trader.methods import Method, methods
from trader.store import MarketStore
from trader.walkforward import Fold
from trader.window import Window

COUNT = 220
DAYS = builders.sessions(COUNT)
FOLD = Fold(0, range(130, 170), range(173, 183), range(186, 196))
POOLED = "finin_pooled"


def inputs_of(market: str, bars: Sequence[Bar], *, spread: int = 0) -> Inputs:
    """Return a market read through a cache of its own; ``spread`` shifts which words its days have."""
    window = Window(builders.CALENDAR, builders.TinyTexts(), builders.TinyScorer(), market_text=f"this is {market}")
    for bar in bars:
        at = DAYS.index(bar.session) + spread
        said = [f"{builders.TOPICS[(at + n) % 8]} {builders.VERBS[at % 6]} {at % 11}" for n in range(at % 4)]
        window.update(NewsArrived(session=bar.session, at=bar.known_at, news=builders.batch([0] * len(said), said)))
        window.update(BarClosed(session=bar.session, at=bar.known_at, bar=bar))
    digests = [window.fingerprint(at, at + 1) for at in range(len(window))]
    return Inputs(market, window, "tiny", digests, 0, len(window))


OWN = inputs_of("own", builders.bars(DAYS))
OTHER_BARS = builders.bars(DAYS, seed=5)
OTHER = inputs_of("other", OTHER_BARS, spread=3)


def row(key: str, settings: Config) -> Method:
    [found] = [one for one in methods(settings, (2,), "next_day", (key,)) if one.key == key]
    return found


def planned(others: Sequence[Inputs], key: str = POOLED, lookback: int = 3) -> Planned:
    settings = config()
    return plan_cell(settings, "next_day", row(key, settings), OWN, lookback, "walkforward", 0, 0, FOLD, {}, others)


def same(one: Days, other: Days) -> bool:
    names = ("market", "next_return", "news_offset", "news_sentiment")
    texts = [days.texts.rows(days.news_text) for days in (one, other)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names) and np.array_equal(*texts)


def test_training_covers_the_other_markets_days_of_the_span_and_the_own_ones_in_one_range() -> None:
    plan = planned([OTHER])
    job, days = plan.job, plan.days()
    # The other's first lookback days, its decisions 130 … 168 (the close of day 169 is the last label), the own 40.
    assert job.train == range(2, 2 + 39 + 40)
    assert same(days.between(0, 41), OTHER.window.learnable(128, 169))
    assert same(days.between(41, len(days)), OWN.window.learnable(130, 196))
    assert [part.start - 41 + 130 for part in (job.validation, job.use)] == [173, 186]
    assert [len(part) for part in (job.validation, job.use)] == [10, 10]
    assert days.market_text == OWN.window.learnable(130, 196).market_text
    assert not np.isnan(days.next_return).any()


def test_only_the_first_t_minus_1_own_training_decisions_read_days_of_the_other_market_and_none_later_does() -> None:
    for lookback in (1, 3, 5):
        plan = planned([OTHER], lookback=lookback)
        join = len(plan.days()) - (196 - 130)
        mixed = [at for at in range(join, len(plan.days())) if at - lookback + 1 < join]
        assert mixed == list(range(join, join + lookback - 1)) and set(mixed) <= set(plan.job.train)
        assert plan.job.validation.start - lookback + 1 > join
        last = str(DAYS[169])
        assert plan.facts.train_last == last
        # Whatever they read of the other market is known by the close of the own span's last session.
        [part] = plan.added
        assert str(part.window.sessions[part.stop]) <= last


def test_later_days_of_another_market_change_neither_a_cells_name_nor_any_forecast() -> None:
    later = builders.bars(DAYS, seed=77)
    drawn = inputs_of("other", [*OTHER_BARS[:170], *later[170:]], spread=3)
    changed = inputs_of("other", [*OTHER_BARS[:169], *later[169:]], spread=3)
    assert not np.array_equal(drawn.window.learnable(0, 190).market, OTHER.window.learnable(0, 190).market)
    before, after, other = (planned([one]) for one in (OTHER, drawn, changed))
    assert after.facts == before.facts and same(after.days(), before.days())
    made = [evaluate(plan.job, plan.days()) for plan in (before, after, other)]
    assert all(isinstance(one, CellResult) and len(one.days) == 10 for one in made)
    assert made[0].days == made[1].days  # type: ignore[union-attr]
    # The last session of the span is the first that counts.
    assert other.facts.cell != before.facts.cell and made[2].days != made[0].days  # type: ignore[union-attr]


def test_a_session_that_another_market_lacks_brings_in_no_later_label() -> None:
    gone = inputs_of("other", [bar for bar in OTHER_BARS if bar.session != DAYS[169]], spread=3)
    [part] = planned([gone]).added
    assert part.window.sessions[part.stop] == DAYS[168]


def test_its_name_holds_every_other_market_and_none_of_them_where_the_row_is_not_pooled() -> None:
    third = inputs_of("third", builders.bars(DAYS, seed=6), spread=1)
    names = {planned(others).facts.cell for others in ([OTHER], [third], [OTHER, third])}
    assert len(names) == 3
    assert planned([third, OTHER]).facts == planned([OTHER, third]).facts
    assert planned([third, OTHER]).job.train == range(2, 2 + 39 + 39 + 40)
    assert planned([OTHER], "finin").facts == planned([], "finin").facts


def test_without_days_of_another_market_in_the_span_there_is_nothing_to_pool() -> None:
    late = inputs_of("late", builders.bars(DAYS, seed=5)[169:])
    for others in ([], [late]):
        with pytest.raises(ModelError, match="no other market has days in the training span"):
            planned(others)


def home_of_two(folder: Path) -> Path:
    home = builders.a_home(folder, SESSIONS)
    with MarketStore.open(home / "market.db") as store:
        store.add_bars(builders.bars(builders.sessions(SESSIONS), seed=4, symbol="toy2"), source="made here")
    return home


def test_the_rows_shown_beside_finin_are_run_at_the_searched_lookback_and_pooled_ones_on_two_markets(
    tmp_path: Path,
) -> None:
    home = home_of_two(tmp_path)
    keys = ("finin", "finin_pretrained", "logistic_pretrained", POOLED)
    settings = config(finin_trials=2, seeds=1, windows=1, walk_step=80)
    asked = replace(REQUEST, markets=("toy", "toy2"), only=keys)
    done = experiment.run(settings, home, asked, readers=readers)
    with Cells.open(home / "ledger.db") as cells:
        results = measure(cells, done)
        found = [cell for cell in cells.of(done.id) if cell["protocol"] != "trial"]
    assert results.gaps == {} and done.facts["missing"] == {}
    for key in keys[1:]:
        assert {cell["lookback"] for cell in found if cell["method"] == key} == {3}
        for market in asked.markets:
            for protocol in ("windows", "walkforward"):
                assert Place(key, market, 3, protocol) in results.figures
    by_method = {key: {cell["cell"] for cell in found if cell["method"] == key} for key in keys}
    assert len(set.union(*by_method.values())) == sum(map(len, by_method.values()))
    chosen = {market: done.facts["settings"]["finin"][market] for market in asked.markets}
    for cell in found:
        if cell["method"] in ("finin_pretrained", POOLED):
            own = {"pretrain_epochs": 3} if cell["method"] == "finin_pretrained" else {}
            assert cell["setting"] == json.dumps({**chosen[cell["market"]], **own}, sort_keys=True)


def test_on_one_market_the_pooled_row_says_why_it_is_missing(tmp_path: Path) -> None:
    home = builders.a_home(tmp_path, SESSIONS)
    done = experiment.run(config(finin_trials=1), home, replace(REQUEST, only=(POOLED,)), readers=readers)
    assert "one market alone" in done.facts["missing"][POOLED]["toy"]


def test_the_same_day_target_has_none_of_these_rows() -> None:
    known = {one.key for one in methods(config(), (1, 2, 3), "same_day")}
    ahead = {one.key for one in methods(config(), (1, 2, 3), "next_day")}
    assert ahead - known == {"finin_pretrained", "logistic_pretrained", POOLED}
