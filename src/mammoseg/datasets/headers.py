"""The size of an image file without decoding its pixels."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from mammoseg.errors import DatasetError
from mammoseg.io.raster import raster_kind, raster_size


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
