"""Tell people what a service does: a thread of its own takes the outbox to the channels, at least once each.

``trader.outbox`` keeps what there is to tell and what became of it, ``trader.channels`` says what a channel is. The
service only ever writes rows; whatever a receiver does, hang, refuse or vanish, happens in this thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
import sqlite3
from threading import Condition, Event, Thread
from typing import Any

from trader import outbox
from trader.channels import Channel, Failure, Lines
from trader.clock import Clock
from trader.config import build
from trader.errors import ConfigError
from trader.events import to_us
from trader.ledger_schema import connect, store_errors
from trader.logs import Log
from trader.mail import Email, EmailSettings
from trader.outbox import Notification, Outcome
from trader.webhook import Webhook, WebhookSettings

FIRST_WAIT, LONGEST_BACK_OFF = 2.0, 600.0  # seconds; the wait doubles from the one to the other
LASTING_WAIT = 3600.0  # seconds, after a refusal that will hardly change; also the longest Retry-After that we obey
_POLL = 2.0  # seconds between two looks into the outbox, if nobody wakes us
_BUSY_MS = 2000  # how long we wait for the ledger's lock; whoever trades goes first
_LONGEST = timedelta(seconds=LASTING_WAIT)


def open_channels(sections: Mapping[str, Mapping[str, Any]], names: Iterable[str] | None = None) -> list[Channel]:
    """Make the channels of the config's ``[notify.NAME]`` sections, or of some of them, with their secrets.

    Raises ConfigError for a section that cannot be used, a variable that is not set, and a name that is not there.
    """
    chosen = list(sections) if names is None else list(names)
    for name in chosen:
        if name not in sections:
            known = ", ".join(sections) or "none"
            do = "add its section to config.toml"
            raise ConfigError("no such channel", where=f"[notify.{name}]", expected=f"one of: {known}", do=do)
    return [_opened(name, sections[name]) for name in chosen]


def check_channels(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for a section that cannot be used; secrets may still be missing."""
    for name, section in sections.items():
        _settings(name, section)


def _opened(name: str, section: Mapping[str, Any]) -> Channel:
    found = _settings(name, section)
    return Webhook(name, found) if isinstance(found, WebhookSettings) else Email(name, found)


def _settings(name: str, section: Mapping[str, Any]) -> WebhookSettings | EmailSettings:
    where, kind = f"[notify.{name}]", section.get("kind")
    if kind == "webhook":
        return build(WebhookSettings, section, where)
    if kind == "email":
        return build(EmailSettings, section, where)
    raise ConfigError("what kind of channel?", where=where, got=kind, expected='kind = "webhook" or "email"')


