"""Several detectors as members of one: what each finds is what it finds alone, in a bundle as in torch; and back again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mammoseg.apps.cli import cli
from mammoseg.bundle import open_bundle
from mammoseg.config import from_dict
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.errors import BundleError, ConfigError
from mammoseg.fusion import FusionConfig, wbf
from mammoseg.io.load import load_mammogram
from mammoseg.pipeline import load, settings_of
from mammoseg.scores import CalibrationConfig

torch = pytest.importorskip("torch")

from mammoseg.detection.members import MembersConfig  # noqa: E402
from mammoseg.experiments.joining import join, member, split  # noqa: E402
from mammoseg.experiments.make_bundle import BundleOptions, make_bundle, starting_settings  # noqa: E402
from mammoseg.experiments.start import open_model  # noqa: E402
from mammoseg.experiments.train_detector import DetectorTrainConfig, read_settings, train_detector  # noqa: E402
from mammoseg.training.checkpoint import Model, save_model  # noqa: E402

ANCHORS = [[9.0 + 4 * i, 8.0 + 5 * i] for i in range(9)]
FORCED = BundleOptions("x", {"fusion": {"score_min": 0.05}}, quantise_from=1024, force=True)


@pytest.fixture(scope="module")
def two(model_directories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny detector, and one of other weights, anchors and training images."""
    first = open_model(model_directories[0], "detector")
    generator = torch.Generator().manual_seed(5)
    moved = {
        k: v * (1 + 0.3 * torch.rand(v.shape, generator=generator)) if v.is_floating_point() else v
        for k, v in first.state.items()
    }
    record = {"image_sha256": ["2" * 64], "patient_sha256": ["3" * 64], "dataset": "others", "start": "a network of old"}
    out = tmp_path_factory.mktemp("second") / "detector"
    save_model(out, "detector", moved, first.config, {**first.spec, "anchors": ANCHORS}, record)
    return model_directories[0], out


@pytest.fixture(scope="module")
def joined(two: tuple[Path, Path], model_directories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joined") / "bundle"
    make_bundle(two, model_directories[1], out, FORCED)
    return out


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image")
    write_exams(out, 1, seed=3, format="png", config=PhantomConfig(size=(416, 320)))
    return sorted((out / "images").iterdir())[0]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_each_member_finds_what_it_finds_alone(
    runtime: str, two: tuple[Path, Path], joined: Path, model_directories: tuple[Path, Path], image: Path, tmp_path: Path
) -> None:
    mammogram = load_mammogram(image)
    alone = []
    for number, path in enumerate(two):
        make_bundle(path, model_directories[1], tmp_path / str(number), FORCED)
        alone.append(load(tmp_path / str(number), [f"runtime.kind={runtime}"]).detector.detect(mammogram))
    found = load(joined, [f"runtime.kind={runtime}"]).detector.detect(mammogram)
    assert [d.origin for d in found] == [f"{s} of member {m}" for s in ("64x128", "96x192") for m in (1, 2)]
    assert any(len(a) != len(b) or not np.allclose(a.boxes, b.boxes) for a, b in zip(*alone, strict=True))
    for scale in range(2):
        for number in range(2):
            one, other = found[2 * scale + number], alone[number][scale]
            assert len(one) == len(other) > 0
            np.testing.assert_allclose(one.boxes, other.boxes, atol=0.01)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_boxes_of_all_members_are_fused(joined: Path, image: Path) -> None:
    pipeline = load(joined, ["fusion.method=wbf", "fusion.wbf_score_min=0.0"])
    findings = pipeline.analyze(load_mammogram(image))
    per_scale = pipeline.detector.detect(load_mammogram(image), None, 0.005, 0.45)
    fused = wbf(per_scale, FusionConfig("wbf", wbf_score_min=0.0))
    best = max(float(c) for c in findings.candidates.scores)
    assert best == pytest.approx(float(fused.scores.max()), abs=1e-6)


def test_a_bundle_tells_all_that_any_member_has_seen_and_what_it_is(joined: Path) -> None:
    bundle = open_bundle(joined)
    assert bundle.training["image_sha256"] == ["0" * 64, "2" * 64]
    assert bundle.training["patient_sha256"] == ["1" * 64, "3" * 64]
    assert [m["dataset"] for m in bundle.training["networks"]["detector"]["members"]] == ["none, random weights", "others"]
    spec = from_dict(DetectorSpec, bundle.config["networks"]["detector"]["spec"])
    assert spec.members == 2
    assert spec.anchors_of(1, 1).tolist() == ANCHORS[3:6]
    assert spec.anchors_of(0).tolist() == [list(a) for a in DetectorSpec().anchors[:3]]
    for words in (
        "members: (1) arch yolov3",
        "; (2) arch yolov3",
        "trained on: none, random weights, others",
        "a network of old",
    ):
        assert words in bundle.card


def test_members_come_back_as_they_were_and_do_not_nest(two: tuple[Path, Path], joined: Path) -> None:
    singles = [open_model(path, "detector") for path in two]
    together = join(singles)
    for whole in (together, open_model(joined, "detector")):
        parts = split(whole)
        assert [part.spec["anchors"] for part in parts] == [[list(a) for a in DetectorSpec().anchors], ANCHORS]
        for part, single in zip(parts, singles, strict=True):
            assert set(part.state) == set(single.state)
            assert part.record["image_sha256"] == ["0" * 64, "2" * 64]  # seen by any of them: whose is not kept
            for key, value in single.state.items():
                torch.testing.assert_close(part.state[key], value, atol=2e-3, rtol=2e-3)  # a bundle's are float16
    assert split(singles[0]) == [singles[0]]
    three = join([together, singles[1]])
    assert len(split(three)) == 3
    assert three.config["network"]["members"][2] == three.config["network"]["members"][1]
    assert from_dict(DetectorSpec, three.spec).members == 3
    assert join(singles[:1]) is singles[0]
    with pytest.raises(ConfigError, match="expected 1 to 2, as many as the model has detectors, got 3"):
        member(together, 3)
    with pytest.raises(ValueError, match="two detectors or more, got 1"):
        MembersConfig(({"backbone": "efficientnet_lite0"},))


def test_detectors_that_do_not_go_together_are_refused(two: tuple[Path, Path]) -> None:
    first, second = (open_model(path, "detector") for path in two)
    with pytest.raises(
        BundleError, match=r"detector 2 does not go with the first: mean, std \[0.5, 0.5\], expected \[0.0, 1.0\]"
    ):
        join([first, replace(second, spec={**second.spec, "mean": 0.5, "std": 0.5})])
    with pytest.raises(BundleError, match=r"detectors with \[6, 9\] anchors do not go together"):
        join([first, replace(second, spec={**second.spec, "anchors": ANCHORS[:6]})])
    boxes = [replace(m, spec={**m.spec, "layout": "boxes"}) for m in (first, second)]
    with pytest.raises(BundleError, match=r"layout boxes, expected 'yolo'|layout"):
        join(boxes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"members": 0}, "expected 1"),
        ({"members": 2, "layout": "boxes"}, "got 2 of boxes"),
        ({"members": 2}, "3 strides of 2 members, got 9"),
    ],
)
def test_specs_of_members_that_cannot_be_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(DetectorSpec, values)


