"""A segmentation network on the whole image, without detection: training, and what it finds (Table 5, "one-stage")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mammoseg.config import to_dict
from mammoseg.evaluation.overlap import union
from mammoseg.experiments.start import open_model
from mammoseg.experiments.study.config import OneStageConfig
from mammoseg.experiments.study.inference import device, read_image
from mammoseg.experiments.study.store import findings_of
from mammoseg.experiments.train_segmenter import SegmenterTask, SegmenterTrainConfig, output_of
from mammoseg.geometry import Transform, mask_box
from mammoseg.preprocessing.crops import equalise
from mammoseg.reconstruction import ReconstructionConfig, outline
from mammoseg.runtime.torch_runtime import ModuleNetwork, build
from mammoseg.segmentation import build_segmenter, network_config
from mammoseg.segmentation.predictor import SegmenterSpec, merge_outputs, normalise, read_spec
from mammoseg.segmentation.vgg import load_vgg
from mammoseg.training.checkpoint import save_model
from mammoseg.training.loop import fit
from mammoseg.training.seeding import batch_indices, generator
from mammoseg.types import BoolMask, DatasetItem, Detections, Findings, FloatImage, Lesion


class OneStageTask(SegmenterTask):
    """What the training loop asks: batches of whole images with the union of their masses, and the loss."""

    def __init__(
        self, model: nn.Module, crops: SegmenterTrainConfig, config: OneStageConfig, items: Sequence[DatasetItem]
    ) -> None:
        super().__init__(model, crops, [])
        self.whole = config
        self.items = list(items)

    def batch(self, step: int, places: range, seed: int) -> dict[str, Tensor]:
        """`image` f32[B, C, H, W] and `truth` f32[B, 1, H, W]: the images at `places` of batch number `step`."""
        indices = batch_indices(len(self.items), step, self.whole.training.batch_size, seed)
        greys, truths = [], []
        for place in places:
            grey, truth = (
                whole_image(self.items[indices[place]], self.whole),
                whole_truth(self.items[indices[place]], self.whole),
            )
            if self.whole.symmetries:
                rows, columns = generator(seed, step, 0, place).choice([-1, 1], 2)
                grey, truth = grey[::rows, ::columns], truth[::rows, ::columns]
            greys.append(grey)
            truths.append(truth)
        images = normalise(np.ascontiguousarray(np.stack(greys)), self.config.spec)
        return {"image": torch.from_numpy(images), "truth": torch.from_numpy(np.stack(truths)[:, None].astype(np.float32))}


def whole_image(item: DatasetItem, config: OneStageConfig) -> FloatImage:
    """The network's input f32[H, W] in [0, 1] of a prepared image."""
    pixels = read_image(item).pixels
    grey = Transform.crop_resize((0, 0, pixels.shape[1], pixels.shape[0]), config.size).image(pixels)
    return equalise(grey, np.ones(grey.shape, dtype=np.bool_)) if config.equalise else grey


def whole_truth(item: DatasetItem, config: OneStageConfig) -> BoolMask:
    """The union of the masses, bool[H, W], at the network's input size."""
    height, width = item.annotation.size
    mask, (row, column) = union([(m.mask, m.origin_px) for m in item.annotation.masses if m.mask is not None])
    full = np.zeros((height, width), dtype=np.bool_)
    full[row : row + mask.shape[0], column : column + mask.shape[1]] = mask
    return Transform.crop_resize((0, 0, width, height), config.size).mask(full)


def train_one_stage(
    crops: SegmenterTrainConfig, config: OneStageConfig, items: Sequence[DatasetItem], out: Path, identity: dict[str, Any]
) -> Path:
    """Trains on whole images and returns the model directory, `out`/model; goes on from checkpoints in `out`.

    crops: names the network and how its input is normalised. identity: what makes the run the one it is.
    """
    torch.manual_seed(config.training.seed)
    description = {"arch": crops.arch, "network": to_dict(network_config(crops.arch, crops.network))}
    network = build_segmenter(description)
    if crops.backbone_weights:
        backbone: Any = network.backbone
        load_vgg(backbone, Path(crops.backbone_weights))
    task = OneStageTask(network, crops, config, items)
    result = fit(task, config.training, out, resume=True, identity=identity)
    spec = SegmenterSpec(output=output_of(crops), channels=crops.spec.channels, mean=crops.spec.mean, std=crops.spec.std)
    record = {"one_stage": to_dict(config), "steps": result.steps, "n_images": len(items)}
    save_model(out / "model", "segmenter", result.state, description, to_dict(spec), record)
    return out / "model"


def segment_whole(
    model: Path,
    items: Sequence[DatasetItem],
    config: OneStageConfig,
    reconstruction: ReconstructionConfig,
    provenance: dict[str, Any],
) -> Iterator[Findings]:
    """The mask of every image as one lesion, which may lie in several pieces; its score is the mean probability inside."""
    loaded = open_model(model, "segmenter")
    network = ModuleNetwork(build("segmenter", loaded.config, {k: v.numpy() for k, v in loaded.state.items()}), device())
    spec = read_spec(loaded.spec)
    for item in items:
        logits = network(normalise(whole_image(item, config)[None], spec))
        probability = merge_outputs(logits, spec.output)[0]
        height, width = item.annotation.size
        native = Transform.crop_resize((0, 0, config.size[1], config.size[0]), (height, width)).image(probability)
        lesion = _lesion(native - np.float32(reconstruction.threshold), native)
        lesions = [] if lesion is None else [lesion]
        boxes = np.array([x.box for x in lesions], dtype=np.float64).reshape(-1, 4)
        found = Detections(boxes, np.array([x.score for x in lesions]), (height, width), "one-stage")
        yield findings_of(item, lesions, found, provenance)


def _lesion(field: FloatImage, probability: FloatImage) -> Lesion | None:
    mask = field >= 0
    if not mask.any():
        return None
    x1, y1, x2, y2 = (int(v) for v in mask_box(mask))
    inside = mask[y1:y2, x1:x2]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    largest = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return Lesion(
        id=1,
        box=(float(x1), float(y1), float(x2), float(y2)),
        score=float(probability[mask].mean().clip(0, 1)),
        mask=inside.copy(),
        origin_px=(y1, x1),
        contour_xy=outline(field[y1:y2, x1:x2], largest, (y1, x1), 0.25),
    )
