"""Region-based mass segmentation (paper, Sect. 3.3): networks, losses and the predictor.

`NETWORKS` names every network and its configuration by "module:attribute", so that looking one up imports no torch.
To add a network: write its file with its frozen config beside it, add one line here.
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

NETWORKS: dict[str, tuple[str, str]] = {
    "unetpp": ("mammoseg.segmentation.unetpp:UNetPlusPlus", "mammoseg.segmentation.unetpp:UNetPlusPlusConfig"),
}


def _attribute(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def build_segmenter(config: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from `config`, as model directories and bundles hold it: {"arch": name, "network": {…}}.

    Its forward takes f32[B, C, H, W] and gives a list of logits [B, 1, H, W]. Raises ConfigError for what is not known.
    """
    arch = config.get("arch")
    if arch not in NETWORKS:
        near = difflib.get_close_matches(str(arch), NETWORKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(NETWORKS)}"
        raise ConfigError(f"segmenter: unknown arch {arch!r}; {hint}")
    network, settings = NETWORKS[arch]
    module: nn.Module = _attribute(network)(from_dict(_attribute(settings), config.get("network", {}), "network"))
    return module
