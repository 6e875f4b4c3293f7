"""The command: its plan, its errors, and that a run killed at any moment and resumed ends as one left alone."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mammoseg.apps.cli import cli
from mammoseg.apps.out_folder import held

from .conftest import SMALL, command, digest, environment

ONE_NETWORK = '{"unetpp": {"arch": "unetpp", "network": {"widths": [4, 4, 8, 8, 8]}}}'
TINY = ("splits.count=1", "mended.splits=0", "pretrain.training.steps=12", "finetune.training.steps=6",
        "pretrain.training.checkpoint_every=3", "finetune.training.checkpoint_every=2", "segmenter.training.checkpoint_every=3",
        "segmenter.training.steps=9", "one_stage.training.steps=3", f"networks={ONE_NETWORK}",
        'mended.networks=["unetpp"]')  # fmt: skip


def test_the_plan_names_every_step_and_writes_nothing(tmp_path, data_sets):
    arguments = ["reproduce", "--preset", "smoke", "--out", str(tmp_path / "out"), "--dry-run", *data_sets]
    result = CliRunner().invoke(cli, [*arguments, *(word for s in SMALL for word in ("--set", s))])
    assert result.exit_code == 0, result.output
    for name in (
        "pretrain",
        "detector × 3",
        "one-stage-segmenter × 8",
        "table5",
        "fig7",
        "mended",
        "report",
        "GFLOP/s",
        "about",
    ):
        assert name in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--inbreast: name the folder"),
        (["--preset", "quick"], "expected one of paper, smoke"),
        (["--preset", "smoke", "--set", "splits.cuont=3"], "did you mean 'splits.count'"),
        (["--preset", "smoke", "--set", "main=vnet"], "expected one of unet, cgan, cascade, unetpp"),
        (["--preset", "smoke", "--set", "assumptions.single_scale=[1, 2]"], "expected one of finetune.scales"),
        (["--inbreast", "/nowhere"], "no such file or folder"),
    ],
)
def test_one_clear_line(tmp_path, arguments, words):
    result = CliRunner().invoke(cli, ["reproduce", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output


def test_an_unknown_step_names_those_there_are(tmp_path, data_sets):
    result = CliRunner().invoke(
        cli, ["reproduce", "--out", str(tmp_path / "out"), "--preset", "smoke", "--only", "table9", *data_sets]
    )
    assert result.exit_code == 2
    assert "no such step; there are data, pretrain, split" in result.output


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path, data_sets):
    arguments = ["reproduce", "--preset", "smoke", "--out", str(tmp_path / "out"), "--only", "split", *data_sets]
    with held(tmp_path / "out"):
        result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, "another run is writing to" in result.output) == (2, True), result.output
    assert CliRunner().invoke(cli, arguments).exit_code == 0


def killed_and_resumed(out: Path, sets: tuple[str, ...], moments: list[float], data: tuple[str, ...] = ()) -> int:
    """Runs the study, killing it after so many seconds each time, then lets it end; returns how often it was killed."""
    kills = 0
    for moment in moments:
        process = subprocess.Popen(
            command(out, *data, sets=sets), env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    done = subprocess.run(
        command(out, *data, sets=sets), env=environment(), capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return kills


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory, data_sets: tuple[str, ...]) -> tuple[Path, float]:
    """OUT of a tiny study that nobody disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("alone") / "out"
    begun = time.monotonic()
    assert killed_and_resumed(out, TINY, [], data_sets) == 0
    return out, time.monotonic() - begun


def test_killed_twice_and_resumed_it_ends_the_same(left_alone, tmp_path, data_sets):
    alone, seconds = left_alone
    rng = random.Random(3)
    moments = [seconds * rng.uniform(0.35, 0.6) for _ in range(2)]
    kills = killed_and_resumed(tmp_path / "out", TINY, moments, data_sets)
    assert kills >= 1
    assert digest(tmp_path / "out") == digest(alone)


@pytest.mark.soak
def test_killed_at_ten_random_moments_and_resumed_it_ends_the_same(tmp_path):
    begun = time.monotonic()
    killed_and_resumed(tmp_path / "alone", SMALL, [])
    seconds = time.monotonic() - begun
    rng = random.Random()
    moments = [seconds * rng.uniform(0.05, 0.35) for _ in range(10)]
    kills = killed_and_resumed(tmp_path / "out", SMALL, moments)
    assert kills >= 5, moments
    assert digest(tmp_path / "out") == digest(tmp_path / "alone"), moments
