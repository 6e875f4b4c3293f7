"""Which images a run works through, what each is called, and in which folder its results go."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pydicom

from mammoseg.apps.dicom_outputs import STUDIES
from mammoseg.apps.outputs import FINDINGS, LOCK, ORIGIN, PARQUET, PICTURE_FILES, RUN, TABLES
from mammoseg.datasets import parse_spec
from mammoseg.datasets.splits import Side, read_side
from mammoseg.errors import NotAnImageError, UsageError
from mammoseg.io.dicom_attributes import check_kind
from mammoseg.io.load import DICOM_SUFFIXES, RASTER_SUFFIXES, is_candidate_file, sniff

RESERVED = {RUN, LOCK, STUDIES, PARQUET, ".tries", *TABLES}
_OWN_FILES = {FINDINGS, ORIGIN, *PICTURE_FILES.values()}  # of each image, in its folder
_NAME_MAX = 200  # bytes of a folder's name; file systems take 255


@dataclass(frozen=True)
class InputImage:
    """path: where the file is. source: its name in findings, relative, with `/`. folder: of its results, below OUT.

    may_skip: found in a folder, so that it is passed over where reading it shows that it holds no image. url: where the image
    is to be fetched from (`path` is then no file yet), and the `version` of it that was listed.
    """

    path: Path
    source: str
    folder: str
    may_skip: bool = False
    url: str | None = None
    version: str = ""


@dataclass(frozen=True)
class Inputs:
    """images: in the order they are worked through. skipped: files in folders that are no images, relative.

    unread: folders that could not be read. linked: folders that are symbolic links, which are not followed.
    """

    images: tuple[InputImage, ...]
    skipped: tuple[str, ...]
    unread: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Passed:
    """What a walk through folders does not take up."""

    skipped: list[str]
    unread: list[str]
    linked: list[str]


@dataclass(frozen=True)
class _Found:
    path: Path
    source: str
    may_skip: bool = False

    @property
    def key(self) -> str:
        return os.path.abspath(self.path)


def collect(inputs: Sequence[Path], exclude: Path | None = None) -> Inputs:
    """Finds the images in files, folders (recursed) and COCO files.

    exclude: a folder not to look into (where results are written). Hidden files and folders are passed over.
    A link that leads nowhere is taken up by its name, and gets its status as an image that cannot be read.
    Raises `UsageError` where an input does not exist, is no COCO file or nothing is found, `NotAnImageError` where a named
    file is no image.
    """
    found: list[_Found] = []
    passed = _Passed([], [], [])
    for item in inputs:
        if item.is_dir():
            _walk(item, exclude, found, passed)
        elif not item.exists():
            raise UsageError(f"no such file or folder: {item}")
        elif not item.is_file():
            raise UsageError(f"expected an image file or a folder, got a pipe or device: {item}; save the image to a file")
        elif item.suffix.lower() == ".json":
            found += _coco_images(item)
        else:
            _refuse_no_image(item)
            found.append(_Found(item, item.name))
    if not found:
        raise nothing_found(inputs, len(passed.skipped), not_looked_into(passed.unread, passed.linked))
    return Inputs(_named(found), tuple(passed.skipped), tuple(passed.unread), tuple(passed.linked))


def collect_side(dataset: str, fold: Path, side: Side) -> Inputs:
    """The images of one side of a fold of a data set, each under the name it has where the whole data set is given.

    dataset: a spec, KIND:PATH or a path whose kind is recognised. Raises `DatasetError` as `read_side` does.
    """
    items, _ = read_side(dataset, fold, side)
    path = parse_spec(dataset)[1]
    root = os.path.abspath(path if path.is_dir() else path.parent)
    return Inputs(_named([_below(root, os.path.abspath(item.path)) for item in items]), ())


def _named(found: Sequence[_Found]) -> tuple[InputImage, ...]:
    """The images found, each once, with their names and folders."""
    unique = {image.key: image for image in reversed(found)}
    ordered = [unique[key] for key in dict.fromkeys(image.key for image in found)]
    sources = [printable(s) for s in _distinct_sources(ordered)]
    folders = result_folders(sources)
    return tuple(InputImage(i.path, s, f, i.may_skip) for i, s, f in zip(ordered, sources, folders, strict=True))


def nothing_found(inputs: Sequence[Path], skipped: int, remarks: Sequence[str] = ()) -> UsageError:
    """The error of a run without any image."""
    looked = [f"{skipped} files skipped, which are no images"] if skipped else []
    why = f" ({'; '.join([*looked, *remarks])})" if looked or remarks else ""
    return UsageError(f"no images found in {', '.join(printable(str(i)) for i in inputs)}{why}")


def not_looked_into(unread: Sequence[str], linked: Sequence[str]) -> list[str]:
    """What to say of folders in which no images were looked for.

    >>> not_looked_into(["private"], [])
    ['1 folder could not be read (private)']
    """
    remarks = []
    for which, what in ((unread, "could not be read"), (linked, "not followed, being a link")):
        if which:
            more = ", ..." if len(which) > 1 else ""
            remarks.append(f"{len(which)} folder{'s' * (len(which) > 1)} {what} ({printable(which[0])}{more})")
    return remarks


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no UTF-8 are spelled out.

    >>> print(printable(os.fsdecode(b"caf\\xe9.png")))
    caf\\xe9.png
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def result_folders(sources: Sequence[str]) -> list[str]:
    """The folder below OUT for each source: its stem; its relative path where stems collide; with extension where these do.

    >>> result_folders(["a.dcm", "x/b.png", "y/b.png", "y/b.dcm"])
    ['a', 'x/b', 'y/b.png', 'y/b.dcm']
    """
    names = [_stem(PurePosixPath(s).name) for s in sources]
    for widen in (lambda s: str(PurePosixPath(s).with_name(_stem(PurePosixPath(s).name))), lambda s: s):
        count = Counter(n.casefold() for n in names)
        names = [
            widen(s) if count[n.casefold()] > 1 or n.casefold() in RESERVED else n for s, n in zip(sources, names, strict=True)
        ]
    names = ["/".join(_free(part, i == 0) for i, part in enumerate(name.split("/"))) for name in names]
    count, seen = Counter(n.casefold() for n in names), Counter[str]()
    out = []
    for name in names:  # what is left differs in upper and lower case alone
        key = name.casefold()
        seen[key] += 1
        out.append(f"{name}_{seen[key]}" if count[key] > 1 else name)
    return out


def _coco_images(file: Path) -> list[_Found]:
    """The images a COCO file names, there or not: one that is missing or broken gets its own status, as any other image."""
    try:
        content = json.loads(file.read_bytes())
        names = [record["file_name"] for record in content["images"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{file}: expected COCO, a JSON object with images that have a file_name each") from error
    for name in names:
        if not isinstance(name, str) or not PurePosixPath(name).name or "\0" in name or not _encodable(name):
            raise UsageError(f"{file}: expected the relative path of an image as file_name, got {name!r:.80}")
    root = os.path.abspath(file.parent)
    return [_below(root, os.path.abspath(os.path.join(root, name))) for name in names]


def _below(root: str, path: str) -> _Found:
    """An image of a data set in the folder `root` (both absolute), named by its path there, or by its own name elsewhere."""
    inside = os.path.commonpath([root, path]) == root and path != root
    return _Found(Path(path), Path(os.path.relpath(path, root) if inside else os.path.basename(path)).as_posix())


def _refuse_no_image(file: Path) -> None:
    """Raises `NotAnImageError` where a named file is no image, or DICOM without one; anything else shows when it is read."""
    if not is_candidate_file(file):
        raise NotAnImageError(f"{file}: expected a DICOM, PNG, TIFF, JPEG or PGM image, got another kind of file")
    if sniff(file) == "dicom":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_kind(pydicom.dcmread(file, force=True, stop_before_pixels=True))
        except NotAnImageError as error:
            raise NotAnImageError(f"{file}: {error}") from error
        except Exception:  # pydicom raises anything on damaged headers; the reason is given when the file is read
            return


def _walk(root: Path, exclude: Path | None, found: list[_Found], passed: _Passed) -> None:
    avoid = os.path.realpath(exclude) if exclude is not None else None

    def unreadable(error: OSError) -> None:
        passed.unread.append(Path(os.path.relpath(error.filename or root, root)).as_posix())

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        folders[:] = sorted(d for d in folders if not d.startswith(".") and os.path.realpath(here / d) != avoid)
        passed.linked.extend((here / d).relative_to(root).as_posix() for d in folders if (here / d).is_symlink())
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or (path.exists() and not path.is_file()):
                continue
            source = path.relative_to(root).as_posix()
            if is_candidate_file(path):
                found.append(_Found(path, source, may_skip=True))
            else:
                passed.skipped.append(source)


def _distinct_sources(found: Sequence[_Found]) -> list[str]:
    sources = [image.source for image in found]
    if len(set(sources)) == len(sources):
        return sources
    common = os.path.commonpath([os.path.dirname(image.key) for image in found])
    return [Path(os.path.relpath(image.key, common)).as_posix() for image in found]


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    stem = name.removesuffix(suffix) if suffix.lower() in DICOM_SUFFIXES | RASTER_SUFFIXES else name
    return name if stem in (".", "..") else stem


def _free(part: str, first: bool) -> str:
    """One part of a folder's name below OUT: short enough, and no name that files of ours have there."""
    taken = RESERVED if first else _OWN_FILES
    return f"{part}_" if part.casefold() in taken else _short(part)


def _short(name: str) -> str:
    data = name.encode()
    if len(data) <= _NAME_MAX:
        return name
    return f"{data[: _NAME_MAX - 9].decode(errors='ignore')}_{hashlib.sha256(data).hexdigest()[:8]}"


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeError:
        return False
    return True
