"""How far a bundle, run as users run it, is from the trained float32 networks in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mammoseg.bundle import open_bundle
from mammoseg.config import from_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.images import load_image, load_item
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.detection.predictor import Detector, DetectorSpec
from mammoseg.evaluation.overlap import dice
from mammoseg.geometry import box_iou
from mammoseg.pipeline import Pipeline, load, settings_of
from mammoseg.preprocessing.breast import breast_box
from mammoseg.runtime.torch_runtime import ModuleNetwork, build
from mammoseg.segmentation.predictor import Segmenter, read_spec
from mammoseg.types import Detections, Findings, Mammogram

_Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]
PHANTOM_SIZE = (832, 640)
BARS = (
    ("lesion_box_iou_least", "least IoU of a mass's boxes", 0.9, -1),
    ("lesion_score_difference", "largest difference of a mass's scores", 0.02, 1),
    ("lesion_mask_dice_mean", "mean Dice of masses' outlines", 0.99, -1),
    ("segmenter_mask_dice_mean", "mean Dice of masks in crops", 0.99, -1),
    ("detector_probability_difference", "largest difference of the detector's probabilities", 0.05, 1),
)
"""What a bundle has to reach: figure, in words, bar, and 1 where it is a most, -1 where it is a least.

Outlines are judged by their mean: on 12 films with 15 masses the shipped int8 segmenter reaches 0.998, its smallest mass alone
0.979. There boxes differ by at most 2 px (IoU 0.982), scores by 0.0007 and the detector's probabilities by 0.006.
"""
Trained = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]]


def measure_parity(directory: Path, trained: Trained, images: Sequence[Path] = ()) -> dict[str, Any]:
    """Compares bundle `directory` under OpenVINO with the float32 networks in torch, on `images` or on two phantoms.

    trained: for "detector" and "segmenter", (config, float32 state). Returns JSON-able figures: the largest difference of
    a network output after the sigmoid, the Dice of masks at probability 0.5, and the same end to end.
    """
    bundle = open_bundle(directory)
    pipeline = load(directory)
    references = {n: ModuleNetwork(build(n, c, {k: v.numpy() for k, v in s.items()})) for n, (c, s) in trained.items()}
    detector, segmenter = (
        _Both(pipeline.detector.network, references["detector"]),
        _Both(pipeline.segmenter.network, references["segmenter"]),
    )
    specs = {n: bundle.config["networks"][n]["spec"] for n in ("detector", "segmenter")}
    reference = Pipeline(
        Detector(detector, from_dict(DetectorSpec, specs["detector"])),
        Segmenter(segmenter, read_spec(specs["segmenter"])),
        settings_of(bundle),
        bundle,
    )
    with tempfile.TemporaryDirectory() as folder:
        mammograms = [load_image(p) for p in images] if images else _phantoms(Path(folder))
    ends: list[tuple[Findings, Findings]] = []
    for mammogram in mammograms:
        ends.append((pipeline.analyze(mammogram), reference.analyze(mammogram)))
        reference.analyze(mammogram, _middle(mammogram))  # so that the segmenter is compared even where nothing is found
    return {
        "images": len(mammograms),
        "on": "given images" if images else "phantoms",
        "detector_probability_difference": round(detector.difference, 6),
        "segmenter_probability_difference": round(segmenter.difference, 6),
        "segmenter_mean_probability_difference": round(segmenter.total / max(segmenter.values, 1), 6),
        "segmenter_mask_dice_least": round(min(segmenter.dice, default=1.0), 6),
        "segmenter_mask_dice_mean": round(float(np.mean(segmenter.dice)) if segmenter.dice else 1.0, 6),
        **end_to_end(ends),
    }


def shortcomings(parity: Mapping[str, Any]) -> list[str]:
    """In words, where a bundle falls short of the trained networks; none where it gives what they give.

    parity: from `measure_parity`.
    """
    missing = parity["images"] - parity["images_with_equal_lesion_count"]
    found = [f"another number of masses in {missing} of {parity['images']} images"] if missing else []
    for key, words, bar, sign in BARS:
        if sign * parity[key] > sign * bar:
            found.append(f"{words} {parity[key]:.4g}, expected {'at most' if sign > 0 else 'at least'} {bar:g}")
    return found


class _Both:
    """Runs two networks on the same input, keeps count of how far they are apart, answers with the second one's."""

    def __init__(self, tested: _Run, reference: _Run) -> None:
        self._tested, self._reference = tested, reference
        self.difference, self.total, self.values = 0.0, 0.0, 0
        self.dice: list[float] = []

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        expected = list(self._reference(x))
        for a, b in zip(self._tested(x), expected, strict=True):
            p, q = 1 / (1 + np.exp(-a.astype(np.float64))), 1 / (1 + np.exp(-b.astype(np.float64)))
            self.difference = max(self.difference, float(np.abs(p - q).max()))
            self.total += float(np.abs(p - q).sum())
            self.values += p.size
            if a.shape[1] == 1:
                self.dice += [_dice(s, t) for s, t in zip(p >= 0.5, q >= 0.5)]
        return expected


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def end_to_end(ends: Sequence[tuple[Findings, Findings]]) -> dict[str, Any]:
    """How far apart the findings of two networks are in the same images; each lesion is compared with the one it fits best."""
    box, score, iou, masks = 0.0, 0.0, 1.0, []
    for a, b in ends:
        boxes = [np.array([x.box for x in f.lesions], dtype=np.float64).reshape(-1, 4) for f in (a, b)]
        overlap = box_iou(*boxes)
        for i, j in zip(*linear_sum_assignment(-overlap)):
            box = max(box, float(np.abs(boxes[0][i] - boxes[1][j]).max()))
            iou = min(iou, float(overlap[i, j]))
            score = max(score, abs(a.lesions[i].score - b.lesions[j].score))
            masks.append(dice((a.lesions[i].mask, a.lesions[i].origin_px), (b.lesions[j].mask, b.lesions[j].origin_px)))
    return {
        "images_with_equal_lesion_count": sum(len(a.lesions) == len(b.lesions) for a, b in ends),
        "lesions": sum(len(b.lesions) for _, b in ends),
        "lesion_box_difference_px": round(box, 4),
        "lesion_box_iou_least": round(iou, 6),
        "lesion_score_difference": round(score, 6),
        "lesion_mask_dice_least": round(min(masks, default=1.0), 6),
        "lesion_mask_dice_mean": round(float(np.mean(masks)) if masks else 1.0, 6),
    }


def _middle(mammogram: Mammogram) -> Detections:
    """A box of a fifth of the breast in its middle."""
    x1, y1, x2, y2 = breast_box(mammogram.pixels)
    side = max(8.0, min(x2 - x1, y2 - y1) / 5)
    x, y = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    return Detections(np.array([[x, y, x + side, y + side]]), np.ones(1), mammogram.size, "given")


def _phantoms(folder: Path) -> list[Mammogram]:
    write_exams(folder, count=1, seed=7, format="png", config=PhantomConfig(size=PHANTOM_SIZE))
    return [load_item(item) for item in read_dataset(f"phantom:{folder}")[:2]]
