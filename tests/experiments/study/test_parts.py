"""The study's parts alone: the graph of steps, splits, prepared images, the operating point, what the paper's ± are."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from mammoseg.bundle import default_bundle
from mammoseg.config import from_dict, load_toml, to_dict
from mammoseg.datasets import coco
from mammoseg.errors import ConfigError, DatasetError, UsageError
from mammoseg.evaluation.inputs import Pair
from mammoseg.experiments.study import paper
from mammoseg.experiments.study.assumptions import ASSUMPTIONS, departures, lookup, page
from mammoseg.experiments.study.config import DataConfig, StudyConfig
from mammoseg.experiments.study.cost import forward
from mammoseg.experiments.study.data import prepare, read_prepared, spec_of
from mammoseg.experiments.study.graph import Graph, Step
from mammoseg.experiments.study.inference import choose_operating_point
from mammoseg.experiments.study.plan import Study, going_on
from mammoseg.experiments.study.presets import preset
from mammoseg.experiments.study.splits import leaked_patients, patient_split, published_split, training_fold
from mammoseg.experiments.study.tables import Row
from mammoseg.fusion import FusionConfig
from mammoseg.types import Annotation, DatasetItem, Detections, Findings, ImageInfo, TrueMass

DOCS = Path(__file__).parents[3] / "docs"


class Kitchen:
    """Steps that write what they are told and count how often they ran: a → b → c, and d alone."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran = out, []
        self.words = {"a": "one", "b": "two", "c": "three", "d": "four"}

    def graph(self, **settings: int) -> Graph:
        needs = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
        return Graph(self.out, [self.step(n, needs[n], settings.get(n, 0)) for n in needs])

    def step(self, name: str, needs: tuple[str, ...], setting: int) -> Step:
        def run() -> None:
            self.ran.append(name)
            read = "".join((self.out / n / "file").read_text() for n in needs)
            (self.out / name).mkdir(parents=True, exist_ok=True)
            (self.out / name / "file").write_text(f"{read}{self.words[name]}{setting}\n")
            (self.out / name / "log").write_text(str(len(self.ran)))

        return Step(name, run, (name,), needs, {"n": setting}, keeps=("log",))

    def all(self, only: tuple[str, ...] = (), **settings: int) -> list[str]:
        graph, self.ran = self.graph(**settings), []
        for step in graph.wanted(only):
            if not graph.is_done(step):
                graph.do(step)
        return self.ran


def test_steps_are_done_once_and_again_where_their_content_changes(tmp_path):
    kitchen = Kitchen(tmp_path)
    assert kitchen.all() == ["a", "b", "c", "d"]
    assert kitchen.all() == []
    assert kitchen.all(b=1) == ["b", "c"]
    assert kitchen.all(b=1) == []
    kitchen.words["b"] = "zwei"  # other code for the same settings is not seen, until its output is asked for anew
    assert kitchen.all(b=1) == []
    (tmp_path / "b/file").write_text("changed by hand\n")
    assert kitchen.all(b=1) == ["b", "c"]
    (tmp_path / "c/file").unlink()
    assert kitchen.all(b=1) == ["c"]
    (tmp_path / "a/file").write_text((tmp_path / "a/file").read_text())  # the same content at another time is the same
    (tmp_path / "a/log").write_text("whatever")
    assert kitchen.all(b=1) == []
    (tmp_path / "d/more").write_text("not ours")
    assert kitchen.all(b=1) == ["d"]
    # A step that gives the same output again leaves those after it alone.
    (tmp_path / "a/file").write_text("x")
    assert kitchen.all(b=1) == ["a"]


def test_what_was_left_is_kept_for_the_same_key_and_removed_for_another(tmp_path):
    def failing() -> None:
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x/half").write_text("half")
        raise RuntimeError("killed")

    def ending() -> None:
        (tmp_path / "x/whole").write_text("whole" if (tmp_path / "x/half").exists() else "from nothing")

    def do(run: object, setting: int) -> str:
        graph = Graph(tmp_path, [Step("x", run, ("x",), settings={"n": setting})])  # type: ignore[arg-type]
        (tmp_path / "x").mkdir(exist_ok=True)
        graph.do(graph.steps["x"])
        return (tmp_path / "x/whole").read_text()

    with pytest.raises(RuntimeError):
        do(failing, 1)
    assert not (tmp_path / "steps/x.json").exists()
    assert do(ending, 1) == "whole"
    with pytest.raises(RuntimeError):
        do(failing, 2)
    assert not (tmp_path / "x/whole").exists()


