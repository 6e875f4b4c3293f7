"""Crops: geometry at borders, equalisation against an oracle, jitter within its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.exposure import equalize_hist

from mammoseg.geometry import Transform
from mammoseg.preprocessing.crops import (
    CropConfig,
    JitterConfig,
    crop_region,
    cut_crop,
    equalise,
    jitter_box,
    jitter_reach,
    network_input,
    truth_crop,
    turn,
)

IMAGE = np.random.default_rng(0).random((60, 80)).astype(np.float32)
edge = st.floats(-30, 100, allow_nan=False)
side = st.floats(0, 90, allow_nan=False)


def test_stretch_and_square_regions_by_hand() -> None:
    assert crop_region((10, 20, 30, 30), CropConfig(margin=0.5)).tolist() == [0, 15, 40, 35]
    assert crop_region((10, 20, 30, 30), CropConfig(margin=0.5, shape="square")).tolist() == [0, 5, 40, 45]


def test_stretched_box_always_covers_the_same_part_of_the_crop() -> None:
    config = CropConfig(size=100, margin=0.25)
    for box in ([3, 4, 33, 24], [40, 1, 47, 59]):
        np.testing.assert_allclose(cut_crop(IMAGE, box, config).to_crop.boxes([box])[0], [100 / 6, 100 / 6, 500 / 6, 500 / 6])


@settings(deadline=None)
@given(edge, edge, side, side, st.sampled_from(["stretch", "square"]))
def test_round_trip_and_padding_wherever_the_box_lies(x: float, y: float, w: float, h: float, shape: str) -> None:
    config = CropConfig(size=32, shape=shape)  # type: ignore[arg-type]
    box = np.array([x, y, x + w, y + h])
    crop = cut_crop(IMAGE, box, config, index=7)
    back = crop.to_crop.inverse((60, 80))
    np.testing.assert_allclose(back.boxes(crop.to_crop.boxes([box]))[0], box, atol=1e-6)
    # A crop pixel is NaN exactly where its centre lies outside the image.
    centres = np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5), axis=-1).reshape(-1, 2)
    native = back.points(centres)
    clear = (np.abs(native - [0, 0]) > 1e-6).all(axis=1) & (np.abs(native - [80, 60]) > 1e-6).all(axis=1)
    outside = ((native < 0) | (native > [80, 60])).any(axis=1)
    assert (np.isnan(crop.pixels).ravel()[clear] == outside[clear]).all()
    assert crop.index == 7
    seen = network_input(crop, config)
    assert seen.shape == (32, 32)
    assert seen.dtype == np.float32
    assert np.isfinite(seen).all()
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_an_unscaled_crop_is_the_pixels_themselves() -> None:
    crop = cut_crop(IMAGE, (10, 20, 26, 36), CropConfig(size=16, margin=0.0))
    np.testing.assert_allclose(crop.pixels, IMAGE[20:36, 10:26], atol=1e-6)


@pytest.mark.parametrize("bins", [256, 1024])
def test_equalisation_equals_scikit_image(bins: int) -> None:
    pixels = np.random.default_rng(1).gamma(2.0, 0.1, (64, 64)).clip(0, 1).astype(np.float32)
    inside = np.ones_like(pixels, dtype=bool)
    np.testing.assert_allclose(equalise(pixels, inside, bins), equalize_hist(pixels, nbins=bins), atol=1e-6)


def test_padding_takes_no_part_in_the_histogram() -> None:
    pixels = np.random.default_rng(2).random((64, 64)).astype(np.float32)
    inside = np.zeros((64, 64), dtype=bool)
    inside[:, 20:] = True
    with_padding = np.where(inside, pixels, 0).astype(np.float32)
    np.testing.assert_array_equal(equalise(with_padding, inside)[inside], equalise(pixels[:, 20:], inside[:, 20:]).ravel())


def test_a_16_bit_ramp_narrower_than_one_8_bit_step_survives() -> None:
    ramp = (30_000 + np.arange(200, dtype=np.float32).reshape(10, 20)) / 65_535  # 200 steps: less than one of 256
    result = equalise(ramp, np.ones_like(ramp, dtype=bool))
    assert len(np.unique(result)) == 200
    assert result.max() - result.min() > 0.98


def test_equalisation_ignores_any_rising_grey_curve() -> None:
    pixels = np.random.default_rng(3).random((64, 64)).astype(np.float32)
    inside = np.ones_like(pixels, dtype=bool)
    # Equal bins fall elsewhere after a curve, hence not exactly.
    assert np.abs(equalise(pixels, inside) - equalise(pixels**1.5, inside)).max() < 0.01


def test_constant_and_empty_crops_give_zeros() -> None:
    flat = np.full((4, 4), 0.3, dtype=np.float32)
    assert not equalise(flat, np.ones((4, 4), dtype=bool)).any()
    assert not equalise(flat, np.zeros((4, 4), dtype=bool)).any()


def test_truth_goes_through_the_same_transform() -> None:
    mask = np.ones((10, 20), dtype=bool)
    config = CropConfig(size=48, margin=0.5)
    crop = cut_crop(IMAGE, (30, 40, 50, 50), config)
    truth = truth_crop(mask, (40, 30), crop.to_crop)
    expected = np.zeros((48, 48), dtype=bool)
    expected[12:36, 12:36] = True
    np.testing.assert_array_equal(truth, expected)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.4), st.floats(0, 0.4))
def test_jitter_stays_within_its_bounds_and_its_reach(seed: int, scale: float, shift: float) -> None:
    box = np.array([100.0, 200.0, 140.0, 220.0])
    jitter, config = JitterConfig(scale, shift), CropConfig(shape="square")
    moved = jitter_box(box, jitter, np.random.default_rng(seed))
    size, centre = moved[2:] - moved[:2], (moved[2:] + moved[:2]) / 2
    assert (np.abs(np.log(size / [40, 20])) <= scale + 1e-9).all()
    assert (np.abs(centre - [120, 210]) <= shift * np.array([40, 20]) + 1e-9).all()
    reach, region = jitter_reach(box, config, jitter), crop_region(moved, config)
    assert (reach[:2] <= region[:2] + 1e-9).all()
    assert (reach[2:] >= region[2:] - 1e-9).all()


def test_jitter_uses_its_range_and_no_jitter_changes_nothing() -> None:
    box = np.array([0.0, 0.0, 10.0, 10.0])
    rng = np.random.default_rng(0)
    assert jitter_box(box, JitterConfig(0, 0), rng).tolist() == box.tolist()
    moved = np.array([jitter_box(box, JitterConfig(0.2, 0.1), rng) for _ in range(500)])
    assert np.log((moved[:, 2] - moved[:, 0]) / 10).min() < -0.18
    assert ((moved[:, 1] + moved[:, 3]) / 2).max() > 5.9


def test_the_eight_symmetries_are_different_and_keep_pairs_together() -> None:
    image = np.arange(9).reshape(3, 3)
    turned = {turn(image, k).tobytes() for k in range(8)}
    assert len(turned) == 8


@pytest.mark.parametrize("wrong", [{"size": 0}, {"margin": -0.1}, {"bins": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="crop"):
        CropConfig(**wrong)  # type: ignore[arg-type]


def test_large_native_images_are_averaged_not_subsampled() -> None:
    stripes = np.zeros((1000, 1000), dtype=np.float32)
    stripes[:, ::2] = 1
    crop = cut_crop(stripes, (100, 100, 900, 900), CropConfig(size=40, margin=0.0))
    np.testing.assert_allclose(crop.pixels, 0.5, atol=0.03)
    assert isinstance(crop.to_crop, Transform)


def test_a_crop_of_values_that_hardly_differ_is_equalised() -> None:
    """Steps of float32's last bit, as where a window clips and resampling rounds: no error, and order is kept."""
    step = np.float32(2.0**-23)
    pixels = np.float32(0.5) + step * np.arange(16, dtype=np.float32).reshape(4, 4)
    result = equalise(pixels, np.ones_like(pixels, dtype=bool))
    assert (np.diff(result.ravel()) > 0).all()
