"""The pages a newcomer reads: links that lead somewhere, nothing left to fill in, weights that are really there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mammoseg.bundle import default_bundle, graph_file, open_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/cases/overview.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)")
PLACEHOLDER = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*_(?:TABLE|HERE|PLACEHOLDER)\b|\b(?:TODO|TBD|FIXME|XXX)\b")


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", _prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_what_is_there(page: Path) -> None:
    dead = []
    for link in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target.is_relative_to(REPOSITORY)
        if not inside or not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert PLACEHOLDER.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", ["RESULTS_TABLE", "see FIGURES_HERE", "TODO later"])
def test_placeholders_are_recognised(line: str) -> None:
    assert PLACEHOLDER.search(line)


def test_the_readmes_pictures_are_pictures() -> None:
    pictures = [n for n in LINK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8")) if n.endswith(".png")]
    assert len(pictures) >= 2
    for name in pictures:
        assert (REPOSITORY / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_installed_weights_are_complete_and_small() -> None:
    bundle = open_bundle(default_bundle())
    assert bundle.directory.is_relative_to(REPOSITORY / "src")
    sizes = {f.name: f.stat().st_size for f in bundle.directory.iterdir() if f.suffix in (".onnx", ".safetensors")}
    in_int8 = {graph_file(bundle.directory, n, int8=True).name for n in bundle.int8_networks}
    assert set(sizes) == {f"{n}.{e}" for n in ("detector", "segmenter") for e in ("onnx", "safetensors")} | in_int8
    assert all(sizes[name] < 200e3 for name in in_int8)
    assert sum(sizes.values()) <= 100e6
    assert max(sizes.values()) <= 50e6
    assert len(bundle.training["image_sha256"]) > 0
    assert "Not a medical device" in bundle.card


def test_adr_2_says_how_weights_are_stored() -> None:
    """Two scales for 64 input channels: a scale for each output channel and group of 32 input channels."""
    import numpy as np

    from mammoseg.bundle import QUANTISE_FROM, quantise

    assert quantise(np.ones((8, 64, 3, 3), dtype=np.float32))[1].shape == (8, 2)
    page = (REPOSITORY / "docs/adr/0002-bundle-holds-graph-and-weights-apart.md").read_text(encoding="utf-8")
    assert "a scale for each output channel and group of 32 input channels" in page
    assert QUANTISE_FROM == 1_000_000
    assert "only tensors of a million values and more" in page


def test_ci_looks_for_the_demos_results_where_the_demo_writes_them() -> None:
    assert "demo-output/results/findings.csv" in (REPOSITORY / ".ci/run").read_text(encoding="utf-8")


def test_make_help_names_every_target() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = re.findall(r"^\.PHONY:(.*)$", text, flags=re.MULTILINE)
    targets = set(" ".join(phony).split())
    said = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in said.splitlines() if line.startswith("make ")} == targets


def test_a_python_that_is_too_old_is_named_at_once(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copy(REPOSITORY / "constraints.txt", tmp_path)
    old = tmp_path / "oldpython"
    old.write_text('#!/bin/sh\ncase "$*" in *version_info*) exit 1;; --version) echo "Python 3.9.2";; *) exit 9;; esac\n')
    old.chmod(0o755)
    for target in ("demo", "test"):
        run = subprocess.run(["make", target, f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode != 0
        assert "needs Python 3.11 or newer" in run.stderr
        assert "Python 3.9.2" in run.stderr
        assert "make PYTHON=" in run.stderr
    assert not (tmp_path / ".venv").exists()
