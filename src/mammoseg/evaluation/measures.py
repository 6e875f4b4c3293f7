"""What is measured on pairs of truth and findings, as functions of image weights, ready for the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.evaluation.average_precision import Area, average_precision
from mammoseg.evaluation.bootstrap import Weights, weighted_mean
from mammoseg.evaluation.froc import tpr_at
from mammoseg.evaluation.inputs import Pair
from mammoseg.evaluation.matching import Counts, Criterion, Ranked, match, rank
from mammoseg.evaluation.overlap import Placed, areas, dice, inscribed_ellipse, surface_distances, union
from mammoseg.geometry import box_iou
from mammoseg.types import Lesion, TrueMass

Value = float | None


@dataclass(frozen=True)
class Measure:
    """One figure: `key` in JSON, `label` for people, of how many `n` of `unit`, and its value at given image weights."""

    key: str
    label: str
    n: int
    unit: str
    value: Callable[[Weights], Value]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one image at the operating point (its lesions as they stand).

    found: for each lesion the index of the mass it found, -1 for a false positive. dices: for each mass with a mask the
    Dice of the lesion that found it, by the mass's index. end_to_end: (|A∩B|, |found|, |true|) in pixels over the whole
    image, None where a mass has no mask. best_score: for each mass the best score of a candidate that fits it, or None.
    """

    pair: Pair
    found: NDArray[np.int64]
    dices: dict[int, float] = field(default_factory=dict)
    distances: dict[int, tuple[float, float]] = field(default_factory=dict)
    end_to_end: tuple[int, int, int] | None = None
    best_score: tuple[float | None, ...] = ()

    @property
    def missed(self) -> list[int]:
        """Indices of the masses that no lesion found."""
        return [m for m in range(len(self.pair.truth.annotation.masses)) if m not in set(self.found.tolist())]

    @property
    def dice(self) -> float | None:
        """Dice end to end; None without a mass or without masks."""
        if self.end_to_end is None or not self.pair.truth.annotation.masses:
            return None
        both, found, true = self.end_to_end
        return 2.0 * both / (found + true) if found + true else None


def true_boxes(pair: Pair) -> NDArray[np.float64]:
    """f64[M, 4] of the masses of one image."""
    return np.array([m.box for m in pair.truth.annotation.masses], dtype=np.float64).reshape(-1, 4)


def placed(thing: Lesion | TrueMass) -> Placed:
    """A lesion's or a mass's pixels; raises ValueError for a mass without a mask."""
    if thing.mask is None:
        raise ValueError("placed: expected a mass with a mask")
    return thing.mask, thing.origin_px


def outcome(pair: Pair, criterion: Criterion) -> Outcome:
    """Matches the lesions of one image with its masses and measures their outlines."""
    lesions, masses = pair.findings.lesions, pair.truth.annotation.masses
    boxes = np.array([x.box for x in lesions], dtype=np.float64).reshape(-1, 4)
    found = match(boxes, [x.score for x in lesions], true_boxes(pair), criterion)
    spacing = pair.findings.image.spacing_mm or pair.truth.spacing_mm
    dices, distances = {}, {}
    for k, m in enumerate(found.tolist()):
        if m >= 0 and masses[m].mask is not None:
            a, b = placed(lesions[k]), placed(masses[m])
            dices[m] = dice(a, b)
            if spacing is not None:
                distances[m] = surface_distances(a, b, spacing)
    whole = None
    if all(m.mask is not None for m in masses):
        whole = areas(union([placed(x) for x in lesions]), union([placed(m) for m in masses]))
    return Outcome(pair, found, dices, distances, whole, _best_scores(pair, criterion))


def detection_measures(images: Ranked, criterion: Criterion, fpi: Sequence[float], primary: bool) -> list[Measure]:
    """AP and TPR@FPI from the candidates; the rival areas for the primary criterion alone."""
    name, n = criterion.name, images.n_truth
    key = name.lower().replace(" ", "_")
    kinds: list[tuple[Area, str]] = [
        ("envelope", ""),
        ("step", " (scikit-learn's step sum)"),
        ("coco101", " (COCO, 101 points)"),
    ]
    last: list[tuple[Weights, Counts]] = []

    def counts(w: Weights) -> Counts:  # the figures of one resample share their counts
        if not last or last[0][0] is not w:
            last[:] = [(w, images.counts(w))]
        return last[0][1]

    def precision_of(area: Area) -> Callable[[Weights], Value]:
        return lambda w: average_precision(counts(w), area)

    def rate_at(f: float) -> Callable[[Weights], Value]:
        return lambda w: tpr_at(counts(w), [f])[0]

    out = []
    for area, text in kinds[: 3 if primary else 1]:
        suffix = "" if area == "envelope" else f"_{area}"
        out.append(Measure(f"ap_{key}{suffix}", f"Average precision, {name}{text}", n, "masses", precision_of(area)))
    for f in fpi:
        out.append(Measure(f"tpr_{key}_at_{f:g}_fpi", f"TPR at {f:g} FP/image, {name}", n, "masses", rate_at(f)))
    return out


