"""`mammoseg bundle build`: from data sets and weights to start from to a measured, calibrated bundle, as one recipe says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from mammoseg.apps.batch import run_batch
from mammoseg.apps.console import stopped
from mammoseg.apps.inputs import collect_side
from mammoseg.apps.out_folder import held
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import WeightType, open_bundle
from mammoseg.config import from_dict, load_toml, to_dict
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.datasets.splits import patient_holdout, read_side, save_fold
from mammoseg.datasets.splits import whole as every_side
from mammoseg.errors import ConfigError, UsageError
from mammoseg.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate_command
from mammoseg.fusion import FusionConfig
from mammoseg.io.atomic import hash_file, write_atomic
from mammoseg.pipeline import PipelineConfig, settings_of

_NO_MATTER = ("checkpoint_every", "threads", "workers", "accelerator", "devices")
"""Of a network's training: what may change from one start of a build to the next."""
_SHOWN = ("ap_iou_0.5", "tpr_iou_0.5_at_0.1_fpi", "tpr_iou_0.5_at_0.25_fpi", "tpr_iou_0.5_at_0.5_fpi")


@dataclass(frozen=True)
class RecipeConfig:
    """How a bundle is made. name: of the bundle. detector, segmenter: settings of their runs, TOML files beside the recipe.

    holdout, fold_seed: the part of the patients of each data set that is measured and calibrated on. keep_out: patients of the
    films that are on neither side. everything: afterwards the detector learns from the patients held out as well, and that one
    is shipped with the figures, the calibration and the operating points of the first: "anew", by the whole recipe again, or
    "last_run", by its last run once more, from where that began. detector_weights,
    segmenter_weights: how parameters are stored. pipeline: settings to ship, where they differ from the defaults.
    """

    name: str = "mammoseg"
    detector: str = "detector_lite2.toml"
    segmenter: str = "segmenter_shipped.toml"
    holdout: float = 0.2
    fold_seed: int = 0
    keep_out: tuple[str, ...] = ()
    everything: Literal["", "anew", "last_run"] = ""
    detector_weights: WeightType = "float16"
    segmenter_weights: WeightType = "int8"
    pipeline: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from_dict(PipelineConfig, self.pipeline, "pipeline")  # raises ConfigError


@dataclass(frozen=True)
class Sources:
    """films: data set of the detector, with boxes. digital: further one of the detector, and the segmenter's, with masks.

    detector_start, segmenter_start: ImageNet weights to start from, None for random ones.
    """

    films: str
    digital: str
    detector_start: Path | None = None
    segmenter_start: Path | None = None


def build(
    recipe: Path,
    config: RecipeConfig,
    sources: Sources,
    out: Path,
    say: Callable[[str], None],
    further: Mapping[str, Any] | None = None,
) -> Path:
    """Works through the recipe below `out`; what is done is kept, so that a killed build goes on. Returns the bundle.

    further: figures from elsewhere for metrics.json and the card, by what they are.

    Raises UsageError where `out` holds a build of other settings or data, and what its parts raise: ConfigError, DatasetError,
    TrainingError, EvaluationError, BundleError.
    """
    from mammoseg.experiments.calibrate import calibrate
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle

    bundle = out / config.name
    folds = {"films": sources.films, "digital": sources.digital}
    made = {}
    for name, data in folds.items():
        keep = config.keep_out if name == "films" else ()
        made[name] = patient_holdout(read_dataset(data), config.holdout, config.fold_seed, keep)
    _admit(out, _identity(recipe, config, sources, {name: fold.content_hash for name, fold in made.items()}))
    if (bundle / "config.json").is_file():
        say(f"{bundle} is there already")
        return bundle
    for name, fold in made.items():
        save_fold(out / f"{name}.json", fold)
    say("1 of 4: training the detector, a part of the patients held out")
    detector = _detector(recipe.parent / config.detector, config, sources, out, whole=False)
    say("2 of 4: training the segmenter")
    segmenter = _segmenter(recipe.parent / config.segmenter, sources, out)
    say("3 of 4: calibrating and measuring on the patients held out")
    options = partial(
        BundleOptions, detector_weights=config.detector_weights, segmenter_weights=config.segmenter_weights, force=True
    )
    raw = out / "raw"
    if not (raw / "config.json").is_file():
        make_bundle(detector, segmenter, raw, options("raw", _raw(config.pipeline)))
    _segment(raw, sources.films, out / "films.json", out / "raw-findings")
    items = read_side(sources.films, out / "films.json", "validation")[0]
    fitted = calibrate(out / "raw-findings", sources.films, items).to_dict()
    write_atomic(out / "calibration.json", (json.dumps(fitted, indent=1) + "\n").encode())
    shipped = _over(config.pipeline, fitted["pipeline"])
    held_out = out / "held-out"
    if not (held_out / "config.json").is_file():
        make_bundle(detector, segmenter, held_out, options("held-out", shipped))
    measured = {name: _measure(held_out, data, out / f"{name}.json", out / name) for name, data in folds.items()}
    metrics = {**(further or {}), **{name: _figures(evaluation, folds[name]) for name, evaluation in measured.items()}}
    metrics["calibration"] = fitted["measured"]
    if config.everything:
        say("training the detector once more, on all patients")
        detector = _detector(recipe.parent / config.detector, config, sources, out, whole=True)
    say("4 of 4: making the bundle")
    images = _some(sources, out)
    make_bundle(detector, segmenter, bundle, options(config.name, shipped, metrics=metrics, images=images, force=False))
    return bundle


