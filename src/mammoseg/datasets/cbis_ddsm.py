"""CBIS-DDSM as TCIA serves it (Lee et al., Scientific Data 2017): four CSV files, and DICOM in either folder layout.

The CSVs (`mass_case_description_train_set.csv`, …`_test_set.csv`, and `calc_…` of each) name for every abnormality the full
mammogram, its crop and its mask as `CASE/STUDY_UID/SERIES_UID/FILE.dcm`; a mammogram with several masses has several rows.
TCIA serves the files as `CASE/STUDY_UID/SERIES_UID/1-1.dcm` (classic) or `CASE/DATE-…/1.000000-full mammogram images-…/1-1.dcm`
(descriptive); file names differ from the CSVs' in both, and the newer CSVs end paths in a line break.

What is known to be odd, and what is made of it:

- crop and mask are swapped in the CSV for some abnormalities, and often lie in one series: the mask is told by what it is (8
  bits, else the one as large as the mammogram), never by its column;
- some masks have another size than their mammogram (another scan of the film): they are scaled to it;
- the mass CSVs say `breast_density`, the others `breast density`.

No file carries the size of a pixel: sizes in mm are unknown.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pydicom

from mammoseg.datasets.headers import Header, read_header
from mammoseg.datasets.masks import Mask, Placed, tight
from mammoseg.datasets.records import Notes, laterality_of
from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.geometry import Transform, mask_box
from mammoseg.types import Annotation, DatasetItem, Size, TrueMass

_FULL, _CROP, _MASK = "image file path", "cropped image file path", "ROI mask file path"
_NEEDED = ("patient_id", "left or right breast", "image view", "abnormality id", "pathology", _FULL, _CROP, _MASK)
_OF_MASS = (
    "abnormality id",
    "mass shape",
    "mass margins",
    "calc type",
    "calc distribution",
    "assessment",
    "pathology",
    "subtlety",
)
_ASPECT_MAX = 0.02  # how far a mask's aspect may be from its mammogram's before it is told as odd
Row = dict[str, str]


class _Missing(Exception):
    """A file that the CSVs name is not there."""


def read(path: Path, split: str = "all", abnormality: str = "mass", missing: str = "error") -> list[DatasetItem]:
    """Reads the collection, an item a mammogram, in the order of the CSVs.

    split: "train", "test" (the collection's own) or "all". abnormality: "mass" or "calc". missing: "error" raises where a file
    that the CSVs name is not there, "skip" leaves the mammogram out (a partial download). `image_id` is the case's name, such
    as Mass-Training_P_00001_LEFT_CC, in either layout; items carry `official_split` and `breast_density`, masses their
    pathology, shape, margins, assessment, subtlety and, where the mask was scaled, `mask_size`.
    Raises DatasetError naming the file and what to do.
    """
    _check_options(split, abnormality, missing)
    notes = Notes()
    items = _read(path, split, abnormality, notes)
    if missing == "error" and _MISSING in notes.found:
        absent = notes.found[_MISSING]
        raise DatasetError(
            f"{path}: files of {len(absent)} mammograms that the CSVs name are not there, such as {absent[0]}; finish the "
            "download, or read with ?missing=skip"
        )
    return items


def survey(
    path: Path, split: str = "all", abnormality: str = "mass", missing: str = "skip"
) -> tuple[list[DatasetItem], list[str]]:
    """The items as `read` gives them, those of which a file is missing left out, and what is missing or odd, a line each."""
    _check_options(split, abnormality, missing)
    notes = Notes()
    items = _read(path, split, abnormality, notes)
    sides: dict[str, set[str]] = defaultdict(set)
    for item in items:
        sides[item.patient_id].add(str(item.attributes["official_split"]))
    for patient in sorted(p for p, s in sides.items() if len(s) > 1):
        notes.add("patients on both sides of the official split", patient)
    return items, notes.lines()


def _check_options(split: str, abnormality: str, missing: str) -> None:
    options = (("split", split, ("all", "train", "test")), ("abnormality", abnormality, ("mass", "calc")))
    for option, value, known in (*options, ("missing", missing, ("error", "skip"))):
        if value not in known:
            raise DatasetSpecError(f"option {option}: expected one of {', '.join(known)}, got {value!r}")


_MISSING = "mammograms of which a file is not there, left out"


def csv_files(path: Path, split: str = "all", abnormality: str = "mass") -> list[tuple[str, Path]]:
    """("train" or "test", file) of the CSVs of one kind at `path` or up to two levels below, train first.

    Raises DatasetError where one that is asked for is not there ("all" takes what there is, at least one).
    """
    found = []
    for side in ("train", "test"):
        name = f"{abnormality}_case_description_{side}_set.csv"
        here = [f for pattern in (name, f"*/{name}", f"*/*/{name}") for f in sorted(path.glob(pattern))]
        if here and split in ("all", side):
            found.append((side, here[0]))
        if not here and split == side:
            raise DatasetError(f"{path}: {name} is not there; get it from the collection's page at TCIA")
    if not found:
        raise DatasetError(
            f"{path}: not CBIS-DDSM: no {abnormality}_case_description_train_set.csv or …_test_set.csv in it or up to two "
            "folders below; get them from the collection's page at TCIA"
        )
    return found


def read_rows(file: Path) -> list[Row]:
    """The rows of one CSV, column names and values as the mass CSVs have them, without line breaks around values."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            head = [str(name).strip() for name in reader.fieldnames or ()]
            rows = [{str(k).strip(): (v or "").strip() for k, v in row.items() if k is not None} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read as CSV: {error}; get it again") from error
    missing = [name for name in _NEEDED if name not in head]
    if missing:
        raise DatasetError(f"{file}: expected the columns {', '.join(_NEEDED)}; missing: {', '.join(missing)}")
    short = [number for number, row in enumerate(rows, start=2) if not (row["patient_id"] and row[_FULL])]
    if short:
        raise DatasetError(f"{file}: record {short[0]} has no patient_id or no {_FULL}; get the file again")
    return [{**row, "breast_density": row.get("breast_density") or row.get("breast density", "")} for row in rows]


def _read(path: Path, split: str, abnormality: str, notes: Notes) -> list[DatasetItem]:
    cases: dict[tuple[str, str], list[Row]] = {}
    for side, file in csv_files(path, split, abnormality):
        for row in read_rows(file):
            cases.setdefault((side, PurePosixPath(row[_FULL]).parts[0]), []).append(row)
    files = _Files(path)
    order = sorted(cases, key=lambda case: case[0] != "train")

    def one(case: tuple[str, str]) -> tuple[DatasetItem | None, Notes]:
        own = Notes()
        try:
            return _item(case[1], case[0], cases[case], (files, own)), own
        except _Missing as error:
            own.add(_MISSING, str(error))
            return None, own

    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="cbis") as pool:
        results = list(pool.map(one, order))
    for _, own in results:
        for what, examples in own.found.items():
            notes.add(what, *examples)
    return [item for item, _ in results if item is not None]


def _item(case: str, side: str, rows: Sequence[Row], how: tuple[_Files, Notes]) -> DatasetItem:
    files, notes = how
    full, header = files.mammogram(rows[0][_FULL])
    masses = []
    for row in rows:
        file, swapped = files.mask([row[_MASK], row[_CROP]], header)
        if swapped:
            notes.add("masks found under the path of the crop", case)
        masses.append(_mass(file, header.size, row, case, notes))
    first = rows[0]
    attributes: dict[str, Any] = {"official_split": side}
    densities = {row["breast_density"] for row in rows if row["breast_density"].isdigit()}
    if densities:
        attributes["breast_density"] = int(sorted(densities)[0])
    if len(densities) > 1:
        notes.add("mammograms with several breast densities, of which the lowest counts", case)
    return DatasetItem(
        image_id=case,
        path=str(full),
        patient_id=first["patient_id"],
        annotation=Annotation(case, header.size, tuple(m for m in masses if m is not None), attributes),
        laterality=laterality_of(first["left or right breast"], case),
        view_position=first["image view"].upper() or None,
        spacing_mm=header.spacing_mm,
        attributes=attributes,
    )


def _mass(file: Path, size: Size, row: Row, case: str, notes: Notes) -> TrueMass | None:
    try:
        data = pydicom.dcmread(file)
        pixels = np.asarray(data.pixel_array)
    except Exception as error:  # pydicom raises anything on damaged files
        raise DatasetError(f"{file}: its pixels cannot be read ({type(error).__name__}); restore the file") from error
    mask = pixels > 0 if pixels.max(initial=0) <= 1 else pixels > pixels.max() // 2
    attributes: dict[str, Any] = {k.replace(" ", "_"): _number(row[k]) for k in _OF_MASS if row.get(k)}
    placed = tight(mask)
    if placed is None:
        notes.add("masks without a pixel, left out", case)
        return None
    if mask.shape != size:
        attributes["mask_size"] = list(mask.shape)
        notes.add("masks of another size than their mammogram, scaled to it", case)
        if abs(mask.shape[0] / mask.shape[1] * size[1] / size[0] - 1) > _ASPECT_MAX:
            notes.add("masks of another aspect than their mammogram", case)
        placed = scaled(placed, (mask.shape[0], mask.shape[1]), size)
    return TrueMass(mask_box(*placed), placed[0], placed[1], attributes)


def scaled(placed: Placed, size: Size, target: Size) -> Placed:
    """A placed mask of an image of `size` (H, W) as it lies in the same image at the size `target`; never empty."""
    sy, sx = target[0] / size[0], target[1] / size[1]
    mask, (row, column) = placed
    top, left = int(row * sy), int(column * sx)
    bottom = min(target[0], int(np.ceil((row + mask.shape[0]) * sy)))
    right = min(target[1], int(np.ceil((column + mask.shape[1]) * sx)))
    to_target = Transform(sx, sy, column * sx - left, row * sy - top, (bottom - top, right - left))
    found: Mask = to_target.mask(mask)
    out = tight(found, (top, left))
    if out is not None:
        return out
    return np.ones((1, 1), dtype=np.bool_), (min(top, target[0] - 1), min(left, target[1] - 1))


def _number(text: str) -> Any:
    return int(text) if text.isdigit() else text


class _Files:
    """Where the files of a case lie, in either layout."""

    def __init__(self, path: Path) -> None:
        levels = ([path], path.glob("*"), path.glob("*/*"))
        found = ([r for r in sorted(level) if any(_is_case(p.name) for p in _folders(r))] for level in levels)
        self.roots = next((roots for roots in found if roots), [])

    def mammogram(self, named: str) -> tuple[Path, Header]:
        """The full mammogram that the CSV names; the largest image of its case where the series is not told apart."""
        found = self._series(named)
        return max(found, key=lambda f: f[1].size[0] * f[1].size[1])

    def mask(self, named: Sequence[str], full: Header) -> tuple[Path, bool]:
        """The mask among the files at the paths of mask and crop; and whether it was at the crop's alone."""
        groups = [self._series(name, optional=True) for name in named if name]
        every = {file: header for group in groups for file, header in group}
        if not every:
            raise _Missing(named[0])
        best = min(every, key=lambda f: _unlike_mask(every[f], full))
        if every[best].bits_allocated != 8 and _relative(every[best].size, full.size) > 0.2:
            raise _Missing(named[0])  # only the crop is there
        wanted, other = (PurePosixPath(n) for n in named)
        exact = self._exact(named[0])
        swapped = exact != best if exact is not None else wanted.parent != other.parent and best not in dict(groups[0])
        return best, swapped

    def _exact(self, named: str) -> Path | None:
        return next((root / named for root in self.roots if (root / named).is_file()), None)

    def _series(self, named: str, optional: bool = False) -> list[tuple[Path, Header]]:
        parts = PurePosixPath(named).parts
        for root in self.roots:
            if len(parts) != 4 or not (root / parts[0]).is_dir():
                continue
            classic = root.joinpath(*parts[:3])
            below = sorted((classic if classic.is_dir() else root / parts[0]).rglob("*.dcm"))
            files = [(file, read_header(file)) for file in below]
            same = [f for f in files if f[1].series_uid == parts[2]]
            if same or files:
                return same or files
        if optional:
            return []
        raise _Missing(named)


def _is_case(name: str) -> bool:
    return name.startswith(("Mass-Training_", "Mass-Test_", "Calc-Training_", "Calc-Test_"))


def _folders(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []


def _unlike_mask(header: Header, full: Header) -> tuple[int, float]:
    """Sorts the mask first: 8 bits, then nearest in size to the mammogram."""
    return int(header.bits_allocated != 8), _relative(header.size, full.size)


def _relative(a: Size, b: Size) -> float:
    """How far size `a` is from `b`: the larger of both sides' |log ratio|."""
    return max(abs(float(np.log(a[0] / b[0]))), abs(float(np.log(a[1] / b[1]))))
