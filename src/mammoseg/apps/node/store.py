"""What a node holds: files named by hashes, and a database that says what is to be done with them.

    spool/incoming/       objects being written; emptied at start
    spool/objects/        received objects, one file each, whole: <hash of study and instance UID>-<hash of content>.dcm
    spool/results/<study> what the analysis wrote
    spool/outbox/         results that wait for delivery, named by their content
    spool/node.sqlite     studies, objects, deliveries, and which objects are our own

A file is synchronised and renamed before the database speaks of it, and the database before anybody is told: a crash at any
moment leaves whole files, and at worst some that nobody knows of, which `recover` removes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DATABASE = "node.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
  study TEXT PRIMARY KEY,           -- hash of the Study Instance UID
  change INTEGER NOT NULL,          -- rises with each object that is new or differs
  done INTEGER NOT NULL DEFAULT 0,  -- `change` as the last finished analysis saw it
  version INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  changed REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS objects (
  object TEXT PRIMARY KEY, study TEXT NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS objects_of_study ON objects (study);
CREATE TABLE IF NOT EXISTS own (instance TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS deliveries (
  id INTEGER PRIMARY KEY, destination TEXT NOT NULL, file TEXT NOT NULL, study TEXT NOT NULL, version INTEGER NOT NULL,
  made REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, delivered REAL, UNIQUE (destination, file)
);
CREATE INDEX IF NOT EXISTS waiting ON deliveries (destination, id) WHERE delivered IS NULL;
"""


@dataclass(frozen=True)
class Snapshot:
    """A study as it is at one moment. objects: (key, path) of each, in a fixed order; the rest as in the database."""

    study: str
    change: int
    done: int
    version: int
    attempts: int
    objects: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class Delivery:
    """A result on its way. file: in the outbox."""

    id: int
    study: str
    version: int
    file: Path
    attempts: int


