"""The pipeline with its networks run in different ways, all on the same image with the same two masses."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mammoseg
from benchmarks.inputs import TwoMasses
from benchmarks.planted import Planted
from mammoseg.io.pictures import label_image
from mammoseg.pipeline import Pipeline
from mammoseg.types import Findings, Mammogram

Maps = list[NDArray[np.float32]]
OURS, INT8 = "openvino", "openvino_int8"
RUNTIMES = {
    OURS: ("runtime.kind=openvino",),  # in the precisions that the bundle's gate allows
    "openvino_f32": ("runtime.kind=openvino", "runtime.precision=f32"),
    "onnxruntime_f32": ("runtime.kind=onnxruntime", "runtime.precision=f32"),
    "torch_f32_nchw": ("runtime.kind=torch", "runtime.precision=f32"),
    "torch_f32_channels_last": ("runtime.kind=torch", "runtime.precision=f32"),
    INT8: ("runtime.kind=openvino", "runtime.precision=int8"),  # of a bundle that holds both networks so, gate or no gate
}
RIVALS = ("onnxruntime_f32", "torch_f32_nchw", "torch_f32_channels_last")


class ChannelsLast:
    """A torch network in the memory format that its convolutions are fastest in."""

    def __init__(self, network: Any) -> None:
        import torch

        self._torch = torch
        self._module = network._module.to(memory_format=torch.channels_last)

    def __call__(self, x: NDArray[np.float32]) -> Maps:
        """x f32[B, C, H, W] to a list of arrays."""
        with self._torch.inference_mode():
            out = self._module(self._torch.from_numpy(x).contiguous(memory_format=self._torch.channels_last))
        return [np.ascontiguousarray(o.numpy()) for o in ([out] if isinstance(out, self._torch.Tensor) else out)]


class Recorded:
    """A network that keeps what it was given and answered, and can answer the same again without doing anything."""

    def __init__(self, network: Any) -> None:
        self._network, self.replay = network, False
        self.lanes = getattr(network, "lanes", 1)
        self.seen: dict[tuple[int, ...], tuple[NDArray[np.float32], Maps]] = {}

    def __call__(self, x: NDArray[np.float32]) -> Maps:
        """x f32[B, C, H, W] to the network's maps, or to copies of those it gave for this shape before."""
        if not self.replay:
            self.seen[x.shape] = x.copy(), [m.copy() for m in self._network(x)]
        return [m.copy() for m in self.seen[x.shape][1]]

    def run_networks(self) -> None:
        """The networks alone, on the inputs seen, as many at a time as the pipeline runs."""
        inputs = sorted((x for x, _ in self.seen.values()), key=lambda x: -x.size)
        if self.lanes == 1:
            for x in inputs:
                self._network(x)
        else:
            with ThreadPoolExecutor(self.lanes) as lanes:
                list(lanes.map(self._network, inputs))


class Contender:
    """bundle: a directory. runtime: one of `RUNTIMES`. random: whether the bundle's weights are."""

    def __init__(self, bundle: Path, runtime: str, mammogram: Mammogram, threads: int, random: bool) -> None:
        sets = [*RUNTIMES[runtime], f"runtime.threads={threads}"]
        if random and runtime == OURS:  # nothing to lose: the published networks are timed as they would run
            sets.append("runtime.precision=auto")
        self.pipeline: Pipeline = mammoseg.load(bundle, sets)
        self.precisions = {
            n: self.pipeline.config.runtime.precision_of(n, self.pipeline.bundle.int8_networks)
            for n in ("detector", "segmenter")
        }
        self.mammogram = mammogram
        detector, segmenter = self.pipeline.detector, self.pipeline.segmenter
        networks: Sequence[Any] = (detector.network, segmenter.network)
        if runtime == "torch_f32_channels_last":
            networks = [ChannelsLast(n) for n in networks]
        self.detector, self.segmenter = Recorded(networks[0]), Recorded(networks[1])
        self._planted = Planted(networks[0], detector.spec, mammogram, random)
        self._planted.boxes = TwoMasses().in_image(mammogram.size)
        self.spec, self.random, self._networks = detector.spec, random, networks
        self.use_networks()

    def use_networks(self) -> None:
        """The networks themselves, not recordings of them."""
        self.pipeline.detector.network, self.pipeline.segmenter.network = self._planted, self._networks[1]

    def use_recordings(self) -> None:
        """Records one image, and from then on answers with that."""
        recorded = Planted(self.detector, self.spec, self.mammogram, self.random)
        recorded.boxes = self._planted.boxes
        self.pipeline.detector.network, self.pipeline.segmenter.network = recorded, self.segmenter
        self.run()
        self.detector.replay = self.segmenter.replay = True

    def run(self) -> Findings:
        """Decoded image to findings and mask."""
        findings = self.pipeline.analyze(self.mammogram)
        label_image(findings)
        if len(findings.lesions) != 2:
            raise RuntimeError(f"expected the two masses to be found, got {len(findings.lesions)}")
        return findings