class Notifier:
    """Delivers an account's notifications from its ledger in a daemon thread; a context manager that starts and closes.

    At least once: a notification is marked after it was taken, so a kill in between sends it again with the same
    event id. A channel that fails is left alone for a while that doubles; a notification that is refused for its own
    sake waits longer and lets others pass. What is older than the channel's give_up_days is given up, which is
    written beside it and logged. Nothing here raises into the caller or waits for a receiver.
    """

    def __init__(
        self,
        ledger: Path,
        channels: Sequence[Channel],
        *,
        account: str,
        clock: Clock,
        log: Log,
        poll_seconds: float = _POLL,
    ) -> None:
        self._ledger, self._channels, self._account = ledger, channels, account
        self._clock, self._log, self._poll = clock, log.bound(account=account), poll_seconds
        self._lines, self._stopping = Lines(), Event()
        self._state = Condition()
        self._wanted, self._seen, self._waiting = 0, -1, 0  # looks asked for, looks made, what the last one left
        self._thread = Thread(target=self._run, name="notifier", daemon=True)
        # The thread's own:
        self._unwritten: list[Outcome] = []
        self._failures: dict[str, int] = {}  # in a row, by channel
        self._quiet_until: dict[str, datetime] = {}

    def __enter__(self) -> Notifier:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to deliver, what is left of earlier runs included; with no channels there is nothing to begin."""
        if self._channels:
            self._thread.start()

    def wake(self) -> None:
        """Say that there may be something new; it would be found after poll_seconds anyway."""
        with self._state:
            self._wanted += 1
            self._state.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until all that was enqueued is delivered or given up, so long at most; return whether it is."""
        if not self._channels:
            return True
        self.wake()
        with self._state:
            wanted = self._wanted
            return self._state.wait_for(lambda: self._seen >= wanted and not self._waiting, seconds)

    def close(self, seconds: float = 5.0) -> bool:
        """Stop, cutting an attempt that is under way; return False where the thread did not end in time.

        That can be while a host's name is looked up, or the ledger is locked; the process may end all the same.
        """
        self._stopping.set()
        self.wake()
        self._lines.cut()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with store_errors(self._ledger), closing(connect(self._ledger)) as db:
                    db.conn.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
                    outbox.prepare(db.conn)
                    while not self._stopping.is_set():
                        self._look(db.conn)
                        failures = 0
            except Exception as error:  # whatever it is, trading goes on, and so do we
                failures += 1
                self._log.event("notifier_failed", level="error", error=f"{type(error).__name__}: {error}")
                self._stopping.wait(_doubled(failures))

    def _look(self, connection: sqlite3.Connection) -> None:
        """Deliver what is due, channel by channel in turn, until nothing is; then wait to be woken."""
        with self._state:
            wanted = self._wanted
        self._write(connection)
        busy = True
        while busy and not self._stopping.is_set():
            busy = sum(self._deliver_one(connection, channel) for channel in self._channels) > 0  # each has its turn
        left = sum(outbox.waiting(connection, self._account, one.name, one.events) for one in self._channels)
        with self._state:
            self._seen, self._waiting = wanted, left
            self._state.notify_all()
            self._state.wait_for(lambda: self._wanted > wanted, self._poll)

    def _deliver_one(self, connection: sqlite3.Connection, channel: Channel) -> bool:
        """Try the channel's oldest notification that is due; return whether there was one."""
        now, name = self._clock.now(), channel.name
        self._give_up(connection, channel, now)
        quiet = self._quiet_until.get(name)
        if self._stopping.is_set() or (quiet is not None and now < quiet <= now + _LONGEST):
            return False
        one = outbox.due(connection, self._account, name, channel.events, now, _LONGEST)
        if one is None:
            return False
        try:
            remark = channel.send(one, self._lines)
        except Failure as failure:
            self._failed(channel, one, failure)
        except Exception as error:  # a mistake of ours, which must not stop the others
            self._failed(channel, one, Failure(f"an unexpected {type(error).__name__}", lasting=True))
        else:
            self._delivered(channel, one, remark)
        self._write(connection)
        return True

    def _delivered(self, channel: Channel, one: Notification, remark: str) -> None:
        self._failures[channel.name] = 0
        attempts, at = one.attempts + 1, to_us(self._clock.now())
        told = {"remark": remark} if remark else {}
        self._say("notified", channel, one, attempts=attempts, level="warning" if remark else "info", **told)
        outcome = Outcome(id=one.id, channel=channel.name, attempts=attempts, delivered_at=at, error=remark or None)
        self._unwritten.append(outcome)

    def _failed(self, channel: Channel, one: Notification, failure: Failure) -> None:
        if self._lines.is_cut:  # our own doing: the next start sends it
            return
        now, attempts, name = self._clock.now(), one.attempts + 1, channel.name
        asked = min(failure.wait, LASTING_WAIT)
        if failure.lasting:
            wait = LASTING_WAIT
        else:
            # The channel rests for less than the notification does, so that another one comes first and none can
            # hold up the rest by what it does to the receiver.
            self._failures[name] = self._failures.get(name, 0) + 1
            rest = max(_doubled(self._failures[name]) / 2, asked)
            self._quiet_until[name] = now + timedelta(seconds=rest)
            wait = max(_doubled(attempts), asked)
        self._say("not_notified", channel, one, level="warning", attempts=attempts, error=failure.what, again_in=wait)
        again = to_us(now + timedelta(seconds=wait))
        outcome = Outcome(id=one.id, channel=name, attempts=attempts, next_try=again, error=failure.what)
        self._unwritten.append(outcome)

    def _give_up(self, connection: sqlite3.Connection, channel: Channel, now: datetime) -> None:
        oldest = now - timedelta(days=channel.give_up_days)
        for one in outbox.overdue(connection, self._account, channel.name, channel.events, oldest):
            last = f"the last: {one.error}" if one.error else "never tried"
            error = f"given up after {channel.give_up_days:g} days and {one.attempts} attempts, {last}"
            self._say("notification_given_up", channel, one, level="error", error=error)
            at = to_us(now)
            outcome = Outcome(id=one.id, channel=channel.name, attempts=one.attempts, given_up_at=at, error=error)
            self._unwritten.append(outcome)
        self._write(connection)

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write the outcomes that are not written yet; they stay where the ledger cannot be written now.

        Nothing more is sent before they are, so that a locked ledger repeats nothing.
        """
        if self._unwritten:
            outbox.record(connection, self._unwritten)
            self._unwritten = []

    def _say(self, event: str, channel: Channel, one: Notification, **facts: Any) -> None:
        self._log.event(event, session=one.session, channel=channel.name, kind=one.kind, id=one.event_id, **facts)


def _doubled(times: int) -> float:
    return float(min(FIRST_WAIT * 2.0 ** min(times - 1, 20), LONGEST_BACK_OFF))
