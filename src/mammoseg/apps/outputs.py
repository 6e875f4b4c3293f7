"""What a run writes: a folder for each image, and the tables and the record of the whole run."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from mammoseg.apps.dicom_outputs import DICOM_FILES, has_image_results, write_image_results
from mammoseg.io.atomic import write_atomic
from mammoseg.io.findings_json import write_findings
from mammoseg.io.pictures import write_mask_png, write_overlay_png
from mammoseg.types import Findings, Mammogram

FINDINGS = "findings.json"
RUN = "run.json"
LOCK = ".mammoseg.lock"
PARQUET = "findings.parquet"  # a folder: a Parquet data set in parts
ORIGIN = "origin.json"  # beside findings.json of an image that was fetched from a URL: which version of it
TABLES = ("findings.jsonl", "findings.csv", "index.html")
TABLE_COLUMNS = (
    "image",
    "lesion",
    "score",
    "x1",
    "y1",
    "x2",
    "y2",
    "area_px",
    "area_mm2",
    "long_axis_mm",
    "short_axis_mm",
)


def _write_mask(folder: Path, findings: Findings, mammogram: Mammogram) -> None:
    write_mask_png(folder / "mask.png", findings)


def _write_overlay(folder: Path, findings: Findings, mammogram: Mammogram) -> None:
    write_overlay_png(folder / "overlay.png", mammogram, findings)


# Pictures that go beside findings.json, by format name; "json" itself is always written, last.
PICTURES: dict[str, Callable[[Path, Findings, Mammogram], None]] = {"mask": _write_mask, "overlay": _write_overlay}
# All that may lie beside findings.json.
PICTURE_FILES = {"mask": "mask.png", "overlay": "overlay.png", **DICOM_FILES}
DEFAULT_FORMATS = ("json", *PICTURES)
FORMATS = (*DEFAULT_FORMATS, "seg", "cadsr", "sr", "pr", "sc")


def write_image(
    folder: Path, findings: Findings, mammogram: Mammogram | None, formats: Sequence[str], path: Path | None = None
) -> None:
    """Writes one image's results. findings.json comes last: where it is, the rest is complete.

    path: the image's file, from which DICOM results take patient and study; without it there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINDINGS).unlink(missing_ok=True)
    for unfinished in folder.glob(".*.tmp"):  # of a run that was killed
        unfinished.unlink()
    wanted = [f for f in formats if mammogram is not None and f in PICTURES]
    drop_pictures(folder, wanted)
    for name in wanted:
        assert mammogram is not None
        PICTURES[name](folder, findings, mammogram)
    if mammogram is not None and path is not None:
        write_image_results(folder, path, findings, mammogram, formats)
    write_findings(folder / FINDINGS, findings)


def drop_pictures(folder: Path, wanted: Iterable[str]) -> None:
    """Removes the pictures of other formats than those `wanted`."""
    for name, file in PICTURE_FILES.items():
        if name not in wanted:
            (folder / file).unlink(missing_ok=True)


def is_done(
    folder: Path, path: Path, source: str, file_sha256: str, provenance: dict[str, Any], formats: Sequence[str]
) -> dict[str, Any] | None:
    """The findings (as in JSON) that `folder` holds for this very input, name, bundle, version and settings; else None.

    path: the image's file. What failed is always tried again.
    """
    try:
        found = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))
        same_input = (found["image"]["file_sha256"], found["image"]["source"]) == (file_sha256, source)
        if not same_input or found["provenance"] != json.loads(json.dumps(provenance)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if found["status"] == "failed":
        return None
    if found["status"] == "processed" and not all((folder / PICTURE_FILES[f]).is_file() for f in formats if f in PICTURES):
        return None
    if not has_image_results(folder, path, found, formats):
        return None
    result: dict[str, Any] = found
    return result


def read_results(out: Path, folders: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The findings of each folder, as in JSON, in the order given."""
    for folder in folders:
        yield json.loads((out / folder / FINDINGS).read_text(encoding="utf-8"))


def write_tables(out: Path, folders: Sequence[str]) -> None:
    """Writes findings.jsonl (a line an image) and findings.csv (a row a lesion) from the images' findings.json."""
    with _whole(out / "findings.jsonl") as lines, _whole(out / "findings.csv") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(TABLE_COLUMNS)
        for found in read_results(out, folders):
            lines.write(json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")
            rows.writerows(_row(found["image"]["source"], lesion) for lesion in found["lesions"])


def write_run(out: Path, record: dict[str, Any]) -> None:
    """Writes run.json: the settings, bundle and counts of the whole run."""
    write_atomic(out / RUN, (json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A text file to write to bit by bit, which takes its name when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _row(source: str, lesion: dict[str, Any]) -> tuple[Any, ...]:
    sizes = (lesion[k] for k in ("area_px", "area_mm2", "long_axis_mm", "short_axis_mm"))
    return (source, lesion["id"], lesion["score"], *lesion["box_xyxy"], *("" if v is None else v for v in sizes))
