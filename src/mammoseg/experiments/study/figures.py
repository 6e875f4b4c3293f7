"""Figures 2 to 7 from the saved findings, as SVG: `OUT/figures/figN.svg`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy import ndimage

from mammoseg.evaluation.average_precision import average_precision, precision_recall
from mammoseg.evaluation.froc import froc
from mammoseg.evaluation.inputs import Pair
from mammoseg.evaluation.matching import Criterion, match
from mammoseg.evaluation.measures import outcome, rank_candidates, true_boxes
from mammoseg.evaluation.plots import mask_outlines
from mammoseg.experiments.study import paper
from mammoseg.experiments.study.graph import Step
from mammoseg.experiments.study.inference import read_image
from mammoseg.experiments.study.store import detections
from mammoseg.experiments.study.tables import tpr_and_fpi
from mammoseg.fusion import FusionConfig, suppress
from mammoseg.geometry import mask_box
from mammoseg.io.atomic import write_atomic
from mammoseg.types import Detections

if TYPE_CHECKING:
    from mammoseg.experiments.study.plan import Study

COLOURS = ("#0b6e99", "#e07b00", "#3f7d20", "#7c3aed", "#111827", "#be123c", "#64748b")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
"""Beside colours, for those who see or print none."""
TRUTH, FOUND, OUTLINE, SCORE = "#37c837", "#e5372e", "#e5372e", "#ff3bd4"
YELLOW = "#ffd500"
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mammoseg", "font.family": "sans-serif", "font.size": 8.5, "axes.linewidth": 0.7,
    "axes.labelsize": 9, "legend.fontsize": 8, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
}  # fmt: skip
_SHOWN_HEIGHT = 620


def figure2(study: Study) -> Figure:
    """The detector at every scale on one mammogram: candidates red with their scores, truth green."""
    per_scale = _per_scale(study, study.published[0])
    k = _telling(per_scale, study.config.fusion.score_min)
    canvas, axes = _panels(1, len(per_scale), per_scale[0][k])
    for axis, name, pairs in zip(axes, study.scales, per_scale, strict=True):
        _show(axis, pairs[k])
        kept = _above(detections(pairs[k]), study.config.fusion)
        _boxes(axis, kept, FOUND, scores=True)
        axis.set_title(name.replace("x", " × "))
    return canvas


def figure3(study: Study) -> Figure:
    """Multi-scale fusion: (a) boxes of all scales, (b) the mask Mₛ of Eq. 1, (c) Mₛ ≥ λ, (d) the boxes around its regions."""
    fusion = study.config.fusion
    per_scale = _per_scale(study, study.published[0])
    k = _telling(per_scale, fusion.score_min)
    pair = per_scale[0][k]
    kept = [_above(detections(pairs[k]), fusion) for pairs in per_scale]
    field = fusion_mask(kept, pair.truth.annotation.size)
    canvas, axes = _panels(1, 4, pair)
    titles = ("(a) boxes of all scales", "(b) $M_s$", f"(c) $M_s \\geq {fusion.lam:g}$", "(d) final boxes")
    for axis, label in zip(axes, titles, strict=True):
        _show(axis, pair)
        axis.set_title(label)
    for one in kept:
        _boxes(axes[0], one, FOUND)
    height, width = pair.truth.annotation.size
    shades = np.ma.masked_equal(_reduced(field), 0)
    axes[1].imshow(shades, cmap="inferno", vmin=0, vmax=1, alpha=0.75, extent=(0, width, height, 0))
    chosen = (field > 0) & (field >= fusion.lam - 1e-9)
    axes[2].imshow(
        np.ma.masked_equal(_reduced(chosen.astype(float)), 0), cmap="autumn", alpha=0.6, extent=(0, width, height, 0)
    )
    final = study.pairs(study.published[0], f"msf-{_near(study.config.lambdas, fusion.lam):g}")[k]
    _boxes(axes[3], detections(final), YELLOW)
    return canvas


def figure4(study: Study) -> Figure:
    """Precision over recall of the detector at one scale, for every split."""
    canvas = Figure(figsize=(5.0, 3.2), layout="constrained")
    axis = plain_axes(canvas.subplots(), "Recall", "Precision")
    for split, colour, dashes in zip(study.published, cycle(COLOURS), cycle(DASHES), strict=False):
        counts = rank_candidates(study.pairs(split, f"scale-{study.single}"), Criterion("iou", 0.5)).counts()
        curve = precision_recall(counts)
        recall, precision = np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision)
        ap = 100 * (average_precision(counts) or 0.0)
        axis.step(recall, precision, where="pre", color=colour, linestyle=dashes, linewidth=1.3,
                  label=f"{split} (AP {ap:.1f}%)")  # fmt: skip
    axis.set(xlim=(0, 1), ylim=(0, 1.03))
    canvas.legend(frameon=False, loc="outside right center")
    return canvas


def figure5(study: Study) -> Figure:
    """FROC of every single scale on the first split, and MSF's point at each λ as a yellow mark."""
    split, iou = study.published[0], study.config.assumptions.hit_iou
    canvas = Figure(figsize=(6.0, 3.4), layout="constrained")
    axis = plain_axes(canvas.subplots(), "Average false positives per image", "True positive rate")
    reach = 0.5
    for name, colour, dashes in zip(study.scales, cycle(COLOURS), cycle(DASHES), strict=False):
        curve = froc(rank_candidates(study.pairs(split, f"scale-{name}"), Criterion("iou", iou)).counts())
        if len(curve.fpi):
            reach = max(reach, float(curve.fpi[-1]))
            axis.step(np.append(0, curve.fpi), np.append(0, curve.tpr), where="post", color=colour, linestyle=dashes,
                      linewidth=1.2, label=f"scale {name.replace('x', ' × ')}")  # fmt: skip
    for lam, marker in zip(study.config.lambdas, cycle("*PXDsvo"), strict=False):
        tpr, fpi = tpr_and_fpi(study.pairs(split, f"msf-{lam:g}"), iou)
        reach = max(reach, fpi)
        axis.plot([fpi], [tpr or 0.0], marker, markersize=9 if marker == "*" else 6, color="black", markerfacecolor=YELLOW,
                  markeredgewidth=0.7, linestyle="none", label=f"MSF, λ = {lam:g}", zorder=5)  # fmt: skip
    axis.set(xlim=(0, min(1.08 * reach, 4.0)), ylim=(0, 1.03))
    canvas.legend(frameon=False, loc="outside right center")
    return canvas


