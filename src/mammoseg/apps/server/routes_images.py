"""Images, studies, stored values, findings and what belongs to them."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from mammoseg import __version__
from mammoseg.apps.outputs import FINDINGS
from mammoseg.apps.server import models
from mammoseg.apps.server.catalogue import Entry, stamp_of
from mammoseg.apps.server.errors import ApiError, not_found
from mammoseg.apps.server.pixels import MAX_LEVEL, PlaneResponse
from mammoseg.apps.server.results import IMAGE_FORMATS, STUDY_FORMATS, Download
from mammoseg.apps.server.service import Here, Service
from mammoseg.apps.server.settings import is_loopback
from mammoseg.apps.server.truth import outlines
from mammoseg.pipeline import settings_of

router = APIRouter()
NOTICE = "Research software. Not a medical device, not for clinical use."
OPAQUE = "^[0-9a-f]{24}$"
ImageId = Annotated[str, Path(pattern=OPAQUE, description="As /images lists it")]
StudyId = Annotated[str, Path(pattern=OPAQUE, description="As /studies lists it")]
ImageFormat = Literal["json", "mask", "overlay", "seg", "pr", "sc"]
StudyFormat = Literal["zip", "cadsr", "sr"]


def refusals(**words: str) -> dict[int | str, dict[str, Any]]:
    """Documents answers of a route: `s404="why"`."""
    return {int(k[1:]): {"model": models.ErrorAnswer, "description": v} for k, v in words.items()}


NOT_FOUND = refusals(s404="There is no such thing here")
ASIDE = refusals(s409="The image cannot be used: the message says why", s503="The server is ending", s504="It took too long")


def _binary(*kinds: str, json: bool = False) -> dict[int | str, dict[str, Any]]:
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    if json:
        content["application/json"] = {"schema": {"type": "object"}}
    return {200: {"content": content, "description": "The file"}}


@router.get("/info")
def info(here: Here) -> models.Info:
    """Version, weights and limits."""
    bundle, limits = here.bundle, here.settings.limits
    operating = None
    if bundle is not None:
        fusion = settings_of(bundle).fusion
        operating = models.Operating(min_score=fusion.lesion_score_min, fusion=fusion.method, lam=fusion.lam)
    return models.Info(
        version=__version__,
        notice=NOTICE,
        bundle=None if bundle is None else models.BundleInfo(name=bundle.name, sha256=bundle.sha256),
        operating=operating,
        formats=list(IMAGE_FORMATS),
        study_formats=list(STUDY_FORMATS),
        limits=models.UploadLimits(upload=limits.upload, file=limits.file, files=limits.files),
        dicomweb=list(here.settings.dicomweb),
    )


@router.get("/studies")
def studies(here: Here) -> list[models.Study]:
    """The images that belong together."""
    return [here.describer.study(study, entries) for study, entries in here.catalogue.studies().items()]


@router.get(
    "/studies/{study_id}/results/{format}",
    response_class=Response,
    responses={
        **_binary("application/zip", "application/dicom"),
        **NOT_FOUND,
        **ASIDE,
    },
)
async def study_result(here: Here, study_id: StudyId, format: StudyFormat) -> Response:
    """A study's findings to take away: everything (zip), or a report."""
    entries = (await run_in_threadpool(here.catalogue.studies)).get(study_id)
    if entries is None:
        raise not_found("study")
    async with here.results_gate:
        return _file(await run_in_threadpool(here.results.of_study, study_id, entries, format))


@router.get("/images")
def images(here: Here) -> list[models.Image]:
    """All images."""
    return [here.describer.image(entry) for entry in here.catalogue.entries()]


@router.get("/images/{image_id}", responses=NOT_FOUND)
def image(here: Here, image_id: ImageId) -> models.Image:
    """One image."""
    return here.describer.image(here.catalogue.entry(image_id), sure=True)


