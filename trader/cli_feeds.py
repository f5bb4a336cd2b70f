"""The commands that ask live feeds and show how they are doing; ``trader.cli`` hangs them in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trader.errors import ConfigError, SourceError
from trader.terminal import print_table, settings

if TYPE_CHECKING:
    from feeds.base import LiveFeed
    from trader.feed_health import Health, HealthRow, PollResult


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``feeds poll`` and ``feeds list`` with their words."""
    feeds = commands.add_parser("feeds", help="ask the live feeds of config.toml, and show how they are doing")
    names = feeds.add_subparsers(required=True, metavar="WHAT")
    parser = names.add_parser("poll", help="ask each feed that is due, once")
    _add_home(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these feeds, due or not")
    parser.add_argument("--all", action="store_true", help="every feed, due or not")
    parser.set_defaults(command=feeds_poll)
    parser = names.add_parser("list", help="show each feed's health, and what would make a decision abstain")
    _add_home(parser)
    parser.set_defaults(command=feeds_list)


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: config.toml in this folder)")
    parser.add_argument("--home", metavar="DIR", help="stores, caches, models, ledger (default: TRADER_HOME, or var/)")


def feeds_poll(options: argparse.Namespace) -> None:
    """Ask feeds once; raise SourceError where none of them answered."""
    from trader.clock import WallClock
    from trader.outcome import Home
    from trader.polling import Poller
    from trader.report import plain_table
    from trader.store import MarketStore

    with _opened(options) as (feeds, health, home), MarketStore.open(Home(home).store) as store:
        poller = Poller(feeds, health, store, WallClock())
        names = options.names or ([feed.name for feed in feeds] if options.all else poller.due())
        results = [poller.poll(name) for name in names]
        following = poller.next_due()
    if not results and following:
        print(f"No feed is due before {following:%Y-%m-%d %H:%M} UTC; --all asks them all the same.")
        return
    print_table(
        plain_table(
            ("feed", "new", "revised", "known", "refused", "outcome"),
            [_told(one) for one in results],
            right=(1, 2, 3, 4),
        )
    )
    for one in results:
        if one.error:
            print(f"{one.feed}: {one.error}")
    if all(one.error for one in results):
        raise SourceError("no feed answered", got=f"{len(results)} asked", do="`feeds list` shows when each last did")


def _told(one: PollResult) -> tuple[str, ...]:
    outcome = "failed" if one.error else "nothing newer" if one.not_modified else "answered"
    if one.skewed:
        outcome += f", {one.skewed} from the future"
    return (one.feed, f"{one.new:,}", f"{one.revised:,}", f"{one.known:,}", f"{one.rejected:,}", outcome)


def feeds_list(options: argparse.Namespace) -> None:
    """Print the health of the configured feeds."""
    from trader.clock import WallClock
    from trader.report import plain_table

    now = WallClock().now()
    with _opened(options) as (feeds, health, _):
        rows = [_shown(feed, health.row(feed)) for feed in feeds]
        reasons = [reason for feed in feeds if (reason := health.stale(feed, now))]
    heads = ("feed", "last success", "last new", "answers", "failures", "items", "refused", "skewed", "next")
    print_table(plain_table(heads, rows, right=(3, 4, 5, 6, 7)))
    print("Times are UTC. refused, skewed: of the newest document. docs/feeds.md says what each is.")
    for reason in reasons:
        print(f"A decision would abstain now: {reason}")
    if not reasons:
        print("All feeds are well: none would make a decision abstain.")


def _shown(feed: LiveFeed, row: HealthRow | None) -> tuple[str, ...]:
    if row is None:
        return (feed.name, "never", "never", "0", "0", "0", "0", "0", "now")
    counts = (row.successes, row.failures, row.items, row.rejected, row.skewed)
    success, new = (f"{at:%m-%d %H:%M}" if at else "never" for at in (row.last_success, row.last_new))
    return (feed.name, success, new, *(f"{count:,}" for count in counts), f"{row.next_due:%m-%d %H:%M}")


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[tuple[list[LiveFeed], Health, Path]]:
    from trader.feed_health import Health
    from trader.live_feeds import feeds_of
    from trader.outcome import Home

    config, home = settings(options)
    feeds = feeds_of(config)
    if not feeds:
        raise ConfigError("no live feed in the config", do="add a section [feeds.NAME]; docs/feeds.md shows how")
    with Health.open(Home(home).ledger) as health:
        yield feeds, health, home
