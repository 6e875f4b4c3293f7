"""`mammoseg train` and `mammoseg bundle`: from data to weights, and from weights to a bundle."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.logging import RichHandler

from mammoseg.apps.console import stopped
from mammoseg.apps.fold import fold_options
from mammoseg.apps.out_folder import held, held_beside
from mammoseg.apps.recipe import build_command, read_json
from mammoseg.bundle import WeightType, default_bundle
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import read_side
from mammoseg.errors import ConfigError, UsageError
from mammoseg.io.atomic import write_atomic
from mammoseg.pipeline import changed

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


_MODEL = "OUT/model of a training run, a bundle, or the word installed"


class _ModelPath(click.ParamType[Path]):
    """A model directory or a bundle; "installed" is the bundle inside the package."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if value == "installed":
            return default_bundle()
        path = Path(value)
        complete = any((path / name).is_file() for name in ("model.json", "config.json"))
        for run in () if complete else (path, *path.parents[:2]):
            if (run / "checkpoints").is_dir():
                if (run / "model" / "model.json").is_file():
                    self.fail(f"{value} is no model, but there is one in the same run: {run / 'model'}", param, ctx)
                self.fail(f"the training run {run} has no model yet: end it with --resume", param, ctx)
        return Path(str(_FOLDER.convert(value, param, ctx)))


@click.group()
def train() -> None:
    """Train the detector or the segmenter on data of your own (needs mammoseg[train])."""


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--data", required=True, metavar="DATASET", help="KIND:PATH, or a path whose kind is recognised."),
        click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the run."),
        click.option("--config", type=_FILE, metavar="TOML", help="Settings that differ from the defaults (the paper's)."),
        click.option("--fold", type=_FILE, metavar="JSON", help="Which patients to train and to validate on."),
        click.option("--init", type=_ModelPath(), metavar="MODEL", help=f"Start from it (fine-tuning): {_MODEL}."),
        click.option("--resume", is_flag=True, help="Go on with the run in OUT, to the same curve as if never stopped."),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one setting (may be repeated)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@train.command("detector")
@_training_options
@click.option("--also", multiple=True, metavar="DATASET", help="A further dataset to train on (may be repeated).")
@click.option("--also-fold", multiple=True, type=_FILE, metavar="JSON", help="Its fold, in the order of --also; else all.")
def train_detector(**options: Any) -> None:
    """Train a mass detector on images with boxes.

    Writes OUT/model (for `mammoseg bundle make`), checkpoints and the curve (also for TensorBoard).
    """
    _train("detector", options)


@train.command("segmenter")
@_training_options
def train_segmenter(**options: Any) -> None:
    """Train a mass segmenter on images with masks.

    Writes OUT/model (for `mammoseg bundle make`), checkpoints and the curve (also for TensorBoard).
    """
    _train("segmenter", options)


@click.group()
def bundle() -> None:
    """Make weights bundles, which `mammoseg segment --weights` uses."""


