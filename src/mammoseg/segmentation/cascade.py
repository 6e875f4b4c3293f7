"""Cascaded multi-scale U-Nets with auto-context (Yan et al., EMBC 2019; the paper's reference 9), coarse to fine.

    image / 4 ── U-Net ── probability ─┐
    image / 2 ─────────────────────── + ── U-Net ── probability ─┐
    image ───────────────────────────────────────────────────── + ── U-Net ── probability

Each stage sees the image at its scale and, as one more channel, the probability of the stage before, enlarged to its size
(auto-context): the coarse stages see where, the fine ones how far. The first stage sees a probability of 1/2 everywhere. What
the 2019 paper leaves to the reader is chosen so: three stages, each half as fine as the next; U-Nets of 32 to 512 channels;
all stages trained together, the loss being the mean over the stages at full size; the last stage's mask counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammoseg.segmentation.unet import UNet, UNetConfig


@dataclass(frozen=True)
class CascadeConfig:
    """Shape of the network.

    factors: by how much each stage's image is reduced, coarse to fine, powers of two that end in 1. widths: of each stage's
    U-Net. detach: whether a stage learns without changing those before it.
    """

    in_channels: int = 3
    factors: tuple[int, ...] = (4, 2, 1)
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    detach: bool = False

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise(self.factors))
        if not self.factors or self.factors[-1] != 1 or not falling or any(f & (f - 1) for f in self.factors):
            raise ValueError(f"factors: expected falling powers of two that end in 1, got {self.factors}")


class Cascade(nn.Module):
    """The whole network; `forward` gives the logits of all stages at full size, coarse to fine, in training and inference."""

    config_class: ClassVar = CascadeConfig
    output: ClassVar = "last"

    def __init__(self, config: CascadeConfig | None = None) -> None:
        super().__init__()
        self.config = config or CascadeConfig()
        stage = UNetConfig(self.config.in_channels + 1, self.config.widths)
        self.stages = nn.ModuleList(UNet(stage) for _ in self.config.factors)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [B, 1, H, W] of every stage, the last is the answer.

        x: f32[B, in_channels, H, W], H and W multiples of factors[0] · 2^(levels − 1). Raises ValueError for other sizes.
        """
        step = self.config.factors[0] * 2 ** (len(self.config.widths) - 1)
        exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
        if not exporting and (x.shape[2] % step or x.shape[3] % step):
            raise ValueError(f"cascade: expected height and width to be multiples of {step}, got {tuple(x.shape[2:])}")
        outputs: list[Tensor] = []
        logits: Tensor | None = None
        before = self.config.factors[0]
        for factor, stage in zip(self.config.factors, self.stages):
            small = F.avg_pool2d(x, factor) if factor > 1 else x  # (B, C, H/f, W/f)
            if logits is None:
                context = torch.full_like(small[:, :1], 0.5)
            else:
                context = _enlarge(torch.sigmoid(logits.detach() if self.config.detach else logits), before // factor)
            logits = stage(torch.cat([small, context], dim=1))[0]  # (B, 1, H/f, W/f)
            outputs.append(_enlarge(logits, factor))
            before = factor
        return outputs


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False) if factor > 1 else x
