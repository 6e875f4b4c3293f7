"""What several devices that train together agree on, and on what a run was computed."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch
import torch.distributed as dist

_DISTRIBUTIONS = ("mammoseg", "torch", "lightning-fabric", "numpy", "opencv-python-headless", "pydicom", "safetensors")


def shared_count(count: int, device: torch.device) -> float:
    """max(1, the sum of `count` over all devices) / number of devices.

    Where each device divides the sum of its losses by this, the mean over devices is the sum of all losses over the count of
    all, which is what one device computes that has the whole batch. On a single device: max(1, count). With several, each
    has to call it, once a step.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return max(1.0, float(count))
    total = torch.tensor([float(count)], device=device)
    dist.all_reduce(total)
    return max(1.0, float(total)) / dist.get_world_size()


def wait_for_all() -> None:
    """Returns once every device of the run has come here; at once where there is only one."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def environment(device: torch.device, devices: int, precision: str) -> dict[str, Any]:
    """On what a run was computed: versions of Python and libraries, precision, kind and number of devices, threads of each."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return {
        "python": platform.python_version(),
        "versions": {name: version for name in _DISTRIBUTIONS if (version := _version(name))},
        "precision": precision,
        "device": kind,
        "devices": devices,
        "threads": torch.get_num_threads(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
