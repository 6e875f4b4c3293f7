"""What the trained networks find: boxes at every scale, outlines of true and of detected boxes, masks of whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mammoseg.config import from_dict
from mammoseg.datasets.images import load_item
from mammoseg.detection.predictor import Detector, DetectorSpec
from mammoseg.evaluation.froc import froc
from mammoseg.evaluation.inputs import Pair
from mammoseg.evaluation.matching import Criterion, rank
from mammoseg.evaluation.measures import true_boxes
from mammoseg.experiments.start import open_model
from mammoseg.experiments.study.store import detections, findings_of
from mammoseg.fusion import FusionConfig, candidates, fuse
from mammoseg.reconstruction import ReconstructionConfig, reconstruct
from mammoseg.runtime.torch_runtime import ModuleNetwork, build
from mammoseg.segmentation.predictor import Segmenter, read_spec
from mammoseg.types import DatasetItem, Detections, Findings, Lesion, Mammogram, Size


def device() -> str:
    """Where networks are run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def scale_name(scale: Size) -> str:
    """As the paper writes it, W×H: "320x640" for (640, 320)."""
    return f"{scale[1]}x{scale[0]}"


def read_image(item: DatasetItem) -> Mammogram:
    """A prepared image, with the spacing its record has."""
    return replace(load_item(item), spacing_mm=item.spacing_mm)


def detect_all(
    model: Path, items: Sequence[DatasetItem], fusion: FusionConfig, score_min: float, provenance: dict[str, Any]
) -> Iterator[tuple[str, Findings]]:
    """(name of the scale, findings) of every image at every scale of the model: candidates after NMS, no lesions."""
    loaded = open_model(model, "detector")
    network = build("detector", loaded.config, {k: v.numpy() for k, v in loaded.state.items()})
    detector = Detector(ModuleNetwork(network, device()), from_dict(DetectorSpec, loaded.spec))
    for item in items:
        found = detector.detect(read_image(item), None, score_min, fusion.nms_iou)
        for scale, one in zip(detector.spec.scales, found, strict=True):
            name = scale_name(scale)
            yield name, findings_of(item, (), one.best_first(), provenance | {"setup": f"scale {name}"})


def fuse_all(per_scale: Sequence[Sequence[Pair]], fusion: FusionConfig, provenance: dict[str, Any]) -> Iterator[Findings]:
    """The fused boxes of every image as candidates. per_scale: for each scale the images' pairs, in one order."""
    for pairs in zip(*per_scale, strict=True):
        fused = fuse([detections(p) for p in pairs], fusion)
        yield findings_of(pairs[0].truth, (), fused, provenance)


def open_segmenter(model: Path) -> Segmenter:
    """A trained network on crops."""
    loaded = open_model(model, "segmenter")
    network = build("segmenter", loaded.config, {k: v.numpy() for k, v in loaded.state.items()})
    return Segmenter(ModuleNetwork(network, device()), read_spec(loaded.spec))


def outline_true_boxes(
    segmenter: Segmenter, items: Sequence[DatasetItem], config: ReconstructionConfig, provenance: dict[str, Any]
) -> Iterator[Findings]:
    """Outlines of the masses whose boxes are given (Table 4)."""
    for item in items:
        masses = [m for m in item.annotation.masses if m.mask is not None]
        boxes = np.array([m.box for m in masses], dtype=np.float64).reshape(-1, 4)
        given = Detections(boxes, np.ones(len(boxes)), item.annotation.size, "given")
        mammogram = read_image(item)
        lesions = reconstruct(segmenter.segment(mammogram, boxes), given, mammogram, config)
        yield findings_of(item, lesions, _of_lesions(lesions, item), provenance)


def outline_detected(
    segmenter: Segmenter,
    per_scale: Sequence[Sequence[Pair]],
    fusion: FusionConfig,
    config: ReconstructionConfig,
    provenance: dict[str, Any],
) -> Iterator[Findings]:
    """Outlines of what the detector found, fused by `fusion` (Table 5, two-stage): lesions and further candidates."""
    for pairs in zip(*per_scale, strict=True):
        item = pairs[0].truth
        found = [detections(p) for p in pairs]
        fused = fuse(found, fusion)
        mammogram = read_image(item)
        lesions = reconstruct(segmenter.segment(mammogram, fused.boxes), fused, mammogram, config)
        everything = candidates(_of_lesions(lesions, item), found, fusion, fused.boxes)
        yield findings_of(item, lesions, everything, provenance)


def choose_operating_point(
    per_scale: Sequence[Sequence[Pair]], fusion: FusionConfig, lambdas: Sequence[float], fpi_max: float, hit_iou: float
) -> dict[str, Any]:
    """The λ and the score threshold that find most masses at no more than `fpi_max` false positives an image.

    Of equals the fewer false positives, then the first λ. Where even the best box is too much, the threshold is 1, the highest.
    Returns {"lam", "lesion_score_min", "tpr", "fpi"} with every λ's own under "tried".
    """
    tried = []
    for lam in lambdas:
        fused = [fuse([detections(p) for p in pairs], replace(fusion, lam=lam)) for pairs in zip(*per_scale, strict=True)]
        truth = [true_boxes(p) for p in per_scale[0]]
        ranked = rank([(d.boxes, d.scores, t) for d, t in zip(fused, truth, strict=True)], Criterion("iou", hit_iou))
        point = {"lam": lam, "lesion_score_min": 1.0, "tpr": 0.0, "fpi": 0.0}
        if ranked.n_truth and len(ranked.scores):
            curve = froc(ranked.counts())
            for threshold, fpi, tpr in zip(curve.thresholds, curve.fpi, curve.tpr, strict=True):
                if fpi <= fpi_max and tpr > point["tpr"]:
                    point |= {"lesion_score_min": float(threshold), "tpr": float(tpr), "fpi": float(fpi)}
        tried.append(point)
    best = max(tried, key=lambda p: (p["tpr"], -p["fpi"]))
    return {**best, "tried": tried}


def _of_lesions(lesions: Sequence[Lesion], item: DatasetItem) -> Detections:
    boxes = np.array([x.box for x in lesions], dtype=np.float64).reshape(-1, 4)
    return Detections(boxes, np.array([x.score for x in lesions], dtype=np.float64), item.annotation.size, "lesions")