def _identity(recipe: Path, config: RecipeConfig, sources: Sources, folds: Mapping[str, str]) -> dict[str, Any]:
    """What makes a build the one it is, JSON-able. folds: content hashes by the data set's role."""
    from mammoseg.experiments import train_detector, train_segmenter

    settings: dict[str, dict[str, Any]] = {
        "detector": to_dict(train_detector.read_settings(recipe.parent / config.detector)),
        "segmenter": to_dict(train_segmenter.read_settings(recipe.parent / config.segmenter)),
    }
    for of_network in settings.values():
        of_network["training"] = {k: v for k, v in of_network["training"].items() if k not in _NO_MATTER}
    starts = {"detector": sources.detector_start, "segmenter": sources.segmenter_start}
    weights = {name: None if path is None else hash_file(path) for name, path in starts.items()}
    plain = {k: v for k, v in to_dict(config).items() if k not in ("name", "detector", "segmenter")}
    return {"recipe": plain, **settings, "folds": dict(folds), "start_weights": weights}


def _admit(out: Path, identity: Mapping[str, Any]) -> None:
    """Raises UsageError where `out` holds a build of another identity.

    Parts of two builds would be mixed, and the one be measured on patients that the other was trained on.
    """
    from mammoseg.config import differences

    file = out / "build.json"
    if file.is_file():
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            differ = differences(there, identity)
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{file}: expected what a build wrote there, got something else; choose another --out") from error
        if differ:
            listed = "; ".join(f"{key} {a} there, {b} here" for key, a, b in differ[:4]) + ("; ..." if len(differ) > 4 else "")
            raise UsageError(
                f"{out} holds a build of other settings or data: {listed}; give the same again, or choose another --out"
            )
    write_atomic(file, (json.dumps(identity, indent=1, sort_keys=True) + "\n").encode())


def _detector(path: Path, config: RecipeConfig, sources: Sources, out: Path, whole: bool) -> Path:
    from mammoseg.experiments.train_detector import read_settings, train_detector

    folder = out / ("detector-all" if whole else "detector")
    if (folder / "model" / "model.json").is_file():
        return folder / "model"
    settings = read_settings(path, ())
    if sources.detector_start is not None:
        settings = replace(settings, weights=str(sources.detector_start))
    one = replace(settings.training, devices=1, threads=0)  # several devices would run the whole build several times
    settings = replace(settings, training=one, cache=str(out / "cache"), keep_out=config.keep_out)
    fold: Path | None = out / "films.json"
    further: Path | None = out / "digital.json"
    init: Path | None = None
    if whole and config.everything == "last_run" and settings.before:
        init = out / "detector" / settings.before[-1].name / "model"
        settings = replace(settings, before=(), weights=None)
    if whole:
        fold, further = out / "films-all.json", None
        items = [i for i in read_dataset(sources.films) if i.patient_id not in config.keep_out]
        save_fold(fold, every_side(items))
    return train_detector(settings, sources.films, folder, fold, init, True, [(sources.digital, further)])


