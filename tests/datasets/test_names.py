"""One name for a dataset, however it is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mammoseg.datasets import dataset_name


def test_a_dataset_has_one_name_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cbis.ddsm_mass"
    folder.mkdir()
    (folder / "annotations.json").write_text("{}")
    monkeypatch.chdir(folder)
    specs = [
        f"coco:{folder}/annotations.json",
        f"coco:{folder}/annotations.json?category=mass",
        f"coco:{folder}",
        str(folder),
        f"{folder}/",
        "coco:.",
        "annotations.json",
        f"coco:{os.path.relpath(folder, folder)}/annotations.json",
        f"phantom:{folder}",
    ]
    assert {dataset_name(spec) for spec in specs} == {"cbis.ddsm_mass"}
    assert dataset_name("cdd_cesm:/data/cdd_cesm") == "cdd_cesm"
