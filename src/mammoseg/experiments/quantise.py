"""Networks in INT8 by post-training quantisation: the ranges of values are taken from what a pipeline gives its networks.

Every convolution gets 8-bit weights, with a scale for each output channel, and 8-bit inputs, but those whose weights rounding
would harm; whether the result may be used is for the parity gate (`gate.py`) to say.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from mammoseg.bundle import NETWORKS, Bundle, graph_file, hash_file, hash_patient, open_bundle, write_sums
from mammoseg.config import to_dict
from mammoseg.datasets import dataset_name
from mammoseg.datasets.images import load_item
from mammoseg.errors import BundleError, UsageError
from mammoseg.pipeline import Pipeline, load, settings_of
from mammoseg.runtime import Network, RuntimeConfig
from mammoseg.runtime.graph import load_filled, needed_parameters, strip_parameters
from mammoseg.runtime.openvino_runtime import no_telemetry
from mammoseg.types import DatasetItem

ROUNDING_MOST = 0.02
"""A convolution whose weights, rounded to 8 bits, are further off than this part of their size stays in floating point.

Usual weights are at 0.005 to 0.015. The shipped segmenter has three at 0.025 to 0.033, which started as the identity: one large
value an output channel, and all that was learnt far below it. With them in 8 bits masks agree with float32's to a Dice of 0.93;
without, to 0.997.
"""
Inputs = list[NDArray[np.float32]]


class _Recorder:
    """A network that keeps what it is given."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.inputs: Inputs = []

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        self.inputs.append(x.copy())
        return self._network(x)


