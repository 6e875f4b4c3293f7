"""The size of an image file without decoding its pixels."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import pydicom
from pydicom.errors import InvalidDicomError

from mammoseg.errors import DatasetError


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a PNG, JPEG or DICOM from its header, of other formats by decoding; orientation tags are not applied.

    Raises DatasetError where the file is missing or is no image.
    """
    try:
        with path.open("rb") as file:
            head = file.read(132)
            if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
                width, height = struct.unpack(">II", head[16:24])
                return int(height), int(width)
            if head.startswith(b"\xff\xd8"):
                file.seek(2)
                return _jpeg_size(file.read())
        if head[128:132] == b"DICM":
            data = pydicom.dcmread(path, specific_tags=["Rows", "Columns"], stop_before_pixels=True)
            return int(data.Rows), int(data.Columns)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except (OSError, ValueError, AttributeError, IndexError, struct.error, InvalidDicomError) as error:
        raise DatasetError(f"{path}: its size cannot be read: {error}") from error
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DatasetError(f"{path}: not an image that can be read (PNG, JPEG, TIFF, PGM, DICOM)")
    return pixels.shape[0], pixels.shape[1]


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 0
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("a JPEG marker was expected")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return int(height), int(width)
        at += 2 + length
    raise ValueError("a JPEG without a frame header")
