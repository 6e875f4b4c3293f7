"""INbreast as released (Moreira et al., Academic Radiology 2012): DICOM files, OsiriX contours, one table.

The release, "INbreast Release 1.0", holds

    AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm   410 images: file number, patient, side, view (ML means MLO)
    AllXML/20586908.xml                                    343 OsiriX ROI files (property lists), none where nothing was drawn
    INbreast.csv, INbreast.xls                             one row an image: Laterality, View, File Name, ACR, Bi-Rads

ROI names differ in spelling: Mass; Calcification(s), Cluster, Unnamed, Point 1, Point 3; Spiculated Region, Spiculated region,
Espiculated Region; Asymmetry, Assymetry; Distortion; and none at all. Only **Mass** counts as a mass: a spiculated region is
drawn in addition around a mass, so counting it as well would count one mass twice. With that the release has the 116 masses
in 107 images that its authors and the paper state; `survey` says so where a whole release gives other numbers.
Contours are in OsiriX's pixel frame, whose (0, 0) is the corner of the first pixel, as ours.
"""

from __future__ import annotations

import csv
import plistlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from mammoseg.datasets.headers import Header, read_header
from mammoseg.datasets.masks import rasterise
from mammoseg.datasets.records import Notes
from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.geometry import mask_box
from mammoseg.types import Annotation, DatasetItem, TrueMass

MASS_NAMES = ("mass",)
RELEASED = {"images": 410, "images with a mass": 107, "masses": 116}
_NAME = re.compile(r"(\d+)_([0-9a-fA-F]+)_MG_([LR])_([A-Z]+)_ANON\.dcm", re.IGNORECASE)
_POINT = re.compile(r"\s*\(?\s*([-+0-9.eE]+)\s*,\s*([-+0-9.eE]+)\s*\)?\s*")
_COLUMNS = ("Laterality", "View", "File Name", "ACR", "Bi-Rads")
_XML_MAX = 1 << 26


def read(path: Path, images: str = "mass", rois: str = ",".join(MASS_NAMES)) -> list[DatasetItem]:
    """Reads the release, in the order of the file numbers.

    images: "mass" takes the images with a mass (107 as released), "all" takes every one (410): those without are free of
    masses, though not of other findings. rois: the ROI names that count as a mass, separated by commas, case ignored.
    Items carry `breast_density` (ACR, 1…4), `birads` ("1" … "6", "4a" …) and `roi_names`; masks are in the stored image's
    frame. Raises DatasetError where this is not the release or a file of it cannot be read.
    """
    _check_images(images)
    items = _read(path, rois, Notes())
    return items if images == "all" else [item for item in items if item.annotation.masses]


def survey(path: Path, images: str = "mass", rois: str = ",".join(MASS_NAMES)) -> tuple[list[DatasetItem], list[str]]:
    """The items as `read` gives them, and what is missing or odd in the whole release, a line each."""
    _check_images(images)
    notes = Notes()
    items = _read(path, rois, notes)
    lines = notes.lines()
    masses = sum(len(i.annotation.masses) for i in items)
    got = {"images": len(items), "images with a mass": sum(bool(i.annotation.masses) for i in items), "masses": masses}
    if got != RELEASED:
        said = ", ".join(f"{got[k]} {k} (the release: {n})" for k, n in RELEASED.items() if got[k] != n)
        lines.append(f"not the whole release, or other ROI names than {', '.join(MASS_NAMES)!r} were asked for: {said}")
    return [item for item in items if images == "all" or item.annotation.masses], lines


def _check_images(images: str) -> None:
    if images not in ("mass", "all"):
        raise DatasetSpecError(f"option images: expected mass or all, got {images!r}")


def find_release(path: Path) -> Path:
    """The folder with AllDICOMs and AllXML at `path` or one level below. Raises DatasetError where there is none."""
    for folder in (path, *sorted(p for p in path.glob("*") if p.is_dir())):
        if (folder / "AllDICOMs").is_dir() and (folder / "AllXML").is_dir():
            return folder
    raise DatasetError(
        f"{path}: not INbreast as released: expected the folders AllDICOMs and AllXML in it or in a folder below; "
        "unpack the release there"
    )


def _read(path: Path, rois: str, notes: Notes) -> list[DatasetItem]:
    root = find_release(path)
    wanted = {name.strip().lower() for name in rois.split(",") if name.strip()}
    table = _table(root)
    files: dict[str, tuple[Path, re.Match[str]]] = {}
    for file in sorted((root / "AllDICOMs").iterdir()):
        match = _NAME.fullmatch(file.name)
        if match is not None:
            files[match[1]] = (file, match)
        elif file.suffix.lower() == ".dcm":
            notes.add("DICOM files whose name is not NUMBER_PATIENT_MG_SIDE_VIEW_ANON.dcm, left out", file.name)
    if not files:
        raise DatasetError(
            f"{root / 'AllDICOMs'}: no file named NUMBER_PATIENT_MG_SIDE_VIEW_ANON.dcm; unpack the release again"
        )
    for number in sorted(table.keys() - files.keys(), key=int):
        notes.add("rows of the table without a DICOM file", number)
    contours = {f.stem: f for f in (root / "AllXML").glob("*.xml")}
    for number in sorted(contours.keys() - files.keys()):
        notes.add("contour files without a DICOM file", f"{number}.xml")
    return [_item(*files[n], contours.get(n), table.get(n), (wanted, notes)) for n in sorted(files, key=int)]


