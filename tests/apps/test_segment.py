"""`mammoseg segment`, from files on disk to files on disk."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mammoseg.apps.batch import run_batch
from mammoseg.apps.cli import cli
from mammoseg.apps.inputs import collect
from mammoseg.apps.outputs import FORMATS
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.pipeline import settings_of

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def segment(bundle: Path, out: Path, *arguments: str | Path, workers: int = 0) -> Result:
    return run("segment", "--out", out, "--weights", bundle, "--workers", str(workers), *arguments)


def read(out: Path) -> dict[str, Any]:
    return {p.parent.relative_to(out).as_posix(): json.loads(p.read_text()) for p in sorted(out.rglob("findings.json"))}


def all_bytes(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files, every kind of bad one, and files that are no images."""
    root = tmp_path_factory.mktemp("mixed")
    folder = root / "in"
    write_exams(root / "exam", 1, seed=4, format="dicom", config=PhantomConfig(size=(416, 320)))
    good = sorted((root / "exam/images").iterdir())
    folder.mkdir()
    shutil.copy(good[0], folder / "good.dcm")
    shutil.copy(good[1], folder / "no_extension")
    (folder / "truncated.dcm").write_bytes(good[0].read_bytes()[:-5000])
    (folder / "text.dcm").write_text("these are words, not pixels\n" * 20)
    (folder / "empty.dcm").write_bytes(b"")
    from pydicom import dcmread

    ct = dcmread(good[0])
    ct.Modality = "CT"
    ct.SOPClassUID = ct.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ct.save_as(folder / "ct_slice.dcm")
    cv2.imwrite(str(folder / "black.png"), np.zeros((400, 300), np.uint8))
    y, x = np.mgrid[0:400, 0:300]
    photo = np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    cv2.imwrite(str(folder / "photo.png"), photo)
    (folder / "notes.txt").write_text("not an image")
    (folder / "report.xml").write_text("<xml/>")
    return folder


def test_a_mixed_folder_is_worked_through(tiny_bundle: Path, mixed_folder: Path, tmp_path: Path) -> None:
    result = segment(tiny_bundle, tmp_path / "out", mixed_folder)
    assert result.exit_code == 3, result.output
    assert "Traceback" not in result.output
    found = read(tmp_path / "out")
    assert {k: v["status"] for k, v in found.items()} == {
        "good": "processed",
        "no_extension": "processed",
        "truncated": "failed",
        "text": "failed",
        "empty": "failed",
        "ct_slice": "rejected",
        "black": "rejected",
        "photo": "rejected",
    }
    reasons = [v["reason"] for v in found.values() if v["status"] != "processed"]
    assert len(set(reasons)) == 6
    assert not any("Traceback" in r or str(mixed_folder) in r or "unexpected" in r for r in reasons)
    for name in ("truncated", "black"):
        assert found[name]["lesions"] == found[name]["candidates"] == []
        assert f"{found[name]['status']}: {found[name]['image']['source']}: {found[name]['reason']}" in result.output
    sizes = {k: (v["image"]["height"], v["image"]["width"]) for k, v in found.items() if v["status"] != "processed"}
    assert sizes == {  # what was decoded keeps its size, what was not has none
        "ct_slice": (416, 320),
        "black": (400, 300),
        "photo": (400, 300),
        "truncated": (None, None),
        "text": (None, None),
        "empty": (None, None),
    }
    assert "2 files skipped" in result.output
    record = json.loads((tmp_path / "out/run.json").read_text())
    expected = {"images": 8, "processed": 2, "rejected": 3, "failed": 3, "files_skipped": 2}
    assert {k: v for k, v in record["counts"].items() if k != "lesions"} == expected
    assert record["trained_on_patients"] == ["1" * 64]
    page = (tmp_path / "out/index.html").read_text()
    assert all(r.split(":")[0].split(";")[0][:20] in page for r in reasons)
    assert "http" not in page


