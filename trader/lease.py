"""One service an account: a lease in the ledger, with a token that grows whenever it changes hands.

A holder that is alive is left alone. One that died on this machine is known to be dead (its process, or its boot, is
gone) and is succeeded at once; one on another machine when its lease has run out. Whoever writes for the account checks
its token inside the same transaction, so a holder that was only asleep finds that it has lost the account.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
import json
import os
from pathlib import Path
import socket
from typing import TYPE_CHECKING, Any

from trader.clock import Clock
from trader.errors import StoreError
from trader.events import from_us, to_us
from trader.ledger import Ledger

if TYPE_CHECKING:
    import sqlite3

TABLE = """
CREATE TABLE IF NOT EXISTS leases (
  run INTEGER PRIMARY KEY REFERENCES accounts(run),
  holder TEXT NOT NULL,               -- JSON: host, boot, pid, started; '' when given back
  token INTEGER NOT NULL,             -- grows by one whenever somebody takes it
  taken_at INTEGER NOT NULL,          -- µs UTC, the wall's
  expires_at INTEGER NOT NULL         -- µs UTC, the wall's; renewed while the holder runs
) STRICT"""
SPAN = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, so named that no later one is taken for it: its machine, boot, number and start (clock ticks)."""

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Holder:
        """Name this process."""
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()))

    def is_dead(self) -> bool:
        """Tell whether the process is known to be gone; False where it runs on another machine."""
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return bool(self.started) and _started(self.pid) != self.started

    def is_alive(self) -> bool:
        """Tell whether the process is known to run, whatever its lease says; False where that cannot be known."""
        return self.host == socket.gethostname() and bool(self.started) and not self.is_dead()


class Lease:
    """The right to run one account, from ``take`` to ``give_back``. clock: the wall's, also in a replay."""

    def __init__(self, ledger: Ledger, run: int, name: str, clock: Clock) -> None:
        self._ledger, self._run, self._name, self._clock = ledger, run, name, clock
        self._token = 0
        if not ledger.has_table("leases"):
            with ledger.transaction() as connection:
                connection.execute(TABLE)

    def take(self) -> None:
        """Take the lease; raise StoreError, naming the holder, where somebody alive has it."""
        now = self._clock.now()
        with self._ledger.transaction() as connection:
            row = self._row(connection)
            if row is not None and row["holder"]:
                holder = Holder(**json.loads(row["holder"]))
                expires = from_us(row["expires_at"])
                # A training or a slow feed may keep a holder from renewing for longer than its lease lasts.
                if holder != Holder.this() and (holder.is_alive() or (not holder.is_dead() and now < expires)):
                    since = from_us(row["taken_at"])
                    dead = "" if holder.is_alive() else f"; if it is dead, its lease ends at {expires:%H:%M:%S} UTC"
                    raise StoreError(
                        "another service runs this account",
                        where=self._name,
                        got=f"process {holder.pid} on {holder.host} since {since:%Y-%m-%d %H:%M} UTC",
                        do=f"stop it first{dead}",
                    )
            self._token = 1 if row is None else row["token"] + 1
            mine = (self._run, json.dumps(asdict(Holder.this())), self._token, to_us(now), to_us(now + SPAN))
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)", mine)

    def renew(self) -> None:
        """Put the end of the lease off; raise StoreError where it has gone to somebody else."""
        with self._ledger.transaction() as connection:
            self.check(connection)
            sql = "UPDATE leases SET expires_at = ? WHERE run = ?"
            connection.execute(sql, (to_us(self._clock.now() + SPAN), self._run))

    def check(self, connection: sqlite3.Connection) -> None:
        """Raise StoreError unless the lease is still this one; called in every transaction that writes."""
        row = self._row(connection)
        if row is None or row["token"] != self._token or not row["holder"]:
            what = "this service has lost its account to another one"
            raise StoreError(what, where=self._name, do="let the other one run, or stop it and start this one again")

    def give_back(self) -> None:
        """Let the next service start at once; nothing where it was lost."""
        with self._ledger.transaction() as connection:
            sql = "UPDATE leases SET holder = '', expires_at = ? WHERE run = ? AND token = ?"
            connection.execute(sql, (to_us(self._clock.now()), self._run, self._token))

    def _row(self, connection: sqlite3.Connection) -> dict[str, Any] | None:
        sql = "SELECT holder, token, taken_at, expires_at FROM leases WHERE run = ?"
        row = connection.execute(sql, (self._run,)).fetchone()
        return None if row is None else dict(zip(("holder", "token", "taken_at", "expires_at"), row, strict=True))


def holder_of(ledger: Ledger, run: int) -> tuple[Holder, bool] | None:
    """Return who holds an account's lease and whether that process is known to be dead; None where nobody does."""
    rows = ledger.query("SELECT holder FROM leases WHERE run = ?", run) if ledger.has_table("leases") else []
    if not rows or not rows[0]["holder"]:
        return None
    holder = Holder(**json.loads(rows[0]["holder"]))
    return holder, holder.is_dead()


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""  # not Linux: a reboot is told by the process alone


def _started(pid: int) -> str:
    with suppress(OSError, IndexError):
        # After the name, which may hold spaces and brackets itself.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    return ""
