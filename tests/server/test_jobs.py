"""Jobs: the same findings as on the command line, progress, cancelling, and going on after a restart."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mammoseg.apps.cli import cli
from mammoseg.apps.server.catalogue import Catalogue
from mammoseg.apps.server.errors import ApiError
from mammoseg.apps.server.jobs import MAX_QUEUED, Jobs
from mammoseg.apps.server.settings import ServerSettings
from mammoseg.apps.server.store import Store
from mammoseg.bundle import open_bundle

from .conftest import Running, launch


@pytest.fixture(scope="module")
def images(small_exams: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four views, and one image that is none."""
    out = tmp_path_factory.mktemp("jobs") / "images"
    out.mkdir()
    for path in sorted(small_exams.glob("*_0001_*.png")):
        shutil.copy(path, out)
    (out / "small.pgm").write_bytes(b"P5 9 9 255\n" + bytes(81))
    return out


@pytest.fixture(scope="module")
def many(small_exams: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen images: work for a while."""
    out = tmp_path_factory.mktemp("many") / "images"
    out.mkdir()
    first = sorted(small_exams.glob("*.png"))[0]
    for number in range(15):
        shutil.copy(first, out / f"image{number:02d}.png")
    return out


@pytest.fixture(scope="module")
def server(images: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server over the five."""
    running = launch(tmp_path_factory.mktemp("server"), images, "--weights", tiny_bundle)
    yield running
    running.stop()


def wait(
    client: httpx.Client, job_id: str, until: Callable[[dict[str, Any]], bool], seconds: float = 300
) -> list[dict[str, Any]]:
    """All that was said of a job until it is so."""
    seen: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen.append(client.get(f"/jobs/{job_id}").json())
        if until(seen[-1]):
            return seen
        time.sleep(0.05)
    raise AssertionError(f"still {seen[-1]}")


def ended(job: dict[str, Any]) -> bool:
    """Whether it is over."""
    return job["state"] in ("done", "failed", "cancelled")


def start(client: httpx.Client, images: Any = "all", **settings: Any) -> str:
    """Starts a job."""
    answer = client.post("/jobs", json={"images": images, "settings": settings})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


@pytest.mark.parametrize("settings", [{}, {"min_score": 0.2, "fusion": "wbf", "lambda": 0.3}], ids=["default", "changed"])
def test_findings_are_those_of_the_command_line(
    server: Running, images: Path, tiny_bundle: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    client = server.client()
    job = wait(client, start(client, **settings), ended)[-1]
    assert (job["state"], job["done"], job["total"], job["error"]) == ("done", 5, 5, None)
    listed = {i["name"]: i for i in client.get("/images").json()}
    assert [f["status"] for f in job["failures"]] == ["rejected"]
    assert job["failures"][0]["image_id"] == listed["small.pgm"]["image_id"]
    assert "too small" in job["failures"][0]["reason"]
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    with pytest.raises(SystemExit):
        cli.main(["segment", str(images), "--out", str(tmp_path / "out"), "--weights", str(tiny_bundle), *options])
    for name, image in listed.items():
        expected = (tmp_path / "out" / Path(name).stem / "findings.json").read_bytes()
        assert client.get(f"/images/{image['image_id']}/findings").content == expected
        assert client.get(f"/images/{image['image_id']}/results/json").content == expected
        assert image["status"] == ("rejected" if name == "small.pgm" else "processed")
        if image["status"] == "processed":
            for format, file in (("mask", "mask.png"), ("overlay", "overlay.png")):
                got = client.get(f"/images/{image['image_id']}/results/{format}").content
                assert got == (tmp_path / "out" / Path(name).stem / file).read_bytes()


def test_some_images_alone(server: Running) -> None:
    client = server.client()
    some = [i["image_id"] for i in client.get("/images").json()][:2]
    job = wait(client, start(client, [*some, some[0]]), ended)[-1]
    assert (job["images"], job["total"], job["done"]) == (some, 2, 2)
    assert client.get("/jobs").json()[0] == job


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"images": ["0" * 24]}, 404),
        ({"images": []}, 422),
        ({"images": "some"}, 422),
        ({"images": ["../x"]}, 422),
        ({"images": "all", "settings": {"min_score": 2}}, 422),
        ({"images": "all", "settings": {"fusion": "odd"}}, 422),
        ({"images": "all", "settings": {"lambda": "NaN"}}, 422),
        ({"images": "all", "settings": {"scales": [[1, 1]]}}, 422),
        ({"images": "all", "set": ["runtime.kind=torch"]}, 422),
        ([], 422),
        (None, 422),
    ],
)
def test_what_is_no_job_is_refused(server: Running, wanted: Any, status: int) -> None:
    before = len(server.client().get("/jobs").json())
    answer = server.client().post("/jobs", json=wanted)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "code"}
    assert len(server.client().get("/jobs").json()) == before


