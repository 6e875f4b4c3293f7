"""What is drawn into the normal tissue of a phantom: masses with exact masks, and calcifications as distractors.

Lengths are millimetres unless a name says otherwise; grey values as in `phantom_parts`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.datasets.phantom_parts import Breast, Image, Rng, power_law, smooth_step


@dataclass(frozen=True, eq=False)
class Lump:
    """A mass: density f32[h, w] in about [0, 1.2], and its exact mask bool[h, w]."""

    density: Image
    mask: NDArray[np.bool_]


def mass_lump(dx: Image, dy: Image, radius: float, shape: str, rngs: tuple[Rng, Rng]) -> Lump:
    """A mass of a mean `radius` (mm) around the origin of the offsets `dx`, `dy` (mm, f32[h, w]).

    shape: round, oval, lobular, irregular or spiculated. rngs: one for what both views share, one for this view.
    The mask holds the pixels whose centre is within the outline r(θ); thin spicules beyond the body are outside of it.
    """
    shared, own = rngs
    stretch = {"round": 1.05, "oval": shared.uniform(1.25, 1.6), "lobular": 1.15}.get(shape, shared.uniform(1.0, 1.3))
    turn = shared.uniform(0, np.pi) + own.normal(0, 0.35)
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    u, v = u / np.sqrt(stretch), v * np.sqrt(stretch)
    rough = {"round": 0.012, "oval": 0.015, "lobular": 0.035, "irregular": 0.07, "spiculated": 0.055}[shape]
    theta = np.linspace(-np.pi, np.pi, 721)
    outline_r = np.ones_like(theta)
    for k in range(2, 12):
        outline_r += rough * (own.normal() + shared.normal()) / (k - 1) ** 0.6 * np.cos(k * theta + own.uniform(0, 2 * np.pi))
    if shape == "lobular":
        k = int(shared.integers(3, 6))
        outline_r += 0.16 * (np.abs(np.cos(k / 2 * theta + own.uniform(0, np.pi))) - 0.6) * (1 if k % 2 == 0 else 0.9)
    spicules: Image = np.zeros_like(dx)
    if shape == "spiculated":
        spicules, bumps = _spicules(own, u, v, radius, theta)
        outline_r += bumps
    outline_r = np.clip(outline_r, 0.45, 1.6)
    outline_r[-1] = outline_r[0]
    angle = np.arctan2(v, u)
    rho = np.hypot(u, v) / radius / np.interp(angle.ravel(), theta, outline_r).reshape(angle.shape).astype(np.float32)
    mask: NDArray[np.bool_] = rho <= 1
    # A lens of tissue, flat in the middle, whose margin is sharp or blurred.
    soft = {"round": 0.07, "oval": 0.07, "lobular": 0.09, "irregular": 0.22, "spiculated": 0.20}[shape]
    body = np.clip(1 - np.clip(rho, 0, None) ** 2.0, 0, 1) ** 0.6 * 0.78 + 0.30 / (
        1 + np.exp(np.clip((rho - 1) / soft * 2.2, -30, 30))
    )
    grain = power_law(own, (64, 64), 2.6)
    body = body * (1 + 0.10 * cv2.resize(grain, (dx.shape[1], dx.shape[0]), interpolation=cv2.INTER_CUBIC))
    return Lump((body + spicules * smooth_step(rho, 0.7, 1.1) * np.clip((2.25 - rho) * 2, 0, 1)).astype(np.float32), mask)


def _spicules(rng: Rng, u: Image, v: Image, radius: float, theta: NDArray[np.float64]) -> tuple[Image, NDArray[np.float64]]:
    """Thin tapering rays outside the body, and the bumps of the outline they leave from."""
    layer: Image = np.zeros_like(u)
    bumps = np.zeros_like(theta)
    for start in np.sort(rng.uniform(-np.pi, np.pi, int(rng.integers(14, 26)))):
        length, half = float(rng.uniform(1.3, 2.2)) * radius, float(rng.uniform(0.18, 0.40)) + 0.015 * radius
        bend = float(rng.normal(0, 0.16)) / radius
        along = u * np.cos(start) + v * np.sin(start)
        off = v * np.cos(start) - u * np.sin(start) - bend * along**2
        taper = np.clip(1 - along / length, 0, 1)
        ray = np.exp(-((off / (half * (0.35 + 0.65 * taper))) ** 2)) * (along > 0.3 * radius) * np.sqrt(taper)
        layer = np.maximum(layer, ray * float(rng.uniform(0.25, 0.8))).astype(np.float32)
        gap = np.mod(theta - start + np.pi, 2 * np.pi) - np.pi
        bumps += float(rng.uniform(0.03, 0.15)) * np.exp(-((gap / 0.11) ** 2))
    return layer, bumps


def add_calcifications(rng: Rng, image: Image, breast: Breast, grid_mm: float, pixel_mm: float) -> None:
    """Distractors: scattered round calcifications, in a third of the views a cluster, now and then one coarse piece."""
    nx, ny = breast.nipple_mm
    spots: list[tuple[float, float, float, float]] = []

    def somewhere() -> tuple[float, float]:
        return float(rng.uniform(0.1, 0.85) * nx), float(ny + rng.uniform(-0.7, 0.7) * breast.half_height_mm)

    for _ in range(int(rng.poisson(2.5))):
        spots.append((*somewhere(), float(rng.uniform(0.25, 0.6)), 0.35))
    if rng.random() < 0.33:
        cx, cy = somewhere()
        for _ in range(int(rng.integers(8, 22))):
            spots.append((cx + rng.normal(0, 3), cy + rng.normal(0, 3), float(rng.uniform(0.10, 0.3)), 0.30))
    if rng.random() < 0.12:
        spots.append((*somewhere(), float(rng.uniform(1.0, 2.2)), 0.5))
    for x, y, radius, gain in spots:
        row, column = int(y / grid_mm), int(x / grid_mm)
        if not (0 <= row < breast.depth_mm.shape[0] and 0 <= column < breast.depth_mm.shape[1]):
            continue
        if breast.depth_mm[row, column] < 3:
            continue
        reach = int(np.ceil((radius * 1.6) / pixel_mm)) + 2
        r, c = int(y / pixel_mm), int(x / pixel_mm)
        r1, r2, c1, c2 = max(0, r - reach), min(image.shape[0], r + reach), max(0, c - reach), min(image.shape[1], c + reach)
        yy, xx = np.mgrid[r1:r2, c1:c2].astype(np.float32)
        distance = np.hypot((xx + 0.5) * pixel_mm - x, ((yy + 0.5) * pixel_mm - y) * float(rng.uniform(0.8, 1.2)))
        cover = min(1.0, (2 * radius / pixel_mm) ** 2)  # specks below a pixel fade
        edge = 0.12 * radius + 0.35 * pixel_mm
        image[r1:r2, c1:c2] += gain * cover / (1 + np.exp(np.clip((distance - radius) / edge, -30, 30)))
