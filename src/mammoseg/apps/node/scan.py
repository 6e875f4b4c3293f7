"""A look at a received data set that costs little whatever is in it: no recursion, bounded elements, bounded depth.

Only what decides about acceptance is read: identity, dimensions, and whether everything is there that lengths promise. The
image itself is decoded later, in another process.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field

from pydicom import uid

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_VRS = _LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_WANTED = {
    0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid",
    0x00080070: "manufacturer",
    0x00081090: "model",
    0x0020000D: "study_uid",
    0x0020000E: "series_uid",
    0x00280002: "samples",
    0x00280008: "frames",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "bits_allocated",
}
_NUMBERS = {"samples", "rows", "columns", "bits_allocated"}
MAX_ELEMENTS = 50_000
MAX_DEPTH = 32
_VALUE_MAX = 1024
_CODESTREAM_HEAD = 1 << 16
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class ScanError(Exception):
    """The data set cannot be what it says. `reason` is a word for the log; nothing of the content is in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Header:
    """What a scan found. Numbers are 0 and texts empty where missing.

    pixel_bytes: length of native pixel data, 0 where there is none. codestream: the beginning of encapsulated pixel data.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    manufacturer: str = ""
    model: str = ""
    samples: int = 0
    frames: str = ""
    rows: int = 0
    columns: int = 0
    bits_allocated: int = 0
    has_pixels: bool = False
    pixel_bytes: int = 0
    codestream: bytes | None = None


@dataclass
class _Reader:
    """Where we are in the data. ends: of the open sequences and items, `None` where a delimiter ends them."""

    data: memoryview
    implicit: bool
    order: str
    at: int = 0
    elements: int = 0
    ends: list[tuple[str, int | None, bool]] = field(default_factory=list)

    def tag(self) -> int:
        group, element = self.unpack("HH")
        return group << 16 | element

    def unpack(self, code: str) -> tuple[int, ...]:
        size = struct.calcsize(f"{self.order}{code}")
        if self.at + size > len(self.data):
            raise ScanError("truncated")
        values = struct.unpack_from(f"{self.order}{code}", self.data, self.at)
        self.at += size
        return values

    def skip(self, length: int) -> memoryview:
        end = self.at + length
        if end > len(self.data) or (self.ends and self.ends[-1][1] is not None and end > self.ends[-1][1]):
            raise ScanError("truncated")
        value = self.data[self.at : end]
        self.at = end
        return value


def is_uid(text: str) -> bool:
    """Digits and dots alone, at most 64: also UIDs with leading zeros, which exist, and nothing that could be a path.

    >>> is_uid("1.2.840.10008.1.1"), is_uid("1.02.3"), is_uid("../../etc/passwd"), is_uid("1..2"), is_uid("")
    (True, True, False, False, False)
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def inflate(data: memoryview, limit: int) -> memoryview:
    """A deflated data set's content. Raises `ScanError` where it is damaged or unpacks to more than `limit` bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise ScanError("damaged deflate") from error
    if len(out) > limit:
        raise ScanError("too large when inflated")
    if not inflater.eof:
        raise ScanError("truncated")
    return memoryview(out)


def scan(data: memoryview, syntax: uid.UID, limit: int) -> Header:
    """Walks through an encoded data set (without preamble and file meta information).

    syntax: its transfer syntax. limit: how many bytes a deflated one may have. Raises `ScanError` where it is cut short, too
    deeply nested, has too many elements or makes no sense.
    """
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        data = inflate(data, limit)
    reader = _Reader(data, syntax.is_implicit_VR, "<" if syntax.is_little_endian else ">")
    header = Header()
    while True:
        _close(reader)
        if reader.at == len(data) and not reader.ends:
            return header
        reader.elements += 1
        if reader.elements > MAX_ELEMENTS:
            raise ScanError("too many elements")
        _element(reader, header)


def _close(reader: _Reader) -> None:
    while reader.ends and reader.ends[-1][1] is not None and reader.at >= reader.ends[-1][1]:
        _, _, before = reader.ends.pop()
        reader.implicit = before


def _element(reader: _Reader, header: Header) -> None:
    tag = reader.tag()
    if tag in (_ITEM, _ITEM_END, _SEQUENCE_END):
        _delimiter(reader, tag)
        return
    if reader.ends and reader.ends[-1][0] == "sequence":
        raise ScanError("no item in a sequence")
    vr, length = _vr_and_length(reader)
    top = not reader.ends
    if tag == _PIXEL_DATA and top:
        header.has_pixels = True
        if length == _UNDEFINED:
            header.codestream = _fragments(reader)
            return
        header.pixel_bytes = length
    if length == _UNDEFINED and vr not in (b"SQ", b"UN", None):
        raise ScanError("undefined length")
    if length == _UNDEFINED or vr == b"SQ":
        _open(reader, "sequence", length, implicit=reader.implicit or vr == b"UN")
        return
    value = reader.skip(length)
    name = _WANTED.get(tag) if top else None
    if name is not None:
        if length > _VALUE_MAX:
            raise ScanError("value too long")
        setattr(header, name, _number(reader, value) if name in _NUMBERS else _text(value))


def _vr_and_length(reader: _Reader) -> tuple[bytes | None, int]:
    if reader.implicit:
        return None, reader.unpack("L")[0]
    vr = bytes(reader.skip(2))
    if vr not in _VRS:
        raise ScanError("unknown value representation")
    if vr in _LONG_VRS:
        reader.skip(2)
        return vr, reader.unpack("L")[0]
    return vr, reader.unpack("H")[0]


def _open(reader: _Reader, kind: str, length: int, implicit: bool) -> None:
    end = None if length == _UNDEFINED else reader.at + length
    outer = reader.ends[-1][1] if reader.ends else len(reader.data)
    if end is not None and (end > len(reader.data) or (outer is not None and end > outer)):
        raise ScanError("truncated")
    if len(reader.ends) >= 2 * MAX_DEPTH:
        raise ScanError("nested too deeply")
    reader.ends.append((kind, end, reader.implicit))
    reader.implicit = implicit


def _delimiter(reader: _Reader, tag: int) -> None:
    (length,) = reader.unpack("L")
    kind, end = (reader.ends[-1][0], reader.ends[-1][1]) if reader.ends else ("", 0)
    if tag == _ITEM and kind == "sequence":
        _open(reader, "item", length, reader.implicit)
        return
    ends = {_ITEM_END: "item", _SEQUENCE_END: "sequence"}.get(tag)
    if ends != kind or end is not None:
        raise ScanError("misplaced delimiter")
    reader.implicit = reader.ends.pop()[2]


def _fragments(reader: _Reader) -> bytes:
    """Passes over encapsulated pixel data; returns the beginning of the first fragment after the offset table."""
    first: bytes | None = None
    table = True
    while True:
        reader.elements += 1
        if reader.elements > MAX_ELEMENTS:
            raise ScanError("too many elements")
        tag, length = reader.tag(), reader.unpack("L")[0]
        if tag == _SEQUENCE_END:
            return first or b""
        if tag != _ITEM or length == _UNDEFINED:
            raise ScanError("damaged encapsulated pixel data")
        value = reader.skip(length)
        if not table and first is None:
            first = bytes(value[:_CODESTREAM_HEAD])
        table = False


def _text(value: memoryview) -> str:
    return bytes(value).decode("latin-1").rstrip(" \0")


def _number(reader: _Reader, value: memoryview) -> int:
    """The first unsigned short."""
    return int(struct.unpack_from(f"{reader.order}H", value)[0]) if len(value) >= 2 else 0
