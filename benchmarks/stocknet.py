"""Backtest MSMF over the 88 stocks of StockNet, cold, and say where the time goes; promised: 2014–2015 in 10 minutes.

    python -m benchmarks.stocknet [--from 2014 --to 2015] [--home DIR]

Reads the StockNet files under TRADER_TEST_DATA. Cold: prices and tweets are imported, every tweet is embedded, every
model is trained. Settings are those of docs/universe.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
import subprocess
import sys
from tempfile import TemporaryDirectory
from time import perf_counter

SETTINGS = """\
[inputs]
headlines_a_day = 4       # of each stock, by hash of the text
[walkforward]
train = 200               # so much lies before 2014
validation = 40
step = 126
mode = "expanding"
[evaluation]
rivals = ["logistic"]
"""


def trader(*words: str) -> float:
    """Run one command of the trader, its lines to the terminal; return its seconds."""
    started = perf_counter()
    subprocess.run([sys.executable, "-m", "trader", *words], check=True)
    return perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="first", default="2014")
    parser.add_argument("--to", dest="last", default="2015")
    parser.add_argument("--home", help="use this folder and keep it (default: a new one, deleted afterwards)")
    asked = parser.parse_args()
    data = Path(os.environ["TRADER_TEST_DATA"]) / "stocknet"
    with TemporaryDirectory() as new:
        home, config, universe = asked.home or new, Path(new) / "config.toml", Path(new) / "stocknet.toml"
        config.write_text(SETTINGS, encoding="utf-8")
        common = ("--home", home, "--config", str(config))
        took = {
            "import the prices": trader("prices", "import", str(data / "price_raw.tar.gz"), "--skip-empty", *common),
            "import the tweets": trader(
                *("news", "import", str(data / "tweets_preprocessed.csv.gz"), "--preset", "stocknet"),
                *("--name", "stocknet", *common),
            ),
            "write the universe": trader("universe", str(universe), "--make", "--news", "stocknet", *common),
            "backtest": trader(
                *("backtest", "--market", str(universe), "--news", "stocknet", "--model", "msmf"),
                *("--from", asked.first, "--to", asked.last, *common),
            ),
        }
    for what, seconds in {**took, "all": sum(took.values())}.items():
        print(f"{what:<20}{seconds:7.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
