"""The hash of a module's own source and of all that it imports of ours, so that changed code is never mistaken.

A trained model, and a figure measured with it, belong to the code that made them; what they do not import may change
without touching them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What every model gets from outside its own imports: the contract that its inputs follow.
ALWAYS = ("models.base",)


@lru_cache(maxsize=64)
def source_hash(module: str, packages: tuple[str, ...] = ("models",)) -> str:
    """Return 16 hex digits of a module (as imported: "models.finin") and of the modules of ``packages`` it reaches."""
    digest = hashlib.sha256()
    for name in sorted(reached(module, packages)):
        digest.update(name.encode() + b"\0" + _path(name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def reached(module: str, packages: tuple[str, ...] = ("models",)) -> set[str]:
    """Return the module and every module of ``packages`` that it imports, directly or through others."""
    found: set[str] = set()
    waiting = [module, *ALWAYS]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        tree = ast.parse(_path(name).read_text(encoding="utf-8"))
        waiting.extend(one for one in _imported(tree) if one.partition(".")[0] in packages and _path(one).is_file())
    return found


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield the modules imported anywhere in the tree, in functions too; for ``from a import b`` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
