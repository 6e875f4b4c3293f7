"""How far a bundle, run as users run it, is from the trained float32 networks in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mammoseg.bundle import open_bundle
from mammoseg.config import from_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.detection.predictor import Detector, DetectorSpec
from mammoseg.io.load import load_mammogram
from mammoseg.pipeline import Pipeline, load, settings_of
from mammoseg.preprocessing.breast import breast_box
from mammoseg.runtime.torch_runtime import ModuleNetwork, build
from mammoseg.segmentation.predictor import Segmenter, read_spec
from mammoseg.types import Detections, Findings, Mammogram

_Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]
PHANTOM_SIZE = (832, 640)
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
        mammograms = [load_mammogram(p) for p in images] if images else _phantoms(Path(folder))
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
        **_end_to_end(ends),
    }


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


def _end_to_end(ends: Sequence[tuple[Findings, Findings]]) -> dict[str, Any]:
    same = sum(len(a.lesions) == len(b.lesions) for a, b in ends)
    box, score = 0.0, 0.0
    for a, b in ends:
        if len(a.lesions) == len(b.lesions):
            for one, other in zip(a.lesions, b.lesions):
                box = max(box, float(np.abs(np.subtract(one.box, other.box)).max()))
                score = max(score, abs(one.score - other.score))
    return {
        "images_with_equal_lesion_count": same,
        "lesion_box_difference_px": round(box, 4),
        "lesion_score_difference": round(score, 6),
    }


def _middle(mammogram: Mammogram) -> Detections:
    """A box of a fifth of the breast in its middle."""
    x1, y1, x2, y2 = breast_box(mammogram.pixels)
    side = max(8.0, min(x2 - x1, y2 - y1) / 5)
    x, y = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    return Detections(np.array([[x, y, x + side, y + side]]), np.ones(1), mammogram.size, "given")


def _phantoms(folder: Path) -> list[Mammogram]:
    write_exams(folder, count=1, seed=7, format="png", config=PhantomConfig(size=PHANTOM_SIZE))
    return [load_mammogram(Path(item.path)) for item in read_dataset(f"phantom:{folder}")[:2]]
