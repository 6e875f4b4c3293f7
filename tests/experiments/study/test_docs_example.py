"""docs/study.md: its example network, as it stands on the page, takes one file and one line to be compared in the tables."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from mammoseg import segmentation
from mammoseg.apps.cli import cli
from mammoseg.config import load_toml, to_dict
from mammoseg.experiments.study.config import StudyConfig
from mammoseg.experiments.study.tables import read_rows

PAGE = (Path(__file__).parents[3] / "docs/study.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)


def test_the_settings_on_the_page_are_settings(tmp_path):
    first, _ = blocks("toml")
    (tmp_path / "a.toml").write_text(first)
    config = load_toml(StudyConfig, tmp_path / "a.toml", under=to_dict(StudyConfig()))
    assert (config.pretrained, config.splits.count) == ("installed", 2)
    assert config.segmenter_of("unetpp").backbone_weights == "vgg19.safetensors"


def test_a_further_network_takes_one_file_and_one_line(tmp_path, data_sets, monkeypatch):
    file, line = blocks("python")
    name, target = re.search(r'"(\w+)": "([\w.:]+)"', line).groups()
    module = target.split(":")[0]
    assert file.startswith(f"# src/{module.replace('.', '/')}.py")
    (tmp_path / "plain.py").write_text(file)
    spec = importlib.util.spec_from_file_location(module, tmp_path / "plain.py")
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, loaded)
    spec.loader.exec_module(loaded)
    monkeypatch.setitem(segmentation.NETWORKS, name, target)

    settings = tomllib.loads(blocks("toml")[1])
    sets = {"main": name, "networks": settings["networks"], "mended.splits": 0, "mended.networks": [name], "splits.count": 1,
            "segmenter.training.steps": 4, "one_stage.training.steps": 2, "pretrain.training.steps": 3,
            "finetune.training.steps": 2}  # fmt: skip
    arguments = [
        "reproduce",
        "--preset",
        "smoke",
        "--out",
        str(tmp_path / "out"),
        *data_sets,
        "--only",
        "table4",
        "--only",
        "table5",
    ]
    for key, value in sets.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert [r["method"] for r in read_rows(tmp_path / "out/tables/table4.csv")] == [name, "ellipse in the true box (baseline)"]
    assert [(r["method"], r["setup"]) for r in read_rows(tmp_path / "out/tables/table5.csv")] == [
        (name, s) for s in ("one-stage", "two-stage w/o MSF", "two-stage with MSF")
    ]
