"""Scores as probabilities: exact small cases, independent oracles, known maps, held-out patients, operating points."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from mammoseg.errors import EvaluationError
from mammoseg.evaluation.calibration import cross_fitted, fit_logistic, reliability, score_at
from mammoseg.evaluation.matching import Ranked
from mammoseg.scores import CalibrationConfig


def _ranked(scores: np.ndarray, hits: np.ndarray, image: np.ndarray, n_images: int) -> Ranked:
    order = np.argsort(-scores, kind="stable")
    return Ranked(scores[order], hits[order], image[order], np.ones(n_images, dtype=np.int64))


def _drawn(n: int, slope: float, offset: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores whose outcome has the probability σ(slope·logit(s) + offset)."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.6, 2.0, n).clip(0.005, 0.995)
    return scores, rng.random(n) < CalibrationConfig(slope, offset).apply(scores)


def test_drawn_case_in_fractions() -> None:
    """Four candidates in two bins: 1/10 and 2/10, none right; 6/10 and 8/10, one right."""
    found = reliability(np.array([0.8, 0.1, 0.6, 0.2]), np.array([True, False, False, False]), bins=2)
    assert found is not None
    low, high = Fraction(3, 20), Fraction(7, 10)
    assert [b.n for b in found.bins] == [2, 2]
    assert [b.score for b in found.bins] == pytest.approx([float(low), float(high)])
    assert [b.rate for b in found.bins] == [0.0, 0.5]
    assert found.ece == pytest.approx(float((2 * low + 2 * (high - Fraction(1, 2))) / 4))
    assert found.brier == pytest.approx(float(Fraction(1 + 4 + 36 + 4, 400)))
    assert found.rate == 0.25


def test_candidates_below_the_least_score_take_no_part() -> None:
    some = reliability(np.array([0.049, 0.05]), np.array([True, False]))
    assert some is not None
    assert (some.n, some.brier) == (1, pytest.approx(0.0025))
    assert reliability(np.array([0.01]), np.array([True])) is None


@given(st.lists(st.tuples(st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9, 1.0]), st.booleans()), min_size=1), st.integers(1, 20))
def test_bins_part_the_candidates_whatever_the_ties_and_their_order(items: list[tuple[float, bool]], bins: int) -> None:
    scores, hits = np.array([s for s, _ in items]), np.array([h for _, h in items])
    found, again = reliability(scores, hits, bins=bins), reliability(scores[::-1], hits[::-1], bins=bins)
    assert found is not None
    assert again is not None
    assert found.ece == pytest.approx(again.ece)
    assert sum(b.n for b in found.bins) == len(items)
    assert all(a.high < b.low for a, b in zip(found.bins, found.bins[1:], strict=False))  # equal scores share a bin
    assert found.brier == pytest.approx(brier_score_loss(hits, scores, pos_label=True))
    assert 0 <= found.ece <= 1


def test_the_fit_is_the_likeliest_map() -> None:
    """An independent oracle: scikit-learn's logistic regression without a penalty, on the same smoothed outcomes as weights."""
    scores, hits = _drawn(4000, 1.7, 0.8)
    ours = fit_logistic(scores, hits)
    x = np.log(scores / (1 - scores))[:, None]
    right, wrong = hits.sum(), (~hits).sum()
    t = np.where(hits, (right + 1) / (right + 2), 1 / (wrong + 2))
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    oracle.fit(np.concatenate([x, x]), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([t, 1 - t]))
    assert ours.slope == pytest.approx(float(oracle.coef_[0, 0]), rel=1e-3)
    assert ours.offset == pytest.approx(float(oracle.intercept_[0]), abs=1e-3)
    assert (ours.slope, ours.offset) == pytest.approx((1.7, 0.8), abs=0.2)


def test_fitted_scores_are_probabilities_on_patients_left_out() -> None:
    scores, hits = _drawn(6000, 2.0, 1.5, seed=3)
    image = np.arange(6000) // 4
    ranked = _ranked(scores, hits, image, 1500)
    crossed = cross_fitted(ranked, [f"p{k // 3}" for k in range(1500)])
    before, after = reliability(ranked.scores, ranked.hits), reliability(crossed, ranked.hits)
    assert before is not None
    assert after is not None
    assert before.ece > 0.1
    assert after.ece < 0.03
    assert after.brier < before.brier


def test_a_patient_is_never_fitted_on_its_own_candidates() -> None:
    """Where one patient's outcomes are the opposite of all others', its probabilities still follow the others."""
    scores, hits = _drawn(2000, 2.0, 0.0, seed=5)
    image = np.arange(2000) // 2
    names = [f"p{k:03d}" for k in range(1000)]
    plain = cross_fitted(_ranked(scores, hits, image, 1000), names)
    turned = hits.copy()
    turned[image == 0] = ~turned[image == 0]
    changed = cross_fitted(_ranked(scores, turned, image, 1000), names)
    ranked = _ranked(scores, hits, image, 1000)
    own_fold = ranked.image % 5 == 0  # names sort as they are numbered
    np.testing.assert_array_equal(plain[own_fold], changed[own_fold])
    assert (plain[~own_fold] != changed[~own_fold]).any()


def test_too_few_candidates_are_refused() -> None:
    scores, hits = np.linspace(0.1, 0.9, 60), np.arange(60) >= 50
    with pytest.raises(EvaluationError, match="got 10 and 50"):
        fit_logistic(scores, hits)


@given(st.floats(0.1, 10), st.floats(-5, 5), st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_a_map_keeps_the_order_and_the_range(slope: float, offset: float, scores: list[float]) -> None:
    raw = np.sort(np.array(scores))
    out = CalibrationConfig(slope, offset).apply(raw)
    assert ((out >= 0) & (out <= 1)).all()
    assert (np.diff(out) >= 0).all()


@pytest.mark.parametrize(("slope", "offset"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_maps_that_are_none_are_refused(slope: float, offset: float) -> None:
    with pytest.raises(ValueError, match="positive slope"):
        CalibrationConfig(slope, offset)


def test_operating_points_of_a_drawn_case() -> None:
    """Five images; false positives at 0.9, 0.6, 0.6 and 0.2, hits at 0.8 and 0.3."""
    scores = np.array([0.9, 0.8, 0.6, 0.6, 0.3, 0.2])
    hits = np.array([False, True, False, False, True, False])
    ranked = _ranked(scores, hits, np.array([0, 1, 2, 3, 4, 0]), 5)
    assert score_at(ranked, 0.1) is None  # the best is a false positive already: 1/5
    assert score_at(ranked, 0.2) == 0.8
    assert score_at(ranked, 0.5) == 0.8  # 0.6 would bring two more: 3/5
    assert score_at(ranked, 0.6) == 0.3
    assert score_at(ranked, 0.8) == 0.2
