"""What a DICOM header says about the image: spacing, side, view, grey values, and what kind of object it is.

Every reader tolerates missing, empty and malformed elements. No value that could name a patient is read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from mammoseg.errors import DecodeError, NotAMammogramError, NotAnImageError
from mammoseg.io.grayscale import Grayscale, Lut, VoiFunction, Window
from mammoseg.types import Spacing

# CID 4014 "View for Mammography": SNOMED CT and its older SRT codes to the abbreviations of (0018,5101) View Position.
VIEW_CODES = {
    "399260004": "ML", "R-10224": "ML", "399368009": "MLO", "R-10226": "MLO", "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO", "399162004": "CC", "R-10242": "CC", "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO", "399192008": "XCCL", "Y-X1770": "XCCL",
    "399101009": "XCCM", "Y-X1771": "XCCM", "399265009": "XCC", "R-1024A": "XCC", "R-1024B": "XCC",
}  # fmt: skip
_VIEW_WORDS = {
    "CRANIOCAUDAL": "CC", "MEDIOLATERALOBLIQUE": "MLO", "MEDIOLATERAL": "ML", "LATEROMEDIAL": "LM",
    "LATEROMEDIALOBLIQUE": "LMO", "CAUDOCRANIAL": "FB",
}  # fmt: skip
_VIEWS = frozenset(VIEW_CODES.values()) | {"XCCL", "XCCM", "AT", "CV", "TAN", "RCC", "LCC", "RMLO", "LMLO"}

_MG_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.1.2.1")
_MG_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
_TOMOSYNTHESIS = ("1.2.840.10008.5.1.4.1.1.13.1.3", "1.2.840.10008.5.1.4.1.1.13.1.4", "1.2.840.10008.5.1.4.1.1.13.1.5")
_PROJECTION_CLASSES = (  # film scans, older CR mammograms and re-exports lie in these
    "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
)  # fmt: skip
# Prefixes: directory, SR and KO, presentation states, segmentation and raw data, encapsulated, RT, waveforms.
_NO_IMAGE_CLASSES = (
    "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.11.", "1.2.840.10008.5.1.4.1.1.66",
    "1.2.840.10008.5.1.4.1.1.104.", "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.481.5",
    "1.2.840.10008.5.1.4.1.1.9.",
)  # fmt: skip
_NO_IMAGE_MODALITIES = frozenset({"SR", "PR", "KO", "SEG", "DOC", "RTSTRUCT", "RTPLAN", "PLAN", "REG", "FID", "AU", "ECG"})
_MODALITIES = _NO_IMAGE_MODALITIES | {
    "MG", "CT", "MR", "US", "NM", "PT", "XA", "RF", "BI", "BMD", "CR", "DX", "RG", "SC", "OT", "FILM", "DD", "ES", "GM",
    "SM", "XC", "OP", "OCT", "OPT", "IO", "PX", "IVUS", "EPS", "HD", "TG", "LS", "ST", "DG", "RTIMAGE", "RTDOSE",
}  # fmt: skip
_SPACING_LEAST, _SPACING_MOST = 0.001, 10.0  # mm
_FACTOR_LEAST, _FACTOR_MOST = 0.5, 10.0
_PERHAPS_MODALITIES = frozenset({"CR", "DX", "RG", "SC", "OT", "FILM", "DD"})


def value(ds: Dataset, keyword: str) -> Any:
    """The element's value, or None where it is missing, empty or cannot be parsed."""
    try:
        found = ds.get(keyword)
    except Exception:  # pydicom converts on access and raises anything on damaged values
        return None
    return None if found is None or (isinstance(found, (str, bytes)) and not found) else found


def text(ds: Dataset, keyword: str) -> str:
    """A code string in capitals, "" where missing; the first of several values."""
    found = value(ds, keyword)
    if found is not None and not isinstance(found, (str, bytes, int, float)):
        found = next(iter(found), "") if hasattr(found, "__iter__") else ""
    return str(found or "").strip().upper()


def numbers(ds: Dataset, keyword: str) -> list[float]:
    """All values of a numeric element as finite floats; [] where missing or malformed."""
    found = value(ds, keyword)
    if found is None:
        return []
    items = list(found) if hasattr(found, "__iter__") and not isinstance(found, (str, bytes)) else [found]
    try:
        out = [float(v) for v in items]
    except (TypeError, ValueError):
        return []
    return out if all(math.isfinite(v) for v in out) else []


def integer(ds: Dataset, keyword: str) -> int | None:
    """The (first) value as an integer, or None."""
    found = numbers(ds, keyword)
    return int(found[0]) if found else None


