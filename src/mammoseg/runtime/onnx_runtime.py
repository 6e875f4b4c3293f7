"""ONNX Runtime, where it is installed: the same graph and parameters as OpenVINO's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mammoseg.runtime import RuntimeConfig, check_input
from mammoseg.runtime.graph import load_filled


def version() -> str:
    """ONNX Runtime's version."""
    return str(onnxruntime.__version__)


class OnnxRuntimeNetwork:
    """A network run by ONNX Runtime on the CPU."""

    def __init__(self, directory: Path, name: str, settings: RuntimeConfig) -> None:
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        raw = load_filled(directory, name)
        self._session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """x f32[B, C, H, W] to a list of arrays."""
        outputs = self._session.run(None, {self._input: check_input(x)})
        return [np.asarray(o, dtype=np.float32) for o in outputs]
