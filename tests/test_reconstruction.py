"""Crops back to native masks, contours and millimetres."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage

from mammoseg.geometry import Transform
from mammoseg.reconstruction import ReconstructionConfig, axes_mm, filled, outline, reconstruct
from mammoseg.types import CropMask, Detections, Mammogram

CONFIG = ReconstructionConfig()


def image(size=(600, 500), spacing=None):
    return Mammogram(np.zeros(size, dtype=np.float32), "x", spacing_mm=spacing)


def crop_of(truth, box, size=(256, 256), index=0):
    """What a perfect segmenter says: `truth(x, y)` (bool) sampled at the crop's pixel centres."""
    t = Transform.crop_resize(box, size)
    back = t.inverse((1, 1))
    xs = back.points(np.stack([np.arange(size[1]) + 0.5, np.zeros(size[1])], 1))[:, 0]
    ys = back.points(np.stack([np.zeros(size[0]), np.arange(size[0]) + 0.5], 1))[:, 1]
    return CropMask(truth(xs[None, :], ys[:, None]).astype(np.float32), t, index)


def disc(cx, cy, a, b=None):
    return lambda x, y: ((x - cx) / a) ** 2 + ((y - cy) / (b or a)) ** 2 <= 1


def full(lesion, size):
    out = np.zeros(size, dtype=bool)
    r, c = lesion.origin_px
    out[r : r + lesion.mask.shape[0], c : c + lesion.mask.shape[1]] = lesion.mask
    return out


def truth_mask(f, size):
    return np.broadcast_to(f(np.arange(size[1])[None, :] + 0.5, np.arange(size[0])[:, None] + 0.5), size)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def rasterise(contour, size):
    """A pixel is inside where its centre is: an independent even-odd test."""
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    inside = np.zeros(size, dtype=bool)
    for (x1, y1), (x2, y2) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
        rows = (y1 <= y) != (y2 <= y)
        if y1 != y2:
            cross = x1 + (y - y1) / (y2 - y1) * (x2 - x1)
            inside[rows] ^= x[None, :] < cross[rows, None]
    return inside


@pytest.mark.parametrize("extent", [40, 100, 256, 420])
def test_mask_and_contour_agree_with_the_truth_at_every_magnification(extent):
    size = (600, 500)
    f = disc(251.3, 300.7, 0.36 * extent, 0.27 * extent)
    box = (251.3 - extent / 2, 300.7 - extent / 2, 251.3 + extent / 2, 300.7 + extent / 2)
    (lesion,) = reconstruct([crop_of(f, box)], Detections(np.array([box]), np.array([0.9]), size), image(size), CONFIG)
    mask = full(lesion, size)
    assert lesion.outline == "segmented"
    assert dice(mask, truth_mask(f, size)) > 0.985
    assert dice(mask, rasterise(lesion.contour_xy, size)) > 0.998
    distance = np.hypot(
        (lesion.contour_xy[:, 0] - 251.3) / (0.36 * extent), (lesion.contour_xy[:, 1] - 300.7) / (0.27 * extent)
    )
    crop_pixel = extent / 256
    assert np.abs(distance - 1).max() * 0.36 * extent < 0.6 + 0.8 * crop_pixel  # sub-pixel, no half-pixel shift


def test_contour_is_smooth_when_a_coarse_crop_is_enlarged():
    size, r = (2000, 2000), 600.0
    box = (300.0, 300, 1700, 1700)
    (lesion,) = reconstruct(
        [crop_of(disc(1000, 1000, r), box, (64, 64))], Detections(np.array([box]), np.ones(1), size), image(size), CONFIG
    )
    c = lesion.contour_xy
    radius = np.hypot(c[:, 0] - 1000, c[:, 1] - 1000)
    assert np.abs(radius - r).max() < 0.5 * 1400 / 64  # within half a crop pixel of the truth
    step = np.diff(np.concatenate([c, c[:2]]), axis=0)
    turn = np.angle(np.exp(1j * np.diff(np.arctan2(step[:, 1], step[:, 0]))))
    assert np.abs(turn).max() < 0.2  # radians: a staircase turns by 1.57


