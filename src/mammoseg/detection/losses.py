"""Detection losses: as published (Redmon and Farhadi 2018, as darknet computes them), and "dense" (GIoU and focal)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mammoseg.detection.targets import Assignment, assign_dense, assign_published

EXP_LIMIT = 4.0


@dataclass(frozen=True)
class LossConfig:
    """kind: "published" or "dense". ignore_iou: a prediction this good counts as no background. The rest is for "dense":

    box: "giou" or "ciou"; box_weight, class_weight: relative to objectness; focus: exponent of the focal weight; quality:
    how much of an objectness target is the IoU of the predicted box (0: always 1); ratio_max: see `assign_dense`.
    """

    kind: Literal["published", "dense"] = "published"
    ignore_iou: float = 0.7
    box: Literal["giou", "ciou"] = "giou"
    box_weight: float = 2.0
    class_weight: float = 0.25
    focus: float = 2.0
    quality: float = 0.5
    ratio_max: float = 2.5


@dataclass(frozen=True)
class Geometry:
    """anchors: f32[strides, A, 2] px; strides; xy_scale: as in `DetectorSpec`."""

    anchors: Tensor
    strides: tuple[int, ...]
    xy_scale: float


def at_least_one(count: int) -> float:
    """What a loss summed over `count` positives is divided by."""
    return max(1.0, float(count))


def detection_loss(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    geometry: Geometry,
    config: LossConfig,
    divisor: Callable[[int], float] = at_least_one,
    ignored: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The loss of raw maps f32[B, A·(5 + classes), h, w] against boxes f32[M, 4] (`xyxy`, px) of images int64[M].

    Returns "loss" (the total), "box", "objectness", "class": scalars. Published: sums over a batch divided by its images;
    dense: divided by `divisor` of the number of positives, which several devices have in common. All boxes are of class 0.
    ignored: boxes f32[K, 4] of images int64[K]; a prediction whose centre lies in one is no background.
    """
    anchors = geometry.anchors.to(maps[0].device)
    count = anchors.shape[1]
    raw = [m.float().reshape(m.shape[0], count, -1, *m.shape[2:]).permute(0, 1, 3, 4, 2) for m in maps]  # (B, A, h, w, 5 + C)
    sizes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
    truth = _Truth(boxes, image, *(ignored or (boxes[:0], image[:0])))
    if config.kind == "published":
        assigned = assign_published(boxes, image, anchors, geometry.strides, sizes)
        parts = _published(raw, assigned, truth, geometry, config.ignore_iou)
        parts = {k: v / maps[0].shape[0] for k, v in parts.items()}
    else:
        assigned = assign_dense(boxes, image, anchors, geometry.strides, sizes, config.ratio_max, geometry.xy_scale)
        positives = divisor(sum(len(a) for a in assigned))
        parts = {k: v / positives for k, v in _dense(raw, assigned, truth, geometry, config).items()}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def decode_level(raw: Tensor, anchors: Tensor, stride: int, xy_scale: float) -> Tensor:
    """Boxes f32[B, A, h, w, 4] (`xyxy`, px) of raw values f32[B, A, h, w, 5 + C], as `predictor.decode` computes them."""
    h, w = raw.shape[2], raw.shape[3]
    rows, columns = torch.meshgrid(torch.arange(h, device=raw.device), torch.arange(w, device=raw.device), indexing="ij")
    cell = torch.stack([columns, rows], dim=-1).to(raw.dtype)
    centre = (raw[..., :2].sigmoid() * xy_scale - (xy_scale - 1) / 2 + cell) * stride
    half = anchors[:, None, None] * raw[..., 2:4].clamp(-EXP_LIMIT, EXP_LIMIT).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU f32[N] of boxes f32[N, 4] with boxes f32[N, 4], pair by pair."""
    return _overlap(a, b)[0]


def box_loss(predicted: Tensor, truth: Tensor, kind: Literal["giou", "ciou"]) -> Tensor:
    """1 − GIoU (Rezatofighi et al. 2019) or 1 − CIoU (Zheng et al. 2020) f32[N], pair by pair, of boxes f32[N, 4]."""
    iou, union = _overlap(predicted, truth)
    hull = torch.maximum(predicted[:, 2:], truth[:, 2:]) - torch.minimum(predicted[:, :2], truth[:, :2])
    if kind == "giou":
        area = hull.prod(dim=1)
        return 1 - iou + (area - union) / area.clamp(min=1e-9)
    between = ((predicted[:, :2] + predicted[:, 2:]) - (truth[:, :2] + truth[:, 2:])) / 2
    apart = between.square().sum(dim=1) / hull.square().sum(dim=1).clamp(min=1e-9)
    p, t = predicted[:, 2:] - predicted[:, :2], truth[:, 2:] - truth[:, :2]
    v = (
        4
        / torch.pi**2
        * (torch.atan(t[:, 0] / t[:, 1].clamp(min=1e-9)) - torch.atan(p[:, 0] / p[:, 1].clamp(min=1e-9))).square()
    )
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=1e-9)
    return 1 - iou + apart + alpha * v


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    wh = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = wh.prod(dim=1)
    union = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - inter
    return inter / union.clamp(min=1e-9), union


@torch.no_grad()
def _best_iou(predicted: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
    """The best IoU f32[B, A, h, w] of each predicted box with a true box of its image."""
    best = predicted.new_zeros(predicted.shape[:-1])
    for box, i in zip(boxes, image.tolist(), strict=True):
        flat = predicted[i].reshape(-1, 4)
        best[i] = torch.maximum(best[i], pair_iou(flat, box.expand_as(flat)).reshape(best[i].shape))
    return best


@dataclass(frozen=True)
class _Truth:
    """Boxes f32[M, 4] of images int64[M], and those f32[K, 4] of images int64[K] to ignore."""

    boxes: Tensor
    image: Tensor
    ignored: Tensor
    ignored_image: Tensor


@torch.no_grad()
def _background(predicted: Tensor, truth: _Truth, ignore_iou: float) -> Tensor:
    """f32[B, A, h, w]: 1 where a predicted box is background unless it is assigned, 0 where it is as good as a true box or in
    an ignored one.
    """
    weight = (_best_iou(predicted, truth.boxes, truth.image) <= ignore_iou).to(predicted.dtype)
    for box, i in zip(truth.ignored, truth.ignored_image.tolist(), strict=True):
        x, y = ((predicted[i, ..., k] + predicted[i, ..., k + 2]) / 2 for k in (0, 1))
        weight[i] *= ((x < box[0]) | (x > box[2]) | (y < box[1]) | (y > box[3])).to(weight.dtype)
    return weight


def _published(
    raw: Sequence[Tensor], assigned: Sequence[Assignment], truth: _Truth, geometry: Geometry, ignore_iou: float
) -> dict[str, Tensor]:
    box = objectness = classes = raw[0].new_zeros(())
    for level, (t, a, stride) in enumerate(zip(raw, assigned, geometry.strides, strict=True)):
        anchors = geometry.anchors[level].to(t)
        predicted = decode_level(t.detach(), anchors, stride, geometry.xy_scale)
        weight = _background(predicted, truth, ignore_iou)
        target = torch.zeros_like(weight)
        where = (a.image, a.anchor, a.row, a.column)
        weight[where] = 1.0
        target[where] = 1.0
        objectness = objectness + (weight * F.binary_cross_entropy_with_logits(t[..., 4], target, reduction="none")).sum()
        if not len(a):
            continue
        mine = t[where]  # (P, 5 + C)
        height, width = t.shape[2] * stride, t.shape[3] * stride
        wh = a.box[:, 2:] - a.box[:, :2]
        cell = torch.stack([a.column, a.row], dim=1)
        inside = ((a.box[:, :2] + a.box[:, 2:]) / 2 / stride - cell + (geometry.xy_scale - 1) / 2) / geometry.xy_scale
        small = (2 - wh.prod(dim=1) / (height * width))[:, None]  # small boxes weigh up to twice as much, as in darknet
        xy = F.binary_cross_entropy_with_logits(mine[:, :2], inside.clamp(0, 1), reduction="none")
        sizes = 0.5 * (mine[:, 2:4] - (wh / anchors[a.anchor]).log()).square()
        box = box + (small * (xy + sizes)).sum()
        classes = classes + _class_loss(mine)
    return {"box": box, "objectness": objectness, "class": classes}


def _dense(
    raw: Sequence[Tensor], assigned: Sequence[Assignment], truth: _Truth, geometry: Geometry, config: LossConfig
) -> dict[str, Tensor]:
    box = objectness = classes = raw[0].new_zeros(())
    for level, (t, a, stride) in enumerate(zip(raw, assigned, geometry.strides, strict=True)):
        anchors = geometry.anchors[level].to(t)
        predicted = decode_level(t, anchors, stride, geometry.xy_scale)
        weight = _background(predicted.detach(), truth, config.ignore_iou)
        target = torch.zeros_like(weight)
        where = (a.image, a.anchor, a.row, a.column)
        if len(a):
            mine = predicted[where]
            with torch.no_grad():
                quality = 1 - config.quality + config.quality * pair_iou(mine, a.box)
            target.index_put_(where, quality)
            weight[where] = 1.0
            box = box + config.box_weight * box_loss(mine, a.box, config.box).sum()
            classes = classes + config.class_weight * _class_loss(t[where])
        # Quality focal loss (Li et al. 2020, Eq. 5): cross-entropy weighted by how far the score is from its target.
        distance = (target - t[..., 4].sigmoid()).abs().pow(config.focus)
        cross = F.binary_cross_entropy_with_logits(t[..., 4], target, reduction="none")
        objectness = objectness + (weight * distance * cross).sum()
    return {"box": box, "objectness": objectness, "class": classes}


def _class_loss(mine: Tensor) -> Tensor:
    wanted = torch.zeros_like(mine[:, 5:])
    wanted[:, 0] = 1.0
    return F.binary_cross_entropy_with_logits(mine[:, 5:], wanted, reduction="sum")
