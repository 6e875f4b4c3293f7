"""Phantoms in the folders, names and formats in which INbreast and CBIS-DDSM are released: to run and test what reads those.

No patient was imaged, and the files say so. Whoever has the real collections gives their folders instead.
"""

from __future__ import annotations

import csv
import hashlib
import io
import plistlib
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import contourpy
import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mammoseg.datasets.phantom import MAX_VALUE, PhantomConfig, PhantomView, make_exam
from mammoseg.datasets.phantom_files import exam_seed, to_dicom
from mammoseg.io.atomic import write_atomic
from mammoseg.types import TrueMass

Layout = Literal["classic", "descriptive"]
CSV_HEAD = (
    "patient_id", "breast_density", "left or right breast", "image view", "abnormality id", "abnormality type", "mass shape",
    "mass margins", "assessment", "pathology", "subtlety", "image file path", "cropped image file path", "ROI mask file path",
)  # fmt: skip
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RESCAN = 1.149  # CBIS-DDSM's masks of another size are this much larger (scanners of 43.5 and 50 µm)


def write_inbreast(out: Path, exams: int, seed: int, config: PhantomConfig) -> Path:
    """Writes `exams` phantom exams of four views as INbreast is released; returns its folder, `out`/INbreast Release 1.0.

    Beside the masses the contour files hold calcifications, clusters and other findings under the release's own spellings.
    """
    root = out / "INbreast Release 1.0"
    rows = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"]
    for exam in range(1, exams + 1):
        patient = hashlib.sha256(f"{seed}/{exam}".encode()).hexdigest()[:16]
        for k, view in enumerate(make_exam(exam_seed(seed, exam), config)):
            number = str(20_000_000 + 1000 * exam + 26 * k)
            name = f"{number}_{patient}_MG_{view.laterality}_{'ML' if view.view_position == 'MLO' else 'CC'}_ANON.dcm"
            stream = BytesIO()
            to_dicom(view, f"PHANTOM-{patient}").save_as(stream, enforce_file_format=True)
            write_atomic(root / "AllDICOMs" / name, stream.getvalue())
            rois = [osirix_roi("Mass", _outline(m), i) for i, m in enumerate(view.masses)]
            if k % 2 == 0 or rois:
                rois += _others(view, len(rois), exam + k)
                write_atomic(root / "AllXML" / f"{number}.xml", osirix_file(rois))
            density = view.attributes["breast_density"] if (exam, k) != (1, 1) else "     "  # one is blank in the release
            rows.append(
                f"removed;removed;{view.laterality};{view.view_position};201001;{number};{density};{'4a' if view.masses else 1}"
            )
    write_atomic(root / "INbreast.csv", ("\n".join(rows) + "\n").encode())
    return root


def osirix_roi(name: str | None, points: NDArray[np.float64], index: int = 0, spacing_mm: float = 0.07) -> dict[str, Any]:
    """One ROI of an OsiriX export. points: a closed polygon, or one point, f64[K, 2] of (x, y) in pixel edges."""
    centre = points.mean(axis=0)
    roi: dict[str, Any] = {
        "Area": 0.01,
        "Center": f"({centre[0] * spacing_mm:.6f}, {centre[1] * spacing_mm:.6f}, 0.000000)",
        "Dev": 0.0,
        "IndexInImage": index,
        "Max": 0.0,
        "Mean": 0.0,
        "Min": 0.0,
        "Name": name,
        "NumberOfPoints": len(points),
        "Point_mm": [f"({x * spacing_mm:.6f}, {y * spacing_mm:.6f}, 0.000000)" for x, y in points],
        "Point_px": [f"({x:.6f}, {y:.6f})" for x, y in points],
        "Total": 0.0,
        "Type": 19 if len(points) == 1 else 15,
    }
    return {k: v for k, v in roi.items() if v is not None}


def osirix_file(rois: list[dict[str, Any]]) -> bytes:
    """The bytes of AllXML/NUMBER.xml: an XML property list."""
    return plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]}, fmt=plistlib.FMT_XML)


def _others(view: PhantomView, index: int, turn: int) -> list[dict[str, Any]]:
    height, width = view.pixels.shape
    point = np.array([[width * 0.5, height * 0.5]])
    box = point + np.array([[-9.0, -7], [9, -7], [9, 7], [-9, 7]])
    named: list[tuple[str | None, NDArray[np.float64]]] = [
        ("Calcification", point),
        ("Cluster", box),
        ("Espiculated Region", box),
        ("Assymetry", box),
        ("Unnamed", point),
        ("Spiculated Region", box),
        (None, point),
        ("Distortion", box),
    ]
    name, points = named[turn % len(named)]
    return [osirix_roi(name, points, index)]


def _outline(mass: TrueMass) -> NDArray[np.float64]:
    """A polygon f64[K, 2] in pixel edges whose rasterisation is the mass's mask."""
    assert mass.mask is not None
    padded = np.pad(mass.mask.astype(np.float64), 1)
    lines = contourpy.contour_generator(z=padded, name="serial").lines(0.5)
    longest = max((np.asarray(line)[:-1] for line in lines), key=len)
    return longest - 0.5 + (mass.origin_px[1], mass.origin_px[0])