def test_only_takes_what_a_step_needs(tmp_path):
    kitchen = Kitchen(tmp_path)
    assert kitchen.all(("b",)) == ["a", "b"]
    assert kitchen.all(("d", "c")) == ["c", "d"]
    with pytest.raises(UsageError, match="no such step; there are a, b, c, d"):
        kitchen.all(("e",))
    with pytest.raises(ValueError, match="before what it needs"):
        Graph(tmp_path, [kitchen.step("b", ("a",), 0)])


def items(patients: int = 30, normal: int = 20) -> list[DatasetItem]:
    rng = np.random.default_rng(0)
    out = []
    for p in range(patients + normal):
        for view in range(int(rng.integers(1, 5))):
            masses = (TrueMass((1.0, 1, 9, 9)),) if p < patients and view < 2 else ()
            name = f"{p}-{view}.png"
            out.append(DatasetItem(name, f"/{name}", f"p{p}", Annotation(name, (20, 20), masses)))
    return out


def test_published_splits_are_by_image_and_mended_ones_by_patient():
    every = items()
    ill = [i.image_id for i in every if i.annotation.masses]
    folds = [published_split(every, k, 74 / 107, 2020) for k in range(1, 6)]
    assert len({f.content_hash for f in folds}) == 5
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == sorted(ill)
        assert len(fold.train) == round(len(ill) * 74 / 107)
        assert leaked_patients(every, fold) > 0
        assert published_split(every[::-1], folds.index(fold) + 1, 74 / 107, 2020) == fold
    for k in range(1, 6):
        fold = patient_split(every, k, (0.69, 0.1), 4040)
        assert sorted([*fold.train, *fold.validation, *fold.test]) == sorted(i.image_id for i in every)
        owners = [{i.patient_id for i in every if i.image_id in side} for side in (fold.train, fold.validation, fold.test)]
        assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
        assert all(any(n in ill for n in side) and any(n not in ill for n in side) for side in (fold.train, fold.test))
        assert training_fold(fold, set(ill)).train == tuple(n for n in fold.train if n in ill)
    with pytest.raises(DatasetError, match="one side is empty"):
        published_split(every[:1], 1, 0.5, 0)
    with pytest.raises(DatasetError, match="at least 3 patients"):
        patient_split(items(2, 5), 1, (0.5, 0.2), 0)


@pytest.mark.parametrize("aspect", ["stretch", "keep"])
def test_prepared_images_show_what_the_originals_show(tmp_path, aspect):
    y, x = np.mgrid[:300, :200]
    mask = ((x - 120) / 30) ** 2 + ((y - 100) / 45) ** 2 <= 1
    grey = (20 + 40 * (x > 30) + 150 * mask + (x + y) % 7).astype(np.uint8)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), grey)
    placed = mask[55:146, 90:151].copy()
    item = DatasetItem("images/a.png", str(tmp_path / "images/a.png"), "p", Annotation("images/a.png", (300, 200), (
        TrueMass((90.0, 55, 151, 146), placed, (55, 90)), TrueMass((10.0, 200, 60, 290)))), "L", "CC", (0.2, 0.2))  # fmt: skip
    coco.write(tmp_path / "annotations.json", [item])
    config = DataConfig((150, 50), aspect)  # type: ignore[arg-type]
    made = prepare(str(tmp_path), "inbreast", tmp_path / "out", config)
    (again,) = read_prepared(tmp_path / "out")
    size = (150, 50) if aspect == "stretch" else (75, 50)
    fy, fx = size[0] / 300, size[1] / 200
    assert again.annotation.size == made[0].annotation.size == size
    assert again.spacing_mm == pytest.approx((0.2 / fy, 0.2 / fx))
    pixels = cv2.imread(again.path, cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint16
    expected = cv2.resize(grey.astype(np.float32) / 255, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels / 65535 - expected).max() < 0.02
    full = np.zeros(size, dtype=bool)
    mass = again.annotation.masses[0]
    r, c = mass.origin_px
    full[r : r + mass.mask.shape[0], c : c + mass.mask.shape[1]] = mass.mask
    other = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA) >= 0.5
    assert 2 * (full & other).sum() / (full.sum() + other.sum()) > 0.97
    assert again.annotation.masses[1].box == pytest.approx((10 * fx, 200 * fy, 60 * fx, 290 * fy))
    stamp = Path(again.path).stat().st_mtime_ns
    prepare(str(tmp_path), "inbreast", tmp_path / "out", config)
    assert Path(again.path).stat().st_mtime_ns == stamp


