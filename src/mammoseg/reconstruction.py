"""From the segmenter's crops back to the native frame: masks, contours and sizes of lesions (paper: Sect. 3.3, last lines).

Everything is sparse: a lesion's pixels live in a window of their own, never in an image-sized array. The outline is the
level set of the smoothed probability between pixel centres, so that it is smooth at full resolution and its
rasterisation (a pixel is inside where its centre is) gives the mask back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import contourpy
import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import Transform, box_area, clip_boxes, ellipse_in, mask_box
from mammoseg.types import BoolMask, CropMask, Detections, Lesion, Mammogram, Size, Spacing

Points = NDArray[np.float64]
_MARGIN_PX = 2


@dataclass(frozen=True)
class ReconstructionConfig:
    """How probabilities in crops become lesions.

    threshold: a pixel belongs to the mass where its probability reaches it.
    smooth: sigma, in crop pixels, of the Gaussian that takes the crop's pixel staircase out of the native field.
    min_box_fraction: a mask that covers less of its detection box counts as empty.
    merge_overlap: lesions that share more than this part of the smaller one are merged.
    simplify_px: how far the outline may stray from the level set to save points, in native pixels.
    """

    threshold: float = 0.5
    smooth: float = 0.7
    min_box_fraction: float = 0.05
    merge_overlap: float = 0.5
    simplify_px: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"ReconstructionConfig.threshold: expected a number between 0 and 1, got {self.threshold}")
        if min(self.smooth, self.min_box_fraction, self.simplify_px, self.merge_overlap) < 0:
            raise ValueError("ReconstructionConfig: expected no negative numbers")


@dataclass(frozen=True, eq=False)
class _Region:
    """A lesion in the making. field: f32[h, w], above 0 inside; mask: bool[h, w]; origin: (row, column) of the window."""

    box: tuple[float, float, float, float]
    score: float
    field: NDArray[np.float32]
    mask: BoolMask
    origin: tuple[int, int]
    segmented: bool

    def window(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the window in the native image."""
        return self.origin[0], self.origin[1], self.origin[0] + self.mask.shape[0], self.origin[1] + self.mask.shape[1]


def reconstruct(
    masks: Sequence[CropMask], detections: Detections, mammogram: Mammogram, config: ReconstructionConfig, lanes: int = 1
) -> tuple[Lesion, ...]:
    """The lesions of one image, best score first, ids 1..K, in the native frame.

    masks: the segmenter's answers; `index` says for which of `detections`. Of each, the 4-connected component that
    overlaps the detection box most is kept, its holes filled. Where the segmenter saw nothing in the box (or its answer
    is missing), the lesion stays, outlined by the ellipse inscribed in its box, and says so: `outline == "ellipse"`. No
    detection is dropped silently: where two lesions share more than half of the smaller they are merged, with
    the box and score of the better; otherwise a pixel belongs to the higher score, the other keeps its largest rest.
    Sizes in mm honour the spacing of rows and columns; None where spacing is unknown. lanes: lesions at a time.
    Raises ValueError where a mask names no detection or two name the same.
    """
    by_index = {m.index: m for m in masks}
    if len(by_index) < len(masks) or any(not 0 <= i < len(detections) for i in by_index):
        indices = sorted(m.index for m in masks)
        raise ValueError(f"reconstruct: expected at most one mask for each of {len(detections)} detections, got {indices}")

    def region(i: int) -> _Region:
        x1, y1, x2, y2 = (float(v) for v in detections.boxes[i])
        found = _segmented(by_index[i], (x1, y1, x2, y2), mammogram.size, config) if i in by_index else None
        field, mask, origin = found or _ellipse((x1, y1, x2, y2), mammogram.size)
        return _Region((x1, y1, x2, y2), float(detections.scores[i]), field, mask, origin, found is not None)

    with ThreadPoolExecutor(max(1, min(lanes, len(detections)))) as pool:
        regions = list(pool.map(region, np.argsort(-detections.scores, kind="stable").tolist()))
        shared = _share_pixels(_merge(regions, config.merge_overlap))
        lesions = pool.map(lambda k, r: _lesion(k, r, mammogram.spacing_mm, config.simplify_px), itertools.count(1), shared)
        return tuple(lesions)


