"""What there is to look at: images in folders, uploads, and the findings that belong to them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammoseg.apps.inputs import printable
from mammoseg.apps.out_folder import earlier_folders, is_below
from mammoseg.apps.outputs import FINDINGS, RUN
from mammoseg.apps.server.errors import not_found
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.apps.server.store import Store
from mammoseg.apps.server.views import name_says
from mammoseg.errors import DatasetError
from mammoseg.io.findings_json import validate
from mammoseg.io.load import is_candidate_file
from mammoseg.io.stored import StoredHeader, read_header

_LOOK_AGAIN_S = 2.0
_BOTH = "mammoseg serve IMAGES RESULTS"
log = logging.getLogger("mammoseg.server")


@dataclass(frozen=True)
class Entry:
    """One image. path: its file, None where only findings are here. name: shown to people, relative to its folder.

    uploaded: kept by this server, and may be removed by it. results: OUT folders' findings of it; those of jobs are
    in the database.
    """

    image_id: str
    path: Path | None
    name: str
    uploaded: bool = False
    results: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Found:
    """An image's findings. folder: where its results are. document: findings.json."""

    folder: Path
    document: dict[str, Any]


@dataclass
class _Scan:
    entries: dict[str, Entry] = field(default_factory=dict)
    studies: dict[str, list[str]] | None = None


