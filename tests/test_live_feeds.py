"""Live feeds from config.toml to the command line: sections become feeds, and feeds are asked and listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
import re
import sqlite3
import tomllib
from typing import Any

import pytest

from feeds.base import FeedState, Fetched
from feeds.entries import Entry, rows_of
from tests import builders
from tests.misbehaving import Misbehaving, serving
from trader import cli, running
from trader.clock import Clock, SimulatedClock, WallClock
from trader.config import as_mapping, from_mapping
from trader.errors import ConfigError
from trader.live_feeds import FeedSettings, feeds_of
from trader.logs import Log
from trader.outcome import Home
from trader.store import MarketStore
from trader.world import live

FILE = Path(__file__).parents[1] / "config.toml"
OWN = "tests.test_live_feeds:OwnFeed"
FEED = b"<rss version='2.0'><channel><item><guid>1</guid><title>Shares rise</title></item></channel></rss>"


class OwnFeed:
    """A user's own feed: it has what feeds.base asks for, and a setting."""

    gives = "news"

    def __init__(self, word: str = "hello") -> None:
        self.word = word

    def fetch(self, state: FeedState, clock: Clock) -> Fetched:
        news, _ = rows_of([Entry(item_id=self.word, title=self.word)], received=clock.now())
        return Fetched(news=news)


class NoFeed:
    gives = "weather"


def feeds(**sections: dict[str, Any]) -> Any:
    return feeds_of(from_mapping({"run": {"news": "live"}, "feeds": sections}, "test"))


# From the config


def test_config_toml_shows_every_key_of_a_feed_with_its_default_and_a_comment() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("# [feeds."))
    block = [line.removeprefix("#").removeprefix(" ") for line in lines[first : lines.index("", first)]]
    written: dict[str, Any] = {}
    for section in tomllib.loads("\n".join(block))["feeds"].values():
        written |= section
    assert written.keys() == {one.name for one in fields(FeedSettings)}
    given = {"kind", "symbol", "url"}  # shown with an example
    for one in fields(FeedSettings):
        if one.name not in given:
            assert (written[one.name], type(written[one.name])) == (one.default, type(one.default)), one.name
    bare = [line for line in block if re.match(r"\w+ = ", line) and "#" not in line and not line.startswith("url")]
    assert bare == []
    # The sections as they stand there are feeds.
    assert len(feeds(**tomllib.loads("\n".join(block))["feeds"])) == 2


def test_sections_become_feeds_in_their_order() -> None:
    spy, wire = feeds(
        spy={"kind": "yahoo_prices", "symbol": "SPY", "every_minutes": 60},
        wire1={"kind": "rss", "url": "https://me:secret@x.org/feed?key=secret", "stale_hours": 2, "silent_hours": 0},
    )
    assert (spy.name, spy.kind, spy.into, spy.every_seconds) == ("spy", "prices", "SPY", 3600)
    assert (wire.name, wire.kind, wire.into) == ("wire1", "news", "live")
    assert (wire.stale_after_seconds, wire.silent_after_seconds) == (7200, 0)
    assert "secret" not in wire.address and "x.org/feed" in wire.address
    (named,) = feeds(n={"kind": "yahoo_news", "symbol": "SPY", "news": "other"})
    assert (named.kind, named.into) == ("news", "other")


