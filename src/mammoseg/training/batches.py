"""Batches made ahead in threads, each device its share of the global batch, and brought to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def share_of(rank: int, devices: int, batch_size: int) -> range:
    """The places of the global batch that device number `rank` of `devices` takes.

    >>> share_of(1, 2, 8)
    range(4, 8)
    """
    own = batch_size // devices
    return range(rank * own, (rank + 1) * own)


def prefetched(make: Callable[[int], Any], first: int, end: int, workers: int) -> Iterator[tuple[int, Any]]:
    """(step, make(step)) for the steps `first` to `end` in order, `workers` + 1 of them being prepared ahead in threads."""
    with ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="batch") as pool:
        ahead: list[Future[Any]] = []
        submitted = first
        for step in range(first, end):
            while submitted < end and len(ahead) <= workers:
                ahead.append(pool.submit(make, submitted))
                submitted += 1
            yield step, ahead.pop(0).result()


def to_device(batch: Any, device: torch.device, channels_last: bool) -> Any:
    """`batch`, tensors in dicts, lists and tuples, on `device`."""
    if isinstance(batch, Tensor):
        moved = batch.to(device, non_blocking=True)
        return moved.contiguous(memory_format=torch.channels_last) if channels_last and moved.ndim == 4 else moved
    if isinstance(batch, dict):
        return {k: to_device(v, device, channels_last) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(v, device, channels_last) for v in batch)
    return batch
