"""Findings as pictures: the label image `mask.png`, and `overlay.png` after the paper's Fig. 6.

Colours keep apart for colour-blind eyes, and lines differ in form too: box yellow and thin, contour red and unbroken, truth
green and dashed. Lines and text grow with the picture, which is at least 1200 and at most 1600 pixels high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import Transform
from mammoseg.io.atomic import write_atomic
from mammoseg.types import Annotation, Findings, Lesion, Mammogram

HEIGHT_MAX_PX = 1600
HEIGHT_MIN_PX = 1200
YELLOW, RED, GREEN = (40, 220, 250), (70, 60, 255), (140, 210, 0)  # BGR
_FONT = cv2.FONT_HERSHEY_SIMPLEX
Picture = NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]


def label_image(f: Findings) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The lesions as labels [H, W] in the native frame: 0 background, k = lesion id k.

    uint8, or uint16 where an id exceeds 255. A pixel of two lesions belongs to the higher score. Raises `ValueError` for
    findings without a size.
    """
    if f.image.height is None or f.image.width is None:
        raise ValueError(f"label_image: expected processed findings, got {f.status}")
    wide = max((lesion.id for lesion in f.lesions), default=0) > 255
    labels = np.zeros((f.image.height, f.image.width), dtype=np.uint16 if wide else np.uint8)
    for lesion in sorted(f.lesions, key=lambda item: (item.score, -item.id)):
        r, c = lesion.origin_px
        h, w = lesion.mask.shape
        if r < 0 or c < 0 or r + h > labels.shape[0] or c + w > labels.shape[1]:
            raise ValueError(f"label_image: the mask of lesion {lesion.id} leaves the image")
        labels[r : r + h, c : c + w][lesion.mask] = lesion.id
    return labels


def write_mask_png(path: Path, f: Findings) -> None:
    """Writes `label_image(f)` as a PNG, atomically."""
    write_atomic(path, _png(label_image(f)))


def write_overlay_png(path: Path, mammogram: Mammogram, f: Findings, truth: Annotation | None = None) -> None:
    """Writes `overlay(mammogram, f, truth)` as a PNG, atomically."""
    write_atomic(path, _png(overlay(mammogram, f, truth)))


def _png(image: NDArray[np.generic]) -> bytes:
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError("PNG encoding failed")
    return data.tobytes()


@dataclass(frozen=True)
class _Style:
    """Sizes in picture pixels."""

    line: int
    font: float
    stroke: int
    gap: int


def overlay(mammogram: Mammogram, f: Findings, truth: Annotation | None = None) -> Picture:
    """The mammogram with each lesion's box (yellow), contour (red), number, score and long axis; the truth green, dashed.

    Returns u8[h, w, 3] BGR, the native aspect, h at least 1200 and at most 1600. Where nothing was found it says so.
    """
    height, width = mammogram.size
    scale = min(max(1.0, HEIGHT_MIN_PX / height), HEIGHT_MAX_PX / height)
    size = round(height * scale), max(1, round(width * scale))
    to_picture = Transform(size[1] / width, size[0] / height, 0.0, 0.0, size)
    grey = np.rint(to_picture.image(mammogram.pixels).clip(0, 1) * 255).astype(np.uint8)
    picture: Picture = np.ascontiguousarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    unit = (size[0] * size[1]) ** 0.5 / 1000
    style = _Style(max(1, round(1.8 * unit)), max(0.5, 0.85 * unit), max(1, round(2 * unit)), max(4, round(9 * unit)))
    if truth is not None:
        for mass in truth.masses:
            _draw_truth(picture, mass.mask, mass.origin_px, mass.box, to_picture, style.line)
    boxes = [_rectangle(to_picture.boxes(lesion.box)[0], size) for lesion in f.lesions]
    for lesion, box in zip(f.lesions, boxes, strict=True):
        cv2.rectangle(picture, box[:2], (box[2] - 1, box[3] - 1), (0, 0, 0), style.line + 2, cv2.LINE_AA)
        cv2.rectangle(picture, box[:2], (box[2] - 1, box[3] - 1), YELLOW, style.line, cv2.LINE_AA)
        _polygon(picture, to_picture.points(lesion.contour_xy), RED, style.line)
    taken: list[Rectangle] = []
    for lesion, box in zip(f.lesions, boxes, strict=True):
        taken.append(_label(picture, _caption(lesion), box, [b for b in boxes if b is not box] + taken, style))
    if not f.lesions and f.status == "processed":
        _note(picture, "no mass found", style)
    return picture


def _caption(lesion: Lesion) -> str:
    text = f"{lesion.id}: {lesion.score:.2f}"
    return text if lesion.long_axis_mm is None else f"{text}  {lesion.long_axis_mm:.0f} mm"


