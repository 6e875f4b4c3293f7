"""What an image file says of itself without decoding its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from mammoseg.errors import DatasetError
from mammoseg.io.dicom_attributes import spacing
from mammoseg.io.raster import raster_kind, raster_size
from mammoseg.types import Size, Spacing

_TAGS = [
    "Rows", "Columns", "BitsAllocated", "SeriesInstanceUID", "SeriesDescription", "PixelSpacing", "ImagerPixelSpacing",
    "PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor", "NominalScannedPixelSpacing",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Of a DICOM file. size: (H, W). description: of the series, "" where there is none."""

    size: Size
    bits_allocated: int
    series_uid: str
    description: str
    spacing_mm: Spacing | None


def read_header(path: Path) -> Header:
    """The header of a DICOM file of a public, de-identified data set. Raises DatasetError where it cannot be read."""
    try:
        data = pydicom.dcmread(path, specific_tags=_TAGS, stop_before_pixels=True)
        return Header(
            size=(int(data.Rows), int(data.Columns)),
            bits_allocated=int(data.BitsAllocated),
            series_uid=str(data.get("SeriesInstanceUID", "")),
            description=str(data.get("SeriesDescription", "") or ""),
            spacing_mm=spacing(data)[0],
        )
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError, AttributeError, InvalidDicomError) as error:
        raise DatasetError(f"{path}: its DICOM header cannot be read ({type(error).__name__}); restore the file") from error


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of the stored image of a PNG, JPEG, TIFF, PGM or DICOM file from its header; orientation tags turn nothing.

    Raises DatasetError where the file is missing or is no image.
    """
    size = None
    try:
        with path.open("rb") as file:
            head = file.read(132)
            kind = raster_kind(head)
            if kind is not None:
                size = raster_size(head if kind == "png" else head + file.read())
        if head[128:132] == b"DICM":
            data = pydicom.dcmread(path, specific_tags=["Rows", "Columns"], stop_before_pixels=True)
            size = int(data.Rows), int(data.Columns)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError, AttributeError, InvalidDicomError) as error:
        raise DatasetError(f"{path}: its size cannot be read: {error}") from error
    if size is None:
        raise DatasetError(f"{path}: not an image that can be read (PNG, JPEG, TIFF, PGM, DICOM)")
    return size
