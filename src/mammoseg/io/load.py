"""Any supported file, or an array, to a `Mammogram`; and a cheap look at what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mammoseg.errors import DecodeError, NotAMammogramError, NotAnImageError, UsageError
from mammoseg.io.atomic import hash_file
from mammoseg.io.checks import check_content, check_shape, check_size
from mammoseg.io.dicom import is_dicomdir, looks_like_dicom, read_dicom
from mammoseg.io.raster import decode_raster, raster_kind, to_grey
from mammoseg.types import Mammogram, Spacing

Kind = Literal["dicom", "raster", "other"]
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
RASTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".pgm"})
_FILE_MAX = 1 << 31


def sniff(path: Path) -> Kind:
    """What a file is, from its first kilobyte, then from its name.

    "dicom" or "raster" is worth a try with `load_mammogram`, which gives damaged ones their reason: a text named `.dcm`,
    and an empty file with the name of an image or no extension at all, are among them. "other" is to be skipped: text, XML,
    PDF, DICOMDIR, hidden files. Reads at most 1 KiB. A file that cannot be opened is judged by its name; without an extension
    it counts as "dicom", so that it is not passed over in silence.
    """
    if path.name.startswith("."):
        return "other"
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        head = b""
    if is_dicomdir(head) or path.name.upper() == "DICOMDIR":
        return "other"
    if looks_like_dicom(head):
        return "dicom"
    if raster_kind(head) is not None:
        return "raster"
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES or (not suffix and not head):
        return "dicom"
    return "raster" if suffix in RASTER_SUFFIXES else "other"


def is_candidate_file(path: Path) -> bool:
    """Whether a folder walk should take the file up (as an image, or as one that fails with a reason) or skip it."""
    return sniff(path) != "other"


def load_mammogram(path: Path, source: str | None = None) -> Mammogram:
    """Reads a DICOM, PNG, TIFF, JPEG or PGM file, told by its content, as one mammogram.

    path: the file. source: the name shown to people and used as `image_id`; the bare file name by default.
    Returns the mammogram with `file_sha256` set; 16-bit files keep their precision. Raises `NotAnImageError`,
    `DecodeError` or `NotAMammogramError`, each with one sentence that holds no path and nothing of the patient, and
    `UsageError` where there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"expected a file, got {'a folder' if path.is_dir() else 'nothing'} at {source or path.name}")
    name = path.name if source is None else source
    kind = sniff(path)
    if kind == "other":
        raise NotAnImageError("expected a DICOM, PNG, TIFF, JPEG or PGM image, got another kind of file; give an image")
    try:
        digest = hash_file(path)
        if kind == "dicom":
            return read_dicom(path, name, digest)
        if path.stat().st_size > _FILE_MAX:
            raise DecodeError("expected an image file of at most 2 GiB, got a larger one; no mammogram is so large")
        data = path.read_bytes()
    except OSError as error:
        raise DecodeError(
            f"the file cannot be read ({error.strerror or 'input/output error'}); check its permissions"
        ) from error
    except MemoryError as error:
        raise DecodeError("the image needs more memory than there is; no mammogram is so large") from error
    if not data:
        raise DecodeError("expected an image, got an empty file (0 bytes); copy it again")
    return Mammogram(pixels=decode_raster(data), image_id=name, source=name, file_sha256=digest)


def load_array(
    pixels: NDArray[np.generic],
    spacing_mm: Spacing | None = None,
    laterality: str | None = None,
    view_position: str | None = None,
    source: str = "array",
) -> Mammogram:
    """A mammogram from an array that is at hand: the same checks as for files.

    pixels: uint8, uint16 or float in [0, 1], [H, W] or [H, W, 3] with equal channels, bright = dense (MONOCHROME2).
    uint8 is divided by 255, uint16 by the power-of-two range in use. spacing_mm: (row, column) in mm at the breast.
    Raises `NotAMammogramError` (blank, colour, too small) or `UsageError` (a type or range not understood).

    >>> image = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    >>> load_array(image).size
    (100, 100)
    """
    pixels = np.asarray(pixels)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise UsageError(f"expected an array [H, W] or [H, W, 3], got {list(pixels.shape)}; give one view at a time")
    check_size(pixels.shape[0], pixels.shape[1])
    check_shape(pixels.shape[0], pixels.shape[1])
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise UsageError("expected float pixels in [0, 1], got values outside; divide by the full range first")
        if pixels.ndim == 3 and not (pixels == pixels[..., :1]).all():
            raise NotAMammogramError(
                "colour picture: expected a grey mammogram, got different channels; give the original image"
            )
        grey = np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.float32)
    elif pixels.dtype in (np.uint8, np.uint16):
        grey = to_grey(pixels)
    else:
        raise UsageError(f"expected uint8, uint16 or float pixels, got {pixels.dtype}; convert the array first")
    check_content(grey)
    return Mammogram(
        pixels=grey,
        image_id=source,
        source=source,
        spacing_mm=spacing_mm,
        spacing_source="given" if spacing_mm is not None else None,
        laterality=laterality,
        view_position=view_position,
    )
