"""The command `mammoseg`."""

from __future__ import annotations

try:
    import importlib
    import signal
    from types import FrameType

    import click

    from mammoseg import __version__
    from mammoseg.apps.console import OneLineGroup
    from mammoseg.errors import Terminated
except KeyboardInterrupt:  # Ctrl-C so early that nothing can be said yet
    raise SystemExit(130) from None

COMMANDS = {
    "segment": "segment:segment",
    "serve": "server.command:serve",
    "demo": "demo:demo",
    "phantom": "data_commands:phantom",
    "evaluate": "evaluate:evaluate",
    "train": "train:train",
    "bundle": "train:bundle",
    "export": "exporting:export",
    "datasets": "data_commands:datasets",
    "reproduce": "reproduce:reproduce",
    "info": "info:info",
    "node": "node.command:node",
}
"""Commands by where they are: each is imported when it is called, so that none waits for what the others need."""
SUBCOMMANDS = {"bundle": ("exporting:check", "exporting:quantise"), "datasets": ("fold:fold",)}
"""Of groups that are not in the group's own module."""


class _Commands(OneLineGroup):
    """`COMMANDS`, each from its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None where there is none of this name."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            command = _imported(COMMANDS[cmd_name])
            if isinstance(command, click.Group):
                for place in SUBCOMMANDS.get(cmd_name, ()):
                    command.add_command(_imported(place))
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)


def _imported(place: str) -> click.Command:
    module, _, name = place.partition(":")
    command: click.Command = getattr(importlib.import_module(f"mammoseg.apps.{module}"), name)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mammoseg")
def cli() -> None:
    """From a full X-ray mammogram to the contour of every mass in it.

    Start with `mammoseg demo`, or with `mammoseg segment FOLDER --out RESULTS` on images of your own.

    Research software, not for clinical use.
    """


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def main() -> None:
    """Entry point of the command; always ends in `SystemExit`. SIGTERM ends it as cleanly as Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    cli.main(prog_name="mammoseg")


if __name__ == "__main__":
    main()
