"""The image of an item: what stops work on many images names its file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoseg.datasets.images import load_item
from mammoseg.errors import DatasetError
from mammoseg.types import Annotation, DatasetItem


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, (96, 64), dtype=np.uint8))
    item = DatasetItem("images/a.png", str(file), "P1", Annotation("images/a.png", (96, 64)))
    assert (load_item(item).size, load_item(item).image_id) == ((96, 64), "images/a.png")
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(DatasetError, match=r"a\.png: the PNG is damaged or cut short"):
        load_item(item)