def _rectangle(box: NDArray[np.float64], size: tuple[int, int]) -> Rectangle:
    x1, y1 = (int(v) for v in np.floor(box[:2]).clip(0, (size[1] - 1, size[0] - 1)))
    x2, y2 = (int(v) for v in np.ceil(box[2:]).clip((x1 + 1, y1 + 1), size[::-1]))
    return x1, y1, x2, y2


def _polygon(picture: Picture, points: NDArray[np.float64], colour: tuple[int, int, int], line: int) -> None:
    if len(points) < 2:
        return
    # Points are pixel edges; OpenCV draws at pixel centres, with 4 fractional bits.
    fixed = np.rint((points - 0.5) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(picture, [fixed], True, colour, line, cv2.LINE_AA, 4)


def _draw_truth(
    picture: Picture,
    mask: NDArray[np.bool_] | None,
    origin_px: tuple[int, int],
    box: Sequence[float],
    to_picture: Transform,
    line: int,
) -> None:
    """The true mass as a dashed green line: its outline, or its box where only that is known."""
    if mask is None:
        x1, y1, x2, y2 = box
        outlines = [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float64)]
    else:
        padded = np.pad(mask, 1).astype(np.uint8)
        found, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outlines = [c.reshape(-1, 2) + np.array(origin_px[::-1]) - 0.5 for c in found]
    for outline in outlines:
        _dashes(picture, to_picture.points(outline), 8 * line, line)


def _dashes(picture: Picture, points: NDArray[np.float64], dash: int, line: int) -> None:
    closed = np.vstack([points, points[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    count = max(4, round(along[-1] / (2 * dash)))
    for i in range(count):
        at = np.linspace(along[-1] * i / count, along[-1] * (i + 0.55) / count, 8)
        piece = np.stack([np.interp(at, along, closed[:, 0]), np.interp(at, along, closed[:, 1])], axis=1)
        fixed = np.rint((piece - 0.5) * 16).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(picture, [fixed], False, GREEN, line, cv2.LINE_AA, 4)


def _label(picture: Picture, text: str, box: Rectangle, avoid: list[Rectangle], style: _Style) -> Rectangle:
    """Writes `text` beside `box`: above, below, right or left, where it covers no box or label, inside the picture."""
    height, width = picture.shape[:2]
    (w, h), baseline = cv2.getTextSize(text, _FONT, style.font, style.stroke)
    w, h, gap = w + style.gap, h + baseline + style.gap // 2, style.gap // 2
    x1, y1, x2, y2 = box
    middle = (y1 + y2 - h) // 2
    places = [(x1, y1 - gap - h), (x1, y2 + gap), (x2 + gap, middle), (x1 - gap - w, middle), (x2 - w, y1 - gap - h)]
    places += [(x2 - w, y2 + gap), (x2 + gap, y1 - h), (x1 - gap - w, y1 - h), (x2 + gap, y2), (x1 - gap - w, y2)]
    best, best_cost = (0, 0), float("inf")
    for rank, (x, y) in enumerate(places):
        x, y = min(max(x, 0), max(0, width - w)), min(max(y, 0), max(0, height - h))
        here = (x, y, x + w, y + h)
        cost = 1e-3 * rank + 4.0 * _overlap(here, box) + sum(_overlap(here, other) for other in avoid)
        if cost < best_cost:
            best, best_cost = (x, y), cost
    _write(picture, text, (best[0] + style.gap // 2, best[1] + h - baseline), style)
    return best[0], best[1], best[0] + w, best[1] + h


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return float(max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1])))


def _write(picture: Picture, text: str, at: tuple[int, int], style: _Style) -> None:
    (w, h), baseline = cv2.getTextSize(text, _FONT, style.font, style.stroke)
    g = style.gap // 2
    plate = picture[max(0, at[1] - h - g) : at[1] + baseline, max(0, at[0] - g) : at[0] + w + g]
    plate[:] = plate // 4  # a dark plate: the text stays readable on dense tissue and on film borders
    cv2.putText(picture, text, at, _FONT, style.font, YELLOW, style.stroke, cv2.LINE_AA)


def _note(picture: Picture, text: str, style: _Style) -> None:
    """Writes `text` in the darkest corner."""
    height, width = picture.shape[:2]
    (w, h), baseline = cv2.getTextSize(text, _FONT, style.font, style.stroke)
    g = style.gap
    corners = [(x, y) for y in (height - g - baseline, g + h) for x in (g, max(0, width - w - g))]
    at = min(corners, key=lambda p: float(picture[max(0, p[1] - h) : p[1], p[0] : p[0] + w].mean()))
    _write(picture, text, at, style)
