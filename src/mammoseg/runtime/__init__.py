"""Running a network of a bundle, behind one small interface; OpenVINO by default, which needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mammoseg.bundle import NETWORKS
from mammoseg.errors import ConfigError
from mammoseg.runtime.processor import has_bf16, has_int8

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
    has it, and float32 elsewhere; "int8" (openvino only) takes every network that the bundle holds in INT8 so, the others as
    "auto". A bundle says "auto" once its findings in bf16 or INT8 have passed the parity gate (`mammoseg bundle check`).
    f32_networks: those that stay in float32 all the same, since the gate failed with them in bf16. int8_networks: those that
    "auto" runs in INT8 where the processor has it, since the gate passed with them.
    """

    kind: Literal["openvino", "onnxruntime", "torch"] = "openvino"
    device: str = "CPU"
    threads: int = 0
    precision: Literal["auto", "f32", "bf16", "int8"] = "f32"
    f32_networks: tuple[str, ...] = ()
    int8_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, names in (("f32_networks", self.f32_networks), ("int8_networks", self.int8_networks)):
            if not set(names) <= set(NETWORKS):
                raise ValueError(f"{key}: expected detector, segmenter or both, got {', '.join(names)}")
        if self.threads < 0:
            raise ValueError(f"threads: expected 0 or more, got {self.threads}")
        if self.precision in ("bf16", "int8") and self.kind != "openvino":
            raise ValueError(f"precision {self.precision} is offered by the openvino runtime alone")

    def precision_of(self, network: str, in_int8: Collection[str] = ()) -> Literal["f32", "bf16", "int8"]:
        """What `network` ("detector" or "segmenter") is computed in on this machine.

        in_int8: the networks that the bundle holds in INT8. Raises ConfigError where INT8 is asked for and there are none.
        """
        native = self.kind == "openvino" and self.device == "CPU"
        if self.precision == "int8" and not in_int8:
            raise ConfigError(
                "runtime.precision=int8: expected a bundle with networks in INT8, this one has none; make one with "
                "mammoseg bundle quantise, or choose auto, bf16 or f32"
            )
        allowed = self.precision == "int8" or (
            self.precision == "auto" and network in self.int8_networks and native and has_int8()
        )
        if allowed and network in in_int8:
            return "int8"
        if self.precision == "f32" or network in self.f32_networks:
            return "f32"
        return "bf16" if self.precision == "bf16" or (native and has_bf16()) else "f32"


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
