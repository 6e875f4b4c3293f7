"""What INT8 brings in time, network by network: each in float32, bf16 and INT8 in turns, on one image's inputs."""

from __future__ import annotations

import functools
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import medians
from benchmarks.work import gflop
from mammoseg.bundle import NETWORKS, open_bundle, write_sums
from mammoseg.config import from_dict
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.experiments.quantise import quantise_network
from mammoseg.pipeline import LANES
from mammoseg.runtime import RuntimeConfig, load_network
from mammoseg.segmentation.predictor import read_spec

PRECISIONS = ("f32", "bf16", "int8")
Inputs = list[NDArray[np.float32]]


def int8(bundle: Path, folder: Path, threads: int, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Seconds of each network by precision, and how near that is to the rate of matrix multiplication.

    Also in processor time, over all threads, which other programs on the machine disturb less. The ranges are taken from
    noise: what INT8 costs in accuracy is for the parity gate, and time does not depend on it.
    """
    copy, found = quantised(bundle, folder)
    inputs = one_image(bundle)
    out: dict[str, Any] = {}
    for name in NETWORKS:
        made = found[name]
        lanes = LANES if name == "detector" else 1
        networks = {p: load_network(copy, name, RuntimeConfig(precision=p, threads=threads), lanes) for p in PRECISIONS}  # type: ignore[arg-type]

        def run(network: Any, xs: Inputs = inputs[name]) -> None:
            with ThreadPoolExecutor(network.lanes) as pool:
                list(pool.map(network, xs))

        runs = {p: lambda n=n, run=run: run(n) for p, n in networks.items()}  # type: ignore[misc]
        seconds = medians(runs, repeats)
        cpu = medians(runs, repeats, 0, time.process_time)
        work = sum(gflop(bundle, name, x.shape) for x in inputs[name])  # type: ignore[arg-type]
        out[name] = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "int8_to": {p: seconds[p] / seconds["int8"] for p in PRECISIONS[:-1]},
            "int8_to_in_cpu_time": {p: cpu[p] / cpu["int8"] for p in PRECISIONS[:-1]},
            "gflop": work,
            "gflop_per_s": {p: work / s for p, s in seconds.items()},
            "share_of_matmul_rate": {p: work / s / rates[p] for p, s in seconds.items()},
            "convolutions_in_floating_point": made["in_floating_point"],
        }
    return out


@functools.cache
def quantised(bundle: Path, folder: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A copy of `bundle` with both networks in INT8, ranges from noise, and what `quantise_network` says of each."""
    copy = folder / f"int8-{bundle.name}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    inputs = one_image(bundle)
    found = {name: quantise_network(bundle, name, inputs[name], copy) for name in NETWORKS}
    write_sums(copy)
    return copy, found


def one_image(bundle: Path) -> dict[str, Inputs]:
    """Noise in the shapes of one image with two masses: the detector's scales, largest first, and a batch of two crops."""
    networks = open_bundle(bundle).config["networks"]
    detector, segmenter = from_dict(DetectorSpec, networks["detector"]["spec"]), read_spec(networks["segmenter"]["spec"])
    rng = np.random.default_rng(0)
    scales = sorted(detector.scales, reverse=True)
    return {
        "detector": [rng.random((1, detector.channels, *size), dtype=np.float32) for size in scales],
        "segmenter": [rng.random((2, segmenter.channels, segmenter.crop.size, segmenter.crop.size), dtype=np.float32)],
    }
