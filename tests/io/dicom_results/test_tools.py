"""What the tools of others say of the objects: dciodvfy, dsrdump, PixelMed's DicomSRValidator, dcmpschk, dcmp2pgm.

Needs Debian's dicom3tools, dcmtk and pixelmed-apps; `make test-system` runs it. A missing program is an error.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.io.dicom_results import (
    IMAGE_FORMATS,
    STUDY_FORMATS,
    StudyImage,
    image_result,
    read_source,
    results_of,
    study_of,
    study_result,
)
from mammoseg.io.load import load_mammogram
from mammoseg.io.pictures import RED, overlay
from mammoseg.types import Findings

pytestmark = pytest.mark.system
SIZE = (97, 71)

# Errors of dciodvfy that are the tool's own, by (kind, the line it prints), with the reason.
WAIVERS: dict[tuple[str, str], str] = {}
# What PixelMed says that is its own mistake, with the reason.
VALIDATOR_WAIVERS = {
    'has different code meaning ("Failed Detections")': "its template has two spaces in the meaning of (111025, DCM)",
}


def run(*command: str | Path) -> str:
    assert shutil.which(str(command[0])), f"{command[0]} is not installed; see .ci/debian-packages"
    done = subprocess.run([str(c) for c in command], capture_output=True, timeout=300)
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, output
    return output


def dciodvfy(path: Path) -> list[str]:
    """The errors dciodvfy finds; its exit code says nothing."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, timeout=60)
    lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
    kinds = {"Segmentation", "MammographyCADSR", "ComprehensiveSR", "SCImage", "GrayscaleSoftcopyPresentationState"}
    assert kinds & set(lines), lines
    return [line for line in lines if line.startswith("Error")]


def sr_validator(path: Path) -> list[str]:
    """The errors PixelMed finds in an SR document; its templates, order of content items and template identifiers."""
    limits = [f"-Djdk.xml.{name}=0" for name in ("xpathTotalOpLimit", "xpathExprOpLimit", "xpathExprGrpLimit")]
    tool = ["-cp", "/usr/share/java/pixelmed.jar", "com.pixelmed.validate.DicomSRValidator"]
    output = run("java", *limits, *tool, "-checkcontentitemorder", "-checktemplateid", path)
    assert "Root Template Validation Complete" in output
    assert "Found Root Template" in output
    lines = [line for line in output.splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if not any(waived in line for waived in VALIDATOR_WAIVERS)]


def write_objects(images: list[StudyImage], folder: Path) -> dict[str, list[Path]]:
    """Every object of a study as files, by kind."""
    out: dict[str, list[Path]] = {}
    for k, image in enumerate(images):
        f = image.findings
        for kind in results_of(f.status, len(f.lesions), IMAGE_FORMATS):
            mammogram = load_mammogram(image.source.path)
            out.setdefault(kind, []).append(folder / f"{k}_{kind}.dcm")
            out[kind][-1].write_bytes(image_result(kind, image.source, f, mammogram))
    study = study_of(images)
    assert study is not None
    for kind in STUDY_FORMATS:
        out[kind] = [folder / f"{kind}.dcm"]
        out[kind][0].write_bytes(study_result(kind, study))
    return out


def study_image(path: Path, findings: Findings) -> StudyImage:
    source = read_source(path)
    assert source is not None
    return StudyImage(source, findings)


