"""The one place that changes coordinates.

Points are (x, y), boxes `xyxy`, half-open, in pixel edges: (0, 0) is the top-left corner of the top-left pixel, so pixel
(row r, column c) covers x in [c, c+1), y in [r, r+1) and its centre is (c + 0.5, r + 0.5). Sizes are (H, W).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_NMS_BLOCK = 64


@dataclass(frozen=True)
class Transform:
    """An axis-aligned map between two image frames, with its inverse: x' = sx·x + tx, y' = sy·y + ty.

    sx, sy: non-zero; negative mirrors. size: (H, W) of the target frame in pixels.

    >>> t = Transform.crop_resize((10.0, 20.0, 30.0, 60.0), (80, 40))
    >>> t.boxes([[10, 20, 30, 60]]).tolist()
    [[0.0, 0.0, 40.0, 80.0]]
    >>> t.inverse((100, 100)).points(t.points([[12.5, 33.0]])).tolist()
    [[12.5, 33.0]]
    """

    sx: float
    sy: float
    tx: float
    ty: float
    size: tuple[int, int]

    def __post_init__(self) -> None:
        values = (self.sx, self.sy, self.tx, self.ty)
        if not all(np.isfinite(v) for v in values) or self.sx == 0 or self.sy == 0:
            raise ValueError(f"Transform: expected finite numbers and non-zero scales, got {values}")

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Transform:
        """The map of a frame of `size` to itself."""
        return cls(1.0, 1.0, 0.0, 0.0, size)

    @classmethod
    def crop_resize(cls, box: ArrayLike, size: tuple[int, int]) -> Transform:
        """Maps `box` (xyxy, source frame) onto the whole of a target frame of `size` (H, W), aspect not kept."""
        x1, y1, x2, y2 = (float(v) for v in np.asarray(box, dtype=np.float64))
        if not (x2 > x1 and y2 > y1):
            raise ValueError(f"Transform.crop_resize: expected a box with an area, got {(x1, y1, x2, y2)}")
        sx, sy = size[1] / (x2 - x1), size[0] / (y2 - y1)
        return cls(sx, sy, -sx * x1, -sy * y1, size)

    @classmethod
    def crop_letterbox(cls, box: ArrayLike, size: tuple[int, int]) -> Transform:
        """Maps `box` into a target frame of `size` (H, W) with aspect kept, centred; the rest of the frame is padding."""
        x1, y1, x2, y2 = (float(v) for v in np.asarray(box, dtype=np.float64))
        if not (x2 > x1 and y2 > y1):
            raise ValueError(f"Transform.crop_letterbox: expected a box with an area, got {(x1, y1, x2, y2)}")
        s = min(size[1] / (x2 - x1), size[0] / (y2 - y1))
        return cls(s, s, size[1] / 2 - s * (x1 + x2) / 2, size[0] / 2 - s * (y1 + y2) / 2, size)

    def points(self, xy: ArrayLike) -> Array:
        """Maps points f64[N, 2] of (x, y)."""
        return np.asarray(xy, dtype=np.float64).reshape(-1, 2) * (self.sx, self.sy) + (self.tx, self.ty)

    def boxes(self, xyxy: ArrayLike) -> Array:
        """Maps boxes f64[N, 4] `xyxy`; a mirror keeps x1 <= x2 and y1 <= y2."""
        b = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)
        out = b * (self.sx, self.sy, self.sx, self.sy) + (self.tx, self.ty, self.tx, self.ty)
        low = np.minimum(out[:, :2], out[:, 2:])
        return np.concatenate([low, np.maximum(out[:, :2], out[:, 2:])], axis=1)

    def inverse(self, size: tuple[int, int]) -> Transform:
        """The map back; `size` is the (H, W) of the source frame."""
        return Transform(1 / self.sx, 1 / self.sy, -self.tx / self.sx, -self.ty / self.sy, size)

    def then(self, other: Transform) -> Transform:
        """This map followed by `other`."""
        return Transform(
            self.sx * other.sx,
            self.sy * other.sy,
            self.tx * other.sx + other.tx,
            self.ty * other.sy + other.ty,
            other.size,
        )

    def image(self, pixels: NDArray[np.float32], border: float = 0.0) -> NDArray[np.float32]:
        """Resamples an f32[H, W] image into the target frame; what lies outside the source is `border`.

        Shrinking averages over the source pixels that a target pixel covers (no aliasing); enlarging is bilinear.
        """
        return _warp(np.asarray(pixels, dtype=np.float32), self, border)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Resamples a bool[H, W] mask into the target frame: a target pixel is set where at least half of it is covered."""
        covered = _warp(mask.astype(np.float32), self, 0.0)
        return covered >= 0.5 - 1e-6


