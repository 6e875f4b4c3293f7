"""Trained networks to start from: a model directory that training wrote, or one network of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mammoseg.bundle import open_bundle
from mammoseg.errors import TrainingError
from mammoseg.training.checkpoint import Model, load_model


def open_model(path: Path, kind: Literal["detector", "segmenter"]) -> Model:
    """The network `kind` at `path`, a model directory or a bundle, with the record of what it was trained on.

    Of a bundle, everything that any of its networks has seen counts as seen. Raises TrainingError where `path` holds another
    kind of model, BundleError where it is no complete bundle either.
    """
    if (path / "model.json").is_file():
        model = load_model(path)
        if model.kind != kind:
            raise TrainingError(f"{path}: expected a {kind}, got a {model.kind}; name the other model directory")
        return model
    bundle = open_bundle(path)
    described = bundle.config["networks"][kind]
    record = dict(bundle.training.get("networks", {}).get(kind, {}))
    record |= {name: bundle.training.get(name, []) for name in ("image_sha256", "patient_sha256")}
    state = {k: torch.from_numpy(np.array(v)) for k, v in bundle.state(kind).items()}
    return Model(kind, state, described["config"], described["spec"], record)


def datasets_of(record: Mapping[str, Any]) -> list[str]:
    """The names of all data sets that a network with this record, or what it started from, was trained on."""
    return sorted(set(record.get("datasets", ())) | ({str(record["dataset"])} if record.get("dataset") else set()))
