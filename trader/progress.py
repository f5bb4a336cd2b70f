"""Show how far a run is: one bar a stage on a terminal, plain lines elsewhere; always on stderr.

The engine measures its stages with ``Stages`` and reports into a ``Watch``; tests and callers without a screen use
``silent``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
import sys
import time
from typing import Protocol


class Step(Protocol):
    """Takes how far a stage is: steps done, steps in all, and where."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Take one report."""
        ...


class Watch(Protocol):
    """Somebody who is told: stage name, steps done, steps in all (0 unknown), and where (a date, a fold).

    A stage begins with 0 of 0 and nothing said, and ends with 0 of 0 and its seconds in words.
    """

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Take one report."""
        ...


def silent(stage: str, done: int, total: int, detail: str = "") -> None:
    """Ignore a report."""


class Stages:
    """Seconds of each stage, in the order in which they began; a stage entered again adds up."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[Step]:
        """Time a stage; yields the function that takes its (done, total, detail)."""
        started = time.perf_counter()
        self._watch(name, 0, 0)
        try:
            yield partial(self._watch, name)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self._watch(name, 0, 0, f"{self.seconds[name]:.1f} s")


@contextmanager
def watching() -> Iterator[Watch]:
    """Yield a watch for this process's stderr: bars where it is a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def watch(stage: str, done: int, total: int, detail: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None, detail="")
            if not total and detail:
                bars.update(
                    tasks[stage], total=(known := bars.tasks[tasks[stage]].total or 1), completed=known, detail=""
                )
            elif total:
                bars.update(tasks[stage], total=total, completed=done, detail=detail)

        yield watch


class _PlainLines:
    """One line when a stage ends, and one about every ten seconds within it."""

    def __init__(self) -> None:
        self._said_at = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        now = time.perf_counter()
        if not total and detail:
            print(f"{stage}: done in {detail}", file=sys.stderr, flush=True)
        elif total and now - self._said_at >= 10:
            print(f"{stage}: {done:,} of {total:,} {detail}".rstrip(), file=sys.stderr, flush=True)
        else:
            return
        self._said_at = now
