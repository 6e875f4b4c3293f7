"""Networks in INT8: they compute in it, agree with float32, and run only where the parity gate passed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

pytest.importorskip("torch")
pytest.importorskip("nncf")
pytest.importorskip("onnxruntime")

from mammoseg import bundle as b
from mammoseg.apps import exporting
from mammoseg.apps.cli import cli
from mammoseg.config import to_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.datasets.splits import save_fold, whole
from mammoseg.errors import BundleError, ConfigError
from mammoseg.experiments import gate, quantise
from mammoseg.io.load import load_mammogram
from mammoseg.pipeline import load, settings_of
from mammoseg.runtime import RuntimeConfig, load_network
from mammoseg.runtime.graph import load_filled, needed_parameters
from mammoseg.runtime.processor import has_bf16, has_int8

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this processor has no INT8")
DRIVER = """
import json, socket, sys
tried = []
def refuse(*a, **k):
    tried.append(repr(a))
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
from mammoseg.apps.cli import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "tried": tried, "telemetry": sys.modules.get("openvino_telemetry") is not None}))
"""
INT8_FILES = [f"{n}.int8.onnx" for n in b.NETWORKS]


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small phantoms, each with a mass."""
    out = tmp_path_factory.mktemp("exam") / "data"
    write_exams(out, 1, seed=5, format="png", config=PhantomConfig(size=(416, 320), normal_fraction=0.0))
    return out


