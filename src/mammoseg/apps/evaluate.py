"""`mammoseg evaluate`: saved findings against the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mammoseg.apps.console import print_table
from mammoseg.apps.fold import fold_options
from mammoseg.apps.out_folder import is_empty
from mammoseg.errors import UsageError
from mammoseg.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate_command

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("findings", type=_FOLDER)
@click.option("--truth", required=True, metavar="DATASET", help="KIND:PATH, or a path whose kind is recognised.")
@fold_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for evaluation.json and evaluation.html.")
@click.option(
    "--iou", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="From which IoU on a box has found a mass."
)
@click.option("--crops", type=_FOLDER, metavar="FINDINGS", help="Findings made with true boxes (--boxes): Dice on true crops.")
@click.option("--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="Of the bootstrap by patient.")
@click.option("--allow-seen", is_flag=True, help="Also images that the weights were trained on.")
@click.option("--allow-missing", is_flag=True, help="Leave out images of the truth that have no findings.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier evaluation in OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
def evaluate(findings: Path, truth: str, out: Path | None, **options: Any) -> None:
    """Measure FINDINGS, the OUT folder of `mammoseg segment`, against the truth.

    Average precision, FROC, true positive rate at given false positives an image, and Dice, with intervals by bootstrap over
    patients. No network is run: everything comes from the saved findings.
    """
    if out is not None and not is_empty(out) and not options["overwrite"]:
        raise UsageError(f"{out} is not empty: add --overwrite, or name another folder")
    chosen = EvaluationOptions(
        iou=options["iou"],
        resamples=options["resamples"],
        allow_seen=options["allow_seen"],
        allow_missing=options["allow_missing"],
        crops=None if options["crops"] is None else str(options["crops"]),
    )
    result = evaluate_command(findings, truth, out, chosen, options["fold"], options["side"])
    if options["as_json"]:
        click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print(result)
    if out is not None:
        click.echo(f"Open {out / 'evaluation.html'}", err=True)


def _print(result: Evaluation) -> None:
    counts = result.counts
    click.echo(
        f"{counts.n_images} images of {counts.n_patients} patients ({counts.n_processed} processed, "
        f"{counts.n_rejected} rejected, {counts.n_failed} failed), {counts.n_truth} masses, "
        f"{counts.n_lesions} lesions reported, {counts.n_candidates} candidates"
    )
    if result.part is not None:
        click.echo(f"on {result.part.text}")
    if counts.n_seen_in_training:
        click.echo(f"{counts.n_seen_in_training} of these images were seen in training: the figures are no test result")
    table = Table()
    for column in ("figure", "value", "interval", "of"):
        table.add_column(column, justify="right" if column in ("value", "interval") else "left")
    for figure in result.figures:
        value, low, high = figure.interval.value, figure.interval.low, figure.interval.high
        shown = "undefined" if value is None else f"{value:.3f}"
        between = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        table.add_row(figure.label, shown, between, f"{figure.n} {figure.unit}")
    print_table(table)
