"""Check paper trading as a whole: parity, every model, kills, sixteen years of faults in one process, latency.

    python -m benchmarks.paper                                        everything, 2003–2018; hours
    python -m benchmarks.paper --parts parity,models --from 2016 --to 2016
    python -m benchmarks.paper --parts kill --kills 500 --training-kills 20
    python -m benchmarks.paper --parts soak,latency --home DIR        keep what was written, in a new folder

The parts:
    parity    FININ and logistic regression × four strategies on the S&P 500 and the wire: an account, session by
              session, that trains its own models in a home without any, beside the backtest. Its other strategies
              trade its stored signals. The hashes of signals, orders, fills and equity must be equal
    models    every other model, and a challenge, over 300 sessions with at least three retrainings
    kill      services killed at random instants of 250 sessions, 50 kills an account; then some with real training
    soak      one process, stored signals, a fault every twenty sessions; ``benchmarks.soak`` lists them
    latency   from the close to the order row with 700 headlines never read before (Reuters' where TRADER_TEST_DATA is)

Each part ends with a line that says whether its promise holds; the exit code is 1 where one does not. Needs psutil.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
import json
import os
from pathlib import Path
import sqlite3
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.accounts import Asked, copied, ledger_hash, opened, replayed, say, timed, trainings, verdict
from benchmarks.latency import latency
from benchmarks.soak import soak
from trader import engine, running
from trader.account import Account
from trader.clock import Calendar, SimulatedClock, WallClock
from trader.config import Config, day_of
from trader.outcome import Home, Outcome
from trader.parts import STRATEGIES
from trader.running import World

OTHERS = ("boosting", "naf", "sentiments", "ensemble", "fpt", "pen", "ridge", "same_day_logistic")
KILLED, PER_ACCOUNT = 250, 50  # sessions that are replayed under kills, and kills of one such replay

# Parity


def compared(
    asked: Asked, name: str, config: Config, span: tuple[date, date], signals: int | None = None
) -> tuple[Account, Outcome, list[str]]:
    """Run a backtest and an account of the same settings; return both and what is not the same."""
    backtests, accounts = asked.home / "backtest", asked.home / "account"
    made, alone = timed(lambda: engine.backtest(config, backtests, *span))
    copied(backtests, accounts)
    account = opened(accounts, name, config, span[0], signals)
    decided, seconds = timed(lambda: replayed(accounts, name, span[1]))
    mine = ledger_hash(accounts, account.run)
    same = mine == made.ledger_hash
    trained = f"{trainings(accounts, name)} trained" if signals is None else "stored signals"
    models = len({signal.model_id for signal in made.forecasts.signals})
    say(
        f"  {name:<24}{decided:>6,} sessions, {models:>3} models, {trained:<15}backtest {alone:7.1f} s, account "
        f"{seconds:7.1f} s, {mine[:12]} {'equal' if same else f'DIFFERS from {made.ledger_hash[:12]}'}"
    )
    return account, made, [] if same else [f"{name}: account run {account.run} is not backtest run {made.run}"]


def parity(asked: Asked) -> bool:
    troubles: list[str] = []
    for model in ("finin", "logistic"):
        signals: int | None = None
        for strategy in STRATEGIES:
            config = asked.config({"model": model, "strategy": strategy})
            account, _, found = compared(asked, f"{model}-{strategy}", config, (asked.first, asked.last), signals)
            troubles += found
            signals = signals or account.run
    return verdict("parity", "every account writes the rows of its backtest", troubles)


def models(asked: Asked) -> bool:
    troubles: list[str] = []
    days = Calendar().sessions(asked.first, asked.last)[-300:]
    chosen: list[tuple[str, dict[str, Any], dict[str, Any]]] = [(name, {"model": name}, {}) for name in OTHERS]
    chosen.append(("challenge", {"model": "logistic"}, {"retrain": {"adopt": "challenge"}}))
    for name, run, sections in chosen:
        _, _, found = compared(asked, name, asked.config(run, **sections), (days[0], days[-1]))
        trained = trainings(asked.home / "account", name)
        troubles += found + (
            [] if trained > 3 else [f"{name}: {trained} trainings, and three retrainings are asked for"]
        )
    return verdict("models", f"every other model is its backtest over {len(days)} sessions", troubles)


# Kills


def harness(home: Path, account: str, last: date, **how: object) -> dict[str, Any]:
    """Kill an account's services until it is through; return what tests.kill_harness says of it."""
    words = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.kill_harness", str(home), account, str(last), *words]
    # A service killed while it trains leaves semaphores, which Python's tracker removes, and would say so each time.
    quiet = os.environ | {"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=quiet)
    if done.returncode not in (0, 3):  # 3: through, and with torch
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return dict(json.loads(done.stdout))


def survived(home: Path, account: Account, name: str, expected: str, said: dict[str, Any]) -> list[str]:
    """Start an account once more, and return what is not as after an undisturbed run."""
    clock = SimulatedClock(WallClock().now())
    with running.running(Home(home), name, World(clock=clock, patient=True)):
        pass
    with sqlite3.connect(home / "ledger.db") as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        whole &= not connection.execute("PRAGMA foreign_key_check").fetchall()
    left = [path.name for path in home.rglob("*") if path.name.startswith((".part-", "tmp")) or ".tmp" in path.name]
    same = ledger_hash(home, account.run) == expected
    say(
        f"  {name:<14}{said['killed']:>4} kills, {said['advanced']:>4} after a decision, {said['lives']:>4} lives, "
        f"rows {'equal' if same else 'DIFFER'}, integrity {'ok' if whole else 'BROKEN'}, left over: {left or 'nothing'}"
    )
    checks = {"its rows": same, "integrity": whole, f"files {left}": not left}
    return [f"{name}: {what}" for what, fine in checks.items() if not fine]


def kill(asked: Asked) -> bool:
    home, days = asked.home / "kill", Calendar().sessions(asked.first, asked.last)[-KILLED:]
    config, troubles, left = asked.config({"model": "logistic"}), list[str](), asked.kills
    made = engine.backtest(config, home, days[0], days[-1])
    undisturbed, seconds = timed(lambda: stored(home, "undisturbed", config, days, made.run))
    say(f"  undisturbed, {len(days)} sessions of stored signals: {seconds:.1f} s, {undisturbed[:12]}")
    while left > 0:
        name, times = f"killed-{left}", min(left, PER_ACCOUNT)
        account = opened(home, name, config, days[0], made.run)
        said = harness(home, name, days[-1], times=times, most=7, seed=asked.seed + left)
        troubles += survived(home, account, name, undisturbed, said)
        troubles += [f"{name}: {said['killed']} kills of {times}"] if said["killed"] != times else []
        troubles += [f"{name}: torch was loaded"] if said["torch"] else []
        left -= times
    half = asked.training_kills // 2
    for kind, times, most in (("training", asked.training_kills - half, 4_000), ("instant", half, 20)):
        number = 0
        while times > 0:  # random instants may lie so far apart that one account is through before the last kill
            number += 1
            name, other = f"{kind}-{number}", asked.home / f"kill-{kind}-{number}"
            copied(home, other)
            account = opened(other, name, config, days[0])
            said = harness(other, name, days[-1], kind=kind, times=times, most=most, seed=asked.seed + number)
            troubles += survived(other, account, name, made.ledger_hash, said)
            troubles += [] if said["killed"] else [f"{name}: never killed"]
            say(f"  {name}: {trainings(other, name)} models trained")
            times = times - said["killed"] if said["killed"] else 0
    return verdict("kill", "every killed account ends with the rows of an undisturbed one", troubles)


def stored(home: Path, name: str, config: Config, days: Sequence[date], run: int) -> str:
    """Replay an account of stored signals; return its hash."""
    account = opened(home, name, config, days[0], run)
    replayed(home, name, days[-1])
    return ledger_hash(home, account.run)


PARTS: dict[str, Callable[[Asked], bool]] = {
    "parity": parity, "models": models, "kill": kill, "soak": soak, "latency": latency,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--home", type=Path, help="keep everything in this new folder (default: deleted afterwards)")
    parser.add_argument("--from", dest="first", default="2003")
    parser.add_argument("--to", dest="last", default="2018")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that train a backtest's models; 0: one a core"
    )
    parser.add_argument("--kills", type=int, default=500, help="of services that trade stored signals")
    parser.add_argument("--training-kills", type=int, default=20, help="of services that train")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen = options.parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no such part: {unknown[0]}; there are {', '.join(PARTS)}")
    if options.home and options.home.exists() and any(options.home.iterdir()):
        parser.error(f"{options.home} is not empty: what it holds would be taken for this run's")
    with tempfile.TemporaryDirectory() as temporary:
        asked = Asked(
            home=options.home or Path(temporary),
            first=day_of(options.first, end=False),
            last=day_of(options.last, end=True),
            workers=options.workers,
            kills=options.kills,
            training_kills=options.training_kills,
            seed=options.seed,
        )
        held = [_measured(part, asked) for part in chosen]
    sys.exit(0 if all(held) else 1)


def _measured(part: str, asked: Asked) -> bool:
    say(f"{part}:")
    holds, seconds = timed(lambda: PARTS[part](asked))
    say(f"  {part} took {seconds:.0f} s\n")
    return bool(holds)


if __name__ == "__main__":
    main()
