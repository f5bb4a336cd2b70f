"""A model's code is its own module and what that imports, and nothing else."""

from pathlib import Path

import pytest

from trader import sources


def test_a_model_reaches_what_it_imports_and_the_contract_of_its_inputs() -> None:
    found = sources.reached("models.baselines")
    assert {"models.baselines", "models.base", "models.fitting"} <= found
    assert "models.text" not in found and not any(name.startswith("trader") for name in found)


def test_an_import_inside_a_function_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package(tmp_path, "models", base="", one="def f():\n    from models import two\n", two="")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert sources.reached("models.one") == {"models.base", "models.one", "models.two"}


def test_the_hash_changes_with_what_is_imported_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def hashed() -> str:
        sources.source_hash.cache_clear()
        return sources.source_hash("models.one")

    _package(tmp_path, "models", base="", one="import models.two\n", two="x = 1\n", three="y = 1\n")
    before = hashed()
    (tmp_path / "models" / "three.py").write_text("y = 2\n")
    assert hashed() == before
    (tmp_path / "models" / "two.py").write_text("x = 2\n")
    assert hashed() != before
    sources.source_hash.cache_clear()


def _package(folder: Path, name: str, **modules: str) -> None:
    (folder / name).mkdir()
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
