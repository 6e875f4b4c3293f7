"""The predictor: where masks land, how outputs are merged, that it needs no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from mammoseg.config import from_dict, to_dict
from mammoseg.errors import ConfigError
from mammoseg.preprocessing.crops import CropConfig
from mammoseg.segmentation.predictor import Segmenter, SegmenterSpec, merge_outputs, normalise, read_spec
from mammoseg.types import Mammogram

RAW = CropConfig(size=64, margin=0.25, equalise=False)
PLAIN = SegmenterSpec(crop=RAW, channels=1, mean=(0.0,), std=(1.0,), batch=2)


def linear(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """A network whose probability is ½ where the grey value is ½."""
    return [20 * (x[:, :1] - np.float32(0.5))] * 4


def blob(centre_xy: tuple[float, float], sigma: float = 12.0) -> Mammogram:
    y, x = np.mgrid[:160, :200] + 0.5
    pixels = np.exp(-((x - centre_xy[0]) ** 2 + (y - centre_xy[1]) ** 2) / (2 * sigma**2))
    return Mammogram(pixels.astype(np.float32), "blob")


def centre_of_mass(mammogram: Mammogram, masks: list, index: int) -> NDArray[np.float64]:
    native = masks[index].to_crop.inverse(mammogram.size).image(masks[index].probability)
    y, x = np.mgrid[: native.shape[0], : native.shape[1]] + 0.5
    inside = native >= 0.5
    return np.array([x[inside].mean(), y[inside].mean()])


@pytest.mark.parametrize("shape", ["stretch", "square"])
@pytest.mark.parametrize("flips", [False, True])
def test_the_mask_lands_where_the_mass_is(shape: str, flips: bool) -> None:
    mammogram = blob((90.3, 71.8))
    spec = from_dict(SegmenterSpec, to_dict(PLAIN) | {"flips": flips, "crop": to_dict(RAW) | {"shape": shape}})
    # Boxes that are not centred on it, of different shapes; three boxes, so that a batch of two is not full.
    boxes = [[70, 50, 110, 95], [60, 45, 125, 90], [72, 40, 112, 90]]
    masks = Segmenter(linear, spec).segment(mammogram, boxes)
    assert [m.index for m in masks] == [0, 1, 2]
    for index in range(3):
        assert masks[index].probability.shape == (64, 64)
        np.testing.assert_allclose(centre_of_mass(mammogram, masks, index), (90.3, 71.8), atol=0.35)


def test_the_area_is_right_after_an_anisotropic_crop() -> None:
    mammogram = blob((100.0, 80.0))
    mask = Segmenter(linear, PLAIN).segment(mammogram, [[70, 60, 130, 100]])[0]
    area = (mask.to_crop.inverse(mammogram.size).image(mask.probability) >= 0.5).sum()
    assert area == pytest.approx(np.pi * 2 * np.log(2) * 12**2, rel=0.02)  # exp(−r²/2σ²) = ½


def test_a_box_over_the_border_sees_zero_outside_and_stays_in_place() -> None:
    mammogram = blob((4.2, 80.0))
    seen: list[NDArray[np.float32]] = []

    def network(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        seen.append(x)
        return linear(x)

    mask = Segmenter(network, PLAIN).segment(mammogram, [[-16, 60, 24, 100]])[0]
    t = mask.to_crop
    outside = int(np.floor(t.points([[0, 0]])[0, 0]))
    assert outside > 20
    assert (seen[0][0, 0, :, :outside] == 0).all()
    assert np.isfinite(seen[0]).all()
    native = t.inverse(mammogram.size).image(mask.probability)
    assert native[80, :12].min() > 0.5 > native[80, 25]


def test_no_boxes_no_masks() -> None:
    def never(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        raise AssertionError("the network must not run")

    assert Segmenter(never, PLAIN).segment(blob((50, 50)), np.zeros((0, 4))) == []


def test_outputs_are_averaged_as_probabilities_or_one_is_taken() -> None:
    logits = [np.full((1, 1, 2, 2), v, dtype=np.float32) for v in (0.0, np.log(3.0))]  # probabilities ½ and ¾
    np.testing.assert_allclose(merge_outputs(logits, "mean"), 0.625, rtol=1e-6)
    np.testing.assert_allclose(merge_outputs(logits, "L1"), 0.5, rtol=1e-6)
    np.testing.assert_allclose(merge_outputs(logits, "L2"), 0.75, rtol=1e-6)
    with pytest.raises(ValueError, match="2 outputs"):
        merge_outputs(logits, "L3")


def test_grey_becomes_normalised_rgb() -> None:
    x = normalise(np.full((2, 4, 4), 0.5, dtype=np.float32), SegmenterSpec())
    assert x.shape == (2, 3, 4, 4)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[1, :, 2, 3], [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225], rtol=1e-6)


def test_extreme_logits_do_not_overflow() -> None:
    with np.errstate(over="raise"):
        p = merge_outputs([np.array([[[[-1e30, 1e30]]]], dtype=np.float32)], "mean")
    assert p.ravel() == pytest.approx([0.0, 1.0], abs=1e-20)


def test_spec_round_trips_and_refuses_what_does_not_fit() -> None:
    spec = SegmenterSpec(crop=CropConfig(size=128), output="L4")
    assert from_dict(SegmenterSpec, to_dict(spec)) == spec
    with pytest.raises(ValueError, match="mean and std"):
        SegmenterSpec(channels=1)
    with pytest.raises(ValueError, match="batch"):
        SegmenterSpec(batch=0)


def test_specs_of_early_models_are_read_and_the_threshold_is_reconstructions_alone() -> None:
    assert "threshold" not in to_dict(SegmenterSpec())
    assert read_spec({**to_dict(PLAIN), "threshold": 0.5}) == PLAIN
    with pytest.raises(ConfigError, match=r"did you mean 'spec\.batch'"):
        read_spec({"bach": 2})


def test_the_predictor_and_the_registry_import_no_torch() -> None:
    code = "import sys, mammoseg.segmentation, mammoseg.segmentation.predictor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
