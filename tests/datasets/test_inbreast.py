"""INbreast as released: every file of it, its spellings and gaps, from the raw folder to the first training batch."""

from __future__ import annotations

import plistlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import xlwt
from click.testing import CliRunner
from skimage.draw import polygon2mask

from mammoseg.apps.cli import cli
from mammoseg.datasets import inbreast, inspect, parse_spec, read_dataset
from mammoseg.datasets.phantom import make_exam
from mammoseg.datasets.phantom_files import exam_seed
from mammoseg.datasets.released import osirix_file, osirix_roi
from mammoseg.errors import DatasetError
from mammoseg.io.load import load_mammogram

from .conftest import SMALL


@pytest.fixture
def release(inbreast_release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inbreast_release, tmp_path / "INbreast Release 1.0"))


def test_reads_what_was_drawn(inbreast_release):
    views = [view for exam in (1, 2) for view in make_exam(exam_seed(1, exam), SMALL)]
    items = read_dataset(f"inbreast:{inbreast_release}?images=all")
    assert len(items) == len(views) == 8
    assert len({i.patient_id for i in items}) == 2
    for view, item in zip(views, items, strict=True):
        assert (item.laterality, item.view_position) == (view.laterality, view.view_position)  # MLO, though the file says ML
        assert item.annotation.size == load_mammogram(Path(item.path)).size == SMALL.size
        assert item.spacing_mm == pytest.approx(view.spacing_mm)
        for drawn, found in zip(view.masses, item.annotation.masses, strict=True):
            assert found.origin_px == drawn.origin_px
            assert np.array_equal(found.mask, drawn.mask)
            assert found.box == drawn.box
    assert [i.attributes.get("breast_density") for i in items][:2] == [views[0].attributes["breast_density"], None]


def test_by_default_only_images_with_a_mass(inbreast_release):
    with_mass = [i for i in read_dataset(f"inbreast:{inbreast_release}?images=all") if i.annotation.masses]
    assert [i.image_id for i in read_dataset(str(inbreast_release))] == [i.image_id for i in with_mass]
    assert parse_spec(inbreast_release.parent)[0] == "inbreast"  # one folder up is fine, as the archive unpacks


def test_masses_are_told_by_name_alone(release):
    file = sorted((release / "AllXML").iterdir())[0]
    square = np.array([[10.0, 20], [30, 20], [30, 50], [10, 50]])
    names = ["Mass", "mass ", "MASS", "Spiculated Region", "Espiculated Region", "Cluster", "Assymetry", "Distortion", None,
             "Calcification", "Unnamed", "Point 1", "Massive"]  # fmt: skip
    file.write_bytes(osirix_file([osirix_roi(n, square + k, k) for k, n in enumerate(names)]))
    number = file.stem

    def masses(spec):
        (item,) = [i for i in read_dataset(spec) if f"/{number}_" in i.image_id]
        return [m.box[0] for m in item.annotation.masses]

    assert masses(f"inbreast:{release}") == [10, 11, 12]
    assert masses(f"inbreast:{release}?rois=Mass,Spiculated Region,espiculated region") == [10, 11, 12, 13, 14]


def test_a_contour_is_filled_in_pixel_edges(release):
    file = sorted((release / "AllXML").iterdir())[0]
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
    outline = np.stack([90 + 40 * np.cos(angle), 120.3 + 55 * np.sin(angle)], axis=1) + rng.normal(0, 1, (40, 2))
    file.write_bytes(osirix_file([osirix_roi("Mass", outline)]))
    (item,) = [i for i in read_dataset(f"inbreast:{release}") if f"/{file.stem}_" in i.image_id]
    (mass,) = item.annotation.masses
    expected = polygon2mask(SMALL.size, np.round(outline[:, ::-1], 6) - 0.5)  # scikit-image works with pixel centres
    found = np.zeros(SMALL.size, dtype=bool)
    r, c = mass.origin_px
    found[r : r + mass.mask.shape[0], c : c + mass.mask.shape[1]] = mass.mask
    assert np.array_equal(found, expected)


