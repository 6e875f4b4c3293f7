"""The data sets in the study's form: every image at one size as 16-bit PNG, with its truth as COCO beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammoseg.config import to_dict
from mammoseg.datasets import coco, parse_spec, read_dataset
from mammoseg.datasets.images import load_item
from mammoseg.datasets.masks import tight
from mammoseg.errors import DatasetError
from mammoseg.experiments.study.config import DataConfig
from mammoseg.geometry import Transform, clip_boxes, mask_box
from mammoseg.io.atomic import write_atomic
from mammoseg.types import Annotation, DatasetItem, Size, TrueMass


def spec_of(given: str, role: str, config: DataConfig) -> str:
    """The data set's spec as the study reads it: INbreast with its images without a mass, CBIS-DDSM's part as configured."""
    kind, _, options = parse_spec(given)
    wanted = {}
    if kind == "inbreast" and role == "inbreast":
        wanted = {"images": "all"}
    elif kind == "cbis_ddsm" and role == "cbis_ddsm":
        wanted = {"split": config.official_split}
    new = {k: v for k, v in wanted.items() if k not in options}
    if not new:
        return given
    joined = "&".join(f"{k}={v}" for k, v in new.items())
    return f"{given}{'&' if options else '?'}{joined}" if ":" in given.split("?")[0] else f"{kind}:{given}?{joined}"


def fingerprint(items: Sequence[DatasetItem]) -> list[Any]:
    """What tells whether a data set is still the same, without reading its images: names, patients, sizes, masses."""
    return [
        [i.image_id, i.patient_id, Path(i.path).stat().st_size, [[*m.box, None if m.mask is None else int(m.mask.sum())]
         for m in i.annotation.masses]]
        for i in items
    ]  # fmt: skip


def prepare(given: str, role: str, out: Path, config: DataConfig) -> list[DatasetItem]:
    """Writes `out`/annotations.json and `out`/images/NNNN.png; a picture that is there already is not drawn again.

    Items keep their patients, views, spacing (of the new pixels) and attributes; `source_id` is the `image_id` they had.
    Raises DatasetError or ImageError naming the image that cannot be used.
    """
    items = []
    for number, item in enumerate(read_dataset(spec_of(given, role, config)), start=1):
        items.append(_prepared(item, out / "images" / f"{number:04d}.png", config))
    if not items:
        raise DatasetError(f"{given}: no image in it")
    coco.write(out / "annotations.json", items, {"description": f"prepared for a study from {role}", **to_dict(config)})
    return items


def read_prepared(out: Path) -> list[DatasetItem]:
    """What `prepare` wrote."""
    return coco.read(out / "annotations.json")


def _prepared(item: DatasetItem, file: Path, config: DataConfig) -> DatasetItem:
    box = tuple(float(v) for v in item.attributes.get("content_box", (0, 0, item.annotation.size[1], item.annotation.size[0])))
    height, width = box[3] - box[1], box[2] - box[0]
    size: Size = config.size
    if config.aspect == "keep":
        scale = min(1.0, config.size[0] / height, config.size[1] / width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
    transform = Transform.crop_resize(box, size)
    spacing = item.spacing_mm
    if not file.is_file():
        mammogram = load_item(item)
        if mammogram.size != item.annotation.size:
            said = item.annotation.size
            raise DatasetError(f"{item.image_id}: the image is {mammogram.size} (H, W), its annotation says {said}")
        pixels = np.round(transform.image(mammogram.pixels).clip(0, 1) * 65535).astype(np.uint16)
        write_atomic(file, cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    masses = tuple(m for m in (_moved(mass, transform) for mass in item.annotation.masses) if m is not None)
    attributes = {k: v for k, v in item.attributes.items() if k not in ("content_box", "other_regions")}
    attributes["source_id"] = item.image_id
    if item.attributes.get("other_regions"):
        attributes["other_regions"] = clip_boxes(transform.boxes(item.attributes["other_regions"]), size).tolist()
    name = f"images/{file.name}"
    return replace(
        item,
        image_id=name,
        path=str(file),
        annotation=Annotation(name, size, masses, attributes),
        spacing_mm=None if spacing is None else (spacing[0] * height / size[0], spacing[1] * width / size[1]),
        attributes=attributes,
    )


def _moved(mass: TrueMass, to: Transform) -> TrueMass | None:
    """A mass in the prepared image; None where nothing of it is inside."""
    if mass.mask is None:
        x1, y1, x2, y2 = (float(v) for v in clip_boxes(to.boxes([mass.box]), to.size)[0])
        return TrueMass((x1, y1, x2, y2), attributes=mass.attributes) if x2 - x1 >= 1 and y2 - y1 >= 1 else None
    row, column = mass.origin_px
    height, width = mass.mask.shape
    x1, y1, x2, y2 = clip_boxes(to.boxes([[column, row, column + width, row + height]]), to.size)[0]
    left, top, right, bottom = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
    if right <= left or bottom <= top:
        return None
    window = Transform(to.sx, to.sy, to.tx + column * to.sx - left, to.ty + row * to.sy - top, (bottom - top, right - left))
    placed = tight(window.mask(mass.mask), (top, left))
    if placed is None:
        return None
    return TrueMass(mask_box(*placed), placed[0], placed[1], mass.attributes)
