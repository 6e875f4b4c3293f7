"""From a DICOM data set to its stored values, guarded against streams that lie about their size."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from mammoseg.errors import DecodeError, ImageError

# One decoder per syntax, never Pillow: it cannot keep 16 bits or signs everywhere, and pydicom advises against it.
_PLUGINS = {
    uid.RLELossless: "pydicom",
    uid.JPEGBaseline8Bit: "gdcm",
    uid.JPEGExtended12Bit: "gdcm",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
}
# What `read_dicom` reads.
TRANSFER_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    *_PLUGINS,
)
_INFLATED_MAX = 1 << 29
_PADDING_MOST = 1024  # bytes after the pixels that some writers add; a row of a mammogram has more
_DEFLATED = uid.DeflatedExplicitVRLittleEndian.encode()
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def check_deflated(path: Path) -> None:
    """Raises `DecodeError` for a deflated file that would unpack to more than 512 MiB. Reads nothing else."""
    with path.open("rb") as file:
        head = file.read(1024)
        if head[128:132] != b"DICM" or head[132:136] != b"\x02\0\0\0" or _DEFLATED not in head:
            return
        file.seek(144 + struct.unpack("<I", head[140:144])[0])
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := file.read(1 << 16):
            while chunk:
                try:
                    total += len(inflater.decompress(chunk, 1 << 24))
                except zlib.error as error:
                    raise DecodeError("the deflated data set is damaged or cut short; copy the file again") from error
                if total > _INFLATED_MAX:
                    raise DecodeError("the deflated data set unpacks to more than 512 MiB; no mammogram is so large")
                chunk = inflater.unconsumed_tail
        if not inflater.eof:
            raise DecodeError("the deflated data set is cut short; copy the file again")


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG, JPEG-LS or JPEG 2000 codestream declares, or None where no header is found."""
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 24:
        x1, y1, x0, y0 = struct.unpack(">4I", stream[8:24])
        return y1 - y0, x1 - x0
    frame = _jpeg_frame(stream)
    if frame is None:
        return None
    height, width = struct.unpack(">HH", stream[frame + 5 : frame + 9])
    return height, width


def stream_precision(stream: bytes) -> int | None:
    """Bits a value that a JPEG, JPEG-LS or JPEG 2000 codestream declares, or None where no header is found."""
    if stream[:4] == b"\xff\x4f\xff\x51":
        return (stream[42] & 0x7F) + 1 if len(stream) > 42 else None
    frame = _jpeg_frame(stream)
    return None if frame is None else stream[frame + 4]


def _jpeg_frame(stream: bytes) -> int | None:
    """Where the frame header (SOF) of a JPEG or JPEG-LS codestream begins, or None."""
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _JPEG_FRAMES:
            return position
        position += 2 + struct.unpack(">H", stream[position + 2 : position + 4])[0]
    return None


def rle_exceeds(frame: bytes, most: int) -> bool:
    """Whether a segment of an RLE frame (PS3.5 G) unpacks to more than `most` bytes. Unpacks nothing."""
    if len(frame) < 64:
        return False
    count = struct.unpack("<I", frame[:4])[0]
    starts = [*struct.unpack("<15I", frame[4:64])[: min(count, 15)], len(frame)]
    for at, end in pairwise(starts):
        total, position = 0, at
        while position + 1 < end:  # the last byte alone can unpack to nothing
            n = frame[position]
            length = n + 1 if n < 128 else 257 - n if n > 128 else 0
            total += length
            position += 1 + (length if n < 128 else n > 128)
        if total > most:
            return True
    return False


def _shown(syntax: uid.UID) -> str:
    """For messages: the name of a transfer syntax of the standard; a damaged header may hold anything here."""
    return str(syntax.name) if syntax in uid.AllTransferSyntaxes else "an unknown transfer syntax"


def _check_stream(ds: Dataset, syntax: uid.UID, rows: int, columns: int) -> None:
    """Raises `DecodeError` where the first frame's codestream is missing, cut short, or of another size or depth."""
    frame = next(generate_frames(ds.PixelData, number_of_frames=1), b"").rstrip(b"\0")
    if not frame:
        raise DecodeError("expected pixel data, got none; the file is cut short, copy it again")
    if syntax == uid.RLELossless:
        if rle_exceeds(frame, rows * columns + columns - 1):
            raise DecodeError(
                f"the header says {columns} x {rows} pixels, the compressed data hold more; export the image again"
            )
        return
    size = stream_size(frame)
    if size is None:
        raise DecodeError(f"expected {_shown(syntax)}, got other data; the file is damaged, export the image again")
    if size != (rows, columns):
        raise DecodeError(
            f"the header says {columns} x {rows} pixels, the compressed data {size[1]} x {size[0]}; export the image again"
        )
    bits = stream_precision(frame) or 0
    if bits > ds.BitsAllocated:
        raise DecodeError(
            f"the header says {ds.BitsAllocated} bits allocated, the compressed data have {bits} bits; export the image again"
        )
    if frame[-2:] != b"\xff\xd9":
        raise DecodeError(f"the compressed pixel data ({_shown(syntax)}) are cut short; copy the file again")


def stored_values(ds: Dataset, rows: int, columns: int) -> NDArray[np.integer]:
    """The first frame's values as the data set holds them: integers [rows, columns], unused bits not yet cleared.

    Raises `DecodeError` where they cannot be decoded; the message holds nothing from the file but its format.
    """
    syntax = uid.UID(str(ds.file_meta.TransferSyntaxUID))
    try:
        if syntax.is_encapsulated:
            if syntax not in _PLUGINS:
                raise DecodeError(f"cannot decode {_shown(syntax)}; export the image as Explicit VR Little Endian or JPEG 2000")
            _check_stream(ds, syntax, rows, columns)
            whole = {"correct_unused_bits": False} if syntax == uid.RLELossless else {}
            array, _ = get_decoder(syntax).as_array(ds, index=0, raw=True, decoding_plugin=_PLUGINS[syntax], **whole)
        else:
            needed = rows * columns * ds.BitsAllocated // 8
            if len(ds.PixelData) < needed:
                raise DecodeError(
                    f"expected {needed} bytes of pixel data, got {len(ds.PixelData)}; the file is cut short, copy it again"
                )
            if len(ds.PixelData) - needed >= max(needed // rows, _PADDING_MOST):
                raise DecodeError(
                    f"the header says {columns} x {rows} pixels, {needed} bytes of pixel data, got {len(ds.PixelData)}; "
                    "its rows, columns or frames are wrong, export the image again"
                )
            array, _ = get_decoder(syntax).as_array(ds, index=0, raw=True, correct_unused_bits=False)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on damaged data; one bad file must never stop a batch
        if syntax == uid.JPEGExtended12Bit:
            raise DecodeError("cannot decode JPEG Extended with 12 bits; export the image as JPEG Lossless") from error
        raise DecodeError(f"the pixel data ({_shown(syntax)}) cannot be decoded; the file is damaged, copy it again") from error
    if array.shape != (rows, columns):
        raise DecodeError(f"expected {rows} rows of {columns} pixels, got an array of {array.shape}; export the image again")
    return np.asarray(array)
