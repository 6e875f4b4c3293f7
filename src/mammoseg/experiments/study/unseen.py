"""Whether the detector that a study starts from has seen the images it is to be tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoseg.bundle import hash_file, hash_patient
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.errors import UsageError
from mammoseg.experiments.start import open_model
from mammoseg.io.atomic import write_atomic

FILE = "data/seen.json"


def check(pretrained: Path, dataset: str, file: Path, allowed: bool) -> None:
    """Writes to `file` on which images of `dataset` (a spec), or others of their patients, `pretrained` was trained.

    pretrained: a model directory or a bundle. Raises UsageError where there is one, unless that is `allowed`.
    """
    record: Mapping[str, Any] = open_model(pretrained, "detector").record
    images, patients = (frozenset(record.get(name, ())) for name in ("image_sha256", "patient_sha256"))
    name = dataset_name(dataset)
    items = read_dataset(dataset)
    seen = [i.image_id for i in items if hash_patient(name, i.patient_id) in patients or hash_file(Path(i.path)) in images]
    if seen and not allowed:
        raise UsageError(
            f"pretrained: {pretrained.name} was trained on {len(seen)} of the {len(items)} images of {name} that it would be "
            f"tested on, or on others of their patients ({seen[0]!r}, ...): name a detector that has not seen them "
            "(--set pretrained=MODEL), or say --set allow_seen=true, and take what comes out for no result"
        )
    write_atomic(file, (json.dumps({"seen": seen, "images": len(items)}, indent=1) + "\n").encode())


def warning(file: Path) -> str:
    """What a report says of the images in `file` that were seen; empty if none was, or the file is not there."""
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"seen": []}
    if not told["seen"]:
        return ""
    return (
        f"The detector that the study starts from was trained on {len(told['seen'])} of the {told['images']} images, or on "
        "others of their patients: detection and whole-image figures are no result."
    )
