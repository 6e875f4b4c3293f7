"""The drawn cases of tests/cases/overview.md, by their numbers, as exact fractions."""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest

from mammoseg.evaluation.average_precision import average_precision
from mammoseg.evaluation.froc import froc, tpr_at
from mammoseg.evaluation.matching import Criterion, match, rank
from mammoseg.evaluation.overlap import areas, dice, iou

MASS = (10.0, 10.0, 20.0, 20.0)
FAR = (50.0, 50.0, 60.0, 60.0)
FARTHER = (80.0, 80.0, 90.0, 90.0)
IOU = Criterion()


def image(*found, truth=()):
    """(box, score) pairs and the true boxes of one image."""
    return [b for b, _ in found], [s for _, s in found], list(truth)


def results(images, criterion=IOU):
    counts = rank(images, criterion).counts()
    return counts, average_precision(counts), tpr_at(counts)


def test_1_all_found():
    counts, ap, tpr = results([image((MASS, 0.9), truth=[MASS]), image((FAR, 0.4), truth=[FAR])])
    assert ap == 1
    assert tpr == [1, 1, 1, 1]
    assert counts.tp.tolist() == [1, 2]


def test_2_none_found():
    counts, ap, tpr = results([image((FAR, 0.9), (FARTHER, 0.3), truth=[MASS])])
    assert ap == 0
    assert tpr == [0, 0, 0, 0]
    assert counts.fp.tolist() == [1, 2]
    assert counts.thresholds.tolist() == [0.9, 0.3]


def test_3_nothing_detected():
    counts, ap, tpr = results([image(truth=[MASS]), image()])
    assert ap == 0
    assert tpr == [0, 0, 0, 0]
    assert len(froc(counts).fpi) == 0
    assert (counts.n_truth, counts.n_images) == (1, 2)


def test_4_a_normal_image_counts():
    first = image((MASS, 0.9), (FAR, 0.7), truth=[MASS])
    counts, ap, tpr = results([first, image((MASS, 0.8))])
    assert ap == 1
    assert tpr == [1, 1, 1, 1]
    assert froc(counts).fpi.tolist() == [0, F(1, 2), 1]
    _, ap, tpr = results([first, image((MASS, 0.95))])
    assert ap == F(1, 2)
    assert tpr == [0, 0, 1, 1]


def test_5_one_box_over_two_masses():
    truth = [(0.0, 0, 10, 10), (2.0, 0, 12, 10)]
    images = [image(((1.5, 0, 11.5, 10), 0.9), truth=truth)]
    _, ap, _ = results(images)
    assert ap == F(1, 2)
    assert match(*images[0], IOU).tolist() == [1]


def test_6_two_boxes_on_one_mass():
    worse, better = (12.0, 10.0, 22.0, 20.0), (10.0, 10.0, 20.0, 21.0)
    images = [image((better, 0.8), (worse, 0.9), truth=[MASS])]
    counts, ap, _ = results(images)
    assert match(*images[0], IOU).tolist() == [-1, 0]
    assert ap == 1
    assert froc(counts).fpi.tolist() == [0, 1]


@pytest.mark.parametrize("order", [1, -1])
def test_7_ties(order):
    _, ap, tpr = results([image(*[(MASS, 0.5), (FAR, 0.5)][::order], truth=[MASS])])
    assert ap == F(1, 2)
    assert tpr == [0, 0, 0, 1]


def test_7_ties_across_images_do_not_depend_on_their_order():
    a, b = image((MASS, 0.5), truth=[MASS]), image((MASS, 0.5), (FAR, 0.4), truth=[FAR])
    assert results([a, b])[1:] == results([b, a])[1:]
    assert results([a, b])[1] == pytest.approx(float(F(2, 3)))  # envelope: 1/2 and 2/3 at recalls 1/2 and 1


def test_8_the_three_areas_differ():
    places = [(20.0 * k, 0.0, 20.0 * k + 10, 10.0) for k in range(5)]
    found = [(p, 0.9 - 0.1 * k) for k, p in enumerate(places)]
    counts, ap, _ = results([image(*found, truth=[places[0], places[3], places[4]])])
    assert ap == pytest.approx(float(F(11, 15)), abs=1e-15)
    assert average_precision(counts, "step") == pytest.approx(float(F(7, 10)), abs=1e-15)
    assert average_precision(counts, "coco101") == pytest.approx(float(F(371, 505)), abs=1e-15)


def test_9_greedy_not_optimal():
    t1, t2 = (0.0, 0, 10, 10), (3.0, 0, 13, 10)
    a, b = (1.0, 0, 11, 10), (-2.0, 0, 8, 10)
    assert IOU.affinity([a], [t1, t2])[0].tolist() == [pytest.approx(9 / 11), pytest.approx(8 / 12)]
    assert IOU.affinity([b], [t1, t2])[0].tolist() == [pytest.approx(8 / 12), 0]
    images = [image((a, 0.9), (b, 0.8), truth=[t1, t2])]
    assert match(*images[0], IOU).tolist() == [0, -1]
    assert results(images)[1] == F(1, 2)


def test_10_exactly_at_the_limit():
    assert match([(0.0, 0, 10, 10)], [1.0], [(0.0, 0, 10, 20)], IOU).tolist() == [0]
    assert match([(0.0, 0, 10, 9)], [1.0], [(0.0, 0, 10, 20)], IOU).tolist() == [-1]


def test_11_by_centre():
    mass, small = (0.0, 0, 10, 10), (4.0, 4, 6, 6)
    centre = Criterion("centre")
    assert match([small], [1.0], [mass], centre).tolist() == [0]
    assert match([small], [1.0], [mass], IOU).tolist() == [-1]
    assert match([(-1.0, -1, 1, 1)], [1.0], [mass], centre).tolist() == [0]
    assert match([(9.0, 4, 11, 6)], [1.0], [mass], centre).tolist() == [-1]


def test_12_overlap_of_masks():
    square = np.ones((4, 4), dtype=bool)
    a, b = (square, (0, 0)), (square, (2, 1))
    assert areas(a, b) == (6, 16, 16)
    assert dice(a, b) == F(3, 8)
    assert iou(a, b) == pytest.approx(float(F(3, 13)), abs=1e-15)


def test_no_mass_has_no_average_precision():
    counts, ap, tpr = results([image((MASS, 0.9)), image()])
    assert ap is None
    assert tpr == [None] * 4
    with pytest.raises(ValueError, match="one mass"):
        froc(counts)
    assert rank([], IOU).n_images == 0
