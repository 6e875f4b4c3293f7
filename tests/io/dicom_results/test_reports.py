"""Which images a study's reports speak of, and geometry at its limits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from mammoseg.io.dicom_results import StudyImage, image_result, read_source, study_of, study_result
from mammoseg.io.dicom_results.shapes import POINTS_MAX, center, closed_outline
from mammoseg.io.findings_json import findings_from_json, findings_to_json
from mammoseg.io.pictures import label_image
from mammoseg.reconstruction import outline
from mammoseg.types import Findings, Lesion

SIZE = (97, 71)
STUDY = "1.2.826.0.1.3680043.9.9999.5.5"


@pytest.fixture
def image(write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path) -> Callable[..., StudyImage]:
    """`image(number, count=1, status="processed", **elements)` gives one image of a study."""

    def make(number: int, count: int = 1, status: str = "processed", **more: Any) -> StudyImage:
        more = {"StudyInstanceUID": STUDY, "SeriesNumber": number, "PatientName": "Report^Test"} | more
        path = write_source(tmp_path / f"{number}_{status}.dcm", number, SIZE, **more)
        source = read_source(path)
        assert source is not None
        return StudyImage(source, find(path, SIZE, count, number, status=status))

    return make


def cad(images: list[StudyImage]) -> Dataset:
    study = study_of(images)
    assert study is not None
    return pydicom.dcmread(BytesIO(study_result("cadsr", study)))


def library(ds: Dataset) -> list[str]:
    return [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in ds.ContentSequence[1].ContentSequence]


def test_the_order_of_the_files_does_not_matter(image: Callable[..., StudyImage]) -> None:
    images = [image(3), image(1, 0), image(2, 2)]
    made = set()
    for order in itertools.permutations(images):
        study = study_of(order)
        assert study is not None
        made.add((study_result("cadsr", study), study_result("sr", study)))
    assert len(made) == 1
    assert library(cad(images)) == [i.source.sop_instance_uid for i in (images[1], images[2], images[0])]


def test_other_modalities_are_left_out(image: Callable[..., StudyImage]) -> None:
    mammogram = image(1)
    ultrasound = image(2, 0, "rejected", Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1")
    assert library(cad([mammogram, ultrasound])) == [mammogram.source.sop_instance_uid]
    assert study_of([ultrasound]) is None
    film = image(3, 1, Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1")
    assert len(library(cad([mammogram, film, ultrasound]))) == 2


def test_two_files_of_one_instance_count_once(image: Callable[..., StudyImage]) -> None:
    good, bad = image(1, 2), image(1, 0, "failed")
    for pair in ([good, bad], [bad, good]):
        ds = cad(pair)
        assert len(library(ds)) == 1
        assert ds.CompletionFlag == "COMPLETE"
    with pytest.raises(ValueError, match="several"):
        study_of([good, image(2, StudyInstanceUID="1.2.3")])


def test_what_was_not_analysed_is_said_with_its_reason(image: Callable[..., StudyImage]) -> None:
    ds = cad([image(1, 0), image(2, 0, "failed"), image(3, 0, "rejected")])
    (summary,) = [c for c in ds.ContentSequence if c.ConceptNameCodeSequence[0].CodeValue == "111017"]
    words = summary.ContentSequence[0].TextValue
    assert "Image 1 (R CC): processed, no mass found." in words
    assert "Image 2 (R CC): failed, not analysed: a reason to be failed." in words
    assert "Image 3 (R CC): rejected, not analysed: a reason to be rejected." in words
    assert summary.ConceptCodeSequence[0].CodeMeaning == "Not all algorithms succeeded; without findings"
    assert (ds.CompletionFlag, ds.CompletionFlagDescription) == ("PARTIAL", "2 of 3 images were not analysed")
    evidence = ds.CurrentRequestedProcedureEvidenceSequence[0]
    assert sum(len(s.ReferencedSOPSequence) for s in evidence.ReferencedSeriesSequence) == 3


def test_saved_findings_make_the_same_objects(image: Callable[..., StudyImage]) -> None:
    one = image(1, 3)
    f = one.findings
    saved = findings_from_json(findings_to_json(f), label_image(f))
    again = StudyImage(one.source, saved)
    for name in ("cadsr", "sr"):
        first, second = (study_result(name, s) for s in (study_of([one]), study_of([again])) if s is not None)
        assert first == second
    assert image_result("pr", one.source, f, None) == image_result("pr", one.source, saved, None)  # type: ignore[arg-type]


def lesion(contour: np.ndarray, score: float = 0.5) -> Lesion:
    x1, y1, x2, y2 = (0.0, 0.0, 4.0, 4.0) if not len(contour) else (*contour.min(0), *contour.max(0))
    return Lesion(1, (x1, y1, x2, y2), score, np.ones((1, 1), dtype=bool), (0, 0), contour)


def test_a_contour_of_very_many_points_is_thinned_by_less_than_half_a_pixel() -> None:
    """The outline of a mass as large as the image and as spiculated as can be, every step of a pixel kept."""
    y, x = np.mgrid[:2400, :2400] + 0.5 - 1200
    field = (1000 + 150 * np.sin(40 * np.arctan2(y, x)) - np.hypot(x, y)).astype(np.float32)
    contour = outline(field, field > 0, (0, 0))
    assert len(contour) > 2 * POINTS_MAX
    thin = closed_outline(lesion(contour), (2400, 2400))
    assert 1000 < len(thin) <= POINTS_MAX + 1
    line = thin.astype(np.float32).reshape(-1, 1, 2)
    far = [abs(cv2.pointPolygonTest(line, (float(x), float(y)), True)) for x, y in contour[::37]]
    assert max(far) <= 0.5


@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_contour_of_too_few_points_becomes_the_box(points: int) -> None:
    contour = np.array([[1.0, 2.0], [5.0, 7.0]])[:points]
    line = closed_outline(lesion(contour), (50, 50))
    assert line.shape == (5, 2)
    assert (line[0] == line[-1]).all()


def test_outlines_end_at_the_edge_of_the_image() -> None:
    line = closed_outline(lesion(np.array([[-3.0, -1.0], [60.0, 0.0], [60.0, 55.0]])), (50, 40))
    assert line.min() == 0
    assert tuple(line.max(0)) == (40, 50)


def test_the_centre_is_that_of_the_area() -> None:
    square = np.array([[2.0, 2], [6, 2], [6, 6], [2, 6]])
    for start, step in itertools.product(range(4), (1, -1)):
        ring = np.roll(square[::step], start, axis=0)
        assert center(np.vstack([ring, ring[:1]])).tolist() == [[4.0, 4.0]]
    ring = np.array([[0.0, 0], [6, 0], [6, 2], [2, 2], [2, 6], [0, 6], [0, 0]])  # an L of areas 12 and 8
    assert center(ring).tolist() == [[2.2, 2.2]]
    line = np.array([[1.0, 1], [5, 1], [1, 1]])
    assert center(line).tolist() == [[3.0, 1.0]]


def test_masks_that_overlap_are_kept_whole(image: Callable[..., StudyImage]) -> None:
    one = image(1, 1)
    (first,) = one.findings.lesions
    second = dataclasses.replace(first, id=2, score=first.score / 2)
    boxes = one.findings.candidates
    f = dataclasses.replace(one.findings, lesions=(first, second), candidates=boxes)
    ds = pydicom.dcmread(BytesIO(image_result("seg", one.source, f, None)))  # type: ignore[arg-type]
    assert ds.SegmentsOverlap == "YES"
    assert (ds.pixel_array[0] == ds.pixel_array[1]).all()
    assert ds.pixel_array[0].sum() == first.area_px
