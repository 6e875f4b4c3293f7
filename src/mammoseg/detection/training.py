"""The detector as a `Task` of the training loop: batches from cached images, multi-scale, loss, validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mammoseg.detection.cache import CachedImage
from mammoseg.detection.losses import Geometry, LossConfig, detection_loss
from mammoseg.detection.metrics import ap50_and_sensitivity
from mammoseg.detection.predictor import Detector, DetectorSpec
from mammoseg.geometry import Transform
from mammoseg.preprocessing.augmentation import AugmentationConfig, Draw, change_intensity, draw, visible_boxes
from mammoseg.preprocessing.intensity import normalise
from mammoseg.preprocessing.resize import FrameSource, frame_transform, warp_region
from mammoseg.preprocessing.transplant import REACH, Graft, graft_of, transplant
from mammoseg.training.devices import shared_count
from mammoseg.training.seeding import batch_indices, generator
from mammoseg.types import Boxes, FloatImage, Size


@dataclass(frozen=True)
class SamplingConfig:
    """sizes: (H, W) of the inputs trained at, one drawn every `resize_every` batches. batch_size: of all devices together."""

    sizes: tuple[Size, ...]
    batch_size: int
    resize_every: int = 10
    augment: bool = True
    validation_size: Size | None = None


class TorchNetwork:
    """A torch detector as the predictor's `Network`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        device = next(self.model.parameters()).device
        maps = self.model(torch.from_numpy(x).to(device).contiguous(memory_format=torch.channels_last))
        return [m.float().cpu().numpy() for m in maps]


