"""Anybody's detections and masks as `Findings`, so that they are measured as our own are: COCO results, or a CSV.

COCO results: a JSON list of {"image_id", "bbox": [left, top, width, height], "score"} with "segmentation" (run lengths or
polygons) where there are masks; or a COCO file with such annotations. CSV: columns image, score, x1, y1, x2, y2 and, where
there are masks, mask: a picture of the image's size beside the CSV, anything but black being the mass. A box may be left
empty where a mask gives it; a line with only an image says that nothing was found there.

Images are named by `image_id` of the truth, by path, file name or stem; in COCO results also by the number they have in the
truth's own COCO file. Images of the truth that are not named count as images in which nothing was found.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from mammoseg.bundle import hash_file
from mammoseg.datasets import parse_spec
from mammoseg.datasets.masks import Placed, decode_rle, rasterise, tight
from mammoseg.errors import EvaluationError
from mammoseg.evaluation.inputs import Pair, Pairs
from mammoseg.evaluation.overlap import inscribed_ellipse
from mammoseg.geometry import box_area, clip_boxes, mask_box, xywh_to_xyxy
from mammoseg.types import DatasetItem, Detections, Findings, ImageInfo, Lesion, Size

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class _Record:
    """One detection as the file has it. where: for messages."""

    image: Any
    score: float | None
    box: Box | None
    mask: Any
    where: str


def read_results(
    file: Path, truth: Sequence[DatasetItem], score_min: float = 0.5, ids: Mapping[Any, str] | None = None
) -> Pairs:
    """The detections in `file` paired with the truth.

    score_min: from which score on a detection counts as a lesion shown (the operating point); all are candidates. ids: the
    `image_id` of the truth by COCO's numbers. Where no detection has a mask, the truth's masks are left out as well: outlines
    are not measured. Raises EvaluationError naming the record and what to do.
    """
    text = _text(file)
    records = _from_coco(text, file) if text.lstrip().startswith(("[", "{")) else _from_csv(text, file)
    index = _Index(truth, ids or {})
    found: dict[str, list[_Record]] = defaultdict(list)
    for record in records:
        found[index.find(record)].append(record)
    outlined = any(r.mask is not None for r in records)
    bundle = {"bundle": {"name": file.name, "sha256": hash_file(file)}}
    pairs = []
    for item in truth:
        pairs.append(Pair(item if outlined else _without_masks(item), _findings(item, found[item.image_id], score_min, bundle)))
    return Pairs(tuple(pairs))


def coco_ids(truth: str | Path) -> dict[Any, str]:
    """The `image_id` that the reader gives each image, by its number in the COCO file of `truth`; none for other kinds."""
    kind, path, _ = parse_spec(truth)
    if kind not in ("coco", "phantom"):
        return {}
    file = path / "annotations.json" if path.is_dir() else path
    return {i["id"]: PurePosixPath(str(i["file_name"])).as_posix() for i in json.loads(file.read_bytes())["images"]}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{file.name}: expected COCO results or CSV, got binary data") from error


def _from_coco(text: str, file: Path) -> list[_Record]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{file.name}: not valid JSON: {error}") from error
    names: dict[Any, Any] = {}
    if isinstance(content, dict):
        names = {i.get("id"): i.get("file_name") for i in content.get("images", []) if isinstance(i, dict)}
        content = content.get("annotations")
    if not isinstance(content, list) or not all(isinstance(r, dict) for r in content):
        raise EvaluationError(f"{file.name}: expected a list of COCO results, or an object with annotations")
    out = []
    for number, record in enumerate(content):
        where = f"{file.name}, result {number}"
        if "image_id" not in record:
            raise EvaluationError(f"{where}: it has no image_id")
        box = None
        if record.get("bbox") is not None:
            x1, y1, x2, y2 = (float(v) for v in xywh_to_xyxy(_numbers(record["bbox"], 4, where))[0])
            box = (x1, y1, x2, y2)
        image = names.get(record["image_id"], record["image_id"])
        score = _numbers([record.get("score", 1.0)], 1, where)[0]
        out.append(_Record(image, score, box, record.get("segmentation") or None, where))
    return out


def _from_csv(text: str, file: Path) -> list[_Record]:
    reader = csv.DictReader(text.splitlines())
    head = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = head
    if "image" not in head or "score" not in head or not ("mask" in head or {"x1", "y1", "x2", "y2"} <= set(head)):
        raise EvaluationError(f"{file.name}: expected the columns image, score, x1, y1, x2, y2 and perhaps mask, got {head}")
    out = []
    for number, row in enumerate(reader, start=2):
        where = f"{file.name}, line {number}"
        values = {k: (v or "").strip() for k, v in row.items() if isinstance(k, str) and not isinstance(v, list)}
        corners = [values.get(c, "") for c in ("x1", "y1", "x2", "y2")]
        mask = file.parent / values["mask"] if values.get("mask") else None
        if not any(corners) and mask is None and not values["score"]:
            out.append(_Record(values["image"], None, None, None, where))
            continue
        box: Box | None = None
        if any(corners):
            x1, y1, x2, y2 = _numbers(corners, 4, where)
            box = (x1, y1, x2, y2)
        out.append(_Record(values["image"], _numbers([values["score"]], 1, where)[0], box, mask, where))
    return out


def _numbers(values: Any, count: int, where: str) -> list[float]:
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise EvaluationError(f"{where}: expected {count} number{'s' * (count > 1)}, got {values!r}")
    return numbers


class _Index:
    """Finds the image of the truth that a record names."""

    def __init__(self, truth: Sequence[DatasetItem], ids: Mapping[Any, str]) -> None:
        self.ids = {str(k): v for k, v in ids.items()}
        self.known = {item.image_id for item in truth}
        self.by: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(3)]
        for item in truth:
            path = PurePosixPath(Path(item.path).as_posix())
            for level, keys in zip(self.by, ({str(path)}, {path.name}, {path.stem, PurePosixPath(item.image_id).stem})):
                for key in keys:
                    level[key].append(item.image_id)

    def find(self, record: _Record) -> str:
        """Its `image_id`; raises EvaluationError where it names none or several."""
        name = str(record.image)
        named = name if isinstance(record.image, str) and name in self.known else self.ids.get(name)
        if named in self.known:
            return str(named)
        for level, key in zip(self.by, (name, PurePosixPath(name).name, PurePosixPath(name).stem)):
            fits = level.get(key, [])
            if len(fits) == 1:
                return fits[0]
            if fits:
                raise EvaluationError(
                    f"{record.where}: {name!r} fits {len(fits)} images of the truth; name the image by its path"
                )
        raise EvaluationError(
            f"{record.where}: {name!r} is no image of the truth, which has names such as {next(iter(self.known))!r}"
        )


def _findings(item: DatasetItem, records: Sequence[_Record], score_min: float, provenance: dict[str, Any]) -> Findings:
    size = item.annotation.size
    boxes, scores, masks = [], [], []
    for record in records:
        if record.score is None:
            continue
        placed = _mask(record, size) if record.mask is not None else None
        box = record.box or (mask_box(*placed) if placed is not None else None)
        if box is None:
            raise EvaluationError(f"{record.where}: it has neither a box nor a mask with pixels")
        cut = clip_boxes([box], size)[0]
        if not box_area([cut])[0] > 0:
            raise EvaluationError(
                f"{record.where}: the box {box} lies outside its image of {size[1]} × {size[0]} pixels (w × h)"
            )
        if not 0.0 <= record.score <= 1.0:
            raise EvaluationError(f"{record.where}: expected a score from 0 to 1, got {record.score}; scale the scores")
        boxes.append(cut)
        scores.append(record.score)
        masks.append(placed)
    candidates = Detections(np.array(boxes).reshape(-1, 4), np.array(scores, dtype=np.float64), size)
    lesions: list[Lesion] = []
    for k in np.argsort(-candidates.scores, kind="stable"):
        if candidates.scores[k] < score_min:
            break
        x1, y1, x2, y2 = (float(v) for v in candidates.boxes[k])
        own = masks[k]
        mask, origin = own if own is not None else _within(inscribed_ellipse((x1, y1, x2, y2)), size)
        lesions.append(
            Lesion(
                id=len(lesions) + 1,
                box=(x1, y1, x2, y2),
                score=float(candidates.scores[k]),
                mask=mask,
                origin_px=origin,
                contour_xy=_outline((mask, origin)),
                outline="segmented" if own is not None else "ellipse",
            )
        )
    info = ImageInfo(item.image_id, size[0], size[1], item.spacing_mm, None, item.laterality, item.view_position)
    return Findings(info, "processed", None, tuple(lesions), candidates.best_first(), provenance)


def _mask(record: _Record, size: Size) -> Placed | None:
    if isinstance(record.mask, Path):
        pixels = cv2.imread(str(record.mask), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise EvaluationError(f"{record.where}: the mask {record.mask.name} is no picture that can be read")
        if pixels.shape[:2] != size:
            raise EvaluationError(f"{record.where}: the mask has {pixels.shape[:2]} pixels (H, W), its image {size}")
        return tight(pixels > 0 if pixels.ndim == 2 else (pixels[..., :3] > 0).any(axis=2))
    try:
        if isinstance(record.mask, dict):
            if list(record.mask["size"]) != list(size):
                raise ValueError(f"its size {record.mask['size']} is not the image's {list(size)} (height, width)")
            return decode_rle(record.mask["counts"], size)
        return rasterise(record.mask, size)
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{record.where}: its segmentation cannot be read: {error}") from error


def _within(placed: Placed, size: Size) -> Placed:
    """A placed mask cut to the image."""
    mask, (row, column) = placed
    cut = mask[max(0, -row) : size[0] - row, max(0, -column) : size[1] - column]
    found = tight(cut, (max(0, row), max(0, column)))
    return found if found is not None else (np.ones((1, 1), dtype=np.bool_), (max(0, row), max(0, column)))


def _outline(placed: Placed) -> Any:
    """For drawing: the largest outer outline through the centres of its border pixels, f64[K, 2]."""
    lines, _ = cv2.findContours(placed[0].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    longest = max(lines, key=len)
    corner = np.array([placed[1][1] + 0.5, placed[1][0] + 0.5])
    return longest.reshape(-1, 2) + corner


def _without_masks(item: DatasetItem) -> DatasetItem:
    masses = tuple(dataclasses.replace(m, mask=None) for m in item.annotation.masses)
    return dataclasses.replace(item, annotation=dataclasses.replace(item.annotation, masses=masses))
