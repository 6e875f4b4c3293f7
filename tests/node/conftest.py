"""A node to talk to, peers that talk to it, and objects to send: whole and broken ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

MG = "1.2.840.10008.5.1.4.1.1.1.2"


def mammogram(study: str | None = None, seed: int = 0, size: tuple[int, int] = (96, 80), **elements: Any) -> Dataset:
    """A digital mammogram, FOR PRESENTATION, 12 bits, with a disc in a half ellipse. study: its UID."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size).reshape(2, 1, 1)
    breast = np.sqrt(np.clip(1 - (x / 0.7) ** 2 - ((y - 0.5) / 0.45) ** 2, 0, 1))
    mass = 0.4 * (np.hypot(x - 0.25, y - 0.5) < 0.12)
    pixels = np.rint(4095 * np.clip(0.5 * breast + mass + 0.02 * rng.random(size) * (breast > 0), 0, 1)).astype("<u2")
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = UID(MG), generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study or generate_uid(), generate_uid()
    ds.Modality, ds.PresentationIntentType = "MG", "FOR PRESENTATION"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Test^Node", "T1", "19500101", "F"
    ds.StudyDate, ds.StudyTime, ds.ContentDate, ds.ContentTime = "20240102", "030405", "20240102", "030405"
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.InstanceNumber, ds.ImageLaterality, ds.ViewPosition, ds.BodyPartExamined = 1, "L", "CC", "BREAST"
    ds.ImagerPixelSpacing = [0.5, 0.5]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset) -> bytes:
    """The data set as it goes over the network, without file meta information."""
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    whole = buffer.getvalue()
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")
    return whole[start:]


class Gate:
    """An event at which pynetdicom's reactor stops while it is not set; `waiting` is true only when it does.

    pynetdicom's own sign of that comes a moment too early: on a busy machine the reactor then takes the answer waited for.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open, self.waiting = True, False

    def set(self) -> None:
        with self._changed:
            self._open, self.waiting = True, False
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._open = False

    def wait(self) -> None:
        with self._changed:
            while not self._open:
                self.waiting = True
                self._changed.wait()


@contextlib.contextmanager
def associated(
    port: int, *contexts: tuple[str, str], calling: str = "SENDER", called: str = "MAMMOSEG", **options: Any
) -> Iterator[Association]:
    """An association with the node; aborted at the end where it is still there."""
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 60
    for abstract, syntax in contexts or ((MG, ExplicitVRLittleEndian),):
        entity.add_requested_context(abstract, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called, **options)
    gate: Any = Gate()
    association._reactor_checkpoint = gate
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def store_raw(association: Association, data: bytes, class_uid: str = MG, instance_uid: str = "1.2.3") -> int | None:
    """Sends any bytes as a data set; returns the status, or None where the peer did not answer."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(class_uid), UID(instance_uid)
    request.DataSet = io.BytesIO(data)
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == class_uid)
    gate: Any = association._reactor_checkpoint
    gate.clear()
    while not gate.waiting and association.is_alive():
        time.sleep(0.0005)
    try:
        association.dimse.send_msg(request, context.context_id)
        _, answer = association.dimse.get_msg(block=True)
    finally:
        gate.set()
    return None if answer is None else int(answer.Status)


def send(port: int, *objects: Dataset, calling: str = "SENDER", **options: Any) -> list[int]:
    """Stores objects; returns the statuses."""
    kinds = {(str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)) for ds in objects}
    with associated(port, *sorted(kinds), calling=calling, **options) as association:
        assert association.is_established, "the node does not take the association"
        return [int(association.send_c_store(ds).Status) for ds in objects]


def echo(port: int) -> int:
    """The status of a C-ECHO."""
    with associated(port, ("1.2.840.10008.1.1", ExplicitVRLittleEndian)) as association:
        assert association.is_established, "the node does not take the association"
        return int(association.send_c_echo().Status)


