"""ImageNet weights for the VGG19 encoder: real ones where the user has them, else VGG16's by identity insertion.

VGG19 has three convolutions more than VGG16: torchvision's `features.16`, `features.25` and `features.34`, the last of
blocks 3, 4 and 5. Set to identity kernels (a ReLU follows a ReLU, so nothing changes), VGG19 computes VGG16's function.
Files are safetensors with torchvision's keys `features.N.weight` and `features.N.bias`; pickles are never loaded.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mammoseg.errors import TrainingError
from mammoseg.segmentation.unetpp import VGG19_BLOCKS, VGG19Encoder

IDENTITY_INDICES = (16, 25, 34)
VGG16_BLOCKS = (2, 2, 3, 3, 3)
_KEY = re.compile(r"features\.(\d+)\.(weight|bias)")


def _indices(blocks: tuple[int, ...]) -> list[int]:
    """torchvision's indices of the convolutions: a ReLU follows each, a pooling each block."""
    indices, at = [], 0
    for convolutions in blocks:
        indices += [at + 2 * k for k in range(convolutions)]
        at += 2 * convolutions + 1
    return indices


VGG19_INDICES = tuple(_indices(VGG19_BLOCKS))
VGG16_INDICES = tuple(_indices(VGG16_BLOCKS))


def insert_identities(vgg16: dict[str, Tensor]) -> dict[str, Tensor]:
    """VGG16's `features.N.*` as VGG19's: renumbered, and identity kernels at `features.16`, `.25` and `.34`.

    vgg16: f32 weights [O, I, 3, 3] and biases [O] under torchvision's keys. Returns all 32 tensors of VGG19.
    """
    kept = [index for index in VGG19_INDICES if index not in IDENTITY_INDICES]
    vgg19 = {
        f"features.{new}.{part}": vgg16[f"features.{old}.{part}"]
        for old, new in zip(VGG16_INDICES, kept, strict=True)
        for part in ("weight", "bias")
    }
    for index in IDENTITY_INDICES:
        channels = len(vgg19[f"features.{index - 2}.bias"])
        vgg19[f"features.{index}.weight"] = identity_kernel(channels)
        vgg19[f"features.{index}.bias"] = torch.zeros(channels)
    return vgg19


def identity_kernel(channels: int) -> Tensor:
    """f32[channels, channels, 3, 3] of a convolution that changes nothing."""
    kernel = torch.zeros(channels, channels, 3, 3)
    kernel[torch.arange(channels), torch.arange(channels), 1, 1] = 1.0
    return kernel


def load_vgg(encoder: VGG19Encoder, path: Path) -> str:
    """Fills `encoder` in place from torchvision VGG19 or VGG16 weights at `path` and says which in words.

    Raises TrainingError where the file cannot be read or holds neither network's 3×3 convolutions.
    """
    try:
        tensors = load_file(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path.name}: cannot be read as safetensors: {error}") from error
    except Exception as error:  # safetensors' own exception has no public base
        raise TrainingError(f"{path.name}: expected a safetensors file with torchvision VGG keys: {error}") from error
    found = {key: tensor.float() for key, tensor in tensors.items() if _KEY.fullmatch(key)}
    indices = {int(_KEY.fullmatch(key).group(1)) for key in found}  # type: ignore[union-attr]
    if indices == set(VGG19_INDICES):
        words, vgg19 = "VGG19 trained on ImageNet", found
    elif indices == set(VGG16_INDICES):
        words, vgg19 = "VGG19 initialised from ImageNet VGG16 by identity insertion", insert_identities(found)
    else:
        raise TrainingError(
            f"{path.name}: expected the convolutions features.N of torchvision's VGG19 (16) or VGG16 (13), got {len(indices)}"
        )
    names = iter(VGG19_INDICES)
    state: dict[str, Tensor] = {}
    for i, convolutions in enumerate(VGG19_BLOCKS):
        for k in range(convolutions):
            index = next(names)
            for part in ("weight", "bias"):
                state[f"blocks.{i}.{2 * k}.{part}"] = vgg19[f"features.{index}.{part}"]
    own = encoder.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong:
        raise TrainingError(f"{path.name}: {wrong[0]} does not fit the encoder, which has not VGG19's published widths")
    encoder.load_state_dict({key: state[key] for key in own})
    return words
