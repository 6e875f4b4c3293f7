"""Folders of images and masks: `images/NAME.ext` with `masks/NAME.ext`, and optionally `index.csv`.

`index.csv` has a header and a column `file` (or `file_name`); `patient_id`, `laterality`, `view_position`, `spacing_mm` are
understood ("0.07", or "0.07 0.08" for row and column), all other columns become attributes. An image that names no patient is
its own patient, unless `patient_pattern` finds one in its file name; `datasets check` reports that.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.datasets.headers import image_size
from mammoseg.datasets.masks import Mask, tight
from mammoseg.datasets.records import laterality_of, patient_of, spacing_of
from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.geometry import mask_box
from mammoseg.types import Annotation, DatasetItem, Size, TrueMass

_IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".pgm", ".dcm", ".dicom", ""}
_KNOWN = {"file", "file_name", "patient_id", "laterality", "view_position", "spacing_mm"}


def read(
    path: Path,
    masks: str = "components",
    min_area_px: str | int = 16,
    missing: str = "error",
    patient_pattern: str | None = None,
) -> list[DatasetItem]:
    """Reads the folder `path`, in the order of file names; the rows of `index.csv` must all have their image.

    masks: "components": each 8-connected region of the foreground is a mass; foreground is > 127 in JPEG masks, and > 0 in
    lossless ones. "labels": a lossless label image, each value above 0 is one mass.
    min_area_px: smaller regions are dropped as specks and counted in `attributes["n_specks"]`.
    missing: an image without a mask file is an "error", or "normal" (free of masses), or "skip"ped.
    Masks may be coloured where all channels agree. Raises DatasetError naming the file and what to do.
    """
    for option, value, known in (("masks", masks, ("components", "labels")), ("missing", missing, ("error", "normal", "skip"))):
        if value not in known:
            raise DatasetSpecError(f"option {option}: expected one of {', '.join(known)}, got {value!r}")
    if not str(min_area_px).isdigit():
        raise DatasetSpecError(f"option min_area_px: expected a whole number, got {min_area_px!r}")
    for folder in ("images", "masks"):
        if not (path / folder).is_dir():
            raise DatasetError(f"{path}: there is no folder {folder!r}; expected images/NAME.ext with masks/NAME.ext")
    images = [p for p in sorted((path / "images").iterdir()) if p.is_file() and p.suffix.lower() in _IMAGES]
    if not images:
        raise DatasetError(f"{path / 'images'}: there is no image in it")
    mask_of = _mask_files(path, images)
    rows = _index(path / "index.csv", {p.name for p in images})
    items = []
    for image in images:
        if image not in mask_of and missing == "skip":
            continue
        if image not in mask_of and missing == "error":
            raise DatasetError(
                f"{image}: there is no masks/{image.stem}.*; add it (all black where there is no mass), or set the option "
                "missing=normal or missing=skip"
            )
        items.append(_item(image, mask_of.get(image), rows.get(image.name, {}), patient_pattern, (masks, int(min_area_px))))
    return items


def _mask_files(path: Path, images: list[Path]) -> dict[Path, Path]:
    by_stem: dict[str, Path] = {}
    for image in images:
        if image.stem in by_stem:
            raise DatasetError(f"{image}: another image has the same stem ({by_stem[image.stem].name}); rename one of them")
        by_stem[image.stem] = image
    found: dict[Path, Path] = {}
    for mask in sorted(p for p in (path / "masks").iterdir() if p.is_file() and not p.name.startswith(".")):
        if mask.stem not in by_stem:
            raise DatasetError(f"{mask}: there is no images/{mask.stem}.*; remove the mask or add its image")
        if by_stem[mask.stem] in found:
            raise DatasetError(f"{mask}: a second mask for {by_stem[mask.stem].name}; put all masses into one mask file")
        found[by_stem[mask.stem]] = mask
    return found


def _index(file: Path, names: set[str]) -> dict[str, dict[str, str]]:
    if not file.is_file():
        return {}
    rows: dict[str, dict[str, str]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            table = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: not a CSV file in UTF-8: {error}") from error
    for line, row in enumerate(table, 2):
        name = PurePosixPath(row.get("file") or row.get("file_name") or "").name
        if not name:
            raise DatasetError(f"{file}: line {line}: expected a column 'file' (or 'file_name') with the image's name")
        if name not in names:
            raise DatasetError(f"{file}: line {line}: there is no images/{name}; remove the line or add the image")
        if name in rows:
            raise DatasetError(f"{file}: line {line}: a second line for {name}; keep one line an image")
        rows[name] = {k: v for k, v in row.items() if k and v}
    return rows


def _item(image: Path, mask_file: Path | None, row: dict[str, str], pattern: str | None, how: tuple[str, int]) -> DatasetItem:
    size = image_size(image)
    image_id = f"images/{image.name}"
    attributes: dict[str, Any] = {k: v for k, v in row.items() if k not in _KNOWN}
    patient = row.get("patient_id")
    if not patient:
        patient, source = patient_of(image_id, pattern, str(image))
        attributes |= source
    masses: tuple[TrueMass, ...] = ()
    if mask_file is not None:
        masses, n_specks = _masses(mask_file, size, *how)
        if n_specks:
            attributes["n_specks"] = n_specks
    return DatasetItem(
        image_id=image_id,
        path=str(image),
        patient_id=patient,
        annotation=Annotation(image_id, size, masses, attributes),
        laterality=laterality_of(row.get("laterality"), str(image)),
        view_position=row["view_position"].upper() if row.get("view_position") else None,
        spacing_mm=spacing_of(row["spacing_mm"].split() if row.get("spacing_mm") else None, str(image)),
        attributes=attributes,
    )


def _masses(file: Path, size: Size, masks: str, min_area_px: int) -> tuple[tuple[TrueMass, ...], int]:
    labels = _labels(file, size, masks)
    masses: list[TrueMass] = []
    n_specks = 0
    for label in np.unique(labels):
        region: Mask = labels == label
        placed = tight(region) if label > 0 else None
        if placed is None:
            continue
        if int(placed[0].sum()) < min_area_px:
            n_specks += 1
            continue
        masses.append(TrueMass(mask_box(*placed), placed[0], placed[1]))
    return tuple(masses), n_specks


def _labels(file: Path, size: Size, masks: str) -> NDArray[np.int32]:
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DatasetError(f"{file}: the mask cannot be decoded; use PNG (or JPEG, which is thresholded at 127)")
    lossy = file.suffix.lower() in (".jpg", ".jpeg")
    if pixels.ndim == 3:
        channels = pixels[..., :3].astype(np.int32)
        if not lossy and (np.ptp(channels, axis=2) > 0).any():
            raise DatasetError(f"{file}: the mask is in colour; expected a grey image")
        pixels = channels[..., 1]
    if pixels.shape != size:
        raise DatasetError(
            f"{file}: the mask has {pixels.shape[0]} × {pixels.shape[1]} pixels (height × width), "
            f"its image {size[0]} × {size[1]}; use the mask that was made for it"
        )
    if masks == "labels":
        if lossy:
            raise DatasetError(f"{file}: a label image cannot be a JPEG, whose values are not exact; use PNG")
        return np.asarray(pixels, dtype=np.int32)
    foreground = pixels > 127 if lossy else pixels > 0
    _, labels = cv2.connectedComponents(foreground.astype(np.uint8), connectivity=8)
    return np.asarray(labels, dtype=np.int32)
