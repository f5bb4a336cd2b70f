"""A full disk, a folder that may not be written, a lock, a damaged file: a clear line or a wait; nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
import os
from pathlib import Path
import shutil
import sqlite3
import subprocess
import sys
from threading import Timer
import time

import pytest

from tests import builders
from tests.test_paper import TINY, an_account, ledger_hash, same_as_its_backtest, world
from tests.test_paper import replayed as trained_replay
from trader.account import Accounts
from trader.clock import Clock, SimulatedClock
from trader.errors import StoreError
from trader.ledger import Ledger
from trader.outcome import Home
from trader.running import World, replay
from trader.world import told_by

DAYS = builders.sessions(90)
LAST = DAYS[80]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with stored signals and an account that has decided nothing; and the hash of one left in peace."""
    home = builders.a_home(tmp_path_factory.mktemp("faults"), len(DAYS))
    builders.signals_run(home, DAYS)
    an_account(home, first=DAYS[0], signals="1", model=TINY)
    peace = Path(shutil.copytree(home, tmp_path_factory.mktemp("peace") / "home"))
    assert replayed(peace) == 81
    return home, ledger_hash(peace, 2)


@pytest.fixture
def home(undisturbed: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed[0], tmp_path / "home"))


@pytest.fixture
def peace(undisturbed: tuple[Path, str]) -> str:
    return undisturbed[1]


def replayed(home: Path, *, locked_seconds: float = 120.0) -> int:
    def around(clock: Clock) -> World:
        return world(clock, tell=told_by(clock), locked_seconds=locked_seconds)

    return replay(Home(home), "acct", None, LAST, around)


