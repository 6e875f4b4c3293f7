"""The CDD-CESM reader: which regions count as masses, and what is padding."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoseg.datasets import parse_spec, read_dataset
from mammoseg.datasets.cdd_cesm import content_box, describe, read
from mammoseg.errors import DatasetError


def ellipse(size: int, axes: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros((size, size), dtype=np.uint8)
    cv2.ellipse(canvas, (size // 2, size // 2), axes, 30, 0, 360, 1, -1)
    return canvas.astype(bool)


def test_a_mass_a_rim_a_speck_and_a_drawn_disc() -> None:
    mass = describe(ellipse(100, (30, 20)))
    assert mass["mass_like"]
    assert mass["solidity"] > 0.95
    rim = np.zeros((300, 300), dtype=np.uint8)
    cv2.ellipse(rim, (150, 150), (140, 120), 0, 90, 270, 1, 8)
    assert not describe(rim.astype(bool))["mass_like"]
    assert not describe(ellipse(20, (5, 5)))["mass_like"]
    assert not describe(ellipse(40, (14, 14)))["mass_like"]
    assert not describe(ellipse(400, (120, 100)))["mass_like"]
    hollow = ellipse(100, (30, 30)) & ~ellipse(100, (10, 10))
    assert describe(hollow)["thickness"] > 0.9  # holes count as filled


def test_content_box_of_even_padding() -> None:
    image = np.zeros((100, 100), dtype=np.uint8)
    image[:, 20:80] = 90
    image[:, 70:80] = 0  # the dark side of the breast is no padding
    image[50, 18] = 2  # JPEG's leftovers
    assert content_box(image) == (20.0, 0.0, 80.0, 100.0)
    assert content_box(image.T) == (0.0, 20.0, 100.0, 80.0)
    assert content_box(np.zeros((8, 8), dtype=np.uint8)) == (0.0, 0.0, 8.0, 8.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rows = ["file,patient_id,laterality,view_position,findings,tags,n_regions"]
    for name, words in (("P1_L.jpg", "High density mass"), ("P2_R.jpg", "calcifications only"), ("P3_L.jpg", "mass")):
        image = np.full((200, 200), 60, dtype=np.uint8)
        image[:, :40] = image[:, 160:] = 0
        mask = np.zeros((200, 200), dtype=np.uint8)
        if name == "P1_L.jpg":
            cv2.ellipse(mask, (100, 80), (30, 18), 0, 0, 360, 255, -1)
            cv2.circle(mask, (60, 140), 6, 255, -1)
        cv2.line(mask, (60, 190), (140, 190), 255, 5)
        cv2.imwrite(str(tmp_path / "images" / name), image)
        cv2.imwrite(str(tmp_path / "masks" / name), mask, [cv2.IMWRITE_JPEG_QUALITY, 90])
        rows.append(f"{name},{name[:2]},{name[3]},CC,{words},,2")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_the_folder_is_known_by_its_table(folder: Path) -> None:
    assert parse_spec(folder) == ("cdd_cesm", folder, {})
    (folder / "index.csv").write_text("file,patient_id\nP1_L.jpg,P1\n")
    assert parse_spec(folder)[0] == "image_mask"


def test_reading_a_folder(folder: Path) -> None:
    (item,) = read_dataset(f"cdd_cesm:{folder}")
    assert (item.image_id, item.patient_id, item.laterality, item.view_position) == ("images/P1_L.jpg", "P1", "L", "CC")
    (mass,) = item.annotation.masses
    np.testing.assert_allclose(mass.box, (70, 62, 131, 99), atol=1)
    assert mass.mask is not None
    assert mass.mask.sum() == pytest.approx(np.pi * 30 * 18, rel=0.06)
    assert item.attributes["n_regions"] == 2
    np.testing.assert_allclose(item.attributes["content_box"], (40, 0, 160, 200), atol=8)
    (other,) = item.attributes["other_regions"]  # the speck; the line is a rim
    np.testing.assert_allclose(other, (54, 134, 67, 147), atol=1)


def test_options_widen_what_is_read(folder: Path) -> None:
    assert [len(i.annotation.masses) for i in read(folder, regions="all")] == [3, 1]
    assert [i.attributes["other_regions"] for i in read(folder, regions="all")] == [[], []]
    assert len(read(folder, images="all", regions="all")) == 3
    with pytest.raises(DatasetError, match="mass_like, all"):
        read(folder, regions="some")


def test_what_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"index\.csv"):
        read(tmp_path / "nowhere")
    (folder / "masks" / "P1_L.jpg").unlink()
    with pytest.raises(DatasetError, match=r"P1_L\.jpg"):
        read(folder)


@pytest.mark.data
def test_the_real_collection(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "cdd_cesm"
    items = read(folder)
    assert (len(items), sum(len(i.annotation.masses) for i in items), len({i.patient_id for i in items})) == (104, 177, 64)
    every = read(folder, regions="all")
    single = [i for i in every if i.attributes["n_regions"] == 1]
    assert (len(every), len(single), len({i.patient_id for i in single})) == (125, 30, 19)
    assert all(len(i.annotation.masses) == 1 for i in single)
