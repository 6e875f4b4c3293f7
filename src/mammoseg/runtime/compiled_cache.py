"""Compiled networks kept between runs: a folder of files, each named by the hash of all that it was made from.

`MAMMOSEG_CACHE` names the folder, or switches it off ("off"); by default it is `mammoseg` in the user's own folder for caches.
It holds weights and graphs, nothing of any image, and may be removed at any time. What cannot be read or written there is done
without: a cache never stops a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from mammoseg.io.atomic import hash_file, write_atomic

VARIABLE = "MAMMOSEG_CACHE"
MOST_BYTES = 2 << 30
"""The least recently used files go when all together are larger."""
_SUFFIX = ".blob"
_DIGEST = 32


def cache_folder() -> Path | None:
    """Where compiled networks are kept, or None where they are not."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return None if named.strip().lower() in ("", "off", "0", "no") else Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = str(Path("~/Library/Caches").expanduser())
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    # No home folder (a service account): "~" stays, and there is no cache.
    return Path(base) / "mammoseg" if base and Path(base).is_absolute() else None


def cache_key(parts: Iterable[str | bytes | Path]) -> str:
    """The hash of texts and of files' contents. Raises OSError where a file cannot be read."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            digest.update(b"file" + bytes.fromhex(hash_file(part)))
        else:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def read_cached(key: str) -> bytes | None:
    """What `write_cached` kept under `key`; None where there is nothing, it is damaged, or others may write to it."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / (key + _SUFFIX)
    try:
        status = path.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return None
        with path.open("rb") as file:
            digest, data = file.read(_DIGEST), file.read()  # no second copy of what may be hundreds of MB
    except OSError:
        return None
    if not data or hashlib.sha256(data).digest() != digest:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return data


def write_cached(key: str, data: bytes) -> None:
    """Keeps `data` under `key`, and removes the least recently used where there is too much."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / (key + _SUFFIX)
        write_atomic(path, hashlib.sha256(data).digest() + data)
        path.chmod(0o600)
        _trim(folder, path)


def _trim(folder: Path, newest: Path) -> None:
    kept = 0
    files = [p for p in folder.iterdir() if p.suffix == _SUFFIX]
    for path in sorted(files, key=lambda p: (p != newest, -p.stat().st_mtime)):
        kept += path.stat().st_size
        if kept > MOST_BYTES and path != newest:
            path.unlink(missing_ok=True)
