"""Findings as a Parquet data set beside the JSON: OUT/findings.parquet/part-00000.parquet, ..., one row an image."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mammoseg.apps.outputs import PARQUET, read_results
from mammoseg.errors import ConfigError
from mammoseg.io.atomic import write_atomic

ROWS = 1000
"""Images a part."""


def schema() -> Any:
    """The Arrow schema of a row."""
    pa = _pyarrow()
    box = pa.list_(pa.float64(), 4)
    number = pa.float64()
    lesion = pa.struct(
        [
            ("id", pa.int32()),
            ("score", number),
            ("box_xyxy", box),
            ("contour_xy", pa.list_(pa.list_(number, 2))),
            ("area_px", pa.int64()),
            ("area_mm2", number),
            ("long_axis_mm", number),
            ("short_axis_mm", number),
        ]
    )
    return pa.schema(
        [
            ("source", pa.string()),
            ("folder", pa.string()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("spacing_mm", pa.list_(number)),
            ("laterality", pa.string()),
            ("view_position", pa.string()),
            ("file_sha256", pa.string()),
            ("seen_in_training", pa.bool_()),
            ("lesions", pa.list_(lesion)),
            ("candidates", pa.list_(pa.struct([("box_xyxy", box), ("score", number)]))),
            ("schema_version", pa.string()),
            ("provenance", pa.string()),
        ]
    )


def write_parquet(out: Path, folders: Sequence[str]) -> None:
    """Writes the data set from the images' findings.json, a part at a time; an earlier one is replaced.

    Raises `ConfigError` where pyarrow is not installed.
    """
    pa, target = _pyarrow(), out / PARQUET
    pq = importlib.import_module("pyarrow.parquet")
    shutil.rmtree(target, ignore_errors=True)
    for number, start in enumerate(range(0, max(len(folders), 1), ROWS)):
        part = folders[start : start + ROWS]
        rows = [_row(folder, found) for folder, found in zip(part, read_results(out, part), strict=True)]
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema()), stream, compression="zstd")
        write_atomic(target / f"part-{number:05d}.parquet", stream.getvalue())


def check_parquet() -> None:
    """Raises `ConfigError` where `write_parquet` would."""
    _pyarrow()


def _row(folder: str, found: dict[str, Any]) -> dict[str, Any]:
    image = found["image"]
    kept = ("source", "height", "width", "spacing_mm", "laterality", "view_position", "file_sha256", "seen_in_training")
    return {
        **{key: image.get(key) for key in kept},
        **{key: found[key] for key in ("status", "reason", "lesions", "candidates", "schema_version")},
        "folder": folder,
        "provenance": json.dumps(found["provenance"], sort_keys=True, ensure_ascii=False),
    }


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise ConfigError("Parquet needs pyarrow, which is not installed: pip install 'mammoseg[cluster]'") from error
