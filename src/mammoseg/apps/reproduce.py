"""`mammoseg reproduce`: the published study from the raw data sets to a report."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from mammoseg.apps.console import print_table
from mammoseg.apps.out_folder import held
from mammoseg.config import load_toml, to_dict
from mammoseg.errors import ConfigError, UsageError

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option("--inbreast", metavar="DIR", help="INbreast as released, or another DATASET with masks in its place.")
@click.option("--cbis-ddsm", metavar="DIR", help="CBIS-DDSM as TCIA serves it, or another DATASET to pre-train detection on.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the study.")
@click.option("--preset", default="paper", show_default=True, help="paper, or smoke: all of it in minutes, on phantoms.")
@click.option("--config", type=_FILE, metavar="TOML", help="Settings that differ from the preset.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one setting (may be repeated).")
@click.option(
    "--only", multiple=True, metavar="STEP", help="Only this and what it needs, e.g. table2 or fig5 (may be repeated)."
)
@click.option("--dry-run", is_flag=True, help="Print the steps, what is done, and the estimated cost on this machine.")
@click.option("--verbose", is_flag=True, help="Also what training tells.")
def reproduce(inbreast: str | None, cbis_ddsm: str | None, out: Path, **options: Any) -> None:
    """Run the experiments of Yan et al. 2020: detection, multi-scale fusion, segmentation, and the mended protocol.

    Writes OUT/report.html, tables (CSV), figures (SVG) and the findings behind every cell. Run again, it goes on where it
    was stopped; what is done for the same settings and data is kept. The networks of the paper need a GPU for days; the
    settings are documented in docs/study.md.
    """
    _need()
    from mammoseg.experiments.study.config import StudyConfig
    from mammoseg.experiments.study.plan import Study
    from mammoseg.experiments.study.presets import preset, write_phantoms
    from mammoseg.experiments.study.run import run

    config = load_toml(StudyConfig, options["config"], options["sets"], to_dict(preset(options["preset"])))
    with contextlib.nullcontext() if options["dry_run"] else held(out):
        if inbreast is None and options["preset"] == "smoke":
            if cbis_ddsm is not None:
                raise UsageError("--cbis-ddsm: give --inbreast too, or neither, for phantoms in the place of both")
            click.echo("no data set given: phantoms stand for both", err=True)
            made = write_phantoms(out)
            inbreast, cbis_ddsm = str(made[0]), str(made[1])
        if inbreast is None:
            raise UsageError("--inbreast: name the folder of INbreast as released (or use --preset smoke for phantoms)")
        if cbis_ddsm is None and not config.pretrained:
            click.echo("no --cbis-ddsm and no setting pretrained: the detector starts without pre-training", err=True)
        study = Study(config, inbreast, cbis_ddsm, out)
        if options["dry_run"]:
            _show_plan(study, options["only"])
            return
        level = logging.INFO if options["verbose"] else logging.WARNING
        handlers: list[logging.Handler] = [RichHandler(console=Console(stderr=True), show_path=False)]
        logging.basicConfig(level=level, format="%(message)s", handlers=handlers)
        run(study, options["only"], lambda line: click.echo(line, err=True))
    click.echo(f"{out / 'report.html'}")


def _show_plan(study: Any, only: tuple[str, ...]) -> None:
    from mammoseg.experiments.study import cost
    from mammoseg.experiments.study.run import plan

    _, steps = plan(study, only)
    speed = cost.speed()
    table = Table(title=f"{len(steps)} steps, on this machine at {speed / 1e9:,.0f} GFLOP/s")
    for column in ("step", "state", "operations", "about"):
        table.add_column(column, justify="right" if column in ("operations", "about") else "left")
    groups: dict[tuple[str, bool], tuple[int, float]] = {}
    for step, done, operations in steps:
        key = (step.name.split("/")[0], done)
        count, total = groups.get(key, (0, 0.0))
        groups[key] = (count + 1, total + operations)
    left = 0.0
    for (name, done), (count, total) in groups.items():
        left += 0.0 if done else total
        shown = f"{name} × {count}" if count > 1 else name
        words = cost.words(total / speed) if total else ""
        table.add_row(shown, "done" if done else "to do", f"{total / 1e12:,.1f} TFLOP" if total else "", words)
    print_table(table)
    click.echo(f"networks alone, what is to do: about {cost.words(left / speed)}; reading and drawing come on top")


def _need() -> None:
    missing = [m for m in ("torch", "lightning_fabric") if importlib.util.find_spec(m) is None]
    if missing:
        raise ConfigError(f"the study needs {' and '.join(missing)}, which are not installed: pip install 'mammoseg[study]'")
