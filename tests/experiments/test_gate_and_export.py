"""Exported networks compute what torch computes; the parity gate sees what differs and settles how a bundle runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from mammoseg import bundle as b
from mammoseg.apps.cli import cli
from mammoseg.errors import BundleError
from mammoseg.experiments import gate
from mammoseg.experiments.exporting import export_network, find_model
from mammoseg.pipeline import settings_of
from mammoseg.runtime.processor import has_bf16
from mammoseg.runtime.torch_runtime import ModuleNetwork, build

GOOD: dict[str, Any] = {
    "images": 3,
    "images_with_equal_lesion_count": 3,
    "lesions": 12,
    "lesion_box_iou_least": 0.95,
    "lesion_score_difference": 0.01,
}


def module_of(path: Path, network: str | None = None) -> ModuleNetwork:
    model = find_model(path, network)
    return ModuleNetwork(build(model.kind, model.config, {k: v.numpy() for k, v in model.state.items()}))


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_an_exported_model_runs_elsewhere(model_directories: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from mammoseg.runtime.openvino_runtime import ov

    source = dict(zip(("detector", "segmenter"), model_directories, strict=True))[kind]
    done = CliRunner().invoke(cli, ["export", str(source), "--out", str(tmp_path / "net.onnx")])
    assert done.exit_code == 0, done.output
    assert f"{kind}, " in done.output
    export_network(source, tmp_path / "net.xml", form="openvino")
    x = np.random.default_rng(1).random((3, 3, 64, 128), dtype=np.float32)
    expected = module_of(source)(x)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    compiled = ov.Core().compile_model(str(tmp_path / "net.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (session.run(None, {"image": x}), list(compiled([x]).values())):
        assert len(found) == len(expected)
        for a, e in zip(found, expected, strict=True):
            assert np.abs(a - e).max() <= 1e-3 * np.abs(e).max()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.onnx", "net.xml"]
    for form, name in (("onnx", "new/a.onnx"), ("openvino", "other/b.xml")):
        made = CliRunner().invoke(cli, ["export", str(source), "--out", str(tmp_path / name), "--format", form])
        assert (made.exit_code, (tmp_path / name).is_file()) == (0, True), made.output
    again = CliRunner().invoke(cli, ["export", str(source), "--out", str(tmp_path / "net.onnx")])
    assert again.exit_code == 2
    assert "--overwrite" in again.output


def test_a_checkpoint_and_a_bundle_can_be_exported(
    model_directories: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    from mammoseg.training.checkpoint import Checkpoint, save_checkpoint

    run = tmp_path / "run"
    shutil.copytree(model_directories[0], run / "model")
    state = find_model(run / "model", None).state
    moved = {k: v * 1.5 if k == "scale8.out.bias" else v for k, v in state.items()}
    for step, ema in ((6, state), (7, moved)):
        save_checkpoint(run / "checkpoints", Checkpoint(step, state, ema, {"state": {}, "param_groups": []}, {}))
    newest, before = (run / "checkpoints" / f"checkpoint-{step:08d}" for step in (7, 6))
    for path, expected in ((run, moved), (newest, moved), (before, state)):
        assert find_model(path, None).state["scale8.out.bias"].equal(expected["scale8.out.bias"])
        assert export_network(path, tmp_path / "c.onnx")[0] == "detector"
    assert export_network(tiny_bundle, tmp_path / "s.onnx", "segmenter")[0] == "segmenter"
    for arguments, words in (([str(tiny_bundle)], "--network"), ([str(tmp_path)], "OUT/model of a training run")):
        done = CliRunner().invoke(cli, ["export", *arguments, "--out", str(tmp_path / "x.onnx")])
        assert done.exit_code != 0
        assert words in done.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"images_with_equal_lesion_count": 2}, "another number of masses in 1 of 3"),
        ({"lesion_box_iou_least": 0.89}, "least IoU"),
        ({"lesion_score_difference": 0.021}, "scores differ"),
        ({"ap50": -0.0051}, "AP50 differs by -0.0051"),
        ({"ap50": 0.004, "dice_on_true_boxes": -0.0029}, None),
        ({"dice_on_true_boxes": -0.0031}, "Dice on true boxes"),
    ],
)
def test_each_bar_of_the_gate(change: dict[str, Any], words: str | None) -> None:
    short = gate.falls_short(GOOD | change)
    assert (short == []) if words is None else (len(short) == 1 and words in short[0])


def test_the_network_that_fails_stays_in_float32() -> None:
    passed, failed = {"falls_short": []}, {"falls_short": ["something"]}
    ways = {"f32": passed, "bf16": failed, "bf16, detector f32": passed, "bf16, segmenter f32": failed}
    assert gate._allowed(ways).f32_networks == ("detector",)
    assert gate._allowed(ways | {"bf16": passed}).f32_networks == ()
    assert gate._allowed({"f32": passed}).precision == "f32"
    assert gate._allowed(ways | {"bf16, detector f32": failed}).precision == "f32"


def test_the_gate_runs_and_its_result_is_stored(tiny_bundle: Path, tmp_path: Path) -> None:
    from mammoseg.datasets.phantom import PhantomConfig
    from mammoseg.datasets.phantom_files import write_exams

    folder, data = tmp_path / "bundle", tmp_path / "data"
    shutil.copytree(tiny_bundle, folder)
    write_exams(data, 1, seed=5, format="png", config=PhantomConfig(size=(416, 320), normal_fraction=0.0))
    done = CliRunner().invoke(cli, ["bundle", "check", str(folder), "--data", f"phantom:{data}", "--store"])
    assert "f32: 4 images" in done.output
    assert ("bf16, detector f32: 4 images" in done.output) == has_bf16()
    opened = b.open_bundle(folder)  # its sums are right again
    if done.exit_code == 0:
        stored = opened.metrics["gate"]
        assert stored["ways"]["f32"]["falls_short"] == []
        assert abs(stored["ways"]["f32"]["ap50"]) <= 0.005
        assert abs(stored["ways"]["f32"]["dice_on_true_boxes"]) <= 0.003
        assert settings_of(opened).runtime.precision == stored["runtime"]["precision"]
        assert opened.sha256 != b.open_bundle(tiny_bundle).sha256
    else:  # random weights find too few masses for a verdict
        assert "are the least it can be judged by" in done.output


def test_a_bundle_compared_without_a_mass_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parity = {"images": 1, "on": "given images", "lesions": 0, "lesion_mask_dice_mean": 1.0, "lesion_score_difference": 0.0}
    parity["segmenter_mask_dice_mean"] = 1.0
    arguments = ["bundle", "make", "--detector", "installed", "--segmenter", "installed", "--out", str(tmp_path / "out")]
    for lesions in (0, 3):
        found = {"bytes": {}, "parity": parity | {"lesions": lesions}}
        monkeypatch.setattr("mammoseg.experiments.make_bundle.make_bundle", lambda *_, found=found: found)
        done = CliRunner().invoke(cli, arguments)
        assert (done.exit_code, "no mass was found there" in done.stderr) == (0, lesions == 0), done.output


def test_a_bundle_is_whole_where_storing_is_stopped(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = b.open_bundle(folder).sha256
    passed = {"ways": {"f32": GOOD | {"falls_short": []}}, "runtime": {"precision": "auto", "f32_networks": []}}
    whole = gate.write_sums

    def stopped(directory: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "run_gate", lambda *_: passed)
    monkeypatch.setattr(gate, "write_sums", stopped)
    image = tmp_path / "image.png"
    image.write_bytes(b"")
    arguments = ["bundle", "check", str(folder), "--image", str(image), "--store"]
    CliRunner().invoke(cli, arguments)
    assert b.open_bundle(folder).sha256 == before
    monkeypatch.setattr(gate, "write_sums", whole)
    (tmp_path / ".bundle.tmp").mkdir()  # as one that was killed leaves it
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert b.open_bundle(folder).sha256 != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "image.png"]


def test_a_result_that_says_nothing_or_condemns_is_not_stored(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    before = (folder / b.SUMS).read_bytes()
    way = GOOD | {"falls_short": []}
    few = {"ways": {"f32": way | {"lesions": 9}}, "runtime": {"precision": "auto", "f32_networks": []}}
    with pytest.raises(BundleError, match="saw 9 masses"):
        gate.store(folder, few, "9")
    wrong = {"ways": {"f32": way | {"falls_short": ["least IoU 0.5"]}}, "runtime": {"precision": "f32", "f32_networks": []}}
    with pytest.raises(BundleError, match=r"does not find what torch finds \(least IoU 0\.5\)"):
        gate.store(folder, wrong, "9")
    assert (folder / b.SUMS).read_bytes() == before
    good = {"ways": {"f32": way}, "runtime": {"precision": "auto", "f32_networks": ["detector"]}}
    opened = gate.store(folder, good, "phantoms")
    assert opened.config["pipeline"]["runtime"]["f32_networks"] == ["detector"]
    assert opened.metrics["gate"]["on"] == "phantoms"
    assert json.loads((folder / "config.json").read_text())["networks"] == b.open_bundle(tiny_bundle).config["networks"]


def test_the_shipped_bundle_runs_as_its_gate_allows() -> None:
    opened = b.open_bundle()
    runtime = settings_of(opened).runtime
    if runtime.precision == "f32":
        return
    assert runtime.precision == "auto"
    way = opened.metrics["gate"]["ways"][gate._name(runtime.f32_networks)]
    assert gate.falls_short(way) == way["falls_short"] == []
    assert way["lesions"] >= gate.MASSES_LEAST


def test_a_gate_that_compared_nothing_does_not_pass(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "a.png"
    image.touch()
    way = {"images": 1, "lesions": 0, "falls_short": []}
    monkeypatch.setattr("mammoseg.experiments.gate.run_gate", lambda *a, **k: {"ways": {"f32": way}, "runtime": {}})
    done = CliRunner().invoke(cli, ["bundle", "check", str(tiny_bundle), "--image", str(image)])
    assert done.exit_code == 1
    assert "no mass was found, so nothing was compared" in done.output
    refused = CliRunner().invoke(cli, ["bundle", "check", str(tiny_bundle), "--image", str(image), "--most", "3"])
    assert refused.exit_code == 2
    assert "leave them out with --image" in refused.output
