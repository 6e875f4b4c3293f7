"""Paired comparison and strata, against SciPy and plain loops; cases 14 and 15 of tests/cases/overview.md."""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest
from scipy import stats

from mammoseg.evaluation.bootstrap import resamples
from mammoseg.evaluation.compare import compare, sign_flip_p
from mammoseg.evaluation.inputs import Pair
from mammoseg.evaluation.matching import Criterion
from mammoseg.evaluation.measures import outcome
from mammoseg.evaluation.overlap import surface_distances
from mammoseg.evaluation.strata import stratify
from mammoseg.types import Annotation, DatasetItem, Detections, Findings, ImageInfo, Lesion, TrueMass


def test_14_sign_flips():
    assert sign_flip_p([0.3, 0.1, 0.2], ["a", "b", "c"]) == F(2, 8)
    assert sign_flip_p([0.3, -0.1, 0.2], ["a", "b", "c"]) == F(4, 8)
    assert sign_flip_p([0.3, 0.1, 0.2], ["a", "a", "b"]) == F(2, 4)
    assert sign_flip_p([0.0, 0.0], ["a", "b"]) == 1


def test_15_surface_distances():
    square = np.ones((4, 4), dtype=bool)
    hd95, assd = surface_distances((square, (0, 0)), (square, (0, 3)), (1.0, 1.0))
    assert assd == pytest.approx(float(F(3, 2)))
    assert hd95 == 3


def test_sign_flips_equal_scipy():
    rng = np.random.default_rng(2)
    for _ in range(200):
        n = int(rng.integers(2, 10))
        values = rng.normal(0.3, 1, n)
        test = stats.permutation_test((values, np.zeros(n)), lambda a, b: np.mean(a - b), permutation_type="samples")
        assert sign_flip_p(values, [str(k) for k in range(n)]) == pytest.approx(test.pvalue, abs=1e-9)


def test_random_flips_come_near_the_exact_ones():
    rng = np.random.default_rng(4)
    values = rng.normal(0.4, 1, 15)
    test = stats.permutation_test(
        (values, np.zeros(15)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=2**15
    )
    assert sign_flip_p(values, [str(k) for k in range(15)]) == pytest.approx(test.pvalue, abs=0.02)


def random_outcomes(rng, count=30, quality=1.0):
    """Images with one or two square masses of random size, found or not, with their lesions somewhat off."""
    out = []
    for k in range(count):
        masses, lesions = [], []
        for place in range(int(rng.integers(1, 3))):
            side = int(rng.integers(4, 40))
            x, y = 10 + 60 * place, 20
            masses.append(TrueMass((x, y, x + side, y + side), np.ones((side, side), dtype=bool), (y, x),
                                   {"pathology": str(rng.choice(["BENIGN", "MALIGNANT"]))}))  # fmt: skip
            if rng.random() < 0.7 * quality:
                shift = int(rng.integers(0, max(1, side // 6) + 1))
                box = (float(x + shift), float(y), float(x + shift + side), float(y + side))
                lesions.append(Lesion(len(lesions) + 1, box, float(rng.uniform(0.5, 1)), np.ones((side, side), dtype=bool),
                                      (y, x + shift), np.zeros((3, 2))))  # fmt: skip
        attributes = {"breast_density": int(rng.integers(1, 5))} if rng.random() < 0.9 else {}
        item = DatasetItem(str(k), f"/{k}", f"p{k // 2}", Annotation(str(k), (200, 200), tuple(masses)), "L",
                           str(rng.choice(["CC", "MLO"])), (0.5, 0.5), attributes)  # fmt: skip
        boxes = Detections(np.array([x.box for x in lesions]).reshape(-1, 4), np.array([x.score for x in lesions]), (200, 200))
        found = Findings(ImageInfo(str(k), 200, 200, (0.5, 0.5)), "processed", None, tuple(lesions), boxes)
        out.append(outcome(Pair(item, found), Criterion()))
    return out


def test_strata_equal_plain_loops():
    rng = np.random.default_rng(7)
    for _ in range(20):
        outcomes = random_outcomes(rng)
        strata = stratify(outcomes, resamples([o.pair.truth.patient_id for o in outcomes], 20))
        total = sum(len(o.pair.truth.annotation.masses) for o in outcomes)
        for by in ("size", "breast density", "view", "pathology"):
            assert sum(s.n_masses for s in strata if s.by == by) == total
        for s in strata:
            hits, dices, images = [], [], set()
            for o in outcomes:
                item = o.pair.truth
                for m, mass in enumerate(item.annotation.masses):
                    diameter = 2 * (mass.mask.sum() * 0.25 / np.pi) ** 0.5
                    group = {
                        "size": "1: below 10 mm"
                        if diameter < 10
                        else "2: 10 to 20 mm"
                        if diameter < 20
                        else "3: 20 mm or more",
                        "breast density": str(item.attributes.get("breast_density", "unknown")),
                        "view": item.view_position,
                        "pathology": mass.attributes["pathology"],
                    }[s.by]
                    if group == s.group:
                        hits.append(m in o.found.tolist())
                        dices.append(o.dices.get(m, 0.0))
                        images.add(item.image_id)
            assert (s.n_masses, s.n_images) == (len(hits), len(images))
            assert s.tpr.value == pytest.approx(np.mean(hits))
            assert s.dice.value == pytest.approx(np.mean(dices))


@pytest.mark.parametrize(
    ("of_image", "of_mass", "group"),
    [
        (["MALIGNANT"], None, "MALIGNANT"),  # as COCO files give it: a list for the image
        (["BENIGN", "BENIGN"], None, "BENIGN"),
        (["MALIGNANT", "BENIGN"], None, "BENIGN or MALIGNANT"),
        ("Malignant", None, "Malignant"),
        (["BENIGN"], "MALIGNANT", "MALIGNANT"),  # what is said of the mass itself counts
        ([], None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_pathology_of_the_mass_or_else_of_the_image(of_image, of_mass, group):
    mass = TrueMass((10.0, 10, 30, 30), attributes={} if of_mass is None else {"pathology": of_mass})
    item = DatasetItem("a", "/a", "p", Annotation("a", (50, 50), (mass,)), attributes={"pathology": of_image})
    found = Findings(ImageInfo("a", 50, 50), "processed", None, (), Detections.empty((50, 50)))
    strata = stratify([outcome(Pair(item, found), Criterion())], np.ones((2, 1)))
    assert [s.group for s in strata if s.by == "pathology"] == [group]


def test_compare_tells_the_better_one():
    good = random_outcomes(np.random.default_rng(1), 40, quality=1.3)
    poor = [
        outcome(
            type(o.pair)(o.pair.truth, Findings(o.pair.findings.image, "processed", None, o.pair.findings.lesions[:1],
                         o.pair.findings.candidates.select(np.arange(min(1, len(o.pair.findings.candidates)))))),
            Criterion(),
        )
        for o in good
    ]  # fmt: skip
    gains = {d.key: d for d in compare(good, poor, n=200)}
    for key in ("tpr_operating", "dice_masses", "dice_end_to_end"):
        assert gains[key].interval.value == pytest.approx(gains[key].first - gains[key].second)
        assert gains[key].interval.low > 0
    assert gains["dice_masses"].p < 0.01
    assert gains["tpr_operating"].p is None
    same = compare(good, good, n=50)
    assert {d.interval.value for d in same if d.interval.value is not None} == {0.0}
    assert next(d.p for d in same if d.key == "dice_masses") == 1
    with pytest.raises(ValueError, match="same images"):
        compare(good, good[1:])
