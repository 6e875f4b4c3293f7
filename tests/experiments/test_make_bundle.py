"""Making a bundle from trained models: what it holds, that nothing is lost, that torch reads it back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from mammoseg.bundle import open_bundle, write_sums
from mammoseg.errors import BundleError, ConfigError, TrainingError, UsageError
from mammoseg.pipeline import PipelineConfig, settings_of
from mammoseg.types import Detections, Findings, ImageInfo, Lesion

torch = pytest.importorskip("torch")

from mammoseg.experiments.parity import end_to_end, shortcomings  # noqa: E402


def test_a_bundle_is_complete_and_describes_itself(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.name == "tiny"
    assert opened.training["image_sha256"] == ["0" * 64]
    assert opened.training["patient_sha256"] == ["1" * 64]
    assert opened.has_seen("0" * 64) is True
    assert opened.metrics["note"] == "random weights"
    parity = opened.metrics["parity"]
    assert parity["images"] == parity["images_with_equal_lesion_count"] == 2
    assert 0 < parity["detector_probability_difference"] < 0.05
    assert 0.9 < parity["segmenter_mask_dice_mean"] <= 1
    assert parity["lesions"] > 0
    assert parity["lesion_box_iou_least"] >= 0.9
    for words in ("trained on: none, random weights", "Not a medical device", "int8", "float16", "random weights"):
        assert words in opened.card
    assert "/" not in json.dumps(opened.config)
    assert opened.metrics["bytes"]["detector.onnx"] < 200_000


def test_the_card_speaks_of_the_data_this_bundle_was_made_from_and_of_no_other(tmp_path: Path) -> None:
    from mammoseg.experiments.card import write_card
    from mammoseg.training.checkpoint import Model

    def card(detector: dict[str, object], segmenter: dict[str, object]) -> str:
        models = {"detector": Model("detector", {}, {}, {}, detector), "segmenter": Model("segmenter", {}, {}, {}, segmenter)}
        described = {"config": {"arch": "x", "network": {"depth": 4}}, "weights": "int8"}
        config = {"name": "b", "made_with": "m", "networks": {"detector": described, "segmenter": described}}
        write_card(
            tmp_path / "card.md", config, {"bytes": dict.fromkeys(("detector.safetensors", "segmenter.safetensors"), 1)}, models
        )
        return (tmp_path / "card.md").read_text()

    lite = {"weights": "efficientnet_lite2_imagenet1k.safetensors"}
    shipped = card({"dataset": "cbis_ddsm_mass", "settings": lite}, {"dataset": "cdd_cesm", "start": "VGG16"})
    for words in (
        "CC BY 3.0",
        "CC BY 4.0",
        "digitised film",
        "offered under Apache-2.0",
        "started from: VGG16",
        "EfficientNet-Lite",
    ):
        assert words in shipped
    own = card({"dataset": "mine"}, {"dataset": "mine"})
    for words in ("CBIS", "CESM", "CC BY", "film", "offered under", "ImageNet"):
        assert words not in own
    assert "**mine**: not known here" in own
    tuned = card({"dataset": "mine", "datasets": ["cbis_ddsm_mass", "mine"]}, {"dataset": "cdd_cesm"})
    assert "CC BY 3.0" in tuned
    assert "**mine**: not known here" in tuned
    assert "depth 4" in tuned
    assert "missed more often" not in shipped + own + tuned


def test_the_card_shows_evaluations_and_calibration_as_tables(tmp_path: Path) -> None:
    from mammoseg.experiments.card import write_card
    from mammoseg.training.checkpoint import Model

    record: dict[str, object] = {"dataset": "mine"}
    models = {"detector": Model("detector", {}, {}, {}, record), "segmenter": Model("segmenter", {}, {}, {}, record)}
    networks = {k: {"config": {}, "weights": "float16"} for k in models}
    reliability = {"n": 523, "least": 0.05, "rate": 0.4, "ece": 0.0478, "brier": 0.1357, "bins": [{"n": 1}]}
    interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    strata = [{"by": "density", "group": "2", "n_masses": 7, "n_images": 6, "n_patients": 5, "tpr": interval, "dice": interval}]
    metrics = {
        "bytes": dict.fromkeys(("detector.safetensors", "segmenter.safetensors"), 1),
        "gate": {"ways": {}},
        "films": {"on": "4 images", "figures": {"AP": interval, "TPR": {**interval, "value": None}}, "strata": strata},
        "calibration": {"on": "4 images", "criterion": "IoU 0.5", "raw": None, "cross_fitted": reliability},
    }
    write_card(tmp_path / "card.md", {"name": "x", "made_with": "mammoseg", "networks": networks}, metrics, models)
    card = (tmp_path / "card.md").read_text()
    assert "## Results\n\n### Measured on films\n\n4 images, 95%" in card
    assert "| AP | 0.500 [0.250, 0.750] |\n| TPR | – |" in card
    assert "| density | 2 | 7 | 0.500 [0.250, 0.750] |" in card
    assert "| each patient's by a fit on the others | 0.048 | 0.136 | 523 from 0.05 |" in card
    assert "bins" not in card.replace("bins of equal mass", "")
    assert "gate" not in card
    assert "| raw |" not in card


def test_models_of_earlier_forms_become_bundles_of_todays(tiny_bundle: Path, model_directories: tuple[Path, Path]) -> None:
    """The fixture's detector has no arch; early segmenters carry a threshold in their spec."""
    from mammoseg.experiments.make_bundle import make_bundle

    assert "arch" not in json.loads((model_directories[0] / "model.json").read_text())["config"]
    config = open_bundle(tiny_bundle).config["networks"]["detector"]["config"]
    assert (config["arch"], config["network"]["backbone"]) == ("yolov3", "efficientnet_lite0")
    early = tiny_bundle.parent / "early"
    shutil.copytree(model_directories[1], early)
    model = json.loads((early / "model.json").read_text())
    model["spec"]["threshold"] = 0.5
    (early / "model.json").write_text(json.dumps(model))
    early_detector = tiny_bundle.parent / "early_detector"
    shutil.copytree(model_directories[0], early_detector)
    described = json.loads((early_detector / "model.json").read_text())
    described["record"]["settings"] = {"weights": "../elsewhere/efficientnet_lite0.safetensors", "cache": "/home/me/cache"}
    (early_detector / "model.json").write_text(json.dumps(described))
    make_bundle(early_detector, early, early / "bundle")
    made = open_bundle(early / "bundle")
    assert made.training["networks"]["detector"]["settings"] == {"weights": "efficientnet_lite0.safetensors", "cache": "cache"}
    assert "elsewhere" not in made.card
    assert "EfficientNet-Lite trained on ImageNet (Apache-2.0)" in made.card
    assert "threshold" not in open_bundle(early / "bundle").config["networks"]["segmenter"]["spec"]


