"""Nothing of a patient in logs, URLs, headers or file names, whatever is done and whatever goes wrong."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from .archive import Archive, as_bytes
from .conftest import Running, breast, mammogram_dicom, save

PLANTED = {
    "PatientName": "Zzyzx^Quuxella", "PatientID": "PID-7391-QQ", "PatientBirthDate": "19010203", "AccessionNumber": "ACC7391",
    "StudyInstanceUID": "1.2.826.0.1.7391.1", "SeriesInstanceUID": "1.2.826.0.1.7391.2", "SOPInstanceUID": "1.2.826.0.1.7391.3",
    "StudyDate": "19770706", "ReferringPhysicianName": "Wibblethorpe^Q", "InstitutionName": "Flurbhospital",
    "StudyID": "ST7391",
}  # fmt: skip
WORDS = ("zzyzx", "quuxella", "7391", "19010203", "19770706", "wibblethorpe", "flurbhospital")


class Recorder:
    """Asks a server and keeps all that is neither a body of a request nor of an answer."""

    def __init__(self, running: Running) -> None:
        self.seen: list[str] = []
        self.client = running.client(event_hooks={"request": [self._request], "response": [self._response]})

    def _request(self, request: httpx.Request) -> None:
        self.seen.append(str(request.url))

    def _response(self, answer: httpx.Response) -> None:
        self.seen += [f"{k}: {v}" for k, v in answer.headers.items()]


def leaks(texts: list[str]) -> list[str]:
    """Those that hold a planted word."""
    return [t for t in texts if any(w in t.lower() for w in WORDS)]


def test_the_search_for_leaks_finds_one() -> None:
    assert leaks(["GET /images/zzyzx.dcm", "a", "x ACC7391"]) == ["GET /images/zzyzx.dcm", "x ACC7391"]


def test_nothing_of_a_patient_anywhere(
    serve: Callable[..., Running], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in" / "Zzyzx_Quuxella_7391"
    image = mammogram_dicom(breast(12), 12, **PLANTED, ImageLaterality="L", ViewPosition="CC")
    path = save(image, folder / "Quuxella_19010203_LCC.dcm")
    (folder / "zzyzx_cut.dcm").write_bytes(path.read_bytes()[:3000])
    (folder / "quuxella.png").write_bytes(b"\x89PNG\r\n\x1a\nZzyzx^Quuxella")
    blank = {
        **PLANTED,
        "SOPInstanceUID": "1.2.826.0.1.7391.4",
        "Modality": "ZZYZX QUUX",
        "PhotometricInterpretation": "QUUXELLA",
    }
    save(mammogram_dicom(breast(12), 12, **blank), folder / "odd_quuxella.dcm")
    archive = Archive()
    archive.answers["/studies"] = 500, {"X-Odd": "Zzyzx"}, b"Quuxella"
    running = serve(tmp_path / "in", "--weights", tiny_bundle, "--dicomweb", archive.url, env={"MAMMOSEG_DEBUG": ""})
    recorder = Recorder(running)
    client = recorder.client
    job = client.post("/jobs", json={"images": "all"}).json()["job_id"]
    _wait(client, job)
    upload = as_bytes(mammogram_dicom(breast(8), 8, **PLANTED))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as content:
        content.writestr("Zzyzx/Quuxella_7391_RCC.dcm", upload)
        content.writestr("Zzyzx/notes_quuxella.txt", "Zzyzx")
    answer = client.post(
        "/uploads", files=[("files", ("Quuxella.zip", packed.getvalue())), ("files", ("Zzyzx.dcm", upload[:900]))]
    )
    _wait(client, answer.json()["job_id"])
    for entry in client.get("/images").json():
        place = f"/images/{entry['image_id']}"
        for what in (
            "",
            "/pixels",
            "/pixels?level=2",
            "/findings",
            "/layers",
            "/truth",
            *(f"/results/{f}" for f in entry["formats"]),
        ):
            client.get(place + what)
        recorder.seen += [entry["image_id"], entry["study_id"]]
    for study in client.get("/studies").json():
        for format in study["formats"]:
            assert client.get(f"/studies/{study['study_id']}/results/{format}").status_code == 200
    bodies = _what_goes_wrong(client)
    client.get("/jobs")
    said = running.log.read_text()
    assert running.stop() == 0
    archive.server.shutdown()
    archive.server.server_close()
    assert leaks(recorder.seen) == []
    assert leaks(said.splitlines()) == []
    assert leaks([p.relative_to(running.state).as_posix() for p in running.state.rglob("*")]) == []
    assert leaks(bodies) == []


def _wait(client: httpx.Client, job_id: str) -> None:
    import time

    end = time.monotonic() + 300
    while client.get(f"/jobs/{job_id}").json()["state"] in ("queued", "running"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert client.get(f"/jobs/{job_id}").json()["state"] == "done"


def _what_goes_wrong(client: httpx.Client) -> list[str]:
    """The answers to requests that hold a patient's data where they should not: it is not repeated."""
    plain = {"base_url": client.base_url, "trust_env": False}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/dicomweb/search", {"json": {"patient_name": "Zzyzx^Quuxella", "patient_id": "PID-7391-QQ"}}),
        ("POST", "/dicomweb/search", {"json": {"patient_name": "Zzyzx" * 100}}),
        ("POST", "/dicomweb/search", {"json": {"Zzyzx": "Quuxella"}}),
        ("POST", "/dicomweb/import", {"json": {"study_instance_uid": "Zzyzx"}}),
        ("POST", "/jobs", {"json": {"images": ["Zzyzx^Quuxella"]}}),
        ("POST", "/jobs", {"content": b'{"images": ["Zzyzx', "headers": {"Content-Type": "application/json"}}),
        ("POST", "/uploads", {"content": b"Zzyzx", "headers": {"Content-Type": "multipart/form-data; boundary=Quuxella"}}),
        ("GET", "/images/Zzyzx^Quuxella", {}),
        ("GET", "/images/Zzyzx/pixels?level=Quuxella", {}),
        ("GET", "/nothing/Zzyzx?PatientName=Quuxella", {}),
        ("ZZYZX", "/images", {}),
    ]
    bodies = []
    with httpx.Client(**plain) as other:
        for method, path, options in wrong:
            answer = other.request(method, path, **options)
            assert answer.status_code >= 400
            bodies += [answer.text, *(f"{k}: {v}" for k, v in answer.headers.items())]
    return bodies
