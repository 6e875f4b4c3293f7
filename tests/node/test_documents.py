"""What the pages about the node say is so: settings, statuses, syntaxes, unit file."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydicom import uid

from mammoseg.apps.node import config, intake
from mammoseg.config import from_dict
from mammoseg.io.dicom_codec import TRANSFER_SYNTAXES
from mammoseg.io.dicom_results.maker import IMPLEMENTATION_CLASS_UID
from mammoseg.io.dicom_results.objects import KINDS

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = REPOSITORY / "packaging/mammoseg-node.service"


def page(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


def settings(cls: Any, prefix: str = "") -> dict[str, str]:
    """Each setting with its default, as the tables have them."""
    out = {}
    for f in dataclasses.fields(cls):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name in ("limits", "analysis"):
            out |= settings(type(default), f"`[{f.name}]` ")
        elif f.name == "tls" and cls is config.NodeConfig:
            out |= settings(config.Tls, "`[tls]` ")
        elif f.name != "destinations":
            none = default is dataclasses.MISSING or f.name == "calling"
            value = list(default) if isinstance(default, tuple) else default
            out[f"{prefix}`{f.name}`"] = "none" if none else f"`{json.dumps(value)}`"
    return out


def test_the_tables_have_every_setting_with_its_default() -> None:
    found = dict(re.findall(r"^\| (.*?) \| (.*?) \|", page("node.md"), flags=re.MULTILINE))
    expected = settings(config.NodeConfig) | settings(config.Destination)
    assert {k: v for k, v in found.items() if k not in ("key", "---")} == expected


def test_the_examples_are_sound() -> None:
    import tomllib

    for name in ("node.md", "orthanc.md"):
        for block in re.findall(r"^```toml\n(.*?)^```", page(name), flags=re.DOTALL | re.MULTILINE):
            values = tomllib.loads(block)
            from_dict(config.NodeConfig, {"calling": ["X"]} | values)
    lines = re.findall(r"^```json\n(.*?)^```", page("node.md"), flags=re.DOTALL | re.MULTILINE)
    from mammoseg.apps.node.log import FIELDS

    assert all(set(json.loads(line)) <= FIELDS | {"time", "level", "event"} for line in lines)
    source = "".join(f.read_text(encoding="utf-8") for f in (REPOSITORY / "src/mammoseg/apps/node").glob("*.py"))
    alarms = re.findall(r"`([a-z_]+)`", page("node.md").partition("Events worth an alarm:")[2].partition(".")[0])
    assert len(alarms) >= 6
    assert all(f'"{alarm}"' in source for alarm in alarms)


def test_the_conformance_statement_lists_what_is_accepted_and_sent() -> None:
    text = page("conformance.md")
    rows = re.findall(r"^\| (.*?) \| (1\.2\.840\.[0-9.]+) \|$", text, flags=re.MULTILINE)
    accepted = [*intake.IMAGE_CLASSES, *TRANSFER_SYNTAXES, *intake.RESULT_CLASSES]
    sent = [uid.UID(KINDS[k].sop_class_uid) for k in ("seg", "cadsr", "sr", "pr", "sc")]
    expected = [(u.name, str(u)) for u in (*accepted, *sent)]
    assert [row for row in rows if row[0] != "Application Context Name"] == expected
    assert f"| Implementation Class UID | {IMPLEMENTATION_CLASS_UID} |" in text
    assert f"| Implementation Version Name | {config.IMPLEMENTATION_NAME} |" in text
    assert f"{config.Limits().pdu_kib * 1024} bytes" in text
    assert f"| {config.Limits().associations} (`limits.associations`) |" in text
    told = {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) ", text, flags=re.MULTILINE)}
    names = ("OK", "INVALID_INSTANCE", "CLASS_NOT_SUPPORTED", "PROCESSING_FAILURE", "OUT_OF_RESOURCES")
    assert told == {getattr(intake, n) for n in (*names, "NOT_OF_ITS_CLASS", "CANNOT_UNDERSTAND")}
    from mammoseg.apps.node import scan

    assert f"nested deeper than {scan.MAX_DEPTH}, has more than {scan.MAX_ELEMENTS:,} elements" in text


def test_the_service_manager_is_told(node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        here = node()
        assert manager.recv(100) == b"READY=1"
        assert here.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.system
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    commands = re.findall(r"^ExecStart(?:Pre)?=/opt/mammoseg/bin/mammoseg (.*)$", text, flags=re.MULTILINE)
    assert commands == [f"node start {c}--config /etc/mammoseg/node.toml" for c in ("--check ", "")]
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/opt/mammoseg/bin/mammoseg", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