@pytest.fixture(scope="module")
def quantised(tiny_bundle: Path, exam: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The tiny bundle with both networks in INT8, by the command in a process of its own, and what that printed."""
    folder = tmp_path_factory.mktemp("quantised")
    arguments = ["bundle", "quantise", tiny_bundle, "--data", f"phantom:{exam}", "--out", folder / "int8", "--images", "3"]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "int8", done.stdout.splitlines()


def phantoms(exam: Path) -> list[Path]:
    return [Path(item.path) for item in read_dataset(f"phantom:{exam}")]


def test_the_new_bundle_is_the_old_one_and_the_networks_in_int8(
    tiny_bundle: Path, exam: Path, quantised: tuple[Path, list[str]]
) -> None:
    folder, lines = quantised
    assert json.loads(lines[-1]) == {"code": 0, "tried": [], "telemetry": False}
    assert not (folder.parent / "home" / "intel").exists()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["detector", "segmenter", str(folder)]
    assert sorted(p.name for p in folder.parent.iterdir() if not p.name.startswith("home")) == ["int8"]
    old, new = b.open_bundle(tiny_bundle), b.open_bundle(folder)
    assert (old.int8_networks, new.int8_networks) == ((), b.NETWORKS)
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_bundle.iterdir()} | set(INT8_FILES)
    for file in tiny_bundle.iterdir():
        if file.name not in ("metrics.json", "training.json", b.SUMS):
            assert (folder / file.name).read_bytes() == file.read_bytes()
    assert {k: v for k, v in new.metrics.items() if k != "int8"} == old.metrics
    assert [new.metrics["int8"][n]["images"] for n in b.NETWORKS] == [3, 3]
    assert new.metrics["int8"]["detector"]["inputs"] == 3 * 2  # scales
    assert [new.has_seen(b.hash_file(p)) for p in phantoms(exam)].count(True) == 3
    assert load(folder).provenance["runtime"] == load(tiny_bundle).provenance["runtime"], "it runs otherwise before the gate"
    for name in b.NETWORKS:
        graph = onnx.load_model_from_string(b.graph_file(folder, name, int8=True).read_bytes())
        assert all(len(i.dims) <= 1 for i in graph.graph.initializer), "ranges alone are stored, and no weights"
        whole = onnx.load_model_from_string(b.graph_file(folder, name).read_bytes())
        assert set(needed_parameters(graph)) == set(needed_parameters(whole)), "the parameters are those of the bundle"


def executed(network: Any) -> Counter[str]:
    """In what the convolutions of a compiled network are really computed."""
    nodes = network._compiled.get_runtime_model().get_ops()
    infos = [node.get_rt_info() for node in nodes]
    kinds = [(str(i["layerType"].astype(str)), str(i["runtimePrecision"].astype(str))) for i in infos if "layerType" in i]
    return Counter(precision for kind, precision in kinds if kind == "Convolution")


@needs_int8
@pytest.mark.parametrize("name", b.NETWORKS)
def test_convolutions_are_computed_in_8_bits(quantised: tuple[Path, list[str]], name: str) -> None:
    folder = quantised[0]
    record = b.open_bundle(folder).metrics["int8"][name]
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    whole = load_network(folder, name, RuntimeConfig(threads=1))
    eight = load_network(folder, name, RuntimeConfig(precision="int8", threads=1))
    expected, found = whole(x), eight(x)
    assert executed(whole) == {"f32": record["convolutions"]}
    in_8_bits = {k: v for k, v in executed(eight).items() if k in ("u8", "i8")}
    assert sum(in_8_bits.values()) == record["convolutions"] - record["in_floating_point"] > 0
    assert [f.shape for f in found] == [e.shape for e in expected]
    for f, e in zip(found, expected, strict=True):
        off = np.linalg.norm(f - e) / np.linalg.norm(e - e.mean())
        assert 1e-4 < off < 0.5, "8 bits are neither exact nor far off"


@needs_int8
@pytest.mark.parametrize("kept", [(), ("segmenter",)])
def test_what_stays_in_floating_point_has_the_precision_that_the_network_would_have_without_int8(
    quantised: tuple[Path, list[str]], kept: tuple[str, ...]
) -> None:
    settings = RuntimeConfig(precision="int8", f32_networks=kept, threads=1)
    compiled = load_network(quantised[0], "segmenter", settings)._compiled  # type: ignore[attr-defined]
    expected = "bf16" if has_bf16() and not kept else "f32"
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == expected


def test_findings_through_int8_agree(quantised: tuple[Path, list[str]], exam: Path) -> None:
    whole, eight = (load(quantised[0], [f"runtime.precision={p}", "runtime.threads=1"]) for p in ("f32", "int8"))
    assert eight.provenance["runtime"]["precision"] == "int8"
    for path in phantoms(exam):
        mammogram = load_mammogram(path)
        detected = [p.detector.detect(mammogram, nms_iou=1.0) for p in (whole, eight)]
        for a, e in zip(*detected, strict=True):
            assert abs(a.scores.max() - e.scores.max()) < 0.1
        boxes = [[60, 80, 160, 190], [100, 200, 180, 260]]
        for a, e in zip(*(p.segmenter.segment(mammogram, boxes) for p in (whole, eight)), strict=True):
            assert np.abs(a.probability - e.probability).mean() < 0.03


def test_the_cache_keeps_int8_apart(quantised: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMMOSEG_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    made = {}
    for turn in range(2):
        for precision in ("f32", "int8"):
            out = load_network(quantised[0], "segmenter", RuntimeConfig(precision=precision, threads=1))(x)  # type: ignore[arg-type]
            assert turn == 0 or all(np.array_equal(p, q) for p, q in zip(out, made[precision], strict=True))
            made[precision] = out
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not np.array_equal(made["f32"][0], made["int8"][0])


@needs_int8
@pytest.mark.parametrize("ruined", b.NETWORKS)
def test_the_gate_settles_int8_network_by_network(
    tiny_bundle: Path, exam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ruined: str
) -> None:
    """The float32 networks stand in for good ones in INT8, since random ones find nothing clear; one of them is ruined."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for name in b.NETWORKS:
        model = onnx.load_model_from_string(load_filled(folder, name))
        for kernel in model.graph.initializer:
            if name == ruined and len(kernel.dims) == 4:
                kernel.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(kernel), kernel.name))
        b.graph_file(folder, name, int8=True).write_bytes(model.SerializeToString())
    b.write_sums(folder)
    monkeypatch.setattr(gate, "MASSES_LEAST", 1)
    done = CliRunner().invoke(cli, ["bundle", "check", str(folder), "--data", f"phantom:{exam}", "--store", "--most", "1"])
    assert done.exit_code == 0, done.output
    opened = b.open_bundle(folder)
    ways = opened.metrics["gate"]["ways"]
    good = next(name for name in b.NETWORKS if name != ruined)
    assert {n: not w["falls_short"] for n, w in ways.items() if n.startswith("int8")} == {
        "int8 detector and segmenter": False,
        "int8 detector": ruined != "detector",
        "int8 segmenter": ruined != "segmenter",
    }
    assert settings_of(opened).runtime.int8_networks == (good,)
    assert f"INT8 for {good}" in done.output
    runtime = settings_of(opened).runtime
    assert [runtime.precision_of(n, opened.int8_networks) == "int8" for n in b.NETWORKS] == [n != ruined for n in b.NETWORKS]
    assert "int8" in load(folder).provenance["runtime"]["precision"]


