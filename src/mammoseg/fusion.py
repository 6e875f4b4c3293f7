"""Detections at k scales (or of k models) to one set: multi-scale fusion as published, and its rivals.

Paper: Sect. 3.2, Eq. 1. Every box and region is `xyxy`, half-open, in pixel edges of the native image. The scores of
"msf" and "wbf" share one scale, the mean over the scales run, so that lesions and other candidates can be ranked together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import box_area, box_iou, clip_boxes, nms
from mammoseg.scores import CalibrationConfig, Scores
from mammoseg.types import Boxes, Detections, Size

TOLERANCE = 1e-9
"""How far M_s may fall short of λ by rounding alone: sums of a thousand float64 scores stay within 1e-12."""

CANDIDATE_SCORE_MIN = 0.005
MAX_CANDIDATES = 100
MOST_A_SCALE = 200
_TINY = float(np.finfo(np.float64).tiny)

Method = Literal["msf", "wbf", "nms", "none"]


@dataclass(frozen=True)
class FusionConfig:
    """How the detections of the scales become one set.

    method: "msf" (Eq. 1), "wbf" (weighted boxes fusion), "nms" (over all scales), "none" (the last scale given alone).
    lam: λ of the paper, 0..1; 0 keeps every pixel that any box covers.
    score_min, nms_iou: per-scale score threshold and NMS. The paper is silent on both: our assumptions.
    wbf_iou: boxes that overlap a fused box by more join it (Solovyev et al. 2021 use 0.55). wbf_score_min: as score_min, for
    "wbf", which is hurt less by weak boxes.
    lesion_score_min: fused boxes with a lower absolute (calibrated) score are no lesions; 0 as published.
    same_iou: a lesion stands for another fused box from this IoU on with a box it was made from (see `candidates`).
    calibration: what makes probabilities of the fused scores.
    """

    method: Method = "msf"
    lam: float = 0.6
    score_min: float = 0.3
    nms_iou: float = 0.45
    wbf_iou: float = 0.55
    wbf_score_min: float = 0.3
    lesion_score_min: float = 0.0
    same_iou: float = 0.45
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        for name in ("lam", "score_min", "nms_iou", "wbf_iou", "wbf_score_min", "lesion_score_min", "same_iou"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"FusionConfig.{name}: expected 0..1, got {value}")


def fuse(per_scale: Sequence[Detections], config: FusionConfig) -> Detections:
    """The lesions of one image, best first: `config.method` over the boxes above `score_min`, then `lesion_score_min`.

    per_scale: one `Detections` per scale run, small scale first, native frame; a scale that found nothing still counts.
    Raises ValueError where no scale is given or their image sizes differ.
    """
    methods = {"msf": msf, "wbf": wbf, "nms": nms_fusion, "none": last_scale}
    fused = _calibrated(methods[config.method](per_scale, config), config)
    return fused.select(fused.scores >= config.lesion_score_min)


def msf(per_scale: Sequence[Detections], config: FusionConfig) -> Detections:
    """Multi-scale fusion (Sect. 3.2, Eq. 1): M_s = ΣM_i / (N · max c), regions of M_s ≥ λ, a box each.

    N: the number of scales run. M_i is c_i inside box i, rounded outward to pixel edges and cut to the image, else 0.
    λ = 0 means M_s > 0. Regions are 8-connected; a region's box is its bounding box, its score max ΣM_i / N, at most 1.
    Boxes without a pixel or with score 0 take no part, not even in max c.
    """
    boxes, scores, size = _together(entering(per_scale, replace(config, method="msf")))
    out_boxes, out_scores = fused_regions(boxes, scores, len(per_scale), config.lam, size)
    return Detections(out_boxes, out_scores, size, "msf").best_first()


def entering(per_scale: Sequence[Detections], config: FusionConfig) -> list[Detections]:
    """The detections of each scale that are fused: above the method's least score, after NMS within the scale."""
    least = config.wbf_score_min if config.method == "wbf" else config.score_min
    return [suppress(d.select(d.scores >= least), config.nms_iou) for d in per_scale]