HEADERS: dict[str, dict[str, Any]] = {
    "no side, no view": dict.fromkeys(("ImageLaterality", "ViewPosition", "ViewCodeSequence", "PatientOrientation")),
    "anonymous": {"PatientName": "", "PatientID": "", "PatientBirthDate": "", "PatientSex": ""},
    "no dates": dict.fromkeys(("StudyDate", "StudyTime", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime")),
    "computed radiography": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"},
    "scanned film": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "MG", "BurnedInAnnotation": "YES"},
    "lossy before": {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_10918_1",
    },
    "Japanese": {
        "SpecificCharacterSet": ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        "PatientName": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    },
    "UTF-8": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Wang^XiaoDong=王^小东"},
    "frame of reference": {"FrameOfReferenceUID": "1.2.3.4", "PositionReferenceIndicator": ""},
    "sigmoid": {"WindowCenter": "1500", "WindowWidth": "2200", "VOILUTFunction": "SIGMOID"},
    "no window": {"WindowCenter": None, "WindowWidth": None},
}


@pytest.mark.parametrize("header", HEADERS)
def test_dciodvfy_finds_no_error_whatever_the_header(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path, header: str
) -> None:
    path = write_source(tmp_path / "a.dcm", 1, SIZE, **HEADERS[header])
    for kind, files in write_objects([study_image(path, find(path, SIZE, 2, 3))], tmp_path).items():
        for file in files:
            assert [e for e in dciodvfy(file) if (kind, e) not in WAIVERS] == [], kind


def test_dciodvfy_finds_no_error_in_generated_exams(
    exam_plan: list[tuple[int, str, UID]], make_exam_files: Callable[..., Any], tmp_path: Path
) -> None:
    checked = 0
    for number, scenario, syntax in exam_plan[::4]:
        folder = tmp_path / str(number)
        folder.mkdir()
        exam = make_exam_files(folder, number, scenario, syntax)
        images = [study_image(i.path, i.findings) for i in exam.images]
        for kind, files in write_objects(images, folder).items():
            for file in files:
                checked += 1
                assert [e for e in dciodvfy(file) if (kind, e) not in WAIVERS] == [], (scenario, kind)
    assert checked > 250


def test_dciodvfy_can_find_errors(write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.dcm", 1, SIZE)
    for files in write_objects([study_image(path, find(path, SIZE, 2, 3))], tmp_path).values():
        ds = pydicom.dcmread(files[0])
        del ds.StudyInstanceUID
        ds.save_as(files[0])
        assert dciodvfy(files[0])


STATUSES = {
    "with findings": [("processed", 2), ("processed", 0), ("processed", 1)],
    "nothing found": [("processed", 0)],
    "some not read": [("failed", 0), ("processed", 1), ("rejected", 0)],
    "failed": [("failed", 0), ("failed", 0)],
    "rejected": [("rejected", 0)],
}


@pytest.mark.parametrize(("statuses", "spacing"), [*((name, True) for name in STATUSES), ("with findings", False)])
def test_both_reports_are_printed_and_valid(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path, statuses: str, spacing: bool
) -> None:
    images = []
    for k, (status, count) in enumerate(STATUSES[statuses]):
        more = {"StudyInstanceUID": "1.2.3.4.5", "ImagerPixelSpacing": [0.5, 0.5] if spacing else None}
        path = write_source(tmp_path / f"{k}.dcm", k, SIZE, **more)
        found = find(path, SIZE, count, k, (0.5, 0.5) if spacing else None, status=status)
        images.append(study_image(path, found))
    files = write_objects(images, tmp_path)
    n_lesions = sum(len(i.findings.lesions) for i in images)
    for kind, title in (("cadsr", "Mammography CAD Report"), ("sr", "Imaging Measurement Report")):
        (file,) = files[kind]
        printed = run("dsrdump", file)
        assert title in printed
        assert printed.count("Tracking Unique Identifier") == n_lesions
        assert not [line for line in printed.splitlines() if line.startswith("E:")]
        assert sr_validator(file) == []
    assert run("dsrdump", files["cadsr"][0]).count("Certainty of Finding") == n_lesions


def test_the_validator_can_find_errors(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path
) -> None:
    path = write_source(tmp_path / "a.dcm", 1, SIZE)
    file = write_objects([study_image(path, find(path, SIZE, 1, 3))], tmp_path)["cadsr"][0]
    ds = pydicom.dcmread(file)
    for item in ds.iterall():
        if item.keyword == "ContentSequence":
            item.value = [c for c in item.value if "Rendering Intent" not in str(c.get("ConceptNameCodeSequence", ""))]
    ds.save_as(file)
    assert any("Rendering Intent" in line for line in sr_validator(file))


def pgm(path: Path) -> np.ndarray:
    found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert found is not None
    return found


WINDOWS: dict[str, dict[str, Any]] = {
    "window": {"WindowCenter": "1500", "WindowWidth": "2200"},
    "exact window": {"WindowCenter": "1500", "WindowWidth": "2200", "VOILUTFunction": "LINEAR_EXACT"},
    "no window": {"WindowCenter": None, "WindowWidth": None},
    "rescale": {"RescaleSlope": "0.25", "RescaleIntercept": "-100", "WindowCenter": "300", "WindowWidth": "700"},
    "voi lut": {"voi lut": True},
}


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("window", WINDOWS)
def test_dcmtk_shows_the_picture_that_was_analysed(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path, window: str, inverted: bool
) -> None:
    more = dict(WINDOWS[window])
    if more.pop("voi lut", False):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [4096, 0, 12])
        item.add_new("LUTData", "OW", np.rint(4095 * (np.arange(4096) / 4095) ** 0.7).astype("<u2").tobytes())
        more["VOILUTSequence"] = [item]
    path = write_source(tmp_path / "a.dcm", 2, SIZE, inverted=inverted, **more)
    state = write_objects([study_image(path, find(path, SIZE, 2, 1))], tmp_path)["pr"][0]
    assert "Test passed" in run("dcmpschk", "-v", state)
    run("dcmp2pgm", "-p", state, path, tmp_path / "out.pgm")
    shown, mammogram = pgm(tmp_path / "out.pgm"), load_mammogram(path)
    assert shown.shape == mammogram.size
    assert np.abs(shown / 255 - mammogram.pixels).max() <= 1.5 / 255


@pytest.mark.parametrize("count", [0, 1, 4])
def test_dcmtk_keeps_the_graphics(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path, count: int
) -> None:
    """dcmp2pgm draws no vector graphics; what it read of them is in the state it saves."""
    path = write_source(tmp_path / "a.dcm", 2, SIZE, inverted=True)
    state = write_objects([study_image(path, find(path, SIZE, count, 1))], tmp_path)["pr"][0]
    run("dcmp2pgm", "-p", state, "+S", tmp_path / "saved.dcm", path, tmp_path / "out.pgm")
    ours, theirs = pydicom.dcmread(state), pydicom.dcmread(tmp_path / "saved.dcm")
    assert theirs.PresentationLUTShape == "INVERSE"
    drawn = [[g for a in ds.GraphicAnnotationSequence for g in a.get("GraphicObjectSequence", [])] for ds in (ours, theirs)]
    assert len(drawn[0]) == len(drawn[1]) == count
    for a, b in zip(*drawn, strict=True):
        assert (b.GraphicAnnotationUnits, b.GraphicType, b.GraphicFilled) == ("PIXEL", "POLYLINE", "N")
        assert np.allclose(a.GraphicData, b.GraphicData, atol=1e-3)
    words = [t.UnformattedTextValue for a in theirs.GraphicAnnotationSequence for t in a.TextObjectSequence]
    assert len(words) == max(count, 1)


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
def test_contours_lie_where_the_overlay_has_them(
    write_source: Callable[..., Path], find: Callable[..., Findings], tmp_path: Path, inverted: bool
) -> None:
    """The state's polylines, as dcmp2pgm renders them over the image, against the red of overlay.png.

    dcmp2pgm draws no vectors: they are put into the state as a bitmap shutter, white, which it does render.
    """
    size = (240, 180)
    path = write_source(tmp_path / "a.dcm", 2, size, inverted=inverted)
    findings = find(path, size, 3, 6)
    state = write_objects([study_image(path, findings)], tmp_path)["pr"][0]
    ds = pydicom.dcmread(state)
    plane = np.zeros(size, dtype=np.uint8)
    for annotation in ds.GraphicAnnotationSequence:
        for graphic in annotation.GraphicObjectSequence:
            xy = np.array(graphic.GraphicData).reshape(-1, 2)
            steps = [np.linspace(a, b, 1 + 4 * int(np.ceil(np.hypot(*(b - a)) + 1))) for a, b in pairwise(xy)]
            x, y = np.floor(np.concatenate(steps)).astype(int).T  # pixel edges: the pixel a point lies in
            plane[y.clip(0, size[0] - 1), x.clip(0, size[1] - 1)] = 1
    _bitmap_shutter(ds, plane)
    ds.save_as(tmp_path / "with_plane.dcm")
    run("dcmp2pgm", "-p", tmp_path / "with_plane.dcm", path, tmp_path / "with.pgm")
    run("dcmp2pgm", "-p", state, path, tmp_path / "without.pgm")
    shown, bare = pgm(tmp_path / "with.pgm"), pgm(tmp_path / "without.pgm")
    rendered = (shown != bare) & (shown == 255)
    assert (rendered == plane.astype(bool))[bare < 255].all()
    assert rendered.sum() > 500
    picture = overlay(load_mammogram(path), findings).astype(int)
    red = (np.abs(picture - np.array(RED)) < 60).all(-1)
    scale = picture.shape[0] / size[0]
    rows, columns = np.nonzero(red)
    seen = np.zeros(size, dtype=bool)
    seen[(rows / scale).astype(int), (columns / scale).astype(int)] = True
    near = np.ones((3, 3), np.uint8)
    assert seen.sum() > 100
    assert (cv2.dilate(plane, near)[seen] == 1).all(), "every red pixel has a contour of the state within a pixel"
    missing = rendered & (cv2.dilate(seen.astype(np.uint8), near) == 0)
    assert missing.sum() <= 0.02 * rendered.sum(), "the state's contours are red in the overlay, but where a label covers them"


def _bitmap_shutter(ds: Dataset, plane: np.ndarray) -> None:
    """Gives a presentation state a shutter that is white where `plane` is set (PS3.3 C.7.6.15, C.9.2)."""
    bits = np.packbits(plane.ravel(), bitorder="little").tobytes()
    values = (
        (0x0010, "US", plane.shape[0]), (0x0011, "US", plane.shape[1]), (0x0040, "CS", "G"), (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1), (0x0102, "US", 0), (0x3000, "OW", bits + b"\0" * (len(bits) % 2)),
    )  # fmt: skip
    for element, vr, value in values:
        ds.add_new((0x6000, element), vr, value)
    ds.ShutterShape, ds.ShutterOverlayGroup, ds.ShutterPresentationValue = "BITMAP", 0x6000, 65535


def test_every_object_of_a_full_size_phantom_exam(find: Callable[..., Findings], tmp_path: Path) -> None:
    """Four views of 12 bits at 3328 × 2560, as they come from a detector, with lesions of many points."""
    write_exams(tmp_path / "exam", 1, 1, "dicom", PhantomConfig())
    images = []
    for path in sorted((tmp_path / "exam/images").iterdir()):
        images.append(study_image(path, find(path, (3328, 2560), 3, 9, (0.07, 0.07))))
    files = write_objects(images, tmp_path)
    assert {kind: len(paths) for kind, paths in files.items()} == {"seg": 4, "pr": 4, "sc": 4, "cadsr": 1, "sr": 1}
    for kind, paths in files.items():
        for file in paths:
            assert dciodvfy(file) == [], kind
    assert run("dcmpschk", "-v", files["pr"][0]).count("Test passed") == 1
    for kind in STUDY_FORMATS:
        assert "Tracking" in run("dsrdump", files[kind][0])
    assert pydicom.dcmread(files["seg"][0]).file_meta.TransferSyntaxUID in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
