"""What a decision read: the forecast is made again to the last bit, and told as tables, as CSV and as a picture."""

from __future__ import annotations

from contextlib import closing
import csv
from datetime import date
import io
from pathlib import Path
import shutil
import sqlite3
import sys
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from tests import builders
from trader import engine, why_report
from trader.clock import SimulatedClock
from trader.errors import ConfigError, ModelError, NoData, StoreError
from trader.events import NewsRows, Signal, to_us
from trader.explain import Explained, explain
from trader.ledger import Ledger
from trader.outcome import Home
from trader.pictures import draw
from trader.store import FileSource, MarketStore

DAYS = builders.sessions(140)
MISSING = 120  # the position of a session without a bar
TINY = "tests.builders:TinyModel"

DAY = ("GM to delay a model", "WaMu fails; JPMorgan buys it for $1.9 bln, of $300 bln", "JPMorgan on WaMu clients")
WEIGHTS = np.array([0.2, 0.5, 0.3], np.float32)
PAIRS = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.0, 0.9, 0.1]], np.float32)


def a_signal(count: int) -> Signal:
    facts = {"p_up": 0.48, "side": -1, "model_id": "finin-1", "news_count": count, "effective_news": 2.8}
    return Signal(session=date(2008, 9, 26), symbol="sp500", **facts)


def a_day(**changes: Any) -> Explained:
    facts = {"signal": a_signal(3), "headlines": DAY, "weights": WEIGHTS, "pairs": PAIRS, "whole": True}
    return Explained(**(facts | changes))


def a_run(home: Path, **changes: Any) -> Path:
    builders.a_home(home, most=20, without=[MISSING])
    config = builders.config(**changes)
    engine.backtest(config, home, DAYS[116], DAYS[138], readers=builders.readers())
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("finin"))


@pytest.fixture
def own_home(home: Path, tmp_path: Path) -> Path:
    return shutil.copytree(home, tmp_path / "home")


def asked(home: Path, at: int) -> Explained:
    return explain(home, "latest", DAYS[at], readers=builders.readers())


def changed(home: Path, sql: str) -> None:
    """Change the ledger behind its back."""
    with closing(sqlite3.connect(Home(home).ledger)) as db, db:
        assert db.execute(sql).rowcount


def said(parts: list[str | Table]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    for part in parts:
        console.print(part, highlight=False, markup=False)
    return console.export_text()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inputs": {"headlines_a_day": 4, "prefer": ["oil"], "market_features": "levels", "market_text": "a toy"}},
        {"model": {"finin": {"hidden": 16, "qkv": 16, "heads": 2, "epochs": 1, "quantifier": False}}, "lookback": 1},
        {"model": TINY},
    ],
    ids=["finin", "capped levels", "no quantifier", "a user's own"],
)
def test_the_forecast_made_again_is_the_ledgers_to_the_last_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    home = a_run(tmp_path, **changes)
    with Ledger.open(Home(home).ledger, read_only=True) as ledger:
        kept = {at: ledger.why("latest", DAYS[at])[0] for at in (116, MISSING - 1, MISSING + 1, 129, 138)}
    for at, signal in kept.items():
        found = asked(home, at)
        assert found.signal == signal and found.whole and not found.notes
        assert found.weights is not None and len(found.headlines) == signal.news_count == len(found.weights)
        top = tuple((found.headlines[one], float(found.weights[one])) for one in found.order[:10])
        assert top == signal.top


def test_a_forecast_made_again_is_checked_to_a_millionth(own_home: Path) -> None:
    changed(own_home, "UPDATE signals SET p_up = p_up + 2e-6")
    (note,) = asked(own_home, 138).notes
    assert "Not the forecast of the ledger" in note and "prices, headlines or libraries" in note


