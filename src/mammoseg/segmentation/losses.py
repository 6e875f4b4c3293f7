"""Losses of segmentation: the Dice loss of the paper (Sect. 4.2), with binary cross-entropy as an option.

All are computed in float32 whatever the network's precision, and averaged over the deep-supervision logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SegmentationLossConfig:
    """dice_weight, bce_weight: 0 or more, not both 0; (1, 0) is the paper's loss. smooth: pixels added to both sides of the
    Dice fraction, so that an empty truth has a defined loss."""

    dice_weight: float = 1.0
    bce_weight: float = 0.0
    smooth: float = 1.0

    def __post_init__(self) -> None:
        if min(self.dice_weight, self.bce_weight, self.smooth) < 0 or self.dice_weight + self.bce_weight == 0:
            raise ValueError("loss: expected weights of 0 or more, not both 0, and smooth of 0 or more")


def dice_loss(logits: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2TP + smooth) / (2TP + FP + FN + smooth) with soft counts, averaged over the images of the batch.

    logits, truth: [B, 1, H, W]; truth in {0, 1}. Returns a scalar f32 in [0, 1].
    """
    p, t = torch.sigmoid(logits.float()).flatten(1), truth.float().flatten(1)
    score = (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)  # 2TP + FP + FN = Σp + Σt
    return (1 - score).mean()


def deep_supervision_loss(logits: Sequence[Tensor], truth: Tensor, config: SegmentationLossConfig | None = None) -> Tensor:
    """Mean over the outputs of dice_weight × Dice loss + bce_weight × binary cross-entropy.

    logits: one [B, 1, H, W] an output, as the network's forward gives them. truth: [B, 1, H, W] in {0, 1}.
    """
    config = config or SegmentationLossConfig()
    total = truth.new_zeros((), dtype=torch.float32)
    for one in logits:
        if config.dice_weight:
            total = total + config.dice_weight * dice_loss(one, truth, config.smooth)
        if config.bce_weight:
            total = total + config.bce_weight * F.binary_cross_entropy_with_logits(one.float(), truth.float())
    return total / len(logits)
