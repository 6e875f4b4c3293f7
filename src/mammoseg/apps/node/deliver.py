"""Sending results on: C-STORE or STOW-RS, with the data sets as they lie on disk; retried until the destination has them."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pydicom
from pydicom import uid
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from mammoseg.apps.node.config import IMPLEMENTATION_NAME, Destination
from mammoseg.apps.node.log import Log, short
from mammoseg.apps.node.store import Delivery, Store
from mammoseg.io.dicom_results.maker import IMPLEMENTATION_CLASS_UID

_AT_ONCE = 100  # results in one association
_ANSWER_MAX = 1 << 20
_PROBE_S = 10.0
_FAILED_SOPS, _FAILURE = "00081198", "00081197"
_NO_CONTEXT = "no presentation context accepted"
_HAD_BEFORE = 0x0111  # duplicate SOP instance: UIDs of results are derived from their content, so it is this very one


class Unreachable(Exception):
    """The destination cannot be talked to at all; every result would fare the same. Its text is ours."""


class Sender(Protocol):
    """Sends files, and says of each whether the destination has it now."""

    def send(self, files: list[Path]) -> Iterator[tuple[Path, str | None]]:
        """Yields each file with None, or with why it was not taken, in our words. Raises `Unreachable`."""
        ...


class DicomSender:
    """C-STORE. calling: our AE title."""

    def __init__(self, to: Destination, calling: str) -> None:
        self._to = to
        self._calling = calling
        self._tls = to.context()
        _config.STORE_SEND_CHUNKED_DATASET = True  # files go out as they are, byte for byte

    def send(self, files: list[Path]) -> Iterator[tuple[Path, str | None]]:
        """One association for up to 100 files."""
        entity = AE(self._calling)
        entity.implementation_class_uid = uid.UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_NAME
        for timeout in ("acse_timeout", "dimse_timeout", "network_timeout", "connection_timeout"):
            setattr(entity, timeout, self._to.timeout_s)
        kinds = {_kind(file) for file in files[:_AT_ONCE]}
        contexts = [build_context(uid.UID(c), uid.UID(s)) for c, s in sorted(kinds)]
        contexts += [build_context(uid.UID(c), uid.ImplicitVRLittleEndian) for c in sorted({c for c, _ in kinds})]
        tls = (self._tls, self._to.host) if self._tls else None
        association = entity.associate(
            self._to.host,
            self._to.port,
            contexts,
            self._to.ae_title,
            tls_args=tls,  # type: ignore[arg-type]
        )
        if not association.is_established:
            if association.rejected_contexts:  # it takes none of these classes: others may fare better
                yield from ((file, _NO_CONTEXT) for file in files[:_AT_ONCE])
                return
            why = "rejected the association" if association.is_rejected else self._why_silent()
            raise Unreachable(f"the destination {why}")
        try:
            for file in files[:_AT_ONCE]:
                if not association.is_established:
                    raise Unreachable("the destination ended the association")
                yield file, _store(association, file)
        finally:
            if association.is_established:
                association.release()

    def _why_silent(self) -> str:
        """Connects once more to say what is in the way; pynetdicom does not tell."""
        address, patience_s = (self._to.host, self._to.port), min(self._to.timeout_s, _PROBE_S)
        try:
            with socket.create_connection(address, patience_s) as plain:
                if self._tls is not None:
                    with self._tls.wrap_socket(plain, server_hostname=self._to.host):
                        pass
        except ssl.SSLError as error:
            return f"does not speak TLS as it is set up ({type(error).__name__})"
        except OSError as error:
            return f"cannot be connected to ({type(error).__name__})"
        return "does not answer"


def _kind(file: Path) -> tuple[str, str]:
    """(SOP class, transfer syntax) of a file."""
    meta = pydicom.filereader.read_file_meta_info(file)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _store(association: Association, file: Path) -> str | None:
    try:
        try:
            answer = association.send_c_store(file)
        except ValueError:  # the destination takes Implicit VR Little Endian alone, as it must
            answer = association.send_c_store(pydicom.dcmread(file))
    except ValueError:
        return _NO_CONTEXT
    if "Status" not in answer:
        return "no answer"
    status = int(answer.Status)
    taken = status in (0x0000, 0x0001, _HAD_BEFORE) or 0xB000 <= status <= 0xBFFF
    return None if taken else f"status {status:04X}"


class StowSender:
    """DICOMweb STOW-RS (PS3.18 10.5), a request a file."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        context = to.context()
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)
        self._headers = {"Accept": "application/dicom+json"}
        if to.username:
            given = base64.b64encode(f"{to.username}:{to.password()}".encode()).decode()
            self._headers["Authorization"] = f"Basic {given}"

    def send(self, files: list[Path]) -> Iterator[tuple[Path, str | None]]:
        """One request after the other."""
        for file in files:
            yield file, self._post(file)

    def _post(self, file: Path) -> str | None:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {**self._headers, "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}
        request = urllib.request.Request(self._to.url.rstrip("/") + "/studies", body, headers, method="POST")
        try:
            status, answer = self._ask(request)
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception) else error
            raise Unreachable(f"the destination does not answer ({type(cause).__name__})") from None
        if status in (401, 403, 404, 502, 503, 504):
            raise Unreachable(f"the destination answered {status}")
        return _not_stored(status, answer)

    def _ask(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with self._opener.open(request, timeout=self._to.timeout_s) as answer:
                return answer.status, answer.read(_ANSWER_MAX)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(_ANSWER_MAX)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Results go where the configuration says, and nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _not_stored(status: int, answer: bytes) -> str | None:
    """Why a file was not stored, by the response's list of failed instances; None where it was.

    >>> _not_stored(200, b""), _not_stored(202, b'{"00081198": {"vr": "SQ", "Value": [{}]}}')
    (None, 'answer 202, instance failed')
    """
    try:
        found = json.loads(answer) if answer else {}
    except ValueError:
        found = {}
    failed = found.get(_FAILED_SOPS, {}) if isinstance(found, dict) else {}
    if isinstance(failed, dict) and failed.get("Value"):
        return None if _duplicate(failed["Value"]) else f"answer {status}, instance failed"
    return None if status in (200, 202) else f"answer {status}"


def _duplicate(failed: Any) -> bool:
    """Whether the one instance failed because it was there before."""
    try:
        return [item[_FAILURE]["Value"] for item in failed] == [[_HAD_BEFORE]]
    except (TypeError, KeyError):
        return False


class Courier:
    """Brings one destination what the store has for it. log: told of each success, and of failures."""

    def __init__(self, to: Destination, sender: Sender, store: Store, log: Log) -> None:
        self._to, self._sender, self._store, self._log = to, sender, store, log
        self._wake = threading.Event()
        self._later: dict[int, float] = {}  # deliveries that were not taken: not before that moment
        self._pause_s = 0.0

    def wake(self) -> None:
        """There may be something to deliver."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Delivers until `stop` is set (call `wake` then)."""
        while not stop.is_set():
            self._wake.clear()
            if stop.is_set():
                break
            try:
                wait = self._round(stop)
            except Unreachable as error:
                self._pause_s = min(max(2 * self._pause_s, self._to.retry_s), self._to.retry_max_s)
                self._log(
                    "destination_unreachable", "warning", destination=self._to.name, reason=str(error), next_s=self._pause_s
                )
                stop.wait(self._pause_s)
                continue
            except Exception as error:  # whatever a library raises: the result is still in the outbox
                self._pause_s = min(max(2 * self._pause_s, self._to.retry_s), self._to.retry_max_s)
                self._log(
                    "delivery_error", "error", destination=self._to.name, error=type(error).__name__, next_s=self._pause_s
                )
                stop.wait(self._pause_s)
                continue
            self._wake.wait(wait)

    def _round(self, stop: threading.Event) -> float | None:
        """Tries all that is due; returns how long until something is due again, None for never."""
        due = self._due()
        if due:
            by_file = {delivery.file: delivery for delivery in due}
            for file in [f for f in by_file if not f.is_file()]:
                self._note(by_file.pop(file), "its file is gone from the outbox")
            try:
                for file, why in self._sender.send(list(by_file)):
                    self._pause_s = 0.0
                    self._note(by_file.pop(file), why)
                    if stop.is_set():
                        return 0.0
            except Unreachable:
                for delivery in by_file.values():
                    self._store.not_delivered(delivery)
                raise
            return 0.0
        return max(0.05, min(self._later.values()) - time.monotonic()) if self._later else None

    def _due(self) -> list[Delivery]:
        """The oldest results that may be tried now. What was put off, however much that is, holds up nothing behind it."""
        now, due, after = time.monotonic(), [], 0  # type: float, list[Delivery], int
        while len(due) < _AT_ONCE:
            page = self._store.waiting(self._to.name, after)
            if not page:
                break
            due += [d for d in page if self._later.get(d.id, now) <= now]
            after = page[-1].id
        return due[:_AT_ONCE]

    def _note(self, delivery: Delivery, why: str | None) -> None:
        fields: dict[str, str | int] = {
            "study": short(delivery.study),
            "version": delivery.version,
            "object": short(delivery.file.name),
        }
        if why is None:
            self._store.delivered(delivery)
            self._later.pop(delivery.id, None)
            self._log("delivered", destination=self._to.name, **fields)
            return
        self._store.not_delivered(delivery)
        pause = min(self._to.retry_s * 2.0 ** min(delivery.attempts, 30), self._to.retry_max_s)
        self._later[delivery.id] = time.monotonic() + pause
        attempts = delivery.attempts + 1
        self._log("not_delivered", "warning", destination=self._to.name, reason=why, attempts=attempts, next_s=pause, **fields)


def sender_for(to: Destination, calling: str) -> Sender:
    """The sender of a destination's kind."""
    return DicomSender(to, calling) if to.kind == "dicom" else StowSender(to)
