"""Files as bytes: written whole or not at all, and told by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
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


def hash_file(path: Path) -> str:
    """The sha256 hex digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
