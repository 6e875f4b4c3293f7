"""Phantoms in the layouts in which the public data sets are released; copy a folder before changing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.released import write_cbis_ddsm, write_inbreast

SIZE = (256, 192)
SMALL = PhantomConfig(size=SIZE, normal_fraction=0.0, masses=(2, 2), diameter_mm=(20.0, 40.0))


@pytest.fixture(scope="session")
def inbreast_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with AllDICOMs and AllXML of two exams."""
    return write_inbreast(tmp_path_factory.mktemp("inbreast"), 2, 1, SMALL)


@pytest.fixture(scope="session")
def cbis_release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same four exams, one of them of the test part, in both layouts that TCIA serves."""
    root = tmp_path_factory.mktemp("cbis")
    return {layout: write_cbis_ddsm(root / layout, 4, 2, SMALL, layout) for layout in ("classic", "descriptive")}
