"""What lies behind the lesions, the truth beside them, and results to take away; made aside where it takes a library."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest

from mammoseg.apps.server.aside import Aside
from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.layers import make_layers
from mammoseg.apps.server.truth import Truths, outlines
from mammoseg.bundle import open_bundle
from mammoseg.config import from_dict, to_dict
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.errors import DecodeError
from mammoseg.geometry import mask_box
from mammoseg.pipeline import PipelineConfig, load, settings_of
from mammoseg.types import Annotation, DatasetItem, TrueMass

from .conftest import Running, launch
from .test_catalogue import analyse


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four DICOM phantoms with their truth."""
    out = tmp_path_factory.mktemp("layers") / "exam"
    write_exams(out, 1, seed=4, config=PhantomConfig(size=(416, 320)))
    return out


@pytest.fixture(scope="module")
def server(exam: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server over them, which has analysed all."""
    running = launch(tmp_path_factory.mktemp("server"), exam, "--weights", tiny_bundle, "--truth", exam)
    client = running.client()
    job = client.post("/jobs", json={"images": "all"}).json()["job_id"]
    end = time.monotonic() + 300
    while client.get(f"/jobs/{job}").json()["state"] != "done":
        assert time.monotonic() < end
        time.sleep(0.1)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def images(server: Running) -> list[dict[str, Any]]:
    """What it says of them."""
    found: list[dict[str, Any]] = server.client().get("/images").json()
    assert {i["status"] for i in found} == {"processed"}
    return found


def test_layers_are_what_the_lesions_come_from(
    server: Running, images: list[dict[str, Any]], exam: Path, tiny_bundle: Path
) -> None:
    """The published regions, found by hand from the layers, are the lesions' boxes; and layers equal the pipeline's stages."""
    client, pipeline = server.client(), load(tiny_bundle)
    from mammoseg.io.load import load_mammogram

    regions = 0
    for image in images:
        layers = client.get(f"/images/{image['image_id']}/layers").json()
        mammogram = load_mammogram(exam / image["name"])
        per_scale = pipeline.detector.detect(
            mammogram, None, pipeline.config.detection.score_min, pipeline.config.fusion.nms_iou
        )
        assert [s["size"] for s in layers["scales"]] == [list(s) for s in pipeline.detector.spec.scales]
        for shown, expected in zip(layers["scales"], per_scale, strict=True):
            best = expected.best_first().select(np.arange(min(200, len(expected))))
            np.testing.assert_allclose([d["box_xyxy"] for d in shown["detections"]], best.boxes, atol=0.1)
            np.testing.assert_allclose([d["score"] for d in shown["detections"]], best.scores, atol=1e-3)
        lam, mask = layers["lambda"], layers["fusion_mask"]
        values = np.array(mask["values"])
        assert values.shape == (len(mask["y_edges"]) - 1, len(mask["x_edges"]) - 1)
        assert (values >= 0).all()
        full = np.zeros((image["height"], image["width"]), dtype=np.float64)
        for j, (y1, y2) in enumerate(zip(mask["y_edges"][:-1], mask["y_edges"][1:], strict=True)):
            for i, (x1, x2) in enumerate(zip(mask["x_edges"][:-1], mask["x_edges"][1:], strict=True)):
                full[y1:y2, x1:x2] = values[j, i]
        count, labels = cv2.connectedComponents((full >= lam - 1e-5).astype(np.uint8), connectivity=8)
        found = {
            tuple(int(v) for v in mask_box(labels == k)): min(1.0, full[labels == k].max() * mask["scale"])
            for k in range(1, count)
        }
        document = client.get(f"/images/{image['image_id']}/findings").json()
        for lesion in document["lesions"]:
            box = tuple(round(v) for v in lesion["box_xyxy"])
            near = [b for b in found if np.abs(np.subtract(b, box)).max() <= 1]
            assert near, "each lesion's box is a region of the mask"
            assert abs(found[near[0]] - lesion["score"]) < 1e-3
        regions += len(document["lesions"])
    assert regions > 0


def test_layers_follow_the_settings_of_the_findings(server: Running, images: list[dict[str, Any]]) -> None:
    client, image_id = server.client(), images[0]["image_id"]
    job = client.post("/jobs", json={"images": [image_id], "settings": {"lambda": 0.25, "fusion": "nms"}}).json()["job_id"]
    end = time.monotonic() + 300
    while client.get(f"/jobs/{job}").json()["state"] != "done":
        assert time.monotonic() < end
        time.sleep(0.1)
    layers = client.get(f"/images/{image_id}/layers").json()
    assert (layers["lambda"], layers["fusion"], layers["fusion_mask"]) == (0.25, "nms", None)


def test_layers_are_kept(server: Running, images: list[dict[str, Any]]) -> None:
    client, image_id = server.client(), images[1]["image_id"]
    first = client.get(f"/images/{image_id}/layers").content
    kept = list((server.state / "made" / image_id).glob("layers-*.json"))
    assert [k.read_bytes() for k in kept] == [first]
    stamp = kept[0].stat().st_mtime_ns
    assert client.get(f"/images/{image_id}/layers").content == first
    assert kept[0].stat().st_mtime_ns == stamp


def test_truth_is_the_data_set_s(server: Running, images: list[dict[str, Any]], exam: Path) -> None:
    truth = json.loads((exam / "annotations.json").read_text())
    by_name = {i["file_name"]: [a["bbox"] for a in truth["annotations"] if a["image_id"] == i["id"]] for i in truth["images"]}
    masses = 0
    for image in images:
        assert image["has_truth"]
        shown = server.client().get(f"/images/{image['image_id']}/truth").json()["lesions"]
        expected = [[x, y, x + w, y + h] for x, y, w, h in by_name[image["name"]]]
        assert len(shown) == len(expected)
        for lesion, box in zip(shown, expected, strict=True):
            np.testing.assert_allclose(lesion["box_xyxy"], box, atol=1e-3)
            points = np.concatenate([np.array(c) for c in lesion["contours_xy"]])
            np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], box, atol=1.0)
        masses += len(shown)
    assert masses > 0


def test_outlines_run_along_the_pixels_edges() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:7] = True
    mask[2, 4] = False  # a hole
    item = DatasetItem("a", "/a", "p", Annotation("a", (100, 100), (TrueMass((12, 21, 17, 24), mask, (20, 10)),)))
    (lesion,) = outlines(item).lesions
    assert len(lesion.contours_xy) == 2
    outer = np.array(max(lesion.contours_xy, key=len))
    assert outer.min(axis=0).tolist() == [12, 21]
    assert outer.max(axis=0).tolist() == [17, 24]
    inside = np.zeros((100, 100), np.uint8)
    yy, xx = np.mgrid[:100, :100] + 0.5
    for y, x in zip(yy.ravel(), xx.ravel(), strict=True):
        crossings = sum(
            cv2.pointPolygonTest(np.array(c, dtype=np.float32).reshape(-1, 1, 2), (float(x), float(y)), False) > 0
            for c in lesion.contours_xy
        )
        inside[int(y), int(x)] = crossings % 2
    expected = np.zeros((100, 100), np.uint8)
    expected[20:26, 10:18] = mask
    np.testing.assert_array_equal(inside, expected)


def test_truth_of_an_image_of_another_size_is_not_shown(exam: Path, tmp_path: Path) -> None:
    from mammoseg.apps.server.catalogue import Entry

    truths = Truths([str(exam)])
    path = sorted((exam / "images").iterdir())[0]
    entry = Entry("0" * 24, path, f"images/{path.name}")
    assert truths.item(entry, (416, 320)) is not None
    assert truths.item(entry, (None, None)) is not None
    assert truths.item(entry, (832, 640)) is None
    copied = Entry("0" * 24, tmp_path / path.name, f"elsewhere/images/{path.name}")
    assert truths.item(copied, (416, 320)) is not None
    assert truths.item(Entry("0" * 24, tmp_path / "x.dcm", "x.dcm"), (416, 320)) is None


def test_results_in_all_formats(server: Running, images: list[dict[str, Any]], exam: Path) -> None:
    client = server.client()
    for image in images[1:]:
        source = pydicom.dcmread(exam / image["name"])
        assert set(image["formats"]) >= {"json", "mask", "overlay", "pr", "sc"}
        assert ("seg" in image["formats"]) == (image["lesions"] > 0)
        for format in image["formats"]:
            answer = client.get(f"/images/{image['image_id']}/results/{format}")
            assert answer.status_code == 200
            name = answer.headers["content-disposition"]
            assert name.startswith("attachment")
            assert "phantom" not in name.lower()
            if answer.headers["content-type"] == "application/dicom":
                ds = pydicom.dcmread(io.BytesIO(answer.content))
                assert ds.StudyInstanceUID == source.StudyInstanceUID
                assert ds.PatientID == source.PatientID
                assert source.SOPInstanceUID in str(ds)
        assert client.get(f"/images/{image['image_id']}/results/cadsr").status_code == 422
    (study,) = client.get("/studies").json()
    assert study["formats"] == ["zip", "cadsr", "sr"]
    for format in ("cadsr", "sr"):
        ds = pydicom.dcmread(io.BytesIO(client.get(f"/studies/{study['study_id']}/results/{format}").content))
        assert ds.Modality == "SR"
    with zipfile.ZipFile(io.BytesIO(client.get(f"/studies/{study['study_id']}/results/zip").content)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == sum(len(i["formats"]) for i in client.get("/images").json()) + 2
        assert not any("phantom" in n.lower() for n in archive.namelist())
    assert client.get(f"/studies/{'0' * 24}/results/zip").status_code == 404


def test_what_was_asked_for_again_is_not_made_again(server: Running, images: list[dict[str, Any]]) -> None:
    client, place = server.client(), f"/images/{images[2]['image_id']}/results/pr"
    first = client.get(place)
    assert client.get(place).content == first.content
    partly = client.get(place, headers={"Range": "bytes=0-99"})
    assert (partly.status_code, partly.content) == (206, first.content[:100])


def test_results_of_findings_without_the_image(
    server: Running, images: list[dict[str, Any]], tiny_bundle: Path, tmp_path: Path
) -> None:
    """An OUT folder alone still gives what is in it."""
    from mammoseg.apps.cli import cli

    folder = tmp_path / "one"
    folder.mkdir()
    exam_image = next(Path(p) for p in server.process.args if str(p).endswith("exam")) / images[1]["name"]
    shutil.copy(exam_image, folder / "a.dcm")
    with pytest.raises(SystemExit):
        cli.main(["segment", str(folder), "--out", str(tmp_path / "out"), "--weights", str(tiny_bundle), "--workers", "0"])
    running = launch(tmp_path, tmp_path / "out", "--weights", tiny_bundle)
    try:
        client = running.client()
        (image,) = client.get("/images").json()
        assert (image["has_pixels"], image["has_layers"], image["formats"]) == (False, False, ["json", "mask", "overlay"])
        for format in image["formats"]:
            assert client.get(f"/images/{image['image_id']}/results/{format}").status_code == 200
        for what in ("pixels", "layers", "truth", "results/seg"):
            assert client.get(f"/images/{image['image_id']}/{what}").status_code == 404
        assert client.post("/jobs", json={"images": [image["image_id"]]}).status_code == 404
        assert client.post("/jobs", json={"images": "all"}).status_code == 409
    finally:
        running.stop()


def test_what_cannot_be_made_is_told_and_the_rest_is_given(
    serve: Callable[..., Running], tiny_bundle: Path, tmp_path: Path, exam: Path
) -> None:
    """Findings whose mask is of another size: 409 with the reason for what needs it; the archive holds all else."""
    shutil.copytree(exam / "images", tmp_path / "images")
    analyse(tmp_path / "images", tmp_path / "results", tiny_bundle)
    broken = next(p for p in sorted((tmp_path / "results").rglob("findings.json")) if json.loads(p.read_text())["lesions"])
    document = json.loads(broken.read_text())
    document["image"]["height"] += 1
    broken.write_text(json.dumps(document))
    running = serve(tmp_path / "images", tmp_path / "results", "--weights", tiny_bundle)
    client = running.client()
    (study,) = client.get("/studies").json()
    refused = client.get(f"/studies/{study['study_id']}/results/sr")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "bad_findings")
    packed = client.get(f"/studies/{study['study_id']}/results/zip")
    assert packed.status_code == 200
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        names, problems = archive.namelist(), archive.read("problems.txt").decode()
    assert "study_sr.dcm" in problems
    assert any(name.endswith("_sc.dcm") for name in names)
    assert "study_sr.dcm" not in names
    assert " ended in " not in running.log.read_text()


def test_a_fault_in_a_library_is_no_fault_of_the_server() -> None:
    aside = Aside()
    try:
        assert aside.call(60, abs, -3) == 3
        with pytest.raises(DecodeError, match="SIGABRT"):
            aside.call(60, os.abort)
        assert aside.call(60, abs, -4) == 4, "the next process does it"
        with pytest.raises(ApiError) as late:
            aside.call(0.3, time.sleep, 30)
        assert late.value.status == 504
        with pytest.raises(DecodeError) as odd:
            aside.call(60, int, "Secret^Patient")
        assert "Secret" not in str(odd.value)
        aside.rest()
        assert aside.call(60, os.getpid) == aside.call(60, os.getpid)
    finally:
        aside.close()
    with pytest.raises(ApiError) as closed:
        aside.call(60, abs, -3)
    assert closed.value.status == 503


def test_an_idle_process_is_ended() -> None:
    aside = Aside(idle_s=0.0)
    try:
        first = aside.call(60, os.getpid)
        aside.rest()
        end = time.monotonic() + 10
        while Path(f"/proc/{first}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{first}").exists()
        assert aside.call(60, os.getpid) != first
    finally:
        aside.close()


def test_a_decoder_that_dies_leaves_the_service_up(server: Running, images: list[dict[str, Any]]) -> None:
    """The process that decodes is killed while it is asked: this answer says so, the next is right."""
    import re

    client = server.client()
    place = f"/images/{images[3]['image_id']}/results/overlay"
    expected = client.get(place)
    assert expected.status_code == 200
    for pid in server.children():
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
            parent = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]
            if int(parent) == server.process.pid:
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(server.state / "made" / images[3]["image_id"], ignore_errors=True)
    for _ in range(2):
        assert client.get(f"/images/{images[3]['image_id']}/results/sc").status_code in (200, 409)
    assert client.get(f"/images/{images[3]['image_id']}/results/sc").status_code == 200
    assert client.get(f"/images/{images[3]['image_id']}/layers").status_code == 200


def test_layers_of_what_is_no_mammogram(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 9 9 255\n" + bytes(81))
    from mammoseg.errors import NotAMammogramError

    with pytest.raises(NotAMammogramError):
        make_layers(tmp_path / "a.pgm", tiny_bundle, to_dict(settings_of(open_bundle(tiny_bundle))))
    assert from_dict(PipelineConfig, to_dict(settings_of(open_bundle(tiny_bundle)))) == settings_of(open_bundle(tiny_bundle))
