"""`mammoseg export`, `mammoseg bundle quantise` and `bundle check`: networks for runtimes, in INT8, and the parity gate."""

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
from mammoseg.bundle import NETWORKS
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import read_side
from mammoseg.errors import BundleError, ConfigError, DatasetError, UsageError
from mammoseg.io.atomic import swap_directory
from mammoseg.types import DatasetItem

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


def _spread(data: str, most: int | None, fold: Path | None, side: Any) -> list[DatasetItem]:
    """At most so many images of a data set or of one side of a fold of it, evenly spread; never none."""
    items = list(read_dataset(data) if fold is None else read_side(data, fold, side)[0])
    if not items:
        raise DatasetError(f"{data}: expected images, found none; name another data set")
    return items if most is None or len(items) <= most else [items[i * len(items) // most] for i in range(most)]


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

    MODEL: OUT/model of a training run, its newest checkpoint (OUT) or any (OUT/checkpoints/NAME), or a bundle. Before it is
    written, the file is run and compared with the network in torch. What goes before and after the network is not in it:
    bundles (`mammoseg bundle make`) hold both.
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
    """The parity gate: whether BUNDLE finds what fp32 torch finds, in float32, and in bf16 and INT8 where there is that.

    The same masses at IoU 0.9 or more, scores within 0.02, outlines of Dice 0.99 in the mean; with --data also AP50 within 0.5
    points and Dice within 0.3. With --store the bundle runs in INT8 or bf16 from then on, a network that fails in the next
    finer. Exit code 1: not even float32 passes, or no mass was found.
    """
    _need_torch()
    from mammoseg.experiments.gate import run_gate, store

    if (data is None) == (not images):
        raise UsageError("expected --data DATASET or --image FILE, one of them")
    if images and (most is not None or options["fold"] is not None):
        raise UsageError("--most and --fold choose among the images of --data; leave them out with --image")
    given: list[Any] = list(images) if data is None else _spread(data, most, **options)
    result = run_gate(bundle, given)
    for name, way in result["ways"].items():
        short = "; ".join(way["falls_short"]) or ("passed" if way["lesions"] else "no mass was found, so nothing was compared")
        click.echo(f"{name}: {way['images']} images, {way['lesions']} masses: {short}")
    if keep:
        fold = "" if options["fold"] is None else f", {options['side']} side of a fold"
        with _replaced(bundle) as copy:
            opened = store(copy, result, f"{len(given)} images" + fold)
        runtime = opened.config["pipeline"]["runtime"]
        sets = (("INT8", runtime["int8_networks"]), ("float32", set(runtime["f32_networks"]) - set(runtime["int8_networks"])))
        kept = "".join(f", {words} for {' and '.join(sorted(names))}" for words, names in sets if names)
        click.echo(f"{bundle}: precision {runtime['precision']}{kept}; sha256 {opened.sha256}")
    plain = result["ways"]["f32"]
    return 1 if plain["falls_short"] or not plain["lesions"] else 0


@click.command()
@click.argument("bundle", type=_FOLDER)
@click.option(
    "--data", required=True, metavar="DATASET", help="KIND:PATH, or a path whose kind is recognised: images to run on."
)
@fold_options
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the new bundle.")
@click.option(
    "--images",
    "most",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="How many images of the data set, evenly spread.",
)
@click.option(
    "--network",
    "networks",
    type=click.Choice(NETWORKS),
    multiple=True,
    help="Only this network (may be repeated); both by default.",
)
def quantise(bundle: Path, data: str, out: Path, most: int, networks: tuple[str, ...], **options: Any) -> None:
    """Add networks in INT8 to a copy of BUNDLE, for processors that multiply 8-bit integers (VNNI, AMX).

    The pipeline is run on images, best of the training side of a fold, and the ranges of values are taken from what its
    networks are given there. Convolutions whose weights 8 bits would harm stay in floating point.

    The new bundle runs as BUNDLE does until `mammoseg bundle check --store`, on other images, has found that INT8 gives what
    fp32 torch gives; --set runtime.precision=int8 uses it all the same.
    """
    if importlib.util.find_spec("nncf") is None or importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError("INT8 needs nncf and onnxruntime, which are not both installed: pip install 'mammoseg[quantise]'")
    from mammoseg.experiments.quantise import quantise_bundle

    if out.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"--out {out}: expected a folder outside {bundle}, whose files have their sums")
    items = _spread(data, most, **options)
    with held_beside(out):
        made = quantise_bundle(bundle, items, data, out, networks or NETWORKS)
    for name in networks or NETWORKS:
        of_network = made.metrics["int8"][name]
        kept = f"{of_network['in_floating_point']} of {of_network['convolutions']} convolutions in floating point"
        click.echo(f"{name}: {kept}; ranges from {of_network['inputs']} inputs")
    click.echo(f"{out}: sha256 {made.sha256}; now run mammoseg bundle check {out} --data DATASET --store")