def test_contour_without_simplification_rasterises_to_exactly_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(50):
        field = ndimage.gaussian_filter(rng.normal(size=(50, 60)), 4).astype(np.float32)
        labels, n = ndimage.label(field >= 0)
        mask = ndimage.binary_fill_holes(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))
        assert n
        assert np.array_equal(rasterise(outline(field, mask, (3, 7)), (60, 80))[3:53, 7:67], mask)


def test_component_of_the_box_is_kept_and_its_holes_are_filled():
    size, box = (300, 300), (100.0, 100, 160, 160)

    def f(x, y):
        ring = disc(130, 130, 25)(x, y) & ~disc(130, 130, 8)(x, y)
        return ring | disc(185, 130, 14)(x, y) | disc(80, 75, 10)(x, y)

    (lesion,) = reconstruct(
        [crop_of(f, (60.0, 60, 200, 200))], Detections(np.array([box]), np.ones(1), size), image(size), CONFIG
    )
    assert dice(full(lesion, size), truth_mask(disc(130, 130, 25), size)) > 0.98


@pytest.mark.parametrize("answer", ["nothing", "outside the box", "a speck", "missing"])
def test_an_empty_segmentation_keeps_the_lesion_as_the_inscribed_ellipse_and_says_so(answer):
    size, box = (300, 300), (100.0, 110, 160, 150)
    f = {"nothing": disc(0, 0, 1e-9), "outside the box": disc(180, 180, 15), "a speck": disc(130, 130, 2), "missing": None}[
        answer
    ]
    masks = [] if f is None else [crop_of(f, (80.0, 80, 200, 200))]
    (lesion,) = reconstruct(masks, Detections(np.array([box]), np.array([0.7]), size), image(size, (0.1, 0.1)), CONFIG)
    assert lesion.outline == "ellipse"
    assert (lesion.box, lesion.score) == (box, 0.7)
    assert dice(full(lesion, size), truth_mask(disc(130, 130, 30, 20), size)) > 0.99
    assert lesion.long_axis_mm == pytest.approx(6.0, abs=0.1)
    assert lesion.short_axis_mm == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize(
    "box", [(50.0, 50, 50, 50), (298.0, 298, 330, 340), (400.0, 400, 420, 420), (-30.0, 20, -10, 40), (10.2, 10.2, 10.6, 10.4)]
)
def test_a_box_at_or_beyond_the_border_still_gives_a_lesion_inside_the_image(box):
    (lesion,) = reconstruct([], Detections(np.array([box]), np.ones(1), (300, 300)), image((300, 300)), CONFIG)
    r, c = lesion.origin_px
    assert r >= 0
    assert c >= 0
    assert r + lesion.mask.shape[0] <= 300
    assert c + lesion.mask.shape[1] <= 300
    assert len(lesion.contour_xy) >= 3


def test_a_mass_cut_by_the_image_border_ends_exactly_there():
    size, box = (300, 300), (0.0, 100, 50, 160)
    (lesion,) = reconstruct(
        [crop_of(disc(5, 130, 28), (-20.0, 90, 60, 170))], Detections(np.array([box]), np.ones(1), size), image(size), CONFIG
    )
    assert lesion.contour_xy[:, 0].min() == pytest.approx(0.0, abs=1e-6)
    assert lesion.origin_px[1] == 0


def two(first, second, scores, size=(300, 300)):
    box = (20.0, 20, 280, 280)
    boxes = np.array(
        [
            [c - a for c, a in zip(d[:2], d[2:], strict=True)] + [c + a for c, a in zip(d[:2], d[2:], strict=True)]
            for d in (first, second)
        ],
        dtype=float,
    )
    masks = [crop_of(disc(*d), box, index=i) for i, d in enumerate((first, second))]
    return boxes, reconstruct(masks, Detections(boxes, np.array(scores), size), image(size), CONFIG)


