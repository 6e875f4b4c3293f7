"""Training of the segmentation network on the masks of any data set (paper, Sect. 4.2), with jittered crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mammoseg.config import from_dict, load_toml, to_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import content_hash, load_fold, save_fold, select, whole
from mammoseg.errors import ConfigError, TrainingError
from mammoseg.experiments.record import ancestry, data_identity, file_hashes, learnt_from, outcome, run_identity
from mammoseg.experiments.single_region import never_tested
from mammoseg.experiments.start import (
    check_place,
    check_run_names,
    check_runs_fit,
    open_model,
    refuse_contradictions,
    stage_settings,
    tell_changes,
)
from mammoseg.preprocessing.crops import CropConfig, JitterConfig, jitter_box, turn
from mammoseg.reconstruction import ReconstructionConfig
from mammoseg.segmentation import build_segmenter, network_class, network_config
from mammoseg.segmentation.losses import SegmentationLossConfig, deep_supervision_loss
from mammoseg.segmentation.predictor import Output, SegmenterSpec, merge_outputs, normalise, read_spec
from mammoseg.segmentation.regions import Region, load_regions, true_crop
from mammoseg.segmentation.vgg import load_vgg
from mammoseg.training.checkpoint import Model, save_model
from mammoseg.training.devices import wait_for_all
from mammoseg.training.identity import admit
from mammoseg.training.loop import LoopConfig, fit
from mammoseg.training.seeding import batch_indices, generator
from mammoseg.types import BoolMask, DatasetItem, FloatImage, Fold

log = logging.getLogger("mammoseg.experiments")


@dataclass(frozen=True)
class Stage:
    """A run that comes before, and whose model the next one goes on from.

    name: of its folder in OUT. patients: "all" of the training side, or those of CDD-CESM alone that cross-validation never
    tests on. settings: those that differ from the settings it stands in.
    """

    name: str
    patients: Literal["all", "never_tested"] = "all"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmenterTrainConfig:
    """All that a training run is made of; the defaults are the paper's where it speaks.

    Paper: crops of 256 × 256, equalised; batches of 4, Adam, Dice loss, an encoder from ImageNet. arch: which network of
    `mammoseg.segmentation.NETWORKS`. network: its settings, those that differ from its defaults.
    backbone_weights: safetensors file of torchvision's VGG19 or VGG16 features, "" starts at random. spec: what goes round
    the trained network (its `crop` is replaced by `crop`). jitter: how true boxes are disturbed. symmetries: draw one of the
    square's eight. validation_crops: at most so many true crops are measured in validation. before: runs that come first, one
    after the other; `backbone_weights` are the start of the first.
    """

    arch: str = "unetpp"
    network: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str = ""
    crop: CropConfig = field(default_factory=CropConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    symmetries: bool = True
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)
    spec: SegmenterSpec = field(default_factory=SegmenterSpec)
    validation_crops: int = 48
    before: tuple[Stage, ...] = ()
    training: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4000, batch_size=4, optimizer="adam", learning_rate=1e-4, weight_decay=0.0, ema_decay=0.0
        )
    )

    def __post_init__(self) -> None:
        network_config(self.arch, self.network)  # raises ConfigError
        if self.spec.crop not in (CropConfig(), self.crop):
            raise ConfigError("spec.crop: crops of training and inference are the same; set crop alone")
        check_run_names([stage.name for stage in self.before])
        check_runs_fit({name: _bound(run) for name, run in (*((s.name, self.of_stage(s)) for s in self.before), ("", self))})

    def of_stage(self, stage: Stage) -> SegmenterTrainConfig:
        """The settings of `stage`: these with its own over them. Raises ConfigError on one that is not known."""
        where = f"before {stage.name}"
        return from_dict(
            SegmenterTrainConfig, stage_settings(self.network, stage.settings, where), where, replace(self, before=())
        )


class SegmenterTask:
    """What the training loop asks of segmentation: batches of jittered crops, the loss, Dice on true crops."""

    def __init__(
        self, model: nn.Module, config: SegmenterTrainConfig, train: Sequence[Region], validation: Sequence[Region] = ()
    ) -> None:
        self.model = model
        self.config = config
        self.output = output_of(config)
        self.train = list(train)
        self.validation = list(validation)[: config.validation_crops]

    def sample(self, region: Region, rng: np.random.Generator) -> tuple[FloatImage, BoolMask]:
        """One training crop: network input f32[s, s] and truth bool[s, s]."""
        box = jitter_box(region.box, self.config.jitter, rng)
        symmetry = int(rng.integers(8)) if self.config.symmetries else 0
        grey, truth = true_crop(region, box, self.config.crop)
        return np.asarray(turn(grey, symmetry), dtype=np.float32), np.asarray(turn(truth, symmetry), dtype=np.bool_)

    def batch(self, step: int, places: range, seed: int) -> dict[str, Tensor]:
        """`image` f32[B, C, s, s] and `truth` f32[B, 1, s, s]: the crops at `places` of batch number `step`."""
        indices = batch_indices(len(self.train), step, self.config.training.batch_size, seed)
        pairs = [self.sample(self.train[indices[k]], generator(seed, step, 0, k)) for k in places]
        images = normalise(np.stack([p[0] for p in pairs]), self.config.spec)
        truth = np.stack([p[1] for p in pairs])[:, None].astype(np.float32)
        return {"image": torch.from_numpy(images), "truth": torch.from_numpy(truth)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss`, and the hard Dice of the deepest output, averaged over the batch's crops."""
        logits = model(batch["image"])
        own = getattr(self.model, "training_loss", None)
        if own is None:
            parts = {"loss": deep_supervision_loss(logits, batch["truth"], self.config.loss)}
        else:
            parts = own(logits, batch["image"], batch["truth"], self.config.loss)
        with torch.no_grad():
            found, truth = (logits[-1] >= 0).flatten(1), (batch["truth"] > 0.5).flatten(1)
            dice = 2 * (found & truth).sum(1) / (found.sum(1) + truth.sum(1)).clamp(min=1)
        return {**parts, "dice": dice.mean()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean Dice on true crops of the validation side, in the crop's frame; empty without one."""
        if not self.validation:
            return {}
        device = next(model.parameters()).device
        scores = []
        for region in self.validation:
            grey, truth = true_crop(region, region.box, self.config.crop)
            image = torch.from_numpy(normalise(grey[None], self.config.spec)).to(device)
            logits = [one.float().cpu().numpy() for one in model(image)]
            found = merge_outputs(logits, self.output)[0] >= ReconstructionConfig().threshold
            scores.append(2 * float((found & truth).sum()) / max(1, int(found.sum()) + int(truth.sum())))
        return {"dice": float(np.mean(scores))}


def output_of(config: SegmenterTrainConfig) -> Output:
    """Which output is the answer: as configured, where that is not the default, else as the network's class says."""
    chosen: Output = config.spec.output
    return getattr(network_class(config.arch), "output", chosen) if chosen == SegmenterSpec().output else chosen


def read_settings(path: Path | None, sets: Sequence[str] = (), init: Path | None = None) -> SegmenterTrainConfig:
    """The settings of a run: defaults, what the model at `init` says of itself, the TOML file `path`, `sets`; the last wins."""
    return load_toml(SegmenterTrainConfig, path, sets, _of_model(open_model(init, "segmenter")) if init else None)


def train_segmenter(
    config: SegmenterTrainConfig,
    data: str,
    out: Path,
    fold: Path | None = None,
    init: Path | None = None,
    resume: bool = False,
) -> Path:
    """Trains a segmenter and returns its model directory, `out/model`.

    data: spec of a data set with masks. fold: file of a fold of it; its train side is learnt from, its validation side
    measured; without one everything is learnt from; `out/fold.json` says which. init: model directory or bundle to start
    from; `config` must have its network, as `read_settings` takes it over. resume: go on with the run in `out`, which must be
    the same. Runs that `config.before` names are made first, each in its folder of `out`. Raises TrainingError, ConfigError or
    DatasetError.
    """
    items = read_dataset(data)
    sides = load_fold(fold) if fold else whole(items)
    if config.before:
        check_place(out, [stage.name for stage in config.before], resume)
    for number, stage in enumerate(config.before):
        begins = config.of_stage(stage)
        begins = replace(begins, backbone_weights="") if number else begins
        its_sides = _without_tested(sides, data) if stage.patients == "never_tested" else sides
        log.info("%s: run %d of %d", stage.name, number + 1, len(config.before) + 1)
        init = _train(begins, (data, items), out / stage.name, its_sides, init, resume)
    last = replace(config, before=(), backbone_weights="") if config.before else config
    return _train(last, (data, items), out, sides, init, resume)


def _train(
    config: SegmenterTrainConfig,
    source: tuple[str, Sequence[DatasetItem]],
    out: Path,
    sides: Fold,
    init: Path | None,
    resume: bool,
) -> Path:
    """One run. source: the data set's spec and its items."""
    data, items = source
    chosen, held_out = select(items, sides, "train"), select(items, sides, "validation")
    start = open_model(init, "segmenter") if init else None
    if start is not None:
        _check_start(config, start)
    hashes = file_hashes([*chosen, *held_out])
    settings = _settings(config)
    about_data = data_identity(data, sides, [*chosen, *held_out], hashes)
    decisive = {k: v for k, v in settings.items() if k not in ("training", "backbone_weights")}
    identity = run_identity(decisive, config.training, about_data, start, config.backbone_weights)
    admit(out, identity, resume)
    save_fold(out / "fold.json", sides)
    train = load_regions(chosen, config.crop, config.jitter)
    if not train:
        raise TrainingError(f"{data}: no mass with a mask to learn from; segmentation needs masks, boxes do not suffice")
    validation = load_regions(held_out, config.crop, config.jitter)
    torch.manual_seed(config.training.seed)
    description = {"arch": config.arch, "network": settings["network"]}
    model = build_segmenter(description)
    words = _fill(model, config, start)
    task = SegmenterTask(model, config, train, validation)
    result = fit(task, config.training, out, resume=resume, identity=identity)
    if result.is_main:
        used = {r.image_id for r in train}
        record = learnt_from(data, sides, [i for i in chosen if i.image_id in used], hashes, start)
        record |= (
            ancestry(start, config.backbone_weights)
            | outcome(result)
            | {
                "n_regions": len(train),
                "n_patients": len({r.patient_id for r in train}),
                "start": words,
                "config": settings,
                "metrics": {f"validation_{k}_true_crops": v for k, v in result.metrics.items()},
            }
        )
        save_model(out / "model", "segmenter", result.state, description, settings["spec"], record)
    wait_for_all()
    return out / "model"


def _without_tested(sides: Fold, data: str) -> Fold:
    """The fold with those patients alone on its training side that cross-validation never tests on."""
    free = never_tested(data)
    fold = Fold(f"{sides.name}-never-tested", tuple(i for i in sides.train if i in free), sides.validation, sides.test)
    return replace(fold, content_hash=content_hash(fold))


def _settings(config: SegmenterTrainConfig) -> dict[str, Any]:
    """The settings as a record holds them: the network's in full, of files their names alone, one crop."""
    spec = replace(config.spec, crop=config.crop, output=output_of(config))
    name = Path(config.backbone_weights).name if config.backbone_weights else ""
    network = to_dict(network_config(config.arch, config.network))
    return to_dict(replace(config, network=network, backbone_weights=name, spec=spec))


def _of_model(start: Model) -> dict[str, Any]:
    """What a model says of itself, as settings of a run that goes on from it."""
    spec = to_dict(read_spec(start.spec))
    return {**_network(start), "crop": spec.pop("crop"), "spec": spec}


def _network(start: Model) -> dict[str, Any]:
    arch = str(start.config.get("arch"))
    return {"arch": arch, "network": to_dict(network_config(arch, start.config.get("network", {})))}


def _bound(config: SegmenterTrainConfig) -> dict[str, Any]:
    """The settings that weights go with."""
    network = to_dict(network_config(config.arch, config.network))
    return {"arch": config.arch, "network": network, **{k: getattr(config.spec, k) for k in ("channels", "mean", "std")}}


def _check_start(config: SegmenterTrainConfig, start: Model) -> None:
    """Network and normalisation must be those the weights were trained with; crops may grow or shrink, and that is told."""
    if config.backbone_weights:
        raise ConfigError("backbone_weights: a run starts from them or from the model that --init names; leave one of them out")
    fixed = ("channels", "mean", "std")
    here, spec = _settings(config), to_dict(read_spec(start.spec))
    refuse_contradictions(
        start,
        {**_network(start), "spec": {k: spec[k] for k in fixed}},
        {"arch": config.arch, "network": here["network"], "spec": {k: here["spec"][k] for k in fixed}},
    )
    tell_changes(start, spec, here["spec"])


def _fill(model: nn.Module, config: SegmenterTrainConfig, start: Model | None) -> str:
    """Fills the model and says in words with what."""
    if start is not None:
        model.load_state_dict(start.state)
        record = start.record
        return f"a segmenter trained before ({record.get('dataset', 'unknown data')}; {record.get('start', 'unknown start')})"
    if not config.backbone_weights:
        return "random"
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ConfigError("backbone_weights: this network has no backbone to load them into")
    return load_vgg(backbone, Path(config.backbone_weights))
