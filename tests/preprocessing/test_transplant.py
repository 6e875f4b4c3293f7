"""Transplanted masses: what a mass adds is recovered from a drawn one; a transplant leaves everything else alone."""

from __future__ import annotations

import numpy as np
import pytest

from mammoseg.preprocessing.transplant import Graft, graft_of, transplant


def _bump(size: tuple[int, int], height: float) -> np.ndarray:
    """A mass that falls to nothing at the rim of the ellipse in the middle 1/1.6 of the patch."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    away = np.hypot((x / size[1] - 0.5) * 3.2, (y / size[0] - 0.5) * 3.2)
    return height * (1 - away.clip(0, 1) ** 2)


def _plane(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return 0.3 + 0.001 * x - 0.002 * y


def _graft(size: tuple[int, int] = (48, 64), height: float = 0.3) -> Graft:
    graft = graft_of((_plane(size) + _bump(size, height)).astype(np.float32))
    assert graft is not None
    return graft


def test_what_a_mass_adds_is_what_was_added_to_a_slope() -> None:
    graft = _graft()
    assert graft.size == (30, 40)
    np.testing.assert_allclose(graft.added, _bump((48, 64), 0.3), atol=1e-5)
    assert graft.window[24, 32] == 1.0
    assert graft.window[0].max() < 0.05
    assert graft.window[0, 0] == 0.0


@pytest.mark.parametrize(
    "patch",
    [
        _plane((48, 64)),  # nothing there
        _plane((48, 64)) + _bump((48, 64), 0.05),  # hardly anything
        _plane((48, 64)) - _bump((48, 64), 0.2),  # darker than around it
        (_plane((48, 64)) + _bump((48, 64), 0.3)) * (np.arange(64) > 14),  # at the breast's edge
        (_plane((9, 64)) + _bump((9, 64), 0.3)),  # too flat
    ],
)
def test_what_cannot_be_seen_or_cut_out_is_left(patch: np.ndarray) -> None:
    assert graft_of(patch.astype(np.float32)) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_transplant_changes_its_place_alone_and_overlaps_no_box(seed: int) -> None:
    graft = _graft()
    image = np.zeros((160, 200), dtype=np.float32)
    image[:, :150] = 0.35
    boxes = np.array([[20.0, 10, 70, 60]])
    out, ((x1, y1, x2, y2),) = transplant(image, boxes, graft, np.random.default_rng(seed))
    assert (y2 - y1, x2 - x1) == graft.size
    reach = np.zeros(image.shape, dtype=bool)
    reach[int(y1) - 9 : int(y2) + 9, int(x1) - 12 : int(x2) + 12] = True
    np.testing.assert_array_equal(out[~reach], image[~reach])
    assert not reach[10:60, 20:70].any()
    assert (out[:, 150:] == 0).all()  # the background stays what it is
    rise = (out - image)[int((y1 + y2) / 2), int((x1 + x2) / 2)]
    assert 0.8 * 0.29 < rise < 1.2 * 0.31  # of an even tissue nothing is replaced
    assert image[image > 0].min() == np.float32(0.35)  # the given image is not written to


def test_without_a_place_nothing_happens() -> None:
    graft, rng = _graft(), np.random.default_rng(0)
    image, boxes = np.full((100, 100), 0.4, dtype=np.float32), np.array([[10.0, 10, 90, 90]])
    out, new = transplant(image, boxes, graft, rng)
    assert out is image
    assert len(new) == 0
    assert len(transplant(np.zeros((300, 300), dtype=np.float32), np.zeros((0, 4)), graft, rng)[1]) == 0
    assert len(transplant(image[:40], np.zeros((0, 4)), graft, rng)[1]) == 0
