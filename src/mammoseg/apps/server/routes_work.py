"""Uploads, jobs and DICOMweb: what makes the server work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from mammoseg.apps.segment import option_sets
from mammoseg.apps.server import models
from mammoseg.apps.server.errors import ApiError, not_found
from mammoseg.apps.server.parts import PartsToFiles
from mammoseg.apps.server.routes_images import NOT_FOUND, OPAQUE, refusals
from mammoseg.apps.server.service import Here

router = APIRouter()
JobId = Annotated[str, Path(pattern=OPAQUE, description="As /jobs lists it")]
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
                    "required": ["files"],
                }
            }
        },
    }
}
_QUEUE = refusals(s409="There are no weights, or no images", s503="Too many jobs are waiting")
_SERVERS = refusals(s404="No DICOMweb server was named", s502="The DICOMweb server fails", s504="It does not answer")


def sets_of(settings: models.JobSettings) -> list[str]:
    """The settings as the command line takes them."""
    options: dict[str, Any] = {"fusion": settings.fusion, "lam": settings.lam, "min_score": settings.min_score}
    return option_sets({**options, "scales": None, "sets": []})


@router.post(
    "/uploads",
    status_code=202,
    openapi_extra=_FORM,
    responses={**_QUEUE, **refusals(s415="It is no multipart body", s507="There is no room for it")},
)
async def upload(here: Here, request: Request) -> models.UploadAnswer:
    """Takes images (also in a zip) and starts a job over them. Status 422 where no image is among the files."""
    here.jobs.check_weights()
    async with here.uploads_gate:
        with here.uploads.desk() as (folder, room):
            parts = PartsToFiles(request.headers.get("content-type", ""), folder, room)
            try:
                async for piece in request.stream():
                    await run_in_threadpool(parts.write, piece)
                received = parts.finish()
            except ClientDisconnect as error:
                raise ApiError(400, "cut", "the upload was cut short") from error
            finally:
                parts.close()
            images, refused = await run_in_threadpool(here.uploads.admit, received, folder, room)
    here.catalogue.look_again()
    if not images:
        raise ApiError(422, "no_images", "no DICOM, PNG, TIFF, JPEG or PGM image is among the files")
    job_id = await run_in_threadpool(here.jobs.submit, images, {"sets": []})
    return models.UploadAnswer(job_id=job_id, images=images, refused=refused)


@router.get("/jobs")
def jobs(here: Here) -> list[models.Job]:
    """The last jobs, newest first."""
    return here.jobs.latest()


@router.post("/jobs", status_code=202, responses={**NOT_FOUND, **_QUEUE})
def start_job(here: Here, wanted: models.JobRequest) -> models.JobStarted:
    """Analyses images; those that were analysed before get new findings."""
    if wanted.images == "all":
        ids = [e.image_id for e in here.catalogue.entries() if e.path is not None]
    else:
        ids = list(dict.fromkeys(wanted.images))
        if any(here.catalogue.entry(i).path is None for i in ids):
            raise not_found("image file")
    if not ids:
        raise ApiError(409, "no_images", "there are no images to analyse")
    return models.JobStarted(job_id=here.jobs.submit(ids, {"sets": sets_of(wanted.settings)}))


@router.get("/jobs/{job_id}", responses=NOT_FOUND)
def job(here: Here, job_id: JobId) -> models.Job:
    """One job."""
    return here.jobs.get(job_id)


@router.post("/jobs/{job_id}/cancel", status_code=202, responses={**NOT_FOUND, **refusals(s409="It has ended already")})
def cancel(here: Here, job_id: JobId) -> models.Job:
    """Cancels a job; what it has done stays."""
    return here.jobs.cancel(job_id)


@router.post("/dicomweb/search", responses=_SERVERS)
async def search(here: Here, query: models.StudyQuery) -> models.SearchAnswer:
    """Looks for studies at a DICOMweb server. A POST, so that nothing of a patient is ever in a URL of this service."""
    async with here.search_gate:
        return models.SearchAnswer(studies=await run_in_threadpool(here.dicomweb.search, query))


@router.post("/dicomweb/import", status_code=202, responses={**refusals(s404="No DICOMweb server was named"), **_QUEUE})
def import_study(here: Here, wanted: models.ImportRequest) -> models.JobStarted:
    """Fetches a study's images from a DICOMweb server and analyses them."""
    source = {"server": here.dicomweb.server(wanted.server), "study_instance_uid": wanted.study_instance_uid}
    return models.JobStarted(job_id=here.jobs.submit([], {"sets": sets_of(wanted.settings)}, source))
