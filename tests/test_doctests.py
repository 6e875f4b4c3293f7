"""What docstrings and the README say is what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from mammoseg.datasets.phantom_files import write_exams

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"


def _modules_with_examples() -> list[str]:
    files = (f for f in sorted(SOURCE.rglob("*.py")) if ">>>" in f.read_text(encoding="utf-8"))
    return [".".join(f.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for f in files]


MODULES = _modules_with_examples()


def test_there_are_examples_in_the_public_modules() -> None:
    assert {"mammoseg.geometry", "mammoseg.config", "mammoseg.fusion", "mammoseg.datasets"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.attempted > 0, "examples that doctest does not see"
    assert result.failed == 0


def test_readme_with_the_installed_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python, on a phantom with a mass that stands for the reader's mammogram.dcm."""
    items = write_exams(tmp_path / "exam", 1, seed=2, format="dicom")
    with_masses = [item for item in items if item.annotation.masses]
    largest = max(with_masses, key=lambda item: max(m.box[2] - m.box[0] for m in item.annotation.masses))
    Path(largest.path).rename(tmp_path / "mammogram.dcm")
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(REPOSITORY / "README.md"), module_relative=False, encoding="utf-8")
    assert result.attempted >= 4
    assert result.failed == 0
