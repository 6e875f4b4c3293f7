"""What a server remembers over a restart: a folder of its own with a database, uploads and the results of jobs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mammoseg.errors import MammosegError, UsageError

_DATABASE = "server.sqlite"
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
  image_id TEXT PRIMARY KEY, file TEXT NOT NULL, name TEXT NOT NULL, batch TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
  done INTEGER NOT NULL, total INTEGER NOT NULL, failures TEXT NOT NULL, error TEXT);
CREATE TABLE IF NOT EXISTS results (
  image_id TEXT NOT NULL, folder TEXT NOT NULL, PRIMARY KEY (image_id, folder));
CREATE TABLE IF NOT EXISTS hashes (
  file TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, sha256 TEXT NOT NULL);
"""


class Store:
    """The folder `root`, made if need be, for this user alone. Used by one server at a time.

    Raises `UsageError` where another server uses it or it cannot be written, `MammosegError` where its database is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            for name in ("uploads", "jobs", "made"):
                (root / name).mkdir(exist_ok=True)
            root.chmod(0o700)
            self._lock_file = (root / "lock").open("a")
        except OSError as error:
            raise UsageError(f"--state {root}: cannot be written ({error.strerror}); name another folder") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock_file.close()
            raise UsageError(f"another server uses {root}: end it, or name another folder with --state") from error
        except OSError:  # a file system without locks
            pass
        self._lock = threading.RLock()
        try:
            self._database = sqlite3.connect(root / _DATABASE, check_same_thread=False, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(_SCHEMA)
            version = self.meta("version", str(_VERSION))
            self._secret = self.meta("secret", secrets.token_hex(32)).encode()
        except sqlite3.Error as error:
            raise MammosegError(f"{root / _DATABASE} is damaged ({error}): move {root} away to start anew") from error
        if version != str(_VERSION):
            raise UsageError(f"{root} was written by another version of mammoseg: name another folder with --state")

    def close(self) -> None:
        """Lets go of the folder."""
        with self._lock:
            self._database.close()
        self._lock_file.close()

    def meta(self, key: str, default: str) -> str:
        """The value kept under `key`; `default` is kept where there is none yet."""
        with self.writing() as database:
            database.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, default))
            return str(database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def opaque(self, *parts: str) -> str:
        """A name for `parts` that says nothing of them (keyed hash, 24 hex digits); the same as long as this folder is kept."""
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:24]

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; only one at a time."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def sha256(self, path: Path) -> str | None:
        """The file's hash, worked out once for each state of it; None where it cannot be read."""
        try:
            status = path.stat()
        except OSError:
            return None
        known = self.known_sha256(path, status)
        if known is not None:
            return known
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        with self.writing() as database:
            row = (os.fsdecode(path), status.st_size, status.st_mtime_ns, digest)
            database.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", row)
        return digest

    def known_sha256(self, path: Path, status: os.stat_result | None = None) -> str | None:
        """The file's hash where it was worked out before, for the file as it is now."""
        try:
            status = status or path.stat()
        except OSError:
            return None
        found = self.rows("SELECT size, modified, sha256 FROM hashes WHERE file = ?", os.fsdecode(path))
        same = found and (found[0]["size"], found[0]["modified"]) == (status.st_size, status.st_mtime_ns)
        return str(found[0]["sha256"]) if same else None
