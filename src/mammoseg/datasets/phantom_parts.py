"""The parts that phantoms are drawn of: outline, tissue, noise, film.

Frame: a left breast, chest wall at x = 0; millimetres unless a name says otherwise. Grey values are f32, 0 = air, 1 = white.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Image = NDArray[np.float32]
Rng = np.random.Generator


@dataclass(frozen=True)
class Woman:
    """What the views of one woman share. reach: chest wall to nipple; width: height of the breast in CC; both in mm."""

    density: int
    reach: float
    width: float
    droop: float
    beta: float
    field_width: float
    field_height: float


@dataclass(frozen=True, eq=False)
class Breast:
    """One view's geometry on the grid. depth_mm: distance to the skin, 0 outside. inside, muscle: f32 in [0, 1]."""

    inside: Image
    depth_mm: Image
    muscle: Image
    nipple_mm: tuple[float, float]
    half_height_mm: float


def draw_woman(rng: Rng, density: int, field_width: float, field_height: float) -> Woman:
    """A woman whose breast fits a detector of the given size in mm."""
    reach = float(rng.uniform(0.46, 0.70)) * field_width
    width = float(np.clip(reach * rng.uniform(1.6, 2.0), 0.55 * field_height, 0.92 * field_height))
    return Woman(density, reach, width, float(rng.uniform(0, 1)), float(rng.uniform(2.7, 3.2)), field_width, field_height)