class Store:
    """The spool folder and its database; every method may be called from any thread."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.incoming, self.objects, self.results, self.outbox = (
            spool / name for name in ("incoming", "objects", "results", "outbox")
        )
        for folder in (self.incoming, self.objects, self.results, self.outbox):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._doors = tuple(threading.Lock() for _ in range(64))
        self._db = sqlite3.connect(spool / DATABASE, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
        _sync_folder(spool)

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def recover(self) -> int:
        """Removes what a crash left unfinished; returns how many files that were. Nothing else may be at work."""
        with self._lock:
            known = {row[0] for row in self._db.execute("SELECT file FROM objects")}
            known |= {row[0] for row in self._db.execute("SELECT file FROM deliveries WHERE delivered IS NULL")}
        left = [*self.incoming.iterdir(), *(f for d in (self.objects, self.outbox) for f in d.iterdir() if f.name not in known)]
        for file in left:
            file.unlink()
        return len(left)

    # ---- reception

    def add(self, study: str, instance: str, content_key: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Keeps an object, durably; returns whether it is new (or differs from what was here by that name).

        study, instance: hashes of UIDs. content_key: hash of the content. parts: the file's bytes.
        """
        name = f"{instance}-{content_key[:16]}.dcm"
        with self._doors[hash(instance) % len(self._doors)]:
            return self._add(study, instance, name, parts)

    def _add(self, study: str, instance: str, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Of one instance one at a time: what replaces another content removes the file which that was in."""
        with self._lock:
            row = self._db.execute("SELECT file FROM objects WHERE object = ?", (instance,)).fetchone()
            if row is not None and row[0] == name:
                return False
        write_durably(self.objects / name, parts, self.incoming)
        with self._transaction() as db:
            row = db.execute("SELECT file FROM objects WHERE object = ?", (instance,)).fetchone()
            if row is not None and row[0] == name:
                return False
            size = (self.objects / name).stat().st_size
            db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (instance, study, name, size))
            db.execute(
                "INSERT INTO studies (study, change, changed) VALUES (?, 1, ?) "
                "ON CONFLICT (study) DO UPDATE SET change = change + 1, changed = excluded.changed, attempts = 0",
                (study, time.time()),
            )
        if row is not None:
            (self.objects / row[0]).unlink(missing_ok=True)
        return True

    def is_own(self, instance: str) -> bool:
        """Whether this hash of a SOP Instance UID is of an object that we made."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM own WHERE instance = ?", (instance,)).fetchone() is not None

    # ---- analysis

    def unfinished(self) -> list[str]:
        """The studies that changed since they were last analysed, oldest change first."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT study FROM studies WHERE change > done ORDER BY changed")]

    def snapshot(self, study: str) -> Snapshot:
        """The study as it is now."""
        with self._lock:
            query = "SELECT change, done, version, attempts FROM studies WHERE study = ?"
            change, done, version, attempts = self._db.execute(query, (study,)).fetchone()
            rows = self._db.execute("SELECT object, file FROM objects WHERE study = ? ORDER BY object", (study,)).fetchall()
        return Snapshot(study, change, done, version, attempts, tuple((key, self.objects / file) for key, file in rows))

    def failed(self, study: str) -> int:
        """Notes that an analysis did not come to its end; returns how many did not, since the study changed."""
        with self._transaction() as db:
            db.execute("UPDATE studies SET attempts = attempts + 1 WHERE study = ?", (study,))
            return int(db.execute("SELECT attempts FROM studies WHERE study = ?", (study,)).fetchone()[0])

    def finish(self, seen: Snapshot, results: dict[str, str], destinations: Iterable[str]) -> int | None:
        """Notes that a study was analysed and what is to be delivered; returns the version, or None where it changed since.

        results: file in the outbox to the hash of its SOP Instance UID, in the order of delivery. What a destination got
        before, to the byte, it does not get again. Raises FileNotFoundError, and notes nothing, where a file that is to be
        delivered went from the outbox meanwhile (another destination got it): it has to be put there again.
        """
        with self._transaction() as db:
            change, version = db.execute("SELECT change, version FROM studies WHERE study = ?", (seen.study,)).fetchone()
            if change != seen.change:
                return None
            db.execute("UPDATE studies SET done = change, version = version + 1, attempts = 0 WHERE study = ?", (seen.study,))
            db.executemany("INSERT OR IGNORE INTO own VALUES (?)", [(own,) for own in results.values()])
            db.executemany(
                "INSERT OR IGNORE INTO deliveries (destination, file, study, version, made) VALUES (?, ?, ?, ?, ?)",
                [(d, file, seen.study, version + 1, time.time()) for d in destinations for file in results],
            )
            due = db.execute("SELECT file FROM deliveries WHERE study = ? AND delivered IS NULL", (seen.study,))
            for (file,) in due:
                if file in results and not (self.outbox / file).exists():
                    raise FileNotFoundError(errno.ENOENT, "a result went from the outbox")
        for file in results:
            self._drop_delivered(file)
        return int(version) + 1

    # ---- delivery

    def waiting(self, destination: str, after: int = 0, limit: int = 200) -> list[Delivery]:
        """What this destination has still to get, oldest first, a page. after: the last id of the page before."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, study, version, file, attempts FROM deliveries "
                "WHERE destination = ? AND delivered IS NULL AND id > ? ORDER BY id LIMIT ?",
                (destination, after, limit),
            ).fetchall()
        return [Delivery(i, study, version, self.outbox / file, attempts) for i, study, version, file, attempts in rows]

    def delivered(self, delivery: Delivery) -> None:
        """Notes that the destination has it."""
        with self._transaction() as db:
            db.execute("UPDATE deliveries SET delivered = ? WHERE id = ?", (time.time(), delivery.id))
        self._drop_delivered(delivery.file.name)

    def not_delivered(self, delivery: Delivery) -> None:
        """Notes an attempt that failed."""
        with self._transaction() as db:
            db.execute("UPDATE deliveries SET attempts = attempts + 1 WHERE id = ?", (delivery.id,))

    def _drop_delivered(self, file: str) -> None:
        """Removes a file from the outbox that nobody waits for any more."""
        with self._lock:
            query = "SELECT 1 FROM deliveries WHERE file = ? AND delivered IS NULL"
            if self._db.execute(query, (file,)).fetchone() is None:
                (self.outbox / file).unlink(missing_ok=True)

    # ---- the end

    def purge(self, keep_s: float) -> int:
        """Forgets studies that are finished, delivered and older than `keep_s`; returns how many."""
        query = (
            "SELECT study FROM studies s WHERE change = done AND changed < ? AND NOT EXISTS "
            "(SELECT 1 FROM deliveries d WHERE d.study = s.study AND d.delivered IS NULL)"
        )
        with self._lock:
            studies = [row[0] for row in self._db.execute(query, (time.time() - keep_s,))]
            for study in studies:
                files = [row[0] for row in self._db.execute("SELECT file FROM objects WHERE study = ?", (study,))]
                with self._transaction() as db:
                    for table in ("objects", "deliveries", "studies"):
                        db.execute(f"DELETE FROM {table} WHERE study = ?", (study,))
                for file in files:
                    (self.objects / file).unlink(missing_ok=True)
                shutil.rmtree(self.results / study, ignore_errors=True)
        return len(studies)


def write_durably(path: Path, parts: Iterable[bytes | memoryview], temporary: Path) -> None:
    """Writes a file whole and synchronised, its name included. temporary: a folder on the same file system to write it in."""
    unfinished = temporary / f"{secrets.token_hex(16)}.part"
    try:
        with unfinished.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
