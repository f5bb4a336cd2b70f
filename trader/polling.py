"""Ask each live feed on its own schedule and put what comes into the market store; nothing here waits or sleeps.

    Clock → due feeds → feed.fetch → market store (one transaction a feed) → feed_health (one transaction)

In that order, so that a process killed in between asks again for what it has: the store knows it already.
A feed that fails is written down and asked again later; it never stops the others. Only the store's and the
ledger's own failures come out of here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from zlib import crc32

import numpy as np

from feeds.base import Fetched, LiveFeed
from trader.clock import Calendar, Clock
from trader.errors import BadBar, BadNews, ConfigError, SourceError, TimeError, TraderError
from trader.events import to_us
from trader.feed_health import Health, PollResult
from trader.store import Added, FileSource, MarketStore

FIRST_WAIT_S = 60.0  # after a first failure; doubled with each further one
MOST_WAIT_S = 3_600.0  # or the feed's own schedule, if that is longer
MOST_RETRY_AFTER_S = 6 * 3_600.0  # a source that asks for more is asked again after this
AFTER_CLOSE_S = 30.0  # from a session's close to the first look for its bar
BAR_PATIENCE_S = 2 * 3_600.0  # so long after a close a missing bar is looked for every minute
_JITTER = 0.25  # of a wait after a failure, either way: feeds that fail together do not come back together


class Poller:
    """Polls feeds when they are due, by the clock; their schedule is in ``health``, so a restart does not lose it.

    seed: of the jitter, which is drawn from (seed, feed, failures in a row) and so is the same in every process.
    Raises ConfigError where two feeds have one name.
    """

    def __init__(
        self, feeds: Sequence[LiveFeed], health: Health, store: MarketStore, clock: Clock, *, seed: int = 0
    ) -> None:
        self._feeds = {feed.name: feed for feed in feeds}
        if len(self._feeds) != len(feeds):
            raise ConfigError("two feeds of one name", got=", ".join(feed.name for feed in feeds))
        self._health, self._store, self._clock, self._seed = health, store, clock, seed
        self._calendar = Calendar()

    def due(self) -> list[str]:
        """Return the feeds that are to be asked now, in the order of the config."""
        now = self._clock.now()
        return [name for name in self._feeds if self._due_at(name, now) <= now]

    def next_due(self) -> datetime | None:
        """Return when the next feed is due, which may be past; None where there is no feed."""
        now = self._clock.now()
        return min((self._due_at(name, now) for name in self._feeds), default=None)

    def poll_due(self) -> list[PollResult]:
        """Ask every feed that is due, one after the other; raise StoreError where the store or ledger fails."""
        return [self.poll(name) for name in self.due()]

    def poll(self, name: str) -> PollResult:
        """Ask one feed now, due or not, store what it brings, and write down how it went; raise as ``poll_due``."""
        if name not in self._feeds:
            raise ConfigError("no such feed", got=name, expected=", ".join(self._feeds) or "a section [feeds.NAME]")
        feed, at = self._feeds[name], self._clock.now()
        outcome = self._ask(feed, at)
        if isinstance(outcome, Exception):
            result = self._failed(feed, at, outcome)
        else:
            fetched, added = outcome
            done = self._clock.now()
            result = PollResult(
                feed=name, kind=feed.kind, address=feed.address, at=at, done=done,
                next_due=self._after_success(feed, done), new=added.new, revised=added.revised,
                known=added.known_already, rejected=added.rejected, skewed=fetched.skewed,
                not_modified=fetched.not_modified, server_ahead_seconds=fetched.server_ahead_seconds,
                state=fetched.state,
            )  # fmt: skip
        self._health.record(result)
        return result

    def _ask(self, feed: LiveFeed, at: datetime) -> tuple[Fetched, Added] | Exception:
        """Return the answer with what became of it, or the feed's failure; the store's failures are raised."""
        try:
            fetched = feed.fetch(self._health.state(feed), self._clock)
        except Exception as error:  # a feed may be the user's own, and so may be its mistakes: they are written down
            return error
        if not isinstance(fetched, Fetched):
            return SourceError("the feed did not return a Fetched", where=feed.name, got=type(fetched).__name__)
        try:
            return fetched, self._keep(feed, _received(fetched, at))
        except (BadBar, BadNews, TimeError) as error:  # of what came, not of the store
            return error

    def _keep(self, feed: LiveFeed, fetched: Fetched) -> Added:
        if feed.kind == "prices":
            return self._store.add_bars(fetched.bars, source=feed.name) if fetched.bars else Added()
        if fetched.news is None:
            return Added()
        return self._store.add_news(feed.into, [fetched.news], source=FileSource(name=feed.name))

    def _failed(self, feed: LiveFeed, at: datetime, error: Exception) -> PollResult:
        done, before = self._clock.now(), self._health.row(feed)
        wait = self._wait(feed, before.failures_in_a_row + 1 if before else 1)
        asked = min(getattr(error, "retry_after_seconds", 0.0), MOST_RETRY_AFTER_S)
        said = str(error) if isinstance(error, TraderError) else f"{type(error).__name__}: {error}"
        return PollResult(
            feed=feed.name, kind=feed.kind, address=feed.address, at=at, done=done,
            next_due=done + timedelta(seconds=max(wait, asked)), error=" ".join(said.split())[:400] or "failed",
        )  # fmt: skip

    def _wait(self, feed: LiveFeed, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        first, most = min(FIRST_WAIT_S, feed.every_seconds), max(MOST_WAIT_S, feed.every_seconds)
        rng = np.random.default_rng([self._seed, crc32(feed.name.encode()), failures])
        return float(min(first * 2.0 ** min(failures - 1, 30), most) * rng.uniform(1 - _JITTER, 1 + _JITTER))

    def _after_success(self, feed: LiveFeed, done: datetime) -> datetime:
        """Return when to ask next: by the schedule; for prices also at each close, and again until its bar is there."""
        regular = done + timedelta(seconds=feed.every_seconds)
        if feed.kind != "prices":
            return regular
        today = done.astimezone(timezone.utc).date()
        days = self._calendar.sessions(today - timedelta(days=10), today + timedelta(days=10))
        closes = {day: self._calendar.cutoff(day) for day in days}
        looks = (close + timedelta(seconds=AFTER_CLOSE_S) for close in closes.values())
        regular = min([regular, *(look for look in looks if look > done)])
        closed: list[date] = [day for day in days if closes[day] <= done]
        fresh = bool(closed) and done - closes[closed[-1]] < timedelta(seconds=BAR_PATIENCE_S)
        if fresh and self._store.as_of(done).bar(feed.into, closed[-1]) is None:
            return min(regular, done + timedelta(seconds=FIRST_WAIT_S))
        return regular

    def _due_at(self, name: str, now: datetime) -> datetime:
        row = self._health.row(self._feeds[name])
        # An attempt in the future: the clock was set back, and a schedule of that other time would wait for hours.
        if row is None or row.last_attempt > now:
            return now
        return row.next_due


def _received(fetched: Fetched, at: datetime) -> Fetched:
    """Lift every known_at to the instant at which the feed was asked, where a feed claims an earlier one.

    That holds whatever a user's own feed says: nothing received now was known before.
    """
    bars = [bar if bar.known_at >= at else replace(bar, known_at=at) for bar in fetched.bars]
    news = fetched.news
    if news is not None and (news.news.known_at < to_us(at)).any():
        lifted = np.maximum(news.news.known_at, to_us(at))
        news = replace(news, news=replace(news.news, known_at=lifted))
    return replace(fetched, bars=bars, news=news)
