"""Training a detector end to end on phantoms: written model, resume, fine-tuning from a model directory and from a bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import mammoseg
from mammoseg.config import load_toml, to_dict
from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.datasets.splits import load_fold, patient_holdout, save_fold
from mammoseg.errors import ConfigError, DatasetError, TrainingError, UsageError
from mammoseg.geometry import box_iou
from mammoseg.io.load import load_mammogram

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from mammoseg.bundle import hash_file, hash_patient, open_bundle  # noqa: E402
from mammoseg.detection import build_detector, cache, network_config  # noqa: E402
from mammoseg.detection.cache import cached_images  # noqa: E402
from mammoseg.detection.losses import LossConfig  # noqa: E402
from mammoseg.experiments import train_detector as train_detector_module  # noqa: E402
from mammoseg.experiments.train_detector import DetectorStage, DetectorTrainConfig, read_settings, train_detector  # noqa: E402
from mammoseg.preprocessing.resize import FrameConfig, measure  # noqa: E402
from mammoseg.training.checkpoint import load_model, save_model  # noqa: E402
from mammoseg.training.curve import read_curve  # noqa: E402
from mammoseg.training.loop import LoopConfig, resolve_precision  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def small(cache: Path, steps: int = 4) -> DetectorTrainConfig:
    return DetectorTrainConfig(
        network={
            "backbone": "efficientnet_lite0",
            "neck_widths": [8, 16, 16],
            "neck_pairs": 1,
            "prior": 0.02,
            "fold_norm": True,
        },
        frame=FrameConfig("breast", "keep", "percentile"),
        loss=LossConfig("dense"),
        training=LoopConfig(steps=steps, batch_size=2, warmup_steps=1, checkpoint_every=2, log_every=1, learning_rate=1e-3),
        sizes=((96, 64), (128, 64)),
        resize_every=1,
        anchor_size=(128, 64),
        validation_size=(128, 64),
        scales=((128, 64),),
        xy_scale=2.0,
        holdout=0.34,
        cache=str(cache),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "small"
    write_exams(out, 3, seed=3, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train_detector(small(folder / "cache"), f"phantom:{data}", folder / "a")


def test_model_says_what_it_is_and_what_it_was_trained_on(data: Path, trained: Path) -> None:
    model = load_model(trained)
    fold = load_fold(trained.parent / "fold.json")
    assert model.kind == "detector"
    assert model.record["fold_hash"] == fold.content_hash
    items = {i.image_id: i for i in read_dataset(f"phantom:{data}")}
    assert set(model.record["image_sha256"]) == {hash_file(Path(items[i].path)) for i in fold.train}
    assert set(model.record["patient_sha256"]) == {hash_patient("small", items[i].patient_id) for i in fold.train}
    assert model.record["n_images"] == len(fold.train) == 8
    assert set(model.record["metrics"]) == {"ap50", "tpr_at_0.25", "tpr_at_0.5"}
    assert str(data.parent) not in json.dumps(model.record)
    assert len(model.spec["anchors"]) == 9
    assert 0.4 < model.record["anchors"]["mean_best_iou"] <= 1
    assert (model.record["start_weights"], model.record["ancestors"]) == (None, [])
    computed = model.record["environment"]
    assert computed["python"] == platform.python_version()
    assert computed["versions"]["torch"] == importlib.metadata.version("torch")
    assert computed["versions"]["mammoseg"] == mammoseg.__version__
    assert (computed["precision"], computed["devices"]) == (resolve_precision(LoopConfig()), 1)
    assert computed["threads"] == torch.get_num_threads()
    build_detector(model.config).load_state_dict(model.state)
    curve = (trained.parent / "curve.csv").read_text()
    assert curve.startswith("step,split,metric,value\n1,train,loss,")
    assert "4,validation,ap50," in curve


def test_further_datasets_are_trained_on_and_remembered(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_exams(other, 2, seed=8, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    items = read_dataset(f"phantom:{other}")
    side = patient_holdout(items, 0.5, 0)
    save_fold(tmp_path / "side.json", side)
    config = replace(small(tmp_path / "cache"), also_repeat=2, also_zoom=0.7)
    also = [(f"phantom:{other}", tmp_path / "side.json")]
    seen: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = train_detector_module.DetectionTask
        patch.setattr(
            train_detector_module,
            "DetectionTask",
            lambda model, train, *rest: seen.append([c.zoom for c in train]) or original(model, train, *rest),
        )
        model = load_model(train_detector(config, f"phantom:{data}", tmp_path / "run", also=also))
    assert seen == [8 * [1.0] + 2 * 4 * [0.7]]  # the second data set's training side, twice, smaller
    by_id = {i.image_id: i for i in items}
    patients = {hash_patient("other", by_id[i].patient_id) for i in side.train}
    assert patients < set(model.record["patient_sha256"])
    assert {hash_file(Path(by_id[i].path)) for i in side.train} < set(model.record["image_sha256"])
    assert not {hash_file(Path(by_id[i].path)) for i in side.validation} & set(model.record["image_sha256"])
    assert model.record["datasets"] == ["other", "small"]
    assert model.record["also"] == [{"dataset": "other", "fold": side.name, "fold_hash": side.content_hash}]
    with pytest.raises(UsageError, match=r"this is another one: data\.also"):  # without the further data it is not the same run
        train_detector(config, f"phantom:{data}", tmp_path / "run", resume=True)


def test_killed_and_resumed_run_gives_the_same_weights(data: Path, trained: Path, tmp_path: Path) -> None:
    from mammoseg.detection.training import DetectionTask

    config = small(trained.parent.parent / "cache")
    original, calls = DetectionTask.loss, []

    def loss(self, model, batch):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return original(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionTask, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            train_detector(config, f"phantom:{data}", tmp_path / "b")
    with pytest.raises(UsageError, match="--resume"):
        train_detector(config, f"phantom:{data}", tmp_path / "b")
    again = load_model(train_detector(config, f"phantom:{data}", tmp_path / "b", resume=True)).state
    assert all(torch.equal(v, again[k]) for k, v in load_model(trained).state.items())
    assert (tmp_path / "b/curve.csv").read_bytes() == (trained.parent / "curve.csv").read_bytes()


def test_resume_refuses_another_run_and_leaves_its_fold_alone(data: Path, trained: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", trained.parent.parent / "cache"
    shutil.copytree(trained.parent, run)
    before = (run / "fold.json").read_bytes()
    config = small(cache)
    wrong = {
        r"settings\.training\.steps 4 there, 8 here": small(cache, steps=8),
        r"settings\.loss\.kind \"dense\" there, \"published\" here": replace(config, loss=LossConfig()),
        r"data\.fold .* here; settings\.fold_seed 0 there, 3 here": replace(config, fold_seed=3),
        r"settings\.training\.devices 1 there, 2 here": replace(config, training=replace(config.training, devices=2)),
    }
    for message, other in wrong.items():
        with pytest.raises(UsageError, match=message):
            train_detector(other, f"phantom:{data}", run, resume=True)
    with pytest.raises(UsageError, match=r"start\.init nothing there"):
        train_detector(config, f"phantom:{data}", run, init=trained, resume=True)
    changed = shutil.copytree(data, tmp_path / data.name)
    image = next(changed / "images" / Path(i.path).name for i in read_dataset(f"phantom:{data}"))
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(UsageError, match=r"is another one: data\.images_and_masses [^;]* here; give the same"):
        train_detector(config, f"phantom:{changed}", run, resume=True)
    assert (run / "fold.json").read_bytes() == before
    assert read_curve(run / "curve.csv") == read_curve(trained.parent / "curve.csv")
    other_cache = replace(config, cache=str(tmp_path / "elsewhere"), training=replace(config.training, checkpoint_every=4))
    train_detector(other_cache, f"phantom:{data}", run, resume=True)  # what changes nothing may change


def test_fine_tuning_from_a_model_goes_on_from_its_weights_and_keeps_what_it_has_seen(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / "own"
    write_exams(other, 2, seed=9, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    config = small(tmp_path / "cache", steps=1)
    config = replace(config, holdout=0.5, training=replace(config.training, learning_rate=0.0, weight_decay=0.0))
    tuned = load_model(train_detector(config, f"coco:{other / 'annotations.json'}", tmp_path / "run", init=trained))
    before = load_model(trained)
    assert tuned.spec == before.spec
    assert all(torch.equal(v, before.state[k]) for k, v in tuned.state.items() if k.startswith("backbone") and "num" not in k)
    assert set(before.record["image_sha256"]) < set(tuned.record["image_sha256"])
    assert set(before.record["patient_sha256"]) < set(tuned.record["patient_sha256"])


def test_a_run_may_keep_a_share_of_what_it_started_from(data: Path, trained: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "cache", steps=2)
    spec = f"phantom:{data}"
    end = load_model(train_detector(config, spec, tmp_path / "end", init=trained))
    kept = load_model(train_detector(replace(config, keep_start=0.25), spec, tmp_path / "kept", init=trained))
    begin = load_model(trained).state
    moved = [k for k, v in end.state.items() if v.is_floating_point() and not torch.equal(v, begin[k])]
    assert moved
    for key, value in kept.state.items():
        torch.testing.assert_close(value, 0.25 * begin[key] + 0.75 * end.state[key] if key in moved else end.state[key])
    assert kept.record["metrics_of_the_run"] == end.record["metrics"]
    # What is recorded is measured with what is saved: nearly all of the start gives the figures of the start.
    nearly = load_model(train_detector(replace(config, keep_start=0.999999), spec, tmp_path / "nearly", init=trained))
    assert nearly.record["metrics"] == pytest.approx(load_model(trained).record["metrics"], abs=1e-6)
    fresh = load_model(train_detector(replace(small(tmp_path / "cache"), keep_start=0.5), spec, tmp_path / "fresh"))
    for key, value in fresh.state.items():  # it started from no detector: the same as without
        assert torch.equal(value, begin[key])
    with pytest.raises(ConfigError, match=r"also_zoom: expected a factor from 0\.1 to 10, got 0\.0"):
        replace(config, also_zoom=0.0)
    with pytest.raises(ConfigError, match=r"keep_start: expected a number from 0 to below 1, got 1\.0"):
        replace(config, keep_start=1.0)


SHORT = ["training.steps=1", "training.batch_size=2", "sizes=[[96, 64]]", "validation_size=[96, 64]", "holdout=0.34"]


def test_fine_tuning_from_a_bundle_takes_its_settings_over_and_records_them(
    data: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "tune.toml").write_text("anchor_size = [128, 64]\n[network]\nfold_norm = true\n")
    still = ["training.learning_rate=0.0", "training.weight_decay=0.0", f"cache={tmp_path / 'cache'}"]
    config = read_settings(tmp_path / "tune.toml", [*SHORT, *still], tiny_bundle)
    tuned = load_model(train_detector(config, f"phantom:{data}", tmp_path / "run", init=tiny_bundle))
    bundle = open_bundle(tiny_bundle)
    state = bundle.state("detector")
    np.testing.assert_array_equal(tuned.state["scale8.out.weight"].numpy(), state["scale8.out.weight"])
    assert "0" * 64 in tuned.record["image_sha256"]
    described = bundle.config["networks"]["detector"]
    settings = tuned.record["settings"]
    assert settings["network"] == tuned.config["network"]
    assert settings["network"] | described["config"]["network"] == settings["network"]  # none of the bundle's is lost
    assert settings["network"]["fold_norm"]
    assert settings["scales"] == tuned.spec["scales"] == described["spec"]["scales"] == [[128, 64], [192, 96]]
    assert settings["frame"] == tuned.spec["frame"]
    digest = hash_file(tiny_bundle / "detector.safetensors")
    assert tuned.record["start_weights"] == {"name": "tiny", "sha256": digest, "bundle": bundle.sha256}
    assert [a["record"]["dataset"] for a in tuned.record["ancestors"]] == ["none, random weights"]


def test_settings_that_contradict_the_model_started_from_are_refused_and_named(
    data: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = [*SHORT, f"cache={tmp_path / 'cache'}"]
    for wrong, named in (
        ("frame.region=full", 'frame.region is "full", the model has "breast"'),
        ("network.neck_pairs=2", "network.neck_pairs is 2, the model has 1"),
        ("xy_scale=1.0", "xy_scale is 1.0, the model has 2.0"),
    ):
        config = read_settings(None, [*sets, wrong], trained)
        with pytest.raises(ConfigError, match=re.escape(named)):
            train_detector(config, f"phantom:{data}", tmp_path / "run", init=trained)
    with pytest.raises(ConfigError, match="leave one of them out"):
        train_detector(read_settings(None, [*sets, "weights=x"], trained), f"phantom:{data}", tmp_path / "run", init=trained)
    assert not (tmp_path / "run").exists()
    config = read_settings(None, [*sets, "scales=[[96, 64]]"], trained)  # which scales to run is no matter of the weights
    with caplog.at_level("INFO", "mammoseg"):
        tuned = load_model(train_detector(config, f"phantom:{data}", tmp_path / "run", init=trained))
    assert "scales is [[96, 64]]; the model a had [[128, 64]]" in caplog.text
    assert tuned.spec["scales"] == tuned.record["settings"]["scales"] == [[96, 64]]
    assert tuned.spec["anchors"] == load_model(trained).spec["anchors"]


def test_the_record_names_weights_and_every_ancestor(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    backbone = {k: v for k, v in build_detector({"backbone": "efficientnet_lite0"}).state_dict().items() if "backbone." in k}
    weights = tmp_path / "private" / "lite0.safetensors"
    weights.parent.mkdir()
    save_file({k.removeprefix("backbone."): v for k, v in backbone.items()}, str(weights))
    config = small(tmp_path / "cache", steps=1)
    first = train_detector(replace(config, weights=str(weights)), f"phantom:{data}", tmp_path / "first")
    second = train_detector(config, f"phantom:{data}", tmp_path / "second", init=first)
    third = train_detector(config, f"phantom:{data}", tmp_path / "third", init=second)
    named = {"name": "lite0.safetensors", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert load_model(first).record["start_weights"] == named
    record = load_model(third).record
    files = [hashlib.sha256((m / "model.safetensors").read_bytes()).hexdigest() for m in (first, second)]
    assert record["start_weights"] == {"name": "second", "sha256": files[1]}
    assert [(a["name"], a["sha256"]) for a in record["ancestors"]] == [("first", files[0]), ("second", files[1])]
    eldest = record["ancestors"][0]["record"]
    assert eldest["start_weights"] == named
    assert eldest["settings"]["weights"] == "lite0.safetensors"
    assert "ancestors" not in eldest
    assert "image_sha256" not in eldest
    assert "private" not in json.dumps(record)


def test_fine_tuning_from_a_segmenter_is_refused(data: Path, tmp_path: Path) -> None:
    segmenter = save_model(tmp_path / "segmenter", "segmenter", {"x": torch.zeros(1)}, {}, {}, {})
    with pytest.raises(TrainingError, match="expected a detector"):
        train_detector(small(tmp_path / "cache"), f"phantom:{data}", tmp_path / "run", init=segmenter)


def test_cache_holds_the_images_and_their_boxes(data: Path, tmp_path: Path) -> None:
    items = read_dataset(f"phantom:{data}")
    frame = FrameConfig("breast", "keep", "percentile")
    for _ in range(2):  # made, then read
        cached = cached_images(items, tmp_path, frame, height=104)
    for item, kept in zip(items, cached, strict=True):
        assert kept.raw.shape == (104, 80)
        assert kept.item.image_id == item.image_id
        boxes = np.array([m.box for m in item.annotation.masses]).reshape(-1, 4)
        np.testing.assert_allclose(kept.boxes * 2, boxes)
        pixels = load_mammogram(Path(item.path)).pixels
        np.testing.assert_allclose(kept.pixels, pixels.reshape(104, 2, 80, 2).mean(axis=(1, 3)), atol=1e-4)
        whole = np.array(measure(pixels, frame).box)
        assert box_iou(np.array(kept.measured.box) * 2, whole)[0, 0] > 0.9
    backwards = cached_images(items[::-1], tmp_path, frame, height=104)
    assert len(list(tmp_path.glob("pixels-*.npy"))) == 1
    np.testing.assert_array_equal(backwards[0].raw, cached[-1].raw)


def test_cache_never_serves_a_changed_file_nor_what_other_code_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, frame = [], FrameConfig("breast", "keep", "percentile")
    for item in read_dataset(f"phantom:{data}")[:2]:
        file = tmp_path / (Path(item.path).stem + ".pgm")
        cv2.imwrite(str(file), cv2.imread(item.path, cv2.IMREAD_UNCHANGED))
        items.append(replace(item, path=str(file)))
    before = cached_images(items, tmp_path / "cache", frame, height=104)
    file = Path(items[0].path)
    content, times = file.read_bytes(), file.stat()
    head = content[: len(content) - 2 * 208 * 160]  # 16-bit samples, big endian
    pixels = np.frombuffer(content[len(head) :], dtype=">u2").reshape(208, 160)
    file.write_bytes(head + pixels[::-1].tobytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    after = cached_images(items, tmp_path / "cache", frame, height=104)
    np.testing.assert_array_equal(after[0].raw, before[0].raw[::-1])
    np.testing.assert_array_equal(after[1].raw, before[1].raw)
    # Other code: everything is made anew; code that only measures: only the measures.
    made = {p.name for p in (tmp_path / "cache").iterdir()}
    original = cache.code_version
    monkeypatch.setattr(cache, "code_version", lambda *m: original(*m) + "changed" * ("mammoseg.preprocessing" in m))
    cached_images(items, tmp_path / "cache", frame, height=104)
    assert [p.split("-")[0] for p in {p.name for p in (tmp_path / "cache").iterdir()} - made] == ["measures"]
    monkeypatch.setattr(cache, "code_version", lambda *m: original(*m) + "changed")
    cached_images(items, tmp_path / "cache", frame, height=104)
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 3


def test_the_version_of_code_changes_with_any_file_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "reader_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = cache.code_version("reader_of_a_test")
    assert cache.code_version("reader_of_a_test") == first
    assert cache.code_version("reader_of_a_test", "mammoseg.geometry") != first
    (package / "part.py").write_text("x = 2\n")
    assert cache.code_version("reader_of_a_test") != first


def test_the_documented_way_to_fine_tune_goes_with_the_installed_weights(tmp_path: Path) -> None:
    from mammoseg.bundle import default_bundle
    from mammoseg.experiments import train_segmenter
    from mammoseg.experiments.start import open_model

    bundle = default_bundle()
    config = read_settings(CONFIGS / "detector_lite2.toml", ["training.steps=300"], bundle)
    train_detector_module._check_start(config, open_model(bundle, "detector"))
    assert config.training.steps == 300
    segmenter = open_model(bundle, "segmenter")
    for name, size in ((None, segmenter.spec["crop"]["size"]), ("segmenter.toml", 64), ("segmenter_finish.toml", 112)):
        settings = train_segmenter.read_settings(CONFIGS / name if name else None, [], bundle)
        train_segmenter._check_start(settings, segmenter)
        assert settings.crop.size == size


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("detector_*.toml")), ids=lambda p: p.stem)
def test_shipped_configs_are_understood(path: Path) -> None:
    config = load_toml(DetectorTrainConfig, path)
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in (*config.sizes, *config.scales, config.anchor_size))


def test_defaults_are_the_published_schedule() -> None:
    from mammoseg.training.loop import learning_rate

    config = DetectorTrainConfig()
    network = network_config(config.arch, config.network)
    assert (network.backbone, config.training.steps, config.training.batch_size) == ("darknet53", 30_000, 32)
    assert config.resize_every == 10
    rates = [learning_rate(config.training, s) for s in (5_000, 15_000, 25_000)]
    np.testing.assert_allclose(rates, [1e-3, 1e-4, 1e-5])


@pytest.mark.data
def test_every_true_mass_lies_inside_the_breast_box(shared_dir: Path, tmp_path: Path) -> None:
    items = read_dataset(f"coco:{shared_dir / 'data/cbis_ddsm_mass/annotations.json'}")[::25]
    for kept in cached_images(items, tmp_path, FrameConfig("breast", "keep", "percentile"), 1024):
        x1, y1, x2, y2 = kept.measured.box
        assert (kept.boxes >= np.array([x1, y1, x1, y1]) - 1).all(), kept.item.image_id
        assert (kept.boxes <= np.array([x2, y2, x2, y2]) + 1).all(), kept.item.image_id


def test_runs_that_come_before_are_made_first_and_gone_on_from(data: Path, tmp_path: Path) -> None:
    """A chain of two equals the two by hand; the further data set is learnt from in the second alone."""
    write_exams(tmp_path / "more", 1, seed=9, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    (tmp_path / "chain.toml").write_text("""
