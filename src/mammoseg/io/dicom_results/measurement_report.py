"""Comprehensive SR with an Imaging Measurement Report, TID 1500 (PS3.16): the sizes of every lesion of a study."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset

from mammoseg.io.dicom_results import codes
from mammoseg.io.dicom_results.content import (
    ACQUIRED,
    CONTAINS,
    MODIFIER,
    OBSERVED,
    SELECTED,
    code,
    container,
    document,
    image,
    num,
    scoord,
    text,
    uidref,
)
from mammoseg.io.dicom_results.maker import NAME, Maker
from mammoseg.io.dicom_results.objects import KINDS
from mammoseg.io.dicom_results.shapes import closed_outline, percent, tracking_uid
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.io.dicom_results.studies import REMARK, Study, StudyImage
from mammoseg.types import Lesion


def measurement_report(study: Study) -> Dataset:
    """The measurement report of one study; what became of each image stands among the Qualitative Evaluations."""
    groups = [
        _group(lesion, one, number, study.maker)
        for number, one in enumerate(study.images, start=1)
        for lesion in one.findings.lesions
    ]
    outcomes = [text(CONTAINS, codes.COMMENT, words) for words in (*study.outcomes(), REMARK)]
    root = container(
        None,
        codes.IMAGING_MEASUREMENT_REPORT,
        [
            code(MODIFIER, codes.LANGUAGE, codes.ENGLISH),
            *_observer(study.maker),
            code(MODIFIER, codes.PROCEDURE_REPORTED, codes.IMAGING_PROCEDURE),
            _library(study.sources),
            container(CONTAINS, codes.IMAGING_MEASUREMENTS, [*_algorithm(study.maker), *groups]),
            container(CONTAINS, codes.QUALITATIVE_EVALUATIONS, outcomes),
        ],
        template="1500",
    )
    return document(KINDS["sr"], root, study.sources, study.maker, study.n_unread)


def _observer(maker: Maker) -> list[Dataset]:
    """TID 1001 with a device as observer (TID 1004)."""
    return [
        code(OBSERVED, codes.OBSERVER_TYPE, codes.DEVICE),
        uidref(OBSERVED, codes.DEVICE_UID, maker.device_uid),
        text(OBSERVED, codes.DEVICE_NAME, f"{NAME} {maker.version}"),
        text(OBSERVED, codes.DEVICE_MANUFACTURER, NAME),
        text(OBSERVED, codes.DEVICE_MODEL, NAME),
        text(OBSERVED, codes.DEVICE_SERIAL, maker.serial_number),
    ]


def _library(sources: Iterable[SourceImage]) -> Dataset:
    """TID 1600 with TID 1601."""
    group = container(CONTAINS, codes.IMAGE_LIBRARY_GROUP, [image(CONTAINS, s, _described(s)) for s in sources])
    return container(CONTAINS, codes.IMAGE_LIBRARY, [group])


def _described(source: SourceImage) -> list[Dataset]:
    """TID 1602 and 1603, as far as the header knows."""
    modality = codes.MODALITIES.get(source.modality)
    items = [] if modality is None else [code(ACQUIRED, codes.MODALITY, modality)]
    items.append(code(ACQUIRED, codes.TARGET_REGION, codes.BREAST))
    if source.laterality is not None:
        items.append(code(ACQUIRED, codes.IMAGE_LATERALITY, codes.SIDE[source.laterality]))
    if source.size is not None:
        items.append(num(ACQUIRED, codes.PIXEL_ROWS, source.size[0], codes.PIXELS))
        items.append(num(ACQUIRED, codes.PIXEL_COLUMNS, source.size[1], codes.PIXELS))
    if source.view_position in codes.VIEWS:
        items.append(code(ACQUIRED, codes.IMAGE_VIEW, codes.VIEWS[source.view_position]))
    if source.spacing_mm is not None:
        items.append(num(ACQUIRED, codes.HORIZONTAL_SPACING, source.spacing_mm[1], codes.MILLIMETER))
        items.append(num(ACQUIRED, codes.VERTICAL_SPACING, source.spacing_mm[0], codes.MILLIMETER))
    return items


def _group(lesion: Lesion, one: StudyImage, number: int, maker: Maker) -> Dataset:
    """TID 1410: one lesion's region and measurements.

    Where spacing is unknown there are no sizes, and the evaluations say why: a NUM without a value, which the standard
    would have, is more than some readers can take.
    """
    side = one.source.laterality
    modifiers = [] if side is None else [code(MODIFIER, codes.LATERALITY, codes.SIDE[side])]
    measured = (
        (codes.LONG_AXIS, lesion.long_axis_mm, codes.MILLIMETER),
        (codes.SHORT_AXIS, lesion.short_axis_mm, codes.MILLIMETER),
        (codes.AREA, lesion.area_mm2, codes.SQUARE_MILLIMETER),
    )
    items = [
        text(OBSERVED, codes.TRACKING_IDENTIFIER, f"image {number} mass {lesion.id}"),
        uidref(OBSERVED, codes.TRACKING_UID, tracking_uid(lesion, one.source, maker)),
        code(CONTAINS, codes.FINDING, codes.MASS),
        scoord(CONTAINS, codes.IMAGE_REGION, closed_outline(lesion, one.size), [image(SELECTED, one.source)]),
        code(MODIFIER, codes.FINDING_SITE, codes.BREAST, modifiers),
        *(num(CONTAINS, name, round(value, 4), unit) for name, value, unit in measured if value is not None),
        num(CONTAINS, codes.CERTAINTY_OF_FINDING, percent(lesion.score), codes.PERCENT),
    ]
    return container(CONTAINS, codes.MEASUREMENT_GROUP, items, template="1410")


def _algorithm(maker: Maker) -> list[Dataset]:
    """TID 4019."""
    return [
        text(MODIFIER, codes.ALGORITHM_NAME, maker.algorithm_name),
        text(MODIFIER, codes.ALGORITHM_VERSION, maker.algorithm_version),
        text(MODIFIER, codes.ALGORITHM_PARAMETERS, maker.algorithm_parameters),
    ]
