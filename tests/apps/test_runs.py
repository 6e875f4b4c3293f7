"""What a run does with the OUT folder, with odd inputs and with trouble on the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mammoseg.apps import batch, worker
from mammoseg.apps.batch import run_batch, with_thread_share
from mammoseg.apps.cli import cli
from mammoseg.apps.inputs import InputImage
from mammoseg.apps.out_folder import held
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.errors import UsageError
from mammoseg.pipeline import settings_of

from .test_inputs import write_report

Segment = Callable[..., Result]


@pytest.fixture
def segment(tiny_bundle: Path, tmp_path: Path) -> Segment:
    """Runs `mammoseg segment` in this process, with results in tmp_path/out."""

    def call(*arguments: str | Path) -> Result:
        common = ["segment", "--out", tmp_path / "out", "--weights", tiny_bundle, "--workers", "0", "--set"]
        common.append("detection.scales=[[128,64]]")
        return CliRunner().invoke(cli, [str(a) for a in [*common, *arguments]])

    return call


@pytest.fixture
def images(small_exams: Path, tmp_path: Path) -> list[Path]:
    """Three images of the test's own."""
    (tmp_path / "in").mkdir()
    return [Path(shutil.copy(p, tmp_path / "in")) for p in sorted(small_exams.iterdir())[:3]]


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def findings(out: Path) -> list[str]:
    return sorted(p.parent.relative_to(out).as_posix() for p in out.rglob("findings.json"))


def one_line(result: Result, code: int, words: str) -> None:
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.output
    assert words in result.stderr
    assert "unexpected" not in result.stderr


