"""Masses of one mammogram put into another, for training: what they add to the grey around them, laid over other tissue.

X-rays are weakened by what lies in their way one thing after the other, so that in a mammogram's greys, which follow the
logarithm of the exposure, a mass adds to the tissue above and below it. What a mass adds is what its patch holds above a plane
through the ring around it; what it replaces is a random share of the fine structure at its new place.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.types import Boxes, FloatImage, Size

REACH = 1.6
"""Sides of a patch over those of its mass's box."""

_FULL, _END = 1.0, 1.5  # distance from the centre, in half sides of the box: up to where all is added, from where on nothing
_RING = 1.2  # from here on outwards is what the plane goes through
_LEAST_CONTRAST = 0.04  # mean of what is added near the centre, in greys: fainter masses stay where they are
_LEAST_PX = 8  # of the box's sides
_TRIES = 12
_DARKEST = 1 / 1024  # zero means background


@dataclass(frozen=True, eq=False)
class Graft:
    """added: f32[h, w], greys. window: f32[h, w], 0 to 1. size: (H, W) of the mass's box, which lies in the middle."""

    added: FloatImage
    window: FloatImage
    size: Size


def graft_of(patch: FloatImage) -> Graft | None:
    """What the mass in the middle of `patch` f32[h, w] (0 to 1, sides REACH times those of its box) adds to its surroundings.

    None where it is smaller than 8 px or hardly brighter than they are, or where the patch holds background (zeros).
    """
    height, width = patch.shape
    size = (round(height / REACH), round(width / REACH))
    if min(size) < _LEAST_PX:
        return None
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    u, v = (x - width / 2) / (size[1] / 2), (y - height / 2) / (size[0] / 2)
    away = np.hypot(u, v)
    inside, ring = away < _END, (away >= _RING) & (away < REACH)
    if (patch[inside] <= 0).mean() > 0.01 or ring.sum() < 12:
        return None
    basis = np.stack([np.ones_like(u), u, v], axis=-1)
    plane = np.linalg.lstsq(basis[ring], patch[ring], rcond=None)[0]
    added = (patch - basis @ plane).astype(np.float32)
    if float(added[away < 0.8].mean()) < _LEAST_CONTRAST:
        return None
    fall = ((_END - away) / (_END - _FULL)).clip(0.0, 1.0)
    return Graft(added, (fall * fall * (3 - 2 * fall)).astype(np.float32), size)


def transplant(image: FloatImage, taken: Boxes, graft: Graft, rng: np.random.Generator) -> tuple[FloatImage, Boxes]:
    """`graft` at a random place of the breast in `image` f32[H, W] (0 to 1; 0 is background) where no box of `taken` lies.

    taken: f64[N, 4] `xyxy`. Returns a new image and the mass's box f64[1, 4], or the image as it is and none f64[0, 4] where no
    place is found.
    """
    height, width = graft.added.shape
    if height >= image.shape[0] or width >= image.shape[1]:
        return image, np.zeros((0, 4))
    for _ in range(_TRIES):
        top, left = (int(rng.integers(a - b)) for a, b in zip(image.shape, (height, width), strict=True))
        here = np.s_[top : top + height, left : left + width]
        host = image[here]
        reached = np.array([left, top, left + width, top + height])
        if (host[graft.window > 0] <= 0).mean() > 0.01 or _meets(reached, taken):
            continue
        fine = host - cv2.GaussianBlur(host, (0, 0), max(1.0, min(graft.size) / 6))
        strength, replaced = np.float32(rng.uniform(0.8, 1.2)), np.float32(rng.uniform(0.0, 1.0))
        new = host + graft.window * (strength * graft.added - replaced * fine)
        out = image.copy()
        out[here] = np.where(host > 0, new.clip(_DARKEST, 1.0), host)
        x, y = left + (width - graft.size[1]) / 2, top + (height - graft.size[0]) / 2
        return out, np.array([[x, y, x + graft.size[1], y + graft.size[0]]])
    return image, np.zeros((0, 4))


def _meets(box: NDArray[np.int64], boxes: Boxes) -> bool:
    return bool(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1).any())
