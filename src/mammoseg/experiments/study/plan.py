"""The steps of the study, from the raw data sets to the report, as a graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mammoseg import __version__
from mammoseg.bundle import default_bundle, hash_file
from mammoseg.config import to_dict
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.datasets.splits import load_fold, save_fold
from mammoseg.errors import TrainingError, UsageError
from mammoseg.evaluation.inputs import Pair
from mammoseg.experiments.study import cost, figures, mended, report, tables, unseen
from mammoseg.experiments.study.config import StudyConfig
from mammoseg.experiments.study.data import fingerprint, prepare, read_prepared, spec_of
from mammoseg.experiments.study.graph import Graph, Step
from mammoseg.experiments.study.inference import (
    choose_operating_point,
    detect_all,
    fuse_all,
    open_segmenter,
    outline_detected,
    outline_true_boxes,
    scale_name,
)
from mammoseg.experiments.study.one_stage import segment_whole, train_one_stage
from mammoseg.experiments.study.splits import patient_split, published_split, training_fold
from mammoseg.experiments.study.store import load, save
from mammoseg.experiments.train_detector import DetectorTrainConfig, read_settings, train_detector
from mammoseg.experiments.train_segmenter import train_segmenter
from mammoseg.fusion import FusionConfig
from mammoseg.io.atomic import write_atomic
from mammoseg.types import DatasetItem, Fold

TAKEN_OVER = ("arch", "network", "frame", "mean", "std", "xy_scale")
"""Settings of a detector that fine-tuning takes from where it starts."""
TRAINING_LEFTOVERS = ("checkpoints", "tensorboard", "curve.csv", "curve.svg", "seconds.json")


@dataclass(frozen=True)
class Study:
    """One study: its settings, its data sets as given (None: not given), and the folder it writes to."""

    config: StudyConfig
    inbreast: str
    cbis_ddsm: str | None
    out: Path

    @property
    def published(self) -> list[str]:
        """T1 … Tn."""
        return [f"T{k}" for k in range(1, self.config.splits.count + 1)]

    @property
    def by_patient(self) -> list[str]:
        """M1 … Mn."""
        return [f"M{k}" for k in range(1, self.config.mended.splits + 1)]

    def items(self) -> list[DatasetItem]:
        """The prepared images of the target data set, those without a mass too."""
        return read_prepared(self.out / "data" / "inbreast")

    def side(self, split: str, side: str) -> list[DatasetItem]:
        """The images of one side of a split, in the data set's order."""
        ids = set(getattr(load_fold(self.out / "splits" / f"{split}.json"), side))
        return [i for i in self.items() if i.image_id in ids]

    def training_side(self, split: str) -> Fold:
        """What is trained on: the images with a mass of the training side, alone in a fold."""
        masses = {i.image_id for i in self.items() if i.annotation.masses}
        return training_fold(load_fold(self.out / "splits" / f"{split}.json"), masses)

    def findings(self, split: str, setup: str) -> Path:
        """Where the findings of one set-up lie."""
        return self.out / "findings" / split / setup

    def pairs(self, split: str, setup: str, side: str = "test") -> list[Pair]:
        """The findings of one set-up with the truth."""
        return load(self.findings(split, setup), self.side(split, side))

    def pairs_with_masks(self, split: str, setup: str) -> list[Pair]:
        """The findings of one set-up on the test images with an outlined mass."""
        return load(self.findings(split, setup), with_masks(self.side(split, "test")))

    @property
    def effective(self) -> StudyConfig:
        """The settings as they work: fine-tuning takes over network and preprocessing of the detector it starts from."""
        start, finetune = _pretrained(self), self.config.finetune
        if start is not None:
            finetune = going_on(finetune, start)
        elif self.cbis_ddsm is not None:
            finetune = replace(finetune, **{key: getattr(self.config.pretrain, key) for key in TAKEN_OVER})
        return replace(self.config, finetune=finetune)

    @property
    def scales(self) -> list[str]:
        """The names of all scales, W×H, small first."""
        return [scale_name(s) for s in self.config.finetune.scales]

    @property
    def single(self) -> str:
        """The name of the one scale behind Table 1."""
        return scale_name(self.config.assumptions.single_scale)


def with_masks(items: Sequence[DatasetItem]) -> list[DatasetItem]:
    """The images with an outlined mass."""
    return [i for i in items if any(m.mask is not None for m in i.annotation.masses)]


def build(study: Study) -> Graph:
    """All steps. The data sets' folders are looked at for their fingerprints."""
    return Graph(study.out, _steps(study))


