"""Masses known by their box alone: outlined by a network whose answer is known, fitted to the box, kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mammoseg.datasets import read_dataset
from mammoseg.datasets.coco import write
from mammoseg.evaluation.overlap import dice
from mammoseg.preprocessing.crops import CropConfig
from mammoseg.segmentation.outlines import FIT_LEAST, outline_in_box, with_outlines
from mammoseg.segmentation.predictor import Segmenter, SegmenterSpec
from mammoseg.types import Annotation, DatasetItem, Mammogram, TrueMass

SPEC = SegmenterSpec(crop=CropConfig(size=64, equalise=False), channels=1, mean=(0.0,), std=(1.0,))
BOX = (40.0, 50.0, 100.0, 90.0)


def _bright(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """A network that holds what is bright for mass: probability = grey."""
    p = x[:, :1].clip(1e-3, 1 - 1e-3)
    return [np.log(p / (1 - p))]


def _ellipse(peak: float = 1.0) -> NDArray[np.float32]:
    """An ellipse inscribed in BOX that fades from `peak` in the middle to 0.35 of it at its rim, on black."""
    rows, columns = np.mgrid[0:160, 0:140] + 0.5
    r = np.hypot((columns - 70) / 30, (rows - 70) / 20)
    return np.where(r <= 1, peak * (1 - 0.65 * r), 0.0).astype(np.float32)


def test_the_outline_is_that_threshold_s_that_fits_the_box() -> None:
    mask, (top, left), fit = outline_in_box(Segmenter(_bright, SPEC), Mammogram(_ellipse(), "x"), BOX)
    truth = _ellipse() > 0
    assert fit > 0.9  # at a probability of 0.5 the region would reach 0.77 of the way out: a fit of 0.59
    assert dice((mask, (top, left)), (truth, (0, 0))) > 0.95
    assert mask.any(axis=0).all()
    assert mask.any(axis=1).all()


def test_what_is_apart_or_enclosed_does_not_show_in_an_outline() -> None:
    pixels = _ellipse()
    pixels[66:74, 66:74] = 0.0  # a hole
    pixels[52:55, 42:45] = 1.0  # a speck in the box's corner
    mask, (top, left), fit = outline_in_box(Segmenter(_bright, SPEC), Mammogram(pixels, "x"), BOX)
    assert fit > 0.9
    assert mask[66 - top : 74 - top, 66 - left : 74 - left].all()
    assert not mask[: 55 - top, : 45 - left].any()


def test_nothing_drawn_is_no_outline() -> None:
    mask, _, fit = outline_in_box(Segmenter(_bright, SPEC), Mammogram(np.zeros((160, 140), np.float32), "x"), BOX)
    assert (fit, mask.size) == (0.0, 0)


@pytest.fixture
def items(tmp_path: Path) -> list[DatasetItem]:
    """Three images: a mass with a box alone, one with its own mask beside one that is not to be seen, one free of masses."""
    own = np.zeros((20, 20), dtype=np.bool_)
    own[5:15, 5:15] = True
    masses = {
        "a.png": (TrueMass(BOX),),
        "b.png": (TrueMass((10.0, 100.0, 30.0, 120.0), own, (100, 10)), TrueMass((100.0, 120.0, 130.0, 150.0))),
        "c.png": (),
    }
    (tmp_path / "films").mkdir()
    written = []
    for name, of in masses.items():
        file = tmp_path / "films" / name
        cv2.imwrite(str(file), np.round(_ellipse() * 255).astype(np.uint8))
        written.append(DatasetItem(name, str(file), name, Annotation(name, (160, 140), of)))
    write(tmp_path / "films" / "annotations.json", written)
    return read_dataset(tmp_path / "films")


def test_own_masks_stay_boxes_are_outlined_and_what_does_not_fit_is_left_out(items: list[DatasetItem], tmp_path: Path) -> None:
    out, asked, left = with_outlines(items, Segmenter(_bright, SPEC), "bright", tmp_path / "outlines.json")
    assert [i.image_id for i in out] == ["a.png", "b.png"]
    assert (asked, left) == (2, 1)
    (outlined,), (own,) = (i.annotation.masses for i in out)
    assert outlined.box == BOX
    assert outlined.mask is not None
    assert dice((outlined.mask, outlined.origin_px), (_ellipse() > 0, (0, 0))) > 0.95
    assert own.mask is items[1].annotation.masses[0].mask
    assert FIT_LEAST < 1


def test_outlines_are_made_once_for_the_same_network_images_and_boxes(items: list[DatasetItem], tmp_path: Path) -> None:
    calls = []

    def counted(x: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        calls.append(len(x))
        return _bright(x)

    kept = tmp_path / "outlines.json"
    first, *_ = with_outlines(items, Segmenter(counted, SPEC), "one", kept)
    made = len(calls)
    assert made == 2
    again, *counts = with_outlines(items, Segmenter(counted, SPEC), "one", kept)
    assert (len(calls), counts) == (made, [2, 1])
    one, two = (i[0].annotation.masses[0] for i in (first, again))
    np.testing.assert_array_equal(one.mask, two.mask)
    assert one.origin_px == two.origin_px
    with_outlines(items, Segmenter(counted, SPEC), "another", kept)
    assert len(calls) == 2 * made
    kept.write_text('{"key": "damaged')
    with_outlines(items, Segmenter(counted, SPEC), "another", kept)
    assert len(calls) == 3 * made
