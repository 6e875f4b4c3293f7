"""Phantom mammograms: seeded, fast, plausible at arm's length, with exact masks. A test signal, tuned on nothing.

Everything is laid out in millimetres in the frame of a left breast, chest wall at the left edge: x runs from the chest wall
towards the nipple, y downwards; right breasts are mirrored at the end. The four views of an exam share the woman's
anatomy: size, density, and each mass at one place of the breast, seen from above (CC) and obliquely (MLO).
Anatomy is drawn on a coarse grid (about 0.2 mm) and enlarged; masses, calcifications and noise are drawn at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.datasets import phantom_parts as parts
from mammoseg.datasets.phantom_masses import add_calcifications, mass_lump
from mammoseg.geometry import mask_box
from mammoseg.types import Size, Spacing, TrueMass

VIEWS: tuple[tuple[str, str], ...] = (("R", "CC"), ("L", "CC"), ("R", "MLO"), ("L", "MLO"))
MAX_VALUE = 4095
Image = NDArray[np.float32]


@dataclass(frozen=True)
class PhantomConfig:
    """What phantoms are drawn.

    size: (H, W) of each view in pixels. spacing_mm: of a detector of 3328 rows; smaller sizes keep the field of view, so their
    spacing grows in proportion. masses: fewest and most masses of an exam that has any. normal_fraction: of exams without
    a mass. diameter_mm: smallest and largest mass. density: breast density 1 (fatty) to 4 (dense), or None to draw it.
    labels: a burned-in view label. film: look of a scanned film, with borders, a bright label and dust.
    """

    size: Size = (3328, 2560)
    spacing_mm: float = 0.07
    masses: tuple[int, int] = (1, 2)
    normal_fraction: float = 0.2
    diameter_mm: tuple[float, float] = (5.0, 40.0)
    density: int | None = None
    calcifications: bool = True
    noise: float = 0.010
    labels: bool = True
    film: bool = False

    def __post_init__(self) -> None:
        if min(self.size) < 64 or self.spacing_mm <= 0:
            raise ValueError(f"PhantomConfig: expected a size of at least 64 × 64 and a spacing above 0, got {self.size}")
        if not 0 < self.diameter_mm[0] <= self.diameter_mm[1] <= 60:
            raise ValueError(f"PhantomConfig.diameter_mm: expected 0 < smallest <= largest <= 60, got {self.diameter_mm}")
        if not 1 <= self.masses[0] <= self.masses[1] <= 8:
            raise ValueError(f"PhantomConfig.masses: expected 1 <= fewest <= most <= 8, got {self.masses}")
        if self.density not in (None, 1, 2, 3, 4):
            raise ValueError(f"PhantomConfig.density: expected 1 to 4 or None, got {self.density}")

    @property
    def pixel_mm(self) -> float:
        """Spacing of a pixel of `size` in mm."""
        return self.spacing_mm * 3328 / self.size[0]


@dataclass(frozen=True, eq=False)
class PhantomView:
    """One view: pixels u16[H, W] of 12 bits, bright = dense; masses with exact masks in its frame, boxes tight around them."""

    pixels: NDArray[np.uint16]
    masses: tuple[TrueMass, ...]
    spacing_mm: Spacing
    laterality: Literal["L", "R"]
    view_position: Literal["CC", "MLO"]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as "RCC"."""
        return self.laterality + self.view_position


@dataclass(frozen=True)
class _Mass:
    """One mass of the woman: where it is (fractions of the way to nipple and to the sides) and how it looks."""

    laterality: str
    depth: float
    across: float
    up: float
    radius_mm: float
    shape: str
    contrast: float
    key: int


def make_exam(seed: int, config: PhantomConfig | None = None) -> list[PhantomView]:
    """The four views RCC, LCC, RMLO, LMLO of one phantom woman; equal seeds and configs give equal bytes."""
    config = config or PhantomConfig()
    rng = np.random.default_rng([2021, seed])
    density = config.density or int(rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15]))
    woman = parts.draw_woman(rng, density, config.size[1] * config.pixel_mm, config.size[0] * config.pixel_mm)
    masses = _draw_masses(rng, config, density)
    return [_view(seed, i, woman, masses, config) for i in range(len(VIEWS))]


def _draw_masses(rng: np.random.Generator, config: PhantomConfig, density: int) -> list[_Mass]:
    if rng.random() < config.normal_fraction:
        return []
    sides = "RL" if rng.random() < 0.5 else "LR"
    found = []
    for i in range(int(rng.integers(config.masses[0], config.masses[1] + 1))):
        low, high = np.log(config.diameter_mm)
        # Most masses are small: log-normal about 14 mm.
        diameter = float(np.exp(np.clip(rng.normal(np.log(14.0), 0.45), low, high)))
        shape = str(rng.choice(["round", "oval", "lobular", "irregular", "spiculated"], p=[0.15, 0.25, 0.2, 0.15, 0.25]))
        # The second mass more often lies in the same breast, in the opposite half.
        side = sides[0] if rng.random() < 0.7 else sides[1]
        half = 1 if (i % 2 == 0) == (sides == "RL") else -1
        found.append(
            _Mass(
                laterality=side,
                depth=float(rng.uniform(0.30, 0.78)),
                across=half * float(rng.uniform(0.10, 0.55)),
                up=float(rng.uniform(-0.45, 0.45)),
                radius_mm=diameter / 2,
                shape=shape,
                contrast=float(rng.uniform(0.24, 0.36)) * (1 + 0.05 * density),
                key=int(rng.integers(1 << 31)),
            )
        )
    return found