def test_progress_and_cancelling(serve: Callable[..., Running], many: Path, tiny_bundle: Path) -> None:
    running = serve(many, "--weights", tiny_bundle)
    client = running.client()
    before = set(running.children())
    first, second = start(client), start(client)
    seen = wait(client, first, lambda j: j["done"] >= 2)
    assert [j["done"] for j in seen] == sorted(j["done"] for j in seen)
    assert seen[-1]["state"] == "running"
    assert 0 < seen[-1]["seconds_left"] < 600
    assert client.get(f"/jobs/{second}").json()["state"] == "queued"
    assert len(set(running.children()) - before) >= 2
    assert client.post(f"/jobs/{second}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/jobs/{first}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/jobs/{first}/cancel").status_code == 409
    assert client.post(f"/jobs/{'0' * 24}/cancel").status_code == 404
    end = time.monotonic() + 30
    while set(running.children()) - before and time.monotonic() < end:
        time.sleep(0.1)
    assert set(running.children()) <= before
    job = client.get(f"/jobs/{first}").json()
    assert job["state"] == "cancelled"
    assert 2 <= job["done"] < 15
    statuses = [i["status"] for i in client.get("/images").json()]
    assert statuses.count("processed") == job["done"], "what was done stays"
    one = [client.get("/images").json()[-1]["image_id"]]
    assert wait(client, start(client, one), ended)[-1]["state"] == "done", "the queue goes on"


def _gone(pids: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{p}").exists() and "Z" not in Path(f"/proc/{p}/stat").read_text().split()[2] for p in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_go_on_after_a_restart(serve: Callable[..., Running], many: Path, tiny_bundle: Path, how: int) -> None:
    running = serve(many, "--weights", tiny_bundle)
    client = running.client()
    waiting_ids = [i["image_id"] for i in client.get("/images").json()[:2]]
    job_id, waiting = start(client), start(client, waiting_ids)
    wait(client, job_id, lambda j: j["done"] >= 2)
    pids = running.children()
    running.stop(how)
    assert _gone(pids), "no process outlives the server"
    done = {p: p.stat().st_mtime_ns for p in (running.state / "jobs" / job_id).rglob("findings.json")}
    assert 2 <= len(done) < 15
    again = serve(many, "--weights", tiny_bundle)
    client = again.client()
    job = wait(client, job_id, ended)[-1]
    assert (job["state"], job["done"], job["total"], job["failures"]) == ("done", 15, 15, [])
    assert {p: p.stat().st_mtime_ns for p in done} == done, "what was done is not done again"
    assert wait(client, waiting, ended)[-1]["state"] == "done"
    assert {i["status"] for i in client.get("/images").json()} == {"processed"}
    assert again.stop() == 0


def test_a_job_whose_process_dies_fails_and_the_queue_goes_on(
    serve: Callable[..., Running], many: Path, tiny_bundle: Path
) -> None:
    running = serve(many, "--weights", tiny_bundle)
    client = running.client()
    before = set(running.children())
    job_id = start(client)
    wait(client, job_id, lambda j: j["done"] >= 1)
    for pid in set(running.children()) - before:
        parent = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
        if parent == running.process.pid and "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    job = wait(client, job_id, ended)[-1]
    assert job["state"] == "failed"
    assert "memory" in job["error"]
    one = [client.get("/images").json()[0]["image_id"]]
    assert wait(client, start(client, one), ended)[-1]["state"] == "done"


@pytest.fixture
def idle(many: Path, tiny_bundle: Path, tmp_path: Path) -> Iterator[Jobs]:
    """A queue that nobody works off."""
    store = Store(tmp_path / "state")
    settings = ServerSettings(folders=(many,), state=tmp_path / "state")
    yield Jobs(settings, store, Catalogue(settings, store), open_bundle(tiny_bundle), None)
    store.close()


def test_the_queue_is_bounded(idle: Jobs) -> None:
    for _ in range(MAX_QUEUED):
        idle.submit(["0" * 24], {"sets": []})
    with pytest.raises(ApiError) as refused:
        idle.submit(["0" * 24], {"sets": []})
    assert refused.value.status == 503
    assert idle.cancel(idle.latest()[0].job_id).state == "cancelled"
    idle.submit(["0" * 24], {"sets": []})


def test_without_weights_nothing_is_queued(tmp_path: Path) -> None:
    store = Store(tmp_path)
    settings = ServerSettings(folders=(), state=tmp_path)
    with pytest.raises(ApiError) as refused:
        Jobs(settings, store, Catalogue(settings, store), None, None).submit(["0" * 24], {"sets": []})
    assert (refused.value.status, refused.value.code) == (409, "no_weights")
    store.close()
