"""Phantom exams as files: DICOM MG or 16-bit PNG, with their truth as COCO; and reading such a folder back.

A folder written here holds `images/phantom_sS_NNNN_VIEW.dcm` (or .png) and `annotations.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mammoseg.config import to_dict
from mammoseg.datasets import coco
from mammoseg.datasets.phantom import MAX_VALUE, PhantomConfig, PhantomView, make_exam
from mammoseg.errors import DatasetError
from mammoseg.io.atomic import write_atomic
from mammoseg.types import Annotation, DatasetItem

GENERATOR = "mammoseg phantom"
FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"  # Digital Mammography X-Ray Image Storage - For Presentation


def read(path: Path) -> list[DatasetItem]:
    """Reads a folder that `write_exams` wrote; DatasetError where it is another one."""
    file = path / "annotations.json" if path.is_dir() else path
    items = coco.read(file)
    if json.loads(file.read_bytes()).get("info", {}).get("generator") != GENERATOR:
        raise DatasetError(f"{file}: not written by `mammoseg phantom`; read it as coco:{file}")
    return items


def write_exams(
    out: Path,
    count: int,
    seed: int = 0,
    format: Literal["dicom", "png"] = "dicom",
    config: PhantomConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[DatasetItem]:
    """Writes `count` exams of four views and their truth into the folder `out`; gives the items, as `read` would.

    Equal arguments give equal bytes. progress: called with (views done, views in all) after each view.
    Raises DatasetError where `count` or `format` is none we know, or where `out` already holds an annotations.json.
    """
    out = Path(out)
    if count < 1 or seed < 0:
        raise DatasetError(f"expected a count of 1 or more and a seed of 0 or more, got {count} and {seed}")
    if format not in ("dicom", "png"):
        raise DatasetError(f"expected the format dicom or png, got {format!r}")
    if (out / "annotations.json").exists():
        raise DatasetError(f"{out}: it holds a dataset already; choose another folder or remove it")
    config = config or PhantomConfig()
    items: list[DatasetItem] = []
    for number in range(1, count + 1):
        for view in make_exam(exam_seed(seed, number), config):
            items.append(_write_view(out, view, seed, number, format))
            if progress is not None:
                progress(len(items), 4 * count)
    info = {
        "generator": GENERATOR,
        "description": "Synthetic mammograms (phantoms); no patient was imaged",
        "seed": seed,
        "config": to_dict(config),
    }
    coco.write(out / "annotations.json", items, info)
    return items


def exam_seed(seed: int, number: int) -> int:
    """The seed of exam `number` (1, 2, ...) in a set of exams of `seed`; any prefix of a set is a set."""
    return seed * 100_000 + number


def _write_view(out: Path, view: PhantomView, seed: int, number: int, format: str) -> DatasetItem:
    patient = f"PHANTOM-{seed}-{number:04d}"
    name = f"phantom_s{seed}_{number:04d}_{view.name}.{'dcm' if format == 'dicom' else 'png'}"
    path = out / "images" / name
    if format == "dicom":
        stream = BytesIO()
        to_dicom(view, patient).save_as(stream, enforce_file_format=True)
        write_atomic(path, stream.getvalue())
    else:
        # 16-bit PNG, the 12 bits stretched over the range, as image software expects it.
        stretched = (view.pixels.astype(np.uint32) * 65535 // MAX_VALUE).astype(np.uint16)
        write_atomic(path, cv2.imencode(".png", stretched, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    image_id = f"images/{name}"
    masses = tuple(replace(m, attributes={k: v for k, v in m.attributes.items() if k != "key"}) for m in view.masses)
    size = (view.pixels.shape[0], view.pixels.shape[1])
    return DatasetItem(
        image_id=image_id,
        path=str(path),
        patient_id=patient,
        annotation=Annotation(image_id, size, masses, view.attributes),
        laterality=view.laterality,
        view_position=view.view_position,
        spacing_mm=view.spacing_mm,
        attributes=view.attributes,
    )


def to_dicom(view: PhantomView, patient: str) -> FileDataset:
    """The view as Digital Mammography X-Ray Image (For Presentation), 12 bits in 16, Explicit VR Little Endian.

    UIDs are made of `patient`, the view and the pixels, so that equal phantoms are equal objects. Name, id, comments and the
    attribute Quality Control Image all say that it is a phantom.
    """
    pixels: NDArray[np.uint16] = np.ascontiguousarray(view.pixels)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = FOR_PRESENTATION
    meta.MediaStorageSOPInstanceUID = _uid("image", patient, view.name, digest)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("mammoseg phantom writer")
    meta.ImplementationVersionName = "MAMMOSEG"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _patient_and_study(ds, patient)
    _series_and_equipment(ds, view, patient)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    _mammography(ds, view)
    _image(ds, view)
    ds.add_new(0x7FE00010, "OW", pixels.astype("<u2").tobytes())
    return ds


def _patient_and_study(ds: Dataset, patient: str) -> None:
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = f"PHANTOM^{patient}"
    ds.PatientID = patient
    ds.PatientBirthDate = ""
    ds.PatientSex = "F"
    ds.StudyInstanceUID = _uid("study", patient)
    ds.StudyDate, ds.StudyTime = "20000101", "120000"
    ds.ReferringPhysicianName = ""
    ds.StudyID = "1"
    ds.AccessionNumber = ""
    ds.StudyDescription = "PHANTOM: synthetic mammograms"


def _series_and_equipment(ds: Dataset, view: PhantomView, patient: str) -> None:
    number = {"RCC": 1, "LCC": 2, "RMLO": 3, "LMLO": 4}[view.name]
    ds.Modality = "MG"
    ds.SeriesInstanceUID = _uid("series", patient, view.name)
    ds.SeriesNumber = number
    ds.SeriesDescription = f"PHANTOM {view.laterality} {view.view_position}"
    ds.InstanceNumber = 1
    ds.Manufacturer = "mammoseg"
    ds.ManufacturerModelName = "phantom"
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = "1"
    ds.PresentationIntentType = "FOR PRESENTATION"


def _mammography(ds: Dataset, view: PhantomView) -> None:
    mlo = view.view_position == "MLO"
    right = view.laterality == "R"
    ds.ImageLaterality = view.laterality
    ds.BodyPartExamined = "BREAST"
    ds.AnatomicRegionSequence = [_code("76752008", "SCT", "Breast")]
    ds.ViewPosition = view.view_position
    code = ("399368009", "medio-lateral oblique") if mlo else ("399162004", "cranio-caudal")
    ds.ViewCodeSequence = [_code(code[0], "SCT", code[1])]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    # Rows run away from the chest wall for left breasts, towards it for right ones; columns run to the feet or to the side.
    ds.PatientOrientation = ["P" if right else "A", ("FL" if right else "FR") if mlo else ("L" if right else "R")]
    ds.PositionerType = "MAMMOGRAPHIC"
    ds.PositionerPrimaryAngle = (-45 if right else 45) if mlo else 0
    ds.OrganExposed = "BREAST"
    ds.BreastImplantPresent = "NO"
    ds.PartialView = "NO"
    ds.DetectorType = "DIRECT"
    ds.DetectorID = "PHANTOM"
    ds.ImagerPixelSpacing = [f"{s:.6g}" for s in view.spacing_mm]
    ds.EstimatedRadiographicMagnificationFactor = "1"
    ds.FieldOfViewShape = "RECTANGLE"
    ds.FieldOfViewOrigin = [0, 0]
    ds.FieldOfViewRotation = "0"
    ds.FieldOfViewHorizontalFlip = "NO"
    ds.AcquisitionContextSequence = []


def _image(ds: Dataset, view: PhantomView) -> None:
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.ContentDate, ds.ContentTime = "20000101", "120000"
    ds.AcquisitionDate, ds.AcquisitionTime = "20000101", "120000"
    ds.AcquisitionNumber = 1
    ds.DerivationDescription = "Computed, not acquired: a synthetic phantom"
    ds.ImageComments = "SYNTHETIC PHANTOM, NO PATIENT"
    ds.QualityControlImage = "YES"
    ds.BurnedInAnnotation = "YES"
    ds.LossyImageCompression = "00"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = view.pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "IDENTITY"
    ds.WindowCenter, ds.WindowWidth = str((MAX_VALUE + 1) // 2), str(MAX_VALUE + 1)
    ds.WindowCenterWidthExplanation = "full range"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _uid(*parts: Any) -> str:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"
