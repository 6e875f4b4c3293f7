"""Phantoms: equal seeds, equal bytes; exact truth; valid files; a mammogram's rough statistics."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from mammoseg.datasets import check, read_dataset
from mammoseg.datasets.headers import image_size
from mammoseg.datasets.phantom import MAX_VALUE, PhantomConfig, PhantomView, make_exam
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.errors import DatasetError
from mammoseg.geometry import mask_box

SMALL = PhantomConfig(size=(416, 320), normal_fraction=0.0)


@pytest.fixture(scope="module")
def exams() -> list[list[PhantomView]]:
    return [make_exam(seed, SMALL) for seed in range(6)]


def test_equal_seeds_give_equal_views_and_others_do_not() -> None:
    one, two, other = make_exam(3, SMALL), make_exam(3, SMALL), make_exam(4, SMALL)
    for a, b, c in zip(one, two, other, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert [m.box for m in a.masses] == [m.box for m in b.masses]
        assert (a.pixels != c.pixels).any()


def test_four_views_of_twelve_bits(exams: list[list[PhantomView]]) -> None:
    for exam in exams:
        assert [v.name for v in exam] == ["RCC", "LCC", "RMLO", "LMLO"]
        for view in exam:
            assert view.pixels.dtype == np.uint16
            assert view.pixels.shape == SMALL.size
            assert 1500 < view.pixels.max() <= MAX_VALUE
            assert view.spacing_mm == pytest.approx((0.56, 0.56))


def test_the_breast_lies_at_its_chest_wall_and_air_is_dark(exams: list[list[PhantomView]]) -> None:
    for view in (v for exam in exams for v in exam):
        breast = view.pixels > 0.08 * MAX_VALUE
        middle = breast[180:260]
        wall, far = (middle[:, -4:], middle[:, :4]) if view.laterality == "R" else (middle[:, :4], middle[:, -4:])
        assert wall.mean() > 0.95
        assert far.mean() < 0.05
        assert 0.15 < breast.mean() < 0.75


def test_the_pectoral_muscle_is_bright_in_mlo_only(exams: list[list[PhantomView]]) -> None:
    def corner(view: PhantomView) -> float:
        top = view.pixels[4:24]
        return float((top[:, -20:] if view.laterality == "R" else top[:, :20]).mean()) / MAX_VALUE

    for exam in exams:
        assert min(corner(v) for v in exam if v.view_position == "MLO") > 0.35
        assert max(corner(v) for v in exam if v.view_position == "CC") < 0.35


def test_masses_are_in_both_views_of_a_breast_within_it(exams: list[list[PhantomView]]) -> None:
    for exam in exams:
        of = {v.name: v for v in exam}
        assert sum(len(v.masses) for v in exam) in (2, 4)
        for side in "RL":
            keys = [sorted(m.attributes["key"] for m in of[side + view].masses) for view in ("CC", "MLO")]
            assert keys[0] == keys[1]
        for view in exam:
            for mass in view.masses:
                assert mass.mask is not None
                assert mass.box == mask_box(mass.mask, mass.origin_px)
                r, c = mass.origin_px
                window = view.pixels[r : r + mass.mask.shape[0], c : c + mass.mask.shape[1]]
                assert window.shape == mass.mask.shape
                assert (window[mass.mask] > 0.08 * MAX_VALUE).all()
                diameter = 2 * np.sqrt(mass.mask.sum() / np.pi) * 0.56
                assert 0.7 < diameter / mass.attributes["diameter_mm"] < 1.35


def test_without_its_masses_an_exam_is_the_same_elsewhere(exams: list[list[PhantomView]]) -> None:
    none = replace(SMALL, normal_fraction=1.0, noise=0.0)
    for seed in range(3):
        for view, normal in zip(make_exam(seed, replace(SMALL, noise=0.0)), make_exam(seed, none), strict=True):
            added = view.pixels.astype(int) - normal.pixels
            near = np.zeros(SMALL.size, np.bool_)
            for mass in view.masses:
                assert mass.mask is not None
                (r, c), (h, w) = mass.origin_px, mass.mask.shape
                near[max(0, r - h) : r + 2 * h, max(0, c - w) : c + 2 * w] = True
                gain = added[r : r + h, c : c + w]
                assert gain[mass.mask].mean() > 0.06 * MAX_VALUE
                # The truth is where the mass is: what it adds inside is well above what its rim adds outside.
                assert gain[mass.mask].mean() > 2.5 * gain[~mass.mask].mean()
            assert (added[~near] == 0).all()
            assert normal.masses == ()


def test_shapes_sizes_and_normals_vary() -> None:
    tiny = PhantomConfig(size=(104, 80))
    exams = [make_exam(seed, tiny) for seed in range(40)]
    masses = [m for e in exams for v in e for m in v.masses]
    assert {m.attributes["shape"] for m in masses} == {"round", "oval", "lobular", "irregular", "spiculated"}
    normal = sum(not any(v.masses for v in e) for e in exams)
    assert 2 <= normal <= 18
    diameters = [m.attributes["diameter_mm"] for m in masses]
    assert min(diameters) >= 4.6
    assert max(diameters) <= 43
    assert np.percentile(diameters, 90) > 1.6 * np.percentile(diameters, 10)


def test_density_brightens_the_breast() -> None:
    def mean(density: int) -> float:
        config = PhantomConfig(size=(160, 124), density=density)
        return float(np.mean([v.pixels[v.pixels > 400].mean() for s in range(3) for v in make_exam(s, config)]))

    means = [mean(d) for d in (1, 2, 3, 4)]
    assert means == sorted(means)
    assert means[3] > 1.15 * means[0]


def test_parenchyma_falls_off_as_a_power_of_frequency() -> None:
    config = PhantomConfig(size=(832, 640), noise=0.0, labels=False, calcifications=False, normal_fraction=1.0, density=3)
    slopes = []
    for seed in range(2):
        view = make_exam(seed, config)[1]
        patch = view.pixels[285:541, 30:286].astype(float)
        window = np.hanning(256)[:, None] * np.hanning(256)[None, :]
        power = np.abs(np.fft.fft2((patch - patch.mean()) * window)) ** 2
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
        bands = np.geomspace(0.02, 0.2, 10)
        mean = [power[(f >= a) & (f < b)].mean() for a, b in pairwise(bands)]
        slopes.append(np.polyfit(np.log(np.sqrt(bands[:-1] * bands[1:])), np.log(mean), 1)[0])
    # Mammograms: about 2.5 to 3.5 (Burgess 1999 and later).
    assert -3.8 < np.mean(slopes) < -2.2


def test_film_has_borders_and_labels_are_drawn() -> None:
    film = make_exam(1, PhantomConfig(size=(416, 320), film=True))
    plain = make_exam(1, PhantomConfig(size=(416, 320), labels=False))
    labelled = make_exam(1, PhantomConfig(size=(416, 320)))
    for f, p, w in zip(film, plain, labelled, strict=True):
        assert f.pixels[0].min() > 0.8 * MAX_VALUE
        assert (p.pixels[:30] != w.pixels[:30]).any()
        np.testing.assert_array_equal(p.pixels[60:], w.pixels[60:])


@pytest.mark.parametrize(
    "wrong", [{"size": (10, 10)}, {"diameter_mm": (9.0, 5.0)}, {"masses": (0, 1)}, {"density": 5}, {"spacing_mm": 0.0}]
)
def test_a_config_that_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="PhantomConfig"):
        PhantomConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["dicom", "png"])
def test_written_exams_read_back_with_exact_truth(tmp_path: Path, format: str) -> None:
    seen: list[tuple[int, int]] = []
    written = write_exams(tmp_path, 2, 5, format, SMALL, lambda done, all_: seen.append((done, all_)))  # type: ignore[arg-type]
    assert seen[-1] == (8, 8)
    for spec in (f"phantom:{tmp_path}", str(tmp_path)):
        items = read_dataset(spec)
        assert [i.image_id for i in items] == [i.image_id for i in written]
        assert len({i.patient_id for i in items}) == 2
        for a, b in zip(items, written, strict=True):
            assert (a.laterality, a.view_position, a.spacing_mm) == (b.laterality, b.view_position, b.spacing_mm)
            assert image_size(Path(a.path)) == a.annotation.size == SMALL.size
            for m, n in zip(a.annotation.masses, b.annotation.masses, strict=True):
                assert m.box == n.box
                np.testing.assert_array_equal(m.mask, n.mask)
        assert check(items) == []
    with pytest.raises(DatasetError, match="holds a dataset already"):
        write_exams(tmp_path, 1, 5, "png", SMALL)


def test_png_keeps_the_twelve_bits(tmp_path: Path) -> None:
    items = write_exams(tmp_path, 1, 9, "png", SMALL)
    for item, view in zip(items, make_exam(900_001, SMALL), strict=True):
        pixels = cv2.imread(item.path, cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint16
        np.testing.assert_array_equal(np.rint(pixels / 65535 * MAX_VALUE), view.pixels)


def test_dicom_says_what_it_is_and_holds_the_pixels(tmp_path: Path) -> None:
    items = write_exams(tmp_path, 1, 9, "dicom", SMALL)
    uids = set()
    for item, view in zip(items, make_exam(900_001, SMALL), strict=True):
        ds = pydicom.dcmread(item.path)
        np.testing.assert_array_equal(ds.pixel_array, view.pixels)
        assert (ds.Modality, ds.PresentationIntentType) == ("MG", "FOR PRESENTATION")
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2"
        assert (ds.ImageLaterality, ds.ViewPosition) == (view.laterality, view.view_position)
        assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 12, 11, 0)
        assert ds.PhotometricInterpretation == "MONOCHROME2"
        assert [float(v) for v in ds.ImagerPixelSpacing] == pytest.approx(list(view.spacing_mm))
        assert float(ds.WindowWidth) == 4096
        assert "PHANTOM" in str(ds.PatientName)
        assert ds.PatientID == item.patient_id
        assert ds.QualityControlImage == "YES"
        uids |= {str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)}
        assert len(ds.SOPInstanceUID) <= 64
    assert len(uids) == 8
    assert len({str(pydicom.dcmread(i.path).StudyInstanceUID) for i in items}) == 1


def test_equal_arguments_give_equal_files(tmp_path: Path) -> None:
    for format in ("dicom", "png"):
        for name in ("a", "b"):
            write_exams(tmp_path / format / name, 1, 2, format, SMALL)  # type: ignore[arg-type]
        files = sorted(p.relative_to(tmp_path / format / "a") for p in (tmp_path / format / "a").rglob("*") if p.is_file())
        assert len(files) == 5
        for file in files:
            assert (tmp_path / format / "a" / file).read_bytes() == (tmp_path / format / "b" / file).read_bytes()


@pytest.mark.parametrize(("count", "seed", "format"), [(0, 0, "png"), (1, -1, "png"), (1, 0, "bmp")])
def test_wrong_arguments_are_refused(tmp_path: Path, count: int, seed: int, format: str) -> None:
    with pytest.raises(DatasetError, match="expected"):
        write_exams(tmp_path, count, seed, format, SMALL)  # type: ignore[arg-type]


def test_a_foreign_folder_is_no_phantom(tmp_path: Path) -> None:
    write_exams(tmp_path, 1, 2, "png", SMALL)
    text = (tmp_path / "annotations.json").read_text().replace("mammoseg phantom", "someone else")
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DatasetError, match="not written by"):
        read_dataset(f"phantom:{tmp_path}")
