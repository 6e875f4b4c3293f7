"""The storage SCP: C-ECHO and C-STORE for peers on the allow-list, with limits on what a peer may cost."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from mammoseg.apps.node import intake
from mammoseg.apps.node.config import IMPLEMENTATION_NAME, NodeConfig
from mammoseg.apps.node.intake import Refused, examine, key_of
from mammoseg.apps.node.log import Log, place_of, short
from mammoseg.apps.node.store import Store
from mammoseg.io.dicom_codec import TRANSFER_SYNTAXES
from mammoseg.io.dicom_results.maker import IMPLEMENTATION_CLASS_UID

_NATIVE = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]
_COMMANDS = frozenset({"C_STORE_RQ", "C_ECHO_RQ", "C_CANCEL_RQ"})
_COMMAND_MAX = 1 << 16
_REQUEST_MAX = 1 << 20  # an A-ASSOCIATE-RQ with all the presentation contexts there can be is shorter
_ADMIN_S = 30.0
_TLS_S = 15.0
_FAREWELL_S = 0.2  # for an A-ABORT to get out
_SETTLED_S = 1.0  # after which an association has begun, or never will
_MIB = 1 << 20

Arrived = Callable[[str], None]


class _TooLarge(BytesIO):
    """Stands in for a data set beyond the limit: forgets what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)