def _steps(study: Study) -> Iterator[Step]:
    config = study.config
    yield _data(study, "inbreast", study.inbreast)
    pretrained = _pretrained(study)
    if pretrained is None and study.cbis_ddsm is not None:
        yield _data(study, "cbis_ddsm", study.cbis_ddsm)
    yield from _pretrain(study, pretrained)
    if pretrained is not None:
        yield _unseen(study, pretrained)
    for kind, splits in (("T", study.published), ("M", study.by_patient)):
        for split in splits:
            yield _split(study, split, kind)
            yield _detector(study, split)
            yield _detections(study, split)
            yield _fused(study, split)
            names = list(config.networks) if kind == "T" else list(config.mended.networks)
            if kind == "M":
                yield _tune(study, split)
            for name in names:
                yield from _segmenter(study, split, name)
    yield from tables.steps(study)
    yield from figures.steps(study)
    if study.by_patient:
        yield from mended.steps(study)
    yield report.step(study)


def _data(study: Study, role: str, given: str) -> Step:
    folder = f"data/{role}"

    def run() -> None:
        prepare(given, role, study.out / folder, study.config.data)

    items = read_dataset(spec_of(given, role, study.config.data))
    settings = {"data": to_dict(study.config.data), "name": dataset_name(given), "items": fingerprint(items)}
    return Step(folder, run, (folder,), settings=settings)


def _pretrained(study: Study) -> Path | None:
    named = study.config.pretrained
    if not named:
        return None
    path = default_bundle() if named == "installed" else Path(named)
    if not path.is_dir():
        raise UsageError(f"pretrained: {named!r} is no folder; name a model directory, a bundle, or the word installed")
    return path


def _unseen(study: Study, pretrained: Path) -> Step:
    allowed = study.config.allow_seen

    def run() -> None:
        spec = spec_of(study.inbreast, "inbreast", study.config.data)
        unseen.check(pretrained, spec, study.out / unseen.FILE, allowed)

    settings = {"pretrained": _content_of(pretrained), "allow_seen": allowed}
    return Step("unseen", run, (unseen.FILE,), needs=("data/inbreast",), settings=settings)


def _pretrain(study: Study, pretrained: Path | None) -> Iterator[Step]:
    """The detector every split starts from; nothing where there is none to be had."""
    if pretrained is not None or study.cbis_ddsm is None:
        return
    folder = "models/pretrain"

    def run() -> None:
        data = study.out / "data" / "cbis_ddsm"
        everything = tuple(i.image_id for i in read_prepared(data))
        save_fold(study.out / folder / "all.json", training_fold(Fold("all", everything, ())))
        _train_detector(study, study.config.pretrain, data, study.out / folder, None)

    yield Step(
        "pretrain",
        run,
        (folder,),
        needs=("data/cbis_ddsm",),
        settings=_training_settings(study.config.pretrain),
        cost=lambda: cost.train_detector(study.config.pretrain),
        keeps=TRAINING_LEFTOVERS,
        drops=("checkpoints",),
    )


def _train_detector(study: Study, config: DetectorTrainConfig, data: Path, out: Path, init: Path | None) -> None:
    own = replace(going_on(config, init), cache=str(study.out / "cache"))
    train_detector(own, f"coco:{data / 'annotations.json'}", out, out / "all.json", init, resume=True)


def going_on(config: DetectorTrainConfig, init: Path | None) -> DetectorTrainConfig:
    """The settings of a run that starts from `init`: network and preprocessing are those of the start."""
    if init is None:
        return config
    taken = read_settings(None, [], init)
    return replace(config, weights=None, **{key: getattr(taken, key) for key in TAKEN_OVER})


def _training_settings(config: Any) -> dict[str, Any]:
    """A step's settings: the run's, with files named by their content."""
    weights = getattr(config, "weights", None) or getattr(config, "backbone_weights", None)
    if weights and not Path(weights).is_file():
        raise TrainingError(f"weights to start from: there is no file {weights}")
    return cost.settings_of(config) | {"weights_sha256": hash_file(Path(weights)) if weights else None, "code": __version__}


def _split(study: Study, split: str, kind: str) -> Step:
    config, number = study.config, int(split[1:])
    file = f"splits/{split}.json"

    def run() -> None:
        items = study.items()
        if kind == "T":
            fold = published_split(items, number, config.splits.train, config.splits.seed)
        else:
            m = config.mended
            fold = patient_split(items, number, (m.train, m.validation), m.seed)
        save_fold(study.out / file, fold)

    settings: Mapping[str, Any] = to_dict(config.splits)
    if kind == "M":
        settings = {k: getattr(config.mended, k) for k in ("train", "validation", "seed")}
    settings = {k: v for k, v in settings.items() if k != "count"}
    return Step(f"split/{split}", run, (file,), needs=("data/inbreast",), settings=settings)


