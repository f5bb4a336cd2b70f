"""The commands for many symbols: prices of many files at once, a universe's file written and shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import tarfile

import numpy as np
import pytest

from tests import builders
from trader import cli
from trader.clock import SimulatedClock
from trader.events import NewsRows
from trader.store import FileSource, MarketStore
from trader.universe import load_universe

DAYS = builders.sessions(60)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text('[run]\nnews = "toy"\n')


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return command


Say = Callable[..., tuple[int, str, str]]


def prices(folder: Path, symbol: str, first: int = 0, last: int = 60, *, empty: int | None = None) -> Path:
    """Write a price file; the session at ``empty`` holds a date and no number."""
    folder.mkdir(exist_ok=True)
    columns = ("open", "high", "low", "close", "adj_close", "volume")
    rows = ["Date,Open,High,Low,Close,Adj Close,Volume"]
    for at, bar in enumerate(builders.bars(DAYS[first:last], symbol=symbol)):
        numbers = ["null"] * 6 if at == empty else [repr(getattr(bar, name)) for name in columns]
        rows.append(",".join([str(bar.session), *numbers]))
    path = folder / f"{symbol}.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def news(home: Path, cells: list[str]) -> None:
    """Store one headline a session, carrying these tickers."""
    at = [builders.to_us(builders.CALENDAR.cutoff(day)) for day in DAYS[: len(cells)]]
    made = replace(builders.batch(at, [f"headline {row}" for row in range(len(cells))]), symbols=cells)
    with MarketStore.open(home / "market.db", clock=SimulatedClock(builders.NOW)) as store:
        rows = NewsRows(news=made, row=np.arange(1, len(made) + 1))
        store.add_news("toy", [rows], source=FileSource(name="made here"))


def spans(say: Say) -> dict[str, list[str]]:
    """Return what `prices list` says of each symbol."""
    rows = [line.split() for line in say("prices", "list")[1].splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 4 and row[1].isdigit()}


def test_one_file_without_a_symbol_has_its_own_name(say: Say, tmp_path: Path) -> None:
    assert "SPY: 60 new bars" in say("prices", "import", prices(tmp_path, "SPY"))[1]
    assert "mine: 60 new bars" in say("prices", "import", tmp_path / "SPY.csv", "--symbol", "mine")[1]


def test_a_folder_files_and_an_archive_give_the_same_bars(say: Say, tmp_path: Path) -> None:
    files = [prices(tmp_path / "many", name, first) for name, first in (("A", 0), ("B", 0), ("C", 20))]
    with tarfile.open("many.tar.gz", "w:gz") as made:
        made.add("many")
    for words in (["many"], files, ["many.tar.gz"]):
        code, out, _ = say("prices", "import", *words, "--home", "one")
        assert code == 0
        assert f"Most have {DAYS[0]} to {DAYS[-1]}." in out
        assert f"Begin later: C {DAYS[20]}" in out and "End earlier" not in out
    assert "3 symbols: 0 new bars, 160 known already, 0 revised" in out


def test_a_bad_file_is_refused_whole_and_the_others_are_stored(say: Say, tmp_path: Path) -> None:
    for name in "AC":
        prices(tmp_path / "many", name)
    prices(tmp_path / "many", "B", empty=10)
    prices(tmp_path / "many", "sp500")
    code, out, err = say("prices", "import", "many")
    assert code == 2
    assert "Refused: B.csv row 11: open is not a number (got nothing)" in out
    assert "Refused: the name of a built-in market (got sp500)" in out
    assert "2 symbols: 120 new bars" in out
    assert "2 of 4 files refused, the others are stored; mend or leave out" in err and "--skip-empty" in err
    assert set(spans(say)) == {"A", "C"}
    (tmp_path / "many" / "sp500.csv").unlink()
    code, out, _ = say("prices", "import", "many", "--skip-empty")
    assert code == 0 and f"B: left out {DAYS[10]}, a row without a number" in out
    assert spans(say)["B"] == ["59", str(DAYS[0]), str(DAYS[-1])]
    assert f"B: left out {DAYS[10]}" in say("prices", "import", "many/B.csv", "--skip-empty")[1]


def test_a_jump_of_any_symbol_is_warned_of(say: Say, tmp_path: Path) -> None:
    prices(tmp_path / "many", "A")
    lines = prices(tmp_path / "many", "B").read_text().splitlines()
    lines[31:] = [",".join([row.split(",")[0], *["1"] * 6]) for row in lines[31:]]
    (tmp_path / "many" / "B.csv").write_text("\n".join(lines))
    out = say("prices", "import", "many")[1]
    assert out.count("Warning") == 1 and f"Warning: B {DAYS[30]}: the close went from" in out


def test_one_name_for_many_files_and_two_files_of_one_name_are_refused(say: Say, tmp_path: Path) -> None:
    prices(tmp_path / "one", "A")
    prices(tmp_path / "two", "A")
    assert "--symbol names the symbol of one file (got x)" in say("prices", "import", "one", "two", "--symbol", "x")[2]
    code, out, _ = say("prices", "import", "one", "two")
    assert code == 2 and "Refused: A.csv: a second file of the same symbol (got A)" in out
    assert "1 symbol: 60 new bars" in out


def test_a_universe_is_written_from_what_is_stored_and_shown(say: Say, tmp_path: Path) -> None:
    for name, first, empty in (("A", 0, None), ("B", 0, 5), ("C", 20, None)):
        prices(tmp_path / "many", name, first, empty=empty)
    say("prices", "import", "many", "--skip-empty", "--home", "home")
    news(tmp_path / "home", ["A", "A B", "", "C", "B"])
    code, out, _ = say("universe", "mine.toml", "--make", "--home", "home")
    assert code == 0
    assert [member.symbol for member in load_universe(Path("mine.toml"))] == ["A", "B", "C"]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[:1] in (["A"], ["B"], ["C"])}
    assert rows["A"] == ["60", str(DAYS[0]), str(DAYS[-1]), "0", "2", "2", "0"]
    assert rows["B"] == ["59", str(DAYS[0]), str(DAYS[-1]), "1", "2", "2", "0"]
    assert rows["C"] == ["40", str(DAYS[20]), str(DAYS[-1]), "0", "0", "0", "1"], "its only headline came before it"
    assert "mine: 3 symbols, 4 headlines read." in out
    assert "No headline on a session with a bar: C (" in out

    refusal = "mine.toml: the file is there already; choose another name, or delete it"
    assert refusal in say("universe", "mine.toml", "--make", "--home", "home")[2]
    say("universe", "two.toml", "--make", "C", "A", "--market-news", "--news", "toy", "--home", "home")
    two = load_universe(Path("two.toml"))
    assert [(m.symbol, m.news, m.market_news) for m in two] == [("C", "toy", True), ("A", "toy", True)]


def test_a_universe_that_the_store_does_not_hold_is_refused(say: Say, tmp_path: Path) -> None:
    prices(tmp_path / "many", "AAPL")
    say("prices", "import", "many/AAPL.csv")
    Path("mine.toml").write_text('symbols = ["AAPL", "APPL"]')
    assert (
        "mine: no prices in the store for 1 of 2 symbols (got APPL, expected such as AAPL)"
        in say("universe", "mine.toml")[2]
    )
    assert "no such news (got toy" in say("universe", "one.toml", "--make")[2]
    assert "the universe's file cannot be read" in say("universe", "nowhere.toml")[2]
    assert "no symbol to write" in say("universe", "none.toml", "--make", "--home", "empty")[2]
    assert not Path("none.toml").exists()
