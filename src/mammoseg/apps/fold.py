"""Folds on the command line: `mammoseg datasets fold` makes one, --fold and --side take a part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mammoseg.apps.console import plural
from mammoseg.datasets import read_dataset
from mammoseg.datasets.splits import SIDES, patient_holdout, save_fold
from mammoseg.errors import UsageError


def fold_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --fold and --side to a command, which takes a part of a data set; one without the other is wrong usage."""

    def together(context: click.Context, param: click.Parameter, value: Any) -> Any:
        if (value is None) != (context.params.get("fold") is None):
            raise UsageError("--fold FILE and --side train|validation|test go together: give both, or none for all images")
        return value

    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    # Eager options are read first, so that --side finds --fold whatever their order on the command line.
    command = click.option("--side", type=click.Choice(SIDES), callback=together, help="Which side of the fold to take.")(
        command
    )
    return click.option(
        "--fold", type=file, metavar="FILE", is_eager=True, help="Only the images on one side of this fold of the data set."
    )(command)


@click.command()
@click.argument("dataset", metavar="DATASET")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The fold, as JSON."
)
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.15,
    show_default=True,
    help="Fraction of the patients to validate on.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Equal seeds give equal folds.")
@click.option("--keep-out", multiple=True, metavar="PATIENT", help="Puts a patient on the test side (may be repeated).")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
def fold(dataset: str, out: Path, holdout: float, seed: int, keep_out: tuple[str, ...], overwrite: bool) -> None:
    """Split DATASET by patient into a train, a validation and a test side.

    FILE is what `mammoseg train detector` writes to OUT/fold.json for the same fraction, seed and patients; --fold takes it
    in `train`, `segment` and `evaluate`.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already: add --overwrite, or name another file")
    items = read_dataset(dataset)
    made = patient_holdout(items, holdout, seed, keep_out)
    save_fold(out, made)
    patients = {i.image_id: i.patient_id for i in items}
    sides = {side: getattr(made, side) for side in SIDES}
    text = ", ".join(
        f"{side} {plural(len(ids), 'image')} of {plural(len({patients[i] for i in ids}), 'patient')}"
        for side, ids in sides.items()
    )
    click.echo(f"{out}: {text}; sha256 {made.content_hash}")
