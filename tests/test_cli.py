"""The command line: quick help, whole jobs, and every bad input in one line with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import re
import sqlite3
import subprocess
import sys
from typing import Any

import pytest

from feeds import builtin, planted, planted_charts, wire
from tests import builders
from trader import cli, cli_intake, engine, experiment_search, explain, live_feeds, parts
from trader.clock import WallClock
from trader.ledger import Ledger
from trader.store import MarketStore

ROOT = Path(__file__).parents[1]
DAYS = builders.sessions(140)
SPAN = ("--from", str(DAYS[116]), "--to", str(DAYS[138]))
TINY = "tests.builders:TinyModel"
CONFIG = f"""
[run]
market = "toy"
news = "toy"
model = "{TINY}"
lookback = 3
[walkforward]
train = 60
validation = 10
step = 10
[compute]
workers = 1
[evaluation]
resamples = 100
rivals = []
"""


@pytest.fixture(autouse=True)
def _no_language_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for room in (engine, explain, experiment_search):
        monkeypatch.setattr(room, "readers_of", lambda config, home: builders.readers())
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)  # so that no config.toml or var/ of this project is met
    (tmp_path / "config.toml").write_text(CONFIG)


@pytest.fixture
def price_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.csv"
    path.write_text("\n".join(price_rows()) + "\n")
    return path


@pytest.fixture
def news_file(tmp_path: Path) -> Path:
    path = tmp_path / "news.csv"
    rows = [f"{item.published_at:%Y-%m-%d %H:%M:%S}+00:00,{item.headline}" for item in builders.headlines(DAYS).items()]
    path.write_text("\n".join(["published_at,headline", *rows, rows[-1], "when?,a row without a time"]) + "\n")
    return path


def price_rows() -> list[str]:
    columns = ("open", "high", "low", "close", "adj_close", "volume")
    bars = builders.bars(DAYS)
    rows = [",".join([str(bar.session), *(repr(getattr(bar, name)) for name in columns)]) for bar in bars]
    return ["Date,Open,High,Low,Close,Adj Close,Volume", *rows]


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def command(*words: object) -> Said:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return command


def refused(said: Said) -> str:
    """Return the one line of a refusal, without the lines that tell of progress."""
    lines = [line for line in said.err.splitlines() if not re.match(r"[a-z ]+: done in \d", line)]
    assert (said.code, len(lines), said.out) == (2, 1, ""), said.err
    assert lines[0].startswith("trader: ")
    return lines[0]


# Whole jobs


def test_import_backtest_and_reviews_work_together(
    say: Callable[..., Said], price_file: Path, news_file: Path, tmp_path: Path
) -> None:
    assert "toy: 140 new bars, 0 known already" in say("prices", "import", price_file, "--symbol", "toy").out
    assert "toy: 0 new bars, 140 known already" in say("prices", "import", price_file, "--symbol", "toy").out
    imported = say("news", "import", news_file, "--name", "toy").out
    assert re.search(r"(\d+) new headlines, 0 known already, 1 repeated, 1 rejected", imported)
    assert "imported before, nothing to add" in say("news", "import", news_file, "--name", "toy").out
    assert "a row without a time" in say("news", "quarantine", "toy").out
    assert "toy" in say("prices", "list").out and "140" in say("prices", "list").out
    assert "toy" in say("news", "list").out

    done = say("backtest", *SPAN)
    assert done.code == 0, done.err
    assert "accuracy" in done.out and "23 sessions" in done.out
    assert f"Ledger {Path('var/ledger.db').resolve()}, run 1" in done.out

    machine = say("backtest", *SPAN, "--json", "--seed", "0")
    made = json.loads(machine.out)
    assert (made["run"], made["sessions"], made["folds_trained"]) == (2, 23, 0)
    with Ledger.open(made["ledger"], read_only=True) as ledger:
        assert ledger.ledger_hash(1) == ledger.ledger_hash(2) == made["ledger_hash"]
    assert json.loads(say("backtest", *SPAN, "--json", "--daily").out)["ledger_hash"] == made["ledger_hash"]
    assert json.loads(say("backtest", *SPAN, "--json", "--seed", "1").out)["ledger_hash"] != made["ledger_hash"]

    assert [line.split()[0] for line in say("runs").out.splitlines() if "finished" in line] == ["4", "3", "2", "1"]
    trades = say("trades", 1).out
    assert "completed" in trades and re.search(r"(\d+) of \1 orders", trades)
    assert re.search(r"2 of \d+ orders", say("trades", "latest", "--limit", 2).out)
    why = say("why", 1, DAYS[120]).out.splitlines()
    assert why[0].startswith(f"{DAYS[120]} toy: ")


def test_the_models_of_a_home_are_listed_shown_and_checked(
    say: Callable[..., Said], price_file: Path, news_file: Path
) -> None:
    say("prices", "import", price_file, "--symbol", "toy")
    say("news", "import", news_file, "--name", "toy")
    assert say("models", "list").out.splitlines()[-1].startswith("0 models in ")
    made = json.loads(say("backtest", *SPAN, "--json").out)
    ids = sorted(path.name for path in Path("var/models").iterdir())
    head, *rows, last = say("models", "list").out.splitlines()
    assert head.split() == ["id", "model", "trained", "on", "last", "seen", "loss", "KiB", "whole"]
    assert [row.split()[0] for row in rows] == ids and len(ids) == made["folds"]
    assert all(row.endswith("yes") for row in rows) and last.startswith(f"{len(ids)} models in ")

    shown = say("models", "show", ids[0])
    assert shown.code == 0
    lines = (f"model         {TINY}, lookback 3, seed", "learned from  toy, news toy", "train         20")
    for said in (*lines, "last seen     20", "files         whole: "):
        assert said in shown.out
    assert say("models", "show", ids[0][:-3]).out == shown.out
    assert "several models begin so" in refused(say("models", "show", "tests"))
    assert "no such model" in refused(say("models", "show", "nobody"))
    (Path("var/models") / ids[0] / "weights.safetensors").write_bytes(b"other")
    assert "weights are damaged" in refused(say("models", "show", ids[0]))
    assert "no: weights are damaged" in say("models", "list").out.splitlines()[1]


def test_every_command_and_option_is_in_the_help(say: Callable[..., Said]) -> None:
    assert all(word in say("--help").out for word in ("backtest", "prices", "news", "runs", "trades", "why"))
    options = ("--from", "--to", "--market", "--news", "--model", "--strategy", "--lookback", "--execution", "--seed")
    assert all(word in say("backtest", "--help").out for word in (*options, "--json", "--config", "--home", "--daily"))
    columns = ("--name", "--preset", "--columns", "--zone", "--delay-minutes")
    assert all(word in say("news", "import", "--help").out for word in columns)
    assert all(name in say("news", "presets").out for name in ("fnspid",))


def test_home_comes_from_the_option_or_the_variable(
    say: Callable[..., Said], price_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("prices", "import", price_file, "--symbol", "toy", "--home", tmp_path / "one")
    monkeypatch.setenv("TRADER_HOME", str(tmp_path / "two"))
    say("prices", "import", price_file, "--symbol", "toy")
    assert (tmp_path / "one/market.db").exists() and (tmp_path / "two/market.db").exists()
    assert not (tmp_path / "var").exists()


def test_a_zone_gives_naive_times_their_meaning(say: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "naive.csv").write_text("published_at,headline\n2010-01-04 09:30:00,oil rise\n")
    done = say("news", "import", "naive.csv", "--zone", "America/New_York", "--delay-minutes", 5)
    assert "1 new headlines" in done.out and "naive: 1 headlines" in done.out
    with sqlite3.connect(tmp_path / "var/market.db") as db:
        (published, known) = db.execute("SELECT published_at, known_at FROM news").fetchone()
    assert published // 1_000_000 == 1262615400, "14:30 UTC"
    assert known - published == 5 * 60 * 1_000_000


def _times(text: str, count: int, other: int = 0) -> str:
    days = [f"{day}" for day in builders.sessions(count)]
    rows = [f"{day}{text},oil on {day}" for day in days] + [
        f"{day}T14:{at % 60:02}:07Z,x" for at, day in enumerate(days[:other])
    ]
    return "\n".join(["published_at,headline", *rows]) + "\n"


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (_times("T05:00:00Z", 120), "100% of the headlines"),
        (_times("T05:00:00Z", 120, other=10), "92% of the headlines"),
        (_times("T00:00:00-04:00", 60) + _times("T04:00:00Z", 120).partition("\n")[2], ""),
        (_times("T05:00:00Z", 120, other=20), ""),
        (_times("T05:00:00Z", 99), ""),
        (_times("", 120), ""),  # days: they count from their end
        (_times("T05:00Z", 120), ""),  # minutes likewise
    ],
)
def test_dates_that_were_turned_into_times_are_warned_of(
    say: Callable[..., Said], tmp_path: Path, text: str, warned: str
) -> None:
    (tmp_path / "dates.csv").write_text(text)
    words = ("--zone", "America/New_York") if "T" not in text else ()
    said = say("news", "import", "dates.csv", *words).out
    assert said.count("Warning: ") == bool(warned)
    if warned:
        assert f"{warned} of dates.csv state the time 05:00:00 UTC or one hour later" in said
        assert "--delay-minutes 1440" in said
        assert "Warning" not in say("news", "import", "dates.csv", *words).out


def _with_closes(path: Path, closes: dict[int, float], rows: int = 140) -> None:
    lines = price_rows()
    for at, close in closes.items():
        day = lines[at].split(",")[0]
        lines[at] = f"{day},{close},{close},{close},{close},{close},1000"
    path.write_text("\n".join(lines[: rows + 1]) + "\n")


def test_a_newer_price_file_with_other_old_rows_adds_revisions(say: Callable[..., Said], tmp_path: Path) -> None:
    _with_closes(tmp_path / "old.csv", {}, rows=100)
    _with_closes(tmp_path / "new.csv", {7: 101.5, 50: 99.5})
    assert "Warning" not in say("prices", "import", "old.csv", "--symbol", "toy").out
    said = say("prices", "import", "new.csv", "--symbol", "toy").out
    assert "toy: 40 new bars, 98 known already, 2 revised" in said
    assert "a backtest goes on with each bar as it was first known" in said
    assert "import it under another --symbol" in said
    assert "0 new bars, 140 known already, 0 revised" in say("prices", "import", "new.csv", "--symbol", "toy").out
    assert "0 new bars, 100 known already, 0 revised" in say("prices", "import", "old.csv", "--symbol", "toy").out
    with MarketStore.open(Path("var/market.db")) as store:
        first, newest = (store.as_of(at) for at in (builders.CALENDAR.cutoff(DAYS[6]), WallClock().now()))
        assert first.bar("toy", DAYS[6]).close == pytest.approx(builders.bars(DAYS)[6].close)  # type: ignore[union-attr]
        assert newest.bar("toy", DAYS[6]).close == 101.5  # type: ignore[union-attr]


def test_a_move_that_hardly_any_market_makes_is_warned_of(say: Callable[..., Said], tmp_path: Path) -> None:
    _with_closes(tmp_path / "split.csv", {50: 40.0})
    said = say("prices", "import", "split.csv", "--symbol", "toy").out
    warnings = [line for line in said.splitlines() if line.startswith("Warning: ")]
    assert [line.split(": ")[1].split()[1] for line in warnings] == [str(DAYS[49]), str(DAYS[50])]
    assert " to 40: a split, or a damaged row?" in warnings[0]
    _with_closes(tmp_path / "many.csv", dict.fromkeys(range(10, 40, 2), 30.0))
    assert say("prices", "import", "many.csv", "--symbol", "many").out.count("Warning: ") == 5


def test_a_split_between_two_files_is_warned_of_where_a_backtest_meets_it(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    _with_closes(tmp_path / "old.csv", {}, rows=100)
    _with_closes(tmp_path / "halved.csv", dict.fromkeys(range(1, 141), 50.0))
    say("prices", "import", "old.csv", "--symbol", "toy")
    said = say("prices", "import", "halved.csv", "--symbol", "toy").out
    assert [line.split(":")[1] for line in said.splitlines() if line.startswith("Warning")] == [f" toy {DAYS[100]}"]


# Bad input


@pytest.mark.parametrize("name", cli_intake.BUILT_IN_MARKETS)
def test_the_names_of_built_in_markets_are_taken(say: Callable[..., Said], price_file: Path, name: str) -> None:
    expected = f"trader: the name of a built-in market (got {name}); choose another name for yours"
    assert refused(say("prices", "import", price_file, "--symbol", name)) == expected
    assert refused(say("prices", "download", name, "--from", "2010", "--to", "2011")) == expected
    assert not Path("var").exists()


def test_the_names_of_the_built_in_news_are_taken(say: Callable[..., Said], news_file: Path) -> None:
    for name in ("wire", wire.SET, "wire-99", "planted", planted.SET, "planted_charts", planted_charts.SET):
        expected = f"trader: the name of the built-in news (got {name}); choose another --name"
        assert refused(say("news", "import", news_file, "--name", name)) == expected
    news_file.rename("wire.csv")
    assert "the name of the built-in news" in refused(say("news", "import", "wire.csv"))
    assert not Path("var").exists()
    assert say("news", "import", "wire.csv", "--name", "wireless").code == 0


def test_the_command_line_knows_the_built_in_names() -> None:
    assert set(cli_intake.BUILT_IN_MARKETS) == {*builtin.BUILT_IN, *parts.PLANTED}
    assert [one.SET.partition("-")[0] for one in (wire, *parts.PLANTED.values())] == list(cli_intake.BUILT_IN_NEWS)
    assert live_feeds.BUILT_IN_MARKETS == cli_intake.BUILT_IN_MARKETS
    assert live_feeds.BUILT_IN_NEWS == cli_intake.BUILT_IN_NEWS


def test_the_same_news_file_read_in_another_way_needs_another_name(say: Callable[..., Said], news_file: Path) -> None:
    assert say("news", "import", news_file, "--name", "toy").code == 0
    line = refused(say("news", "import", news_file, "--name", "toy", "--delay-minutes", 30))
    assert line.endswith("the file is in this set already, read in another way; choose another --name")
    assert say("news", "import", news_file, "--name", "toy30", "--delay-minutes", 30).code == 0


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    return builders.a_home(tmp_path / "var")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--market", "tyo"), "no such market (got tyo, expected one of nasdaq, sp500, toy); import it: python -m"),
        (("--news", "tyo"), "no such news (got tyo, expected one of toy, wire); import it"),
        (("--model", "fini"), "no such model (got fini, expected finin, logistic, boosting,"),
        (("--model", "no.such:Model"), "no.such:Model: the module no.such cannot be imported"),
        (("--strategy", "long"), "no such strategy (got long, expected long_short, long_only"),
        (("--strategy", "tests.builders:Missing"), "the module tests.builders has no Missing"),
        (("--strategy", "tests.builders:TinyModel"), "TinyModel is not a backtrader.strategy.Strategy"),
        (("--strategy", "nonsense:"), "a class is named by its module and its name"),
        (("--execution", "soon"), "the command line execution: not a possible value (got soon, expected next_open or"),
        (("--lookback", "0"), "the command line [run] lookback: too small (got 0, expected at least 1)"),
        (("--lookback", "x"), "argument --lookback: invalid int value: 'x'; `python -m trader backtest --help`"),
        (("--seed", "-1"), "too small"),
        (("--from", "2012", "--to", "2011"), "--from lies after --to (got 2012-01-01 and 2011-12-31)"),
        (("--from", "2005", "--to", "2006"), "no bars of toy for some of these days (got --from 2005-01-01"),
        (("--from", "2010", "--to", "2011"), "expected days within 2010-01-04..2010-07-23"),
        (("--from", "2010-02-30"), "not a day (got 2010-02-30, expected YYYY, YYYY-MM or YYYY-MM-DD)"),
        (("--to", "someday"), "not a day (got someday"),
        (("--config", "nowhere.toml"), "nowhere.toml: the config file cannot be read (got No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_word_that_cannot_be_used_is_one_line_and_no_run(
    say: Callable[..., Said], filled: Path, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(say("backtest", *SPAN, *words))
    assert not (filled / "ledger.db").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[run]\nlokback = 3\n", "config.toml [run]: unknown key lokback; did you mean lookback?"),
        ("[ruin]\n", "config.toml: unknown section ruin; did you mean run?"),
        ("[run]\nlookback = 'three'\n", "config.toml [run] lookback: a value of the wrong type"),
        ("[run\n", "config.toml: not valid TOML"),
        ("[costs]\ncash = -5\n", "config.toml [costs] cash: too small"),
        (f'{CONFIG}\n[model."{TINY}"]\ngian = 3\n', "gian"),
        (f"{CONFIG}\n[strategy.long_short]\nsiez = 3\n", "siez"),
        (
            CONFIG.replace(TINY, "logistic") + "\n[model.logistic]\ndepth = 3\n",
            "[model.logistic]: the model does not take these settings (got an unexpected keyword",
        ),
        (CONFIG.replace("rivals = []", 'rivals = ["logistics"]'), "no such model (got logistics"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(say: Callable[..., Said], filled: Path, text: str, sentence: str) -> None:
    Path("config.toml").write_text(text)
    assert sentence in refused(say("backtest", *SPAN))


def test_a_run_or_session_that_is_not_there_is_one_line(say: Callable[..., Said], filled: Path) -> None:
    assert "there is no ledger yet" in refused(say("runs"))
    assert "there is no ledger yet" in refused(say("trades", "latest"))
    assert say("backtest", *SPAN).code == 0
    assert "no such run (got 7, expected one of 1)" in refused(say("trades", 7))
    assert "no such run (got newest" in refused(say("why", "newest", DAYS[120]))
    assert "the run has no such session (got 2010-01-04" in refused(say("why", 1, DAYS[0]))
    assert "not a day (got Monday" in refused(say("why", 1, "Monday"))
    assert "no such news set" in refused(say("news", "quarantine", "nobody"))


def test_why_with_words_shows_every_headline_of_the_day_that_holds_them(
    say: Callable[..., Said], filled: Path, tmp_path: Path
) -> None:
    assert say("backtest", *SPAN).code == 0
    news = builders.headlines(DAYS)
    day = next(day for day in DAYS[117:137] if any(_on(item, day) for item in news.items()))
    words = next(item.headline for item in news.items() if _on(item, day)).split()[0]
    said = say("why", "latest", day, "--search", words, "--csv", "all.csv")
    assert said.code == 0 and words in said.out and "scaled" in said.out
    rows = (tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "session,symbol,rank,weight,scaled,influence,headline" and all(words in row for row in rows[1:])
    assert "None of the" in say("why", "latest", day, "--search", "zebra").out
    assert refused(say("why", "latest", day, "--limit", "-1")).startswith("trader: --limit: a negative number")


def _on(item: Any, day: Any) -> bool:
    return bool(item.published_at.date() == day)


def test_a_search_tries_the_papers_settings_and_goes_on_where_it_stopped(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    builders.a_home(tmp_path / "var", 330)
    short = "[experiment]\nwindow = 60\nwindow_step = 45\nsearch_lookback = 1\n[model.finin]\nepochs = 1\n"
    (tmp_path / "config.toml").write_text(CONFIG.replace("step = 10", "step = 10", 1) + short)
    first = say("search", "finin", "--trials", "2")
    assert first.code == 0 and "2 settings tried, 2 of them now." in first.out and "[model.finin]" in first.out
    assert "3 settings tried, 1 of them now." in say("search", "finin", "--trials", "3").out
    assert "no trials to run" in refused(say("search", "finin", "--trials", "0"))


def _broken(rows: list[str], at: int, cell: int, text: str) -> list[str]:
    cells = rows[at].split(",")
    return [*rows[:at], ",".join([*cells[:cell], text, *cells[cell + 1 :]]), *rows[at + 1 :]]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["Day,Price", "2010-01-04,5"], "toy.csv: no column date, open, high, low, close (got day, price, expected"),
        (_broken(price_rows(), 7, 4, "NaN"), "toy.csv row 7: close is not a number (got nothing)"),
        (_broken(price_rows(), 7, 4, "n.a."), "toy.csv row 7: close is not a number (got n.a.)"),
        (_broken(price_rows(), 7, 4, "-5"), "close is not a positive number (got -5.0)"),
        (_broken(price_rows(), 7, 2, "1"), "open and close must lie between low and high"),
        ([*price_rows()[:8], price_rows()[7]], "toy.csv row 8: the same session twice (got 2010-01-12)"),
        (_broken(price_rows(), 7, 0, "2010-01-10"), "toy.csv row 7: not a session of the exchange (XNYS)"),
        ([*price_rows()[:2], *price_rows()[3:1:-1]], "sessions out of order"),
        (price_rows()[:1], "no price rows"),
        ([], "an empty file"),
    ],
)
def test_a_price_file_that_cannot_be_used_is_one_line_and_stores_nothing(
    say: Callable[..., Said], price_file: Path, rows: list[str], sentence: str
) -> None:
    price_file.write_text("".join(f"{row}\n" for row in rows))
    assert sentence in refused(say("prices", "import", price_file, "--symbol", "toy"))
    assert "no such file" in refused(say("prices", "import", "nowhere.csv", "--symbol", "toy"))
    assert "toy" not in say("prices", "list").out


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("published_at,headline\n2010-01-04 09:30:00,oil rise\n", (), "without a zone"),
        ("published_at,headline\n2010-01-04T09:30:00Z,oil\n", ("--zone", "Mars/Base"), "Mars/Base"),
        ("published_at,headline\n2010-01-04T09:30:00Z,oil\n", ("--preset", "routers"), "no such preset (got routers"),
        ("published_at,headline\n2010-01-04T09:30:00Z,oil\n", ("--columns", "headline"), "--columns cannot be read"),
        ("published_at,headline\n2010-01-04T09:30:00Z,oil\n", ("--columns", "headline=Title"), "no column 'Title'"),
        ("published_at,headline\n2010-01-04T09:30:00Z,oil\n", ("--delay-minutes", "-5"), "before it is published"),
        ("when,what\n2010-01-04T09:30:00Z,oil\n", (), "no column for published_at"),
        ("", (), "news.csv"),
    ],
)
def test_a_news_file_that_cannot_be_used_is_one_line_and_stores_nothing(
    say: Callable[..., Said], tmp_path: Path, text: str, words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "news.csv").write_text(text)
    assert sentence in refused(say("news", "import", tmp_path / "news.csv", "--name", "toy", *words))
    assert "nowhere.csv" in refused(say("news", "import", "nowhere.csv", "--name", "toy"))


@pytest.mark.parametrize(("row", "rejected"), [("", 0), ("when?,oil rise\n", 1)])
def test_a_news_file_without_one_usable_row_is_refused_and_its_rows_can_be_looked_at(
    say: Callable[..., Said], tmp_path: Path, row: str, rejected: int
) -> None:
    (tmp_path / "news.csv").write_text(f"published_at,headline\n{row}")
    for _ in ("first", "again"):
        said = say("news", "import", tmp_path / "news.csv", "--name", "toy")
        assert said.code == 2
        assert said.err == (
            f"trader: news.csv: not one usable headline (got {rejected} rows in quarantine); "
            "check the file, or state --columns and --zone\n"
        )
    assert f"{rejected} of {rejected} rows shown" in say("news", "quarantine", "toy").out


def test_news_that_ended_before_the_run_begins_is_one_line(say: Callable[..., Said], tmp_path: Path) -> None:
    builders.fill(tmp_path / "var", builders.bars(DAYS), builders.headlines(DAYS[:60]))
    assert "the news set toy has no headline in these days" in refused(say("backtest", *SPAN))


GARBAGE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"this is no database at all" * 50),
    "another database": lambda path: sqlite3.connect(path).execute("CREATE TABLE mine (x)").connection.commit(),
    "folder": lambda path: path.mkdir(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 3]),
}


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("name", ["market.db", "ledger.db"])
def test_an_unreadable_database_is_one_line_and_is_left_alone(
    say: Callable[..., Said], filled: Path, what: str, name: str
) -> None:
    if what == "cut short":
        say("backtest", *SPAN)
    for path in filled.glob(f"{name}*"):
        if what != "cut short":
            path.unlink()
    GARBAGE[what](filled / name)
    before = (filled / name).read_bytes() if what != "folder" else b""
    assert name in refused(say("backtest", *SPAN))
    if name == "ledger.db":
        assert name in refused(say("runs"))
    assert what == "folder" or (filled / name).read_bytes() == before


DISK_FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from tests import builders
from trader import cli, engine
engine.readers_of = lambda config, home: builders.readers()
sys.exit(cli.main(sys.argv[2:]))
"""