def _view(seed: int, index: int, woman: parts.Woman, masses: list[_Mass], config: PhantomConfig) -> PhantomView:
    laterality, view = VIEWS[index]
    rng = np.random.default_rng([2021, seed, index + 1])
    grid_mm = max(0.2, config.pixel_mm)
    scale = config.pixel_mm / grid_mm
    grid = (max(32, round(config.size[0] * scale)), max(32, round(config.size[1] * scale)))
    breast = parts.outline(rng, woman, view, grid, grid_mm)
    tissue = parts.tissue(rng, woman, breast, grid_mm)
    height, width = config.size
    image: Image = cv2.resize(tissue, (width, height), interpolation=cv2.INTER_CUBIC)
    truth = []
    placed: list[tuple[float, float, float]] = []
    for mass in (m for m in masses if m.laterality == laterality):
        placed.append(_place(mass, breast, view, grid_mm, placed))
        truth.append(_add_mass(image, mass, placed[-1], view, config.pixel_mm))
    if config.calcifications:
        add_calcifications(rng, image, breast, grid_mm, config.pixel_mm)
    inside = cv2.resize(breast.inside, (width, height), interpolation=cv2.INTER_LINEAR)
    parts.add_noise(rng, image, inside, config.noise * min(1.0, (0.14 / config.pixel_mm) ** 0.5))
    kept = tuple(_true_mass(image.shape, t, laterality == "R") for t in truth)
    image = np.ascontiguousarray(image[:, ::-1]) if laterality == "R" else image
    if config.film:
        parts.film_look(rng, image, f"{laterality} {view}", laterality == "R")
    elif config.labels:
        parts.draw_label(image, f"{laterality} {view}", laterality == "R", 0.75)
    pixels = (np.clip(image, 0, 1) * MAX_VALUE + 0.5).astype(np.uint16)
    return PhantomView(
        pixels=pixels,
        masses=kept,
        spacing_mm=(config.pixel_mm, config.pixel_mm),
        laterality="R" if laterality == "R" else "L",
        view_position="CC" if view == "CC" else "MLO",
        attributes={"breast_density": woman.density},
    )


def _place(
    mass: _Mass, breast: parts.Breast, view: str, grid_mm: float, others: list[tuple[float, float, float]]
) -> tuple[float, float, float]:
    """Centre (x, y) in mm and radius of the mass in this view: the place nearest the wanted one that has room for it.

    Room is what skin, chest wall, muscle and the masses placed before (`others`) leave; where no place has enough, it shrinks.
    """
    depth_mm, side = mass.depth * breast.nipple_mm[0], mass.across if view == "CC" else 0.6 * mass.up - 0.4 * mass.across
    wanted = (depth_mm, breast.nipple_mm[1] + side * breast.half_height_mm)
    rows, cols = np.mgrid[0 : breast.depth_mm.shape[0] : 8, 0 : breast.depth_mm.shape[1] : 8]
    x, y = (cols + 0.5) * grid_mm, (rows + 0.5) * grid_mm
    room = np.minimum(breast.depth_mm[::8, ::8] - 2.0, x) - 12 * breast.muscle[::8, ::8]
    for ox, oy, radius in others:
        room = np.minimum(room, np.hypot(x - ox, y - oy) - 1.8 * radius)
    radius = min(mass.radius_mm, 0.75 * float(room.max()))
    distance = np.where(room < radius * 1.25, np.inf, np.hypot(x - wanted[0], y - wanted[1]))
    best = np.unravel_index(int(np.argmin(distance)), distance.shape)
    return float(x[best]), float(y[best]), radius


def _add_mass(
    image: Image, mass: _Mass, placed: tuple[float, float, float], view: str, pixel_mm: float
) -> tuple[NDArray[np.bool_], tuple[int, int], dict[str, Any]]:
    """Draws a mass into `image`; gives its exact mask, the origin of that, and its attributes."""
    rng = np.random.default_rng([mass.key, 0 if view == "CC" else 1])
    shape_rng = np.random.default_rng(mass.key)
    radius = placed[2] * float(rng.uniform(0.93, 1.07))
    reach = (2.3 if mass.shape == "spiculated" else 1.7) * radius / pixel_mm + 3
    cx, cy = placed[0] / pixel_mm, placed[1] / pixel_mm
    r1, c1 = max(0, int(cy - reach)), max(0, int(cx - reach))
    r2, c2 = min(image.shape[0], int(cy + reach) + 1), min(image.shape[1], int(cx + reach) + 1)
    y, x = np.mgrid[r1:r2, c1:c2].astype(np.float32)
    lump = mass_lump((x + 0.5 - cx) * pixel_mm, (y + 0.5 - cy) * pixel_mm, radius, mass.shape, (shape_rng, rng))
    window = image[r1:r2, c1:c2]
    # Where tissue is bright already a mass adds less: the film's shoulder.
    window += mass.contrast * lump.density * np.clip(1.25 - window, 0.25, 1)
    return lump.mask, (r1, c1), {"shape": mass.shape, "diameter_mm": round(2 * radius, 2), "key": mass.key}


def _true_mass(
    shape: tuple[int, ...], drawn: tuple[NDArray[np.bool_], tuple[int, int], dict[str, Any]], mirror: bool
) -> TrueMass:
    mask, (row, column), attributes = drawn
    if mirror:
        mask, column = mask[:, ::-1], shape[1] - column - mask.shape[1]
    x1, y1, x2, y2 = (int(v) for v in mask_box(mask))
    mask = np.ascontiguousarray(mask[y1:y2, x1:x2])
    origin = (row + y1, column + x1)
    return TrueMass(mask_box(mask, origin), mask, origin, attributes)
