"""Free-response ROC: the share of masses found against false positives per image (paper: Sect. 4.1, Fig. 5, Table 2).

False positives are averaged over all images, normal ones included. Equal scores are one operating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mammoseg.evaluation.matching import Counts

FPI = (0.1, 0.25, 0.5, 1.0)
"""The usual points to read the curve at, in false positives per image."""


@dataclass(frozen=True, eq=False)
class Froc:
    """fpi (rising): false positives per image; tpr (rising): f64[K] in [0, 1] at scores >= thresholds[k] (falling)."""

    thresholds: NDArray[np.float64]
    fpi: NDArray[np.float64]
    tpr: NDArray[np.float64]


def froc(counts: Counts) -> Froc:
    """The curve; raises ValueError without a mass or without an image."""
    if counts.n_truth <= 0 or counts.n_images <= 0:
        raise ValueError("froc: expected at least one image and one mass in the truth, got none")
    return Froc(counts.thresholds, counts.fp / counts.n_images, counts.tp / counts.n_truth)


def tpr_at(counts: Counts, fpi: Sequence[float] = FPI) -> list[float | None]:
    """The highest true positive rate at no more than each number of false positives per image.

    An operating point that exists, nothing interpolated; 0 where even the best detections are too many; None where
    the truth holds no mass.
    """
    if counts.n_truth <= 0 or counts.n_images <= 0:
        return [None] * len(fpi)
    curve = froc(counts)
    reached = np.append(0.0, curve.tpr)
    return [float(reached[np.searchsorted(curve.fpi, f + 1e-12, side="right")]) for f in fpi]
