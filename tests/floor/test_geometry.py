"""The coordinate convention: half-open pixel edges, one transform with its inverse."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammoseg import geometry
from mammoseg.geometry import Transform

finite = st.floats(-500, 500, allow_nan=False)
scale = st.floats(0.05, 20) | st.floats(-20, -0.05)


@given(scale, scale, finite, finite, finite, finite)
def test_inverse_undoes_points(sx: float, sy: float, tx: float, ty: float, x: float, y: float) -> None:
    t = Transform(sx, sy, tx, ty, (10, 10))
    back = t.inverse((5, 5)).points(t.points([[x, y]]))
    np.testing.assert_allclose(back, [[x, y]], atol=1e-6)


@given(scale, scale, finite, finite, finite, finite)
def test_then_is_composition(sx: float, sy: float, tx: float, ty: float, x: float, y: float) -> None:
    a, b = Transform(sx, sy, tx, ty, (10, 10)), Transform(0.5, -2.0, 3.0, 4.0, (7, 9))
    np.testing.assert_allclose(a.then(b).points([[x, y]]), b.points(a.points([[x, y]])), rtol=1e-9, atol=1e-6)
    assert a.then(b).size == (7, 9)


def test_mirror_keeps_box_corners_ordered() -> None:
    mirror = Transform(-1.0, 1.0, 10.0, 0.0, (4, 10))
    assert mirror.boxes([[1, 0, 4, 2]]).tolist() == [[6.0, 0.0, 9.0, 2.0]]


def test_mirror_of_an_image_is_a_flip() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    mirror = Transform(-1.0, 1.0, 4.0, 0.0, (3, 4))
    np.testing.assert_allclose(mirror.image(image), image[:, ::-1], atol=1e-5)


def test_crop_of_whole_pixels_is_a_slice() -> None:
    image = np.random.default_rng(0).random((20, 30), dtype=np.float32)
    t = Transform.crop_resize((4, 5, 14, 12), (7, 10))
    np.testing.assert_allclose(t.image(image), image[5:12, 4:14], atol=1e-6)


def test_halving_averages_whole_blocks() -> None:
    image = np.random.default_rng(1).random((16, 24), dtype=np.float32)
    half = Transform.crop_resize((0, 0, 24, 16), (8, 12)).image(image)
    blocks = image.reshape(8, 2, 12, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(half, blocks, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 48), (37, 91), (128, 200)])
@pytest.mark.parametrize("aspect", ["crop_resize", "crop_letterbox"])
def test_an_image_goes_where_its_points_go(size: tuple[int, int], aspect: str) -> None:
    """The centroid of a smooth blob, resampled, lies where the transform says."""
    rows, cols = np.mgrid[0:150, 0:120] + 0.5
    image = np.exp(-((cols - 70.3) ** 2 + (rows - 61.7) ** 2) / (2 * 8.0**2)).astype(np.float32)
    t: Transform = getattr(Transform, aspect)((10.0, 7.0, 115.0, 140.0), size)
    out = t.image(image)
    assert out.shape == size
    r, c = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    centroid = [(out * c).sum() / out.sum(), (out * r).sum() / out.sum()]
    np.testing.assert_allclose(centroid, t.points([[70.3, 61.7]])[0], atol=0.05)


def test_outside_the_source_is_border() -> None:
    image = np.ones((10, 10), dtype=np.float32)
    out = Transform.crop_resize((-10, -10, 10, 10), (20, 20)).image(image, border=0.25)
    assert np.all(out[:10] == 0.25)
    assert np.all(out[10:, :10] == 0.25)
    np.testing.assert_allclose(out[10:, 10:], 1.0)
    assert np.all(Transform.crop_resize((50, 50, 60, 60), (5, 5)).image(image) == 0)


def test_mask_half_covered_pixels_are_set() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[:, 1:] = True
    half = Transform.crop_resize((0, 0, 4, 4), (2, 2)).mask(mask)
    assert half.tolist() == [[True, True], [True, True]]


def test_letterbox_keeps_aspect_and_centres() -> None:
    t = Transform.crop_letterbox((0, 0, 10, 40), (40, 30))
    assert t.sx == t.sy == 1.0
    assert t.boxes([[0, 0, 10, 40]]).tolist() == [[10.0, 0.0, 20.0, 40.0]]


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (3, 0, 1, 5)])
def test_a_box_without_area_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="box with an area"):
        Transform.crop_resize(box, (5, 5))


def test_a_transform_that_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="non-zero"):
        Transform(0.0, 1.0, 0.0, 0.0, (5, 5))


boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(boxes, boxes)
def test_iou_counts_pixels(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    p, q = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    p[a[1] : a[3], a[0] : a[2]] = True
    q[b[1] : b[3], b[0] : b[2]] = True
    exact = Fraction(int((p & q).sum()), int((p | q).sum()))
    assert geometry.box_iou([a], [b])[0, 0] == pytest.approx(float(exact), abs=1e-12)


@given(boxes)
def test_box_formats_round_trip(box: tuple[int, int, int, int]) -> None:
    assert geometry.cxcywh_to_xyxy(geometry.xyxy_to_cxcywh([box])).tolist() == [list(map(float, box))]
    assert geometry.xywh_to_xyxy(geometry.xyxy_to_xywh([box])).tolist() == [list(map(float, box))]


def test_iou_of_boxes_without_area_is_zero() -> None:
    assert geometry.box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]])[0, 0] == 0


def test_mask_box() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    assert geometry.mask_box(mask, (10, 20)) == (22.0, 11.0, 25.0, 13.0)
    with pytest.raises(ValueError, match="empty"):
        geometry.mask_box(np.zeros((2, 2), dtype=bool))


def test_clip_boxes() -> None:
    assert geometry.clip_boxes([[-5, 2, 50, 9]], (8, 20)).tolist() == [[0.0, 2.0, 20.0, 8.0]]
