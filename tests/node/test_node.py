"""The whole node, a process of its own, between real peers: studies in, DICOM results out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from click.testing import CliRunner
from pydicom import uid

from mammoseg.apps.cli import cli
from mammoseg.apps.node.config import Analysis, Destination, Limits, NodeConfig
from mammoseg.apps.node.log import Log
from mammoseg.apps.node.service import Node, held, is_running

ALL = '["json", "seg", "cadsr", "sr", "pr", "sc"]'
CADSR, SR, SEG = uid.MammographyCADSRStorage, uid.ComprehensiveSRStorage, uid.SegmentationStorage
PR, SC = uid.GrayscaleSoftcopyPresentationStateStorage, uid.SecondaryCaptureImageStorage


def destination(port: int, name: str = "pacs") -> str:
    return f"""
[[destinations]]
name = "{name}"
host = "127.0.0.1"
port = {port}
ae_title = "ARCHIVE"
retry_s = 0.2
retry_max_s = 1.0
"""


def start(config: Path) -> subprocess.CompletedProcess[str]:
    """`mammoseg node start`, which is refused."""
    command = [sys.executable, "-m", "mammoseg.apps.cli", "node", "start", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def status(config: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of `mammoseg node status`."""
    done = CliRunner().invoke(cli, ["node", "status", "--config", str(config), *options])
    return done.exit_code, done.output


def content(file: Path) -> bytes:
    """A file's data set as it lies there, without file meta information."""
    whole = file.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def images_of(archive: Any, class_uid: str) -> list[set[str]]:
    """For each received report of a class, the images it has in its evidence or library."""
    out = []
    for instance, copies in archive.got.items():
        if archive.classes[instance] == class_uid:
            ds = pydicom.dcmread(io.BytesIO(copies[0]), force=True)
            found = {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
            out.append(found)
    return out


def test_a_study_comes_back_as_results_and_a_late_image_makes_a_second_version(node: Any, tools: Any) -> None:
    study = uid.generate_uid()
    first, second = (tools.mammogram(study=study, seed=i) for i in range(2))
    late = tools.mammogram(study=study, seed=2)
    with tools.archive() as pacs:
        here = node(formats=ALL, rest=destination(pacs.port))
        assert tools.send(here.port, first, second) == [0, 0]
        here.wait_for("analysed")
        (done,) = here.events("analysed")
        assert (done["version"], done["processed"]) == (1, 2)
        pacs.wait_for(done["results"])
        classes = Counter(pacs.classes.values())
        assert (classes[CADSR], classes[SR], classes[PR], classes[SC]) == (1, 1, 2, 2)
        assert images_of(pacs, CADSR) == [{first.SOPInstanceUID, second.SOPInstanceUID}]
        for instance, copies in pacs.got.items():
            ds = pydicom.dcmread(io.BytesIO(copies[0]), force=True)
            assert (ds.StudyInstanceUID, ds.PatientID, ds.SOPInstanceUID) == (study, "T1", instance)
        written = {content(f): pydicom.dcmread(f) for f in (here.spool / "results").rglob("*.dcm")}
        assert {copies[0] for copies in pacs.got.values()} == set(written), "to the byte what the pipeline wrote"

        assert tools.send(here.port, late, first) == [0, 0]
        here.wait_for("analysed", 2)
        pacs.wait_for(done["results"] + 4 + (here.events("analysed")[1]["results"] - done["results"] - 2))
        assert here.events("analysed")[1]["version"] == 2
        here.wait_for("delivered", len(pacs.got))
        assert all(len(copies) == 1 for copies in pacs.got.values()), "nothing is sent twice"
        images = {first.SOPInstanceUID, second.SOPInstanceUID}
        assert images_of(pacs, CADSR) == [images, images | {late.SOPInstanceUID}]

        ours = list(written.values())
        assert tools.send(here.port, *ours) == [0] * len(ours)
        assert len(here.events("own_result_ignored")) == len(ours)
        code, shown = status(here.config)
        assert code == 0
        assert f"to pacs: 0 waiting, {len(pacs.got)} delivered" in shown
        assert here.stop() == 0
    events = [line["event"] for line in here.events()]
    assert events[-2:] == ["stopping", "stopped"]
    assert not [e for e in here.events() if e["level"] != "info"]
    assert len(here.events("study_complete")) == 2


def test_what_cannot_be_analysed_is_reported_and_a_killed_worker_costs_nothing(node: Any, tools: Any) -> None:
    """A blank image is rejected, one with damaged compressed data fails, and the analysis is killed: both are in the report."""
    study = uid.generate_uid()
    blank = tools.mammogram(study=study)
    blank.PixelData = b"\0" * len(blank.PixelData)
    damaged = tools.mammogram(study=study, seed=1)
    damaged.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    frame = bytearray(next(pydicom.encaps.generate_frames(damaged.PixelData, number_of_frames=1)))
    frame[200:-50] = b"\0" * len(frame[200:-50])
    damaged.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    with tools.archive() as pacs:
        here = node(formats=ALL, rest=destination(pacs.port))
        assert tools.send(here.port, blank, damaged) == [0, 0]
        here.wait_for("study_complete")
        children = Path(f"/proc/{here.process.pid}/task/{here.process.pid}/children")
        killed = False
        for task in children.parent.parent.iterdir():
            for pid in (task / "children").read_text().split():
                subprocess.run(["kill", "-9", pid], check=False)
                killed = True
        assert killed
        here.wait_for("analysed")
        (failed,) = here.events("analysis_failed")
        assert "process" in failed["reason"]
        (done,) = here.events("analysed")
        assert (done["rejected"], done["processed"] + done["failed"]) == (1, 1)
        pacs.wait_for(done["results"])
        assert images_of(pacs, CADSR) == [{blank.SOPInstanceUID, damaged.SOPInstanceUID}]


def test_wrong_settings_are_one_clear_line(tmp_path: Path) -> None:
    good = f'spool = "{tmp_path / "spool"}"\ncalling = ["X"]\n'
    cases = {
        good.replace("calling", "caling"): "unknown setting 'caling'; did you mean 'calling'",
        good.replace('["X"]', "[]"): "calling: expected the AE titles that may send",
        good.replace('["X"]', '["A TITLE THAT IS FAR TOO LONG"]'): "1 to 16 ASCII characters",
        good + '[[destinations]]\nname = "a"\n': "expected an AE title",
        good + '[[destinations]]\nname = "a"\nkind = "stow"\nurl = "ftp://x"\n': "expected url as http(s)",
        good + '[tls]\ncertificate = "no.pem"\nkey = "no.key"\n': "tls: the files no.pem, no.key cannot be used",
        good + '[analysis]\nformats = ["gif"]\n': "'gif' is not known",
        good + '[analysis]\nset = ["fusion.lamb=1"]\n': "did you mean 'fusion.lam'",
        good + '[analysis]\nweights = "nowhere"\n': "no bundle at nowhere",
        good + "[limits]\npdu_kib = 1\n": "pdu_kib: expected 16 to 16384",
        "spool = [": "not valid TOML",
    }
    for text, message in cases.items():
        (tmp_path / "node.toml").write_text(text)
        done = CliRunner().invoke(cli, ["node", "start", "--check", "--config", str(tmp_path / "node.toml")])
        assert done.exit_code in (1, 2), text
        assert message in done.output, done.output
        assert len(done.output.splitlines()) == 1
    (tmp_path / "node.toml").write_text(good)
    done = CliRunner().invoke(cli, ["node", "start", "--check", "--config", str(tmp_path / "node.toml")])
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'node.toml'}: the settings are sound\n")
    done = CliRunner().invoke(cli, ["node", "status", "--config", str(tmp_path / "node.toml")])
    assert done.exit_code == 2
    assert "no node ever ran in" in done.output


