"""CBIS-DDSM as TCIA serves it: both layouts, every known quirk, the real CSVs; from the raw folder to the first batch."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from mammoseg.apps.cli import cli
from mammoseg.datasets import inspect, parse_spec, read_dataset
from mammoseg.datasets.cbis_ddsm import csv_files, read_rows, scaled
from mammoseg.datasets.phantom import make_exam
from mammoseg.datasets.phantom_files import exam_seed
from mammoseg.datasets.released import CSV_HEAD, RESCAN
from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.evaluation.overlap import dice
from mammoseg.io.load import load_mammogram

from .conftest import SIZE, SMALL

LAYOUTS = ("classic", "descriptive")


@pytest.fixture(params=LAYOUTS)
def release(request, cbis_release, tmp_path) -> Path:
    return Path(shutil.copytree(cbis_release[request.param], tmp_path / "cbis"))


def drawn():
    """The phantom views by (patient, laterality, view)."""
    views = {e: make_exam(exam_seed(2, e), SMALL) for e in range(1, 5)}
    return {(f"P_{2000 + e:05d}", v.laterality, v.view_position): v for e, many in views.items() for v in many if v.masses}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_what_was_drawn(cbis_release, layout):
    views = drawn()
    items = read_dataset(str(cbis_release[layout]))
    assert {(i.patient_id, i.laterality, i.view_position) for i in items} == set(views)
    several = 0
    for item in items:
        view = views[item.patient_id, item.laterality, item.view_position]
        assert item.annotation.size == load_mammogram(Path(item.path)).size == SIZE
        assert item.attributes["breast_density"] == view.attributes["breast_density"]
        assert item.attributes["official_split"] == ("test" if item.patient_id == "P_02004" else "train")
        several += len(view.masses) > 1
        for true, found in zip(view.masses, item.annotation.masses, strict=True):
            if "mask_size" in found.attributes:  # of another scan: the outline is as coarse as that mask's pixels
                assert found.attributes["mask_size"] == [round(s * RESCAN) for s in SIZE]
                assert dice((true.mask, true.origin_px), (found.mask, found.origin_px)) > 0.9
            else:
                assert found.origin_px == true.origin_px
                assert np.array_equal(found.mask, true.mask)
            assert found.attributes["mass_shape"] == true.attributes["shape"].upper()
    assert several


def test_both_layouts_give_the_same(cbis_release):
    one, other = (read_dataset(str(cbis_release[layout])) for layout in LAYOUTS)
    for a, b in zip(one, other, strict=True):
        assert (a.image_id, a.attributes) == (b.image_id, b.attributes)
        assert [m.box for m in a.annotation.masses] == [m.box for m in b.annotation.masses]


def test_the_official_split(cbis_release):
    root = cbis_release["descriptive"]
    train, test = (read_dataset(f"cbis_ddsm:{root}?split={s}") for s in ("train", "test"))
    assert {i.patient_id for i in test} == {"P_02004"}
    assert not {i.patient_id for i in train} & {i.patient_id for i in test}
    assert [i.image_id for i in [*train, *test]] == [i.image_id for i in read_dataset(str(root))]


@pytest.mark.parametrize("spec", ["cbis_ddsm:{}?split=most", "cbis_ddsm:{}?missing=yes", "inbreast:{}?images=some"])
def test_options_are_checked_by_whoever_reads(cbis_release, spec):
    for function in (read_dataset, inspect):
        with pytest.raises(DatasetSpecError, match=r"option .*: expected"):
            function(spec.format(cbis_release["descriptive"]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quirks_are_told(cbis_release, layout):
    _, lines = inspect(str(cbis_release[layout]))
    text = "\n".join(lines)
    rows = [r for _, file in csv_files(cbis_release[layout]) for r in read_rows(file)]
    assert f"masks of another size than their mammogram, scaled to it: {sum(k % 4 == 1 for k in range(len(rows)))}," in text
    # Swapped paths can be told where crop and mask lie in two series; elsewhere only what the files are can tell.
    assert f"masks found under the path of the crop: {sum(k % 3 == 2 and k % 2 for k in range(len(rows)))}," in text


def test_swapped_paths_in_one_series_with_the_csvs_own_file_names(cbis_release, tmp_path):
    root = Path(shutil.copytree(cbis_release["classic"], tmp_path / "cbis"))
    for row in [r for _, f in csv_files(root) for r in read_rows(f)]:
        for name in ("image file path", "cropped image file path", "ROI mask file path"):
            named = root / row[name]
            served = named.with_name(f"1-{int(named.stem) + 1}.dcm")
            if served.exists():
                served.rename(named)
    items, lines = inspect(str(root))
    swapped = sum(k % 3 == 2 for k in range(sum(len(i.annotation.masses) for i in items)))
    assert f"masks found under the path of the crop: {swapped}," in "\n".join(lines)
    expected = read_dataset(str(cbis_release["classic"]))
    assert [[m.box for m in i.annotation.masses] for i in items] == [[m.box for m in i.annotation.masses] for i in expected]


def test_a_mask_of_sixteen_bits_is_told_by_its_size(release):
    for file in release.rglob("*.dcm"):
        data = pydicom.dcmread(file)
        if data.BitsAllocated == 8:
            mask = data.pixel_array.astype(np.uint16) * 257
            data.BitsAllocated = data.BitsStored = 16
            data.HighBit = 15
            data["PixelData"].VR = "OW"
            data.PixelData = mask.tobytes()
            data.save_as(file)
    items = read_dataset(str(release))
    views = drawn()
    for item in items:
        view = views[item.patient_id, item.laterality, item.view_position]
        for true, found in zip(view.masses, item.annotation.masses, strict=True):
            assert dice((true.mask, true.origin_px), (found.mask, found.origin_px)) > 0.9


def test_a_partial_download(release):
    cases = sorted(p for p in release.rglob("Mass-Training_*") if p.is_dir() and p.parent.name in ("cbis", "CBIS-DDSM"))
    full = next(p for p in cases if p.name.endswith(("CC", "MLO")))
    shutil.rmtree(full)
    with pytest.raises(DatasetError, match=f"such as {full.name}.*missing=skip"):
        read_dataset(str(release))
    rest = read_dataset(f"cbis_ddsm:{release}?missing=skip")
    assert full.name not in {i.image_id for i in rest}
    items, lines = inspect(str(release))
    assert [i.image_id for i in items] == [i.image_id for i in rest]
    assert any("a file is not there, left out: 1" in line for line in lines)
    result = CliRunner().invoke(cli, ["datasets", "check", str(release)])
    assert result.exit_code == 3
    assert "a file is not there" in result.output


def test_a_crop_is_no_mask(release):
    """Where the mask's file is missing and the crop's is there, nothing is made of the crop."""
    eight_bits = [
        f for f in sorted(release.rglob("*.dcm")) if pydicom.dcmread(f, specific_tags=["BitsAllocated"]).BitsAllocated == 8
    ]
    eight_bits[0].unlink()
    with pytest.raises(DatasetError, match="files of 1 mammograms"):
        read_dataset(str(release))


def test_scaled_masks_cover_the_same_part():
    rng = np.random.default_rng(3)
    for _ in range(200):
        size = tuple(int(v) for v in rng.integers(60, 200, 2))
        target = tuple(max(8, round(s * f)) for s, f in zip(size, rng.uniform(0.5, 1.8, 2), strict=True))
        h, w = (int(rng.integers(8, s // 2)) for s in size)
        r, c = int(rng.integers(0, size[0] - h + 1)), int(rng.integers(0, size[1] - w + 1))
        mask, (top, left) = scaled((np.ones((h, w), dtype=bool), (r, c)), size, target)
        fy, fx = target[0] / size[0], target[1] / size[1]
        assert abs(top - r * fy) <= 1
        assert abs(left - c * fx) <= 1
        assert abs(mask.shape[0] - h * fy) <= 1.5
        assert abs(mask.shape[1] - w * fx) <= 1.5
        assert top + mask.shape[0] <= target[0]
        assert left + mask.shape[1] <= target[1]
    speck = scaled((np.ones((1, 1), dtype=bool), (99, 99)), (100, 100), (10, 10))
    assert speck[0].sum() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: [f.unlink() for f in r.glob("*.csv")], "its kind is not recognised"),
        (lambda r: (r / "mass_case_description_test_set.csv").write_text("patient_id\nP_1\n"), "missing: left or right breast"),
        (lambda r: _blank_path(r / "mass_case_description_train_set.csv"), "record 2 has no patient_id or no image file path"),
    ],
)
def test_one_clear_error(release, change, words):
    change(release)
    with pytest.raises(DatasetError, match=words):
        read_dataset(str(release))


def _blank_path(file: Path) -> None:
    rows = list(csv.DictReader(file.open(newline="")))
    rows[0]["image file path"] = ""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, CSV_HEAD)
        writer.writeheader()
        writer.writerows(rows)


def test_unknown_options_name_what_there_is(cbis_release):
    root = cbis_release["classic"]
    with pytest.raises(DatasetError, match="expected one of all, train, test"):
        read_dataset(f"cbis_ddsm:{root}?split=dev")
    with pytest.raises(DatasetError, match="calc_case_description_train_set"):
        read_dataset(f"cbis_ddsm:{root}?abnormality=calc")
    assert parse_spec(root)[0] == "cbis_ddsm"


@pytest.mark.data
def test_the_real_csvs(shared_dir, tmp_path):
    """The collection's own CSVs agree with the annotations made from the same collection by others."""
    folder = shared_dir / "data" / "cbis_ddsm_mass"
    ((side, file),) = csv_files(folder / "official_csv", "train")
    rows = read_rows(file)
    assert (side, len(rows)) == ("train", 1318)
    cases: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        cases.setdefault(row["image file path"].split("/")[0], []).append(row)
    assert len(cases) == 1231
    assert sum(len(many) > 1 for many in cases.values()) == 58
    coco = json.loads((folder / "annotations.json").read_bytes())
    counted = {i["id"]: 0 for i in coco["images"]}
    for annotation in coco["annotations"]:
        counted[annotation["image_id"]] += 1
    agreed = 0
    for image in coco["images"]:
        case = "Mass-Training_P_" + Path(image["file_name"]).stem
        assert cases[case][0]["patient_id"] == image["patient_id"]
        assert int(cases[case][0]["breast_density"]) == image["breast_density"]
        agreed += len(cases[case]) == counted[image["id"]]
    assert agreed >= 0.99 * len(coco["images"])
    calc = read_rows(csv_files(folder / "official_csv", "train", "calc")[0][1])
    assert len(calc) > 1500
    assert all(row["breast_density"] for row in calc)
    with pytest.raises(DatasetError, match="files of 1231 mammograms"):
        read_dataset(f"cbis_ddsm:{folder / 'official_csv'}")


def test_from_the_raw_folder_to_the_first_batch(cbis_release, tmp_path):
    from mammoseg.detection import build_detector
    from mammoseg.detection.cache import cached_images
    from mammoseg.detection.losses import LossConfig
    from mammoseg.detection.predictor import DetectorSpec
    from mammoseg.detection.training import DetectionTask, SamplingConfig
    from mammoseg.preprocessing.augmentation import AugmentationConfig

    from ..conftest import TINY_DETECTOR

    for layout in LAYOUTS:
        items = read_dataset(str(cbis_release[layout]))
        spec = DetectorSpec()
        sampling = SamplingConfig(((128, 64),), 2, augment=False)
        cached = cached_images(items, tmp_path / layout, spec.frame, 256)
        task = DetectionTask(build_detector(TINY_DETECTOR), cached, [], spec, LossConfig(), sampling, AugmentationConfig())
        batch = task.batch(0, range(2), 0)
        assert batch["images"].shape == (2, 3, 128, 64)
        assert len(batch["boxes"]) >= 2
        assert task.loss(task.model, batch)["loss"].item() > 0
