"""The OUT folder of a run: whether it may be written to, by whom, and what an earlier run left there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mammoseg.apps.dicom_outputs import clear_studies
from mammoseg.apps.outputs import FINDINGS, LOCK, ORIGIN, PARQUET, PICTURE_FILES, RUN, TABLES, write_run
from mammoseg.errors import UsageError
from mammoseg.io.atomic import locked


def check_out(out: Path, inputs: Iterable[Path], resume: bool, overwrite: bool) -> None:
    """Raises `UsageError` where OUT is mixed up with the inputs, or holds what may not be replaced."""
    refuse_mixing(out, inputs)
    if is_empty(out):
        return
    if earlier_folders(out) is None:
        raise UsageError(f"{out} is not empty, and what is there is no run of `mammoseg segment`: name another folder")
    if not (resume or overwrite):
        raise UsageError(
            f"{out} is not empty: add --resume to go on with it, --overwrite to replace it, or name another folder"
        )


def refuse_mixing(out: Path, paths: Iterable[Path]) -> None:
    """Raises `UsageError` where one of `paths` is OUT or lies in it."""
    here = Path(os.path.realpath(out))
    for path in paths:
        there = Path(os.path.realpath(path))
        if here == there or here in there.parents:
            raise UsageError(f"--out {out} is or holds the input {path}: name a folder for the results alone")


def is_empty(out: Path) -> bool:
    """Whether `out` does not exist or holds nothing but the lock of a run."""
    return not out.exists() or (out.is_dir() and all(entry.name == LOCK for entry in os.scandir(out)))


def is_below(folder: str) -> bool:
    """Whether a result folder's name leads below OUT, and nowhere else."""
    parts = PurePosixPath(folder).parts
    return bool(parts) and ".." not in parts and not PurePosixPath(folder).is_absolute()


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keeps other runs out of `out`, which is made if need be; the system lets go of it when this process ends.

    A folder made here that is still empty at the end is removed. Raises `UsageError` where another run is at work there. File
    systems without locks are used without.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if made:
            stack.callback(_drop_if_empty, out)
        _lock(stack, out / LOCK, out)
        yield


@contextlib.contextmanager
def held_beside(out: Path) -> Iterator[None]:
    """As `held`, for a folder that takes its place whole: the lock is beside it, under a hidden name."""
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _lock(stack, place.with_name(f".{place.name}{LOCK}"), out)
        yield


def _lock(stack: contextlib.ExitStack, file: Path, out: Path) -> None:
    try:
        stack.enter_context(locked(file))
    except BlockingIOError as error:
        raise UsageError(f"another run is writing to {out}: wait for its end, or name another folder") from error


def _drop_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def begin(out: Path, record: dict[str, Any], keep: bool) -> None:
    """Makes OUT ready for a run: says in run.json which folders are its own, and removes what no longer holds.

    record: run.json of the run that begins. keep: leave an earlier run's results of images that are in this one too.
    """
    current = {image["folder"] for image in record["images"]}
    stale = [f for f in earlier_folders(out) or () if not (keep and f in current)]
    for folder in stale:
        clear_image(out, folder)
    for name in TABLES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / PARQUET, ignore_errors=True)
    clear_studies(out)
    write_run(out, {**record, "state": "running"})


def earlier_folders(out: Path) -> list[str] | None:
    """The image folders of the run that wrote `out`, by its run.json; None where no run wrote it."""
    try:
        found = json.loads((out / RUN).read_text(encoding="utf-8"))
        found["provenance"]["bundle"]["sha256"]
        return [image["folder"] for image in found["images"] if is_below(image["folder"])]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_image(out: Path, folder: str) -> None:
    """Removes one image's results, and its folders where nothing else is in them."""
    here = out / folder
    for name in (FINDINGS, ORIGIN, *PICTURE_FILES.values()):
        (here / name).unlink(missing_ok=True)
    while here != out and here.is_dir() and not any(here.iterdir()):
        here.rmdir()
        here = here.parent
