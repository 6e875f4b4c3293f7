"""The process of a job: it runs what `mammoseg segment` runs, and ends when it is told to or the server is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from mammoseg.apps.batch import run_batch
from mammoseg.apps.inputs import InputImage
from mammoseg.apps.outputs import DEFAULT_FORMATS
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.errors import MammosegError
from mammoseg.pipeline import changed, settings_of

_LISTEN_S = 0.2
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class Task:
    """images: (id, file, name) each. sets: `key=value` settings that differ from the bundle's. out: folder of the results."""

    images: tuple[tuple[str, Path, str], ...]
    bundle: Path
    sets: tuple[str, ...]
    out: Path
    workers: int


class JobProcess(contextlib.AbstractContextManager["JobProcess"]):
    """Runs a task in a process of its own; what was done before is kept."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=run_task, args=(theirs, task))
        self._process.start()
        theirs.close()

    def summaries(self, stop: threading.Event) -> Iterator[tuple[str, dict[str, Any]]]:
        """(image id, status, reason and number of lesions) as images are done, until the end or `stop`.

        Raises `MammosegError` where the run fails or its process dies.
        """
        while not stop.is_set():
            if not self._ours.poll(_LISTEN_S):
                continue
            try:
                kind, content = self._ours.recv()
            except (EOFError, OSError) as error:
                self._process.join(_PATIENCE_S)
                raise MammosegError(
                    f"the process of this job ended with {self._process.exitcode}; was there enough memory?"
                ) from error
            if kind == "end":
                return
            if kind == "error":
                raise MammosegError(content)
            yield content

    def __exit__(self, *_: object) -> None:
        self._ours.close()  # its workers end with it
        if self._process.is_alive():
            self._process.terminate()
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def run_task(connection: Connection, task: Task) -> None:
    """What the process does: sends ("done", (id, summary)) for each image, then ("end", None), or ("error", message)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_watch, args=(connection,), daemon=True).start()
    try:
        bundle = open_bundle(task.bundle)
        config = changed(settings_of(bundle), task.sets)
        jobs = [Job(InputImage(path, name, image_id)) for image_id, path, name in task.images]
        plan = Plan(bundle.directory, config, task.out, DEFAULT_FORMATS, {})

        def report(job: Job, summary: dict[str, Any]) -> None:
            connection.send(("done", (job.image.folder, summary)))

        run_batch(jobs, plan, max(1, task.workers), resume=True, progress=report)
        connection.send(("end", None))
    except MammosegError as error:
        _say(connection, str(error))
    except OSError as error:
        _say(connection, f"results cannot be written ({error.strerror or type(error).__name__}); is the disk full?")
    except KeyboardInterrupt:
        pass


def _say(connection: Connection, message: str) -> None:
    with contextlib.suppress(OSError):
        connection.send(("error", message))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch(connection: Connection) -> None:
    """Ends this process when the server is gone: nothing is ever sent this way, so that only its end can be heard."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)
