"""U-Net (Ronneberger, Fischer, Brox 2015), the baseline of the paper's Sect. 4.2.

    64 ───────────────────────────────────── 64     stride 1
       128 ──────────────────────────── 128         stride 2
           256 ─────────────────── 256              stride 4
               512 ────────── 512                   stride 8
                    1024                            stride 16

Every level is two 3×3 convolutions, each with batch norm and ReLU; 2×2 max-pooling down, 2×2 transposed convolutions up, and
the encoder's map joined before the decoder's convolutions. Departures from 2015: padded convolutions, so that the mask is as
large as the image, and batch norm. With `encoder = "vgg19"` the left side is VGG19's, which takes ImageNet weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mammoseg.segmentation.unetpp import VGG19Encoder


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network.

    in_channels: 3, grey replicated to RGB, as the other networks take it. widths: channels of each level, finest first; VGG19
    has five and its published ones are (64, 128, 256, 512, 512). encoder: "plain" as above, or "vgg19".
    """

    in_channels: int = 3
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    encoder: Literal["plain", "vgg19"] = "plain"

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1 or self.in_channels < 1:
            raise ValueError(f"widths: expected two levels or more of one channel or more, got {self.widths}")
        if self.encoder == "vgg19" and len(self.widths) != 5:
            raise ValueError(f"widths: VGG19 has five levels, got {len(self.widths)}")


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions with batch norm and ReLU: (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class PlainEncoder(nn.Module):
    """The left side: `blocks.i` gives (B, widths[i], H/2^i, W/2^i)."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        ins = (in_channels, *widths[:-1])
        self.blocks = nn.ModuleList(DoubleConv(a, b) for a, b in zip(ins, widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            levels.append(x)
        return levels


class UNet(nn.Module):
    """The whole network; `forward` gives a list of one map of logits in training and inference alike."""

    config_class: ClassVar = UNetConfig

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        widths = self.config.widths
        encoder = VGG19Encoder if self.config.encoder == "vgg19" else PlainEncoder
        self.backbone = encoder(self.config.in_channels, widths)
        pairs = list(pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for here, below in pairs)
        self.decoder = nn.ModuleList(DoubleConv(2 * here, here) for here, _ in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [[B, 1, H, W]]. x: f32[B, in_channels, H, W], H and W multiples of 2^(levels − 1).

        Raises ValueError for other sizes (checked when run by Python; a traced graph holds no check).
        """
        step = 2 ** (len(self.config.widths) - 1)
        exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
        if not exporting and (x.shape[2] % step or x.shape[3] % step):
            raise ValueError(f"U-Net: expected height and width to be multiples of {step}, got {tuple(x.shape[2:])}")
        levels: list[Tensor] = self.backbone(x)
        y = levels[-1]  # (B, widths[-1], H/step, W/step)
        for i in range(len(self.up) - 1, -1, -1):
            y = self.decoder[i](torch.cat([levels[i], self.up[i](y)], dim=1))  # (B, widths[i], H/2^i, W/2^i)
        return [self.head(y)]
