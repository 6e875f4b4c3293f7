"""Findings as DICOM objects that a PACS understands: SEG, Mammography CAD SR, measurement SR, presentation state, SC.

One writer a file; all share `source` (the image they refer to), `maker` (who made them, derived identifiers) and `objects`
(common modules, bytes). Nothing here reads the clock or draws by chance: the same findings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from mammoseg.io.dicom_attributes import made_by_us
from mammoseg.io.dicom_results.cad_sr import cad_sr
from mammoseg.io.dicom_results.measurement_report import measurement_report
from mammoseg.io.dicom_results.objects import KINDS, to_bytes
from mammoseg.io.dicom_results.presentation_state import presentation_state
from mammoseg.io.dicom_results.secondary_capture import secondary_capture
from mammoseg.io.dicom_results.segmentation import segmentation
from mammoseg.io.dicom_results.source import SourceImage, read_source
from mammoseg.io.dicom_results.studies import Study, StudyImage, study_of
from mammoseg.types import Findings, Mammogram

__all__ = [
    "IMAGE_FORMATS",
    "STUDY_FORMATS",
    "SourceImage",
    "Study",
    "StudyImage",
    "image_result",
    "made_by_us",
    "read_source",
    "results_of",
    "study_of",
    "study_result",
]

IMAGE_FORMATS = ("seg", "pr", "sc")
STUDY_FORMATS = ("cadsr", "sr")


def results_of(findings_status: str, n_lesions: int, formats: Iterable[str]) -> tuple[str, ...]:
    """Which objects an image with a source gets: none unless it was processed, a segmentation only with lesions."""
    if findings_status != "processed":
        return ()
    return tuple(f for f in formats if f in IMAGE_FORMATS and (f != "seg" or n_lesions > 0))


def image_result(format: str, source: SourceImage, findings: Findings, mammogram: Mammogram) -> bytes:
    """One object of one processed image as the bytes of a DICOM file. Raises `DecodeError` where the source cannot be read."""
    if format == "seg":
        ds = segmentation(source, findings)
    elif format == "pr":
        ds = presentation_state(source, findings)
    elif format == "sc":
        ds = secondary_capture(source, findings, mammogram)
    else:
        raise ValueError(f"image_result: expected one of {IMAGE_FORMATS}, got {format!r}")
    return to_bytes(ds, KINDS[format])


def study_result(format: str, study: Study) -> bytes:
    """One report of a whole study as the bytes of a DICOM file."""
    if format not in STUDY_FORMATS:
        raise ValueError(f"study_result: expected one of {STUDY_FORMATS}, got {format!r}")
    return to_bytes(cad_sr(study) if format == "cadsr" else measurement_report(study), KINDS[format])
