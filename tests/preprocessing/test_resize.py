"""Frames: stretched and letterboxed round trips, padding, percentiles; augmentation keeps boxes on the object."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mammoseg.geometry import LEAST_LEFT, Halves, Transform
from mammoseg.preprocessing.augmentation import AugmentationConfig, change_intensity, draw, visible_boxes
from mammoseg.preprocessing.intensity import normalise, percentile_range
from mammoseg.preprocessing.resize import (
    Aspect,
    FrameConfig,
    FrameMeasure,
    FrameSource,
    frame_transform,
    measure,
    network_frame,
    to_network_frame,
    warp_region,
)
from mammoseg.types import Size


def _image() -> np.ndarray:
    pixels = np.zeros((600, 400), np.float32)
    pixels[80:520, :250] = 0.4
    pixels[200:260, 90:130] = 0.9
    return pixels


@pytest.mark.parametrize("aspect", ["stretch", "keep"])
@pytest.mark.parametrize("region", [(0.0, 0.0, 400.0, 600.0), (0.0, 70.0, 260.0, 530.0)])
def test_boxes_come_back_and_the_object_lies_where_its_box_says(aspect: str, region: tuple[float, ...]) -> None:
    box = np.array([[90.0, 200, 130, 260]])
    image, transform = to_network_frame(_image(), np.array(region), (320, 160), aspect)  # type: ignore[arg-type]
    assert image.shape == (320, 160)
    assert image.dtype == np.float32
    inside = transform.boxes(box)
    np.testing.assert_allclose(transform.inverse((600, 400)).boxes(inside), box, atol=1e-9)
    rows, columns = np.nonzero(image > 0.65)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(seen, inside[0], atol=1.0)
    if aspect == "keep":
        assert transform.sx == transform.sy
        corners = transform.boxes([region])[0]
        assert corners[0] >= -1e-9
        assert corners[1] >= -1e-9
        assert corners[2] <= 160 + 1e-9
        assert corners[3] <= 320 + 1e-9
    else:
        np.testing.assert_allclose(transform.boxes([region])[0], (0, 0, 160, 320), atol=1e-9)


def test_what_lies_outside_the_region_is_not_seen() -> None:
    pixels = np.ones((300, 300), np.float32)
    image, transform = to_network_frame(pixels, np.array([100.0, 0, 200, 300]), (320, 320), "keep", border=0.25)
    x1, _, x2, _ = transform.boxes([[100, 0, 200, 300]])[0]
    assert (image[:, : int(x1) - 1] == 0.25).all()
    assert (image[:, int(np.ceil(x2)) + 1 :] == 0.25).all()
    assert (image[:, int(np.ceil(x1)) + 1 : int(x2) - 1] == 1.0).all()


def test_percentiles_of_the_breast_map_to_black_and_white() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((400, 300), np.float32)
    pixels[50:350, :180] = rng.uniform(0.3, 0.5, (300, 180))
    config = FrameConfig(region="breast", aspect="keep", intensity="percentile", percentiles=(5.0, 95.0))
    measured = measure(pixels, config)
    assert measured.low == pytest.approx(0.31, abs=0.03)
    assert measured.high == pytest.approx(0.49, abs=0.02)
    assert measured.box[2] < 200
    image, _ = network_frame(FrameSource.of(pixels, measured), (320, 192), "keep")
    assert image.min() == 0.0
    assert image.max() == 1.0


def _means(pixels: NDArray[np.float32], t: Transform, size: Size) -> NDArray[np.float64]:
    """The exact mean of what each pixel of a frame of `size` covers in `pixels`, by sums over rectangles."""
    sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1))
    sums[1:, 1:] = pixels.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    back = t.inverse((pixels.shape[0], pixels.shape[1]))
    x = (np.arange(size[1] + 1) * back.sx + back.tx).clip(0, pixels.shape[1])
    y = (np.arange(size[0] + 1) * back.sy + back.ty).clip(0, pixels.shape[0])
    rows, columns = np.arange(sums.shape[0]), np.arange(sums.shape[1])
    at_y = np.stack([np.interp(y, rows, column) for column in sums.T], axis=1)
    at = np.stack([np.interp(x, columns, row) for row in at_y])
    return np.asarray(np.diff(np.diff(at, axis=0), axis=1) / np.maximum(np.outer(np.diff(y), np.diff(x)), 1e-9))


@pytest.mark.parametrize("aspect", ["keep", "stretch"])
@pytest.mark.parametrize("shape", [(1601, 1203), (2304, 1790)])
def test_frames_of_an_image_reduced_once_hold_the_means_of_what_they_cover(aspect: Aspect, shape: Size) -> None:
    rng = np.random.default_rng(1)
    pixels = cv2.GaussianBlur(rng.uniform(0, 1, shape).astype(np.float32), (0, 0), 6.0)
    pixels = (pixels - pixels.min()) / np.ptp(pixels)
    measured = FrameMeasure((31.0, 17.0, float(shape[1]), 1590.0), 0.0, 1.0)
    sizes = [(256, 160), (288, 192)]
    source = FrameSource.of(pixels, measured)
    for size in sizes:
        image, transform = network_frame(source, size, aspect)
        assert source.halves.level_for(1 / transform.sy) > 0
        assert source.size == shape
        exact = _means(pixels, transform, size)
        half = _means(pixels, transform.then(Transform(1.0, 1.0, 0.5, 0.0, size)), size)
        across, down, *_ = transform.boxes([measured.box])[0].round().astype(int) + 2
        inner = (slice(down, -down - 2), slice(across, -across - 2))  # a rim, where the region ends within a reduced pixel
        assert np.abs(image - exact)[inner].mean() < 0.6 * np.abs(half - exact)[inner].mean()  # off by half a pixel
        np.testing.assert_allclose(image[inner].mean(), exact[inner].mean(), atol=1e-3)


def test_a_level_of_halves_holds_the_means_of_its_blocks() -> None:
    pixels = np.random.default_rng(3).uniform(0, 1, (45, 38)).astype(np.float32)
    for level in range(4):
        n = 2**level
        kept = pixels[: 45 // n * n, : 38 // n * n].astype(np.float64)
        blocks = kept.reshape(45 // n, n, 38 // n, n).mean(axis=(1, 3))
        np.testing.assert_allclose(Halves(pixels).level(level), blocks, atol=1e-6)


@pytest.mark.parametrize("reduction", [0.3, 1.0, 3.59, 3.61, 7.3, 50.0, 1e6])
def test_the_level_for_a_reduction_is_the_deepest_that_leaves_enough_of_it(reduction: float) -> None:
    level = Halves(np.zeros((45, 38), np.float32)).level_for(reduction)
    assert level == 0 or reduction / 2**level >= LEAST_LEFT
    assert reduction / 2 ** (level + 1) < LEAST_LEFT or 38 // 2 ** (level + 1) == 0


def test_frames_of_small_images_are_not_reduced_first() -> None:
    pixels = np.random.default_rng(2).uniform(0, 1, (900, 700)).astype(np.float32)
    measured = FrameMeasure((0.0, 0.0, 700.0, 900.0), 0.0, 1.0)
    image, transform = network_frame(FrameSource.of(pixels, measured), (640, 320), "keep")
    np.testing.assert_array_equal(image, warp_region(pixels, np.asarray(measured.box), transform).clip(0, 1))


def test_percentile_range_of_nothing_or_of_one_grey_is_the_whole_range() -> None:
    flat = np.full((50, 50), 0.5, np.float32)
    assert percentile_range(flat, np.ones((50, 50), bool), (1, 99)) == (0.0, 1.0)
    assert percentile_range(flat, np.zeros((50, 50), bool), (1, 99)) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(25))
def test_augmented_boxes_stay_on_the_object(seed: int) -> None:
    size = (320, 192)
    config = AugmentationConfig(shift=0.15)
    pixels, region = _image(), np.array([0.0, 70, 260, 530])
    drawn = draw(np.random.default_rng(seed), size, config)
    transform = frame_transform(region, size, "keep").then(drawn.geometry)
    image = change_intensity(normalise(warp_region(pixels, region, transform), 0.0, 1.0), drawn)
    assert image.shape == size
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    boxes = visible_boxes(transform.boxes([[90.0, 200, 130, 260]]), size)
    if len(boxes):
        x1, y1, x2, y2 = boxes[0].round().astype(int)
        around = image[max(0, y1 - 12) : y2 + 12, max(0, x1 - 12) : x2 + 12]
        assert image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > np.median(image[image > 0])
        assert image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > around.mean()


def test_draws_are_reproducible_and_flip_both_ways() -> None:
    config = AugmentationConfig()
    a = [draw(np.random.default_rng(s), (64, 32), config) for s in range(60)]
    assert a == [draw(np.random.default_rng(s), (64, 32), config) for s in range(60)]
    assert {(d.geometry.sx < 0, d.geometry.sy < 0) for d in a} == {(x, y) for x in (True, False) for y in (True, False)}
    still = AugmentationConfig(0, 0, 1, 1, 0, 1, 1, 0, 0, 0)
    none = draw(np.random.default_rng(0), (64, 32), still)
    assert (none.geometry.sx, none.geometry.sy, none.geometry.tx, none.geometry.ty) == pytest.approx((1, 1, 0, 0))
    image = np.random.default_rng(1).random((64, 32), dtype=np.float32)
    np.testing.assert_allclose(change_intensity(image, none), image, atol=1e-6)


def test_boxes_mostly_out_of_the_frame_are_dropped() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [-8, 0, 2, 10], [95, 95, 105, 105], [50, 50, 52, 60]])
    assert visible_boxes(boxes, (100, 100)).tolist() == [[0, 0, 10, 10]]
    assert visible_boxes(boxes, (100, 100), least=0.2).tolist() == [[0, 0, 10, 10], [95, 95, 100, 100]]
    assert visible_boxes(np.zeros((0, 4)), (9, 9)).shape == (0, 4)