also_repeat = 2
[[before]]
name = "films"
also = false
[before.settings.training]
steps = 3
learning_rate = 5e-3
""")
    under = small(tmp_path / "cache", steps=2)
    chain = load_toml(DetectorTrainConfig, tmp_path / "chain.toml", under=to_dict(under))
    spec, also = f"phantom:{data}", [(f"phantom:{tmp_path / 'more'}", None)]
    made = load_model(train_detector(chain, spec, tmp_path / "chain", also=also))
    first = replace(under, also_repeat=2, training=replace(under.training, steps=3, learning_rate=5e-3))
    begun = train_detector(first, spec, tmp_path / "first")
    by_hand = load_model(train_detector(replace(under, also_repeat=2), spec, tmp_path / "last", init=begun, also=also))
    assert all(torch.equal(v, by_hand.state[k]) for k, v in made.state.items())
    (ancestor,) = made.record["ancestors"]
    assert (ancestor["name"], ancestor["record"]["steps"], made.record["steps"]) == ("films", 3, 2)
    assert made.record["n_images"] == ancestor["record"]["n_images"] + 2 * 4  # four views, each twice
    # Killed after the first of them: the rest is done, and the first is not made again.
    shutil.rmtree(tmp_path / "chain" / "model")
    shutil.rmtree(tmp_path / "chain" / "checkpoints")
    kept = (tmp_path / "chain" / "films" / "curve.csv").read_bytes()
    again = load_model(train_detector(chain, spec, tmp_path / "chain", resume=True, also=also))
    assert all(torch.equal(v, again.state[k]) for k, v in made.state.items())
    assert (tmp_path / "chain" / "films" / "curve.csv").read_bytes() == kept


@pytest.mark.parametrize("names", [["model"], ["a", "a"], ["a/b"]])
def test_runs_that_come_before_have_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="name of its own"):
        DetectorTrainConfig(before=tuple(DetectorStage(n) for n in names))


def test_a_run_that_comes_before_takes_the_rest_of_its_network_over() -> None:
    under = small(Path("cache"))
    stage = DetectorStage("first", settings={"network": {"fold_norm": False}})
    first = replace(under, before=(stage,)).of_stage(stage)
    assert first.network == {**under.network, "fold_norm": False}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": {"neck_widths": [8, 8, 16]}}, r"before first: network.neck_widths is \[8, 8, 16\], and \[8, 16, 16\]"),
        ({"frame": {"region": "full"}}, 'before first: frame.region is "full", and "breast" in the last run'),
        ({"before": [{"name": "inner"}]}, "before first: expected no runs before a run that comes before"),
    ],
)
def test_runs_that_cannot_follow_each_other_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(small(Path("cache")), before=(DetectorStage("first", settings=settings),))


def test_what_stops_the_last_run_stops_the_first_before_it_starts(data: Path, tmp_path: Path) -> None:
    under = small(tmp_path / "cache", steps=2)
    chain = replace(under, before=(DetectorStage("first"),))
    spec = f"phantom:{data}"
    held = tmp_path / "held"
    train_detector(under, spec, held)
    kept = (held / "model" / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds a training run already"):
        train_detector(chain, spec, held)
    with pytest.raises(UsageError, match="came after no run 'first': this is another one"):
        train_detector(chain, spec, held, resume=True)
    with pytest.raises(DatasetError, match="nowhere"):
        train_detector(chain, spec, tmp_path / "new", also=[(f"phantom:{tmp_path / 'nowhere'}", None)])
    assert not (held / "first").exists()
    assert not (tmp_path / "new" / "first").exists()
    assert (held / "model" / "model.safetensors").read_bytes() == kept
