"""v19U-Net++: a VGG19 encoder under nested dense skip pathways (paper, Sect. 3.3; Zhou et al. 2018, U-Net++).

Node X^{i,j} lies at level i (stride 2^i) in column j:

    X^{0,0} ─ X^{0,1} ─ X^{0,2} ─ X^{0,3} ─ X^{0,4}      64 channels, stride 1
        X^{1,0} ─ X^{1,1} ─ X^{1,2} ─ X^{1,3}           128 channels, stride 2
            X^{2,0} ─ X^{2,1} ─ X^{2,2}                256 channels, stride 4
                X^{3,0} ─ X^{3,1}                     512 channels, stride 8
                    X^{4,0}                          512 channels, stride 16

Column 0 is VGG19's five blocks (16 convolutions 3×3 with bias and ReLU, 2×2 max-pooling between the blocks, no batch norm:
published ImageNet weights fit). X^{i,j}, j ≥ 1, reads all nodes left of it on its level and X^{i+1,j-1} upsampled twice:

    X^{i,j} = block([X^{i,0}, …, X^{i,j-1}, up(X^{i+1,j-1})]),   block = 2 × (3×3 convolution, batch norm, ReLU)

Upsampling is bilinear and has no parameters. A 1×1 convolution on each of X^{0,1} … X^{0,4} gives the logits of deep
supervision. The paper leaves the decoder's details open; this arrangement, its channels equal to the encoder's, has
35,440,452 parameters, 20,024,384 of them in the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Convolutions of each VGG19 block.
VGG19_BLOCKS = (2, 2, 4, 4, 4)


@dataclass(frozen=True)
class UNetPlusPlusConfig:
    """Shape of the network.

    in_channels: 3, grey replicated to RGB, so that ImageNet's weights fit. widths: channels of levels 0…4.
    depth: 1…4, how many columns of the decoder exist; less than 4 is the pruned U-Net++ L^depth.
    """

    in_channels: int = 3
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    depth: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 4:
            raise ValueError(f"depth: expected 1 to 4, got {self.depth}")
        if min(self.widths) < 1 or self.in_channels < 1:
            raise ValueError(f"widths and in_channels: expected 1 or more, got {self.widths} and {self.in_channels}")


class VGG19Encoder(nn.Module):
    """VGG19 without its classifier: `blocks.i` gives X^{i,0}."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = in_channels
        for width, convolutions in zip(widths, VGG19_BLOCKS):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            self.blocks.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] to [X^{0,0}, …]: [B, widths[i], H/2^i, W/2^i], the last before its pooling."""
        columns: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            columns.append(x)
        return columns


class NestedNode(nn.Module):
    """X^{i,j}, j ≥ 1: two 3×3 convolutions with batch norm over all that flows in."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, level: list[Tensor], below: Tensor) -> Tensor:
        """level: X^{i,0} … X^{i,j-1}, [B, C_i, h, w] each; below: X^{i+1,j-1}, [B, C_{i+1}, h/2, w/2]."""
        up = F.interpolate(below, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = torch.cat([*level, up], dim=1)  # (B, j·C_i + C_{i+1}, h, w)
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)  # (B, C_i, h, w)


class UNetPlusPlus(nn.Module):
    """The whole network; `forward` gives the list of deep-supervision logits in training and inference alike."""

    config_class: ClassVar = UNetPlusPlusConfig

    def __init__(self, config: UNetPlusPlusConfig | None = None) -> None:
        super().__init__()
        self.config = config or UNetPlusPlusConfig()
        widths, depth = self.config.widths, self.config.depth
        self.backbone = VGG19Encoder(self.config.in_channels, widths[: depth + 1])
        self.nodes = nn.ModuleDict()  # "i_j" is X^{i,j}
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                self.nodes[f"{i}_{j}"] = NestedNode(j * widths[i] + widths[i + 1], widths[i])
        self.heads = nn.ModuleList(nn.Conv2d(widths[0], 1, 1) for _ in range(depth))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [B, 1, H, W] of X^{0,1} … X^{0,depth}, shallowest first.

        x: f32[B, in_channels, H, W], normalised as the encoder's weights expect; H and W multiples of 16.
        Raises ValueError for other sizes (checked when run by Python; a traced graph holds no check).
        """
        step = 2**self.config.depth
        exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
        if not exporting and (x.shape[2] % step or x.shape[3] % step):
            raise ValueError(f"U-Net++: expected height and width to be multiples of {step}, got {tuple(x.shape[2:])}")
        grid: list[list[Tensor]] = [[column] for column in self.backbone(x)]  # grid[i][j] is X^{i,j}
        for j in range(1, self.config.depth + 1):
            for i in range(self.config.depth + 1 - j):
                grid[i].append(self.nodes[f"{i}_{j}"](grid[i], grid[i + 1][j - 1]))
        return [head(node) for head, node in zip(self.heads, grid[0][1:])]

    def pruned(self, depth: int) -> UNetPlusPlus:
        """U-Net++ L^depth: a new network with copies of those weights that X^{0,depth} depends on; the rest is never run.

        Its last logits equal this network's logits number `depth` (from 1).
        """
        if not 1 <= depth <= self.config.depth:
            raise ValueError(f"pruned: expected a depth of 1 to {self.config.depth}, got {depth}")
        config = UNetPlusPlusConfig(self.config.in_channels, self.config.widths, depth)
        network = UNetPlusPlus(config)
        mine = self.state_dict()
        network.load_state_dict({key: mine[key].clone() for key in network.state_dict()})
        return network.train(self.training)


def _initialise(module: nn.Module) -> None:
    """He initialisation for ReLU networks; every weight of the network comes through here before ImageNet's are loaded."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
