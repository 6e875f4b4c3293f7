"""Grey values: a robust range, normalisation to it, and the histogram-free contrast changes that augmentation draws."""

from __future__ import annotations

import numpy as np

from mammoseg.types import BoolMask, FloatImage

_SAMPLES = 200_000


def percentile_range(pixels: FloatImage, mask: BoolMask, percentiles: tuple[float, float]) -> tuple[float, float]:
    """The greys at `percentiles` (0..100) of `pixels` f32[H, W] where `mask` bool[H, W] is set; (0, 1) where that is no range.

    Taken from an even grid of about 200,000 pixels at most.
    """
    step = grid_step(pixels.size)
    return percentiles_on_grid(pixels, mask[::step, ::step], percentiles)


def grid_step(pixels: int) -> int:
    """The distance of the grid's rows and columns in an image of so many pixels."""
    return max(1, int((pixels / _SAMPLES) ** 0.5))


def percentiles_on_grid(pixels: FloatImage, mask: BoolMask, percentiles: tuple[float, float]) -> tuple[float, float]:
    """As `percentile_range`, for a mask that is given on the grid alone."""
    step = grid_step(pixels.size)
    values = pixels[::step, ::step][mask]
    if values.size < 16:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, percentiles))
    return (low, high) if high - low > 1e-3 else (0.0, 1.0)


def normalise(pixels: FloatImage, low: float, high: float) -> FloatImage:
    """Maps `low` to 0 and `high` to 1, clipped to [0, 1].

    >>> normalise(np.array([0.0, 0.25, 0.9], np.float32), 0.2, 0.3).round(3).tolist()
    [0.0, 0.5, 1.0]
    """
    return ((pixels - np.float32(low)) / np.float32(high - low)).clip(0.0, 1.0).astype(np.float32, copy=False)


def gamma(pixels: FloatImage, exponent: float) -> FloatImage:
    """`pixels` in [0, 1] to the power `exponent` (positive)."""
    return np.power(pixels, np.float32(exponent), dtype=np.float32)
