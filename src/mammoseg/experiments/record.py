"""What identifies a training run, and what its model remembers of it: data, start, ancestors. No paths, no names of people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mammoseg.bundle import hash_file, hash_patient
from mammoseg.datasets import dataset_name
from mammoseg.errors import DatasetError, TrainingError
from mammoseg.experiments.start import datasets_of
from mammoseg.training.checkpoint import Model
from mammoseg.training.loop import FitResult, LoopConfig, resolve_precision
from mammoseg.types import DatasetItem, Fold

_NO_MATTER = ("checkpoint_every", "threads", "workers", "accelerator")
"""Of the loop: what changes nothing in a run but its speed and the last bits."""
_OWN = ("image_sha256", "patient_sha256", "history", "ancestors")
"""Of a model's record: what is carried on otherwise, or too long to be carried on."""


def file_hashes(items: Sequence[DatasetItem]) -> dict[str, str]:
    """The sha256 of each item's image file, by image id. Raises DatasetError naming the image that cannot be read."""
    hashes = {}
    for item in items:
        try:
            hashes[item.image_id] = hash_file(Path(item.path))
        except OSError as error:
            raise DatasetError(
                f"{item.image_id}: its file cannot be read ({error.strerror}); see mammoseg datasets check"
            ) from error
    return hashes


def run_identity(
    settings: Mapping[str, Any], training: LoopConfig, data: Mapping[str, Any], start: Model | None, weights: str | None
) -> dict[str, Any]:
    """What makes a run the one it is: settings that decide what is learnt, the data of `data_identity`, what it starts from.

    settings: the run's, `training` left out. weights: path of the file of weights it starts from, if any.
    """
    loop = {k: v for k, v in vars(training).items() if k not in _NO_MATTER} | {"precision": resolve_precision(training)}
    begins = {"init": start.origin.get("sha256") if start else None, "weights": hash_weights(weights) if weights else None}
    return {"settings": {**settings, "training": loop}, "data": dict(data), "start": begins}


def data_identity(data: str, fold: Fold, items: Sequence[DatasetItem], hashes: Mapping[str, str]) -> dict[str, str]:
    """The data set's name, the fold's content hash, and one hash of the files, boxes and masks of `items`."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda i: i.image_id):
        digest.update(json.dumps([item.image_id, hashes[item.image_id]]).encode())
        for mass in item.annotation.masses:
            digest.update(np.asarray(mass.box, dtype="<f8").tobytes())
            if mass.mask is not None:
                digest.update(json.dumps([mass.origin_px, mass.mask.shape]).encode())
                digest.update(np.packbits(mass.mask).tobytes())
    return {"dataset": dataset_name(data), "fold": fold.content_hash, "images_and_masses": digest.hexdigest()}


def hash_weights(path: str) -> str:
    """The sha256 of a file of weights to start from. Raises TrainingError where it cannot be read."""
    try:
        return hash_file(Path(path))
    except OSError as error:
        raise TrainingError(
            f"weights to start from: {path} cannot be read ({error.strerror}); name a file that is there"
        ) from error


def learnt_from(
    data: str, fold: Fold, items: Sequence[DatasetItem], hashes: Mapping[str, str], start: Model | None
) -> dict[str, Any]:
    """What a model was trained on: `items`, and all that the model it started from had seen."""
    before = start.record if start else {}
    name = dataset_name(data)
    patients = {hash_patient(name, i.patient_id) for i in items}
    return {
        "dataset": name,
        "datasets": sorted({name, *datasets_of(before)}),
        "fold": fold.name,
        "fold_hash": fold.content_hash,
        "image_sha256": sorted({hashes[i.image_id] for i in items}.union(before.get("image_sha256", ()))),
        "patient_sha256": sorted(patients.union(before.get("patient_sha256", ()))),
    }


def with_further(record: Mapping[str, Any], further: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`record` of `learnt_from` with what further datasets, each its own record, gave; their folds stand below "also"."""
    out = dict(record)
    for key in ("datasets", "image_sha256", "patient_sha256"):
        out[key] = sorted(set(record[key]).union(*(f[key] for f in further)))
    if further:
        out["also"] = [{k: f[k] for k in ("dataset", "fold", "fold_hash")} for f in further]
    return out


def ancestry(start: Model | None, weights: str | None) -> dict[str, Any]:
    """`start_weights`: name and sha256 of what training began with, or None; `ancestors`: records behind it, eldest first."""
    if start is None:
        begun = {"name": Path(weights).name, "sha256": hash_weights(weights)} if weights else None
        return {"start_weights": begun, "ancestors": []}
    own = {k: v for k, v in start.record.items() if k not in _OWN}
    return {"start_weights": start.origin, "ancestors": [*start.record.get("ancestors", ()), {**start.origin, "record": own}]}


def outcome(result: FitResult) -> dict[str, Any]:
    """How training went, and on what it was computed."""
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "history": [{"step": s, **m} for s, m in result.history],
        "environment": result.environment,
    }