class DetectionTask:
    """model: raw maps from images. train, validation: cached images. spec: frame, anchors, normalisation."""

    def __init__(
        self,
        model: nn.Module,
        train: Sequence[CachedImage],
        validation: Sequence[CachedImage],
        spec: DetectorSpec,
        loss: LossConfig,
        sampling: SamplingConfig,
        augmentation: AugmentationConfig,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.spec, self.sampling, self.augmentation, self.loss_config = spec, sampling, augmentation, loss
        anchors = torch.from_numpy(np.stack([spec.anchors_of(i) for i in range(len(spec.strides))])).float()
        self.geometry = Geometry(anchors, spec.strides, spec.xy_scale)
        self.donors = [(cached, box) for cached in train for box in cached.boxes]

    def size_of(self, step: int, seed: int) -> Size:
        """The input size (H, W) of batch `step`, the same on every device."""
        block = step // self.sampling.resize_every
        return self.sampling.sizes[int(generator(seed, 104729, block).integers(len(self.sampling.sizes)))]

    def batch(self, step: int, places: range, seed: int) -> dict[str, Any]:
        """The items at `places` of batch `step`: images f32[B, C, H, W]; boxes f32[M, 4] `xyxy` px of image int64[M].

        "ignored" and "ignored_image" are such boxes and images of what is neither taught as a mass nor as background.
        """
        size = self.size_of(step, seed)
        indices = batch_indices(len(self.train), step, self.sampling.batch_size, seed)
        images, boxes, owners, ignored, ignored_owners = [], [], [], [], []
        for row, place in enumerate(places):
            rng = generator(seed, 15485863, step, place)
            image, found, left_out = self.view(self.train[indices[place]], size, rng if self.sampling.augment else None)
            images.append(image)
            boxes.append(found)
            owners += [row] * len(found)
            ignored.append(left_out)
            ignored_owners += [row] * len(left_out)
        grey = (np.stack(images) - np.float32(self.spec.mean)) / np.float32(self.spec.std)
        x = torch.from_numpy(grey)[:, None].expand(-1, self.spec.channels, -1, -1)
        return {
            "images": x.contiguous(memory_format=torch.channels_last),
            "boxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
            "image": torch.tensor(owners, dtype=torch.int64),
            "ignored": torch.from_numpy(np.concatenate(ignored).astype(np.float32)),
            "ignored_image": torch.tensor(ignored_owners, dtype=torch.int64),
        }

    def view(self, cached: CachedImage, size: Size, rng: np.random.Generator | None) -> tuple[FloatImage, Boxes, Boxes]:
        """One image f32[H, W] in [0, 1] of `size`, as the predictor sees it or a random view; its boxes f64[N, 4] in it, and
        those to ignore.
        """
        measured = cached.measured
        region = np.asarray(measured.box)
        drawn = draw(rng, size, self.augmentation) if rng is not None else None
        transform = self._placed(cached, size, drawn)
        image = normalise(warp_region(cached.pixels, region, transform, measured.low), measured.low, measured.high)
        boxes, ignored = (visible_boxes(transform.boxes(b), size) for b in (cached.boxes, cached.ignored))
        if drawn is not None and rng is not None:
            if self.augmentation.transplant and rng.random() < self.augmentation.transplant:
                graft = self._graft(size, drawn, rng)
                if graft is not None:
                    image, new = transplant(image, np.concatenate([boxes, ignored]), graft, rng)
                    boxes = np.concatenate([boxes, new])
            image = change_intensity(image, drawn)
        return image, boxes, ignored

    def _placed(self, cached: CachedImage, size: Size, drawn: Draw | None) -> Transform:
        """Where an image lies in the frame of a view: as in the predictor's, at its zoom about the middle, then as drawn."""
        height, width = size
        placed = frame_transform(np.asarray(cached.measured.box), size, self.spec.frame.aspect)
        if cached.zoom != 1.0:
            rest = (1.0 - cached.zoom) / 2
            placed = placed.then(Transform(cached.zoom, cached.zoom, rest * width, rest * height, size))
        return placed if drawn is None else placed.then(drawn.geometry)

    def _graft(self, size: Size, drawn: Draw, rng: np.random.Generator) -> Graft | None:
        """A mass of a random training image as it would look in the frame of a view, turned and mirrored at random."""
        cached, box = self.donors[int(rng.integers(len(self.donors)))]
        measured = cached.measured
        factor = np.exp(rng.uniform(-1.0, 1.0) * np.log(self.augmentation.transplant_scale))
        scale = self._placed(cached, size, drawn)
        centre, half = (box[:2] + box[2:]) / 2, REACH * (box[2:] - box[:2]) / 2
        around = np.concatenate([centre - half, centre + half])
        width, height = (round(float(2 * h * abs(s) * factor)) for h, s in zip(half, (scale.sx, scale.sy), strict=True))
        if min(width, height) < 1 or (around[:2] < 0).any() or (around[2:] > cached.raw.shape[::-1]).any():
            return None
        crop = warp_region(cached.pixels, around, Transform.crop_resize(around, (height, width)), measured.low)
        patch = normalise(crop, measured.low, measured.high)
        turned, *mirrored = rng.random(3) < 0.5
        patch = patch[:: -1 if mirrored[0] else 1, :: -1 if mirrored[1] else 1]
        return graft_of(np.ascontiguousarray(patch.T if turned else patch))

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of one batch and its parts."""
        own = getattr(self.model, "training_loss", None)
        if own is not None:  # on one device only: it does not go through `model`, which would join several
            parts: dict[str, Tensor] = own(batch["images"], batch["boxes"], batch["image"])
            return parts
        maps = model(batch["images"])
        device = maps[0].device
        return detection_loss(
            maps,
            batch["boxes"],
            batch["image"],
            self.geometry,
            self.loss_config,
            lambda count: shared_count(count, device),
            (batch["ignored"], batch["ignored_image"]),
        )

    def validate(self, model: nn.Module) -> dict[str, float]:
        """AP at IoU 0.5, sensitivity at 0.25 and 0.5 false positives an image, at one scale; empty if none is held out."""
        if not self.validation:
            return {}
        detector = Detector(TorchNetwork(model), self.spec)
        size = self.sampling.validation_size or self.spec.scales[0]
        found = [detector.detect_at(FrameSource.of(c.pixels, c.measured), size) for c in self.validation]
        ap, (s25, s50) = ap50_and_sensitivity(found, [c.boxes for c in self.validation], (0.25, 0.5))
        return {"ap50": ap, "tpr_at_0.25": s25, "tpr_at_0.5": s50}
