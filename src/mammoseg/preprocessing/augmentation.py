"""Random views of a mammogram for training: drawn as numbers first, so that image and boxes get the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from mammoseg.geometry import Transform
from mammoseg.preprocessing.intensity import gamma
from mammoseg.types import Boxes, FloatImage, Size

_TONE_STEPS = 6
_COARSE = 0.06  # of the height: sigma of what counts as coarse brightness
_SHARPEN_SIGMA_PX = 1.5


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges. scale: largest factor and its inverse; aspect: of width to height; shift: of the frame's sides; gamma, contrast:
    largest factor and its inverse; brightness: largest offset; noise: largest standard deviation; blur: largest sigma in px.

    The looks of other films and detectors: tone: how uneven a random rising tone curve is (standard deviation of the logarithm
    of its slopes); flatten: largest share of the coarse brightness taken away, as digital processing evens out the breast's
    thickness; sharpen: largest strength of an unsharp mask. Each is drawn for half of the views.

    transplant: share of the views that get a mass of another training image (see `transplant`), as large to the breast as it is
    there up to a factor of `transplant_scale` or its inverse.
    """

    flip_horizontal: float = 0.5
    flip_vertical: float = 0.5
    scale: float = 1.25
    aspect: float = 1.1
    shift: float = 0.1
    gamma: float = 1.5
    contrast: float = 1.2
    brightness: float = 0.08
    noise: float = 0.02
    blur: float = 0.8
    tone: float = 0.0
    flatten: float = 0.0
    sharpen: float = 0.0
    transplant: float = 0.0
    transplant_scale: float = 1.5

    def __post_init__(self) -> None:
        for name in ("flip_horizontal", "flip_vertical", "transplant"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        for name in ("scale", "aspect", "gamma", "contrast", "transplant_scale"):
            if not 1.0 <= getattr(self, name) < 100.0:
                raise ValueError(f"{name}: expected a factor of 1 or more and below 100, got {getattr(self, name)}")
        for name in ("shift", "brightness", "noise", "blur", "tone", "flatten", "sharpen"):
            if not 0.0 <= getattr(self, name) < 100.0:
                raise ValueError(f"{name}: expected a number of 0 or more and below 100, got {getattr(self, name)}")


@dataclass(frozen=True)
class Draw:
    """One random view: geometry as a map of the frame to itself, then intensities.

    tone: values of the tone curve at even steps from 0 to 1; empty for none.
    """

    geometry: Transform
    gamma: float
    contrast: float
    brightness: float
    noise: float
    blur: float
    seed: int
    tone: tuple[float, ...] = ()
    flatten: float = 0.0
    sharpen: float = 0.0


def draw(rng: np.random.Generator, size: Size, config: AugmentationConfig) -> Draw:
    """Draws a view for a frame of `size` (H, W)."""
    height, width = size

    def factor(largest: float) -> float:
        return float(np.exp(rng.uniform(-1.0, 1.0) * np.log(largest)))

    zoom, stretch = factor(config.scale), factor(config.aspect) ** 0.5
    sx, sy = zoom * stretch, zoom / stretch
    tx = width * (0.5 - 0.5 * sx + rng.uniform(-config.shift, config.shift))
    ty = height * (0.5 - 0.5 * sy + rng.uniform(-config.shift, config.shift))
    if rng.random() < config.flip_horizontal:
        sx, tx = -sx, width - tx
    if rng.random() < config.flip_vertical:
        sy, ty = -sy, height - ty
    plain = Draw(
        Transform(sx, sy, tx, ty, size),
        factor(config.gamma),
        factor(config.contrast),
        float(rng.uniform(-config.brightness, config.brightness)),
        float(rng.uniform(0.0, config.noise)),
        float(rng.uniform(0.0, config.blur)) if rng.random() < 0.5 else 0.0,
        int(rng.integers(2**31)),
    )
    slopes = np.exp(config.tone * rng.standard_normal(_TONE_STEPS))
    use_tone, use_flatten, use_sharpen = rng.random(3) < 0.5
    flatten, sharpen = rng.uniform(0.0, config.flatten), rng.uniform(0.0, config.sharpen)
    curve = np.concatenate([[0.0], np.cumsum(slopes) / slopes.sum()])
    return replace(
        plain,
        tone=tuple(curve.tolist()) if config.tone and use_tone else (),
        flatten=float(flatten) if use_flatten else 0.0,
        sharpen=float(sharpen) if use_sharpen else 0.0,
    )


def change_intensity(pixels: FloatImage, drawn: Draw) -> FloatImage:
    """Applies the drawn intensities to `pixels` f32[H, W] in [0, 1]; stays in [0, 1], and 0 stays 0."""
    mean = np.float32(0.5)
    look = _look(pixels, drawn)
    out = (gamma(look, drawn.gamma) - mean) * np.float32(drawn.contrast) + mean + np.float32(drawn.brightness)
    if drawn.blur > 0.2:
        out = cv2.GaussianBlur(out, (0, 0), drawn.blur)
    if drawn.noise > 0:
        noise = np.random.default_rng(drawn.seed).standard_normal(pixels.shape, dtype=np.float32)
        out = out + noise * np.float32(drawn.noise)
    # The background stays black: it carries no exposure.
    return np.where(pixels > 0, out, pixels).clip(0.0, 1.0).astype(np.float32, copy=False)


def _look(pixels: FloatImage, drawn: Draw) -> FloatImage:
    """The look of another detector: coarse brightness evened out, edges sharpened, another tone curve."""
    out: FloatImage = pixels
    if drawn.flatten > 0:
        inside = (pixels > 0).astype(np.float32)
        sigma = _COARSE * pixels.shape[0]
        coarse = _coarse(pixels, sigma) / np.maximum(_coarse(inside, sigma), np.float32(1e-3))
        level = float(pixels.sum() / max(1.0, float(inside.sum())))
        out = (out - drawn.flatten * (coarse - level)).astype(np.float32)
    if drawn.sharpen > 0:
        out = out + np.float32(drawn.sharpen) * (out - cv2.GaussianBlur(out, (0, 0), _SHARPEN_SIGMA_PX))
    out = out.clip(0.0, 1.0).astype(np.float32, copy=False)
    if drawn.tone:
        out = np.interp(out, np.linspace(0.0, 1.0, len(drawn.tone)), drawn.tone).astype(np.float32)
    return out


def _coarse(pixels: FloatImage, sigma: float) -> FloatImage:
    """`pixels` blurred by `sigma` px, computed on a copy reduced by 8."""
    height, width = pixels.shape
    small = cv2.resize(pixels, (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), max(0.5, sigma / 8))
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def visible_boxes(boxes: Boxes, size: Size, least: float = 0.4, least_px: float = 3.0) -> Boxes:
    """Boxes f64[N, 4] cut to the frame; those of which less than `least` of the area remains are dropped.

    Boxes with a side below `least_px` pixels are dropped as well.
    """
    from mammoseg.geometry import box_area, clip_boxes

    cut = clip_boxes(boxes, size)
    kept = box_area(cut) >= least * np.maximum(box_area(boxes), 1e-9)
    kept &= (cut[:, 2:] - cut[:, :2]).min(axis=1, initial=np.inf) >= least_px
    return cut[kept]
