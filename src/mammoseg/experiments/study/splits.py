"""The published random splits, and the mended ones by patient."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from mammoseg.datasets.splits import content_hash
from mammoseg.errors import DatasetError
from mammoseg.types import DatasetItem, Fold


def published_split(items: Sequence[DatasetItem], number: int, share: float, seed: int) -> Fold:
    """Split T`number`: a random `share` of the images with a mass to train on, the rest to test on, whoever the patient is.

    items: all of the data set. The two views of one breast may fall on both sides: that is how the paper did it, as far as it
    says, and what `leaked_patients` counts. Raises DatasetError where a side would be empty.
    """
    ids = [i.image_id for i in items if i.annotation.masses]
    count = round(len(ids) * share)
    if not 0 < count < len(ids):
        raise DatasetError(f"{len(ids)} images with a mass cannot be split {share:.3f} to {1 - share:.3f}: one side is empty")
    order = sorted(ids, key=lambda name: _draw(seed + number, name))
    return _fold(f"T{number}", order[:count], [], order[count:])


def patient_split(items: Sequence[DatasetItem], number: int, shares: tuple[float, float], seed: int) -> Fold:
    """Split M`number`: shares of the patients to train on and to choose thresholds on, the rest to test on.

    Patients with and without a mass are divided apart, in the same shares, so that every side has both. All images of a patient
    are on one side, those without a mass too. Raises DatasetError where there are too few patients with a mass.
    """
    sides: tuple[list[str], list[str], list[str]] = ([], [], [])
    of_patient: dict[str, list[DatasetItem]] = {}
    for item in items:
        of_patient.setdefault(item.patient_id, []).append(item)
    for ill in (True, False):
        group = [p for p, mine in of_patient.items() if any(i.annotation.masses for i in mine) == ill]
        order = sorted(group, key=lambda p: _draw(seed + number, p))
        first, second = round(len(order) * shares[0]), round(len(order) * (shares[0] + shares[1]))
        if ill:
            if len(order) < 3:
                raise DatasetError(f"expected at least 3 patients with a mass to split three ways, got {len(order)}")
            first = min(max(first, 1), len(order) - 2)
            second = min(max(second, first + 1), len(order) - 1)
        for side, patients in zip(sides, (order[:first], order[first:second], order[second:]), strict=True):
            side.extend(i.image_id for p in patients for i in of_patient[p])
    return _fold(f"M{number}", *sides)


def training_fold(fold: Fold, ids: Collection[str] | None = None) -> Fold:
    """The fold with its training side alone: what a training run is given, which refuses folds that part a patient.

    ids: of that side only these.
    """
    return _fold(f"{fold.name}-train", [i for i in fold.train if ids is None or i in ids], [], [])


def leaked_patients(items: Sequence[DatasetItem], fold: Fold) -> int:
    """How many patients have images on the training and on the test side."""
    sides = [{i.patient_id for i in items if i.image_id in set(ids)} for ids in (fold.train, fold.test)]
    return len(sides[0] & sides[1])


def _fold(name: str, train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> Fold:
    fold = Fold(name, tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))
    return replace(fold, content_hash=content_hash(fold))


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
