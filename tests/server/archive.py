"""A DICOMweb server that answers as a test says, well or badly."""

from __future__ import annotations

import http.server
import io
import json
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

from .conftest import breast, mammogram_dicom

STUDY = "1.2.3"
Answer = tuple[int, dict[str, str], bytes]


def tag(vr: str, *values: Any) -> dict[str, Any]:
    """An attribute as DICOM JSON has it."""
    return {"vr": vr, "Value": list(values)}


def dicom_json(*items: Any) -> Answer:
    """An answer to a query."""
    return 200, {"Content-Type": "application/dicom+json"}, json.dumps(items).encode()


def related(*parts: bytes, boundary: str = "b0undary") -> Answer:
    """An answer with instances."""
    body = b"".join(b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), p) for p in parts)
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return 200, {"Content-Type": kind}, body + f"--{boundary}--\r\n".encode()


def as_bytes(ds: pydicom.Dataset) -> bytes:
    """A DICOM file."""
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


IMAGE = as_bytes(mammogram_dicom(breast(12), 12, StudyInstanceUID=STUDY))


class Archive:
    """A server that answers as the test says. asked: what it was asked, as (path, query, headers)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.answers: dict[str, Answer] = {
            "/studies": dicom_json({"0020000D": tag("UI", STUDY), "00100010": tag("PN", {"Alphabetic": "Secret^Patient"}),
                                    "00100020": tag("LO", "SECRET-ID"), "00080020": tag("DA", "20200102"),
                                    "00080061": tag("CS", "MG", "SR"), "00201208": tag("IS", 4)}),
            f"/studies/{STUDY}/series": dicom_json({"0020000E": tag("UI", "1.2.3.1"), "00080060": tag("CS", "MG")},
                                                   {"0020000E": tag("UI", "1.2.3.2"), "00080060": tag("CS", "SR")}),
            f"/studies/{STUDY}/series/1.2.3.1/instances": dicom_json({"00080018": tag("UI", "1.2.3.1.1")}),
            f"/studies/{STUDY}/series/1.2.3.1/instances/1.2.3.1.1": related(IMAGE),
        }  # fmt: skip
        archive = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                archive.asked.append((parts.path, parse_qs(parts.query), dict(self.headers)))
                status, headers, body = archive.answers.get(parts.path.removeprefix("/web"), (404, {}, b""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/web"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