def operating_measures(outcomes: Sequence[Outcome]) -> list[Measure]:
    """What the lesions themselves reach: the point a user sees (the paper's TPR@FPavg)."""
    truth = np.array([len(o.pair.truth.annotation.masses) for o in outcomes], dtype=np.float64)
    hits = np.array([(o.found >= 0).sum() for o in outcomes], dtype=np.float64)
    false = np.array([(o.found < 0).sum() for o in outcomes], dtype=np.float64)
    n_truth, n_lesions = int(truth.sum()), int((hits + false).sum())
    return [
        Measure("tpr_operating", "TPR of the lesions shown", n_truth, "masses", lambda w: _ratio(w @ hits, w @ truth)),
        Measure("fpi_operating", "False positives per image", len(outcomes), "images", lambda w: _ratio(w @ false, w.sum())),
        Measure("precision_operating", "Precision", n_lesions, "lesions", lambda w: _ratio(w @ hits, w @ (hits + false))),
    ]


def outline_measures(outcomes: Sequence[Outcome]) -> list[Measure]:
    """Dice on matched detections, of every mass with misses as 0, end to end, pooled; surface distances in mm."""
    matched = [(k, d) for k, o in enumerate(outcomes) for d in o.dices.values()]
    missed = [(k, 0.0) for k, o in enumerate(outcomes) for m in o.missed if o.pair.truth.annotation.masses[m].mask is not None]
    whole = [(k, o.dice) for k, o in enumerate(outcomes) if o.dice is not None]
    pooled = [(k, o.end_to_end) for k, o in enumerate(outcomes) if o.end_to_end is not None]
    out = []
    if matched or missed:
        counts = np.array([a for _, a in pooled], dtype=np.float64).reshape(-1, 3)
        images = np.array([k for k, _ in pooled], dtype=np.int64)
        out = [
            _mean("dice_matched", "Dice, matched detections", matched, "masses"),
            _mean("dice_masses", "Dice of every mass, missed ones 0", matched + missed, "masses"),
            _mean("dice_end_to_end", "Dice end to end, images with a mass", whole, "images"),
            Measure(
                "dice_pooled",
                "Dice over the pixels of all images",
                len(pooled),
                "images",
                lambda w: _ratio(2 * (w[images] @ counts[:, 0]), w[images] @ (counts[:, 1] + counts[:, 2])),
            ),
        ]
    distances = [(k, d) for k, o in enumerate(outcomes) for d in o.distances.values()]
    if distances:
        out.append(_mean("hd95_mm", "95% Hausdorff distance in mm, matched", [(k, d[0]) for k, d in distances], "masses"))
        out.append(_mean("assd_mm", "Mean surface distance in mm, matched", [(k, d[1]) for k, d in distances], "masses"))
    return out


def crop_measures(pairs: Sequence[Pair], automatic: Sequence[Outcome] = ()) -> list[Measure]:
    """Dice on true crops, from findings made with the true boxes given, beside the ellipse inscribed in each true box.

    Each mass is compared with the lesion whose box fits its own best; where none overlaps, its Dice is 0. automatic: outcomes
    of the same images with boxes that were detected; of the masses found there, both Dice are compared, mass by mass.
    """
    ours, ellipse, cost = [], [], []
    detected = {o.pair.truth.image_id: o.dices for o in automatic}
    for k, pair in enumerate(pairs):
        lesions = pair.findings.lesions
        overlap = box_iou(true_boxes(pair), np.array([x.box for x in lesions], dtype=np.float64).reshape(-1, 4))
        found = detected.get(pair.truth.image_id, {})
        for m, mass in enumerate(pair.truth.annotation.masses):
            if mass.mask is None or not mass.mask.any():
                continue
            best = int(overlap[m].argmax()) if len(lesions) else 0
            ours.append((k, dice(placed(lesions[best]), placed(mass)) if len(lesions) and overlap[m, best] > 0 else 0.0))
            ellipse.append((k, dice(inscribed_ellipse(mass.box), placed(mass))))
            if m in found:
                cost.append((k, found[m] - ours[-1][1]))
    gain = [(k, a - b) for (k, a), (_, b) in zip(ours, ellipse, strict=True)]
    out = [
        _mean("dice_true_crops", "Dice, true crops", ours, "masses"),
        _mean("dice_ellipse", "Dice of the ellipse in the true box (baseline)", ellipse, "masses"),
        _mean("dice_gain_over_ellipse", "True crops minus ellipse, paired", gain, "masses"),
    ]
    if cost:
        out.append(_mean("dice_cost_of_detected_boxes", "Detected minus true boxes, masses found, paired", cost, "masses"))
    return out


def rank_candidates(pairs: Sequence[Pair], criterion: Criterion) -> Ranked:
    """The candidates of all images against their masses; a rejected or failed image has none."""
    images = []
    for pair in pairs:
        found = pair.findings.candidates
        boxes, scores = (found.boxes, found.scores) if found is not None else (np.zeros((0, 4)), np.zeros(0))
        images.append((boxes, scores, true_boxes(pair)))
    return rank(images, criterion)


def _best_scores(pair: Pair, criterion: Criterion) -> tuple[float | None, ...]:
    found = pair.findings.candidates
    if found is None or not len(found):
        return (None,) * len(pair.truth.annotation.masses)
    fits = criterion.affinity(found.boxes, true_boxes(pair)) > 0
    return tuple(float(found.scores[column].max()) if column.any() else None for column in fits.T)


def _mean(key: str, label: str, values: Sequence[tuple[int, float]], unit: str) -> Measure:
    images = np.array([k for k, _ in values], dtype=np.int64)
    numbers = np.array([v for _, v in values], dtype=np.float64)
    return Measure(key, label, len(values), unit, lambda w: weighted_mean(numbers, w[images]))


def _ratio(part: Any, whole: Any) -> Value:
    return float(part) / float(whole) if whole > 0 else None