def test_a_bundle_says_what_each_of_its_networks_has_seen(model_directories: tuple[Path, Path], tmp_path: Path) -> None:
    """A network taken out of it brings its own images alone; out of an older bundle, which does not say, those of all."""
    from mammoseg.experiments.make_bundle import make_bundle
    from mammoseg.experiments.start import open_model

    folders = []
    for folder, digit in zip(model_directories, "ab", strict=True):
        folders.append(tmp_path / folder.name)
        shutil.copytree(folder, folders[-1])
        described = json.loads((folders[-1] / "model.json").read_text())
        described["record"] |= {"image_sha256": [digit * 64], "patient_sha256": [digit * 64]}
        (folders[-1] / "model.json").write_text(json.dumps(described))
    make_bundle(*folders, tmp_path / "made")
    assert open_bundle(tmp_path / "made").training["patient_sha256"] == ["a" * 64, "b" * 64]
    kinds: tuple[Literal["detector", "segmenter"], ...] = ("detector", "segmenter")
    for kind, digit in zip(kinds, "ab", strict=True):
        record = open_model(tmp_path / "made", kind).record
        assert (record["image_sha256"], record["patient_sha256"]) == ([digit * 64], [digit * 64])
    file = tmp_path / "made" / "training.json"
    older = json.loads(file.read_text())
    for record in older["networks"].values():
        del record["image_sha256"], record["patient_sha256"]
    file.write_text(json.dumps(older))
    write_sums(tmp_path / "made")
    assert open_model(tmp_path / "made", "segmenter").record["image_sha256"] == ["a" * 64, "b" * 64]


def test_torch_reads_the_bundle_back_to_go_on_training(tiny_bundle: Path, model_directories: tuple[Path, Path]) -> None:
    from mammoseg.runtime.torch_runtime import build
    from mammoseg.training.checkpoint import load_model

    opened = open_bundle(tiny_bundle)
    for kind, folder in zip(("detector", "segmenter"), model_directories, strict=True):
        state = opened.state(kind)
        network = build(kind, opened.config["networks"][kind]["config"], state)
        trained = load_model(folder).state
        assert set(state) == set(trained)
        for key, value in network.state_dict().items():
            expected = trained[key]
            tolerance = float(expected.abs().max()) / (254 if kind == "segmenter" else 1024) if expected.ndim > 1 else 0.0
            assert float((value - expected).abs().max()) <= tolerance * 1.0001, key


