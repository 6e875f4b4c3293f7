"""Targets on hand-drawn cases; losses against hand-computed values; anchors against brute force."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from mammoseg.detection.anchors import kmeans_anchors, mean_best_iou
from mammoseg.detection.losses import Geometry, LossConfig, box_loss, decode_level, detection_loss, pair_iou
from mammoseg.detection.metrics import ap50_and_sensitivity
from mammoseg.detection.predictor import DetectorSpec, decode
from mammoseg.detection.targets import assign_dense, assign_published
from mammoseg.geometry import box_iou
from mammoseg.types import Detections

STRIDES = (8, 16, 32)
MAPS = [(8, 8), (4, 4), (2, 2)]  # a 64x64 input
ANCHORS = torch.tensor([[[8.0, 8], [8, 16], [16, 8]], [[16, 16], [16, 32], [32, 16]], [[32, 32], [64, 32], [32, 64]]])


def test_published_assignment_takes_the_best_anchor_in_the_cell_of_the_centre() -> None:
    boxes = torch.tensor([[10.0, 18, 26, 34], [0, 0, 62, 30]])  # 16x16 around (18, 26); 62x30 around (31, 15)
    fine, middle, coarse = assign_published(boxes, torch.tensor([0, 1]), ANCHORS, STRIDES, MAPS)
    assert len(fine) == 0
    assert (middle.image.tolist(), middle.anchor.tolist(), middle.row.tolist(), middle.column.tolist()) == ([0], [0], [1], [1])
    assert (coarse.image.tolist(), coarse.anchor.tolist(), coarse.row.tolist(), coarse.column.tolist()) == ([1], [1], [0], [0])
    assert middle.box.tolist() == [[10, 18, 26, 34]]


def test_dense_assignment_takes_similar_anchors_in_the_cells_that_reach_the_centre() -> None:
    boxes = torch.tensor([[10.0, 18, 26, 34]])  # centre (18, 26): fine cell (2.25, 3.25), middle (1.125, 1.625)
    fine, middle, coarse = assign_dense(boxes, torch.tensor([0]), ANCHORS, STRIDES, MAPS, ratio_max=1.9, xy_scale=2.0)
    assert len(fine) == 0  # 8x8, 8x16, 16x8 have a side twice as small
    assert set(middle.anchor.tolist()) == {0}
    cells = sorted(zip(middle.column.tolist(), middle.row.tolist(), strict=True))
    assert cells == [(0, 1), (0, 2), (1, 1), (1, 2)]  # half a cell beyond each edge: two by two
    assert len(coarse) == 0
    wide = assign_dense(boxes, torch.tensor([0]), ANCHORS, STRIDES, MAPS, ratio_max=2.1, xy_scale=2.0)
    assert set(wide[0].anchor.tolist()) == {0, 1, 2}
    assert set(wide[1].anchor.tolist()) == {0, 1, 2}


def test_dense_assignment_gives_the_best_anchor_to_a_box_like_none_and_stays_inside_the_map() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [62, 62, 64, 64]])
    assigned = assign_dense(boxes, torch.tensor([0, 0]), ANCHORS, STRIDES, MAPS)
    assert len(assigned[0]) >= 2
    for a, (h, w) in zip(assigned, MAPS, strict=True):
        assert ((a.row >= 0) & (a.row < h) & (a.column >= 0) & (a.column < w)).all()


def test_assignment_of_no_box_is_empty() -> None:
    for assign in (assign_published, assign_dense):
        assert [len(a) for a in assign(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ANCHORS, STRIDES, MAPS)] == [
            0,
            0,
            0,
        ]


def test_torch_and_numpy_decode_alike() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 18, h, w) for h, w in MAPS]
    spec = DetectorSpec(anchors=tuple((float(w), float(h)) for w, h in ANCHORS.reshape(-1, 2)), xy_scale=2.0)
    boxes, _ = decode([m[0].numpy() for m in maps], spec)
    ours = [
        decode_level(m.reshape(1, 3, 6, *m.shape[2:]).permute(0, 1, 3, 4, 2), ANCHORS[i], s, 2.0).reshape(-1, 4)
        for i, (m, s) in enumerate(zip(maps, STRIDES, strict=True))
    ]
    np.testing.assert_allclose(torch.cat(ours).numpy(), boxes, rtol=1e-4, atol=1e-3)


def _perfect(boxes: torch.Tensor, kind: str, xy_scale: float) -> list[torch.Tensor]:
    """Raw maps that say exactly `boxes` of image 0 at every positive, and nothing elsewhere."""
    maps = [torch.zeros(1, 3, h, w, 6) for h, w in MAPS]
    for m in maps:
        m[..., 4] = -30.0
    assign = assign_published if kind == "published" else assign_dense
    assigned = assign(boxes, torch.zeros(len(boxes), dtype=torch.int64), ANCHORS, STRIDES, MAPS)
    for level, (a, stride) in enumerate(zip(assigned, STRIDES, strict=True)):
        centre = (a.box[:, :2] + a.box[:, 2:]) / 2 / stride - torch.stack([a.column, a.row], dim=1)
        inside = ((centre + (xy_scale - 1) / 2) / xy_scale).clamp(1e-4, 1 - 1e-4)
        where = (a.image, a.anchor, a.row, a.column)
        value = torch.zeros(len(a), 6)
        value[:, :2] = (inside / (1 - inside)).log()
        value[:, 2:4] = ((a.box[:, 2:] - a.box[:, :2]) / ANCHORS[level][a.anchor]).log()
        value[:, 4:] = 30.0
        maps[level][where] = value
    return [m.permute(0, 1, 4, 2, 3).reshape(1, 18, *m.shape[2:4]) for m in maps]


@pytest.mark.parametrize(("kind", "xy_scale"), [("published", 1.0), ("dense", 2.0)])
def test_right_answer_costs_next_to_nothing_and_any_error_costs(kind: str, xy_scale: float) -> None:
    boxes = torch.tensor([[10.0, 18, 26, 34]])
    image = torch.tensor([0])
    geometry = Geometry(ANCHORS, STRIDES, xy_scale)
    config = LossConfig(kind=kind)  # type: ignore[arg-type]
    maps = _perfect(boxes, kind, xy_scale)
    best = detection_loss(maps, boxes, image, geometry, config)
    # Cross-entropy of a fraction against itself is its entropy: the published centre loss cannot reach 0.
    entropy = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.125, 0.625)) * (2 - 256 / 4096)
    floor = entropy if kind == "published" else 0.0
    assert float(best["loss"]) == pytest.approx(floor, abs=1e-3)
    assert float(best["loss"]) == pytest.approx(sum(float(v) for k, v in best.items() if k != "loss"))
    nothing = [m.clone() for m in maps]
    for m in nothing:
        m.reshape(1, 3, 6, *m.shape[2:])[:, :, 4] = -5.0
    assert float(detection_loss(nothing, boxes, image, geometry, config)["objectness"]) > 0.5
    false = [m.clone() for m in maps]
    false[0].reshape(1, 3, 6, 8, 8)[0, 0, 4, 7, 7] = 5.0
    assert float(detection_loss(false, boxes, image, geometry, config)["objectness"]) > float(best["objectness"]) + 0.1
    bigger = boxes + torch.tensor([[-6.0, -6, 6, 6]])
    assert float(detection_loss(maps, bigger, image, geometry, config)["box"]) > float(best["box"]) + 0.05


@pytest.mark.parametrize("kind", ["published", "dense"])
def test_image_without_a_mass_has_objectness_loss_alone(kind: str) -> None:
    maps = [torch.zeros(2, 18, h, w, requires_grad=True) for h, w in MAPS]
    parts = detection_loss(
        maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), Geometry(ANCHORS, STRIDES, 1.0), LossConfig(kind=kind)  # type: ignore[arg-type]
    )  # fmt: skip
    assert float(parts["box"].detach()) == float(parts["class"].detach()) == 0.0
    cells = 3 * (64 + 16 + 4)
    expected = cells * math.log(2) if kind == "published" else 2 * cells * 0.25 * math.log(2)
    assert float(parts["objectness"].detach()) == pytest.approx(expected, rel=1e-5)
    parts["loss"].backward()


def test_good_prediction_that_is_no_positive_is_ignored() -> None:
    boxes = torch.tensor([[10.0, 18, 26, 34]])
    maps = _perfect(boxes, "published", 1.0)
    # The anchor 32x32 of the coarse map, made to predict the same box: no positive, but not background either.
    coarse = maps[2].reshape(1, 3, 6, 2, 2)
    inside = torch.tensor([18 / 32, 26 / 32])
    coarse[0, 0, :, 0, 0] = torch.tensor([*(inside / (1 - inside)).log().tolist(), math.log(0.5), math.log(0.5), 8.0, 0.0])
    geometry, image = Geometry(ANCHORS, STRIDES, 1.0), torch.tensor([0])
    lenient = detection_loss(maps, boxes, image, geometry, LossConfig(ignore_iou=0.7))
    strict = detection_loss(maps, boxes, image, geometry, LossConfig(ignore_iou=1.0))
    assert float(lenient["objectness"]) < 1e-3
    assert float(strict["objectness"]) == pytest.approx(8.0, abs=0.01)


@pytest.mark.parametrize("kind", ["published", "dense"])
def test_what_lies_in_an_ignored_box_is_no_background(kind: Literal["published", "dense"]) -> None:
    maps = [torch.zeros(2, 18, h, w) for h, w in MAPS]
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    geometry, config = Geometry(ANCHORS, STRIDES, 1.0), LossConfig(kind=kind)
    every = float(detection_loss(maps, *none, geometry, config)["objectness"])
    ignored = torch.tensor([[9.0, 17, 32, 32]]), torch.tensor([1])
    # Zero maps predict the centres of cells: in the box lie 3 x 2 of the finest map and (24, 24) of the next.
    left = float(detection_loss(maps, *none, geometry, config, ignored=ignored)["objectness"])
    assert left / every == pytest.approx(1 - 7 / (2 * 84))
    # A true box inside is learnt all the same.
    truth = torch.tensor([[18.0, 18, 30, 30]]), torch.tensor([1])
    with_truth = detection_loss(maps, *truth, geometry, config, ignored=ignored)
    assert float(with_truth["box"]) > 0


def test_box_losses_against_hand_computed_values() -> None:
    a, b = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])
    # IoU 2/6; hull 3x2 = union: GIoU = IoU. Centres 1 apart, hull's diagonal² 13; equal shapes.
    assert float(box_loss(a, b, "giou")) == pytest.approx(1 - 1 / 3)
    assert float(box_loss(a, b, "ciou")) == pytest.approx(1 - 1 / 3 + 1 / 13)
    apart = torch.tensor([[4.0, 0, 6, 2]])  # no overlap: hull 6x2 = 12, union 8
    assert float(box_loss(a, apart, "giou")) == pytest.approx(1 + 4 / 12)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 9, (2, 50, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 9, (2, 50, 2))], axis=2)
    ours = pair_iou(torch.from_numpy(boxes[0]), torch.from_numpy(boxes[1])).numpy()
    np.testing.assert_allclose(ours, np.diag(box_iou(boxes[0], boxes[1])))


def test_anchors_find_three_clear_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[10.0, 12.0], [40.0, 30.0], [90.0, 120.0]])
    sizes = np.concatenate([c * rng.uniform(0.95, 1.05, (60, 2)) for c in centres])
    anchors, quality = kmeans_anchors(sizes, 3)
    np.testing.assert_allclose(anchors, centres, rtol=0.03)
    assert quality == pytest.approx(mean_best_iou(sizes, anchors))
    assert quality > 0.94
    assert kmeans_anchors(sizes, 3)[0].tolist() == anchors.tolist()
    assert kmeans_anchors(sizes, 9)[1] > quality
    with pytest.raises(ValueError, match="at least 4"):
        kmeans_anchors(sizes[:3], 4)


def test_metrics_of_a_hand_drawn_case() -> None:
    truth = [np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])]
    found = [
        Detections(np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.array([0.9, 0.8]), (99, 99)),
        Detections(np.array([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]]), np.array([0.7, 0.6, 0.5]), (99, 99)),
    ]
    # By score: hit, false, hit, false (its mass is taken), hit. Precision 1, 1/2, 2/3, 2/4, 3/5; ceilings 1, 2/3, 3/5.
    ap, (at_half, at_one) = ap50_and_sensitivity(found, truth, (0.5, 1.0))
    assert ap == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert at_half == pytest.approx(2 / 3)  # one false positive in two images
    assert at_one == 1.0
    assert ap50_and_sensitivity([], [], (0.5,)) == (0.0, [0.0])