def _warp(pixels: NDArray[np.float32], t: Transform, border: float) -> NDArray[np.float32]:
    height, width = t.size
    source = pixels
    # Shrink first by whole-area averaging, then place with a bilinear warp whose scales are within (1/2, inf).
    fx, fy = max(1.0, abs(1 / t.sx)), max(1.0, abs(1 / t.sy))
    pre = Transform.identity((source.shape[0], source.shape[1]))
    if fx > 1.0 or fy > 1.0:
        # Only the part that lands in the target is averaged.
        box = t.inverse((source.shape[0], source.shape[1])).boxes([[0, 0, width, height]])[0]
        x1, y1 = max(0, int(np.floor(box[0] - 2 * fx))), max(0, int(np.floor(box[1] - 2 * fy)))
        x2 = min(source.shape[1], int(np.ceil(box[2] + 2 * fx)))
        y2 = min(source.shape[0], int(np.ceil(box[3] + 2 * fy)))
        if x2 <= x1 or y2 <= y1:
            return np.full((height, width), border, dtype=np.float32)
        small = (max(1, round((y2 - y1) / fy)), max(1, round((x2 - x1) / fx)))
        source = cv2.resize(source[y1:y2, x1:x2], (small[1], small[0]), interpolation=cv2.INTER_AREA)
        pre = Transform.crop_resize((x1, y1, x2, y2), small)
    m = pre.inverse(t.size).then(t)
    # cv2 works with pixel centres at whole numbers: shift by half a pixel on both sides.
    matrix = np.array([[m.sx, 0, m.tx + 0.5 * m.sx - 0.5], [0, m.sy, m.ty + 0.5 * m.sy - 0.5]], dtype=np.float64)
    if m.sx == 1 and m.sy == 1 and m.tx == 0 and m.ty == 0 and source.shape == (height, width):
        return source.copy()
    replicated = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return _fill_outside(replicated, m, (source.shape[0], source.shape[1]), border)


def _fill_outside(out: NDArray[np.float32], m: Transform, source_size: tuple[int, int], border: float) -> NDArray[np.float32]:
    x1, y1, x2, y2 = m.boxes([[0, 0, source_size[1], source_size[0]]])[0]
    c1, c2 = max(0, int(np.ceil(x1 - 0.5))), int(np.floor(x2 - 0.5)) + 1
    r1, r2 = max(0, int(np.ceil(y1 - 0.5))), int(np.floor(y2 - 0.5)) + 1
    out[:r1], out[max(r2, 0) :], out[:, :c1], out[:, max(c2, 0) :] = border, border, border, border
    return out


LEAST_LEFT = 1.8
"""How far an image taken from a level of `Halves` is still to be reduced, so that the blocks' rims hardly show."""


class Halves:
    """An image f32[H, W] and its reductions: level k holds the means of 2^k × 2^k blocks, each level made when first asked for.

    Averaging by halves is much faster than a resize by another factor, and all that needs the image smaller shares it.
    Up to 2^k − 1 rows and columns at the far edges are left out of level k. May be shared by threads.
    """

    def __init__(self, pixels: NDArray[np.float32]) -> None:
        self._levels = [np.ascontiguousarray(pixels)]
        self._making = threading.Lock()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self._levels[0].shape[0], self._levels[0].shape[1]

    def level(self, k: int) -> NDArray[np.float32]:
        """f32[H // 2^k, W // 2^k]; one block at least must fit."""
        with self._making:
            while len(self._levels) <= k:
                last = self._levels[-1]
                height, width = last.shape[0] // 2, last.shape[1] // 2
                self._levels.append(cv2.resize(last[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA))
            return self._levels[k]

    def level_for(self, reduction: float) -> int:
        """The deepest level from which an image to be reduced by `reduction` is still to be reduced by `LEAST_LEFT` or more.

        >>> [Halves(np.zeros((4000, 3000), np.float32)).level_for(r) for r in (1.0, 3.5, 3.7, 9.0)]
        [0, 0, 1, 2]
        """
        deepest = max(0, int(np.log2(max(1, min(self.size)))))
        return min(deepest, max(0, int(np.floor(np.log2(max(reduction, 1e-9) / LEAST_LEFT)))))


def cxcywh_to_xyxy(boxes: ArrayLike) -> Array:
    """(centre x, centre y, width, height) to corners.

    >>> cxcywh_to_xyxy([[5, 5, 4, 2]]).tolist()
    [[3.0, 4.0, 7.0, 6.0]]
    """
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1)


