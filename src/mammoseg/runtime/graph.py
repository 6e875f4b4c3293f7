"""The graph of a bundle and its parameters: taken apart when a bundle is made, put together when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from mammoseg.bundle import graph_file, load_weights
from mammoseg.errors import BundleError


def strip_parameters(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """A copy of `model` without the initialisers in `names`; small constants of the graph itself stay."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    kept = [i for i in model.graph.initializer if i.name not in names]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept)
    return out


def needed_parameters(model: onnx.ModelProto) -> list[str]:
    """Names that nodes read and nothing in the graph provides: what has to come from the parameters, in graph order."""
    given = {i.name for i in model.graph.initializer} | {i.name for i in model.graph.input} | {""}
    given |= {name for node in model.graph.node for name in node.output}
    needed = dict.fromkeys(name for node in model.graph.node for name in node.input if name not in given)
    return list(needed)


def fill_parameters(model: onnx.ModelProto, state: Mapping[str, NDArray[Any]], where: str) -> onnx.ModelProto:
    """Adds the parameters the graph needs, in place. Raises `BundleError` that names one which `state` lacks."""
    for name in needed_parameters(model):
        if name not in state:
            raise BundleError(f"{where}: the graph needs the parameter {name!r}, which the weights file does not hold")
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(state[name]), name))
    return model


def load_filled(directory: Path, name: str, int8: bool = False) -> bytes:
    """The complete ONNX model of network `name` of a bundle, serialised, parameters as float32.

    int8: its graph in INT8, in which the parameters are rounded to 8 bits, and what is computed from them.
    """
    path = graph_file(directory, name, int8)
    if not path.is_file():
        raise BundleError(f"{path} is missing; get the bundle again")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise BundleError(f"{path} is no ONNX model ({type(error).__name__}); get the bundle again") from error
    fill_parameters(model, load_weights(directory / f"{name}.safetensors"), path.name)
    raw: bytes = model.SerializeToString()
    return raw
