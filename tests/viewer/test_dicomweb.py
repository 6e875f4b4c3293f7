"""A study on a real DICOMweb server (Orthanc), searched for and fetched from the viewer."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams

pytestmark = pytest.mark.system

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[str]:
    """Orthanc with one small phantom exam; the address of its DICOMweb service."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    missing = [str(path) for path in (Path(program), PLUGIN) if not path.exists()]
    assert not missing, "this test needs Debian's packages orthanc and orthanc-dicomweb"
    port = free_port()
    settings = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    log = (tmp_path / "orthanc.log").open("w")
    process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log, cwd=tmp_path)
    try:
        write_exams(tmp_path / "exam", 1, seed=3, config=PhantomConfig(size=(832, 640)))
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        for file in sorted((tmp_path / "exam" / "images").glob("*CC.dcm")):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/instances", data=file.read_bytes(), method="POST")
            assert urllib.request.urlopen(request, timeout=60).status == 200
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def test_a_study_is_found_fetched_and_analysed(archive: str, serve: Callable[..., Any], view_of: Callable[..., Any]) -> None:
    viewer = view_of()
    viewer.page.goto(serve("--dicomweb", archive).url)
    viewer.page.get_by_label("Patient ID").fill("PHANTOM-3-0001")
    viewer.page.get_by_role("button", name="Search").click()
    study = viewer.page.locator(".remote button")
    study.wait_for(timeout=30_000)
    assert study.count() == 1
    assert "PHANTOM" in study.inner_text()
    study.click()
    viewer.page.wait_for_selector(".image-entry.processed >> nth=1", timeout=120_000)
    viewer.wait_drawn(2)
    viewer.settle()
    assert {viewer.pane(view).count() for view in ("RCC", "LCC")} == {1}
    assert "PHANTOM" not in viewer.page.url