def figure6(study: Study) -> Figure:
    """Two-stage segmentation (a) without and (b) with MSF: detection yellow, outline red, truth green."""
    return _compared(study, [("two-stage-single", study.config.main), ("two-stage-msf", study.config.main)],
                     ("(a) without MSF", "(b) with MSF"))  # fmt: skip


def figure7(study: Study) -> Figure:
    """(a) The cascade on the whole image and (b) the two-stage method: yellow arrows true, red arrows false positives."""
    rival = "cascade" if "cascade" in study.config.networks else next(iter(study.config.networks))
    labels = (f"(a) {paper.title(rival)}, one-stage", "(b) two-stage with MSF")
    return _compared(study, [("one-stage", rival), ("two-stage-msf", study.config.main)], labels, arrows=True)


def steps(study: Study) -> Iterator[Step]:
    """One step a figure."""
    names, main = study.published, study.config.main
    rival = "cascade" if "cascade" in study.config.networks else next(iter(study.config.networks))
    first = names[0]
    two_stage = [f"two-stage-msf/{s}/{main}" for s in names]
    makers: list[tuple[int, Callable[[Study], Figure], list[str]]] = [
        (2, figure2, [f"detections/{first}"]),
        (3, figure3, [f"detections/{first}", f"msf/{first}"]),
        (4, figure4, [f"detections/{s}" for s in names]),
        (5, figure5, [f"detections/{first}", f"msf/{first}"]),
        (6, figure6, [*two_stage, *(f"two-stage-single/{s}/{main}" for s in names)]),
        (7, figure7, [*two_stage, *(f"one-stage/{s}/{rival}" for s in names)]),
    ]
    for number, make, needs in makers:
        file = f"figures/fig{number}.svg"

        def run(make: Callable[[Study], Figure] = make, file: str = file) -> None:
            with rc_context(STYLE):
                write_svg(study.out / file, make(study))

        needed = ("data/inbreast", *(f"split/{s}" for s in names), *needs)
        settings = {"single": study.single, "lambdas": list(study.config.lambdas), "lam": study.config.fusion.lam}
        settings |= {"hit_iou": study.config.assumptions.hit_iou, "score_min": study.config.fusion.score_min}
        yield Step(f"fig{number}", run, (file,), needed, settings, version=3)


