"""What made the findings: equal for equal version, bundle and settings. No clock time, no path, nothing of the patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mammoseg._version import __version__
from mammoseg.bundle import Bundle
from mammoseg.config import from_dict
from mammoseg.runtime import RuntimeConfig, runtime_version


def describe_run(bundle: Bundle, given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of findings, JSON-able.

    given: the settings the bundle comes with; settings: those used; what differs is listed under `overrides`. The number
    of threads is left out: it changes boxes by less than 0.05 px and scores by less than 1e-3. The precision is the one
    computed in, whether it was asked for or chosen for the processor.
    """
    runtime = dict(settings["runtime"])
    chosen = from_dict(RuntimeConfig, runtime)
    precisions = [chosen.precision_of(name, bundle.int8_networks) for name in ("detector", "segmenter")]
    used = {k: v for k, v in settings.items() if k != "runtime"}
    return {
        "package": {"name": "mammoseg", "version": __version__},
        "bundle": {"name": bundle.name, "sha256": bundle.sha256},
        "runtime": {
            "name": runtime["kind"],
            "version": runtime_version(runtime["kind"]),
            "device": runtime["device"],
            "precision": precisions[0] if len(set(precisions)) == 1 else "detector {}, segmenter {}".format(*precisions),
        },
        "settings": used,
        "overrides": changes(given, {**settings, "runtime": {**runtime, "threads": given["runtime"]["threads"]}}),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of `after` that differ from `before`, by dotted key.

    >>> changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    {'a.c': 3}
    """
    out: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            out.update(changes(old, value, f"{prefix}{key}."))
        elif value != old:
            out[f"{prefix}{key}"] = value
    return out
