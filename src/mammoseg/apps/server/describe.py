"""Images and studies as the service describes them."""

from __future__ import annotations

from typing import Literal, cast

from mammoseg.apps.server import models
from mammoseg.apps.server.catalogue import Catalogue, Entry
from mammoseg.apps.server.views import name_says
from mammoseg.io.stored import StoredHeader


def describe_image(catalogue: Catalogue, entry: Entry, sure: bool = False) -> models.Image:
    """The image as the viewer needs it. sure: whether findings are checked against the file's hash (see `Catalogue.found`)."""
    header = catalogue.header(entry)
    found = catalogue.found(entry, sure)
    document = found.document if found is not None else None
    image = document["image"] if document is not None else {}
    side, view, _ = name_says(entry.name)
    view_known = header.view_position or image.get("view_position")
    spacing = header.spacing_mm or image.get("spacing_mm")
    status = cast(models.Status, document["status"]) if document is not None else "pending"
    return models.Image(
        image_id=entry.image_id,
        study_id=catalogue.study_id(entry),
        name=entry.name,
        laterality=cast(Literal["L", "R"] | None, header.laterality or image.get("laterality") or side),
        view_position=view_known or view,
        height=header.height or image.get("height"),
        width=header.width or image.get("width"),
        spacing_mm=list(spacing) if spacing else None,
        bits_stored=header.bits_stored,
        signed=header.signed,
        photometric_interpretation=_photometric(header),
        window=None if header.window is None else models.Window(center=header.window[0], width=header.window[1]),
        voi_function=cast(Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"], header.voi_function),
        rescale=models.Rescale(slope=header.slope, intercept=header.intercept),
        status=status,
        reason=document["reason"] if document is not None else None,
        lesions=len(document["lesions"]) if document is not None and status == "processed" else None,
        seen_in_training=image.get("seen_in_training"),
        has_pixels=entry.path is not None,
        has_truth=False,
        has_layers=entry.path is not None and status == "processed",
        uploaded=entry.uploaded,
        formats=["json"] if document is not None else [],
    )


def _photometric(header: StoredHeader) -> Literal["MONOCHROME1", "MONOCHROME2"]:
    return "MONOCHROME1" if header.photometric_interpretation == "MONOCHROME1" else "MONOCHROME2"


def describe_study(catalogue: Catalogue, study_id: str, entries: list[Entry]) -> models.Study:
    """A study and its images."""
    return models.Study(study_id=study_id, label=catalogue.label(entries), images=[e.image_id for e in entries], formats=[])