class _Dimse(DIMSEServiceProvider):
    """Puts messages together as pynetdicom does, but takes no more bytes than agreed, one message at a time."""

    object_bytes = 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Takes up one P-DATA. What breaks the rules ends the association with an A-ABORT."""
        try:
            for context_id, data in primitive.presentation_data_value_list:
                self._take(context_id, data)
        except Exception:  # pynetdicom and pydicom raise anything on damaged commands
            self.message = None
            self.dul.event_queue.put("Evt19")

    def _take(self, context_id: int, data: bytes) -> None:
        if self.message is None:
            self.message, self._taken, self._command = DIMSEMessage(), 0, 0
        if data[0] & 1:
            self._command += len(data)
            if self._command > _COMMAND_MAX:
                raise ValueError("command too long")
        else:
            self._taken += len(data) - 1
            if self._taken > 2 * self.object_bytes + _MIB:
                raise ValueError("no end of data")
            if self._taken > self.object_bytes and not isinstance(self.message.data_set, _TooLarge):
                self.message.data_set = _TooLarge()
        one = P_DATA()
        one.presentation_data_value_list = [[context_id, data]]  # type: ignore[list-item]
        complete = self.message.decode_msg(one, self.assoc)
        known = type(self.message).__name__ in _COMMANDS
        if not known and (complete or type(self.message) is not DIMSEMessage):
            raise ValueError("no command that we serve")
        if complete:
            request = self.message.message_to_primitive()
            self.message = None
            if isinstance(request, C_CANCEL):
                return
            if not request.is_valid_request or self.msg_queue.qsize():
                raise ValueError("incomplete request, or one before the answer to the last")
            self.msg_queue.put((context_id, request))  # type: ignore[arg-type]


class _Handler(RequestHandler):
    """Shakes hands in the connection's own thread, and puts our limits into the association."""

    def handle(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        context = server.node_tls
        if context is not None:
            self.request.settimeout(_TLS_S)
            with server.shaking_hands():
                self.request = context.wrap_socket(self.request, server_side=True)
        self.request.settimeout(server.config.limits.idle_s)
        super().handle()

    def _create_association(self) -> Association:
        server: Server = self.server  # type: ignore[assignment]
        association = super()._create_association()
        association.daemon = association.dul.daemon = True
        dimse = _Dimse(association)
        dimse.object_bytes = server.config.limits.object_bytes
        association.dimse = dimse
        transport = association.dul.socket
        assert transport is not None
        read = transport.recv
        longest = max(server.config.limits.pdu_kib * 1024 + 64, _REQUEST_MAX)

        def recv(nr_bytes: int) -> bytearray:
            if nr_bytes > longest:
                association.dul.event_queue.put("Evt19")  # an invalid PDU: A-ABORT
                return bytearray()
            return read(nr_bytes)

        transport.recv = recv  # type: ignore[method-assign]
        server.began(association)
        return association


class Server(ThreadedAssociationServer):
    """Listens, and hands whole objects to the store. arrived: told the hash of a study when an object of it is new."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, config: NodeConfig, store: Store, log: Log, arrived: Arrived) -> None:
        self.config, self._store, self._log, self._arrived = config, store, log, arrived
        self.node_tls: ssl.SSLContext | None = config.tls.context() if config.tls else None
        self._begun: dict[Association, float] = {}
        self._stopping = False
        self._handshakes, self._counting = 0, threading.Lock()
        _config.LOG_HANDLER_LEVEL = "none"
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: intake.OK),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_ABORTED, self._on_aborted),
        ]
        super().__init__(
            _entity(config), (config.host, config.port), config.ae_title, [], None, handlers, request_handler=_Handler
        )
        self.contexts = self.ae.supported_contexts
        self.ae._servers.append(self)

    # ---- what socketserver and pynetdicom ask of a server

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; TLS waits for the connection's own thread, so that a silent peer holds up nobody."""
        assert self.socket is not None
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Closes connections beyond what is needed to tell peers, by a rejection, that the limit is reached."""
        return not self._stopping and len(self.active_associations) + self._handshakes < 2 * self.config.limits.associations + 8

    @contextlib.contextmanager
    def shaking_hands(self) -> Iterator[None]:
        """Counts a connection that may become an association when TLS is agreed upon."""
        with self._counting:
            self._handshakes += 1
        try:
            yield
        finally:
            with self._counting:
                self._handshakes -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that did not become one (no TLS, gone)."""
        self._log("connection_failed", "warning", peer=str(client_address[0]))

    # ---- life of associations

    def began(self, association: Association) -> None:
        """Notes when an association began."""
        self._begun[association] = time.monotonic()

    def service_actions(self) -> None:
        """Looks after the associations between connections; socketserver calls it ten times a second."""
        super().service_actions()
        self._end_overdue()

    def _end_overdue(self) -> None:
        """Closes connections that are open longer than allowed, and ends what waits for a request that will not come."""
        for association, begun in list(self._begun.items()):
            age = time.monotonic() - begun
            if age > _SETTLED_S and not association.is_alive():
                self._begun.pop(association, None)
            elif age > self.config.limits.association_s:
                self._log("association_overdue", "warning", peer=_peer(association))
                self._begun.pop(association, None)
                _cut(association)
            elif age > _SETTLED_S and association.requestor.primitive is None and _is_gone(association):
                association.dul.to_user_queue.put(None)  # type: ignore[arg-type]

    def stop(self, grace_s: float) -> None:
        """Takes no more associations; lets those that are going end within `grace_s`, then closes them."""
        self._stopping = True
        super().shutdown()
        end = time.monotonic() + grace_s
        while self.active_associations and time.monotonic() < end:
            self._end_overdue()
            time.sleep(0.05)
        left = self.active_associations
        for association in left:
            if association.requestor.primitive is None:
                association.dul.to_user_queue.put(None)  # type: ignore[arg-type]
            else:
                association.abort(block=False)
        time.sleep(_FAREWELL_S if left else 0.0)
        for association in left:
            _cut(association)

    def _on_rejected(self, event: evt.Event) -> None:
        self._log("association_refused", "warning", peer=_peer(event.assoc))

    def _on_aborted(self, event: evt.Event) -> None:
        self._log("association_aborted", "warning", peer=_peer(event.assoc))

    # ---- C-STORE

    def _on_store(self, event: evt.Event) -> int:
        request = event.request
        assert isinstance(request, C_STORE)
        object_key: str | None = None
        try:
            object_key = key_of(str(request.AffectedSOPInstanceUID))
            self._receive(request, uid.UID(event.context.transfer_syntax), str(event.context.abstract_syntax))
        except Refused as refusal:
            status, reason = refusal.status, refusal.reason
        except (OSError, sqlite3.Error, MemoryError) as error:
            status, reason = intake.OUT_OF_RESOURCES, f"cannot be kept ({type(error).__name__})"
        except Exception as error:
            status, reason = intake.PROCESSING_FAILURE, f"{type(error).__name__} at {place_of(error)}"
        else:
            return intake.OK
        finally:
            request.DataSet = None
        self._log(
            "object_refused",
            "warning",
            object=short(object_key) if object_key else None,
            status=f"{status:04X}",
            reason=reason,
            peer=_peer(event.assoc),
        )
        return status

    def _receive(self, request: C_STORE, syntax: uid.UID, abstract: str) -> None:
        class_uid, instance_uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        limit = self.config.limits.object_bytes
        if isinstance(request.DataSet, _TooLarge):
            raise Refused(intake.OUT_OF_RESOURCES, "the object is too large")
        if not isinstance(request.DataSet, BytesIO):
            raise Refused(intake.CANNOT_UNDERSTAND, "no data set")
        if class_uid != abstract:
            raise Refused(intake.CLASS_NOT_SUPPORTED, "the SOP class is not that of the presentation context")
        with request.DataSet.getbuffer() as data:
            header = examine(data, syntax, class_uid, instance_uid, limit)
            if self._store.is_own(key_of(instance_uid)) or intake.names_us(header, class_uid):
                self._log("own_result_ignored", object=short(key_of(instance_uid)))
                return
            if class_uid not in intake.IMAGE_CLASSES:
                raise Refused(intake.CLASS_NOT_SUPPORTED, "no image, and no result of ours")
            if shutil.disk_usage(self._store.spool).free < self.config.limits.free_mib * _MIB + len(data):
                raise Refused(intake.OUT_OF_RESOURCES, "the disk is nearly full")
            head = _file_head(class_uid, instance_uid, syntax)
            content = hashlib.sha256(head)
            content.update(data)
            study = key_of(header.study_uid)
            instance = key_of(header.study_uid, instance_uid)
            new = self._store.add(study, instance, content.hexdigest(), (head, data))
        if new:
            self._arrived(study)
        self._log("object_received" if new else "object_known", study=short(study), object=short(instance))


def _entity(config: NodeConfig) -> AE:
    """What we are and offer."""
    entity = AE(config.ae_title)
    entity.implementation_class_uid = uid.UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_NAME
    entity.require_calling_aet = list(config.calling)
    entity.require_called_aet = True
    entity.maximum_pdu_size = config.limits.pdu_kib * 1024
    entity.maximum_associations = config.limits.associations
    entity.network_timeout = config.limits.idle_s
    entity.dimse_timeout = config.limits.idle_s
    entity.acse_timeout = min(_ADMIN_S, config.limits.idle_s)
    entity.add_supported_context(Verification, _NATIVE[:3])
    for abstract in intake.IMAGE_CLASSES:
        entity.add_supported_context(abstract, list(TRANSFER_SYNTAXES))
    for abstract in intake.RESULT_CLASSES:
        entity.add_supported_context(abstract, [*_NATIVE, uid.RLELossless])
    return entity


def _file_head(class_uid: str, instance_uid: str, syntax: uid.UID) -> bytes:
    """Preamble and file meta information (PS3.10 7.1); the same for the same object."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = uid.UID(class_uid)
    meta.MediaStorageSOPInstanceUID = uid.UID(instance_uid)
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = uid.UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_NAME
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    head: bytes = buffer.getvalue()
    return head


def _peer(association: Association) -> str:
    return str(association.requestor.address)


def _is_gone(association: Association) -> bool:
    """Whether the connection is closed, or about to be."""
    return association.dul.state_machine.current_state in ("Sta1", "Sta13") or not association.dul.is_alive()


def _cut(association: Association) -> None:
    """Closes the connection; the threads of the association then end."""
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        with contextlib.suppress(OSError):
            transport.socket.shutdown(socket.SHUT_RDWR)


def serve(server: Server) -> threading.Thread:
    """Starts listening in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True, name="listener")
    thread.start()
    return thread
