"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the training data; tests that need it are marked `data`."""
    folder = Path(os.environ.get("MAMMOSEG_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no training data at {folder.name}/data; set MAMMOSEG_SHARED to run this test")
    return folder
