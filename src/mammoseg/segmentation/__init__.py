"""Region-based mass segmentation (paper, Sect. 3.3): networks, losses and the predictor.

`NETWORKS` names every network by "module:attribute", so that looking one up imports no torch. To add a network: write its
file with its frozen config beside it, add one line here. The class says by attributes what the rest must know:

- `config_class`: the config dataclass it is made from; it has `in_channels`;
- `output`, where it is not "mean": which of its outputs is the answer (see `SegmenterSpec.output`);
- `training_loss(logits, image, truth, config)`, where the mean Dice loss over its outputs is not what it learns by; and
- `backbone`, where it has an encoder that takes VGG's ImageNet weights.
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

NETWORKS = {
    "unetpp": "mammoseg.segmentation.unetpp:UNetPlusPlus",
    "unet": "mammoseg.segmentation.unet:UNet",
    "cgan": "mammoseg.segmentation.cgan:ConditionalGAN",
    "cascade": "mammoseg.segmentation.cascade:Cascade",
}


def network_class(arch: str) -> Any:
    """The class of the network `arch`, imported. Raises ConfigError that names the nearest."""
    if arch not in NETWORKS:
        near = difflib.get_close_matches(str(arch), NETWORKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(NETWORKS)}"
        raise ConfigError(f"segmenter: unknown arch {arch!r}; {hint}")
    module, _, attribute = NETWORKS[arch].partition(":")
    return getattr(importlib.import_module(module), attribute)


def network_config(arch: str, values: Mapping[str, Any]) -> Any:
    """The config dataclass of the network `arch`, with `values` over its defaults. Raises ConfigError for what is not known."""
    return from_dict(network_class(arch).config_class, values, "network")


def build_segmenter(config: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from `config`, as model directories and bundles hold it: {"arch": name, "network": {…}}.

    Its forward takes f32[B, C, H, W] and gives a list of logits [B, 1, H, W]. Raises ConfigError for what is not known.
    """
    arch = str(config.get("arch"))
    module: nn.Module = network_class(arch)(network_config(arch, config.get("network", {})))
    return module
