"""COCO annotations: boxes and/or masks, polygons or run lengths; read and written.

Beside COCO's own keys an image record may carry `patient_id`, `laterality` ("L"/"R"), `view_position`, `spacing_mm` ([row,
column]), and any other attribute (`breast_density`, `pathology`, ...), which goes into `DatasetItem.attributes`.
Where `patient_id` is missing it is taken from the file name by `patient_pattern`; without that every image counts as its own
patient, which `datasets check` reports, since the views of one breast may then end on both sides of a split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mammoseg.datasets.headers import image_size
from mammoseg.datasets.masks import Placed, decode_rle, encode_rle, rasterise
from mammoseg.datasets.records import laterality_of, patient_of, spacing_of
from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.geometry import mask_box, xywh_to_xyxy, xyxy_to_xywh
from mammoseg.io.atomic import write_atomic
from mammoseg.types import Annotation, DatasetItem, TrueMass

_IMAGE_KEYS = {"id", "file_name", "width", "height", "patient_id", "laterality", "view_position", "spacing_mm"}
_ANNOTATION_KEYS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
_OUTSIDE_PX = 1.0  # boxes may leave the image by a rounding error; they are then cut to it


def read(path: Path, category: str = "mass", patient_pattern: str | None = None) -> list[DatasetItem]:
    """Reads a COCO file, or a folder that holds one as `annotations.json`.

    category: the name of the category that means a mass (case ignored); a file with only one category takes that one.
    patient_pattern: regular expression searched in `file_name` for images without `patient_id`; its first group is the patient.
    Boxes become `xyxy`; one that leaves the image by more than a pixel is an error. Regions marked `iscrowd` are no single mass
    and are left out (counted in `attributes["n_crowd"]`). Sizes are compared with the files' headers.
    Raises DatasetError naming the file, the record and what to do.
    """
    file = path / "annotations.json" if path.is_dir() else path
    content = _load(file)
    wanted, known = _category_id(content, category, file), {_id(c, "id", "category", file) for c in content["categories"]}
    by_image: dict[Any, list[dict[str, Any]]] = {}
    ids = {_id(record, "id", "image", file) for record in content["images"]}
    for record in content["annotations"]:
        image_id = _id(record, "image_id", "annotation", file)
        if image_id not in ids:
            raise DatasetError(
                f"{file}: annotation {record.get('id')}: image_id {image_id!r} is not among the images; "
                "remove the annotation or add its image"
            )
        of = record.get("category_id", wanted)
        if known and of not in known:
            raise DatasetError(
                f"{file}: annotation {record.get('id')}: category_id {of!r} is not among the categories; "
                "correct it or add its category"
            )
        if of == wanted:
            by_image.setdefault(image_id, []).append(record)
    if len(ids) != len(content["images"]):
        raise DatasetError(f"{file}: two images have the same id; give each image its own")
    items = [_item(record, by_image.get(record["id"], []), file, patient_pattern) for record in content["images"]]
    names = [item.image_id for item in items]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{file}: file_name {twice!r} stands in two image records; keep one record an image")
    return items


def write(path: Path, items: Iterable[DatasetItem], info: Mapping[str, Any] | None = None) -> None:
    """Writes `items` as COCO with the one category `mass`, masks as compressed run lengths; atomic, deterministic bytes.

    `file_name` is the item's path relative to the folder of `path`, or its `image_id` where it lies elsewhere.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        height, width = item.annotation.size
        image = {"id": number, "file_name": _relative(item, path.parent), "width": width, "height": height}
        known = {"patient_id": item.patient_id, "laterality": item.laterality, "view_position": item.view_position}
        image |= {key: value for key, value in known.items() if value is not None}
        if item.spacing_mm is not None:
            image["spacing_mm"] = list(item.spacing_mm)
        images.append(image | {k: v for k, v in item.attributes.items() if k not in _IMAGE_KEYS})
        for mass in item.annotation.masses:
            annotations.append(_annotation_record(len(annotations) + 1, number, mass, (height, width)))
    content = {
        "info": dict(info or {}),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "mass"}],
    }
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{file}: no such file; a COCO dataset is a JSON file beside its images") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not valid JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DatasetError(f"{file}: not COCO: expected an object with the lists images, annotations and categories")
    for name in lists:
        records = content.setdefault(name, [])
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise DatasetError(f"{file}: not COCO: expected {name!r} to be a list of objects")
    return content


def _category_id(content: dict[str, Any], category: str, file: Path) -> Any:
    categories = content["categories"]
    for record in categories:
        if str(record.get("name", "")).lower() == category.lower():
            return _get(record, "id", "category", file)
    if len(categories) == 1:
        return _get(categories[0], "id", "category", file)
    if not categories:
        used = {_id(record, "category_id", "annotation", file) for record in content["annotations"] if "category_id" in record}
        if len(used) > 1:
            raise DatasetError(f"{file}: it names no categories, and its annotations have several category_id; name them")
        return next(iter(used), None)
    names = ", ".join(str(record.get("name")) for record in categories)
    raise DatasetSpecError(
        f"{file}: no category {category!r}; this file has {names}; name one of them with the option category"
    )


