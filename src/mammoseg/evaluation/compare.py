"""Two methods on the same images: paired differences with intervals by patient, and a sign-flip test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammoseg.evaluation.bootstrap import Interval, paired, resamples
from mammoseg.evaluation.matching import Criterion
from mammoseg.evaluation.measures import (
    Measure,
    Outcome,
    detection_measures,
    operating_measures,
    outline_measures,
    rank_candidates,
)

_EXACT_UP_TO = 14


@dataclass(frozen=True)
class Difference:
    """first − second of one figure. p: of the sign-flip test by patient, for figures that are means over masses; else None."""

    key: str
    label: str
    first: float | None
    second: float | None
    interval: Interval
    p: float | None = None


def sign_flip_p(differences: ArrayLike, patients: Sequence[str], n: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that the paired differences f64[K] are as likely with the other sign, patient by patient.

    Each patient's differences are added up and keep or change their sign together. All 2^P patterns are taken up to 14
    patients, else `n` random ones and the one that was observed.

    >>> sign_flip_p([1.0, 1.0, 1.0], ["a", "b", "c"])
    0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(patients) or not len(values):
        raise ValueError(f"sign_flip_p: expected as many differences as patients, got {values.shape} and {len(patients)}")
    names, owner = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(owner, values, len(names))
    observed = abs(float(sums.sum())) - 1e-12
    if len(names) <= _EXACT_UP_TO:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(names))))
        return float((np.abs(signs @ sums) >= observed).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n, len(names)))
    return float((1 + (np.abs(signs @ sums) >= observed).sum()) / (n + 1))


def compare(
    first: Sequence[Outcome], second: Sequence[Outcome], iou: float = 0.5, n: int = 1000, seed: int = 0
) -> list[Difference]:
    """What `first` gains over `second` in every figure; both hold the same images, in the same order.

    Raises ValueError where they do not.
    """
    ids = [[o.pair.truth.image_id for o in side] for side in (first, second)]
    if ids[0] != ids[1]:
        raise ValueError("compare: expected the outcomes of the same images in the same order")
    weights = resamples([o.pair.truth.patient_id for o in first], n, seed)
    a, b = (_measures(side, iou) for side in (first, second))
    ones = np.ones(len(first))
    out = []
    for key in a:
        if key not in b:
            continue
        p = None
        if key in ("dice_masses", "dice_end_to_end"):
            values = [_per_unit(side, key) for side in (first, second)]
            if len(values[0][0]):
                p = sign_flip_p(values[0][0] - values[1][0], values[0][1], seed=seed)
        interval = paired(a[key].value, b[key].value, weights)
        out.append(Difference(key, a[key].label, a[key].value(ones), b[key].value(ones), interval, p))
    return out


def _measures(outcomes: Sequence[Outcome], iou: float) -> dict[str, Measure]:
    criterion = Criterion("iou", iou)
    ranked = rank_candidates([o.pair for o in outcomes], criterion)
    found = detection_measures(ranked, criterion, (0.25,), primary=False) + operating_measures(outcomes)
    return {m.key: m for m in found + outline_measures(outcomes)}


def _per_unit(outcomes: Sequence[Outcome], key: str) -> tuple[NDArray[np.float64], list[str]]:
    """The values whose mean the figure is, and their patients: of every mass, or of every image with masses."""
    values: list[float] = []
    patients: list[str] = []
    for o in outcomes:
        patient = o.pair.truth.patient_id
        if key == "dice_end_to_end":
            if o.dice is not None:
                values.append(o.dice)
                patients.append(patient)
            continue
        for m, mass in enumerate(o.pair.truth.annotation.masses):
            if mass.mask is not None:
                values.append(o.dices.get(m, 0.0))
                patients.append(patient)
    return np.array(values, dtype=np.float64), patients
