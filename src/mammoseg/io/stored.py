"""An image file as it is stored: its own values, untouched, with what is needed to show them.

For viewers: what `load_mammogram` gives is f32 in [0, 1] after the greyscale pipeline; here the values stay the integers of
the file. What is no mammogram can be looked at too, as long as it is one monochrome picture.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mammoseg.errors import DecodeError, ImageError, NotAMammogramError, NotAnImageError
from mammoseg.io import dicom_attributes as attributes
from mammoseg.io.checks import check_size
from mammoseg.io.dicom import open_dataset, padding_of, used_bits
from mammoseg.io.dicom_codec import check_deflated, stored_values
from mammoseg.io.grayscale import Grayscale, Lut, Window, table_of
from mammoseg.io.load import sniff
from mammoseg.io.raster import raster_size, stored_raster
from mammoseg.types import Spacing

_FILE_MAX = 1 << 30
_HEAD = 1 << 20
_EDGE = 0.02  # of the grey range: a look-up table is shown as the window between these two of its values
_HEADER_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "Manufacturer", "ManufacturerModelName", "PresentationIntentType",
    "PixelIntensityRelationship", "BodyPartExamined", "StudyInstanceUID", "SeriesInstanceUID",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "PhotometricInterpretation", "SamplesPerPixel", "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing",
    "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor", "NominalScannedPixelSpacing",
    "ImageLaterality", "Laterality", "FrameLaterality", "ViewPosition", "ViewCodeSequence", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
)  # fmt: skip


_UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True)
class StoredHeader:
    """What a file says of its image, without decoding it; None where it does not say.

    slope, intercept: from stored to modality values. window: (center, width) in modality values. voi_function: DICOM's word.
    study: Study Instance UID; it names a patient's study and is never to be shown. identified: whether the file has the UIDs
    by which other objects can refer to it. plain: whether its values lie in it unpacked, so that no decoder is needed.
    no_image: a DICOM object without an image, or a result of this program.
    """

    height: int | None = None
    width: int | None = None
    bits_stored: int | None = None
    signed: bool = False
    photometric_interpretation: str = "MONOCHROME2"
    slope: float = 1.0
    intercept: float = 0.0
    window: tuple[float, float] | None = None
    voi_function: str = "LINEAR"
    spacing_mm: Spacing | None = None
    laterality: str | None = None
    view_position: str | None = None
    is_dicom: bool = False
    study: str | None = None
    identified: bool = False
    plain: bool = False
    no_image: bool = False


@dataclass(frozen=True, eq=False)
class StoredImage:
    """values: u16 or i16 [H, W], as stored. grayscale: how they become grey.

    lowest, table: f64 in [0, 1] (bright = dense) for each stored value from `lowest` on, as `load_mammogram` shows them.
    """

    values: NDArray[np.integer]
    grayscale: Grayscale
    lowest: int
    table: NDArray[np.float64]

    @property
    def window(self) -> tuple[float, float]:
        """(center, width) in modality values: the file's own window where it is of use, else what amounts to it.

        A look-up table is approached by the window between its first and last greys.
        """
        voi = self.grayscale.voi
        if isinstance(voi, Window) and self._shows(voi):
            return voi.center, voi.width
        grey = 1.0 - self.table if self.grayscale.inverted else self.table
        stored = np.arange(self.lowest, self.lowest + len(self.table), dtype=np.float64)
        values = stored if self.grayscale.modality_lut is not None else self.grayscale.modality(stored)
        if not isinstance(voi, Lut) and self.grayscale.modality_lut is None:
            return self._full_range(values, grey)
        inside = values[(grey > _EDGE) & (grey < 1.0 - _EDGE)]
        low, high = (float(inside.min()), float(inside.max())) if len(inside) else (float(values.min()), float(values.max()))
        return (low + high) / 2, max(1.0, high - low)

    def _shows(self, window: Window) -> bool:
        stored = np.arange(self.lowest, self.lowest + len(self.table), dtype=np.float64)
        grey = window.apply(self.grayscale.modality(stored))
        return bool(np.allclose(1.0 - grey if self.grayscale.inverted else grey, self.table))

    @staticmethod
    def _full_range(values: NDArray[np.float64], grey: NDArray[np.float64]) -> tuple[float, float]:
        """The window of a table that is a straight line between black and white."""
        middle = np.flatnonzero((grey > 0) & (grey < 1))
        if len(middle) < 2 or grey[middle[0]] == grey[middle[-1]]:
            return (float(values.min()) + float(values.max())) / 2, max(1.0, float(np.ptp(values)))
        a, b = middle[0], middle[-1]
        width = abs(float(values[b] - values[a]) / float(grey[b] - grey[a]))
        slope = float(grey[b] - grey[a]) / float(values[b] - values[a])
        low = float(values[a]) - float(grey[a]) / slope
        return low + width / 2 + 0.5, width + 1.0  # LINEAR: [c - 0.5 - (w - 1)/2, c - 0.5 + (w - 1)/2]


def read_header(path: Path) -> StoredHeader:
    """What the file at `path` says of its image. What cannot be read stays None; never raises for damaged files."""
    try:
        if sniff(path) == "dicom":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_deflated(path)
                return _dicom_header(
                    pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
                )
        with path.open("rb") as file:
            head = file.read(_HEAD)
        size = raster_size(head)
        return StoredHeader(*size) if size is not None else StoredHeader()
    except Exception:  # decoders raise anything on damaged headers; the reason is given when the image is read
        return StoredHeader()


def read_stored(path: Path) -> StoredImage:
    """The stored values of a DICOM, PNG, TIFF, JPEG or PGM file. Raises `DecodeError` or `NotAMammogramError`."""
    try:
        if path.stat().st_size > _FILE_MAX:
            raise DecodeError("expected an image file of at most 1 GiB, got a larger one; no mammogram is so large")
        if sniff(path) == "dicom":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _dicom(path)
        return _raster(path.read_bytes())
    except ImageError:
        raise
    except OSError as error:
        raise DecodeError("the file cannot be read; check that it is still there, and its permissions") from error
    except MemoryError as error:
        raise DecodeError("the image needs more memory than there is; no mammogram is so large") from error
    except Exception as error:
        raise DecodeError("the image makes no sense; the file is damaged, copy or export it again") from error


def _dicom_header(ds: Dataset) -> StoredHeader:
    found = StoredHeader(
        height=_positive(ds, "Rows"),
        width=_positive(ds, "Columns"),
        bits_stored=_positive(ds, "BitsStored"),
        signed=attributes.integer(ds, "PixelRepresentation") == 1,
        photometric_interpretation=_photometric(ds),
        spacing_mm=attributes.spacing(ds)[0],
        laterality=attributes.laterality(ds),
        view_position=attributes.view_position(ds),
        is_dicom=True,
        study=str(attributes.value(ds, "StudyInstanceUID") or "") or None,
        identified=all(attributes.value(ds, k) for k in _UIDS),
        plain=_is_plain(ds),
        no_image=_is_no_image(ds),
    )
    try:
        grey = attributes.grayscale(ds, found.bits_stored or 16, found.signed)
    except DecodeError:
        return found
    window = grey.voi if isinstance(grey.voi, Window) else None
    values: dict[str, Any] = {**found.__dict__, "slope": grey.slope, "intercept": grey.intercept}
    if window is not None:
        values |= {"window": (window.center, window.width), "voi_function": window.function}
    if grey.modality_lut is not None:
        values |= {"slope": 1.0, "intercept": 0.0, "window": None}
    return StoredHeader(**values)


def _is_plain(ds: Dataset) -> bool:
    syntax = str(getattr(ds, "file_meta", {}).get("TransferSyntaxUID", ImplicitVRLittleEndian))
    return syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


def _is_no_image(ds: Dataset) -> bool:
    try:
        attributes.check_kind(ds)
    except NotAnImageError:
        return True
    except NotAMammogramError:
        pass
    return False


def _positive(ds: Dataset, keyword: str) -> int | None:
    number = attributes.integer(ds, keyword)
    return number if number is not None and number > 0 else None


def _photometric(ds: Dataset) -> str:
    """MONOCHROME1 or MONOCHROME2; a damaged header may hold anything, and nothing else is shown."""
    return "MONOCHROME1" if attributes.text(ds, "PhotometricInterpretation") == "MONOCHROME1" else "MONOCHROME2"


def _dicom(path: Path) -> StoredImage:
    check_deflated(path)
    ds = open_dataset(path, pixels=True)
    rows, columns = _positive(ds, "Rows"), _positive(ds, "Columns")
    bits, allocated = _positive(ds, "BitsStored"), attributes.integer(ds, "BitsAllocated")
    one = (attributes.integer(ds, "NumberOfFrames") or 1) == 1 and (attributes.integer(ds, "SamplesPerPixel") or 1) == 1
    if rows is None or columns is None or not attributes.value(ds, "PixelData"):
        raise DecodeError("the file holds no image that can be shown")
    check_size(rows, columns)
    if not one or bits is None or allocated not in (8, 16) or bits > allocated:
        raise DecodeError("only single monochrome images of 8 or 16 bits can be shown")
    signed = attributes.integer(ds, "PixelRepresentation") == 1
    values = used_bits(stored_values(ds, rows, columns), ds, signed)
    endian = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    grey = attributes.grayscale(ds, bits, signed, endian)
    lowest, table = table_of(values, grey, padding_of(ds, values, bits, signed))
    return StoredImage(values.astype(np.int16 if signed else np.uint16), grey, lowest, table)


def _raster(data: bytes) -> StoredImage:
    array, top, white_is_zero = stored_raster(data)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array = array[..., :-1]  # opacity
    if array.ndim == 3:
        equal = bool((array == array[..., :1]).all())
        array = array[..., 0] if equal else np.rint(array.astype(np.float32).mean(axis=2)).astype(array.dtype)
    grey = Grayscale(bits_stored=top.bit_length(), inverted=white_is_zero)
    lowest, table = table_of(array.astype(np.uint16), grey)
    return StoredImage(array.astype(np.uint16), grey, lowest, table)
