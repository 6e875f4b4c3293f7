"""OpenVINO: the default runtime. Compiled networks are kept between runs; no telemetry."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import queue
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.bundle import graph_file, int8_networks
from mammoseg.errors import BundleError
from mammoseg.runtime import RuntimeConfig, check_input
from mammoseg.runtime.compiled_cache import cache_folder, cache_key, read_cached, write_cached
from mammoseg.runtime.processor import describe_processor


@contextlib.contextmanager
def no_telemetry() -> Iterator[None]:
    """What is imported within takes its own stub in place of OpenVINO's usage statistics: what is not imported cannot send."""
    name = "openvino_telemetry"
    absent = object()
    before: Any = sys.modules.get(name, absent)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _import_openvino() -> ModuleType:
    with no_telemetry():
        import openvino
    # Its table of NumPy types is a C++ static made at first use, with the interpreter's lock given up half-way: two threads
    # that get there together wait for each other for good. Made here, where the import lock lets one thread through.
    openvino.Type.f32.to_dtype()
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
    """A network compiled by OpenVINO; any batch, height and width the graph allows.

    lanes: calls that run at a time, each on its share of the threads, so that small inputs keep every core busy.
    """

    def __init__(self, directory: Path, name: str, settings: RuntimeConfig, lanes: int = 1) -> None:
        threads = settings.threads or processors()
        self.lanes = max(1, min(lanes, threads))
        precision = settings.precision_of(name, int8_networks(directory))
        # What a network in INT8 keeps in floating point has the precision that the network would have without INT8.
        hint = replace(settings, precision="auto").precision_of(name) if precision == "int8" else precision
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": self.lanes,
            # Processes that share the machine would all be pinned to its first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if settings.device != "CPU":
            options = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": self.lanes}
        try:
            with _signal_stack_kept():
                self._compiled = _compiled(directory, name, precision == "int8", settings.device, options)
        except RuntimeError as error:
            first_line = (str(error).strip().splitlines() or ["no message"])[-1]
            raise BundleError(f"{name} of {directory}: OpenVINO cannot run it on {settings.device}: {first_line}") from error
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.lanes):
            self._requests.put(self._compiled.create_infer_request())
        self._outputs = len(self._compiled.outputs)
        self._batch, self._on_cpu = 0, settings.device == "CPU"

    def __del__(self) -> None:
        if sys is not None and not sys.is_finalizing():  # modules are emptied at the very end
            with _signal_stack_kept():
                self.__dict__.clear()

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """x f32[B, C, H, W] to a list of new arrays. Waits where as many calls as `lanes` are at work."""
        checked = check_input(x)
        request = self._requests.get()
        try:
            self._give_back(len(checked))
            result = request.infer([checked], share_inputs=True)
            return [np.array(result[i], dtype=np.float32) for i in range(self._outputs)]
        finally:
            self._requests.put(request)

    def _give_back(self, batch: int) -> None:
        """Frees what was kept for another number of inputs at a time: OpenVINO would keep both.

        With one lane on the CPU alone, where this call has the only request. With v19U-Net++ on crops of 256 × 256 the peak is
        2.7 GB in place of 3.1, for 5% of the time of the images whose number of crops differs from the last one's.
        """
        if self._on_cpu and self.lanes == 1 and self._batch not in (0, batch):
            self._compiled.release_memory()
        self._batch = batch


def _compiled(directory: Path, name: str, int8: bool, device: str, options: dict[str, Any]) -> Any:
    """The compiled network, from the cache where it is there; made and kept there otherwise."""
    core = ov.Core()
    key = None
    if cache_folder() is not None:
        files = graph_file(directory, name, int8), directory / f"{name}.safetensors"
        if all(f.is_file() for f in files):
            key = cache_key([str(ov.__version__), describe_processor(), device, repr(sorted(options.items())), *files])
            kept = read_cached(key)
            if kept is not None:
                # Damaged where the sum cannot tell, or made by a build of OpenVINO with the same version: made again below.
                with contextlib.suppress(RuntimeError):
                    return core.import_model(io.BytesIO(kept), device, options)
    from mammoseg.runtime.graph import load_filled  # brings onnx, which a network from the cache can do without

    compiled = core.compile_model(core.read_model(load_filled(directory, name, int8)), device, options)
    if key is not None:
        exported = compiled.export_model()
        write_cached(key, exported if isinstance(exported, bytes) else exported.getvalue())
    return compiled


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