@bundle.command("make")
@click.option("--detector", required=True, type=_ModelPath(), metavar="MODEL", help=f"The detector: {_MODEL}.")
@click.option("--segmenter", required=True, type=_ModelPath(), metavar="MODEL", help=f"The segmenter: {_MODEL}.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the bundle.")
@click.option("--name", help="Name of the bundle; OUT's by default.")
@click.option("--metrics", type=_FILE, metavar="JSON", help="Results to keep in the bundle, such as evaluation figures.")
@click.option("--image", "images", multiple=True, type=_FILE, help="Mammogram to measure parity on (may be repeated).")
@click.option(
    "--detector-weights",
    type=click.Choice(get_args(WeightType)),
    default="float16",
    show_default=True,
    help="How the detector's parameters are stored.",
)
@click.option(
    "--segmenter-weights",
    type=click.Choice(get_args(WeightType)),
    default="int8",
    show_default=True,
    help="How the segmenter's parameters are stored.",
)
@click.option("--calibration", type=_FILE, metavar="JSON", help="What `mammoseg bundle calibrate` wrote: settings to ship.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Setting to ship, e.g. fusion.lesion_score_min=0.2.")
@click.option("--force", is_flag=True, help="Also a bundle that does not give what the trained networks give.")
def make(detector: Path, segmenter: Path, out: Path, **options: Any) -> None:
    """Make a bundle from a trained detector and a trained segmenter.

    The networks are exported, stored small, and compared with the trained ones on the images given, or on phantoms: equal
    numbers of masses, boxes of IoU 0.9 or more, scores within 0.02, outlines of Dice 0.99 or more in the mean; else there is no
    bundle. The figures go into metrics.json.

    The pipeline's settings start from those of the bundle that a network is taken from (of two bundles, the segmenter's gives
    `reconstruction` and the detector's the rest), or else from the defaults; --set changes them.
    """
    _need_torch()
    from mammoseg.config import from_dict, to_dict
    from mammoseg.experiments.make_bundle import BundleOptions, make_bundle, starting_settings

    start, metrics = starting_settings(detector, segmenter), read_json(options["metrics"])
    if options["calibration"] is not None:
        fitted = read_json(options["calibration"])
        if not isinstance(fitted.get("pipeline"), dict):
            raise UsageError(f"{options['calibration']}: expected what `mammoseg bundle calibrate` writes")
        start = from_dict(type(start), fitted["pipeline"], "pipeline", start)
        metrics["calibration"] = fitted.get("measured")
    pipeline = to_dict(changed(start, options["sets"]))
    chosen = BundleOptions(
        options["name"] or out.resolve().name,
        pipeline,
        options["detector_weights"],
        options["segmenter_weights"],
        metrics,
        options["images"],
        force=options["force"],
    )
    with held_beside(out):
        result = make_bundle(detector, segmenter, out, chosen)
    size, parity = sum(result["bytes"].values()) / 1e6, result["parity"]
    click.echo(
        f"{out}: networks {size:.1f} MB; compared with the trained ones on {parity['images']} {parity['on']} with "
        f"{parity['lesions']} masses: Dice of outlines {parity['lesion_mask_dice_mean']:.4f}, of masks in crops "
        f"{parity['segmenter_mask_dice_mean']:.4f}, scores within {parity['lesion_score_difference']:.4f}"
    )
    if not parity["lesions"]:
        click.echo("mammoseg: warning: no mass was found there, so that this says little: name mammograms by --image", err=True)


bundle.add_command(build_command)


@bundle.command("calibrate")
@click.argument("findings", type=_FOLDER)
@click.option("--truth", required=True, metavar="DATASET", help="KIND:PATH, or a path whose kind is recognised.")
@fold_options
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file for `bundle make`.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier file.")
def calibrate(findings: Path, truth: str, out: Path, **options: Any) -> None:
    """Fit the scores in FINDINGS, of images that were not trained on, to probabilities that a mass is there.

    Writes the settings, and operating points for 0.1, 0.2 and 0.5 false positives an image, for `mammoseg bundle make
    --calibration`. Prints how far scores are from probabilities before, and after, each patient by the fit on the others.
    """
    from mammoseg.experiments.calibrate import calibrate as fit

    if out.exists() and not options["overwrite"]:
        raise UsageError(f"{out} exists: add --overwrite, or name another file")
    fold = options["fold"]
    items = read_dataset(truth) if fold is None else read_side(truth, fold, options["side"])[0]
    result = fit(findings, truth, items)
    write_atomic(out, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    click.echo(f"{result.n_images} images with {result.n_masses} masses; a candidate is right from IoU 0.5 on")
    for words, found in (("raw scores", result.before), ("cross-fitted", result.crossed)):
        if found is not None:
            click.echo(f"{words}: ECE {found.ece:.3f}, Brier {found.brier:.3f} over {found.n} candidates from {found.least:g}")
    for point in result.points:
        click.echo(f"{point.fpi:g} false positives an image: from score {point.score_min:.3f}")


def _train(kind: str, options: dict[str, Any]) -> None:
    _need_torch()
    module = importlib.import_module(f"mammoseg.experiments.train_{kind}")
    config = module.read_settings(options["config"], options["sets"], options["init"])
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # with several devices this command runs once for each
    logging.basicConfig(
        level=logging.INFO if first else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    function = getattr(module, f"train_{kind}")
    further: dict[str, Any] = {}
    if options.get("also") or options.get("also_fold"):
        also, folds = options["also"], options["also_fold"]
        if len(folds) > len(also):
            raise UsageError(f"--also-fold: expected at most one for each --also ({len(also)}), got {len(folds)}")
        further = {"also": list(zip_longest(also, folds))}
    try:
        with held(options["out"]) if first else contextlib.nullcontext():
            model = function(
                config, options["data"], options["out"], options["fold"], options["init"], options["resume"], **further
            )
    except KeyboardInterrupt as error:
        stopped(error, "the same command with --resume goes on from the newest checkpoint, or starts where there is none")
    if first:
        click.echo(f"trained model in {model}")


def _need_torch() -> None:
    missing = [m for m in ("torch", "lightning_fabric") if importlib.util.find_spec(m) is None]
    if missing:
        raise ConfigError(f"training needs {' and '.join(missing)}, which are not installed: pip install 'mammoseg[train]'")
