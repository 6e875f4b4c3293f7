"""Files that are sent to the server: checked, unpacked, and kept under names of our own."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.models import Refusal
from mammoseg.apps.server.parts import Received, Room, file_for, harmless
from mammoseg.apps.server.settings import MIB, Limits
from mammoseg.apps.server.store import Store
from mammoseg.io.atomic import hash_file
from mammoseg.io.load import is_candidate_file
from mammoseg.io.stored import read_header

_RATIO_MAX = 100  # unpacked : packed; mammograms reach 10
_SLACK = 256 * MIB  # unpacked, from where on the ratio counts: a blank image packs well
_CHUNK = MIB
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Uploads:
    """Takes in what was received and removes it again."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._folder = store.root / "uploads"
        self._lock = threading.Lock()
        for left in self._folder.glob("*.part"):  # of a server that was killed
            shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def desk(self) -> Iterator[tuple[Path, Room]]:
        """A folder to receive files in, removed afterwards, and what may be written."""
        folder = self._folder / f"{secrets.token_hex(8)}.part"
        folder.mkdir()
        try:
            yield folder, Room(folder, self._limits, self._limits.upload, self._stored())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def admit(self, received: Sequence[Received], folder: Path, room: Room) -> tuple[list[str], list[Refusal]]:
        """Keeps the images among the files, archives unpacked. Returns their ids, and what was refused with the reason.

        The same file sent again is the same image. Raises `ApiError` for archives that are too large.
        """
        images: list[str] = []
        refused: list[Refusal] = []
        for number, item in enumerate(received):
            if _is_archive(item.path):
                inside = folder / f"unpacked{number}"
                inside.mkdir()
                files = self._unpack(item, inside, room, refused)
                item.path.unlink()
            else:
                files = [item]
            for file in files:
                if is_candidate_file(file.path) and not read_header(file.path).no_image:
                    images.append(self._keep(file))
                else:
                    refused.append(Refusal(name=file.name, reason="no DICOM, PNG, TIFF, JPEG or PGM image"))
        return list(dict.fromkeys(images)), refused

    def remove(self, image_id: str) -> None:
        """Removes an image that was sent, with everything made from it."""
        with self._store.writing() as database:
            folders = [r["folder"] for r in database.execute("SELECT folder FROM results WHERE image_id = ?", (image_id,))]
            database.execute("DELETE FROM results WHERE image_id = ?", (image_id,))
            database.execute("DELETE FROM images WHERE image_id = ?", (image_id,))
        for place in (self._folder / image_id, self._store.root / "made" / image_id, *(self._store.root / f for f in folders)):
            shutil.rmtree(place, ignore_errors=True)

    def _stored(self) -> int:
        return int(self._store.rows("SELECT COALESCE(SUM(size), 0) AS n FROM images")[0]["n"])

    def _keep(self, file: Received) -> str:
        image_id = self._store.opaque("content", hash_file(file.path))
        target = self._folder / image_id
        with self._lock:
            if not self._store.rows("SELECT 1 FROM images WHERE image_id = ?", image_id):
                target.mkdir(exist_ok=True)
                size, path = file.path.stat().st_size, target / f"image{file.path.suffix}"
                file.path.replace(path)
                with self._store.writing() as database:
                    values = (image_id, path.relative_to(self._store.root).as_posix(), file.name, "", size)
                    database.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", values)
        return image_id

    def _unpack(self, archive: Received, folder: Path, room: Room, refused: list[Refusal]) -> list[Received]:
        """The files in an archive, written under names of our own; names inside lead nowhere."""
        out: list[Received] = []
        packed, total = archive.path.stat().st_size, 0
        _check_directory(archive.path, 1024 * self._limits.files)
        try:
            with zipfile.ZipFile(archive.path) as content:
                entries = [e for e in content.infolist() if not e.is_dir()]
                if len(entries) > 4 * self._limits.files:
                    raise ApiError(413, "too_large", f"expected at most {4 * self._limits.files} files in an archive")
                self._check_ratio(sum(e.file_size for e in entries), packed)
                for entry in entries:
                    name = harmless(entry.filename)
                    if name.rsplit("/", 1)[-1].startswith("."):
                        continue
                    if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
                        refused.append(Refusal(name=name, reason="encrypted, or packed in a way not known here"))
                        continue
                    room.new_file()
                    target = file_for(folder, len(out), name)
                    with content.open(entry) as packed_file, target.open("xb") as file:
                        size = 0
                        while piece := packed_file.read(_CHUNK):  # what the archive says of its sizes counts for nothing here
                            size, total = size + len(piece), total + len(piece)
                            room.take(len(piece), size)
                            self._check_ratio(total, packed)
                            file.write(piece)
                    out.append(Received(target, name))
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, UnicodeError) as error:
            raise ApiError(422, "bad_archive", "the archive is damaged; pack it again") from error
        return out

    @staticmethod
    def _check_ratio(unpacked: int, packed: int) -> None:
        if unpacked > _SLACK + _RATIO_MAX * packed:
            raise ApiError(413, "bomb", f"the archive unpacks to more than {_RATIO_MAX} times its size; no images do")


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
    return head in (b"PK\3\4", b"PK\5\6") and zipfile.is_zipfile(path)


def _check_directory(path: Path, most: int) -> None:
    """Raises `ApiError` where an archive's table of contents has more than `most` bytes: it is read into memory as a whole."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65557 - 20))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise ApiError(422, "bad_archive", "the archive is damaged; pack it again")
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise ApiError(422, "bad_archive", "ZIP64 archives are not read here; send the files themselves")
    if struct.unpack("<I", tail[at + 12 : at + 16])[0] > most:
        raise ApiError(413, "too_large", "the archive has too many files; send fewer at a time")
