"""Planted patient attributes stand in no log line, file name, error message or status output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

# Each in the element where it belongs; some where no one expects them.
PLANTED = {
    "PatientName": "Zyxwv^Planted",
    "PatientID": "PLANTEDID77",
    "PatientBirthDate": "19470813",
    "PatientAge": "076Y",
    "OtherPatientNames": "Qqmaiden^Planted",
    "PatientAddress": "7 Planted Lane",
    "PatientTelephoneNumbers": "0555777123",
    "AccessionNumber": "PLACC4711",
    "StudyID": "PLSTUDY42",
    "StudyDescription": "Planted follow-up of Zyxwv",
    "SeriesDescription": "Planted series",
    "ReferringPhysicianName": "Docplanted^Ref",
    "OperatorsName": "Opplanted^Tech",
    "InstitutionName": "Planted Hospital",
    "StationName": "PLSTATION",
    "Modality": "MG",
    "ImageComments": "Planted comment",
    "ViewPosition": "ZYXWV VIEW",
    "BodyPartExamined": "PLANTEDBODY",
    "StudyDate": "20190823",
}
SECRETS = sorted({word for k, v in PLANTED.items() if k != "Modality" for word in v.replace("^", " ").split() if len(word) > 3}
                 - {"Hospital", "Lane", "series", "comment", "VIEW"})  # fmt: skip


def planted(tools: Any, **elements: Any) -> Dataset:
    ds: Dataset = tools.mammogram(**PLANTED, **elements)
    item = Dataset()
    item.PatientID = "PLANTEDOTHER"
    ds.OtherPatientIDsSequence = Sequence([item])
    return ds


def everything_said(here: Any, tmp_path: Path) -> str:
    """All that the node told: log, outputs of its commands, names of files and folders, its database."""
    said = [here.log.read_text()]
    for arguments in (["status"], ["status", "--json"], ["start"]):  # the last is refused: one is at work
        command = [sys.executable, "-m", "mammoseg.apps.cli", "node", *arguments, "--config", str(here.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said += [done.stdout, done.stderr]
    said += [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")]
    said += [(here.spool / n).read_bytes().decode("latin-1") for n in ("node.sqlite", "node.sqlite-wal", "node.lock")]
    return "\n".join(said)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_nothing_of_the_patient_is_told(node: Any, tools: Any, tmp_path: Path) -> None:
    port = tools.free_port()
    rest = f'[[destinations]]\nname = "pacs"\nhost = "127.0.0.1"\nport = {port}\nae_title = "ARCHIVE"\nretry_s = 0.1\n'
    here = node(formats='["json", "seg", "cadsr", "sr", "pr", "sc"]', rest=rest, limits="object_mib = 1")
    good, blank, damaged = planted(tools), planted(tools), planted(tools)
    blank.PixelData = b"\0" * len(blank.PixelData)
    damaged.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    frame = bytearray(next(pydicom.encaps.generate_frames(damaged.PixelData, number_of_frames=1)))
    frame[150:-20] = b"Zyxwv" * (len(frame[150:-20]) // 5)
    damaged.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    other = planted(tools, PixelIntensityRelationship="LIN", PresentationIntentType="FOR PROCESSING")
    assert tools.send(here.port, good, blank, damaged, other) == [0] * 4
    whole = tools.encoded(planted(tools))
    report = planted(tools, SOPClassUID=uid.ComprehensiveSRStorage)
    with tools.associated(here.port) as association:
        assert tools.store_raw(association, whole[:-50], instance_uid="1.2.3") == 0xC000
        assert tools.store_raw(association, whole, instance_uid="1.2.3") == 0xA900
        assert tools.store_raw(association, whole * 100, instance_uid="1.2.3") == 0xA700
        assert tools.store_raw(association, whole, instance_uid="Zyxwv^Planted") == 0x0117
    assert tools.send(here.port, report) == [0x0122]
    with tools.associated(here.port, calling="PLANTEDAE") as stranger:
        assert stranger.is_rejected
    here.wait_for("analysed", 4)
    here.wait_for("destination_unreachable")
    results = [pydicom.dcmread(f) for f in (here.spool / "outbox").iterdir()]
    assert {str(ds.PatientName) for ds in results} == {"Zyxwv^Planted"}, "results do lie under their patient"
    said = everything_said(here, tmp_path)
    assert len(here.events("object_refused")) == 5
    assert here.stop() == 0
    said += here.log.read_text()
    assert len(SECRETS) >= 15
    for secret in (*SECRETS, "PLANTEDAE", "PLANTEDOTHER"):
        assert secret.lower() not in said.lower(), secret
    log = here.log.read_text()
    for ds in (good, blank, damaged, other):
        for identifier in (ds.StudyInstanceUID, ds.SOPInstanceUID, ds.SeriesInstanceUID):
            assert str(identifier) not in log


def test_a_crash_says_where_and_not_what(tools: Any) -> None:
    """An unexpected exception whose text holds a name, in a thread and in the process."""
    program = """
import sys, threading, warnings, logging
from mammoseg.apps.node.log import Log, take_over
take_over(Log(sys.stderr))
def fail(): raise ValueError("Zyxwv^Planted")
warnings.warn("Zyxwv^Planted")
logging.getLogger("pynetdicom.dul").error("Zyxwv^Planted")
logging.getLogger("pydicom").warning("Zyxwv^Planted")
thread = threading.Thread(target=fail); thread.start(); thread.join()
fail()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Zyxwv" not in done.stdout + done.stderr
    for event in ("library", "thread_ended", "process_ended"):
        assert event in done.stderr
