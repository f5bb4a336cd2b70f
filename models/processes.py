"""Worker processes that compute with one thread each and never outlive the process they work for.

A worker exits by itself when its parent is gone, even by SIGKILL. Ctrl-C is for the parent alone; leaving ``pool`` by
any exception cuts the jobs under way instead of waiting for them, so a job must be one that can be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
import multiprocessing
from multiprocessing.connection import Connection, wait
import os
import signal
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from trader.errors import ModelError

R = TypeVar("R")
J = TypeVar("J")
A = TypeVar("A")

# Read by torch, tokenizers and BLAS when they are first imported; a worker inherits them.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}

# In a worker: held while it waits for a job or sends a result. One that died there would leave half a message in the
# pipe, for which the parent would wait for ever.
_talking = Lock()


class _Pool(ProcessPoolExecutor):
    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Schedule a job that may be cut while it runs, and at no other moment; ``map`` comes here too."""
        return super().submit(_job, fn, *args, **kwargs)


@contextmanager
def pool(workers: int, start: Callable[..., None] | None = None, *args: Any) -> Iterator[ProcessPoolExecutor]:
    """Open an executor of spawned processes; leaving it waits for the jobs, or by an exception cuts them.

    start, args: called once in each worker before its first job.
    Its futures raise BrokenProcessPool where a worker died.
    """
    context = multiprocessing.get_context("spawn")
    stop, hold = context.Pipe(duplex=False)
    with stop, hold, _environment():
        executor = _Pool(workers, mp_context=context, initializer=_start, initargs=(stop, start, args))
        try:
            yield executor
        except BaseException:
            hold.close()  # each worker sees the end of ``stop`` and leaves its job
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


class Background(Generic[R]):
    """One job in a process of its own, beside everything else; ``close`` it in any case."""

    def __init__(self, function: Callable[..., R], *args: Any) -> None:
        self._frame = ExitStack()
        self._future = self._frame.enter_context(pool(1)).submit(function, *args)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the job has ended, at most so long (None: without end); tell whether it has."""
        return bool(wait_for([self._future], timeout=seconds).done)

    def result(self) -> R:
        """Wait for what the job returned; raise what it raised, ModelError where its process died."""
        try:
            return self._future.result()
        except BrokenProcessPool as error:
            raise ModelError("the worker process died", do="look for lack of memory, or for who killed it") from error

    def close(self) -> None:
        """End the process, in the middle of its job if need be, and wait until it is gone."""
        with suppress(_Cut), self._frame:
            raise _Cut


class _Cut(BaseException):
    """Leaves a pool by an exception, which cuts its jobs."""


def as_completed(
    function: Callable[[J, A], R], jobs: Sequence[J], argument: Callable[[J], A], workers: int
) -> Generator[tuple[J, R], None, None]:
    """Yield (job, function(job, argument(job))) as the jobs get done, in any order; few ones stay in this process.

    argument: made in this process when a job is due and not before, for it may be large.
    Close the generator to cut the jobs under way. Raises ModelError where a worker died.
    """
    workers = min(workers, len(jobs))
    if workers < 2:
        for job in jobs:
            yield job, function(job, argument(job))
        return
    waiting = list(reversed(jobs))
    running: dict[Future[R], J] = {}
    try:
        with pool(workers) as processes:
            while waiting or running:
                while waiting and len(running) < 2 * workers:  # bounded: each in flight holds a copy of its argument
                    job = waiting.pop()
                    running[processes.submit(function, job, argument(job))] = job
                for future in wait_for(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise ModelError("a worker process died", do="look for lack of memory, or lower [compute] workers") from error


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(stop: Connection, start: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    _talking.acquire()
    Thread(target=_leave_with_parent, args=(stop,), daemon=True).start()
    if start is not None:
        start(*args)


def _leave_with_parent(stop: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel, stop])
    while not (wait([parent.sentinel], timeout=0) or _talking.acquire(timeout=0.1)):
        pass  # the parent lives and is being talked to
    os._exit(1)


def _job(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    _talking.release()
    try:
        return function(*args, **kwargs)
    finally:
        _talking.acquire()
