"""From findings of held-out images to a bundle whose scores are probabilities and that knows its operating points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mammoseg.apps.cli import cli
from mammoseg.bundle import open_bundle
from mammoseg.config import to_dict
from mammoseg.fusion import FusionConfig
from mammoseg.io.findings_json import write_findings
from mammoseg.pipeline import settings_of
from mammoseg.scores import CalibrationConfig
from mammoseg.types import Detections, Findings, ImageInfo

SIZE = (64, 48)


def _held_out(folder: Path, fusion: dict[str, Any] | None = None, n: int = 80) -> Path:
    """Images with a mass each and findings of raw scores; the truth as COCO. Returns the folder of the findings."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    settings = {"settings": {"detection": {"score_min": 0.004}, "fusion": fusion or to_dict(FusionConfig(method="wbf"))}}
    provenance = {"bundle": {"name": "b", "sha256": "0" * 64}, **settings}
    for k in range(n):
        name = f"{k:02d}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 255, SIZE, dtype=np.uint8))
        images.append({"id": k, "file_name": f"images/{name}", "height": 64, "width": 48, "patient_id": f"P{k // 2}"})
        annotations.append({"id": k, "image_id": k, "category_id": 1, "bbox": [8, 8, 10, 10]})
        boxes = np.array([[8, 8, 18, 18], [28, 30, 38, 40], [2, 50, 10, 60]], dtype=np.float64)
        scores = np.array([rng.uniform(0.1, 0.6), rng.uniform(0.01, 0.4), rng.uniform(0.005, 0.1)])
        found = Detections(boxes, scores, SIZE).best_first()
        done = Findings(ImageInfo(f"images/{name}", *SIZE), "processed", None, (), found, provenance)
        write_findings(folder / "out" / f"{k:02d}" / "findings.json", done)
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "mass"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    folders = [{"folder": f"{k:02d}"} for k in range(n)]
    (folder / "out" / "run.json").write_text(json.dumps({"images": folders, "trained_on_patients": [], "state": "complete"}))
    return folder / "out"


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_calibrated_bundle_from_the_command_line(
    tmp_path: Path, tiny_bundle: Path, model_directories: tuple[Path, Path], small_exams: Path
) -> None:
    findings = _held_out(tmp_path / "data")
    arguments = ["bundle", "calibrate", findings, "--truth", tmp_path / "data", "--out", tmp_path / "fit.json"]
    done = _run(*arguments)
    assert done.exit_code == 0, done.output
    assert "80 images with 80 masses" in done.output
    assert "cross-fitted: ECE 0." in done.output
    assert _run(*arguments).exit_code == 2  # not over an earlier file
    fitted = json.loads((tmp_path / "fit.json").read_text())
    assert fitted["measured"]["raw"]["ece"] > fitted["measured"]["cross_fitted"]["ece"]
    assert fitted["measured"]["bundle"] == {"name": "b", "sha256": "0" * 64}
    assert fitted["pipeline"]["detection"] == {"score_min": 0.004}  # whatever the boxes' scores came from goes along
    points = {p["fpi"]: p["score_min"] for p in fitted["pipeline"]["operating_points"]}
    assert points[0.1] > points[0.2] > points[0.5]

    detector, segmenter = model_directories
    made = _run(
        *("bundle", "make", "--detector", detector, "--segmenter", segmenter, "--out", tmp_path / "bundle"),
        *("--calibration", tmp_path / "fit.json", "--set", "fusion.score_min=0.05", "--force"),
    )
    assert made.exit_code == 0, made.output
    bundle = open_bundle(tmp_path / "bundle")
    settings = settings_of(bundle)
    assert settings.fusion.calibration == CalibrationConfig(**fitted["pipeline"]["fusion"]["calibration"])
    assert (settings.fusion.method, settings.fusion.lesion_score_min) == ("wbf", points[0.2])
    assert "ece" in json.dumps(bundle.metrics["calibration"])
    assert "0.2 (score" in _run("info", "--weights", tmp_path / "bundle").output

    image = next(iter(sorted(small_exams.iterdir())))
    shown = {}
    for name, extra in {"default": [], "low": ["--operating-point", 0.5], "raw": _RAW, "none": ["--min-score", 0]}.items():
        out = tmp_path / name
        done = _run("segment", image, "--out", out, "--weights", tmp_path / "bundle", "--workers", 0, *extra)
        assert done.exit_code == 0, done.output
        shown[name] = json.loads(next(out.glob("*/findings.json")).read_text())
    assert shown["low"]["provenance"]["settings"]["fusion"]["lesion_score_min"] == points[0.5]
    raw = np.array([c["score"] for c in shown["raw"]["candidates"]])
    ours = np.array([c["score"] for c in shown["none"]["candidates"]])
    expected = settings.fusion.calibration.apply(raw)
    n = min(len(ours), len(raw))
    assert n > 3
    np.testing.assert_allclose(ours[:n], expected[:n], atol=1e-4)  # scores are written with few digits
    refused = _run("segment", image, "--out", tmp_path / "x", "--weights", tmp_path / "bundle", "--operating-point", 0.3)
    assert refused.exit_code == 2
    assert "0.1, 0.2, 0.5" in refused.output
    both = _run("segment", image, "--out", tmp_path / "x", "--operating-point", 0.2, "--min-score", 0.1)
    assert "exclude each other" in both.output


_RAW = ["--set", "fusion.calibration.slope=1", "--set", "fusion.calibration.offset=0", "--min-score", 0]


@pytest.mark.parametrize(
    ("fusion", "words"),
    [({"calibration": {"slope": 2.0, "offset": 0.0}}, "calibrated already"), ({"method": "msf"}, "one setting")],
)
def test_findings_that_cannot_be_calibrated_are_refused(tmp_path: Path, fusion: dict[str, Any], words: str) -> None:
    changed = to_dict(FusionConfig(method="wbf")) | fusion
    findings = _held_out(tmp_path / "data", changed)
    if words == "one setting":
        _held_out(tmp_path / "more", n=1)
        (tmp_path / "more/out/00/findings.json").replace(findings / "00/findings.json")
    done = _run("bundle", "calibrate", findings, "--truth", tmp_path / "data", "--out", tmp_path / "fit.json")
    assert done.exit_code == 1, done.output
    assert words in done.output
    assert not (tmp_path / "fit.json").exists()