def sequence_item(ds: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence, or None."""
    found = value(ds, keyword)
    try:
        return found[0] if found is not None and len(found) else None
    except (TypeError, IndexError, KeyError):
        return None


def spacing(ds: Dataset) -> tuple[Spacing | None, str | None]:
    """(row, column) spacing in mm at the breast and where it came from; (None, None) where unknown.

    Calibrated Pixel Spacing (PS3.3 10.7.1.3: with a Pixel Spacing Calibration Type, or different from Imager Pixel Spacing)
    is taken as it stands. Otherwise Imager Pixel Spacing, measured at the detector, is divided by the Estimated Radiographic
    Magnification Factor. Film scans may carry Nominal Scanned Pixel Spacing only. Values that cannot be (0.001 to 10 mm, a
    factor of 0.5 to 10) are passed over.
    """
    pixel, imager = _pair(ds, "PixelSpacing"), _pair(ds, "ImagerPixelSpacing")
    calibrated = text(ds, "PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL")
    differs = imager is not None and pixel is not None and not np.allclose(pixel, imager, rtol=1e-3)
    if pixel is not None and (calibrated or differs or imager is None):
        return pixel, "PixelSpacing"
    if imager is not None:
        factor = next(iter(numbers(ds, "EstimatedRadiographicMagnificationFactor")), 0.0)
        if _FACTOR_LEAST <= factor <= _FACTOR_MOST:
            source = "ImagerPixelSpacing/EstimatedRadiographicMagnificationFactor"
            return (imager[0] / factor, imager[1] / factor), source
        return imager, "ImagerPixelSpacing"
    nominal = _pair(ds, "NominalScannedPixelSpacing")
    return (nominal, "NominalScannedPixelSpacing") if nominal is not None else (None, None)


def _pair(ds: Dataset, keyword: str) -> Spacing | None:
    found = numbers(ds, keyword)
    if len(found) == 1:
        found = found * 2
    return (found[0], found[1]) if len(found) == 2 and all(_SPACING_LEAST <= v <= _SPACING_MOST for v in found) else None


def laterality(ds: Dataset) -> str | None:
    """ "L" or "R" from Image Laterality, else Laterality, else the view's words ("RCC"); None where unknown or both."""
    for keyword in ("ImageLaterality", "Laterality", "FrameLaterality"):
        side = text(ds, keyword)
        if side in ("L", "LEFT", "R", "RIGHT"):
            return side[0]
    view = text(ds, "ViewPosition")
    return view[0] if view in ("RCC", "LCC", "RMLO", "LMLO") else None


def view_position(ds: Dataset) -> str | None:
    """ "CC", "MLO", ... from View Position, else from View Code Sequence; None where it is no view of a breast we know.

    Other words of the header are not passed on: a damaged or hand-filled one may hold anything.
    """
    word = text(ds, "ViewPosition").replace(" ", "").replace("-", "").replace("_", "")
    if word in ("RCC", "LCC", "RMLO", "LMLO"):
        return word[1:]
    if word in _VIEW_WORDS or word in _VIEWS:
        return _VIEW_WORDS.get(word, word)
    item = sequence_item(ds, "ViewCodeSequence")
    return VIEW_CODES.get(text(item, "CodeValue")) if item is not None else None


def made_by_us(ds: Dataset) -> bool:
    """Whether a data set is a result of this program (a phantom, which has another model name, is none)."""
    return text(ds, "Manufacturer") == text(ds, "ManufacturerModelName") == "MAMMOSEG"


def check_kind(ds: Dataset) -> None:
    """Raises `NotAnImageError` for objects without an image, `NotAMammogramError` for other images.

    A missing Modality is tolerated as long as nothing else speaks against a mammogram; CR, DX, SC and the like need a word
    for it (body part, view or SOP class).
    """
    modality, sop = text(ds, "Modality"), text(ds, "SOPClassUID")
    if made_by_us(ds):
        raise NotAnImageError("expected a mammogram, got a result of mammoseg itself; give the mammograms alone")
    if modality in _NO_IMAGE_MODALITIES or sop.startswith(_NO_IMAGE_CLASSES):
        kind = _shown_class(sop) if sop else _shown_modality(modality)
        raise NotAnImageError(f"expected an image, got a DICOM object without one ({kind}); give the mammograms themselves")
    if sop in _TOMOSYNTHESIS:
        raise NotAMammogramError("expected a two-dimensional mammogram, got tomosynthesis; give the 2D or synthetic view")
    intent = text(ds, "PresentationIntentType")
    linear = text(ds, "PixelIntensityRelationship") == "LIN" and not _names_voi(ds)
    if not intent and linear and sop != _MG_FOR_PROCESSING:
        raise NotAMammogramError(
            "expected an image for presentation, got what looks like raw detector data (no Presentation Intent Type, "
            "intensity linear in the X-rays, no window); export the FOR PRESENTATION image of this view"
        )
    if intent == "FOR PROCESSING" or sop == _MG_FOR_PROCESSING:
        raise NotAMammogramError(
            "expected an image for presentation, got raw detector data (Presentation Intent Type FOR PROCESSING); "
            "export the FOR PRESENTATION image of this view"
        )
    if modality == "MG":
        return
    body = text(ds, "BodyPartExamined")
    word_for_it = "BREAST" in body or sop in _MG_CLASSES or (view_position(ds) or "") in _VIEWS
    if modality and modality not in _PERHAPS_MODALITIES:
        raise NotAMammogramError(f"expected a mammogram (Modality MG), got {_shown_modality(modality)}; give mammograms only")
    if modality and not word_for_it:
        raise NotAMammogramError(
            f"expected a mammogram, got {_shown_modality(modality)} without a breast as body part or a mammographic view; "
            "set Modality to MG if it is one"
        )
    if not modality and not word_for_it and (body or (sop and sop not in _PROJECTION_CLASSES)):
        what = "another body part than the breast" if body else _shown_class(sop)
        raise NotAMammogramError(f"expected a mammogram, got no Modality and {what}; set Modality to MG if it is one")


def _names_voi(ds: Dataset) -> bool:
    """Whether the header says how to show the image: a window or a VOI LUT."""
    return _window(ds) is not None or sequence_item(ds, "VOILUTSequence") is not None


def _shown_modality(modality: str) -> str:
    """For messages: defined terms only, since a damaged header may hold anything here, the patient's name included."""
    return f"Modality {modality}" if modality in _MODALITIES else "an unknown Modality"


def _shown_class(sop: str) -> str:
    """For messages: the name of a SOP class of the standard."""
    name = str(UID(sop).name)
    return name if name != sop else "an unknown SOP class"


def grayscale(ds: Dataset, bits_stored: int, signed: bool, endian: str = "<") -> Grayscale:
    """The grey-value description of a header. Raises `DecodeError` where it cannot be meant (slope 0, short tables).

    A VOI LUT is preferred to windows, the first of several is taken; windows that cannot be (width 0) are ignored.
    """
    slope, intercept = _rescale(ds, "RescaleSlope", 1.0), _rescale(ds, "RescaleIntercept", 0.0)
    if slope == 0:
        raise DecodeError("expected a Rescale Slope other than 0, got 0; the header is damaged, export the image again")
    item = sequence_item(ds, "ModalityLUTSequence")
    modality_lut = _lut(item, signed, endian) if item is not None else None
    negative = modality_lut is None and (signed or intercept < 0 or slope < 0)
    item = sequence_item(ds, "VOILUTSequence")
    voi = _lut(item, negative, endian) if item is not None else None
    return Grayscale(
        bits_stored=bits_stored,
        signed=signed,
        slope=slope,
        intercept=intercept,
        modality_lut=modality_lut,
        voi=voi if voi is not None else _window(ds),
        inverted=text(ds, "PhotometricInterpretation") == "MONOCHROME1",
    )


def _rescale(ds: Dataset, keyword: str, default: float) -> float:
    """The value, `default` where there is none. Raises `DecodeError` where what is there is no number."""
    found = numbers(ds, keyword)
    if found:
        return found[0]
    raw = ds.get_item(keyword)
    held = None if raw is None else raw.value
    if held is not None and (held.strip(b"\0 ") if isinstance(held, bytes) else str(held).strip()):
        name = {"RescaleSlope": "Rescale Slope", "RescaleIntercept": "Rescale Intercept"}[keyword]
        raise DecodeError(f"expected a number as {name}, got none; the header is damaged, export the image again")
    return default


def _window(ds: Dataset) -> Window | None:
    centers, widths = numbers(ds, "WindowCenter"), numbers(ds, "WindowWidth")
    if not centers or not widths:
        return None
    words: dict[str, VoiFunction] = {"LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}
    try:
        return Window(centers[0], widths[0], words.get(text(ds, "VOILUTFunction"), "LINEAR"))
    except ValueError:
        return None


def _lut(item: Dataset, signed_input: bool, endian: str) -> Lut | None:
    """A look-up table from its sequence item; None where it is empty. Entries may be words, or bytes packed in words."""
    descriptor = numbers(item, "LUTDescriptor")
    data = value(item, "LUTData")
    if len(descriptor) != 3 or data is None:
        return None
    entries, first, bits = int(descriptor[0]) % 65536 or 65536, int(descriptor[1]), int(descriptor[2])
    first = first - 65536 if signed_input and first >= 32768 else first
    first = first + 65536 if not signed_input and first < 0 else first
    if isinstance(data, (bytes, bytearray)):
        packed = len(data) < 2 * entries
        values = np.frombuffer(bytes(data), np.uint8 if packed else f"{endian}u2")
    else:
        words = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
        packed = bits <= 8 and len(words) < entries
        values = words.astype(f"{endian}u2").view(np.uint8) if packed else words.astype(np.uint16)
    if len(values) < entries or not 1 <= bits <= 16:
        raise DecodeError(
            f"expected a look-up table of {entries} entries of up to 16 bits, got {len(values)} of {bits} bits; "
            "export the image again"
        )
    return Lut(values[:entries].astype(np.float64), first, bits)
