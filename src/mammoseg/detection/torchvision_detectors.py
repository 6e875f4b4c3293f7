"""RetinaNet, Faster R-CNN and SSD from torchvision beside YOLOv3, for comparison (the paper's Sect. 3.2 names them).

They need torchvision (`pip install mammoseg[detectors]`). The models are torchvision's own, with its losses and its decoding;
ours are the input (a mammogram's frame, without torchvision's resizing), anchors of the size of masses, one class, and the
ResNet under all three, so that what differs is the detector. RetinaNet and Faster R-CNN have a feature pyramid on it, SSD three
more strided convolutions, since those of its VGG do not fit images of 160 pixels.

`forward` gives boxes, not raw maps: one array (B, 5, K, 1) of x1, y1, x2, y2, score for at most K boxes an image (0 where there
are fewer), in pixels of the input; `layout` tells the predictor so. Training has a loss of its own, `training_loss`. Their
graphs are not exported: bundles hold YOLOv3.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mammoseg.errors import ConfigError, TrainingError

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101"]


@dataclass(frozen=True)
class TorchvisionConfig:
    """backbone: which ResNet. anchor_sizes: sides in px at the input, one for each of five levels, finest first.

    detections: most boxes an image. score_min: the lowest score kept. nms_iou: of torchvision's own suppression. channels: of
    the pyramid, or of SSD's further convolutions. proposals, samples: of Faster R-CNN, regions an image that go on to its
    second part, and how many of them that learns from.
    """

    backbone: Backbone = "resnet50"
    anchor_sizes: tuple[int, int, int, int, int] = (16, 32, 64, 128, 256)
    detections: int = 100
    score_min: float = 0.005
    nms_iou: float = 0.45
    channels: int = 256
    proposals: int = 1000
    samples: int = 512

    def __post_init__(self) -> None:
        if min(self.anchor_sizes) < 1 or list(self.anchor_sizes) != sorted(set(self.anchor_sizes)):
            raise ConfigError(f"network.anchor_sizes: expected five rising sides, got {self.anchor_sizes}")
        if min(self.detections, self.proposals, self.samples) < 1 or self.channels < 8 or self.channels % 8:
            raise ConfigError(
                "network: expected detections, proposals and samples of 1 or more, and channels that are a multiple of 8"
            )


def import_torchvision() -> Any:
    """torchvision. Raises ConfigError with what to do where it is not there or was built for another torch."""
    try:
        import torchvision
    except ImportError as error:
        raise ConfigError("this detector needs torchvision: pip install 'mammoseg[detectors]'") from error
    except RuntimeError as error:  # its compiled operators do not load
        raise ConfigError(
            f"torchvision does not fit the installed torch {torch.__version__}: install both from one place ({error})"
        ) from error
    return torchvision


class _Detector(nn.Module):
    """What the three share: images in, boxes out, and torchvision's losses."""

    config_class: ClassVar = TorchvisionConfig
    strides: ClassVar = (32,)
    layout: ClassVar = "boxes"
    exportable: ClassVar = False
    label: ClassVar = 1

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        self.config = config
        import_torchvision()
        self.model: Any = self._make(config, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3})
        self.model.transform.resize = _as_it_is  # type: ignore[method-assign]  # the predictor's frame is the input

    def _make(self, config: TorchvisionConfig, plain: dict[str, Any]) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """[(B, 5, K, 1)]: x1, y1, x2, y2 in px of the input and the score of each box, best first, 0 where there is none.

        x: f32[B, 3, H, W], H and W multiples of 32.
        """
        training = self.model.training
        self.model.eval()
        found = self.model(list(x))
        self.model.train(training)
        out = x.new_zeros(len(found), 5, self.config.detections, 1)
        for i, one in enumerate(found):
            mine = one["labels"] == self.label
            boxes, scores = one["boxes"][mine], one["scores"][mine]
            order = scores.argsort(descending=True, stable=True)[: self.config.detections]
            out[i, :4, : len(order), 0] = boxes[order].T.to(out)
            out[i, 4, : len(order), 0] = scores[order].to(out)
        return [out]

    def training_loss(self, images: Tensor, boxes: Tensor, image: Tensor) -> dict[str, Tensor]:
        """`loss` and torchvision's own parts of it, scalars.

        images: f32[B, 3, H, W]. boxes: f32[M, 4] `xyxy` px of image int64[M].
        """
        targets = [
            {"boxes": boxes[image == i], "labels": torch.full((int((image == i).sum()),), self.label, device=images.device)}
            for i in range(len(images))
        ]
        parts: dict[str, Tensor] = self.model(list(images), targets)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def load_start(self, path: Path) -> None:
        """ImageNet weights of the ResNet: safetensors with torchvision's keys. Raises TrainingError where they do not fit."""
        from safetensors.torch import load_file

        try:
            state = {k: v for k, v in load_file(path).items() if not k.startswith("fc.")}
        except Exception as error:  # safetensors' own exception has no public base
            raise TrainingError(f"{path.name}: expected a safetensors file with torchvision's ResNet keys: {error}") from error
        body = self.model.backbone.body
        missing, unexpected = body.load_state_dict(state, strict=False)
        if missing or unexpected:
            wrong = [*missing, *unexpected][0]
            raise TrainingError(f"{path.name}: not the weights of {self.config.backbone}: {wrong} does not fit")


