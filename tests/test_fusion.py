"""Multi-scale fusion against its pixel-wise definition, weighted boxes fusion against a plain reading of its paper."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mammoseg.fusion import FusionConfig, candidates, fuse, fuse_all, fused_regions, msf, nms_fusion, suppress, wbf
from mammoseg.geometry import box_iou
from mammoseg.types import Detections

CONFIG = FusionConfig()


def pixelwise(boxes, scores, n_scales, lam, size):
    """Eq. 1 as written: a full-size mask for each box, their sum, its threshold, its labelled regions."""
    total, covered = np.zeros(size), np.zeros(size, dtype=bool)
    used = []
    for (x1, y1, x2, y2), c in zip(boxes, scores, strict=True):
        mask = np.zeros(size)
        x1, y1 = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
        x2, y2 = max(0, int(np.ceil(x2))), max(0, int(np.ceil(y2)))
        mask[y1:y2, x1:x2] = c
        if mask.any():
            total += mask
            covered |= mask > 0
            used.append(c)
    if not used:
        return []
    kept = covered if lam == 0 else covered & (total / (n_scales * max(used)) >= lam - 1e-9)
    labels, n = ndimage.label(kept, structure=np.ones((3, 3)))
    out = []
    for k, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        score = min(1.0, total[labels == k].max() / n_scales)
        out.append((cols.start, rows.start, cols.stop, rows.stop, score))
    assert n == len(out)
    return sorted(out)


def same(boxes, scores, n_scales, lam, size):
    got_boxes, got_scores = fused_regions(
        np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float), n_scales, lam, size
    )
    got = sorted((*map(float, b), s) for b, s in zip(got_boxes, got_scores, strict=True))
    np.testing.assert_allclose(
        np.array(got).reshape(-1, 5), np.array(pixelwise(boxes, scores, n_scales, lam, size)).reshape(-1, 5), atol=1e-9
    )


def random_boxes(rng, kind, n, size):
    h, w = size
    if kind == "grid":  # touching, nested and equal edges, diagonal neighbours
        x, y = rng.integers(0, w // 4, (n, 2)) * 4, rng.integers(0, h // 4, (n, 2)) * 4
    elif kind == "border":  # across and outside the image
        x, y = rng.uniform(-0.5 * w, 1.5 * w, (n, 2)), rng.uniform(-0.5 * h, 1.5 * h, (n, 2))
    else:
        x, y = rng.uniform(0, w, (n, 2)), rng.uniform(0, h, (n, 2))
    x, y = np.sort(x, axis=1), np.sort(y, axis=1)
    if kind == "nested":
        k = np.arange(n)[:, None] / (2 * n)
        x, y = np.concatenate([w * k, w * (1 - k)], 1), np.concatenate([h * k, h * (1 - k)], 1)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


@pytest.mark.parametrize("kind", ["free", "grid", "border", "nested"])
def test_msf_equals_the_pixelwise_definition(kind):
    rng = np.random.default_rng(["free", "grid", "border", "nested"].index(kind))
    for _ in range(1500):
        size = (int(rng.integers(8, 40)), int(rng.integers(8, 40)))
        n, n_scales = int(rng.integers(0, 13)), int(rng.integers(1, 6))
        boxes = random_boxes(rng, kind, n, size)
        scores = rng.choice([0.3, 0.6, 0.9], n) if rng.random() < 0.5 else rng.uniform(0.0, 1.0, n)
        same(boxes, scores, n_scales, float(rng.choice([0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 1.0, rng.random()])), size)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 14)] * 4, st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])), max_size=8),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
)
def test_msf_equals_the_pixelwise_definition_on_adversarial_boxes(rows, n_scales, lam):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d, _ in rows]
    same(boxes, [r[4] for r in rows], n_scales, lam, (12, 11))


def test_diagonal_neighbours_are_one_region_and_a_gap_of_one_pixel_makes_two():
    touching = np.array([[0.0, 0, 4, 4], [4, 4, 8, 8]])
    boxes, _ = fused_regions(touching, np.array([0.5, 0.5]), 1, 0.5, (20, 20))
    assert boxes.tolist() == [[0, 0, 8, 8]]
    boxes, _ = fused_regions(touching + np.array([[0], [1]]), np.array([0.5, 0.5]), 1, 0.5, (20, 20))
    assert sorted(boxes.tolist()) == [[0, 0, 4, 4], [5, 5, 9, 9]]


def one_a_scale(scores, box=(10.0, 10, 30, 30), size=(64, 64)):
    return [Detections(np.array([box]) if s else np.zeros((0, 4)), np.array([s] if s else []), size) for s in scores]


@pytest.mark.parametrize("score", [0.3, 0.31, 0.1 + 0.2, 0.7, 0.9, 0.999, 1.0, 1 / 3])
def test_three_of_five_equal_scales_pass_lambda_06(score):
    assert len(msf(one_a_scale([score, score, score, 0, 0]), CONFIG)) == 1
    assert len(msf(one_a_scale([score, score, 0, 0, 0]), CONFIG)) == 0


@pytest.mark.parametrize(
    ("agree", "n", "lam"), [(1, 10, 0.1), (3, 10, 0.3), (6, 10, 0.6), (7, 10, 0.7), (2, 5, 0.4), (1, 3, 1 / 3)]
)
def test_an_exact_share_of_scales_passes_whatever_the_rounding(agree, n, lam):
    for score in np.random.default_rng(0).uniform(0.3, 1.0, 50):
        assert len(msf(one_a_scale([score] * agree + [0] * (n - agree)), FusionConfig(lam=lam))) == 1


def test_absolute_score_is_the_mean_over_scales_and_never_above_one():
    fused = msf(one_a_scale([0.9, 0.6, 0.6, 0, 0]), FusionConfig(lam=0.4))
    assert fused.scores == pytest.approx([2.1 / 5])
    lone = msf(one_a_scale([0.3, 0.3, 0.3, 0, 0]), CONFIG)  # Eq. 1 alone would make this false positive look certain
    assert lone.scores == pytest.approx([0.18])
    crowd = Detections(np.array([[0.0, 0, 20, 20], [5, 5, 12, 12], [6, 6, 10, 10]]), np.array([0.9, 0.9, 0.9]), (64, 64))
    assert msf([crowd], CONFIG).scores.tolist() == [1.0]


def test_lambda_zero_keeps_every_covered_pixel():
    scales = [Detections(np.array([[1.0, 1, 5, 5], [20, 20, 30, 30]]), np.array([0.31, 1.0]), (64, 64))]
    assert sorted(msf(scales, FusionConfig(lam=0.0)).boxes.tolist()) == [[1, 1, 5, 5], [20, 20, 30, 30]]


def test_scales_that_found_nothing_count_and_weak_boxes_do_not():
    assert len(msf(one_a_scale([0.9, 0.9, 0.29, 0.29, 0.29]), CONFIG)) == 0
    assert len(msf([*one_a_scale([0.9, 0.9]), Detections.empty((64, 64))], CONFIG)) == 1
    empty = msf([Detections.empty((64, 64))] * 5, CONFIG)
    assert len(empty) == 0
    assert empty.size == (64, 64)


def test_box_is_the_bounding_box_of_the_thresholded_region():
    boxes = np.array([[10.2, 10, 30, 30], [12, 12, 33.5, 34], [14, 8, 28, 29]])
    scales = [Detections(b[None], np.array([0.9]), (64, 64)) for b in boxes] + [Detections.empty((64, 64))] * 2
    assert msf(scales, CONFIG).boxes.tolist() == [[14, 12, 28, 29]]


def test_refuses_no_scale_and_mixed_frames():
    with pytest.raises(ValueError, match="at least one scale"):
        msf([], CONFIG)
    with pytest.raises(ValueError, match="one native frame"):
        msf([Detections.empty((8, 8)), Detections.empty((9, 8))], CONFIG)
    with pytest.raises(ValueError, match="lam"):
        FusionConfig(lam=1.2)


def test_msf_is_300_times_as_fast_as_the_pixelwise_definition():
    rng = np.random.default_rng(7)
    size, n = (4096, 3328), 100
    centre, side = rng.uniform(200, 3000, (n, 2)), rng.uniform(100, 700, (n, 2))
    boxes, scores = np.concatenate([centre - side / 2, centre + side / 2], axis=1), rng.uniform(0.3, 1.0, n)

    def fast():
        return fused_regions(boxes, scores, 5, 0.6, size)

    def slow():
        total, mask = np.zeros(size, np.float32), np.zeros(size, np.float32)  # in float32, reusing one mask: kind to it
        for (x1, y1, x2, y2), c in zip(boxes, scores, strict=True):
            mask[:] = 0
            mask[max(0, int(np.floor(y1))) : int(np.ceil(y2)), max(0, int(np.floor(x1))) : int(np.ceil(x2))] = c
            total += mask
        labels, count = ndimage.label(total / np.float32(5 * scores.max()) >= 0.6, structure=np.ones((3, 3)))
        return count, ndimage.find_objects(labels)

    def seconds(function, times):  # the best of several: other work on the machine only ever adds
        best = np.inf
        for _ in range(times):
            start = time.perf_counter()
            result = function()
            best = min(best, time.perf_counter() - start)
        return best, result

    quick, (got_boxes, _) = seconds(fast, 50)
    long, (count, found) = seconds(slow, 2)
    assert count == len(got_boxes) > 0
    assert sorted([c.start, r.start, c.stop, r.stop] for r, c in found) == sorted(got_boxes.tolist())
    assert long / quick >= 300, f"pixel-wise {long * 1e3:.0f} ms, on the grid {quick * 1e3:.2f} ms: ratio {long / quick:.0f}"


def plain_wbf(per_scale, iou):
    """Solovyev et al., Sect. 3, word for word: lists B, L and F; scores rescaled by min(T, N) / N with T agreeing scales."""
    b = sorted(
        ((s, tuple(x), k) for k, d in enumerate(per_scale) for x, s in zip(d.boxes, d.scores, strict=True)), key=lambda t: -t[0]
    )
    clusters, fused = [], []
    for entry in b:
        overlaps = [box_iou([entry[1]], [f])[0, 0] for f in fused]
        if overlaps and max(overlaps) > iou:
            k = int(np.argmax(overlaps))
            clusters[k].append(entry)
        else:
            k = len(clusters)
            clusters.append([entry])
            fused.append(None)
        c = np.array([e[0] for e in clusters[k]])
        fused[k] = (c[:, None] * np.array([e[1] for e in clusters[k]])).sum(axis=0) / c.sum()
    n = len(per_scale)
    return [(f, np.mean([e[0] for e in c]) * min(len({e[2] for e in c}), n) / n) for f, c in zip(fused, clusters, strict=True)]


def test_wbf_equals_a_plain_reading_of_its_paper():
    rng = np.random.default_rng(3)
    for _ in range(100):
        n = int(rng.integers(1, 6))
        scales = []
        for _ in range(n):
            m = int(rng.integers(0, 9))
            centre = rng.choice([20.0, 50.0, 80.0], (m, 2)) + rng.normal(0, 4, (m, 2))
            half = rng.uniform(6, 14, (m, 2))
            scales.append(
                suppress(
                    Detections(np.concatenate([centre - half, centre + half], 1), rng.uniform(0.31, 1, m), (100, 100)), 0.45
                )
            )
        expected = sorted(plain_wbf(scales, 0.55), key=lambda t: -t[1])
        got = wbf(scales, CONFIG)
        np.testing.assert_allclose(got.scores, [s for _, s in expected], atol=1e-12)
        np.testing.assert_allclose(got.boxes, np.array([b for b, _ in expected]).reshape(-1, 4), atol=1e-9)


def test_wbf_of_equal_boxes_is_that_box_with_the_share_of_scales():
    fused = wbf(one_a_scale([0.8, 0.8, 0.8, 0, 0]), CONFIG)
    assert fused.boxes.tolist() == [pytest.approx([10, 10, 30, 30])]
    assert fused.scores == pytest.approx([0.8 * 3 / 5])


def test_nms_over_scales_keeps_the_best_of_each_place():
    a = Detections(np.array([[0.0, 0, 10, 10], [40, 40, 50, 50]]), np.array([0.5, 0.35]), (64, 64))
    b = Detections(np.array([[1.0, 0, 11, 10], [20, 20, 30, 30]]), np.array([0.7, 0.2]), (64, 64))
    fused = nms_fusion([a, b], CONFIG)
    assert fused.boxes.tolist() == [[1, 0, 11, 10], [40, 40, 50, 50]]
    assert fused.scores.tolist() == [0.7, 0.35]


def test_no_fusion_is_the_last_scale_alone():
    scales = one_a_scale([0.9, 0.5])
    got = fuse(scales, FusionConfig(method="none"))
    assert got.scores.tolist() == [0.5]
    assert len(candidates(got, scales, FusionConfig(method="none"))) == 1


def test_weighted_boxes_have_a_least_score_of_their_own():
    scales = one_a_scale([0.9, 0.1])
    assert fuse(scales, FusionConfig("wbf", score_min=0.0)).scores.tolist() == [0.45]  # 0.9 from one scale of two
    assert fuse(scales, FusionConfig("wbf", score_min=0.5, wbf_score_min=0.0)).scores.tolist() == [0.5]
    weak = FusionConfig("msf", lam=0.0, score_min=0.5, wbf_score_min=0.0)
    assert fuse(scales, weak).scores.tolist() == [0.45]


@pytest.mark.parametrize("method", ["msf", "wbf", "nms", "none"])
def test_fuse_drops_lesions_below_the_operating_point_but_not_from_the_candidates(method):
    scales = one_a_scale([0.9, 0.9, 0.9])
    config = FusionConfig(method=method, lesion_score_min=0.95)
    lesions = fuse(scales, config)
    assert len(lesions) == 0
    assert candidates(lesions, scales, config).scores == pytest.approx([0.9])


def test_candidates_hold_every_lesion_unchanged_then_what_none_stands_for():
    near, far = [11.0, 11, 31, 31], [40.0, 40, 60, 60]
    scales = [Detections(np.array([near, far]), np.array([0.9, 0.2]), (64, 64)) for _ in range(4)] + [
        Detections.empty((64, 64))
    ]
    lesions = msf(scales, CONFIG)
    assert lesions.boxes.tolist() == [near]
    got = candidates(lesions, scales, CONFIG)
    assert got.boxes.tolist() == [near, pytest.approx(far)]
    assert got.scores == pytest.approx([0.9 * 4 / 5, 0.2 * 4 / 5])
    moved = Detections(np.array([[12.0, 12, 32, 32]]), np.array([0.01]), (64, 64))  # a lesion with another box and a low score
    got = candidates(moved, scales, CONFIG)
    assert got.boxes.tolist() == [[12, 12, 32, 32], pytest.approx(far)]
    assert got.scores[0] == 0.01


def test_candidates_are_at_most_100_and_none_below_0005():
    rng = np.random.default_rng(0)
    corner = np.stack(np.meshgrid(np.arange(15) * 20.0, np.arange(15) * 20.0), -1).reshape(-1, 2)
    scores = rng.uniform(0.001, 0.9, len(corner))
    scales = [Detections(np.concatenate([corner, corner + 15], axis=1), scores, (320, 320))]
    lesions = fuse(scales, FusionConfig(lam=0.0, score_min=0.88))
    got = candidates(lesions, scales, CONFIG)
    assert len(got) == 100
    assert (np.diff(got.scores[len(lesions) :]) <= 0).all()
    few = Detections(scales[0].boxes, scores / 130, (320, 320))
    got = candidates(Detections.empty((320, 320)), [few], CONFIG)
    assert len(got) > 0
    assert got.scores.min() >= 0.005
    assert len(got) == (scores / 130 >= 0.005).sum()


def test_of_more_than_100_lesions_the_first_100_are_the_candidates():
    corner = np.stack(np.meshgrid(np.arange(12) * 25.0, np.arange(12) * 25.0), -1).reshape(-1, 2)
    boxes = np.concatenate([corner, corner + 15], axis=1)
    lesions = Detections(boxes[:130], np.linspace(0.9, 0.4, 130), (320, 320))
    got = candidates(lesions, [Detections(boxes, np.full(len(boxes), 0.95), (320, 320))], CONFIG)
    assert got.boxes.tolist() == boxes[:100].tolist()
    assert got.scores.tolist() == lesions.scores[:100].tolist()


def stands_for(box, standing, same_iou):
    """The rule of `candidates`, word for word, one pair at a time."""
    for s in standing:
        wide, high = min(box[2], s[2]) - max(box[0], s[0]), min(box[3], s[3]) - max(box[1], s[1])
        common = max(wide, 0) * max(high, 0)
        a, b = (box[2] - box[0]) * (box[3] - box[1]), (s[2] - s[0]) * (s[3] - s[1])
        iou = common / (a + b - common)
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        inside = s[0] <= x < s[2] and s[1] <= y < s[3]
        if iou >= same_iou or (iou >= 0.2 and inside and common >= 0.8 * min(a, b)):
            return True
    return False


@pytest.mark.parametrize("method", ["msf", "wbf", "nms", "none"])
def test_candidates_are_the_lesions_then_every_other_fused_box_that_none_stands_for(method):
    """On random scales, with lesions that took others in: nothing is lost, nothing that was taken in comes back."""
    rng = np.random.default_rng(["msf", "wbf", "nms", "none"].index(method))
    taken_in = 0
    for _ in range(60):
        scales = []
        for _ in range(int(rng.integers(1, 6))):
            n = int(rng.integers(0, 40))
            centre, half = rng.uniform(0, 300, (n, 2)), rng.uniform(3, 25, (n, 2))
            scales.append(Detections(np.concatenate([centre - half, centre + half], 1), rng.uniform(0.001, 1, n), (300, 300)))
        least = float(rng.choice([0.0, 0.3]))
        config = FusionConfig(method=method, lam=float(rng.choice([0.0, 0.3, 0.6])), score_min=least, wbf_score_min=least)
        found = fuse(scales, config)
        kept = found.select(rng.random(len(found)) < 0.6)  # the rest was merged into them
        got = candidates(kept, scales, config, found.boxes)
        n = min(len(kept), 100)
        assert len(got) <= 100
        assert got.boxes[:n].tolist() == kept.boxes[:n].tolist()
        assert got.scores[:n].tolist() == kept.scores[:n].tolist()
        everything = FusionConfig(method="wbf" if method == "msf" else method, score_min=0.0, wbf_score_min=0.0)
        fused = fuse(scales, everything)
        expected = [
            (s, b)
            for s, b in zip(fused.scores.tolist(), fused.boxes.tolist(), strict=True)
            if s >= 0.005 and not stands_for(b, found.boxes, config.same_iou)
        ]
        assert list(zip(got.scores[n:].tolist(), got.boxes[n:].tolist(), strict=True)) == expected[: 100 - n]
        taken_in += sum(stands_for(b, found.boxes, 0.45) and not stands_for(b, kept.boxes, 0.45) for b in fused.boxes)
    assert taken_in > 0, "no case put the rule to the test"


@pytest.mark.parametrize("method", ["msf", "wbf", "nms", "none"])
@pytest.mark.parametrize("boxes", [30, 230])
def test_lesions_and_all_boxes_made_at_once_are_those_made_apart(method, boxes):
    rng = np.random.default_rng(boxes)
    corner = rng.uniform(0, 400, (3, boxes, 2))
    scales = [
        Detections(np.concatenate([c, c + rng.uniform(20, 60, c.shape)], axis=1), rng.uniform(0, 1, boxes), (512, 512))
        for c in corner
    ]
    for least in (0.0, 0.3):
        config = FusionConfig(method, score_min=0.3, wbf_score_min=least, lesion_score_min=0.2)
        lesions, whole = fuse_all(scales, config)
        apart = fuse(scales, config)
        assert (lesions.boxes.tolist(), lesions.scores.tolist()) == (apart.boxes.tolist(), apart.scores.tolist())
        assert len(lesions)
        together = candidates(lesions, scales, config, None, whole)
        assert together.boxes.tolist() == candidates(lesions, scales, config).boxes.tolist()


@pytest.mark.parametrize("method", ["msf", "wbf", "nms", "none"])
def test_boxes_known_to_be_suppressed_are_fused_as_if_it_were_not_known(method):
    rng = np.random.default_rng(8)
    config = FusionConfig(method, score_min=0.1, wbf_score_min=0.1)
    for _ in range(20):
        low = rng.uniform(0, 60, (3, 30, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 30, low.shape)], axis=2)
        raw = [Detections(b, rng.integers(1, 20, 30) / 20, (100, 100)) for b in boxes]  # equal scores too
        known = [suppress(d, 0.45) for d in raw]
        assert all(d.iou_most == 0.45 and 1 < len(d) < 30 for d in known)
        assert all((box_iou(d.boxes, d.boxes)[~np.eye(len(d), dtype=bool)] <= 0.45).all() for d in known)
        unknown = [Detections(d.boxes, d.scores, d.size) for d in known]
        for a, b in ((fuse(known, config), fuse(unknown, config)), (known[0].select(np.arange(2)), unknown[0].select([0, 1]))):
            np.testing.assert_array_equal(a.boxes, b.boxes)
            np.testing.assert_array_equal(a.scores, b.scores)
        stricter = suppress(known[0], 0.2)  # what is known for 0.45 says nothing of it
        np.testing.assert_array_equal(stricter.boxes, suppress(unknown[0], 0.2).boxes)
        assert len(stricter) < len(known[0])
