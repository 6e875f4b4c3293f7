"""The viewer's files: what the wheel serves, and what they are made of. Needs no browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STATIC = REPOSITORY / "src" / "mammoseg" / "apps" / "server" / "static"
VIEWER = REPOSITORY / "viewer"


def test_the_page_keeps_to_the_content_security_policy() -> None:
    """Scripts and styles from files of its own alone; nothing from elsewhere; no code made of text."""
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    assert "Research use only" in page
    for script in (STATIC / "assets").glob("*.js"):
        assert not re.search(r"\bnew Function\(|[^.\w]eval\(", script.read_text())


def test_every_file_that_the_page_names_is_there() -> None:
    page = (STATIC / "index.html").read_text()
    named = re.findall(r"(?:src|href)=\"\./([^\"]+)\"", page)
    assert len(named) >= 3
    assert all((STATIC / name).is_file() for name in named)


def test_the_licences_of_what_is_bundled_are_served_with_it() -> None:
    notices = (STATIC / "licenses.md").read_text()
    for name in json.loads((VIEWER / "package.json").read_text())["dependencies"]:
        assert name in notices
    assert "GPL" not in notices


def test_versions_are_exact_and_no_registry_is_named() -> None:
    package = json.loads((VIEWER / "package.json").read_text())
    for version in (package["dependencies"] | package["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    lock = json.loads((VIEWER / "package-lock.json").read_text())
    for name, entry in lock["packages"].items():
        assert "resolved" not in entry, name
        assert name == "" or "integrity" in entry or entry.get("inBundle"), name


def test_sources_are_small() -> None:
    for source in (VIEWER / "src").glob("*.ts"):
        assert len(source.read_text().splitlines()) <= 300, source.name
