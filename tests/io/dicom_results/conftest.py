"""Small synthetic exams: source files in every transfer syntax, and findings of every kind for them. No network runs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import gdcm
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from mammoseg.datasets.phantom import PhantomConfig, make_exam
from mammoseg.datasets.phantom_files import to_dicom
from mammoseg.io.dicom_codec import TRANSFER_SYNTAXES
from mammoseg.reconstruction import axes_mm, outline
from mammoseg.types import Detections, Findings, ImageInfo, Lesion

PROVENANCE = {
    "package": {"name": "mammoseg", "version": "9.8.7"},
    "bundle": {"name": "tests-only", "sha256": "5e" * 32},
    "settings": {"fusion": {"lam": 0.6, "lesion_score_min": 0.3}},
}
GDCM = {
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
}
EIGHT_BITS = (JPEGBaseline8Bit, JPEGExtended12Bit)  # with 8 bits both are the same stream
PYDICOM = (RLELossless, JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless)
HTJ2K = tuple(s for s in TRANSFER_SYNTAXES if s.name.startswith("High-Throughput"))


@dataclass
class Image:
    """One image of an exam: its file and what was found in it."""

    path: Path
    findings: Findings


@dataclass
class Exam:
    """A study. expected: status of each image."""

    images: list[Image] = field(default_factory=list)


@pytest.fixture(scope="session")
def base_header() -> Dataset:
    """A valid mammogram's header, of a phantom."""
    view = make_exam(1, PhantomConfig(size=(208, 160)))[0]
    return to_dicom(view, "BASE")


@pytest.fixture(scope="session")
def write_source(base_header: Dataset) -> Callable[..., Path]:
    """`write_source(path, seed, size=(97, 71), syntax=..., inverted=False, **elements)` writes a mammogram, valid MG.

    elements: replace those of the header; None removes one.
    """

    def write(
        path: Path, seed: int, size: tuple[int, int] = (97, 71), syntax: UID = ExplicitVRLittleEndian, **more: Any
    ) -> Path:
        inverted, elements = more.pop("inverted", False), more
        bits = 8 if syntax in EIGHT_BITS else 12
        rng = np.random.default_rng([seed, *size])
        y, x = np.mgrid[: size[0], : size[1]]
        values = np.clip((1 - x / size[1]) * (0.55 + 0.3 * np.sin(y / 9 + seed)) + rng.normal(0, 0.02, size), 0, 1)
        stored = np.rint(values * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        if inverted:
            stored = 2**bits - 1 - stored
        ds = Dataset()
        ds.update(copy.deepcopy(base_header))
        ds.file_meta = copy.deepcopy(base_header.file_meta)
        ds.preamble = b"\0" * 128
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.9.9999.{seed}.1"
        ds.SeriesInstanceUID = f"1.2.826.0.1.3680043.9.9999.{seed}"
        ds.Rows, ds.Columns = size
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = (8, 8, 7) if bits == 8 else (16, 12, 11)
        ds.WindowCenter, ds.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
        if inverted:
            ds.PhotometricInterpretation, ds.PresentationLUTShape = "MONOCHROME1", "INVERSE"
        for keyword, value in elements.items():
            if value is None:
                if keyword in ds:
                    delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
        data = stored.tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2)
        ds["PixelData"].VR = "OB" if bits == 8 else "OW"
        return _save(ds, path, syntax)

    return write


def _save(ds: Dataset, path: Path, syntax: UID) -> Path:
    if syntax in EIGHT_BITS:
        done, stream = cv2.imencode(".jpg", np.frombuffer(ds.PixelData, np.uint8)[: ds.Rows * ds.Columns].reshape(ds.Rows, -1))
        assert done
        ds.PixelData = encapsulate([stream.tobytes()])
    elif syntax in GDCM:
        ds.PixelData = encapsulate([_lossless_jpeg(ds, path.with_suffix(".plain"), GDCM[syntax])])
    elif syntax in HTJ2K or syntax == UID("1.2.840.10008.1.2.4.91"):
        # No encoder for HTJ2K is at hand: a JPEG 2000 stream stands in, which the decoder reads as well.
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    elif syntax in PYDICOM:
        ds.compress(syntax, generate_instance_uid=False, **({"jls_error": 2} if syntax == JPEGLSNearLossless else {}))
    elif syntax == ExplicitVRBigEndian and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    if syntax.is_encapsulated:
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return path


def _lossless_jpeg(ds: Dataset, path: Path, syntax: int) -> bytes:
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    frame = next(generate_frames(dcmread(path).PixelData, number_of_frames=1))
    path.unlink()
    return frame


