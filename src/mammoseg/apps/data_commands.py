"""`mammoseg phantom` and `mammoseg datasets`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal

import click

from mammoseg.apps.console import ImageProgress, plural
from mammoseg.apps.out_folder import held, is_empty
from mammoseg.datasets import inspect, list_kinds
from mammoseg.datasets.phantom_files import GENERATOR, write_exams
from mammoseg.errors import UsageError


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the exams.")
@click.option("--format", "kind", type=click.Choice(["dicom", "png"]), default="dicom", show_default=True, help="Kind of file.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Number of exams, four views each.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Equal seeds give equal exams.")
@click.option("--overwrite", is_flag=True, help="Replace phantoms in OUT, also those of a run that was stopped.")
def phantom(out: Path, kind: Literal["dicom", "png"], count: int, seed: int, overwrite: bool) -> None:
    """Make synthetic exams of four views (RCC, LCC, RMLO, LMLO) with their truth.

    A test signal that looks like a mammogram at arm's length; no patient is in it.
    """
    if not is_empty(out) and not overwrite:
        raise UsageError(f"{out} is not empty: add --overwrite to replace phantoms there, or name another folder")
    with held(out), ImageProgress(4 * count, "making phantoms") as bar:
        clear_phantoms(out)
        items = write_exams(out, count, seed, kind, progress=lambda done, total: bar.advance())
    masses = sum(len(i.annotation.masses) for i in items)
    click.echo(
        f"{len(items)} images with {plural(masses, 'mass', 'masses')} in {out}; "
        f"evaluate against them with --truth phantom:{out}"
    )


def clear_phantoms(folder: Path) -> None:
    """Removes the phantoms in `folder` and their truth, and nothing else.

    Raises `UsageError` where it holds another data set.
    """
    truth = folder / "annotations.json"
    if truth.is_file():
        try:
            ours = json.loads(truth.read_bytes())["info"]["generator"] == GENERATOR
        except (ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"{folder} holds a data set that is not of phantoms; name another folder")
        truth.unlink()
    for image in [*folder.glob("images/phantom_s*"), *folder.glob("images/.phantom_s*.tmp")]:
        image.unlink()


@click.group()
def datasets() -> None:
    """Look at data sets: which kinds can be read, and whether one is sound."""


@datasets.command("list")
def list_command() -> None:
    """List the kinds of data set that can be read."""
    for kind, description in list_kinds().items():
        click.echo(f"{kind:<12} {description}")


@datasets.command("check")
@click.argument("dataset", metavar="DATASET")
def check_command(dataset: str) -> int:
    """Read DATASET (KIND:PATH, or a path whose kind is recognised) and say what is odd.

    Exit code 0 where all is well, 3 where something is odd.
    """
    items, problems = inspect(dataset)
    masses = sum(len(i.annotation.masses) for i in items)
    outlined = sum(m.mask is not None for i in items for m in i.annotation.masses)
    views = Counter(f"{i.laterality or '?'}{i.view_position or '?'}" for i in items)
    n_patients = len({i.patient_id for i in items})
    click.echo(
        f"{plural(len(items), 'image')} of {plural(n_patients, 'patient')}, {plural(masses, 'mass', 'masses')}, "
        f"{outlined} with a mask"
    )
    click.echo("views: " + ", ".join(f"{k} {n}" for k, n in sorted(views.items())))
    free = [i.image_id for i in items if not i.annotation.masses]
    if free:
        click.echo(f"without a mass, taken as free of masses: {len(free)} of {len(items)} images, such as {free[0]}")
    for problem in problems:
        click.echo(problem)
    click.echo("nothing odd" if not problems else f"odd: {len(problems)} thing{'s' * (len(problems) > 1)}")
    return 3 if problems else 0
