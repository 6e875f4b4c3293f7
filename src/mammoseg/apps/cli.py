"""The command `mammoseg`."""

from __future__ import annotations

import click

from mammoseg import __version__
from mammoseg.apps.console import OneLineGroup
from mammoseg.apps.data_commands import datasets, phantom
from mammoseg.apps.demo import demo
from mammoseg.apps.evaluate import evaluate
from mammoseg.apps.exporting import check, export
from mammoseg.apps.fold import fold
from mammoseg.apps.info import info
from mammoseg.apps.node.command import node
from mammoseg.apps.reproduce import reproduce
from mammoseg.apps.segment import segment
from mammoseg.apps.server.command import serve
from mammoseg.apps.train import bundle, train


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mammoseg")
def cli() -> None:
    """From a full X-ray mammogram to the contour of every mass in it.

    Start with `mammoseg demo`, or with `mammoseg segment FOLDER --out RESULTS` on images of your own.

    Research software, not for clinical use.
    """


for _command in (segment, serve, demo, phantom, evaluate, train, bundle, export, datasets, reproduce, info, node):
    cli.add_command(_command)
datasets.add_command(fold)
bundle.add_command(check)


def main() -> None:
    """Entry point of the command; always ends in `SystemExit`."""
    cli.main(prog_name="mammoseg")


if __name__ == "__main__":
    main()
