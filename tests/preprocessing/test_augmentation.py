"""Random views: geometry that image and boxes share, intensities that keep order and background, looks switched off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mammoseg.geometry import Transform
from mammoseg.preprocessing.augmentation import AugmentationConfig, Draw, change_intensity, draw
from mammoseg.preprocessing.intensity import gamma

SIZE = (96, 64)
PLAIN = Draw(Transform.identity(SIZE), 1.0, 1.0, 0.0, 0.0, 0.0, 0)


def _breast() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.where(np.hypot(x / 60, (y - 48) / 44) < 1, 0.3 + 0.6 * (x / 60) * (1 + np.sin(y / 3)) / 2, 0.0)
    return image.astype(np.float32)


def test_a_view_that_draws_nothing_changes_nothing() -> None:
    np.testing.assert_allclose(change_intensity(_breast(), PLAIN), _breast(), atol=1e-6)


def test_looks_are_off_by_default_and_do_not_move_the_other_draws() -> None:
    bare, looks = AugmentationConfig(), AugmentationConfig(tone=0.6, flatten=0.8, sharpen=1.0)
    some = []
    for seed in range(40):
        one, other = (draw(np.random.default_rng(seed), SIZE, c) for c in (bare, looks))
        assert (one.tone, one.flatten, one.sharpen) == ((), 0.0, 0.0)
        assert replace(other, tone=(), flatten=0.0, sharpen=0.0) == one
        some.append((bool(other.tone), other.flatten > 0, other.sharpen > 0))
    assert all(8 <= sum(column) <= 32 for column in zip(*some, strict=True))  # each for about half of the views


@pytest.mark.parametrize(
    ("name", "value"), [("transplant", 2.0), ("transplant", -1.0), ("transplant_scale", 0.0), ("scale", 0.5), ("noise", -0.1)]
)
def test_ranges_that_cannot_be_drawn_from_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got {value}"):
        AugmentationConfig(**{name: value})


@pytest.mark.parametrize("seed", range(20))
def test_a_tone_curve_rises_from_0_to_1_and_keeps_the_order_of_greys(seed: int) -> None:
    drawn = draw(np.random.default_rng(seed), SIZE, AugmentationConfig(tone=1.0))
    if not drawn.tone:
        return
    curve = np.array(drawn.tone)
    assert (curve[0], round(float(curve[-1]), 12)) == (0.0, 1.0)
    assert (np.diff(curve) > 0).all()
    image = _breast()
    out = change_intensity(image, replace(PLAIN, tone=drawn.tone))
    order = np.argsort(image.ravel(), kind="stable")
    assert (np.diff(out.ravel()[order]) >= -1e-6).all()


def test_flattening_takes_away_coarse_brightness_and_keeps_fine_structure() -> None:
    y, x = np.mgrid[:256, :160]
    fine = 0.05 * np.sign(np.sin(x * 1.5) * np.sin(y * 1.5))
    image = (0.2 + 0.5 * y / 256 + fine).astype(np.float32)
    out = change_intensity(image, replace(PLAIN, flatten=1.0))
    rows = slice(48, 208)
    ramp = lambda a: float(np.polyfit(np.arange(160), a[rows].mean(axis=1), 1)[0])  # noqa: E731
    assert abs(ramp(out)) < 0.1 * ramp(image)
    texture = lambda a: float((a[rows] - a[rows].mean(axis=1, keepdims=True)).std())  # noqa: E731
    assert texture(out) == pytest.approx(texture(image), rel=0.1)


def test_sharpening_raises_edges_alone() -> None:
    image = np.full(SIZE, 0.3, np.float32)
    image[:, 32:] = 0.6
    out = change_intensity(image, replace(PLAIN, sharpen=1.0))
    assert out[:, 33].mean() > 0.64
    assert out[:, 30].mean() < 0.28
    np.testing.assert_allclose(out[:, [5, 60]], image[:, [5, 60]], atol=1e-4)


def test_background_stays_black_and_values_stay_in_range() -> None:
    config = AugmentationConfig(tone=1.0, flatten=1.0, sharpen=2.0, noise=0.1, brightness=0.3, contrast=2.0)
    image = _breast()
    for seed in range(30):
        out = change_intensity(image, draw(np.random.default_rng(seed), SIZE, config))
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 1
        assert (out[image == 0] == 0).all()


def test_gamma_is_the_power() -> None:
    out = change_intensity(_breast(), replace(PLAIN, gamma=1.4))
    np.testing.assert_allclose(out, gamma(_breast(), 1.4), atol=1e-6)