def _segmenter(path: Path, sources: Sources, out: Path) -> Path:
    from mammoseg.experiments.train_segmenter import read_settings, train_segmenter

    folder = out / "segmenter"
    if (folder / "model" / "model.json").is_file():
        return folder / "model"
    settings = read_settings(path, ())
    if sources.segmenter_start is not None:
        settings = replace(settings, backbone_weights=str(sources.segmenter_start))
    return train_segmenter(settings, sources.digital, folder, None, None, True)


def _raw(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with raw scores, for candidates alone: lesions, which take time to outline, only where they are others.

    MSF's regions are no fused boxes, so that all of them must be lesions; of the other ways every box is a candidate anyhow.
    """
    fusion = {**pipeline.get("fusion", {}), "calibration": {}}
    fusion["lesion_score_min"] = 0.0 if fusion.get("method", FusionConfig().method) == "msf" else 1.0
    return {**pipeline, "fusion": fusion, "operating_points": []}


def _over(pipeline: Mapping[str, Any], fitted: Mapping[str, Any]) -> dict[str, Any]:
    return {**pipeline, **fitted, "fusion": {**pipeline.get("fusion", {}), **fitted["fusion"]}}


def _some(sources: Sources, out: Path) -> list[Path]:
    """A few held-out images to compare the bundle with the trained networks on."""
    sides = (("films", sources.films), ("digital", sources.digital))
    return [Path(i.path) for name, data in sides for i in read_side(data, out / f"{name}.json", "validation")[0][:3]]


def _segment(bundle: Path, data: str, fold: Path, out: Path) -> None:
    """Findings of the held-out side of a data set; those that are there are kept."""
    images = collect_side(data, fold, "validation").images
    plan = Plan(bundle, settings_of(open_bundle(bundle)), out, ("json", "mask"), {})
    run_batch([Job(image) for image in images], plan, workers=1, resume=True)


def _measure(bundle: Path, data: str, fold: Path, out: Path) -> Evaluation:
    """Segments the held-out side of a data set and evaluates it; the digital side's masks may have taught the segmenter."""
    _segment(bundle, data, fold, out / "findings")
    options = EvaluationOptions(allow_seen=True)
    return evaluate_command(out / "findings", data, out / "report", options, fold, "validation")


def _figures(evaluation: Evaluation, data: str) -> dict[str, Any]:
    counts = evaluation.counts
    shown = {f.label: asdict(f.interval) for f in evaluation.figures if f.key in _SHOWN}
    strata = [asdict(s) for s in evaluation.strata]
    on = f"{counts.n_images} images with {counts.n_truth} masses of {counts.n_patients} patients of {dataset_name(data)}"
    return {"on": on, "figures": shown, "strata": strata}


def read_json(path: Path | None) -> dict[str, Any]:
    """The object in a JSON file, an empty one for None; UsageError for anything else."""
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return value


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("build")
@click.option("--recipe", required=True, type=_FILE, metavar="TOML", help="What to do, such as configs/bundle_main.toml.")
@click.option("--films", required=True, metavar="DATASET", help="Mammograms with boxes: the detector's.")
@click.option("--digital", required=True, metavar="DATASET", help="Mammograms with masks: the segmenter's, and the detector's.")
@click.option("--detector-start", type=_FILE, metavar="FILE", help="ImageNet weights that the detector starts from.")
@click.option("--segmenter-start", type=_FILE, metavar="FILE", help="ImageNet weights that the segmenter starts from.")
@click.option("--metrics", type=_FILE, metavar="JSON", help="Results from elsewhere to keep in the bundle.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the build.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one setting of the recipe (may be repeated).")
def build_command(recipe: Path, metrics: Path | None, out: Path, sets: tuple[str, ...], **options: Any) -> None:
    """Build a bundle from scratch: train, measure on patients held out, calibrate, compare with the trained networks.

    The bundle is OUT/NAME. A build that was stopped goes on with the same command.
    """
    config, further = load_toml(RecipeConfig, recipe, sets), read_json(metrics)
    for name in (config.detector, config.segmenter):
        if not (recipe.parent / name).is_file():
            raise ConfigError(f"{recipe}: names the settings {name}, which are not beside it")
    try:
        with held(out):
            bundle = build(recipe, config, Sources(**options), out, lambda words: click.echo(words, err=True), further)
    except KeyboardInterrupt as error:
        stopped(error, "the same command goes on")
    click.echo(f"bundle in {bundle}")
