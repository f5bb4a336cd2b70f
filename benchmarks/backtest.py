"""Time a whole backtest, cold and warm, stage by stage, with its peak memory; on the wire or on imported news.

    python -m benchmarks.backtest                                   the README's run, 2003–2018, in an empty home
    python -m benchmarks.backtest --news reuters FILE… --from 2009 --to 2013 [--cap 200]    real headlines

Each run is a process of its own. Cold is an empty home; warm is the same command again. Peak memory is that of the
largest moment of the process and its children together, sampled five times a second. Needs psutil (extra ``dev``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import time

import psutil

ROOT = Path(__file__).resolve().parent.parent


def measured(command: list[str]) -> tuple[float, int, str]:
    """Run a command; return its seconds, its peak memory (bytes, unique to its processes) and what it printed."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _memory(watched))
            time.sleep(0.2)
        printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, peak, printed


def _memory(process: psutil.Process) -> int:
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().uss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="news files to import first")
    parser.add_argument("--news", default="wire")
    parser.add_argument("--from", dest="first", default="2003")
    parser.add_argument("--to", dest="last", default="2018")
    parser.add_argument("--model", default="finin")
    parser.add_argument("--cap", type=int, default=0, help="headlines a day; 0 keeps all")
    parser.add_argument("--home", help="keep everything here (default: a new folder, deleted afterwards)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(options.home or temporary)
        home.mkdir(parents=True, exist_ok=True)
        config = home / "benchmark.toml"
        config.write_text(f"[inputs]\nheadlines_a_day = {options.cap}\n")
        trader = [sys.executable, "-m", "trader"]
        shared = ["--home", str(home), "--config", str(config)]
        if options.files:
            seconds, peak, _ = measured([*trader, "news", "import", *options.files, "--name", options.news, *shared])
            print(f"import {seconds:.1f} s, peak {peak / 2**30:.2f} GiB")
        command = [*trader, "backtest", "--from", options.first, "--to", options.last, "--news", options.news]
        command += ["--model", options.model, "--json", *shared]
        for name in ("cold", "warm"):
            seconds, peak, printed = measured(command)
            report(name, seconds, peak, json.loads(printed))


def report(name: str, seconds: float, peak: int, found: dict[str, object]) -> None:
    stages = found["stages"]
    assert isinstance(stages, dict)
    bare = float(str(found["bare_backtrader_seconds"]))
    print(
        f"{name}: {seconds:.1f} s, peak {peak / 2**30:.2f} GiB, {found['sessions']} sessions, {found['folds']} models"
    )
    for stage, spent in stages.items():
        print(f"  {stage:<20}{spent:8.2f} s")
    print(f"  {'bare backtrader':<20}{bare:8.2f} s; the broker stage is {stages['broker'] / bare:.2f} times that")
    print(f"  ledger hash {found['ledger_hash']}")


if __name__ == "__main__":
    main()
