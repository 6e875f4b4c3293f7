"""220 generated exams: what the objects say, read back with other eyes than ours, is what was found.

Segmentations and measurement reports are read with highdicom, CAD reports and presentation states by walking the data
set as the standard describes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from mammoseg.io.dicom_results import (
    IMAGE_FORMATS,
    StudyImage,
    image_result,
    read_source,
    results_of,
    study_of,
    study_result,
)
from mammoseg.io.load import load_mammogram
from mammoseg.io.pictures import overlay
from mammoseg.types import Findings, Lesion

N_BLOCKS = 11


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(data))


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning) if "ConceptNameCodeSequence" in item else ""


def children(item: Dataset, name: str) -> list[Dataset]:
    return [c for c in item.get("ContentSequence", []) if meaning(c) == name]


def at(root: Dataset, position: list[int]) -> Dataset:
    item = root
    for k in position[1:]:
        item = item.ContentSequence[k - 1]
    return item


def points(item: Dataset) -> np.ndarray:
    return np.array(item.GraphicData, dtype=np.float64).reshape(-1, 2)


def distance(a: np.ndarray, line: np.ndarray) -> float:
    """The largest distance of points f64[N, 2] from a closed polyline."""
    start, step = line, np.roll(line, -1, axis=0) - line
    length = np.maximum((step**2).sum(1), 1e-12)
    t = (((a[:, None] - start[None]) * step[None]).sum(2) / length[None]).clip(0, 1)
    near = start[None] + t[..., None] * step[None]
    return float(np.hypot(*(a[:, None] - near).transpose(2, 0, 1)).min(1).max())


def same_outline(found: np.ndarray, lesion: Lesion) -> float:
    assert (found[0] == found[-1]).all(), "a closed outline"
    return max(distance(found, lesion.contour_xy), distance(lesion.contour_xy, found[:-1]))


def check_references(ds: Dataset, source: Dataset) -> None:
    """Patient and study are those of the source, and the source is referred to rightly."""
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyID"):
        assert ds.get(keyword) == source.get(keyword), keyword
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    assert UID(ds.SOPInstanceUID).is_valid
    assert ds.SOPInstanceUID.startswith("2.25.")
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def check_segmentation(data: bytes, f: Findings, source: Dataset, thorough: bool) -> None:
    ds = read(data)
    check_references(ds, source)
    assert [int(item.SegmentNumber) for item in ds.SegmentSequence] == [lesion.id for lesion in f.lesions]
    shared = ds.SharedFunctionalGroupsSequence[0]
    groups = [g if "SegmentIdentificationSequence" in g else shared for g in ds.PerFrameFunctionalGroupsSequence]
    assert [g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in groups] == [lesion.id for lesion in f.lesions]
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns).astype(bool)
    for k, lesion in enumerate(f.lesions):
        assert (frames[k] == whole_mask(lesion, f)).all()
        described = ds.SegmentSequence[k]
        assert described.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Mass"
        assert f"{lesion.score:.4f}" in described.SegmentDescription
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPClassUID == source.SOPClassUID
    assert "FrameOfReferenceUID" not in ds
    if thorough:
        seg = hd.seg.segread(BytesIO(data))
        pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)[0]
        assert (np.moveaxis(pixels, -1, 0).astype(bool) == frames).all()


def whole_mask(lesion: Lesion, f: Findings) -> np.ndarray:
    whole = np.zeros((f.image.height, f.image.width), dtype=bool)
    r, c = lesion.origin_px
    whole[r : r + lesion.mask.shape[0], c : c + lesion.mask.shape[1]] = lesion.mask
    return whole


def check_presentation(data: bytes, f: Findings, source: Dataset) -> None:
    ds = read(data)
    check_references(ds, source)
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert ds.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    drawn = [item for item in ds.GraphicAnnotationSequence if "GraphicObjectSequence" in item]
    assert len(drawn) == len(f.lesions)
    for item, lesion in zip(drawn, f.lesions, strict=True):
        assert item.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        graphic = item.GraphicObjectSequence[0]
        assert (graphic.GraphicAnnotationUnits, graphic.GraphicType) == ("PIXEL", "POLYLINE")
        assert graphic.NumberOfGraphicPoints == len(points(graphic))
        assert same_outline(points(graphic), lesion) <= 0.05
        (caption,) = item.TextObjectSequence
        assert caption.UnformattedTextValue.startswith(f"{lesion.id}: {lesion.score:.2f}")
        x, y = np.array(item.GraphicObjectSequence[0].GraphicData).reshape(-1, 2).T
        width = ds.DisplayedAreaSelectionSequence[0].DisplayedAreaBottomRightHandCorner[0]
        beside = x.max() if (x.min() + x.max()) / 2 <= width / 2 else x.min()
        assert caption.AnchorPoint == [beside, y.min()], "words run to the right: into the image, not out of it"
    if not f.lesions:
        assert ds.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue == "no mass found"
    assert ds.PresentationLUTShape == ("INVERSE" if source.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY")


def check_picture(data: bytes, f: Findings, source: Dataset, path: Path) -> None:
    ds = read(data)
    check_references(ds, source)
    assert (ds.pixel_array[..., ::-1] == overlay(load_mammogram(path), f)).all()
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert ds.Modality == "OT"


def cad_content(data: bytes) -> tuple[dict[str, str], dict[str, list[dict[str, Any]]], str]:
    """(status by SOP instance, findings by SOP instance, overall summary) of a CAD report, from its codes alone."""
    root = read(data)
    assert root.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.50"
    library = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in root.ContentSequence[1].ContentSequence]
    status = dict.fromkeys(library, "rejected")
    (detections,) = children(root, "Summary of Detections")
    for container, word in (("Successful Detections", "processed"), ("Failed Detections", "failed")):
        for one in children(detections, container):
            (performed,) = children(one, "Detection Performed")
            for item in performed.ContentSequence:
                if "ReferencedContentItemIdentifier" in item:
                    found = at(root, list(_list(item.ReferencedContentItemIdentifier)))
                    assert status[found.ReferencedSOPSequence[0].ReferencedSOPInstanceUID] == "rejected"
                    status[found.ReferencedSOPSequence[0].ReferencedSOPInstanceUID] = word
    codes = {detections.ConceptCodeSequence[0].CodeMeaning}
    words = set(status.values())
    expected = {
        "processed" in words and "failed" in words: "Partially Succeeded",
        "processed" in words and "failed" not in words: "Succeeded",
        "processed" not in words and "failed" in words: "Failed",
        words == {"rejected"}: "Not Attempted",
    }[True]
    assert codes == {expected}
    assert children(root, "Summary of Analyses")[0].ConceptCodeSequence[0].CodeMeaning == "Not Attempted"
    (summary,) = children(root, "CAD Processing and Findings Summary")
    found_by: dict[str, list[dict[str, Any]]] = {}
    for impression in children(summary, "Individual Impression/Recommendation"):
        (finding,) = children(impression, "Single Image Finding")
        assert children(finding, "Rendering Intent")[0].ConceptCodeSequence[0].CodeValue == "111150"
        assert not children(finding, "Probability of cancer")
        outline, center = children(finding, "Outline")[0], children(finding, "Center")[0]
        where = {tuple(_list(s.ContentSequence[0].ReferencedContentItemIdentifier)) for s in (outline, center)}
        assert len(where) == 1
        image = at(root, list(where.pop()))
        uid = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        certainty = children(finding, "Certainty of Finding")[0].MeasuredValueSequence[0]
        assert certainty.MeasurementUnitsCodeSequence[0].CodeValue == "%"
        found_by.setdefault(uid, []).append(
            {
                "outline": points(outline),
                "center": points(center)[0],
                "certainty": float(certainty.NumericValue),
                "tracking": children(finding, "Tracking Unique Identifier")[0].UID,
            }
        )
    return status, found_by, str(summary.ConceptCodeSequence[0].CodeMeaning)


def _list(value: Any) -> list[int]:
    return [int(v) for v in value]


def check_cad(data: bytes, images: list[StudyImage]) -> None:
    status, found, summary = cad_content(data)
    assert status == {i.source.sop_instance_uid: i.findings.status for i in images}
    n_lesions = sum(len(i.findings.lesions) for i in images)
    assert summary.endswith("with findings" if n_lesions else "without findings")
    done = [i.findings.status == "processed" for i in images]
    assert summary.startswith("All" if all(done) else "Not all" if any(done) else "No algorithms")
    root = read(data)
    assert root.CompletionFlag == ("COMPLETE" if all(done) else "PARTIAL")
    for image in images:
        mine = found.get(image.source.sop_instance_uid, [])
        assert len(mine) == len(image.findings.lesions)
        for entry, lesion in zip(mine, image.findings.lesions, strict=True):
            assert same_outline(entry["outline"], lesion) <= 0.05
            assert abs(entry["certainty"] / 100 - lesion.score) < 1e-5
            x1, y1, x2, y2 = lesion.box
            assert x1 - 1 <= entry["center"][0] <= x2 + 1
            assert y1 - 1 <= entry["center"][1] <= y2 + 1


def check_measurements(data: bytes, images: list[StudyImage], thorough: bool) -> None:
    root = read(data)
    (measurements,) = children(root, "Imaging Measurements")
    groups = children(measurements, "Measurement Group")
    by_image: dict[str, list[Dataset]] = {}
    for group in groups:
        (region,) = children(group, "Image Region")
        by_image.setdefault(region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID, []).append(group)
    assert len(groups) == sum(len(i.findings.lesions) for i in images)
    for image in images:
        for group, lesion in zip(by_image.get(image.source.sop_instance_uid, []), image.findings.lesions, strict=True):
            assert same_outline(points(children(group, "Image Region")[0]), lesion) <= 0.05
            (site,) = children(group, "Finding Site")
            side = {"L": "Left", "R": "Right"}[image.source.laterality]
            assert children(site, "Laterality")[0].ConceptCodeSequence[0].CodeMeaning == side
            sizes = {"Long Axis": lesion.long_axis_mm, "Short Axis": lesion.short_axis_mm, "Area": lesion.area_mm2}
            for name, size in sizes.items():
                found = [item.MeasuredValueSequence[0] for item in children(group, name)]
                assert [float(m.NumericValue) for m in found] == ([] if size is None else [pytest.approx(size, abs=1e-4)])
                units = {m.MeasurementUnitsCodeSequence[0].CodeValue for m in found}
                assert units <= {"mm2" if name == "Area" else "mm"}
            certainty = children(group, "Certainty of Finding")[0].MeasuredValueSequence[0].NumericValue
            assert float(certainty) == pytest.approx(100 * lesion.score, abs=1e-3)
    comments = [str(c.TextValue) for c in children(root, "Qualitative Evaluations")[0].ContentSequence]
    assert [c.split(": ")[1].split(",")[0] for c in comments[:-1]] == [i.findings.status for i in images]
    unmeasured = ["does not tell its pixel spacing" in c for c in comments[:-1]]
    assert unmeasured == [any(lesion.area_mm2 is None for lesion in i.findings.lesions) for i in images]
    if thorough:
        check_with_highdicom(root, images)


def check_with_highdicom(root: Dataset, images: list[StudyImage]) -> None:
    report = hd.sr.ComprehensiveSR.from_dataset(root).content
    groups = report.get_planar_roi_measurement_groups()
    lesions = [lesion for i in images for lesion in i.findings.lesions]
    for group, lesion in zip(groups, lesions, strict=True):
        assert group.finding_type.meaning == "Mass"
        assert same_outline(np.asarray(group.roi.value, dtype=np.float64), lesion) <= 0.05
        values = {m.name.meaning: m for m in group.get_measurements()}
        assert ("Area" in values) == (lesion.area_mm2 is not None)
        if lesion.area_mm2 is not None:
            assert values["Area"].value == pytest.approx(lesion.area_mm2, abs=1e-4)
        assert values["Certainty of Finding"].value == pytest.approx(100 * lesion.score, abs=1e-3)
    assert report.get_observer_contexts(observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"))


def check_exam(exam: Any, thorough: bool) -> None:
    images = []
    for image in exam.images:
        source = read_source(image.path)
        assert source is not None
        images.append(StudyImage(source, image.findings))
        header = pydicom.dcmread(image.path, stop_before_pixels=True)
        f = image.findings
        wanted = results_of(f.status, len(f.lesions), IMAGE_FORMATS)
        assert wanted == (() if f.status != "processed" else IMAGE_FORMATS if f.lesions else ("pr", "sc"))
        mammogram = load_mammogram(image.path) if "sc" in wanted and thorough else None
        for name in wanted:
            if name == "sc":
                if mammogram is not None:
                    check_picture(image_result("sc", source, f, mammogram), f, header, image.path)
                continue
            data = image_result(name, source, f, None)  # type: ignore[arg-type]
            if name == "seg":
                check_segmentation(data, f, header, thorough)
            else:
                check_presentation(data, f, header)
    study = study_of(images)
    assert study is not None
    check_cad(study_result("cadsr", study), images)
    check_measurements(study_result("sr", study), images, thorough)


@pytest.mark.parametrize("block", range(N_BLOCKS))
def test_exams_round_trip(
    block: int, exam_plan: list[tuple[int, str, UID]], make_exam_files: Callable[..., Any], tmp_path: Path
) -> None:
    mine = exam_plan[block::N_BLOCKS]
    assert len(mine) == 20
    for number, scenario, syntax in mine:
        exam = make_exam_files(tmp_path, number, scenario, syntax)
        assert UID(pydicom.dcmread(exam.images[0].path, stop_before_pixels=True).file_meta.TransferSyntaxUID) == syntax
        check_exam(exam, thorough=number % 7 == 0)


def test_the_plan_covers_every_scenario_in_every_transfer_syntax(exam_plan: list[tuple[int, str, UID]]) -> None:
    assert len(exam_plan) >= 200
    assert len({s for _, _, s in exam_plan}) == 16
    assert min(_counts(name for _, name, _ in exam_plan).values()) == 20
    assert min(_counts(str(s) for _, _, s in exam_plan).values()) >= 13
    assert len({(name, s) for _, name, s in exam_plan}) >= 170


def _counts(values: Iterator[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for value in values:
        out[value] = out.get(value, 0) + 1
    return out
