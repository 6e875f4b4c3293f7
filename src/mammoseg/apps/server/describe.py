"""Images and studies as the service describes them."""

from __future__ import annotations

from typing import Literal, cast

from mammoseg.apps.server import models
from mammoseg.apps.server.catalogue import Catalogue, Entry
from mammoseg.apps.server.results import Results
from mammoseg.apps.server.truth import Truths
from mammoseg.apps.server.views import name_says
from mammoseg.io.stored import StoredHeader
from mammoseg.types import DatasetItem


class Describer:
    """Puts together what is known of an image. weights: whether there are any, to make layers with."""

    def __init__(self, catalogue: Catalogue, results: Results, truths: Truths, weights: bool) -> None:
        self._catalogue, self._results, self._truths, self._weights = catalogue, results, truths, weights

    def image(self, entry: Entry, sure: bool = False) -> models.Image:
        """The image as the viewer needs it. sure: findings are checked against the file's hash (see `Catalogue.found`)."""
        header = self._catalogue.header(entry)
        found = self._catalogue.found(entry, sure)
        document = found.document if found is not None else None
        told = document["image"] if document is not None else {}
        side, view, _ = name_says(entry.name)
        spacing = header.spacing_mm or told.get("spacing_mm")
        status = cast(models.Status, document["status"]) if document is not None else "pending"
        return models.Image(
            image_id=entry.image_id,
            study_id=self._catalogue.study_id(entry),
            name=entry.name,
            laterality=cast(Literal["L", "R"] | None, header.laterality or told.get("laterality") or side),
            view_position=header.view_position or told.get("view_position") or view,
            height=header.height or told.get("height"),
            width=header.width or told.get("width"),
            spacing_mm=list(spacing) if spacing else None,
            bits_stored=header.bits_stored,
            signed=header.signed,
            photometric_interpretation=_photometric(header),
            window=None if header.window is None else models.Window(center=header.window[0], width=header.window[1]),
            voi_function=cast(Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"], header.voi_function),
            rescale=models.Rescale(slope=header.slope, intercept=header.intercept),
            status=status,
            reason=document["reason"] if document is not None else self._catalogue.why_none(entry),
            lesions=len(document["lesions"]) if document is not None and status == "processed" else None,
            seen_in_training=told.get("seen_in_training"),
            has_pixels=entry.path is not None,
            has_truth=self.truth(entry) is not None,
            has_layers=self._weights and entry.path is not None and status == "processed",
            uploaded=entry.uploaded,
            formats=self._results.formats(entry, found),
        )

    def study(self, study_id: str, entries: list[Entry]) -> models.Study:
        """A study and its images."""
        return models.Study(
            study_id=study_id,
            label=self._catalogue.label(entries),
            images=[e.image_id for e in entries],
            formats=self._results.study_formats(entries),
        )

    def truth(self, entry: Entry) -> DatasetItem | None:
        """The truth of an image, where a data set gives it."""
        header = self._catalogue.header(entry)
        return self._truths.item(entry, (header.height, header.width))


def _photometric(header: StoredHeader) -> Literal["MONOCHROME1", "MONOCHROME2"]:
    return "MONOCHROME1" if header.photometric_interpretation == "MONOCHROME1" else "MONOCHROME2"