def write_svg(file: Path, canvas: Figure) -> None:
    """The figure as SVG, the same bytes for the same figure."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=150)
    text = buffer.getvalue()
    write_atomic(file, text[text.index("<svg") :].encode())


def fusion_mask(per_scale: Sequence[Detections], size: tuple[int, int]) -> NDArray[np.float64]:
    """M_s of Eq. 1 on every pixel of an image of `size` (H, W), for drawing."""
    total = np.zeros(size)
    best = max((float(d.scores.max()) for d in per_scale if len(d)), default=0.0)
    for d in per_scale:
        for (x1, y1, x2, y2), score in zip(d.boxes, d.scores, strict=True):
            total[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] += score
    return total / (len(per_scale) * best) if best > 0 else total


def chosen_images(study: Study, setup: str, name: str) -> list[tuple[str, int]]:
    """(split, place) of the images whose Dice is the best, the median and the worst quarter: no picking by eye."""
    scored = []
    for split in study.published:
        for k, pair in enumerate(study.pairs_with_masks(split, f"{setup}/{name}")):
            dice = outcome(pair, Criterion("iou", study.config.assumptions.hit_iou)).dice
            scored.append((dice if dice is not None else 0.0, split, k))
    scored.sort(key=lambda s: (-s[0], s[1], s[2]))
    places = dict.fromkeys(round(q * (len(scored) - 1)) for q in (0.0, 0.25, 0.5, 0.75))
    return [(scored[p][1], scored[p][2]) for p in places]


def _compared(study: Study, setups: Sequence[tuple[str, str]], labels: Sequence[str], arrows: bool = False) -> Figure:
    chosen = chosen_images(study, *setups[-1])
    first = study.pairs_with_masks(chosen[0][0], "/".join(setups[0]))[chosen[0][1]]
    canvas, axes = _panels(len(setups), len(chosen), first)
    for row, (setup, name) in enumerate(setups):
        for column, (split, k) in enumerate(chosen):
            pair = study.pairs_with_masks(split, f"{setup}/{name}")[k]
            axis = axes[row * len(chosen) + column]
            _show(axis, pair)
            _lesions(axis, pair, boxes=setup != "one-stage")
            if arrows:
                _arrows(axis, pair)
            dice = outcome(pair, Criterion("iou", study.config.assumptions.hit_iou)).dice
            axis.set_title(f"{split}, Dice {0.0 if dice is None else dice:.2f}")
        axes[row * len(chosen)].text(-0.06, 0.5, labels[row], rotation=90, transform=axes[row * len(chosen)].transAxes,
                                     va="center", ha="right", fontsize=9)  # fmt: skip
    return canvas


def _per_scale(study: Study, split: str) -> list[list[Pair]]:
    return [study.pairs(split, f"scale-{name}") for name in study.scales]


def _telling(per_scale: Sequence[Sequence[Pair]], score_min: float) -> int:
    """The image to show: found at most scales, then with most other boxes."""

    def worth(k: int) -> tuple[int, int]:
        hits = others = 0
        for pairs in per_scale:
            found = detections(pairs[k])
            kept = found.select(found.scores >= score_min)
            hit = match(kept.boxes, kept.scores, true_boxes(pairs[k]), Criterion()) >= 0
            hits, others = hits + int(hit.any()), others + int((~hit).sum())
        return hits, min(others, 12)

    return max(range(len(per_scale[0])), key=lambda k: (*worth(k), -k))


def _above(found: Detections, fusion: FusionConfig) -> Detections:
    return suppress(found.select(found.scores >= fusion.score_min), fusion.nms_iou)


def _near(lambdas: Sequence[float], lam: float) -> float:
    return min(lambdas, key=lambda other: (abs(other - lam), other))


def _panels(rows: int, columns: int, pair: Pair) -> tuple[Figure, list[Any]]:
    height, width = pair.truth.annotation.size
    each = 1.75
    canvas = Figure(figsize=(columns * each + 0.3, rows * (each * min(height / width, 2.2) + 0.3)), layout="constrained")
    return canvas, list(np.atleast_1d(canvas.subplots(rows, columns)).ravel())


def _show(axis: Any, pair: Pair) -> None:
    """The mammogram in grey with the true outlines in green."""
    height, width = pair.truth.annotation.size
    pixels = _reduced(read_image(pair.truth).pixels)
    low, high = np.quantile(pixels, [0.02, 0.998])
    axis.imshow(pixels, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=(0, width, height, 0), interpolation="none")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    for mass in pair.truth.annotation.masses:
        if mass.mask is None:
            _rectangle(axis, mass.box, TRUTH)
        else:
            for line in mask_outlines(mass.mask, mass.origin_px):
                axis.plot(*np.append(line, line[:1], axis=0).T, color=TRUTH, linewidth=1.0)


def _lesions(axis: Any, pair: Pair, boxes: bool) -> None:
    for lesion in pair.findings.lesions:
        for line in mask_outlines(lesion.mask, lesion.origin_px):
            axis.plot(*np.append(line, line[:1], axis=0).T, color=OUTLINE, linewidth=0.9)
        if boxes:
            _rectangle(axis, lesion.box, YELLOW)


def _arrows(axis: Any, pair: Pair) -> None:
    """An arrow to every connected piece of what was found: yellow where it overlaps a true mass, else red."""
    height, width = pair.truth.annotation.size
    full = np.zeros((height, width), dtype=bool)
    truth = np.zeros((height, width), dtype=bool)
    for target, placed in ((full, pair.findings.lesions), (truth, pair.truth.annotation.masses)):
        for one in placed:
            if one.mask is not None:
                r, c = one.origin_px
                target[r : r + one.mask.shape[0], c : c + one.mask.shape[1]] |= one.mask
    labels, count = ndimage.label(full)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    for label in np.argsort(-sizes)[:8] + 1:
        x1, y1, x2, y2 = mask_box(labels == label)
        colour = YELLOW if (truth & (labels == label)).any() else "#ff2020"
        x, y, dx, dy = x1 - 0.01 * width, (y1 + y2) / 2, -0.12 * width, -0.05 * height
        if x + dx < 0 and x2 + 0.13 * width <= width:  # no room on the left
            x, dx = x2 + 0.01 * width, -dx
        elif x + dx < 0:
            x = (x1 + x2) / 2
        dy = dy if y + dy >= 0 else -dy
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1}
        axis.annotate("", (x, y), (x + dx, y + dy), arrowprops=arrow, annotation_clip=False)


def _boxes(axis: Any, found: Detections, colour: str, scores: bool = False) -> None:
    for box, score in zip(found.boxes, found.scores, strict=True):
        _rectangle(axis, box, colour)
        if scores:
            axis.text(box[0], box[1], f"{score:.2f}", color=SCORE, fontsize=6, va="bottom", clip_on=True)


def _rectangle(axis: Any, box: Sequence[float] | NDArray[np.float64], colour: str) -> None:
    x1, y1, x2, y2 = (float(v) for v in box)
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=0.9))


def _reduced(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """At most `_SHOWN_HEIGHT` pixels high."""
    scale = min(1.0, _SHOWN_HEIGHT / pixels.shape[0])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA))


def plain_axes(axis: Any, x: str, y: str) -> Any:
    """An axis as a journal prints it: two spines, a faint grid."""
    axis.set(xlabel=x, ylabel=y)
    axis.grid(color="#e3e8ee", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return axis
