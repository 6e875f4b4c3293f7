"""What readers share in understanding a record: patient, laterality, spacing, and what was odd on the way."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from mammoseg.errors import DatasetError, DatasetSpecError
from mammoseg.types import Spacing


@dataclass
class Notes:
    """What was odd while reading; each kind is told once, with how often it came and one example."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, *examples: str) -> None:
        """One more of its kind."""
        self.found.setdefault(what, []).extend(examples)

    def lines(self) -> list[str]:
        """One line a kind, in the order they first came."""
        return [f"{what}: {len(which)}, such as {which[0]}" for what, which in self.found.items()]


def patient_of(file_name: str, pattern: str | None, where: str) -> tuple[str, dict[str, Any]]:
    """The patient of an image that names none, and the attribute that says how it was found."""
    if pattern is None:
        return file_name, {"patient_id_is": "assumed"}
    try:
        match = re.search(pattern, file_name)
    except re.error as error:
        raise DatasetSpecError(f"patient_pattern {pattern!r} is no regular expression: {error}") from error
    if match is None or not match.groups() or not match.group(1):
        raise DatasetError(
            f"{where}: patient_pattern {pattern!r} finds no group in {file_name!r}; it needs a group, such as '(P_\\d+)'"
        )
    return match.group(1), {"patient_id_is": "from the file name"}


def laterality_of(value: Any, where: str) -> str | None:
    """L, R or None from words such as "LEFT" or "R"; `where` names the record in the DatasetError."""
    if value in (None, ""):
        return None
    letter = str(value).strip().upper()[:1]
    if letter not in ("L", "R"):
        raise DatasetError(f"{where}: expected laterality L or R, got {value!r}")
    return letter


def spacing_of(value: Any, where: str) -> Spacing | None:
    """(row, column) spacing in mm from one number or two, or None; `where` names the record in the DatasetError."""
    if value is None:
        return None
    try:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        row, column = (float(v) for v in (values * 2 if len(values) == 1 else values))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: expected spacing_mm [row, column], got {value!r}") from error
    if not (0 < row < 10 and 0 < column < 10):
        raise DatasetError(f"{where}: expected spacing_mm in millimetres between 0 and 10, got {value!r}")
    return row, column
