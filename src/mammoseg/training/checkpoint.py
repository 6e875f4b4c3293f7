"""What training writes: checkpoints to go on from, and model directories to use. Safetensors and JSON only, never a pickle.

A checkpoint is a directory `checkpoint-00001000/` with `tensors.safetensors` and `state.json`, made under another name and
renamed, so it is whole or not there. A model directory holds `model.safetensors` (fp32) and `model.json`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mammoseg.errors import TrainingError
from mammoseg.io.atomic import swap_directory

Kind = Literal["detector", "segmenter"]
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimizer steps. model, ema: state dicts; optimizer: flattened; extra: JSON-able."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A saved model: `kind`, its tensors (fp32), the `config` it is built from, `spec` of its predictor, training `record`.

    origin: `name` and `sha256` of the file of tensors it was read from; empty where it was not read from one.
    """

    kind: Kind
    state: dict[str, Tensor]
    config: dict[str, Any]
    spec: dict[str, Any]
    record: dict[str, Any]
    origin: dict[str, str] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Writes the checkpoint below `folder` atomically and drops all but the newest `keep`; returns its directory."""
    tensors: dict[str, Tensor] = {}
    tensors |= {f"model/{k}": v for k, v in checkpoint.model.items()}
    tensors |= {f"ema/{k}": v for k, v in checkpoint.ema.items()}
    flat, rest = _flatten(checkpoint.optimizer)
    tensors |= {f"optimizer/{k}": v for k, v in flat.items()}
    state = {"step": checkpoint.step, "optimizer": rest, "extra": checkpoint.extra}
    target = folder / f"{_PREFIX}{checkpoint.step:08d}"
    _write_directory(target, "tensors.safetensors", tensors, "state.json", state)
    unfinished = [p for end in ("tmp", "old") for p in folder.glob(f".{_PREFIX}*.{end}")]  # of a run that was killed
    for old in [*unfinished, *_checkpoints(folder)[:-keep]]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest_state(folder: Path) -> dict[str, Any] | None:
    """`step` and `extra` of the newest whole checkpoint below `folder`, or None. Raises TrainingError as the next."""
    found = _checkpoints(folder)
    if not found:
        return None
    try:
        state = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        return {"step": state["step"], "extra": state["extra"]}
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(found[-1], error) from error


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`, or None. Raises TrainingError where it cannot be read."""
    found = _checkpoints(folder)
    return read_checkpoint(found[-1]) if found else None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the directory `path`. Raises TrainingError where it cannot be read."""
    try:
        tensors = load_file(str(path / "tensors.safetensors"))
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    part: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        part[group][name] = value
    optimizer = _unflatten(part["optimizer"], state["optimizer"])
    return Checkpoint(state["step"], part["model"], part["ema"], optimizer, state["extra"])


def save_model(
    directory: Path,
    kind: Kind,
    state: Mapping[str, Tensor],
    config: dict[str, Any],
    spec: dict[str, Any],
    record: dict[str, Any],
) -> Path:
    """Writes a model directory: `model.safetensors` (floating tensors as fp32) and `model.json`; returns `directory`.

    config: what the network is built from; spec: what its predictor needs; record: what it was trained on and how well it did.
    """
    tensors = {k: v.detach().float() if v.is_floating_point() else v.detach() for k, v in state.items()}
    description = {"kind": kind, "config": config, "spec": spec, "record": record}
    _write_directory(directory, "model.safetensors", tensors, "model.json", description)
    return directory


def load_model(directory: Path) -> Model:
    """Reads a model directory written by `save_model`. Raises TrainingError where it is none."""
    try:
        description = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        state = load_file(str(directory / "model.safetensors"))
        return Model(description["kind"], state, description["config"], description["spec"], description["record"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(
            f"{directory}: expected a model directory with model.json and model.safetensors ({error}); "
            "give the folder that training wrote"
        ) from error


def _write_directory(target: Path, tensor_name: str, tensors: Mapping[str, Tensor], json_name: str, content: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # Copies: tensors that share memory (an EMA that is the model) cannot be stored in one file otherwise.
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, str(temporary / tensor_name))
    (temporary / json_name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    swap_directory(temporary, target)


def _unreadable(path: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{path}: not a readable checkpoint ({error}); remove it to go on from the one before")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir()) if folder.is_dir() else []


def _flatten(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as named tensors and the JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"scalars": scalars, "param_groups": optimizer["param_groups"]}


def _unflatten(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in rest["scalars"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    groups = [{k: tuple(v) if isinstance(v, list) and k == "betas" else v for k, v in g.items()} for g in rest["param_groups"]]
    return {"state": state, "param_groups": groups}
