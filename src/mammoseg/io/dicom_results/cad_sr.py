"""Mammography CAD SR, TID 4000 (PS3.16): what was detected in a study, on which images, and on which not.

How outcomes differ in codes: an image processed is among the Successful Detections, one that failed among the Failed
Detections, one that was rejected (never attempted) in the Image Library alone. The overall summary speaks of "all
algorithms" only where every image was processed.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from mammoseg.io.dicom_results import codes
from mammoseg.io.dicom_results.content import (
    ACQUIRED,
    CONTAINS,
    INFERRED,
    MODIFIER,
    OBSERVED,
    PROPERTIES,
    SELECTED,
    code,
    container,
    date,
    document,
    image,
    num,
    reference,
    scoord,
    text,
    time,
    uidref,
)
from mammoseg.io.dicom_results.maker import Maker
from mammoseg.io.dicom_results.objects import KINDS
from mammoseg.io.dicom_results.shapes import center, closed_outline, percent, tracking_uid
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.io.dicom_results.studies import Study, StudyImage
from mammoseg.types import Lesion

_LIBRARY = (1, 2)  # where the Image Library stands in the tree: second below the root


def cad_sr(study: Study) -> Dataset:
    """The CAD report of one study, all of its images and all of their lesions."""
    root = container(
        None,
        codes.MAMMOGRAPHY_CAD_REPORT,
        [
            code(MODIFIER, codes.LANGUAGE, codes.ENGLISH),
            container(CONTAINS, codes.IMAGE_LIBRARY, [_library_entry(s) for s in study.sources]),
            _summary(study),
            _detections(study),
            code(CONTAINS, codes.SUMMARY_OF_ANALYSES, codes.NOT_ATTEMPTED),
        ],
        template="4000",
    )
    return document(KINDS["cadsr"], root, study.sources, study.maker, study.n_unread)


def _library_entry(source: SourceImage) -> Dataset:
    """TID 4020, as far as the header knows."""
    items = []
    if source.laterality is not None:
        items.append(code(ACQUIRED, codes.IMAGE_LATERALITY, codes.BREAST_OF_SIDE[source.laterality]))
    if source.view_position in codes.VIEWS:
        items.append(code(ACQUIRED, codes.IMAGE_VIEW, codes.VIEWS[source.view_position]))
    if source.orientation is not None:
        items.append(text(ACQUIRED, codes.ORIENTATION_ROW, source.orientation[0]))
        items.append(text(ACQUIRED, codes.ORIENTATION_COLUMN, source.orientation[1]))
    study_date, study_time = source.study_when
    if study_date:
        items.append(date(ACQUIRED, codes.STUDY_DATE, study_date))
    if study_time:
        items.append(time(ACQUIRED, codes.STUDY_TIME, study_time))
    if source.spacing_mm is not None:
        items.append(num(ACQUIRED, codes.HORIZONTAL_SPACING, source.spacing_mm[1], codes.MILLIMETER))
        items.append(num(ACQUIRED, codes.VERTICAL_SPACING, source.spacing_mm[0], codes.MILLIMETER))
    if source.size is not None:
        items.append(num(ACQUIRED, codes.PIXEL_ROWS, source.size[0], codes.PIXELS))
        items.append(num(ACQUIRED, codes.PIXEL_COLUMNS, source.size[1], codes.PIXELS))
    return image(CONTAINS, source, items)


def _summary(study: Study) -> Dataset:
    """TID 4001: the overall summary, in words too (TID 4002), and the findings (TID 4003), one impression a lesion."""
    found = study.n_lesions > 0
    if not study.numbers("processed"):
        value = codes.NONE_SUCCEEDED
    elif study.n_unread:
        value = codes.NOT_ALL_WITH_FINDINGS if found else codes.NOT_ALL_WITHOUT_FINDINGS
    else:
        value = codes.ALL_WITH_FINDINGS if found else codes.ALL_WITHOUT_FINDINGS
    children = [text(PROPERTIES, codes.IMPRESSION_DESCRIPTION, study.description()), *_algorithm(study.maker)]
    for number, one in enumerate(study.images, start=1):
        for lesion in one.findings.lesions:
            finding = _single_image_finding(lesion, one, number, study.maker)
            intent = code(MODIFIER, codes.RENDERING_INTENT, codes.PRESENTATION_REQUIRED)
            children.append(container(INFERRED, codes.INDIVIDUAL_IMPRESSION, [intent, finding]))
    return code(CONTAINS, codes.CAD_SUMMARY, value, children)


def _single_image_finding(lesion: Lesion, one: StudyImage, number: int, maker: Maker) -> Dataset:
    """TID 4006 with TID 4019 and 4021. number: of the image in the library, from 1.

    The certainty is that there is a mass: Probability of Cancer is never given.
    """
    outline = closed_outline(lesion, one.size)
    children = [
        code(MODIFIER, codes.RENDERING_INTENT, codes.PRESENTATION_REQUIRED),
        text(OBSERVED, codes.TRACKING_IDENTIFIER, f"image {number} mass {lesion.id}"),
        uidref(OBSERVED, codes.TRACKING_UID, tracking_uid(lesion, one.source, maker)),
        *_algorithm(maker),
        num(PROPERTIES, codes.CERTAINTY_OF_FINDING, percent(lesion.score), codes.PERCENT),
        scoord(PROPERTIES, codes.CENTER, center(outline), [reference(SELECTED, (*_LIBRARY, number))]),
        scoord(PROPERTIES, codes.OUTLINE, outline, [reference(SELECTED, (*_LIBRARY, number))]),
    ]
    return code(CONTAINS, codes.SINGLE_IMAGE_FINDING, codes.MAMMOGRAPHIC_DENSITY, children)


def _detections(study: Study) -> Dataset:
    """Summary of Detections with TID 4015 and 4017."""
    done, failed = study.numbers("processed"), study.numbers("failed")
    if not done and not failed:
        return code(CONTAINS, codes.SUMMARY_OF_DETECTIONS, codes.NOT_ATTEMPTED)
    value = codes.FAILED if not done else codes.PARTIALLY_SUCCEEDED if failed else codes.SUCCEEDED
    lists = ((codes.SUCCESSFUL_DETECTIONS, done), (codes.FAILED_DETECTIONS, failed))
    children = [container(INFERRED, name, [_performed(numbers, study.maker)]) for name, numbers in lists if numbers]
    return code(CONTAINS, codes.SUMMARY_OF_DETECTIONS, value, children)


def _performed(numbers: list[int], maker: Maker) -> Dataset:
    children = [
        *_algorithm(maker),
        text(PROPERTIES, codes.ALGORITHM_PARAMETERS, maker.algorithm_parameters),
        *(reference(PROPERTIES, (*_LIBRARY, n)) for n in numbers),
    ]
    return code(CONTAINS, codes.DETECTION_PERFORMED, codes.MAMMOGRAPHIC_DENSITY, children)


def _algorithm(maker: Maker) -> list[Dataset]:
    """TID 4019."""
    return [
        text(PROPERTIES, codes.ALGORITHM_NAME, maker.algorithm_name),
        text(PROPERTIES, codes.ALGORITHM_VERSION, maker.algorithm_version),
    ]
