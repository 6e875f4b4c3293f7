"""Trains a detector on any dataset with boxes: the function behind `mammoseg train detector`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mammoseg.bundle import hash_file, hash_patient
from mammoseg.config import from_dict, to_dict
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.datasets.splits import load_fold, patient_holdout, save_fold, select
from mammoseg.detection import DETECTORS, build_detector, described, lookup, network_config
from mammoseg.detection.anchors import kmeans_anchors
from mammoseg.detection.cache import CachedImage, cached_images
from mammoseg.detection.losses import LossConfig
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.detection.training import DetectionTask, SamplingConfig
from mammoseg.errors import TrainingError
from mammoseg.experiments.start import datasets_of, open_model
from mammoseg.preprocessing.augmentation import AugmentationConfig
from mammoseg.preprocessing.resize import FrameConfig, frame_transform
from mammoseg.training.checkpoint import Model, save_model
from mammoseg.training.loop import LoopConfig, fit
from mammoseg.training.seeding import seed_all
from mammoseg.types import DatasetItem, Fold, Size

log = logging.getLogger("mammoseg.experiments")

_OF_THE_RUN = ("fold_norm", "frozen_stages")
"""Network settings that say how a run trains it, and not what it computes: not taken over with `init`."""


@dataclass(frozen=True)
class DetectorTrainConfig:
    """Everything of a training run; the defaults are the published recipe (Sect. 4 of the paper, and YOLOv3's own).

    The paper states batch 32, rate 1e-3 divided by ten after 10k and 20k of 30k iterations, new sizes every 10 batches; it is
    silent on optimizer and warm-up: taken from darknet's own yolov3.cfg.

    arch: which detector of `mammoseg.detection.DETECTORS`. network: its settings, those that differ from its defaults.
    sizes: (H, W) of the inputs trained at. anchor_size: at which of them anchors are measured. scales: run at inference by
    default. weights: ImageNet or darknet weights for the backbone, or None. holdout: fraction of patients validated on where
    no fold is given; keep_out: patients on neither side. images: use so many training images only, 0 = all. cache: folder for
    decoded images.
    """

    arch: str = "yolov3"
    network: dict[str, Any] = field(default_factory=dict)
    frame: FrameConfig = field(default_factory=FrameConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    training: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=30_000,
            batch_size=32,
            optimizer="sgd",
            learning_rate=1e-3,
            weight_decay=5e-4,
            warmup_steps=1000,
            schedule="step",
            milestones=(10_000, 20_000),
            factor=0.1,
        )
    )
    sizes: tuple[Size, ...] = ((320, 160), (384, 192), (448, 224), (512, 256), (640, 320), (704, 352), (832, 416), (960, 480))
    resize_every: int = 10
    anchor_size: Size = (640, 320)
    validation_size: Size = (512, 256)
    scales: tuple[Size, ...] = ((320, 160), (512, 256), (640, 320), (832, 416), (960, 480))
    mean: float = 0.0
    std: float = 1.0
    xy_scale: float = 1.0
    weights: str | None = None
    holdout: float = 0.15
    fold_seed: int = 0
    keep_out: tuple[str, ...] = ()
    images: int = 0
    cache: str = "cache"
    cache_height: int = 1024

    def __post_init__(self) -> None:
        network_config(self.arch, self.network)  # raises ConfigError


def train_detector(
    config: DetectorTrainConfig, data: str, out: Path, fold: Path | None = None, init: Path | None = None, resume: bool = False
) -> Path:
    """Trains on the training side of `fold` of the dataset `data` and writes a model directory; returns it (`out/model`).

    fold: a fold file; None holds out `config.holdout` of the patients and writes `out/fold.json`. init: a model directory or
    bundle to start from: its network, anchors and frame are taken over. resume: go on with the run in `out`.
    Raises TrainingError, DatasetError, ConfigError.
    """
    items = read_dataset(data)
    split = _fold(config, items, out, fold)
    chosen = select(items, split, "train")
    frame = config.frame
    network: dict[str, Any] = {"arch": config.arch, "network": to_dict(network_config(config.arch, config.network))}
    start = open_model(init, "detector") if init else None
    started = from_dict(DetectorSpec, start.spec) if start else None
    if start is not None and started is not None:
        arch, settings = described(start.config)
        of_the_run = {k: v for k, v in network["network"].items() if k in _OF_THE_RUN and arch == config.arch}
        frame = started.frame
        network = {"arch": arch, "network": to_dict(network_config(arch, settings | of_the_run))}
    cached = {c.item.image_id: c for c in cached_images(items, Path(config.cache), frame, config.cache_height)}
    train = [cached[i.image_id] for i in chosen]
    validation = [cached[i.image_id] for i in select(items, split, "validation")]
    if config.images:
        train = [train[i] for i in np.random.default_rng(config.training.seed).permutation(len(train))[: config.images]]
    if not any(len(c.boxes) for c in train):
        raise TrainingError(f"{data}: no box on the training side of the fold; nothing to learn from")
    spec = started or _spec(config, train)
    seed_all(config.training.seed)
    model: Any = build_detector(network)
    if start is not None:
        model.load_state_dict(start.state)
    elif config.weights:
        _load_start(model, Path(config.weights))
    log.info(
        "%d training and %d validation images, %.1f million parameters",
        len(train), len(validation), sum(p.numel() for p in model.parameters()) / 1e6,
    )  # fmt: skip
    sampling = SamplingConfig(
        config.sizes, config.training.batch_size, config.resize_every, validation_size=config.validation_size
    )
    task = DetectionTask(model, train, validation, spec, config.loss, sampling, config.augmentation)
    result = fit(task, config.training, out, resume=resume)
    target = out / "model"
    if result.is_main:
        record = _record(data, split, train, start) | {
            "metrics": result.metrics,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "history": [{"step": s, **m} for s, m in result.history],
            "settings": to_dict(replace(config, weights=Path(config.weights).name if config.weights else None, cache="")),
        }
        save_model(target, "detector", result.state, network, to_dict(spec), record)
    return target


def _fold(config: DetectorTrainConfig, items: Sequence[DatasetItem], out: Path, fold: Path | None) -> Fold:
    if fold is not None:
        return load_fold(fold)
    made = patient_holdout(items, config.holdout, config.fold_seed, config.keep_out)
    save_fold(out / "fold.json", made)
    return made


def _spec(config: DetectorTrainConfig, train: Sequence[CachedImage]) -> DetectorSpec:
    """The predictor's settings, with anchors by k-means over the training boxes as they lie in the network's frame."""
    sizes = []
    for cached in train:
        boxes = frame_transform(np.asarray(cached.measured.box), config.anchor_size, config.frame.aspect).boxes(cached.boxes)
        sizes.append(boxes[:, 2:] - boxes[:, :2])
    wh = np.concatenate(sizes)
    wh = wh[(wh > 1).all(axis=1)]
    network = network_config(config.arch, config.network)
    strides: tuple[int, ...] = getattr(lookup(DETECTORS, config.arch), "strides", (8, 16, 32))
    count = len(strides) * int(getattr(network, "anchors_per_scale", 3))
    if len(np.unique(wh, axis=0)) >= count:
        anchors, quality = kmeans_anchors(wh, count)
        log.info("anchors (w, h) %s: mean best IoU %.3f", anchors.round(1).tolist(), quality)
    else:  # fewer boxes than anchors: spread them around what there is
        anchors = np.median(wh, axis=0)[None] * np.geomspace(0.4, 2.5, count)[:, None]
    return DetectorSpec(
        arch="-".join([config.arch, *filter(None, [getattr(network, "backbone", None)])]),
        anchors=tuple((float(round(w, 2)), float(round(h, 2))) for w, h in anchors),
        strides=strides,
        frame=config.frame,
        scales=config.scales,
        mean=config.mean,
        std=config.std,
        xy_scale=config.xy_scale,
    )


def _load_start(model: Any, path: Path) -> None:
    if not hasattr(model, "load_start"):
        raise TrainingError(f"{type(model).__name__} reads no weights to start from; give weights=null")
    model.load_start(path)
    log.info("starts from %s", path.name)


def _record(data: str, fold: Fold, train: Sequence[CachedImage], start: Model | None) -> dict[str, Any]:
    """What was trained on; what the model it started from had seen counts as seen."""
    seen = start.record if start else {}
    name = dataset_name(data)
    return {
        "dataset": name,
        "datasets": sorted({name, *datasets_of(seen)}),
        "fold": fold.name,
        "fold_hash": fold.content_hash,
        "n_images": len(train),
        "image_sha256": sorted({hash_file(Path(c.item.path)) for c in train}.union(seen.get("image_sha256", ()))),
        "patient_sha256": sorted({hash_patient(name, c.item.patient_id) for c in train}.union(seen.get("patient_sha256", ()))),
    }
