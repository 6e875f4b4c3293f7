"""The process that analyses studies: a child of the node, killed and replaced at will, running what `mammoseg segment` runs.

Requests and answers are lines of JSON on its standard input and output. It is the head of a process group of its own; it and
its workers end when the node is gone.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammoseg.apps.node.config import Analysis
from mammoseg.apps.node.log import place_of
from mammoseg.apps.node.store import Snapshot
from mammoseg.errors import MammosegError

_START_S = 120.0  # for a worker to start and load its networks
_SPARE_S = 300.0  # for writing the results of the study


class AnalysisError(Exception):
    """A study could not be analysed. Its text holds nothing from the images."""


@dataclass(frozen=True)
class Analysed:
    """What came of a study. counts: images by status, and `lesions`. files: the DICOM objects, images' before the study's."""

    counts: dict[str, int]
    files: tuple[Path, ...]


class Analyst:
    """Starts the process when it is needed, gives it studies, and kills it where it takes too long."""

    def __init__(self, settings: Analysis) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def analyse(self, seen: Snapshot, out: Path, stop: threading.Event) -> Analysed:
        """Analyses the images of a study into `out`; what is there already, from the same images and settings, is kept.

        After a failed attempt a worker in a further process does it: an image that kills it, or never ends, is marked as failed
        there, and the others go on. Raises `AnalysisError` where the process fails, dies or takes too long, and where `stop` is
        set meanwhile.
        """
        request = {
            "weights": self._settings.weights,
            "set": list(self._settings.set),
            "formats": list(self._settings.formats),
            "image_s": self._settings.image_s,
            "out": str(out),
            "isolated": seen.attempts > 0,
            "images": [[str(path), key] for key, path in seen.objects],
        }
        try:
            answer = self._ask(request, _SPARE_S + (_START_S + self._settings.image_s) * (len(seen.objects) + 1), stop)
        except (OSError, ValueError) as error:
            self.kill()
            raise AnalysisError(f"the analysing process is gone ({type(error).__name__})") from None
        if "error" in answer:
            raise AnalysisError(str(answer["error"]))
        return Analysed(answer["counts"], tuple(Path(f) for f in answer["files"]))

    def kill(self) -> None:
        """Ends the process and all it started, at once."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, request: dict[str, Any], limit_s: float, stop: threading.Event) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._process = _start()
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None and pipes[1] is not None  # noqa: PT018
        pipes[0].write(json.dumps(request).encode() + b"\n")
        pipes[0].flush()
        end = time.monotonic() + limit_s
        while not select.select([pipes[1]], [], [], 0.2)[0]:
            if stop.is_set() or time.monotonic() > end:
                self.kill()
                raise AnalysisError("stopped" if stop.is_set() else f"gave up after {limit_s:.0f} s")
        line = pipes[1].readline()
        if not line:
            code = self._process.wait()
            self.kill()
            raise AnalysisError(f"the analysing process ended with {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mammoseg.apps.node.analysis"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # decoding libraries write there, in words of the file
        start_new_session=True,
    )


# ---- in the process itself


def main() -> None:
    """Answers requests until the node is gone."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes where their errors go
    for request in _requests():
        answers.write(json.dumps(_answer(request)) + "\n")
        answers.flush()


def _requests() -> Iterator[dict[str, Any]]:
    """Requests as they come. A thread waits for them, which ends this process group when the node's end of the pipe closes."""
    import queue

    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            waiting.put(json.loads(line))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield waiting.get()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _analyse(request)
    except MammosegError as error:  # these hold nothing from the images
        return {"error": f"{type(error).__name__}: {error}"}
    except OSError as error:
        return {"error": f"{type(error).__name__}: {error.strerror}"}
    except Exception as error:
        return {"error": f"{type(error).__name__} at {place_of(error)}"}


def _analyse(request: dict[str, Any]) -> dict[str, Any]:
    """Runs the batch engine over a study: in this process, with the networks that are loaded already, or else isolated."""
    from mammoseg.apps.batch import run_batch
    from mammoseg.apps.inputs import InputImage
    from mammoseg.apps.worker import Job, Plan
    from mammoseg.bundle import open_bundle
    from mammoseg.pipeline import changed, settings_of

    bundle = open_bundle(request["weights"] or None)
    out = Path(request["out"])
    plan = Plan(bundle.directory, changed(settings_of(bundle), request["set"]), out, tuple(request["formats"]), {})
    jobs = [Job(InputImage(Path(path), f"{key}.dcm", key)) for path, key in request["images"]]
    isolated = request["isolated"]
    with _watched(request["image_s"], isolated) as alive:
        outcome = run_batch(
            jobs,
            plan,
            workers=1 if isolated else 0,
            resume=True,
            progress=lambda job, summary: alive(),
            opener=lambda its_plan: _opened(its_plan, bundle.sha256),
        )
    if outcome.reports.failed:
        return {"error": "the report of the study cannot be written"}
    counts = {status: outcome.count(status) for status in ("processed", "rejected", "failed")} | {"lesions": outcome.lesions}
    of_images = [file for job in jobs for file in sorted((out / job.image.folder).glob("*.dcm"))]
    of_study = sorted((out / "studies").glob("*/*.dcm"))
    return {"counts": counts, "files": [str(file) for file in (*of_images, *of_study)]}


_loaded: dict[tuple[Any, ...], Any] = {}


def _opened(plan: Any, sha256: str) -> Any:
    """The pipeline of a plan; the last one stays loaded."""
    from mammoseg.apps.worker import open_pipeline

    key = (plan.bundle, sha256, repr(plan.config))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = open_pipeline(plan)
    return _loaded[key]


@contextlib.contextmanager
def _watched(image_s: float, isolated: bool) -> Iterator[Callable[[], None]]:
    """Acts when no image was finished for `image_s`, and for the start of a worker and its networks.

    Isolated, the worker is killed: the run marks its image as failed and goes on. Else this process is: the node asks again.
    """
    last = [time.monotonic() + _START_S]
    over, killed = threading.Event(), threading.Event()

    def alive() -> None:
        if killed.is_set():  # this is the image whose worker was killed: another one has to start first
            killed.clear()
        else:
            last[0] = time.monotonic()

    def watch() -> None:
        while not over.wait(min(1.0, image_s / 4)):
            if time.monotonic() - last[0] <= image_s:
                continue
            if not isolated:
                os.killpg(0, signal.SIGKILL)
            last[0] = time.monotonic() + _START_S
            killed.set()
            for child in multiprocessing.active_children():
                child.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield alive
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