def test_inbreast_is_read_with_its_normal_images(tmp_path):
    (tmp_path / "AllDICOMs").mkdir()
    (tmp_path / "AllXML").mkdir()
    assert spec_of(str(tmp_path), "inbreast", DataConfig()) == f"inbreast:{tmp_path}?images=all"
    assert spec_of(f"inbreast:{tmp_path}?rois=mass", "inbreast", DataConfig()) == f"inbreast:{tmp_path}?rois=mass&images=all"
    assert spec_of(f"inbreast:{tmp_path}?images=mass", "inbreast", DataConfig()) == f"inbreast:{tmp_path}?images=mass"


def test_the_operating_point_by_hand():
    def pair(name: str, boxes: list, scores: list, truth: list) -> Pair:
        item = DatasetItem(name, f"/{name}", name, Annotation(name, (100, 100), tuple(TrueMass(t) for t in truth)))
        found = Detections(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores), (100, 100))
        return Pair(item, Findings(ImageInfo(name, 100, 100), "processed", None, (), found))

    mass, far = (10.0, 10, 30, 30), (60.0, 60, 80, 80)
    scale = [pair("a", [mass, far], [0.9, 0.5], [mass]), pair("b", [far], [0.7], [far]), pair("c", [mass], [0.6], [])]
    fusion = FusionConfig(score_min=0.1)
    best = choose_operating_point([scale], fusion, (0.0,), 0.0, 0.5)
    assert (best["tpr"], best["fpi"], best["lesion_score_min"]) == (1.0, 0.0, pytest.approx(0.7))
    worse = [pair("a", [far], [0.9], [mass])]
    none = choose_operating_point([worse], fusion, (0.0, 0.6), 0.25, 0.5)
    assert (none["tpr"], none["lesion_score_min"], none["lam"], len(none["tried"])) == (0.0, 1.0, 0.0, 2)


def test_the_paper_mixes_its_spreads():
    for (_, setup), (values, printed) in paper.WHOLE_DICE.items():
        which = paper.which_spread(values, printed)
        if setup != "two-stage-single":
            assert "se" in which
        else:
            assert "se" not in which
    assert paper.which_spread(*paper.WHOLE_DICE["cascade", "two-stage-single"]) == []
    for values, printed in paper.CROP_DICE.values():
        assert np.mean(values) == pytest.approx(float(printed.split("±")[0]), abs=0.006)
    row = Row("", "", (1.0, 2.0, 6.0))
    assert (row.mean, row.sd, row.se) == (3.0, pytest.approx(7**0.5), pytest.approx((7 / 3) ** 0.5))
    assert Row("", "", (1.0, None)).mean is None
    assert Row("", "", (1.0,)).sd is None


