"""COCO's two ways to write a mask, polygons and run lengths, to and from a mask with an origin.

A mask is bool[h, w] whose top-left pixel lies at `origin_px` (row, column) of the image; all else is background.
COCO runs count pixels column by column, background first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]
Placed = tuple[Mask, tuple[int, int]]
Counts = NDArray[np.int64]


def tight(mask: Mask, origin_px: tuple[int, int] = (0, 0)) -> Placed | None:
    """The mask cut to its set pixels, with its new origin; None where no pixel is set."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    part = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].copy()
    return part, (origin_px[0] + int(rows[0]), origin_px[1] + int(cols[0]))


def rasterise(polygons: Sequence[ArrayLike], size: tuple[int, int]) -> Placed | None:
    """The union of polygons f64[K, 2] of (x, y) in pixel edges, cut to an image of `size` (H, W).

    A pixel is inside where its centre is (even–odd rule within one polygon). None where no pixel centre is inside.
    """
    shapes = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in polygons]
    every = np.concatenate(shapes)
    c1, r1 = np.floor(every.min(axis=0)).astype(int).clip(0)
    c2, r2 = np.minimum(np.ceil(every.max(axis=0)).astype(int), (size[1], size[0]))
    if r2 <= r1 or c2 <= c1:
        return None
    out = np.zeros((r2 - r1, c2 - c1), dtype=np.bool_)
    for shape in shapes:
        out |= _fill(shape - (c1, r1), out.shape)
    return tight(out, (int(r1), int(c1)))


def _fill(polygon: NDArray[np.float64], size: tuple[int, int]) -> Mask:
    toggles = np.zeros((size[0], size[1] + 1), dtype=np.int32)
    for (xa, ya), (xb, yb) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if ya == yb:
            continue
        # Rows whose centre line the edge crosses, half-open so that a shared corner counts once.
        first, last = np.ceil(min(ya, yb) - 0.5), np.ceil(max(ya, yb) - 0.5)
        rows = np.arange(max(0, int(first)), min(size[0], int(last)))
        x = xa + (rows + 0.5 - ya) * (xb - xa) / (yb - ya)
        np.add.at(toggles, (rows, np.ceil(x - 0.5).astype(int).clip(0, size[1])), 1)
    inside: Mask = np.cumsum(toggles[:, :-1], axis=1) % 2 == 1
    return inside


def decode_rle(counts: str | bytes | Sequence[int], size: tuple[int, int]) -> Placed | None:
    """Reads COCO run lengths (a list of numbers, or COCO's compressed text) of an image of `size` (H, W).

    Raises ValueError where the runs do not add up to H × W. None where no pixel is set.
    """
    runs = _parse(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, dtype=np.int64)
    height, width = size
    if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"the run lengths do not add up to {height} × {width} pixels")
    ends = np.cumsum(runs)
    starts, ends = (ends - runs)[1::2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return None
    first, last = int(starts[0]) // height, (int(ends[-1]) - 1) // height
    flat = np.zeros((last - first + 1) * height + 1, dtype=np.int8)
    flat[starts - first * height] += 1
    flat[ends - first * height] -= 1
    columns = np.cumsum(flat[:-1], dtype=np.int8).astype(np.bool_).reshape(-1, height)
    return tight(np.ascontiguousarray(columns.T), (0, first))


def encode_rle(mask: Mask, origin_px: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """A COCO segmentation {"size": [H, W], "counts": compressed text} of a mask in an image of `size` (H, W)."""
    height, width = size
    h, w = mask.shape
    r, c = origin_px
    if r < 0 or c < 0 or r + h > height or c + w > width:
        raise ValueError(f"encode_rle: a mask of {h} × {w} at {origin_px} does not lie within {height} × {width}")
    columns = np.zeros((w, height), dtype=np.int8)
    columns[:, r : r + h] = mask.T
    change = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + c * height
    ends = np.concatenate([[0], change, [height * width]])
    runs = np.diff(ends)
    return {"size": [height, width], "counts": _text(runs[:-1] if runs[-1] == 0 else runs)}


def _parse(counts: str | bytes) -> Counts:
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for byte in text:
        code = byte - 48
        if not 0 <= code < 64:
            raise ValueError(f"the compressed run lengths hold a character that does not belong there: {chr(byte)!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the compressed run lengths end within a number")
    return np.asarray(runs, dtype=np.int64)


def _text(runs: Counts) -> str:
    out: list[str] = []
    numbers = [int(v) for v in runs]
    for i, number in enumerate(numbers):
        value = number - numbers[i - 2] if i > 2 else number
        while True:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            out.append(chr((code | 32 if more else code) + 48))
            if not more:
                break
    return "".join(out)
