"""The node's log: a line of JSON an event, made of fields that cannot name a patient."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

# Everything that may stand in a line. Studies and objects are named by the first digits of hashes of their UIDs (`short`).
FIELDS = frozenset({
    "study", "object", "version", "images", "lesions", "processed", "rejected", "failed", "results", "destination", "attempts",
    "status", "reason", "seconds", "next_s", "peer", "port", "pid", "signal", "error", "where", "studies", "count",
})  # fmt: skip
_LONGEST = 300


def short(key: str) -> str:
    """How the log names what has this hash."""
    return key[:12]


class Log:
    """Writes events. Lines of several threads do not mix; a stream that cannot be written to never stops the node."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: str, level: str = "info", /, **fields: str | int | float | None) -> None:
        """One event. Raises `KeyError` for a field that is not among `FIELDS`."""
        for name in fields:
            if name not in FIELDS:
                raise KeyError(name)
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        shown: dict[str, Any] = {"time": now, "level": level, "event": event}
        shown |= {k: v[:_LONGEST] if isinstance(v, str) else v for k, v in fields.items() if v is not None}
        with self._lock:
            try:
                self._stream.write(json.dumps(shown) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                pass


class _Silent(logging.Handler):
    """Tells of a library's warnings and errors where they arose, without their text, which may hold anything received."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the place alone."""
        name = type(record.exc_info[1]).__name__ if record.exc_info and record.exc_info[1] else None
        self._log("library", record.levelname.lower(), where=f"{record.name}:{record.lineno}", error=name)


def place_of(error: BaseException) -> str:
    """Where an exception was raised, as `file:line`, without its text."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"


def take_over(log: Log) -> None:
    """Leads everything that libraries would print in this process into `log`, stripped of its text."""
    warnings.simplefilter("ignore")  # pydicom warns with values from the file
    for name in ("pynetdicom", "pydicom"):
        logger = logging.getLogger(name)
        logger.handlers = [_Silent(log)]
        logger.propagate = False

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None:
            return
        of_peer = type(args.thread).__module__.startswith("pynetdicom")  # a peer broke the protocol; its connection is closed
        event, level = ("association_broken", "warning") if of_peer else ("thread_ended", "error")
        log(event, level, error=type(args.exc_value).__name__, where=place_of(args.exc_value))

    def of_process(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        log("process_ended", "error", error=kind.__name__, where=place_of(value))

    threading.excepthook = of_thread
    sys.excepthook = of_process
