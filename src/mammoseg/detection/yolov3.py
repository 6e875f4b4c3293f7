"""YOLOv3, read top to bottom: Darknet-53, the three-scale neck and heads (Redmon and Farhadi 2018; the paper's Sect. 3.2).

With one class and three anchors a scale it has 61,523,734 parameters. The backbone can be exchanged (see `BACKBONES` in
`mammoseg.detection`), and neck and heads made narrower with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mammoseg.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class YoloConfig:
    """The network. neck_widths: of the neck's 1×1 convolutions at strides 8, 16, 32 (its 3×3 convolutions are twice as wide).

    neck_pairs: (1×1, 3×3) pairs before the neck's last 1×1. normalisation: of neck and heads. prior: objectness at the start.
    fold_norm, frozen_stages: for the EfficientNet-Lite backbones, see there.
    """

    backbone: Literal["darknet53", "efficientnet_lite0", "efficientnet_lite2"] = "darknet53"
    classes: int = 1
    anchors_per_scale: int = 3
    neck_widths: tuple[int, int, int] = (128, 256, 512)
    neck_pairs: int = 2
    prior: float = 0.5
    fold_norm: bool = False
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1:
            raise ConfigError(f"network.prior: expected a probability inside (0, 1), got {self.prior}")


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, leaky ReLU of slope 0.1. (B, C, H, W) to (B, C', H/s, W/s)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-5, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), 0.1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels // 2, 1)
        self.conv2 = ConvNormAct(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return x + y


class _Stage(nn.Module):
    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.conv_down = ConvNormAct(channels, out, 3, 2)
        self.blocks = nn.Sequential(*(_Residual(out) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.conv_down(x))
        return y


class Darknet53(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 32, to features at strides 8, 16, 32. Names as in timm's `darknet53`."""

    channels = (256, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 32, 3)
        plan = ((32, 64, 1), (64, 128, 2), (128, 256, 8), (256, 512, 8), (512, 1024, 4))
        self.stages = nn.ModuleList(_Stage(channels, out, blocks) for channels, out, blocks in plan)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)  # (B, 32, H, W)
        features = []
        for i, stage in enumerate(self.stages.children()):
            x = stage(x)  # (B, 64 · 2^i, H / 2^(i+1), W / 2^(i+1))
            if i >= 2:
                features.append(x)
        return features


class _Scale(nn.Module):
    """One scale of the neck with its head: `block` gives what goes on upwards, `out` the raw map."""

    def __init__(self, channels: int, width: int, pairs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(pairs):
            layers += [ConvNormAct(channels if i == 0 else 2 * width, width, 1), ConvNormAct(width, 2 * width, 3)]
        layers.append(ConvNormAct(2 * width if pairs else channels, width, 1))
        self.block = nn.Sequential(*layers)
        self.head = ConvNormAct(width, 2 * width, 3)
        self.out = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.block(x)
        return y, self.out(self.head(y))


class YoloV3(nn.Module):
    """(B, 3, H, W), H and W multiples of 32, to three raw maps (B, A·(5 + classes), H/s, W/s) for s = 8, 16, 32.

    Channels of anchor a: [x, y, w, h, objectness, classes...] from a·(5 + classes) on, all before any sigmoid, as in darknet.
    """

    config_class: ClassVar = YoloConfig
    strides: ClassVar = (8, 16, 32)

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        self.config = config
        backbone: Any = _backbone(config)
        self.backbone = backbone
        outputs = outputs_of(config)
        c8, c16, c32 = backbone.channels
        w8, w16, w32 = config.neck_widths
        self.scale32 = _Scale(c32, w32, config.neck_pairs, outputs)
        self.up16 = ConvNormAct(w32, w32 // 2, 1)
        self.scale16 = _Scale(w32 // 2 + c16, w16, config.neck_pairs, outputs)
        self.up8 = ConvNormAct(w16, w16 // 2, 1)
        self.scale8 = _Scale(w16 // 2 + c8, w8, config.neck_pairs, outputs)
        self._initialise()

    def _initialise(self) -> None:
        own: list[nn.Module] = [self.scale32, self.up16, self.scale16, self.up8, self.scale8]
        if isinstance(self.backbone, Darknet53):
            own.append(self.backbone)
        for part in own:
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=0.1, nonlinearity="leaky_relu")
        step = 5 + self.config.classes
        for scale in (self.scale8, self.scale16, self.scale32):
            nn.init.normal_(scale.out.weight, 0.0, 0.01)
            bias = torch.zeros(outputs_of(self.config))
            bias[4::step] = math.log(self.config.prior / (1 - self.config.prior))
            scale.out.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        f8, f16, f32 = self.backbone(x)
        y, map32 = self.scale32(f32)
        y = F.interpolate(self.up16(y), scale_factor=2.0, mode="nearest")
        y, map16 = self.scale16(torch.cat([y, f16], dim=1))
        y = F.interpolate(self.up8(y), scale_factor=2.0, mode="nearest")
        _, map8 = self.scale8(torch.cat([y, f8], dim=1))
        return [map8, map16, map32]

    def load_start(self, path: Path) -> None:
        """Weights to start training from: safetensors with timm's keys (backbone), or a file in darknet's own format.

        Raises TrainingError on a file that is not there or does not fit.
        """
        if not path.is_file():
            raise TrainingError(f"backbone weights not found: {path}; give weights=null to start from nothing")
        from mammoseg.detection.darknet_weights import load_darknet, load_timm_darknet53

        if path.suffix != ".safetensors":
            load_darknet(self, path)
        elif isinstance(self.backbone, Darknet53):
            load_timm_darknet53(self.backbone, path)
        else:
            self.backbone.load_imagenet(path)


def outputs_of(config: YoloConfig) -> int:
    """Channels of each raw map."""
    return config.anchors_per_scale * (5 + config.classes)


def _backbone(config: YoloConfig) -> nn.Module:
    if config.backbone == "darknet53":
        return Darknet53()
    from mammoseg.detection.efficientnet_lite import EfficientNetLite

    return EfficientNetLite(config.backbone, config.fold_norm, config.frozen_stages)
