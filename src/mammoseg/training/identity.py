"""Which run a folder holds: settings, data and start are kept in its checkpoints, and only the same run may go on from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mammoseg.errors import UsageError
from mammoseg.training.checkpoint import latest_state

log = logging.getLogger("mammoseg.training")
_SHOWN = 4


def admit(out: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Raises UsageError where `out` holds checkpoints that a run with this `identity` must not touch.

    identity: nested and JSON-able; everything that decides what is learnt. Without `resume` an `out` that holds checkpoints is
    refused; with it, one whose newest checkpoint was made by a run of another identity, and the message names what differs.
    """
    state = latest_state(out / "checkpoints")
    if state is None:
        if resume:
            log.info("%s: no checkpoint to go on from; training starts at the beginning", out)
        return
    if not resume:
        raise UsageError(
            f"{out} holds a training run already (at step {state['step']}); go on with --resume or choose another --out"
        )
    if "identity" not in state["extra"]:
        log.warning("%s: its checkpoint is of an early version and does not say by which settings; they are not checked", out)
        return
    differ = differences(state["extra"]["identity"], identity)
    if differ:
        listed = "; ".join(f"{key} {there} there, {here} here" for key, there, here in differ[:_SHOWN])
        more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise UsageError(
            f"{out}: --resume goes on with the run it holds (at step {state['step']}), and this is another one: "
            f"{listed}{more}; give the same settings, data and start again, or choose another --out"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value there, value here) of all that differs between two nested, JSON-able mappings; dotted keys, values as text.

    >>> differences({"a": {"b": 1, "c": (2, 3)}}, {"a": {"b": 1, "c": [2, 4]}, "d": None})
    [('a.c', '[2, 3]', '[2, 4]')]
    """
    a, b = (dict(_flat(json.loads(json.dumps(values)))) for values in (there, here))
    return [(k, _short(a.get(k)), _short(b.get(k))) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
