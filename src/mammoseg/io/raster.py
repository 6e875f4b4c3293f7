"""PNG, TIFF, JPEG and PGM to f32 grey values: told by their first bytes, at full bit depth, checked for damage.

OpenCV decodes, but does not say when a file is cut short; so the container is walked first. 8-bit values are divided by 255;
deeper ones by the range in use (`grayscale.full_range`: 12-bit data in a 16-bit file keep their grey values).

The native frame is the image as stored, row by row: an EXIF or TIFF orientation tag turns nothing, so that boxes and masks
fit the file's own pixels (a viewer that heeds the tag may show the picture turned).
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mammoseg.errors import DecodeError, NotAMammogramError
from mammoseg.io.checks import check_content, check_shape, check_size
from mammoseg.io.dicom_codec import stream_size
from mammoseg.io.grayscale import Grayscale, render
from mammoseg.types import FloatImage

Kind = Literal["png", "jpeg", "tiff", "pgm"]
_CUT = "the {} is damaged or cut short; copy the file again"
_COLOUR_SPREAD = 0.06  # of the range: channels of a grey picture differ less, up to JPEG's rounding
_GAP = rb"(?:\s|#[^\n]*\n)++"  # possessive: linear in a hostile header
_PGM_HEADER = re.compile(rb"P([25])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")


@dataclass(frozen=True)
class _Container:
    """What the file says before it is decoded."""

    height: int
    width: int
    white_is_zero: bool = False


def raster_kind(head: bytes) -> Kind | None:
    """The format of a file from its first bytes, or None where it is none of ours.

    >>> raster_kind(b"\\x89PNG\\r\\n\\x1a\\n")
    'png'
    """
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if re.match(rb"P[25][\s#]", head):
        return "pgm"
    return None


def raster_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of the stored image that a PNG, JPEG, TIFF or PGM declares; None where it declares none.

    data: the file's bytes; for a PNG the first 24 suffice.

    >>> raster_size(b"P5 640 480 255 ")
    (480, 640)
    """
    kind = raster_kind(data[:16])
    if kind == "png" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if kind == "tiff":
        tags = _tiff_tags(data)
        return (tags[257], tags[256]) if 256 in tags and 257 in tags else None
    if kind == "pgm":
        header = _PGM_HEADER.match(data)
        return (int(header[3]), int(header[2])) if header is not None else None
    return stream_size(data)


def decode_raster(data: bytes) -> FloatImage:
    """The whole file's bytes to f32[H, W] in [0, 1], bright = dense.

    Raises `DecodeError` (damaged, cut short, unknown) or `NotAMammogramError` (colour, blank, too small, several pages; with
    the image's size).
    """
    try:
        return _grey(data)
    except NotAMammogramError as error:
        error.size = raster_size(data)
        raise


def stored_raster(data: bytes) -> tuple[NDArray[np.integer], int, bool]:
    """The file's own values, u8 or u16 [H, W] or [H, W, channels], the highest there can be, and whether 0 is white.

    Raises as `decode_raster` does, but for what the picture shows.
    """
    kind = raster_kind(data[:16])
    if kind is None:
        raise DecodeError("expected a PNG, TIFF, JPEG or PGM image as the file's name says, got other data; export it again")
    if kind == "pgm":
        values, top = _pgm(data)
        return values.astype(np.uint8 if top < 256 else np.uint16), top, False
    container = {"png": _png, "jpeg": _jpeg, "tiff": _tiff}[kind](data)
    check_size(container.height, container.width)
    check_shape(container.height, container.width)
    array = _decode(data, kind, container)
    return array, int(np.iinfo(array.dtype).max), container.white_is_zero


def _grey(data: bytes) -> FloatImage:
    values, top, white_is_zero = stored_raster(data)
    if raster_kind(data[:16]) == "pgm":
        grey = (values.astype(np.float64) / top).astype(np.float32)
    else:
        grey = to_grey(np.iinfo(values.dtype).max - values if white_is_zero else values)
    check_content(grey)
    return grey


