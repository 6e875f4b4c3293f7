"""Trained detectors to one of several members, and back: what `mammoseg bundle make` ships and training goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mammoseg.config import from_dict, to_dict
from mammoseg.detection import described
from mammoseg.detection.members import ARCH
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.errors import BundleError, ConfigError
from mammoseg.experiments.start import datasets_of
from mammoseg.training.checkpoint import Model

_ALIKE = ("strides", "frame", "channels", "mean", "std", "xy_scale", "layout")
"""Of the members' specs: what has to be the same, since they are given the same input and their maps are read in one way."""

_SEEN = ("image_sha256", "patient_sha256")


def join(models: Sequence[Model]) -> Model:
    """One detector of several, each of which may be one of several itself; a single one as it is.

    Scales are the first's. Its record tells every image that any of them has seen. Raises BundleError where they differ in
    what their input is or how their maps are read.
    """
    single = [part for model in models for part in split(model)]
    if len(single) == 1:
        return single[0]
    specs = [from_dict(DetectorSpec, model.spec) for model in single]
    for number, spec in enumerate(specs[1:], 2):
        differ = [name for name in _ALIKE if getattr(spec, name) != getattr(specs[0], name)]
        if differ or spec.layout != "yolo":
            raise BundleError(
                f"detector {number} does not go with the first: {', '.join(differ) or 'layout'} "
                f"{[getattr(spec, name) for name in differ] or spec.layout}, expected "
                f"{[getattr(specs[0], name) for name in differ] or 'yolo'}; train them with the same preprocessing"
            )
    counts = {len(spec.anchors) for spec in specs}
    if len(counts) > 1:
        raise BundleError(f"detectors with {sorted(counts)} anchors do not go together: expected as many of each")
    state = {f"members.{i}.{k}": v for i, model in enumerate(single) for k, v in model.state.items()}
    parts = []
    for model in single:
        arch, values = described(model.config)
        parts.append({"arch": arch, "network": values})
    together = to_dict(specs[0]) | {
        "arch": " + ".join(spec.arch for spec in specs),
        "anchors": [list(anchor) for spec in specs for anchor in spec.anchors],
        "members": len(single),
    }
    return Model("detector", state, {"arch": ARCH, "network": {"members": parts}}, together, _record(single))


def member(model: Model, number: int) -> Model:
    """Detector `number`, from 1, of those that `model` is made of. Raises ConfigError where there are not so many."""
    single = split(model)
    if not 1 <= number <= len(single):
        raise ConfigError(f"init_member: expected 1 to {len(single)}, as many as the model has detectors, got {number}")
    return single[number - 1]


def split(model: Model) -> list[Model]:
    """The detectors that `model` is made of, each with its own record; itself where it is a single one.

    What any of them has seen stands in the record of each.
    """
    arch, values = described(model.config)
    if arch != ARCH:
        return [model]
    spec = from_dict(DetectorSpec, model.spec)
    if spec.members != len(values["members"]):
        raise ConfigError(f"{len(values['members'])} members, but a spec of {spec.members}")
    seen = {key: model.record[key] for key in _SEEN if key in model.record}  # by any of them: it is not told whose
    records = [{**record, **seen} for record in model.record.get("members", [{}] * spec.members)]
    each, out = len(spec.anchors) // spec.members, []
    names = spec.arch.split(" + ")
    for i, config in enumerate(values["members"]):
        begin = f"members.{i}."
        state = {k.removeprefix(begin): v for k, v in model.state.items() if k.startswith(begin)}
        own = to_dict(spec) | {
            "arch": names[i] if len(names) == spec.members else spec.arch,
            "anchors": [list(a) for a in spec.anchors[i * each : (i + 1) * each]],
            "members": 1,
        }
        out.append(Model("detector", state, config, own, records[i]))
    return out


def _record(models: Sequence[Model]) -> dict[str, Any]:
    """Of all members together: every image and patient that any has seen; below "members" each one's own record."""
    records: list[Mapping[str, Any]] = [model.record for model in models]
    out: dict[str, Any] = {"members": [{k: v for k, v in record.items() if k not in _SEEN} for record in records]}
    for key in _SEEN:
        out[key] = sorted(set().union(*(record.get(key, ()) for record in records)))
    out["datasets"] = sorted(set().union(*(datasets_of(record) for record in records)))
    return out
