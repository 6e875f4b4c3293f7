"""One process of the batch engine: loads the pipeline once, then works through the images it is sent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.apps.boxes import to_detections
from mammoseg.apps.inputs import InputImage
from mammoseg.apps.out_folder import clear_image
from mammoseg.apps.outputs import write_image
from mammoseg.apps.remote import local_copy, write_origin
from mammoseg.errors import DEBUG_VARIABLE, DecodeError, ImageError, MammosegError, NotAnImageError, UsageError
from mammoseg.io.load import load_mammogram
from mammoseg.pipeline import Pipeline, PipelineConfig, load
from mammoseg.types import Findings, Mammogram


@dataclass(frozen=True)
class Plan:
    """What every worker of a run knows. extra: added to the provenance (for example the hash of the boxes file).

    engine: who shares out the images: processes of this machine ("local"), or Ray. parquet: write the findings as Parquet too.
    """

    bundle: Path
    config: PipelineConfig
    out: Path
    formats: tuple[str, ...]
    extra: Mapping[str, Any]
    engine: Literal["local", "ray"] = "local"
    parquet: bool = False


@dataclass(frozen=True)
class Job:
    """One image. boxes: f64[N, 5] to delineate, or None to detect."""

    image: InputImage
    boxes: NDArray[np.float64] | None = None


def process(pipeline: Pipeline, job: Job, plan: Plan) -> Findings | None:
    """Analyses one image and writes its folder. Whatever is wrong with the image becomes a status with a reason.

    None where the file came from a folder and is no image after all: nothing is written for it. Raises `MammosegError` where
    results cannot be written (the disk is full): the next image would fare no better.
    """
    folder = plan.out / job.image.folder
    try:
        try:
            with local_copy(job.image) as image:
                findings, mammogram = _analyse(pipeline, replace(job, image=image))
                if findings is None:
                    clear_image(plan.out, job.image.folder)
                else:
                    write_origin(folder, image)
                    write_image(folder, findings, mammogram, plan.formats, image.path)
        except OSError:
            raise
        except DecodeError as error:  # it could not be fetched
            findings = pipeline.unusable(job.image.path, job.image.source, error)
            write_image(folder, findings, None, plan.formats)
        except Exception as error:  # one bad image never stops a batch
            findings = pipeline.unusable(job.image.path, job.image.source, _unexpected(error))
            write_image(folder, findings, None, plan.formats)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise MammosegError(
            f"results cannot be written to {folder} ({why}): make room or correct the permissions, then go on with --resume"
        ) from error
    return findings


def _analyse(pipeline: Pipeline, job: Job) -> tuple[Findings | None, Mammogram | None]:
    path, source = job.image.path, job.image.source
    try:
        mammogram = load_mammogram(path, source)
        boxes = None if job.boxes is None else to_detections(job.boxes, mammogram.size)
        return pipeline.analyze(mammogram, boxes), mammogram
    except NotAnImageError as error:
        return (None if job.image.may_skip else pipeline.unusable(path, source, error)), None
    except (ImageError, UsageError) as error:
        return pipeline.unusable(path, source, error), None
    except Exception as error:
        return pipeline.unusable(path, source, _unexpected(error)), None


def _unexpected(error: Exception) -> DecodeError:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    return DecodeError(f"unexpected {type(error).__name__} while analysing; set {DEBUG_VARIABLE}=1 to see where")


def open_pipeline(plan: Plan) -> Pipeline:
    """The pipeline as a run of this plan uses it."""
    pipeline = load(plan.bundle, config=plan.config)
    pipeline.provenance.update(plan.extra)
    return pipeline


def work(connection: Connection, plan: Plan) -> None:
    """The main loop of a worker process. Receives jobs, answers ("done", summary) or ("error", message); None ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if plan.config.runtime.threads:
        cv2.setNumThreads(plan.config.runtime.threads)
    try:
        pipeline = open_pipeline(plan)
        connection.send(("ready", None))
        while (job := connection.recv()) is not None:
            connection.send(("done", summarise(process(pipeline, job, plan))))
    except (MammosegError, OSError) as error:
        if not isinstance(error, (BrokenPipeError, ConnectionError)):
            connection.send(("error", str(error)))
    except EOFError:  # the parent is gone
        pass


def _end_with_parent() -> None:
    """Where the parent was killed, its lock on OUT is gone: nothing may be written there any more by its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def summarise(findings: Findings | None) -> dict[str, Any]:
    """What the parent needs of one image's findings; None is a file that was passed over."""
    if findings is None:
        return {"status": "skipped", "reason": None, "lesions": 0}
    return {"status": findings.status, "reason": findings.reason, "lesions": len(findings.lesions)}