def quantise_bundle(
    directory: Path, items: Sequence[DatasetItem], data: str, out: Path, networks: Sequence[str] = NETWORKS
) -> Bundle:
    """Writes a copy of bundle `directory` to `out` that holds `networks` in INT8 too; runs as before until the gate passed.

    items: images of the data set `data`, on which the pipeline is run; their masses are delineated as well. The images count as
    trained on from then on. A network that it holds in INT8 already is quantised anew.
    Raises UsageError where `out` is not empty or the bundle runs by something other than OpenVINO, BundleError where no mass is
    found or marked for the segmenter, and ImageError.
    """
    opened = open_bundle(directory)
    kind = settings_of(opened).runtime.kind
    if kind != "openvino":
        raise UsageError(f"{directory}: expected a bundle that runs by openvino, which INT8 needs; its runtime.kind is {kind}")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; name another folder for the bundle")
    inputs = record_inputs(opened, items)
    for network in networks:
        if not inputs[network]:
            raise BundleError(
                f"{network}: expected inputs from the {len(items)} images, got none, since no mass was found or marked there; "
                "give images with masses"
            )
    target = out.resolve()
    building = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        shutil.copytree(opened.directory, building)
        made = {network: quantise_network(opened.directory, network, inputs[network], building) for network in networks}
        how = {"dataset": dataset_name(data), "images": len(items), "made_with": f"nncf {importlib.metadata.version('nncf')}"}
        record = {network: {**how, **of_network} for network, of_network in made.items()}
        _write_json(building / "metrics.json", {**opened.metrics, "int8": {**opened.metrics.get("int8", {}), **record}})
        _forget_gate(opened, networks, building)
        _write_json(building / "training.json", _with_seen(opened.training, items, data))
        write_sums(building)
        if target.exists():
            target.rmdir()
        building.replace(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_bundle(out)


def _forget_gate(bundle: Bundle, networks: Sequence[str], building: Path) -> None:
    """Takes `networks` out of those that run in INT8, in the config.json of `building`: no gate has looked at them yet."""
    runtime = settings_of(bundle).runtime
    passed = tuple(n for n in runtime.int8_networks if n in bundle.int8_networks and n not in networks)
    if passed != runtime.int8_networks:
        pipeline = {**bundle.config["pipeline"], "runtime": to_dict(replace(runtime, int8_networks=passed))}
        _write_json(building / "config.json", {**bundle.config, "pipeline": pipeline})


def record_inputs(bundle: Bundle, items: Sequence[DatasetItem]) -> dict[str, Inputs]:
    """What the bundle's pipeline, in float32, gives its networks on `items`: frames of all scales, batches of crops."""
    settings = settings_of(bundle)
    runtime = RuntimeConfig(threads=settings.runtime.threads)
    pipeline: Pipeline = load(bundle.directory, config=replace(settings, runtime=runtime))
    detector, segmenter = _Recorder(pipeline.detector.network), _Recorder(pipeline.segmenter.network)  # type: ignore[arg-type]
    pipeline.detector.network, pipeline.segmenter.network = detector, segmenter
    pipeline.detector.lanes = 1  # inputs in an order that does not change
    for item in items:
        mammogram = load_item(item)
        pipeline.analyze(mammogram)
        pipeline.segmenter.segment(mammogram, [mass.box for mass in item.annotation.masses])
    return {"detector": detector.inputs, "segmenter": segmenter.inputs}


def quantise_network(directory: Path, network: str, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Writes the graph of `network` of the bundle in `directory` in INT8 into the folder `out`, calibrated on `inputs`.

    The graph holds ranges alone: the parameters it rounds are those of the bundle. Returns, JSON-able, how many convolutions
    there are and how many stay in floating point. Raises BundleError where nncf gives a graph that reads other parameters.
    """
    with no_telemetry(), contextlib.redirect_stdout(sys.stderr):  # it shows its progress where results belong
        import nncf
        from nncf.onnx.quantization.backend_parameters import BackendParameters

        nncf.set_log_level(logging.WARNING)  # else it names every layer left out
        model = onnx.load_model_from_string(load_filled(directory, network))
        kept, convolutions = _harmed_by_rounding(model)
        name = model.graph.input[0].name
        quantised = nncf.quantize(
            model,
            nncf.Dataset([{name: x} for x in inputs]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE,  # of processors without VNNI, which do not use it
                # It does more harm than good: Dice of the shipped segmenter's masks with float32's 0.988, 0.997 without it.
                disable_bias_correction=True,
                backend_params={BackendParameters.COMPRESS_WEIGHTS: False},  # parameters stay what they are
            ),
        )
    parameters = needed_parameters(onnx.load_model_from_string(graph_file(directory, network).read_bytes()))
    graph = strip_parameters(quantised, set(parameters))
    if set(needed_parameters(graph)) != set(parameters):
        raise BundleError(
            f"{network}: its graph in INT8 does not read the parameters that it reads in float32; use another nncf"
        )
    graph_file(out, network, int8=True).write_bytes(graph.SerializeToString(deterministic=True))
    return {"inputs": len(inputs), "convolutions": convolutions, "in_floating_point": len(kept)}


def _harmed_by_rounding(model: onnx.ModelProto) -> tuple[list[str], int]:
    """Names of the convolutions that stay in floating point, and the number of all."""
    stored = {i.name: i for i in model.graph.initializer}
    kernels = {n.name: stored[n.input[1]] for n in model.graph.node if n.op_type == "Conv" and n.input[1] in stored}
    weights = {name: numpy_helper.to_array(kernel) for name, kernel in kernels.items()}
    found = {name: rounding(w.reshape(len(w), -1)) for name, w in weights.items()}
    return [name for name, off in found.items() if off > ROUNDING_MOST], len(found)


def rounding(weights: NDArray[np.float32]) -> float:
    """How far weights f32[O, N] move by rounding to 8 bits with a scale for each row, as a part of their size (L2).

    >>> rounding(np.array([[127.0, 1.0, -1.0]], dtype=np.float32))
    0.0
    """
    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    off = np.rint(weights / scale) * scale - weights
    return float(np.linalg.norm(off) / max(float(np.linalg.norm(weights)), 1e-30))


def _with_seen(training: dict[str, Any], items: Sequence[DatasetItem], data: str) -> dict[str, Any]:
    """training.json with the images, and their patients, that the ranges were taken from; as it was where it has no list."""
    if not isinstance(training.get("image_sha256"), list):
        return training
    name = dataset_name(data)
    patients = {hash_patient(name, item.patient_id) for item in items}
    return {
        **training,
        "image_sha256": sorted({*training["image_sha256"], *(hash_file(Path(item.path)) for item in items)}),
        "patient_sha256": sorted({*training.get("patient_sha256", ()), *patients}),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
