"""Training of the segmentation network on the masks of any data set (paper, Sect. 4.2), with jittered crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mammoseg.bundle import hash_file, hash_patient
from mammoseg.config import to_dict
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.datasets.splits import load_fold, select
from mammoseg.errors import ConfigError, TrainingError
from mammoseg.experiments.start import datasets_of, open_model
from mammoseg.io.load import load_mammogram
from mammoseg.preprocessing.crops import (
    CropConfig,
    JitterConfig,
    cut_crop,
    jitter_box,
    jitter_reach,
    network_input,
    truth_crop,
    turn,
)
from mammoseg.reconstruction import ReconstructionConfig
from mammoseg.segmentation import build_segmenter
from mammoseg.segmentation.losses import SegmentationLossConfig, deep_supervision_loss
from mammoseg.segmentation.predictor import SegmenterSpec, merge_outputs, normalise
from mammoseg.segmentation.unetpp import UNetPlusPlusConfig
from mammoseg.segmentation.vgg import load_vgg
from mammoseg.training.checkpoint import save_model
from mammoseg.training.loop import LoopConfig, fit
from mammoseg.training.seeding import batch_indices, generator
from mammoseg.types import BoolMask, Boxes, DatasetItem, FloatImage


@dataclass(frozen=True)
class SegmenterTrainConfig:
    """All that a training run is made of; the defaults are the paper's where it speaks.

    Paper: crops of 256 × 256, equalised; batches of 4, Adam, Dice loss, an encoder from ImageNet. network: its shape.
    backbone_weights: safetensors file of torchvision's VGG19 or VGG16 features, "" starts at random. spec: what goes round
    the trained network (its `crop` is replaced by `crop`). jitter: how true boxes are disturbed. symmetries: draw one of the
    square's eight. validation_crops: at most so many true crops are measured in validation.
    """

    network: UNetPlusPlusConfig = field(default_factory=UNetPlusPlusConfig)
    backbone_weights: str = ""
    crop: CropConfig = field(default_factory=CropConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    symmetries: bool = True
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)
    spec: SegmenterSpec = field(default_factory=SegmenterSpec)
    validation_crops: int = 48
    training: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4000, batch_size=4, optimizer="adam", learning_rate=1e-4, weight_decay=0.0, ema_decay=0.0
        )
    )


@dataclass(frozen=True, eq=False)
class Region:
    """One mass to learn from: what any jittered crop of it can show, in memory.

    pixels: f32[h, w], a window of the native image that ends where the image ends or beyond every crop. box, origin_px: of
    the mass in the window's frame. mask: bool[h, w] at `origin_px`.
    """

    image_id: str
    patient_id: str
    pixels: FloatImage
    box: Boxes
    mask: BoolMask
    origin_px: tuple[int, int]


def load_regions(items: Sequence[DatasetItem], crop: CropConfig, jitter: JitterConfig) -> list[Region]:
    """Reads every mass that has a mask. Where an item has a `content_box`, the rest of its image counts as outside."""
    regions = []
    for item in items:
        masses = [m for m in item.annotation.masses if m.mask is not None]
        pixels = load_mammogram(Path(item.path)).pixels if masses else np.zeros((1, 1), dtype=np.float32)
        height, width = pixels.shape
        left, top, right, bottom = item.attributes.get("content_box", (0, 0, width, height))
        for mass in masses:
            reach = jitter_reach(mass.box, crop, jitter)
            # More than any crop shows by what resampling looks at, so that the window's end is seen only at the image's end.
            more = 4 + 2 * int(max(reach[2:] - reach[:2]) / crop.size + 1)
            x1, y1 = max(int(left), int(reach[0]) - more), max(int(top), int(reach[1]) - more)
            x2, y2 = min(int(right), int(reach[2]) + more), min(int(bottom), int(reach[3]) + more)
            if x2 <= x1 or y2 <= y1 or mass.mask is None:
                continue
            regions.append(
                Region(
                    image_id=item.image_id,
                    patient_id=item.patient_id,
                    pixels=pixels[y1:y2, x1:x2].copy(),
                    box=np.asarray(mass.box) - (x1, y1, x1, y1),
                    mask=mass.mask,
                    origin_px=(mass.origin_px[0] - y1, mass.origin_px[1] - x1),
                )
            )
    return regions


class SegmenterTask:
    """What the training loop asks of segmentation: batches of jittered crops, the loss, Dice on true crops."""

    def __init__(
        self, model: nn.Module, config: SegmenterTrainConfig, train: Sequence[Region], validation: Sequence[Region] = ()
    ) -> None:
        self.model = model
        self.config = config
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
        with torch.no_grad():
            found, truth = (logits[-1] >= 0).flatten(1), (batch["truth"] > 0.5).flatten(1)
            dice = 2 * (found & truth).sum(1) / (found.sum(1) + truth.sum(1)).clamp(min=1)
        return {"loss": deep_supervision_loss(logits, batch["truth"], self.config.loss), "dice": dice.mean()}

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
            found = merge_outputs(logits, self.config.spec.output)[0] >= ReconstructionConfig().threshold
            scores.append(2 * float((found & truth).sum()) / max(1, int(found.sum()) + int(truth.sum())))
        return {"dice": float(np.mean(scores))}


def true_crop(region: Region, box: Boxes, crop: CropConfig) -> tuple[FloatImage, BoolMask]:
    """Network input f32[s, s] and truth bool[s, s] of `box` in the region's frame."""
    cut = cut_crop(region.pixels, box, crop)
    return network_input(cut, crop), truth_crop(region.mask, region.origin_px, cut.to_crop)


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
    measured; without one everything is learnt from. init: model directory or bundle to start from, in place of
    `config.backbone_weights`. resume: go on with the run in `out`. Raises TrainingError, ConfigError or DatasetError.
    """
    items = read_dataset(data)
    sides = load_fold(fold) if fold else None
    train_items = select(items, sides, "train") if sides else items
    validation_items = select(items, sides, "validation") if sides else []
    train = load_regions(train_items, config.crop, config.jitter)
    if not train:
        raise TrainingError(f"{data}: no mass with a mask to learn from; segmentation needs masks, boxes do not suffice")
    validation = load_regions(validation_items, config.crop, config.jitter)
    torch.manual_seed(config.training.seed)
    description = {"arch": "unetpp", "network": to_dict(config.network)}
    model = build_segmenter(description)
    start, seen = _start(model, config, init)
    task = SegmenterTask(model, config, train, validation)
    result = fit(task, config.training, out, resume=resume)
    used = {r.image_id for r in train}
    name = dataset_name(data)
    record: dict[str, Any] = {
        "dataset": name,
        "datasets": sorted({name, *seen[2]}),
        "n_regions": len(train),
        "n_patients": len({r.patient_id for r in train}),
        "fold": sides.name if sides else None,
        "fold_hash": sides.content_hash if sides else None,
        "start": start,
        "config": _portable(to_dict(config)),
        "metrics": {f"validation_{k}_true_crops": v for k, v in result.metrics.items()},
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "image_sha256": sorted({hash_file(Path(i.path)) for i in train_items if i.image_id in used} | set(seen[0])),
        "patient_sha256": sorted({hash_patient(name, r.patient_id) for r in train} | set(seen[1])),
    }
    spec = to_dict(config.spec) | {"crop": to_dict(config.crop)}
    target = out / "model"
    if result.is_main:
        save_model(target, "segmenter", result.state, description, spec, record)
    return target


def _start(
    model: nn.Module, config: SegmenterTrainConfig, init: Path | None
) -> tuple[str, tuple[Sequence[str], Sequence[str], Sequence[str]]]:
    """Fills the model; says in words with what, and which images, patients (hashes) and data sets those weights have seen."""
    if init is None:
        if not config.backbone_weights:
            return "random", ((), (), ())
        backbone = getattr(model, "backbone", None)
        if backbone is None:
            raise ConfigError("backbone_weights: this network has no backbone to load them into")
        return load_vgg(backbone, Path(config.backbone_weights)), ((), (), ())
    loaded = open_model(init, "segmenter")
    record = loaded.record
    words = f"a segmenter trained before ({record.get('dataset', 'unknown data')}; {record.get('start', 'unknown start')})"
    try:
        model.load_state_dict(loaded.state)
    except RuntimeError as error:
        problem = str(error).splitlines()[-1].strip()
        raise TrainingError(f"{init}: its weights do not fit the configured network: {problem}") from error
    return words, (record.get("image_sha256", ()), record.get("patient_sha256", ()), datasets_of(record))


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """A record holds no path: of the weights' file only its name."""
    return config | {"backbone_weights": Path(config["backbone_weights"]).name}
