"""Where the breast is in a mammogram: a box and a mask that leave out film borders, labels and empty background.

Made not to lose breast: where the image does not look as expected the whole image is the answer. The work is done on a
reduced copy, at most 512 pixels high; the result is in native pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import Halves
from mammoseg.types import BoolMask, FloatImage, Size

WORK_HEIGHT_PX = 512
MARGIN = 0.015  # of the box's longer side, added on every side
_BORDER_MAX = 0.12  # of the side: a film border is never wider than this
_BRIGHT = 0.35  # a film border is at least so bright
_LABEL_FRACTION = 0.10  # of the main region's area: smaller regions apart from it are labels
_OPENING = 0.015  # of the shorter side: radius below which bright lines along the edges are no breast
_TOUCH = 0.3  # of a side's length: where the breast touches a bright border so far, the border may be muscle
_FLAT = 0.04  # of the grey range: a strip that varies less is a film border
_DARK_BREAST = 0.10  # of the grey range: between background and a breast that is darker than the muscle beside it
_AREA_MIN = 0.04  # of the image: a smaller region is no breast, hence the whole image


def breast_box(pixels: FloatImage) -> NDArray[np.float64]:
    """The box around the breast.

    pixels: f32[H, W] in [0, 1], bright = dense. Returns f64[4] `xyxy`, integer-valued, half-open, native frame, with a
    small margin; the whole image where no breast can be told from the background.

    >>> image = np.zeros((100, 80), np.float32)
    >>> image[20:80, :40] = 0.5
    >>> breast_box(image).tolist()
    [0.0, 17.0, 43.0, 83.0]
    """
    return box_of(reduced_mask(pixels), (pixels.shape[0], pixels.shape[1]))


def box_of(region: BoolMask | None, size: Size) -> NDArray[np.float64]:
    """`breast_box` of an image of `size` (H, W) whose `reduced_mask` is `region`."""
    height, width = size
    if region is None:
        return np.array([0.0, 0.0, width, height])
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    sy, sx = height / region.shape[0], width / region.shape[1]
    x1, x2 = columns[0] * sx, (columns[-1] + 1) * sx
    y1, y2 = rows[0] * sy, (rows[-1] + 1) * sy
    margin = MARGIN * max(x2 - x1, y2 - y1)
    low = np.floor([x1 - margin, y1 - margin]).clip(0)
    high = np.minimum(np.ceil([x2 + margin, y2 + margin]), (width, height))
    return np.concatenate([low, high]).astype(np.float64)


def breast_mask(pixels: FloatImage) -> BoolMask:
    """The breast (with pectoral muscle) as bool[H, W] in the native frame; all True where it cannot be told.

    pixels: f32[H, W] in [0, 1], bright = dense. Holes are filled; the skin line is exact to about 1/500 of the height.
    """
    return mask_of(reduced_mask(pixels), (pixels.shape[0], pixels.shape[1]))


def mask_of(region: BoolMask | None, size: Size) -> BoolMask:
    """`breast_mask` of an image of `size` (H, W) whose `reduced_mask` is `region`."""
    if region is None:
        return np.ones(size, dtype=np.bool_)
    full = cv2.resize(region.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(full >= 0.5, dtype=np.bool_)


def mask_on_grid(region: BoolMask | None, size: Size, step: int) -> BoolMask:
    """`mask_of(region, size)[::step, ::step]` without the rest."""
    rows, columns = np.arange(0, size[0], step), np.arange(0, size[1], step)
    if region is None:
        return np.ones((len(rows), len(columns)), dtype=np.bool_)
    (top, bottom, down), (left, right, across) = (
        _neighbours(places, full, reduced) for places, full, reduced in zip((rows, columns), size, region.shape, strict=True)
    )
    values = region.astype(np.float32)
    wide = values[:, left] * (1 - across) + values[:, right] * across
    full = wide[top] * (1 - down)[:, None] + wide[bottom] * down[:, None]
    return np.asarray(full >= 0.5, dtype=np.bool_)


def _neighbours(
    places: NDArray[np.int64], full: int, reduced: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Between which reduced pixels the centres of full pixels lie, and how far towards the second (bilinear, as OpenCV's)."""
    at = ((places + 0.5) * (reduced / full) - 0.5).clip(0, reduced - 1)
    first = np.floor(at).astype(np.int64)
    return first, np.minimum(first + 1, reduced - 1), (at - first).astype(np.float32)


