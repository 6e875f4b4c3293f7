"""Work done aside, in a process that may die: decoding libraries and networks meet files of strangers there, not here."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from mammoseg.apps.server.errors import ApiError
from mammoseg.errors import DecodeError, MammosegError

T = TypeVar("T")
_PATIENCE_S = 5.0


class Aside:
    """One process, started when it is first needed and replaced when it dies; does one thing at a time.

    idle_s: it is ended when nothing was asked of it for so long.
    """

    def __init__(self, idle_s: float = 300.0) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._used = 0.0
        self._closed = False

    def call(self, limit_s: float, function: Callable[..., T], *args: Any) -> T:
        """What `function(*args)` gives, worked out in the process; `function` is found by its name there.

        Raises the `MammosegError` or `ApiError` that it raises, `DecodeError` where the process dies of it, and `ApiError` 504
        where it takes longer than `limit_s`.
        """
        with self._lock:
            connection = self._open()
            try:
                connection.send((function, args))
                if not connection.poll(limit_s):
                    self._end()
                    raise ApiError(504, "too_slow", f"this took longer than {limit_s:.0f} s and was given up")
                good, result = connection.recv()
            except (EOFError, OSError) as error:
                code = self._end()
                how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
                raise DecodeError(
                    f"the process that read the image ended with {how} (out of memory, or a fault in a decoding library)"
                ) from error
            self._used = time.monotonic()
        if not good:
            raise result
        value: T = result
        return value

    def warm(self) -> None:
        """Starts the process ahead of need."""
        with self._lock:
            self._open()

    def rest(self) -> None:
        """Ends the process where it has been idle for long."""
        if self._lock.acquire(blocking=False):
            try:
                if self._process is not None and time.monotonic() - self._used > self._idle_s:
                    self._end()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Ends the process for good, whatever it is doing."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()  # a call under way ends by it
        with self._lock:
            self._end()

    def _open(self) -> Connection:
        if self._closed:
            raise ApiError(503, "ending", "the server is ending")
        if self._connection is not None and self._process is not None and self._process.is_alive():
            return self._connection
        self._end()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=serve_calls, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._connection, self._used = ours, time.monotonic()
        return ours

    def _end(self) -> int | None:
        """Ends the process; its exit code."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        process.join(0.2)  # one that died by itself has its own exit code
        if process.is_alive():
            process.kill()
        process.join(_PATIENCE_S)
        return process.exitcode


def serve_calls(connection: Connection) -> None:
    """The process's main loop: receives (function, arguments), answers (True, result) or (False, error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides what Ctrl-C means
    _silence()
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, args = connection.recv()
            try:
                answer = True, function(*args)
            except (MammosegError, ApiError) as error:
                answer = False, error
            except Exception as error:  # its message may hold anything
                answer = (
                    False,
                    DecodeError(f"unexpected {type(error).__name__}; the file is damaged, or this is a mistake of ours"),
                )
            connection.send(answer)


def _silence() -> None:
    """Decoding libraries write to standard error, in words of the file: not into the server's log."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
