"""Whether a received object is taken, and with which status (PS3.7 C, PS3.4 B.2.3) it is refused otherwise."""

from __future__ import annotations

import hashlib

from pydicom import uid

from mammoseg.apps.node.scan import Header, ScanError, is_uid, scan
from mammoseg.errors import DecodeError
from mammoseg.io.checks import check_size
from mammoseg.io.dicom_codec import stream_size
from mammoseg.io.dicom_results.maker import NAME

OK = 0x0000
INVALID_INSTANCE = 0x0117
CLASS_NOT_SUPPORTED = 0x0122
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
NOT_OF_ITS_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

# What the pipeline can read a mammogram from: digital mammography, then what film scans and older systems put them in.
IMAGE_CLASSES = (
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForProcessing,
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
# What we make: accepted so that a router may send our own results back to us, where they are dropped.
RESULT_CLASSES = (
    uid.SegmentationStorage,
    uid.MammographyCADSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
    uid.Comprehensive3DSRStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
)


class Refused(Exception):
    """An object is not taken. status: of the C-STORE response. reason: words for the log, nothing of the content."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def key_of(*uids: str) -> str:
    """The name under which we keep what has these UIDs: nothing a sender writes becomes part of a path."""
    return hashlib.sha256("\0".join(uids).encode()).hexdigest()


def examine(data: memoryview, syntax: uid.UID, class_uid: str, instance_uid: str, limit: int) -> Header:
    """Checks an encoded data set against the request that brought it. Raises `Refused`.

    data: without preamble and file meta information. class_uid, instance_uid: of the request. limit: of a data set in bytes.
    """
    if not is_uid(instance_uid):
        raise Refused(INVALID_INSTANCE, "the SOP Instance UID is no UID")
    try:
        header = scan(data, syntax, limit)
    except ScanError as error:
        raise Refused(CANNOT_UNDERSTAND, error.reason) from None
    if header.sop_class_uid != class_uid:
        raise Refused(NOT_OF_ITS_CLASS, "the SOP class is not that of the request")
    if header.sop_instance_uid != instance_uid:
        raise Refused(NOT_OF_ITS_CLASS, "the SOP instance is not that of the request")
    for name, found in (("Study", header.study_uid), ("Series", header.series_uid)):
        if not found:
            raise Refused(NOT_OF_ITS_CLASS, f"no {name} Instance UID")
        if not is_uid(found):
            raise Refused(INVALID_INSTANCE, f"the {name} Instance UID is no UID")
    if class_uid in IMAGE_CLASSES:
        _check_image(header, syntax)
    return header


def names_us(header: Header, class_uid: str) -> bool:
    """Whether an object says of itself that it is a result of this program (perhaps of another node)."""
    may_be = class_uid in RESULT_CLASSES or class_uid == uid.SecondaryCaptureImageStorage
    return may_be and header.manufacturer.strip().lower() == header.model.strip().lower() == NAME


def _check_image(header: Header, syntax: uid.UID) -> None:
    """Raises `Refused` where the pixel data cannot be what the header says."""
    try:
        check_size(header.rows, header.columns)
    except DecodeError:
        raise Refused(NOT_OF_ITS_CLASS, "no dimensions of an image") from None
    if header.codestream is not None:
        if not syntax.is_encapsulated:
            raise Refused(CANNOT_UNDERSTAND, "encapsulated pixel data in a native transfer syntax")
        said = None if syntax == uid.RLELossless else _size(header.codestream)
        if not header.codestream or (said is not None and said != (header.rows, header.columns)):
            raise Refused(NOT_OF_ITS_CLASS, "the pixel data have other dimensions than the header")
        return
    if not header.has_pixels or syntax.is_encapsulated:
        raise Refused(NOT_OF_ITS_CLASS, "no pixel data as the transfer syntax has them")
    frames = int(header.frames) if header.frames.isdecimal() else 1
    if header.bits_allocated not in (1, 8, 16, 32):
        raise Refused(NOT_OF_ITS_CLASS, "no bits allocated of an image")
    bits = header.rows * header.columns * max(1, header.samples) * max(1, frames) * header.bits_allocated
    if header.pixel_bytes < (bits + 7) // 8:
        raise Refused(NOT_OF_ITS_CLASS, "fewer pixel data than the dimensions say")


def _size(codestream: bytes) -> tuple[int, int] | None:
    """The dimensions a codestream declares; None where its beginning does not tell (the worker then says what is wrong)."""
    try:
        return stream_size(codestream)
    except Exception:  # a cut header: struct.error, IndexError
        return None