def replay_command(home: Path, before: str = "", *, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``paper replay`` in a process of its own, after some lines of Python."""
    code = f"import resource, sys\nfrom trader.cli import main\n{before}\nsys.exit(main(sys.argv[1:]))"
    words = ["paper", "replay", "acct", "--to", str(LAST), "--home", str(home), "--config", os.devnull]
    command = [*under, sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)


def decided(home: Path) -> int:
    """Count the account's decisions, and see that the ledger is whole: no row without the others of its session."""
    with sqlite3.connect(home / "ledger.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        counts = [
            connection.execute(f"SELECT count(*) FROM {table} WHERE run = 2").fetchone()[0]
            for table in ("decisions", "signals", "equity")
        ]
    assert len(set(counts)) == 1
    return int(counts[0])


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("trader: ")
    return line


def goes_on(home: Path, peace: str) -> None:
    """Replay the rest; the account must not show that anything has happened to it."""
    replayed(home)
    assert decided(home) == 81
    assert ledger_hash(home, 2) == peace


# Full


def test_a_disk_that_takes_no_more_in_the_middle_is_one_line_and_nothing_is_lost(home: Path, peace: str) -> None:
    said = one_line(replay_command(home, "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))"))
    assert "check the disk and its free space; the sessions written before are kept" in said
    assert 0 < decided(home) < 81
    goes_on(home, peace)


def test_a_full_file_system_is_one_line_and_nothing_is_lost(home: Path, peace: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    kilobytes = sum(path.stat().st_size for path in home.iterdir()) // 1024 + 400
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    try:
        tight = Path(shutil.copytree(home, small / "home"))
        said = one_line(replay_command(tight))
        assert "free some disk space; the sessions written before are kept" in said or "check the disk" in said
        assert 0 < decided(tight) < 81
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        goes_on(tight, peace)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# Not to be written


@contextmanager
def read_only(*paths: Path) -> Iterator[None]:
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def obeying() -> tuple[str, ...]:
    """Return what makes a command obey permissions, also where root runs it."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root is stopped by no permission, and there is no setpriv to stop it")
    gone = "-dac_override,-dac_read_search,-fowner"
    return "setpriv", f"--bounding-set={gone}", f"--inh-caps={gone}"


@pytest.mark.parametrize("what", ["folder", "ledger", "both"])
def test_a_home_that_may_not_be_written_is_one_line_and_nothing_is_lost(home: Path, peace: str, what: str) -> None:
    locked = {"folder": [home], "ledger": [home / "ledger.db"], "both": [home, home / "ledger.db"]}[what]
    with read_only(*locked):
        said = one_line(replay_command(home, under=obeying()))
    assert "ledger.db" in said
    assert "may be written" in said or "make the file and its folder writable" in said
    assert decided(home) == 0
    goes_on(home, peace)


TRAINING = """
import sys
from datetime import date
from pathlib import Path
from tests.test_paper import replayed
print(replayed(Path(sys.argv[1]), last=date.fromisoformat(sys.argv[2])))
"""


def test_a_models_folder_that_may_not_be_written_costs_the_new_model_and_says_so(tmp_path: Path) -> None:
    home, days = builders.a_home(tmp_path), builders.sessions(140)
    an_account(home, model=TINY)
    assert trained_replay(home, last=days[119]) == 4
    with read_only(home / "models"):
        command = [*obeying(), sys.executable, "-c", TRAINING, str(home), str(days[132])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout == "13\n", "no decision was held up"
    assert trained_replay(home) == 6
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        accounts = Accounts(ledger, SimulatedClock(builders.NOW))
        failed = [event for event in accounts.events(accounts.get("acct")) if event.kind == "training failed"]
    assert len(failed) == 2
    assert "the model cannot be written (got Permission denied)" in failed[0].detail
    assert failed[1].detail.endswith("the model in use stays")
    assert same_as_its_backtest(home)


# Locked


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the file's write lock, until it is told to let go."""
    code = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\nc.execute('BEGIN EXCLUSIVE')\n"
    command = [sys.executable, "-c", code + "print('held', flush=True)\nsys.stdin.readline()", path]
    other = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    try:
        yield other
    finally:
        if other.poll() is None:
            other.communicate("\n", timeout=60)


def test_a_ledger_locked_for_longer_than_is_waited_is_one_line_and_nothing_is_lost(home: Path, peace: str) -> None:
    started = time.monotonic()
    with locked(home / "ledger.db"), pytest.raises(StoreError) as caught:
        replayed(home, locked_seconds=0.3)
    assert time.monotonic() - started >= 0.3
    assert str(caught.value).endswith(
        "database is locked; wait for the other program that writes to it, then run again"
    )
    assert "\n" not in str(caught.value)
    assert decided(home) == 0
    goes_on(home, peace)


def test_a_ledger_that_is_let_go_in_time_was_waited_for(home: Path, peace: str) -> None:
    with locked(home / "ledger.db") as other:
        assert other.stdin
        Timer(1.0, lambda: (other.stdin.write("\n"), other.stdin.flush())).start()
        started = time.monotonic()
        assert replayed(home) == 81
        assert time.monotonic() - started >= 0.9
    assert ledger_hash(home, 2) == peace


def test_a_ledger_that_is_locked_in_the_middle_loses_nothing(home: Path, peace: str) -> None:
    """The lock comes between two decisions, after which nothing can be written, the lease's end neither."""
    seen = 0

    def lock_at_the_tenth(event: str, **facts: object) -> None:
        nonlocal seen
        seen += event == "decided"
        if seen == 10:
            holding.enter_context(locked(home / "ledger.db"))
            seen += 1

    with ExitStack() as holding:

        def around(clock: Clock) -> World:
            return world(clock, log=lock_at_the_tenth, locked_seconds=0.2)

        with pytest.raises(StoreError, match="database is locked; wait for the other program"):
            replay(Home(home), "acct", None, LAST, around)
    assert decided(home) == 10
    goes_on(home, peace)


def test_a_market_store_that_somebody_writes_into_holds_nothing_up(home: Path, peace: str) -> None:
    with locked(home / "market.db"):
        assert replayed(home, locked_seconds=0.3) == 81
    assert ledger_hash(home, 2) == peace


# Damaged


@pytest.mark.parametrize(
    ("name", "said"),
    [("market.db", "the database is damaged; restore it from a copy"), ("ledger.db", "malformed; move the file away")],
)
def test_a_damaged_file_is_one_line_and_its_copy_goes_on(home: Path, peace: str, name: str, said: str) -> None:
    half = builders.sessions(1)[0], DAYS[40]

    def around(clock: Clock) -> World:
        return world(clock, locked_seconds=0.3)

    assert replay(Home(home), "acct", None, half[1], around) == 41
    for leftover in home.glob("*.db-*"):
        leftover.unlink()  # closed and checkpointed: nothing is in them
    whole = (home / name).read_bytes()
    (home / name).write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    assert said in one_line(replay_command(home))
    for leftover in home.glob("*.db-*"):
        leftover.unlink()
    (home / name).write_bytes(whole)
    assert decided(home) == 41
    goes_on(home, peace)


def test_the_faults_would_be_seen(home: Path, peace: str) -> None:
    """An account that leaves out its last session has another hash, so the comparisons above can fail."""
    replay(Home(home), "acct", None, DAYS[79], world)
    assert ledger_hash(home, 2) != peace
    with Ledger.open(home / "ledger.db", read_only=True) as ledger:
        assert len(ledger.fills(2)) > 20
