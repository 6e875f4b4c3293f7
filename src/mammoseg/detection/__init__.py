"""Mass detection: YOLOv3 with exchangeable backbones.

The registries hold "module:attribute" strings, so that looking a name up imports no torch.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from mammoseg.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

DETECTORS = {
    "yolov3": "mammoseg.detection.yolov3:YoloV3",
}

CONFIGS = {
    "yolov3": "mammoseg.detection.yolov3:YoloConfig",
}

BACKBONES = {
    "darknet53": "mammoseg.detection.yolov3:Darknet53",
    "efficientnet_lite0": "mammoseg.detection.efficientnet_lite:EfficientNetLite",
    "efficientnet_lite2": "mammoseg.detection.efficientnet_lite:EfficientNetLite",
}


def build_detector(config: dict[str, Any], name: str = "yolov3") -> nn.Module:
    """The detector `name` with the settings of its config dataclass given as a dict; (B, 3, H, W) to a list of raw maps.

    Raises ConfigError on an unknown name or setting, naming the nearest.
    """
    from mammoseg.config import from_dict

    network: nn.Module = lookup(DETECTORS, name)(from_dict(lookup(CONFIGS, name), config, "network"))
    return network


def lookup(registry: dict[str, str], name: str) -> Any:
    """What `registry` holds under `name`, imported. Raises ConfigError that names the nearest entry."""
    if name not in registry:
        near = difflib.get_close_matches(name, list(registry), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(registry)}"
        raise ConfigError(f"unknown detector or backbone {name!r}; {hint}")
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
