"""Schemathesis on the running service: what the OpenAPI document says holds, whatever is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .archive import Archive
from .conftest import TOKEN, Running, breast, mammogram_dicom, save

# That the bytes of a file must be an image is nothing that a schema can say: 422 may answer an upload that fits it. The other
# statuses are the tool's own list.
SETTINGS = """
[[operations]]
include-name = "POST /api/v1/uploads"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]
"""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("examples", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_schemathesis_finds_nothing(serve: Callable[..., Running], tiny_bundle: Path, tmp_path: Path, examples: int) -> None:
    """All checks: statuses, types, schemas, refusal of what is wrong, the token, sequences of requests."""
    schemathesis = shutil.which("schemathesis", path=Path(sys.executable).parent)
    assert schemathesis is not None, "schemathesis is one of the packages of mammoseg[dev]"
    archive = Archive()
    save(mammogram_dicom(breast(12), 12), tmp_path / "images" / "a.dcm")
    running = serve(tmp_path / "images", "--weights", tiny_bundle, "--dicomweb", archive.url, token=TOKEN)
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    command = [schemathesis, "--config-file", tmp_path / "schemathesis.toml", "run", f"{running.url}/api/v1/openapi.json"]
    options = [
        "--checks=all",
        f"--max-examples={examples}",
        "--seed=1",
        "--request-timeout=120",
        "--warnings=off",
        "--no-color",
    ]
    with_token = ["-H", f"Authorization: Bearer {TOKEN}"]
    done = subprocess.run([*command, *options, *with_token], capture_output=True, text=True, cwd=tmp_path)
    archive.server.shutdown()
    archive.server.server_close()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: 18" in done.stdout
    assert running.client().get("/info").status_code == 200
    assert " ended in " not in running.log.read_text()
