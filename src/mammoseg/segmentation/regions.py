"""The masses of a data set as a segmenter learns from them: each with the part of its image that any crop of it can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mammoseg.datasets.images import load_item
from mammoseg.preprocessing.crops import CropConfig, JitterConfig, cut_crop, jitter_reach, network_input, truth_crop
from mammoseg.types import BoolMask, Boxes, DatasetItem, FloatImage


@dataclass(frozen=True, eq=False)
class Region:
    """One mass to learn from: what any jittered crop of it can show, in memory.

    pixels: f32[h, w], a window of the native image that ends where the image ends or beyond every crop. box, origin_px: of
    the mass in the window's frame. mask: bool[h, w] at `origin_px`.
    """

    image_id: str
    patient_id: str
    pixels: FloatImage
    box: Boxes
    mask: BoolMask
    origin_px: tuple[int, int]


def load_regions(items: Sequence[DatasetItem], crop: CropConfig, jitter: JitterConfig) -> list[Region]:
    """Reads every mass that has a mask. Where an item has a `content_box`, the rest of its image counts as outside."""
    regions = []
    for item in items:
        masses = [m for m in item.annotation.masses if m.mask is not None]
        pixels = load_item(item).pixels if masses else np.zeros((1, 1), dtype=np.float32)
        height, width = pixels.shape
        left, top, right, bottom = item.attributes.get("content_box", (0, 0, width, height))
        for mass in masses:
            reach = jitter_reach(mass.box, crop, jitter)
            # More than any crop shows by what resampling looks at, so that the window's end is seen only at the image's end.
            more = 4 + 2 * int(max(reach[2:] - reach[:2]) / crop.size + 1)
            x1, y1 = max(int(left), int(reach[0]) - more), max(int(top), int(reach[1]) - more)
            x2, y2 = min(int(right), int(reach[2]) + more), min(int(bottom), int(reach[3]) + more)
            if x2 <= x1 or y2 <= y1 or mass.mask is None:
                continue
            regions.append(
                Region(
                    image_id=item.image_id,
                    patient_id=item.patient_id,
                    pixels=pixels[y1:y2, x1:x2].copy(),
                    box=np.asarray(mass.box) - (x1, y1, x1, y1),
                    mask=mass.mask,
                    origin_px=(mass.origin_px[0] - y1, mass.origin_px[1] - x1),
                )
            )
    return regions


def true_crop(region: Region, box: Boxes, crop: CropConfig) -> tuple[FloatImage, BoolMask]:
    """Network input f32[s, s] and truth bool[s, s] of `box` in the region's frame."""
    cut = cut_crop(region.pixels, box, crop)
    return network_input(cut, crop), truth_crop(region.mask, region.origin_px, cut.to_crop)
