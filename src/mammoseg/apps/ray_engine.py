"""The batch engine on Ray Data: one model replica a worker, batches of images, results in OUT as from the local engine.

OUT lies on a file system that all workers share. A worker that dies is started again with its batch: images of it that are
done stay done, and one that kills its worker three times is marked failed. Nothing is sent to anybody: Ray's usage statistics
are switched off before it is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mammoseg.apps.inputs import InputImage
from mammoseg.apps.outputs import FINDINGS, is_done, write_image
from mammoseg.apps.worker import Job, Plan, open_pipeline, process, summarise
from mammoseg.bundle import hash_if_readable
from mammoseg.errors import ConfigError, MammosegError
from mammoseg.types import Findings, ImageInfo

BATCH = 4
TRIES = ".tries"
_TRIES_MOST = 3
_STARTS = 3
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # as the processes of the local engine, not 15
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def worked_through_ray(
    jobs: dict[int, Job], plan: Plan, workers: int, provenance: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index, summary) as batches are finished, in any order. Raises `MammosegError` where Ray or a worker cannot start.

    workers: replicas, each on the plan's number of threads. Where `RAY_ADDRESS` names a cluster they run there, else on this
    machine.
    """
    ray = import_ray()
    run = secrets.token_hex(8)
    threads = max(1, plan.config.runtime.threads)
    rows = [{"index": i, "job": _to_text(job)} for i, job in jobs.items()]
    with _started(ray, workers * threads):
        data = importlib.import_module("ray.data")
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        batches = -(-len(rows) // BATCH)
        dataset = data.from_items(rows, override_num_blocks=min(batches, 20_000)).map_batches(
            Replica,
            fn_constructor_args=(plan, provenance, run),
            batch_size=BATCH,
            compute=data.ActorPoolStrategy(size=min(workers, batches), max_tasks_in_flight_per_actor=2),
            num_cpus=threads,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise MammosegError(str(row["error"]))
                summary = {"status": row["status"], "reason": row["reason"] or None, "lesions": int(row["lesions"])}
                yield int(row["index"]), summary
        except MammosegError:
            raise
        except Exception as error:  # Ray wraps what goes wrong in a dozen of its own
            text = str(error).strip().splitlines()
            raise MammosegError(f"Ray could not finish ({type(error).__name__}: {text[-1] if text else ''})") from error
    _forget_tries(plan.out)


class Replica:
    """A worker: the pipeline, loaded once, for batches of jobs."""

    def __init__(self, plan: Plan, provenance: dict[str, Any], run: str) -> None:
        import cv2

        cv2.setNumThreads(max(1, plan.config.runtime.threads))
        self._plan, self._provenance, self._run = plan, provenance, run
        self._pipeline, self._error = None, ""
        try:
            self._pipeline = open_pipeline(plan)
        except MammosegError as error:
            self._error = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """index i64[B] and job texts to summaries; `error` says what no image is to blame for."""
        summaries: list[dict[str, Any]] = []
        for text in batch["job"]:
            try:
                if self._error:
                    raise MammosegError(self._error)
                summaries.append({**self._one(_from_text(str(text))), "error": ""})
            except (MammosegError, OSError) as error:
                summaries.append({"status": "", "reason": None, "lesions": 0, "error": str(error) or type(error).__name__})
        return {
            "index": np.asarray(batch["index"]),
            "status": np.array([s["status"] for s in summaries]),
            "reason": np.array([s["reason"] or "" for s in summaries]),
            "lesions": np.array([s["lesions"] for s in summaries]),
            "error": np.array([s["error"] for s in summaries]),
        }

    def _one(self, job: Job) -> dict[str, Any]:
        plan, folder = self._plan, self._plan.out / job.image.folder
        tries = plan.out / TRIES / hashlib.sha256(job.image.folder.encode()).hexdigest()
        before = _count(tries, self._run)
        if before:  # a worker died with this batch
            done = self._done(job, folder)
            if done is not None:
                return done
        if before >= _TRIES_MOST:
            return self._give_up(job, folder)
        tries.parent.mkdir(parents=True, exist_ok=True)
        tries.write_text(f"{self._run} {before + 1}", encoding="ascii")
        assert self._pipeline is not None
        return summarise(process(self._pipeline, job, plan))

    def _done(self, job: Job, folder: Path) -> dict[str, Any] | None:
        if not (folder / FINDINGS).is_file():
            return None
        from mammoseg.apps.remote import read_origin

        image = job.image
        digest = hash_if_readable(image.path) if image.url is None else read_origin(folder, image)
        if digest is None:
            return None
        found = is_done(folder, image.path, image.source, digest, self._provenance, self._plan.formats)
        return None if found is None else {k: found[k] for k in ("status", "reason")} | {"lesions": len(found["lesions"])}

    def _give_up(self, job: Job, folder: Path) -> dict[str, Any]:
        reason = f"{_TRIES_MOST} processes that analysed it ended (out of memory, or a fault in a decoding library)"
        info = ImageInfo(job.image.source, file_sha256=hash_if_readable(job.image.path))
        findings = Findings(info, "failed", reason, provenance=self._provenance)
        write_image(folder, findings, None, self._plan.formats)
        return summarise(findings)


def import_ray() -> Any:
    """Ray, with its usage statistics switched off. Raises `ConfigError` where it is not installed."""
    os.environ.update(QUIET)
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--engine ray needs {error.name}, which is not installed: pip install 'mammoseg[cluster]'"
        ) from error
    return ray


@contextlib.contextmanager
def _started(ray: Any, processors: int) -> Iterator[None]:
    """Ray on the cluster of `RAY_ADDRESS`, or on this machine with so many processors, for as long as the block lasts."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    environment = {**QUIET, **{k: v for k, v in os.environ.items() if k.startswith("MAMMOSEG_")}}
    settings["runtime_env"] = {"env_vars": environment}
    if not os.environ.get("RAY_ADDRESS"):
        settings |= {"num_cpus": processors, "include_dashboard": False, "object_store_memory": 100 * 2**20, "num_gpus": 0}
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(**settings)
            break
        except Exception as error:
            ray.shutdown()
            if attempt == _STARTS:
                last = (str(error).strip().splitlines() or [""])[-1]
                raise MammosegError(f"Ray does not start ({type(error).__name__}: {last})") from error
            time.sleep(attempt)
    try:
        yield
    finally:
        ray.shutdown()


def _to_text(job: Job) -> str:
    image = {**vars(job.image), "path": str(job.image.path)}
    return json.dumps({"image": image, "boxes": None if job.boxes is None else job.boxes.tolist()})


def _from_text(text: str) -> Job:
    found = json.loads(text)
    image = InputImage(**{**found["image"], "path": Path(found["image"]["path"])})
    return Job(image, None if found["boxes"] is None else np.array(found["boxes"], dtype=np.float64).reshape(-1, 5))


def _count(path: Path, run: str) -> int:
    """How many workers of this run have begun with the image."""
    try:
        owner, _, number = path.read_text(encoding="ascii").partition(" ")
        return int(number) if owner == run else 0
    except (OSError, ValueError):
        return 0


def _forget_tries(out: Path) -> None:
    for path in (out / TRIES).glob("*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (out / TRIES).rmdir()