def test_attention_between_headlines_is_the_models_own(home: Path) -> None:
    found = asked(home, 130)
    n = len(found.headlines)
    assert n > 2 and found.pairs is not None and found.pairs.shape == (n, n)
    np.testing.assert_allclose(found.pairs.sum(axis=1), 1, atol=1e-5)
    assert found.influence is not None and found.influence.sum() == pytest.approx(1, abs=1e-5)


def test_headlines_that_came_late_are_told_of(own_home: Path) -> None:
    with MarketStore.open(Home(own_home).store, clock=SimulatedClock(builders.NOW)) as store:
        late = builders.batch([to_us(builders.CALENDAR.cutoff(DAYS[130])) - 1], ["oil surge on day 99"])
        rows = NewsRows(news=late, row=np.array([1]), rejected=())
        store.add_news("toy", [rows], source=FileSource(name="late", options=""))
    found = asked(own_home, 130)
    assert "oil surge on day 99" in found.headlines
    (note,) = found.notes
    assert f"from {len(found.headlines)} headlines" in note
    assert f"which read {len(found.headlines) - 1} headlines" in note


def test_settings_come_from_the_model_and_not_from_todays_defaults(own_home: Path) -> None:
    changed(own_home, "UPDATE runs SET config = json_remove(config, '$.model.finin.hidden')")
    assert asked(own_home, 138).whole and not asked(own_home, 138).notes


@pytest.mark.parametrize(("gone", "why"), [("models", "no readable manifest"), ("market.db", "market store is gone")])
def test_what_is_gone_leaves_the_ledgers_ten(own_home: Path, gone: str, why: str) -> None:
    path = own_home / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = asked(own_home, 138)
    assert not found.whole and found.pairs is None and found.scaled is None
    assert found.headlines == tuple(headline for headline, _ in found.signal.top)
    assert why in found.notes[0]
    assert "The forecast cannot be made again" in said(why_report.parts(found, pairs=3))
    assert not (own_home / "market.db").exists() or gone != "market.db"


def test_a_session_without_a_decision_or_a_run_has_nothing_to_explain(home: Path) -> None:
    with pytest.raises(ModelError, match=r"no decision to explain \(got .*no bar"):
        asked(home, MISSING)
    with pytest.raises(NoData, match="the run has no such session"):
        asked(home, 3)


@pytest.mark.parametrize(
    "changes",
    [{"model": "logistic"}, {"model": {"finin": {"hidden": 16, "qkv": 16, "epochs": 1, "news": False}}}],
    ids=["logistic", "finin without news"],
)
def test_a_model_that_does_not_weigh_headlines_says_so_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = asked(a_run(tmp_path / "home", **changes), 138)
    assert found.weights is None and not found.notes
    assert why_report.parts(found)[-1] == f"{found.signal.news_count} headlines; this model does not weigh them."
    with pytest.raises(ModelError, match="no headline has a weight to be drawn"):
        draw(found, tmp_path / "day.png")
    changed(tmp_path / "home", "UPDATE signals SET news_count = news_count + 1")
    assert "headlines, there" in asked(tmp_path / "home", 138).notes[0]


def test_a_model_that_weighs_alone_has_no_pairs(tmp_path: Path) -> None:
    found = asked(a_run(tmp_path / "home", model=TINY), 138)
    assert found.weights is not None and found.pairs is None and found.influence is None
    assert why_report.parts(found, pairs=3)[-1] == "This model does not say which headline looked at which."
    draw(found, tmp_path / "day.png")


