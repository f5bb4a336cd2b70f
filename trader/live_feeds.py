"""The live feeds by name, as ``trader.parts`` has the other parts: sections ``[feeds.NAME]`` made into feeds.

``trader.polling`` asks them and never sees which they are; a user's own comes as ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
import hashlib
import inspect
from typing import Any

from feeds.base import Fetch, Kind, LiveFeed
from trader.broker import load_class
from trader.config import Config, build
from trader.errors import ConfigError

# Kind → its own keys, the one that it cannot do without first.
KINDS = {
    "yahoo_prices": ("symbol", "sessions"),
    "yahoo_news": ("symbol", "news"),
    "rss": ("url", "symbol", "news", "timeout_seconds", "max_megabytes"),
}
_POLLERS = ("kind", "every_minutes", "stale_hours", "silent_hours")
BUILT_IN_MARKETS, BUILT_IN_NEWS = (
    ("sp500", "nasdaq", "planted", "planted_charts"),
    ("wire", "planted", "planted_charts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """A section ``[feeds.NAME]`` of config.toml.

    kind: a row of KINDS, or package.module:Class.
    symbol: what Yahoo is asked for; with rss, the tickers that its headlines are about ("" for the whole market).
    sessions: how many of the last ones yahoo_prices asks for.
    url, timeout_seconds, max_megabytes: the address of an rss feed, and what one answer of it may cost.
    news: the news set that headlines go into; "" for that of [run].
    every_minutes: from one answer to the next question.  stale_hours: without a success for so long, no decision.
    silent_hours: likewise without anything new; 0 for no such limit.
    """

    kind: str
    symbol: str = ""
    sessions: int = 60
    url: str = ""
    timeout_seconds: float = 20.0
    max_megabytes: float = 5.0
    news: str = ""
    every_minutes: float = 15.0
    stale_hours: float = 6.0
    silent_hours: float = 96.0


def feeds_of(config: Config) -> list[LiveFeed]:
    """Return the live feeds of the config, in its order, ready for ``trader.polling``.

    A user's class is called with the keys of its section that FeedSettings does not have; it has ``gives``, which is
    "prices" or "news", and ``fetch(state, clock)``, as feeds.base describes it.
    Raises ConfigError for a kind, key or value that cannot be used. Called before a config is written into the
    ledger, as ``check_chats`` is.
    """
    return [_feed(name, section, config.run.news) for name, section in config.feeds.items()]


def _feed(name: str, section: Mapping[str, Any], run_news: str) -> LiveFeed:
    where, kind = f"[feeds.{name}]", section.get("kind", "")
    own = isinstance(kind, str) and ":" in kind
    known = {one.name for one in fields(FeedSettings)}
    theirs = {key: value for key, value in section.items() if own and key not in known}
    chosen = build(FeedSettings, {key: value for key, value in section.items() if key not in theirs}, where)
    gives, fetch = _users(chosen.kind, theirs, where) if own else _ours(chosen, section, where)
    into = chosen.symbol if gives == "prices" else chosen.news or run_news
    _refuse_built_in(gives, into, where)
    _check_numbers(chosen, where)
    return LiveFeed(
        name=name,
        kind=gives,
        into=into,
        address=_address(chosen, theirs),
        every_seconds=chosen.every_minutes * 60,
        stale_after_seconds=chosen.stale_hours * 3600,
        silent_after_seconds=chosen.silent_hours * 3600,
        fetch=fetch,
    )


def _ours(chosen: FeedSettings, section: Mapping[str, Any], where: str) -> tuple[Kind, Fetch]:
    """Return what a feed of ours gives and how it is asked."""
    if chosen.kind not in KINDS:
        expected = f"{', '.join(KINDS)} or package.module:Class"
        raise ConfigError("no such kind of feed", where=where, got=chosen.kind, expected=expected)
    keys = KINDS[chosen.kind]
    if not getattr(chosen, keys[0]):
        raise ConfigError(f"missing key {keys[0]}", where=where)
    for key in section:
        if key not in (*keys, *_POLLERS):
            do = f"remove it; known are {', '.join((*keys, *_POLLERS))}"
            raise ConfigError(f"{key} is no key of {chosen.kind}", where=where, do=do)
    # Imported here: most commands name no feed, and each brings its own libraries.
    if chosen.kind == "rss":
        from feeds import rss

        limits = rss.Limits(most_bytes=int(chosen.max_megabytes * 1e6), seconds=chosen.timeout_seconds)
        return "news", lambda state, clock: rss.fetch(
            chosen.url, clock=clock, state=state, limits=limits, symbols=chosen.symbol
        )
    from feeds import yahoo

    if chosen.kind == "yahoo_news":
        return "news", lambda state, clock: yahoo.fetch_news(chosen.symbol, clock=clock)
    return "prices", lambda state, clock: yahoo.newest_bars(chosen.symbol, chosen.sessions, clock=clock)


def _users(path: str, options: Mapping[str, Any], where: str) -> tuple[Kind, Fetch]:
    """Make a user's feed from the keys that are its own."""
    kind = load_class(path, object)
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"the feed does not take these settings ({error})", where=where) from error
    feed: Any = kind(**options)
    gives = getattr(feed, "gives", None)
    if gives not in ("prices", "news") or not callable(getattr(feed, "fetch", None)):
        expected = 'gives = "prices" or "news", and fetch(state, clock)'
        raise ConfigError("not a feed", where=where, got=path, expected=expected)
    return gives, feed.fetch


def _refuse_built_in(gives: Kind, into: str, where: str) -> None:
    if gives == "news" and into in BUILT_IN_NEWS:
        do = 'name one, such as news = "live", here and under [run]'
        raise ConfigError("live headlines need a news set of their own", where=where, got=into, do=do)
    if gives == "prices" and (not into or into in BUILT_IN_MARKETS):
        do = "give the symbol as its source has it, such as ^GSPC"
        raise ConfigError("live prices need a symbol that is not built in", where=where, got=into or "none", do=do)


def _check_numbers(chosen: FeedSettings, where: str) -> None:
    """Refuse a number that makes no sense; NaN compares as too small."""
    least = {"every_minutes": 0.1, "timeout_seconds": 0.1, "max_megabytes": 0.001, "silent_hours": 0.0}
    for key, bound in {**least, "sessions": 1, "stale_hours": chosen.every_minutes / 60}.items():
        value = getattr(chosen, key)
        if not value >= bound:
            more = ": a feed that is well would be stale between two polls" if key == "stale_hours" else ""
            raise ConfigError("too small", where=f"{where} {key}", got=value, expected=f"at least {bound:g}{more}")


def _address(chosen: FeedSettings, theirs: Mapping[str, Any]) -> str:
    """Return what is asked, so that a change of it is seen, without what may be secret in a URL or an option."""
    digest = hashlib.sha256(repr((chosen.kind, chosen.symbol, chosen.url, sorted(theirs.items()))).encode())
    plain = chosen.url.partition("?")[0].rpartition("@")[2] or chosen.symbol
    return f"{chosen.kind} {plain} {digest.hexdigest()[:8]}".replace("  ", " ")