def _item(record: dict[str, Any], annotations: list[dict[str, Any]], file: Path, pattern: str | None) -> DatasetItem:
    name = _get(record, "file_name", "image", file)
    if not isinstance(name, str):
        raise DatasetError(f"{file}: image {record['id']}: expected file_name to be a relative path, got {name!r:.80}")
    where = f"{file}: image {record['id']} ({name})"
    image_path = file.parent / name
    if not image_path.is_file():
        raise DatasetError(f"{where}: there is no file {image_path}; put it there or correct file_name")
    size = image_size(image_path)
    stated = (record.get("height"), record.get("width"))
    if stated != (None, None) and stated != size:
        raise DatasetError(
            f"{where}: the file has {size[0]} × {size[1]} pixels (height × width), the record says {stated[0]} × {stated[1]}; "
            "boxes would not fit: correct the record or use the image it was made for"
        )
    attributes = {k: v for k, v in record.items() if k not in _IMAGE_KEYS}
    patient = record.get("patient_id")
    if patient is None or patient == "":
        patient, how = patient_of(str(name), pattern, where)
        attributes |= how
    crowd = [a for a in annotations if a.get("iscrowd")]
    if crowd:
        attributes["n_crowd"] = len(crowd)
    masses = tuple(_mass(a, size, f"{where}: annotation {a.get('id')}") for a in annotations if not a.get("iscrowd"))
    image_id = Path(str(name)).as_posix()
    return DatasetItem(
        image_id=image_id,
        path=str(image_path),
        patient_id=str(patient),
        annotation=Annotation(image_id, size, masses, attributes),
        laterality=laterality_of(record.get("laterality"), where),
        view_position=str(record["view_position"]).upper() if record.get("view_position") else None,
        spacing_mm=spacing_of(record.get("spacing_mm"), where),
        attributes=attributes,
    )


def _mass(record: dict[str, Any], size: tuple[int, int], where: str) -> TrueMass:
    placed = _placed(record.get("segmentation"), size, where)
    box = record.get("bbox")
    if not box:
        if placed is None:
            raise DatasetError(f"{where}: it has neither bbox nor segmentation; remove it or add one")
        corners = mask_box(*placed)
    else:
        corners = _box(box, size, where)
    attributes = {k: v for k, v in record.items() if k not in _ANNOTATION_KEYS}
    if placed is None:
        return TrueMass(corners, attributes=attributes)
    return TrueMass(corners, placed[0], placed[1], attributes)


def _box(box: Any, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    try:
        left, top, wide, high = (float(v) for v in box)
        x1, y1, x2, y2 = (float(v) for v in xywh_to_xyxy([left, top, wide, high])[0])
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: expected bbox [left, top, width, height], got {box!r}") from error
    if not (x2 > x1 and y2 > y1):
        raise DatasetError(f"{where}: bbox {box!r} has no area; remove the annotation or correct its width and height")
    height, width = size
    if min(x1, y1) < -_OUTSIDE_PX or x2 > width + _OUTSIDE_PX or y2 > height + _OUTSIDE_PX:
        raise DatasetError(
            f"{where}: bbox {box!r} leaves the image of {width} × {height} pixels (width × height); "
            "COCO boxes are [left, top, width, height]: correct it or cut it to the image"
        )
    return max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)


def _placed(segmentation: Any, size: tuple[int, int], where: str) -> Placed | None:
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != list(size):
                raise ValueError(f"its size {segmentation['size']} is not the image's {list(size)} (height, width)")
            placed = decode_rle(segmentation["counts"], size)
        else:
            placed = rasterise(segmentation, size)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: its segmentation cannot be read: {error}") from error
    if placed is None:
        raise DatasetError(f"{where}: its segmentation covers no pixel of the image; remove the annotation or correct it")
    return placed


def _get(record: dict[str, Any], key: str, what: str, file: Path) -> Any:
    if key not in record:
        raise DatasetError(f"{file}: an {what} record lacks {key!r}: {str(record)[:120]}")
    return record[key]


def _id(record: dict[str, Any], key: str, what: str, file: Path) -> int | str:
    value = _get(record, key, what, file)
    if not isinstance(value, (int, str)):
        raise DatasetError(f"{file}: an {what} record has {key} {value!r:.80}: expected a number or a name")
    return value


def _relative(item: DatasetItem, folder: Path) -> str:
    try:
        return Path(item.path).relative_to(folder).as_posix()
    except ValueError:
        return item.image_id


def _annotation_record(number: int, image: int, mass: TrueMass, size: tuple[int, int]) -> dict[str, Any]:
    x, y, w, h = (float(v) for v in xyxy_to_xywh(mass.box)[0])
    area = w * h if mass.mask is None else int(mass.mask.sum())
    record = {"id": number, "image_id": image, "category_id": 1, "bbox": [x, y, w, h], "area": area, "iscrowd": 0}
    if mass.mask is not None:
        record["segmentation"] = encode_rle(mass.mask, mass.origin_px, size)
    return record | {k: v for k, v in mass.attributes.items() if k not in _ANNOTATION_KEYS}
