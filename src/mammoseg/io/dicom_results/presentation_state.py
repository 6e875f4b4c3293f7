"""Grayscale Softcopy Presentation State: the source image as we showed it, with every outline as vector graphics."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from mammoseg.io.dicom_results.display import Display, as_linear, display_of
from mammoseg.io.dicom_results.maker import NOTICE, Maker, maker_of
from mammoseg.io.dicom_results.objects import KINDS, complete, decimal
from mammoseg.io.dicom_results.shapes import closed_outline, tracking_uid
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.io.grayscale import Lut, Window
from mammoseg.types import Findings, Lesion, Size, Spacing

LAYER = "MASSES"
_RED = [37767, 53021, 47545]  # CIELab


def presentation_state(source: SourceImage, findings: Findings) -> Dataset:
    """The presentation state of one processed image; without lesions it says that none was found.

    Graphics are in PIXEL units, whose origin is the top-left corner of the top-left pixel. Reads the source's pixels again
    to know the window; raises `DecodeError`.
    """
    size = int(findings.image.height or 0), int(findings.image.width or 0)
    maker = maker_of(findings)
    ds = Dataset()
    complete(ds, KINDS["pr"], source, maker)
    ds.ContentLabel, ds.ContentDescription = LAYER, NOTICE
    ds.PresentationCreationDate, ds.PresentationCreationTime = source.when
    for keyword in ("ContentDate", "ContentTime"):
        delattr(ds, keyword)  # no attributes of this IOD
    ds.ContentCreatorName = None
    ds.Laterality = source.laterality
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedImageSequence = source.series_instance_uid, [source.reference]
    ds.ReferencedSeriesSequence = [series]
    ds.DisplayedAreaSelectionSequence = [_displayed_area(source, size, findings.image.spacing_mm)]
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder, layer.GraphicLayerDescription = LAYER, 1, NOTICE
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(_RED)
    ds.GraphicLayerSequence = [layer]
    ds.GraphicAnnotationSequence = [_annotation(lesion, source, size, maker) for lesion in findings.lesions]
    if not findings.lesions:
        ds.GraphicAnnotationSequence = [_nothing_found(source, size)]
    _grayscale(ds, display_of(source))
    return ds


def _displayed_area(source: SourceImage, size: Size, spacing_mm: Spacing | None) -> Dataset:
    """The whole image, to fit the screen."""
    ds = Dataset()
    ds.ReferencedImageSequence = [source.reference]
    ds.DisplayedAreaTopLeftHandCorner = [1, 1]
    ds.DisplayedAreaBottomRightHandCorner = [size[1], size[0]]
    ds.PresentationSizeMode = "SCALE TO FIT"
    if spacing_mm is None:
        ds.PresentationPixelAspectRatio = [1, 1]
    else:
        ds.PresentationPixelSpacing = [decimal(s) for s in spacing_mm]
    return ds


def _annotation(lesion: Lesion, source: SourceImage, size: Size, maker: Maker) -> Dataset:
    points = closed_outline(lesion, size).astype(np.float32)
    outline = Dataset()
    outline.GraphicAnnotationUnits, outline.GraphicDimensions = "PIXEL", 2
    outline.NumberOfGraphicPoints = len(points)
    outline.GraphicData = [float(v) for v in points.ravel()]
    outline.GraphicType, outline.GraphicFilled = "POLYLINE", "N"
    outline.TrackingID, outline.TrackingUID = f"mass {lesion.id}", tracking_uid(lesion, source, maker)
    label = f"{lesion.id}: {lesion.score:.2f}"
    if lesion.long_axis_mm is not None:
        label += f"  {lesion.long_axis_mm:.0f} mm"
    ds = _on_layer(source)
    ds.TextObjectSequence = [_text(label, _caption_at(points, size))]
    ds.GraphicObjectSequence = [outline]
    return ds


def _caption_at(points: np.typing.NDArray[np.float32], size: Size) -> tuple[float, float]:
    """At the top of the outline, right of it; in the right half of the image left, lest the words run out of the image."""
    left, top = points.min(axis=0)
    right = points[:, 0].max()
    return float(right if left + right <= size[1] else left), float(top)


def _nothing_found(source: SourceImage, size: Size) -> Dataset:
    ds = _on_layer(source)
    ds.TextObjectSequence = [_text("no mass found", (size[1] * 0.02, size[0] * 0.05))]
    return ds


def _on_layer(source: SourceImage) -> Dataset:
    ds = Dataset()
    ds.GraphicLayer, ds.ReferencedImageSequence = LAYER, [source.reference]
    return ds


def _text(words: str, at: tuple[float, float]) -> Dataset:
    ds = Dataset()
    ds.AnchorPointAnnotationUnits, ds.AnchorPoint, ds.AnchorPointVisibility = "PIXEL", [np.float32(v).item() for v in at], "N"
    ds.UnformattedTextValue = words
    return ds


def _grayscale(ds: Dataset, display: Display) -> None:
    """Modality, VOI and presentation LUT. A presentation state replaces the image's own; what it lacks is the identity."""
    g = display.grayscale
    if g.modality_lut is not None:
        item = _lut(g.modality_lut, g.modality_lut.values, g.modality_lut.bits)
        item.ModalityLUTType = "US"
        ds.ModalityLUTSequence = [item]
    else:
        ds.RescaleIntercept, ds.RescaleSlope = decimal(g.intercept), decimal(g.slope)
        ds.RescaleType = "US"
    voi = Dataset()
    if isinstance(display.voi, Window):
        window = as_linear(display.voi)
        voi.WindowCenter, voi.WindowWidth = decimal(window.center), decimal(window.width)
        if window.function != "LINEAR":
            voi.VOILUTFunction = window.function
    else:
        # The entries over their own full scale, which a declared number of bits may miss: see `Lut.top`.
        values = np.rint((display.voi.values / display.voi.top).clip(0, 1) * 65535)
        voi.VOILUTSequence = [_lut(display.voi, values, 16)]
    ds.SoftcopyVOILUTSequence = [voi]
    ds.PresentationLUTShape = "INVERSE" if g.inverted else "IDENTITY"


def _lut(lut: Lut, values: np.typing.NDArray[np.float64], bits: int) -> Dataset:
    ds = Dataset()
    ds.add_new("LUTDescriptor", "SS" if lut.first < 0 else "US", [_descriptor(len(values), lut.first), lut.first, bits])
    ds.add_new("LUTData", "OW", np.rint(values).astype("<u2").tobytes())
    return ds


def _descriptor(entries: int, first: int) -> int:
    """The number of entries as the first value of a descriptor: 0 for 65536; a signed descriptor holds its 16 bits."""
    entries %= 65536
    return entries - 65536 if first < 0 and entries >= 32768 else entries