def outline(rng: Rng, woman: Woman, view: str, grid: tuple[int, int], grid_mm: float) -> Breast:
    """Outline, nipple and pectoral muscle of one view on a grid of `grid` (rows, columns)."""
    reach = woman.reach * float(rng.uniform(0.96, 1.04))
    y = (np.arange(grid[0]) + 0.5) * grid_mm
    if view == "CC":
        centre, half = woman.field_height * float(rng.uniform(0.46, 0.54)), woman.width / 2
        t = np.clip(np.abs(y - centre) / half, 0, 1)
        edge = reach * (1 - t ** rng.uniform(1.9, 2.2)) ** rng.uniform(0.50, 0.60)
        nipple_y = centre + float(rng.uniform(-0.05, 0.05)) * half
    else:
        bottom = woman.field_height * float(rng.uniform(0.86, 0.95))
        nipple_y = woman.field_height * (0.56 + 0.08 * woman.droop)
        half = bottom - nipple_y
        upper = reach * float(rng.uniform(0.50, 0.66))
        knots_y = [-0.1 * bottom, 0.18 * bottom, 0.42 * nipple_y + 0.16 * bottom, nipple_y]
        knots_x = [upper, upper + 0.10 * (reach - upper), upper + 0.62 * (reach - upper), reach]
        tail = np.linspace(0, 1, 9)[1:]
        knots_y += list(nipple_y + half * tail)
        fold = float(rng.uniform(0.04, 0.16))
        knots_x += list(reach * (fold + (1 - fold) * (1 - tail**2.1) ** 0.52))
        edge = PchipInterpolator(knots_y, knots_x, extrapolate=False)(y)
        # Below the breast the fold of the abdomen leaves a thin strip at the chest wall.
        edge = np.where(np.isnan(edge), knots_x[-1] * np.exp(-np.clip(y - bottom, 0, None) / 14), edge)
        edge = cv2.GaussianBlur(edge[:, None], (1, 0), 2.5 / grid_mm, borderType=cv2.BORDER_REPLICATE)[:, 0]
    wobble = power_law(rng, (grid[0], 8), 3.5)[:, 0]
    edge = edge + np.where(edge > 2, 0.6 * wobble, 0)
    nipple = float(rng.uniform(0.2, 2.6)) * np.exp(-((np.abs(y - nipple_y) / 5.0) ** 2.5))
    edge = np.clip(edge + nipple, 0, 0.97 * woman.field_width)
    x = (np.arange(grid[1]) + 0.5) * grid_mm
    inside = (x[None, :] < edge[:, None]).astype(np.uint8)
    padded = cv2.copyMakeBorder(inside, 0, 0, 1, 0, cv2.BORDER_CONSTANT, value=1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[:, 1:] * grid_mm
    muscle = np.zeros(grid, dtype=np.float32)
    if view == "MLO":
        top, foot = upper * float(rng.uniform(0.62, 0.86)), nipple_y * float(rng.uniform(0.72, 1.05))
        s = np.clip(y / foot, 0, 1)
        border = top * (1 - s) ** rng.uniform(0.85, 1.05) * (1 + 0.45 * s * (1 - s)) + 0.5 * wobble
        muscle = np.clip((border[:, None] - x[None, :]) / 2.2 + 0.5, 0, 1).astype(np.float32) * (
            (s < 1) * (0.55 + 0.45 * np.sqrt(1 - s))
        )[:, None].astype(np.float32)
        muscle = cv2.GaussianBlur(muscle, (0, 0), 1.0 / grid_mm)
    return Breast(inside.astype(np.float32), depth.astype(np.float32), muscle, (reach, nipple_y), half)


def tissue(rng: Rng, woman: Woman, breast: Breast, grid_mm: float) -> Image:
    """Grey values of the normal breast on the grid: fat, gland, ligaments, vessels, muscle, skin and nipple."""
    grid = breast.inside.shape
    depth = breast.depth_mm
    coarse, fine = power_law(rng, grid, woman.beta), power_law(rng, grid, 2.4)
    streaks, threads = _strands(rng, breast, grid_mm)
    x, y = np.meshgrid((np.arange(grid[1]) + 0.5) * grid_mm, (np.arange(grid[0]) + 0.5) * grid_mm)
    nx, ny = breast.nipple_mm
    # Gland fills a cone from the nipple backwards, and leaves fat under the skin and before the chest wall.
    across = (y - ny + 0.12 * (nx - x)) / (0.85 * breast.half_height_mm)
    along = (nx - x) / nx
    cone = np.exp(-((across / (0.32 + 0.55 * np.clip(along, 0, 1))) ** 2)) * smooth_step(along, 1.05, 0.55)
    prior = cone * smooth_step(depth, 3.0, 15.0)
    level = (-2.3, -1.35, -0.5, 0.35)[woman.density - 1]
    spread = (1.5, 1.7, 1.7, 1.5)[woman.density - 1]
    gland = 1 / (1 + np.exp(-1.7 * (0.70 * coarse + 0.60 * streaks + 2.6 * (prior - 0.45) * spread / 1.6 + level)))
    gland *= np.clip(prior * 2.0, 0.10, 1) * smooth_step(depth, 1.5, 9.0)
    value = 0.22 + gland * (0.40 + 0.045 * fine + 0.07 * streaks) + 0.014 * fine + 0.022 * coarse
    value += (0.10 + 0.05 * gland) * threads * smooth_step(depth, 1.5, 7.0)
    value += 0.075 * _vessels(rng, breast, grid_mm) * (1 - 0.6 * gland)
    fibres = _fibres(rng, grid, breast)
    value = value * (1 - breast.muscle) + breast.muscle * (0.36 + 0.35 * value + 0.028 * fibres + 0.02 * coarse)
    # Thinner towards the skin, which itself is a dense line; the nipple is a dense knob.
    value *= 0.45 + 0.55 * smooth_step(depth, 0.0, 6.0)
    value += (0.10 + 0.02 * coarse) * np.exp(-(((depth - 0.9) / 0.8) ** 2))
    knob = np.exp(-((((x - nx + 1.0) / 4.5) ** 2 + ((y - ny) / 4.5) ** 2) ** 1.5))
    value += 0.12 * knob
    soft = cv2.GaussianBlur(breast.inside, (0, 0), 0.25 / grid_mm + 0.3)
    out: Image = (1.12 * np.clip(value, 0.02, 0.9) ** 0.95 * soft).astype(np.float32)
    return out


def power_law(rng: Rng, size: tuple[int, int], beta: float) -> Image:
    """Noise f32[H, W] of mean 0 and deviation 1 whose power spectrum falls as 1/f^beta."""
    shape = (scipy.fft.next_fast_len(size[0] + 32, real=True), scipy.fft.next_fast_len(size[1] + 32, real=True))
    f = np.hypot(scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])[None, :]).astype(np.float32)
    f[0, 0] = 1
    # Below two cycles across the field the spectrum is flat: no one blotch that lights half the breast.
    gain = np.maximum(f, 2.0 / max(shape)) ** np.float32(-beta / 2)
    gain[0, 0] = 0
    white = scipy.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    noise = scipy.fft.irfft2(white * gain, s=shape)[: size[0], : size[1]]
    out: Image = ((noise - noise.mean()) / (noise.std() + 1e-9)).astype(np.float32)
    return out