def _detector(study: Study, split: str) -> Step:
    folder = f"models/detector/{split}"
    pretrained = _pretrained(study)
    before = ("pretrain",) if pretrained is None and study.cbis_ddsm is not None else ()
    checked = () if pretrained is None else ("unseen",)

    def run() -> None:
        save_fold(study.out / folder / "all.json", study.training_side(split))
        init = pretrained if pretrained is not None else study.out / "models/pretrain/model" if before else None
        _train_detector(study, study.config.finetune, study.out / "data" / "inbreast", study.out / folder, init)

    finetune = study.config.finetune
    settings = _training_settings(replace(finetune, weights=None) if pretrained is not None or before else finetune)
    if pretrained is not None:
        settings["pretrained"] = _content_of(pretrained)
    return Step(
        f"detector/{split}",
        run,
        (folder,),
        needs=("data/inbreast", f"split/{split}", *before, *checked),
        settings=settings,
        cost=lambda: cost.train_detector(going_on(study.config.finetune, pretrained)),
        keeps=TRAINING_LEFTOVERS,
        drops=("checkpoints",),
    )


def _content_of(model: Path) -> dict[str, str]:
    return {p.name: hash_file(p) for p in sorted(model.iterdir()) if p.suffix in (".safetensors", ".json")}


def _provenance(study: Study, split: str, setup: str, **more: Any) -> dict[str, Any]:
    return {"split": split, "setup": setup, "made_with": f"mammoseg {__version__}", **more}


def _detections(study: Study, split: str) -> Step:
    config = study.config
    folders = tuple(f"findings/{split}/scale-{name}" for name in study.scales)

    def run() -> None:
        model = study.out / "models/detector" / split / "model"
        sides = study.side(split, "test") + study.side(split, "validation")
        score_min = config.assumptions.curve_score_min
        for name, found in detect_all(model, sides, config.fusion, score_min, _provenance(study, split, "detection")):
            save(study.findings(split, f"scale-{name}"), [found])

    settings = {
        "scales": [list(s) for s in config.finetune.scales],
        "nms_iou": config.fusion.nms_iou,
        "score_min": config.assumptions.curve_score_min,
    }
    needs = ("data/inbreast", f"split/{split}", f"detector/{split}")
    return Step(
        f"detections/{split}",
        run,
        folders,
        needs,
        settings,
        lambda: cost.detect(going_on(config.finetune, _pretrained(study)), 40),
    )


def _lambda_name(lam: float) -> str:
    return f"msf-{lam:g}"


def _fused(study: Study, split: str) -> Step:
    """MSF's boxes at every λ of Table 2."""
    config = study.config
    folders = tuple(f"findings/{split}/{_lambda_name(lam)}" for lam in config.lambdas)

    def run() -> None:
        per_scale = [study.pairs(split, f"scale-{name}") for name in study.scales]
        for lam in config.lambdas:
            fusion = replace(config.fusion, method="msf", lam=lam)
            found = fuse_all(per_scale, fusion, _provenance(study, split, _lambda_name(lam), fusion=to_dict(fusion)))
            save(study.findings(split, _lambda_name(lam)), found)

    needs = (f"detections/{split}",)
    return Step(f"msf/{split}", run, folders, needs, {"fusion": to_dict(config.fusion), "lambdas": list(config.lambdas)})


def _tune(study: Study, split: str) -> Step:
    m = study.config.mended
    file = f"mended/{split}/operating_point.json"

    def run() -> None:
        per_scale = [study.pairs(split, f"scale-{name}", "validation") for name in study.scales]
        fusion = replace(study.config.fusion, method="msf")
        point = choose_operating_point(per_scale, fusion, m.lambdas, m.fpi_max, study.config.assumptions.hit_iou)
        write_atomic(study.out / file, (json.dumps(point, indent=1) + "\n").encode())

    settings = {"lambdas": list(m.lambdas), "fpi_max": m.fpi_max, "fusion": to_dict(study.config.fusion)}
    settings["hit_iou"] = study.config.assumptions.hit_iou
    return Step(f"tune/{split}", run, (file,), (f"detections/{split}",), settings)


def tuned_fusion(study: Study, split: str) -> FusionConfig:
    """MSF at the operating point that the inner validation set of a patient-wise split chose."""
    point = json.loads((study.out / "mended" / split / "operating_point.json").read_bytes())
    return replace(study.config.fusion, method="msf", lam=point["lam"], lesion_score_min=point["lesion_score_min"])


