"""The queue of jobs: kept in the database, worked off one after the other, taken up again after a restart."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from mammoseg.apps.server import models
from mammoseg.apps.server.catalogue import Catalogue
from mammoseg.apps.server.errors import ApiError, not_found
from mammoseg.apps.server.job_process import JobProcess, Task
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.apps.server.store import Store
from mammoseg.bundle import Bundle
from mammoseg.errors import MammosegError

log = logging.getLogger("mammoseg.server")
MAX_QUEUED = 100
LISTED = 200
ENDED = ("done", "failed", "cancelled")


class Importer(Protocol):
    """What fetches the images of an import."""

    def fetch(self, request: dict[str, Any], stop: threading.Event) -> list[str]:
        """The ids of the images fetched. Raises `MammosegError` or `ApiError`; ends soon after `stop` is set."""


@dataclass
class _Pace:
    """How fast the running job goes. begun: when its first image was taken up. at_first: images done by then."""

    job_id: str
    begun: float
    at_first: int


class Jobs:
    """Submits, lists, cancels and works off jobs."""

    def __init__(
        self, settings: ServerSettings, store: Store, catalogue: Catalogue, bundle: Bundle | None, importer: Importer | None
    ) -> None:
        self._settings, self._store, self._catalogue, self._bundle = settings, store, catalogue, bundle
        self._importer = importer
        self._wake, self._end = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._running: tuple[str, threading.Event] | None = None
        self._pace: _Pace | None = None
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Takes up what was left, and then what comes."""
        with self._store.writing() as database:
            database.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
        self._thread.start()

    def stop(self) -> None:
        """Ends work at once; the job under way is taken up again at the next start."""
        self._end.set()
        self._wake.set()
        if self._running is not None:
            self._running[1].set()
        if self._thread.is_alive():
            self._thread.join(30)

    def submit(self, images: Sequence[str], settings: dict[str, Any], source: dict[str, Any] | None = None) -> str:
        """Queues a job over images, or over those that are imported from `source`. Raises `ApiError`."""
        self.check_weights()
        if len(self._store.rows("SELECT 1 FROM jobs WHERE state IN ('queued', 'running')")) >= MAX_QUEUED:
            raise ApiError(503, "busy", f"{MAX_QUEUED} jobs are waiting already; try again when some are done")
        job_id = secrets.token_hex(12)
        request = json.dumps({"images": list(images), "settings": settings, "source": source})
        with self._store.writing() as database:
            values = (job_id, "queued", request, 0, len(images), "[]")
            database.execute(
                "INSERT INTO jobs (job_id, state, request, done, total, failures) VALUES (?, ?, ?, ?, ?, ?)", values
            )
        log.info("job %s: %d images queued", job_id, len(images))
        self._wake.set()
        return job_id

    def check_weights(self) -> None:
        """Raises `ApiError` 409 where there is nothing to analyse with."""
        if self._bundle is None:
            raise ApiError(409, "no_weights", "there are no weights here, so nothing can be analysed; name some with --weights")

    def latest(self) -> list[models.Job]:
        """The last jobs, newest first."""
        return [self._model(row) for row in self._store.rows(f"SELECT * FROM jobs ORDER BY number DESC LIMIT {LISTED}")]

    def get(self, job_id: str) -> models.Job:
        """One job. Raises `ApiError` 404."""
        rows = self._store.rows("SELECT * FROM jobs WHERE job_id = ?", job_id)
        if not rows:
            raise not_found("job")
        return self._model(rows[0])

    def cancel(self, job_id: str) -> models.Job:
        """Ends a job that waits or runs; what it has done stays. Raises `ApiError` 404, or 409 where it has ended."""
        with self._lock:
            with self._store.writing() as database:
                query = "UPDATE jobs SET state = 'cancelled' WHERE job_id = ? AND state IN ('queued', 'running')"
                changed = database.execute(query, (job_id,)).rowcount
            if self._running is not None and self._running[0] == job_id:
                self._running[1].set()
        job = self.get(job_id)
        if not changed:
            raise ApiError(409, "ended", "this job has ended already")
        return job

    def concerns(self, image_id: str) -> bool:
        """Whether a job that waits or runs has this image."""
        rows = self._store.rows("SELECT request FROM jobs WHERE state IN ('queued', 'running')")
        return any(image_id in json.loads(row["request"])["images"] for row in rows)

    def _model(self, row: Any) -> models.Job:
        request = json.loads(row["request"])
        left = None
        if row["state"] == "running" and self._pace is not None and self._pace.job_id == row["job_id"]:
            done = row["done"] - self._pace.at_first
            if done > 0:
                left = round((time.monotonic() - self._pace.begun) / done * (row["total"] - row["done"]), 1)
        return models.Job(
            job_id=row["job_id"],
            state=cast(models.JobState, row["state"]),
            kind="import" if request["source"] is not None else "analysis",
            done=row["done"],
            total=row["total"],
            seconds_left=left,
            failures=[models.JobFailure(**f) for f in json.loads(row["failures"])],
            error=row["error"],
            images=request["images"],
        )

    # ---- the thread that works

    def _work(self) -> None:
        while not self._end.is_set():
            self._wake.clear()
            rows = self._store.rows("SELECT * FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1")
            if not rows:
                self._wake.wait(60)
                continue
            job_id, stop = rows[0]["job_id"], threading.Event()
            with self._lock:
                with self._store.writing() as database:
                    query = "UPDATE jobs SET state = 'running', done = 0, failures = '[]' WHERE job_id = ? AND state = 'queued'"
                    if not database.execute(query, (job_id,)).rowcount:
                        continue  # cancelled this moment
                self._running = job_id, stop
            if self._end.is_set():
                stop.set()
            state, error = self._outcome(job_id, json.loads(rows[0]["request"]), stop)
            with self._lock:
                self._running = self._pace = None
                if not self._end.is_set() or state == "done":
                    with self._store.writing() as database:
                        query = "UPDATE jobs SET state = ?, error = ? WHERE job_id = ? AND state = 'running'"
                        database.execute(query, (state, error, job_id))
            self._catalogue.look_again()

    def _outcome(self, job_id: str, request: dict[str, Any], stop: threading.Event) -> tuple[str, str | None]:
        try:
            if request["source"] is not None:
                request["images"] = self._import(job_id, request, stop)
            self._analyse(job_id, request, stop)
        except (MammosegError, ApiError) as error:
            log.warning("job %s failed", job_id)
            return "failed", str(error)
        except Exception as error:  # the queue goes on; the message may hold anything
            log.error("job %s ended in %s", job_id, type(error).__name__)
            return "failed", f"unexpected {type(error).__name__}"
        return ("cancelled" if stop.is_set() else "done"), None

    def _import(self, job_id: str, request: dict[str, Any], stop: threading.Event) -> list[str]:
        if self._importer is None:
            raise MammosegError("no DICOMweb server is named on this server's command line any more")
        images = self._importer.fetch(request["source"], stop)
        self._catalogue.look_again()
        with self._store.writing() as database:
            values = (json.dumps({**request, "images": images}), len(images), job_id)
            database.execute("UPDATE jobs SET request = ?, total = ? WHERE job_id = ?", values)
        return images

    def _analyse(self, job_id: str, request: dict[str, Any], stop: threading.Event) -> None:
        assert self._bundle is not None
        images = []
        for image_id in request["images"]:
            try:
                entry = self._catalogue.entry(image_id)
            except ApiError:  # removed meanwhile
                continue
            if entry.path is not None:
                images.append((image_id, entry.path, entry.name))
        with self._store.writing() as database:
            database.execute("UPDATE jobs SET total = ? WHERE job_id = ?", (len(images), job_id))
        if not images or stop.is_set():
            return
        out = self._store.root / "jobs" / job_id / "results"
        task = Task(tuple(images), self._bundle.directory, tuple(request["settings"]["sets"]), out, self._settings.workers)
        self._pace = _Pace(job_id, time.monotonic(), 0)
        with JobProcess(task) as process:
            for image_id, summary in process.summaries(stop):
                self._note(job_id, image_id, summary)

    def _note(self, job_id: str, image_id: str, summary: dict[str, Any]) -> None:
        """One image is done."""
        with self._store.writing() as database:
            if summary["status"] in ("rejected", "failed"):
                row = database.execute("SELECT failures FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
                failure = {"image_id": image_id, "status": summary["status"], "reason": summary["reason"]}
                database.execute(
                    "UPDATE jobs SET failures = ? WHERE job_id = ?", (json.dumps([*json.loads(row[0]), failure]), job_id)
                )
            database.execute("UPDATE jobs SET done = done + 1 WHERE job_id = ?", (job_id,))
            database.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (image_id, f"jobs/{job_id}/results/{image_id}"))