def smooth_step(value: NDArray[np.floating], low: float, high: float) -> Image:
    """0 up to `low`, 1 from `high` on, a smooth rise between."""
    t = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    out: Image = t * t * (3 - 2 * t)
    return out


def _strands(rng: Rng, breast: Breast, grid_mm: float) -> tuple[Image, Image]:
    """Tissue drawn out along the lines that run from the nipple into the breast.

    Gives noise of deviation 1, and thin bright threads (ligaments and ducts) in [0, about 1.5].
    """
    grid = (breast.inside.shape[0], breast.inside.shape[1])
    coarse = max(1.0, grid_mm / 0.25)  # coarser than about 0.5 mm only where the grid cannot show it
    n = round(1024 / coarse)
    x, y = np.meshgrid((np.arange(grid[1]) + 0.5) * grid_mm, (np.arange(grid[0]) + 0.5) * grid_mm)
    nx, ny = breast.nipple_mm
    bend_x, bend_y = (7 * power_law(rng, grid, 3.6) for _ in range(2))
    # From a point in front of the nipple, so that the lines fan out gently; about 0.5 mm a step both ways.
    dx, dy = nx + 22 - x + bend_x, y - ny + bend_y
    u = np.mod(np.hypot(dx, dy) * 2.0 / coarse, n - 1).astype(np.float32)
    v = np.mod((np.arctan2(dy, dx) + np.pi) * 150 / coarse, n - 1).astype(np.float32)

    def along(polar: Image) -> Image:
        out: Image = cv2.remap(polar, u, v, cv2.INTER_LINEAR)
        return out

    noise = along(cv2.GaussianBlur(power_law(rng, (n, n), 2.0), (0, 0), sigmaX=5 / coarse, sigmaY=0.6 / coarse))
    threads = np.zeros(grid, dtype=np.float32)
    for across, length, gain in ((2.2, 9.0, 0.5), (3.6, 12.0, 0.8), (6.5, 16.0, 1.0)):
        smooth = cv2.GaussianBlur(
            rng.standard_normal((n, n), dtype=np.float32), (0, 0), sigmaX=length / coarse, sigmaY=across / coarse
        )
        # The zero crossings of smooth noise are winding curves; another noise lets them come and go.
        line = np.exp(-((smooth / smooth.std() / (0.42 / across + 0.05)) ** 2))
        fade = np.clip(0.25 + 0.75 * power_law(rng, (n, n), 2.6), 0, 1.6)
        threads += gain * along((line * fade).astype(np.float32))
    return (noise / (float(noise.std()) + 1e-9)).astype(np.float32), threads


def _fibres(rng: Rng, grid: tuple[int, ...], breast: Breast) -> Image:
    if not breast.muscle.any():
        return np.zeros(grid, dtype=np.float32)
    noise = power_law(rng, (grid[0], grid[1]), 1.6)
    angle = float(rng.uniform(62, 72))
    size = 41
    kernel = np.zeros((size, size), dtype=np.float32)
    d = np.array([np.cos(np.deg2rad(angle)), -np.sin(np.deg2rad(angle))]) * size / 2
    a, b = (size / 2 - d).astype(int), (size / 2 + d).astype(int)
    cv2.line(kernel, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 1.0, 1)
    out: Image = cv2.filter2D(noise, -1, kernel / kernel.sum())
    return out / (float(out.std()) + 1e-9)


