"""What is around a live account: the wall clock, its feeds with their health, whom it tells, where it logs.

``trader.running`` asks for a ``World``; a replay makes a smaller one. Feeds are polled in the service's own thread
between decisions, notifications are delivered in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from zlib import crc32

from feeds.base import LiveFeed
from trader import outbox
from trader.account import Account, Accounts
from trader.channels import Channel
from trader.clock import Calendar, Clock
from trader.feed_health import Health, silent
from trader.ledger import Ledger
from trader.live_feeds import feeds_of
from trader.logs import Log
from trader.notify import Notifier
from trader.outcome import Home
from trader.polling import Poller
from trader.running import LOCKED_SECONDS, World
from trader.service import Told
from trader.store import MarketStore

# What the service calls it → what is told; what is not here is told to nobody.
KINDS = {
    "late": "late",
    "abstain": "abstained",
    "filled": "filled",
    "halted": "halted",
    "reducing": "reducing",
    "adopted": "retrained",
    "refused": "refused_model",
    "damaged": "refused_model",
    "training failed": "error",
    "fallback": "error",
    "error": "error",
    "started": "started",
    "stopped": "stopped",
    "feed_stale": "feed_stale",
}
COMES_AND_GOES = ("started", "stopped")  # not worth a notice where a service lives for a moment, again and again


DRAIN_SECONDS = 5.0


class Live:
    """A live account's surroundings, open."""

    def __init__(
        self,
        clock: Clock,
        log: Log,
        feeds: Sequence[LiveFeed],
        health: Health,
        poller: Poller,
        notifier: Notifier,
        tell: Told,
    ) -> None:
        self._clock, self._log, self._feeds, self._health, self._poller = clock, log, feeds, health, poller
        self._notifier, self._tell, self.log = notifier, tell, log.event
        self._calendar, self._stale = Calendar(), set[str]()

    def poll(self) -> None:
        """Ask the feeds that are due; one that fails is written down and asked again later."""
        self._notifier.wake()
        for result in self._poller.poll_due():
            if result.error:
                self._log.event("feed failed", level="warning", feed=result.feed, why=result.error)
            elif result.new or result.revised:
                self._log.event("feed", feed=result.feed, new=result.new, revised=result.revised)
        now = self._clock.now()
        for feed in self._feeds:
            self._look_at(feed, now)

    def _look_at(self, feed: LiveFeed, now: datetime) -> None:
        """Tell of a feed when it turns stale, hours before a decision abstains, and log when it is well again."""
        why = self._health.stale(feed, now)
        if why and feed.name not in self._stale:
            self._stale.add(feed.name)
            self._log.event("feed stale", level="warning", feed=feed.name, why=why)
            self._tell("feed_stale", self._calendar.session_at(now), why)
        elif not why and feed.name in self._stale:
            self._stale.remove(feed.name)
            self._log.event("feed well", feed=feed.name)

    def stale(self, at: datetime) -> str:
        """Say why nothing should be decided on these feeds, or nothing."""
        return silent(self._health, self._feeds, at)

    def around(self, *, once: bool = False) -> World:
        """Return what a service asks of the world.   once: it does what is due, waits for it, and ends."""
        tell, patient = told_by(self._clock, but=COMES_AND_GOES if once else ()), once
        return World(clock=self._clock, log=self._log.event, tell=tell, stale=self.stale, patient=patient)


def told_by(clock: Clock, but: Sequence[str] = ()) -> Callable[[Ledger, Account], Told]:
    """Return what makes, of a ledger and its account, somebody who writes notices into the outbox.   but: not these."""

    def tell_of(ledger: Ledger, account: Account) -> Told:
        with ledger.transaction() as connection:
            outbox.prepare(connection)

        def tell(kind: str, session: date, text: str) -> None:
            if kind not in KINDS or kind in but:
                return
            with ledger.transaction() as connection:
                outbox.enqueue(
                    connection,
                    account=account.name,
                    kind=KINDS[kind],
                    # One notice of a kind and text a session: a decision that is made again is not told again.
                    event_id=outbox.stable_id(account.name, kind, session, crc32(text.encode())),
                    text=text,
                    made_at=clock.now(),
                    session=session,
                )

        return tell

    return tell_of


@contextmanager
def live(home: Home, name: str, channels: Sequence[Channel], log: Log, clock: Clock) -> Iterator[Live]:
    """Open an account's surroundings and close them in order; what waits to be told at the end gets some seconds.

    channels: of today's config file, for an account's settings hold no secrets. Raises NoData, ConfigError.
    """
    with Ledger.open(home.ledger, read_only=True) as ledger:
        account = Accounts(ledger, clock).get(name)
    feeds = feeds_of(account.config)
    with (
        Ledger.open(home.ledger, clock=clock, wait_seconds=LOCKED_SECONDS) as ledger,
        Health.open(home.ledger, wait_seconds=LOCKED_SECONDS) as health,
        MarketStore.open(home.store) as store,
        Notifier(home.ledger, channels, account=name, clock=clock, log=log) as notifier,
    ):
        tell = told_by(clock)(ledger, account)
        yield Live(clock, log.bound(account=name), feeds, health, Poller(feeds, health, store, clock), notifier, tell)
        notifier.drain(DRAIN_SECONDS)
