"""One DICOM file to one `Mammogram`.

Accepted: single-frame MONOCHROME1 and MONOCHROME2 of 8 to 16 bits, signed or not, in any transfer syntax of
`dicom_codec`. Grey values follow PS3.4 N.2 (see `grayscale`). FOR PROCESSING images are rejected with their reason: raw
detector values need the vendor's own processing, and a guess would be silently wrong.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from mammoseg.errors import DecodeError, ImageError, NotAMammogramError, NotAnImageError
from mammoseg.io import dicom_attributes as attributes
from mammoseg.io.checks import check_content, check_shape, check_size
from mammoseg.io.dicom_codec import check_deflated, stored_values
from mammoseg.io.grayscale import render
from mammoseg.types import Mammogram

_DICOMDIR = b"1.2.840.10008.1.3.10"
_BELONG_LEAST = 0.25  # share of smaller steps; 0 for dirt, 0.5 to 1 where header bits of a mammogram are too few
_OUTSIDE_MOST = 0.001  # share of decoded values beyond the bits stored that a few bad pixels may have


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first bytes (200 are enough) are DICOM's, with or without the 128-byte preamble."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8 or head[:4] not in (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x08\0\x12\0", b"\x08\0\x16\0",
                                         b"\x02\0\0\0", b"\0\x08\0\0", b"\0\x08\0\x05", b"\0\x08\0\x08"):  # fmt: skip
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") < 1 << 16


def is_dicomdir(head: bytes) -> bool:
    """Whether the first kilobyte is that of a DICOMDIR."""
    return head[128:132] == b"DICM" and _DICOMDIR in head[132:1024]


def read_dicom(path: Path, source: str, file_sha256: str | None = None) -> Mammogram:
    """Reads the DICOM file at `path`.

    source: name shown to people, used as `image_id`. Raises `DecodeError` (cannot be decoded), `NotAMammogramError` (another
    kind of image) or `NotAnImageError` (no image in it).
    """
    with path.open("rb") as file:
        head = file.read(1024)
    if is_dicomdir(head):
        raise NotAnImageError("expected an image, got a DICOMDIR (an index of other files); give the folder instead")
    if not looks_like_dicom(head):
        raise DecodeError(_not_dicom(head))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns with values from the file; what matters is raised
        try:
            check_deflated(path)
            header = open_dataset(path, pixels=False)
            try:
                size = _check_header(header)
                return _mammogram(open_dataset(path, pixels=True), size, source, file_sha256)
            except NotAMammogramError as error:
                error.size = _declared_size(header)
                raise
        except (ImageError, MemoryError, OSError):
            raise
        except Exception as error:  # one bad file must never stop a batch
            raise DecodeError("the DICOM header makes no sense; the file is damaged, copy or export it again") from error


def _not_dicom(head: bytes) -> str:
    if not head:
        return "expected a DICOM image, got an empty file (0 bytes); copy it again"
    printable = sum(32 <= b < 127 or b in (9, 10, 13) for b in head) / len(head)
    kind = "text" if printable > 0.9 else "other data"
    return f"expected a DICOM image as the file's name says, got {kind}; copy or export the file again"


def open_dataset(path: Path, pixels: bool) -> Dataset:
    """The data set in the file, with or without its pixel data; always with a transfer syntax. Raises `DecodeError`."""
    try:
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
    except (Exception, RecursionError) as error:  # pydicom raises anything on damaged files
        raise DecodeError("the DICOM header cannot be read; the file is damaged or cut short, copy it again") from error
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = native
    return ds


def _declared_size(ds: Dataset) -> tuple[int, int] | None:
    rows, columns = attributes.integer(ds, "Rows"), attributes.integer(ds, "Columns")
    return (rows, columns) if rows is not None and columns is not None and rows > 0 and columns > 0 else None


def _check_header(ds: Dataset) -> tuple[int, int]:
    """(rows, columns) of a header that promises one monochrome mammogram; raises what it is instead."""
    attributes.check_kind(ds)
    rows, columns = attributes.integer(ds, "Rows"), attributes.integer(ds, "Columns")
    if rows is None or columns is None:
        raise DecodeError("expected Rows and Columns in the DICOM header, got none; the file is cut short or holds no image")
    check_size(rows, columns)
    frames = attributes.integer(ds, "NumberOfFrames") or 1
    if frames > 1:
        raise NotAMammogramError(f"expected one image, got {frames} frames (tomosynthesis or a series); give a 2D view")
    photometric, samples = attributes.text(ds, "PhotometricInterpretation"), attributes.integer(ds, "SamplesPerPixel") or 1
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        what = "colour" if samples > 1 or photometric else "no Photometric Interpretation"
        raise NotAMammogramError(f"expected a monochrome image, got {what}; give the original mammogram")
    allocated, stored = attributes.integer(ds, "BitsAllocated"), attributes.integer(ds, "BitsStored")
    if allocated not in (8, 16) or stored is None or not 2 <= stored <= allocated:
        got = f"{allocated}" if stored is None else f"{allocated} with {stored} stored"
        kind = " (floating-point or wide numbers)" if allocated in (32, 64) else ""
        raise DecodeError(f"expected 8 or 16 bits allocated, got {got}{kind}; export the image again")
    check_shape(rows, columns)
    return rows, columns


def _mammogram(ds: Dataset, size: tuple[int, int], source: str, file_sha256: str | None) -> Mammogram:
    if not attributes.value(ds, "PixelData"):
        raise DecodeError("expected pixel data, got none; the file is cut short or was stored without its image")
    raw = stored_values(ds, *size)
    bits, signed = int(ds.BitsStored), attributes.integer(ds, "PixelRepresentation") == 1
    values = used_bits(raw, ds, signed)
    padding = padding_of(ds, values, bits, signed)
    endian = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    pixels = render(values, attributes.grayscale(ds, bits, signed, endian), padding)
    check_content(pixels)
    spacing_mm, spacing_source = attributes.spacing(ds)
    intent = attributes.text(ds, "PresentationIntentType")
    return Mammogram(
        pixels=pixels,
        image_id=source,
        source=source,
        spacing_mm=spacing_mm,
        spacing_source=spacing_source,
        laterality=attributes.laterality(ds),
        view_position=attributes.view_position(ds),
        presentation_intent=intent if intent == "FOR PRESENTATION" else None,
        file_sha256=file_sha256,
    )


def used_bits(raw: NDArray[np.integer], ds: Dataset, signed: bool) -> NDArray[np.integer]:
    """The values with what lies outside High Bit and Bits Stored (old overlays) removed and the sign carried up.

    Compressed data (but RLE, which packs bytes) hold nothing else, and stay as they are. Raises `DecodeError` where what
    lies outside belongs to the picture, so that the header's bits cannot be right.
    """
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        _check_range(raw, ds, stored, signed)
        return raw
    high = attributes.integer(ds, "HighBit")
    high = stored - 1 if high is None or not stored - 1 <= high < allocated else high
    if stored == allocated:
        return raw
    kind = {8: (np.uint8, np.int8), 16: (np.uint16, np.int16)}[allocated][signed]
    whole = raw.astype(kind)
    values = np.asarray(np.right_shift(np.left_shift(whole, allocated - 1 - high), allocated - stored))
    if high == stored - 1:
        wrong = not np.array_equal(whole, values) and _belong(whole, values)
    else:
        wrong = bool((whole & ((1 << (high + 1 - stored)) - 1)).any()) and int(whole.max()) < 1 << stored
    if wrong:
        raise DecodeError(
            f"the header says {stored} bits stored up to bit {high}, the pixel values use others; export the image again"
        )
    return values


def _belong(whole: NDArray[np.integer], values: NDArray[np.integer]) -> bool:
    """Whether the bits of `whole` that `values` lack are the picture's own.

    Looked at where they change from a pixel to the next in a row: there, bits of the picture's own make the step smaller,
    and overlays, dirt and padding make it larger.
    """
    step = max(1, whole.shape[0] // 512)
    own, cut = whole[::step].astype(np.int32), values[::step].astype(np.int32)
    changed = np.diff(own - cut, axis=1) != 0
    smaller = np.abs(np.diff(own, axis=1)) < np.abs(np.diff(cut, axis=1))
    return bool(changed.any()) and float(smaller[changed].mean()) > _BELONG_LEAST


def _check_range(values: NDArray[np.integer], ds: Dataset, stored: int, signed: bool) -> None:
    """Raises `DecodeError` where more than a few decoded values, padding aside, need more bits than are stored."""
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    if int(values.min()) >= low and int(values.max()) <= high:
        return
    outside = (values < low) | (values > high)
    padding = attributes.integer(ds, "PixelPaddingValue")
    if padding is not None:
        outside &= (values.astype(np.int32) & 0xFFFF) != padding & 0xFFFF
    if float(outside.mean()) > _OUTSIDE_MOST:
        raise DecodeError(
            f"the header says {stored} bits stored, the pixel values go from {values.min()} to {values.max()}; "
            "export the image again"
        )


def padding_of(ds: Dataset, values: NDArray[np.integer], bits: int, signed: bool) -> NDArray[np.bool_] | None:
    """Which pixels are Pixel Padding Value (or within its Range Limit), or None where there is none.

    values: stored values with unused bits cleared and the sign carried.
    """
    first = attributes.integer(ds, "PixelPaddingValue")
    limit = attributes.integer(ds, "PixelPaddingRangeLimit")
    ends = [_as_stored(v, bits, signed) for v in (first, first if limit is None else limit) if v is not None]
    if first is None or len(ends) != 2 or None in ends:
        return None
    low, high = sorted(v for v in ends if v is not None)
    padding = (values >= low) & (values <= high)
    return padding if padding.any() and not padding.all() else None


def _as_stored(value: int, bits: int, signed: bool) -> int | None:
    """`value` of the header as a stored value of `bits`: the same bits, read with the image's sign; None where too large.

    >>> _as_stored(-1, 12, False), _as_stored(63536, 12, True), _as_stored(254, 8, True), _as_stored(5000, 12, False)
    (4095, -2000, -2, None)
    """
    above = (value & 0xFFFF) >> bits
    if above not in (0, 0xFFFF >> bits):
        return None
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value
