"""The truth that a data set gives for images, as outlines."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable

import contourpy
import numpy as np

from mammoseg.apps.server import models
from mammoseg.apps.server.catalogue import Entry
from mammoseg.datasets import read_dataset
from mammoseg.types import BoolMask, DatasetItem, Size, TrueMass


class Truths:
    """The items of the named data sets. Raises `DatasetError` where one cannot be read."""

    def __init__(self, specs: Iterable[str]) -> None:
        self._by_path: dict[str, DatasetItem] = {}
        self._by_name: dict[str, list[DatasetItem]] = defaultdict(list)
        for spec in specs:
            for item in read_dataset(spec):
                self._by_path[os.path.realpath(item.path)] = item
                self._by_name[os.path.basename(item.image_id)].append(item)

    def item(self, entry: Entry, size: tuple[int | None, int | None]) -> DatasetItem | None:
        """The item of an image: the same file, or else the one of that name and size. size: (H, W) as far as known."""
        if entry.path is not None:
            same = self._by_path.get(os.path.realpath(entry.path))
            if same is not None:
                return same if _fits(same.annotation.size, size) else None
        named = [
            i
            for i in self._by_name.get(os.path.basename(entry.name), ())
            if f"/{entry.name}".endswith(f"/{i.image_id}") or f"/{i.image_id}".endswith(f"/{entry.name}")
        ]
        return named[0] if len(named) == 1 and _fits(named[0].annotation.size, size) else None


def _fits(truth: Size, size: tuple[int | None, int | None]) -> bool:
    return None in size or truth == size


def outlines(item: DatasetItem) -> models.Truth:
    """The masses of an item: boxes, and outlines where there are masks. Frame: pixel edges of the image."""
    return models.Truth(lesions=[_lesion(mass) for mass in item.annotation.masses])


def _lesion(mass: TrueMass) -> models.TrueLesion:
    contours = [] if mass.mask is None else _contours(mass.mask, mass.origin_px)
    return models.TrueLesion(box_xyxy=[float(v) for v in mass.box], contours_xy=contours)


def _contours(mask: BoolMask, origin_px: tuple[int, int]) -> list[list[list[float]]]:
    """The lines halfway between the centres of pixels inside and outside, closed, first point not repeated."""
    padded = np.pad(mask, 1).astype(np.float64)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    row, column = origin_px
    shift = np.array([column - 0.5, row - 0.5])  # the padded mask's pixel 1 has its centre at origin + 0.5
    return [[[round(float(x), 2), round(float(y), 2)] for x, y in np.asarray(line)[:-1] + shift] for line in lines]
