"""torchvision's compiled operators in plain torch, for machines whose torchvision was built for another torch.

Call `prepare()` before torchvision is imported for the first time. Where its own operators load, nothing is replaced.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

_KEPT: list[Any] = []  # a library's registrations live as long as it does


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices kept, best first; of a pair whose IoU exceeds the threshold the worse one goes."""
    order = scores.detach().argsort(descending=True, stable=True)
    left = boxes.detach()[order].double().numpy()
    area = (left[:, 2:] - left[:, :2]).prod(axis=1)
    alive = np.ones(len(left), dtype=bool)
    for i in range(len(left)):
        if alive[i]:
            rest = np.flatnonzero(alive[i + 1 :]) + i + 1
            sides = np.minimum(left[i, 2:], left[rest, 2:]) - np.maximum(left[i, :2], left[rest, :2])
            common = sides.clip(0).prod(axis=1)
            alive[rest[common / (area[i] + area[rest] - common) > iou_threshold]] = False
    return order[torch.from_numpy(alive)]


def prepare() -> Any:
    """torchvision, usable: as it is, or with the stand-ins."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        _KEPT.append(library)
        import torchvision
    if not torchvision.extension._has_ops():
        boxes, roi_align = (importlib.import_module(f"torchvision.ops.{name}") for name in ("boxes", "roi_align"))
        boxes._assert_has_ops = lambda: None
        plain = getattr(roi_align._roi_align, "__wrapped__", roi_align._roi_align)
        roi_align._roi_align = plain  # torchvision's own fallback, without compiling it first
    return torchvision
