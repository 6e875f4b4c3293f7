"""Precision-recall curve and the three areas under it that papers call average precision.

They differ by up to a few points on the same detections, so each has its name. Equal scores are one operating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mammoseg.evaluation.matching import Counts

Area = Literal["envelope", "step", "coco101"]


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """recall (rising), precision: f64[K] in [0, 1] at scores >= thresholds[k] (falling, distinct)."""

    thresholds: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


def precision_recall(counts: Counts) -> PrecisionRecall:
    """The curve; raises ValueError without a mass, where recall has no meaning."""
    if counts.n_truth <= 0:
        raise ValueError("precision_recall: expected at least one mass in the truth, got none")
    seen = counts.tp + counts.fp
    kept = seen > 0  # with bootstrap weights of 0 the first detections may count nothing
    return PrecisionRecall(counts.thresholds[kept], counts.tp[kept] / counts.n_truth, counts.tp[kept] / seen[kept])


def average_precision(counts: Counts, area: Area = "envelope") -> float | None:
    """Area under the precision-recall curve in [0, 1]; None where the truth holds no mass.

    area: "envelope": under the envelope, precision at recall r being the best reached at r or beyond (Pascal VOC
    since 2010; ours). "step": Σ (R_k − R_{k−1}) P_k, as scikit-learn sums. "coco101": mean of the envelope at recall 0,
    0.01, …, 1, as pycocotools does.
    """
    if counts.n_truth <= 0:
        return None
    curve = precision_recall(counts)
    if not len(curve.recall):
        return 0.0
    gain = np.diff(curve.recall, prepend=0.0)
    if area == "step":
        return float(gain @ curve.precision)
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    if area == "envelope":
        return float(gain @ envelope)
    places = np.searchsorted(curve.recall, np.linspace(0.0, 1.0, 101), side="left")
    return float(np.append(envelope, 0.0)[np.minimum(places, len(envelope))].mean())
