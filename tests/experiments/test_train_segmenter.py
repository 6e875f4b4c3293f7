"""Training a segmenter: end to end on small synthetic data, killed and resumed, from a model, and on real images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mammoseg.config import from_dict, load_toml, to_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import load_fold, patient_holdout, save_fold
from mammoseg.errors import ConfigError, TrainingError, UsageError
from mammoseg.preprocessing.crops import CropConfig, JitterConfig
from mammoseg.types import Fold

torch = pytest.importorskip("torch")

from mammoseg.bundle import hash_file, hash_patient, open_bundle  # noqa: E402
from mammoseg.experiments.crossval_segmenter import CrossvalConfig, crossval_segmenter, summarise, table  # noqa: E402
from mammoseg.experiments.train_segmenter import (  # noqa: E402
    SegmenterTask,
    SegmenterTrainConfig,
    _settings,
    read_settings,
    train_segmenter,
)
from mammoseg.segmentation import build_segmenter, network_config  # noqa: E402
from mammoseg.segmentation.losses import SegmentationLossConfig  # noqa: E402
from mammoseg.segmentation.predictor import SegmenterSpec  # noqa: E402
from mammoseg.segmentation.regions import load_regions  # noqa: E402
from mammoseg.segmentation.vgg import load_vgg  # noqa: E402
from mammoseg.training.batches import share_of  # noqa: E402
from mammoseg.training.checkpoint import load_model  # noqa: E402
from mammoseg.training.loop import LoopConfig, fit  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = SegmenterTrainConfig(
    network={"widths": [4, 6, 8, 8, 8]},
    crop=CropConfig(size=32),
    loss=SegmentationLossConfig(bce_weight=1.0),
    training=LoopConfig(
        steps=4, batch_size=4, learning_rate=3e-3, warmup_steps=1, ema_decay=0.5, checkpoint_every=2, log_every=1, workers=1
    ),
)


def draw_dataset(folder: Path, n: int = 6) -> Path:
    """Bright ellipses on noise, one an image, two images a patient; laid out as image_mask and as CDD-CESM at once."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rows = ["file,patient_id,findings,tags,n_regions"]
    for k in range(n):
        mask = np.zeros((160, 128), dtype=np.uint8)
        centre = (int(rng.integers(40, 88)), int(rng.integers(40, 120)))
        axes = (int(rng.integers(20, 28)), int(rng.integers(20, 28)))
        cv2.ellipse(mask, centre, axes, float(rng.integers(90)), 0, 360, 255, -1)
        image = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2) * 0.4 + 60 + rng.normal(0, 12, mask.shape)
        cv2.imwrite(str(folder / "images" / f"{k}.png"), image.clip(0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{k}.png"), mask)
        rows.append(f"{k}.png,P{k // 2},mass,,{1 if k < 4 else 2}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("data") / "ellipses")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model directory, fold file) of a short run."""
    out = tmp_path_factory.mktemp("run")
    items = read_dataset(data)
    save_fold(out / "fold.json", patient_holdout(items, 0.34, 0))
    return train_segmenter(SMALL, str(data), out / "a", out / "fold.json"), out / "fold.json"


def test_a_model_directory_says_what_it_was_trained_on(data: Path, trained: tuple[Path, Path]) -> None:
    model = load_model(trained[0])
    fold = json.loads(trained[1].read_text())
    assert model.kind == "segmenter"
    assert model.spec["crop"]["size"] == 32
    assert model.record["fold_hash"] == fold["content_hash"]
    assert set(model.record["image_sha256"]) == {hash_file(data / image_id) for image_id in fold["train"]}
    patients = {item.patient_id for item in read_dataset(data) if item.image_id in fold["train"]}
    assert set(model.record["patient_sha256"]) == {hash_patient("ellipses", p) for p in patients}
    assert 0 <= model.record["metrics"]["validation_dice_true_crops"] <= 1
    assert str(data) not in json.dumps(model.record)
    assert model.record["environment"]["versions"]["numpy"] == np.__version__
    assert model.record["environment"]["threads"] == torch.get_num_threads()
    assert (model.record["start"], model.record["start_weights"], model.record["ancestors"]) == ("random", None, [])
    build_segmenter(model.config).load_state_dict(model.state)


def test_killed_and_resumed_gives_the_same_weights(data: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    whole = load_model(trained[0]).state
    (tmp_path / "b").mkdir()
    # The first half of a longer run: same schedule, stopped by an exception after the checkpoint of step 2.
    config = SMALL

    class Killed(Exception):
        pass

    original = SegmenterTask.loss
    calls = {"n": 0}

    def loss(self, model, batch):  # type: ignore[no-untyped-def]
        calls["n"] += 1
        if calls["n"] > 3:
            raise Killed
        return original(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmenterTask, "loss", loss)
        with pytest.raises(Killed):
            train_segmenter(config, str(data), tmp_path / "b", trained[1])
    with pytest.raises(UsageError, match="resume"):
        train_segmenter(config, str(data), tmp_path / "b", trained[1])
    again = load_model(train_segmenter(config, str(data), tmp_path / "b", trained[1], resume=True)).state
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)


def test_resume_refuses_another_run_and_leaves_its_fold_alone(data: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0].parent, run)
    before = (run / "fold.json").read_bytes()
    assert before == trained[1].read_bytes()  # a copy of the fold given
    wide = replace(SMALL, network={"widths": [8, 8, 8, 8, 8]}, crop=CropConfig(size=48))
    with pytest.raises(UsageError, match=r"settings\.crop\.size 32 there, 48 here; .*settings\.network\.widths"):
        train_segmenter(wide, str(data), run, trained[1], resume=True)
    with pytest.raises(UsageError, match=r"data\.fold .* there, .* here"):
        train_segmenter(SMALL, str(data), run, None, resume=True)
    with pytest.raises(UsageError, match=r"start\.init nothing there, .* here"):
        train_segmenter(SMALL, str(data), run, trained[1], init=trained[0], resume=True)
    changed = shutil.copytree(data, tmp_path / data.name)
    mask = cv2.imread(str(changed / "masks" / "1.png"), 0)
    cv2.imwrite(str(changed / "masks" / "1.png"), cv2.dilate(mask, np.ones((3, 3))))
    with pytest.raises(UsageError, match=r"is another one: data\.images_and_masses [^;]* here; give the same"):
        train_segmenter(SMALL, str(changed), run, trained[1], resume=True)
    assert (run / "fold.json").read_bytes() == before
    same = replace(SMALL, training=replace(SMALL.training, checkpoint_every=1, workers=2))
    train_segmenter(same, str(data), run, trained[1], resume=True)


def test_going_on_from_a_model_keeps_what_it_has_seen(data: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    other = draw_dataset(tmp_path / "other", 2)
    cv2.imwrite(str(other / "images" / "0.png"), 255 - cv2.imread(str(other / "images" / "0.png"), 0))
    config = replace(SMALL, training=replace(SMALL.training, steps=1, learning_rate=0.0, weight_decay=0.0))
    model = load_model(train_segmenter(config, str(other), tmp_path / "run", init=trained[0]))
    before = load_model(trained[0])
    assert set(before.record["patient_sha256"]) < set(model.record["patient_sha256"])
    assert set(before.record["image_sha256"]) < set(model.record["image_sha256"])
    fold = load_fold(tmp_path / "run" / "fold.json")  # without one given: all there is
    assert (fold.name, len(fold.train), fold.validation) == ("all", 2, ())
    assert model.record["fold_hash"] == fold.content_hash
    assert model.record["start_weights"]["sha256"] == hash_file(trained[0] / "model.safetensors")
    assert [a["record"]["fold_hash"] for a in model.record["ancestors"]] == [before.record["fold_hash"]]
    for name in ("backbone.blocks.0.0.weight", "nodes.0_1.conv1.weight", "heads.3.bias"):
        torch.testing.assert_close(model.state[name], before.state[name])


def test_a_model_that_does_not_fit_is_refused(data: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    wide = replace(SMALL, network={"widths": [5, 6, 8, 8, 8]})
    with pytest.raises(ConfigError, match=r"network\.widths is \[5, 6, 8, 8, 8\], the model has \[4, 6, 8, 8, 8\]"):
        train_segmenter(wide, str(data), tmp_path / "run", init=trained[0])
    other = replace(SMALL, spec=SegmenterSpec(mean=(0.0, 0.0, 0.0)))
    with pytest.raises(ConfigError, match=r"spec\.mean is"):
        train_segmenter(other, str(data), tmp_path / "run", init=trained[0])
    with pytest.raises(ConfigError, match="leave one of them out"):
        train_segmenter(replace(SMALL, backbone_weights="x"), str(data), tmp_path / "run", init=trained[0])
    with pytest.raises(ConfigError, match="set crop alone"):
        replace(SMALL, spec=SegmenterSpec(crop=CropConfig(size=48)))
    assert not (tmp_path / "run").exists()


def test_starting_from_a_model_takes_over_its_network_and_preprocessing(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = replace(SMALL.training, steps=1)
    spec = SegmenterSpec(output="L3", flips=True, mean=(0.5, 0.5, 0.5))
    first = replace(SMALL, crop=CropConfig(size=32, margin=0.35, shape="square", bins=99), spec=spec, training=loop)
    model = train_segmenter(first, str(data), tmp_path / "first")
    config = read_settings(None, ["training.steps=1", "training.batch_size=2"], model)
    assert (config.crop, network_config(config.arch, config.network)) == (first.crop, network_config("unetpp", first.network))
    tuned = load_model(train_segmenter(config, str(data), tmp_path / "second", init=model))
    assert tuned.config == load_model(model).config
    assert tuned.spec == load_model(model).spec == to_dict(replace(spec, crop=first.crop))
    # Crops may change from run to run; that is said, recorded, and changes nothing else.
    (tmp_path / "larger.toml").write_text("[crop]\nsize = 48\n")
    config = read_settings(tmp_path / "larger.toml", ["training.steps=1", "training.batch_size=2"], model)
    assert config.crop == replace(first.crop, size=48)
    with caplog.at_level("INFO", "mammoseg"):
        larger = load_model(train_segmenter(config, str(data), tmp_path / "third", init=model))
    assert "crop.size is 48; the model first had 32" in caplog.text
    assert larger.spec == tuned.spec | {"crop": tuned.spec["crop"] | {"size": 48}}
    assert larger.record["config"]["crop"] == larger.record["config"]["spec"]["crop"] == larger.spec["crop"]


def test_boxes_alone_do_not_teach_segmentation(tmp_path: Path, data: Path) -> None:
    image = {"id": 1, "file_name": str(data / "images" / "0.png"), "height": 160, "width": 128}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    coco = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "mass"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    with pytest.raises(TrainingError, match="masks"):
        train_segmenter(SMALL, str(tmp_path), tmp_path / "run")


def test_batches_depend_on_seed_and_step_alone_and_pairs_stay_together(data: Path) -> None:
    regions = load_regions(read_dataset(data), SMALL.crop, SMALL.jitter)
    task = SegmenterTask(build_segmenter({"arch": "unetpp", "network": SMALL.network}), SMALL, regions)
    first, same, other = task.batch(3, range(4), 0), task.batch(3, range(4), 0), task.batch(3, range(4), 1)
    assert torch.equal(first["image"], same["image"])
    assert torch.equal(first["truth"], same["truth"])
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == (4, 3, 32, 32)
    for image, truth in zip(first["image"], first["truth"]):
        assert image[0][truth[0] > 0.5].mean() > image[0][truth[0] < 0.5].mean() + 0.5  # the bright ellipse is the truth


def test_two_devices_see_together_what_one_sees(data: Path) -> None:
    regions = load_regions(read_dataset(data), SMALL.crop, SMALL.jitter)
    task = SegmenterTask(build_segmenter({"arch": "unetpp", "network": SMALL.network}), SMALL, regions)
    for step in range(3):
        whole = task.batch(step, share_of(0, 1, 4), 0)
        parts = [task.batch(step, share_of(rank, 2, 4), 0) for rank in range(2)]
        for key, value in whole.items():
            assert torch.equal(torch.cat([p[key] for p in parts]), value)


def test_windows_in_memory_show_what_the_whole_image_shows(data: Path) -> None:
    """A crop cut from a region's window equals the crop cut from the image, at the border too."""
    from mammoseg.io.load import load_mammogram
    from mammoseg.preprocessing.crops import cut_crop, jitter_box, network_input
    from mammoseg.segmentation.regions import true_crop

    items = read_dataset(data)
    jitter = JitterConfig(0.3, 0.3)
    for item, region in zip(items, load_regions(items, SMALL.crop, jitter)):
        for seed in range(5):
            drawn = [jitter_box(b, jitter, np.random.default_rng(seed)) for b in (region.box, item.annotation.masses[0].box)]
            whole = network_input(cut_crop(load_mammogram(Path(item.path)).pixels, drawn[1], SMALL.crop), SMALL.crop)
            np.testing.assert_allclose(true_crop(region, drawn[0], SMALL.crop)[0], whole, atol=2e-2)


@pytest.mark.parametrize("name", ["segmenter", "segmenter_256", "segmenter_finish", "segmenter_paper", "segmenter_shipped"])
def test_shipped_configs_are_read(name: str) -> None:
    config = load_toml(SegmenterTrainConfig, CONFIGS / f"{name}.toml")
    assert config.crop.size % 16 == 0
    assert (config.arch, config.network) == ("unetpp", {})


def test_the_published_settings_are_the_defaults() -> None:
    config = load_toml(SegmenterTrainConfig, CONFIGS / "segmenter_paper.toml")
    assert (config.crop.size, config.crop.equalise, config.training.batch_size) == (256, True, 4)
    assert (config.training.optimizer, config.loss.dice_weight, config.loss.bce_weight) == ("adam", 1.0, 0.0)
    with pytest.raises(ConfigError, match="crop"):
        load_toml(SegmenterTrainConfig, CONFIGS / "segmenter_paper.toml", ["crops.size=3"])


def test_the_shipped_recipe_is_the_one_the_bundle_records() -> None:
    config = load_toml(SegmenterTrainConfig, CONFIGS / "segmenter_shipped.toml")
    record = open_bundle().training["networks"]["segmenter"]
    shared, true_boxes = config.before
    recorded = {
        "last": (config, record["config"]),
        "before": (config.of_stage(true_boxes), record["ancestors"][-1]["record"]["config"]),
    }
    for run, (wanted, shipped) in recorded.items():
        settings = _settings(wanted)
        for group in ("network", "crop", "jitter", "loss", "symmetries"):
            assert settings[group] == shipped[group], (run, group)
        assert wanted.training == from_dict(LoopConfig, shipped["training"])  # settings that came later have their defaults
    published = load_toml(CrossvalConfig, CONFIGS / "segmenter_crossval.toml")
    assert (shared.patients, config.of_stage(shared)) == ("never_tested", published.shared)
    assert (published.fold.jitter, published.fold.crop) == (config.jitter, config.crop)


def test_runs_that_come_before_are_made_first_and_gone_on_from(data: Path, tmp_path: Path) -> None:
    (tmp_path / "chain.toml").write_text("""
[training]
steps = 2
[[before]]
name = "first"
patients = "never_tested"
[before.settings.training]
steps = 3
learning_rate = 5e-3
""")
    chain = load_toml(SegmenterTrainConfig, tmp_path / "chain.toml", under=to_dict(SMALL))
    spec = f"cdd_cesm:{data}"
    made = load_model(train_segmenter(chain, spec, tmp_path / "chain"))
    # By hand: images 4 and 5 are of the patient none of whose images has exactly one region.
    fold = Fold("by hand", ("images/4.png", "images/5.png"), ())
    save_fold(tmp_path / "fold.json", fold)
    first = replace(SMALL, training=replace(SMALL.training, steps=3, learning_rate=5e-3))
    begun = train_segmenter(first, spec, tmp_path / "first", tmp_path / "fold.json")
    last = replace(SMALL, training=replace(SMALL.training, steps=2))
    by_hand = load_model(train_segmenter(last, spec, tmp_path / "last", init=begun))
    assert all(torch.equal(v, by_hand.state[k]) for k, v in made.state.items())
    assert made.record["patient_sha256"] == by_hand.record["patient_sha256"]
    assert [(a["name"], a["record"]["steps"], a["record"]["n_patients"]) for a in made.record["ancestors"]] == [("first", 3, 1)]
    assert (made.record["steps"], made.record["n_patients"]) == (2, 3)
    # Killed after the first of them: the rest is done; with other settings for the first it is not taken for done.
    shutil.rmtree(tmp_path / "chain" / "model")
    shutil.rmtree(tmp_path / "chain" / "checkpoints")
    again = load_model(train_segmenter(chain, spec, tmp_path / "chain", resume=True))
    assert all(torch.equal(v, again.state[k]) for k, v in made.state.items())
    other = load_toml(SegmenterTrainConfig, tmp_path / "chain.toml", under=to_dict(replace(SMALL, symmetries=False)))
    with pytest.raises(UsageError, match=r"first: --resume goes on .* settings\.symmetries true there, false here"):
        train_segmenter(other, spec, tmp_path / "chain", resume=True)
    with pytest.raises(ConfigError, match="only cdd_cesm tells"):
        train_segmenter(chain, f"image_mask:{data}", tmp_path / "other")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"name": "model"}, "a name of its own"),
        ({"name": "../x"}, "a name of its own"),
        ({"name": "a", "settings": {"training": {"stepz": 3}}}, r"before a\.training\.stepz'; did you mean"),
    ],
)
def test_runs_before_are_checked_before_anything_runs(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(SegmenterTrainConfig, {"before": [stage]})


def test_cross_validation_tests_no_patient_it_has_trained_on(data: Path, tmp_path: Path) -> None:
    short = replace(SMALL, training=replace(SMALL.training, steps=1, checkpoint_every=0))
    config = CrossvalConfig(k=2, shared=short, fold=short)
    result = crossval_segmenter(config, f"cdd_cesm:{data}", tmp_path)
    assert result["complete"]
    assert sorted(r["image_id"] for r in result["rows"]) == [f"images/{k}.png" for k in range(4)]
    assert json.loads((tmp_path / "crossval.json").read_text())["all"]["n_masses"] == 4
    tested = {"images/0.png", "images/1.png", "images/2.png", "images/3.png"}
    assert not tested & set(json.loads((tmp_path / "shared" / "fold.json").read_text())["train"])
    for row in result["rows"]:
        fold = json.loads((tmp_path / f"fold{row['fold']}" / "fold.json").read_text())
        assert row["image_id"] not in fold["train"]
        record = load_model(tmp_path / f"fold{row['fold']}" / "model").record
        assert hash_patient("ellipses", row["patient_id"]) not in record["patient_sha256"]
        assert 0.7 < row["ellipse_dice"] <= 1
    # Run again, nothing is trained anew.
    before = (tmp_path / "fold1" / "model" / "model.safetensors").stat().st_mtime_ns
    assert crossval_segmenter(config, f"cdd_cesm:{data}", tmp_path)["all"] == result["all"]
    assert (tmp_path / "fold1" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_summary_by_hand() -> None:
    rows = [
        {"dice": 0.9, "ellipse_dice": 0.8, "patient_id": "a", "mass_like": True},
        {"dice": 0.8, "ellipse_dice": 0.8, "patient_id": "b", "mass_like": True},
        {"dice": 0.7, "ellipse_dice": 0.5, "patient_id": "b", "mass_like": False},
    ]
    summary = summarise(rows)
    assert summary["all"]["difference"] == pytest.approx(0.1)
    assert summary["all"]["difference_low"] <= 0.1 <= summary["all"]["difference_high"]
    assert (summary["mass_like"]["n_masses"], summary["all"]["n_patients"]) == (2, 2)
    assert "+0.100" in table(summary)


@pytest.mark.data
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_full_network_overfits_eight_real_images(shared_dir: Path, tmp_path: Path) -> None:
    items = read_dataset(f"cdd_cesm:{shared_dir / 'data' / 'cdd_cesm'}")[::12][:8]
    crop = CropConfig(size=48)
    regions = [load_regions([item], crop, JitterConfig(0, 0))[0] for item in items]
    assert len({r.image_id for r in regions}) == 8
    config = SegmenterTrainConfig(
        crop=crop,
        jitter=JitterConfig(0, 0),
        symmetries=False,
        loss=SegmentationLossConfig(bce_weight=1.0),
        spec=SegmenterSpec(output="L4"),
        training=LoopConfig(
            steps=80, batch_size=8, learning_rate=1e-3, backbone_factor=0.2, warmup_steps=5, ema_decay=0.0, weight_decay=0.0
        ),
    )
    torch.manual_seed(0)
    network = build_segmenter({"arch": "unetpp"})
    load_vgg(network.backbone, shared_dir / "weights" / "vgg16_features_imagenet.safetensors")
    result = fit(SegmenterTask(network, config, regions, regions), config.training, tmp_path, resume=False)
    assert result.metrics["dice"] >= 0.95


@pytest.mark.parametrize(
    ("arch", "network", "output"),
    [
        ("unet", {"widths": [4, 6, 8]}, "mean"),
        ("cgan", {"widths": [4, 6, 8], "critic_widths": [4, 6]}, "mean"),
        ("cascade", {"widths": [4, 6, 8], "factors": [2, 1]}, "last"),
    ],
)
def test_other_networks_are_trained_the_same_way(data: Path, tmp_path: Path, arch: str, network: dict, output: str) -> None:
    config = replace(SMALL, arch=arch, network=network, training=replace(SMALL.training, steps=2))
    model = load_model(train_segmenter(config, str(data), tmp_path / arch))
    assert model.config == {"arch": arch, "network": to_dict(network_config(arch, network))}
    assert model.spec["output"] == output
    found = build_segmenter(model.config)
    found.load_state_dict(model.state)
    taken_over = read_settings(None, [], tmp_path / arch / "model")
    assert (taken_over.arch, taken_over.spec.output) == (arch, output)
    with pytest.raises(ConfigError, match="did you mean 'unetpp'"):
        replace(SMALL, arch="unetp")
