"""`mammoseg export` and `mammoseg bundle check`: trained networks as files for runtimes, and the parity gate of a bundle."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mammoseg.apps.fold import fold_options
from mammoseg.apps.out_folder import held_beside
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import read_side
from mammoseg.errors import BundleError, ConfigError, UsageError
from mammoseg.io.atomic import swap_directory

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@contextlib.contextmanager
def _replaced(bundle: Path) -> Iterator[Path]:
    """A copy of the bundle to change, which then takes its place: killed at any moment, there is a bundle with its own sums."""
    place = bundle.resolve()
    copy = place.with_name(f".{place.name}.tmp")
    with held_beside(bundle):
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(place, copy)
            yield copy
            swap_directory(copy, place)
        except BundleError as error:
            raise BundleError(str(error).replace(str(copy), str(bundle))) from error
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("this needs torch, which is not installed: pip install 'mammoseg[train]'")


@click.command()
@click.argument("model", type=_FOLDER)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@click.option(
    "--network",
    type=click.Choice(["detector", "segmenter"]),
    help="Which network of a bundle; a model directory or checkpoint holds one.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "openvino"]),
    default="onnx",
    show_default=True,
    help="ONNX, or OpenVINO's IR: FILE.xml, and FILE.bin beside it.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def export(model: Path, out: Path, network: str | None, format_: str, overwrite: bool) -> None:
    """Write the network in MODEL as one file that ONNX Runtime, OpenVINO and others run, parameters in float32 included.

    MODEL: OUT/model of a training run, its newest checkpoint (OUT, or a checkpoint in it), or a bundle. Before it is written,
    the file is run and compared with the network in torch. What goes before and after the network is not in it: bundles
    (`mammoseg bundle make`) hold both.
    """
    _need_torch()
    from mammoseg.experiments.exporting import export_network

    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists: add --overwrite, or name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    kind, difference = export_network(model, out, network, format_)
    click.echo(f"{out}: {kind}, {out.stat().st_size / 1e6:.1f} MB; differs from torch by {difference:.2g} at most")


@click.command()
@click.argument("bundle", type=_FOLDER)
@click.option("--data", metavar="DATASET", help="KIND:PATH, or a path whose kind is recognised; its truth is heeded too.")
@fold_options
@click.option("--image", "images", multiple=True, type=_FILE, help="Mammogram, in place of a data set (may be repeated).")
@click.option("--most", type=click.IntRange(min=1), help="Only so many images of the data set, evenly spread.")
@click.option("--store", "keep", is_flag=True, help="Keep the result in BUNDLE and set the precision that follows from it.")
def check(bundle: Path, data: str | None, images: tuple[Path, ...], most: int | None, keep: bool, **options: Any) -> int:
    """The parity gate: whether BUNDLE finds what fp32 torch finds, in float32 and in bf16 where the processor has it.

    The same masses at IoU 0.9 or more, scores within 0.02; with --data also AP50 within 0.5 points and Dice within 0.3. With
    --store the bundle runs in bf16 from then on, a network that fails in float32. Exit code 1: not even float32 passes.
    """
    _need_torch()
    from mammoseg.experiments.gate import run_gate, store

    if (data is None) == (not images):
        raise UsageError("expected --data DATASET or --image FILE, one of them")
    if data is None:
        given: list[Any] = list(images)
    elif options["fold"] is None:
        given = list(read_dataset(data))
    else:
        given = list(read_side(data, options["fold"], options["side"])[0])
    if most is not None and len(given) > most:
        given = [given[i * len(given) // most] for i in range(most)]
    result = run_gate(bundle, given)
    for name, way in result["ways"].items():
        short = "; ".join(way["falls_short"]) or "passed"
        click.echo(f"{name}: {way['images']} images, {way['lesions']} masses: {short}")
    if keep:
        fold = "" if options["fold"] is None else f", {options['side']} side of a fold"
        with _replaced(bundle) as copy:
            opened = store(copy, result, f"{len(given)} images" + fold)
        runtime = opened.config["pipeline"]["runtime"]
        kept = f", float32 for {' and '.join(runtime['f32_networks'])}" if runtime["f32_networks"] else ""
        click.echo(f"{bundle}: precision {runtime['precision']}{kept}; sha256 {opened.sha256}")
    return 1 if result["ways"]["f32"]["falls_short"] else 0
