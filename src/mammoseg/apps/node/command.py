"""`mammoseg node`: a DICOM node that receives mammograms and sends results on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import click

from mammoseg.errors import UsageError

EXIT_NOT_RUNNING = 3
_config_option = click.option(
    "--config",
    "config_file",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The node's settings, TOML (see docs/node.md).",
)
_set_option = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change any setting, e.g. --set port=104.")


@click.group()
def node() -> None:
    """Receive mammograms over DICOM, analyse whole studies, and send the results on."""


@node.command()
@_config_option
@_set_option
@click.option("--check", is_flag=True, help="Only check the settings.")
def start(config_file: Path, sets: tuple[str, ...], check: bool) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    Its log is a line of JSON an event, on standard error or in the file that the settings name. A node that was killed goes on
    where it was when it is started again.

    Research software, not for clinical use.
    """
    _need_pynetdicom()
    from mammoseg.apps.node.config import load_config
    from mammoseg.apps.node.log import Log, take_over
    from mammoseg.apps.node.service import run
    from mammoseg.bundle import open_bundle
    from mammoseg.pipeline import changed, settings_of

    config = load_config(config_file, sets)
    changed(settings_of(open_bundle(config.analysis.weights or None)), config.analysis.set)
    if check:
        click.echo(f"{config_file}: the settings are sound")
        return
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(Path(config.log).open("a", encoding="utf-8")) if config.log else sys.stderr
        log = Log(stream)
        take_over(log)
        run(config, log)


@node.command()
@_config_option
@_set_option
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
def status(config_file: Path, sets: tuple[str, ...], as_json: bool) -> int:
    """Show what a node has to do: studies, images and deliveries in numbers.

    Exit code 0 where the node is running, 3 where it is not.
    """
    _need_pynetdicom()
    from mammoseg.apps.node.config import load_config
    from mammoseg.apps.node.status import as_text, read_status

    found: dict[str, Any] = read_status(load_config(config_file, sets))
    click.echo(json.dumps(found, indent=2, sort_keys=True) if as_json else as_text(found))
    return 0 if found["running"] else EXIT_NOT_RUNNING


def _need_pynetdicom() -> None:
    if importlib.util.find_spec("pynetdicom") is None:
        raise UsageError("the node needs pynetdicom, which is not installed: pip install 'mammoseg[node]'")
