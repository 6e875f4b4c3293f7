"""The curves as inline SVG, and the worst cases as small pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from mammoseg.evaluation.average_precision import PrecisionRecall
from mammoseg.evaluation.calibration import Reliability
from mammoseg.evaluation.froc import Froc
from mammoseg.evaluation.measures import Outcome
from mammoseg.geometry import Transform
from mammoseg.types import BoolMask, Mammogram

INK, LINE, GRID, STAR = "#1f2933", "#0b6e99", "#dde3ea", "#c2410c"
YELLOW, RED, GREEN = (0, 215, 255), (60, 60, 235), (80, 200, 60)  # BGR
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "mammoseg", "font.family": "sans-serif", "font.size": 10,
          "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One operating point to mark: at (x, y), as `label` tells."""

    x: float
    y: float
    label: str


def pr_svg(curve: PrecisionRecall, label: str, point: Point | None) -> str:
    """Precision over recall with its envelope; `point`: (recall, precision) of the lesions shown."""
    with rc_context(_STYLE):
        canvas, axes = _axes("Recall", "Precision", (0.0, 1.0))
        first = curve.precision[0] if len(curve.precision) else 0.0
        recall, precision = np.append(0.0, curve.recall), np.append(first, curve.precision)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        axes.plot(recall, precision, color=LINE, alpha=0.35, linewidth=1.0)
        axes.step(recall, envelope, where="pre", color=LINE, linewidth=2.0, label=label)
        axes.fill_between(recall, envelope, step="pre", color=LINE, alpha=0.08, linewidth=0)
        return _svg(canvas, axes, point, "lower left")


def froc_svg(curve: Froc, at: tuple[float, ...], label: str, point: Point | None) -> str:
    """TPR over false positives per image, the usual reading points marked; `point`: (fpi, tpr) of the lesions shown."""
    with rc_context(_STYLE):
        reach = max(2.0 * max(at, default=1.0), 1.2 * point.x if point is not None else 0.0, 0.5)
        canvas, axes = _axes("False positives per image", "True positive rate", (0.0, reach))
        last = float(curve.tpr[-1]) if len(curve.tpr) else 0.0
        fpi, tpr = np.concatenate([[0.0], curve.fpi, [max(reach, 2.0)]]), np.concatenate([[0.0], curve.tpr, [last]])
        axes.step(fpi, tpr, where="post", color=LINE, linewidth=2.0, label=label)
        for f in at:
            reached = float(tpr[:-1][np.searchsorted(curve.fpi, f + 1e-12, side="right")])
            axes.plot([f], [reached], "o", color="white", markeredgecolor=LINE, markersize=6, zorder=5)
            axes.annotate(f"{reached:.2f}", (f, reached), (4, -13), textcoords="offset points", fontsize=9, color=LINE)
        return _svg(canvas, axes, point, "lower right")


def reliability_svg(found: Reliability, label: str) -> str:
    """The share of candidates that is right over their mean score, a point a bin, its area by how many it holds."""
    with rc_context(_STYLE):
        canvas, axes = _axes("Mean score", "Share that found a mass", (0.0, 1.0))
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="a probability")
        size = [max(12.0, 600.0 * b.n / found.n) for b in found.bins]
        axes.plot([b.score for b in found.bins], [b.rate for b in found.bins], color=LINE, linewidth=1.2, alpha=0.5)
        axes.scatter([b.score for b in found.bins], [b.rate for b in found.bins], s=size, color=LINE, zorder=5, label=label)
        return _svg(canvas, axes, None, "upper left")