@router.delete("/images/{image_id}", status_code=204, responses={**NOT_FOUND, **refusals(s409="It is not ours to remove")})
def remove(here: Here, image_id: ImageId) -> None:
    """Removes an image that was uploaded or imported, with its results."""
    if not here.catalogue.entry(image_id).uploaded:
        raise ApiError(409, "not_uploaded", "only images that were uploaded or imported can be removed")
    if here.jobs.concerns(image_id):
        raise ApiError(409, "in_use", "a job works on this image: cancel it first")
    here.uploads.remove(image_id)
    here.catalogue.look_again()


@router.get(
    "/images/{image_id}/pixels",
    response_class=Response,
    responses={**_binary("application/octet-stream"), 304: {"description": "Not changed"}, **NOT_FOUND, **ASIDE},
)
def pixels(here: Here, request: Request, image_id: ImageId, level: Annotated[int, Query(ge=0, le=MAX_LEVEL)] = 0) -> Response:
    """Stored values, little-endian u16 or i16, row by row. Each level halves rows and columns (rounded up).

    Headers: X-Height, X-Width, X-Signed (0 or 1), X-Window-Center, X-Window-Width (modality values),
    X-Photometric-Interpretation, ETag. Status 409 where the image cannot be shown.
    """
    entry = here.catalogue.entry(image_id)
    path = entry.path
    modified, size = (0, 0) if path is None else stamp_of(path)
    if path is None or not modified:
        raise not_found("image file")
    etag = '"' + hashlib.sha256(f"{image_id}/{modified}/{size}/{level}".encode()).hexdigest()[:32] + '"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    near = request.client is not None and is_loopback(request.client.host)
    squeeze = not near and "gzip" in request.headers.get("accept-encoding", "")
    load = partial(here.pixels.plane, path, level, here.catalogue.header(entry).plain)
    return PlaneResponse(load, here.planes_gate, etag, squeeze, here.settings.limits.stall_s)


@router.get("/images/{image_id}/findings", responses={200: {"model": models.Findings}, **NOT_FOUND})
def findings(here: Here, image_id: ImageId) -> Response:
    """findings.json as it was written; 404 with the code `pending` where there is none."""
    found = here.catalogue.found(here.catalogue.entry(image_id), sure=True)
    if found is None:
        raise ApiError(404, "pending", "this image has no findings yet")
    return Response((found.folder / FINDINGS).read_bytes(), media_type="application/json")


@router.get(
    "/images/{image_id}/layers",
    responses={200: {"model": models.Layers}, **NOT_FOUND, **ASIDE},
)
async def layers(here: Here, image_id: ImageId) -> Response:
    """The detections at each scale and the fusion mask M_s, worked out with the pipeline."""
    entry = await run_in_threadpool(here.catalogue.entry, image_id)
    async with here.layers_gate:
        data = await run_in_threadpool(_layers, here, entry)
    return Response(data, media_type="application/json")


def _layers(here: Service, entry: Entry) -> bytes:
    return here.layers.of(entry, here.catalogue.found(entry, sure=True))


@router.get("/images/{image_id}/truth", responses=NOT_FOUND)
def truth(here: Here, image_id: ImageId) -> models.Truth:
    """The true masses, where a data set gives them."""
    item = here.describer.truth(here.catalogue.entry(image_id))
    if item is None:
        raise not_found("truth")
    return outlines(item)


@router.get(
    "/images/{image_id}/results/{format}",
    response_class=Response,
    responses={**_binary("image/png", "application/dicom", json=True), **NOT_FOUND, **ASIDE},
)
async def image_result(here: Here, image_id: ImageId, format: ImageFormat) -> Response:
    """An image's findings to take away."""
    entry = await run_in_threadpool(here.catalogue.entry, image_id)
    async with here.results_gate:
        return _file(await run_in_threadpool(here.results.of_image, entry, format))


def _file(download: Download) -> Response:
    return FileResponse(download.path, media_type=download.media_type, filename=download.name)
