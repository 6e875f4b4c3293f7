"""Folders of images and masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoseg.datasets import check, read_dataset
from mammoseg.errors import DatasetError


def _folder(root: Path) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir()
    image = np.full((60, 50), 90, np.uint8)
    mask = np.zeros((60, 50), np.uint8)
    mask[10:20, 5:15] = 255
    mask[20:26, 15:21] = 255  # touches by a corner: the same region, 8-connected
    mask[40:50, 30:45] = 200
    mask[55, 2] = 255  # a speck
    cv2.imwrite(str(root / "images" / "P1_L.jpg"), image)
    cv2.imwrite(str(root / "masks" / "P1_L.png"), mask)
    return root


def test_regions_become_masses_and_specks_are_counted(tmp_path: Path) -> None:
    (item,) = read_dataset(_folder(tmp_path))
    assert item.image_id == "images/P1_L.jpg"
    assert [m.box for m in item.annotation.masses] == [(5.0, 10.0, 21.0, 26.0), (30.0, 40.0, 45.0, 50.0)]
    assert [int(m.mask.sum()) for m in item.annotation.masses if m.mask is not None] == [136, 150]
    assert item.attributes["n_specks"] == 1
    assert any("own patient" in line for line in check([item]))


def test_jpeg_masks_are_thresholded_at_127(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    mask = cv2.imread(str(root / "masks" / "P1_L.png"), 0)
    (root / "masks" / "P1_L.png").unlink()
    cv2.imwrite(str(root / "masks" / "P1_L.jpg"), cv2.merge([mask, mask, mask]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    (item,) = read_dataset(root)
    assert len(item.annotation.masses) == 2
    truth = (mask[:, :] > 0)[40:50, 30:45]
    assert abs(int(item.annotation.masses[1].mask.sum()) - int(truth.sum())) <= 4  # type: ignore[union-attr]


def test_label_images_keep_touching_masses_apart(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    labels = np.zeros((60, 50), np.uint16)
    labels[10:20, 10:20] = 1
    labels[10:20, 20:30] = 700
    cv2.imwrite(str(root / "masks" / "P1_L.png"), labels)
    (item,) = read_dataset(f"image_mask:{root}?masks=labels")
    assert [m.box for m in item.annotation.masses] == [(10.0, 10.0, 20.0, 20.0), (20.0, 10.0, 30.0, 20.0)]


def test_the_index_names_patients_and_attributes(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    (root / "index.csv").write_text("file,patient_id,laterality,view_position,spacing_mm,birads\nP1_L.jpg,P1,left,mlo,0.07,4\n")
    (item,) = read_dataset(root)
    assert (item.patient_id, item.laterality, item.view_position, item.spacing_mm) == ("P1", "L", "MLO", (0.07, 0.07))
    assert item.attributes["birads"] == "4"
    assert read_dataset(f"image_mask:{root}?patient_pattern=(P[0-9])")[0].patient_id == "P1"


def test_a_missing_mask_is_an_error_unless_said_otherwise(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    (root / "masks" / "P1_L.png").unlink()
    with pytest.raises(DatasetError, match=r"there is no masks/P1_L\.\*"):
        read_dataset(root)
    assert read_dataset(f"image_mask:{root}?missing=normal")[0].annotation.masses == ()
    assert read_dataset(f"image_mask:{root}?missing=skip") == []


@pytest.mark.parametrize("defect", ["size", "orphan", "second", "undecodable", "index", "colour", "option", "no masks"])
def test_each_defect_has_its_own_error(tmp_path: Path, defect: str) -> None:
    root = _folder(tmp_path)
    spec, words = f"image_mask:{root}", ""
    mask = root / "masks" / "P1_L.png"
    if defect == "size":
        words = "the mask has 10 × 10 pixels"
        cv2.imwrite(str(mask), np.zeros((10, 10), np.uint8))
    elif defect == "orphan":
        words = "there is no images/P2"
        cv2.imwrite(str(root / "masks" / "P2.png"), np.zeros((10, 10), np.uint8))
    elif defect == "second":
        words = "a second mask"
        cv2.imwrite(str(root / "masks" / "P1_L.jpg"), np.zeros((60, 50), np.uint8))
    elif defect == "undecodable":
        words = "cannot be decoded"
        mask.write_bytes(b"nothing")
    elif defect == "index":
        words = "line 2: there is no images/X.png"
        (root / "index.csv").write_text("file\nX.png\n")
    elif defect == "colour":
        words = "in colour"
        cv2.imwrite(str(mask), np.dstack([np.zeros((60, 50), np.uint8)] * 2 + [np.full((60, 50), 9, np.uint8)]))
    elif defect == "option":
        words = "expected one of components, labels"
        spec += "?masks=blobs"
    else:
        words = "there is no folder 'masks'"
        mask.unlink()
        (root / "masks").rmdir()
    with pytest.raises(DatasetError, match=words):
        read_dataset(spec)


@pytest.mark.data
def test_cdd_cesm_can_be_read_as_it_is(shared_dir: Path) -> None:
    items = read_dataset(f"image_mask:{shared_dir / 'data' / 'cdd_cesm'}")
    assert len(items) == 230
    assert len({i.patient_id for i in items}) == 125
    assert all(i.annotation.masses for i in items)