def _segmenter(study: Study, split: str, name: str) -> Iterator[Step]:
    """Training of one network on crops, and what it outlines; for published splits on whole images too."""
    config, crops = study.config, study.config.segmenter_of(name)
    folder = f"models/{name}/{split}"

    def train() -> None:
        save_fold(study.out / folder / "all.json", study.training_side(split))
        data = f"coco:{study.out / 'data' / 'inbreast' / 'annotations.json'}"
        train_segmenter(crops, data, study.out / folder, study.out / folder / "all.json", None, resume=True)

    yield Step(
        f"segmenter/{split}/{name}",
        train,
        (folder,),
        needs=("data/inbreast", f"split/{split}"),
        settings=_training_settings(crops),
        cost=lambda: cost.train_segmenter(crops),
        keeps=TRAINING_LEFTOVERS,
        drops=("checkpoints",),
    )
    yield _crops(study, split, name)
    setups: dict[str, Callable[[], FusionConfig]] = {
        "two-stage-msf": lambda: replace(config.fusion, method="msf"),
        "two-stage-single": lambda: replace(config.fusion, method="none"),
    }
    if split.startswith("M"):
        setups["two-stage-tuned"] = lambda: tuned_fusion(study, split)
    for setup, fusion in setups.items():
        yield _two_stage(study, split, name, (setup, fusion))
    if split.startswith("T"):
        yield from _one_stage(study, split, name)


def _crops(study: Study, split: str, name: str) -> Step:
    folder = f"findings/{split}/crops/{name}"
    reconstruction = study.config.reconstruction

    def run() -> None:
        items = with_masks(study.side(split, "test"))
        segmenter = open_segmenter(study.out / "models" / name / split / "model")
        setup = _provenance(study, split, "crops", network=name)
        save(study.findings(split, f"crops/{name}"), outline_true_boxes(segmenter, items, reconstruction, setup))

    needs = ("data/inbreast", f"split/{split}", f"segmenter/{split}/{name}")
    settings = {"reconstruction": to_dict(reconstruction)}
    crops = study.config.segmenter_of(name)
    return Step(f"crops/{split}/{name}", run, (folder,), needs, settings, lambda: cost.segment(crops, 36))


def _two_stage(study: Study, split: str, name: str, how: tuple[str, Callable[[], FusionConfig]]) -> Step:
    setup, fusion = how
    folder = f"findings/{split}/{setup}/{name}"
    config = study.config

    def run() -> None:
        chosen = fusion()
        scales = [study.single] if setup == "two-stage-single" else study.scales
        per_scale = [study.pairs(split, f"scale-{scale}") for scale in scales]
        segmenter = open_segmenter(study.out / "models" / name / split / "model")
        about = _provenance(study, split, setup, network=name, fusion=to_dict(chosen))
        found = outline_detected(segmenter, per_scale, chosen, config.reconstruction, about)
        save(study.findings(split, f"{setup}/{name}"), found)

    needs: tuple[str, ...] = ("data/inbreast", f"split/{split}", f"detections/{split}", f"segmenter/{split}/{name}")
    if setup == "two-stage-tuned":
        needs = (*needs, f"tune/{split}")
    settings = {
        "fusion": to_dict(config.fusion),
        "reconstruction": to_dict(config.reconstruction),
        "single": study.single if setup == "two-stage-single" else None,
    }
    crops = config.segmenter_of(name)
    return Step(f"{setup}/{split}/{name}", run, (folder,), needs, settings, lambda: cost.segment(crops, 60))


def _one_stage(study: Study, split: str, name: str) -> Iterator[Step]:
    crops, whole = study.config.segmenter_of(name), study.config.one_stage_of(name)
    model = f"models/one-stage-{name}/{split}"
    folder = f"findings/{split}/one-stage/{name}"
    weights = _training_settings(crops)["weights_sha256"]
    settings = {"one_stage": to_dict(whole), "arch": crops.arch, "network": crops.network, "loss": to_dict(crops.loss)}
    settings["weights_sha256"] = weights

    def train() -> None:
        identity = {"settings": settings, "fold": load_fold(study.out / "splits" / f"{split}.json").content_hash}
        items = with_masks(study.side(split, "train"))
        train_one_stage(crops, whole, items, study.out / model, identity)

    def run() -> None:
        about = _provenance(study, split, "one-stage", network=name)
        items = study.side(split, "test")
        trained = study.out / model / "model"
        save(
            study.findings(split, f"one-stage/{name}"),
            segment_whole(trained, items, whole, study.config.reconstruction, about),
        )

    trainer = f"one-stage-segmenter/{split}/{name}"
    yield Step(
        trainer,
        train,
        (model,),
        ("data/inbreast", f"split/{split}"),
        settings | {"code": __version__},
        lambda: cost.train_one_stage(crops, whole),
        keeps=TRAINING_LEFTOVERS,
        drops=("checkpoints",),
    )
    needs = ("data/inbreast", f"split/{split}", trainer)
    rest = {"one_stage": to_dict(whole), "threshold": study.config.reconstruction.threshold}
    yield Step(f"one-stage/{split}/{name}", run, (folder,), needs, rest, lambda: cost.segment_whole(crops, whole, 33))