def test_one_image_gives_all_its_files(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    image = sorted(small_exams.iterdir())[0]
    result = segment(tiny_bundle, tmp_path / "out", image)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 image: 1 processed")
    folder = tmp_path / "out" / image.stem
    assert sorted(p.name for p in folder.iterdir()) == ["findings.json", "mask.png", "overlay.png"]
    found = json.loads((folder / "findings.json").read_text())
    schema = json.loads((Path(sys.modules["mammoseg"].__file__ or "").parent / "io/findings.schema.json").read_text())
    jsonschema.validate(found, schema)
    assert found["lesions"], "the tiny bundle is made to find something in this image"
    labels = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (416, 320)
    assert {int(v) for v in np.unique(labels)} - {0} == {lesion["id"] for lesion in found["lesions"]}
    for lesion in found["lesions"]:
        assert int((labels == lesion["id"]).sum()) == lesion["area_px"]
    tops = [(c["box_xyxy"], c["score"]) for c in found["candidates"]]
    others = [score for _, score in tops[len(found["lesions"]) :]]
    assert [(lesion["box_xyxy"], lesion["score"]) for lesion in found["lesions"]] == tops[: len(found["lesions"])]
    assert others == sorted(others, reverse=True)
    assert found["image"]["seen_in_training"] is False
    assert found["provenance"]["bundle"]["sha256"] == open_bundle(tiny_bundle).sha256
    with (tmp_path / "out/findings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["lesion"]) for r in rows] == [lesion["id"] for lesion in found["lesions"]]
    lines = (tmp_path / "out/findings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [found]
    assert str(tmp_path) not in (folder / "findings.json").read_text() + (tmp_path / "out/run.json").read_text()


def test_settings_are_used_and_recorded(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    image = sorted(small_exams.iterdir())[0]
    options = ["--fusion", "wbf", "--lambda", "0.5", "--scales", "64x128", "--min-score", "0.2", "--set", "fusion.nms_iou=0.4"]
    assert segment(tiny_bundle, tmp_path / "out", image, *options, "--formats", "json").exit_code == 0
    found = next(iter(read(tmp_path / "out").values()))
    assert found["provenance"]["overrides"] == {
        "detection.scales": [[128, 64]],
        "fusion.method": "wbf",
        "fusion.lam": 0.5,
        "fusion.nms_iou": 0.4,
        "fusion.lesion_score_min": 0.2,
    }
    assert all(lesion["score"] >= 0.2 for lesion in found["lesions"])
    assert sorted(p.name for p in (tmp_path / "out" / image.stem).iterdir()) == ["findings.json"]


def test_given_boxes_are_delineated(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    image = sorted(small_exams.iterdir())[0]
    (tmp_path / "boxes.csv").write_text(f"image,x1,y1,x2,y2\n{image.name},100,150,160.5,210\n")
    result = segment(tiny_bundle, tmp_path / "out", image, "--boxes", tmp_path / "boxes.csv")
    assert result.exit_code == 0, result.output
    found = next(iter(read(tmp_path / "out").values()))
    assert [(lesion["box_xyxy"], lesion["score"]) for lesion in found["lesions"]] == [([100, 150, 160.5, 210], 1)]
    assert len(found["candidates"]) == 1
    assert len(found["provenance"]["boxes_sha256"]) == 64


def test_coco_input_gives_what_the_bare_files_give(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    coco = small_exams.parent / "annotations.json"
    subset = json.loads(coco.read_text())
    subset["images"] = subset["images"][:2]
    kept = {i["id"] for i in subset["images"]}
    subset["annotations"] = [a for a in subset["annotations"] if a["image_id"] in kept]
    (small_exams.parent / "two.json").write_text(json.dumps(subset))
    files = [small_exams.parent / i["file_name"] for i in subset["images"]]
    assert segment(tiny_bundle, tmp_path / "coco", small_exams.parent / "two.json").exit_code == 0
    assert segment(tiny_bundle, tmp_path / "bare", *files).exit_code == 0
    first, second = read(tmp_path / "coco"), read(tmp_path / "bare")
    assert list(first) == list(second)
    for name in first:
        assert first[name]["lesions"] == second[name]["lesions"]
        assert first[name]["candidates"] == second[name]["candidates"]
        assert first[name]["image"]["source"] == f"images/{second[name]['image']['source']}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "fusion.lamb=1"], "did you mean 'fusion.lam'"),
        (["--set", "fusion.lam"], "expected --set key=value"),
        (["--scales", "100x200"], "multiples of 32"),
        (["--scales", "big"], "expected WIDTHxHEIGHT"),
        (["--formats", "json,gif"], "'gif' is not known"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--fusion", "magic"], "'magic' is not one of"),
        (["--workers", "-1"], "--workers"),
        (["--nonsense"], "No such option"),
        (["nowhere.png"], "no such file or folder: nowhere.png"),
        (["--weights", "/nowhere"], "does not exist"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    tiny_bundle: Path, small_exams: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = segment(tiny_bundle, tmp_path / "out", small_exams, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_is_an_error_where_it_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    result = segment(tiny_bundle, tmp_path / "out", tmp_path / "notes.txt")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "expected a DICOM" in result.stderr


def test_a_folder_that_is_not_empty_is_refused_and_overwrite_leaves_other_files(
    tiny_bundle: Path, small_exams: Path, tmp_path: Path
) -> None:
    images = sorted(small_exams.iterdir())[:2]
    out = tmp_path / "out"
    assert segment(tiny_bundle, out, *images, "--formats", "json").exit_code == 0
    (out / "mine.txt").write_text("keep")
    refused = segment(tiny_bundle, out, *images)
    assert (refused.exit_code, "is not empty" in refused.stderr) == (2, True)
    assert segment(tiny_bundle, out, images[0], "--overwrite", "--formats", "json").exit_code == 0
    assert list(read(out)) == [images[0].stem]
    assert (out / "mine.txt").read_text() == "keep"
    assert not (out / images[1].stem).exists()


def test_resume_keeps_what_is_done_and_redoes_what_changed(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    images = [Path(shutil.copy(p, folder)) for p in sorted(small_exams.iterdir())[:3]]
    assert segment(tiny_bundle, out, folder).exit_code == 0
    before = all_bytes(out)
    again = segment(tiny_bundle, out, folder, "--resume")
    assert "3 kept from before" in again.stdout
    assert all_bytes(out) == before
    shutil.copy(sorted(small_exams.iterdir())[4], images[0])  # another image under the same name
    (out / images[1].stem / "mask.png").unlink()
    assert "1 kept from before" in segment(tiny_bundle, out, folder, "--resume").stdout
    other = segment(tiny_bundle, out, folder, "--resume", "--lambda", "0.5")
    assert "kept from before" not in other.stdout


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mammoseg.apps.cli", *(str(a) for a in arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # ignored where tests run in the background
    )


def wait_for_images(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.rglob("findings.json"))) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_and_resumed_is_byte_identical_and_two_workers_find_the_same(
    tiny_bundle: Path, small_exams: Path, tmp_path: Path
) -> None:
    common = ("segment", small_exams, "--weights", tiny_bundle)
    whole = start(*common, "--out", tmp_path / "whole")
    output = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    assert "segmenting: 8 of 8" in output[1]
    killed = start(*common, "--out", tmp_path / "killed")
    wait_for_images(tmp_path / "killed", 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert json.loads((tmp_path / "killed/run.json").read_text())["state"] == "running"
    resumed = start(*common, "--out", tmp_path / "killed", "--resume", "--workers", "1")
    output = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert "kept from before" in output[0]
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")
    both = start(*common, "--out", tmp_path / "two", "--workers", "2")
    assert both.communicate(timeout=300)[1].count("of 8") >= 1
    assert both.returncode == 0
    one, two = read(tmp_path / "whole"), read(tmp_path / "two")
    assert list(one) == list(two)
    assert sum(len(v["lesions"]) for v in one.values()) > 0
    for name in one:
        first, second = one[name]["lesions"], two[name]["lesions"]
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert np.abs(np.subtract(a["box_xyxy"], b["box_xyxy"])).max() <= 0.05
            assert abs(a["score"] - b["score"]) <= 1e-3


def test_ctrl_c_ends_cleanly(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    process = start("segment", small_exams, "--weights", tiny_bundle, "--out", tmp_path / "out")
    wait_for_images(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "--resume goes on" in errors
    assert "Traceback" not in errors
    with contextlib.suppress(FileNotFoundError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert not children


def test_a_worker_that_dies_costs_one_image(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    jobs = [Job(image) for image in collect([small_exams]).images[:3]]
    plan = Plan(tiny_bundle, settings_of(open_bundle(tiny_bundle)), tmp_path / "out", FORMATS, {})
    seen: list[str] = []

    def kill_after_the_first(job: Job, summary: dict[str, Any]) -> None:
        seen.append(job.image.folder)
        if len(seen) == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join()

    outcome = run_batch(jobs, plan, workers=1, progress=kill_after_the_first)
    assert [s["status"] for s in outcome.summaries] == ["processed", "failed", "processed"]
    assert "SIGKILL" in outcome.summaries[1]["reason"]
    found = read(tmp_path / "out")[jobs[1].image.folder]
    assert (found["status"], found["lesions"]) == ("failed", [])
    assert found["image"]["file_sha256"]


DRIVER = """
import json, socket, sys
tried = []
def refuse(*a, **k):
    tried.append(repr(a))
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
from mammoseg.apps.cli import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "tried": tried, "modules": sorted(m for m in sys.modules if sys.modules[m] is not None)}))
"""


def test_segmenting_needs_no_torch_and_no_network(tiny_bundle: Path, small_exams: Path, tmp_path: Path) -> None:
    image = sorted(small_exams.iterdir())[0]
    arguments = ["segment", image, "--weights", tiny_bundle, "--out", tmp_path / "out", "--workers", "0"]
    home = tmp_path / "home"  # telemetry would leave its consent and client id there
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**ENVIRONMENT, "HOME": str(home)},
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["code"], report["tried"]) == (0, [])
    assert "openvino" in report["modules"]
    top = {m.partition(".")[0] for m in report["modules"]}
    assert not top & {"torch", "torchvision", "lightning_fabric", "safetensors", "openvino_telemetry", "onnxruntime"}
    assert not (home / "intel").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fusion", "msf"], 'fusion.method "wbf", got "msf"'),
        (["--set", "fusion.lesion_score_min=0.01"], "fusion.lesion_score_min 0."),
        (["--set", "fusion.calibration.slope=3"], "fusion.calibration.slope 2."),
        (["--scales", "256x512"], "detection.scales [], got [[512, 256]]"),
        (["--boxes", "boxes.json"], "--operating-point and --boxes exclude each other"),
    ],
)
def test_an_operating_point_goes_with_the_settings_it_was_measured_with(
    tmp_path: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes.json").write_text("{}")
    refused = CliRunner().invoke(cli, ["segment", ".", "--out", "out", "--operating-point", "0.2", *options])
    assert refused.exit_code == 2
    assert words in " ".join(refused.output.split())
    assert not (tmp_path / "out").exists()
