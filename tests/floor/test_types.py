"""The domain types: valid once constructed."""

from __future__ import annotations

import numpy as np
import pytest

from mammoseg.types import Detections, Findings, ImageInfo, Mammogram

PIXELS = np.zeros((4, 5), dtype=np.float32)


def test_a_mammogram_is_float32_two_dimensional_and_read_only() -> None:
    m = Mammogram(PIXELS, "a")
    assert m.size == (4, 5)
    with pytest.raises(ValueError, match="read-only"):
        m.pixels[0, 0] = 1
    PIXELS[0, 0] = 0  # the caller's own array stays writable
    for bad in (PIXELS.astype(np.float64), np.zeros((4, 5, 3), np.float32), np.zeros((0, 5), np.float32)):
        with pytest.raises(ValueError, match=r"Mammogram\.pixels"):
            Mammogram(bad, "a")
    with pytest.raises(ValueError, match="spacing_mm"):
        Mammogram(PIXELS, "a", spacing_mm=(0.0, 0.1))
    with pytest.raises(ValueError, match="laterality"):
        Mammogram(PIXELS, "a", laterality="B")


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        ([[0, 0, 1, 1]], [], "as many scores"),
        ([[2, 0, 1, 1]], [0.5], "x1 <= x2"),
        ([[0, 0, 1, np.nan]], [0.5], "finite"),
        ([[0, 0, 1, 1]], [1.5], r"\[0, 1\]"),
    ],
)
def test_detections_refuse_what_is_none(boxes: list[list[float]], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detections(np.array(boxes), np.array(scores), (4, 5))


def test_detections_best_first_is_stable() -> None:
    d = Detections(np.array([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]), np.array([0.2, 0.9, 0.2]), (4, 5)).best_first()
    assert d.boxes[:, 2].tolist() == [2, 1, 3]
    assert len(Detections.empty((4, 5))) == 0


def test_nothing_found_and_not_processed_cannot_look_alike() -> None:
    known = ImageInfo("a.dcm", 4, 5)
    Findings(known, "processed", candidates=Detections.empty((4, 5)))
    with pytest.raises(ValueError, match="needs a reason"):
        Findings(ImageInfo("a.dcm"), "failed")
    with pytest.raises(ValueError, match="has no reason"):
        Findings(known, "processed", reason="why", candidates=Detections.empty((4, 5)))
    with pytest.raises(ValueError, match="has candidates"):
        Findings(known, "processed")
    with pytest.raises(ValueError, match="has a size"):
        Findings(ImageInfo("a.dcm"), "processed", candidates=Detections.empty((4, 5)))
