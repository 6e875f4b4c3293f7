"""`mammoseg segment --formats seg,cadsr,sr,pr,sc`: what is written where, and that resuming keeps it right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner, Result

from mammoseg.apps import dicom_outputs
from mammoseg.apps.cli import cli
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams

ALL = "json,seg,cadsr,sr,pr,sc"
NAMES = ("RCC", "LCC", "RMLO", "LMLO")
Segment = Callable[..., Result]


@pytest.fixture(scope="session")
def exam(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The four DICOM views of one phantom study, in the order of NAMES."""
    out = tmp_path_factory.mktemp("dicom exam")
    write_exams(out, 1, 4, "dicom", PhantomConfig(size=(208, 160), normal_fraction=0.0))
    return [out / "images" / f"phantom_s4_0001_{name}.dcm" for name in NAMES]


@pytest.fixture
def given(exam: list[Path], tmp_path: Path) -> Path:
    """A folder with the exam's four views."""
    (tmp_path / "in").mkdir()
    for path in exam:
        shutil.copy(path, tmp_path / "in")
    return tmp_path / "in"


def arguments(bundle: Path, source: Path, out: Path, *more: str) -> list[str]:
    common = ["segment", str(source), "--out", str(out), "--weights", str(bundle), "--workers", "0"]
    return [*common, "--set", "detection.scales=[[128,64]]", *more]


@pytest.fixture
def segment(tiny_bundle: Path, given: Path, tmp_path: Path) -> Segment:
    """`segment(*options, out="out")` runs the command on the folder, in this process."""

    def call(*more: str, out: str = "out") -> Result:
        result = CliRunner().invoke(cli, arguments(tiny_bundle, given, tmp_path / out, *more))
        assert result.exit_code in (0, 3), result.output
        return result

    return call