def native_field(crop: CropMask, size: Size, config: ReconstructionConfig) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The crop's probability minus the threshold, f32[h, w], on the native pixels the crop covers, and their origin.

    Interpolated bilinearly, then smoothed over `config.smooth` crop pixels; outside the crop the probability is 0.
    """
    t = crop.to_crop.inverse(size)
    box = t.boxes([[0, 0, crop.probability.shape[1], crop.probability.shape[0]]])[0]
    left, top = (int(v) for v in np.floor(clip_boxes([box], size)[0, :2]))
    right, bottom = (int(v) for v in np.ceil(clip_boxes([box], size)[0, 2:]))
    window = Transform(t.sx, t.sy, t.tx - left, t.ty - top, (max(bottom - top, 1), max(right - left, 1)))
    field = window.image(crop.probability)
    sigma_x, sigma_y = config.smooth * abs(t.sx), config.smooth * abs(t.sy)
    if max(sigma_x, sigma_y) > 0.3:  # below, the kernel is a single pixel
        field = cv2.GaussianBlur(field, (0, 0), max(sigma_x, 0.05), sigmaY=max(sigma_y, 0.05), borderType=cv2.BORDER_REPLICATE)
    return field - np.float32(config.threshold), (top, left)


def outline(field: NDArray[np.float32], mask: BoolMask, origin: tuple[int, int], simplify_px: float = 0.0) -> Points:
    """The closed outer outline f64[K, 2] of (x, y) in the native frame, first point not repeated.

    field: f32[h, w], its zero level is the outline wherever its sign agrees with mask: bool[h, w], one 4-connected
    component. Where it does not agree (filled holes, pixels that belong to another lesion), the mask decides.
    """
    agreed = np.where(mask, np.where(field > 0, field, 0.05), np.where(field < 0, field, np.minimum(-field, -0.05)))
    padded = np.pad(agreed.astype(np.float64), 1, mode="edge")
    for edge in (padded[0], padded[-1], padded[:, 0], padded[:, -1]):
        edge[:] = -np.abs(edge)  # a mask that reaches the window's edge ends exactly there
    lines = contourpy.contour_generator(z=padded, name="serial").lines(0.0)
    longest = max((np.asarray(line)[:-1] for line in lines), key=_polygon_area)
    # A pixel centre at index (r, c) of the padded window is (c - 1 + 0.5, r - 1 + 0.5) in the window's pixel edges.
    points: Points = longest - 0.5
    if simplify_px > 0 and len(points) > 8:
        fewer = cv2.approxPolyDP(points.astype(np.float32).reshape(-1, 1, 2), simplify_px, True).reshape(-1, 2)
        points = fewer.astype(np.float64) if len(fewer) >= 3 else points
    placed: Points = points + np.array([origin[1], origin[0]], dtype=np.float64)
    return placed


def axes_mm(contour_xy: Points, spacing_mm: Spacing) -> tuple[float, float]:
    """(long, short) axis in mm of an outline f64[K, 2] in pixels; spacing_mm: (row, column).

    Long: the largest Feret diameter. Short: the largest extent perpendicular to it (as in RECIST and BI-RADS), measured
    along one line across the lesion.

    >>> axes_mm(np.array([[0.0, 1], [2, 0], [4, 1], [2, 2]]), (1.0, 0.5))
    (2.0, 2.0)
    """
    points = contour_xy * (spacing_mm[1], spacing_mm[0])
    hull = cv2.convexHull(points.astype(np.float32).reshape(-1, 1, 2), returnPoints=False).ravel()
    corners = points[hull]
    distance = np.hypot(*(corners[:, None, :] - corners[None, :, :]).transpose(2, 0, 1))
    i, j = np.unravel_index(int(distance.argmax()), distance.shape)
    long_axis = float(distance[i, j])
    if long_axis == 0:
        return 0.0, 0.0
    along = (corners[j] - corners[i]) / long_axis
    t, u = points @ along, points @ np.array([-along[1], along[0]])
    t2, u2 = np.roll(t, -1), np.roll(u, -1)
    # The extent is linear between the vertices' places along the axis, so its largest value is at one of them.
    places = np.unique(t) if len(t) <= 512 else np.linspace(t.min(), t.max(), 512)
    crosses = (np.minimum(t, t2)[None, :] <= places[:, None]) & (places[:, None] <= np.maximum(t, t2)[None, :])
    step = np.where(t2 == t, 1.0, t2 - t)
    at = np.where(t2 == t, u, u + (places[:, None] - t) / step * (u2 - u))
    low, high = np.where(crosses, at, np.inf).min(axis=1), np.where(crosses, at, -np.inf).max(axis=1)
    return long_axis, float((high - low).max())


def _segmented(
    crop: CropMask, box: tuple[float, float, float, float], size: Size, config: ReconstructionConfig
) -> tuple[NDArray[np.float32], BoolMask, tuple[int, int]] | None:
    field, origin = native_field(crop, size, config)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((field >= 0).astype(np.uint8), connectivity=4)
    x1, y1, x2, y2 = clip_boxes([box], size)[0] - (origin[1], origin[0], origin[1], origin[0])
    rows, columns = np.arange(field.shape[0]) + 0.5, np.arange(field.shape[1]) + 0.5
    inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))[None, :]
    overlap = np.bincount(labels[inside], minlength=count)[1:]
    if not overlap.any():
        return None
    best = 1 + int(np.lexsort((stats[1:, cv2.CC_STAT_AREA], overlap))[-1])
    if overlap[best - 1] < config.min_box_fraction * max(float(box_area([[x1, y1, x2, y2]])[0]), 1.0):
        return None
    field, mask, origin = _tight(field, labels == best, origin)
    return field, filled(mask), origin


def _ellipse(box: tuple[float, float, float, float], size: Size) -> tuple[NDArray[np.float32], BoolMask, tuple[int, int]]:
    """The ellipse inscribed in the box as far as it lies in the image; at least the pixel nearest to its centre."""
    x1, y1, x2, y2 = clip_boxes([box], size)[0]
    field, origin = ellipse_in((min(x1, size[1] - 1), min(y1, size[0] - 1), x2, y2))
    if not (field >= 0).any():
        field[np.unravel_index(int(field.argmax()), field.shape)] = 0.5
    return _tight(field.astype(np.float32), field >= 0, origin)


def _merge(regions: list[_Region], share: float) -> list[_Region]:
    """Merges pairs whose overlap exceeds `share` of the smaller until none is left; regions are best first and stay so."""
    i = 0
    regions = list(regions)
    while i < len(regions):
        for j in range(i + 1, len(regions)):
            smaller = min(int(regions[i].mask.sum()), int(regions[j].mask.sum()))
            if _overlap(regions[i], regions[j]) > share * smaller:
                regions[i] = _union(regions[i], regions.pop(j))
                i = -1  # the union may reach further ones, on either side
                break
        i += 1
    return regions


def _share_pixels(regions: list[_Region]) -> list[_Region]:
    """Gives each pixel to the higher score; a rest in several pieces keeps the largest, one without a pixel joins in."""
    out: list[_Region] = []
    for region in regions:
        mask = region.mask.copy()
        for better in out:
            here, there = _common(region, better)
            if here is not None:
                mask[here] &= ~better.mask[there]
        if mask.any():
            out.append(replace(region, mask=_largest(mask)))
        else:  # wholly covered, if by several: it goes to the one that shares most with it
            k = int(np.argmax([_overlap(region, better) for better in out]))
            out[k] = replace(out[k], segmented=out[k].segmented or region.segmented)
    return out


def _union(a: _Region, b: _Region) -> _Region:
    top, left = min(a.origin[0], b.origin[0]), min(a.origin[1], b.origin[1])
    bottom, right = max(a.window()[2], b.window()[2]), max(a.window()[3], b.window()[3])
    field = np.full((bottom - top, right - left), -1.0, dtype=np.float32)
    mask = np.zeros(field.shape, dtype=bool)
    for r in (a, b):
        at = np.s_[r.origin[0] - top : r.window()[2] - top, r.origin[1] - left : r.window()[3] - left]
        field[at] = np.maximum(field[at], np.where(r.mask, np.maximum(r.field, 0.0), np.minimum(r.field, 0.0)))
        mask[at] |= r.mask
    segmented = a.segmented or b.segmented
    return replace(a, field=field, mask=filled(mask), origin=(top, left), segmented=segmented)


def _common(a: _Region, b: _Region) -> tuple[tuple[slice, slice], tuple[slice, slice]] | tuple[None, None]:
    """The part both windows share, as slices of either."""
    (t1, l1, b1, r1), (t2, l2, b2, r2) = a.window(), b.window()
    top, left, bottom, right = max(t1, t2), max(l1, l2), min(b1, b2), min(r1, r2)
    if bottom <= top or right <= left:
        return None, None
    return np.s_[top - t1 : bottom - t1, left - l1 : right - l1], np.s_[top - t2 : bottom - t2, left - l2 : right - l2]


def _overlap(a: _Region, b: _Region) -> int:
    here, there = _common(a, b)
    return 0 if here is None else int((a.mask[here] & b.mask[there]).sum())


def _largest(mask: BoolMask) -> BoolMask:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return mask if count <= 2 else labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def filled(mask: BoolMask) -> BoolMask:
    """The mask bool[h, w] with its holes filled: what no 4-connected way outside the mask leads to from the window's border."""
    outside = np.pad(~mask, 1, constant_values=True)
    _, labels = cv2.connectedComponents(outside.astype(np.uint8), connectivity=4)
    whole: BoolMask = (labels != labels[0, 0])[1:-1, 1:-1]
    return whole


