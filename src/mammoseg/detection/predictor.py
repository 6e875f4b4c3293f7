"""The detector as the pipeline sees it: a mammogram in, `Detections` at every scale out. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import Halves, box_area, clip_boxes, nms
from mammoseg.preprocessing.resize import FrameConfig, FrameSource, measure, network_frame
from mammoseg.types import Boxes, Detections, Mammogram, Size

NMS_IOU = 0.45
_MOST_BOXES = 1000
_EXP_LIMIT = 4.0


class Network(Protocol):
    """An executable network: f32[B, C, H, W] to its raw maps, each f32[B, K, h, w]."""

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]: ...


@dataclass(frozen=True)
class DetectorSpec:
    """What turns a mammogram into the network's input and the network's maps into boxes.

    anchors: (w, h) in px at the network's input, as many for each stride, finest stride first. scales: (H, W) of the inputs
    run by default. mean, std: of grey values in [0, 1]; the image is repeated into `channels`. xy_scale: how far a centre may
    leave its cell: σ·s − (s − 1)/2, 1 as published. layout: raw maps of "yolo", or "boxes" where the network decodes its own:
    one map (5, K, 1) an image of x1, y1, x2, y2 in px of the input and the score, 0 where there is no box.
    """

    arch: str = "yolov3-darknet53"
    anchors: tuple[tuple[float, float], ...] = (
        (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326),
    )  # fmt: skip
    strides: tuple[int, ...] = (8, 16, 32)
    frame: FrameConfig = field(default_factory=FrameConfig)
    scales: tuple[Size, ...] = ((320, 160), (512, 256), (640, 320), (832, 416), (960, 480))
    channels: int = 3
    mean: float = 0.0
    std: float = 1.0
    xy_scale: float = 1.0
    layout: Literal["yolo", "boxes"] = "yolo"

    def __post_init__(self) -> None:
        if not self.strides or len(self.anchors) % len(self.strides):
            raise ValueError(
                f"DetectorSpec: expected as many anchors for each of {len(self.strides)} strides, got {len(self.anchors)}"
            )
        coarsest = max(self.strides)
        if any(h % coarsest or w % coarsest or min(h, w) < coarsest for h, w in self.scales):
            raise ValueError(f"DetectorSpec.scales: expected sides that are multiples of {coarsest}, got {self.scales}")

    def anchors_of(self, level: int) -> NDArray[np.float64]:
        """The anchors f64[A, 2] of stride number `level`."""
        count = len(self.anchors) // len(self.strides)
        return np.asarray(self.anchors[level * count : (level + 1) * count], dtype=np.float64)


def decode(
    maps: Sequence[NDArray[np.float32]], spec: DetectorSpec, score_min: float = 0.0, most: int | None = None
) -> tuple[Boxes, NDArray[np.float64]]:
    """Raw maps of one image, f32[A·(5 + classes), h, w] per stride, to boxes f64[N, 4] (`xyxy`, network input) and scores.

    Box: centre (σ(t)·s − (s − 1)/2 + cell)·stride, size anchor·exp(t) (Redmon and Farhadi 2018, Sect. 2.1); score:
    σ(objectness)·σ(best class). Boxes that score below `score_min` are left out, and, where there are more than `most`, those
    that score below the last of the best so many. Raises ValueError on maps of another layout.
    """
    if spec.layout == "boxes":
        if len(maps) != 1 or maps[0].ndim != 3 or maps[0].shape[0] != 5:
            raise ValueError(f"decode: expected one map of 5 channels, got {[m.shape for m in maps]}")
        values = maps[0].reshape(5, -1).astype(np.float64)
        kept = values[4] >= max(score_min, np.finfo(np.float32).tiny)
        return values[:4, kept].T, values[4, kept]
    if len(maps) != len(spec.strides):
        raise ValueError(f"decode: expected {len(spec.strides)} maps, got {len(maps)}")
    levels = []
    for level, raw in enumerate(maps):
        anchors = spec.anchors_of(level)
        if raw.ndim != 3 or raw.shape[0] % len(anchors) or raw.shape[0] // len(anchors) < 6:
            raise ValueError(f"decode: expected a map of {len(anchors)}·(5 + classes) channels, got shape {raw.shape}")
        t = raw.reshape(len(anchors), -1, *raw.shape[1:])  # (A, 5 + classes, h, w)
        levels.append((t, _sigmoid(t[:, 4].astype(np.float64)) * _sigmoid(t[:, 5:].max(axis=1).astype(np.float64))))
    if most is not None:
        every = np.concatenate([score.ravel() for _, score in levels])
        if len(every) > most:
            score_min = max(score_min, float(np.partition(every, -most)[-most]))
    boxes, scores = [], []
    for level, (t, score) in enumerate(levels):
        a, row, column = np.nonzero(score >= score_min)
        picked = t[a, :4, row, column].astype(np.float64)  # (N, 4)
        offset = _sigmoid(picked[:, :2]) * spec.xy_scale - (spec.xy_scale - 1) / 2
        centre = (offset + np.stack([column, row], axis=1)) * spec.strides[level]
        half = spec.anchors_of(level)[a] * np.exp(picked[:, 2:].clip(-_EXP_LIMIT, _EXP_LIMIT)) / 2
        boxes.append(np.concatenate([centre - half, centre + half], axis=1))
        scores.append(score[a, row, column])
    return np.concatenate(boxes), np.concatenate(scores)


class Detector:
    """network: executes the exported detector. spec: its preprocessing, anchors and scales. lanes: scales at a time."""

    def __init__(self, network: Network, spec: DetectorSpec, lanes: int = 1) -> None:
        self.network, self.spec, self.lanes = network, spec, lanes

    def detect(
        self,
        mammogram: Mammogram,
        scales: Sequence[Size] | None = None,
        score_min: float = 0.005,
        nms_iou: float = NMS_IOU,
    ) -> list[Detections]:
        """One `Detections` per scale (H, W), native frame, best first, after NMS at IoU `nms_iou` within the scale.

        scales: multiples of the coarsest stride; None takes those of the spec. score_min: the lowest score kept.
        """
        sizes = list(self.spec.scales if scales is None else scales)
        coarsest = max(self.spec.strides)
        for height, width in sizes:
            if height % coarsest or width % coarsest or min(height, width) < coarsest:
                raise ValueError(f"detect: expected scales whose sides are multiples of {coarsest}, got {width}x{height} (WxH)")
        frame = self.spec.frame
        halves = Halves(mammogram.pixels)
        source = FrameSource(halves, measure(halves, frame))
        if self.lanes == 1 or len(sizes) == 1:
            return [self.detect_at(source, size, score_min, nms_iou) for size in sizes]
        with ThreadPoolExecutor(self.lanes) as lanes:
            largest_first = sorted(sizes, key=lambda size: -size[0] * size[1])
            running = {size: lanes.submit(self.detect_at, source, size, score_min, nms_iou) for size in largest_first}
            return [running[size].result() for size in sizes]

    def detect_at(self, source: FrameSource, size: Size, score_min: float = 0.005, nms_iou: float = NMS_IOU) -> Detections:
        """As `detect`, at one scale, of an image that is measured already."""
        image, transform = network_frame(source, size, self.spec.frame.aspect)
        grey = (image - np.float32(self.spec.mean)) / np.float32(self.spec.std)
        x = np.repeat(grey[None, None], self.spec.channels, axis=1)
        maps = [m[0] for m in self.network(np.ascontiguousarray(x, dtype=np.float32))]
        native = source.size
        back = transform.inverse(native)
        for most in (2 * _MOST_BOXES, None):  # all where too many of the best lie outside the image
            boxes, scores = decode(maps, self.spec, score_min, most)
            decoded = len(boxes)
            boxes = clip_boxes(back.boxes(boxes), native)
            solid = np.flatnonzero(box_area(boxes) > 0)
            boxes, scores = boxes[solid], scores[solid]
            if len(solid) >= _MOST_BOXES or (most is not None and decoded < most):
                break
        best = np.argsort(-scores, kind="stable")[:_MOST_BOXES]
        kept = best[nms(boxes[best], scores[best], nms_iou)]
        return Detections(boxes[kept], scores[kept].clip(0.0, 1.0), native, f"{size[1]}x{size[0]}", nms_iou)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * x))
    return out
