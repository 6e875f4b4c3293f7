"""The analysing process: what hangs is given up, what is gone is replaced, and nothing outlives the node."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mammoseg.apps.node.analysis import AnalysisError, Analyst
from mammoseg.apps.node.config import Analysis
from mammoseg.apps.node.store import Snapshot

SETTINGS = ("detection.scales=[[128,64]]", "runtime.threads=1")


def study(tools: Any, folder: Path, count: int, attempts: int) -> Snapshot:
    """Images on disk, as the store hands them out."""
    folder.mkdir()
    objects = []
    for number in range(count):
        key = f"{number:064x}"
        tools.mammogram(study="1.2.3", seed=number).save_as(folder / f"{key}.dcm", enforce_file_format=True)
        objects.append((key, folder / f"{key}.dcm"))
    return Snapshot("s" * 64, 1, 0, 0, attempts, tuple(objects))


def descendants(pid: int) -> list[int]:
    """The processes below a process, the deepest last."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.system
def test_a_hanging_image_is_marked_failed_and_the_others_go_on(tools: Any, tmp_path: Path) -> None:
    """The isolated worker is frozen after its first image, as a decoder in an endless loop would be."""
    seen = study(tools, tmp_path / "in", 3, attempts=1)
    analyst = Analyst(Analysis(set=SETTINGS, formats=("json", "cadsr"), image_s=10.0))
    out = tmp_path / "out"
    frozen: list[int] = []

    def freeze() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end and not list(out.glob("*/findings.json")):
            time.sleep(0.001)
        process = analyst._process
        assert process is not None
        for pid in descendants(process.pid):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        done = analyst.analyse(seen, out, threading.Event())
    finally:
        thread.join()
        analyst.kill()
    assert len(frozen) == 1
    statuses = [json.loads((out / key / "findings.json").read_text())["status"] for key, _ in seen.objects]
    assert sorted(statuses) == ["failed", "processed", "processed"]
    assert (done.counts["processed"], done.counts["failed"]) == (2, 1)
    assert [f.name for f in done.files] == ["cadsr.dcm"], "the report tells of the failed image too"


def test_the_process_is_killed_when_asked_and_ends_with_the_node(tools: Any, tmp_path: Path) -> None:
    seen = study(tools, tmp_path / "in", 1, attempts=0)
    analyst = Analyst(Analysis(set=SETTINGS, formats=("json",)))
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    with pytest.raises(AnalysisError, match="stopped"):
        analyst.analyse(seen, tmp_path / "out", stop)
    analyst.analyse(seen, tmp_path / "out", threading.Event())
    process = analyst._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()  # what happens when the node dies
    assert process.wait(timeout=30) == -signal.SIGKILL
    analyst.analyse(seen, tmp_path / "out", threading.Event())
    analyst.kill()


def test_what_cannot_be_used_is_said(tools: Any, tmp_path: Path) -> None:
    seen = study(tools, tmp_path / "in", 1, attempts=0)
    analyst = Analyst(Analysis(weights=str(tmp_path), set=SETTINGS))
    with pytest.raises(AnalysisError, match=r"BundleError: .*SHA256SUMS is missing"):
        analyst.analyse(seen, tmp_path / "out", threading.Event())
    analyst.kill()
