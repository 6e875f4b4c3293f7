"""The commands beside `segment`."""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.table import Table

from mammoseg import __version__
from mammoseg.apps.cli import cli
from mammoseg.apps.cli_reference import reference
from mammoseg.apps.console import ImageProgress, print_table
from mammoseg.apps.out_folder import held, held_beside
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams

data_commands = importlib.import_module("mammoseg.apps.data_commands")
demo = importlib.import_module("mammoseg.apps.demo")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms of a sixteenth of the pixels, so that the test is quick; `make demo` makes whole ones."""
    small = functools.partial(write_exams, config=PhantomConfig(size=(832, 640)))
    monkeypatch.setattr(data_commands, "write_exams", small)
    monkeypatch.setattr(demo, "write_exams", small)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_info_says_what_is_installed(tiny_bundle: Path) -> None:
    result = run("info", "--weights", tiny_bundle)
    assert result.exit_code == 0, result.output
    for words in (__version__, "openvino", "(default)", "tiny", "unetpp", "msf", "1 patients"):
        assert words in result.stdout
    assert "## Networks" in run("info", "--weights", tiny_bundle, "--card").stdout


def test_an_altered_bundle_is_one_line_and_code_1(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    (copy / "card.md").write_text("changed")
    for command in (["info"], ["segment", tiny_bundle / "card.md", "--out", tmp_path / "out"]):
        result = run(*command, "--weights", copy)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "card.md was altered" in result.stderr


@pytest.mark.usefixtures("small_phantoms")
def test_phantom_datasets_and_evaluate_go_together(tiny_bundle: Path, tmp_path: Path) -> None:
    made = run("phantom", "--out", tmp_path / "exams", "--format", "png", "--count", "1", "--seed", "3")
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("4 images with ")
    assert run("phantom", "--out", tmp_path / "exams").exit_code == 2
    checked = run("datasets", "check", f"phantom:{tmp_path / 'exams'}")
    assert checked.exit_code == 0, checked.output
    assert "4 images of 1 patient" in checked.stdout
    assert "LCC 1, LMLO 1, RCC 1, RMLO 1" in checked.stdout
    assert checked.stdout.endswith("nothing odd\n")
    arguments = ["--out", tmp_path / "out", "--weights", tiny_bundle, "--workers", "0", "--formats", "json,mask"]
    assert run("segment", tmp_path / "exams/images", *arguments).exit_code == 0
    truth = f"phantom:{tmp_path / 'exams'}"
    result = run("evaluate", tmp_path / "out", "--truth", truth, "--resamples", "20", "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "4 images of 1 patient (4 processed" in result.stdout
    assert (tmp_path / "report/evaluation.html").is_file()
    printed = run("evaluate", tmp_path / "out", "--truth", truth, "--resamples", "0", "--json")
    assert json.loads(printed.stdout)["counts"]["n_images"] == 4
    assert run("evaluate", tmp_path / "out", "--truth", truth, "--out", tmp_path / "report").exit_code == 2


def test_evaluate_and_datasets_name_what_is_wrong(tmp_path: Path) -> None:
    assert "coco" in run("datasets", "list").stdout
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cyst"}]}')
    (tmp_path / "other").mkdir()
    for spec, words in (
        ("nosuch:kind", "unknown kind 'nosuch'"),
        (f"coco:{tmp_path}/nowhere.json", "no such file or folder"),
        (f"{tmp_path}/other", "its kind is not recognised"),
        (f"coco:{tmp_path}?colour=red", "does not take these options: colour"),
        (f"coco:{tmp_path}?colour", "expected option=value"),
        (f"cbis_ddsm:{tmp_path}?split=most", "option split: expected one of"),
        (f"image_mask:{tmp_path}?missing=yes", "option missing: expected one of"),
    ):
        for command in (("evaluate", tmp_path, "--truth", spec), ("datasets", "fold", spec, "--out", tmp_path / "fold.json")):
            result = run(*command)
            assert (result.exit_code, result.stderr.count("\n"), words in result.stderr) == (2, 1, True), result.stderr
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert run("datasets", "check", broken).exit_code == 1, "the data set is wrong, not what names it"


def test_a_run_named_in_place_of_its_model_is_told_and_an_unfinished_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "run/checkpoints/checkpoint-00000010").mkdir(parents=True)
    options = ("--segmenter", "installed", "--out", tmp_path / "bundle", "--detector")
    for path in ("run", "run/model", "run/checkpoints/checkpoint-00000010"):
        refused = run("bundle", "make", *options, tmp_path / path)
        assert (refused.exit_code, refused.stderr.count("\n"), "has no model yet" in refused.stderr) == (2, 1, True)
    (tmp_path / "run/model").mkdir()
    (tmp_path / "run/model/model.json").write_text("{}")
    refused = run("bundle", "make", *options, tmp_path / "run")
    assert (refused.exit_code, f"in the same run: {tmp_path / 'run/model'}" in refused.stderr) == (2, True)


@pytest.mark.usefixtures("small_phantoms")
def test_demo_shows_what_it_found_and_what_to_open(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run("demo", "--weights", tiny_bundle, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert all(view in result.stdout for view in ("RCC", "LCC", "RMLO", "LMLO"))
    page = tmp_path / "demo/index.html"
    assert f"Open {page} in a browser" in result.stdout
    assert result.stdout.endswith(f"mammoseg serve {tmp_path / 'demo'}\n")
    assert [p.name for p in (tmp_path / "demo").iterdir() if p.is_file()] == ["index.html"]
    links = re.findall(r'(?:href="|url=)([^"]+)"', page.read_text())
    assert links == ["results/index.html"] * 2
    sheet = (tmp_path / "demo/results/index.html").read_text()
    assert all((tmp_path / "demo/results" / name).is_file() for name in re.findall(r'(?:href|src)="([^"]+)"', sheet))
    assert len(list((tmp_path / "demo/exam/images").glob("*.dcm"))) == 4
    assert len(list((tmp_path / "demo/results").glob("*/overlay.png"))) == 4
    assert (tmp_path / "demo/results/index.html").is_file()
    refused = run("demo", "--weights", tiny_bundle, "--out", tmp_path / "demo")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)


def test_bundle_make(model_directories: tuple[Path, Path], tmp_path: Path) -> None:
    detector, segmenter = model_directories
    (tmp_path / "metrics.json").write_text('{"ap50": 0.5}')
    result = run(
        *("bundle", "make", "--detector", detector, "--segmenter", segmenter, "--out", tmp_path / "made"),
        *("--metrics", tmp_path / "metrics.json", "--set", "fusion.lesion_score_min=0.25"),
    )
    assert result.exit_code == 0, result.output
    assert "compared with the trained ones on 2 phantoms" in result.stdout
    config = json.loads((tmp_path / "made/config.json").read_text())
    assert (config["name"], config["pipeline"]["fusion"]["lesion_score_min"]) == ("made", 0.25)
    assert json.loads((tmp_path / "made/metrics.json").read_text())["ap50"] == 0.5


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_training_names_a_wrong_setting(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = run("train", kind, "--data", "coco:x.json", "--out", tmp_path / "run", "--set", "training.stpes=3")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "did you mean 'training.steps'" in result.stderr


def test_unexpected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise RuntimeError("a fault\nof two lines")

    monkeypatch.setattr(data_commands, "list_kinds", broken)
    monkeypatch.delenv("MAMMOSEG_DEBUG", raising=False)
    result = run("datasets", "list")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "RuntimeError: a fault of two lines (set MAMMOSEG_DEBUG=1" in result.stderr


def test_the_reference_page_is_up_to_date() -> None:
    assert (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("command", [[], ["train"], ["bundle"], ["datasets"]])
def test_a_group_without_a_command_shows_its_help(command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 2
    assert "\nCommands:\n" in result.output
    assert "error" not in result.output


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "/full/x.dcm: No space left on device; make room"),
        (errno.EACCES, "/full/x.dcm: Permission denied; check the permissions"),
        (errno.EIO, "/full/x.dcm: Input/output error; check the disk"),
    ],
)
def test_what_the_system_refuses_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, words: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/full/x.dcm")

    monkeypatch.setattr(data_commands, "write_exams", refuse)
    result = run("phantom", "--out", tmp_path / "exams")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert words in result.stderr
    assert "unexpected" not in result.stderr


def test_phantoms_of_a_run_that_was_stopped_are_replaced_and_other_data_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = functools.partial(write_exams, config=PhantomConfig(size=(416, 320)))

    def stopped(*arguments: Any, **options: Any) -> None:
        made(*arguments, **options)
        (arguments[0] / "annotations.json").unlink()
        raise KeyboardInterrupt

    arguments = ["phantom", "--out", tmp_path / "exams", "--format", "png", "--seed"]
    monkeypatch.setattr(data_commands, "write_exams", stopped)
    assert run(*arguments, "1").exit_code == 130
    monkeypatch.setattr(data_commands, "write_exams", made)
    refused = run(*arguments, "2")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    for seed in ("2", "3"):
        assert run(*arguments, seed, "--overwrite").exit_code == 0
        assert {p.name[:10] for p in (tmp_path / "exams/images").iterdir()} == {f"phantom_s{seed}"}
    (tmp_path / "exams/annotations.json").write_text('{"images": []}')
    refused = run(*arguments, "4", "--overwrite")
    assert (refused.exit_code, "not of phantoms" in refused.stderr) == (2, True)
    assert len(list((tmp_path / "exams/images").iterdir())) == 4


@pytest.mark.usefixtures("small_phantoms")
def test_phantoms_are_made_by_one_run_at_a_time_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "exams"
    left = out / "images/.phantom_s1_0001_RCC.png.12.ab.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    arguments = ["phantom", "--out", out, "--format", "png", "--overwrite"]
    with held(out):
        refused = run(*arguments)
        assert (refused.exit_code, refused.stderr.count("\n"), "another run is writing" in refused.stderr) == (2, 1, True)
        assert left.exists()
    assert run(*arguments).exit_code == 0
    assert [p.name for p in out.rglob(".*")] == []
    with held(tmp_path / "demo"):
        refused = run("demo", "--out", tmp_path / "demo")
        assert (refused.exit_code, "another run is writing" in refused.stderr) == (2, True)
    assert not (tmp_path / "demo").exists(), "what was made for nothing is removed"


@pytest.mark.parametrize(
    ("command", "lock"),
    [
        (("train", "detector", "--data", "phantom:none"), held),
        (("train", "segmenter", "--data", "phantom:none", "--resume"), held),
        (("bundle", "build", "--recipe", REPOSITORY / "configs/bundle_main.toml", "--films", "x", "--digital", "y"), held),
        (("bundle", "make", "--detector", "installed", "--segmenter", "installed"), held_beside),
    ],
)
def test_one_run_at_a_time_trains_or_makes_a_bundle_in_a_folder(tmp_path: Path, command: Any, lock: Any) -> None:
    pytest.importorskip("torch")
    with lock(tmp_path / "out"):
        refused = run(*command, "--out", tmp_path / "out")
    assert (refused.exit_code, refused.stderr.count("\n"), "another run is writing" in refused.stderr) == (2, 1, True)
    assert list(tmp_path.iterdir()) == []


def test_training_that_is_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mammoseg.experiments.train_detector.train_detector", stop)
    result = run("train", "detector", "--data", "phantom:none", "--out", tmp_path / "out")
    assert (result.exit_code, "interrupted, the same command with --resume goes on" in result.stderr) == (130, True)


def test_ctrl_c_finds_the_command_ready_before_anything_large_is_imported() -> None:
    """Else it ends in a traceback, and `--help` waits for libraries that it does not need."""
    code = "import sys, mammoseg.apps.cli; sys.exit(', '.join({'numpy', 'cv2', 'pydicom', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n")


@pytest.mark.parametrize(("how", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_ends_any_command_in_one_line(tmp_path: Path, how: str, code: int, word: str) -> None:
    script = (
        "import os, signal, sys, mammoseg.apps.data_commands as d\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"d.inspect = lambda dataset: os.kill(os.getpid(), signal.{how})\n"
        "from mammoseg.apps.cli import main\n"
        "sys.argv[1:] = ['datasets', 'check', 'x']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"mammoseg: error: {word}\n")


def test_a_demo_that_is_interrupted_says_how_to_start_again(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_exams", functools.partial(write_exams, config=PhantomConfig(size=(416, 320))))
    monkeypatch.setattr(importlib.import_module("mammoseg.apps.segment"), "run_batch", stop)
    result = run("demo", "--weights", tiny_bundle, "--out", tmp_path / "demo")
    assert result.exit_code == 130
    assert "--overwrite starts again" in result.stderr
    assert "--resume" not in result.stderr


def test_a_demo_replaces_nothing_but_a_demo(tiny_bundle: Path, tmp_path: Path) -> None:
    """`--overwrite` in a folder with a page or tables of one's own, which have the names that a demo writes."""
    for name in ("index.html", "results/findings.csv", "notes.txt"):
        out = tmp_path / name.replace("/", "_")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("<title>my own</title>")
        result = run("demo", "--weights", tiny_bundle, "--out", out, "--overwrite")
        assert (result.exit_code, "is no demo" in result.stderr) == (2, True)
        assert [p for p in out.rglob("*") if p.is_file()] == [out / name]
        assert (out / name).read_text() == "<title>my own</title>"


def test_tables_off_a_terminal_are_as_wide_as_they_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("figure", "value")
    table.add_row("a name of a figure " * 4, "0.5 to 0.6 or so, and no more")
    print_table(table)
    assert "a name of a figure a name of a figure a name of a figure a name of a figure" in capsys.readouterr().out


def test_progress_off_a_terminal_tells_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("mammoseg.apps.console.time.monotonic", lambda: now[0])
    with ImageProgress(3, "counting") as bar:
        for after in (60.0, 60.0, 7000.0):
            now[0] += after
            bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "counting: 1 of 3, about 2 min left",
        "counting: 2 of 3, about 60 s left",
        "counting: 3 of 3",
    ]
