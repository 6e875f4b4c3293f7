"""A trained network as one file for other runtimes, compared with torch before it is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch

from mammoseg.errors import BundleError, TrainingError, UsageError
from mammoseg.experiments.export import export_graph
from mammoseg.experiments.start import open_model
from mammoseg.io.atomic import write_atomic
from mammoseg.runtime.graph import fill_parameters
from mammoseg.runtime.openvino_runtime import ov
from mammoseg.runtime.torch_runtime import ModuleNetwork, build
from mammoseg.training.checkpoint import Model, latest_checkpoint, load_model, read_checkpoint

Kind = Literal["detector", "segmenter"]
DIFFERENCE_MOST = 1e-3
"""Of the largest output: float32 by other kernels, in another order."""


def find_model(path: Path, network: str | None) -> Model:
    """The network at `path`: a model directory, a checkpoint or the newest one of a training run, or `network` of a bundle.

    A checkpoint takes its architecture from OUT/model of the same run. Raises UsageError where a bundle's network is not named,
    TrainingError where there is none of these.
    """
    if (path / "model.json").is_file():
        return load_model(path)
    if (path / "config.json").is_file():
        if network is None:
            raise UsageError(f"{path} is a bundle: say --network detector or --network segmenter")
        return open_model(path, cast("Kind", network))
    named = path.name.startswith("checkpoint-")
    run = path.resolve().parents[1] if named else path
    checkpoint = read_checkpoint(path) if named else latest_checkpoint(run / "checkpoints")
    if checkpoint is None or not (run / "model" / "model.json").is_file():
        raise TrainingError(f"{path}: expected OUT/model of a training run, a run with a checkpoint and a model, or a bundle")
    described = load_model(run / "model")
    state = checkpoint.ema or checkpoint.model
    return Model(described.kind, state, described.config, described.spec, described.record)


def export_network(path: Path, out: Path, network: str | None = None, form: str = "onnx") -> tuple[Kind, float]:
    """Writes the network at `path` to `out`, complete, as ONNX or OpenVINO IR; its kind and how far it is from torch.

    Raises what `find_model` raises, and BundleError where the file would not compute what the network computes.
    """
    if form == "openvino" and out.suffix != ".xml":
        raise UsageError(f"{out}: an OpenVINO file ends in .xml (its parameters go to .bin beside it)")
    model = find_model(path, network)
    module = build(model.kind, model.config, {k: v.numpy() for k, v in model.state.items()})
    channels = int(next(v for v in module.state_dict().values() if v.ndim == 4).shape[1])
    graph = export_graph(module, channels)
    fill_parameters(graph, {k: v.numpy() for k, v in module.state_dict().items()}, str(path))
    onnx.checker.check_model(graph)
    raw = graph.SerializeToString(deterministic=True)
    difference = _difference(raw, module, channels)
    if not difference <= DIFFERENCE_MOST:
        raise BundleError(f"{path}: the exported network differs from torch by {difference:.2g} of its largest output")
    if form == "onnx":
        write_atomic(out, raw)
    else:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder) / out.name
            ov.save_model(ov.Core().read_model(raw), str(made), compress_to_fp16=False)
            made.with_suffix(".bin").replace(out.with_suffix(".bin"))
            made.replace(out)
    return model.kind, difference


def _difference(raw: bytes, module: torch.nn.Module, channels: int) -> float:
    """The largest difference between the graph under OpenVINO and the module, as a part of the largest output."""
    x = np.random.default_rng(0).random((2, channels, 96, 64), dtype=np.float32)
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    result = ov.Core().compile_model(ov.Core().read_model(raw), "CPU", options)([x])
    worst = 0.0
    for i, expected in enumerate(ModuleNetwork(module)(x)):
        scale = max(float(np.abs(expected).max()), 1e-6)
        worst = max(worst, float(np.abs(np.asarray(result[i]) - expected).max()) / scale)
    return worst