def to_grey(array: NDArray[np.generic]) -> FloatImage:
    """u8 or u16 [H, W], or [H, W, 3 or 4] with channels that are equal up to JPEG's rounding, to f32[H, W] in [0, 1].

    A fourth channel is opacity over black. Raises `NotAMammogramError` for colour.
    """
    alpha: NDArray[np.generic] | None = None
    if array.ndim == 3 and array.shape[2] in (2, 4):
        alpha, array = array[..., -1], array[..., :-1]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    top = 255 if array.dtype == np.uint8 else 65535
    if array.ndim == 3:
        low, high = array.min(axis=2), array.max(axis=2)
        spread = (high - low)[:: max(1, array.shape[0] // 1024), :: max(1, array.shape[1] // 1024)]
        if float(np.quantile(spread, 0.99)) > _COLOUR_SPREAD * top:
            raise NotAMammogramError(
                "colour picture: expected a grey mammogram, got different channels; give the original image"
            )
        array = low if not spread.any() and bool((low == high).all()) else _mean(array)
    if array.dtype == np.uint8:
        grey: FloatImage = array.astype(np.float32) / np.float32(255)
    else:
        grey = render(array.astype(np.uint16), Grayscale(bits_stored=16))
    if alpha is not None and not bool((alpha == top).all()):
        grey = grey * (alpha.astype(np.float32) / np.float32(top))
    return grey


def _mean(array: NDArray[np.generic]) -> NDArray[np.generic]:
    mean: NDArray[np.float32] = np.rint(array.astype(np.float32).mean(axis=2))
    return mean.astype(array.dtype)


def _decode(data: bytes, kind: Kind, container: _Container) -> NDArray[np.integer]:
    if kind == "tiff":
        data = _plain_tiff(data)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DecodeError(_CUT.format(kind.upper())) from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if array is None:
        raise DecodeError(f"the {kind.upper()} is damaged or of a kind not supported; save it as an 8- or 16-bit grey PNG")
    if array.dtype not in (np.uint8, np.uint16):
        raise DecodeError(f"expected 8 or 16 bits a pixel, got {array.dtype}; save it as an 8- or 16-bit grey PNG")
    if array.shape[:2] != (container.height, container.width):
        raise DecodeError(_CUT.format(kind.upper()))
    return np.ascontiguousarray(array)


def _png(data: bytes) -> _Container:
    position, size, ended = 8, (0, 0), False
    while position + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(checksum) < 4 or zlib.crc32(body, zlib.crc32(name)) != struct.unpack(">I", checksum)[0]:
            raise DecodeError(_CUT.format("PNG"))
        if name == b"IHDR" and length == 13:
            width, height = struct.unpack(">II", body[:8])
            size = height, width
        elif name == b"IEND":
            ended = True
            break
        position += 12 + length
    if not ended:
        raise DecodeError(_CUT.format("PNG"))
    return _Container(*size)


def _jpeg(data: bytes) -> _Container:
    size = stream_size(data)
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    if size is None or data.rfind(b"\xff\xd9") <= position:
        raise DecodeError(_CUT.format("JPEG"))
    return _Container(*size)


def _tiff(data: bytes) -> _Container:
    if data[2:3] == b"+" or data[3:4] == b"+":
        raise DecodeError("BigTIFF is not supported; save the image as TIFF or PNG")
    tags = _tiff_tags(data)
    if 256 not in tags or 257 not in tags:
        raise DecodeError(_CUT.format("TIFF"))
    if tags[-1]:
        raise NotAMammogramError("expected one image, got a TIFF of several pages; give each view as its own file")
    return _Container(tags[257], tags[256], tags.get(262) == 0)


def _tiff_tags(data: bytes) -> dict[int, int]:
    """The short and long single values of the first directory by tag; -1 holds the next directory's offset."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        start = struct.unpack(order + "I", data[4:8])[0]
        count = struct.unpack(order + "H", data[start : start + 2])[0]
        tags = {-1: struct.unpack(order + "I", data[start + 2 + 12 * count : start + 6 + 12 * count])[0]}
        for i in range(count):
            entry = data[start + 2 + 12 * i : start + 14 + 12 * i]
            tag, kind, number = struct.unpack(order + "HHI", entry[:8])
            if number == 1 and kind in (3, 4):
                tags[tag] = struct.unpack(order + ("H" if kind == 3 else "I"), entry[8 : 10 if kind == 3 else 12])[0]
    except struct.error:
        return {}
    return tags


def _plain_tiff(data: bytes) -> bytes:
    """The TIFF with its orientation and "white is zero" tags neutralised: OpenCV heeds them for some depths only."""
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack(order + "I", data[4:8])[0]
    out = bytearray(data)
    for i in range(struct.unpack(order + "H", data[start : start + 2])[0]):
        at = start + 2 + 12 * i
        tag, kind, number, value = struct.unpack(order + "HHIH", data[at : at + 10])
        if kind == 3 and number == 1 and (tag == 274 or (tag == 262 and value == 0)):
            out[at + 8 : at + 10] = struct.pack(order + "H", 1)
    return bytes(out)


def _pgm(data: bytes) -> tuple[NDArray[np.integer], int]:
    """Netpbm P2 (text) and P5 (binary, big-endian above 255): the values [H, W] and the greatest there may be."""
    header = _PGM_HEADER.match(data)
    if header is None:
        raise DecodeError(_CUT.format("PGM"))
    width, height, top = int(header[2]), int(header[3]), int(header[4])
    check_size(height, width)
    check_shape(height, width)
    if not 1 <= top <= 65535:
        raise DecodeError(f"expected a PGM with a greatest value up to 65535, got {top}; export the image again")
    if header[1] == b"5":
        kind = np.dtype(np.uint8 if top < 256 else ">u2")
        body = data[header.end() : header.end() + height * width * kind.itemsize]
        values = np.frombuffer(body, kind) if len(body) % kind.itemsize == 0 else np.zeros(0, dtype=kind)
    else:
        try:
            values = np.array(re.sub(rb"#[^\n]*", b"", data[header.end() :]).split()[: height * width], dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise DecodeError(_CUT.format("PGM")) from error
    if len(values) != height * width or int(values.max()) > top or int(values.min()) < 0:
        raise DecodeError(_CUT.format("PGM"))
    return np.asarray(values).reshape(height, width), top
