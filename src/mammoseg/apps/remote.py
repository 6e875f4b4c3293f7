"""Images behind URLs (object stores, HTTP servers, whatever fsspec knows): listed, told apart, fetched one at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mammoseg.apps.inputs import InputImage, Inputs, printable, result_folders
from mammoseg.apps.outputs import ORIGIN
from mammoseg.errors import ConfigError, DecodeError, UsageError
from mammoseg.io.atomic import hash_file, write_atomic
from mammoseg.io.load import DICOM_SUFFIXES, RASTER_SUFFIXES

_BYTES_MOST = 1 << 31


@dataclass(frozen=True)
class _Listed:
    name: str
    may_skip: bool
    version: str


def is_url(text: str) -> bool:
    """Whether an input is a URL (`s3://bucket/folder`) and no path.

    >>> is_url("s3://bucket/a"), is_url("C:/images"), is_url("images/a.dcm")
    (True, False, False)
    """
    return "://" in text


def collect_urls(urls: Sequence[str]) -> Inputs:
    """The images at URLs, each a file or a folder (searched recursively), with their names and result folders.

    Of folders, files with the name of another kind of file are passed over. Raises `UsageError` where a URL leads nowhere, and
    `ConfigError` where what it needs is not installed.
    """
    found: dict[str, _Listed] = {}
    skipped: list[str] = []
    for url in urls:
        fs, path = _file_system(url)
        try:
            entries = fs.find(path, detail=True)
        except FileNotFoundError:
            entries = {}
        except Exception as error:  # every store has its own
            raise UsageError(
                f"{url} cannot be listed ({type(error).__name__}); check the address and your credentials"
            ) from error
        if not entries:
            raise UsageError(f"nothing found at {url}: expected an image or a folder of images")
        for name in sorted(entries):
            single = name.rstrip("/") == path.rstrip("/")
            relative = PurePosixPath(name).name if single else str(PurePosixPath(name).relative_to(path))
            suffix = PurePosixPath(name).suffix.lower()
            hidden = any(part.startswith(".") for part in PurePosixPath(relative).parts)
            if not single and (
                hidden or (suffix and suffix not in DICOM_SUFFIXES | RASTER_SUFFIXES and not suffix[1:].isdigit())
            ):
                skipped.append(relative)
                continue
            found[fs.unstrip_protocol(name)] = _Listed(relative, not single, _version(entries[name]))
    names = Counter(listed.name for listed in found.values())
    sources = [printable(o.name if names[o.name] == 1 else url.partition("://")[2]) for url, o in found.items()]
    folders = result_folders(sources)
    images = [
        InputImage(Path(source), source, folder, listed.may_skip, url, listed.version)
        for (url, listed), source, folder in zip(found.items(), sources, folders, strict=True)
    ]
    return Inputs(tuple(images), tuple(skipped))


@contextlib.contextmanager
def local_copy(image: InputImage) -> Iterator[InputImage]:
    """The image as a local file: itself, or a copy of what its URL holds, which is gone afterwards. Raises `DecodeError`."""
    if image.url is None:
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="mammoseg-") as folder:
        path = Path(folder) / ("image" + PurePosixPath(image.source).suffix.lower())
        try:
            fs, remote = _file_system(image.url)
            if int(fs.size(remote) or 0) > _BYTES_MOST:
                raise DecodeError("expected an image file of at most 2 GiB, got a larger one; no mammogram is so large")
            fs.get_file(remote, str(path))
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(
                f"the image cannot be fetched ({type(error).__name__}); check the address and try again"
            ) from error
        yield dataclasses.replace(image, path=path)


def write_origin(folder: Path, image: InputImage) -> None:
    """Notes which version of the object was fetched, so that a restart need not fetch it again; nothing for local files.

    image: with its local copy.
    """
    if image.url is not None:
        note = {"url": _digest(image.url), "version": image.version, "sha256": hash_file(image.path)}
        write_atomic(folder / ORIGIN, json.dumps(note).encode())


def read_origin(folder: Path, image: InputImage) -> str | None:
    """The sha256 of the file that results in `folder` were made from, where the object has not changed since."""
    try:
        note = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    assert image.url is not None
    same = isinstance(note, dict) and (note.get("url"), note.get("version")) == (_digest(image.url), image.version)
    return str(note.get("sha256")) if same and image.version else None


def _digest(url: str) -> str:
    """URLs may hold credentials: none is written down."""
    return hashlib.sha256(url.encode()).hexdigest()


def _version(entry: dict[str, Any]) -> str:
    """What changes when an object does: its ETag, or its size and time; empty where the store tells neither."""
    tag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash") or entry.get("checksum")
    time = entry.get("LastModified") or entry.get("mtime") or entry.get("updated") or entry.get("created")
    known = [str(v) for v in (tag, time, entry.get("size")) if v is not None]
    return "" if tag is None and time is None else " ".join(known)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        fsspec = importlib.import_module("fsspec")
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url.partition('://')[0]}:// needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from error
    return fs, str(path)
