"""From a box to the segmentation network's input: one path for training and inference (paper, Sect. 3.2 end and 4.2).

A box grows by a margin, its region is resampled to size × size and its histogram equalised over the whole crop. What lies
outside the image is NaN in a `Crop`, so that it takes no part in the histogram, and 0 in the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammoseg.geometry import Transform, cxcywh_to_xyxy, xyxy_to_cxcywh
from mammoseg.types import BoolMask, Boxes, Crop, FloatImage


@dataclass(frozen=True)
class CropConfig:
    """How a crop is cut.

    size: of the crop's side in pixels (the paper's 256). margin: what is added on each side, as a fraction of the box's own
    side (the paper does not say). shape: "stretch" maps the region on the crop whatever its aspect, as published, so that the
    box always covers the same part of it; "square" first widens the shorter side, and keeps the aspect. equalise: global
    histogram equalisation with `bins` bins between the crop's least and greatest value.
    """

    size: int = 256
    margin: float = 0.2
    shape: Literal["stretch", "square"] = "stretch"
    equalise: bool = True
    bins: int = 1024

    def __post_init__(self) -> None:
        if self.size < 1 or self.margin < 0 or self.bins < 2:
            raise ValueError("crop: expected size of 1 or more, margin of 0 or more, 2 bins or more")


@dataclass(frozen=True)
class JitterConfig:
    """How boxes are disturbed in training, since detected boxes are not true boxes.

    scale: each side is multiplied by exp(u), u uniform in ±scale. shift: the centre moves by a uniform part of the side in
    ±shift. Both axes are drawn apart. 0 switches off.
    """

    scale: float = 0.15
    shift: float = 0.08

    def __post_init__(self) -> None:
        if self.scale < 0 or self.shift < 0:
            raise ValueError("jitter: expected scale and shift of 0 or more")


def crop_region(box: ArrayLike, config: CropConfig) -> Boxes:
    """The part of the image that a crop of `box` shows: f64[4] `xyxy`, native frame, which may reach over the border.

    box: `xyxy`, native frame; sides below one pixel count as one pixel.

    >>> crop_region((10, 10, 30, 20), CropConfig(margin=0.5, shape="square")).tolist()
    [0.0, -5.0, 40.0, 35.0]
    """
    cx, cy, w, h = xyxy_to_cxcywh(box)[0]
    w, h = (max(float(side), 1.0) * (1 + 2 * config.margin) for side in (w, h))
    if config.shape == "square":
        w = h = max(w, h)
    region: Boxes = cxcywh_to_xyxy([[cx, cy, w, h]])[0]
    return region


def cut_crop(pixels: FloatImage, box: ArrayLike, config: CropConfig, index: int = 0) -> Crop:
    """Cuts the region around `box` out of an image.

    pixels: f32[H, W] in [0, 1]. box: `xyxy`, native frame. index: which detection it is for.
    Returns f32[size, size] in [0, 1], contrast as it was; NaN where the region lies outside the image.
    """
    to_crop = Transform.crop_resize(crop_region(box, config), (config.size, config.size))
    return Crop(to_crop.image(pixels, border=np.nan), to_crop, index)


def network_input(crop: Crop, config: CropConfig) -> FloatImage:
    """What the network sees of a crop: f32[size, size] in [0, 1], equalised if so configured; 0 outside the image."""
    inside = np.isfinite(crop.pixels)
    pixels = np.where(inside, crop.pixels, np.float32(0))
    if config.equalise:
        pixels = np.where(inside, equalise(pixels, inside, config.bins), np.float32(0))
    return pixels


def equalise(pixels: FloatImage, inside: BoolMask, bins: int = 1024) -> FloatImage:
    """Global histogram equalisation: each value becomes the share of `inside` pixels that are not brighter.

    pixels: f32[h, w]; inside: bool[h, w], which pixels make the histogram. The cumulative histogram of `bins` equal bins
    between their least and greatest value is interpolated linearly between the bins' centres, so that finer steps than a bin
    survive. Returns f32[h, w] in [0, 1]; all 0 where fewer than two values exist.
    """
    values = pixels[inside]
    if not values.size or values.min() == values.max():
        return np.zeros_like(pixels)
    if values.max() - values.min() < 2 * bins * np.spacing(values.max()):
        values = values.astype(np.float64)  # float32 cannot tell the edges of such narrow bins apart
    counts, edges = np.histogram(values, bins)
    share = np.cumsum(counts) / values.size
    return np.interp(pixels, (edges[:-1] + edges[1:]) / 2, share).astype(np.float32)


def truth_crop(mask: BoolMask, origin_px: tuple[int, int], to_crop: Transform) -> BoolMask:
    """The truth in the crop's frame: bool[size, size].

    mask: bool[h, w] whose top-left pixel lies at `origin_px` (row, column) of the native image.
    """
    to_native = Transform(1.0, 1.0, float(origin_px[1]), float(origin_px[0]), mask.shape)  # type: ignore[arg-type]
    return to_native.then(to_crop).mask(mask)


def jitter_box(box: ArrayLike, jitter: JitterConfig, rng: np.random.Generator) -> Boxes:
    """A disturbed copy of `box`, f64[4] `xyxy` in the same frame; see `JitterConfig`."""
    centre_x, centre_y, w, h = xyxy_to_cxcywh(box)[0]
    shift = rng.uniform(-jitter.shift, jitter.shift, 2)
    scale = np.exp(rng.uniform(-jitter.scale, jitter.scale, 2))
    moved: Boxes = cxcywh_to_xyxy([[centre_x + shift[0] * w, centre_y + shift[1] * h, w * scale[0], h * scale[1]]])[0]
    return moved


def jitter_reach(box: ArrayLike, config: CropConfig, jitter: JitterConfig) -> Boxes:
    """The region f64[4] that holds the crop of every jittered copy of `box`, native frame."""
    cx, cy, w, h = xyxy_to_cxcywh(box)[0]
    widest = cxcywh_to_xyxy([[cx, cy, w * np.exp(jitter.scale), h * np.exp(jitter.scale)]])[0]
    x1, y1, x2, y2 = crop_region(widest, config)
    dx, dy = jitter.shift * w, jitter.shift * h
    return np.asarray([x1 - dx, y1 - dy, x2 + dx, y2 + dy])


def turn(array: NDArray[np.generic], symmetry: int) -> NDArray[np.generic]:
    """One of the square's 8 symmetries of an [h, w] array: `symmetry` % 4 quarter turns, mirrored from 4 on."""
    turned = np.rot90(array, symmetry % 4)
    return np.ascontiguousarray(turned[:, ::-1] if symmetry >= 4 else turned)
