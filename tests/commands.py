"""Commands of the trader as a user types them, in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trader import cli

Say = Callable[..., tuple[int, str, str]]


def commands(capsys: pytest.CaptureFixture[str], home: str = "home") -> Say:
    """Return what runs one command in a home and gives its exit code, output and errors."""

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([*(str(word) for word in words), "--home", home])
        return code, *capsys.readouterr()

    return command