def blobs(rng: np.random.Generator, size: tuple[int, int], count: int, touching: bool = False) -> list[np.ndarray]:
    """Fields f32[H, W], positive inside: `count` irregular lumps that do not overlap; touching ones share an edge."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    columns = 1 if count == 1 else 2 if touching or count == 2 else 3
    rows = -(-count // columns)
    cell = height / rows, width / columns
    taken = np.zeros(size, dtype=bool)
    out = []
    for k in range(count):
        middle = (k // columns + 0.5) * cell[0], (k % columns + 0.5) * cell[1]
        reach = (0.62 if touching else 0.38) * np.array(cell) * rng.uniform(0.75, 1.0, 2)
        angle = np.arctan2(y - middle[0], x - middle[1])
        wobble = 1 + 0.12 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angle)
        field = (1 - np.hypot((y - middle[0]) / reach[0], (x - middle[1]) / reach[1]) / wobble).astype(np.float32)
        mask = (field >= 0) & ~taken
        parts, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
        assert parts >= 2
        mask = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        taken |= mask
        out.append(np.where(mask, np.maximum(field, 1e-3), np.minimum(field, -1e-3)).astype(np.float32))
    return out


@pytest.fixture(scope="session")
def find() -> Callable[..., Findings]:
    """`find(path, size, count, seed, ...)` makes findings with `count` lesions; status other than processed has none."""

    def make(
        path: Path,
        size: tuple[int, int],
        count: int,
        seed: int,
        spacing_mm: tuple[float, float] | None = (0.5, 0.5),
        **more: Any,
    ) -> Findings:
        status, rng = more.get("status", "processed"), np.random.default_rng([seed, 77])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        info = ImageInfo(path.name, *size, spacing_mm, None, more.get("laterality"), more.get("view_position"), digest, False)
        if status != "processed":
            return Findings(info, status, f"a reason to be {status}", provenance=PROVENANCE)
        lesions = []
        fields = blobs(rng, size, count, more.get("touching", False)) if count else []
        scores = np.sort(rng.uniform(0.3, 1.0, count))[::-1]
        for k, whole in enumerate(fields, start=1):
            mask = whole > 0
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            r, c = int(rows[0]), int(columns[0])
            window = np.s_[r : rows[-1] + 1, c : columns[-1] + 1]
            line = outline(whole[window], mask[window], (r, c), 0.05)
            axes = axes_mm(line, spacing_mm) if spacing_mm else (None, None)
            area = float(mask.sum()) * spacing_mm[0] * spacing_mm[1] if spacing_mm else None
            box = (float(c), float(r), float(columns[-1] + 1), float(rows[-1] + 1))
            lesions.append(Lesion(k, box, float(scores[k - 1]), mask[window].copy(), (r, c), line, area, *axes))
        boxes = Detections(np.array([lesion.box for lesion in lesions]).reshape(-1, 4), scores, size)
        return Findings(info, "processed", None, tuple(lesions), boxes, PROVENANCE)

    return make


VIEWS = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))
SCENARIOS: dict[str, dict[str, Any]] = {
    "masses": {"views": 2, "count": 2},
    "no lesion": {"views": 1, "count": 0},
    "twelve": {"views": 1, "count": 12},
    "touching": {"views": 1, "count": 4, "touching": True},
    "one view": {"views": 1, "count": 1},
    "no spacing": {"views": 1, "count": 2, "spacing": False},
    "MONOCHROME1": {"views": 1, "count": 2, "inverted": True},
    "four views": {"views": 4, "count": 1},
    "failed": {"views": 2, "count": 1, "statuses": ["processed", "failed"]},
    "rejected": {"views": 2, "count": 0, "statuses": ["rejected", "processed"]},
    "nothing usable": {"views": 2, "count": 0, "statuses": ["failed", "rejected"]},
}


@pytest.fixture(scope="session")
def make_exam_files(write_source: Callable[..., Path], find: Callable[..., Findings]) -> Callable[..., Exam]:
    """`make_exam_files(folder, number, scenario, syntax)` writes one exam and its findings."""

    def make(folder: Path, number: int, scenario: str, syntax: UID) -> Exam:
        plan = SCENARIOS[scenario]
        statuses = plan.get("statuses", ["processed"] * plan["views"])
        exam = Exam()
        for k, status in enumerate(statuses):
            side, view = VIEWS[(number + k) % 4]
            seed = 1000 * number + k + 1
            size = (97 + 8 * (number % 5), 71 + number % 9) if plan["count"] != 12 else (160, 125)
            elements: dict[str, Any] = {
                "StudyInstanceUID": f"1.2.826.0.1.3680043.9.9999.{number}.0",
                "PatientID": f"EXAM-{number}",
                "ImageLaterality": side,
                "ViewPosition": view,
                "InstanceNumber": k + 1,
                "SeriesNumber": k + 1,
                "ImagerPixelSpacing": [0.5, 0.5] if plan.get("spacing", True) else None,
            }
            path = folder / f"{number:03d}_{k}.dcm"
            write_source(path, seed, size, syntax, inverted=plan.get("inverted", False), **elements)
            spacing = (0.5, 0.5) if plan.get("spacing", True) else None
            more = {"status": status, "touching": plan.get("touching", False), "laterality": side, "view_position": view}
            exam.images.append(Image(path, find(path, size, plan["count"], seed, spacing, **more)))
        return exam

    return make


@pytest.fixture(scope="session")
def exam_plan() -> list[tuple[int, str, UID]]:
    """220 exams: (number, scenario, transfer syntax), every scenario 20 times, over all syntaxes."""
    names = list(SCENARIOS)
    return [(n, names[n % len(names)], TRANSFER_SYNTAXES[n % len(TRANSFER_SYNTAXES)]) for n in range(220)]


assert DeflatedExplicitVRLittleEndian in TRANSFER_SYNTAXES
assert ImplicitVRLittleEndian in TRANSFER_SYNTAXES
assert HTJ2KLossless in HTJ2K
