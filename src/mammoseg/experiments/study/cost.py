"""What the study will cost: floating-point operations of its networks, counted without computing, over this machine's speed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mammoseg.config import to_dict
from mammoseg.experiments.study.config import OneStageConfig
from mammoseg.experiments.study.inference import device
from mammoseg.experiments.train_detector import DetectorTrainConfig
from mammoseg.experiments.train_segmenter import SegmenterTrainConfig
from mammoseg.runtime.torch_runtime import build
from mammoseg.types import Size

TRAINING = 3.0
"""A training step costs about three times the forward pass: forward, and the gradients of inputs and of weights."""


def forward(kind: str, arch: str, network: Mapping[str, Any], size: Size) -> float:
    """Floating-point operations of one image of `size` (H, W) through a network (a multiplication and an addition are two)."""
    return _forward(kind, arch, repr(sorted(network.items())), size, _Settings(network))


class _Settings:
    """Settings as an argument that a cache ignores."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Settings)


@cache
def _forward(kind: str, arch: str, _: str, size: Size, settings: _Settings) -> float:
    with torch.device("meta"):
        network = build(kind, {"arch": arch, "network": dict(settings.values)})
        image = torch.empty(1, 3, *size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(image)
    return float(counter.get_total_flops())


def train_detector(config: DetectorTrainConfig) -> float:
    """Of one training run: the mean over its input sizes."""
    each = [_detector(config, size) for size in config.sizes]
    return TRAINING * config.training.steps * config.training.batch_size * sum(each) / len(each)


def detect(config: DetectorTrainConfig, images: int) -> float:
    """Of all scales of `images` images."""
    return images * sum(_detector(config, size) for size in config.scales)


def _detector(config: DetectorTrainConfig, size: Size) -> float:
    from mammoseg.detection import DETECTORS, lookup

    if getattr(lookup(DETECTORS, config.arch), "layout", "yolo") != "yolo":
        return forward("detector", "yolov3", {}, size)  # torchvision's depend on what they find: taken as a YOLOv3
    return forward("detector", config.arch, config.network, size)


def train_segmenter(config: SegmenterTrainConfig) -> float:
    """Of one training run on crops."""
    side = config.crop.size
    each = forward("segmenter", config.arch, config.network, (side, side))
    return TRAINING * config.training.steps * config.training.batch_size * each


def segment(config: SegmenterTrainConfig, crops: int) -> float:
    """Of so many crops."""
    side = config.crop.size
    return crops * forward("segmenter", config.arch, config.network, (side, side))


def train_one_stage(crops: SegmenterTrainConfig, config: OneStageConfig) -> float:
    """Of one training run on whole images."""
    each = forward("segmenter", crops.arch, crops.network, config.size)
    return TRAINING * config.training.steps * config.training.batch_size * each


def segment_whole(crops: SegmenterTrainConfig, config: OneStageConfig, images: int) -> float:
    """Of so many whole images."""
    return images * forward("segmenter", crops.arch, crops.network, config.size)


def speed(seconds: float = 0.5) -> float:
    """Floating-point operations a second that this machine reaches in 3×3 convolutions, measured for about `seconds`."""
    where = torch.device(device())
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1).to(where)
    image = torch.rand(4, 64, 128, 128, device=where)
    each = 2 * 9 * 64 * 64 * image.shape[0] * 128 * 128
    with torch.inference_mode():
        _wait(convolution(image))
        begun, count = time.monotonic(), 0
        while time.monotonic() - begun < seconds:
            _wait(convolution(image))
            count += 1
    return each * count / (time.monotonic() - begun)


def _wait(result: torch.Tensor) -> None:
    if result.is_cuda:
        torch.cuda.synchronize()


def words(seconds: float) -> str:
    """For people: 40 s, 12 min, 3.5 h, 12 days."""
    for limit, unit, size in ((90, "s", 1), (90 * 60, "min", 60), (72 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if seconds / size >= 10 or size == 1 else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def settings_of(config: Any) -> dict[str, Any]:
    """A training run's settings as a step's: without what changes nothing but its speed or names a file."""
    values = to_dict(config)
    for key in ("cache", "weights", "backbone_weights"):
        values.pop(key, None)
    return values
