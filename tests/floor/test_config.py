"""Configuration: differences over defaults, errors that name the key and the nearest match."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mammoseg import config
from mammoseg.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    score_min: float = 0.3
    scales: tuple[tuple[int, int], ...] = ((320, 160), (512, 256))
    method: Literal["msf", "nms"] = "msf"
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    detection: Inner = field(default_factory=Inner)
    steps: int = 10
    fast: bool = False
    extra: dict[str, float] = field(default_factory=dict)


def test_round_trip() -> None:
    value = Outer(Inner(0.1, ((1, 2),), "nms", "x"), 3, True, {"a": 1.5})
    assert config.from_dict(Outer, config.to_dict(value)) == value


def test_toml_holds_differences_and_sets_come_on_top(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("steps = 7\n[detection]\nscore_min = 0.2\n")
    got = config.load_toml(Outer, path, ["detection.score_min=0.1", "detection.name=breast", "extra.b=2"])
    assert got == Outer(Inner(score_min=0.1, name="breast"), steps=7, extra={"b": 2.0})


@dataclass(frozen=True)
class Special:
    detection: Inner = field(default_factory=lambda: Inner(score_min=0.9, name="special"))


def test_a_group_stands_over_the_enclosing_default(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[detection]\nmethod = "nms"\n')
    assert config.load_toml(Special, path).detection == Inner(score_min=0.9, name="special", method="nms")
    assert config.from_dict(Inner, {"method": "nms"}, base=Inner(0.7)) == Inner(0.7, method="nms")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("detection.score_mni=0.1", r"unknown setting 'detection\.score_mni'; did you mean 'detection\.score_min'\?"),
        ("detecton.score_min=0.1", r"unknown setting 'detecton'; did you mean 'detection'\?"),
        ("steps=1.5", "steps: expected int, got 1.5"),
        ("steps=true", "steps: expected int, got True"),
        ("fast=1", "fast: expected bool, got 1"),
        ("detection.method=best", r"detection\.method: expected one of 'msf', 'nms', got 'best'"),
        ("detection.scales=3", r"detection\.scales: expected a list, got 3"),
        ("detection.scales=[[1,2,3]]", r"detection\.scales\[0\]: expected 2 values, got 3"),
        ("steps.x=1", "'steps' is a value, not a group of settings"),
        ("detection=1", "detection: expected a group of settings, got 1"),
        ("steps", "expected --set key=value, got 'steps'"),
    ],
)
def test_each_mistake_is_named(sets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.with_sets(Outer(), [sets])


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config file not found"):
        config.load_toml(Outer, tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.load_toml(Outer, tmp_path / "bad.toml")


def test_a_group_given_whole_keeps_what_it_does_not_name() -> None:
    """Not the defaults of its class: a bundle's or a recipe's values would be lost without a word."""
    base = config.with_sets(Outer(), ["detection.score_min=0.9"])
    changed = config.with_sets(base, ['detection={"method": "nms"}'])
    assert (changed.detection.score_min, changed.detection.method) == (0.9, "nms")