def _vessels(rng: Rng, breast: Breast, grid_mm: float) -> Image:
    """A few winding vessels, 1 to 2.5 mm wide, f32 in [0, 1]."""
    layer = np.zeros(breast.inside.shape, dtype=np.float32)
    nx, ny = breast.nipple_mm
    for _ in range(int(rng.integers(4, 8))):
        start = np.array([rng.uniform(0.0, 0.3) * nx, ny + rng.uniform(-0.85, 0.85) * breast.half_height_mm])
        end = np.array([rng.uniform(0.65, 0.9) * nx, ny + rng.uniform(-0.5, 0.5) * breast.half_height_mm])
        t = np.linspace(0, 1, 60)[:, None]
        normal = np.array([-(end - start)[1], (end - start)[0]]) / (np.linalg.norm(end - start) + 1e-9)
        waves = sum(
            rng.normal(0, 5 / k**1.5) * np.sin(np.pi * k * t + rng.uniform(0, 2 * np.pi) * (k > 1)) for k in (1, 2, 3, 5)
        )
        path = ((start + (end - start) * t + normal * waves) / grid_mm * 16).astype(np.int32)
        thick = max(1, round(float(rng.uniform(0.7, 1.7)) / grid_mm))
        one = np.zeros(layer.shape, dtype=np.uint8)
        cv2.polylines(one, [path.reshape(-1, 1, 2)], False, int(rng.integers(110, 256)), thick, cv2.LINE_AA, 4)
        layer = np.maximum(layer, cv2.GaussianBlur(one, (0, 0), 0.4 / grid_mm + 0.3).astype(np.float32) / 255)
    out: Image = layer * smooth_step(breast.depth_mm, 2.0, 10.0)
    return out


def add_noise(rng: Rng, image: Image, inside: Image, sigma: float) -> None:
    """Quantum noise, slightly correlated as behind a scintillator; darker, more exposed parts have less."""
    noise = cv2.GaussianBlur(rng.standard_normal(image.shape, dtype=np.float32), (3, 3), 0.6)
    noise *= np.float32(sigma * 2.0)
    noise *= 0.25 + 0.75 * np.clip(inside, 0, 1) * np.clip(image * 1.6, 0.3, 1)
    image += noise
    np.multiply(image, inside > 0, out=image, where=inside <= 0)


def draw_label(image: Image, text: str, chest_right: bool, grey: float, height_fraction: float = 0.02) -> None:
    """A burned-in view label in the upper corner away from the chest wall; letters of `height_fraction` of the image."""
    height, width = image.shape
    scale = height * height_fraction / 21  # the font's capitals are 21 pixels high at scale 1
    thick = max(1, round(2.2 * scale))
    (tw, th), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    x = round(0.05 * width) if chest_right else width - tw - round(0.05 * width)
    plate = np.zeros((2 * th, tw + th), dtype=np.uint8)
    cv2.putText(plate, text, (th // 2, th + th // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    window = image[th : 3 * th, max(0, x - th // 2) : x - th // 2 + plate.shape[1]]
    alpha = plate[: window.shape[0], : window.shape[1]].astype(np.float32) / 255
    window += alpha * (grey - window)


def film_look(rng: Rng, image: Image, text: str, chest_right: bool) -> None:
    """Turns a digital look into that of a scanned film: fog, flatter tones, dust, a bright label and bright film edges."""
    height, width = image.shape
    np.clip(image, 0, 1, out=image)
    image *= 0.80
    image += np.float32(0.045) + 0.012 * cv2.resize(
        power_law(rng, (64, 64), 2.0), (width, height), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(int(rng.integers(10, 40))):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(image, centre, max(1, height // 1600), float(rng.uniform(0.6, 0.95)), -1)
    draw_label(image, text, chest_right, 0.93, 0.032)
    top, bottom, outer = (round(float(rng.uniform(0.002, 0.012)) * height) for _ in range(3))
    image[: max(1, top)] = 0.92
    image[height - max(1, bottom) :] = 0.92
    if chest_right:
        image[:, : max(1, outer)] = 0.92
    else:
        image[:, width - max(1, outer) :] = 0.92
