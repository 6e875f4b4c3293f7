"""Which run a folder holds: settings, data and start are kept in its checkpoints, and only the same run may go on from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoseg.config import differences
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
