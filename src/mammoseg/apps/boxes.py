"""Boxes given by the user, to be delineated in place of detections."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.errors import DecodeError, UsageError
from mammoseg.geometry import box_area, clip_boxes
from mammoseg.types import Detections, Size

COLUMNS = ("image", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class GivenBoxes:
    """by_image: for each image name in the file, f64[N, 5] of x1, y1, x2, y2, score.

    sha256: of the file. path: the file, for messages.
    """

    by_image: dict[str, NDArray[np.float64]]
    sha256: str
    path: Path = Path("boxes file")

    def assign(self, sources: Sequence[str]) -> tuple[list[NDArray[np.float64] | None], list[str]]:
        """The boxes of each source, None where it has none; and the names that fit no source.

        Matched by relative path, else by file name, else by stem. Raises `UsageError` where a name fits several images, or no
        name fits any.
        """
        out: list[list[NDArray[np.float64]]] = [[] for _ in sources]
        keys = [_keys(s) for s in sources]
        levels: list[dict[str, list[int]]] = [defaultdict(list) for _ in range(3)]
        for i, key in enumerate(keys):
            for level, part in zip(levels, key, strict=True):
                level[part].append(i)
        strangers = []
        for name, boxes in self.by_image.items():
            fits = next((level[part] for level, part in zip(levels, _keys(name), strict=True) if part in level), [])
            if len(fits) > 1:
                raise UsageError(f"{self.path}: {name!r} fits {len(fits)} images: give its relative path")
            if fits:
                out[fits[0]].append(boxes)
            else:
                strangers.append(name)
        if not any(out):
            named = (
                f"no image named there ({strangers[0]!r}, ...) is among those to segment" if strangers else "it has no boxes"
            )
            raise UsageError(f"{self.path}: {named}")
        return [np.concatenate(b) if b else None for b in out], strangers


def read_boxes(path: Path) -> GivenBoxes:
    """Reads COCO (`annotations` with `bbox`, `score` if there is one) or CSV (image,x1,y1,x2,y2 and perhaps score).

    Coordinates are pixel edges of the stored image, half-open. Raises `UsageError` naming the line or record that is wrong.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected a COCO or CSV file with boxes, got binary data") from error
    rows = _from_coco(text, path) if text.lstrip().startswith(("{", "[")) else _from_csv(text, path)
    grouped: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for name, values, where in rows:
        x1, y1, x2, y2, score = values
        if not np.isfinite(values).all() or not (x2 > x1 and y2 > y1) or not 0 <= score <= 1:
            raise UsageError(f"{where}: expected x1 < x2, y1 < y2 and a score from 0 to 1, got {values}")
        grouped[name].append(values)
    return GivenBoxes({k: np.array(v, dtype=np.float64) for k, v in grouped.items()}, hashlib.sha256(raw).hexdigest(), path)


def to_detections(boxes: NDArray[np.float64], size: Size) -> Detections:
    """Given boxes f64[N, 5] as detections in an image of `size` (H, W), cut to the image.

    Raises `DecodeError` where one lies outside: it was drawn on another image or in another frame, and to leave it out would
    look as if there were no mass.
    """
    cut = clip_boxes(boxes[:, :4], size)
    outside = int((box_area(cut) <= 0).sum())
    if outside:
        raise DecodeError(
            f"expected boxes inside the image of {size[1]} x {size[0]} pixels, got {outside} of {len(boxes)} outside; "
            "give boxes in the stored image's pixels"
        )
    return Detections(cut, boxes[:, 4], size, "given").best_first()


Row = tuple[str, tuple[float, float, float, float, float], str]


def _from_csv(text: str, path: Path) -> list[Row]:
    try:
        return _rows_of(csv.DictReader(text.splitlines()), path)
    except csv.Error as error:
        raise UsageError(f"{path}: expected comma-separated values, got what is none ({error})") from error


def _rows_of(reader: csv.DictReader[str], path: Path) -> list[Row]:
    missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(f"{path}: expected the columns {','.join(COLUMNS)}[,score]; missing: {', '.join(missing)}")
    rows: list[Row] = []
    for number, row in enumerate(reader, start=2):
        where = f"{path}, line {number}"
        if row.get("image") is None or None in row:
            raise UsageError(f"{where}: expected as many values as there are columns ({len(reader.fieldnames or ())})")
        try:
            x1, y1, x2, y2 = (float(row[c]) for c in COLUMNS[1:])
            rows.append((row["image"], (x1, y1, x2, y2, float(row.get("score") or 1.0)), where))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: expected numbers, got {','.join(str(v) for v in row.values())}") from error
    return rows


def _from_coco(text: str, path: Path) -> list[Row]:
    try:
        data: dict[str, Any] = json.loads(text)
        images = {i["id"]: str(i["file_name"]) for i in data["images"]}
        rows = [_from_annotation(a, images, f"{path}, annotation {n}") for n, a in enumerate(data["annotations"])]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{path}: expected COCO with images and annotations with bbox ({type(error).__name__}: {error})"
        ) from error
    return rows


def _from_annotation(annotation: Any, images: dict[Any, str], where: str) -> Row:
    box, score = annotation["bbox"], annotation.get("score")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or not (score is None or _is_number(score)):
        got = json.dumps([box, score])
        raise UsageError(f"{where}: expected a bbox [x, y, width, height] and perhaps a score, as numbers, got {got:.80}")
    if annotation["image_id"] not in images:
        raise UsageError(f"{where}: expected the id of one of the file's images, got image_id {annotation['image_id']!r:.40}")
    x, y, w, h = (float(v) for v in box)
    return images[annotation["image_id"]], (x, y, x + w, y + h, 1.0 if score is None else float(score)), where


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _keys(name: str) -> tuple[str, str, str]:
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path), path.name, path.stem
