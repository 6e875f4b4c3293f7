"""DICOM results below OUT: `OUT/<image>/{seg,pr,sc}.dcm`, and `OUT/studies/<StudyInstanceUID>/{cadsr,sr}.dcm` for a study."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammoseg.io.atomic import write_atomic
from mammoseg.io.dicom_results import (
    IMAGE_FORMATS,
    STUDY_FORMATS,
    StudyImage,
    image_result,
    read_source,
    results_of,
    study_of,
    study_result,
)
from mammoseg.io.findings_json import read_findings
from mammoseg.types import Findings, Mammogram

STUDIES = "studies"
DICOM_FILES = {name: f"{name}.dcm" for name in IMAGE_FORMATS}
STUDY_FILES = {name: f"{name}.dcm" for name in STUDY_FORMATS}


@dataclass(frozen=True)
class StudiesOutcome:
    """studies: how many have reports. failed: how many could not be reported on. no_source: images that no object can refer
    to (no DICOM file, or one without UIDs); all of them 0 where no DICOM result was asked for.
    """

    studies: int = 0
    failed: int = 0
    no_source: int = 0


def write_image_results(folder: Path, path: Path, findings: Findings, mammogram: Mammogram, formats: Iterable[str]) -> None:
    """Writes the DICOM objects of one image among `formats`; none where its file has nothing they could refer to.

    path: the image's file. Raises `ImageError` where it cannot be read again.
    """
    wanted = results_of(findings.status, len(findings.lesions), formats)
    source = read_source(path) if wanted else None
    if source is not None:
        for name in wanted:
            write_atomic(folder / DICOM_FILES[name], image_result(name, source, findings, mammogram))


def has_image_results(folder: Path, path: Path, found: dict[str, Any], formats: Iterable[str]) -> bool:
    """Whether `folder` holds all that `write_image_results` would write. found: the findings as in JSON."""
    wanted = results_of(found["status"], len(found["lesions"]), formats)
    missing = [name for name in wanted if not (folder / DICOM_FILES[name]).is_file()]
    return not missing or read_source(path) is None


def write_studies(out: Path, images: Sequence[tuple[Path, str]], formats: Sequence[str]) -> StudiesOutcome:
    """Writes the reports of every study among the images from their findings.json.

    images: (file, folder below `out`) of each. A study that cannot be reported on is counted, and stops nothing.
    """
    wanted = [name for name in formats if name in STUDY_FORMATS]
    if not wanted and not any(name in IMAGE_FORMATS for name in formats):
        return StudiesOutcome()
    by_study: dict[str, list[tuple[Path, str]]] = {}
    no_source = 0
    for path, folder in images:
        source = read_source(path)
        if source is None:
            no_source += 1
        elif wanted:
            by_study.setdefault(source.study_instance_uid, []).append((path, folder))
    studies = failed = 0
    for uid, members in by_study.items():
        try:
            studies += _write_study(out, uid, members, wanted)
        except OSError:
            raise
        except Exception as error:
            failed += 1
            if os.environ.get("MAMMOSEG_DEBUG"):
                traceback.print_exception(error)
    return StudiesOutcome(studies, failed, no_source)


def _write_study(out: Path, uid: str, members: Iterable[tuple[Path, str]], wanted: Iterable[str]) -> bool:
    images = []
    for path, folder in members:
        source = read_source(path)
        if source is not None:
            images.append(StudyImage(source, read_findings(out / folder / "findings.json")))
    study = study_of(images)
    if study is None:
        return False
    for name in wanted:
        write_atomic(out / STUDIES / uid / STUDY_FILES[name], study_result(name, study))
    return True


def clear_studies(out: Path) -> None:
    """Removes the reports of studies, and their folders where nothing else is in them."""
    if not (out / STUDIES).is_dir():
        return
    for folder in sorted((out / STUDIES).iterdir()):
        if folder.is_dir() and not folder.is_symlink():
            names = set(STUDY_FILES.values())
            for file in [*(folder / n for n in names), *(f for n in names for f in folder.glob(f".{n}.*.tmp"))]:
                file.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
    if not any((out / STUDIES).iterdir()):
        (out / STUDIES).rmdir()