def xyxy_to_cxcywh(boxes: ArrayLike) -> Array:
    """Corners to (centre x, centre y, width, height)."""
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], axis=1)


def xywh_to_xyxy(boxes: ArrayLike) -> Array:
    """COCO's (left, top, width, height) to corners."""
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)


def xyxy_to_xywh(boxes: ArrayLike) -> Array:
    """Corners to COCO's (left, top, width, height)."""
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


def clip_boxes(boxes: ArrayLike, size: tuple[int, int]) -> Array:
    """Boxes cut to an image of `size` (H, W); those outside collapse to no area."""
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).copy()
    b[:, 0::2] = b[:, 0::2].clip(0, size[1])
    b[:, 1::2] = b[:, 1::2].clip(0, size[0])
    return b


def box_area(boxes: ArrayLike) -> Array:
    """Areas f64[N] of `xyxy` boxes."""
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])


def box_iou(a: ArrayLike, b: ArrayLike) -> Array:
    """Intersection over union f64[N, M] of two sets of `xyxy` boxes; 0 where the union is empty.

    >>> box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2]]).round(4).tolist()
    [[0.3333]]
    """
    p = np.asarray(a, dtype=np.float64).reshape(-1, 1, 4)
    q = np.asarray(b, dtype=np.float64).reshape(1, -1, 4)
    wh = (np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2])).clip(0)
    inter = wh[..., 0] * wh[..., 1]
    union = box_area(p.reshape(-1, 4))[:, None] + box_area(q.reshape(-1, 4))[None, :] - inter
    iou: Array = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def nms(boxes: ArrayLike, scores: ArrayLike, iou_max: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: indices of the boxes f64[N, 4] kept, best score f64[N] first, equal ones in order.

    A box goes where its IoU with a kept, better one exceeds `iou_max`.

    >>> nms([[0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]], [0.5, 0.7, 0.6], 0.45).tolist()
    [1, 2]
    """
    b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    x1, y1, x2, y2 = (np.ascontiguousarray(side) for side in b[order].T)
    areas = (x2 - x1) * (y2 - y1)

    def exceeding(some: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        width = np.minimum(x2[some, None], x2[others]) - np.maximum(x1[some, None], x1[others])
        height = np.minimum(y2[some, None], y2[others]) - np.maximum(y1[some, None], y1[others])
        common = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        found: NDArray[np.bool_] = common > iou_max * (areas[some, None] + areas[others] - common)
        return found

    kept: list[int] = []
    rest = np.arange(len(order))
    while len(rest):  # the best of a block go on to be compared with all that is left; most boxes go early
        block, rest = rest[:_NMS_BLOCK], rest[_NMS_BLOCK:]
        within = exceeding(block, block)
        gone = np.zeros(len(block), dtype=bool)
        for i in range(len(block)):
            if not gone[i]:
                gone[i + 1 :] |= within[i, i + 1 :]
        best = block[~gone]
        kept += best.tolist()
        rest = rest[~exceeding(best, rest).any(axis=0)]
    return np.asarray(order[np.array(kept, dtype=np.int64)])


def ellipse_in(box: ArrayLike) -> tuple[Array, tuple[int, int]]:
    """The ellipse inscribed in a box `xyxy`: f64[h, w], 0 on it, above inside, sampled at pixel centres; origin (row, column).

    The window is the box rounded outward, a pixel at least.

    >>> field, origin = ellipse_in([1, 0, 5, 4])
    >>> (field >= 0).astype(int).tolist(), origin
    ([[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]], (0, 1))
    """
    x1, y1, x2, y2 = (float(v) for v in np.asarray(box, dtype=np.float64).reshape(4))
    left, top = int(np.floor(x1)), int(np.floor(y1))
    right, bottom = max(int(np.ceil(x2)), left + 1), max(int(np.ceil(y2)), top + 1)
    across = (np.arange(left, right) + 0.5 - (x1 + x2) / 2) / max((x2 - x1) / 2, 0.5)
    down = (np.arange(top, bottom) + 0.5 - (y1 + y2) / 2) / max((y2 - y1) / 2, 0.5)
    field: Array = 1.0 - np.hypot(across[None, :], down[:, None])
    return field, (top, left)


def mask_box(mask: NDArray[np.bool_], origin_px: tuple[int, int] = (0, 0)) -> tuple[float, float, float, float]:
    """The tight `xyxy` box of a mask whose top-left pixel is at `origin_px` (row, column) of the image."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("mask_box: expected a mask with at least one pixel set, got an empty one")
    r, c = origin_px
    return float(c + cols[0]), float(r + rows[0]), float(c + cols[-1] + 1), float(r + rows[-1] + 1)
