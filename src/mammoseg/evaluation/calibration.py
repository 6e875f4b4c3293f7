"""Scores as probabilities that a mass is there: fitted, measured, and the scores that give so many false positives an image.

Everything is about the candidates of saved findings. A candidate is right where it found a mass (as in `matching`); how often
that is so depends on how common masses are in the images it was measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mammoseg.errors import EvaluationError
from mammoseg.evaluation.matching import Ranked
from mammoseg.scores import CalibrationConfig

Values = NDArray[np.float64]
LEAST_SCORE = 0.05
BINS = 15
_FEW = 20


@dataclass(frozen=True)
class Bin:
    """n candidates of mean score `score`, of which the share `rate` is right; their scores lie in [low, high]."""

    n: int
    score: float
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """How far scores are probabilities, over the n candidates that score `least` or more.

    ece: expected calibration error, the mean over candidates of |mean score − share that is right| of their bin; bins hold
    equally many candidates. brier: mean squared difference of score and outcome. rate: share of these candidates that is right.
    """

    n: int
    least: float
    rate: float
    ece: float
    brier: float
    bins: tuple[Bin, ...]


def reliability(scores: Values, hits: NDArray[np.bool_], least: float = LEAST_SCORE, bins: int = BINS) -> Reliability | None:
    """Measures scores f64[N] in [0, 1] against outcomes bool[N]; None where no score reaches `least`.

    Equal scores stay in one bin, so that bins depend on no order.

    >>> r = reliability(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False]), bins=2)
    >>> round(r.ece, 3), round(r.brier, 3)  # (2·0.4 + 2·0.1) / 4, (0.01 + 0.81 + 0.01 + 0.01) / 4
    (0.25, 0.21)
    """
    kept = scores >= least
    s, h = scores[kept], hits[kept].astype(np.float64)
    if not len(s):
        return None
    order = np.argsort(s, kind="stable")
    s, h = s[order], h[order]
    edges = np.unique(np.searchsorted(s, s[np.linspace(0, len(s), bins + 1).astype(int)[1:-1]], side="left"))
    parts = [(a, b) for a, b in zip([0, *edges], [*edges, len(s)], strict=True) if b > a]
    found = tuple(Bin(int(b - a), float(s[a:b].mean()), float(h[a:b].mean()), float(s[a]), float(s[b - 1])) for a, b in parts)
    ece = sum(x.n * abs(x.score - x.rate) for x in found) / len(s)
    return Reliability(len(s), least, float(h.mean()), float(ece), float(((s - h) ** 2).mean()), found)


def fit_logistic(scores: Values, hits: NDArray[np.bool_]) -> CalibrationConfig:
    """The slope and offset that make outcomes bool[N] of scores f64[N] likeliest (Platt 1999).

    Outcomes are smoothed as Platt does, so that a set that can be parted stays finite. Raises EvaluationError where there are
    fewer than 20 candidates of either kind: nothing can be fitted to so few.
    """
    right, wrong = int(hits.sum()), int((~hits).sum())
    if min(right, wrong) < _FEW:
        raise EvaluationError(
            f"calibration: expected {_FEW} candidates or more that found a mass and as many that did not, got {right} and "
            f"{wrong}; use more images, or findings with more candidates"
        )
    clipped = scores.clip(1e-6, 1 - 1e-6)
    x = np.log(clipped) - np.log1p(-clipped)
    t = np.where(hits, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(p: Values) -> tuple[float, Values]:
        z = np.exp(p[0]) * x + p[1]
        value = float((np.logaddexp(0.0, z) - t * z).mean())
        residual = 0.5 * (1 + np.tanh(0.5 * z)) - t
        return value, np.array([float((residual * x).mean()) * float(np.exp(p[0])), float(residual.mean())])

    best = minimize(loss, np.zeros(2), jac=True, method="BFGS").x  # the slope's logarithm: it stays positive
    return CalibrationConfig(float(np.exp(best[0])), float(best[1]))


def cross_fitted(ranked: Ranked, patients: Sequence[str], folds: int = 5) -> Values:
    """Each candidate's probability by a map fitted on the other patients' candidates: f64[M], in the order of `ranked`.

    patients: of each image. Patients go to folds in turn, sorted by name. Raises EvaluationError as `fit_logistic`.
    """
    names = sorted(set(patients))
    if len(names) < folds:
        raise EvaluationError(f"calibration: expected {folds} patients or more, got {len(names)}")
    fold_of = {name: k % folds for k, name in enumerate(names)}
    fold = np.array([fold_of[p] for p in patients])[ranked.image]
    out = np.zeros(len(ranked.scores))
    for k in range(folds):
        out[fold == k] = fit_logistic(ranked.scores[fold != k], ranked.hits[fold != k]).apply(ranked.scores[fold == k])
    return out


def score_at(ranked: Ranked, fpi: float) -> float | None:
    """The lowest score at which at most `fpi` false positives an image come; None where even the best gives more."""
    counts = ranked.counts()
    good = np.flatnonzero(counts.fp / counts.n_images <= fpi + 1e-12)
    return float(counts.thresholds[good[-1]]) if len(good) else None
