"""Which cell and anchor stands for which true box: one per box as published, or several ("dense")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """The positives of one stride, P of them. image, anchor, row, column: int64[P]. box: f32[P, 4] `xyxy`, network-input px."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box: Tensor

    def __len__(self) -> int:
        return len(self.image)


def shape_iou(wh: Tensor, anchors: Tensor) -> Tensor:
    """IoU f32[N, K] of sizes f32[N, 2] and anchors f32[K, 2] laid on a common corner."""
    inter = torch.minimum(wh[:, None], anchors[None]).prod(dim=-1)
    return inter / (wh.prod(dim=-1)[:, None] + anchors.prod(dim=-1)[None] - inter)


def assign_published(
    boxes: Tensor, image: Tensor, anchors: Tensor, strides: Sequence[int], maps: Sequence[tuple[int, int]]
) -> list[Assignment]:
    """One positive per true box: the anchor of all strides with the best IoU by shape, in the cell of the box's centre.

    boxes: f32[M, 4] `xyxy` px; image: int64[M], which image of the batch; anchors: f32[strides, A, 2] px;
    maps: (h, w) per stride.
    """
    per_scale = anchors.shape[1]
    wh = boxes[:, 2:] - boxes[:, :2]
    best = shape_iou(wh, anchors.reshape(-1, 2)).argmax(dim=1)
    out = []
    for level, (stride, (h, w)) in enumerate(zip(strides, maps, strict=True)):
        mine = best // per_scale == level
        cell = ((boxes[mine, :2] + boxes[mine, 2:]) / 2 / stride).long()
        column, row = cell[:, 0].clamp(0, w - 1), cell[:, 1].clamp(0, h - 1)
        out.append(Assignment(image[mine], best[mine] % per_scale, row, column, boxes[mine]))
    return out


def assign_dense(
    boxes: Tensor,
    image: Tensor,
    anchors: Tensor,
    strides: Sequence[int],
    maps: Sequence[tuple[int, int]],
    ratio_max: float = 2.5,
    xy_scale: float = 2.0,
) -> list[Assignment]:
    """Several positives per true box: every anchor of similar shape, in every cell that can reach the box's centre.

    An anchor is similar if neither side differs by more than `ratio_max` times; the best by IoU always is. A cell reaches
    (xy_scale − 1)/2 cells beyond its own edges. Arguments as `assign_published`.
    """
    per_scale = anchors.shape[1]
    wh = boxes[:, 2:] - boxes[:, :2]
    ratio = wh[:, None] / anchors.reshape(1, -1, 2)
    similar = torch.maximum(ratio, 1 / ratio).amax(dim=-1) < ratio_max  # (M, K)
    similar[torch.arange(len(boxes)), shape_iou(wh, anchors.reshape(-1, 2)).argmax(dim=1)] = True
    reach = (xy_scale - 1) / 2
    span = int(reach + 1)
    steps = torch.arange(-span, span + 1)
    offsets = torch.cartesian_prod(steps, steps).to(boxes.device)  # (O, 2) of (dx, dy)
    out = []
    for level, (stride, (h, w)) in enumerate(zip(strides, maps, strict=True)):
        which, anchor = similar[:, level * per_scale : (level + 1) * per_scale].nonzero(as_tuple=True)
        centre = (boxes[which, :2] + boxes[which, 2:]) / 2 / stride  # (P, 2)
        limit = torch.tensor([w, h], device=boxes.device)
        home = torch.minimum(centre.floor().long(), limit - 1)  # a centre on the far edge belongs to the last cell
        cell = home[:, None] + offsets[None]  # (P, O, 2)
        inside = centre[:, None] - cell
        own = (offsets == 0).all(dim=-1)[None]
        good = ((inside > -reach) & (inside < 1 + reach)).all(dim=-1) | own
        good &= ((cell >= 0) & (cell < limit)).all(dim=-1)
        p, o = good.nonzero(as_tuple=True)
        out.append(Assignment(image[which[p]], anchor[p], cell[p, o, 1], cell[p, o, 0], boxes[which[p]]))
    return out
