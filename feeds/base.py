"""What a live feed promises: how it is asked, what it hands back, and what has to be remembered until the next time.

    a source on the network → feed.fetch(state, clock) → Fetched → trader.polling → market store

A feed knows nothing of schedules, stores or health; trader.polling knows nothing of addresses or formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trader.clock import Clock
from trader.events import Bar, NewsRows

Kind = Literal["prices", "news"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedState:
    """What a source gave us to show it next time, so that it need not send again what we have; "" for nothing."""

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """One answer of a live feed; everything in it is known_at the instant of receipt or later.

    bars, news: what it brought; either may be empty.  state: to be shown at the next fetch.
    not_modified: the source said that there is nothing newer than ``state``.
    skewed: entries that claimed to be published after we had received them, and so were dated to the receipt.
    server_ahead_seconds: the source's clock minus ours; noted, never trusted; None where it does not tell.
    """

    bars: Sequence[Bar] = ()
    news: NewsRows | None = None
    state: FeedState = field(default_factory=FeedState)
    not_modified: bool = False
    skewed: int = 0
    server_ahead_seconds: float | None = None


Fetch = Callable[[FeedState, Clock], Fetched]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFeed:
    """A feed as it is polled.

    name: its own, in health, errors and the store's imports.  into: the symbol (prices) or the news set (news).
    address: what is asked, such as a URL; another address under the same name starts with a blank FeedState.
    every_seconds: from one answer to the next question.
    stale_after_seconds: without a success for so long, no decision is made.
    silent_after_seconds: likewise without anything new; 0 for no such limit.
    fetch: asks once; raises SourceError, or another TraderError, where that fails.
    """

    name: str
    kind: Kind
    into: str
    address: str
    every_seconds: float
    stale_after_seconds: float
    silent_after_seconds: float
    fetch: Fetch