class Catalogue:
    """All images and findings of a server; looks again when it is asked and some time has passed."""

    def __init__(self, settings: ServerSettings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._lock = threading.RLock()
        self._current, self._until = _Scan(), 0.0
        self._said_missing = 0
        self._candidates: dict[Path, tuple[int, int, bool]] = {}
        self._headers: dict[Path, tuple[tuple[int, int], StoredHeader]] = {}
        self._documents: dict[Path, tuple[tuple[int, int], dict[str, Any] | None]] = {}

    def entries(self) -> list[Entry]:
        """All images, in the order of their names within each folder."""
        return list(self._scan().entries.values())

    def entry(self, image_id: str) -> Entry:
        """The image of that id. Raises `ApiError` 404."""
        known = None if self._until == 0.0 else self._current.entries.get(image_id)
        found = known or self._scan().entries.get(image_id)
        if found is None:
            raise not_found("image")
        return found

    def look_again(self) -> None:
        """Something changed: the next question looks at the disk."""
        with self._lock:
            self._until = 0.0

    def header(self, entry: Entry) -> StoredHeader:
        """What the image's file says of itself."""
        return StoredHeader() if entry.path is None else self._header(entry.path)

    def _header(self, path: Path) -> StoredHeader:
        stamp = stamp_of(path)
        known = self._headers.get(path)
        if known is None or known[0] != stamp:
            known = stamp, read_header(path)
            self._headers[path] = known
        return known[1]

    def found(self, entry: Entry, sure: bool = False) -> Found | None:
        """The newest findings made from this very image file; None where there are none.

        sure: compare the file's hash with that of the findings even where that means reading the file.
        """
        newest: tuple[int, Found] | None = None
        for folder in self._folders(entry):
            document = self._document(folder / FINDINGS)
            if document is None or not self._is_of(entry, document, sure):
                continue
            age = stamp_of(folder / FINDINGS)[0]
            if newest is None or age > newest[0]:
                newest = age, Found(folder, document)
        return newest[1] if newest is not None else None

    def why_none(self, entry: Entry) -> str | None:
        """Why findings that are there do not count (see `found`); None where there are none."""
        for folder in self._folders(entry):
            if (folder / FINDINGS).exists():
                if self._document(folder / FINDINGS) is None:
                    return "its findings.json is damaged or of another version: analyse it again"
                return "the findings here are those of another file: analyse this one"
        return None

    def _folders(self, entry: Entry) -> list[Path]:
        rows = self._store.rows("SELECT folder FROM results WHERE image_id = ?", entry.image_id)
        return [*entry.results, *(self._store.root / row["folder"] for row in rows)]

    def studies(self) -> dict[str, list[Entry]]:
        """Images that belong together, by the study their files name, or else by what their names have in common."""
        scan = self._scan()
        if scan.studies is None:
            groups: dict[str, list[str]] = defaultdict(list)
            for entry in scan.entries.values():
                groups[self.study_id(entry)].append(entry.image_id)
            scan.studies = dict(groups)
        return {study: [scan.entries[i] for i in images] for study, images in scan.studies.items()}

    def study_id(self, entry: Entry) -> str:
        """The study of an image."""
        study = self.header(entry).study
        if study is not None:
            return self._store.opaque("study", study)
        where = "" if entry.path is None else os.path.dirname(os.path.abspath(entry.path))
        return self._store.opaque("study by name", where, name_says(entry.name)[2])

    def label(self, entries: list[Entry]) -> str:
        """A study's name for people: what its images' names have in common, else their folder."""
        names = {name_says(e.name)[2] for e in entries}
        if len(names) == 1:
            return names.pop()
        common = os.path.commonpath([os.path.dirname(n) for n in names]) if all(os.path.dirname(n) for n in names) else ""
        return common or min(names)

    def _is_of(self, entry: Entry, document: dict[str, Any], sure: bool) -> bool:
        digest = document["image"]["file_sha256"]
        if entry.path is None or digest is None:
            return True
        known = self._store.sha256(entry.path) if sure else self._store.known_sha256(entry.path)
        return known is None or known == digest

    def _document(self, path: Path) -> dict[str, Any] | None:
        stamp = stamp_of(path)
        known = self._documents.get(path)
        if known is None or known[0] != stamp:
            known = stamp, _read_document(path)
            self._documents[path] = known
        return known[1]

    def _scan(self) -> _Scan:
        with self._lock:
            if time.monotonic() >= self._until:
                begun = time.monotonic()
                self._current = self._look()
                self._until = time.monotonic() + max(_LOOK_AGAIN_S, 20 * (time.monotonic() - begun))
            return self._current

    def _look(self) -> _Scan:
        images: dict[Path, Entry] = {}
        runs: list[Path] = []
        folders = self._settings.folders
        for root in folders:
            files, found = self._walk(root)
            runs += found
            prefix = f"{root.resolve().name}/" if len(folders) > 1 and root.is_dir() else ""
            base = root if root.is_dir() else root.parent
            for path in files:
                self._add(images, path, printable(prefix + path.relative_to(base).as_posix()))
        for path, source, _ in self._settings.pairs:
            self._add(images, path, source)
        for row in self._store.rows("SELECT * FROM images ORDER BY rowid"):
            path = self._store.root / row["file"]
            images[path] = Entry(row["image_id"], path, row["name"], uploaded=True)
        by_id = {e.image_id: e for e in images.values()}
        results = self._results(by_id, runs)
        entries = {i: Entry(e.image_id, e.path, e.name, e.uploaded, tuple(results.pop(i, ()))) for i, e in by_id.items()}
        entries |= {i: Entry(i, None, name, results=(folder,)) for i, (name, folder) in self._orphans.items()}
        self._say_missing(len(self._orphans))
        return _Scan(entries)

    def _say_missing(self, n: int) -> None:
        """One line in the terminal where the files of `n` images with findings are not in the folders served."""
        if n > self._said_missing:
            log.warning("findings without their image files: %d; name the folder with the images too: %s", n, _BOTH)
        self._said_missing = n

    def _add(self, images: dict[Path, Entry], path: Path, name: str) -> None:
        key = Path(os.path.abspath(path))
        if key not in images:
            images[key] = Entry(self._store.opaque("file", os.fsdecode(key)), key, name)

    def _results(self, entries: dict[str, Entry], runs: Iterable[Path]) -> dict[str, list[Path]]:
        """The folders with findings of each image; what belongs to none becomes an entry of its own (`_orphans`)."""
        out: dict[str, list[Path]] = defaultdict(list)
        self._orphans: dict[str, tuple[str, Path]] = {}
        sure = {folder: self._store.opaque("file", os.path.abspath(path)) for path, _, folder in self._settings.pairs}
        for image_id, folder in sorted((e, f) for f, e in sure.items()):
            out[image_id].append(folder)
        by_name: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries.values():
            by_name[os.path.basename(entry.name)].append(entry)
        for run in runs:
            for source, folder in _images_of(run):
                if folder in sure:
                    continue
                owner = self._owner(source, folder, by_name.get(os.path.basename(source), []))
                if owner is not None:
                    out[owner.image_id].append(folder)
                elif (folder / FINDINGS).is_file():
                    self._orphans[self._store.opaque("findings", os.path.abspath(folder))] = source, folder
        return out

    def _owner(self, source: str, folder: Path, named: list[Entry]) -> Entry | None:
        """The image that findings of `source` belong to: told by its name, and where several fit by the file's hash."""
        fits = [e for e in named if not e.uploaded and f"/{e.name}".endswith(f"/{source}")]
        if len(fits) <= 1:
            return fits[0] if fits else None
        document = self._document(folder / FINDINGS)
        digest = document["image"]["file_sha256"] if document is not None else None
        same = [e for e in fits if e.path is not None and self._store.sha256(e.path) == digest]
        return same[0] if same else None

    def _walk(self, root: Path) -> tuple[list[Path], list[Path]]:
        """The image files below `root` in the order of their names, and the OUT folders of runs."""
        if not root.is_dir():
            return ([root] if root.is_file() else []), []
        files, runs, avoid = [], [], self._store.root.resolve()
        for folder, folders, names in os.walk(root):
            here = Path(folder)
            if RUN in names and earlier_folders(here) is not None:
                runs.append(here)
                folders.clear()
                continue
            folders[:] = sorted(d for d in folders if not d.startswith(".") and (here / d).resolve() != avoid)
            files += [here / n for n in sorted(names) if not n.startswith(".") and self._is_candidate(here / n)]
        return files, runs

    def _is_candidate(self, path: Path) -> bool:
        stamp = stamp_of(path)
        known = self._candidates.get(path)
        if known is None or known[:2] != stamp:
            known = *stamp, path.is_file() and is_candidate_file(path) and not self._header(path).no_image
            self._candidates[path] = known
        return known[2]


def stamp_of(path: Path) -> tuple[int, int]:
    """When a file was changed (ns) and its size; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _images_of(run: Path) -> list[tuple[str, Path]]:
    """Source and folder of each image in the run that wrote `run`."""
    try:
        listed = json.loads((run / RUN).read_text(encoding="utf-8"))["images"]
        return [(str(i["source"]), run / i["folder"]) for i in listed if is_below(i["folder"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _read_document(path: Path) -> dict[str, Any] | None:
    """A findings.json, None where it is none."""
    try:
        document = json.loads(path.read_bytes(), parse_constant=_no_number)
        validate(document)
    except (OSError, ValueError, TypeError, RecursionError, DatasetError):
        return None
    return dict(document)