def objects(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.dcm")}


def study_folder(exam: list[Path]) -> str:
    return f"studies/{pydicom.dcmread(exam[0], stop_before_pixels=True).StudyInstanceUID}"


def lesions(out: Path) -> dict[str, int]:
    return {p.parent.name: len(json.loads(p.read_text())["lesions"]) for p in out.rglob("findings.json")}


def test_every_object_lies_in_its_place(segment: Segment, exam: list[Path], tmp_path: Path) -> None:
    result = segment("--formats", ALL)
    assert "warning" not in result.stderr
    out = tmp_path / "out"
    found, folder = lesions(out), study_folder(exam)
    expected = {f"{folder}/cadsr.dcm", f"{folder}/sr.dcm"}
    for path in exam:
        expected |= {f"{path.stem}/pr.dcm", f"{path.stem}/sc.dcm"} | ({f"{path.stem}/seg.dcm"} if found[path.stem] else set())
    assert set(objects(out)) == expected
    assert sum(found.values()) > 0
    for name, data in objects(out).items():
        ds = pydicom.dcmread(out / name)
        assert ds.StudyInstanceUID == folder.removeprefix("studies/")
        assert len(data) > 500
        if "/studies/" not in f"/{name}":
            source = pydicom.dcmread(next(p for p in exam if p.stem == name.split("/")[0]), stop_before_pixels=True)
            assert str(source.SOPInstanceUID) in str(ds)
    library = pydicom.dcmread(out / folder / "cadsr.dcm").ContentSequence[1].ContentSequence
    assert len(library) == 4
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert (counts["studies"], counts["studies_failed"], counts["images_without_dicom"]) == (1, 0, 0)


def test_resuming_keeps_every_byte_and_does_nothing_twice(segment: Segment, tmp_path: Path) -> None:
    segment("--formats", ALL)
    before = objects(tmp_path / "out")
    assert "4 kept from before" in segment("--formats", ALL, "--resume").stdout
    assert objects(tmp_path / "out") == before
    segment("--formats", ALL, out="again")
    assert objects(tmp_path / "again") == before


def test_a_view_that_comes_later_changes_the_reports_alone(
    segment: Segment, given: Path, exam: list[Path], tmp_path: Path
) -> None:
    late = given / exam[3].name
    late.rename(tmp_path / "late.dcm")
    segment("--formats", ALL)
    before = objects(tmp_path / "out")
    shutil.move(tmp_path / "late.dcm", late)
    assert "3 kept from before" in segment("--formats", ALL, "--resume").stdout
    after, folder = objects(tmp_path / "out"), study_folder(exam)
    for name in before:
        assert (before[name] == after[name]) == (not name.startswith("studies/")), name
    uids = [pydicom.dcmread(tmp_path / "out" / folder / n).SOPInstanceUID for n in ("cadsr.dcm", "sr.dcm")]
    assert not any(uid.encode() in data for uid in uids for data in before.values())
    segment("--formats", ALL, out="at once")
    assert objects(tmp_path / "at once") == after


def test_formats_that_are_no_longer_asked_for_go(segment: Segment, given: Path, exam: list[Path], tmp_path: Path) -> None:
    segment("--formats", ALL)
    everything = objects(tmp_path / "out")
    assert "4 kept" in segment("--formats", "json,pr,sr", "--resume").stdout
    kept = {n for n in everything if n.endswith(("pr.dcm", "sr.dcm")) and not n.endswith("cadsr.dcm")}
    assert objects(tmp_path / "out") == {n: everything[n] for n in kept}
    segment("--formats", ALL, "--resume")
    assert objects(tmp_path / "out") == everything
    for path in exam[1:]:
        (given / path.name).unlink()
    segment("--formats", "json", "--resume")
    assert objects(tmp_path / "out") == {}
    assert not (tmp_path / "out/studies").exists()


def test_a_missing_object_is_made_again(segment: Segment, exam: list[Path], tmp_path: Path) -> None:
    segment("--formats", ALL)
    before = objects(tmp_path / "out")
    (tmp_path / "out" / exam[0].stem / "pr.dcm").unlink()
    shutil.rmtree(tmp_path / "out/studies")
    assert "3 kept from before" in segment("--formats", ALL, "--resume").stdout
    assert objects(tmp_path / "out") == before


def test_killed_and_resumed_gives_the_same_bytes(
    segment: Segment, given: Path, tiny_bundle: Path, exam: list[Path], tmp_path: Path
) -> None:
    segment("--formats", ALL, out="whole")
    command = [sys.executable, "-c", "from mammoseg.apps import cli; cli.main()"]
    command += arguments(tiny_bundle, given, tmp_path / "out", "--formats", ALL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not list((tmp_path / "out").rglob("findings.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert objects(tmp_path / "out") != objects(tmp_path / "whole")
    segment("--formats", ALL, "--resume")
    assert objects(tmp_path / "out") == objects(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_other_files_are_warned_of_once(
    segment: Segment, given: Path, small_exams: Path, exam: list[Path], tmp_path: Path
) -> None:
    for path in sorted(small_exams.iterdir())[:2]:
        shutil.copy(path, given)
    result = segment("--formats", ALL)
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    assert warnings == ["mammoseg: warning: 2 images without DICOM results (no DICOM file, or one without UIDs)"]
    assert {name.split("/")[0] for name in objects(tmp_path / "out")} == {"studies", *(p.stem for p in exam)}
    assert "6 kept" in segment("--formats", ALL, "--resume").stdout
    assert "warning" not in segment("--formats", "json,mask", out="plain").stderr


def test_results_among_the_input_are_no_input(segment: Segment, given: Path, tmp_path: Path) -> None:
    segment("--formats", ALL)
    before = objects(tmp_path / "out")
    shutil.copytree(tmp_path / "out", given / "from the archive")
    result = segment("--formats", ALL, out="second")
    assert "4 images: 4 processed" in result.stdout
    assert objects(tmp_path / "second") == before


def test_a_failed_image_is_in_the_reports_and_has_no_objects(
    segment: Segment, given: Path, exam: list[Path], tmp_path: Path
) -> None:
    whole = (given / exam[1].name).read_bytes()
    (given / exam[1].name).write_bytes(whole[:-20_000])  # its pixels are cut short, its header is whole
    segment("--formats", ALL)
    assert not list((tmp_path / "out" / exam[1].stem).glob("*.dcm"))
    report = pydicom.dcmread(tmp_path / "out" / study_folder(exam) / "cadsr.dcm")
    assert (report.CompletionFlag, report.CompletionFlagDescription) == ("PARTIAL", "1 of 4 images were not analysed")
    status = next(c for c in report.ContentSequence if c.ConceptNameCodeSequence[0].CodeMeaning == "Summary of Detections")
    assert status.ConceptCodeSequence[0].CodeMeaning == "Partially Succeeded"


def test_a_study_that_cannot_be_reported_on_stops_nothing(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, study: object) -> bytes:
        raise ValueError("no such thing")

    monkeypatch.setattr(dicom_outputs, "study_result", broken)
    result = segment("--formats", ALL)
    assert "mammoseg: warning: 1 study without reports" in result.stderr
    assert (tmp_path / "out/findings.csv").is_file()
    monkeypatch.undo()
    segment("--formats", ALL, "--resume")
    assert len(list((tmp_path / "out/studies").rglob("*.dcm"))) == 2
