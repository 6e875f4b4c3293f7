"""Content items of structured reports (PS3.3 C.17.3) and the document around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from mammoseg.io.dicom_results.codes import item
from mammoseg.io.dicom_results.maker import Maker, plain
from mammoseg.io.dicom_results.objects import Kind, complete, decimal
from mammoseg.io.dicom_results.shapes import Points
from mammoseg.io.dicom_results.source import SourceImage

Items = Iterable[Dataset]
CONTAINS, PROPERTIES, MODIFIER = "CONTAINS", "HAS PROPERTIES", "HAS CONCEPT MOD"
OBSERVED, ACQUIRED, INFERRED, SELECTED = "HAS OBS CONTEXT", "HAS ACQ CONTEXT", "INFERRED FROM", "SELECTED FROM"


def _item(relationship: str | None, value_type: str, name: Code | None, children: Items) -> Dataset:
    ds = Dataset()
    if relationship is not None:
        ds.RelationshipType = relationship
    ds.ValueType = value_type
    if name is not None:
        ds.ConceptNameCodeSequence = [item(name)]
    below = list(children)
    if below:
        ds.ContentSequence = below
    return ds


def container(relationship: str | None, name: Code, children: Items, template: str | None = None) -> Dataset:
    """A CONTAINER, its parts separate. template: of PS3.16, where it heads one."""
    ds = _item(relationship, "CONTAINER", name, children)
    ds.ContinuityOfContent = "SEPARATE"
    if template is not None:
        used = Dataset()
        used.MappingResource, used.TemplateIdentifier = "DCMR", template
        ds.ContentTemplateSequence = [used]
    return ds


def code(relationship: str, name: Code, value: Code, children: Items = ()) -> Dataset:
    """A CODE."""
    ds = _item(relationship, "CODE", name, children)
    ds.ConceptCodeSequence = [item(value)]
    return ds


def text(relationship: str, name: Code, value: str) -> Dataset:
    """A TEXT, in ASCII."""
    ds = _item(relationship, "TEXT", name, ())
    ds.TextValue = plain(value)
    return ds


def uidref(relationship: str, name: Code, value: str) -> Dataset:
    """A UIDREF."""
    ds = _item(relationship, "UIDREF", name, ())
    ds.UID = value
    return ds


def date(relationship: str, name: Code, value: str) -> Dataset:
    """A DATE."""
    ds = _item(relationship, "DATE", name, ())
    ds.Date = value
    return ds


def time(relationship: str, name: Code, value: str) -> Dataset:
    """A TIME."""
    ds = _item(relationship, "TIME", name, ())
    ds.Time = value
    return ds


def num(relationship: str, name: Code, value: float, unit: Code) -> Dataset:
    """A NUM."""
    measured = Dataset()
    measured.NumericValue = decimal(value)
    measured.MeasurementUnitsCodeSequence = [item(unit)]
    ds = _item(relationship, "NUM", name, ())
    ds.MeasuredValueSequence = [measured]
    return ds


def scoord(relationship: str, name: Code, points: Points, children: Items) -> Dataset:
    """A SCOORD: a POINT where there is one point (x, y), else a POLYLINE."""
    ds = _item(relationship, "SCOORD", name, children)
    ds.GraphicType = "POINT" if len(points) == 1 else "POLYLINE"
    ds.GraphicData = [float(v) for v in np.asarray(points, dtype=np.float32).ravel()]
    return ds


def image(relationship: str, source: SourceImage, children: Items = ()) -> Dataset:
    """An IMAGE."""
    ds = _item(relationship, "IMAGE", None, children)
    ds.ReferencedSOPSequence = [source.reference]
    return ds


def reference(relationship: str, position: Sequence[int]) -> Dataset:
    """A by-reference relationship to the content item at `position` of the tree, counted from 1, the root first."""
    ds = Dataset()
    ds.RelationshipType = relationship
    ds.ReferencedContentItemIdentifier = list(position)
    return ds


def document(kind: Kind, root: Dataset, sources: Sequence[SourceImage], maker: Maker, unread: int) -> Dataset:
    """An SR document: the content tree under its root, the header, and the images as evidence.

    sources: all images of the study, in order. unread: how many of them were not analysed; the document is PARTIAL then.
    """
    ds = Dataset()
    ds.update(root)
    complete(ds, kind, sources[0], maker, max(s.when for s in sources))
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.CompletionFlag = "PARTIAL" if unread else "COMPLETE"
    if unread:
        ds.CompletionFlagDescription = f"{unread} of {len(sources)} images were not analysed"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.CurrentRequestedProcedureEvidenceSequence = [_evidence(sources)]
    return ds


def _evidence(sources: Sequence[SourceImage]) -> Dataset:
    """The images by series, as an item of Current Requested Procedure Evidence Sequence."""
    series: dict[str, list[Dataset]] = {}
    for source in sources:
        series.setdefault(source.series_instance_uid, []).append(source.reference)
    ds = Dataset()
    ds.StudyInstanceUID = sources[0].study_instance_uid
    ds.ReferencedSeriesSequence = []
    for uid, references in series.items():
        one = Dataset()
        one.SeriesInstanceUID, one.ReferencedSOPSequence = uid, references
        ds.ReferencedSeriesSequence.append(one)
    return ds
