"""From a torch network to an ONNX graph whose parameters are named by their state_dict keys."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import onnx
import torch
from torch import nn

from mammoseg.errors import BundleError
from mammoseg.runtime.graph import needed_parameters, strip_parameters

OPSET = 17


def export_graph(network: nn.Module, channels: int = 3, size: tuple[int, int] = (64, 96)) -> onnx.ModelProto:
    """The graph of `network` without its parameters, for any batch, height and width the network itself allows.

    network: f32[B, channels, H, W] to a tensor or a list of tensors. size: (H, W) of the example it is traced with.
    Batch norm is not folded, so that the parameters are the network's own and can be read back into torch.
    Raises `BundleError` where the graph needs something that is no parameter.
    """
    if not getattr(network, "exportable", True):
        name = type(network).__name__
        raise BundleError(f"{name} is for comparison in experiments and has no graph to export; bundles hold YOLOv3")
    module = _with_distinct_values(network)
    example = torch.rand(2, channels, *size)
    with torch.no_grad():
        outputs = module(example)
    count = 1 if isinstance(outputs, torch.Tensor) else len(outputs)
    names = [f"output_{i}" for i in range(count)]
    raw = io.BytesIO()
    target: Any = raw  # the exporter takes a file object too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            target,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=names,
            dynamic_axes={n: {0: "batch", 2: f"{n}_height", 3: f"{n}_width"} for n in ["image", *names]},
            opset_version=OPSET,
        )
    keys = set(network.state_dict())
    model = strip_parameters(onnx.load_model_from_string(raw.getvalue()), keys)
    unknown = [n for n in needed_parameters(model) if n not in keys]
    left = sum(len(i.raw_data) for i in model.graph.initializer)
    if unknown or left > 1 << 20:
        raise BundleError(
            f"the exported graph holds values that are no parameters of the network: {unknown[:3]} ({left} bytes)"
        )
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
    return model


def _with_distinct_values(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose tensors all differ: the exporter joins equal ones, and only the graph is wanted."""
    module = copy.deepcopy(network).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.5)
    return module
