"""The registered networks, exported and run by OpenVINO and ONNX Runtime, against torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammoseg import bundle as b
from mammoseg.errors import BundleError, ConfigError
from mammoseg.runtime import RuntimeConfig, load_network

torch = pytest.importorskip("torch")

DETECTORS = {
    "lite2": {"backbone": "efficientnet_lite2", "neck_widths": [16, 16, 16], "neck_pairs": 1, "fold_norm": True},
    "lite0": {"backbone": "efficientnet_lite0", "neck_widths": [8, 8, 8]},
}


def _randomised(kind: str, config: dict[str, Any]) -> Any:
    """The network with statistics that are not those of a fresh one (zeros and ones would hide a mistake)."""
    from mammoseg.runtime.torch_runtime import build

    torch.manual_seed(0)
    network = build(kind, config)
    for key, value in network.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return network


def _write(folder: Path, kind: str, network: Any, config: dict[str, Any], dtype: b.WeightType) -> None:
    import json

    from mammoseg.experiments.export import export_graph

    (folder / f"{kind}.onnx").write_bytes(export_graph(network).SerializeToString())
    b.save_weights(folder / f"{kind}.safetensors", {k: v.numpy() for k, v in network.state_dict().items()}, dtype, 1024)
    (folder / "config.json").write_text(json.dumps({"networks": {kind: {"config": config}}}))


@pytest.mark.parametrize(
    ("kind", "config", "sizes"),
    [
        ("detector", DETECTORS["lite2"], [(1, 128, 64), (2, 96, 160)]),
        ("detector", DETECTORS["lite0"], [(1, 64, 64)]),
        ("detector", {"backbone": "darknet53", "neck_widths": [8, 8, 8]}, [(1, 64, 96)]),
        ("segmenter", {"arch": "unetpp", "network": {"widths": [8, 8, 16, 16, 16]}}, [(1, 64, 64), (3, 32, 80)]),
    ],
    ids=["lite2", "lite0", "darknet53", "unetpp"],
)
def test_every_network_computes_the_same_everywhere(
    tmp_path: Path, kind: str, config: dict[str, Any], sizes: list[tuple[int, int, int]]
) -> None:
    network = _randomised(kind, config)
    _write(tmp_path, kind, network, config, "float32")
    assert (tmp_path / f"{kind}.onnx").stat().st_size < 400_000, "the graph holds parameters"
    for runtime in ("openvino", "onnxruntime", "torch"):
        if runtime == "onnxruntime":
            pytest.importorskip("onnxruntime")
        run = load_network(tmp_path, kind, RuntimeConfig(runtime, threads=1))  # type: ignore[arg-type]
        for batch, height, width in sizes:
            x = np.random.default_rng(height).random((batch, 3, height, width), dtype=np.float32)
            with torch.no_grad():
                expected = [o.numpy() for o in network(torch.from_numpy(x))]
            got = run(x)
            assert [g.shape for g in got] == [e.shape for e in expected]
            for g, e in zip(got, expected, strict=True):
                assert np.abs(g - e).max() <= 1e-4 * max(1.0, np.abs(e).max()), runtime
            assert all(np.array_equal(p, q) for p, q in zip(got, run(x), strict=True)), "not the same twice"


def test_small_weights_are_the_same_for_every_runtime(tmp_path: Path) -> None:
    config = {"arch": "unetpp", "network": {"widths": [8, 8, 16, 16, 16]}}
    _write(tmp_path, "segmenter", _randomised("segmenter", config), config, "int8")
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    first, second = (load_network(tmp_path, "segmenter", RuntimeConfig(k, threads=1))(x) for k in ("openvino", "torch"))
    assert max(np.abs(p - q).max() for p, q in zip(first, second, strict=True)) < 1e-4


def test_what_does_not_fit_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    state = b.load_weights(folder / "detector.safetensors")
    state.pop("scale8.out.bias")
    b.save_weights(folder / "detector.safetensors", state)
    with pytest.raises(BundleError, match=r"needs the parameter 'scale8\.out\.bias'"):
        load_network(folder, "detector")
    with pytest.raises(BundleError, match="do not fit"):
        load_network(folder, "detector", RuntimeConfig("torch"))
    (folder / "segmenter.onnx").write_bytes(b"\x00nonsense")
    with pytest.raises(BundleError, match=r"segmenter\.onnx is no ONNX model"):
        load_network(folder, "segmenter")
    (folder / "segmenter.onnx").unlink()
    with pytest.raises(BundleError, match=r"segmenter\.onnx is missing"):
        load_network(folder, "segmenter")


def test_wrong_input_and_settings_are_refused(tiny_bundle: Path) -> None:
    run = load_network(tiny_bundle, "segmenter", RuntimeConfig(threads=1))
    with pytest.raises(ValueError, match=r"expected float32\[B, C, H, W\]"):
        run(np.zeros((3, 64, 64), np.float32))
    with pytest.raises(ValueError, match="threads"):
        RuntimeConfig(threads=-1)
    with pytest.raises(ValueError, match="openvino runtime alone"):
        RuntimeConfig("torch", precision="bf16")
    with pytest.raises(ConfigError, match="unknown runtime"):
        load_network(tiny_bundle, "segmenter", RuntimeConfig("tensorflow"))  # type: ignore[arg-type]


INTERRUPTED = """
import gc, os, signal, sys, time
from pathlib import Path
from mammoseg.runtime import RuntimeConfig, load_network
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
network = load_network(Path(sys.argv[1]), "detector", RuntimeConfig(kind="openvino"))
if sys.argv[2] == "released":
    del network
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("network", ["held", "released"])
def test_openvino_leaves_signals_as_they_were(tiny_bundle: Path, network: str) -> None:
    """It leaves a signal stack behind that it has freed: Ctrl-C then was a segmentation fault."""
    command = [sys.executable, "-c", INTERRUPTED, str(tiny_bundle), network]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "interrupted", "")
