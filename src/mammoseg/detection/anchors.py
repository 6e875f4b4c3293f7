"""Anchors by k-means with the IoU distance on the training boxes (Redmon and Farhadi 2017, Sect. 2; the paper's Sect. 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.float64]


def shape_iou(a: Sizes, b: Sizes) -> Sizes:
    """IoU f64[N, M] of boxes given by their (w, h) alone, f64[N, 2] and f64[M, 2], laid on a common corner.

    >>> shape_iou(np.array([[2.0, 2.0]]), np.array([[1.0, 2.0], [4.0, 4.0]])).tolist()
    [[0.5, 0.25]]
    """
    inter = np.minimum(a[:, None, 0], b[None, :, 0]) * np.minimum(a[:, None, 1], b[None, :, 1])
    out: Sizes = inter / (a.prod(axis=1)[:, None] + b.prod(axis=1)[None, :] - inter)
    return out


def mean_best_iou(sizes: Sizes, anchors: Sizes) -> float:
    """The mean over `sizes` f64[N, 2] of the IoU with the best of `anchors` f64[K, 2]; in (0, 1]."""
    return float(shape_iou(sizes, anchors).max(axis=1).mean())


def kmeans_anchors(sizes: Sizes, k: int = 9, seed: int = 0, restarts: int = 5) -> tuple[Sizes, float]:
    """`k` anchors f64[k, 2] of (w, h), smallest area first, and their mean best IoU, for boxes `sizes` f64[N, 2] in px.

    Distance 1 − IoU, centres moved to the median of their boxes, the best of `restarts` k-means++ starts.
    Raises ValueError where there are fewer different sizes than anchors or a size is not positive.
    """
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if len(np.unique(sizes, axis=0)) < k or not (sizes > 0).all():
        raise ValueError(f"kmeans_anchors: expected at least {k} different boxes with positive sides, got {len(sizes)} boxes")
    best, best_iou = None, -1.0
    for restart in range(restarts):
        centres = _start(sizes, k, np.random.default_rng([seed, restart]))
        owner = np.full(len(sizes), -1)
        for _ in range(300):
            nearest = shape_iou(sizes, centres).argmax(axis=1)
            if (nearest == owner).all():
                break
            owner = nearest
            for i in range(k):
                if (owner == i).any():
                    centres[i] = np.median(sizes[owner == i], axis=0)
        score = mean_best_iou(sizes, centres)
        if score > best_iou:
            best, best_iou = centres.copy(), score
    assert best is not None
    return best[np.argsort(best.prod(axis=1), kind="stable")], best_iou


def _start(sizes: Sizes, k: int, rng: np.random.Generator) -> Sizes:
    chosen = [int(rng.integers(len(sizes)))]
    while len(chosen) < k:
        distance = 1.0 - shape_iou(sizes, sizes[chosen]).max(axis=1)
        weights = distance**2 / (distance**2).sum()
        chosen.append(int(rng.choice(len(sizes), p=weights)))
    return sizes[chosen].copy()