def msf_mask(
    per_scale: Sequence[Detections], config: FusionConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], float]:
    """M_s as `msf` sees it, on its grid: edges xs i64[n + 1] and ys i64[m + 1], M_s f64[m, n] in [0, 1], and max c.

    A region's score is its largest M_s times max c.
    """
    boxes, scores, size = _together(entering(per_scale, replace(config, method="msf")))
    xs, ys, total, most = fusion_grid(boxes, scores, size)
    return xs, ys, total / (len(per_scale) * most), most


def fusion_grid(
    boxes: Boxes, scores: Scores, size: Size
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], float]:
    """ΣM_i of Eq. 1 on the grid spanned by the rounded boxes' edges, of at most (2B-1)² cells: a 2-D difference array.

    boxes f64[B, 4] and scores f64[B] of all scales in an image of `size` (H, W). Returns the edges xs i64[n + 1] and
    ys i64[m + 1] (none where no box takes part), the sum f64[m, n] on the cells (0 where no box is), and max c.
    M_s is the sum divided by N · max c.
    """
    pixels = clip_boxes(np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1), size).astype(np.int64)
    used = (pixels[:, 2] > pixels[:, 0]) & (pixels[:, 3] > pixels[:, 1]) & (scores > 0)
    if not used.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0)), 1.0
    pixels, scores = pixels[used], scores[used]
    xs, columns = np.unique(pixels[:, 0::2], return_inverse=True)
    ys, rows = np.unique(pixels[:, 1::2], return_inverse=True)
    shape = (len(ys), len(xs))
    total, count = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for row, column, sign in ((0, 0, 1), (0, 1, -1), (1, 0, -1), (1, 1, 1)):
        corner = rows.reshape(-1, 2)[:, row] * len(xs) + columns.reshape(-1, 2)[:, column]
        total.ravel()[:] += sign * np.bincount(corner, scores, total.size)
        count.ravel()[:] += sign * np.bincount(corner, minlength=total.size)
    total = total.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    covered = count.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    # above 0 where a box is, whatever the sums round to
    return xs, ys, np.where(covered, np.maximum(total, np.finfo(np.float64).tiny), 0.0), float(scores.max())


def fused_regions(boxes: Boxes, scores: Scores, n_scales: int, lam: float, size: Size) -> tuple[Boxes, Scores]:
    """Eq. 1 and its regions for the boxes f64[B, 4] and scores f64[B] of all scales: boxes f64[R, 4] and scores f64[R].

    M_s is constant on the cells of `fusion_grid`. Every cell between two neighbouring edges holds at least one pixel, and
    two cells touch at a side or a corner exactly when pixels of theirs do, so 8-connected regions of cells are 8-connected
    regions of pixels.

    >>> two = np.array([[10.2, 10.0, 29.5, 30.0], [20.0, 20.0, 40.0, 40.0]])
    >>> fused_regions(two, np.array([0.8, 0.8]), 2, 0.6, (100, 100))
    (array([[20., 20., 30., 30.]]), array([0.8]))
    """
    xs, ys, total, most = fusion_grid(boxes, scores, size)
    kept = (total > 0) & (total / (n_scales * most) >= lam - TOLERANCE)
    if not kept.any():
        return np.zeros((0, 4)), np.zeros(0)
    found, labels, stats, _ = cv2.connectedComponentsWithStats(kept.astype(np.uint8), connectivity=8)
    best = np.zeros(found)
    np.maximum.at(best, labels[kept], total[kept])
    left, top, width, height = (stats[1:, i] for i in range(4))  # row 0 is the background
    out = np.stack([xs[left], ys[top], xs[left + width], ys[top + height]], axis=1).astype(np.float64)
    return out, (best[1:] / n_scales).clip(0.0, 1.0)


def wbf(per_scale: Sequence[Detections], config: FusionConfig) -> Detections:
    """Weighted boxes fusion (Solovyev et al., Image and Vision Computing 2021) of the boxes above `wbf_score_min`.

    Best box first, each joins the fused box it overlaps most by more than `wbf_iou`, which moves to the mean of its
    members weighted by their scores, or starts a new one. Score: the members' mean times the share of scales that agree.
    """
    return _weighted(entering(per_scale, replace(config, method="wbf")), config.wbf_iou)


