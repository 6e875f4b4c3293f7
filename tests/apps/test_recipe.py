"""A bundle from scratch by one command: every part really run on phantoms with tiny networks, stopped and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from mammoseg.apps import recipe as module
from mammoseg.apps.cli import cli
from mammoseg.apps.recipe import RecipeConfig
from mammoseg.bundle import hash_patient, open_bundle
from mammoseg.config import load_toml
from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.datasets.splits import load_fold
from mammoseg.errors import ConfigError
from mammoseg.evaluation import calibration
from mammoseg.pipeline import settings_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTOR = """
sizes = [[128, 64]]
anchor_size = [128, 64]
validation_size = [128, 64]
scales = [[128, 64], [192, 96]]
xy_scale = 2.0
network = { backbone = "efficientnet_lite0", neck_widths = [8, 16, 16], neck_pairs = 1, prior = 0.02, fold_norm = true }
frame = { region = "breast", aspect = "keep", intensity = "percentile" }
loss = { kind = "dense" }
training = { steps = 6, batch_size = 2, warmup_steps = 1, learning_rate = 1e-3, optimizer = "adamw", schedule = "cosine" }

[[before]]
name = "first"
[before.settings.training]
steps = 4
"""
SEGMENTER = """
arch = "unetpp"
network = { widths = [8, 8, 16, 16, 16] }
crop = { size = 64 }
training = { steps = 4, batch_size = 2, learning_rate = 1e-3 }
"""


def _settings(folder: Path) -> Path:
    (folder / "detector.toml").write_text(DETECTOR)
    (folder / "segmenter.toml").write_text(SEGMENTER)
    (folder / "recipe.toml").write_text(
        'name = "small"\ndetector = "detector.toml"\nsegmenter = "segmenter.toml"\nholdout = 0.5\neverything = "last_run"\n'
        '[pipeline.fusion]\nmethod = "wbf"\nscore_min = 0.3\n'
    )
    return folder / "recipe.toml"


def _build(folder: Path, *extra: str) -> Any:
    specs = [f"phantom:{folder / name}" for name in ("films", "digital")]
    arguments = ["--recipe", _settings(folder), "--films", specs[0], "--digital", specs[1], "--out", folder / "out", *extra]
    return CliRunner().invoke(cli, ["bundle", "build", *map(str, arguments)])


def test_a_build_that_is_stopped_goes_on_to_a_measured_and_calibrated_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("films", 3), ("digital", 4)):
        write_exams(tmp_path / name, 10, seed=seed, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    stopped = _build(tmp_path)  # networks this small find next to nothing: too little to fit scores to
    assert stopped.exit_code == 1
    assert "calibration: expected 20 candidates or more" in stopped.output, stopped.output
    assert not (tmp_path / "out/small").exists()
    trained = (tmp_path / "out/detector/model/model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(calibration, "_FEW", 0)
    (tmp_path / "elsewhere.json").write_text('{"Dice, cross-validated": "0.864"}')
    done = _build(tmp_path, "--metrics", str(tmp_path / "elsewhere.json"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/detector/model/model.safetensors").stat().st_mtime_ns == trained  # not trained again

    bundle = open_bundle(tmp_path / "out/small")
    fold = load_fold(tmp_path / "out/films.json")
    patients = {i.image_id: i.patient_id for i in read_dataset(f"phantom:{tmp_path / 'films'}")}
    seen = set(bundle.training["patient_sha256"])
    assert {hash_patient("films", patients[i]) for i in (*fold.train, *fold.validation)} < seen  # shipped: trained on all
    first = json.loads((tmp_path / "out/detector/model/model.json").read_text())["record"]
    assert (tmp_path / "out/detector/first/model").is_dir()
    assert not (tmp_path / "out/detector-all/first").exists()  # the last run alone
    further = json.loads((tmp_path / "out/detector-all/model/model.json").read_text())["record"]
    assert further["start"] == "a detector trained before (digital, films)", further["start"]
    assert not {hash_patient("films", patients[i]) for i in fold.validation} & set(first["patient_sha256"])
    settings = settings_of(bundle)
    assert (settings.fusion.method, settings.fusion.score_min) == ("wbf", 0.3)
    assert (settings.fusion.calibration.slope, settings.fusion.calibration.offset) != (1.0, 0.0)
    assert bundle.metrics["films"]["on"].startswith(f"{len(fold.validation)} images")
    assert "Average precision, IoU 0.5" in bundle.metrics["digital"]["figures"]
    assert bundle.metrics["calibration"]["criterion"] == "IoU 0.5"
    assert "- Dice, cross-validated: 0.864\n" in (tmp_path / "out/small/card.md").read_text()
    assert (tmp_path / "out/films/report/evaluation.html").is_file()
    again = _build(tmp_path)
    assert again.exit_code == 0
    assert "there already" in again.output
    for setting in ("fold_seed=3", "everything=anew", 'keep_out=["PHANTOM-3-0001"]'):
        other = _build(tmp_path, "--set", setting)  # would measure on patients that the detector there was trained on
        assert (other.exit_code, "holds a build of other settings or data" in other.output) == (2, True), other.output
        assert load_fold(tmp_path / "out/films.json") == fold


def test_the_shipped_recipe_is_one_and_names_settings_that_are_there() -> None:
    config = load_toml(RecipeConfig, CONFIGS / "bundle_main.toml")
    assert (CONFIGS / config.detector).is_file()
    assert (CONFIGS / config.segmenter).is_file()
    assert module.from_dict(module.PipelineConfig, config.pipeline).fusion.method in ("msf", "wbf")


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lesion_score_mim"):
        RecipeConfig(pipeline={"fusion": {"lesion_score_mim": 0.1}})
    refused = _build(tmp_path, "--set", "detector=nothing.toml")
    assert refused.exit_code == 2
    assert "names the settings nothing.toml" in refused.output
