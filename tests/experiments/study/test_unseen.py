"""A study refuses to start from a detector that was trained on what it would be tested on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mammoseg.apps.cli import cli
from mammoseg.bundle import default_bundle, hash_file, hash_patient
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.experiments.study import unseen

pytest.importorskip("torch")


def detector(folder: Path, **record: list[str]) -> Path:
    """The installed detector as a model directory that says it was trained on `record`."""
    from mammoseg.experiments.start import open_model
    from mammoseg.training.checkpoint import save_model

    whole = open_model(default_bundle(), "detector")
    return save_model(
        folder, "detector", whole.state, whole.config, whole.spec, {"image_sha256": [], "patient_sha256": [], **record}
    )


def reproduce(data: str, model: str, out: Path, *arguments: str):
    words = [
        "reproduce",
        "--preset",
        "smoke",
        "--inbreast",
        data,
        "--set",
        f"pretrained={model}",
        "--out",
        str(out),
        *arguments,
    ]
    return CliRunner().invoke(cli, words)


def test_one_image_or_one_patient_is_enough(tmp_path, data_sets):
    data = data_sets[1]
    item = read_dataset(f"inbreast:{data}?images=all")[2]
    by_image = detector(tmp_path / "by_image", image_sha256=[hash_file(Path(item.path))])
    by_patient = detector(tmp_path / "by_patient", patient_sha256=[hash_patient(dataset_name(data), item.patient_id)])
    views = sum(other.patient_id == item.patient_id for other in read_dataset(f"inbreast:{data}?images=all"))
    assert views > 1
    for model, count in ((by_image, 1), (by_patient, views)):
        result = reproduce(data, str(model), tmp_path / "out", "--only", "detector")
        assert result.exit_code != 0
        assert re.search(rf"was trained on {count} of the 28 images", result.output)
        assert "allow_seen=true" in result.output
        assert "Traceback" not in result.output
        assert not (tmp_path / "out" / "models").exists()  # refused before anything is trained


def test_allowed_it_is_told(tmp_path, data_sets):
    item = read_dataset(f"inbreast:{data_sets[1]}?images=all")[2]
    model = detector(tmp_path / "model", image_sha256=[hash_file(Path(item.path))])
    out = tmp_path / "out"
    result = reproduce(data_sets[1], str(model), out, "--set", "allow_seen=true", "--only", "unseen", "--only", "split")
    assert result.exit_code == 0, result.output
    assert json.loads((out / unseen.FILE).read_text())["seen"] == [item.image_id]
    assert "trained on 1 of the" in (out / "report.html").read_text()


def test_what_it_has_not_seen_passes_without_a_word(tmp_path, data_sets):
    out = tmp_path / "out"
    result = reproduce(data_sets[1], "installed", out, "--only", "unseen")
    assert result.exit_code == 0, result.output
    assert json.loads((out / unseen.FILE).read_text())["seen"] == []
    assert unseen.warning(out / unseen.FILE) == ""
