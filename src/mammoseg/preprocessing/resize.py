"""From the native image to a detector's input frame: which region, which aspect, which intensities. Training and inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import Halves, Transform
from mammoseg.preprocessing.breast import box_of, mask_on_grid, reduced_mask
from mammoseg.preprocessing.intensity import grid_step, normalise, percentiles_on_grid
from mammoseg.types import FloatImage, Size

Aspect = Literal["stretch", "keep"]


@dataclass(frozen=True)
class FrameConfig:
    """How an image is brought into a detector's frame.

    region: the whole image, or the box around the breast. aspect: stretched to the frame (as published, 2:1), or kept with
    padding. intensity: as it is, or the `percentiles` of the pixels inside the breast mapped to 0 and 1.
    """

    region: Literal["full", "breast"] = "full"
    aspect: Aspect = "stretch"
    intensity: Literal["none", "percentile"] = "none"
    percentiles: tuple[float, float] = (1.0, 99.7)


@dataclass(frozen=True)
class FrameMeasure:
    """What one image gives under a `FrameConfig`: the region `box` (`xyxy`, native frame) and its grey `low` and `high`."""

    box: tuple[float, float, float, float]
    low: float
    high: float


def measure(image: FloatImage | Halves, config: FrameConfig) -> FrameMeasure:
    """Measures an image f32[H, W] in [0, 1]: where the region lies and between which greys it is."""
    halves = image if isinstance(image, Halves) else Halves(image)
    size, pixels = halves.size, halves.level(0)
    needs_breast = config.region == "breast" or config.intensity == "percentile"
    breast = reduced_mask(halves) if needs_breast else None
    box = box_of(breast if config.region == "breast" else None, size)
    low, high = 0.0, 1.0
    if config.intensity == "percentile":
        on_grid = mask_on_grid(breast, size, grid_step(pixels.size))
        low, high = percentiles_on_grid(pixels, on_grid, config.percentiles)
    x1, y1, x2, y2 = (float(v) for v in box)
    return FrameMeasure((x1, y1, x2, y2), low, high)


def frame_transform(region_box: NDArray[np.float64], size: Size, aspect: Aspect) -> Transform:
    """The map from native coordinates to a network input of `size` (H, W) that `to_network_frame` uses."""
    return Transform.crop_resize(region_box, size) if aspect == "stretch" else Transform.crop_letterbox(region_box, size)


def to_network_frame(
    pixels: FloatImage, region_box: NDArray[np.float64], size: Size, aspect: Aspect, border: float = 0.0
) -> tuple[FloatImage, Transform]:
    """Cuts `region_box` (f64[4] `xyxy`, native frame) out of `pixels` and brings it to `size` (H, W).

    Returns f32[H, W], `border` outside the region, and the Transform from native coordinates to the network's input.
    """
    transform = frame_transform(region_box, size, aspect)
    return warp_region(pixels, region_box, transform, border), transform


def warp_region(pixels: FloatImage, region_box: NDArray[np.float64], transform: Transform, border: float = 0.0) -> FloatImage:
    """`transform.image` of the part of `pixels` inside `region_box` alone; everything else is `border`."""
    x1, y1 = np.floor(region_box[:2]).astype(int).clip(0)
    x2, y2 = np.ceil(region_box[2:]).astype(int)
    shift = Transform(1.0, 1.0, float(x1), float(y1), (pixels.shape[0], pixels.shape[1]))
    return shift.then(transform).image(pixels[y1:y2, x1:x2], border)


@dataclass(frozen=True, eq=False)
class FrameSource:
    """A measured image that frames are made of, each from the smallest of its `halves` that still is larger than the frame."""

    halves: Halves
    measured: FrameMeasure

    @classmethod
    def of(cls, pixels: FloatImage, measured: FrameMeasure) -> FrameSource:
        """`pixels` f32[H, W] in [0, 1] and what was measured in it."""
        return cls(Halves(pixels), measured)

    @property
    def size(self) -> Size:
        """(H, W) of the image."""
        return self.halves.size


def network_frame(source: FrameSource, size: Size, aspect: Aspect) -> tuple[FloatImage, Transform]:
    """`to_network_frame` of the measured region with its greys mapped from `low`..`high` to 0..1 (clipped); padding is 0.

    The Transform is from native coordinates. An image that is reduced much is taken from one of its halves: averaging twice
    is averaging once, up to the weights at the rims of a target pixel.
    """
    measured, box = source.measured, np.asarray(source.measured.box)
    transform = frame_transform(box, size, aspect)
    level = source.halves.level_for(min(1 / transform.sx, 1 / transform.sy))
    step = float(2**level)
    native = Transform(step, step, 0.0, 0.0, source.size)
    image = warp_region(source.halves.level(level), box / step, native.then(transform), border=measured.low)
    return normalise(image, measured.low, measured.high), transform
