"""Images, studies, stored values and findings."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from mammoseg import __version__
from mammoseg.apps.server import models
from mammoseg.apps.server.catalogue import stamp_of
from mammoseg.apps.server.describe import describe_image, describe_study
from mammoseg.apps.server.errors import ApiError, not_found
from mammoseg.apps.server.pixels import MAX_LEVEL, PlaneResponse
from mammoseg.apps.server.service import Here
from mammoseg.apps.server.settings import is_loopback
from mammoseg.pipeline import settings_of

router = APIRouter()
ImageId = Annotated[str, Path(pattern="^[0-9a-f]{24}$", description="As /images lists it")]
NOTICE = "Research software. Not a medical device, not for clinical use."
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": models.ErrorAnswer, "description": "There is no such thing"}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("/info")
def info(here: Here) -> models.Info:
    """Version, weights and limits."""
    bundle, limits = here.bundle, here.settings.limits
    fusion = settings_of(bundle).fusion if bundle is not None else None
    return models.Info(
        version=__version__,
        notice=NOTICE,
        bundle=None if bundle is None else models.BundleInfo(name=bundle.name, sha256=bundle.sha256),
        operating=None
        if fusion is None
        else models.Operating(min_score=fusion.lesion_score_min, fusion=fusion.method, lam=fusion.lam),
        formats=["json"],
        study_formats=[],
        limits=models.UploadLimits(upload=limits.upload, file=limits.file, files=limits.files),
        dicomweb=list(here.settings.dicomweb),
    )


@router.get("/studies")
def studies(here: Here) -> list[models.Study]:
    """The images that belong together."""
    return [describe_study(here.catalogue, study, entries) for study, entries in here.catalogue.studies().items()]


@router.get("/images")
def images(here: Here) -> list[models.Image]:
    """All images."""
    return [describe_image(here.catalogue, entry) for entry in here.catalogue.entries()]


@router.get("/images/{image_id}", responses=NOT_FOUND)
def image(here: Here, image_id: ImageId) -> models.Image:
    """One image."""
    return describe_image(here.catalogue, here.catalogue.entry(image_id), sure=True)


@router.get(
    "/images/{image_id}/pixels",
    response_class=Response,
    responses={**NOT_FOUND, 200: {"content": _BYTES, "description": "Stored values"}, 304: {"description": "Not changed"}},
)
def pixels(here: Here, request: Request, image_id: ImageId, level: Annotated[int, Query(ge=0, le=MAX_LEVEL)] = 0) -> Response:
    """Stored values, little-endian u16 or i16, row by row. Each level halves rows and columns (rounded up).

    Headers: X-Height, X-Width, X-Signed (0 or 1), X-Window-Center, X-Window-Width (in modality values), ETag.
    """
    path = here.catalogue.entry(image_id).path
    if path is None:
        raise not_found("image file")
    modified, size = stamp_of(path)
    if not modified:
        raise not_found("image file")
    etag = '"' + hashlib.sha256(f"{image_id}/{modified}/{size}/{level}".encode()).hexdigest()[:32] + '"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    near = request.client is not None and is_loopback(request.client.host)
    squeeze = not near and "gzip" in request.headers.get("accept-encoding", "")
    return PlaneResponse(partial(here.pixels.plane, path, level), here.gate, etag, squeeze, here.settings.limits.stall_s)


@router.get("/images/{image_id}/findings", responses=NOT_FOUND)
def findings(here: Here, image_id: ImageId) -> models.Findings:
    """findings.json as it was written."""
    found = here.catalogue.found(here.catalogue.entry(image_id), sure=True)
    if found is None:
        raise ApiError(404, "pending", "this image has no findings yet")
    return Response(json.dumps(found.document), media_type="application/json")  # type: ignore[return-value]
