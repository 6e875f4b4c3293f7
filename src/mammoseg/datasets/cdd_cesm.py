"""CDD-CESM's low-energy images with their mass-like regions (Khaled et al. 2022).

Layout: `images/X.jpg`, `masks/X.jpg` (foreground above 127), `index.csv`; images are padded to a square, aspect kept. A mask
covers every marked finding: masses, but also thickened skin, nodes, spread, and small discs drawn round a spot. A region, an
8-connected component of at least 40 pixels, is *mass-like* (checked by eye on all regions) where

- its area is 150 to 20,000 pixels: smaller ones are specks, larger ones whole parts of a breast;
- its thickness, the widest disc inside over the disc of equal area, is at least 0.48: else it is a rim;
- its solidity, area over that of the convex hull, is at least 0.6: else it is a rim or several findings in one outline;
- it is not a disc drawn round a spot: below 1,000 pixels with a solidity of 0.95 or more.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mammoseg.datasets.masks import Mask, tight
from mammoseg.datasets.records import laterality_of
from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.geometry import mask_box
from mammoseg.types import Annotation, DatasetItem, TrueMass

AREA_PX = (150, 20_000)
LEAST_AREA_PX = 40
LEAST_THICKNESS = 0.48
LEAST_SOLIDITY = 0.6
DISC = (1_000, 0.95)


def read(path: Path, images: str = "mass", regions: str = "mass_like") -> list[DatasetItem]:
    """Reads the folder `path` in the order of its `index.csv`.

    images: "mass" takes the images whose findings or tags mention a mass (125 as published), "all" takes all.
    regions: "mass_like" (see the module; images without one are left out, since they are not free of findings) or "all" of
    at least 40 pixels. Each mass has `area_px`, `thickness`, `solidity` and `mass_like` among its attributes, each item
    `findings`, `tags`, `n_regions` (the source's count of regions), `content_box`, the xyxy part of the padded image that is
    mammogram, and `other_regions`, the xyxy boxes of regions that are no rims and yet not mass-like (with "all": none).
    Raises DatasetError naming file and what to do.
    """
    for option, value, known in (("images", images, ("mass", "all")), ("regions", regions, ("mass_like", "all"))):
        if value not in known:
            raise DatasetSpecError(f"option {option}: expected one of {', '.join(known)}, got {value!r}")
    index = path / "index.csv"
    try:
        with index.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise DatasetError(f"{index}: cannot be read; expected index.csv beside images/ and masks/") from error
    missing = {"file", "patient_id", "findings", "tags", "n_regions"} - set(rows[0] if rows else ())
    if missing:
        raise DatasetError(f"{index}: expected the columns {', '.join(sorted(missing))}")
    wanted = [r for r in rows if images == "all" or "mass" in f"{r['findings']} {r['tags']}".lower()]
    items = [_item(path, row, regions) for row in wanted]
    return items if regions == "all" else [item for item in items if item.annotation.masses]


def _item(path: Path, row: dict[str, str], regions: str) -> DatasetItem:
    name = row["file"]
    pixels, mask = _grey(path / "images" / name), _grey(path / "masks" / name) > 127
    if pixels.shape != mask.shape:
        raise DatasetError(f"{path / 'masks' / name}: expected the size of its image {pixels.shape}, got {mask.shape}")
    found = _regions(mask)
    masses = [m for m in found if regions == "all" or m.attributes["mass_like"]]
    image_id = f"images/{name}"
    attributes: dict[str, Any] = {k: row[k] for k in ("findings", "tags", "birads", "pathology") if row.get(k)}
    attributes |= {"n_regions": int(row["n_regions"]), "content_box": content_box(pixels)}
    others = [m for m in found if not m.attributes["mass_like"] and m.attributes["thickness"] >= LEAST_THICKNESS]
    attributes["other_regions"] = [] if regions == "all" else [m.box for m in others]
    return DatasetItem(
        image_id=image_id,
        path=str(path / "images" / name),
        patient_id=row["patient_id"],
        annotation=Annotation(image_id, (pixels.shape[0], pixels.shape[1]), tuple(masses), attributes),
        laterality=laterality_of(row.get("laterality"), name),
        view_position=row.get("view_position") or None,
        attributes=attributes,
    )


def _grey(file: Path) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise DatasetError(f"{file}: no readable image; index.csv names it, so restore it or remove its line")
    return np.asarray(pixels, dtype=np.uint8)


def content_box(pixels: NDArray[np.uint8], dark: int = 3) -> tuple[float, float, float, float]:
    """The part of an image padded evenly on both sides (of its rows, or of its columns) that is no padding, `xyxy`.

    Padding is what is nowhere brighter than `dark` (JPEG leaves it not quite black), equally far in from both borders.
    """
    bounds: list[tuple[float, float]] = []
    for axis in (0, 1):
        bright = np.flatnonzero(pixels.max(axis=axis) > dark)
        length = pixels.shape[1 - axis]
        pad = int(min(bright[0], length - 1 - bright[-1])) if len(bright) else 0
        bounds.append((float(pad), float(length - pad)))
    return bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1]


def _regions(mask: Mask) -> list[TrueMass]:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    masses = []
    for label in range(1, count + 1):
        placed = tight(labels == label)
        if placed is None or int(placed[0].sum()) < LEAST_AREA_PX:
            continue
        attributes = describe(placed[0])
        masses.append(TrueMass(mask_box(*placed), placed[0], placed[1], attributes))
    return masses


def describe(region: Mask) -> dict[str, Any]:
    """`area_px`, `thickness`, `solidity` (both in 0…1, holes filled) of one connected region, and whether it is `mass_like`."""
    filled = np.pad(ndimage.binary_fill_holes(region), 1).astype(np.uint8)
    area, full = int(region.sum()), int(filled.sum())
    thickness = 2 * float(cv2.distanceTransform(filled, cv2.DIST_L2, 5).max()) / float(np.sqrt(4 * full / np.pi))
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(max(contours, key=len))
    # The hull joins pixel centres; half its length more is the area in pixel edges.
    solidity = full / max(1.0, cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2)
    disc = area < DISC[0] and solidity >= DISC[1]
    fits = AREA_PX[0] <= area <= AREA_PX[1] and thickness >= LEAST_THICKNESS and solidity >= LEAST_SOLIDITY
    return {
        "area_px": area,
        "thickness": round(min(thickness, 1.0), 4),
        "solidity": round(min(solidity, 1.0), 4),
        "mass_like": bool(fits and not disc),
    }
