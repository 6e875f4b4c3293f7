"""Folds: no patient on two sides, the same for a seed, stored so that a change is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammoseg.datasets.splits import content_hash, load_fold, patient_folds, patient_holdout, save_fold, select
from mammoseg.errors import DatasetError
from mammoseg.types import Annotation, DatasetItem

COUNTS = st.lists(st.integers(1, 6), min_size=6, max_size=60)


def _items(counts: list[int]) -> list[DatasetItem]:
    names = [(f"p{p}", f"p{p}/{i}.png") for p, n in enumerate(counts) for i in range(n)]
    return [DatasetItem(name, name, patient, Annotation(name, (4, 4))) for patient, name in names]


@given(COUNTS, st.integers(2, 6), st.integers(0, 99), st.randoms())
@settings(max_examples=100, deadline=None)
def test_folds_part_patients_evenly_whatever_the_order(counts: list[int], k: int, seed: int, random: object) -> None:
    items = _items(counts)
    folds = patient_folds(items, k, seed)
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert patient_folds(shuffled, k, seed) == folds
    patient_of = {i.image_id: i.patient_id for i in items}
    for fold in folds:
        assert not {patient_of[n] for n in fold.train} & {patient_of[n] for n in fold.validation}
        assert sorted(fold.train + fold.validation) == sorted(patient_of)
    assert sorted(n for f in folds for n in f.validation) == sorted(patient_of)
    sizes = [len(f.validation) for f in folds]
    assert max(sizes) - min(sizes) <= max(counts)


@given(COUNTS, st.floats(0.2, 0.8), st.integers(0, 99), st.randoms())
@settings(max_examples=100, deadline=None)
def test_a_holdout_has_its_share_of_patients_and_images(counts: list[int], fraction: float, seed: int, random: object) -> None:
    items = _items(counts)
    fold = patient_holdout(items, fraction, seed)
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert patient_holdout(shuffled, fraction, seed) == fold
    held = {i.patient_id for i in items if i.image_id in fold.validation}
    assert not held & {i.patient_id for i in items if i.image_id in fold.train}
    assert abs(len(held) - fraction * len(counts)) <= 0.5 + 1e-9
    # Systematic sampling through the patients sorted by size: off by less than the two largest patients.
    assert abs(len(fold.validation) - fraction * len(items)) <= 2 * max(counts)


def test_seeds_give_different_splits_and_are_remembered() -> None:
    items = _items([2] * 40)
    assert patient_holdout(items, 0.25, 0).validation != patient_holdout(items, 0.25, 1).validation
    assert patient_holdout(items, 0.15, 0).content_hash == patient_holdout(items, 0.15, 0).content_hash
    # Written down, so that a change of the algorithm is noticed: stored folds and bundles depend on it.
    assert patient_holdout(items, 0.15, 0).validation[:2] == EXPECTED_FIRST_TWO


EXPECTED_FIRST_TWO = ("p14/0.png", "p14/1.png")


def test_patients_kept_out_are_only_in_test() -> None:
    items = _items([2, 3, 1, 2, 2, 2, 2, 2])
    folds = [patient_holdout(items, 0.3, 0, keep_out=["p1", "p4"]), *patient_folds(items, 3, 0, keep_out=["p1", "p4"])]
    for fold in folds:
        assert {n.split("/")[0] for n in fold.test} == {"p1", "p4"}
        assert not {n for n in fold.train + fold.validation if n.split("/")[0] in ("p1", "p4")}
    with pytest.raises(DatasetError, match="not in the dataset: p99"):
        patient_holdout(items, 0.3, 0, keep_out=["p99"])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 0.01])
def test_a_side_is_never_empty(fraction: float) -> None:
    with pytest.raises(DatasetError):
        patient_holdout(_items([2, 2, 2]), fraction, 0)


def test_more_folds_than_patients_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 to 3 folds for 3 patients"):
        patient_folds(_items([2, 2, 2]), 4, 0)


def test_saved_folds_come_back_and_notice_a_change(tmp_path: Path) -> None:
    fold = patient_holdout(_items([2] * 10), 0.3, 5, keep_out=["p3"])
    path = tmp_path / "deep" / "fold.json"
    save_fold(path, fold)
    assert load_fold(path) == fold
    content = json.loads(path.read_text())
    content["validation"].append(content["train"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="do not match its content hash"):
        load_fold(path)
    for text in ("", "[]", '{"format": "other"}'):
        path.write_text(text)
        with pytest.raises(DatasetError):
            load_fold(path)
    with pytest.raises(DatasetError, match="no such fold file"):
        load_fold(tmp_path / "none.json")


def test_the_hash_knows_members_and_sides_but_not_order_or_name() -> None:
    fold = patient_holdout(_items([2] * 10), 0.3, 5)
    same = replace(fold, name="other", train=fold.train[::-1])
    assert content_hash(same) == content_hash(fold) == fold.content_hash
    assert content_hash(replace(fold, train=fold.train[1:])) != fold.content_hash
    moved = replace(fold, train=fold.train[1:], test=fold.train[:1])
    assert content_hash(moved) != fold.content_hash


def test_select_gives_a_side_and_refuses_a_wrong_dataset() -> None:
    items = _items([2] * 10)
    fold = patient_holdout(items, 0.3, 5)
    assert [i.image_id for i in select(items, fold, "validation")] == [
        i.image_id for i in items if i.image_id in fold.validation
    ]
    with pytest.raises(DatasetError, match="names 1 images that the dataset lacks"):
        select(items[1:], fold, "train")
    torn = replace(fold, train=fold.train[1:], validation=fold.validation + fold.train[:1])
    with pytest.raises(DatasetError, match="1 patients on two sides"):
        select(items, torn, "train")