def test_the_excel_table_says_the_same(release):
    items = read_dataset(f"inbreast:{release}?images=all")
    book = xlwt.Workbook()
    sheet = book.add_sheet("INbreast")
    head = ["Patient ID", "Patient age", "Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads", "Mass "]
    lines = (release / "INbreast.csv").read_text().splitlines()[1:]
    for column, name in enumerate(head):
        sheet.write(0, column, name)
    for number, line in enumerate(lines, start=1):
        for column, cell in enumerate([*line.split(";"), "X"]):
            sheet.write(number, column, float(cell) if cell.strip().isdigit() else cell)  # Excel's numbers are floats
    sheet.write(len(lines) + 1, 5, "Total")
    book.save(str(release / "INbreast.xls"))
    (release / "INbreast.csv").unlink()
    again = read_dataset(f"inbreast:{release}?images=all")
    assert [(i.laterality, i.view_position, i.attributes) for i in again] == [
        (i.laterality, i.view_position, i.attributes) for i in items
    ]


def test_check_tells_what_is_missing_or_odd(release):
    first, second, *_ = sorted((release / "AllDICOMs").iterdir())
    first.unlink()
    second.rename(second.with_name("renamed.dcm"))
    third = sorted((release / "AllXML").glob("*.xml"))[-1]
    point = np.array([[5.0, 5.0]])
    rois = [osirix_roi("Mass", point), osirix_roi("Mass", point + [[0, 0], [4, 0], [0, 4]] + 9000)]
    document = plistlib.loads(osirix_file(rois))
    document["Images"][0]["NumberOfROIs"] = 7
    third.write_bytes(plistlib.dumps(document))
    lines = (release / "INbreast.csv").read_text().splitlines()
    fourth = sorted((release / "AllDICOMs").glob("2*.dcm"))[0].name.split("_")[0]
    lines = [x.replace(";L;", ";?;").replace(";R;", ";L;").replace(";?;", ";R;") if f";{fourth};" in x else x for x in lines]
    (release / "INbreast.csv").write_text("\n".join(lines) + "\n")
    _, told = inspect(f"inbreast:{release}")
    text = "\n".join(told)
    for words in (
        "rows of the table without a DICOM file: 2",
        "contour files without a DICOM file: 1",
        "left out: 1, such as renamed",
        "fewer than three points",
        "outside the image",
        "NumberOfROIs is not",
        "another side or view than the file name (the table counts): 1",
        "6 images (the release: 410)",
        "the release: 107",
        "the release: 116",
    ):
        assert words in text
    result = CliRunner().invoke(cli, ["datasets", "check", str(release)])
    assert result.exit_code == 3
    assert "rows of the table without a DICOM file: 2" in result.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: shutil.rmtree(r / "AllXML"), "expected the folders AllDICOMs and AllXML"),
        (lambda r: (r / "INbreast.csv").unlink(), "neither INbreast.csv nor INbreast.xls"),
        (lambda r: (r / "INbreast.csv").write_text("a;b\n1;2\n"), "missing: Laterality, View, File Name"),
        (lambda r: next((r / "AllXML").iterdir()).write_bytes(b"<plist><dict>"), "not an OsiriX contour file"),
        (lambda r: next((r / "AllXML").iterdir()).write_bytes(plistlib.dumps({"Images": [{"ROIs": 3}]})), "not an OsiriX"),
        (lambda r: next((r / "AllXML").iterdir()).write_bytes(_entity_bomb()), "not an OsiriX contour file"),
        (lambda r: next((r / "AllDICOMs").iterdir()).write_bytes(b"x" * 200), "DICOM header cannot be read"),
        (lambda r: [f.unlink() for f in (r / "AllDICOMs").iterdir()], "no file named NUMBER_PATIENT"),
    ],
)
def test_one_clear_error(release, change, words):
    change(release)
    with pytest.raises(DatasetError, match=words):
        read_dataset(f"inbreast:{release}")