@dataclass
class Archive:
    """A storage SCP that keeps what it gets, to the byte. got: SOP Instance UID to the data sets received under it."""

    port: int
    got: dict[str, list[bytes]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    answer: int = 0x0000
    server: Any = None

    def wait_for(self, count: int, seconds: float = 300.0) -> None:
        """Waits until so many different instances are there."""
        end = time.monotonic() + seconds
        while len(self.got) < count:
            assert time.monotonic() < end, f"expected {count} results, got {len(self.got)}"
            time.sleep(0.05)


@contextlib.contextmanager
def archive(
    port: int = 0, answer: int = 0x0000, syntaxes: list[UID] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Archive]:
    """Runs an `Archive` on a port (a free one by default)."""
    from mammoseg.apps.node.intake import IMAGE_CLASSES, RESULT_CLASSES

    entity = AE("ARCHIVE")
    for abstract in (*IMAGE_CLASSES, *RESULT_CLASSES):
        entity.add_supported_context(abstract, syntaxes or pydicom.uid.AllTransferSyntaxes)
    here = Archive(port, answer=answer)

    def keep(event: evt.Event) -> int:
        if here.answer == 0:
            uid = str(event.request.AffectedSOPInstanceUID)
            here.classes[uid] = str(event.request.AffectedSOPClassUID)
            here.got.setdefault(uid, []).append(event.request.DataSet.getvalue())
        return here.answer

    handlers: Any = [(evt.EVT_C_STORE, keep)]
    here.server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=tls)
    here.port = here.server.server_address[1]
    try:
        yield here
    finally:
        here.server.shutdown()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A real node in a process of its own."""

    config: Path
    spool: Path
    log: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        """Starts it and waits until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mammoseg.apps.cli", "node", "start", "--config", str(self.config)],
                stderr=log,
                stdout=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        end = time.monotonic() + 240  # a machine may be busy
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "the node does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """As a service manager would; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The lines of its log, all or those of one event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if name is None or line["event"] == name]

    def wait_for(self, event: str, count: int = 1, seconds: float = 300.0) -> None:
        """Waits until an event was logged so often."""
        end = time.monotonic() + seconds
        while len(self.events(event)) < count:
            assert time.monotonic() < end, f"no {event}: {self.log.read_text()}"
            time.sleep(0.05)

    def memory_mib(self) -> float:
        """The resident memory of the node itself, without its children."""
        assert self.process is not None
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024


SETTINGS = """\
spool = "{spool}"
port = {port}
calling = ["{calling}"]
quiet_s = {quiet_s}
{top}
[limits]
free_mib = 0
{limits}
[analysis]
weights = "{weights}"
formats = {formats}
set = ["detection.scales=[[128,64]]", "fusion.score_min=0.05", "runtime.threads=1"]
{rest}
"""
Starter = Callable[..., Process]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Starter]:
    """Starts nodes; they are stopped at the end of the test."""
    running: list[Process] = []

    def start(begin: bool = True, **settings: Any) -> Process:
        number = len(running)
        known = {"spool": tmp_path / f"spool{number}", "port": free_port(), "quiet_s": 0.3, "top": "", "limits": "", "rest": ""}
        known |= {"formats": '["json"]', "calling": "SENDER", "weights": ""} | settings
        config = tmp_path / f"node{number}.toml"
        config.write_text(SETTINGS.format(**known))
        made = Process(config, Path(known["spool"]), tmp_path / f"node{number}.log", int(known["port"]))
        running.append(made)
        return made.start() if begin else made

    yield start
    for process in running:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait()


@dataclass
class Tools:
    """What the tests share, without importing one another."""

    MG = MG
    mammogram = staticmethod(mammogram)
    encoded = staticmethod(encoded)
    associated = staticmethod(associated)
    store_raw = staticmethod(store_raw)
    send = staticmethod(send)
    echo = staticmethod(echo)
    archive = staticmethod(archive)
    free_port = staticmethod(free_port)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    """Helpers: objects, peers, ports."""
    return Tools


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Any]:
    """The storage SCP and its store alone, in this process: `receiver(**limits)` returns them with the log's lines."""
    from mammoseg.apps.node.config import Limits, NodeConfig
    from mammoseg.apps.node.log import Log
    from mammoseg.apps.node.server import Server, serve
    from mammoseg.apps.node.store import Store

    made: list[tuple[Any, Any]] = []

    def start(tls: Any = None, **limits: Any) -> Any:
        spool = tmp_path / f"spool{len(made)}"
        config = NodeConfig(str(spool), port=0, calling=("SENDER",), tls=tls, limits=Limits(**{"free_mib": 0, **limits}))
        lines = io.StringIO()
        arrived: list[str] = []
        store = Store(spool)
        server = Server(config, store, Log(lines), arrived.append)
        serve(server)
        made.append((server, store))
        return Receiver(server, store, lines, arrived)

    yield start
    for server, store in made:
        server.stop(0.0)
        store.close()


@dataclass
class Receiver:
    """A running storage SCP."""

    server: Any
    store: Any
    lines: io.StringIO
    arrived: list[str]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.server_address[1])

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        return [e for e in map(json.loads, self.lines.getvalue().splitlines()) if e["event"] == name]

    def files(self) -> list[Path]:
        """All files in the spool but the database."""
        return sorted(f for f in self.store.spool.rglob("*") if f.is_file() and not f.name.startswith("node."))


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Associations of a test end with it."""
    yield
    end = time.monotonic() + 20
    while any("AcceptorThread" in t.name for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.02)
