"""Which symbols a run reads and trades: a TOML file, checked key by key, as a frozen value in a fixed order.

``[run] market`` names one symbol or such a file. Its whole text can go into a run's stored config (``as_text``), so
that an account stays as it was opened when the file is edited. What is stored of it: ``trader.universe_contents``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
import difflib
import json
from pathlib import Path
import re
import textwrap
from typing import Any

from feeds.news_text import bare_tickers
from trader.config import build, parse_toml
from trader.errors import BadFile, ConfigError

EVERY = "*"  # as a member's ticker: every headline of its news set, whatever tickers it carries
SHOWN = 5  # symbols that an error names before it counts the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One symbol of a universe.

    prices: the name of its bars in the store.   news: its news set; empty = the run's.
    tickers: a headline that carries one of them is this symbol's, compared as the store has them (case, exchange
        suffix); "*" stands for every headline of the set.   market_news: headlines that carry no ticker, too.
    text: the sentence that describes it to the model; empty = the built-in one.
    """

    symbol: str
    prices: str
    news: str = ""
    tickers: tuple[str, ...] = ()
    market_news: bool = False
    text: str = ""

    @classmethod
    def plain(cls, symbol: str, *, news: str = "", market_news: bool = False) -> Member:
        """Return the member that a bare symbol stands for: its own prices, the headlines that carry it."""
        tickers = tuple(bare_tickers(symbol).split())
        return cls(symbol=symbol, prices=symbol, news=news, tickers=tickers, market_news=market_news)


@dataclass(frozen=True, slots=True)
class Universe:
    """The symbols of a run, in the order in which all that is done symbol by symbol is done; at least one, none twice.

    >>> made = Universe.from_text('name = "two"\\nsymbols = ["AAPL", "ABB"]')
    >>> [member.symbol for member in made], Universe.from_text(made.as_text()) == made
    (['AAPL', 'ABB'], True)
    """

    name: str
    symbols: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.symbols)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.symbols)

    @classmethod
    def of_one(cls, market: str) -> Universe:
        """Return the universe of one symbol that reads every headline of its set, as a run of one market does."""
        return cls(market, (Member(symbol=market, prices=market, tickers=(EVERY,)),))

    @classmethod
    def from_text(cls, text: str, where: object = "the universe", *, name: str = "") -> Universe:
        """Read a universe's TOML; ``name`` where the text states none. ``where`` is for the errors.

        Raises ConfigError: no TOML, an unknown key (naming the nearest known one), a value of the wrong type, a
        symbol twice, no symbol, a table of a symbol that is not in the list.
        """
        raw = build(_Text, parse_toml(text, where), str(where))
        chosen = raw.name or name
        if not chosen.strip() or not chosen.isprintable():
            raise ConfigError("a universe needs a name in one line", where=where, do='write name = "…"')
        listed = _listed(raw, where)
        return cls(chosen, tuple(_member(symbol, raw, f"{where} [symbol.{symbol}]") for symbol in listed))

    def as_text(self) -> str:
        """Return the TOML that ``from_text`` reads back as this universe; equal universes give equal text."""
        news, market_news = self._common()
        lines = [f"name = {_quoted(self.name)}"]
        lines += [f"news = {_quoted(news)}"] if news else []
        lines += [f"market_news = {str(market_news).lower()}"]
        names = ", ".join(_quoted(member.symbol) for member in self)
        wrapped = textwrap.wrap(names, 110, break_long_words=False, break_on_hyphens=False)
        lines += ["symbols = [", *(f"    {line}" for line in wrapped), "]"]
        for member in self:
            plain = Member.plain(member.symbol, news=news, market_news=market_news)
            lines += _table(member, plain)
        return "\n".join(lines) + "\n"

    def _common(self) -> tuple[str, bool]:
        """Return the news set and the market_news that most members have, the first member's where as many have it."""
        sets, flags = Counter(m.news for m in self), Counter(m.market_news for m in self)
        return sets.most_common(1)[0][0], flags.most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class _Text:
    """The keys of the file; news and market_news hold for every symbol whose table does not say otherwise."""

    name: str = ""
    news: str = ""
    market_news: bool = False
    symbols: tuple[str, ...] | None = None
    symbol: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of a symbol's table; None and empty take the default."""

    prices: str = ""
    news: str | None = None
    tickers: tuple[str, ...] | None = None
    market_news: bool | None = None
    text: str = ""


def is_file(market: str) -> bool:
    """Tell whether ``[run] market`` names a universe's file rather than one symbol."""
    return market.endswith(".toml")


def is_universe(market: str) -> bool:
    """Tell whether ``[run] market`` means many symbols: it names a universe's file, or is a universe's own text."""
    return is_file(market) or "\n" in market


