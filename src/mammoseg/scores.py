"""From raw scores to probabilities: the one map that fusion applies and that calibration fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationConfig:
    """From a fused score s to the probability that a mass is there: σ(slope·logit(s) + offset) (Platt 1999, on the logit).

    (1, 0) leaves scores as they are. Rising in s, so that neither the ranking nor AP nor FROC change. Fitted on held-out
    images with the fusion settings it ships with; with other settings, or where masses are rarer, it is a score and no
    probability.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.offset]).all() and self.slope > 0):
            raise ValueError(f"calibration: expected a positive slope and an offset, got {self.slope}, {self.offset}")

    def apply(self, scores: Scores) -> Scores:
        """Probabilities f64[N] of scores f64[N] in [0, 1].

        >>> CalibrationConfig(2.0, 0.0).apply(np.array([0.0, 0.25, 0.5, 1.0])).round(3).tolist()
        [0.0, 0.1, 0.5, 1.0]
        """
        if (self.slope, self.offset) == (1.0, 0.0):
            return scores
        with np.errstate(divide="ignore"):
            logit = np.log(scores) - np.log1p(-scores)
        out: Scores = 0.5 * (1.0 + np.tanh(0.5 * (self.slope * logit + self.offset)))
        return out
