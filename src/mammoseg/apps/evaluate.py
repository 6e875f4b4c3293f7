"""`mammoseg evaluate`: saved findings against the truth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from mammoseg.apps.console import plural, print_table
from mammoseg.apps.fold import fold_options
from mammoseg.apps.out_folder import is_empty
from mammoseg.errors import UsageError
from mammoseg.evaluation.compare import Difference, compare
from mammoseg.evaluation.evaluate import Evaluation, EvaluationOptions, Figure, evaluate_command

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_EXISTING = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("findings", type=_EXISTING)
@click.option("--truth", required=True, metavar="DATASET", help="KIND:PATH, or a path whose kind is recognised.")
@fold_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for evaluation.json and evaluation.html.")
@click.option(
    "--iou", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="From which IoU on a box has found a mass."
)
@click.option("--crops", type=_FOLDER, metavar="FINDINGS", help="Findings made with true boxes (--boxes): Dice on true crops.")
@click.option("--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="Of the bootstrap by patient.")
@click.option("--against", type=_EXISTING, metavar="FINDINGS", help="Other findings of the same images: paired differences.")
@click.option(
    "--score-min",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Of COCO results and CSV: from which score on a detection counts as shown.",
)
@click.option(
    "--worst",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    help="How many missed masses, false positives and outlines the page shows as pictures, worst first.",
)
@click.option("--allow-seen", is_flag=True, help="Also images that the weights were trained on.")
@click.option("--allow-missing", is_flag=True, help="Leave out images of the truth that have no findings.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier evaluation in OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
def evaluate(findings: Path, truth: str, out: Path | None, **options: Any) -> None:
    """Measure FINDINGS against the truth: the OUT folder of `mammoseg segment`, COCO results, or a CSV of detections.

    Average precision, FROC, true positive rate at given false positives an image, Dice and surface distances, with intervals
    by bootstrap over patients, also by size, density and view. No network is run: everything comes from the saved findings.
    """
    if out is not None and not is_empty(out) and not options["overwrite"]:
        raise UsageError(f"{out} is not empty: add --overwrite, or name another folder")
    chosen = EvaluationOptions(
        iou=options["iou"],
        resamples=options["resamples"],
        allow_seen=options["allow_seen"],
        allow_missing=options["allow_missing"],
        crops=None if options["crops"] is None else str(options["crops"]),
        score_min=options["score_min"],
        worst=options["worst"],
    )
    result = evaluate_command(findings, truth, out, chosen, options["fold"], options["side"])
    gains = None
    if options["against"] is not None:
        plain = replace(chosen, crops=None)
        gains = _compare(
            result, evaluate_command(options["against"], truth, None, plain, options["fold"], options["side"]), chosen
        )
    if options["as_json"]:
        shown = result.to_dict() | ({} if gains is None else {"differences": [asdict(g) for g in gains]})
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _print(result)
        _print_gains(gains or [])
    if out is not None:
        click.echo(f"Open {out / 'evaluation.html'}", err=True)


def _compare(result: Evaluation, other: Evaluation, options: EvaluationOptions) -> list[Difference]:
    """What `result` gains over `other` on the images both hold."""
    both = {o.pair.truth.image_id for o in result.outcomes} & {o.pair.truth.image_id for o in other.outcomes}
    sides = [[o for o in e.outcomes if o.pair.truth.image_id in both] for e in (result, other)]
    return compare(sides[0], sides[1], options.iou, options.resamples, options.seed)


def _print_gains(gains: list[Difference]) -> None:
    if not gains:
        return
    table = Table(title="Difference to the other findings, paired")
    for column in ("figure", "these", "others", "difference", "interval", "p"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for g in gains:
        low, high = g.interval.low, g.interval.high
        between = "" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
        values = [f"{v:.3f}" if v is not None else "–" for v in (g.first, g.second)]
        change = f"{g.interval.value:+.3f}" if g.interval.value is not None else "–"
        table.add_row(g.label, *values, change, between, "" if g.p is None else f"{g.p:.3g}")
    print_table(table)


def _print(result: Evaluation) -> None:
    counts = result.counts
    click.echo(
        f"{plural(counts.n_images, 'image')} of {plural(counts.n_patients, 'patient')} ({counts.n_processed} processed, "
        f"{counts.n_rejected} rejected, {counts.n_failed} failed), {counts.n_truth} masses, "
        f"{counts.n_lesions} lesions reported, {counts.n_candidates} candidates"
    )
    if result.part is not None:
        click.echo(f"on {result.part.text}")
    if counts.n_seen_in_training:
        click.echo(f"{counts.n_seen_in_training} of these images were seen in training: the figures are no test result")
    asked = f"IoU {result.options.iou:g}"
    table = Table()
    for column in ("figure", "value", "interval", "of"):
        table.add_column(column, justify="right" if column in ("value", "interval") else "left")
    others: dict[str, list[Figure]] = {}  # by what a mass counts as found, where it is not the IoU asked for
    for figure in result.figures:
        criterion = figure.label.rpartition(", ")[2]
        if figure.key.startswith(("ap_", "tpr_")) and criterion in ("IoU 0.1", "IoU 0.2", "centre") and criterion != asked:
            others.setdefault(criterion, []).append(figure)
            continue
        low, high = figure.interval.low, figure.interval.high
        between = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        table.add_row(figure.label, _shown(figure), between, f"{figure.n} {figure.unit}")
    print_table(table)
    if others:
        _print_others(others)


def _print_others(others: dict[str, list[Figure]]) -> None:
    table = Table(title="By other criteria (intervals: --out or --json)")
    table.add_column("a mass is found by")
    for figure in next(iter(others.values())):
        table.add_column(figure.label.rpartition(", ")[0], justify="right")
    for criterion, figures in others.items():
        table.add_row(criterion, *(_shown(f) for f in figures))
    print_table(table)


def _shown(figure: Figure) -> str:
    return "undefined" if figure.interval.value is None else f"{figure.interval.value:.3f}"
