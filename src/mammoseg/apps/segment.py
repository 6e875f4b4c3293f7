"""`mammoseg segment`: images in, mass contours out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mammoseg.apps.batch import Outcome, run_batch
from mammoseg.apps.boxes import read_boxes
from mammoseg.apps.console import EXIT_PARTLY, ImageProgress, stopped
from mammoseg.apps.fold import fold_options
from mammoseg.apps.inputs import Inputs, collect, collect_side, not_looked_into, nothing_found, printable
from mammoseg.apps.out_folder import check_out, refuse_mixing
from mammoseg.apps.outputs import DEFAULT_FORMATS, FORMATS
from mammoseg.apps.parquet import check_parquet
from mammoseg.apps.ray_engine import import_ray
from mammoseg.apps.remote import collect_urls, is_url
from mammoseg.apps.server.command import check_installed, view
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.config import differences, to_dict
from mammoseg.errors import DEBUG_VARIABLE, UsageError
from mammoseg.io.dicom_results import STUDY_FORMATS
from mammoseg.pipeline import PipelineConfig, changed, parse_scales, settings_of

SETTINGS_HELP = "Change any setting of the bundle, e.g. --set fusion.nms_iou=0.5 (may be repeated)."


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=str)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Weights bundle to use; the installed one by default.",
)
@click.option(
    "--fusion",
    type=click.Choice(["msf", "wbf", "nms", "none"]),
    help="How the scales' boxes are fused: as the paper (msf), weighted boxes, NMS, or the last scale alone.",
)
@click.option("--lambda", "lam", type=float, metavar="λ", help="MSF's threshold (Eq. 1), 0 to 1; 0 keeps every box.")
@click.option("--scales", metavar="WxH,...", help="Network input sizes, width x height, e.g. 320x640,480x960.")
@click.option(
    "--operating-point",
    type=float,
    metavar="FP",
    help="Report lesions so that about FP false positives an image come of it: one that the bundle has (see `mammoseg info`).",
)
@click.option("--min-score", type=float, metavar="S", help="Report lesions with at least this score.")
@click.option(
    "--boxes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Skip detection and delineate these boxes: COCO, or CSV with image,x1,y1,x2,y2[,score]. Images that have none are "
    "left out.",
)
@fold_options
@click.option(
    "--formats",
    default=",".join(DEFAULT_FORMATS),
    show_default=True,
    metavar="LIST",
    help=f"What to write, of {','.join(FORMATS)}; the last five are DICOM objects and need DICOM input.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Processes to share the images; 0 works in the main process.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="What shares the images among workers: processes of this machine, or Ray (on the cluster of RAY_ADDRESS, if set).",
)
@click.option("--parquet/--no-parquet", default=None, help="Also write findings.parquet; by default with --engine ray.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a run in OUT: keep images done with the same settings, remove those not among INPUT.",
)
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run in OUT.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=SETTINGS_HELP)
@click.option("--view", is_flag=True, help="When done, open the viewer on the results (as `mammoseg serve` does).")
def segment(inputs: tuple[str, ...], out: Path, weights: Path | None, **options: Any) -> int:
    """Find and outline every mass in mammograms.

    INPUT: image files or folders (searched recursively; any mix of DICOM, PNG, TIFF, JPEG, PGM), or a COCO file. With --fold
    one data set, KIND:PATH or a path whose kind is recognised.

    For each image a folder OUT/<name>/ with findings.json, mask.png and overlay.png; for all together findings.jsonl,
    findings.csv, run.json and index.html, a contact sheet to open in a browser.

    Exit code 0: all images processed; 3: some were rejected or failed (the reason is in their findings), or a folder could not
    be read; 2: wrong usage.

    An INPUT may also be a URL of an object store (s3://bucket/folder, with the package that fsspec names for it installed).

    Research software, not for clinical use.
    """
    if options["view"]:
        check_installed()
    prepared = _prepare(inputs, out, weights, options)
    outcome = run_with_progress(prepared.jobs, prepared.plan, options["workers"], options["resume"], prepared.skipped)
    if not outcome.jobs:
        raise nothing_found([Path(text) for text in inputs], outcome.skipped, prepared.remarks)
    warn_of_missing_reports(outcome)
    click.echo(summary_line(outcome, out, prepared.remarks))
    if options["view"]:
        view([(j.image.path, j.image.source, out / j.image.folder) for j in outcome.jobs], out, prepared.plan.bundle)
    return 0 if outcome.count("processed") == len(outcome.jobs) and prepared.whole else EXIT_PARTLY


@dataclass(frozen=True)
class _Prepared:
    """What is to be done. skipped: files that are no images. remarks: for the summary. whole: all folders could be read."""

    jobs: list[Job]
    plan: Plan
    skipped: int
    remarks: list[str]
    whole: bool


def _prepare(texts: Sequence[str], out: Path, weights: Path | None, options: dict[str, Any]) -> _Prepared:
    urls = [text for text in texts if is_url(text)]
    inputs = [Path(text) for text in texts]
    formats = parse_formats(options["formats"])
    _check_engine(urls, texts, formats, options)
    if options["resume"] and options["overwrite"]:
        raise UsageError("--resume and --overwrite exclude each other")
    bundle = open_bundle(weights)
    config = settings_of(bundle)
    if options["operating_point"] is not None:
        if options["min_score"] is not None:
            raise UsageError("--operating-point and --min-score exclude each other")
        config = config.at(options["operating_point"])
    own = config
    config = changed(config, option_sets(options))
    if options["operating_point"] is not None:
        _check_operating_point(own, config, options["boxes"])
    check_out(out, [] if urls else inputs, options["resume"], options["overwrite"])
    found = collect_urls(urls) if urls else _collect(inputs, out, options)
    refuse_mixing(out, (image.path for image in found.images if image.url is None))
    extra: dict[str, Any] = {}
    jobs, remarks = [Job(image) for image in found.images], not_looked_into(found.unread, found.linked)
    if options["boxes"] is not None:
        given = read_boxes(options["boxes"])
        extra = {"boxes_sha256": given.sha256}
        boxes, strangers = given.assign([i.source for i in found.images])
        jobs = [Job(i, b) for i, b in zip(found.images, boxes, strict=True) if b is not None]
        if len(jobs) < len(found.images):
            remarks.append(f"{_plural(len(found.images) - len(jobs), 'image')} left out, having no boxes in {options['boxes']}")
        if strangers:
            n = sum(len(given.by_image[name]) for name in strangers)
            remarks.append(f"{_plural(n, 'box', 'boxes')} not used, fitting no image ({strangers[0]!r}, ...)")
    parquet = options["engine"] == "ray" if options["parquet"] is None else options["parquet"]
    plan = Plan(bundle.directory, config, out, formats, extra, options["engine"], parquet)
    return _Prepared(jobs, plan, len(found.skipped), remarks, not found.unread)


def _check_operating_point(own: PipelineConfig, here: PipelineConfig, boxes: Path | None) -> None:
    """Raises `UsageError` where settings differ from those that the bundle's points are measured with."""
    if boxes is not None:
        raise UsageError("--operating-point and --boxes exclude each other: nothing is detected where boxes are given")
    there, now = ({"detection": to_dict(c.detection), "fusion": to_dict(c.fusion)} for c in (own, here))
    changes = differences(there, now)
    if changes:
        listed = "; ".join(f"{name} {a}, got {b}" for name, a, b in changes[:5])
        raise UsageError(
            f"--operating-point: expected the bundle's own settings, which its points are measured with: {listed}; "
            "leave that out, or give --min-score in place of --operating-point"
        )


def _check_engine(urls: Sequence[str], texts: Sequence[str], formats: Sequence[str], options: dict[str, Any]) -> None:
    """Raises `UsageError` or `ConfigError` for what does not go together or is not installed, before any image."""
    if urls and (len(urls) < len(texts) or options["fold"] is not None or options["view"]):
        raise UsageError("URLs go with URLs alone, without --fold and --view: copy the images here for that")
    if urls and any(name in STUDY_FORMATS for name in formats):
        raise UsageError(f"reports of studies ({', '.join(STUDY_FORMATS)}) need files: copy the images here for that")
    if options["engine"] == "ray":
        import_ray()
        if options["workers"] < 1:
            raise UsageError("--engine ray: expected --workers 1 or more")
    if options["parquet"] or (options["engine"] == "ray" and options["parquet"] is None):
        check_parquet()


def _collect(inputs: Sequence[Path], out: Path, options: dict[str, Any]) -> Inputs:
    if options["fold"] is None:
        return collect(inputs, exclude=out)
    if len(inputs) > 1:
        raise UsageError(f"--fold: expected one data set as INPUT, got {len(inputs)} inputs")
    return collect_side(str(inputs[0]), options["fold"], options["side"])


def run_with_progress(
    jobs: Sequence[Job],
    plan: Plan,
    workers: int,
    resume: bool = False,
    skipped: int = 0,
    go_on: str = "the same command with --resume goes on",
) -> Outcome:
    """Runs the batch, showing progress and a line for each image that was not processed; Ctrl-C ends it cleanly.

    go_on: what to do after Ctrl-C or SIGTERM.
    """
    done = 0
    try:
        with ImageProgress(len(jobs)) as bar:

            def report(job: Job, summary: dict[str, Any]) -> None:
                nonlocal done
                done += 1
                if summary["status"] in ("rejected", "failed"):
                    bar.say(f"{summary['status']}: {job.image.source}: {summary['reason']}")
                bar.advance()

            return run_batch(jobs, plan, workers, resume, report, skipped)
    except KeyboardInterrupt as error:
        stopped(error, f"{done} of {len(jobs)} images are done; {go_on}")


def warn_of_missing_reports(outcome: Outcome) -> None:
    """One line on stderr where DICOM results were asked for that could not be written."""
    missing, failed = outcome.reports.no_source, outcome.reports.failed
    parts = [f"{_plural(missing, 'image')} without DICOM results (no DICOM file, or one without UIDs)"] if missing else []
    parts += [f"{_plural(failed, 'study', 'studies')} without reports (set {DEBUG_VARIABLE}=1 to see why)"] if failed else []
    if parts:
        click.echo(f"mammoseg: warning: {', '.join(parts)}", err=True)


def summary_line(outcome: Outcome, out: Path, remarks: Sequence[str] = ()) -> str:
    """The run in one line."""
    hits = sum(s["lesions"] > 0 for s in outcome.summaries)
    parts = [
        f"{_plural(len(outcome.jobs), 'image')}: {outcome.count('processed')} processed",
        f"{_plural(outcome.lesions, 'mass', 'masses')} in {hits}",
    ]
    parts += [f"{outcome.count(s)} {s}" for s in ("rejected", "failed") if outcome.count(s)]
    parts += [f"{outcome.resumed} kept from before"] if outcome.resumed else []
    parts += [f"{_plural(outcome.skipped, 'file')} skipped"] if outcome.skipped else []
    return f"{', '.join([*parts, *remarks])}. Open {printable(str(out / 'index.html'))}"


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of a comma-separated list, in our order; json is always among them."""
    wanted = {t.strip() for t in text.split(",") if t.strip()}
    unknown = wanted - set(FORMATS)
    if unknown:
        raise UsageError(f"--formats: {sorted(unknown)[0]!r} is not known; known here: {', '.join(FORMATS)}")
    return tuple(f for f in FORMATS if f in wanted or f == "json")


def option_sets(options: dict[str, Any]) -> list[str]:
    """The options that change settings, as `key=value`; --set comes last and wins."""
    sets = []
    for key, option in (("fusion.method", "fusion"), ("fusion.lam", "lam"), ("fusion.lesion_score_min", "min_score")):
        if options[option] is not None:
            sets.append(f"{key}={json.dumps(options[option])}")
    if options["scales"] is not None:
        sets.append(f"detection.scales={json.dumps(parse_scales(options['scales']))}")
    return [*sets, *options["sets"]]


def _plural(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
