"""How well outlines agree: Dice, IoU, and surface distances in mm, of sparse masks.

A placed mask is (bool[h, w], (row, column) of its top-left pixel); everything outside is background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mammoseg.geometry import ellipse_in
from mammoseg.types import BoolMask, Spacing

Placed = tuple[BoolMask, tuple[int, int]]


def dice(a: Placed, b: Placed) -> float:
    """2·|A∩B| / (|A| + |B|); raises ValueError where both are empty, since then it has no meaning."""
    both, in_a, in_b = areas(a, b)
    if in_a + in_b == 0:
        raise ValueError("dice: expected at least one mask with a pixel, got two empty ones")
    return 2.0 * both / (in_a + in_b)


def iou(a: Placed, b: Placed) -> float:
    """|A∩B| / |A∪B|; raises ValueError where both are empty."""
    both, in_a, in_b = areas(a, b)
    if in_a + in_b == 0:
        raise ValueError("iou: expected at least one mask with a pixel, got two empty ones")
    return both / (in_a + in_b - both)


def areas(a: Placed, b: Placed) -> tuple[int, int, int]:
    """(|A∩B|, |A|, |B|) in pixels.

    >>> square = np.ones((4, 4), dtype=bool)
    >>> areas((square, (0, 0)), (square, (2, 1)))
    (6, 16, 16)
    """
    (mask_a, (r1, c1)), (mask_b, (r2, c2)) = a, b
    top, left = max(r1, r2), max(c1, c2)
    bottom, right = min(r1 + mask_a.shape[0], r2 + mask_b.shape[0]), min(c1 + mask_a.shape[1], c2 + mask_b.shape[1])
    both = 0
    if bottom > top and right > left:
        both = int(
            (
                mask_a[top - r1 : bottom - r1, left - c1 : right - c1] & mask_b[top - r2 : bottom - r2, left - c2 : right - c2]
            ).sum()
        )
    return both, int(mask_a.sum()), int(mask_b.sum())


def union(masks: Sequence[Placed]) -> Placed:
    """The union of placed masks; an empty mask for none."""
    if not masks:
        return np.zeros((0, 0), dtype=bool), (0, 0)
    top, left = min(o[0] for _, o in masks), min(o[1] for _, o in masks)
    bottom, right = max(o[0] + m.shape[0] for m, o in masks), max(o[1] + m.shape[1] for m, o in masks)
    out = np.zeros((bottom - top, right - left), dtype=bool)
    for m, (r, c) in masks:
        out[r - top : r - top + m.shape[0], c - left : c - left + m.shape[1]] |= m
    return out, (top, left)


def inscribed_ellipse(box: tuple[float, float, float, float]) -> Placed:
    """The ellipse inscribed in a box `xyxy`: pixels whose centre is inside. The baseline every segmenter has to beat."""
    field, origin = ellipse_in(box)
    return field >= 0, origin


def surface_distances(a: Placed, b: Placed, spacing_mm: Spacing) -> tuple[float, float]:
    """(HD95, ASSD) in mm between the borders of two masks, neither of them empty; spacing_mm: (row, column).

    A border pixel has a 4-neighbour outside. Distances are between pixel centres, from each border pixel of either mask to
    the nearest of the other, both directions pooled: their 95th percentile and their mean.
    """
    both, (top, left) = union([a, b])
    shape = (both.shape[0], both.shape[1])
    borders = []
    for mask, (r, c) in (a, b):
        if not mask.any():
            raise ValueError("surface_distances: expected two masks with pixels, got an empty one")
        full = np.zeros((shape[0] + 2, shape[1] + 2), dtype=bool)
        full[1 + r - top : 1 + r - top + mask.shape[0], 1 + c - left : 1 + c - left + mask.shape[1]] = mask
        borders.append(full & ~ndimage.binary_erosion(full))
    to_a, to_b = (ndimage.distance_transform_edt(~border, sampling=spacing_mm) for border in borders)
    distances: NDArray[np.float64] = np.concatenate([to_b[borders[0]], to_a[borders[1]]])
    return float(np.percentile(distances, 95)), float(distances.mean())