def nms_fusion(per_scale: Sequence[Detections], config: FusionConfig) -> Detections:
    """Non-maximum suppression over the boxes of all scales above `score_min`; a box keeps its own score."""
    boxes, scores, size = _together(per_scale)
    above = scores >= config.score_min
    return suppress(Detections(boxes[above], scores[above], size, "nms"), config.nms_iou)


def last_scale(per_scale: Sequence[Detections], config: FusionConfig) -> Detections:
    """No fusion: the boxes of the last scale given (the largest, by convention) above `score_min`, after NMS."""
    size = _together(per_scale)[2]
    last = per_scale[-1]
    kept = last.select(last.scores >= config.score_min)
    return suppress(Detections(kept.boxes, kept.scores, size, "none"), config.nms_iou)


def everything(per_scale: Sequence[Detections], config: FusionConfig) -> Detections:
    """All fused boxes whatever their score, of which `candidates` are taken, from the 200 best boxes of every scale.

    Fused by WBF for "msf" and "wbf" (their scores are means over the scales run, as the lesions' are), by NMS for "nms", taken
    from the last scale for "none".
    """
    open_to_all = replace(config, score_min=0.0, wbf_score_min=0.0, lesion_score_min=0.0)
    best = [d.best_first().select(np.arange(min(len(d), MOST_A_SCALE))) for d in per_scale]
    method = nms_fusion if config.method == "nms" else last_scale if config.method == "none" else wbf
    return _calibrated(method(best, open_to_all), config)


def fuse_all(per_scale: Sequence[Detections], config: FusionConfig) -> tuple[Detections, Detections]:
    """`fuse` and `everything`, made once where they are the same but for the score."""
    one = config.method == "wbf" and config.wbf_score_min == 0.0 and all(len(d) <= MOST_A_SCALE for d in per_scale)
    whole = everything(per_scale, config)
    return (whole.select(whole.scores >= config.lesion_score_min) if one else fuse(per_scale, config)), whole


def candidates(
    lesions: Detections,
    per_scale: Sequence[Detections],
    config: FusionConfig,
    covered: Boxes | None = None,
    whole: Detections | None = None,
) -> Detections:
    """What AP and FROC are computed from: every lesion, then every other fused box that no lesion stands for.

    covered: f64[N, 4], the boxes that the lesions were made from, so that one merged into a better one does not come back;
    the lesions' own by default. whole: `everything`, where it is there already. A
    lesion stands for a fused box where the IoU with a box it was made from reaches `same_iou`, or reaches 0.2 while the fused
    box's centre lies in it and 0.8 of the smaller in the larger (an MSF region may be the core or the union of its boxes).

    Returns at most 100: the lesions in their order (same boxes, same scores; of more than 100 the first 100), then the
    others with a score >= 0.005, best first, as many as there is room for.
    """
    others = everything(per_scale, config) if whole is None else whole
    others = others.select(others.scores >= CANDIDATE_SCORE_MIN)
    standing = lesions.boxes if covered is None else np.concatenate([lesions.boxes, covered])
    others = others.select(~_stood_for(others.boxes, standing, config.same_iou)).best_first()
    boxes = np.concatenate([lesions.boxes, others.boxes])[:MAX_CANDIDATES]
    scores = np.concatenate([lesions.scores, others.scores])[:MAX_CANDIDATES]
    return Detections(boxes, scores, lesions.size, "candidates")


def _calibrated(fused: Detections, config: FusionConfig) -> Detections:
    return replace(fused, scores=config.calibration.apply(fused.scores))


def suppress(detections: Detections, iou: float) -> Detections:
    """Greedy non-maximum suppression, best first: a box goes where its IoU with a kept, better one exceeds `iou`."""
    if detections.iou_most <= iou:
        return detections.best_first()
    return replace(detections.select(nms(detections.boxes, detections.scores, iou)), iou_most=iou)


