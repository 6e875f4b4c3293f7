"""COCO: what is read, what is refused and how, and that writing and reading give the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mammoseg.apps.cli import cli
from mammoseg.datasets import check, coco, parse_spec, read_dataset
from mammoseg.errors import DatasetError

SIZE = (40, 30)  # (H, W)


def _content(**image: Any) -> dict[str, Any]:
    record = {"id": 7, "file_name": "images/a.png", "width": SIZE[1], "height": SIZE[0], "patient_id": "P1"} | image
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 4, 10, 12], "iscrowd": 0}
    return {"images": [record], "annotations": [annotation], "categories": [{"id": 3, "name": "mass"}]}


def _write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros(SIZE, np.uint8))
    cv2.imwrite(str(folder / "images" / "b.png"), np.ones(SIZE, np.uint8))
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def test_a_record_becomes_an_item_with_corners_and_attributes(tmp_path: Path) -> None:
    content = _content(laterality="LEFT", view_position="cc", spacing_mm=[0.1, 0.2], breast_density=3)
    content["annotations"][0]["subtlety"] = 4
    (item,) = read_dataset(_write(tmp_path, content))
    assert item.image_id == "images/a.png"
    assert (item.patient_id, item.laterality, item.view_position, item.spacing_mm) == ("P1", "L", "CC", (0.1, 0.2))
    assert item.annotation.size == SIZE
    assert item.annotation.masses[0].box == (2.0, 4.0, 12.0, 16.0)
    assert item.attributes == {"breast_density": 3}
    assert item.annotation.masses[0].attributes == {"subtlety": 4}


def test_a_mask_without_a_box_gives_its_tight_box(tmp_path: Path) -> None:
    content = _content()
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[3, 5, 9, 5, 9, 8, 3, 8]]
    (item,) = read_dataset(_write(tmp_path, content))
    (mass,) = item.annotation.masses
    assert mass.box == (3.0, 5.0, 9.0, 8.0)
    assert mass.origin_px == (5, 3)
    assert mass.mask is not None
    assert mass.mask.shape == (3, 6)
    assert mass.mask.all()


def test_other_categories_and_crowds_are_no_masses(tmp_path: Path) -> None:
    content = _content()
    content["categories"].append({"id": 4, "name": "calcification"})
    content["annotations"].append({"id": 2, "image_id": 7, "category_id": 4, "bbox": [1, 1, 2, 2]})
    content["annotations"].append({"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 1})
    file = _write(tmp_path, content)
    (item,) = read_dataset(file)
    assert len(item.annotation.masses) == 1
    assert item.attributes["n_crowd"] == 1
    (other,) = read_dataset(f"coco:{file}?category=calcification")
    assert other.annotation.masses[0].box == (1.0, 1.0, 3.0, 3.0)


def test_the_only_category_counts_as_mass_whatever_its_name(tmp_path: Path) -> None:
    content = _content()
    content["categories"][0]["name"] = "tumour"
    assert len(read_dataset(_write(tmp_path, content))[0].annotation.masses) == 1


def test_without_categories_all_annotations_are_masses(tmp_path: Path) -> None:
    content = _content()
    content["categories"] = []
    (item,) = read_dataset(_write(tmp_path, content))
    assert len(item.annotation.masses) == 1


def test_a_box_a_rounding_error_outside_is_cut_to_the_image(tmp_path: Path) -> None:
    content = _content()
    content["annotations"][0]["bbox"] = [-0.4, 0, 30.6, 40.3]
    assert read_dataset(_write(tmp_path, content))[0].annotation.masses[0].box == (0.0, 0.0, 30.0, 40.0)


def test_patients_are_taken_from_the_name_or_assumed_and_reported(tmp_path: Path) -> None:
    content = _content()
    del content["images"][0]["patient_id"]
    file = _write(tmp_path, content)
    (item,) = read_dataset(file)
    assert item.patient_id == "images/a.png"
    assert any("own patient" in line for line in check(file))
    (named,) = read_dataset(f"coco:{file}?patient_pattern=images/(.)")
    assert named.patient_id == "a"
    assert not any("own patient" in line for line in check([named]))
    with pytest.raises(DatasetError, match="finds no group"):
        read_dataset(f"coco:{file}?patient_pattern=(P_[0-9]*x)")


def _bad(change: str) -> dict[str, Any]:
    content = _content()
    annotation, image = content["annotations"][0], content["images"][0]
    if change == "image id":
        annotation["image_id"] = 99
    elif change == "outside":
        annotation["bbox"] = [20, 4, 15, 5]
    elif change == "no area":
        annotation["bbox"] = [2, 4, 0, 5]
    elif change == "short":
        annotation["bbox"] = [2, 4, 5]
    elif change == "missing file":
        image["file_name"] = "images/c.png"
    elif change == "size":
        image["width"], image["height"] = SIZE
    elif change == "category":
        content["categories"] = [{"id": 1, "name": "calc"}, {"id": 2, "name": "node"}]
    elif change == "mask size":
        annotation["segmentation"] = {"size": [30, 40], "counts": [1200]}
    elif change == "mask runs":
        annotation["segmentation"] = {"size": [40, 30], "counts": [5, 6]}
    elif change == "empty mask":
        annotation["segmentation"] = {"size": [40, 30], "counts": [1200]}
    elif change == "twice":
        content["images"].append(image | {"id": 8})
    elif change == "same id":
        content["images"].append(image | {"file_name": "images/b.png"})
    elif change == "laterality":
        image["laterality"] = "both"
    elif change == "nothing":
        del annotation["bbox"]
    elif change == "no name":
        del image["file_name"]
    elif change == "name type":
        image["file_name"] = 3
    elif change == "id type":
        image["id"] = [7]
    elif change == "unknown category":
        annotation["category_id"] = 4
    elif change == "no categories":
        content["categories"] = []
        content["annotations"].append(annotation | {"id": 2, "category_id": 5})
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("image id", r"annotations\.json: annotation 1: image_id 99 .*remove the annotation"),
        ("outside", r"images/a\.png.*annotation 1: bbox .* leaves the image of 30 × 40"),
        ("no area", r"annotation 1: bbox .* has no area"),
        ("short", r"annotation 1: expected bbox \[left, top, width, height\]"),
        ("missing file", r"image 7 \(images/c\.png\): there is no file"),
        ("size", r"the file has 40 × 30 pixels .* the record says 30 × 40"),
        ("category", r"no category 'mass'; this file has calc, node"),
        ("mask size", r"its size \[30, 40\] is not the image's \[40, 30\]"),
        ("mask runs", r"do not add up to 40 × 30"),
        ("empty mask", r"covers no pixel"),
        ("twice", r"'images/a\.png' stands in two image records"),
        ("same id", r"two images have the same id"),
        ("laterality", r"expected laterality L or R, got 'both'"),
        ("nothing", r"neither bbox nor segmentation"),
        ("no name", r"lacks 'file_name'"),
        ("name type", r"image 7: expected file_name to be a relative path, got 3"),
        ("id type", r"image record has id \[7\]: expected a number or a name"),
        ("unknown category", r"annotation 1: category_id 4 is not among the categories"),
        ("no categories", r"names no categories"),
    ],
)
def test_each_defect_has_its_own_error(tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_dataset(_write(tmp_path, _bad(change)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": 3}', '{"images": [3]}', "\x00"])
def test_what_is_no_coco_is_a_dataset_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(text)
    with pytest.raises(DatasetError, match=r"annotations\.json"):
        read_dataset(file)


def test_written_and_read_back_equal(tmp_path: Path) -> None:
    content = _content(laterality="R", view_position="MLO", spacing_mm=[0.1, 0.1], pathology=["BENIGN"])
    content["annotations"][0]["segmentation"] = [[2.5, 4.2, 12, 4, 11, 16, 2, 15.5]]
    before = read_dataset(_write(tmp_path, content))
    coco.write(tmp_path / "again.json", before)
    bytes_once = (tmp_path / "again.json").read_bytes()
    after = read_dataset(tmp_path / "again.json")
    assert [(i.image_id, i.patient_id, i.laterality, i.spacing_mm, i.attributes) for i in before] == [
        (i.image_id, i.patient_id, i.laterality, i.spacing_mm, i.attributes) for i in after
    ]
    a, b = before[0].annotation.masses[0], after[0].annotation.masses[0]
    assert a.box == b.box
    assert a.origin_px == b.origin_px
    assert a.mask is not None
    assert b.mask is not None
    np.testing.assert_array_equal(a.mask, b.mask)
    coco.write(tmp_path / "again.json", after)
    assert (tmp_path / "again.json").read_bytes() == bytes_once


def test_check_names_what_is_odd(tmp_path: Path) -> None:
    content = _content()
    content["annotations"][0] |= {"bbox": [2, 4, 3, 3], "segmentation": [[20, 20, 25, 20, 25, 25, 20, 25]]}
    content["images"].append({"id": 8, "file_name": "images/b.png", "patient_id": "P2"})
    file = _write(tmp_path, content)
    (tmp_path / "images" / "b.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    found = "\n".join(check(file))
    for words in ("no laterality", "no view_position", "disagrees with its mask", "less than 4", "another patient"):
        assert words in found


def test_images_without_a_mass_are_odd_only_where_no_image_has_one(tmp_path: Path) -> None:
    content = _content()
    content["images"].append(content["images"][0] | {"id": 8, "file_name": "images/b.png"})
    file = _write(tmp_path, content)
    (tmp_path / "images" / "b.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    assert not any("mass" in line for line in check(file))
    shown = CliRunner().invoke(cli, ["datasets", "check", str(file)])
    assert "without a mass, taken as free of masses: 1 of 2 images, such as images/b.png" in shown.stdout
    content["annotations"] = []
    assert "no mass: 2 of 2 images, such as images/a.png" in check(_write(tmp_path, content))


def test_specs_and_kinds(tmp_path: Path) -> None:
    assert parse_spec("coco:x.json?category=a%20b&patient_pattern=(P+)") == (
        "coco",
        Path("x.json"),
        {"category": "a b", "patient_pattern": "(P+)"},
    )
    with pytest.raises(DatasetError, match="did you mean 'coco'"):
        read_dataset("cooc:/nowhere")
    with pytest.raises(DatasetError, match="no such file or folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="not recognised"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not take these options: colour"):
        read_dataset(f"coco:{_write(tmp_path, _content())}?colour=red")


@pytest.mark.data
def test_the_training_set_is_whole(shared_dir: Path) -> None:
    items = read_dataset(shared_dir / "data" / "cbis_ddsm_mass" / "annotations.json")
    assert len(items) == 1230
    assert sum(len(i.annotation.masses) for i in items) == 1315
    assert len({i.patient_id for i in items}) == 691
    assert check(items) == []
