"""OpenVINO: the default runtime. float32 arithmetic, one stream, no telemetry."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.errors import BundleError
from mammoseg.runtime import RuntimeConfig, check_input
from mammoseg.runtime.graph import load_filled


def _import_openvino() -> ModuleType:
    """Imports openvino with its usage statistics replaced by its own stub: what is not imported cannot send."""
    name = "openvino_telemetry"
    absent = object()
    before: Any = sys.modules.get(name, absent)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if before is absent:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    module: ModuleType = openvino
    return module


ov = _import_openvino()


def version() -> str:
    """OpenVINO's version, without its build number."""
    return str(ov.__version__).split("-")[0]


class _SignalStack(ctypes.Structure):
    """`stack_t` of signal.h."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Puts this thread's alternate signal stack back as it was.

    OpenVINO leaves one of its own when a network is compiled or released, and frees it: the next signal (Ctrl-C) would then
    end the process with a fault.
    """
    system = ctypes.CDLL(None) if sys.platform != "win32" else None
    before = _SignalStack()
    known = system is not None and system.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if system is not None and known:
            system.sigaltstack(ctypes.byref(before), None)


class OpenVinoNetwork:
    """A network compiled by OpenVINO; any batch, height and width the graph allows. Not to be shared by threads."""

    def __init__(self, directory: Path, name: str, settings: RuntimeConfig) -> None:
        core = ov.Core()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": settings.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if settings.threads:
            options["INFERENCE_NUM_THREADS"] = settings.threads
        try:
            with _signal_stack_kept():
                model = core.read_model(load_filled(directory, name))
                self._compiled = core.compile_model(model, settings.device, options)
        except RuntimeError as error:
            first_line = (str(error).strip().splitlines() or ["no message"])[-1]
            raise BundleError(f"{name} of {directory}: OpenVINO cannot run it on {settings.device}: {first_line}") from error
        self._request = self._compiled.create_infer_request()
        self._outputs = len(self._compiled.outputs)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            with _signal_stack_kept():
                self.__dict__.clear()

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """x f32[B, C, H, W] to a list of new arrays."""
        result = self._request.infer([check_input(x)], share_inputs=True)
        return [np.array(result[i], dtype=np.float32) for i in range(self._outputs)]
