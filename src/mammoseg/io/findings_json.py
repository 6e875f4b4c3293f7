"""`Findings` to and from JSON: schema 1.0, validated on write, the same bytes for the same findings.

Numbers are rounded before writing: boxes to 1e-3 px, scores to 1e-6, contours to 1e-2 px, sizes to 1e-4 mm; a lesion and its
candidate so keep the same box and the same score.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from mammoseg.errors import DatasetError
from mammoseg.geometry import mask_box
from mammoseg.io.atomic import write_atomic
from mammoseg.types import BoolMask, Detections, Findings, ImageInfo, Lesion

__all__ = [
    "findings_from_json",
    "findings_to_bytes",
    "findings_to_json",
    "read_findings",
    "schema",
    "validate",
    "write_atomic",
    "write_findings",
]

SCHEMA_VERSION = "1.0"
_BOX, _SCORE, _CONTOUR, _MM, _SPACING = 3, 6, 2, 4, 9


def schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of `findings.json`."""
    text = resources.files("mammoseg.io").joinpath("findings.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _validator() -> Any:
    return Draft202012Validator(schema())


def findings_to_json(f: Findings) -> dict[str, Any]:
    """The findings as plain JSON values, rounded, keys in a fixed order; not validated (see `write_findings`)."""
    image = f.image
    candidates = f.candidates if f.candidates is not None else Detections.empty((0, 0))
    return {
        "schema_version": SCHEMA_VERSION,
        "image": {
            "source": image.source,
            "height": image.height,
            "width": image.width,
            "spacing_mm": None if image.spacing_mm is None else [_round(s, _SPACING) for s in image.spacing_mm],
            "spacing_source": image.spacing_source,
            "laterality": image.laterality,
            "view_position": image.view_position,
            "file_sha256": image.file_sha256,
            "seen_in_training": image.seen_in_training,
        },
        "status": f.status,
        "reason": f.reason,
        "lesions": [_lesion_to_json(lesion) for lesion in f.lesions],
        "candidates": [
            {"box_xyxy": [_round(v, _BOX) for v in box], "score": _round(score, _SCORE)}
            for box, score in zip(candidates.boxes.tolist(), candidates.scores.tolist(), strict=True)
        ],
        "provenance": f.provenance,
    }


def _lesion_to_json(lesion: Lesion) -> dict[str, Any]:
    return {
        "id": lesion.id,
        "score": _round(lesion.score, _SCORE),
        "box_xyxy": [_round(v, _BOX) for v in lesion.box],
        "contour_xy": [[_round(x, _CONTOUR), _round(y, _CONTOUR)] for x, y in lesion.contour_xy.tolist()],
        "area_px": lesion.area_px,
        "area_mm2": _optional(lesion.area_mm2),
        "long_axis_mm": _optional(lesion.long_axis_mm),
        "short_axis_mm": _optional(lesion.short_axis_mm),
    }


def _round(value: float, digits: int) -> float:
    return round(float(value), digits) + 0.0  # no negative zero


def _optional(value: float | None) -> float | None:
    return None if value is None else _round(value, _MM)


def validate(document: dict[str, Any]) -> None:
    """Raises `DatasetError` where `document` does not follow the schema, with the place and the rule."""
    for error in _validator().iter_errors(_with_short_contours(document)):
        place = "/".join(str(part) for part in error.absolute_path) or "the top level"
        raise DatasetError(f"findings do not follow schema {SCHEMA_VERSION} at {place}: {error.message[:200]}")


def _with_short_contours(document: dict[str, Any]) -> dict[str, Any]:
    """The document with contours that are plainly well-formed cut to one point: the validator is slow on long lists."""
    lesions = document.get("lesions") if isinstance(document, dict) else None
    if not isinstance(lesions, list):
        return document
    short = [
        lesion | {"contour_xy": lesion["contour_xy"][:1]} if isinstance(lesion, dict) and _plain_contour(lesion) else lesion
        for lesion in lesions
    ]
    return document | {"lesions": short}


def _plain_contour(lesion: dict[str, Any]) -> bool:
    points = lesion.get("contour_xy")
    return isinstance(points, list) and all(
        type(point) is list and len(point) == 2 and type(point[0]) in (int, float) and type(point[1]) in (int, float)
        for point in points
    )


def findings_to_bytes(f: Findings) -> bytes:
    """The bytes of `findings.json`: validated, UTF-8, one lesion and one candidate a line, the same for the same findings."""
    document = findings_to_json(f)
    try:
        text = _format(document)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"findings hold a value that JSON cannot: {error}") from error
    validate(document)
    return text.encode("utf-8")


