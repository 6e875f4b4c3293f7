"""The node as a whole: receives, waits until studies are complete, has them analysed, and sends the results on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pydicom

from mammoseg.apps.node.analysis import AnalysisError, Analyst
from mammoseg.apps.node.config import NodeConfig
from mammoseg.apps.node.deliver import Courier, sender_for
from mammoseg.apps.node.intake import key_of
from mammoseg.apps.node.log import Log, place_of, short
from mammoseg.apps.node.server import Server, serve
from mammoseg.apps.node.store import DATABASE, Snapshot, Store, write_durably
from mammoseg.errors import UsageError

LOCK = "node.lock"
_TICK_S = 0.5
_PURGE_S = 600.0
_ANALYSIS_RETRY_S = 5.0
_ANALYSIS_RETRY_MAX_S = 600.0


class Node:
    """One node; `run` returns when `stop` was called."""

    def __init__(self, config: NodeConfig, log: Log) -> None:
        self._config, self._log = config, log
        self._stop = threading.Event()
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._quiet_from: dict[str, float] = {}  # study to the moment its last object came, on the monotonic clock
        self._analyst = Analyst(config.analysis)
        self.port = 0

    def stop(self) -> None:
        """Asks `run` to end. May be called from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Runs until stopped. Raises `UsageError` where the spool or the port cannot be had."""
        spool = Path(self._config.spool)
        with held(spool):
            store, removed = _opened(spool)
            begun = time.monotonic()
            self._quiet_from = dict.fromkeys(store.unfinished(), begun)  # senders could not reach us: quiet begins now
            self._log("recovered", studies=len(self._quiet_from), count=removed)
            couriers = {
                d.name: Courier(d, sender_for(d, self._config.ae_title), store, self._log) for d in self._config.destinations
            }
            try:
                server = Server(self._config, store, self._log, self._arrived)
            except OSError as error:
                raise UsageError(
                    f"cannot listen on {self._config.host} port {self._config.port} ({error.strerror}): "
                    "name another host or port, or stop what listens there"
                ) from error
            self.port = int(server.server_address[1])
            threads = [threading.Thread(target=c.run, args=(self._stop,), daemon=True) for c in couriers.values()]
            threads.append(threading.Thread(target=self._analyse_all, args=(store, couriers), daemon=True))
            for thread in threads:
                thread.start()
            serve(server)
            with contextlib.suppress(OSError):  # for people; a full disk is no reason not to run
                (spool / LOCK).write_text(f"{os.getpid()}\n")
            self._log("started", port=self.port, pid=os.getpid())
            _tell_systemd("READY=1")
            self._attend(store)
            _tell_systemd("STOPPING=1")
            self._log("stopping")
            server.stop(self._config.grace_s)
            self._news.set()
            for courier in couriers.values():
                courier.wake()
            for thread in threads:  # one that hangs in a slow network is left behind: what it sends is sent again
                thread.join(timeout=self._config.grace_s + 1)
            self._analyst.kill()
            if not any(thread.is_alive() for thread in threads):
                store.close()
            self._log("stopped")

    def _attend(self, store: Store) -> None:
        purged = time.monotonic()
        while not self._stop.wait(_TICK_S):
            if time.monotonic() - purged > _PURGE_S:
                purged = time.monotonic()
                try:
                    count = store.purge(self._config.keep_h * 3600)
                except (OSError, sqlite3.Error) as error:  # a full disk: later
                    self._log("error", "error", error=type(error).__name__, where=place_of(error))
                    continue
                if count:
                    self._log("purged", studies=count)

    # ---- analysis

    def _arrived(self, study: str) -> None:
        with self._lock:
            self._quiet_from[study] = time.monotonic()
        self._news.set()

    def _due(self) -> tuple[str | None, float | None]:
        """The study that is complete for longest, and how long until the next one may be; None where there is none."""
        with self._lock:
            waits = {study: since + self._config.quiet_s for study, since in self._quiet_from.items()}
        if not waits:
            return None, None
        study = min(waits, key=lambda s: waits[s])
        wait = waits[study] - time.monotonic()
        return (study, 0.0) if wait <= 0 else (None, wait)

    def _analyse_all(self, store: Store, couriers: dict[str, Courier]) -> None:
        while not self._stop.is_set():
            self._news.clear()
            study, wait = self._due()
            if study is None:
                if not self._stop.is_set():
                    self._news.wait(wait)
                continue
            try:
                self._analyse(study, store, couriers)
            except Exception as error:  # the database cannot be written to: the study stays due
                self._log("error", "error", error=type(error).__name__, where=place_of(error))
                self._stop.wait(_ANALYSIS_RETRY_S)

    def _analyse(self, study: str, store: Store, couriers: dict[str, Courier]) -> None:
        since = self._quiet_from[study]
        seen = store.snapshot(study)
        if seen.change > seen.done:
            begun = time.monotonic()
            self._log("study_complete", study=short(study), images=len(seen.objects), version=seen.version + 1)
            try:
                done = self._analyst.analyse(seen, store.results / study, self._stop)
                results = dict(_to_outbox(file, store) for file in done.files)
                version = store.finish(seen, results, couriers)
            except Exception as error:
                if not self._stop.is_set():
                    self._put_off(seen, store, error)
                return
            if version is None:
                self._log("study_changed_meanwhile", study=short(study))
                return
            took = round(time.monotonic() - begun, 1)
            self._log("analysed", study=short(study), version=version, results=len(results), seconds=took, **done.counts)
        with self._lock:
            if self._quiet_from[study] == since:  # else more came, and the study is quiet again later
                del self._quiet_from[study]
        for courier in couriers.values():
            courier.wake()

    def _put_off(self, seen: Snapshot, store: Store, error: Exception) -> None:
        """Another attempt later: what stopped this one (a full disk, a killed process) passes."""
        attempts = store.failed(seen.study)
        pause = min(_ANALYSIS_RETRY_S * 2.0 ** min(attempts - 1, 30), _ANALYSIS_RETRY_MAX_S)
        reason = str(error) if isinstance(error, AnalysisError) else f"{type(error).__name__} at {place_of(error)}"
        with self._lock:
            self._quiet_from[seen.study] = time.monotonic() + pause - self._config.quiet_s
        self._log("analysis_failed", "error", study=short(seen.study), attempts=attempts, reason=reason, next_s=pause)


def _to_outbox(file: Path, store: Store) -> tuple[str, str]:
    """Copies a result to the outbox under the hash of its content; returns that name and the hash of its instance UID."""
    data = file.read_bytes()
    name = f"{hashlib.sha256(data).hexdigest()}.dcm"
    if not (store.outbox / name).exists():
        write_durably(store.outbox / name, [data], store.incoming)
    return name, key_of(str(pydicom.filereader.read_file_meta_info(file).MediaStorageSOPInstanceUID))


def _opened(spool: Path) -> tuple[Store, int]:
    """The store, after what a crash left unfinished was removed, and how many files that were. Raises `UsageError`."""
    try:
        store = Store(spool)
        return store, store.recover()
    except (OSError, sqlite3.Error) as error:
        raise UsageError(
            f"spool {spool} cannot be used ({error}): see that the disk is not full, that this user may write there, and that "
            f"{DATABASE} is this program's"
        ) from error


@contextlib.contextmanager
def held(spool: Path) -> Iterator[None]:
    """Keeps other nodes out of a spool. Raises `UsageError` where one is at work, or the folder cannot be had."""
    try:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (spool / LOCK).open("a")
    except OSError as error:
        raise UsageError(f"spool {spool}: {error.strerror}; name a folder that this user may write to") from error
    with file:
        if not _locked(file):
            raise UsageError(f"another node is at work in {spool}: stop it, or give this one its own spool")
        yield


def _locked(file: TextIO, patience_s: float = 1.0) -> bool:
    """Takes the lock; `node status`, which holds it for a moment, is waited for."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        else:
            return True


def is_running(spool: Path) -> bool:
    """Whether a node is at work in this spool."""
    try:
        with (spool / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _tell_systemd(message: str) -> None:
    """Tells the service manager (sd_notify(3)), where there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send(message.encode())


def run(config: NodeConfig, log: Log) -> None:
    """Runs a node until SIGTERM or SIGINT."""
    node = Node(config, log)

    def on_signal(number: int, frame: object) -> None:
        node.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    node.run()
