"""The documented fine-tuning on one's own COCO data, by commands alone, with the installed weights and small images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mammoseg.apps.cli import cli
from mammoseg.bundle import default_bundle, hash_file, open_bundle
from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.datasets.splits import load_fold
from mammoseg.experiments import train_detector
from mammoseg.pipeline import settings_of

torch = pytest.importorskip("torch")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = (
    *("--set", "sizes=[[128,64]]", "--set", "validation_size=[128,64]", "--set", "scales=[[128,64],[160,96]]"),
    *("--set", "training.steps=2", "--set", "training.batch_size=2", "--set", "holdout=0.5"),
)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def done(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with masses, four small views each, as PNG and COCO."""
    out = tmp_path_factory.mktemp("fine_tuning") / "mine"
    write_exams(out, 2, seed=5, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    return out


def test_a_detector_fine_tuned_from_the_installed_one_is_bundled_segments_and_is_evaluated(mine: Path, tmp_path: Path) -> None:
    data, model, made = f"coco:{mine / 'annotations.json'}", tmp_path / "runs/mine/model", tmp_path / "my-bundle"
    image = next((mine / "images").iterdir())
    common = ("--init", "installed", "--config", CONFIGS / "detector_lite2.toml", "--data", data)
    done("train", "detector", *common, "--out", model.parent, "--set", f"cache={tmp_path / 'cache'}", *SMALL)
    made_by = ("bundle", "make", "--detector", model, "--segmenter", "installed", "--image", image)
    done(*made_by, "--out", made, "--set", "fusion.score_min=0.02", "--set", "fusion.lam=0.0")

    bundle, installed = open_bundle(made), open_bundle(default_bundle())
    fold = load_fold(model.parent / "fold.json")
    items = {i.image_id: i for i in read_dataset(data)}
    trained_on = {hash_file(Path(items[i].path)) for i in fold.train}
    assert trained_on
    assert fold.validation
    assert set(bundle.training["image_sha256"]) == set(installed.training["image_sha256"]) | trained_on
    assert bundle.training["networks"]["detector"]["dataset"] == "mine"
    settings, before = settings_of(bundle), settings_of(installed)
    assert (settings.fusion.lam, settings.fusion.score_min) == (0.0, 0.02)
    assert settings.reconstruction == before.reconstruction
    old, new = installed.state("detector"), bundle.state("detector")
    assert set(old) == set(new)
    assert any((old[k] != new[k]).any() for k in old), "nothing was learnt"

    results = tmp_path / "results"
    done("segment", mine / "images", "--weights", made, "--out", results, "--workers", "0", "--formats", "json,mask")
    seen = {
        f["image"]["file_sha256"]: f["image"]["seen_in_training"]
        for f in (json.loads(p.read_text()) for p in results.rglob("findings.json"))
    }
    assert {digest for digest, known in seen.items() if known} == trained_on
    refused = run("evaluate", results, "--truth", data, "--resamples", "0")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"{len(fold.train)} of {len(items)} images" in refused.stderr
    assert "were in the bundle's training" in refused.stderr
    side = ("--fold", model.parent / "fold.json", "--side", "validation")
    shown = done("evaluate", results, "--truth", data, "--resamples", "0", "--json", *side)
    counts = json.loads(shown.stdout)["counts"]
    masses = sum(len(items[i].annotation.masses) for i in fold.validation)
    assert (counts["n_images"], counts["n_processed"], counts["n_truth"]) == (
        len(fold.validation),
        len(fold.validation),
        masses,
    )
    assert (counts["n_seen_in_training"], counts["n_candidates"] > 0, masses > 0) == (0, True, True)


@pytest.mark.parametrize(
    "name",
    [
        "detector_lite2",
        "detector_main",
        "detector_films_digital",
        "detector_yolov3",
        "segmenter",
        "segmenter_256",
        "segmenter_finish",
        "segmenter_paper",
    ],
)
def test_the_settings_to_begin_with_train_in_this_process_alone(name: str) -> None:
    kind = importlib.import_module(f"mammoseg.experiments.train_{name.partition('_')[0]}")
    assert kind.read_settings(CONFIGS / f"{name}.toml").training.devices == 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("detector_*.toml")), ids=lambda path: path.stem)
def test_every_configuration_of_a_detector_is_read_with_all_its_runs(path: Path) -> None:
    config = train_detector.read_settings(path)
    for stage in config.before:
        assert config.of_stage(stage).training.steps > 0


def test_a_segmenter_goes_on_from_the_installed_int8_bundle(mine: Path, tmp_path: Path) -> None:
    from mammoseg.training.checkpoint import load_model

    options = ("training.steps=2", "training.batch_size=2", "training.devices=1", "training.ema_decay=0.0")
    done(
        *("train", "segmenter", "--init", "installed", "--config", CONFIGS / "segmenter.toml"),
        *("--data", f"coco:{mine / 'annotations.json'}", "--out", tmp_path / "run"),
        *(part for option in options for part in ("--set", option)),
    )
    model, bundle = load_model(tmp_path / "run/model"), open_bundle(default_bundle())
    assert bundle.config["networks"]["segmenter"]["weights"] == "int8"
    assert model.spec == bundle.config["networks"]["segmenter"]["spec"]
    old = bundle.state("segmenter")
    assert set(model.state) == set(old)
    moved = {
        k: float((v - torch.from_numpy(old[k].copy())).abs().max()) for k, v in model.state.items() if v.is_floating_point()
    }
    assert all(torch.isfinite(v).all() for v in model.state.values())
    assert all(moved[k] > 0 for k in moved if k.endswith("weight")), "a weight got no gradient"
    assert max(d for k, d in moved.items() if "running_" not in k) < 0.02, "it did not start from the installed weights"
    patients = set(bundle.training["networks"]["segmenter"]["patient_sha256"])
    assert patients < set(model.record["patient_sha256"])
    assert len(model.record["patient_sha256"]) == len(patients) + 2