def _tight(
    field: NDArray[np.float32], mask: BoolMask, origin: tuple[int, int]
) -> tuple[NDArray[np.float32], BoolMask, tuple[int, int]]:
    """Field and mask cut to the mask's box and a small margin."""
    x1, y1, x2, y2 = (int(v) for v in mask_box(mask))
    top, left = max(y1 - _MARGIN_PX, 0), max(x1 - _MARGIN_PX, 0)
    at = np.s_[top : y2 + _MARGIN_PX, left : x2 + _MARGIN_PX]
    return field[at], mask[at], (origin[0] + top, origin[1] + left)


def _polygon_area(points: Points) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _lesion(number: int, region: _Region, spacing_mm: Spacing | None, simplify_px: float) -> Lesion:
    contour = outline(region.field, region.mask, region.origin, simplify_px)
    x1, y1, x2, y2 = (int(v) for v in mask_box(region.mask))
    mask = region.mask[y1:y2, x1:x2].copy()
    area, long_axis, short_axis = None, None, None
    if spacing_mm is not None:
        area = float(mask.sum()) * spacing_mm[0] * spacing_mm[1]
        long_axis, short_axis = axes_mm(contour, spacing_mm)
    return Lesion(
        id=number,
        box=region.box,
        score=region.score,
        mask=mask,
        origin_px=(region.origin[0] + y1, region.origin[1] + x1),
        contour_xy=contour,
        area_mm2=area,
        long_axis_mm=long_axis,
        short_axis_mm=short_axis,
        outline="segmented" if region.segmented else "ellipse",
    )