def test_scaling_and_shares_are_those_of_the_whole_day() -> None:
    day = a_day()
    assert day.scaled is not None and day.scaled.tolist() == pytest.approx([0, 1, 1 / 3])
    shares = day.shares()
    assert shares is not None
    for i in range(3):
        for j in range(3):
            assert shares[i, j] == pytest.approx(float(WEIGHTS[i]) * float(PAIRS[i, j]))
    assert day.influence is not None and day.influence.tolist() == pytest.approx([0.175, 0.46, 0.365], abs=1e-6)
    strongest = [(pair.by, pair.of, round(pair.share, 3)) for pair in day.strongest(2)]
    assert strongest == [(1, 2, 0.35), (2, 1, 0.27)]  # the largest of all is 1's look at itself but for these
    assert [(pair.by, pair.of) for pair in day.strongest(9, about=[0])] == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_equal_weights_are_all_scaled_to_one() -> None:
    day = a_day(weights=np.full(3, 1 / 3, np.float32))
    assert day.scaled is not None and day.scaled.tolist() == [1, 1, 1]
    assert day.order.tolist() == [0, 1, 2]


def test_a_search_keeps_the_ranks_and_the_scale_of_the_day() -> None:
    text = said(why_report.parts(a_day(), search="wamu client", pairs=1))
    assert "Found with 'wamu client': 1." in text
    (row,) = [line for line in text.splitlines() if "JPMorgan on WaMu" in line and "30.000" in line]
    assert row.split()[:4] == ["2", "30.000", "0.33", "36.500"]
    assert "35.000" in text  # the strongest pair that it belongs to: read by the headline of rank 1
    assert "GM to delay" not in text
    assert "35.000" not in said(why_report.parts(a_day(), search="gm", pairs=1)), "GM is not of that pair"


def test_the_table_shows_twenty_unless_told_otherwise() -> None:
    many = tuple(f"headline number {at:02} of the day, which says nothing at all" for at in range(30))
    day = a_day(signal=a_signal(30), headlines=many, weights=np.linspace(1, 2, 30, dtype=np.float32) / 45, pairs=None)
    shown = {limit: said(why_report.parts(day, limit=limit)).count("headline number") for limit in (None, 5, 0)}
    assert shown == {None: 20, 5: 5, 0: 30}
    assert said(why_report.parts(day, search="number")).count("headline number") == 30
    assert "None of the 30 headlines" in said(why_report.parts(day, search="WaMu"))
    assert all(len(line) <= 100 for line in said(why_report.parts(day)).splitlines())
    with pytest.raises(ConfigError, match="--limit: a negative number"):
        why_report.parts(day, limit=-1)


def test_the_csv_holds_every_headline_found_to_the_last_digit() -> None:
    rows = list(csv.DictReader(io.StringIO(why_report.as_csv(a_day(), "WaMu"))))
    assert [(row["rank"], row["headline"]) for row in rows] == [("1", DAY[1]), ("2", DAY[2])]
    assert [np.float32(row["weight"]) for row in rows] == [WEIGHTS[1], WEIGHTS[2]]
    assert len(why_report.as_csv(a_day()).splitlines()) == 4
    bare = list(csv.DictReader(io.StringIO(why_report.as_csv(a_day(whole=False, pairs=None)))))
    assert {(row["scaled"], row["influence"]) for row in bare} == {("", "")}


@pytest.mark.parametrize("changes", [{}, {"pairs": None}, {"whole": False, "pairs": None}])
def test_a_picture_is_drawn_whatever_signs_a_headline_holds(tmp_path: Path, changes: dict[str, Any]) -> None:
    day = a_day(headlines=("$ and $", "a $\\frac{1}$ 中 _^", "W" * 300), **changes)
    draw(day, tmp_path / "day.png", "and")
    assert (tmp_path / "day.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_picture_of_one_headline_is_a_bar(tmp_path: Path) -> None:
    draw(a_day(headlines=("a",), weights=np.ones(1, np.float32), pairs=np.ones((1, 1), np.float32)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_a_picture_that_cannot_be_made_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="the picture cannot be written"):
        draw(a_day(), tmp_path / "nowhere" / "day.png")
    with pytest.raises(ConfigError, match=r"no such kind of picture \(got \.docx"):
        draw(a_day(), tmp_path / "day.docx")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib, which is not installed; pip install .*pictures"):
        draw(a_day(), tmp_path / "day.png")
