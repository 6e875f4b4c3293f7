"""The label image and the overlay."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoseg.io.pictures import GREEN, RED, YELLOW, label_image, overlay, write_mask_png, write_overlay_png
from mammoseg.types import Annotation, Detections, Findings, ImageInfo, Lesion, Mammogram, TrueMass

Box = tuple[float, float, float, float]


def findings(size: tuple[int, int], boxes: list[Box], first_id: int = 1) -> Findings:
    found = []
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        mask = np.ones((int(y2 - y1), int(x2 - x1)), dtype=bool)
        t = np.linspace(0, 2 * np.pi, 100, endpoint=False)
        ring = np.stack([(x1 + x2) / 2 + 0.35 * (x2 - x1) * np.cos(t), (y1 + y2) / 2 + 0.35 * (y2 - y1) * np.sin(t)], axis=1)
        found.append(Lesion(first_id + i, (x1, y1, x2, y2), 0.9, mask, (int(y1), int(x1)), ring, 10.0, 12.0, 8.0))
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Findings(ImageInfo("a", *size), "processed", None, tuple(found), Detections(array, np.full(len(found), 0.9), size))


def mammogram(size: tuple[int, int]) -> Mammogram:
    return Mammogram(np.full(size, 0.3, np.float32), "a")


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour).max(axis=2) < 30).astype(bool)


@pytest.mark.parametrize(
    ("size", "out"), [((512, 512), (1200, 1200)), ((1216, 700), (1216, 700)), ((4096, 3328), (1600, 1300))]
)
def test_box_contour_and_label_at_every_size(size: tuple[int, int], out: tuple[int, int]) -> None:
    s = size[0] / 100
    box = (20 * s, 40 * s, 35 * s, 60 * s)
    picture = overlay(mammogram(size), findings(size, [box]))
    assert picture.shape == (*out, 3)
    scale = out[0] / 100
    yellow, red = near(picture, YELLOW), near(picture, RED)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert abs((columns[0] + columns[-1] + 1) / 2 - 27.5 * scale) < 2  # the contour is centred in its box
    assert abs((rows[0] + rows[-1] + 1) / 2 - 50 * scale) < 2
    assert abs((rows[-1] - rows[0]) - 14 * scale) < 6
    inside = picture[int(43 * scale) : int(57 * scale), int(23 * scale) : int(32 * scale)]
    assert (np.abs(inside.astype(int) - 76).max(axis=2) < 4).mean() > 0.75  # the mass stays to be seen
    assert yellow[int(40 * scale) - 3 : int(40 * scale) + 4, int(27 * scale)].any()
    text = yellow[: int(40 * scale) - 5]
    assert text.any()  # the label is above the box and readable
    assert np.ptp(np.flatnonzero(text.any(axis=1))) >= 10


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 50), (640, 0, 700, 60), (0, 1150, 50, 1216), (650, 1160, 700, 1216), (0, 0, 700, 1216)]
)
def test_labels_stay_inside(box: Box) -> None:
    size = (1216, 700)
    with_lesion = overlay(mammogram(size), findings(size, [box]))
    assert with_lesion.shape == (1216, 700, 3)
    plate = (np.abs(with_lesion.astype(int) - 19).max(axis=2) < 3).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(plate)
    assert count > 1
    assert max(stats[1:, cv2.CC_STAT_WIDTH]) > 60


def test_two_labels_do_not_cover_each_other_or_the_boxes() -> None:
    size = (1216, 700)
    boxes: list[Box] = [(200, 400, 280, 480), (285, 400, 360, 480)]
    both = overlay(mammogram(size), findings(size, boxes))
    plate = np.abs(both.astype(int) - 19).max(axis=2) < 3
    for x1, y1, x2, y2 in boxes:
        assert not plate[int(y1) + 6 : int(y2) - 6, int(x1) + 6 : int(x2) - 6].any()


def test_truth_is_green_and_nothing_found_is_said() -> None:
    size = (1216, 700)
    truth = Annotation(
        "a", size, (TrueMass((100, 100, 200, 200), np.ones((100, 100), bool), (100, 100)), TrueMass((300, 300, 350, 390)))
    )
    picture = overlay(mammogram(size), findings(size, []), truth)
    green = near(picture, GREEN)
    assert green[95:205, 95:205].any()
    assert green[295:395, 295:355].any()
    assert near(picture, YELLOW).any()  # "no mass found"
    assert not near(overlay(mammogram(size), findings(size, [])), GREEN).any()


def test_many_lesions_need_sixteen_bits(tmp_path: Path) -> None:
    size = (200, 200)
    boxes: list[Box] = [(10.0 * (i % 20), 10.0 * (i // 20), 10.0 * (i % 20) + 6, 10.0 * (i // 20) + 6) for i in range(300)]
    f = findings(size, boxes)
    assert label_image(f).dtype == np.uint16
    write_mask_png(tmp_path / "mask.png", f)
    read = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint16
    assert np.array_equal(read, label_image(f))
    assert set(np.unique(read)) == set(range(301))


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    size = (600, 400)
    f = findings(size, [(50, 60, 120, 140)])
    for name in ("a.png", "b.png"):
        write_overlay_png(tmp_path / name, mammogram(size), f)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_was_not_processed_has_no_label_image() -> None:
    with pytest.raises(ValueError, match="failed"):
        label_image(Findings(ImageInfo("a"), "failed", "cut short"))