def test_what_was_fitted_for_one_detector_does_not_hold_for_several(
    two: tuple[Path, Path], model_directories: tuple[Path, Path], tmp_path: Path
) -> None:
    fitted = replace(FORCED, pipeline={"fusion": {"lesion_score_min": 0.4, "lam": 0.5, "calibration": {"slope": 2.0}}})
    make_bundle(two[0], model_directories[1], tmp_path / "fitted", fitted)
    assert starting_settings(tmp_path / "fitted", two[1]).fusion.calibration == CalibrationConfig(slope=2.0)
    several = starting_settings([tmp_path / "fitted", two[1]], model_directories[1])
    assert several.fusion.lam == 0.5
    assert several.fusion.calibration == CalibrationConfig()
    assert several.fusion.lesion_score_min == 0.0


def test_by_commands_several_detectors_become_a_bundle_and_training_goes_on_from_one_of_them(
    two: tuple[Path, Path], model_directories: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    given = ["--detector", two[0], "--detector", two[1], "--segmenter", model_directories[1], "--out", out, "--force"]
    made = CliRunner().invoke(cli, ["bundle", "make", *map(str, given)])
    assert made.exit_code == 0, made.output
    assert settings_of(open_bundle(out)).fusion.calibration == CalibrationConfig()

    write_exams(tmp_path / "data", 2, seed=5, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    small = ["sizes=[[128,64]]", "validation_size=[128,64]", "training.steps=1", "training.batch_size=2", "holdout=0.5"]
    small += [
        "training.learning_rate=0.0",
        "training.optimizer=sgd",
        "training.weight_decay=0.0",
        f"cache={tmp_path / 'cache'}",
    ]
    for number in (1, 2):
        settings = read_settings(None, [*small, f"init_member={number}"], out)
        model = train_detector(settings, f"phantom:{tmp_path / 'data'}", tmp_path / f"run{number}", init=out)
        trained = open_model(model, "detector")
        expected = split(open_model(out, "detector"))[number - 1]
        assert trained.spec["anchors"] == expected.spec["anchors"]
        parameters = [k for k in expected.state if "running_" not in k and expected.state[k].is_floating_point()]
        assert all(torch.equal(trained.state[k], expected.state[k]) for k in parameters)
        assert {"0" * 64, "2" * 64} < set(trained.record["image_sha256"])
    refused = CliRunner().invoke(
        cli,
        [
            "train",
            "detector",
            "--init",
            str(out),
            "--set",
            "init_member=3",
            "--data",
            "phantom:x",
            "--out",
            str(tmp_path / "r"),
        ],
    )
    assert (refused.exit_code, "expected 1 to 2" in refused.output) == (2, True), refused.output


def test_several_detectors_at_once_are_not_trained(two: tuple[Path, Path]) -> None:
    together: Model = join([open_model(path, "detector") for path in two])
    with pytest.raises(ConfigError, match="trained each alone"):
        DetectorTrainConfig(arch=together.config["arch"], network=together.config["network"])
