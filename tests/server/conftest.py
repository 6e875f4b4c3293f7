"""A real server in a process of its own, on the loopback; images whose stored values are known."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

TOKEN = "a token for the tests 0123456789"


@dataclass
class Running:
    """A server that runs. url: its address without the token. log: what it has said so far, in a file."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    state: Path
    token: str | None = None
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, **options: Any) -> httpx.Client:
        """Asks it, with its token."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        client = httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=120, trust_env=False, **options)
        self.clients.append(client)
        return client

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def rss(self) -> int:
        """Bytes of memory that the server process takes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def children(self) -> list[int]:
        """Process ids of all that descend from it."""
        out, todo = [], [self.process.pid]
        while todo:
            found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(todo.pop())], capture_output=True, text=True).stdout
            todo += [int(p) for p in found.split()]
            out += [int(p) for p in found.split()]
        return out

    def stop(self, how: int = signal.SIGINT) -> int:
        """Ends it; its exit code."""
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)


def launch(tmp: Path, *args: str | Path, token: str | None = None, env: dict[str, str] | None = None) -> Running:
    """Starts `mammoseg serve` with its state in `tmp`/state, and waits until it answers."""
    log, state = tmp / "server.log", tmp / "state"
    command = [sys.executable, "-m", "mammoseg.apps.cli", "serve", *map(str, args), "--port", "0", "--state", str(state)]
    command += [] if token is None else ["--token", token]
    with log.open("ab") as sink:
        begun = log.stat().st_size
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment)
    until = time.monotonic() + 300
    while time.monotonic() < until:
        said = log.read_bytes()[begun:].decode()
        found = re.search(r"mammoseg is at (https?://[^/\s]+)/", said)
        if found is not None:
            return Running(process, found[1], log, state, token)
        assert process.poll() is None, said
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the server did not start: {log.read_text()}")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers that end with the test."""
    running: list[Running] = []

    def start(*args: str | Path, **options: Any) -> Running:
        running.append(launch(tmp_path, *args, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop(signal.SIGKILL)


def breast(bits: int, signed: bool = False, size: tuple[int, int] = (161, 120)) -> np.ndarray:
    """Values [H, W] over the whole range of `bits`, the ends included; looks like a breast from afar. Odd height."""
    rng = np.random.default_rng(bits)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    depth = np.clip(1 - (x / (0.8 * size[1])) ** 2 - ((y - size[0] / 2) / (0.45 * size[0])) ** 2, 0, 1)
    grey = (np.sqrt(depth) * (0.8 + 0.2 * np.sin(x / 5)) + (depth > 0) * rng.normal(0, 0.03, size)).clip(0, 1)
    values = np.rint(grey * (2**bits - 1)).astype(np.int64)
    values[0, :2] = 0, 2**bits - 1
    return values - (1 << (bits - 1)) if signed else values


def mammogram_dicom(values: np.ndarray, bits: int, signed: bool = False, **elements: Any) -> Dataset:
    """A mammogram of stored values [H, W]; `elements` are set on top. Made by pydicom alone."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID = (generate_uid() for _ in range(3))
    ds.Modality, ds.PresentationIntentType = "MG", "FOR PRESENTATION"
    ds.PatientName, ds.PatientID = "Secret^Patient", "SECRET-ID"
    ds.Rows, ds.Columns = values.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    kind = {8: "i1" if signed else "u1", 16: "<i2" if signed else "<u2"}[ds.BitsAllocated]
    data = values.astype(kind).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def save(ds: Dataset, path: Path) -> Path:
    """Writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path