def reduced_mask(pixels: FloatImage | Halves) -> BoolMask | None:
    """The breast in a copy reduced to at most `WORK_HEIGHT_PX`, bool[h, w], or None where it cannot be told."""
    halves = pixels if isinstance(pixels, Halves) else Halves(pixels)
    height, width = halves.size
    scale = min(1.0, WORK_HEIGHT_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    level = halves.level(halves.level_for(1 / scale))
    small = cv2.resize(level, size, interpolation=cv2.INTER_AREA)
    if min(small.shape) < 16:
        return None
    inner = _without_borders(small)
    if inner is None:
        return None
    for _ in range(2):
        y1, x1, y2, x2 = inner
        region = _main_region(small[y1:y2, x1:x2])
        if region is None:
            return None
        wider = _give_back(small, inner, region)
        if wider == inner:
            break
        inner = wider
    else:
        y1, x1, y2, x2 = inner
        region = _main_region(small[y1:y2, x1:x2])
        if region is None:
            return None
    out = np.zeros(small.shape, dtype=np.bool_)
    out[y1:y2, x1:x2] = region
    return out if out.mean() >= _AREA_MIN else None


def _give_back(small: FloatImage, inner: tuple[int, int, int, int], region: BoolMask) -> tuple[int, int, int, int]:
    """`inner` with those trimmed strips given back that may be breast: a bright muscle looks much like a film border.

    A strip is given back where the breast touches it along a third of its length and the strip is not flat white.
    """
    y1, x1, y2, x2 = inner
    height, width = small.shape
    if region[:, 0].mean() > _TOUCH and not _flat(small[y1:y2, :x1]):
        x1 = 0
    if region[:, -1].mean() > _TOUCH and not _flat(small[y1:y2, x2:]):
        x2 = width
    if region[0].mean() > 2 * _TOUCH and not _flat(small[:y1, x1:x2]):
        y1 = 0
    if region[-1].mean() > 2 * _TOUCH and not _flat(small[y2:, x1:x2]):
        y2 = height
    return y1, x1, y2, x2


def _flat(strip: FloatImage) -> bool:
    """Whether a strip is one shade of white or grey (or empty): the film's frame, no tissue."""
    return strip.size == 0 or float(np.quantile(strip, 0.9) - np.quantile(strip, 0.1)) < _FLAT


def _without_borders(small: FloatImage) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of what lies inside white or grey film borders, in reduced pixels."""
    height, width = small.shape
    top, left, bottom, right = 0, 0, height, width
    for _ in range(2):  # a border on one side hides the uniformity of the next
        view = small[top:bottom, left:right]
        a, b = _border_widths(view.T)
        left, right = left + a, right - b
        view = small[top:bottom, left:right]
        a, b = _border_widths(view)
        top, bottom = top + a, bottom - b
        if bottom - top < height // 2 or right - left < width // 3:
            return None
    return top, left, bottom, right


def _border_widths(view: FloatImage) -> tuple[int, int]:
    """How many rows at the start and at the end are film border: bright along (nearly) their whole length, and flat."""
    limit = max(1, int(_BORDER_MAX * len(view)))
    start, end = (np.quantile(rows, 0.08, axis=1) for rows in (view[:limit], view[::-1][:limit]))
    if max(start.max(), end.max()) <= _BRIGHT:
        return 0, 0
    least = max(_BRIGHT, float(np.median(view)) + 0.15)
    return _run(start > least), _run(end > least)


def _run(flags: NDArray[np.bool_]) -> int:
    """The index after the last set flag of a run that starts within the first three and has gaps of at most two.

    A run that fills all flags is no border (the whole image is bright there): 0.
    """
    end, gap = 0, 0
    for i, flag in enumerate(flags):
        if flag:
            end, gap = i + 1, 0
        else:
            gap += 1
            if gap > 2:
                break
    return 0 if end == len(flags) else end


def _main_region(view: FloatImage) -> BoolMask | None:
    """The largest bright region with its big companions, holes filled; None where there is no dark background."""
    smooth = cv2.GaussianBlur(view, (0, 0), 1.5)
    threshold = _threshold(smooth)
    if threshold is None:
        return None
    mask = (smooth > threshold).astype(np.uint8)
    radius = max(2, round(_OPENING * min(view.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # Zeros outside: opening removes thin bright lines along the film's edge; what it takes from the breast's corners and
    # ridges comes back by one conditional dilation.
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    opened = cv2.dilate(opened, kernel) & mask
    count, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(opened), connectivity=8)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.float64)
    best = int(np.argmax(areas)) + 1
    keep = np.isin(labels, 1 + np.flatnonzero(areas >= _LABEL_FRACTION * areas[best - 1]))
    return _filled(keep)


def _threshold(smooth: FloatImage) -> float | None:
    """A low threshold between background and tissue, or None where everything is one or the other.

    The background is the lowest mode of the histogram; the threshold sits above its spread, well below the fat's grey.
    """
    values = smooth.ravel()
    dark, bright = (float(v) for v in np.quantile(values, [0.02, 0.98]))
    if bright - dark < 0.03:
        return None
    otsu = _otsu(values)
    lower = values[values <= otsu]
    split = _otsu(lower)
    share = float((lower <= split).mean())
    # A bright muscle beside a dark breast: Otsu parts those two, and the breast is in the lower class with the background.
    if 0.15 < share < 0.85 and lower[lower > split].mean() - lower[lower <= split].mean() > _DARK_BREAST:
        otsu = split
    background = values[values <= otsu]
    if background.size < 0.03 * values.size:
        return None
    centre = float(np.median(background))
    spread = 1.4826 * float(np.median(np.abs(background - centre), overwrite_input=True))
    # Fat near the skin line is far darker than Otsu's threshold: go down towards the background.
    return min(otsu, centre + max(3.0 * spread, 0.004) + 0.25 * (otsu - centre))


def _otsu(values: FloatImage) -> float:
    """Otsu's threshold over 256 bins of the values' own range."""
    low, high = float(values.min()), float(values.max())
    if not low < high:
        return low
    places = (values - np.float32(low)) * np.float32(256 / (high - low))
    counts = np.bincount(places.astype(np.int32).clip(0, 255), minlength=256)  # as np.histogram, in a quarter of its time
    edges = np.linspace(low, high, 257)
    weights = np.cumsum(counts)
    centres = (edges[:-1] + edges[1:]) / 2
    sums = np.cumsum(counts * centres)
    total, total_sum = weights[-1], sums[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total_sum * weights / total - sums) ** 2 / (weights * (total - weights))
    return float(centres[int(np.nanargmax(np.where(np.isfinite(between), between, -1.0)))])


def _filled(mask: BoolMask) -> BoolMask:
    """The mask with its holes filled."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = np.zeros(mask.shape, dtype=np.uint8)
    cv2.drawContours(out, contours, -1, 1, thickness=cv2.FILLED)
    return out.astype(np.bool_)
