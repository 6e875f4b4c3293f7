"""How the command line speaks: one clear line per error, progress with time left where a person is watching."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mammoseg.errors import DEBUG_VARIABLE, MammosegError, NotAnImageError, Terminated, UsageError

EXIT_PARTLY = 3
EXIT_USAGE = 2
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_WIDE = 120


class OneLineGroup(click.Group):
    """A command group whose errors are one line on stderr and an exit code: 2 for usage, 1 for anything else."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """As click's, always ending in `SystemExit`."""
        extra.pop("standalone_mode", None)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.exit(code if isinstance(code, int) else 0)
        except getattr(click.exceptions, "NoArgsIsHelpError", ()) as error:  # older versions of click print the help themselves
            click.echo(error.format_message(), err=True)
            sys.exit(EXIT_USAGE)
        except click.ClickException as error:
            fail(_one_line(error.format_message()), error.exit_code)
        except (click.Abort, KeyboardInterrupt) as error:
            stopped(error.__cause__ or error)
        except (UsageError, NotAnImageError) as error:
            fail(_one_line(str(error)), EXIT_USAGE)
        except MammosegError as error:
            fail(_one_line(str(error)), EXIT_ERROR)
        except BrokenPipeError:  # `mammoseg ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_ERROR)
        except OSError as error:
            fail(_system_error(error), EXIT_ERROR)
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE):
                traceback.print_exc()
            what = f"{type(error).__name__}: {_one_line(str(error))}"
            fail(f"unexpected error, {what} (set {DEBUG_VARIABLE}=1 to see where)", EXIT_ERROR)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, but Ctrl-C is told here: click would begin a line of its own first."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            stopped(error)


_ADVICE = {
    errno.ENOSPC: "make room and try again",
    errno.EDQUOT: "make room and try again",
    errno.EROFS: "name a place that can be written to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.EEXIST: "name another place, or remove it",
    errno.ENAMETOOLONG: "shorten the path",
    errno.EACCES: "check the permissions, or name another place",
    errno.EPERM: "check the permissions, or name another place",
}


def _system_error(error: OSError) -> str:
    """What file the system could not deal with, why, and what to do."""
    what = f"{error.filename}: " if error.filename is not None else ""
    why = error.strerror or str(error) or type(error).__name__
    return _one_line(f"{what}{why}; {_ADVICE.get(error.errno or 0, 'check the disk and try again')}")


def fail(message: str, code: int) -> NoReturn:
    """Says what is wrong in one line on stderr and ends with `code`."""
    click.echo(f"mammoseg: error: {message}", err=True)
    sys.exit(code)


def stopped(error: BaseException, more: str = "") -> NoReturn:
    """Says in one line that Ctrl-C or SIGTERM ended the command, and `more`; ends with 128 and the signal's number."""
    word, code = ("terminated", EXIT_TERMINATED) if isinstance(error, Terminated) else ("interrupted", EXIT_INTERRUPTED)
    fail(f"{word}, {more}" if more else word, code)


class ImageProgress(AbstractContextManager["ImageProgress"]):
    """Progress over images: a bar with the time left on a terminal, else a line now and then."""

    def __init__(self, total: int, what: str = "segmenting") -> None:
        self._total, self._what, self._done, self._said = total, what, 0, 0
        self._begun = time.monotonic()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True)
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> ImageProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """One image more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif self._done == self._total or self._done - self._said >= max(1, self._total // 10):
            self._said = self._done
            left = (time.monotonic() - self._begun) / self._done * (self._total - self._done)
            ahead = f", about {_duration(left)} left" if self._done < self._total else ""
            click.echo(f"{self._what}: {self._done} of {self._total}{ahead}", err=True)

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False, soft_wrap=True)
        else:
            click.echo(message, err=True)


def print_table(table: Table) -> None:
    """Prints to standard output: as wide as the terminal, or as the table may need where nobody watches."""
    console = Console()
    (console if console.is_terminal else Console(width=_WIDE)).print(table)


def plural(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    >>> plural(1, "patient"), plural(3, "mass", "masses")
    ('1 patient', '3 masses')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    """For example 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _one_line(text: str) -> str:
    return " ".join(text.split())
