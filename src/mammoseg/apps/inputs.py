"""Which images a run works through, what each is called, and in which folder its results go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mammoseg.datasets import read_dataset
from mammoseg.errors import NotAnImageError, UsageError
from mammoseg.io.load import DICOM_SUFFIXES, RASTER_SUFFIXES, is_candidate_file

RESERVED = {"index.html", "findings.jsonl", "findings.csv", "run.json"}


@dataclass(frozen=True)
class InputImage:
    """path: where the file is. source: its name in findings, relative, with `/`. folder: of its results, below OUT."""

    path: Path
    source: str
    folder: str


@dataclass(frozen=True)
class Inputs:
    """images: in the order they are worked through. skipped: files in folders that are no images, relative."""

    images: tuple[InputImage, ...]
    skipped: tuple[str, ...]


def collect(inputs: Sequence[Path], exclude: Path | None = None) -> Inputs:
    """Finds the images in files, folders (recursed) and COCO files.

    exclude: a folder not to look into (where results are written). Hidden files and folders are passed over.
    Raises `UsageError` where an input does not exist or nothing is found, `NotAnImageError` where a named file is no image.
    """
    found: list[tuple[Path, str]] = []
    skipped: list[str] = []
    for item in inputs:
        if item.is_dir():
            _walk(item, exclude, found, skipped)
        elif not item.exists():
            raise UsageError(f"no such file or folder: {item}")
        elif item.suffix.lower() == ".json":
            root = item.parent
            found += [(Path(i.path), _relative(Path(i.path), root)) for i in read_dataset(f"coco:{item}")]
        elif not is_candidate_file(item):
            raise NotAnImageError(f"{item}: expected a DICOM, PNG, TIFF, JPEG or PGM image, got another kind of file")
        else:
            found.append((item, item.name))
    unique = {os.path.abspath(path): (path, source) for path, source in reversed(found)}
    ordered = [unique[key] for key in dict.fromkeys(os.path.abspath(path) for path, _ in found)]
    if not ordered:
        looked = f" ({len(skipped)} files skipped, which are no images)" if skipped else ""
        raise UsageError(f"no images found in {', '.join(str(i) for i in inputs)}{looked}")
    paths = [path for path, _ in ordered]
    sources = _distinct_sources(paths, [source for _, source in ordered])
    folders = result_folders(sources)
    return Inputs(tuple(InputImage(p, s, f) for p, s, f in zip(paths, sources, folders, strict=True)), tuple(skipped))


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
    count, seen = Counter(n.casefold() for n in names), Counter[str]()
    out = []
    for name in names:  # what is left differs in upper and lower case alone, or is a name we need
        key = name.casefold()
        seen[key] += 1
        out.append(f"{name}_{seen[key]}" if count[key] > 1 or key in RESERVED else name)
    return out


def _walk(root: Path, exclude: Path | None, found: list[tuple[Path, str]], skipped: list[str]) -> None:
    avoid = exclude.resolve() if exclude is not None else None
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(d for d in folders if not d.startswith(".") and (here / d).resolve() != avoid)
        for name in sorted(files):
            path = here / name
            if name.startswith(".") or not path.is_file():
                continue
            if is_candidate_file(path):
                found.append((path, path.relative_to(root).as_posix()))
            else:
                skipped.append(path.relative_to(root).as_posix())


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.name


def _distinct_sources(paths: Sequence[Path], sources: Sequence[str]) -> list[str]:
    if len(set(sources)) == len(sources):
        return list(sources)
    common = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in paths])
    return [Path(os.path.relpath(os.path.abspath(p), common)).as_posix() for p in paths]


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in DICOM_SUFFIXES | RASTER_SUFFIXES else name