def test_the_published_configuration():
    config = StudyConfig()
    assert departures(config) == [
        ("pretrain.weights", "ImageNet’s", "none"),
        ("networks.unetpp.backbone_weights", "VGG19’s of ImageNet", "none"),
    ]
    assert from_dict(StudyConfig, to_dict(config)) == config
    assert (config.pretrain.training.steps, config.finetune.training.steps, config.finetune.training.batch_size) == (
        60000,
        30000,
        32,
    )
    assert config.finetune.training.milestones == (10000, 20000)
    assert (config.splits.count, round(107 * config.splits.train)) == (5, 74)
    assert (config.segmenter.crop.size, config.segmenter.training.batch_size, config.fusion.lam) == (256, 4, 0.6)
    assert config.finetune.scales == ((320, 160), (512, 256), (640, 320), (832, 416), (960, 480))
    assert {k for k, _, _ in departures(preset("smoke"))} > {"data.size", "splits.count"} - {"splits.count"}
    with pytest.raises(ConfigError, match="mended"):
        from_dict(StudyConfig, {"mended": {"networks": ["vnet"]}})


def test_the_published_values_in_one_readable_file_are_the_defaults():
    file = DOCS.parent / "configs/study_paper.toml"
    assert load_toml(StudyConfig, file, under=to_dict(StudyConfig())) == StudyConfig()
    said = tomllib.loads(file.read_text(encoding="utf-8"))
    assert list(said["networks"]) == list(StudyConfig().networks)
    assert said["finetune"]["training"]["milestones"] == [10000, 20000]


def test_the_shipped_study_for_two_cores_is_read():
    config = load_toml(StudyConfig, DOCS.parent / "configs/study_cpu.toml", under=to_dict(StudyConfig()))
    assert (config.pretrained, config.splits.count, config.segmenter_of("unetpp").training.steps) == ("installed", 2, 60)
    assert config.segmenter_of("unetpp").training.optimizer == config.segmenter.training.optimizer == "adamw"
    assert list(config.networks) == list(StudyConfig().networks)
    own = going_on(config.finetune, default_bundle())
    assert own.network["backbone"] == "efficientnet_lite2"
    assert (own.frame.region, own.scales, own.training.steps) == ("breast", config.finetune.scales, 60)
    told = {key: (there, here) for key, there, here in departures(Study(config, "data", None, Path("out")).effective)}
    assert told["finetune.network.backbone"] == ("darknet53", "efficientnet_lite2")  # what the start imposes is told too
    assert told["finetune.frame.region"] == ("full", "breast")
    assert told["networks.unetpp.training.steps"] == ("4000", "60")
    assert told["networks.unet.network.widths"] == ("64, 128, 256, 512, 1024", "32, 64, 128, 256, 512")
    assert told["networks.unetpp.backbone_weights"] == ("VGG19’s of ImageNet", "none")
    assert not any(key.startswith("pretrain.") for key in told)


def test_fine_tuning_takes_the_network_of_pre_training():
    config = preset("smoke")
    changed = replace(config, finetune=replace(config.finetune, network={}, mean=0.3))
    effective = Study(changed, "data", "more", Path("out")).effective
    assert (effective.finetune.network, effective.finetune.mean) == (config.pretrain.network, config.pretrain.mean)
    assert effective.finetune.training == config.finetune.training
    assert Study(changed, "data", None, Path("out")).effective == changed


def test_every_assumption_names_a_setting_that_is_there_and_the_page_is_current():
    values = to_dict(StudyConfig())
    for assumption in ASSUMPTIONS:
        if assumption.key:
            lookup(values, assumption.key)
    assert (DOCS / "assumptions.md").read_text(encoding="utf-8") == page()


def test_costs_are_counted_without_computing():
    # One 3×3 convolution of 3 to 4 channels on 8 × 8 pixels and so on, by hand, of a two-level U-Net.
    h = w = 16
    convolutions = [(3, 4, h * w), (4, 4, h * w), (4, 6, h * w // 4), (6, 6, h * w // 4), (8, 4, h * w), (4, 4, h * w)]
    expected = sum(2 * 9 * a * b * n for a, b, n in convolutions) + 2 * 4 * 6 * 4 * (h * w // 4) + 2 * 4 * h * w
    assert forward("segmenter", "unet", {"widths": [4, 6]}, (h, w)) == expected
    full = forward("segmenter", "unetpp", {}, (256, 256))
    assert full == pytest.approx(288e9, rel=0.02)
    assert forward("detector", "yolov3", {}, (416, 416)) == pytest.approx(65.3e9, rel=0.02)
