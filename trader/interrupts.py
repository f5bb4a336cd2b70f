"""Ctrl-C held back while a transaction is open.

Python may raise KeyboardInterrupt between any two steps, those of a clean-up included: one that meets the first line of
a transaction's ``__exit__`` would leave it open, and what is written next would be part of it and lost with it.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class HeldInterrupt:
    """SIGINT waits from ``hold`` to ``release``, which lets it through; other threads never meet it."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._came = False

    def hold(self) -> None:
        """Note a SIGINT from here on instead of answering it."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # the system's own ways, to die and to ignore, need no clean-up
            self._handler = handler
            signal.signal(signal.SIGINT, self._note)

    def release(self) -> None:
        """Give SIGINT back to whoever had it, with the one that came meanwhile."""
        if self._handler is None:
            return
        handler, self._handler = self._handler, None
        signal.signal(signal.SIGINT, handler)
        if self._came:
            self._came = False
            handler(signal.SIGINT, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