def write_cbis_ddsm(out: Path, exams: int, seed: int, config: PhantomConfig, layout: Layout = "descriptive") -> Path:
    """Writes the phantom views that have a mass as CBIS-DDSM is served, a quarter of the exams as its test part; returns `out`.

    Every third abnormality has the paths of crop and mask swapped, every fourth a mask of another size than its mammogram.
    """
    rows: dict[str, list[dict[str, Any]]] = {"Training": [], "Test": []}
    count = 0
    for exam in range(1, exams + 1):
        side = "Test" if exam % 4 == 0 else "Training"
        for view in make_exam(exam_seed(seed, exam), config):
            breast = "LEFT" if view.laterality == "L" else "RIGHT"
            case = f"Mass-{side}_P_{seed * 1000 + exam:05d}_{breast}_{view.view_position}"
            for k, mass in enumerate(view.masses, start=1):
                rows[side].append(_abnormality(out, view, mass, (case, k, count), layout))
                count += 1
    for side, name in (("Training", "train"), ("Test", "test")):
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_HEAD, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[side])
        write_atomic(out / f"mass_case_description_{name}_set.csv", text.getvalue().encode())
    return out


def _abnormality(out: Path, view: PhantomView, mass: TrueMass, which: tuple[str, int, int], layout: Layout) -> dict[str, Any]:
    """Writes the files of one abnormality and gives its CSV row. which: case, abnormality id, running number."""
    case, number, running = which
    assert mass.mask is not None
    pixels = (view.pixels.astype(np.uint32) * 65535 // MAX_VALUE).astype(np.uint16)
    full_mask = np.zeros(pixels.shape, dtype=np.uint8)
    r, c = mass.origin_px
    full_mask[r : r + mass.mask.shape[0], c : c + mass.mask.shape[1]] = mass.mask * np.uint8(255)
    x1, y1, x2, y2 = (int(v) for v in mass.box)
    crop = pixels[max(0, y1 - 10) : y2 + 10, max(0, x1 - 10) : x2 + 10]
    if running % 4 == 1:
        size = (round(pixels.shape[1] * RESCAN), round(pixels.shape[0] * RESCAN))
        full_mask = cv2.resize(full_mask, size, interpolation=cv2.INTER_NEAREST)
    side, breast, view_name = case.split("_")[0], view.laterality, view.view_position
    common = (side, breast, view_name)
    image_path = _place(out, case, "full mammogram images", [pixels], (layout, common))[0]
    together = running % 2 == 0  # crop and mask in one series, crop first, as most are; else in two
    own = f"{case}_{number}"
    if together:
        crop_path, mask_path = _place(out, own, "ROI mask images", [crop, full_mask], (layout, common))
    else:
        crop_path = _place(out, own, "cropped images", [crop], (layout, common))[0]
        mask_path = _place(out, own, "ROI mask images", [full_mask], (layout, common))[0]
    if running % 3 == 2:
        crop_path, mask_path = mask_path, crop_path
    patient = "_".join(case.split("_")[1:3])
    values = (
        patient, view.attributes["breast_density"], "LEFT" if breast == "L" else "RIGHT", view_name, number, "mass",
        str(mass.attributes["shape"]).upper(), "ILL_DEFINED", 4, "MALIGNANT" if running % 2 else "BENIGN", 3,
        image_path, crop_path, mask_path + "\n",
    )  # fmt: skip
    return dict(zip(CSV_HEAD, values, strict=True))


def _place(
    out: Path, case: str, description: str, images: list[NDArray[Any]], how: tuple[Layout, tuple[str, str, str]]
) -> list[str]:
    """Writes one series; gives the paths as the CSV names them, which are those of no layout."""
    layout, common = how
    study, series = _uid("study", case), _uid("series", case, description)
    folder = out / case / study / series
    if layout == "descriptive":
        last = f"{int(hashlib.sha256(series.encode()).hexdigest(), 16) % 100_000:05d}"
        folder = out / "manifest-1234567890123" / "CBIS-DDSM" / case
        folder = folder / f"07-20-2016-DDSM-NA-{last}" / f"1.000000-{description}-{last}"
    for k, image in enumerate(images, start=1):
        stream = BytesIO()
        _dicom(image, case, (study, series, _uid("image", case, description, k)), description, common).save_as(
            stream, enforce_file_format=True
        )
        write_atomic(folder / f"1-{k}.dcm", stream.getvalue())
    return [f"{case}/{study}/{series}/{k:06d}.dcm" for k in range(len(images))]


def _dicom(
    image: NDArray[Any], case: str, uids: tuple[str, str, str], description: str, common: tuple[str, str, str]
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = _SECONDARY_CAPTURE, uids[2]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("mammoseg phantom writer")
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = _SECONDARY_CAPTURE, uids[2]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uids[0], uids[1]
    ds.StudyDate, ds.Modality, ds.ConversionType = "20160720", "MG", "WSD"
    ds.SeriesDescription = description
    ds.PatientName = ds.PatientID = case
    ds.BodyPartExamined = "BREAST"
    ds.Laterality, ds.PatientOrientation = common[1], common[2]
    ds.SeriesNumber = ds.InstanceNumber = 1
    ds.ImageComments = "SYNTHETIC PHANTOM, NO PATIENT"
    bits = 8 * image.dtype.itemsize
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = image.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    data = np.ascontiguousarray(image).astype(image.dtype.newbyteorder("<")).tobytes()
    ds.add_new(0x7FE00010, "OB" if bits == 8 else "OW", data + b"\0" * (len(data) % 2))
    return ds


def _uid(*parts: Any) -> str:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"1.3.6.1.4.1.9590.100.1.2.{int.from_bytes(digest[:15], 'big')}"
