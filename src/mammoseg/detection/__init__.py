"""Mass detection: YOLOv3 with exchangeable backbones.

The registries hold "module:attribute" strings, so that looking a name up imports no torch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mammoseg.config import from_dict
from mammoseg.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

DETECTORS = {
    "yolov3": "mammoseg.detection.yolov3:YoloV3",
    "retinanet": "mammoseg.detection.torchvision_detectors:RetinaNet",
    "faster_rcnn": "mammoseg.detection.torchvision_detectors:FasterRCNN",
    "ssd": "mammoseg.detection.torchvision_detectors:SSD",
}
"""Each an `nn.Module` that is made from its `config_class`, a frozen dataclass it names as a class attribute.

`strides` are its outputs', finest first. A class whose `forward` gives boxes in place of raw maps says `layout = "boxes"`; one
that learns by another loss has `training_loss(images, boxes, image)`; `exportable = False` keeps it out of bundles.
"""

BACKBONES = {
    "darknet53": "mammoseg.detection.yolov3:Darknet53",
    "efficientnet_lite0": "mammoseg.detection.efficientnet_lite:EfficientNetLite",
    "efficientnet_lite2": "mammoseg.detection.efficientnet_lite:EfficientNetLite",
}


def build_detector(config: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from `config`, as model directories and bundles hold it: {"arch": name, "network": {…}}.

    Its forward takes f32[B, C, H, W] and gives a list of raw maps. A mapping without "arch", as early models have it, holds the
    settings of a YOLOv3. Raises ConfigError on an unknown name or setting, naming the nearest.
    """
    arch, values = described(config)
    module: nn.Module = lookup(DETECTORS, arch)(network_config(arch, values))
    return module


def described(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the network and its settings, from what a model directory or a bundle says of it."""
    return (str(config["arch"]), dict(config.get("network", {}))) if "arch" in config else ("yolov3", dict(config))


def network_config(arch: str, values: Mapping[str, Any]) -> Any:
    """The config dataclass of the detector `arch`, with `values` over its defaults."""
    return from_dict(lookup(DETECTORS, arch).config_class, values, "network")


def lookup(registry: dict[str, str], name: str) -> Any:
    """What `registry` holds under `name`, imported. Raises ConfigError that names the nearest entry."""
    if name not in registry:
        near = difflib.get_close_matches(name, list(registry), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(registry)}"
        raise ConfigError(f"unknown detector or backbone {name!r}; {hint}")
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
