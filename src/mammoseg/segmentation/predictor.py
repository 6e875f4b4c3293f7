"""From boxes in a mammogram to probability masks of their crops; numpy only, whatever runs the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammoseg.config import from_dict
from mammoseg.preprocessing.crops import CropConfig, cut_crop, network_input
from mammoseg.types import CropMask, FloatImage, Mammogram

Network = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]
Output = Literal["mean", "last", "L1", "L2", "L3", "L4"]


@dataclass(frozen=True)
class SegmenterSpec:
    """What a trained segmenter needs around it.

    crop: how crops are cut. output: "mean" averages the probabilities of all deep-supervision outputs, "L1" … "L4" takes
    one of them, as the pruned U-Net++ does, "last" the last, as a cascade does. flips: also average over the mirrored crops
    (four times the work). channels, mean, std: of the network's input. batch: crops at a time. From which probability on a
    pixel counts as mass is reconstruction's.
    """

    crop: CropConfig = field(default_factory=CropConfig)
    output: Output = "mean"
    flips: bool = False
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    batch: int = 4

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"segmenter: expected {self.channels} values in mean and std")
        if self.batch < 1:
            raise ValueError(f"segmenter: expected a batch of 1 or more, got {self.batch}")


def read_spec(values: Mapping[str, Any]) -> SegmenterSpec:
    """What `to_dict` made of a spec; the `threshold` that early models carry, and that nothing used, is left out.

    Raises ConfigError on an unknown setting.
    """
    return from_dict(SegmenterSpec, {k: v for k, v in values.items() if k != "threshold"}, "spec")


class Segmenter:
    """Delineates what boxes show. network: f32[B, C, H, W] to a list of logits f32[B, 1, H, W]."""

    def __init__(self, network: Network, spec: SegmenterSpec) -> None:
        self.network = network
        self.spec = spec

    def segment(self, mammogram: Mammogram, boxes: ArrayLike) -> list[CropMask]:
        """One probability mask a box, in the boxes' order; `index` is the box's place.

        boxes: f64[N, 4] `xyxy`, native frame; may reach over the image's border.
        """
        crops = [
            cut_crop(mammogram.pixels, box, self.spec.crop, index)
            for index, box in enumerate(np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
        ]
        masks: list[CropMask] = []
        for start in range(0, len(crops), self.spec.batch):
            part = crops[start : start + self.spec.batch]
            inputs = np.stack([network_input(crop, self.spec.crop) for crop in part])
            masks += [CropMask(p, c.to_crop, c.index) for p, c in zip(self.probabilities(inputs), part, strict=True)]
        return masks

    def probabilities(self, inputs: FloatImage) -> FloatImage:
        """Of a batch of network inputs f32[B, h, w] in [0, 1]: f32[B, h, w] in [0, 1]."""
        views = [(1, 1), (1, -1), (-1, 1), (-1, -1)] if self.spec.flips else [(1, 1)]
        total = np.zeros_like(inputs)
        for rows, columns in views:
            logits = self.network(normalise(np.ascontiguousarray(inputs[:, ::rows, ::columns]), self.spec))
            total += merge_outputs(logits, self.spec.output)[:, ::rows, ::columns]
        return (total / len(views)).clip(0, 1).astype(np.float32)


def normalise(inputs: FloatImage, spec: SegmenterSpec) -> NDArray[np.float32]:
    """Grey f32[B, h, w] in [0, 1] to the network's f32[B, channels, h, w]: replicated, then (x − mean) / std by channel."""
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray((inputs[:, None] - mean) / std, dtype=np.float32)


def merge_outputs(logits: Sequence[NDArray[np.float32]], output: Output) -> FloatImage:
    """Deep-supervision logits [B, 1, h, w], shallowest first, to one probability map f32[B, h, w].

    Raises ValueError where the network has no such output.
    """
    if output != "mean":
        depth = len(logits) if output == "last" else int(output[1:])
        if depth > len(logits):
            raise ValueError(f"segmenter: output {output} was asked for, the network has {len(logits)} outputs")
        logits = [logits[depth - 1]]
    probabilities = [1 / (1 + np.exp(-one[:, 0].clip(-60, 60))) for one in logits]
    return np.asarray(np.mean(probabilities, axis=0), dtype=np.float32)