def test_another_key_in_the_address_is_another_address_though_it_is_not_shown() -> None:
    addresses = {
        feeds(a={"kind": "rss", "url": f"https://x.org/feed{query}"})[0].address for query in ("", "?k=1", "?k=2")
    }
    assert len(addresses) == 3


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "rss", "every_minuets": 5}, r"\[feeds.a\]: unknown key every_minuets; did you mean every_minutes\?"),
        ({"kind": "rss"}, r"\[feeds.a\]: missing key url"),
        ({"url": "http://x"}, "missing key kind"),
        ({"kind": "yahoo_prices"}, "missing key symbol"),
        ({"kind": "yahoo_news"}, "missing key symbol"),
        ({"kind": "atom", "url": "http://x"}, "no such kind of feed .got atom, expected yahoo_prices, yahoo_n"),
        ({"kind": "rss", "url": "http://x", "sessions": 3}, "sessions is no key of rss; remove it; known are url"),
        ({"kind": "yahoo_prices", "symbol": "SPY", "url": "http://x"}, "url is no key of yahoo_prices"),
        ({"kind": "rss", "url": 3}, r"\[feeds.a\] url: a value of the wrong type"),
        ({"kind": 3}, "kind: a value of the wrong type"),
        ({"kind": "rss", "url": "http://x", "news": "wire"}, "live headlines need a news set of their own .got wire"),
        ({"kind": "yahoo_prices", "symbol": "sp500"}, "a symbol that is not built in .got sp500"),
        ({"kind": "rss", "url": "http://x", "every_minutes": 0}, "every_minutes: too small .got 0.0, expected at l"),
        ({"kind": "rss", "url": "http://x", "every_minutes": float("nan")}, "too small"),
        ({"kind": "rss", "url": "http://x", "stale_hours": 0.2}, "stale_hours: too small .*stale between two polls"),
        ({"kind": "rss", "url": "http://x", "silent_hours": -1}, "silent_hours: too small"),
        ({"kind": "rss", "url": "http://x", "timeout_seconds": 0}, "timeout_seconds: too small"),
        ({"kind": "rss", "url": "http://x", "max_megabytes": 0}, "max_megabytes: too small"),
        ({"kind": "yahoo_prices", "symbol": "SPY", "sessions": 0}, "sessions: too small"),
        ({"kind": OWN, "wrod": "x"}, r"does not take these settings \(.*wrod"),
        ({"kind": "tests.test_live_feeds:NoFeed"}, "not a feed .*expected gives = "),
        ({"kind": "tests.test_live_feeds:Nobody"}, "Nobody"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_in_a_section_is_named(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        feeds(a=section)


def test_a_feed_of_the_users_own_gets_its_own_keys() -> None:
    (own,) = feeds(mine={"kind": OWN, "word": "hi", "every_minutes": 5})
    assert (own.kind, own.into, own.every_seconds) == ("news", "live", 300)
    fetched = own.fetch(FeedState(), WallClock())
    assert list(fetched.news.news.headline) == ["hi"]


def test_live_feeds_shape_no_backtest_and_so_stay_out_of_its_settings() -> None:
    plain, live = (
        from_mapping({"feeds": some}, "test") for some in ({}, {"a": {"kind": "rss", "url": "http://x?k=1"}})
    )
    assert as_mapping(plain) == as_mapping(live)
    assert as_mapping(live, live=True)["feeds"] == {"a": {"kind": "rss", "url": "http://x?k=1"}}
    assert from_mapping(as_mapping(live, live=True), "test") == live


# On the command line


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Misbehaving]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("TRADER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with serving() as running:
        yield running


def configure(*urls: str) -> None:
    sections = "".join(f'[feeds.wire{at}]\nkind = "rss"\nurl = "{url}"\n' for at, url in enumerate(urls, 1))
    Path("config.toml").write_text(f'[run]\nnews = "live"\n{sections}')


def test_feeds_are_polled_and_listed(server: Misbehaving, capsys: pytest.CaptureFixture[str]) -> None:
    configure(server.gives(FEED), server.gives(b"", 500, path="/broken"))
    assert cli.main(["feeds", "list"]) == 0
    assert "A decision would abstain now: feed wire1 was never asked" in capsys.readouterr().out
    assert cli.main(["feeds", "poll"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"wire1 +│? *1 .*answered", printed) and re.search(r"wire2 .*failed", printed)
    assert "wire2: http://127.0.0.1" in printed and "server failed (500)" in printed
    with MarketStore.open(Path("var/market.db")) as store:
        assert store.names()["live"].count == 1
    assert cli.main(["feeds", "poll"]) == 0
    assert "No feed is due before 2" in capsys.readouterr().out
    assert cli.main(["feeds", "poll", "--all"]) == 0
    assert len(server.asked) == 4
    capsys.readouterr()
    assert cli.main(["feeds", "list"]) == 0
    printed = capsys.readouterr().out
    assert "A decision would abstain now: feed wire2 has never answered" in printed and "wire1 was" not in printed


def test_one_feed_is_polled_by_its_name(server: Misbehaving, capsys: pytest.CaptureFixture[str]) -> None:
    configure(server.gives(FEED), server.gives(FEED, path="/other"))
    assert cli.main(["feeds", "poll", "wire2"]) == 0
    assert [path for path, _ in server.asked] == ["/other"]
    assert cli.main(["feeds", "poll", "wire3"]) == 2
    assert "no such feed (got wire3, expected wire1, wire2)" in capsys.readouterr().err


def test_all_feeds_well_is_said(server: Misbehaving, capsys: pytest.CaptureFixture[str]) -> None:
    configure(server.gives(FEED))
    assert cli.main(["feeds", "poll"]) == cli.main(["feeds", "list"]) == 0
    assert "All feeds are well" in capsys.readouterr().out


def test_no_answer_at_all_is_an_error_that_cron_can_see(
    server: Misbehaving, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(server.gives(b"", 500))
    assert cli.main(["feeds", "poll"]) == 2
    assert "no feed answered (got 1 asked)" in capsys.readouterr().err


def test_no_feed_in_the_config_is_one_line(server: Misbehaving, capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    for what in ("poll", "list"):
        assert cli.main(["feeds", what]) == 2
        assert "no live feed in the config; add a section [feeds.NAME]" in capsys.readouterr().err


def test_health_lies_in_the_ledger_in_columns_of_their_type(server: Misbehaving) -> None:
    configure(server.gives(FEED, Date="Wed, 25 Nov 2026 15:00:00 GMT"))
    assert cli.main(["feeds", "poll"]) == 0
    db = sqlite3.connect("var/ledger.db")
    ((name, kind, success, ahead),) = db.execute("SELECT feed, kind, last_success, server_ahead FROM feed_health")
    assert (name, kind, type(success), type(ahead)) == ("wire1", "news", int, float)
    assert datetime.fromtimestamp(success / 1e6, timezone.utc) <= WallClock().now()
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("UPDATE feed_health SET items = 'many'")
    db.close()


def test_a_feed_that_turns_stale_is_told_once_and_long_before_a_decision(server: Misbehaving, tmp_path: Path) -> None:
    home = builders.a_home(tmp_path / "home")
    section = {"wire": {"kind": "rss", "url": server.gives(FEED), "news": "toy", "stale_hours": 2.0}}
    clock = SimulatedClock(builders.NOW)
    running.open_account(Home(home), "acct", builders.config(feeds=section), clock)
    log = tmp_path / "log"
    with live(Home(home), "acct", [], Log.to_file(clock, log, "text"), clock) as world:
        world.poll()
        assert told(home) == []
        server.gives(b"", 500)
        for _ in range(5):
            clock.set(clock.now() + timedelta(hours=1))
            world.poll()
    [(kind, text)] = told(home)
    assert kind == "feed_stale"
    assert "feed wire is stale: last success" in text and "older than 2 h" in text
    assert log.read_text().count("feed stale") == 1


def test_a_service_tells_that_it_came_and_went_and_once_does_not(server: Misbehaving, tmp_path: Path) -> None:
    home = builders.a_home(tmp_path / "home")
    clock = SimulatedClock(builders.NOW)
    running.open_account(Home(home), "acct", builders.config(), clock)
    for once, expected in ((True, []), (False, ["started", "stopped"])):
        with live(Home(home), "acct", [], Log.to_file(clock, tmp_path / "log", "text"), clock) as world:
            around = replace(world.around(once=once), readers=builders.readers())
            with running.running(Home(home), "acct", around):
                pass
        assert [kind for kind, _ in told(home)] == expected


def told(home: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(home / "ledger.db") as connection:
        return connection.execute("SELECT kind, text FROM outbox ORDER BY id").fetchall()
