"""A fold on the command line: one side segmented and evaluated, and what is wrong with a fold said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mammoseg.apps.cli import cli
from mammoseg.apps.inputs import collect, collect_side
from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.datasets.splits import SIDES, content_hash, load_fold, patient_holdout


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients of four views each, and a fold of them: patients 1 to train, 1 to validate, 1 kept out."""
    out = tmp_path_factory.mktemp("fold") / "exams"
    write_exams(out, 3, seed=1, format="png", config=PhantomConfig(size=(208, 160)))
    patients = sorted({i.patient_id for i in read_dataset(out)})
    made = run("datasets", "fold", out, "--out", out / "fold.json", "--holdout", "0.5", "--keep-out", patients[1])
    assert made.exit_code == 0, made.output
    assert made.stdout.count("4 images of 1 patient,") == 2
    assert made.stdout.count("4 images of 1 patient;") == 1
    return out


def segment(bundle: Path, out: Path, *arguments: str | Path) -> Result:
    return run("segment", "--weights", bundle, "--workers", "0", "--formats", "json", "--out", out, *arguments)


def test_the_command_makes_the_fold_that_training_makes(exams: Path, tmp_path: Path) -> None:
    fold = load_fold(exams / "fold.json")
    items = read_dataset(exams)
    kept = {i.patient_id for i in items if i.image_id in fold.test}
    assert fold == patient_holdout(items, 0.5, 0, sorted(kept))
    refused = run("datasets", "fold", exams, "--out", exams / "fold.json")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    unknown = run("datasets", "fold", exams, "--out", tmp_path / "f.json", "--keep-out", "nobody")
    assert (unknown.exit_code, unknown.stderr.count("\n"), "nobody" in unknown.stderr) == (1, 1, True)
    assert run("datasets", "fold", exams, "--out", tmp_path / "f.json", "--holdout", "1.5").exit_code == 2
    assert not (tmp_path / "f.json").exists()


@pytest.mark.parametrize("name", ["{0}/annotations.json", "phantom:{0}"])
def test_one_side_is_segmented_and_evaluated(tiny_bundle: Path, exams: Path, tmp_path: Path, name: str) -> None:
    dataset, out = name.format(exams), tmp_path / "out"
    part = ("--fold", exams / "fold.json", "--side", "test")
    result = segment(tiny_bundle, out, dataset, *part)
    assert result.exit_code == 0, result.output
    found = [json.loads(f.read_text())["image"]["source"] for f in sorted(out.rglob("findings.json"))]
    assert sorted(found) == list(load_fold(exams / "fold.json").test)
    whole = run("evaluate", out, "--truth", dataset, "--resamples", "0")
    assert (whole.exit_code, "8 of 12 images of the truth have no findings" in whole.stderr) == (1, True)
    shown = run("evaluate", out, "--truth", dataset, "--resamples", "0", *part, "--out", tmp_path / "report")
    assert shown.exit_code == 0, shown.output
    assert "4 images of 1 patient (4 processed" in shown.stdout
    assert "on the test side of the fold holdout-0.5-seed-0" in shown.stdout
    saved = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert saved["part"] == {
        "fold": "holdout-0.5-seed-0",
        "content_hash": load_fold(exams / "fold.json").content_hash,
        "side": "test",
    }
    assert saved["counts"]["n_images"] == 4
    assert "On the test side of the fold holdout-0.5-seed-0" in (tmp_path / "report/evaluation.html").read_text()
    other = run("evaluate", out, "--truth", dataset, "--fold", exams / "fold.json", "--side", "validation")
    assert (other.exit_code, "none of the 4 images of the truth has findings" in other.stderr) == (1, True)


def test_a_side_has_the_names_it_has_in_the_whole(exams: Path) -> None:
    """Evaluation and --resume tell images by these names."""
    wholes = [{(i.source, i.folder) for i in collect([exams / n]).images} for n in ("", "annotations.json")]
    assert wholes[0] == wholes[1]
    sides = [
        {(i.source, i.folder) for i in collect_side(str(exams / n), exams / "fold.json", side).images}
        for n in ("", "annotations.json")
        for side in SIDES
    ]
    assert sides[:3] == sides[3:]
    assert set.union(*sides) == wholes[0]
    assert [len(s) for s in sides[:3]] == [4, 4, 4]


def _rehashed(exams: Path, test: list[str]) -> str:
    fold = replace(load_fold(exams / "fold.json"), test=tuple(test))
    return json.dumps(json.loads((exams / "fold.json").read_text()) | {"test": test, "content_hash": content_hash(fold)})


@pytest.mark.parametrize("command", ["segment", "evaluate"])
@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (
            lambda e: _rehashed(e, ["images/nobody.png"]),
            1,
            "names 1 images that the dataset lacks, such as 'images/nobody.png'",
        ),
        (lambda e: _rehashed(e, []), 1, "no image on its test side (images: train 4, validation 4, test 0)"),
        (lambda e: (e / "fold.json").read_text().replace("images/", "image/"), 1, "do not match its content hash"),
        (lambda e: '{"train": []}', 1, "not a fold of the format"),
        (lambda e: "words", 1, "not valid JSON"),
        (lambda e: None, 2, "does not exist"),
    ],
    ids=["strangers", "empty side", "changed", "no fold", "no JSON", "no file"],
)
def test_what_is_wrong_with_a_fold_is_one_line(
    tiny_bundle: Path, exams: Path, tmp_path: Path, command: str, content: Callable[[Path], str | None], code: int, words: str
) -> None:
    file, text = tmp_path / "fold.json", content(exams)
    if text is not None:
        file.write_text(text)
    part = ("--fold", file, "--side", "test")
    if command == "segment":
        result = segment(tiny_bundle, tmp_path / "out", exams, *part)
    else:
        result = run("evaluate", tmp_path, "--truth", exams, *part)
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.stderr
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_fold_and_side_go_together_and_take_one_data_set(tiny_bundle: Path, exams: Path, tmp_path: Path) -> None:
    fold = exams / "fold.json"
    for part in (("--fold", fold), ("--side", "test")):
        for result in (
            segment(tiny_bundle, tmp_path / "out", exams, *part),
            run("evaluate", tmp_path, "--truth", exams, *part),
        ):
            assert (result.exit_code, result.stderr.count("\n"), "go together" in result.stderr) == (2, 1, True)
    assert segment(tiny_bundle, tmp_path / "out", exams, "--side", "best", "--fold", fold).exit_code == 2
    two = segment(tiny_bundle, tmp_path / "out", exams, exams / "images", "--side", "test", "--fold", fold)
    assert (two.exit_code, "expected one data set as INPUT, got 2" in two.stderr) == (2, True)
    bare = segment(tiny_bundle, tmp_path / "out", exams / "images", "--side", "test", "--fold", fold)
    assert (bare.exit_code, "its kind is not recognised" in bare.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
