"""`mammoseg train detector` as a process of its own, killed by the system part-way: --resume ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from mammoseg.apps.cli import cli
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.training.curve import read_curve

SETTINGS = """
sizes = [[96, 64], [128, 64]]
resize_every = 2
anchor_size = [128, 64]
validation_size = [128, 64]
scales = [[128, 64]]
xy_scale = 2.0
holdout = 0.34
[network]
backbone = "efficientnet_lite0"
neck_widths = [8, 16, 16]
neck_pairs = 1
prior = 0.02
[frame]
region = "breast"
aspect = "keep"
intensity = "percentile"
[loss]
kind = "dense"
[training]
steps = 24
batch_size = 2
optimizer = "adamw"
warmup_steps = 2
schedule = "cosine"
milestones = []
checkpoint_every = 3
validate_every = 10
log_every = 2
threads = 1
accelerator = "cpu"
"""


def command(root: Path, out: Path, *more: str) -> list[str]:
    data, config, cache = root / "phantoms", root / "tiny.toml", root / "cache"
    return [
        *(sys.executable, "-m", "mammoseg.apps.cli", "train", "detector", "--data", f"phantom:{data}", "--out", str(out)),
        *("--config", str(config), "--set", f"cache={cache}", *more),
    ]


def test_killed_by_the_system_and_resumed_gives_the_same_curve_and_weights(tmp_path: Path) -> None:
    write_exams(tmp_path / "phantoms", 3, seed=3, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    (tmp_path / "tiny.toml").write_text(SETTINGS)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, env=environment)

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(tmp_path, killed), stdout=log, stderr=log, env=environment)
        try:
            until = time.monotonic() + 240
            while not list(killed.glob("checkpoints/checkpoint-0*")) and process.poll() is None:
                assert time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.01)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
    assert not (killed / "model").exists()
    at_the_kill = read_curve(killed / "curve.csv")
    done = run(*command(tmp_path, whole))
    assert done.returncode == 0, done.stderr[-2000:]
    assert 1 < len(at_the_kill) < len(read_curve(whole / "curve.csv")) / 2

    refused = CliRunner().invoke(cli, command(tmp_path, killed, "--resume", "--set", "training.learning_rate=0.5")[3:])
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "settings.training.learning_rate 0.001 there, 0.5 here" in refused.stderr

    done = run(*command(tmp_path, killed, "--resume"))
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("curve.csv", "fold.json", "model/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