def test_outlines_that_are_not_torchs_fail_the_gate() -> None:
    way = {"images": 1, "images_with_equal_lesion_count": 1, "lesion_box_iou_least": 1.0, "lesion_score_difference": 0.0}
    assert gate.falls_short(way | {"lesion_mask_dice_mean": 0.9901}) == []
    assert "outlines 0.9899" in gate.falls_short(way | {"lesion_mask_dice_mean": 0.9899})[0]


def test_which_precision_a_network_runs_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ran(both: tuple[str, ...] = b.NETWORKS, **settings: Any) -> list[str]:
        return [RuntimeConfig(**settings).precision_of(n, both) for n in b.NETWORKS]

    flags = {"has_bf16": True, "has_int8": True}
    for name in flags:
        monkeypatch.setattr(f"mammoseg.runtime.{name}", lambda name=name: flags[name])
    kept = {"f32_networks": ("detector",), "int8_networks": ("detector",)}
    assert ran(precision="auto") == ["bf16", "bf16"]  # INT8 that no gate passed
    assert ran(precision="auto", **kept) == ["int8", "bf16"]
    assert ran((), precision="auto", **kept) == ["f32", "bf16"]
    assert ran(precision="f32", **kept) == ["f32", "f32"]
    assert ran(precision="bf16", **kept) == ["f32", "bf16"]
    assert ran(precision="int8", f32_networks=("detector",)) == ["int8", "int8"]
    assert ran(("segmenter",), precision="int8", f32_networks=("detector",)) == ["f32", "int8"]
    assert ran(kind="onnxruntime", precision="auto", **kept) == ["f32", "f32"]
    flags["has_int8"] = False
    assert ran(precision="auto", **kept) == ["f32", "bf16"]
    with pytest.raises(ConfigError, match="none; make one with mammoseg bundle quantise"):
        ran((), precision="int8")
    with pytest.raises(ValueError, match="precision int8 is offered by the openvino runtime alone"):
        RuntimeConfig("torch", precision="int8")
    with pytest.raises(ValueError, match="int8_networks: expected detector, segmenter or both, got fusion"):
        RuntimeConfig(int8_networks=("fusion",))
    for flag, expected in (("avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), ("avx512_bf16", False)):
        info = tmp_path / flag
        info.write_text(f"flags\t\t: fpu avx2 {flag}\n")
        assert has_int8(info) == expected


def test_what_rounding_harms_stays_in_floating_point() -> None:
    rng = np.random.default_rng(0)
    usual = rng.standard_normal((64, 64 * 9)).astype(np.float32)
    identity = usual * 2e-3 / 8
    identity[np.arange(64), np.arange(64) * 9 + 4] = 1  # one large value an output channel; what was learnt is far below it
    assert quantise.rounding(usual) < quantise.ROUNDING_MOST
    learnt = identity.copy()
    learnt[identity == 1] = 0
    assert np.abs(learnt).max() < 1 / 127 / 2, "all of that is rounded away"
    assert quantise.rounding(learnt + 0) < quantise.ROUNDING_MOST, "and would not be by itself"
    harmed = identity * np.where(identity == 1, 1, 5).astype(np.float32)
    kernels = {"usual": usual, "identity": harmed}
    nodes = [helper.make_node("Conv", [f"x{k}", name], [f"x{k + 1}"], name) for k, name in enumerate(kernels)]
    stored = [numpy_helper.from_array(w.reshape(64, 64, 3, 3), name) for name, w in kernels.items()]
    assert quantise._harmed_by_rounding(helper.make_model(helper.make_graph(nodes, "g", [], [], stored))) == (["identity"], 2)


def changed(bundle: Path, folder: Path, **runtime: Any) -> Path:
    """A copy of a bundle with other settings of the runtime."""
    shutil.copytree(bundle, folder)
    config = b.open_bundle(folder).config
    config["pipeline"]["runtime"] = to_dict(RuntimeConfig(**runtime))
    (folder / "config.json").write_text(json.dumps(config))
    b.write_sums(folder)
    return folder


def test_wrong_use_is_one_line_and_leaves_nothing(
    tiny_bundle: Path, exam: Path, quantised: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = f"phantom:{exam}", tmp_path / "out"

    def fails(code: int, words: str, bundle: Path = tiny_bundle, *more: str, to: Path = out) -> None:
        done = CliRunner().invoke(cli, ["bundle", "quantise", str(bundle), "--data", data, "--out", str(to), *more])
        assert done.exit_code == code, done.output
        assert words in done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("Statistics collection")]  # its progress
        assert len(lines) == 1, done.stderr
        assert to != out or not out.exists()
        assert not list(tmp_path.glob(".*"))

    fails(2, "its runtime.kind is onnxruntime", changed(tiny_bundle, tmp_path / "other", kind="onnxruntime"))
    fails(2, "is not empty; name another folder", to=tmp_path / "other")
    inside = tiny_bundle / "new"
    fails(2, "expected a folder outside", to=inside)
    assert not inside.exists()
    save_fold(tmp_path / "fold.json", whole(read_dataset(data)))
    fails(1, "no image on its test side", tiny_bundle, "--fold", str(tmp_path / "fold.json"), "--side", "test")
    monkeypatch.setattr(exporting, "read_dataset", lambda _: [])
    fails(1, "expected images, found none")
    monkeypatch.undo()
    monkeypatch.setattr(quantise, "record_inputs", lambda *_: {"detector": [np.zeros((1, 3, 64, 64))], "segmenter": []})
    fails(1, "no mass was found or marked there; give images with masses")
    monkeypatch.undo()
    monkeypatch.setattr(quantise, "needed_parameters", lambda graph: [str(len(graph.graph.node))])
    fails(1, "does not read the parameters that it reads in float32")
    monkeypatch.undo()
    find = exporting.importlib.util.find_spec
    for missing in ("nncf", "onnxruntime"):
        absent = partial(lambda name, missing: None if name == missing else find(name), missing=missing)
        monkeypatch.setattr(exporting.importlib.util, "find_spec", absent)
        fails(2, "pip install 'mammoseg[quantise]'")


def test_a_network_is_quantised_anew_and_runs_so_only_after_the_gate(
    quantised: tuple[Path, list[str]], exam: Path, tmp_path: Path
) -> None:
    passed = changed(quantised[0], tmp_path / "passed", precision="auto", int8_networks=b.NETWORKS)
    arguments = ["bundle", "quantise", str(passed), "--data", f"phantom:{exam}", "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(cli, [*arguments, "--images", "1", "--network", "segmenter"])
    assert done.exit_code == 0, done.output
    old, new = b.open_bundle(passed), b.open_bundle(tmp_path / "again")
    assert settings_of(new).runtime == RuntimeConfig(precision="auto", int8_networks=("detector",))
    assert new.metrics["int8"]["detector"] == old.metrics["int8"]["detector"]
    assert [new.metrics["int8"]["segmenter"]["images"], old.metrics["int8"]["segmenter"]["images"]] == [1, 3]
    kept, made = ([b.graph_file(x.directory, n, int8=True).read_bytes() for x in (old, new)] for n in b.NETWORKS)
    assert len(set(kept)) == 1, "the detector's is the one that was there"
    assert len(set(made)) == 2


def test_a_damaged_int8_graph_is_named(quantised: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantised[0], tmp_path / "bundle"))
    file = b.graph_file(folder, "segmenter", int8=True)
    graph = onnx.load_model_from_string(file.read_bytes())
    kernel = next(n for n in graph.graph.node if n.op_type == "QuantizeLinear" and n.input[0].endswith("weight"))
    kernel.input[0] = "another"
    for content, words in ((graph.SerializeToString(), "needs the parameter 'another'"), (b"\xff" * 99, "is no ONNX model")):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=rf"segmenter\.int8\.onnx.*{words}"):
            load_network(folder, "segmenter", RuntimeConfig(precision="int8", threads=1))


def test_an_int8_file_that_no_sum_vouches_for_is_refused(quantised: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantised[0], tmp_path / "bundle"))
    lines = (folder / b.SUMS).read_text().splitlines(keepends=True)
    (folder / b.SUMS).write_text("".join(line for line in lines if "segmenter.int8.onnx" not in line))
    with pytest.raises(BundleError, match=r"segmenter\.int8\.onnx is not listed"):
        b.open_bundle(folder)


def test_a_bundle_made_of_one_in_int8_starts_over(
    quantised: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle

    monkeypatch.setattr("mammoseg.experiments.make_bundle.measure_parity", lambda *_: {})
    passed = changed(quantised[0], tmp_path / "passed", precision="auto", int8_networks=("segmenter",))
    make_bundle(passed, passed, tmp_path / "again", BundleOptions("again", force=True))
    again = b.open_bundle(tmp_path / "again")
    assert (settings_of(again).runtime, again.int8_networks) == (RuntimeConfig(), ())
