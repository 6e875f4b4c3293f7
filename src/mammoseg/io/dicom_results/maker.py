"""Who made a result, and the identifiers that follow from it: nothing is drawn by chance, no clock is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mammoseg.types import Findings

NAME = "mammoseg"
NOTICE = "Research software, not for clinical use."


def derived_uid(*parts: str) -> str:
    """A UID that is a function of `parts`: a UUID (version 8, of their SHA-256) below the root 2.25 (PS3.5 B.2).

    Its first bit is set, so that every UID has 44 characters.

    >>> derived_uid("series", "1.2.3") == derived_uid("series", "1.2.3")
    True
    >>> len(derived_uid("a"))
    44
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    number = int.from_bytes(digest[:16], "big") | (1 << 127)
    number = number & ~(0xF << 76) | (8 << 76)
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return f"2.25.{number}"


IMPLEMENTATION_CLASS_UID = derived_uid(NAME, "DICOM writer")


def plain(text: str, length: int | None = None) -> str:
    """ASCII text on one line without the delimiter of values, cut to `length`: it reads the same in every character set."""
    line = " ".join(text.split()).encode("ascii", "replace").decode().replace("\\", "/")
    return line if length is None or len(line) <= length else line[: length - 3] + "..."


@dataclass(frozen=True)
class Maker:
    """The program and the bundle that made findings.

    version: of the package. bundle, bundle_sha256: the weights' name and hash. settings: those of the run.
    """

    version: str = "unknown"
    bundle: str = "unknown"
    bundle_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def algorithm_name(self) -> str:
        """For algorithm identification, at most 64 characters."""
        return plain(f"{NAME} mass detection and segmentation", 64)

    @property
    def algorithm_version(self) -> str:
        """Package, bundle and the beginning of its hash, at most 64 characters."""
        return plain(f"{self.version}, weights {self.bundle[:28]} {self.bundle_sha256[:12]}", 64)

    @property
    def algorithm_parameters(self) -> str:
        """Hash of the weights and all settings, as one line."""
        settings = json.dumps(self.settings, sort_keys=True, separators=(",", ":"))
        return plain(f"weights sha256 {self.bundle_sha256 or 'unknown'}; settings {settings}")

    @property
    def device_uid(self) -> str:
        """This version with these weights, as an observer."""
        return derived_uid("device", self.version, self.bundle_sha256)

    @property
    def serial_number(self) -> str:
        """The beginning of the weights' hash."""
        return self.bundle_sha256[:16] or "unknown"


def maker_of(findings: Findings) -> Maker:
    """The maker that the findings' provenance names."""
    package, bundle = findings.provenance.get("package", {}), findings.provenance.get("bundle", {})
    return Maker(
        str(package.get("version", "unknown")),
        str(bundle.get("name", "unknown")),
        str(bundle.get("sha256", "")),
        findings.provenance.get("settings", {}),
    )
