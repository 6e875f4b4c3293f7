"""Results reach their destinations to the byte, in spite of destinations that are away, refuse, or answer nonsense."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import uid

from mammoseg.apps.node.config import Destination
from mammoseg.apps.node.deliver import Courier, sender_for
from mammoseg.apps.node.log import Log
from mammoseg.apps.node.store import Store


class Desk:
    """A store with one finished study, and a courier at work for one destination."""

    def __init__(self, spool: Path, to: Destination, objects: list[Any]) -> None:
        self.store, self.lines = Store(spool), io.StringIO()
        self.store.add("s" * 64, "o" * 64, "c" * 64, [b"image"])
        files = {}
        for number, ds in enumerate(objects):
            ds.save_as(self.store.outbox / f"{number}.dcm", enforce_file_format=True)
            files[f"{number}.dcm"] = f"key {number}"
        self.sent = [(self.store.outbox / name).read_bytes() for name in files]
        self.store.finish(self.store.snapshot("s" * 64), files, [to.name])
        self.to, self.stop = to, threading.Event()
        self.courier = Courier(to, sender_for(to, "MAMMOSEG"), self.store, Log(self.lines))
        self.thread = threading.Thread(target=self.courier.run, args=(self.stop,))
        self.thread.start()

    def wait(self, seconds: float = 60.0) -> None:
        """Until nothing waits any more."""
        end = time.monotonic() + seconds
        while self.store.waiting(self.to.name):
            assert time.monotonic() < end, self.lines.getvalue()
            time.sleep(0.02)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [e for e in map(json.loads, self.lines.getvalue().splitlines()) if e["event"] == name]

    def close(self) -> None:
        self.stop.set()
        self.courier.wake()
        self.thread.join()
        self.store.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Any]:
    made: list[Desk] = []

    def start(to: Destination, objects: list[Any]) -> Desk:
        made.append(Desk(tmp_path / f"spool{len(made)}", to, objects))
        return made[-1]

    yield start
    for one in made:
        one.close()


def dicom(port: int, **settings: Any) -> Destination:
    return Destination("pacs", "dicom", "127.0.0.1", port, "ARCHIVE", **{"retry_s": 0.1, "retry_max_s": 0.4, **settings})


def reports(tools: Any, count: int) -> list[Any]:
    """Objects of several classes."""
    classes = [uid.MammographyCADSRStorage, uid.SegmentationStorage, tools.MG]
    return [tools.mammogram(seed=i, SOPClassUID=classes[i % 3]) for i in range(count)]


def test_c_store_brings_the_data_sets_to_the_byte(tools: Any, desk: Any) -> None:
    objects = reports(tools, 5)
    with tools.archive() as pacs:
        here = desk(dicom(pacs.port), objects)
        here.wait()
        assert {u: [tools.encoded(ds)] for u, ds in ((d.SOPInstanceUID, d) for d in objects)} == pacs.got
        assert list(pacs.got) == [ds.SOPInstanceUID for ds in objects], "in their order"
    assert all(sent.endswith(pacs.got[ds.SOPInstanceUID][0]) for sent, ds in zip(here.sent, objects, strict=True))
    assert list(here.store.outbox.iterdir()) == []


def test_a_destination_that_takes_implicit_vr_alone_gets_it(tools: Any, desk: Any) -> None:
    objects = reports(tools, 2)
    with tools.archive(syntaxes=[uid.ImplicitVRLittleEndian]) as pacs:
        desk(dicom(pacs.port), objects).wait()
        for ds in objects:
            got = pydicom.dcmread(io.BytesIO(pacs.got[ds.SOPInstanceUID][0]), force=True)
            del got.file_meta
            assert got.PixelData == ds.PixelData
            assert got.to_json_dict() == pydicom.Dataset(ds).to_json_dict()


def test_a_destination_that_is_away_gets_everything_when_it_is_back(tools: Any, desk: Any) -> None:
    port = tools.free_port()
    here = desk(dicom(port), reports(tools, 3))
    end = time.monotonic() + 30
    while len(here.events("destination_unreachable")) < 4:
        assert time.monotonic() < end
        time.sleep(0.02)
    told = here.events("destination_unreachable")
    assert {e["reason"] for e in told} == {"the destination cannot be connected to (ConnectionRefusedError)"}
    pauses = [e["next_s"] for e in told]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.4], "twice as long each time, up to a limit"
    with tools.archive(port) as pacs:
        here.wait()
        assert [len(copies) for copies in pacs.got.values()] == [1, 1, 1]
    assert here.store._db.execute("SELECT MIN(attempts) FROM deliveries").fetchone()[0] >= 4


def test_tls_that_does_not_fit_is_named_and_nothing_goes_out(tools: Any, desk: Any, tmp_path: Path) -> None:
    """A certificate that we do not trust, and a destination that speaks no TLS."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1"]
    for name in ("archive", "other"):
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        subprocess.run([*made, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "archive.pem", tmp_path / "archive.key")
    with tools.archive(tls=context) as pacs:
        here = desk(dicom(pacs.port, tls=True, ca=str(tmp_path / "other.pem")), reports(tools, 1))
        (first, *_) = wait_for(here, "destination_unreachable")
        assert first["reason"] == "the destination does not speak TLS as it is set up (SSLCertVerificationError)"
        desk(dicom(pacs.port, tls=True, ca=str(tmp_path / "archive.pem")), reports(tools, 1)).wait()
        assert len(pacs.got) == 1, "trusted, it gets what it should"
    with tools.archive() as pacs:
        here = desk(dicom(pacs.port, tls=True, ca=str(tmp_path / "archive.pem"), timeout_s=2.0), reports(tools, 1))
        assert "does not speak TLS" in wait_for(here, "destination_unreachable")[0]["reason"]
        assert pacs.got == {}


def test_what_is_refused_is_kept_and_tried_again(tools: Any, desk: Any) -> None:
    with tools.archive(answer=0xA700) as pacs:
        here = desk(dicom(pacs.port), reports(tools, 2))
        end = time.monotonic() + 30
        while len(here.events("not_delivered")) < 6:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert {e["reason"] for e in here.events("not_delivered")} == {"status A700"}
        assert pacs.got == {}
        assert len(list(here.store.outbox.iterdir())) == 2
        pacs.answer = 0x0000
        here.wait()
        assert len(pacs.got) == 2


def wait_for(here: Any, event: str, count: int = 1) -> list[dict[str, Any]]:
    """The log's lines of an event, when there are so many."""
    end = time.monotonic() + 60
    while len(here.events(event)) < count:
        assert time.monotonic() < end, here.lines.getvalue()
        time.sleep(0.02)
    found: list[dict[str, Any]] = here.events(event)
    return found


def test_a_class_the_destination_does_not_know_holds_up_nothing_else(tools: Any, desk: Any) -> None:
    """However much of it waits, and though a round may have nothing else to offer."""
    strange = tools.mammogram(size=(64, 64), SOPClassUID=uid.RTPlanStorage)
    many = []
    for number in range(230):
        many.append(copy.copy(strange))
        many[-1].file_meta = copy.copy(strange.file_meta)
        many[-1].SOPInstanceUID = many[-1].file_meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.3.{number}")
    with tools.archive() as pacs:
        here = desk(dicom(pacs.port, retry_s=0.5, retry_max_s=3600), [*many, *reports(tools, 2)])
        pacs.wait_for(2)
        assert {e["reason"] for e in wait_for(here, "not_delivered", 230)} == {"no presentation context accepted"}
        (late,) = reports(tools, 1)
        late.save_as(here.store.outbox / "late.dcm", enforce_file_format=True)
        here.store.add("t" * 64, "p" * 64, "c" * 64, [b"image"])
        here.store.finish(here.store.snapshot("t" * 64), {"late.dcm": "key"}, ["pacs"])
        here.courier.wake()
        pacs.wait_for(3, seconds=20)
        assert here.events("destination_unreachable") == []
    assert len(here.store.waiting("pacs", limit=1000)) == 230


def test_what_the_destination_has_already_is_delivered(tools: Any, desk: Any) -> None:
    with tools.archive(answer=0x0111) as pacs:
        here = desk(dicom(pacs.port), reports(tools, 2))
        here.wait()
    assert len(here.events("delivered")) == 2


def test_a_result_that_somebody_removed_holds_up_nothing_else(tools: Any, desk: Any) -> None:
    port = tools.free_port()
    here = desk(dicom(port), reports(tools, 3))
    wait_for(here, "destination_unreachable")
    (here.store.outbox / "1.dcm").unlink()
    with tools.archive(port) as pacs:
        pacs.wait_for(2)
        assert wait_for(here, "not_delivered")[0]["reason"] == "its file is gone from the outbox"
    assert len(here.store.waiting("pacs")) == 1


class Web:
    """A STOW-RS service: keeps the parts it gets, checks the headers, answers as told."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.answers: list[tuple[int, bytes, dict[str, str]]] = []
        self.headers: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.headers.append((self.path, self.headers))
                status, answer, headers = outer.answers.pop(0) if outer.answers else (200, b"{}", {})
                if status == 200:
                    delimiter = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
                    assert body.startswith(delimiter + b"\r\n")
                    assert body.endswith(b"\r\n" + delimiter + b"--\r\n")
                    for part in body[len(delimiter) : -len(delimiter) - 6].split(b"\r\n" + delimiter):
                        head, _, content = part.partition(b"\r\n\r\n")
                        assert head == b"\r\nContent-Type: application/dicom"
                        outer.got.append(content)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/dicom-web"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.server.shutdown()
    made.server.server_close()


def stow(url: str, **settings: Any) -> Destination:
    return Destination("web", "stow", url=url, **{"retry_s": 0.1, "retry_max_s": 0.2, **settings})


def test_stow_brings_the_files_to_the_byte(tools: Any, desk: Any, web: Web, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("open sesame\n")
    here = desk(stow(web.url, username="node", password_file=str(tmp_path / "secret")), reports(tools, 3))
    here.wait()
    assert web.got == here.sent
    path, headers = web.headers[0]
    assert path == "/dicom-web/studies"
    assert headers["Authorization"] == "Basic bm9kZTpvcGVuIHNlc2FtZQ=="
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert "sesame" not in here.lines.getvalue()


def test_stow_that_fails_is_tried_again_and_leads_nowhere_else(tools: Any, desk: Any, web: Web) -> None:
    failed = json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}).encode()
    elsewhere = Web()
    there = failed.replace(str(0xA700).encode(), str(0x0111).encode())
    web.answers = [
        (409, failed, {}),
        (409, b"", {}),
        (202, failed, {}),
        (302, b"", {"Location": elsewhere.url}),
        (503, b"", {}),
        (500, b"\xff" * 100, {}),
    ]
    here = desk(stow(web.url), reports(tools, 1))
    here.wait()
    assert web.got == here.sent
    assert elsewhere.headers == []
    elsewhere.server.shutdown()
    elsewhere.server.server_close()
    reasons = [e["reason"] for e in here.events("not_delivered")]
    assert reasons == ["answer 409, instance failed", "answer 409", "answer 202, instance failed", "answer 302", "answer 500"]
    assert [e["reason"] for e in here.events("destination_unreachable")] == ["the destination answered 503"]
    web.answers = [(409, there, {})]
    again = desk(stow(web.url), reports(tools, 1))
    again.wait()
    assert (web.answers, len(again.events("delivered"))) == ([], 1), "what it has already is delivered"


def test_a_destination_that_goes_away_in_the_middle(tools: Any, desk: Any) -> None:
    """The archive ends after two objects; the rest comes when it is there again, and nothing comes twice."""
    port = tools.free_port()
    objects = reports(tools, 6)
    got: dict[str, int] = {}
    with tools.archive(port) as pacs, contextlib.suppress(AssertionError):
        here = desk(dicom(port), objects)
        pacs.wait_for(2)
        for association in pacs.server.active_associations:
            association.abort(block=False)
    for instance, copies in pacs.got.items():
        got[instance] = got.get(instance, 0) + len(copies)
    with tools.archive(port) as again:
        here.wait()
    for instance, copies in again.got.items():
        got[instance] = got.get(instance, 0) + len(copies)
    assert set(got) == {ds.SOPInstanceUID for ds in objects}
    assert sum(got.values()) <= len(objects) + 1, "at most what was under way when it ended came twice"
