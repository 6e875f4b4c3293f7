"""The engine on Ray Data: the findings of the local one, whatever dies; nothing done twice; nothing told to anybody."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammoseg.apps import ray_engine
from mammoseg.apps.inputs import InputImage
from mammoseg.apps.remote import collect_urls
from mammoseg.apps.worker import Job, Plan
from mammoseg.bundle import open_bundle
from mammoseg.config import to_dict
from mammoseg.pipeline import settings_of
from mammoseg.provenance import describe_run

pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mammoseg.datasets.phantom import PhantomConfig
    from mammoseg.datasets.phantom_files import write_exams

    out = tmp_path_factory.mktemp("ray")
    write_exams(out / "exams", 2, seed=3, format="png", config=PhantomConfig(size=(416, 320)))
    folder = out / "images"
    folder.mkdir()
    for i, path in enumerate(sorted((out / "exams" / "images").iterdir()) * 3):
        (folder / f"{i:02d}.png").hardlink_to(path)
    (folder / "00.png").unlink()
    (folder / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    return folder


def command(images: Path | str, out: Path, bundle: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "mammoseg.apps.cli", "segment", str(images), "--out", str(out), "--weights", str(bundle)]
    return [*start, "--formats", "json", "--set", "runtime.threads=1", *more]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), env=ONE_THREAD, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return done


def findings(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("findings.json"))}


@pytest.fixture(scope="module")
def expected(images: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    run(images, out, tiny_bundle, "--parquet")
    assert len(findings(out)) == 24
    return out


def workers_of(driver: int) -> list[int]:
    """Ray's workers that hold a replica, among the descendants of `driver`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or not (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                continue
            parent = int(process.name)
            while parent not in (0, 1, driver):
                parent = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == driver:
            found.append(int(process.name))
    return found


def killed(images: Path, out: Path, bundle: Path, seed: int) -> int:
    """Runs two workers of one core; kills one at a random moment. How many were killed."""
    rng = random.Random(seed)
    moment, kills = rng.randrange(1, 20), 0
    arguments = command(images, out, bundle, "--engine", "ray", "--workers", "2")
    with subprocess.Popen(arguments, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        end = time.monotonic() + 500
        while driver.poll() is None and not kills and time.monotonic() < end:
            alive = workers_of(driver.pid)
            if len(findings(out)) >= moment and alive:
                os.kill(rng.choice(alive), signal.SIGKILL)
                kills += 1
            time.sleep(0.02)
        _, errors = driver.communicate(timeout=500)
    assert driver.returncode == 3, errors[-3000:]  # one image is damaged
    return kills


def check_whole(out: Path, expected: Path) -> None:
    """Every image has exactly one valid result, byte by byte that of the local engine."""
    assert findings(out) == findings(expected)
    lines = (out / "findings.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"]["source"] for line in lines] == [f"{i:02d}.png" for i in range(24)]
    assert json.loads((out / "run.json").read_text())["counts"]["images"] == 24
    assert not (out / ray_engine.TRIES).exists()


def test_a_killed_worker_costs_nothing(images: Path, tiny_bundle: Path, expected: Path, tmp_path: Path) -> None:
    kills = sum(killed(images, tmp_path / str(seed), tiny_bundle, seed) for seed in range(2))
    for seed in range(2):
        check_whole(tmp_path / str(seed), expected)
    assert kills >= 1, "the runs were over before a worker could be killed"


@pytest.mark.soak
def test_ten_killed_workers_cost_nothing(images: Path, tiny_bundle: Path, expected: Path, tmp_path: Path) -> None:
    kills = 0
    for seed in range(100, 110):
        kills += killed(images, tmp_path / str(seed), tiny_bundle, seed)
        check_whole(tmp_path / str(seed), expected)
    assert kills >= 8


