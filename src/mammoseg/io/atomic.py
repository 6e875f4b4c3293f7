"""Files as bytes: written whole or not at all, by one process at a time, and told by their hash."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that at any moment there is the old file, the whole new one, or none.

    A temporary file beside it is written, synchronised and renamed; folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if (
            isinstance(error, OSError) and error.errno is not None and error.filename is None
        ):  # a full disk: the system does not say where
            error.filename = str(path)
        raise


def swap_directory(made: Path, target: Path) -> None:
    """Puts the directory `made` in the place of `target`, which may be there; both in one folder.

    Killed in between, there is the old directory, the new one, or, for a moment, the old one under a hidden name.
    """
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, which is removed at the end; the system lets go of it when this process ends.

    Raises BlockingIOError where another process holds it. File systems without locks are used without.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise BlockingIOError  # the one that held it ended this moment
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """The sha256 hex digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