# No bytecode: Python would write its caches cut short, here, in the project.
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def _with_little_disk(bytes_left: int, *words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", DISK_FULL, str(bytes_left), *map(str, words)]
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_a_full_disk_is_one_line_and_the_ledger_stays_whole(
    say: Callable[..., Said], filled: Path, price_file: Path
) -> None:
    assert say("backtest", *SPAN).code == 0
    with Ledger.open(filled / "ledger.db") as ledger:
        before = ledger.ledger_hash(1)
    size = (filled / "ledger.db").stat().st_size
    for left in (4096, size // 2, size + 20_000):
        done = _with_little_disk(left, "backtest", *SPAN, "--seed", "9")
        line = refused(Said(done.returncode, done.stdout, done.stderr))
        assert re.search("full|cannot be written|disk|too large", line), line
        with Ledger.open(filled / "ledger.db") as ledger:
            assert ledger.ledger_hash(1) == before
            for run in ledger.runs():
                signals = ledger._query("SELECT session FROM signals WHERE run = ? ORDER BY session", run["id"])
                equity = [row["session"] for row in ledger.equity(run["id"])]
                assert [row["session"] for row in signals] == equity, "whole sessions only"
    done = _with_little_disk(20_000, "prices", "import", price_file, "--symbol", "other")
    assert "market.db" in refused(Said(done.returncode, done.stdout, done.stderr))
    assert "other" not in say("prices", "list").out
    assert say("backtest", *SPAN, "--seed", "9").code == 0, "and with room again it runs"


def test_ctrl_c_is_one_line_and_its_own_code(say: Callable[..., Said], filled: Path) -> None:
    done = say("backtest", *SPAN, "--strategy", "tests.test_forecaster:Interrupted")
    assert done.code == 130
    assert [line for line in done.err.splitlines() if line.startswith("trader:")] == [
        "trader: stopped; what was written is whole, and the same command starts anew"
    ]
    assert "stopped" in say("runs").out


# How it starts


def _imports_of(*words: str) -> set[str]:
    script = f"import sys, trader.cli\ntry: trader.cli.main({list(words)!r})\nexcept SystemExit: pass\n"
    script += "print('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


HEAVY = {"torch", "transformers", "pandas", "numpy", "backtrader", "arch", "pyarrow", "sklearn", "exchange_calendars"}


@pytest.mark.parametrize("words", [("--help",), ("backtest", "--help"), ("backtest",), ("news", "import", "--help")])
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    loaded = _imports_of(*words)
    assert "argparse" in loaded
    assert not loaded & (HEAVY | {"rich", "sqlite_utils"})


def test_a_mistake_in_the_words_is_found_before_anything_heavy_is_loaded() -> None:
    assert not _imports_of("backtest", "--from", "2012", "--to", "2011") & HEAVY


def test_the_programme_runs_as_a_module() -> None:
    argv: list[Any] = [sys.executable, "-m", "trader", "backtest", "--from", "2012", "--to", "2011"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "trader: --from lies after --to (got 2012-01-01 and 2011-12-31)\n"