def _weighted(per_scale: Sequence[Detections], iou: float) -> Detections:
    boxes, scores, size = _together(per_scale)
    scale = np.concatenate([np.full(len(d), i) for i, d in enumerate(per_scale)])
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    boxes, scores, scale = boxes[order], scores[order], scale[order]
    edges = (boxes * (1, 1, -1, -1))[:, :, None]  # x1, y1, -x2, -y2: what two boxes have in common is the largest of each
    fused, areas = np.zeros((4, len(order))), np.zeros(len(order))  # edges of the fused boxes
    own_areas = box_area(boxes)
    # Lists, of which single numbers are read and written much faster than of arrays.
    part, alone, of = (scores[:, None] * boxes).tolist(), scores.tolist(), scale.tolist()
    weighted: list[list[float]] = []
    weight: list[float] = []
    members: list[int] = []
    agree: list[set[int]] = []
    for k, share in enumerate(part):
        n = len(weight)
        best, overlap = _most_overlapped(edges[k], own_areas[k], fused[:, :n], areas[:n])
        if overlap > iou:
            weighted[best] = [a + b for a, b in zip(weighted[best], share, strict=True)]
            weight[best] += alone[k]
            members[best] += 1
            agree[best].add(of[k])
        else:
            best = n
            weighted.append(share)
            weight.append(alone[k])
            members.append(1)
            agree.append({of[k]})
        x1, y1, x2, y2 = (side / weight[best] for side in weighted[best])
        fused[:, best] = x1, y1, -x2, -y2
        areas[best] = (x2 - x1) * (y2 - y1)
    n = len(weight)
    score = np.array(weight) / np.maximum(members, 1) * np.array([len(scales) for scales in agree]) / len(per_scale)
    out = np.concatenate([fused[:2, :n], -fused[2:, :n]]).T
    return Detections(np.ascontiguousarray(out), score.clip(0.0, 1.0), size, "wbf").best_first()


def _most_overlapped(
    edges: NDArray[np.float64], area: float, many: NDArray[np.float64], areas: NDArray[np.float64]
) -> tuple[int, float]:
    """Which of many boxes a box overlaps most, the first of equals, and its IoU; (0, 0) of none.

    A box is x1, y1, -x2, -y2: `edges` f64[4, 1], `many` f64[4, N]. As `box_iou` but with little overhead: it runs once for
    every box.
    """
    if not len(areas):
        return 0, 0.0
    most = np.maximum(many, edges)
    sides = np.minimum(most[:2] + most[2:], 0.0)  # minus width and height
    common = sides[0] * sides[1]
    iou = common / np.maximum(areas + area - common, _TINY)
    best = int(iou.argmax())
    return best, float(iou[best])


def _stood_for(boxes: Boxes, standing: Boxes, same_iou: float) -> NDArray[np.bool_]:
    if not len(boxes) or not len(standing):
        return np.zeros(len(boxes), dtype=bool)
    a, b = boxes[:, None, :], standing[None, :, :]
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    smaller = np.minimum(box_area(boxes)[:, None], box_area(standing)[None, :])
    nested = sides.prod(axis=-1) >= 0.8 * smaller
    centre = (a[..., :2] + a[..., 2:]) / 2
    inside = ((centre >= b[..., :2]) & (centre < b[..., 2:])).all(axis=-1)
    iou = box_iou(boxes, standing)
    hit: NDArray[np.bool_] = ((iou >= same_iou) | (nested & inside & (iou >= 0.2))).any(axis=1)
    return hit


def _together(per_scale: Sequence[Detections]) -> tuple[Boxes, Scores, Size]:
    if not per_scale:
        raise ValueError("fusion: expected the detections of at least one scale, got none")
    sizes = {d.size for d in per_scale}
    if len(sizes) > 1:
        raise ValueError(f"fusion: expected detections in one native frame, got image sizes {sorted(sizes)}")
    return np.concatenate([d.boxes for d in per_scale]), np.concatenate([d.scores for d in per_scale]), sizes.pop()