def _item(
    file: Path,
    match: re.Match[str],
    contours: Path | None,
    row: dict[str, str] | None,
    how: tuple[set[str], Notes],
) -> DatasetItem:
    wanted, notes = how
    if row is None:
        notes.add("images that the table does not name", file.name)
        row = {}
    header = read_header(file)
    side, view = match[3].upper(), "MLO" if match[4].upper() == "ML" else match[4].upper()
    said = (row.get("Laterality", side).upper() or side, row.get("View", view).upper() or view)
    if said != (side, view):
        notes.add("images whose table row says another side or view than the file name (the table counts)", file.name)
    drawn = _rois(contours, notes) if contours is not None else []
    masses = [m for name, points in drawn if name.lower() in wanted for m in _mass(name, points, header, file.name, notes)]
    image_id = f"AllDICOMs/{file.name}"
    attributes: dict[str, Any] = {"roi_names": sorted({name for name, _ in drawn})}
    if row.get("ACR", "").isdigit():
        attributes["breast_density"] = int(row["ACR"])
    else:
        notes.add("images without a breast density (ACR)", file.name)
    if row.get("Bi-Rads"):
        attributes["birads"] = row["Bi-Rads"].lower()
    return DatasetItem(
        image_id=image_id,
        path=str(file),
        patient_id=match[2].lower(),
        annotation=Annotation(image_id, header.size, tuple(masses), attributes),
        laterality=said[0] if said[0] in ("L", "R") else side,
        view_position=said[1],
        spacing_mm=header.spacing_mm,
        attributes=attributes,
    )


def _mass(name: str, points: Sequence[tuple[float, float]], header: Header, where: str, notes: Notes) -> list[TrueMass]:
    if len(points) < 3:
        notes.add("masses with fewer than three points, which outline nothing, left out", where)
        return []
    placed = rasterise([points], header.size)
    if placed is None:
        notes.add("masses whose contour lies outside the image, left out", where)
        return []
    return [TrueMass(mask_box(*placed), placed[0], placed[1], {"roi_name": name})]


def _rois(file: Path, notes: Notes) -> list[tuple[str, list[tuple[float, float]]]]:
    """(name, points) of every ROI in an OsiriX property list; a nameless ROI is called ""."""
    try:
        if file.stat().st_size > _XML_MAX:
            raise DatasetError(f"{file}: larger than any contour file of the release; restore it")
        content: Any = plistlib.loads(file.read_bytes(), fmt=plistlib.FMT_XML)
        images = content["Images"]
        out = []
        for image in images:
            if image.get("NumberOfROIs", len(image["ROIs"])) != len(image["ROIs"]):
                notes.add("contour files whose NumberOfROIs is not the number of ROIs", file.name)
            for roi in image["ROIs"]:
                points = [_point(text) for text in roi.get("Point_px", [])]
                if roi.get("NumberOfPoints", len(points)) != len(points):
                    notes.add("ROIs whose NumberOfPoints is not the number of points", file.name)
                out.append((str(roi.get("Name", "")).strip(), points))
        return out
    except (ExpatError, plistlib.InvalidFileException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{file}: not an OsiriX contour file (a property list with Images, ROIs, Point_px): {error}; restore it"
        ) from error


def _point(text: Any) -> tuple[float, float]:
    match = _POINT.fullmatch(str(text))
    if match is None:
        raise ValueError(f"expected a point such as '(2013.1, 1054.8)', got {str(text)[:40]!r}")
    return float(match[1]), float(match[2])


def _table(root: Path) -> dict[str, dict[str, str]]:
    """Rows by file number from INbreast.csv, else from INbreast.xls. Raises DatasetError where neither can be read."""
    sheet = root / "INbreast.csv"
    if sheet.is_file():
        lines = sheet.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        rows = list(csv.reader(lines, delimiter=";" if lines and ";" in lines[0] else ","))
    else:
        sheet = root / "INbreast.xls"
        rows = _excel(sheet)
    head = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in _COLUMNS if name not in head]
    if missing:
        raise DatasetError(f"{sheet}: expected the columns {', '.join(_COLUMNS)}; missing: {', '.join(missing)}")
    out = {}
    for row in rows[1:]:
        record = dict(zip(head, (cell.strip() for cell in row), strict=False))
        number = record.get("File Name", "").removesuffix(".0")
        if number.isdigit():  # the tables end in empty rows and sums
            out[number] = {k: v.removesuffix(".0") for k, v in record.items()}
    return out


def _excel(file: Path) -> list[list[str]]:
    if not file.is_file():
        raise DatasetError(f"{file.parent}: neither INbreast.csv nor INbreast.xls is there; unpack the release again")
    try:
        import xlrd
    except ImportError as error:
        raise DatasetError(
            f"{file}: reading it needs xlrd: pip install xlrd, or save it as INbreast.csv (semicolons)"
        ) from error
    try:
        sheet = xlrd.open_workbook(str(file), logfile=None).sheet_by_index(0)
    except Exception as error:  # xlrd raises anything on damaged files
        raise DatasetError(f"{file}: cannot be read as an Excel file ({type(error).__name__}); restore it") from error
    return [[str(value) for value in sheet.row_values(i)] for i in range(sheet.nrows)]