def case_picture(mammogram: Mammogram, outcome: Outcome, focus: tuple[float, float, float, float], height: int = 440) -> str:
    """Whole image and a close view of `focus` (box, native frame) side by side, as a data URI (JPEG).

    Truth green, outline of a lesion red, its detection box yellow with its score.
    """
    h, w = mammogram.size
    whole = _draw(mammogram, outcome, (0.0, 0.0, float(w), float(h)), (height, max(1, round(height * w / h))), thin=True)
    side = min(max(2.6 * max(focus[2] - focus[0], focus[3] - focus[1]), 0.08 * h), float(max(h, w)))
    cx, cy = (focus[0] + focus[2]) / 2, (focus[1] + focus[3]) / 2
    view = (cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)
    scale = height / h
    corners = [(round(view[0] * scale), round(view[1] * scale)), (round(view[2] * scale), round(view[3] * scale))]
    cv2.rectangle(whole, corners[0], corners[1], (235, 235, 235), 1, cv2.LINE_AA)
    close = _draw(mammogram, outcome, view, (height, height), thin=False)
    both = np.hstack([whole, np.full((height, 6, 3), 255, np.uint8), close])
    encoded = cv2.imencode(".jpg", both, [cv2.IMWRITE_JPEG_QUALITY, 86])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _draw(
    mammogram: Mammogram, outcome: Outcome, view: tuple[float, float, float, float], size: tuple[int, int], thin: bool
) -> NDArray[np.uint8]:
    to_view = Transform.crop_resize(view, size)
    pixels = to_view.image(mammogram.pixels)
    low, high = np.quantile(mammogram.pixels[::8, ::8], [0.02, 0.998])
    gray = ((pixels - low) / max(high - low, 1e-6)).clip(0, 1) ** 0.9
    canvas = cv2.cvtColor((255 * gray).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    width = 1 if thin else 2
    for mass in outcome.pair.truth.annotation.masses:
        if mass.mask is not None:
            for line in mask_outlines(mass.mask, mass.origin_px):
                _polygon(canvas, to_view.points(line), GREEN, width)
        else:
            _rectangle(canvas, to_view.boxes([mass.box])[0], GREEN, width)
    for lesion in outcome.pair.findings.lesions:
        box = to_view.boxes([lesion.box])[0]
        _rectangle(canvas, box, YELLOW, 1)
        _polygon(canvas, to_view.points(lesion.contour_xy), RED, width)
        if not thin:
            at = (int(np.clip(box[0], 2, size[1] - 48)), int(np.clip(box[1] - 6, 16, size[0] - 4)))
            for colour, thickness in (((0, 0, 0), 3), (YELLOW, 1)):
                cv2.putText(canvas, f"{lesion.score:.2f}", at, cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, thickness, cv2.LINE_AA)
    return canvas  # type: ignore[no-any-return]


def mask_outlines(mask: BoolMask, origin_px: tuple[int, int]) -> list[NDArray[np.float64]]:
    """For drawing: the outer outlines of a mask, through the centres of its border pixels, native frame."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    shift = np.array([origin_px[1] + 0.5, origin_px[0] + 0.5])
    return [line.reshape(-1, 2).astype(np.float64) + shift for line in lines]


def focus_of(outcome: Outcome, mass: int | None, lesion: int | None) -> tuple[float, float, float, float]:
    """The box to look at closely: a mass, a lesion, or both together."""
    boxes = [outcome.pair.truth.annotation.masses[mass].box] if mass is not None else []
    boxes += [outcome.pair.findings.lesions[lesion].box] if lesion is not None else []
    if not boxes:
        raise ValueError("focus_of: expected a mass or a lesion")
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _axes(x: str, y: str, x_range: tuple[float, float]) -> tuple[Any, Any]:
    canvas = Canvas(figsize=(5.4, 4.2), layout="constrained")
    axes = canvas.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=x_range, ylim=(0.0, 1.02))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def _svg(canvas: Any, axes: Any, point: Point | None, where: str) -> str:
    if point is not None:
        axes.plot([point.x], [point.y], "*", color=STAR, markersize=13, zorder=6, label=point.label)
    axes.legend(loc=where, frameon=False)
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _polygon(canvas: NDArray[np.uint8], points: NDArray[np.float64], colour: tuple[int, int, int], width: int) -> None:
    # cv2 draws between pixel centres: half a pixel less, in 1/16 pixels.
    fixed = np.round((points - 0.5) * 16).clip(-(2**20), 2**20).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [fixed], True, colour, width, cv2.LINE_AA, shift=4)


def _rectangle(canvas: NDArray[np.uint8], box: NDArray[np.float64], colour: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = box
    _polygon(canvas, np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]), colour, width)
