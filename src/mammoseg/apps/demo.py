"""`mammoseg demo`: see in a minute what the thing does."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from rich.table import Table

from mammoseg.apps.console import EXIT_PARTLY, print_table
from mammoseg.apps.data_commands import clear_phantoms
from mammoseg.apps.inputs import collect
from mammoseg.apps.out_folder import earlier_folders, held, is_empty
from mammoseg.apps.outputs import DEFAULT_FORMATS, read_results
from mammoseg.apps.segment import run_with_progress
from mammoseg.apps.server.command import is_installed
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.errors import UsageError
from mammoseg.io.atomic import write_atomic
from mammoseg.pipeline import settings_of

SEED = 2
_OURS = {"exam", "results", "index.html"}
_TITLE = "<title>mammoseg: demo</title>"
_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=results/index.html">
{_TITLE}</head>
<body><p>The masses found in four synthetic mammograms: <a href="results/index.html">results/index.html</a></p></body></html>
"""
"""The one file to open in OUT: it leads on to the results' contact sheet."""


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the exam and the results.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Weights bundle to use; the installed one by default.",
)
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True, help="Another seed, another exam.")
@click.option("--overwrite", is_flag=True, help="Replace the demo of an earlier run in OUT.")
def demo(out: Path, weights: Path | None, seed: int, overwrite: bool) -> int:
    """Make an exam of four synthetic mammograms as DICOM, segment it, and show what was found."""
    if not is_empty(out) and not overwrite:
        raise UsageError(f"{out} is not empty: add --overwrite, or name another folder with --out")
    if not is_empty(out) and not _is_demo(out):
        raise UsageError(f"{out} is not empty, and what is there is no demo: name another folder with --out")
    bundle = open_bundle(weights)
    exam, results = out / "exam", out / "results"
    click.echo("Making four phantom mammograms (RCC, LCC, RMLO, LMLO) as DICOM ...", err=True)
    with held(out):
        clear_phantoms(exam)
        write_exams(exam, 1, seed, "dicom")
        found = collect([exam / "images"])
        jobs = [Job(image) for image in found.images]
        plan = Plan(bundle.directory, settings_of(bundle), results, DEFAULT_FORMATS, {})
        outcome = run_with_progress(jobs, plan, 1, go_on="the same command with --overwrite starts again")
        write_atomic(out / "index.html", _PAGE.encode())
    table = Table(title=f"Masses found by {bundle.name}")
    for column in ("image", "view", "mass", "score", "size (mm)", "where (x, y)"):
        table.add_column(column, justify="left" if column in ("image", "view") else "right")
    for findings in read_results(results, [job.image.folder for job in jobs]):
        image = findings["image"]
        view = f"{image['laterality'] or ''}{image['view_position'] or ''}"
        if findings["status"] != "processed":
            table.add_row(image["source"], view, findings["status"], "", findings["reason"], "")
        elif not findings["lesions"]:
            table.add_row(image["source"], view, "none found", "", "", "")
        for lesion in findings["lesions"]:
            known = lesion["long_axis_mm"] is not None
            size = f"{lesion['long_axis_mm']:.1f} × {lesion['short_axis_mm']:.1f}" if known else "unknown"
            x1, y1, x2, y2 = lesion["box_xyxy"]
            where = f"{(x1 + x2) / 2:.0f}, {(y1 + y2) / 2:.0f}"
            table.add_row(image["source"], view, str(lesion["id"]), f"{lesion['score']:.2f}", size, where)
    print_table(table)
    click.echo("These are synthetic images and research software: nothing here is for clinical use.")
    click.echo(f"Open {out / 'index.html'} in a browser. The exam and its truth are in {exam}, all results in {results}.")
    if is_installed():
        click.echo(f"Look at them closely in the viewer: mammoseg serve {shlex.quote(str(out))}")
    return 0 if outcome.count("processed") == len(jobs) else EXIT_PARTLY


def _is_demo(out: Path) -> bool:
    """Whether all in `out` is what an earlier demo wrote there, or began to write; hidden files are not looked at."""
    page, results = out / "index.html", out / "results"
    if set(_seen(out)) - _OURS or (page.exists() and _TITLE not in page.read_text(errors="replace")):
        return False
    return not _seen(results) or earlier_folders(results) is not None


def _seen(folder: Path) -> list[str]:
    return [e.name for e in folder.iterdir() if not e.name.startswith(".")] if folder.is_dir() else []
