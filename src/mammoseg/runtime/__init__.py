"""Running a network of a bundle, behind one small interface; OpenVINO by default, which needs no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mammoseg.errors import ConfigError
from mammoseg.runtime.processor import has_bf16

RUNTIMES: dict[str, str] = {
    "openvino": "mammoseg.runtime.openvino_runtime:OpenVinoNetwork",
    "onnxruntime": "mammoseg.runtime.onnx_runtime:OnnxRuntimeNetwork",
    "torch": "mammoseg.runtime.torch_runtime:TorchNetwork",
}


@dataclass(frozen=True)
class RuntimeConfig:
    """How networks are executed.

    kind: which runtime. device: its name there ("CPU"; "CUDA" for onnxruntime and torch). threads: 0 lets the runtime choose.
    precision: of the arithmetic inside: "f32"; "bf16" (openvino only); "auto" is bf16 where openvino runs on a processor that
    has it, and float32 elsewhere. A bundle says "auto" once its findings in bf16 have passed the parity gate
    (`mammoseg bundle check`). f32_networks: those that stay in float32 all the same, since the gate failed with them.
    """

    kind: Literal["openvino", "onnxruntime", "torch"] = "openvino"
    device: str = "CPU"
    threads: int = 0
    precision: Literal["auto", "f32", "bf16"] = "f32"
    f32_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not set(self.f32_networks) <= {"detector", "segmenter"}:
            raise ValueError(f"f32_networks: expected detector, segmenter or both, got {', '.join(self.f32_networks)}")
        if self.threads < 0:
            raise ValueError(f"threads: expected 0 or more, got {self.threads}")
        if self.precision == "bf16" and self.kind != "openvino":
            raise ValueError("precision bf16 is offered by the openvino runtime alone")

    def precision_of(self, network: str) -> Literal["f32", "bf16"]:
        """What `network` ("detector" or "segmenter") is computed in on this machine."""
        if network in self.f32_networks:
            return "f32"
        if self.precision != "auto":
            return self.precision
        return "bf16" if self.kind == "openvino" and self.device == "CPU" and has_bf16() else "f32"


class Network(Protocol):
    """A loaded network: x f32[B, C, H, W] to its outputs in the graph's order, each f32[B, ...]. May be shared by threads.

    lanes: how many calls at a time it is made for.
    """

    lanes: int

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]: ...


def load_network(directory: Path, name: str, settings: RuntimeConfig | None = None, lanes: int = 1) -> Network:
    """Loads network `name` ("detector" or "segmenter") of the bundle in `directory`.

    lanes: how many calls at a time are wanted; the runtime may offer fewer, and shares its threads among them.
    Raises `BundleError` where a file is missing or graph and parameters do not fit, `ConfigError` where the runtime is
    not installed.
    """
    chosen = settings or RuntimeConfig()
    network: Network = _runtime(chosen.kind)(Path(directory), name, chosen, lanes)
    return network


def runtime_version(kind: str) -> str:
    """The version of the runtime library, for provenance."""
    module = importlib.import_module(RUNTIMES[kind].partition(":")[0])
    return str(module.version())


def _runtime(kind: str) -> Any:
    if kind not in RUNTIMES:
        raise ConfigError(f"unknown runtime {kind!r}; known here: {', '.join(RUNTIMES)}")
    module, _, attribute = RUNTIMES[kind].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("mammoseg"):
            raise
        raise ConfigError(f"the runtime {kind!r} is not installed (pip install {error.name})") from error


def check_input(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """A contiguous f32[B, C, H, W], or `ValueError`."""
    if x.ndim != 4 or x.dtype != np.float32:
        raise ValueError(f"expected float32[B, C, H, W], got {x.dtype}{list(x.shape)}")
    return np.ascontiguousarray(x)
