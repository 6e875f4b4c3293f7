"""The findings of the study on disk: OUT/findings/SPLIT/SETUP/IMAGE/findings.json, with mask.png where there are outlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mammoseg.errors import DatasetError
from mammoseg.evaluation.inputs import Pair
from mammoseg.io.findings_json import read_findings, write_findings
from mammoseg.io.pictures import write_mask_png
from mammoseg.types import DatasetItem, Detections, Findings, ImageInfo, Lesion

MOST = 100


def findings_of(item: DatasetItem, lesions: Sequence[Lesion], candidates: Detections, provenance: dict[str, Any]) -> Findings:
    """Findings of a prepared image; of more than 100 candidates the first are kept."""
    height, width = item.annotation.size
    info = ImageInfo(
        item.image_id,
        height,
        width,
        item.spacing_mm,
        "prepared" if item.spacing_mm else None,
        item.laterality,
        item.view_position,
    )
    kept = candidates.select(slice(None, MOST))  # type: ignore[arg-type]
    return Findings(info, "processed", None, tuple(lesions), kept, {"study": provenance})


def save(folder: Path, findings: Iterable[Findings]) -> None:
    """Writes each image's findings into its folder below `folder`, as they come."""
    for f in findings:
        place = folder / PurePosixPath(f.image.source).stem
        if f.lesions:
            write_mask_png(place / "mask.png", f)
        write_findings(place / "findings.json", f)


def load(folder: Path, items: Sequence[DatasetItem]) -> list[Pair]:
    """The findings below `folder` of every one of `items`, in their order. Raises DatasetError where one is not there."""
    pairs = []
    for item in items:
        file = folder / PurePosixPath(item.image_id).stem / "findings.json"
        if not file.is_file():
            raise DatasetError(f"no findings of {item.image_id} in {folder}; run mammoseg reproduce again")
        pairs.append(Pair(item, read_findings(file)))
    return pairs


def detections(pair: Pair) -> Detections:
    """The candidates of one image; none where it was not processed."""
    found = pair.findings.candidates
    return found if found is not None else Detections.empty(pair.truth.annotation.size)