def test_lesions_that_share_more_than_half_of_the_smaller_become_one_with_the_best_box_and_score():
    boxes, lesions = two((120, 150, 40, 40), (150, 150, 30, 30), [0.4, 0.8])
    (lesion,) = lesions
    assert lesion.box == tuple(boxes[1])
    assert (lesion.id, lesion.score) == (1, 0.8)
    size = (300, 300)
    union = truth_mask(disc(120, 150, 40), size) | truth_mask(disc(150, 150, 30), size)
    assert dice(full(lesion, size), union) > 0.98
    assert dice(rasterise(lesion.contour_xy, size), union) > 0.98


def test_otherwise_a_pixel_belongs_to_the_higher_score():
    size = (300, 300)
    boxes, lesions = two((110, 150, 40, 40), (165, 150, 40, 40), [0.4, 0.8], size)
    best, other = lesions
    assert [x.id for x in lesions] == [1, 2]
    assert [x.score for x in lesions] == [0.8, 0.4]
    assert best.box == tuple(boxes[1])
    assert not (full(best, size) & full(other, size)).any()
    assert dice(full(best, size), truth_mask(disc(165, 150, 40), size)) > 0.98
    assert dice(full(other, size), truth_mask(disc(110, 150, 40), size) & ~truth_mask(disc(165, 150, 40), size)) > 0.97
    assert dice(full(other, size), rasterise(other.contour_xy, size)) > 0.98


def test_random_crowds_keep_the_overlap_rule():
    rng = np.random.default_rng(5)
    size, window = (200, 200), (0.0, 0, 200, 200)
    for _ in range(40):
        n = int(rng.integers(1, 7))
        centre, radius = rng.uniform(40, 160, (n, 2)), rng.uniform(5, 35, n)
        boxes = np.concatenate([centre - radius[:, None], centre + radius[:, None]], axis=1)
        masks = [crop_of(disc(*c, r), window, index=i) for i, (c, r) in enumerate(zip(centre, radius, strict=True))]
        scores = rng.choice([0.3, 0.5, 0.7, 0.9], n)
        lesions = reconstruct(masks, Detections(boxes, scores, size), image(size), CONFIG)
        assert [x.id for x in lesions] == list(range(1, len(lesions) + 1))
        assert sorted((x.score for x in lesions), reverse=True) == [x.score for x in lesions]
        assert lesions[0].score == scores.max()
        for a, b in itertools.combinations(lesions, 2):
            assert not (full(a, size) & full(b, size)).any()
        union = np.any([truth_mask(disc(*c, r), size) for c, r in zip(centre, radius, strict=True)], axis=0)
        assert dice(np.any([full(x, size) for x in lesions], axis=0), union) > 0.93
        for x in lesions:
            assert dice(full(x, size), rasterise(x.contour_xy, size)) >= 0.99 or x.area_px < 60


def test_several_lesions_at_a_time_are_those_of_one_at_a_time():
    rng, size = np.random.default_rng(3), (300, 300)
    for _ in range(5):
        centres, radii = rng.uniform(40, 260, (12, 2)), rng.uniform(5, 40, 12)
        boxes = np.concatenate([centres - 1.4 * radii[:, None], centres + 1.4 * radii[:, None]], axis=1)
        crops = [
            crop_of(disc(*c, r), box, (64, 64), i) for i, (c, r, box) in enumerate(zip(centres, radii, boxes, strict=True))
        ]
        found = Detections(boxes, rng.random(12).round(1), size)
        one, many = (reconstruct(crops[:-2], found, image(size, (0.1, 0.2)), CONFIG, lanes) for lanes in (1, 5))
        assert len(one) == len(many) > 3
        for a, b in zip(one, many, strict=True):
            assert np.array_equal(a.mask, b.mask)
            assert np.array_equal(a.contour_xy, b.contour_xy)
            for name in ("id", "box", "score", "origin_px", "area_mm2", "long_axis_mm", "short_axis_mm", "outline"):
                assert getattr(a, name) == getattr(b, name)