def _format(document: dict[str, Any]) -> str:
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            items = ",\n    ".join(json.dumps(item, allow_nan=False, ensure_ascii=False) for item in value)
            lines.append(f'  "{key}": [\n    {items}\n  ]')
        elif key == "provenance":
            text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
            lines.append(f'  "{key}": ' + text.replace("\n", "\n  "))
        else:
            lines.append(f'  "{key}": {json.dumps(value, allow_nan=False, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_findings(path: Path, f: Findings) -> None:
    """Writes `f` to `path` as JSON: validated first, then atomically. Raises `DatasetError` where they cannot be written."""
    write_atomic(path, findings_to_bytes(f))


def read_findings(path: Path) -> Findings:
    """Reads a `findings.json`; lesions' masks come from `mask.png` beside it, or else from their contours.

    Raises `DatasetError` where the file is missing, no JSON, or does not follow the schema.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"no findings at {path.name}; run mammoseg segment first") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path.name} is no JSON; write the findings again") from error
    labels = None
    mask_path = path.with_name("mask.png")
    if mask_path.is_file():
        labels = cv2.imdecode(np.frombuffer(mask_path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    return findings_from_json(document, labels)


def findings_from_json(document: dict[str, Any], labels: NDArray[np.generic] | None = None) -> Findings:
    """The findings behind a JSON document.

    labels: label image [H, W] of `mask.png`, or None to fill the contours instead. Raises `DatasetError`.
    """
    if not isinstance(document, dict):
        raise DatasetError("expected findings as a JSON object, got something else")
    validate(document)
    image = dict(document["image"])
    if image["spacing_mm"] is not None:
        image["spacing_mm"] = tuple(float(v) for v in image["spacing_mm"])
    info = ImageInfo(**image)
    if document["status"] != "processed":
        return Findings(info, document["status"], document["reason"], provenance=document["provenance"])
    size = int(image["height"]), int(image["width"])
    if labels is not None and labels.shape != size:
        raise DatasetError(f"expected a label image of {size[1]} x {size[0]} pixels, got shape {list(labels.shape)}")
    try:
        found = document["candidates"]
        boxes = np.array([c["box_xyxy"] for c in found], dtype=np.float64).reshape(-1, 4)
        candidates = Detections(boxes, np.array([c["score"] for c in found], dtype=np.float64), size)
        lesions = tuple(_lesion_from_json(item, labels, size) for item in document["lesions"])
        return Findings(info, "processed", None, lesions, candidates, document["provenance"])
    except ValueError as error:
        raise DatasetError(f"findings hold values that cannot be: {error}") from error


def _lesion_from_json(item: dict[str, Any], labels: NDArray[np.generic] | None, size: tuple[int, int]) -> Lesion:
    contour = np.array(item["contour_xy"], dtype=np.float64).reshape(-1, 2)
    found = None if labels is None else _cut(np.asarray(labels == item["id"]))
    mask, origin = found if found is not None else _filled(contour, size)
    x1, y1, x2, y2 = (float(v) for v in item["box_xyxy"])
    return Lesion(
        id=int(item["id"]),
        box=(x1, y1, x2, y2),
        score=float(item["score"]),
        mask=mask,
        origin_px=origin,
        contour_xy=contour,
        area_mm2=item["area_mm2"],
        long_axis_mm=item["long_axis_mm"],
        short_axis_mm=item["short_axis_mm"],
    )


def _cut(mask: BoolMask) -> tuple[BoolMask, tuple[int, int]] | None:
    if not mask.any():
        return None
    x1, y1, x2, y2 = (int(v) for v in mask_box(mask))
    return mask[y1:y2, x1:x2].copy(), (y1, x1)


def _filled(contour: NDArray[np.float64], size: tuple[int, int]) -> tuple[BoolMask, tuple[int, int]]:
    """The pixels whose centres lie inside a contour (even-odd rule), at least the one nearest its middle."""
    if not len(contour):
        raise ValueError("a lesion has neither a mask nor a contour")
    low = np.floor(contour.min(axis=0)).clip(0, np.array(size[::-1]) - 1).astype(int)
    high = np.ceil(contour.max(axis=0)).clip(low + 1, size[::-1]).astype(int)
    x = np.arange(low[0], high[0]) + 0.5
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.bool_)
    following = np.roll(contour, -1, axis=0)
    for row in range(len(mask)):
        y = low[1] + row + 0.5
        crosses = (contour[:, 1] <= y) != (following[:, 1] <= y)
        a, b = contour[crosses], following[crosses]
        at = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
        mask[row] = (np.searchsorted(np.sort(at), x, side="right") % 2) == 1
    if not mask.any():
        middle = np.floor(contour.mean(axis=0)).astype(int) - low
        mask[min(max(middle[1], 0), mask.shape[0] - 1), min(max(middle[0], 0), mask.shape[1] - 1)] = True
    found = _cut(mask)
    assert found is not None
    return found[0], (found[1][0] + int(low[1]), found[1][1] + int(low[0]))