def refuse_universe(market: str, what: str) -> None:
    """Raise ConfigError where ``[run] market`` means many symbols, for what takes one."""
    if is_universe(market):
        do = "name one symbol; `backtest` and `paper open` with --market FILE.toml trade many"
        raise ConfigError(
            f"{what} takes one symbol, not a universe", where="[run] market", got=market_name(market), do=do
        )


def market_of(config: str) -> str:
    """Return ``[run] market`` of a run's stored config, "" where it has none.

    >>> market_of('{"run": {"market": "sp500"}}'), market_of("")
    ('sp500', '')
    """
    return str(json.loads(config or "{}").get("run", {}).get("market", ""))


def market_name(market: str) -> str:
    """Return what ``[run] market`` is called: the symbol, or the name of the universe whose text it is."""
    return universe_of(market).name if "\n" in market else market


def market_shown(market: str) -> str:
    """Return ``market_name``, of a universe's text with the number of its symbols."""
    symbols = symbols_of(market)
    return f"{market_name(market)} ({len(symbols)} symbols)" if symbols else market


def symbols_of(market: str) -> list[str]:
    """Return the symbols of a universe's text, in its order; none for one symbol, which is no universe."""
    return [member.symbol for member in universe_of(market)] if "\n" in market else []


def universe_of(market: str) -> Universe:
    """Return what ``[run] market`` means: a file's universe, a universe's own text (it has lines), or one symbol.

    Raises as ``load_universe`` and ``Universe.from_text`` do.
    """
    if "\n" in market:
        return Universe.from_text(market, "[run] market")
    return load_universe(Path(market)) if is_file(market) else Universe.of_one(market)


def load_universe(path: Path) -> Universe:
    """Read a universe's file; a relative path is relative to the working directory. Its name is by default the file's.

    Raises BadFile where it cannot be read, ConfigError as ``Universe.from_text`` does.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or str(error)
        do = "check the path; it is relative to the folder in which the command runs"
        raise BadFile("the universe's file cannot be read", where=path, got=got, do=do) from error
    return Universe.from_text(text, path, name=path.stem)


def some(names: Iterable[str]) -> str:
    """Return the first few names and how many others there are.

    >>> some("abcdefgh")
    'a, b, c, d, e and 3 more'
    """
    every = list(names)
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + rest


def _listed(raw: _Text, where: object) -> tuple[str, ...]:
    """Return the symbols in their order: the list, or the tables where there is no list."""
    listed = tuple(raw.symbol) if raw.symbols is None else raw.symbols
    if not listed:
        raise ConfigError("a universe without symbols", where=where, do='write symbols = ["…", "…"]')
    twice = [symbol for symbol, count in Counter(listed).items() if count > 1]
    if twice:
        raise ConfigError("a symbol twice", where=f"{where} symbols", got=some(twice), do="name each one once")
    odd = [symbol for symbol in listed if not symbol.isprintable() or symbol.split() != [symbol] or is_file(symbol)]
    if odd:
        raise ConfigError("not a symbol", where=f"{where} symbols", got=repr(odd[0]), expected="one word")
    for symbol in raw.symbol:
        if symbol not in listed:
            near = difflib.get_close_matches(symbol, listed, 1, cutoff=0.5)
            do = f"did you mean {near[0]}?" if near else "add it to symbols"
            raise ConfigError("a table of a symbol that is not in symbols", where=f"{where} [symbol.{symbol}]", do=do)
    return listed


def _member(symbol: str, raw: _Text, where: str) -> Member:
    keys = build(_Keys, raw.symbol.get(symbol, {}), where)
    plain = Member.plain(symbol)
    return Member(
        symbol=symbol,
        prices=keys.prices or symbol,
        news=raw.news if keys.news is None else keys.news,
        tickers=plain.tickers if keys.tickers is None else _tickers(keys.tickers, where),
        market_news=raw.market_news if keys.market_news is None else keys.market_news,
        text=keys.text,
    )


def _tickers(given: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the tickers as the store has those of headlines: without $ and quotes."""
    bare = [bare_tickers(one) for one in given]
    for one, found in zip(given, bare, strict=True):
        if len(found.split()) != 1:
            raise ConfigError("not a ticker", where=f"{where} tickers", got=repr(one), expected="one word")
    return tuple(dict.fromkeys(bare))


def _table(member: Member, plain: Member) -> list[str]:
    """Return the lines of a member's table; none where it is what its bare symbol stands for."""
    differing = [
        f"{one.name} = {_written(value)}"
        for one in fields(Member)
        if (value := getattr(member, one.name)) != getattr(plain, one.name)
    ]
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", member.symbol)
    return ["", f"[symbol.{member.symbol if bare else _quoted(member.symbol)}]", *differing] if differing else []


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else f"[{', '.join(_quoted(one) for one in value)}]"


def _quoted(text: str) -> str:
    """Return a TOML string: JSON's escapes are TOML's, but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
