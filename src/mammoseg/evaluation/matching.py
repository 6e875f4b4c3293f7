"""Which detection found which mass: greedy by score, each mass at most once, nothing ignored.

`Ranked` pools the outcome over images and is all that average precision and FROC are computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammoseg.geometry import box_iou

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Criterion:
    """When a box has found a mass: their IoU reaches `iou`, or ("centre") the box's centre lies in the mass's box.

    >>> Criterion().name, Criterion("centre").name
    ('IoU 0.5', 'centre')
    """

    kind: Literal["iou", "centre"] = "iou"
    iou: float = 0.5

    def __post_init__(self) -> None:
        if self.kind == "iou" and not 0.0 < self.iou <= 1.0:
            raise ValueError(f"Criterion.iou: expected a number above 0 and at most 1, got {self.iou}")

    @property
    def name(self) -> str:
        """As shown to people."""
        return f"IoU {self.iou:g}" if self.kind == "iou" else "centre"

    def affinity(self, boxes: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
        """f64[N, M], above 0 where box n has found mass m; the larger, the better."""
        b = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        t = np.asarray(truth, dtype=np.float64).reshape(-1, 4)
        if self.kind == "iou":
            iou = box_iou(b, t)
            return np.where(iou >= self.iou - _TOLERANCE, iou, 0.0)
        centre = ((b[:, :2] + b[:, 2:]) / 2)[:, None, :]
        inside = ((centre >= t[None, :, :2]) & (centre < t[None, :, 2:])).all(axis=-1)
        distance = np.hypot(*(centre - ((t[:, :2] + t[:, 2:]) / 2)[None]).transpose(2, 0, 1))
        return np.where(inside, 1.0 / (1.0 + distance), 0.0)


def match(boxes: ArrayLike, scores: ArrayLike, truth: ArrayLike, criterion: Criterion) -> NDArray[np.int64]:
    """For each box of one image the index of the mass it found, -1 for a false positive: i64[N].

    boxes f64[N, 4], truth f64[M, 4]: `xyxy`, native frame; scores f64[N]. Best score first (equal scores in the order
    given), each box takes the mass it fits best among those not yet taken.
    """
    affinity = criterion.affinity(boxes, truth)
    found = np.full(len(affinity), -1, dtype=np.int64)
    if affinity.shape[1] == 0:
        return found
    for i in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable"):
        best = int(affinity[i].argmax())
        if affinity[i, best] > 0:
            found[i] = best
            affinity[:, best] = 0.0
    return found


@dataclass(frozen=True, eq=False)
class Ranked:
    """All detections of all images, best score first, with what they found.

    scores: f64[M], falling. hits: bool[M], true for those that found a mass. image: i64[M], whose image.
    truth_per_image: i64[n_images], the number of masses in each image, 0 for a normal one.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    image: NDArray[np.int64]
    truth_per_image: NDArray[np.int64]

    @property
    def n_images(self) -> int:
        """All images, those without a mass or without a detection as well."""
        return len(self.truth_per_image)

    @property
    def n_truth(self) -> int:
        """All masses."""
        return int(self.truth_per_image.sum())

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The last place of each run of equal scores: between them there is no operating point."""
        return (
            np.flatnonzero(np.append(self.scores[1:] != self.scores[:-1], True)) if len(self.scores) else np.zeros(0, np.int64)
        )

    def counts(self, weights: NDArray[np.float64] | None = None) -> Counts:
        """Cumulated counts at each distinct score; `weights` f64[n_images] counts an image that many times (bootstrap)."""
        w = np.ones(self.n_images) if weights is None else weights
        each = w[self.image]
        tp = np.cumsum(each * self.hits)[self._ends]
        fp = np.cumsum(each * ~self.hits)[self._ends]
        return Counts(self.scores[self._ends], tp, fp, float(w @ self.truth_per_image), float(w.sum()))


@dataclass(frozen=True, eq=False)
class Counts:
    """tp, fp: f64[K], true and false positives at scores >= thresholds[k] (falling, distinct)."""

    thresholds: NDArray[np.float64]
    tp: NDArray[np.float64]
    fp: NDArray[np.float64]
    n_truth: float
    n_images: float


def rank(images: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], criterion: Criterion) -> Ranked:
    """Matches each image's (boxes, scores, truth boxes) and pools them."""
    scores, hits, index, truths = [], [], [], []
    for k, (boxes, score, truth) in enumerate(images):
        s = np.asarray(score, dtype=np.float64).reshape(-1)
        scores.append(s)
        hits.append(match(boxes, s, truth, criterion) >= 0)
        index.append(np.full(len(s), k, dtype=np.int64))
        truths.append(len(np.asarray(truth, dtype=np.float64).reshape(-1, 4)))
    if not images:
        return Ranked(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64))
    pooled = np.concatenate(scores)
    order = np.argsort(-pooled, kind="stable")
    return Ranked(pooled[order], np.concatenate(hits)[order], np.concatenate(index)[order], np.array(truths, dtype=np.int64))
