"""Results to take away: what a run wrote, and what can be made of it on demand."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mammoseg.apps.outputs import FINDINGS, PICTURE_FILES
from mammoseg.apps.server.aside import Aside
from mammoseg.apps.server.catalogue import Catalogue, Entry, Found, stamp_of
from mammoseg.apps.server.errors import ApiError, not_found
from mammoseg.apps.server.store import Store
from mammoseg.errors import DatasetError, ImageError
from mammoseg.io import dicom_results
from mammoseg.io.atomic import write_atomic
from mammoseg.io.findings_json import read_findings
from mammoseg.io.load import load_mammogram
from mammoseg.io.pictures import write_mask_png, write_overlay_png

IMAGE_FORMATS = ("json", "mask", "overlay", *dicom_results.IMAGE_FORMATS)
STUDY_FORMATS = ("zip", *dicom_results.STUDY_FORMATS)
KINDS = {"json": ("json", "application/json"), "mask": ("png", "image/png"), "overlay": ("png", "image/png"),
         "zip": ("zip", "application/zip")}  # fmt: skip
_DICOM = ("dcm", "application/dicom")
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Download:
    """A file to be sent. name: for the receiver; says side, view and a part of the id."""

    path: Path
    name: str
    media_type: str


class Results:
    """Offers and makes results; what takes work is made aside, and kept."""

    def __init__(self, store: Store, catalogue: Catalogue, aside: Aside) -> None:
        self._store, self._catalogue, self._aside = store, catalogue, aside

    def formats(self, entry: Entry, found: Found | None) -> list[str]:
        """The formats in which an image's findings can be had."""
        if found is None:
            return []
        if found.document["status"] != "processed":
            return ["json"]
        header = self._catalogue.header(entry)
        out = ["json", "mask"]
        if entry.path is not None or (found.folder / PICTURE_FILES["overlay"]).is_file():
            out.append("overlay")
        if entry.path is not None and header.identified:
            out += dicom_results.results_of("processed", len(found.document["lesions"]), dicom_results.IMAGE_FORMATS)
        return out

    def study_formats(self, entries: Sequence[Entry]) -> list[str]:
        """The formats in which a study's findings can be had."""
        found = [(e, f) for e in entries if (f := self._catalogue.found(e)) is not None]
        sources = [e for e, f in found if e.path is not None and self._catalogue.header(e).identified]
        reports = any(f.document["status"] == "processed" for e, f in found if e in sources)
        return [*(["zip"] if found else []), *(dicom_results.STUDY_FORMATS if reports else ())]

    def of_image(self, entry: Entry, format: str) -> Download:
        """One image's result. Raises `ApiError` 404 where it cannot be had in that format."""
        found = self._catalogue.found(entry, sure=True)
        if found is None or format not in self.formats(entry, found):
            raise not_found("result")
        return Download(self._file(entry, found, format), self._name(entry, format), _kind(format)[1])

    def of_study(self, study_id: str, entries: Sequence[Entry], format: str) -> Download:
        """A study's result. Raises `ApiError` 404 where it cannot be had in that format."""
        if format not in self.study_formats(entries):
            raise not_found("result")
        found = [(e, f) for e in entries if (f := self._catalogue.found(e, sure=True)) is not None]
        key = hashlib.sha256(repr([(e.image_id, stamp_of(f.folder / FINDINGS)) for e, f in found]).encode()).hexdigest()[:32]
        target = self._store.root / "made" / study_id / f"{key}.{_kind(format)[0] if format == 'zip' else f'{format}.dcm'}"
        if not target.is_file():
            if format == "zip":
                self._aside.call(_LIMIT_S, make_zip, *self._all_of(study_id, entries, found), target)
            else:
                pairs = [(e.path, f.folder / FINDINGS) for e, f in found if e.path is not None]
                self._aside.call(_LIMIT_S, make_report, format, pairs, target)
        return Download(target, f"study_{study_id[:8]}.{'zip' if format == 'zip' else f'{format}.dcm'}", _kind(format)[1])

    def _all_of(
        self, study_id: str, entries: Sequence[Entry], found: Sequence[tuple[Entry, Found]]
    ) -> tuple[list[tuple[Path, str]], list[str]]:
        """The files of a study by their names, and a line for each that cannot be made."""
        wanted = [(self._name(e, i), partial(self._file, e, f, i)) for e, f in found for i in self.formats(e, f)]
        for i in self.study_formats(entries)[1:]:
            wanted.append((f"study_{i}.dcm", partial(self._report, study_id, entries, i)))
        files, problems = [], []
        for name, make in wanted:
            try:
                files.append((make(), name))
            except (DatasetError, ImageError) as error:
                problems.append(f"{name}: {error}")
        return files, problems

    def _report(self, study_id: str, entries: Sequence[Entry], format: str) -> Path:
        return self.of_study(study_id, entries, format).path

    def _file(self, entry: Entry, found: Found, format: str) -> Path:
        written = found.folder / (FINDINGS if format == "json" else PICTURE_FILES.get(format, f"{format}.dcm"))
        if written.is_file():
            return written
        findings = found.folder / FINDINGS
        key = hashlib.sha256(findings.read_bytes()).hexdigest()[:32]
        target = self._store.root / "made" / entry.image_id / f"{key}.{format}.{_kind(format)[0]}"
        if not target.is_file():
            self._aside.call(_LIMIT_S, make_result, format, entry.path, findings, target)
        return target

    def _name(self, entry: Entry, format: str) -> str:
        """A file name that says nothing of the patient."""
        header = self._catalogue.header(entry)
        view = f"{header.laterality or ''}{header.view_position or ''}"
        return (
            f"{view + '_' if view else ''}{entry.image_id[:8]}_{'findings' if format == 'json' else format}.{_kind(format)[0]}"
        )


def _kind(format: str) -> tuple[str, str]:
    return KINDS.get(format, _DICOM)


# ---- in the process aside


def make_result(format: str, image: Path | None, findings: Path, target: Path) -> None:
    """Writes one image's result to `target`. Raises `MammosegError`."""
    found = read_findings(findings)
    if format == "mask":
        write_mask_png(target, found)
        return
    if image is None:
        raise DatasetError("the image file is not here")
    mammogram = load_mammogram(image, "image")
    if format == "overlay":
        write_overlay_png(target, mammogram, found)
        return
    source = dicom_results.read_source(image)
    if source is None:
        raise DatasetError("the image has not the identifiers that a DICOM result must refer to")
    write_atomic(target, dicom_results.image_result(format, source, found, mammogram))


def make_report(format: str, pairs: Sequence[tuple[Path, Path]], target: Path) -> None:
    """Writes a study's report from (image, findings.json) pairs to `target`. Raises `MammosegError`."""
    images = []
    for image, findings in pairs:
        source = dicom_results.read_source(image)
        if source is not None:
            images.append(dicom_results.StudyImage(source, read_findings(findings)))
    try:
        study = dicom_results.study_of(images)
    except ValueError:
        study = None
    if study is None:
        raise ApiError(409, "no_report", "these images make no study that a report could be written of")
    write_atomic(target, dicom_results.study_result(format, study))


def make_zip(files: Sequence[tuple[Path, str]], problems: Sequence[str], target: Path) -> None:
    """Packs files under the given names into `target`; problems: what is missing and why, as `problems.txt`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".tmp")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, name in files:
            archive.write(path, name)
        if problems:
            archive.writestr("problems.txt", "".join(f"{line}\n" for line in problems))
    unfinished.replace(target)
