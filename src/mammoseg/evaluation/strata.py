"""The same figures apart for groups of masses and images: by size, breast density, view, pathology."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.evaluation.bootstrap import Interval, Weights, intervals
from mammoseg.evaluation.measures import Outcome
from mammoseg.types import DatasetItem, TrueMass

SIZES_MM = (10.0, 20.0)
"""Limits of small, medium and large masses: the diameter of the circle of equal area, in mm."""


@dataclass(frozen=True)
class Stratum:
    """One group. by: what it is grouped by; group: which one; n_images: those with such masses.

    tpr, dice: of its masses, at the operating point, with their intervals (none of one patient); dice counts missed masses as 0
    and is None where no mass of the group has a mask.
    """

    by: str
    group: str
    n_masses: int
    n_images: int
    n_patients: int
    tpr: Interval
    dice: Interval


def stratify(outcomes: Sequence[Outcome], weights: NDArray[np.float64], level: float = 0.95) -> list[Stratum]:
    """The strata of all masses; groups in order, what is not known under "unknown".

    weights: resamples of the images (from `bootstrap.resamples`), f64[n, len(outcomes)].
    """
    masses = [(k, m) for k, o in enumerate(outcomes) for m in range(len(o.pair.truth.annotation.masses))]
    out: list[Stratum] = []
    for by, group_of in _groupings(outcomes).items():
        groups = [group_of(outcomes[k].pair.truth, outcomes[k].pair.truth.annotation.masses[m]) for k, m in masses]
        for group in sorted(set(groups), key=_order):
            mine = [km for km, g in zip(masses, groups, strict=True) if g == group]
            out.append(_stratum(by, group, mine, outcomes, (weights, level)))
    return out


def _stratum(
    by: str, group: str, mine: list[tuple[int, int]], outcomes: Sequence[Outcome], how: tuple[NDArray[np.float64], float]
) -> Stratum:
    images = np.array([k for k, _ in mine], dtype=np.int64)
    hit = np.array([m in set(outcomes[k].found.tolist()) for k, m in mine], dtype=np.float64)
    outlined = [outcomes[k].pair.truth.annotation.masses[m].mask is not None for k, m in mine]
    dices = np.array([outcomes[k].dices.get(m, 0.0) for k, m in mine], dtype=np.float64)
    measured = np.array(outlined, dtype=np.float64)

    def values(w: Weights) -> list[float | None]:
        total, drawn = w[images].sum(), w[images] @ measured
        return [
            float(w[images] @ hit / total) if total > 0 else None,
            float(w[images] @ (dices * measured) / drawn) if drawn > 0 else None,
        ]

    tpr, dice = intervals(values, how[0], how[1])
    patients = {outcomes[k].pair.truth.patient_id for k in images.tolist()}
    if len(patients) == 1:  # whichever patients are drawn, the value is this one's or none
        tpr, dice = Interval(tpr.value), Interval(dice.value)
    return Stratum(by, group, len(mine), len(set(images.tolist())), len(patients), tpr, dice)


def _groupings(outcomes: Sequence[Outcome]) -> dict[str, Callable[[DatasetItem, TrueMass], str]]:
    masses = [(o.pair.truth, m) for o in outcomes for m in o.pair.truth.annotation.masses]
    known = bool(masses) and all(item.spacing_mm is not None for item, _ in masses)
    if known:
        limits, unit, size_of = SIZES_MM, " mm", _diameter_mm
    else:  # thirds of what there is
        shares = np.array([_share(item, mass) for item, mass in masses] or [0.0])
        first, second = (float(v) for v in np.quantile(shares, [1 / 3, 2 / 3]))
        limits, unit, size_of = (first, second), "% of the image's height", _share

    def size(item: DatasetItem, mass: TrueMass) -> str:
        value = size_of(item, mass)
        low, high = (f"{v:.3g}" for v in limits)
        if value < limits[0]:
            return f"1: below {low}{unit}"
        return f"2: {low} to {high}{unit}" if value < limits[1] else f"3: {high}{unit} or more"

    return {
        "size": size,
        "breast density": lambda item, mass: _word(item.attributes.get("breast_density")),
        "view": lambda item, mass: _word(item.view_position),
        "pathology": lambda item, mass: _word(mass.attributes.get("pathology", item.attributes.get("pathology"))),
    }


def _area_px(mass: TrueMass) -> float:
    """Of the mask, or of the ellipse in the box."""
    if mass.mask is not None:
        return float(mass.mask.sum())
    return float(np.pi / 4 * (mass.box[2] - mass.box[0]) * (mass.box[3] - mass.box[1]))


def _diameter_mm(item: DatasetItem, mass: TrueMass) -> float:
    row, column = item.spacing_mm or (0.0, 0.0)
    return float(2 * np.sqrt(_area_px(mass) * row * column / np.pi))


def _share(item: DatasetItem, mass: TrueMass) -> float:
    return float(100 * 2 * np.sqrt(_area_px(mass) / np.pi) / item.annotation.size[0])


def _word(value: Any) -> str:
    """A group's name; "BENIGN or MALIGNANT" where a list, as of an image's masses, leaves open which one it is."""
    values = value if isinstance(value, (list, tuple)) else [value]
    known = sorted({str(v) for v in values if v not in (None, "")})
    return " or ".join(known) or "unknown"


def _order(group: str) -> tuple[bool, str]:
    return group == "unknown", group
