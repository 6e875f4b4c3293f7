"""How much arithmetic a network is, and how much of it this machine can do: GFLOP, and GFLOP/s of matrix multiplication."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from mammoseg.runtime.graph import load_filled
from mammoseg.runtime.openvino_runtime import ov

_SIDES = (1024, 1536, 2048)


def gflop(bundle: Path, network: str, shape: tuple[int, int, int, int]) -> float:
    """Of one pass of `network` over an input of `shape`: 2 for each multiplication with addition of its convolutions."""
    model = ov.Core().read_model(load_filled(bundle, network))
    model.reshape(list(shape))
    total = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Convolution", "GroupConvolution"):
            kernel = list(node.input(1).get_shape())  # (O, I, h, w), or (groups, O, I, h, w)
            total += 2 * int(np.prod(list(node.output(0).get_shape()))) * int(np.prod(kernel[-3:]))
        elif "Conv" in kind and "Convert" not in kind:
            raise ValueError(f"{kind} is not counted here")
    return total / 1e9


def matmul_rate(precision: str, threads: int) -> float:
    """GFLOP/s of the fastest of a few square matrix multiplications in "f32", "bf16" or "int8", by OpenVINO or torch."""
    by_openvino = [_openvino(side, precision, threads) for side in _SIDES]
    return max(by_openvino + [_torch(side, precision, threads) for side in _SIDES if precision != "int8"])


def _rate(run: object, side: int) -> float:
    assert callable(run)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[2:]) / 1e9


def _openvino(side: int, precision: str, threads: int) -> float:
    values = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    x = ov.opset13.parameter([side, side], np.float32)
    a, b = x, ov.opset13.constant(values)
    if precision == "int8":  # the runtime's own sign for it: rounded to 256 and 255 values
        a, b = ov.opset13.fake_quantize(a, 0.0, 4.0, 0.0, 4.0, 256), ov.opset13.fake_quantize(b, -4.0, 4.0, -4.0, 4.0, 255)
    model = ov.Model([ov.opset13.matmul(a, b, False, False)], [x])
    hint = "bf16" if precision == "bf16" else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    return _rate(lambda: request.infer([values], share_inputs=True), side)


def _torch(side: int, precision: str, threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randn(side, side).to(torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    with torch.inference_mode():
        return _rate(lambda: a @ b, side)