def test_sizes_in_mm_honour_row_and_column_spacing():
    size, box = (600, 500), (100.0, 100, 400, 400)
    for spacing in [(0.05, 0.05), (0.2, 0.1), (0.07, 0.14)]:
        (lesion,) = reconstruct(
            [crop_of(disc(250, 250, 100, 60), box)], Detections(np.array([box]), np.ones(1), size), image(size, spacing), CONFIG
        )
        wide, high = 200 * spacing[1], 120 * spacing[0]
        assert lesion.long_axis_mm == pytest.approx(max(wide, high), rel=0.01)
        assert lesion.short_axis_mm == pytest.approx(min(wide, high), rel=0.02)
        assert lesion.area_mm2 == pytest.approx(np.pi / 4 * wide * high, rel=0.01)
        assert lesion.area_mm2 == pytest.approx(lesion.area_px * spacing[0] * spacing[1])
    (lesion,) = reconstruct(
        [crop_of(disc(250, 250, 100, 60), box)], Detections(np.array([box]), np.ones(1), size), image(size), CONFIG
    )
    assert (lesion.area_mm2, lesion.long_axis_mm, lesion.short_axis_mm) == (None, None, None)


def test_axes_against_a_dense_search():
    rng = np.random.default_rng(2)
    for _ in range(10):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
        radius = rng.uniform(3, 10, 40)
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + 50
        spacing = (float(rng.uniform(0.05, 0.3)), float(rng.uniform(0.05, 0.3)))
        mm = points * (spacing[1], spacing[0])
        pairs = [(np.hypot(*(p - q)), i, j) for (i, p), (j, q) in itertools.combinations(enumerate(mm), 2)]
        feret, i, j = max(pairs)
        axis = (mm[j] - mm[i]) / feret
        turned = mm @ np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
        extents = []
        for t in np.linspace(turned[:, 0].min(), turned[:, 0].max(), 600):
            hits = [
                u1 + (t - t1) / (t2 - t1) * (u2 - u1)
                for (t1, u1), (t2, u2) in zip(turned, np.roll(turned, -1, 0), strict=True)
                if (t1 <= t) != (t2 <= t)
            ]
            extents.append(max(hits) - min(hits) if hits else 0.0)
        long_axis, short_axis = axes_mm(points, spacing)
        assert long_axis == pytest.approx(feret, rel=1e-6)
        assert short_axis == pytest.approx(max(extents), rel=0.01)


def test_rectangle_by_hand():
    # 4 × 3: the diagonal is 5; the longest line perpendicular to it runs from (4, 0) along (-3, 4) to (1.75, 3).
    long_axis, short_axis = axes_mm(np.array([[0.0, 0], [4, 0], [4, 3], [0, 3]]), (1.0, 1.0))
    assert long_axis == 5.0
    assert short_axis == pytest.approx(3.75)


def test_no_detection_no_lesion_and_bad_indices_are_refused():
    assert reconstruct([], Detections.empty((50, 50)), image((50, 50)), CONFIG) == ()
    crop = crop_of(disc(10, 10, 5), (0.0, 0, 20, 20), (32, 32), index=1)
    with pytest.raises(ValueError, match="at most one mask"):
        reconstruct([crop], Detections(np.array([[0.0, 0, 20, 20]]), np.ones(1), (50, 50)), image((50, 50)), CONFIG)


def test_lesions_are_sparse():
    size = (3000, 2500)
    box = (1000.0, 1000, 1100, 1100)
    (lesion,) = reconstruct(
        [crop_of(disc(1050, 1050, 40), box)], Detections(np.array([box]), np.ones(1), size), image(size), CONFIG
    )
    assert lesion.mask.shape[0] <= 82
    assert lesion.mask.any(axis=1).all()
    assert cv2.countNonZero(lesion.mask.astype(np.uint8)) == lesion.area_px


def test_holes_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 7), (5, 5), (40, 60)):
        for density in (0.3, 0.6, 0.8, 1.0):
            mask = rng.random(size) < density
            assert np.array_equal(filled(mask), ndimage.binary_fill_holes(mask))