def test_what_cannot_become_a_bundle_is_refused(
    model_directories: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle

    detector, segmenter = model_directories
    with pytest.raises(UsageError, match="is not empty"):
        make_bundle(detector, segmenter, tiny_bundle)
    with pytest.raises(TrainingError, match="expected a detector, got a segmenter"):
        make_bundle(segmenter, detector, tmp_path / "swapped")
    with pytest.raises(ConfigError, match=r"did you mean 'pipeline\.fusion'"):
        make_bundle(detector, segmenter, tmp_path / "settings", BundleOptions(pipeline={"fuson": {}}))


def with_settings(bundle: Path, target: Path, **pipeline: dict[str, object]) -> Path:
    """A copy of a bundle that ships other settings."""
    shutil.copytree(bundle, target)
    config = json.loads((target / "config.json").read_text())
    for part, values in pipeline.items():
        config["pipeline"][part] |= values
    (target / "config.json").write_text(json.dumps(config))
    write_sums(target)
    return target


def test_settings_start_from_the_bundle_a_network_is_taken_from(
    tiny_bundle: Path, model_directories: tuple[Path, Path], tmp_path: Path
) -> None:
    from mammoseg.experiments.make_bundle import starting_settings

    own = {"fusion": {"lam": 0.4}, "reconstruction": {"smooth": 1.5}, "runtime": {"threads": 3}}
    other = {"fusion": {"lam": 0.2}, "reconstruction": {"smooth": 2.5}, "detection": {"score_min": 0.1}}
    first = with_settings(tiny_bundle, tmp_path / "first", **own)
    second = with_settings(tiny_bundle, tmp_path / "second", **other)
    detector, segmenter = model_directories
    assert starting_settings(detector, segmenter) == PipelineConfig()
    assert starting_settings(first, segmenter) == starting_settings(detector, first) == settings_of(open_bundle(first))
    both = starting_settings(first, second)
    assert (both.fusion.lam, both.runtime.threads, both.detection.score_min) == (0.4, 3, 0.005)
    assert both.reconstruction.smooth == 2.5
    assert both.fusion.score_min == 0.05, "what both bundles have is lost"
    with pytest.raises(BundleError, match="no bundle at"):
        starting_settings(tmp_path / "nothing", segmenter)


def test_a_bundle_made_from_a_bundle_keeps_its_settings_and_takes_changes(
    tiny_bundle: Path, model_directories: tuple[Path, Path], small_exams: Path, tmp_path: Path
) -> None:
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle

    given = with_settings(tiny_bundle, tmp_path / "given", fusion={"lam": 0.4}, reconstruction={"smooth": 1.5})
    image = sorted(small_exams.iterdir())[0]
    options = BundleOptions(
        pipeline={"fusion": {"nms_iou": 0.3}}, detector_weights="float32", segmenter_weights="float32", images=[image]
    )
    make_bundle(model_directories[0], given, tmp_path / "made", options)
    settings = settings_of(open_bundle(tmp_path / "made"))
    assert (settings.fusion.lam, settings.fusion.nms_iou, settings.reconstruction.smooth) == (0.4, 0.3, 1.5)
    assert settings.fusion.score_min == 0.05


def test_a_bundle_that_falls_short_of_the_trained_networks_is_not_made(
    model_directories: tuple[Path, Path], small_exams: Path, tmp_path: Path
) -> None:
    """int8 on the small tensors of a random network costs more than masks may lose."""
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle

    (tmp_path / "made").mkdir()
    options = BundleOptions(pipeline={"fusion": {"score_min": 0.05}}, quantise_from=1, images=sorted(small_exams.iterdir())[:1])
    with pytest.raises(BundleError, match=r"no bundle was made: on 1 given images .* expected at least 0\.99") as error:
        make_bundle(*model_directories, tmp_path / "made", options)
    assert "--segmenter-weights" in str(error.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["made"]
    parity = make_bundle(*model_directories, tmp_path / "made", replace(options, force=True))["parity"]
    assert open_bundle(tmp_path / "made").metrics["parity"] == parity
    assert "lesion mask dice mean" in open_bundle(tmp_path / "made").card
    assert shortcomings(parity)
    finer = replace(options, detector_weights="float32", segmenter_weights="float32")
    assert shortcomings(make_bundle(*model_directories, tmp_path / "finer", finer)["parity"]) == []


def lesion(number: int, x: float, score: float, side: int = 40) -> Lesion:
    """A square one."""
    box = (x, 10.0, x + side, 10.0 + side)
    contour = np.array([[x, 10.0], [x + side, 10.0], [x + side, 10.0 + side]])
    return Lesion(number, box, score, np.ones((side, side), dtype=bool), (10, int(x)), contour)


def test_parity_compares_each_mass_with_the_one_it_fits_best() -> None:
    def findings(*lesions: Lesion) -> Findings:
        return Findings(ImageInfo("x", 200, 400), "processed", None, lesions, Detections.empty((200, 400)))

    same = {"images": 1, "segmenter_mask_dice_mean": 1.0, "detector_probability_difference": 0.0}
    a = findings(lesion(1, 10, 0.81), lesion(2, 200, 0.80))
    swapped = end_to_end([(a, findings(lesion(1, 200, 0.805), lesion(2, 10, 0.80)))]) | same
    assert swapped["lesion_score_difference"] == 0.01
    assert (swapped["lesion_box_iou_least"], swapped["lesion_mask_dice_least"], swapped["lesions"]) == (1.0, 1.0, 2)
    assert shortcomings(swapped) == []
    fewer = end_to_end([(a, findings(lesion(1, 10, 0.81)))]) | same
    assert shortcomings(fewer) == ["another number of masses in 1 of 1 images"]
    moved = end_to_end([(a, findings(lesion(1, 13, 0.77), lesion(2, 200, 0.80)))]) | same
    iou = 37 / 43
    assert moved["lesion_box_iou_least"] == pytest.approx(iou, abs=1e-6)
    assert moved["lesion_mask_dice_mean"] == pytest.approx((1 + 37 / 40) / 2, abs=1e-6)
    assert [text.split(",")[0] for text in shortcomings(moved)] == [
        f"least IoU of a mass's boxes {iou:.4g}",
        "largest difference of a mass's scores 0.04",
        "mean Dice of masses' outlines 0.9625",
    ]
    assert shortcomings(end_to_end([]) | same | {"images": 0, "detector_probability_difference": 0.2})


@pytest.mark.parametrize("depth", [1, 3])
def test_of_a_segmenter_used_by_a_pruned_output_only_what_that_needs_is_shipped(
    tiny_bundle: Path, model_directories: tuple[Path, Path], small_exams: Path, tmp_path: Path, depth: int
) -> None:
    import onnx

    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle
    from mammoseg.runtime import load_network
    from mammoseg.runtime.torch_runtime import build
    from mammoseg.training.checkpoint import load_model, save_model

    whole = load_model(model_directories[1])
    spec = whole.spec | {"output": f"L{depth}"}
    segmenter = save_model(tmp_path / "segmenter", "segmenter", whole.state, whole.config, spec, whole.record)
    options = BundleOptions(segmenter_weights="float32", images=sorted(small_exams.iterdir())[:1])
    make_bundle(model_directories[0], segmenter, tmp_path / "pruned", options)
    out = {"whole": open_bundle(tiny_bundle), "pruned": open_bundle(tmp_path / "pruned")}
    graphs = {n: onnx.load_model(str(b.directory / "segmenter.onnx")).graph for n, b in out.items()}
    states = {n: b.state("segmenter") for n, b in out.items()}
    assert len(graphs["pruned"].output) == depth < len(graphs["whole"].output) == 4
    assert len(graphs["pruned"].node) < len(graphs["whole"].node)
    assert set(states["pruned"]) < set(states["whole"])
    gone = set(states["whole"]) - set(states["pruned"])
    assert {k for k in gone if k.startswith("nodes.")} == {
        k for k in states["whole"] if k.startswith("nodes.") and sum(map(int, k.split(".")[1].split("_"))) > depth
    }
    assert out["pruned"].config["networks"]["segmenter"]["config"]["network"]["depth"] == depth
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = build("segmenter", whole.config, {k: v.numpy() for k, v in whole.state.items()})(x)[depth - 1].numpy()
        read_back = build("segmenter", out["pruned"].config["networks"]["segmenter"]["config"], states["pruned"])(x)
    assert np.array_equal(read_back[-1].numpy(), expected)
    assert load_network(tmp_path / "pruned", "segmenter")(x.numpy())[depth - 1] == pytest.approx(expected, abs=1e-4)


def test_an_output_that_the_segmenter_does_not_have_is_named(model_directories: tuple[Path, Path], tmp_path: Path) -> None:
    from mammoseg.experiments.make_bundle import make_bundle
    from mammoseg.runtime.torch_runtime import build
    from mammoseg.training.checkpoint import load_model, save_model

    model = load_model(model_directories[1])
    config = {"arch": "unetpp", "network": {"widths": [8, 8, 16, 16, 16], "depth": 2}}
    shallow = build("segmenter", config).state_dict()
    save_model(tmp_path / "s", "segmenter", shallow, config, model.spec | {"output": "L3"}, model.record)
    with pytest.raises(BundleError, match="by its output L3, which it does not have"):
        make_bundle(model_directories[0], tmp_path / "s", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_export_keeps_equal_parameters_apart(tmp_path: Path) -> None:
    """A fresh batch norm has equal tensors, which the exporter would join, and with them their names."""
    from mammoseg.experiments.export import export_graph
    from mammoseg.runtime.graph import needed_parameters

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    names = set(needed_parameters(export_graph(network)))
    assert names == {k for k in before if not k.endswith("num_batches_tracked")}
    assert all(np.array_equal(v, before[k]) for k, v in network.state_dict().items()), "the network itself was changed"
