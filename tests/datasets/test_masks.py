"""COCO's masks against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as oracle

from mammoseg.datasets.masks import Placed, decode_rle, encode_rle, rasterise

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def _full(placed: Placed | None, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    out = np.zeros(size, dtype=np.bool_)
    if placed is not None:
        mask, (r, c) = placed
        out[r : r + mask.shape[0], c : c + mask.shape[1]] = mask
    return out


@given(MASKS)
@settings(max_examples=300, deadline=None)
def test_run_lengths_are_those_of_pycocotools(mask: np.ndarray[Any, Any]) -> None:
    theirs = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_rle(mask, (0, 0), mask.shape)
    assert ours["counts"] == theirs["counts"].decode()
    assert ours["size"] == list(theirs["size"])
    for counts in (theirs["counts"], ours["counts"]):
        np.testing.assert_array_equal(_full(decode_rle(counts, mask.shape), mask.shape), mask)


@given(MASKS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_mask_with_an_origin_lands_where_it_belongs(
    mask: np.ndarray[Any, Any], r: int, c: int, down: int, right: int
) -> None:
    size = (mask.shape[0] + r + down, mask.shape[1] + c + right)
    theirs = oracle.decode(encode_rle(mask, (r, c), size)).astype(bool)
    np.testing.assert_array_equal(theirs, _full((mask, (r, c)), size))


def test_uncompressed_runs_are_columns_background_first() -> None:
    placed = decode_rle([4, 2, 6], (4, 3))
    assert placed is not None
    assert placed[1] == (0, 1)
    assert placed[0].tolist() == [[True], [True]]
    assert decode_rle([12], (4, 3)) is None


@pytest.mark.parametrize("counts", [[4, 2], [13, -1], "\x01", "P", [[1], [2]]])
def test_broken_runs_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError):
        decode_rle(counts, (4, 3))


def test_a_mask_outside_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie within"):
        encode_rle(np.ones((3, 3), np.bool_), (8, 0), (10, 10))


def test_polygons_on_pixel_edges_are_exact() -> None:
    placed = rasterise([[1, 2, 5, 2, 5, 4, 1, 4]], (10, 10))
    assert placed is not None
    assert placed[1] == (2, 1)
    assert placed[0].shape == (2, 4)
    assert placed[0].all()


def test_two_polygons_are_a_union_and_are_cut_to_the_image() -> None:
    full = _full(rasterise([[0, 0, 3, 0, 3, 3, 0, 3], [2, 2, 30, 2, 30, 5, 2, 5]], (6, 8)), (6, 8))
    expected = np.zeros((6, 8), np.bool_)
    expected[0:3, 0:3] = True
    expected[2:5, 2:8] = True
    np.testing.assert_array_equal(full, expected)
    assert rasterise([[20, 20, 25, 20, 25, 25]], (6, 8)) is None


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_polygons_agree_with_pycocotools_but_for_the_rim(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radius = rng.uniform(25, 45, 12)
    xy = np.stack([60 + radius * np.cos(theta), 60 + radius * np.sin(theta)], axis=1)
    ours = _full(rasterise([xy], (120, 120)), (120, 120))
    theirs = oracle.decode(oracle.merge(oracle.frPyObjects([xy.ravel().tolist()], 120, 120))).astype(bool)
    # pycocotools rounds corners to a fifth of a pixel: only pixels that the outline runs through may differ.
    differ = np.argwhere(ours != theirs)[:, ::-1] + 0.5
    a, b = xy[None], np.roll(xy, -1, axis=0)[None]
    p = differ[:, None, :]
    t = (((p - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-12)).clip(0, 1)
    assert (np.linalg.norm(p - (a + t[..., None] * (b - a)), axis=-1).min(axis=1) <= 1.0).all()


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_polygons_equal_the_centre_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-3, 23, (7, 2))  # may cross itself: even-odd
    ours = _full(rasterise([xy], (20, 20)), (20, 20))
    inside = np.zeros((20, 20), np.bool_)
    for r in range(20):
        for c in range(20):
            x, y, odd = c + 0.5, r + 0.5, False
            for (xa, ya), (xb, yb) in zip(xy, np.roll(xy, -1, axis=0), strict=True):
                if (ya > y) != (yb > y) and x < xa + (y - ya) * (xb - xa) / (yb - ya):
                    odd = not odd
            inside[r, c] = odd
    np.testing.assert_array_equal(ours, inside)
