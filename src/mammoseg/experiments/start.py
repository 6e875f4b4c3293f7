"""Trained networks to start from: a model directory that training wrote, or one network of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mammoseg.bundle import hash_file, open_bundle
from mammoseg.config import differences
from mammoseg.errors import ConfigError, TrainingError, UsageError
from mammoseg.training.checkpoint import Model, latest_state, load_model
from mammoseg.training.identity import admit

log = logging.getLogger("mammoseg.experiments")


def open_model(path: Path, kind: Literal["detector", "segmenter"]) -> Model:
    """The network `kind` at `path`, a model directory or a bundle, with the record of what it was trained on.

    A bundle says of each network what it has seen; of an older one, everything that any of its networks has seen counts.
    Raises TrainingError where `path` holds another kind of model, BundleError where it is no complete bundle either.
    """
    if (path / "model.json").is_file():
        model = load_model(path)
        if model.kind != kind:
            raise TrainingError(f"{path}: expected a {kind}, got a {model.kind}; name the other model directory")
        whole = path.resolve()
        name = whole.parent.name if whole.name == "model" else whole.name
        origin = {"name": name, "sha256": hash_file(path / "model.safetensors")}
        return Model(kind, model.state, model.config, model.spec, model.record, origin)
    bundle = open_bundle(path)
    described = bundle.config["networks"][kind]
    record = dict(bundle.training.get("networks", {}).get(kind, {}))
    record = {name: bundle.training.get(name, []) for name in ("image_sha256", "patient_sha256")} | record
    state = {k: torch.from_numpy(np.array(v)) for k, v in bundle.state(kind).items()}
    origin = {"name": bundle.name, "sha256": hash_file(bundle.directory / f"{kind}.safetensors"), "bundle": bundle.sha256}
    return Model(kind, state, described["config"], described["spec"], record, origin)


_IN_OUT = ("model", "checkpoints", "tensorboard")


def check_run_names(names: Sequence[str]) -> None:
    """Raises ConfigError unless runs that come before another (`before`) can each have a folder of its name beside its own."""
    if len({*names, *_IN_OUT}) < len(names) + len(_IN_OUT) or not all(name.isidentifier() for name in names):
        raise ConfigError(f"before: expected a name of its own for each run, not {', '.join(_IN_OUT)}, got {list(names)}")


def stage_settings(own: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `settings` of a run that comes before, those of its network laid over `own`. Raises ConfigError on runs before it."""
    if "before" in settings:
        raise ConfigError(f"{where}: expected no runs before a run that comes before; name them all in one list, `[[before]]`")
    network = settings.get("network")
    return {**settings, "network": {**own, **network}} if isinstance(network, Mapping) else dict(settings)


def check_runs_fit(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError unless all runs of a recipe (by name, the last one last) have those settings that weights go with."""
    *before, last = runs
    for name in before:
        found = differences(runs[last], runs[name])
        if found:
            listed = "; ".join(f"{key} is {b}, and {a} in the last run" for key, a, b in found[:4])
            raise ConfigError(f"before {name}: {listed}; one run goes on with the weights of another, so give all the same")


def check_place(out: Path, names: Sequence[str], resume: bool) -> None:
    """Raises UsageError where OUT does not suit a recipe with runs `names` before its last: before the first of them starts.

    Without `resume` none of its runs may be there; with it, no later one without those before it.
    """
    folders = [*(out / name for name in names), out]
    if not resume:
        for folder in folders:
            admit(folder, {}, resume=False)
    started = [latest_state(folder / "checkpoints") is not None for folder in folders]
    for name, there in zip(names, started, strict=False):
        if resume and started[-1] and not there:
            raise UsageError(
                f"{out}: --resume goes on with the run it holds, and that came after no run {name!r}: this is another one; "
                "choose another --out"
            )


def datasets_of(record: Mapping[str, Any]) -> list[str]:
    """The names of all data sets that a network with this record, or what it started from, was trained on."""
    return sorted(set(record.get("datasets", ())) | ({str(record["dataset"])} if record.get("dataset") else set()))


def refuse_contradictions(start: Model, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming them, where settings `here` differ from those `there` that the weights of `start` need."""
    found = differences(there, here)
    if found:
        listed = "; ".join(f"{key} is {b}, the model has {a}" for key, a, b in found[:4]) + ("; ..." if len(found) > 4 else "")
        raise ConfigError(
            f"--init {start.origin.get('name', 'model')}: {listed}; its weights go with its own settings, "
            "which are taken over: leave these out"
        )


def tell_changes(start: Model, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Logs which settings `here` replace those that `start` had `there`: such as may change from run to run."""
    for key, a, b in differences(there, here):
        log.info("%s is %s; the model %s had %s", key, b, start.origin.get("name", "started from"), a)
