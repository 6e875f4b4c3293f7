"""The breast box never loses breast and leaves film borders and labels out."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoseg.geometry import box_area
from mammoseg.preprocessing.breast import breast_box, breast_mask, mask_of, mask_on_grid, reduced_mask


def film(
    size: tuple[int, int] = (608, 400), side: str = "L", border: float = 0.0, label: bool = False, muscle: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A breast-like half ellipse on a noisy dark film and its true mask."""
    height, width = size
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    true = ((x / (0.55 * width)) ** 2 + ((y - 0.5 * height) / (0.38 * height)) ** 2) < 1
    depth = np.clip(1 - (x / (0.55 * width)) ** 2 - ((y - 0.5 * height) / (0.38 * height)) ** 2, 0, 1)
    image = np.where(true, 0.25 + 0.4 * np.sqrt(depth), 0.03) + rng.normal(0, 0.008, size)
    if muscle:
        triangle = true & (x < 0.15 * width)
        image[triangle] = muscle
    if label:
        text = np.zeros(size, np.uint8)
        cv2.putText(text, "L CC", (int(0.7 * width), int(0.12 * height)), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 4)
        image[text > 0] = 0.95
    if side == "R":
        image, true = image[:, ::-1].copy(), true[:, ::-1].copy()
    if border:
        image[: int(border * height)] = 0.97
        image[-int(border * height) :] = 0.97
    return image.clip(0, 1).astype(np.float32), true


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("border", [0.0, 0.03])
@pytest.mark.parametrize("muscle", [0.0, 0.98])
def test_box_holds_the_breast_and_little_more(side: str, border: float, muscle: float) -> None:
    image, true = film(side=side, border=border, label=True, muscle=muscle)
    x1, y1, x2, y2 = breast_box(image).astype(int)
    outside = true.copy()
    outside[y1:y2, x1:x2] = False
    assert not outside.any()
    rows, columns = np.flatnonzero(true.any(axis=1)), np.flatnonzero(true.any(axis=0))
    assert (y2 - y1) <= 1.08 * (rows[-1] - rows[0] + 1)
    assert (x2 - x1) <= 1.12 * (columns[-1] - columns[0] + 1)


def test_box_scales_with_the_image() -> None:
    image, _ = film()
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(breast_box(large) / 4, breast_box(image), atol=4)


def test_mask_agrees_with_the_truth() -> None:
    image, true = film(label=True)
    mask = breast_mask(image)
    assert mask.shape == image.shape
    assert mask.dtype == np.bool_
    assert 2 * (mask & true).sum() / (mask.sum() + true.sum()) > 0.98


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((300, 200), np.float32),
        np.full((300, 200), 0.7, np.float32),
        np.zeros((5, 4), np.float32),
        np.ones((1, 1), np.float32),
    ],
    ids=["black", "flat", "tiny", "pixel"],
)
def test_whole_image_when_unsure(image: np.ndarray) -> None:
    assert breast_box(image).tolist() == [0, 0, image.shape[1], image.shape[0]]
    assert breast_mask(image).all()


def test_noise_is_not_cut() -> None:
    noise = np.random.default_rng(0).random((300, 200), dtype=np.float32)
    assert breast_box(noise).tolist() == [0, 0, 200, 300]


def test_integer_valued_box_inside_the_image() -> None:
    image, _ = film((613, 411))
    box = breast_box(image)
    assert box.dtype == np.float64
    assert (box == np.rint(box)).all()
    assert (box[:2] >= 0).all()
    assert box[2] <= 411
    assert box[3] <= 613


@pytest.mark.data
def test_no_true_mass_is_cut_on_real_films(shared_dir: Path) -> None:
    """A quarter of the training films; all 1230 were measured by hand: 1315 of 1315 boxes inside, median area 0.69."""
    folder = shared_dir / "data" / "cbis_ddsm_mass"
    coco = json.loads((folder / "annotations.json").read_text())
    truth: dict[int, list[list[float]]] = {}
    for annotation in coco["annotations"]:
        truth.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    fractions = []
    for record in coco["images"][::4]:
        pixels = cv2.imread(str(folder / record["file_name"]), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        box = breast_box(pixels)
        fractions.append(box_area(box)[0] / pixels.size)
        for x, y, w, h in truth[record["id"]]:
            assert box[0] <= x, record["file_name"]
            assert box[1] <= y, record["file_name"]
            assert box[2] >= x + w - 0.01, record["file_name"]
            assert box[3] >= y + h - 0.01, record["file_name"]
    assert np.median(fractions) < 0.75


@pytest.mark.parametrize(("size", "step"), [((608, 400), 1), ((2048, 1333), 3), ((4084, 3328), 8), ((300, 200), 2)])
def test_the_mask_on_a_grid_is_the_mask_there(size: tuple[int, int], step: int) -> None:
    """Up to pixels whose interpolated value is a half to the last bit."""
    image, _ = film((608, 400))
    large = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    region = reduced_mask(large)
    assert region is not None
    assert 0.1 < region.mean() < 0.9
    whole = mask_of(region, size)[::step, ::step]
    part = mask_on_grid(region, size, step)
    assert part.shape == whole.shape
    assert (part != whole).mean() < 2e-4
    assert mask_on_grid(None, size, step).all()
