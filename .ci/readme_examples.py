"""Run every ```bash block of a Markdown file in its order, one shell each, except those marked as set-up.

A block is marked by the line before it: <!-- tests --> (run by .ci/run itself) or <!-- not run: why -->. The venv's
commands are on the PATH already, so a block that makes one (<!-- backtest -->) runs without that part.
"""

from pathlib import Path
import re
import subprocess
import sys
import time

BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```bash\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SETUP = re.compile(r"^python3 -m venv .*?pip install [^&]*&&\s*", re.DOTALL)


def main(path: Path) -> int:
    """Run the blocks; return 0 if there were some and all of them ended well."""
    found = list(BLOCK.finditer(path.read_text(encoding="utf-8")))
    for block in found:
        mark, text = block["mark"] or "", SETUP.sub("", block["text"])
        if mark == "tests" or mark.startswith("not run"):
            continue
        print(f"$ {text}", flush=True)
        started = time.perf_counter()
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=False)
        print(f"-- exit {done.returncode} after {time.perf_counter() - started:.1f} s\n", flush=True)
        if done.returncode:
            return 1
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
