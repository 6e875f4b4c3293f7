"""The DICOMweb client: it asks the named servers and nobody else, whatever they answer. With a real one: Orthanc (`system`)."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from mammoseg.apps.server import models
from mammoseg.apps.server.dicomweb import DicomWeb
from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.settings import AUTHORIZATION, Limits
from mammoseg.apps.server.store import Store
from mammoseg.apps.server.uploads import Uploads

from .archive import IMAGE, STUDY, Answer, Archive, as_bytes, dicom_json, related, tag
from .conftest import Running, breast, mammogram_dicom


@pytest.fixture
def archive() -> Iterator[Archive]:
    """One that answers as it should, until told otherwise."""
    made = Archive()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[Uploads]:
    """Where what was fetched goes; small limits."""
    store = Store(tmp_path / "state")
    yield Uploads(store, Limits(file=1 << 20, upload=4 << 20, files=20))
    store.close()


@pytest.fixture
def client(archive: Archive, uploads: Uploads) -> DicomWeb:
    """A client that may ask the archive."""
    return DicomWeb((archive.url,), uploads)


def fetch(client: DicomWeb, archive: Archive) -> list[str]:
    """Fetches the study."""
    return client.fetch({"server": archive.url, "study_instance_uid": STUDY}, threading.Event())


def test_search(client: DicomWeb, archive: Archive) -> None:
    (found,) = client.search(
        models.StudyQuery(patient_id="A&B=1", patient_name="Sec*", study_date="20200101-20201231", limit=7)
    )
    assert found.model_dump() == {
        "study_instance_uid": STUDY, "patient_name": "Secret^Patient", "patient_id": "SECRET-ID", "study_date": "20200102",
        "description": "", "modalities": ["MG", "SR"], "n_instances": 4,
    }  # fmt: skip
    path, query, headers = archive.asked[0]
    assert path == "/web/studies"
    assert query["PatientID"] == ["A&B=1"]
    assert query["PatientName"] == ["Sec*"]
    assert (query["StudyDate"], query["limit"], query["offset"]) == (["20200101-20201231"], ["7"], ["0"])
    assert headers["Accept"] == "application/dicom+json"
    assert "Authorization" not in headers


def test_fetching_keeps_the_images_alone(client: DicomWeb, archive: Archive, uploads: Uploads, tmp_path: Path) -> None:
    archive.answers[f"/studies/{STUDY}/series/1.2.3.1/instances/1.2.3.1.1"] = related(IMAGE, b"no image", IMAGE)
    images = fetch(client, archive)
    assert len(images) == 1
    (kept,) = (tmp_path / "state" / "uploads" / images[0]).iterdir()
    assert kept.read_bytes() == IMAGE
    assert not any("1.2.3.2" in path for path, _, _ in archive.asked), "reports are no images"
    assert fetch(client, archive) == images


def test_credentials_come_from_the_environment(client: DicomWeb, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTHORIZATION, "Basic c2VjcmV0")
    client.search(models.StudyQuery())
    assert archive.asked[0][2]["Authorization"] == "Basic c2VjcmV0"


def test_nobody_else_is_asked(client: DicomWeb, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Archive()
    for url in (other.url, archive.url + "/../x", archive.url.replace("127.0.0.1", "localhost"), "file:///etc/passwd", ""):
        with pytest.raises(ApiError) as refused:
            client.search(models.StudyQuery(server=url))
        assert refused.value.status == 403
    monkeypatch.setenv("http_proxy", other.url)
    monkeypatch.setenv("HTTP_PROXY", other.url)
    client.search(models.StudyQuery(server=archive.url + "/"))
    for status in (301, 302, 307, 308):
        archive.answers["/studies"] = status, {"Location": f"{other.url}/studies"}, b""
        with pytest.raises(ApiError) as refused:
            client.search(models.StudyQuery())
        assert refused.value.status == 502
    assert other.asked == []
    other.server.shutdown()
    other.server.server_close()
    with pytest.raises(ApiError) as refused:
        DicomWeb((), client._uploads).search(models.StudyQuery())
    assert refused.value.status == 404


BAD_JSON: dict[str, Answer] = {
    "an error": (500, {}, b"Secret^Patient"),
    "no json": (200, {}, b"<html>Secret^Patient"),
    "no list": (200, {}, b'{"a": 1}'),
    "no objects": (200, {}, b"[1, 2]"),
    "deep": (200, {}, b"[" * 200_000),
    "too long": (200, {}, b"[" + b" " * (17 << 20) + b"]"),
    "cut": (200, {"Content-Length": "1000"}, b"[]"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_odd_answers_to_a_search(client: DicomWeb, archive: Archive, case: str) -> None:
    archive.answers["/studies"] = BAD_JSON[case]
    with pytest.raises(ApiError) as refused:
        client.search(models.StudyQuery(patient_name="Secret^Patient"))
    assert refused.value.status == 502
    assert "Secret" not in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


@pytest.mark.parametrize(
    "item",
    [{}, {"0020000D": 5}, {"0020000D": tag("UI", "../../x")}, {"0020000D": tag("UI", "1.2?x=1")}, {"0020000D": {"Value": {}}},
     {"0020000D": tag("UI", "1" * 65)}, {"0020000D": tag("UI", [["1.2"]])}],
)  # fmt: skip
def test_studies_without_a_proper_uid_are_left_out(client: DicomWeb, archive: Archive, item: Any) -> None:
    archive.answers["/studies"] = dicom_json(item, {"0020000D": tag("UI", "1.5"), "00201208": tag("IS", "many")})
    assert [s.study_instance_uid for s in client.search(models.StudyQuery())] == ["1.5"]


def test_no_studies(client: DicomWeb, archive: Archive) -> None:
    archive.answers["/studies"] = 204, {}, b""
    assert client.search(models.StudyQuery()) == []


BAD_PARTS: dict[str, tuple[Answer, int]] = {
    "an error": ((404, {}, b""), 502),
    "no multipart": ((200, {"Content-Type": "application/dicom"}, IMAGE), 415),
    "cut": ((200, related(IMAGE)[1], related(IMAGE)[2][:-20]), 400),
    "a connection that ends": ((200, {**related(IMAGE)[1], "Content-Length": "9999999"}, related(IMAGE)[2]), 502),
    "too large a file": (related(bytes(2 << 20)), 413),
    "too much": (related(*[bytes(1 << 19)] * 10), 413),
    "too many": (related(*[b"x"] * 30), 413),
    "not multipart at all": ((200, related()[1], b"\0" * 1000), 400),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_odd_answers_to_a_retrieval(client: DicomWeb, archive: Archive, uploads: Uploads, tmp_path: Path, case: str) -> None:
    archive.answers[f"/studies/{STUDY}/series/1.2.3.1/instances/1.2.3.1.1"], _ = BAD_PARTS[case]
    with pytest.raises(ApiError):
        fetch(client, archive)
    assert list((tmp_path / "state" / "uploads").iterdir()) == [], "nothing is left"


def test_a_server_that_is_not_there(uploads: Uploads) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ApiError) as refused:
        DicomWeb((f"http://127.0.0.1:{port}/x",), uploads).search(models.StudyQuery())
    assert refused.value.status == 502


def wait(running: Running, job_id: str) -> dict[str, Any]:
    """The job when it is over."""
    client, end = running.client(), time.monotonic() + 300
    while time.monotonic() < end:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.1)
    raise AssertionError("the job does not end")


def test_an_import_through_the_service(serve: Callable[..., Running], archive: Archive, tiny_bundle: Path) -> None:
    running = serve("--dicomweb", archive.url, "--weights", tiny_bundle)
    client = running.client()
    assert client.get("/info").json()["dicomweb"] == [archive.url]
    answer = client.post("/dicomweb/search", json={"patient_id": "SECRET-ID"})
    assert [s["study_instance_uid"] for s in answer.json()["studies"]] == [STUDY]
    assert client.post("/dicomweb/search", json={"server": "http://127.0.0.1:1/x"}).status_code == 403
    started = client.post("/dicomweb/import", json={"study_instance_uid": STUDY})
    assert started.status_code == 202
    job = wait(running, started.json()["job_id"])
    assert (job["state"], job["kind"], job["total"], job["error"]) == ("done", "import", 1, None)
    (image,) = client.get("/images").json()
    assert (image["image_id"], image["uploaded"]) == (job["images"][0], True)
    pixels = client.get(f"/images/{image['image_id']}/pixels")
    np.testing.assert_array_equal(np.frombuffer(pixels.content, "<u2").reshape(breast(12).shape), breast(12))
    archive.answers = {}
    failed = wait(running, client.post("/dicomweb/import", json={"study_instance_uid": "1.9"}).json()["job_id"])
    assert failed["state"] == "failed"
    assert "404" in failed["error"]
    assert client.post("/dicomweb/import", json={"study_instance_uid": "../x"}).status_code == 422


@pytest.mark.system
def test_a_real_server(serve: Callable[..., Running], tmp_path: Path, tiny_bundle: Path) -> None:
    """Orthanc with its DICOMweb plugin: what was stored there comes here byte for byte, compressed or not."""
    program, plugin = shutil.which("Orthanc") or "/usr/sbin/Orthanc", "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
    assert Path(program).exists(), "Debian's packages orthanc and orthanc-dicomweb are needed"
    assert Path(plugin).exists(), "Debian's packages orthanc and orthanc-dicomweb are needed"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = {
        "StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db"), "HttpPort": port,
        "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log, cwd=tmp_path)
    try:
        plain = mammogram_dicom(breast(12), 12, StudyInstanceUID="1.2.826.0.1.99", ViewPosition="CC", ImageLaterality="L")
        packed = mammogram_dicom(breast(12)[::-1], 12, StudyInstanceUID="1.2.826.0.1.99", ViewPosition="MLO")
        packed.compress(JPEG2000Lossless)
        expected = {as_bytes(plain), as_bytes(packed)}
        end = time.monotonic() + 60
        for data in expected:
            while True:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/instances", data=data, method="POST")
                try:
                    urllib.request.urlopen(request, timeout=30).read()
                    break
                except urllib.error.HTTPError:
                    raise
                except OSError:
                    assert time.monotonic() < end, (tmp_path / "orthanc.log").read_text()
                    time.sleep(0.2)
        running = serve("--dicomweb", f"http://127.0.0.1:{port}/dicom-web", "--weights", tiny_bundle)
        client = running.client()
        for query, number in (({"patient_id": "SECRET-ID"}, 1), ({"patient_name": "Sec*"}, 1), ({"patient_id": "OTHER"}, 0)):
            answer = client.post("/dicomweb/search", json=query)
            assert len(answer.json()["studies"]) == number, answer.text
        started = client.post("/dicomweb/import", json={"study_instance_uid": "1.2.826.0.1.99"})
        job = wait(running, started.json()["job_id"])
        assert (job["state"], job["total"]) == ("done", 2)
        kept = {next((running.state / "uploads" / i).iterdir()).read_bytes() for i in job["images"]}
        same = [pydicom.dcmread(io.BytesIO(d)) for d in (*kept, *expected)]
        assert len({ds.SOPInstanceUID for ds in same}) == 2
        assert {bytes(ds.PixelData) for ds in same[:2]} == {bytes(ds.PixelData) for ds in same[2:]}
        assert {i["view_position"] for i in client.get("/images").json()} == {"CC", "MLO"}
        assert "SECRET" not in running.log.read_text()
    finally:
        process.terminate()
        process.wait(30)
