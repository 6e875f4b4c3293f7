"""Segmentation on true crops, cross-validated by patient, beside the ellipse inscribed in the same boxes.

Trained on all mass-like regions of the training patients of CDD-CESM, tested on those held-out images that have exactly one
region by the source's count, whatever its shape: there the box is that of the one mass meant.

A common start saves time and sees no test image: patients without any single-region image are never tested on, so one run
on them alone starts every fold, which then goes on with all its training patients. No model has seen a patient it is tested
on. Dice is measured in the native frame, after the same reconstruction as in the pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mammoseg.config import to_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.images import load_item
from mammoseg.datasets.splits import content_hash, patient_folds, save_fold
from mammoseg.evaluation.bootstrap import paired_means
from mammoseg.evaluation.overlap import dice, inscribed_ellipse
from mammoseg.experiments.single_region import is_test_image, never_tested, with_all_regions
from mammoseg.experiments.train_segmenter import SegmenterTrainConfig, train_segmenter
from mammoseg.io.atomic import write_atomic
from mammoseg.reconstruction import ReconstructionConfig, reconstruct
from mammoseg.runtime.torch_runtime import ModuleNetwork, build
from mammoseg.segmentation.predictor import Segmenter, read_spec
from mammoseg.training.checkpoint import load_model
from mammoseg.types import DatasetItem, Detections, Fold, Mammogram


@dataclass(frozen=True)
class CrossvalConfig:
    """k, seed: of the folds. shared: the run on patients that are never tested. fold: how each fold goes on from it."""

    k: int = 5
    seed: int = 0
    shared: SegmenterTrainConfig = field(default_factory=SegmenterTrainConfig)
    fold: SegmenterTrainConfig = field(default_factory=SegmenterTrainConfig)


def crossval_segmenter(config: CrossvalConfig, data: str, out: Path) -> dict[str, Any]:
    """Trains, tests, writes `out/crossval.json` and returns its content. Run again, it goes on where it was stopped.

    data: spec of a CDD-CESM folder, without options. The result holds every test mass with both Dice scores, their means and
    the paired 95% bootstrap interval of the mean difference, patients drawn with replacement; `complete` tells whether all
    folds are in it.
    """
    every = with_all_regions(data)
    teaching = {item.image_id for item in read_dataset(data)}
    folds = patient_folds(every, config.k, config.seed)
    tested = {item.image_id for item in every if is_test_image(item)}
    sides = _fold("shared", never_tested(data) & teaching, tested & teaching)
    started = _trained(config.shared, data, out / "shared", sides, None)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for number, fold in enumerate(folds, 1):
        sides = _fold(fold.name, set(fold.train) & teaching, set(fold.validation) & tested & teaching)
        model = _trained(config.fold, data, out / f"fold{number}", sides, started)
        held_out = [item for item in every if item.image_id in tested & set(fold.validation)]
        for row in score_true_crops(model, held_out):
            rows.append(row | {"fold": number})
        result = summarise(rows) | {"complete": number == len(folds), "config": to_dict(config), "rows": rows}
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "crossval.json", (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    return result


def _fold(name: str, train: Any, validation: Any) -> Fold:
    fold = Fold(name, tuple(sorted(train)), tuple(sorted(validation)))
    return Fold(name, fold.train, fold.validation, (), content_hash(fold))


def _trained(config: SegmenterTrainConfig, data: str, out: Path, fold: Fold, init: Path | None) -> Path:
    if (out / "model" / "model.json").is_file():
        return out / "model"
    out.mkdir(parents=True, exist_ok=True)
    save_fold(out / "fold.json", fold)
    return train_segmenter(config, data, out, out / "fold.json", init, resume=True)


def score_true_crops(model_directory: Path, items: Sequence[DatasetItem]) -> list[dict[str, Any]]:
    """Dice of the trained model and of the inscribed ellipse for the largest mass of each item, given its true box."""
    model = load_model(model_directory)
    network = ModuleNetwork(build("segmenter", model.config, {k: v.numpy() for k, v in model.state.items()}))
    segmenter = Segmenter(network, read_spec(model.spec))
    rows = []
    for item in items:
        mass = max(item.annotation.masses, key=lambda m: 0 if m.mask is None else int(m.mask.sum()))
        mammogram, (dx, dy) = without_padding(item)
        box = np.asarray(mass.box) - (dx, dy, dx, dy)
        detections = Detections(box[None], np.ones(1), mammogram.size)
        lesions = reconstruct(segmenter.segment(mammogram, box[None]), detections, mammogram, ReconstructionConfig())
        truth = (np.asarray(mass.mask, dtype=np.bool_), mass.origin_px)
        found = (lesions[0].mask, (lesions[0].origin_px[0] + dy, lesions[0].origin_px[1] + dx))
        rows.append(
            {
                "image_id": item.image_id,
                "patient_id": item.patient_id,
                "area_px": mass.attributes.get("area_px"),
                "mass_like": mass.attributes.get("mass_like"),
                "dice": dice(found, truth),
                "ellipse_dice": dice(inscribed_ellipse(mass.box), truth),
            }
        )
    return rows


def without_padding(item: DatasetItem) -> tuple[Mammogram, tuple[int, int]]:
    """The item's mammogram cut to its `content_box`, and (x, y) of the cut's corner in the stored image."""
    whole = load_item(item)
    x1, y1, x2, y2 = (int(v) for v in item.attributes.get("content_box", (0, 0, whole.size[1], whole.size[0])))
    return Mammogram(whole.pixels[y1:y2, x1:x2].copy(), item.image_id), (x1, y1)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of both scores and the paired interval, for all test masses and for the mass-like ones among them."""
    summary: dict[str, Any] = {}
    for name, chosen in (("all", list(rows)), ("mass_like", [r for r in rows if r["mass_like"]])):
        if not chosen:
            continue
        ours, ellipse = [r["dice"] for r in chosen], [r["ellipse_dice"] for r in chosen]
        gain = paired_means(ours, ellipse, [r["patient_id"] for r in chosen], n=10_000)
        summary[name] = {
            "n_masses": len(chosen),
            "n_patients": len({r["patient_id"] for r in chosen}),
            "dice": float(np.mean(ours)),
            "ellipse_dice": float(np.mean(ellipse)),
            "difference": gain.value,
            "difference_low": gain.low,
            "difference_high": gain.high,
        }
    return summary


def table(result: dict[str, Any]) -> str:
    """The summary as text, one line a group of test masses."""
    lines = [f"{'test masses':<12}{'n':>4}{'patients':>10}{'Dice':>8}{'ellipse':>9}{'difference, 95% interval':>28}"]
    for name in ("all", "mass_like"):
        if name in result:
            r = result[name]
            interval = "–" if r["difference_low"] is None else f"[{r['difference_low']:+.3f}, {r['difference_high']:+.3f}]"
            difference = f"{r['difference']:+.3f} {interval}"
            lines.append(
                f"{name:<12}{r['n_masses']:>4}{r['n_patients']:>10}{r['dice']:>8.3f}{r['ellipse_dice']:>9.3f}{difference:>28}"
            )
    return "\n".join(lines)
