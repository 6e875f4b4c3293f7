"""ONNX Runtime, where it is installed: the same graph and parameters as OpenVINO's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mammoseg.errors import ConfigError
from mammoseg.runtime import RuntimeConfig, check_input
from mammoseg.runtime.graph import load_filled


def version() -> str:
    """ONNX Runtime's version."""
    return str(onnxruntime.__version__)


class OnnxRuntimeNetwork:
    """A network run by ONNX Runtime, on the CPU or by the provider that the device names ("CUDA", "DML", "CoreML", ...)."""

    lanes = 1

    def __init__(self, directory: Path, name: str, settings: RuntimeConfig, lanes: int = 1) -> None:
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        raw = load_filled(directory, name)
        self._session = onnxruntime.InferenceSession(raw, options, providers=[_provider(settings.device)])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """x f32[B, C, H, W] to a list of arrays."""
        outputs = self._session.run(None, {self._input: check_input(x)})
        return [np.asarray(o, dtype=np.float32) for o in outputs]


def _provider(device: str) -> str:
    """ONNX Runtime's name for a device. Raises `ConfigError` that lists those of this installation."""
    known: dict[str, str] = {p.removesuffix("ExecutionProvider").upper(): p for p in onnxruntime.get_available_providers()}
    if device.upper() not in known:
        raise ConfigError(f"this installation of ONNX Runtime has no device {device!r}; it has {', '.join(sorted(known))}")
    return known[device.upper()]
