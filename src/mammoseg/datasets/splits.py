"""Folds grouped by patient, the same for a seed whatever the order of the items, stored with a content hash."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from mammoseg.datasets import read_dataset
from mammoseg.errors import DatasetError
from mammoseg.io.atomic import write_atomic
from mammoseg.types import DatasetItem, Fold

_FORMAT = "mammoseg-fold-1"
Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = get_args(Side)


def patient_folds(items: Sequence[DatasetItem], k: int, seed: int, keep_out: Collection[str] = ()) -> list[Fold]:
    """`k` folds; each patient is in the validation side of exactly one, and in the train side of the others.

    keep_out: patients that are never in train or validation; their images are the `test` side of every fold.
    Sides differ by at most the images of one patient. Raises DatasetError where there are fewer patients than folds.
    """
    free, kept = _by_patient(items, keep_out)
    if not 2 <= k <= len(free):
        raise DatasetError(f"expected 2 to {len(free)} folds for {len(free)} patients, got {k}")
    parts: list[list[str]] = [[] for _ in range(k)]
    # Patients with most images first, each to the smallest part; equals in an order that only the seed decides.
    for patient in sorted(free, key=lambda p: (-len(free[p]), _draw(seed, p))):
        min(parts, key=len).extend(free[patient])
    test = [name for ids in kept.values() for name in ids]
    return [
        _fold(f"fold-{i + 1}-of-{k}-seed-{seed}", [n for j, p in enumerate(parts) if j != i for n in p], part, test)
        for i, part in enumerate(parts)
    ]


def patient_holdout(items: Sequence[DatasetItem], fraction: float, seed: int, keep_out: Collection[str] = ()) -> Fold:
    """One fold whose validation side holds `fraction` of the patients, and nearly that fraction of the images.

    keep_out: patients that are in neither; their images are the `test` side. fraction: in (0, 1), of the other patients.
    Raises DatasetError where a side would be empty.
    """
    if not 0 < fraction < 1:
        raise DatasetError(f"expected a fraction between 0 and 1, got {fraction}")
    free, kept = _by_patient(items, keep_out)
    # Systematic sample through the patients sorted by their number of images: every number is drawn in proportion.
    order = sorted(free, key=lambda p: (len(free[p]), _draw(seed, p)))
    drawn = {p for i, p in enumerate(order) if int((i + 1) * fraction + 0.5) > int(i * fraction + 0.5)}
    if not drawn or len(drawn) == len(order):
        raise DatasetError(
            f"{len(order)} patient{'s' * (len(order) != 1)} cannot be split {1 - fraction:g} to {fraction:g}, one side would "
            "be empty: choose another fraction, or add patients"
        )
    train = [name for p in order if p not in drawn for name in free[p]]
    validation = [name for p in order if p in drawn for name in free[p]]
    return _fold(f"holdout-{fraction:g}-seed-{seed}", train, validation, [n for ids in kept.values() for n in ids])


def whole(items: Sequence[DatasetItem]) -> Fold:
    """The fold whose training side is all there is."""
    return _fold("all", [i.image_id for i in items], [], [])


def select(items: Iterable[DatasetItem], fold: Fold, side: Side) -> list[DatasetItem]:
    """The items of one side of a fold, in the order of `items`.

    Raises DatasetError where the dataset lacks images that the fold names, or where a patient is on two sides.
    """
    items = list(items)
    missing = sorted({*fold.train, *fold.validation, *fold.test} - {i.image_id for i in items})
    if missing:
        raise DatasetError(
            f"fold {fold.name!r} names {len(missing)} images that the dataset lacks, such as {missing[0]!r}; "
            "use the dataset it was made from, or make a new fold"
        )
    sides = {"train": set(fold.train), "validation": set(fold.validation), "test": set(fold.test)}
    of_patient: dict[str, set[str]] = defaultdict(set)
    for item in items:
        of_patient[item.patient_id] |= {name for name, ids in sides.items() if item.image_id in ids}
    torn = sorted(p for p, names in of_patient.items() if len(names) > 1)
    if torn:
        raise DatasetError(f"fold {fold.name!r} has {len(torn)} patients on two sides; make a new fold, grouped by patient")
    return [i for i in items if i.image_id in sides[side]]


def read_side(dataset: str | Path, file: Path, side: Side) -> tuple[list[DatasetItem], Fold]:
    """The items of one side of the fold in `file` of a data set (a spec), and the fold.

    Raises DatasetError as `read_dataset`, `load_fold` and `select` do, and where there is no image on that side.
    """
    fold = load_fold(file)
    items = select(read_dataset(dataset), fold, side)
    if not items:
        filled = ", ".join(f"{name} {len(getattr(fold, name))}" for name in SIDES)
        raise DatasetError(f"{file}: the fold has no image on its {side} side (images: {filled}); name another side")
    return items, fold


def content_hash(fold: Fold) -> str:
    """sha256 (hex) of the image ids and their sides; names and order do not matter."""
    sides = {"train": sorted(fold.train), "validation": sorted(fold.validation), "test": sorted(fold.test)}
    return hashlib.sha256(json.dumps(sides, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def save_fold(path: Path, fold: Fold) -> None:
    """Writes a fold as JSON, atomically, with its content hash."""
    content = {
        "format": _FORMAT,
        "name": fold.name,
        "content_hash": content_hash(fold),
        "train": list(fold.train),
        "validation": list(fold.validation),
        "test": list(fold.test),
    }
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def load_fold(path: Path) -> Fold:
    """Reads a fold; DatasetError where it is none, or where its ids are not those its content hash was made of."""
    try:
        content: Any = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such fold file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DatasetError(f"{path}: not a fold of the format {_FORMAT!r}")
    sides = [content.get(side) for side in ("train", "validation", "test")]
    if not all(isinstance(s, list) and all(isinstance(n, str) for n in s) for s in sides):
        raise DatasetError(f"{path}: expected train, validation and test to be lists of image ids")
    train, validation, test = (tuple(s) for s in sides if s is not None)
    fold = Fold(str(content.get("name", "")), train, validation, test, str(content.get("content_hash", "")))
    if content_hash(fold) != fold.content_hash:
        raise DatasetError(
            f"{path}: its image ids do not match its content hash: it was changed by hand or damaged; make it anew"
        )
    return fold


def _fold(name: str, train: list[str], validation: list[str], test: list[str]) -> Fold:
    fold = Fold(name, tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))
    return Fold(fold.name, fold.train, fold.validation, fold.test, content_hash(fold))


def _by_patient(items: Sequence[DatasetItem], keep_out: Collection[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    every: dict[str, list[str]] = defaultdict(list)
    for item in items:
        every[item.patient_id].append(item.image_id)
    if len({i.image_id for i in items}) != len(items):
        raise DatasetError("two items have the same image_id; image ids must be unique to split a dataset")
    unknown = sorted(set(keep_out) - set(every))
    if unknown:
        raise DatasetError(f"patients to keep out are not in the dataset: {', '.join(unknown[:5])}")
    kept = {p: sorted(ids) for p, ids in every.items() if p in keep_out}
    return {p: sorted(ids) for p, ids in every.items() if p not in keep_out}, kept


def _draw(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()
