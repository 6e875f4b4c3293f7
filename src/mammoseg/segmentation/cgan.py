"""Conditional GAN for masses (Singh et al., Expert Systems with Applications 2020; the paper's reference 7).

The generator is an encoder–decoder with skip connections: 4×4 convolutions of stride 2 with batch norm and leaky ReLU down to
1/128 of the crop, 4×4 transposed convolutions with batch norm and ReLU up again, dropout in the deepest three of them (the
noise of the GAN; off at inference). The discriminator sees the crop with a mask, true or generated, and says for every patch of
them which it is: five 4×4 convolutions. Losses, as published:

    L_D = BCE(D(x, y), 1) + BCE(D(x, G(x)), 0)          L_G = BCE(D(x, G(x)), 1) + λ · (1 − Dice(y, G(x))),  λ = 150

Both are minimised in one step of one optimizer: L_G sees D's weights as constants, L_D sees G(x) as a constant, so each
gradient is the one of its own loss. (Singh et al. alternate two Adam optimizers of equal settings; λ is divided out here, so
that the learning rate means what it means for the other networks: L_G / λ.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mammoseg.segmentation.losses import SegmentationLossConfig, dice_loss


@dataclass(frozen=True)
class CGANConfig:
    """Shape of both networks, and the weight of the Dice loss.

    widths: channels of the generator's encoder, one a halving. critic_widths: of the discriminator. dropout: in the deepest
    three steps up. dice_weight: λ.
    """

    in_channels: int = 3
    widths: tuple[int, ...] = (64, 128, 256, 512, 512, 512, 512)
    critic_widths: tuple[int, ...] = (64, 128, 256, 512)
    dropout: float = 0.5
    dice_weight: float = 150.0

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or not self.critic_widths or min(*self.widths, *self.critic_widths) < 1:
            raise ValueError("widths, critic_widths: expected two levels or more of one channel or more")
        if not 0 <= self.dropout < 1 or self.dice_weight <= 0:
            raise ValueError("cgan: expected a dropout in [0, 1) and a dice_weight above 0")


class Generator(nn.Module):
    """(B, in_channels, H, W), H and W multiples of 2^levels, to logits (B, 1, H, W)."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        widths = config.widths
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(zip((config.in_channels, *widths[:-1]), widths)):
            self.down.append(_step(nn.Conv2d(a, b, 4, 2, 1, bias=i == 0), norm=i > 0, slope=0.2))
        self.up = nn.ModuleList()  # deepest first
        levels = len(widths)
        for i in range(levels - 1, 0, -1):
            ins = widths[i] if i == levels - 1 else 2 * widths[i]
            step = _step(nn.ConvTranspose2d(ins, widths[i - 1], 4, 2, 1, bias=False), norm=True, slope=0.0)
            if config.dropout and levels - 1 - i < 3:
                step.append(nn.Dropout(config.dropout))
            self.up.append(step)
        self.head = nn.ConvTranspose2d(2 * widths[0], 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for step in self.down:
            x = step(x)
            skips.append(x)  # (B, widths[i], H/2^(i+1), W/2^(i+1))
        for i, step in enumerate(self.up):
            x = torch.cat([step(x), skips[len(skips) - 2 - i]], dim=1)
        out: Tensor = self.head(x)
        return out


class Discriminator(nn.Module):
    """Crop and mask, (B, in_channels + 1, H, W), to one logit for each patch, (B, 1, h, w): above 0 for a true mask."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.in_channels + 1
        for i, width in enumerate(config.critic_widths):
            stride = 2 if i < len(config.critic_widths) - 1 else 1
            layers.append(_step(nn.Conv2d(channels, width, 4, stride, 1, bias=i == 0), norm=i > 0, slope=0.2))
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([image, mask], dim=1))
        return out


class ConditionalGAN(nn.Module):
    """Both networks; `forward` is the generator's and gives a list of one map of logits in training and inference alike."""

    config_class: ClassVar = CGANConfig

    def __init__(self, config: CGANConfig | None = None) -> None:
        super().__init__()
        self.config = config or CGANConfig()
        self.generator = Generator(self.config)
        self.discriminator = Discriminator(self.config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits [[B, 1, H, W]]. x: f32[B, in_channels, H, W], H and W multiples of 2^levels (128 as published).

        Raises ValueError for other sizes (checked when run by Python; a traced graph holds no check).
        """
        step = 2 ** len(self.config.widths)
        exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
        if not exporting and (x.shape[2] % step or x.shape[3] % step):
            raise ValueError(f"cGAN: expected height and width to be multiples of {step}, got {tuple(x.shape[2:])}")
        return [self.generator(x)]

    def training_loss(
        self, logits: list[Tensor], image: Tensor, truth: Tensor, config: SegmentationLossConfig
    ) -> dict[str, Tensor]:
        """`loss` and its parts, scalars; see the module. logits: what `forward` gave for `image`. truth: [B, 1, H, W], 0 or 1.

        Of `config` only `smooth` counts: the weights are the network's own.
        """
        image, truth = image.float(), truth.float()
        generated = torch.sigmoid(logits[0].float())
        frozen = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        frozen |= {k: v.clone() for k, v in self.discriminator.named_buffers()}  # statistics move with L_D alone
        fooled = functional_call(self.discriminator, frozen, (image, generated))
        dice = dice_loss(logits[0], truth, config.smooth)
        real, fake = self.discriminator(image, truth), self.discriminator(image, generated.detach())
        adversarial = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        critic = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        critic = critic + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        loss = dice + adversarial / self.config.dice_weight + critic
        return {"loss": loss, "dice_loss": dice, "adversarial": adversarial, "critic": critic}


def _step(convolution: nn.Module, norm: bool, slope: float) -> nn.Sequential:
    channels = int(convolution.out_channels)  # type: ignore[arg-type]
    layers: list[nn.Module] = [convolution]
    if norm:
        layers.append(nn.BatchNorm2d(channels))
    layers.append(nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
