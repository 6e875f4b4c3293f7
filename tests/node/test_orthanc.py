"""Through a real Orthanc and back, by the recipe in docs/orthanc.md applied to Debian's own configuration."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).resolve().parents[2]
STORESCU = "/usr/bin/storescu"  # DCMTK's; pynetdicom installs another one by that name


def blocks(language: str) -> list[str]:
    """The code blocks of the recipe."""
    page = (REPOSITORY / "docs/orthanc.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def without_comments(text: str) -> str:
    """Debian's configuration is JSON with C comments; strings with `//` in them stay."""
    pattern = r'("(?:\\.|[^"\\])*")|/\*.*?\*/|//[^\n]*'
    return re.sub(pattern, lambda m: m[1] or "", text, flags=re.DOTALL)


class Orthanc:
    """A running Orthanc with the recipe's settings, on ports and in folders of its own."""

    def __init__(self, folder: Path, node_port: int, ports: tuple[int, int]) -> None:
        self.http, self.dicom = ports
        self.web = f"http://127.0.0.1:{self.http}/dicom-web"
        etc = folder / "etc"
        etc.mkdir()
        settings = json.loads(without_comments(Path("/etc/orthanc/orthanc.json").read_text(encoding="utf-8")))
        (recipe,) = blocks("json")
        settings |= json.loads(recipe.replace("/etc/orthanc/", f"{etc}/").replace("11112", str(node_port)))
        here = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
        settings |= here | {"HttpPort": self.http, "DicomPort": self.dicom}
        (etc / "orthanc.json").write_text(json.dumps(settings))
        for name in ("dicomweb.json", "gdcm.json"):
            (etc / name).write_bytes(Path("/etc/orthanc", name).read_bytes())
        (script,) = blocks("lua")
        (etc / "mammoseg.lua").write_text(script)
        self.log = folder / "orthanc.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["/usr/sbin/Orthanc", str(etc)], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                self.get("/system")
                return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "Orthanc does not answer"
            time.sleep(0.1)

    def get(self, path: str, accept: str = "application/json") -> bytes:
        """What a GET gives."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=60) as answer:
            self.content_type = answer.headers["Content-Type"]
            content: bytes = answer.read()
            return content

    def instances(self, study: str) -> list[bytes]:
        """The files of all instances of a study, over WADO-RS."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        body = self.get(f"/dicom-web/studies/{study}", accept)
        found = re.search(r'boundary="?([^";]+)"?', self.content_type)
        assert found is not None
        parts = body.split(b"--" + found[1].encode())[1:-1]
        return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]

    def series(self, study: str) -> Counter[str]:
        """How many instances of each modality QIDO-RS tells of."""
        found = json.loads(self.get(f"/dicom-web/studies/{study}/instances?includefield=00080060", "application/dicom+json"))
        return Counter(item["00080060"]["Value"][0] for item in found)


@pytest.fixture
def orthanc(tmp_path: Path, tools: Any) -> Iterator[Any]:
    made: list[Orthanc] = []

    def start(node_port: int, ports: tuple[int, int]) -> Orthanc:
        made.append(Orthanc(tmp_path, node_port, ports))
        return made[-1]

    yield start
    for one in made:
        one.process.terminate()
        one.process.wait(timeout=60)


def data_set(whole: bytes) -> bytes:
    """A DICOM file without its preamble and file meta information."""
    assert whole[128:132] == b"DICM"
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


@pytest.mark.parametrize("way", ["dicom", "stow"])
def test_a_phantom_study_goes_through_orthanc_and_its_results_come_back(
    node: Any, tools: Any, orthanc: Any, tmp_path: Path, way: str
) -> None:
    node_port, ports = tools.free_port(), (tools.free_port(), tools.free_port())
    here = orthanc(node_port, ports)
    settings, stow = blocks("toml")
    if way == "stow":
        settings = settings[: settings.index("[[destinations]]")] + stow
    settings = settings.replace("/var/lib/mammoseg", str(tmp_path / "spool")).replace("quiet_s = 60", "quiet_s = 5")
    settings = settings.replace("11112", str(node_port)).replace("4242", str(ports[1])).replace("8042", str(ports[0]))
    there = node(begin=False, port=node_port, spool=tmp_path / "spool")
    there.config.write_text(settings)
    there.start()

    made = [sys.executable, "-m", "mammoseg.apps.cli", "phantom", "--out", str(tmp_path / "phantoms"), "--seed", "2"]
    subprocess.run(made, check=True, capture_output=True)
    images = sorted((tmp_path / "phantoms/images").iterdir())
    sent = [STORESCU, "-aec", "ORTHANC", "127.0.0.1", str(ports[1]), *map(str, images)]
    subprocess.run(sent, check=True, capture_output=True, env={**os.environ, "TZ": "UTC"})
    study = str(pydicom.dcmread(images[0], stop_before_pixels=True).StudyInstanceUID)

    there.wait_for("analysed", seconds=900)
    (done,) = there.events("analysed")
    assert (done["processed"], done["version"]) == (4, 1)
    assert done["lesions"] > 0, "the phantom must give a mass, or there is no segmentation to see"
    there.wait_for("delivered", done["results"])
    assert there.stop() == 0
    assert not [e for e in there.events() if e["level"] != "info"]

    assert here.series(study) == {"MG": 4, "PR": 4, "SR": 2, "SEG": done["results"] - 6}
    written = {data_set(f.read_bytes()): f for f in (tmp_path / "spool/results").rglob("*.dcm")}
    assert len(written) == done["results"] > 6
    fetched = here.instances(study)
    sources = {data_set(f.read_bytes()) for f in images}
    assert {data_set(whole) for whole in fetched} == set(written) | sources, "data set for data set, to the byte"
    assert len(fetched) == len(written) + len(images), "each once"
    if way == "stow":
        assert {f.read_bytes() for f in written.values()} <= set(fetched), "the whole file, to the byte"
    kinds = Counter(str(pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True).SOPClassUID.name) for whole in fetched)
    assert kinds["Mammography CAD SR Storage"] == kinds["Comprehensive SR Storage"] == 1
    assert kinds["Grayscale Softcopy Presentation State Storage"] == 4
    assert kinds["Segmentation Storage"] >= 1
    assert "MetricsEnabled" in blocks("json")[0], "nothing is measured that nobody asked for"


def test_what_orthanc_sends_round_in_circles_is_dropped(node: Any, tools: Any, orthanc: Any, tmp_path: Path) -> None:
    """A script that forwards everything to everyone: our own results come back to us, and no second analysis follows."""
    node_port, ports = tools.free_port(), (tools.free_port(), tools.free_port())
    here = orthanc(node_port, ports)
    destination = f'[[destinations]]\nname = "o"\nhost = "127.0.0.1"\nport = {ports[1]}\nae_title = "ORTHANC"\n'
    there = node(
        port=node_port,
        formats='["json", "seg", "cadsr", "sr", "pr", "sc"]',
        rest=destination,
        top="",
        quiet_s=1.0,
        calling="ORTHANC",
    )
    image = tools.mammogram()
    tools.send(ports[1], image, called="ORTHANC")
    there.wait_for("analysed")
    (done,) = there.events("analysed")
    there.wait_for("delivered", done["results"])
    for instance in json.loads(here.get("/instances")):
        request = urllib.request.Request(
            f"http://127.0.0.1:{here.http}/modalities/mammoseg/store", data=json.dumps(instance).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
    there.wait_for("own_result_ignored", done["results"])
    time.sleep(3)
    assert len(there.events("analysed")) == 1
    assert there.stop() == 0
