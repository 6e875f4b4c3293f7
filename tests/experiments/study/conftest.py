"""A small study, run once as a process: all parts, two splits. MAMMOSEG_STUDY names a finished one to look at instead."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.released import write_cbis_ddsm, write_inbreast

PHANTOMS = PhantomConfig(size=(256, 192), masses=(2, 3), diameter_mm=(26.0, 45.0), normal_fraction=0.15, labels=False)
SMALL = (
    "splits.count=2",
    "mended.splits=1",
    "pretrain.training.steps=60",
    "finetune.training.steps=8",
    "segmenter.training.steps=12",
    "one_stage.training.steps=3",
    "mended.resamples=30",
    "fusion.score_min=0.15",
)


def command(out: Path, *arguments: str, sets: tuple[str, ...] = SMALL) -> list[str]:
    """`mammoseg reproduce` with the smoke preset."""
    options = [word for s in sets for word in ("--set", s)]
    return [
        sys.executable,
        "-m",
        "mammoseg.apps.cli",
        "reproduce",
        "--preset",
        "smoke",
        "--out",
        str(out),
        *options,
        *arguments,
    ]


def environment() -> dict[str, str]:
    """One thread, so that a run gives the same bits whatever else the machine does."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Arguments that name a few phantoms in the released layouts."""
    root = tmp_path_factory.mktemp("phantoms")
    inbreast = write_inbreast(root / "phantom-inbreast", 7, 11, PHANTOMS)
    cbis = write_cbis_ddsm(root / "phantom-cbis-ddsm", 5, 12, PHANTOMS)
    return "--inbreast", str(inbreast), "--cbis-ddsm", str(cbis)


@pytest.fixture(scope="session")
def study_out(tmp_path_factory: pytest.TempPathFactory, data_sets: tuple[str, ...]) -> Path:
    """OUT of a finished study."""
    pytest.importorskip("torch")
    if os.environ.get("MAMMOSEG_STUDY"):
        return Path(os.environ["MAMMOSEG_STUDY"])
    out = tmp_path_factory.mktemp("study") / "out"
    done = subprocess.run(command(out, *data_sets), env=environment(), capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def digest(out: Path) -> dict[str, str]:
    """The bytes of what a reader of the study sees."""
    files = [out / "report.html"]
    for folder in ("tables", "figures", "findings", "mended", "splits"):
        files += [f for f in (out / folder).rglob("*") if f.is_file()]
    return {f.relative_to(out).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}
