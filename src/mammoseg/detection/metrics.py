"""Two figures to steer a training run by; the full evaluation, from saved findings, is `mammoseg.evaluation`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mammoseg.geometry import box_iou
from mammoseg.types import Boxes, Detections


def ap50_and_sensitivity(
    found: Sequence[Detections], truth: Sequence[Boxes], false_positives: Sequence[float], iou_min: float = 0.5
) -> tuple[float, list[float]]:
    """Average precision (area under the interpolated curve) and the sensitivity at so many false positives an image.

    found: per image, native frame; truth: per image f64[N, 4]. A detection is a hit if its IoU with a mass not taken by a
    better-scored detection is at least `iou_min`. Without any true box all are 0.
    """
    scores: list[float] = []
    hits: list[bool] = []
    for detections, boxes in zip(found, truth, strict=True):
        taken = np.zeros(len(boxes), dtype=np.bool_)
        best = detections.best_first()
        overlap = box_iou(best.boxes, boxes)
        for row, score in zip(overlap, best.scores, strict=True):
            free = np.where(taken, -1.0, row)
            i = int(free.argmax()) if len(free) else -1
            hit = i >= 0 and free[i] >= iou_min
            if hit:
                taken[i] = True
            scores.append(float(score))
            hits.append(bool(hit))
    total = sum(len(b) for b in truth)
    if not total or not scores:
        return 0.0, [0.0] * len(false_positives)
    order = np.argsort(-np.asarray(scores), kind="stable")
    hit = np.asarray(hits)[order]
    true, false = np.cumsum(hit), np.cumsum(~hit)
    recall, precision = true / total, true / (true + false)
    ceiling = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float((np.diff(recall, prepend=0.0) * ceiling).sum())
    at = [float(recall[false <= f * len(truth)].max(initial=0.0)) for f in false_positives]
    return ap, at
