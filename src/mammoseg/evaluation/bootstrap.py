"""Intervals by resampling patients: the views of one patient are not independent, so they are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval; low and high are None of one patient, or where too few resamples gave a value."""

    value: float | None
    low: float | None = None
    high: float | None = None


def resamples(patients: Sequence[str], n: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each image counts in each resample: f64[n, n_images].

    patients: the patient of each image. As many patients as there are, drawn with replacement, bring all their images.
    """
    names, owner = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / max(len(names), 1)), size=n) if len(names) else np.zeros((n, 0))
    return drawn[:, owner].astype(np.float64)


def intervals(
    statistics: Callable[[Weights], Sequence[float | None]], weights: NDArray[np.float64], level: float = 0.95
) -> list[Interval]:
    """Percentile intervals of several statistics at once.

    statistics: from image weights f64[n_images] (ones for the sample itself) to values; None where one is undefined.
    weights: from `resamples`. A statistic defined in fewer than half of the resamples gets no interval. Nor does any where each
    resample is the sample itself, as it is of one patient: nothing then says how far another patient's value would be.
    """
    values = statistics(np.ones(weights.shape[1]))
    draws = [[np.nan if v is None else v for v in statistics(w)] for w in weights]
    if len(weights) and (weights == 1).all():
        return [Interval(v) for v in values]
    table = np.array(draws, dtype=np.float64).reshape(len(weights), len(values))
    return [Interval(v, *_limits(table[:, k], level)) if v is not None else Interval(None) for k, v in enumerate(values)]


def paired(
    first: Callable[[Weights], float | None],
    second: Callable[[Weights], float | None],
    weights: NDArray[np.float64],
    level: float = 0.95,
) -> Interval:
    """The difference first − second of two statistics of the same images, with its interval over common resamples."""

    def difference(w: Weights) -> list[float | None]:
        a, b = first(w), second(w)
        return [None if a is None or b is None else a - b]

    return intervals(difference, weights, level)[0]


def paired_means(first: ArrayLike, second: ArrayLike, patients: Sequence[str], n: int = 2000, seed: int = 0) -> Interval:
    """Mean difference first − second of paired values f64[K] (for example two segmenters' Dice on the same masses).

    >>> paired_means([0.9, 0.8, 0.9], [0.7, 0.7, 0.6], ["a", "a", "b"]).value
    0.2
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) != len(patients):
        raise ValueError(f"paired_means: expected equally many values and patients, got {a.shape}, {b.shape}, {len(patients)}")
    gain = a - b
    return intervals(lambda w: [weighted_mean(gain, w)], resamples(patients, n, seed))[0]


def weighted_mean(values: NDArray[np.float64], weights: Weights) -> float | None:
    """The mean, None where nothing counts."""
    total = float(weights.sum())
    return round(float(weights @ values) / total, 12) if total > 0 else None


def _limits(draws: NDArray[np.float64], level: float) -> tuple[float | None, float | None]:
    defined = draws[~np.isnan(draws)]
    if len(defined) < max(1, len(draws) / 2):
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
