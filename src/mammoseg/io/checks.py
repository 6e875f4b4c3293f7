"""Is this a mammogram? The checks every decoded image passes, whatever file it came from."""

from __future__ import annotations

import numpy as np

from mammoseg.errors import DecodeError, NotAMammogramError
from mammoseg.types import FloatImage

MAX_PIXELS = 200_000_000
MIN_SIDE_PX = 64
MAX_ASPECT = 5.0
_SAME_GREY = 0.015  # of the range: how near the median counts as the same grey
_CONTENT_MIN = 0.005  # share of pixels that must differ from the median
_LEVELS_MIN = 8


def check_size(height: int, width: int) -> None:
    """Raises `DecodeError` before memory is taken for an image beyond 200 megapixels or without pixels."""
    if height < 1 or width < 1:
        raise DecodeError(f"expected an image with pixels, got a size of {width} x {height}; the file is damaged")
    if height * width > MAX_PIXELS:
        raise DecodeError(
            f"expected at most {MAX_PIXELS // 1_000_000} megapixels, got a size of {width} x {height}; "
            "the file is damaged or no mammogram"
        )


def check_shape(height: int, width: int) -> None:
    """Raises `NotAMammogramError` for images too small or too narrow to be a mammogram."""
    if min(height, width) < MIN_SIDE_PX:
        raise NotAMammogramError(
            f"too small for a mammogram: expected at least {MIN_SIDE_PX} pixels a side, got {width} x {height}; "
            "give the image at its native size"
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise NotAMammogramError(
            f"no mammogram has such sides: expected a ratio up to {MAX_ASPECT:g}, got {width} x {height}; give one whole view"
        )


def check_content(pixels: FloatImage) -> None:
    """Raises `NotAMammogramError` where pixels f32[H, W] in [0, 1] are blank, nearly blank or only a few greys."""
    thin = pixels[:: max(1, pixels.shape[0] // 512), :: max(1, pixels.shape[1] // 512)]
    median = float(np.median(thin))
    varied = float((np.abs(thin - median) > _SAME_GREY).mean())
    if varied < _CONTENT_MIN:
        shade = "black" if median < 0.02 else "white" if median > 0.98 else "one grey"
        raise NotAMammogramError(f"blank image: expected a breast, got (nearly) all {shade}; repeat the export of this image")
    if len(np.unique(thin)) < _LEVELS_MIN:
        raise NotAMammogramError(
            f"only {len(np.unique(thin))} grey values: expected a mammogram, got a mask or a drawing; give the image itself"
        )
