"""Every metric against an independent oracle on random cases."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from mammoseg.evaluation.average_precision import average_precision
from mammoseg.evaluation.bootstrap import intervals, paired, paired_means, resamples, weighted_mean
from mammoseg.evaluation.froc import froc, tpr_at
from mammoseg.evaluation.matching import Criterion, rank
from mammoseg.evaluation.overlap import dice, inscribed_ellipse, iou, surface_distances, union


def random_images(rng, n_images=8, tied=False):
    images = []
    for _ in range(n_images):
        n_truth = int(rng.choice([0, 1, 1, 2, 4]))
        corner, side = rng.uniform(0, 70, (n_truth, 2)), rng.uniform(8, 30, (n_truth, 2))
        truth = np.concatenate([corner, corner + side], axis=1)
        near = truth[rng.integers(0, n_truth, 4)] + rng.normal(0, 3, (4, 4)).clip(-3.9, 3.9) if n_truth else np.zeros((0, 4))
        corner, side = rng.uniform(0, 70, (3, 2)), rng.uniform(8, 30, (3, 2))
        boxes = np.concatenate([near, np.concatenate([corner, corner + side], axis=1)])[: int(rng.integers(0, 8))]
        scores = rng.choice([0.2, 0.5, 0.9], len(boxes)) if tied else rng.uniform(0.005, 1, len(boxes))
        images.append((boxes, scores, truth))
    return images


def coco(images, iou):
    gt, dt = [], []
    for k, (boxes, scores, truth) in enumerate(images, start=1):
        for b in truth:
            box = [b[0], b[1], b[2] - b[0], b[3] - b[1]]
            gt.append({"id": len(gt) + 1, "image_id": k, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]})
        dt += [{"image_id": k, "category_id": 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": float(s)}
               for b, s in zip(boxes, scores, strict=True)]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": k + 1} for k in range(len(images))],
            "categories": [{"id": 1}],
            "annotations": gt,
            "info": {},
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(dt), "bbox")
        run.params.iouThrs = np.array([iou])
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    return float(run.eval["precision"][0, :, 0, 0, -1].mean())


@pytest.mark.parametrize("iou_min", [0.1, 0.5, 0.75])
def test_coco101_equals_pycocotools(iou_min):
    rng = np.random.default_rng(int(iou_min * 100))
    compared = 0
    for _ in range(350):
        images = random_images(rng)
        if not sum(len(i[2]) for i in images) or not sum(len(i[0]) for i in images):
            continue
        got = average_precision(rank(images, Criterion(iou=iou_min)).counts(), "coco101")
        assert got == pytest.approx(coco(images, iou_min), abs=1e-9)
        compared += 1
    assert compared > 300


@pytest.mark.parametrize("tied", [False, True])
def test_step_equals_scikit_learn(tied):
    rng = np.random.default_rng(1 + tied)
    for _ in range(400):
        ranked = rank(random_images(rng, tied=tied), Criterion())
        if not ranked.hits.any():
            continue
        # scikit-learn knows no missed masses: its recall is of those found.
        expected = average_precision_score(ranked.hits, ranked.scores) * ranked.hits.sum() / ranked.n_truth
        assert average_precision(ranked.counts(), "step") == pytest.approx(expected, abs=1e-12)


def plain_curve(images, criterion):
    """At every threshold anew, by plain loops: true and false positives of the detections at or above it."""
    points = []
    for t in sorted({s for _, scores, _ in images for s in scores}, reverse=True):
        tp = fp = 0
        for boxes, scores, truth in images:
            taken = set()
            for k in sorted(np.flatnonzero(np.asarray(scores) >= t), key=lambda k: -scores[k]):
                b = boxes[k]
                best, best_iou = None, criterion.iou
                for m, g in enumerate(truth):
                    inter = max(0.0, min(b[2], g[2]) - max(b[0], g[0])) * max(0.0, min(b[3], g[3]) - max(b[1], g[1]))
                    value = inter / ((b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1]) - inter)
                    if m not in taken and value >= best_iou:
                        best, best_iou = m, value
                tp, fp = tp + (best is not None), fp + (best is None)
                taken.add(best)
        points.append((t, tp, fp))
    return points


@pytest.mark.parametrize("tied", [False, True])
def test_froc_and_envelope_equal_plain_loops(tied):
    rng = np.random.default_rng(10 + tied)
    for _ in range(500):
        images = random_images(rng, 5, tied)
        n_truth = sum(len(i[2]) for i in images)
        if not n_truth:
            continue
        # One ranking for all thresholds equals matching anew at each: greedy by score only ever looks upwards.
        points = plain_curve(images, Criterion())
        counts = rank(images, Criterion()).counts()
        assert list(zip(counts.thresholds, counts.tp, counts.fp, strict=True)) == points
        for fpi, got in zip((0.1, 0.25, 0.5, 1.0), tpr_at(counts), strict=True):
            assert got == pytest.approx(max([tp / n_truth for _, tp, fp in points if fp / len(images) <= fpi], default=0.0))
        recalls = [tp / n_truth for _, tp, _ in points]
        precisions = [tp / (tp + fp) for _, tp, fp in points]
        grid = np.unique([0.0, *recalls])
        best = [max([p for r, p in zip(recalls, precisions, strict=True) if r >= b], default=0.0) for b in grid[1:]]
        area = float(np.diff(grid) @ best)
        assert average_precision(counts) == pytest.approx(area, abs=1e-12)
        if len(points):
            assert (np.diff(froc(counts).fpi) >= 0).all()
            assert (np.diff(froc(counts).tpr) >= 0).all()


def test_weights_equal_repeated_images():
    rng = np.random.default_rng(4)
    for _ in range(100):
        images = random_images(rng, 6)
        weights = rng.integers(0, 4, 6)
        repeated = [image for image, w in zip(images, weights, strict=True) for _ in range(w)]
        got, expected = rank(images, Criterion()).counts(weights.astype(float)), rank(repeated, Criterion()).counts()
        for area in ("envelope", "step", "coco101"):
            assert average_precision(got, area) == pytest.approx(average_precision(expected, area), abs=1e-12)
        assert tpr_at(got) == pytest.approx(tpr_at(expected))


def random_mask(rng):
    mask = rng.random((int(rng.integers(1, 12)), int(rng.integers(1, 12)))) < 0.6
    mask[0, 0] = True
    return mask, (int(rng.integers(0, 10)), int(rng.integers(0, 10)))


def placed(mask, size=(24, 24)):
    out = np.zeros(size, dtype=bool)
    out[mask[1][0] : mask[1][0] + mask[0].shape[0], mask[1][1] : mask[1][1] + mask[0].shape[1]] = mask[0]
    return out


def test_sparse_overlap_equals_full_masks():
    rng = np.random.default_rng(6)
    for _ in range(2000):
        a, b = random_mask(rng), random_mask(rng)
        fa, fb = placed(a), placed(b)
        assert dice(a, b) == 2 * (fa & fb).sum() / (fa.sum() + fb.sum())
        assert iou(a, b) == (fa & fb).sum() / (fa | fb).sum()
        assert np.array_equal(placed(union([a, b])), fa | fb)
    nothing = np.zeros((3, 3), dtype=bool), (0, 0)
    with pytest.raises(ValueError, match="two empty ones"):
        dice(nothing, nothing)
    assert dice(nothing, random_mask(rng)) == 0.0
    assert union([])[0].size == 0


def border(mask):
    padded = np.pad(mask, 1)
    core = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask & ~core)


def test_surface_distances_equal_all_pairs():
    rng = np.random.default_rng(8)
    for _ in range(1000):
        a, b = random_mask(rng), random_mask(rng)
        spacing = tuple(rng.uniform(0.05, 0.2, 2))
        pairs = cdist(border(placed(a)) * spacing, border(placed(b)) * spacing)
        nearest = np.concatenate([pairs.min(axis=1), pairs.min(axis=0)])
        hd95, assd = surface_distances(a, b, spacing)
        assert hd95 == pytest.approx(np.percentile(nearest, 95))
        assert assd == pytest.approx(nearest.mean())
    with pytest.raises(ValueError, match="empty"):
        surface_distances(a, (np.zeros((2, 2), dtype=bool), (0, 0)), (0.1, 0.1))


def test_inscribed_ellipse_has_the_area_of_one():
    mask, origin = inscribed_ellipse((10.0, 20.0, 210.0, 120.0))
    assert mask.sum() == pytest.approx(np.pi / 4 * 200 * 100, rel=0.002)
    assert origin == (20, 10)
    assert inscribed_ellipse((3.2, 3.2, 3.4, 3.4))[0].shape == (1, 1)


def test_resamples_draw_patients_with_all_their_images():
    patients = ["a", "b", "a", "c", "b", "a"]
    weights = resamples(patients, 500, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.15)
    assert np.array_equal(weights, resamples(patients, 500, seed=1))


def test_interval_of_a_mean_is_the_known_one_and_wider_when_patients_repeat():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 400)
    (lone,) = intervals(lambda w: [weighted_mean(values, w)], resamples([str(k) for k in range(400)], 2000))
    half = 1.96 * values.std() / 20
    assert lone.value == pytest.approx(values.mean())
    assert lone.low == pytest.approx(values.mean() - half, abs=0.02)
    assert lone.high == pytest.approx(values.mean() + half, abs=0.02)
    shared = np.repeat(values[:100], 4)
    (grouped,) = intervals(lambda w: [weighted_mean(shared, w)], resamples([str(k // 4) for k in range(400)], 2000))
    (wrong,) = intervals(lambda w: [weighted_mean(shared, w)], resamples([str(k) for k in range(400)], 2000))
    assert (grouped.high - grouped.low) / (wrong.high - wrong.low) == pytest.approx(2.0, rel=0.15)


def test_paired_difference_is_narrower_than_either():
    rng = np.random.default_rng(0)
    base = rng.normal(0.8, 0.1, 80)
    better = base + 0.02 + rng.normal(0, 0.01, 80)
    patients = [str(k // 2) for k in range(80)]
    gain = paired_means(better, base, patients)
    assert gain.value == pytest.approx((better - base).mean())
    assert gain.low > 0.015
    weights = resamples(patients, 2000)
    same = paired(lambda w: weighted_mean(better, w), lambda w: weighted_mean(base, w), weights)
    assert (same.value, same.low, same.high) == pytest.approx((gain.value, gain.low, gain.high))
    (alone,) = intervals(lambda w: [weighted_mean(better, w)], weights)
    assert gain.high - gain.low < 0.3 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="equally many"):
        paired_means([1.0], [1.0, 2.0], ["a"])


def test_undefined_statistics_have_no_interval():
    weights = resamples(["a", "b"], 50)
    assert intervals(lambda w: [None], weights)[0].value is None
    calls = iter(range(51))
    (rare,) = intervals(lambda w: [1.0 if next(calls) < 20 else None], weights)  # defined for the sample and 19 resamples of 50
    assert (rare.value, rare.low, rare.high) == (1.0, None, None)


def test_one_patient_has_no_interval():
    """However often the one patient is drawn, it is the same value: that says nothing of patients to come."""
    values = np.array([0.7, 0.9])
    (one,) = intervals(lambda w: [weighted_mean(values, w)], resamples(["a", "a"], 50))
    assert (one.value, one.low, one.high) == (pytest.approx(0.8), None, None)
    (two,) = intervals(lambda w: [weighted_mean(values, w)], resamples(["a", "b"], 50))
    assert (two.low, two.high) == (pytest.approx(0.7), pytest.approx(0.9))
