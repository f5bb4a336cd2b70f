"""A universe's file: what it says, what it may not say, and that its text brings it back."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import pytest

from trader.errors import BadFile, ConfigError
from trader.universe import EVERY, Member, Universe, load_universe, universe_of

STOCKNET = """
name = "stocknet"
news = "tweets"
symbols = ["AAPL", "BRK.B", "$GOOG"]

[symbol.AAPL]
text = "Apple Inc., maker of phones and computers"
tickers = ["$AAPL", "AAPL.O"]
market_news = true

[symbol."BRK.B"]
prices = "BRK-B"
news = ""
"""


def test_a_file_says_who_is_in_and_tables_change_single_symbols() -> None:
    made = Universe.from_text(STOCKNET)
    assert made.name == "stocknet"
    apple, berkshire, google = made
    text = "Apple Inc., maker of phones and computers"
    assert apple == Member(
        symbol="AAPL", prices="AAPL", news="tweets", tickers=("AAPL", "AAPL.O"), market_news=True, text=text
    )
    assert berkshire == Member(symbol="BRK.B", prices="BRK-B", news="", tickers=("BRK.B",))
    assert google == Member(symbol="$GOOG", prices="$GOOG", news="tweets", tickers=("GOOG",))


def test_tables_alone_are_a_list_in_their_order() -> None:
    made = Universe.from_text('name = "two"\n[symbol.B]\n[symbol.A]\ntickers = []')
    assert [(member.symbol, member.tickers) for member in made] == [("B", ("B",)), ("A", ())]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('symbols = ["A"]', "here: a universe needs a name"),
        ('name = "x"\nsymbols = []', "here: a universe without symbols"),
        ('name = "x"', "here: a universe without symbols"),
        ('name = "x"\nsymbols = ["A", "B", "A"]', r"here symbols: a symbol twice \(got A\)"),
        ('name = "x"\nsymbols = ["A B"]', "here symbols: not a symbol .*'A B'.*one word"),
        ('name = "x"\nsymbols = [" A"]', "not a symbol"),
        ('name = "x"\nsymbols = [""]', "not a symbol"),
        ('name = "x"\nsymbols = ["a.toml"]', "not a symbol"),
        ('name = "x"\nsymbols = "A"', "here symbols: a list was expected"),
        ('name = "x"\nsymbols = [1]', "here symbols: a value of the wrong type"),
        ('name = "x"\nsymbls = ["A"]', "here: unknown key symbls; did you mean symbols"),
        ('name = "x"\nsymbols = ["A"]\n[symbol.A]\ntiker = ["A"]', r"here \[symbol.A\]: unknown key tiker; .*tickers"),
        ('name = "x"\nsymbols = ["A"]\n[symbol.A]\nmarket_news = "yes"', r"\[symbol.A\] market_news: .*wrong type"),
        ('name = "x"\nsymbols = ["A"]\n[symbol.A]\ntickers = ["BRK B"]', "tickers: not a ticker .*'BRK B'"),
        ('name = "x"\nsymbols = ["AAPL"]\n[symbol.APPL]', r"\[symbol.APPL\]: .*not in symbols; did you mean AAPL\?"),
        ('name = "x"\nsymbols = ["AAPL"]\nsymbol = 3', "here symbol: a section was expected"),
        ('name = "x"\nsymbols = ["A"]\n[symbol]\nA = 3', "symbol.A: a section was expected"),
        ('name = "x', "here: not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Universe.from_text(text, "here")
    assert "\n" not in str(caught.value)


def test_many_symbols_named_twice_are_counted() -> None:
    twice = ", ".join(f'"{letter}"' for letter in "abcdefghabcdefgh")
    with pytest.raises(ConfigError, match="got a, b, c, d, e and 3 more"):
        Universe.from_text(f'name = "x"\nsymbols = [{twice}]')


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
TICKERS = st.lists(st.from_regex(r"[A-Za-z0-9.*^-]{1,6}", fullmatch=True), max_size=3, unique=True).map(tuple)
NAMES = WORDS.filter(lambda text: bool(text.strip()) and text.isprintable())
SYMBOLS = NAMES.filter(lambda text: text.split() == [text])


@st.composite
def universes(draw: st.DrawFn) -> Universe:
    members = [
        Member(
            symbol=symbol,
            prices=draw(st.just(symbol) | NAMES),
            news=draw(st.sampled_from(["", "tweets", 'a "wire"'])),
            tickers=draw(st.just(Member.plain(symbol).tickers) | TICKERS.filter(lambda some: "nan" not in some)),
            market_news=draw(st.booleans()),
            text=draw(WORDS),
        )
        for symbol in draw(st.lists(SYMBOLS, min_size=1, max_size=4, unique=True))
    ]
    return Universe(draw(NAMES), tuple(members))


@given(universes())
def test_the_text_of_a_universe_brings_it_back(made: Universe) -> None:
    again = Universe.from_text(made.as_text())
    assert again == made
    assert again.as_text() == made.as_text()


def test_a_market_is_a_file_its_text_or_a_symbol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('symbols = ["AAPL"]')
    from_file = universe_of("mine.toml")
    assert (from_file.name, len(from_file)) == ("mine", 1)
    stored = from_file.as_text()
    (tmp_path / "mine.toml").write_text('symbols = ["ABB"]')
    assert universe_of(stored) == from_file, "what was stored does not change with the file"
    assert universe_of("mine.toml") != from_file
    (one,) = universe_of("sp500")
    assert (one.symbol, one.prices, one.tickers) == ("sp500", "sp500", (EVERY,))


def test_a_file_that_cannot_be_read_says_what_its_path_is_relative_to(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"nowhere.toml: the universe's file cannot be read.*folder in which"):
        load_universe(Path("nowhere.toml"))
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(BadFile, match=r"bad\.toml"):
        load_universe(tmp_path / "bad.toml")
