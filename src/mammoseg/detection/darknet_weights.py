"""Darknet's own weight files: `darknet53.conv.74` (the backbone) and whole `yolov3.weights`, read and written.

Layout: three int32 (major, minor, revision), the number of images seen (int64 from version 0.2 on, else int32), then
float32 per convolution in the order of the network: with batch normalisation [offset, scale, mean, variance], else [bias];
then the kernel (out, in, kh, kw).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from mammoseg.detection.yolov3 import ConvNormAct, Darknet53, YoloV3
from mammoseg.errors import TrainingError


@dataclass(frozen=True)
class Header:
    """major, minor, revision of the format; seen: images the weights were trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    def pack(self) -> bytes:
        """The header's bytes: 20 from version 0.2 on, else 16."""
        wide = self.major * 10 + self.minor >= 2
        return struct.pack("<3i" + ("q" if wide else "i"), self.major, self.minor, self.revision, self.seen)


def load_darknet(network: YoloV3 | Darknet53, path: Path) -> Header:
    """Loads `path` into a whole network or its Darknet-53, by what fits the number of values; returns the file's header.

    A whole YOLOv3 takes a whole file, or the backbone's alone (neck and heads stay as they are). Raises TrainingError where
    the file has another number of values, for example a `yolov3.weights` of 80 classes for a network of one.
    """
    header, values = _read(path)
    backbone = network.backbone if isinstance(network, YoloV3) else network
    if not isinstance(backbone, Darknet53):
        raise TrainingError(f"{path.name}: darknet weights fit the backbone darknet53 only, this network has another")
    choices = [_convolutions(backbone)]
    if isinstance(network, YoloV3):
        choices.append(choices[0] + _neck_convolutions(network))
    counts = [sum(t.numel() for convolution in c for t in _tensors(convolution)) for c in choices]
    if len(values) not in counts:
        raise TrainingError(
            f"{path.name}: expected {' or '.join(f'{n:,}' for n in counts)} values (backbone alone, or whole), "
            f"got {len(values):,}; a whole file must be of as many classes as the network"
        )
    at = 0
    with torch.no_grad():
        for convolution in choices[counts.index(len(values))]:
            for tensor in _tensors(convolution):
                part = values[at : at + tensor.numel()].copy()
                tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))
                at += tensor.numel()
    return header


def save_darknet(network: YoloV3 | Darknet53, path: Path, header: Header | None = None) -> None:
    """Writes what `load_darknet` reads: of a `Darknet53` the backbone's file, of a `YoloV3` the whole one."""
    if isinstance(network, YoloV3):
        convolutions = _convolutions(network.backbone) + _neck_convolutions(network)
    else:
        convolutions = _convolutions(network)
    with path.open("wb") as handle:
        handle.write((header or Header()).pack())
        for convolution in convolutions:
            for tensor in _tensors(convolution):
                handle.write(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes())


def load_timm_darknet53(backbone: Darknet53, path: Path) -> None:
    """Loads timm's `darknet53` from safetensors; its classifier is left out. Raises TrainingError on other weights."""
    state = {k: v for k, v in load_file(str(path)).items() if not k.startswith(("head.", "num_batches"))}
    missing, surplus = backbone.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or surplus:
        raise TrainingError(f"{path.name}: not timm's darknet53: missing {missing[:3]}, not known {surplus[:3]}")


def _read(path: Path) -> tuple[Header, NDArray[np.float32]]:
    data = path.read_bytes()
    if len(data) < 16:
        raise TrainingError(f"{path.name}: too short for darknet weights ({len(data)} bytes)")
    major, minor, revision = struct.unpack_from("<3i", data)
    wide = major * 10 + minor >= 2
    start = 20 if wide else 16
    if not (0 <= major < 1000 and 0 <= minor < 1000) or (len(data) - start) % 4 or len(data) < start:
        raise TrainingError(f"{path.name}: not a darknet weights file (version {major}.{minor}, {len(data)} bytes)")
    (seen,) = struct.unpack_from("<q" if wide else "<i", data, 12)
    return Header(major, minor, revision, seen), np.frombuffer(data, dtype="<f4", offset=start)


def _tensors(convolution: ConvNormAct | nn.Conv2d) -> list[Tensor]:
    """The tensors of one convolution in the file's order."""
    if isinstance(convolution, nn.Conv2d):
        assert convolution.bias is not None
        return [convolution.bias, convolution.weight]
    norm = convolution.bn
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [norm.bias, norm.weight, norm.running_mean, norm.running_var, convolution.conv.weight]


def _convolutions(backbone: Darknet53) -> list[ConvNormAct | nn.Conv2d]:
    """Of Darknet-53; modules are registered in the order they run in."""
    return [m for m in backbone.modules() if isinstance(m, ConvNormAct)]


def _neck_convolutions(network: YoloV3) -> list[ConvNormAct | nn.Conv2d]:
    """Of neck and heads, coarsest scale first, as in yolov3.cfg."""
    out: list[ConvNormAct | nn.Conv2d] = []
    for scale, up in ((network.scale32, network.up16), (network.scale16, network.up8), (network.scale8, None)):
        out += [m for m in scale.block if isinstance(m, ConvNormAct)]
        out += [scale.head, scale.out]
        if up is not None:
            out.append(up)
    return out
