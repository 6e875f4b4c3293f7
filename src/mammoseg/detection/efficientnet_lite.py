"""EfficientNet-Lite 0 and 2 as feature extractors, parameter names as in timm's `tf_efficientnet_lite*`.

Source: Tan and Le 2019 (EfficientNet) without squeeze-and-excitation and with ReLU6, as published in TensorFlow's Lite models:
convolutions of stride 2 pad as TensorFlow's "SAME" does on even sizes. Input RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mammoseg.errors import TrainingError

Variant = Literal["efficientnet_lite0", "efficientnet_lite2"]

# (kernel, stride, expansion, channels, blocks) of the seven stages.
_STAGES: dict[Variant, tuple[tuple[int, int, int, int, int], ...]] = {
    "efficientnet_lite0": (
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (5, 2, 6, 40, 2),
        (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    ),
    "efficientnet_lite2": (
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 3),
        (5, 2, 6, 48, 3),
        (3, 2, 6, 88, 4),
        (5, 1, 6, 120, 4),
        (5, 2, 6, 208, 5),
        (3, 1, 6, 352, 1),
    ),
}
_OUT_STAGES = (2, 4, 6)  # the last stages at strides 8, 16 and 32
_CLASSIFIER = ("conv_head.", "bn2.", "classifier.")


class _DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution whose kernel's gradient is computed in float32: on CPUs that is several times faster than the
    library's bfloat16 way for kernels of 5 × 5 (and more exact). Same values as `conv2d` otherwise.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place, ctx.has_bias = (stride, padding), bias is not None
        return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        stride, padding = ctx.place
        rest = (None, (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), x.shape[1])
        back = torch.ops.aten.convolution_backward
        of_x = back(grad, x.to(grad), weight.to(grad), *rest, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = back(grad.float(), x.float(), weight.float(), *rest, [False, True, False])[1]
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3), dtype=torch.float32)
        return of_x, of_weight, of_bias, None, None


class _ExportedConv(torch.autograd.Function):
    """A convolution of stride 2 with uneven padding, which ONNX has and torch has not: one node of the exported graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
        before, after = padding - 1, padding + 1
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, None, 2, 0, 1, groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, padding: int, groups: int) -> Any:
        """The node; g: the exporter's graph."""
        pads = [padding - 1, padding - 1, padding + 1, padding + 1]
        return g.op("Conv", x, weight, pads_i=pads, strides_i=[2, 2], dilations_i=[1, 1], group_i=groups)


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    stride = conv.stride[0]
    if conv.groups > 1 and conv.kernel_size[0] > 3 and conv.training and x.device.type == "cpu" and x.dtype == torch.bfloat16:
        apply: Callable[..., Tensor] = _DepthwiseConv.apply
        return apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, 1, conv.groups)


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, folded: bool) -> Tensor:
    """`norm(conv(x))`. folded: with the statistics held and multiplied into the kernel: the same values as in evaluation
    mode, gradients for kernel, scale and offset, and no pass over the feature map.
    """
    stride = conv.stride[0]
    padding = conv.kernel_size[0] // 2
    shifted = stride == 2  # "SAME" on even sizes begins one later than symmetric padding
    if shifted and torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        apply: Callable[..., Tensor] = _ExportedConv.apply
        normed: Tensor = norm(apply(x, conv.weight, padding, conv.groups))
        return normed
    if shifted:
        padding += 1  # pad one more, drop the first row and column
    if folded:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = conv.weight * scale[:, None, None, None]
        y = _convolve(conv, x, weight, norm.bias - norm.running_mean * scale, padding)
        return y[:, :, 1:, 1:] if shifted else y
    y = _convolve(conv, x, conv.weight, None, padding)
    normed = norm(y[:, :, 1:, 1:] if shifted else y)
    return normed


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """Inverted residual; without expansion (the first stage) depthwise separable. x: (B, C, H, W) to (B, C', H/s, W/s)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = channels * expansion
        self.expands = expansion > 1
        self.residual = stride == 1 and channels == out
        self.folded = False
        self.conv_dw = nn.Conv2d(middle, middle, kernel, stride, bias=False, groups=middle)
        self.bn1 = _norm(middle)
        self.bn2 = _norm(middle if self.expands else out)
        if self.expands:
            self.conv_pw = nn.Conv2d(channels, middle, 1, bias=False)
            self.conv_pwl = nn.Conv2d(middle, out, 1, bias=False)
            self.bn3 = _norm(out)
        else:
            self.conv_pw = nn.Conv2d(middle, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.folded and self.training
        if self.expands:
            y = F.relu6(conv_norm(self.conv_pw, self.bn1, x, folded))
            y = F.relu6(conv_norm(self.conv_dw, self.bn2, y, folded))
            y = conv_norm(self.conv_pwl, self.bn3, y, folded)
        else:
            y = F.relu6(conv_norm(self.conv_dw, self.bn1, x, folded))
            y = conv_norm(self.conv_pw, self.bn2, y, folded)
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """(B, 3, H, W) in [-1, 1], H and W multiples of 32, to features at strides 8, 16 and 32; `channels` lists their widths.

    fold_norm: hold the statistics of batch normalisation (they are those of the loaded weights) and fold it into the
    convolutions while training. frozen_stages: the stem and so many stages minus one are not trained (0 = all are).
    """

    def __init__(self, variant: Variant, fold_norm: bool = False, frozen_stages: int = 0) -> None:
        super().__init__()
        stages = _STAGES[variant]
        self.variant, self.fold_norm, self.frozen_stages = variant, fold_norm, frozen_stages
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn1 = _norm(32)
        blocks, channels = [], 32
        for kernel, stride, expansion, out, count in stages:
            stage = []
            for i in range(count):
                stage.append(_Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
            blocks.append(nn.Sequential(*stage))
        self.blocks = nn.ModuleList(blocks)
        self.channels = tuple(stages[i][3] for i in _OUT_STAGES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if isinstance(module, _Block):
                module.folded = fold_norm
        if frozen_stages:
            for part in (self.conv_stem, self.bn1, *self.blocks[: frozen_stages - 1]):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        if mode and (self.fold_norm or self.frozen_stages):
            held = self.modules() if self.fold_norm else (m for s in self.blocks[: self.frozen_stages - 1] for m in s.modules())
            for module in (self.bn1, *held):
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(conv_norm(self.conv_stem, self.bn1, x, self.fold_norm and self.training))  # (B, 32, H/2, W/2)
        features = []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in _OUT_STAGES:
                features.append(x)
        return features  # (B, C, H/8, W/8), (B, C, H/16, W/16), (B, C, H/32, W/32)

    def load_imagenet(self, path: Path) -> None:
        """Loads a classifier's weights with timm's keys; every tensor of the extractor must be there."""
        self.load_timm(load_file(str(path)), str(path.name))

    def load_timm(self, state: Mapping[str, Tensor], name: str = "weights") -> None:
        """As `load_imagenet`, from tensors. Raises TrainingError that names what is missing or too much."""
        wanted = {k: v for k, v in state.items() if not k.startswith(_CLASSIFIER)}
        try:
            self.load_state_dict(wanted, strict=True)
        except RuntimeError as error:
            raise TrainingError(f"{name}: not the weights of {self.variant}: {' '.join(str(error).split())[:400]}") from error