def _entity_bomb() -> bytes:
    return b"""<?xml version="1.0"?><!DOCTYPE plist [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<plist version="1.0"><dict><key>Images</key><string>&b;</string></dict></plist>"""


def test_a_whole_release_has_107_images_with_116_masses(inbreast_release, tmp_path):
    """As many files as the release has, masses among findings of every other name: two images with three, five with two."""
    root = tmp_path / "INbreast Release 1.0"
    for folder in ("AllDICOMs", "AllXML"):
        (root / folder).mkdir(parents=True)
    picture = next((inbreast_release / "AllDICOMs").iterdir())
    others = ("Calcification", "Cluster", "Spiculated Region", "Espiculated Region", "Spiculated region", "Asymmetry",
              "Assymetry", "Distortion", "Unnamed", "Point 1", "Point 3", "Calcifications", None)  # fmt: skip
    square = np.array([[10.0, 20], [30, 20], [30, 50], [10, 50]])
    rows = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"]
    for k in range(410):
        side, view, number = "RL"[k % 2], ("CC", "ML")[k // 2 % 2], 20_586_908 + 26 * k
        name = f"{number}_{k // 4:016x}_MG_{side}_{view}_ANON.dcm"
        (root / "AllDICOMs" / name).hardlink_to(picture)
        rows.append(f"removed;removed;{side};{view.replace('ML', 'MLO')};201001;{number};2;1")
        masses = 0 if k % 3 or k // 3 >= 107 else 3 if k // 3 < 2 else 2 if k // 3 < 7 else 1
        if k < 343:
            names = ["Mass"] * masses + [others[k % len(others)]]
            (root / "AllXML" / f"{number}.xml").write_bytes(
                osirix_file([osirix_roi(n, square + j, j) for j, n in enumerate(names)])
            )
    (root / "INbreast.csv").write_text("\n".join(rows) + "\n")
    items, notes = inbreast.survey(root)
    assert notes == []
    assert (len(items), sum(len(i.annotation.masses) for i in items)) == (107, 116)
    assert len(inbreast.read(root, images="all")) == 410
    (root / "AllXML" / "20586908.xml").unlink()
    assert any("106 images with a mass (the release: 107), 113 masses" in line for line in inbreast.survey(root)[1])


def test_from_the_raw_folder_to_the_first_batches(inbreast_release, tmp_path):
    from mammoseg.detection import build_detector
    from mammoseg.detection.cache import cached_images
    from mammoseg.detection.losses import LossConfig
    from mammoseg.detection.predictor import DetectorSpec
    from mammoseg.detection.training import DetectionTask, SamplingConfig
    from mammoseg.experiments.train_segmenter import SegmenterTask, SegmenterTrainConfig, load_regions
    from mammoseg.preprocessing.augmentation import AugmentationConfig
    from mammoseg.preprocessing.crops import CropConfig
    from mammoseg.segmentation import build_segmenter
    from mammoseg.training.loop import LoopConfig

    from ..conftest import TINY_DETECTOR, TINY_SEGMENTER

    items = read_dataset(str(inbreast_release))
    spec = DetectorSpec()
    sampling = SamplingConfig(((128, 64),), 2, augment=False)
    cached = cached_images(items, tmp_path / "cache", spec.frame, 256)
    task = DetectionTask(build_detector(TINY_DETECTOR), cached, [], spec, LossConfig(), sampling, AugmentationConfig())
    batch = task.batch(0, range(2), 0)
    assert batch["images"].shape == (2, 3, 128, 64)
    assert len(batch["boxes"]) >= 2
    assert task.loss(task.model, batch)["loss"].item() > 0
    config = SegmenterTrainConfig(crop=CropConfig(size=32), training=LoopConfig(batch_size=2))
    regions = load_regions(items, config.crop, config.jitter)
    assert len(regions) == sum(len(i.annotation.masses) for i in items)
    crops = SegmenterTask(build_segmenter(TINY_SEGMENTER), config, regions).batch(0, range(2), 0)
    assert crops["image"].shape == (2, 3, 32, 32)
    assert 0.1 < float(crops["truth"].mean()) < 0.9
