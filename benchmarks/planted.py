"""A detector that runs in full and then finds exactly the masses that are timed, whatever its weights are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mammoseg.detection.predictor import DetectorSpec
from mammoseg.preprocessing.resize import FrameMeasure, frame_transform, measure
from mammoseg.types import Mammogram

Maps = list[NDArray[np.float32]]
_SCORE = 4.0  # as a logit, of objectness and class: 0.96
_LIMIT = -2.0  # the most that any other cell says: below what enters fusion, among the candidates still
_NOTHING = -12.0


class Planted:
    """Wraps a detector's network: its maps come back with the masses written into them.

    boxes: f64[N, 4] `xyxy`, native frame of `mammogram`. random: the weights are, so nothing else is left in the maps.
    """

    def __init__(self, network: Callable[..., Maps], spec: DetectorSpec, mammogram: Mammogram, random: bool = False) -> None:
        self._network, self._spec, self._random = network, spec, random
        self._measured: FrameMeasure = measure(mammogram.pixels, spec.frame)
        self.lanes = getattr(network, "lanes", 1)
        self.boxes: NDArray[np.float64] = np.zeros((0, 4))

    def __call__(self, x: NDArray[np.float32]) -> Maps:
        """x f32[1, C, H, W] to raw maps, as the network."""
        maps = self._network(x)
        size = (x.shape[2], x.shape[3])
        transform = frame_transform(np.asarray(self._measured.box), size, self._spec.frame.aspect)
        for level, raw in enumerate(maps):
            t = raw.reshape(len(self._spec.anchors_of(level)), -1, *raw.shape[2:])
            t[:, 4] = _NOTHING if self._random else np.minimum(t[:, 4], _LIMIT)
        for x1, y1, x2, y2 in transform.boxes(self.boxes):
            self._write(maps, ((x1 + x2) / 2, (y1 + y2) / 2), (x2 - x1, y2 - y1))
        return maps

    def _write(self, maps: Sequence[NDArray[np.float32]], centre: tuple[float, float], side: tuple[float, float]) -> None:
        anchors = np.asarray(self._spec.anchors)
        best = int(np.abs(np.log(np.asarray(side) / anchors)).sum(axis=1).argmin())
        level, a = divmod(best, len(anchors) // len(self._spec.strides))
        stride, s = self._spec.strides[level], self._spec.xy_scale
        column, row = (min(int(v / stride), n - 1) for v, n in zip(centre, maps[level].shape[:1:-1]))
        cell = maps[level].reshape(len(anchors) // len(self._spec.strides), -1, *maps[level].shape[2:])[a, :, row, column]
        inside = (np.array([centre[0] / stride - column, centre[1] / stride - row]) + (s - 1) / 2) / s
        inside = inside.clip(1e-3, 1 - 1e-3)
        cell[:2] = np.log(inside / (1 - inside))
        cell[2:4] = np.log(np.asarray(side) / anchors[best])
        cell[4:] = _SCORE
