"""Decoding against a slow oracle; NMS; the detector finds a box it was shown, in native coordinates, at every scale."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from mammoseg.detection.predictor import Detector, DetectorSpec, decode
from mammoseg.geometry import box_iou, nms
from mammoseg.preprocessing.resize import FrameConfig, FrameSource, measure, network_frame
from mammoseg.types import Mammogram

ANCHORS = tuple((10.0 + 7 * i, 14.0 + 5 * i) for i in range(9))


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def _slow_decode(maps: list[np.ndarray], spec: DetectorSpec) -> list[tuple[float, ...]]:
    out = []
    for level, (raw, stride) in enumerate(zip(maps, spec.strides, strict=True)):
        fields = raw.shape[0] // 3
        for a in range(3):
            width, height = spec.anchors[3 * level + a]
            for row in range(raw.shape[1]):
                for column in range(raw.shape[2]):
                    t = [float(raw[a * fields + k, row, column]) for k in range(fields)]
                    cx = (_sigmoid(t[0]) * spec.xy_scale - (spec.xy_scale - 1) / 2 + column) * stride
                    cy = (_sigmoid(t[1]) * spec.xy_scale - (spec.xy_scale - 1) / 2 + row) * stride
                    w, h = width * math.exp(t[2]), height * math.exp(t[3])
                    score = _sigmoid(t[4]) * max(_sigmoid(c) for c in t[5:])
                    out.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score))
    return out


@pytest.mark.parametrize(("xy_scale", "classes"), [(1.0, 1), (2.0, 1), (2.0, 3)])
def test_decode_equals_its_definition(xy_scale: float, classes: int) -> None:
    rng = np.random.default_rng(0)
    spec = DetectorSpec(anchors=ANCHORS, xy_scale=xy_scale)
    maps = [rng.normal(size=(3 * (5 + classes), 48 // s, 64 // s)).astype(np.float32) for s in (8, 16)]
    maps.append(rng.normal(size=(3 * (5 + classes), 1, 2)).astype(np.float32))
    boxes, scores = decode(maps, spec)
    np.testing.assert_allclose(np.c_[boxes, scores], np.array(_slow_decode(maps, spec)), rtol=1e-6, atol=1e-6)
    some, high = decode(maps, spec, score_min=0.4)
    kept = scores >= 0.4
    assert 0 < kept.sum() < len(scores)
    np.testing.assert_array_equal(some, boxes[kept])
    np.testing.assert_array_equal(high, scores[kept])
    best, first = decode(maps, spec, most=17)
    kept = scores >= np.sort(scores)[-17]
    np.testing.assert_array_equal(best, boxes[kept])
    np.testing.assert_array_equal(first, scores[kept])
    for enough in (len(scores), len(scores) + 1):
        np.testing.assert_array_equal(decode(maps, spec, most=enough)[0], boxes)


def test_decode_keeps_equal_scores_beyond_the_most() -> None:
    maps = [np.zeros((18, 64 // s, 64 // s), np.float32) for s in (8, 16, 32)]
    assert len(decode(maps, DetectorSpec(), most=10)[1]) == 3 * (64 + 16 + 4)


def test_decode_refuses_maps_of_another_layout() -> None:
    with pytest.raises(ValueError, match="3 maps"):
        decode([np.zeros((18, 2, 2), np.float32)], DetectorSpec())
    with pytest.raises(ValueError, match="channels"):
        decode([np.zeros((17, 2, 2), np.float32)] * 3, DetectorSpec())


def test_nms_keeps_the_best_of_each_cluster() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 5]], np.float64)
    scores = np.array([0.5, 0.9, 0.3, 0.8])
    # 0 overlaps 1 by 90/110; 3 overlaps 1 by 45/105 < 0.45 and stays.
    assert nms(boxes, scores, 0.45).tolist() == [1, 3, 2]
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.45).tolist() == []


def test_nms_equals_the_greedy_definition() -> None:
    rng = np.random.default_rng(1)
    for count in (40,) * 20 + (64, 65, 300, 700):  # it works on blocks of 64
        low = rng.uniform(0, 50, (count, 2))
        boxes = np.c_[low, low + rng.uniform(5, 30, (count, 2))]
        scores = rng.random(count)
        iou = box_iou(boxes, boxes)
        kept: list[int] = []
        for i in np.argsort(-scores):
            if (iou[i, kept] <= 0.45).all():
                kept.append(int(i))
        assert nms(boxes, scores, 0.45).tolist() == kept


class _SeesBrightest:
    """Answers one box of the size of the third anchor around the brightest spot of the input."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        self.shapes.append(x.shape)
        height, width = x.shape[2:]
        maps = [np.full((1, 18, height // s, width // s), -20.0, np.float32) for s in (8, 16, 32)]
        rows, columns = np.nonzero(x[0, 0] > 0.5 * x[0, 0].max())
        cy, cx = rows.mean() + 0.5, columns.mean() + 0.5
        row, column = int(cy // 8), int(cx // 8)
        inside = np.clip([cx / 8 - column, cy / 8 - row], 1e-3, 1 - 1e-3)
        cell = maps[0][0, 12:18, row, column]
        cell[:2] = np.log(inside / (1 - inside))
        cell[2:] = (0, 0, 6, 6)
        return maps


@pytest.mark.parametrize(
    "frame",
    [FrameConfig(), FrameConfig(aspect="keep"), FrameConfig(region="breast", aspect="keep", intensity="percentile")],
)
def test_detection_lies_on_the_object_in_native_pixels_at_every_scale(frame: FrameConfig) -> None:
    pixels = np.zeros((800, 500), np.float32)
    pixels[100:700, :300] = 0.3
    pixels[400:440, 120:160] = 0.95
    network = _SeesBrightest()
    spec = DetectorSpec(anchors=ANCHORS, frame=frame, scales=((320, 160), (480, 288)))
    mammogram = Mammogram(pixels, "x")
    found = Detector(network, spec).detect(mammogram)
    assert [s[2:] for s in network.shapes] == [(320, 160), (480, 288)]
    assert [d.origin for d in found] == ["160x320", "288x480"]
    for detections, size in zip(found, spec.scales, strict=True):
        assert len(detections) == 1
        centre = (detections.boxes[0, :2] + detections.boxes[0, 2:]) / 2
        np.testing.assert_allclose(centre, (140, 420), atol=2.0)
        # The box has the anchor's size at the network's input.
        _, transform = network_frame(FrameSource.of(pixels, measure(pixels, frame)), size, frame.aspect)
        side = transform.boxes(detections.boxes)[0]
        np.testing.assert_allclose(side[2:] - side[:2], ANCHORS[2], atol=1e-6)


class _SeesMoreBelow:
    """Small boxes in all cells of the finest map, three in each, the lower the better."""

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        height, width = x.shape[2:]
        maps = [np.full((1, 18, height // s, width // s), -20.0, np.float32) for s in (8, 16, 32)]
        cells = maps[0].reshape(3, 6, height // 8, width // 8)
        cells[:, :4], cells[:, 5] = 0, 8
        cells[:, 4] = np.linspace(-2, 2, height // 8)[:, None]
        return maps


@pytest.mark.parametrize("height", [40, 256, 512])
def test_boxes_in_the_padding_do_not_crowd_out_those_in_the_image(height: int) -> None:
    spec = DetectorSpec(anchors=((6.0, 6.0),) * 9, frame=FrameConfig(aspect="keep"), scales=((512, 512),))
    mammogram = Mammogram(np.full((height, 512), 0.5, np.float32), "x")  # what is left of the frame's height is padding
    (found,) = Detector(_SeesMoreBelow(), spec).detect(mammogram, nms_iou=1.0)
    source = FrameSource.of(mammogram.pixels, measure(mammogram.pixels, spec.frame))
    image, transform = network_frame(source, (512, 512), "keep")
    boxes, scores = decode([m[0] for m in _SeesMoreBelow()(image[None, None])], spec)
    boxes = transform.inverse(source.size).boxes(boxes)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    inside = boxes[:, 3] > boxes[:, 1]
    best = np.sort(scores[inside])[::-1][:1000]
    np.testing.assert_array_equal(found.scores, best)
    assert len(best) == 1000


def test_scale_that_is_no_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 32, got 150x320 \(WxH\)"):
        Detector(_SeesBrightest(), DetectorSpec()).detect(Mammogram(np.zeros((9, 9), np.float32), "x"), [(320, 150)])
    with pytest.raises(ValueError, match="multiples of 32"):
        DetectorSpec(scales=((100, 64),))


def test_predictor_imports_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import mammoseg.detection, mammoseg.detection.predictor"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
