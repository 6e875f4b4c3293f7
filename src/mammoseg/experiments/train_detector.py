"""Trains a detector on any dataset with boxes: the function behind `mammoseg train detector`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammoseg.config import from_dict, load_toml, to_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import load_fold, patient_holdout, save_fold, select, whole
from mammoseg.detection import DETECTORS, build_detector, described, lookup, network_config
from mammoseg.detection.anchors import kmeans_anchors, mean_best_iou
from mammoseg.detection.cache import CachedImage, cached_images
from mammoseg.detection.losses import LossConfig
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.detection.training import DetectionTask, SamplingConfig
from mammoseg.errors import ConfigError, TrainingError
from mammoseg.experiments.record import (
    ancestry,
    data_identity,
    file_hashes,
    learnt_from,
    outcome,
    run_identity,
    with_further,
)
from mammoseg.experiments.start import (
    check_place,
    check_run_names,
    check_runs_fit,
    datasets_of,
    open_model,
    refuse_contradictions,
    stage_settings,
    tell_changes,
)
from mammoseg.preprocessing.augmentation import AugmentationConfig
from mammoseg.preprocessing.resize import FrameConfig, frame_transform
from mammoseg.training.checkpoint import Model, save_model
from mammoseg.training.devices import wait_for_all
from mammoseg.training.identity import admit
from mammoseg.training.loop import LoopConfig, fit
from mammoseg.training.seeding import seed_all
from mammoseg.types import Size

log = logging.getLogger("mammoseg.experiments")

_OF_THE_RUN = ("fold_norm", "frozen_stages")
"""Network settings that say how a run trains it, and not what it computes: not taken over with `init`."""


@dataclass(frozen=True)
class DetectorStage:
    """A run that comes before, and whose model the next one goes on from.

    name: of its folder in OUT. also: whether it learns from the further datasets as well. settings: those that differ from the
    settings it stands in.
    """

    name: str
    also: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DetectorTrainConfig:
    """Everything of a training run; the defaults are the published recipe (Sect. 4 of the paper, and YOLOv3's own).

    The paper states batch 32, rate 1e-3 divided by ten after 10k and 20k of 30k iterations, new sizes every 10 batches; it is
    silent on optimizer and warm-up: taken from darknet's own yolov3.cfg.

    arch: which detector of `mammoseg.detection.DETECTORS`. network: its settings, those that differ from its defaults.
    sizes: (H, W) of the inputs trained at. anchor_size: at which of them anchors are measured. scales: run at inference by
    default. weights: ImageNet or darknet weights for the backbone, or None. holdout: fraction of patients validated on where
    no fold is given; keep_out: patients on neither side. images: use so many training images only, 0 = all. cache: folder for
    decoded images. also_repeat: how often an image of the further datasets comes for one of the first. also_zoom: how large
    these are shown, for datasets whose masses are larger to the breast than the first's. keep_start: share of
    the weights a run starts from in those it ends with (Wortsman et al., CVPR 2022: what was learnt before holds better on
    other data so); none for a run that starts from no detector. before: runs that come first, one after the other; `weights`
    are the start of the first.
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
    also_repeat: int = 1
    also_zoom: float = 1.0
    keep_start: float = 0.0
    before: tuple[DetectorStage, ...] = ()

    def __post_init__(self) -> None:
        network_config(self.arch, self.network)  # raises ConfigError
        check_run_names([stage.name for stage in self.before])
        check_runs_fit({name: _bound(run) for name, run in (*((s.name, self.of_stage(s)) for s in self.before), ("", self))})
        if not 0.0 <= self.keep_start < 1.0:
            raise ConfigError(f"keep_start: expected a number from 0 to below 1, got {self.keep_start}")
        if self.also_repeat < 1:
            raise ConfigError(f"also_repeat: expected 1 or more, got {self.also_repeat}")
        if not 0.1 <= self.also_zoom <= 10.0:
            raise ConfigError(f"also_zoom: expected a factor from 0.1 to 10, got {self.also_zoom}")
        coarsest = max(_strides(self.arch))
        for height, width in (*self.sizes, self.validation_size):
            if height % coarsest or width % coarsest or min(height, width) < coarsest:
                raise ConfigError(f"sizes: expected sides that are multiples of {coarsest}, got {width}x{height} (WxH)")

    def of_stage(self, stage: DetectorStage) -> DetectorTrainConfig:
        """The settings of `stage`: these with its own over them. Raises ConfigError on one that is not known."""
        where = f"before {stage.name}"
        return from_dict(
            DetectorTrainConfig, stage_settings(self.network, stage.settings, where), where, replace(self, before=())
        )


def read_settings(path: Path | None, sets: Sequence[str] = (), init: Path | None = None) -> DetectorTrainConfig:
    """The settings of a run: defaults, what the model at `init` says of itself, the TOML file `path`, `sets`; the last wins."""
    return load_toml(DetectorTrainConfig, path, sets, _of_model(open_model(init, "detector")) if init else None)


def train_detector(
    config: DetectorTrainConfig,
    data: str,
    out: Path,
    fold: Path | None = None,
    init: Path | None = None,
    resume: bool = False,
    also: Sequence[tuple[str, Path | None]] = (),
) -> Path:
    """Trains on the training side of `fold` of the dataset `data` and writes a model directory; returns it (`out/model`).

    fold: a fold file; None holds out `config.holdout` of the patients; `out/fold.json` is a copy of either. init: a model
    directory or bundle to start from, with its anchors; `config` must have its network and preprocessing, as `read_settings`
    takes them over. resume: go on with the run in `out`, which must be the same. also: further datasets to train on, each with
    a fold file whose training side is taken (None: all of it); nothing of them is validated on. Runs that `config.before` names
    are made first, each in its folder of `out`. Raises TrainingError, DatasetError, ConfigError.
    """
    if config.before:
        check_place(out, [stage.name for stage in config.before], resume)
        for further, its_fold in also:  # what is missing is found out now, and not after the first run
            items = read_dataset(further)
            select(items, load_fold(its_fold) if its_fold else whole(items), "train")
    for number, stage in enumerate(config.before):
        begins = config.of_stage(stage)
        begins = replace(begins, weights=None) if number else begins
        log.info("%s: run %d of %d", stage.name, number + 1, len(config.before) + 1)
        init = _train(begins, data, out / stage.name, fold, init, resume, also if stage.also else ())
    last = replace(config, before=(), weights=None) if config.before else config
    return _train(last, data, out, fold, init, resume, also)


def _train(
    config: DetectorTrainConfig,
    data: str,
    out: Path,
    fold: Path | None,
    init: Path | None,
    resume: bool,
    also: Sequence[tuple[str, Path | None]],
) -> Path:
    """One run."""
    items = read_dataset(data)
    split = load_fold(fold) if fold else patient_holdout(items, config.holdout, config.fold_seed, config.keep_out)
    chosen, held_out = select(items, split, "train"), select(items, split, "validation")
    start = open_model(init, "detector") if init else None
    _check_start(config, start)
    hashes = file_hashes(items)
    settings = _settings(config)
    about_data: dict[str, Any] = dict(data_identity(data, split, [*chosen, *held_out], hashes))
    others = [_further(config, *one) for one in also]
    if others:
        about_data["also"] = [other.identity for other in others]
    decisive = {k: v for k, v in settings.items() if k not in ("training", "weights", "cache", "before")}
    identity = run_identity(decisive, config.training, about_data, start, config.weights)
    admit(out, identity, resume)
    save_fold(out / "fold.json", split)
    cached = {c.item.image_id: c for c in cached_images(items, Path(config.cache), config.frame, config.cache_height, hashes)}
    train = [cached[i.image_id] for i in chosen]
    if config.images:
        train = [train[i] for i in np.random.default_rng(config.training.seed).permutation(len(train))[: config.images]]
    own = [c.item for c in train]
    train += [replace(c, zoom=config.also_zoom) for other in others for c in other.images * config.also_repeat]
    if not any(len(c.boxes) for c in train):
        raise TrainingError(f"{data}: no box on the training side of the fold; nothing to learn from")
    sizes = _box_sizes(config, train)
    spec = replace(from_dict(DetectorSpec, start.spec), scales=config.scales) if start else _spec(config, sizes)
    quality = mean_best_iou(sizes, np.asarray(spec.anchors))
    log.info("anchors (w, h) %s: mean best IoU %.3f", [list(a) for a in spec.anchors], quality)
    seed_all(config.training.seed)
    network = {"arch": config.arch, "network": settings["network"]}
    model: Any = build_detector(network)
    if start is not None:
        model.load_state_dict(start.state)
    elif config.weights:
        model.load_start(Path(config.weights))
        log.info("starts from %s", Path(config.weights).name)
    log.info(
        "%d training and %d validation images, %.1f million parameters",
        len(train), len(held_out), sum(p.numel() for p in model.parameters()) / 1e6,
    )  # fmt: skip
    sampling = SamplingConfig(
        config.sizes, config.training.batch_size, config.resize_every, validation_size=config.validation_size
    )
    validation = [cached[i.image_id] for i in held_out]
    task = DetectionTask(model, train, validation, spec, config.loss, sampling, config.augmentation)
    result = fit(task, config.training, out, resume=resume, identity=identity)
    if result.is_main:
        record = learnt_from(data, split, own, hashes, start)
        record = with_further(record, [other.record for other in others]) | ancestry(start, config.weights)
        record |= outcome(result) | {"metrics": result.metrics, "n_images": len(train), "settings": settings}
        state = result.state
        if start is not None and config.keep_start:
            state = mixed(start.state, result.state, config.keep_start)
            record["metrics"] = measured(task, model, state)
            record["metrics_of_the_run"] = result.metrics
        record["anchors"] = {"measured_at": list(config.anchor_size), "mean_best_iou": round(quality, 4)}
        if start is not None:
            record["start"] = f"a detector trained before ({', '.join(datasets_of(start.record)) or 'unknown data'})"
        save_model(out / "model", "detector", state, network, to_dict(spec), record)
    wait_for_all()
    return out / "model"


def mixed(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`share` of the start's weights with the rest of the end's, value by value; whole numbers are the end's."""
    return {k: torch.lerp(v, start[k].to(v.dtype), share) if v.is_floating_point() else v for k, v in end.items()}


def measured(task: DetectionTask, model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, float]:
    """The validation figures of `model` with the weights `state`, which it keeps."""
    model.load_state_dict(state)
    return task.validate(model.eval())


@dataclass(frozen=True)
class _Further:
    """What a further dataset gives. identity: as `data_identity`. record: as `learnt_from`."""

    images: list[CachedImage]
    identity: dict[str, str]
    record: dict[str, Any]


def _further(config: DetectorTrainConfig, data: str, fold: Path | None) -> _Further:
    items = read_dataset(data)
    split = load_fold(fold) if fold else whole(items)
    chosen = select(items, split, "train")
    hashes = file_hashes(chosen)
    images = cached_images(chosen, Path(config.cache), config.frame, config.cache_height, hashes)
    identity = data_identity(data, split, chosen, hashes)
    return _Further(images, identity, learnt_from(data, split, chosen, hashes, None))


def _settings(config: DetectorTrainConfig) -> dict[str, Any]:
    """The settings as a record holds them: the network's in full, of files their names alone."""
    network = to_dict(network_config(config.arch, config.network))
    return to_dict(replace(config, network=network, weights=Path(config.weights).name if config.weights else None, cache=""))


def _of_model(start: Model) -> dict[str, Any]:
    """What a model says of itself, as settings of a run that goes on from it."""
    size = start.record.get("settings", {}).get("anchor_size")
    scales = to_dict(from_dict(DetectorSpec, start.spec))["scales"]
    return _fixed(start) | {"scales": scales} | ({"anchor_size": size} if size else {})


def _fixed(start: Model) -> dict[str, Any]:
    """The part of it that its weights stand for, and that cannot be changed."""
    arch, values = described(start.config)
    network = {k: v for k, v in to_dict(network_config(arch, values)).items() if k not in _OF_THE_RUN}
    spec = to_dict(from_dict(DetectorSpec, start.spec))
    return {"arch": arch, "network": network} | {k: spec[k] for k in ("frame", "mean", "std", "xy_scale")}


def _bound(config: DetectorTrainConfig) -> dict[str, Any]:
    """The settings that weights go with, as a record holds them."""
    network = to_dict(network_config(config.arch, config.network))
    return {
        "arch": config.arch,
        "network": {k: v for k, v in network.items() if k not in _OF_THE_RUN},
        "frame": to_dict(config.frame),
        **{k: getattr(config, k) for k in ("mean", "std", "xy_scale")},
    }


def _check_start(config: DetectorTrainConfig, start: Model | None) -> None:
    """Network and preprocessing must be those the weights were trained with; what else changes is told."""
    kind = lookup(DETECTORS, config.arch)
    if config.weights and not hasattr(kind, "load_start"):
        raise TrainingError(f"{kind.__name__} reads no weights to start from; give weights=null")
    if hasattr(kind, "training_loss") and config.training.devices > 1:
        raise ConfigError(f"training.devices: {config.arch} is trained on one device, got {config.training.devices}")
    if start is None:
        return
    if config.weights:
        raise ConfigError("weights: a run starts from them or from the model that --init names; leave one of them out")
    here = _settings(config)
    here["network"] = {k: v for k, v in here["network"].items() if k not in _OF_THE_RUN}
    fixed = _fixed(start)
    refuse_contradictions(start, fixed, {k: here[k] for k in fixed})
    taken = _of_model(start)
    tell_changes(start, taken, {k: here[k] for k in taken})


def _strides(arch: str) -> tuple[int, ...]:
    return tuple(getattr(lookup(DETECTORS, arch), "strides", (8, 16, 32)))


def _box_sizes(config: DetectorTrainConfig, train: Sequence[CachedImage]) -> NDArray[np.float64]:
    """(w, h) f64[N, 2] px of the training boxes as they lie in the network's frame at `anchor_size`."""
    sizes = []
    for cached in train:
        boxes = frame_transform(np.asarray(cached.measured.box), config.anchor_size, config.frame.aspect).boxes(cached.boxes)
        sizes.append((boxes[:, 2:] - boxes[:, :2]) * cached.zoom)
    wh = np.concatenate(sizes)
    wh = wh[(wh > 1).all(axis=1)]
    if not len(wh):
        raise TrainingError(f"no training box is larger than a pixel at anchor_size {config.anchor_size} (H, W)")
    return wh


def _spec(config: DetectorTrainConfig, sizes: NDArray[np.float64]) -> DetectorSpec:
    """The predictor's settings, with anchors by k-means over the training boxes' `sizes`."""
    network = network_config(config.arch, config.network)
    strides = _strides(config.arch)
    count = len(strides) * int(getattr(network, "anchors_per_scale", 3))
    if len(np.unique(sizes, axis=0)) >= count:
        anchors, _ = kmeans_anchors(sizes, count)
    else:  # fewer boxes than anchors: spread them around what there is
        anchors = np.median(sizes, axis=0)[None] * np.geomspace(0.4, 2.5, count)[:, None]
    return DetectorSpec(
        arch="-".join([config.arch, *filter(None, [getattr(network, "backbone", None)])]),
        anchors=tuple((float(round(w, 2)), float(round(h, 2))) for w, h in anchors),
        strides=strides,
        frame=config.frame,
        scales=config.scales,
        mean=config.mean,
        std=config.std,
        xy_scale=config.xy_scale,
        layout=getattr(lookup(DETECTORS, config.arch), "layout", "yolo"),
    )
