"""The parts of a multipart body, written to files as they come in; never more of it in memory than one piece."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mammoseg.apps.inputs import printable
from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.settings import MIB, Limits
from mammoseg.io.load import DICOM_SUFFIXES, RASTER_SUFFIXES

_KEPT_SUFFIXES = DICOM_SUFFIXES | RASTER_SUFFIXES | {".zip"}
_NAME_MAX = 120
_FIELD_MAX = 64 << 10
_LOOK_EVERY = 16 * MIB  # bytes between two looks at the disk


@dataclass(frozen=True)
class Received:
    """One file as it came in. name: what its sender calls it, made harmless; for people, never for the file system."""

    path: Path
    name: str


class Room:
    """What may still be written. Raises `ApiError` 413 where a limit is exceeded, 507 where the disk would be full.

    total: bytes in all. stored: bytes that are kept already.
    """

    def __init__(self, folder: Path, limits: Limits, total: int, stored: int) -> None:
        self._folder, self._limits = folder, limits
        self._total, self._stored = total, stored
        self._files = self._until_look = 0

    def new_file(self) -> None:
        """One file more."""
        self._files += 1
        if self._files > self._limits.files:
            raise ApiError(413, "too_large", f"expected at most {self._limits.files} files at a time")

    def take(self, count: int, file_size: int) -> None:
        """`count` bytes more, for a file that then has `file_size`."""
        self._total -= count
        self._stored += count
        self._until_look -= count
        if file_size > self._limits.file:
            raise ApiError(
                413, "too_large", f"expected files of at most {self._limits.file // MIB} MiB; no mammogram is so large"
            )
        if self._total < 0:
            raise ApiError(413, "too_large", f"expected at most {self._limits.upload // MIB} MiB at a time, unpacked")
        if self._stored > self._limits.storage:
            raise ApiError(507, "full", "this server keeps as many images as it may; remove some first")
        if self._until_look < 0:
            self._until_look = _LOOK_EVERY
            if shutil.disk_usage(self._folder).free < self._limits.free + _LOOK_EVERY:
                raise ApiError(507, "full", "this server's disk is nearly full; make room first")


class PartsToFiles:
    """Writes the parts that are files into `folder`. Raises `ApiError` 415 for another content type, 400 for a broken body.

    named: only parts with a file name are files (a form); else all are (DICOMweb).
    """

    def __init__(self, content_type: str, folder: Path, room: Room, named: bool = True) -> None:
        kind, options = _options(content_type)
        boundary = options.get(b"boundary", b"")
        if not kind.startswith(b"multipart/") or not boundary:
            raise ApiError(415, "not_multipart", "expected multipart/form-data with files in it")
        self._folder, self._room, self._named = folder, room, named
        self.received: list[Received] = []
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._file: BinaryIO | None = None
        self._size = self._fields = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._header,
                    "on_headers_finished": self._open,
                    "on_part_data": self._data,
                    "on_part_end": self._close,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise ApiError(400, "bad_multipart", "the boundary of the multipart body cannot be used") from error

    def write(self, data: bytes) -> None:
        """The next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise ApiError(400, "bad_multipart", "the multipart body is broken; send it again") from error
        except OSError as error:
            raise ApiError(507, "full", "what was received cannot be written; is the disk full?") from error

    def finish(self) -> list[Received]:
        """The files, when the whole body was written. Raises `ApiError` 400 where it is cut short."""
        self.close()
        if not self._ended:
            raise ApiError(400, "bad_multipart", "the multipart body is cut short; send it again")
        return self.received

    def close(self) -> None:
        """Closes the file under way."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._headers = {}
        self._field = self._value = b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _open(self) -> None:
        name = _options(self._headers.get(b"content-disposition", b"").decode("latin-1"))[1].get(b"filename")
        if name is None and self._named:
            return
        self._room.new_file()
        self._size = 0
        shown = harmless((name or b"").decode("utf-8", "replace"))
        path = file_for(self._folder, len(self.received), shown)
        self._file = path.open("xb")
        self.received.append(Received(path, shown))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._fields += end - start
            if self._fields > _FIELD_MAX:
                raise ApiError(413, "too_large", "expected files, got a long text field")
            return
        self._size += end - start
        self._room.take(end - start, self._size)
        self._file.write(data[start:end])

    def _close(self) -> None:
        self.close()

    def _end(self) -> None:
        self._ended = True


def _options(value: str) -> tuple[bytes, dict[bytes, bytes]]:
    try:
        return parse_options_header(value)
    except (ValueError, IndexError, UnicodeError):
        return b"", {}


def file_for(folder: Path, number: int, name: str) -> Path:
    """Where a file is kept: its number, and its extension where that says what it is."""
    suffix = PurePosixPath(name).suffix.lower()
    return folder / f"{number:06d}{suffix if suffix in _KEPT_SUFFIXES else ''}"


def harmless(name: str) -> str:
    """A name of a stranger's file to be shown: relative, without `..`, printable, not long.

    >>> harmless("..\\\\..\\\\etc/pass\\x00wd"), harmless("C:\\\\exam\\\\RCC.dcm"), harmless("///")
    ('etc/pass_wd', 'exam/RCC.dcm', 'image')
    """
    parts = [p for p in printable(name.replace("\\", "/")).split("/") if p not in ("", ".", "..") and not p.endswith(":")]
    text = "/".join("".join(c if c.isprintable() else "_" for c in part) for part in parts[-3:])
    return text[-_NAME_MAX:].lstrip("/") or "image"
