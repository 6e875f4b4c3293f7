"""The worker processes of a batch: they share the images, and one that dies costs only the image it had."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from mammoseg.apps.outputs import write_image
from mammoseg.apps.worker import Job, Plan, summarise, work
from mammoseg.bundle import Bundle, hash_if_readable
from mammoseg.errors import MammosegError
from mammoseg.types import Findings, ImageInfo

_GONE = (BrokenPipeError, ConnectionError)


@dataclass
class _Member:
    """One worker. job: index of the image it has. ready: it has started up."""

    process: SpawnProcess
    job: int | None = None
    ready: bool = False


class Crew:
    """Worker processes for one run. provenance: for the findings of an image whose worker died."""

    def __init__(self, plan: Plan, provenance: dict[str, Any], bundle: Bundle) -> None:
        self._plan = plan
        self._provenance = provenance
        self._bundle = bundle
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[Connection, _Member] = {}

    def run(self, jobs: dict[int, Job], workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (index, summary) as images are finished, in any order. Raises `MammosegError` where workers cannot start."""
        waiting = list(jobs)[::-1]
        try:
            for _ in range(workers):
                self._start()
            while waiting or any(m.job is not None for m in self._members.values()):
                for connection in wait(list(self._members)):
                    assert isinstance(connection, Connection)
                    yield from self._hear(connection, jobs, waiting)
        finally:
            self._dismiss()

    def _hear(self, connection: Connection, jobs: dict[int, Job], waiting: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        member = self._members[connection]
        try:
            kind, content = connection.recv()
        except (EOFError, *_GONE):
            lost = self._bury(connection)
            if lost is not None:
                yield lost[0], self._mark_failed(jobs[lost[0]], lost[1])
            if waiting:
                self._start()
            return
        if kind == "error":
            raise MammosegError(content)
        if member.job is not None:
            yield member.job, content
        member.ready, member.job = True, None
        if waiting:
            member.job = waiting.pop()
            with contextlib.suppress(*_GONE):  # found dead at the next wait: the image is marked failed there
                connection.send(jobs[member.job])

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, self._plan), daemon=True)
        with _interrupts_held():
            process.start()
            theirs.close()
            self._members[ours] = _Member(process)

    def _bury(self, connection: Connection) -> tuple[int, str] | None:
        """The image a dead worker had, and how it ended."""
        member = self._members.pop(connection)
        connection.close()
        member.process.join()
        code = member.process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if not member.ready:
            raise MammosegError(f"a worker process ended {how} while it was starting; is there enough memory?")
        return None if member.job is None else (member.job, how)

    def _mark_failed(self, job: Job, how: str) -> dict[str, Any]:
        digest = hash_if_readable(job.image.path)
        info = ImageInfo(job.image.source, file_sha256=digest, seen_in_training=self._bundle.has_seen(digest))
        reason = f"the process that analysed it ended {how} (out of memory, or a fault in a decoding library)"
        findings = Findings(info, "failed", reason, provenance=self._provenance)
        write_image(self._plan.out / job.image.folder, findings, None, self._plan.formats)
        return summarise(findings)

    def _dismiss(self) -> None:
        for connection, member in self._members.items():
            if member.job is None and member.ready:
                with contextlib.suppress(*_GONE):
                    connection.send(None)
            else:
                member.process.terminate()
        for connection, member in self._members.items():
            connection.close()
            member.process.join(timeout=10)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
        self._members.clear()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is over, and does not reach the processes started in it (a terminal sends it to all)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # else it is started in the block, and lets interrupts through again
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
