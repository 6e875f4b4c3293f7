"""Darknet's own weight files: `darknet53.conv.74` (the backbone) and whole `yolov3.weights`, read and written.

Layout: three int32 (major, minor, revision), the number of images seen (int64 from version 0.2 on, else int32), then
float32 per convolution in the order of the network: with batch normalisation [offset, scale, mean, variance], else [bias];
then the kernel (out, in, kh, kw).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from mammoseg.detection.yolov3 import ConvNormAct, Darknet53, YoloConfig, YoloV3
from mammoseg.errors import TrainingError

log = logging.getLogger("mammoseg.detection")
_BACKBONE = 52
"""Convolutions of Darknet-53 without its classifier."""


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

    A whole YOLOv3 takes the backbone's file alone (neck and heads stay as they are), a whole file of as many classes, or one
    of another number of classes, such as the `yolov3.weights` of COCO's 80: then the three detection convolutions stay as
    they are, and all others are taken over whose shape is that of the file's. The log says which. Raises TrainingError where
    the number of values is that of none of these.
    """
    header, values = _read(path)
    backbone = network.backbone if isinstance(network, YoloV3) else network
    if not isinstance(backbone, Darknet53):
        raise TrainingError(f"{path.name}: darknet weights fit the backbone darknet53 only, this network has another")
    body = _convolutions(backbone)
    if len(values) == _count(body):
        _fill(body, values)
        return header
    if not isinstance(network, YoloV3):
        raise TrainingError(f"{path.name}: expected {_count(body):,} values (darknet53.conv.74), got {len(values):,}")
    whole = body + _neck_convolutions(network)
    classes = _classes_of(len(values), _count(body))
    if len(values) == _count(whole):
        _fill(whole, values)
    elif classes is not None:
        _fill_matching(whole, values, classes, path.name)
    else:
        raise TrainingError(
            f"{path.name}: expected {_count(body):,} values (the backbone alone), {_count(whole):,} (this whole network) or "
            f"those of a yolov3.weights of any number of classes, got {len(values):,}"
        )
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


def _count(convolutions: Sequence[ConvNormAct | nn.Conv2d]) -> int:
    return sum(t.numel() for convolution in convolutions for t in _tensors(convolution))


def _classes_of(values: int, backbone: int) -> int | None:
    """Of how many classes a published YOLOv3 of so many values is; None where it is of no number."""
    with torch.device("meta"):
        neck = _neck_convolutions(YoloV3(YoloConfig(classes=1)))
    detection = [c for c in neck if isinstance(c, nn.Conv2d)]
    a_class = sum(3 * (c.in_channels + 1) for c in detection)  # three anchors, each with a kernel and a bias more
    more, rest = divmod(values - backbone - _count(neck), a_class)
    return 1 + more if not rest and more >= 0 else None


@torch.no_grad()
def _fill(convolutions: Sequence[ConvNormAct | nn.Conv2d], values: NDArray[np.float32]) -> None:
    at = 0
    for convolution in convolutions:
        for tensor in _tensors(convolution):
            part = values[at : at + tensor.numel()].copy()
            tensor.copy_(torch.from_numpy(part).reshape(tensor.shape))
            at += tensor.numel()


def _fill_matching(
    convolutions: Sequence[ConvNormAct | nn.Conv2d], values: NDArray[np.float32], classes: int, name: str
) -> None:
    """Fills those of `convolutions` that have the shape of the file's at their place; the file is of the published network."""
    with torch.device("meta"):
        published = YoloV3(YoloConfig(classes=classes))
    stored = _convolutions(published.backbone) + _neck_convolutions(published)  # type: ignore[arg-type]
    same_plan = len(stored) == len(convolutions)
    end, taken = 0, 0
    for place, convolution in enumerate(stored):
        start, end = end, end + _count([convolution])
        own = convolutions[place] if same_plan or place < _BACKBONE else None
        if own is None or isinstance(convolution, nn.Conv2d):
            continue
        if [t.shape for t in _tensors(own)] == [t.shape for t in _tensors(convolution)]:
            _fill([own], values[start:end])
            taken += 1
    log.info(
        "%s is a YOLOv3 of %d classes: %d of its %d convolutions taken over (%d of the backbone); "
        "the three detection convolutions and what else is of another shape start anew",
        name, classes, taken, len(stored), _BACKBONE,
    )  # fmt: skip


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