def test_a_killed_job_goes_on_where_it_was(images: Path, tiny_bundle: Path, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = command(images, out, tiny_bundle, "--engine", "ray", "--workers", "1")
    with subprocess.Popen(arguments, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        end = time.monotonic() + 500
        while len(findings(out)) < 6 and time.monotonic() < end:
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    time.sleep(3)  # its workers end with it
    done = {p: p.stat().st_mtime_ns for p in out.rglob("findings.json") if json.loads(p.read_text())["status"] == "processed"}
    assert 5 <= len(done) < 24
    finished = run(images, out, tiny_bundle, "--engine", "ray", "--workers", "2", "--resume")
    assert f"{len(done)} kept from before" in finished.stdout
    assert all(p.stat().st_mtime_ns == when for p, when in done.items())
    check_whole(out, expected)


def test_parquet_holds_what_the_json_holds(expected: Path) -> None:
    table = pq.read_table(expected / "findings.parquet")
    rows = table.to_pylist()
    written = [json.loads(p.read_text()) for p in sorted(expected.rglob("findings.json"))]
    assert [r["source"] for r in rows] == [w["image"]["source"] for w in written]
    for row, whole in zip(rows, written, strict=True):
        assert (row["status"], row["reason"], row["file_sha256"]) == (
            whole["status"], whole["reason"], whole["image"]["file_sha256"],
        )  # fmt: skip
        assert row["lesions"] == whole["lesions"]
        assert row["candidates"] == whole["candidates"]
        assert json.loads(row["provenance"]) == whole["provenance"]
    with (expected / "findings.csv").open() as file:
        assert sum(len(r["lesions"]) for r in rows) == len(list(csv.DictReader(file)))


def test_parquet_comes_in_parts(expected: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mammoseg.apps import parquet

    monkeypatch.setattr(parquet, "ROWS", 10)
    folders = sorted(p.parent.name for p in expected.rglob("findings.json"))
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "findings.json").write_bytes((expected / folder / "findings.json").read_bytes())
    parquet.write_parquet(tmp_path, folders)
    parts = sorted((tmp_path / "findings.parquet").iterdir())
    assert [pq.read_metadata(p).num_rows for p in parts] == [10, 10, 4]
    assert pq.read_table(tmp_path / "findings.parquet").column("folder").to_pylist() == folders


def test_urls_give_what_paths_give_and_only_what_changed_is_fetched_again(
    images: Path, tiny_bundle: Path, expected: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    for i in range(1, 4):
        (store / "deep" / f"{i:02d}.png").write_bytes((images / f"{i:02d}.png").read_bytes())
    (store / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    first = run(f"file://{store}/deep", out, tiny_bundle)
    assert "3 processed" in first.stdout
    for name, data in findings(out).items():
        assert data == (expected / name).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("findings.json")}
    (store / "deep" / "02.png").write_bytes((images / "05.png").read_bytes())
    again = run(f"file://{store}/deep", out, tiny_bundle, "--resume")
    assert "2 kept from before" in again.stdout
    assert [p.parent.name for p, when in before.items() if p.stat().st_mtime_ns != when] == ["02"]
    listed = collect_urls([f"file://{store}"])
    assert [i.source for i in listed.images] == ["deep/01.png", "deep/02.png", "deep/03.png"]
    assert listed.skipped == ("notes.txt",)
    for arguments, words in (
        ((f"file://{store}/none", tmp_path / "o", tiny_bundle), "nothing found at"),
        ((f"file://{store}", tmp_path / "o", tiny_bundle, str(images)), "URLs go with URLs alone"),
        ((f"nonsense://{store}", tmp_path / "o", tiny_bundle), "nonsense"),
    ):
        done = subprocess.run(command(*arguments), env=ONE_THREAD, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr


@pytest.fixture
def replica(images: Path, tiny_bundle: Path, tmp_path: Path) -> tuple[ray_engine.Replica, Job]:
    bundle = open_bundle(tiny_bundle)
    config = settings_of(bundle)
    config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, threads=1))
    plan = Plan(bundle.directory, config, tmp_path / "out", ("json",), {}, "ray")
    provenance = describe_run(bundle, to_dict(settings_of(bundle)), to_dict(config))
    return ray_engine.Replica(plan, provenance, "run"), Job(InputImage(images / "03.png", "03.png", "03"))


def test_what_a_dead_worker_had_done_is_not_done_again(replica: tuple[ray_engine.Replica, Job], tmp_path: Path) -> None:
    worker, job = replica
    first = worker._one(job)
    path = tmp_path / "out" / "03" / "findings.json"
    when = path.stat().st_mtime_ns
    assert worker._one(job) == first  # the batch comes again
    assert path.stat().st_mtime_ns == when


def test_an_image_that_kills_every_worker_is_given_up(replica: tuple[ray_engine.Replica, Job], tmp_path: Path) -> None:
    worker, job = replica
    folder = tmp_path / "out" / ray_engine.TRIES
    assert worker._one(job)["status"] == "processed"
    (path,) = folder.iterdir()
    (tmp_path / "out" / "03" / "findings.json").unlink()
    path.write_text("run 2")
    assert worker._one(job)["status"] == "processed"  # the third try
    (tmp_path / "out" / "03" / "findings.json").unlink()
    gone = worker._one(job)
    assert gone["status"] == "failed"
    assert "3 processes that analysed it ended" in gone["reason"]
    path.write_text("another-run 3")  # what an earlier run went through does not count
    (tmp_path / "out" / "03" / "findings.json").unlink()
    assert worker._one(job)["status"] == "processed"


def test_a_job_survives_the_way_to_a_worker() -> None:
    image = InputImage(Path("a/b.dcm"), "b.dcm", "b", True, "s3://bucket/b.dcm", "etag")
    for boxes in (None, np.zeros((0, 5)), np.array([[1.0, 2.0, 3.0, 4.0, 0.5]])):
        back = ray_engine._from_text(ray_engine._to_text(Job(image, boxes)))
        assert back.image == image
        assert (back.boxes is None) if boxes is None else np.array_equal(back.boxes, boxes)


def test_usage_statistics_are_off_before_ray_is_there() -> None:
    code = """
from mammoseg.apps.ray_engine import import_ray
ray = import_ray()
from ray._common.usage import usage_lib
assert not usage_lib.usage_stats_enabled()
assert not usage_lib.usage_stats_prompt_enabled()
"""
    environment = {k: v for k, v in ONE_THREAD.items() if not k.startswith("RAY_")} | {"RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