class RetinaNet(_Detector):
    """RetinaNet (Lin et al. 2017): pyramid of strides 8 to 128, focal loss."""

    label: ClassVar = 0

    def _make(self, config: TorchvisionConfig, plain: dict[str, Any]) -> nn.Module:
        from torchvision.models.detection import RetinaNet as Model
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        backbone = _pyramid(config, [2, 3, 4], LastLevelP6P7(config.channels, config.channels))
        octaves = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in config.anchor_sizes)
        anchors = AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * 5)
        limits = {"score_thresh": config.score_min, "nms_thresh": config.nms_iou, "detections_per_img": config.detections}
        model: nn.Module = Model(backbone, 1, anchor_generator=anchors, **limits, **plain)
        return model


class FasterRCNN(_Detector):
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid of strides 4 to 64."""

    def _make(self, config: TorchvisionConfig, plain: dict[str, Any]) -> nn.Module:
        from torchvision.models.detection import FasterRCNN as Model
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        backbone = _pyramid(config, [1, 2, 3, 4], None)
        anchors = AnchorGenerator(tuple((s,) for s in config.anchor_sizes), ((0.5, 1.0, 2.0),) * 5)
        limits = {
            "box_score_thresh": config.score_min,
            "box_nms_thresh": config.nms_iou,
            "box_detections_per_img": config.detections,
            "box_batch_size_per_image": config.samples,
            **{f"rpn_{when}_nms_top_n_{mode}": config.proposals for when in ("pre", "post") for mode in ("train", "test")},
        }
        model: nn.Module = Model(backbone, 2, rpn_anchor_generator=anchors, **limits, **plain)
        return model


class SSD(_Detector):
    """SSD (Liu et al. 2016) on feature maps of strides 8 to 256."""

    def _make(self, config: TorchvisionConfig, plain: dict[str, Any]) -> nn.Module:
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.ssd import SSD as Model

        backbone = _StridedResNet(config)
        sides = [*config.anchor_sizes, 2 * config.anchor_sizes[-1], 4 * config.anchor_sizes[-1]]
        reference = 640.0  # DefaultBoxGenerator wants fractions of the image; sides are meant for one of 640 pixels
        anchors = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2, 3], [2], [2]], scales=[s / reference for s in sides])
        limits = {"score_thresh": config.score_min, "nms_thresh": config.nms_iou, "detections_per_img": config.detections}
        model: nn.Module = Model(backbone, anchors, (640, 320), 2, **limits, **plain)  # the size plays no part without resizing
        return model


def _as_it_is(image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
    return image, target


class _StridedResNet(nn.Module):
    """A ResNet's maps of strides 8, 16 and 32, and three more, each half as fine."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__()
        from torchvision.models import _utils, resnet

        body = resnet.__dict__[config.backbone](weights=None)
        self.body = _utils.IntermediateLayerGetter(body, {"layer2": "0", "layer3": "1", "layer4": "2"})
        deepest = body.fc.in_features
        self.out_channels = [deepest // 4, deepest // 2, deepest] + [config.channels] * 3
        self.extra = nn.ModuleList()
        for channels in (deepest, config.channels, config.channels):
            self.extra.append(
                nn.Sequential(
                    nn.Conv2d(channels, config.channels // 2, 1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(config.channels // 2, config.channels, 3, stride=2, padding=1),
                    nn.ReLU(inplace=True),
                )
            )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.body(x)
        y = maps["2"]
        for i, block in enumerate(self.extra, start=3):
            y = block(y)
            maps[str(i)] = y
        return maps


def _pyramid(config: TorchvisionConfig, layers: list[int], extra: Any) -> Any:
    """A ResNet with a feature pyramid; batch norm learns, since it may start from nothing."""
    from torchvision.models import resnet
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = resnet.__dict__[config.backbone](weights=None)
    width = body.fc.in_features // 8
    names = {f"layer{k}": str(i) for i, k in enumerate(layers)}
    return BackboneWithFPN(body, names, [width * 2 ** (k - 1) for k in layers], config.channels, extra_blocks=extra)
