"""PyTorch, where it is installed: the network itself rather than its exported graph, with the bundle's parameters."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mammoseg.bundle import load_weights
from mammoseg.errors import BundleError
from mammoseg.runtime import RuntimeConfig, check_input

BUILDERS = {
    "detector": "mammoseg.detection:build_detector",
    "segmenter": "mammoseg.segmentation:build_segmenter",
}


def version() -> str:
    """PyTorch's version."""
    return str(torch.__version__)


def build(name: str, config: Mapping[str, Any], state: Mapping[str, NDArray[Any]] | None = None) -> torch.nn.Module:
    """The network `name` as its `config` describes it, in evaluation mode, with the parameters `state` where given.

    Raises `BundleError` where the parameters do not fit the network.
    """
    module, _, attribute = BUILDERS[name].partition(":")
    builder: Callable[[Mapping[str, Any]], torch.nn.Module] = getattr(importlib.import_module(module), attribute)
    network = builder(dict(config))
    if state is not None:
        try:
            network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
        except RuntimeError as error:
            raise BundleError(
                f"{name}: the parameters do not fit the network: {str(error).splitlines()[-1].strip()}"
            ) from error
    return network.eval()


class ModuleNetwork:
    """A torch module behind the runtime's interface."""

    lanes = 1

    def __init__(self, module: torch.nn.Module, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._module = module.to(self._device).eval()

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """x f32[B, C, H, W] to a list of arrays."""
        with torch.inference_mode():
            out = self._module(torch.from_numpy(check_input(x)).to(self._device))
        outputs = [out] if isinstance(out, torch.Tensor) else list(out)
        return [np.asarray(o.float().cpu().numpy()) for o in outputs]


class TorchNetwork(ModuleNetwork):
    """Network `name` of the bundle in `directory`."""

    def __init__(self, directory: Path, name: str, settings: RuntimeConfig, lanes: int = 1) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        description = json.loads((directory / "config.json").read_text(encoding="utf-8"))["networks"][name]
        module = build(name, description["config"], load_weights(directory / f"{name}.safetensors"))
        super().__init__(module, settings.device.lower())