def test_coco_images_elsewhere_missing_or_broken(segment: Segment, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    images[1].write_bytes(images[1].read_bytes()[:900])
    names = [*(f"../in/{p.name}" for p in images), "missing.png"]
    coco = tmp_path / "labels/a.json"
    coco.write_text(json.dumps({"images": [{"id": k, "file_name": n} for k, n in enumerate(names)]}))
    result = segment(coco, "--formats", "json")
    assert result.exit_code == 3, result.output
    stems = [p.stem for p in images]
    assert findings(tmp_path / "out") == sorted([*stems, "missing"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "labels", "out"]
    found = {n: json.loads((tmp_path / "out" / n / "findings.json").read_text()) for n in [*stems, "missing"]}
    assert [found[s]["status"] for s in stems] == ["processed", "failed", "processed"]
    assert "got nothing at missing.png" in found["missing"]["reason"]


def test_a_result_folder_outside_out_is_refused(tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    plan = Plan(tiny_bundle, settings_of(open_bundle(tiny_bundle)), tmp_path / "out", ("json",), {})
    for folder in ("../x", "a/../../x", str(tmp_path / "x"), ".", ""):
        with pytest.raises(UsageError, match="would not lie below"):
            run_batch([Job(InputImage(images[0], "x.png", folder))], plan, workers=0)
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_utf8(segment: Segment, images: list[Path], tmp_path: Path) -> None:
    images[0].rename(os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.png"))
    assert segment(tmp_path / "in").exit_code == 0
    assert "caf\\xe9" in findings(tmp_path / "out")
    assert (tmp_path / "out/index.html").read_text().count("caf\\xe9.png") >= 1


def test_an_image_whose_results_cannot_be_drawn_fails_alone(
    segment: Segment, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = worker.write_image

    def broken(folder: Path, f: Any, mammogram: Any, formats: Any, path: Any = None) -> None:
        if mammogram is not None and folder.name == images[1].stem:
            whole(folder, f, mammogram, formats, path)
            raise ValueError("no such colour")
        whole(folder, f, mammogram, formats, path)

    monkeypatch.setattr(worker, "write_image", broken)
    result = segment(tmp_path / "in")
    assert result.exit_code == 3, result.output
    assert "3 images: 2 processed" in result.stdout
    folder = tmp_path / "out" / images[1].stem
    assert [p.name for p in folder.iterdir()] == ["findings.json"]
    assert "ValueError" in json.loads((folder / "findings.json").read_text())["reason"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_full_disk_ends_the_run_in_one_line(
    segment: Segment, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    if workers == "0":

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(worker, "write_image", full)
    else:  # a file in the way of a folder will do in another process
        (tmp_path / "out").mkdir()
        assert segment(images[1]).exit_code == 0
        (tmp_path / "out" / images[0].stem).write_text("mine")
    result = segment(images[0], "--resume", "--workers", workers)
    assert result.exit_code == 1
    assert "results cannot be written to" in result.stderr.splitlines()[-1]
    assert "--resume" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert record(tmp_path / "out")["state"] == "running"


def test_dicom_without_an_image_in_a_folder_is_skipped(segment: Segment, images: list[Path], tmp_path: Path) -> None:
    report = write_report(tmp_path / "in/report.dcm")
    result = segment(tmp_path / "in", "--formats", "json")
    assert result.exit_code == 0, result.output
    assert "3 images: 3 processed" in result.stdout
    assert "1 file skipped" in result.stdout
    assert findings(tmp_path / "out") == sorted(p.stem for p in images)
    assert record(tmp_path / "out")["counts"]["files_skipped"] == 1
    one_line(segment(report, "--resume"), 2, "report.dcm: expected an image")
    for image in images:
        image.unlink()
    result = segment(tmp_path / "in", "--overwrite")
    assert (result.exit_code, "no images found" in result.stderr) == (2, True)


def test_boxes_that_fit_no_image_and_images_without_boxes_are_told(
    segment: Segment, images: list[Path], tmp_path: Path
) -> None:
    rows = [f"{images[0].name},100,150,160,210", "other.png,1,2,3,4", "other.png,1,2,3,5"]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2", *rows, ""]))
    result = segment(tmp_path / "in", "--boxes", tmp_path / "boxes.csv")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 image: 1 processed")
    assert "2 images left out, having no boxes in" in result.stdout
    assert "2 boxes not used, fitting no image ('other.png', ...)" in result.stdout
    assert findings(tmp_path / "out") == [images[0].stem]


@pytest.mark.parametrize("inputs", ["in", "in/..", "in/{0}"])
def test_out_must_not_be_mixed_with_the_inputs(tiny_bundle: Path, images: list[Path], tmp_path: Path, inputs: str) -> None:
    arguments = [tmp_path / inputs.format(images[0].name), "--out", tmp_path / "in/../in", "--weights", tiny_bundle]
    if inputs == "in/..":
        arguments[2] = tmp_path  # the very folder
    one_line(CliRunner().invoke(cli, ["segment", *map(str, arguments), "--overwrite"]), 2, "is or holds the input")
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == sorted(p.name for p in images)


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_a_folder_of_another_kind_is_left_alone(segment: Segment, images: list[Path], tmp_path: Path, how: str) -> None:
    nested = tmp_path / "out/study/a"
    nested.mkdir(parents=True)
    (nested / "findings.json").write_text("{}")
    one_line(segment(images[0], how), 2, "name another folder")
    assert (nested / "findings.json").read_text() == "{}"


def test_overwrite_leaves_a_run_nested_in_out(segment: Segment, tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    assert segment(images[0], "--formats", "json").exit_code == 0
    shutil.copytree(tmp_path / "out", tmp_path / "nested")
    (tmp_path / "nested").rename(tmp_path / "out/nested")
    assert segment(images[1], "--formats", "json", "--overwrite").exit_code == 0
    assert findings(tmp_path / "out") == [f"nested/{images[0].stem}", images[1].stem]


def test_resume_leaves_nothing_behind_that_is_not_of_this_run(segment: Segment, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert segment(*images[:2]).exit_code == 0
    result = segment(images[1], images[2], "--resume", "--formats", "json,mask")
    assert "1 kept from before" in result.stdout
    assert findings(out) == [p.stem for p in images[1:]]
    assert not (out / images[0].stem).exists()
    assert not list(out.rglob("overlay.png"))
    assert {i["source"] for i in record(out)["images"]} == {p.name for p in images[1:]}
    (tmp_path / "renamed.png").write_bytes(images[2].read_bytes())
    again = tmp_path / "other" / f"{images[2].stem}.PNG"  # the same content and folder, another name
    again.parent.mkdir()
    shutil.move(images[2], again)
    assert "kept" not in segment(again, "--resume", "--formats", "json,mask").stdout
    assert json.loads((out / again.stem / "findings.json").read_text())["image"]["source"] == again.name


def test_no_table_of_an_earlier_run_stands_beside_images_of_this_one(
    segment: Segment, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert segment(images[0], "--formats", "json").exit_code == 0

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "process", stop)
    assert segment(images[0], "--overwrite").exit_code == 130
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.json"]
    assert record(tmp_path / "out")["state"] == "running"


def test_two_runs_do_not_write_to_one_folder(segment: Segment, images: list[Path], tmp_path: Path) -> None:
    holder = "import sys, pathlib; from mammoseg.apps.out_folder import held\n"
    holder += "with held(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        one_line(segment(images[0]), 2, "another run is writing to")
        other.kill()  # leaves its lock file, which holds nothing back
    assert segment(images[0], "--formats", "json").exit_code == 0
    assert not list((tmp_path / "out").glob(".*"))
    with held(tmp_path / "out"), pytest.raises(UsageError), held(tmp_path / "out"):
        pass


def test_processors_are_shared_by_the_workers_there_are(
    segment: Segment, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[int] = []
    monkeypatch.setattr(batch, "with_thread_share", lambda plan, n: shares.append(n) or with_thread_share(plan, n))
    assert segment(images[0], "--workers", "8", "--formats", "json").exit_code == 0
    assert shares == [1]


@pytest.mark.parametrize(
    ("how", "wait_s", "code", "said"),
    [
        (signal.SIGINT, 0.0, 130, "interrupted, 0 of 3"),
        (signal.SIGINT, 0.5, 130, "interrupted, 0 of 3"),
        (signal.SIGTERM, 0.2, 143, "terminated, 0 of 3"),
        (signal.SIGKILL, 0.2, -signal.SIGKILL, ""),
    ],
)
def test_stopped_while_workers_start_it_says_so_in_one_line_and_leaves_no_worker(
    tiny_bundle: Path, images: list[Path], tmp_path: Path, how: int, wait_s: float, code: int, said: str
) -> None:
    command = [sys.executable, "-m", "mammoseg.apps.cli", "segment", *map(str, images), "--weights", str(tiny_bundle)]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out"), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal makes it
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # ignored where tests run in the background
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while not children.read_text().split():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started = children.read_text().split()
    time.sleep(wait_s)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert (said in errors, "--resume goes on" in errors, len(errors.splitlines())) == (True, bool(said), int(bool(said)))
    assert (tmp_path / "out/.mammoseg.lock").exists() == (how == signal.SIGKILL)
    for child in started:
        with contextlib.suppress(FileNotFoundError):
            assert "mammoseg" not in Path(f"/proc/{child}/cmdline").read_text()


def test_workers_end_when_their_parent_is_killed(tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    """Without its lock they must write nothing more: another run may be at work in OUT."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\n"
        "from mammoseg.apps import cli, worker\n"
        "def stuck(*_):\n    print('at work', file=sys.stderr, flush=True)\n    time.sleep(15)\n"
        "    print('still there', file=sys.stderr, flush=True)\n"
        "worker.process = stuck\n"
        "if __name__ == '__main__':\n    cli.main()\n"
    )
    command = [sys.executable, str(slow), "segment", str(images[0]), "--weights", str(tiny_bundle), "--out", tmp_path / "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "at work" in process.stderr.readline()
        process.kill()
        assert process.stderr.read() == "", "ends when the last process that may write there has ended"