def test_a_second_node_in_the_same_spool_is_refused_and_a_taken_port_named(node: Any, tmp_path: Path) -> None:
    here = node()
    again = start(here.config)
    assert (again.returncode, "another node is at work" in again.stderr) == (2, True), again.stderr
    other = node(begin=False, port=here.port)
    taken = start(other.config)
    assert taken.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {here.port}" in taken.stderr
    code, shown = status(here.config, "--json")
    found = json.loads(shown)
    assert (code, found["running"], found["studies"]) == (0, True, {"waiting": 0, "failing": 0, "finished": 0})
    here.stop()
    code, shown = status(here.config)
    assert (code, shown.splitlines()[0]) == (3, "node: not running")


def test_a_clock_that_jumps_loses_nothing(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's clock goes twenty years ahead, and forty back: studies are analysed, results delivered, none of it twice."""
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    years, study, lines = 365.0 * 86400, uid.generate_uid(), io.StringIO()
    with tools.archive() as pacs:
        to = Destination("pacs", "dicom", "127.0.0.1", pacs.port, "ARCHIVE", retry_s=0.2, retry_max_s=1.0)
        analysis = Analysis(set=("detection.scales=[[128,64]]", "runtime.threads=1"), formats=("json", "cadsr"))
        config = NodeConfig(str(tmp_path / "spool"), port=0, calling=("SENDER",), quiet_s=0.5, limits=Limits(free_mib=0))
        node = Node(replace(config, analysis=analysis, destinations=(to,)), Log(lines))
        running = threading.Thread(target=node.run)
        running.start()
        try:
            for number, jump in enumerate((0.0, 20 * years, -40 * years), start=1):
                while node.port == 0 or len(pacs.got) < number - 1:
                    time.sleep(0.05)
                ahead[0] += jump
                with tools.associated(node.port) as association:
                    image = tools.mammogram(study=study, seed=number)
                    data = tools.encoded(image)
                    assert tools.store_raw(association, data, instance_uid=image.SOPInstanceUID) == 0
                pacs.wait_for(number)
        finally:
            ahead[0] = 0.0
            node.stop()
            running.join(timeout=60)
        assert [len(copies) for copies in pacs.got.values()] == [1, 1, 1]
        assert [len(images) for images in images_of(pacs, CADSR)] == [1, 2, 3]
    assert not [line for line in lines.getvalue().splitlines() if json.loads(line)["level"] == "error"]


def test_a_damaged_database_is_one_clear_line(node: Any) -> None:
    here = node(begin=False)
    here.spool.mkdir()
    (here.spool / "node.sqlite").write_text("no database, but words " * 100)
    done = start(here.config)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "node.sqlite is this program's" in done.stderr
    code, shown = status(here.config)
    assert (code, "node.sqlite cannot be read" in shown) == (2, True)


def test_who_asks_for_the_status_holds_up_no_start(tmp_path: Path) -> None:
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            is_running(tmp_path)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for thread in askers:
        thread.start()
    try:
        for _ in range(50):
            with held(tmp_path):
                assert is_running(tmp_path)
    finally:
        over.set()
        for thread in askers:
            thread.join()
