"""The pipeline from Python."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import mammoseg
from mammoseg.errors import BundleError, ConfigError, NotAMammogramError, UsageError
from mammoseg.fusion import fuse
from mammoseg.geometry import box_iou
from mammoseg.io.findings_json import findings_to_json
from mammoseg.io.load import load_mammogram


def test_three_lines(tiny_bundle: Path, small_exams: Path) -> None:
    image = sorted(small_exams.iterdir())[0]
    pipeline = mammoseg.load(tiny_bundle)
    findings = pipeline.analyze_file(image)
    assert findings.status == "processed"
    assert [lesion.id for lesion in findings.lesions] == list(range(1, len(findings.lesions) + 1))
    assert findings.lesions
    assert findings.image.source == image.name
    again = pipeline.analyze_file(image)
    assert findings_to_json(again) == findings_to_json(findings)


def test_a_detection_merged_into_a_lesion_does_not_come_back_as_a_candidate(tiny_bundle: Path, small_exams: Path) -> None:
    """Each box of the fused set became a lesion or part of one: no candidate beyond the lesions lies where one of them lay."""
    pipeline = mammoseg.load(tiny_bundle, ["fusion.method=nms", "fusion.nms_iou=0.7", "fusion.score_min=0.05"])
    merged = others = 0
    for image in sorted(small_exams.iterdir())[:2]:
        mammogram = load_mammogram(image)
        found = fuse(pipeline.detector.detect(mammogram, None, 0.005, 0.7), pipeline.config.fusion)
        findings = pipeline.analyze(mammogram)
        boxes = [lesion.box for lesion in findings.lesions]
        assert findings.candidates is not None
        assert {tuple(b) for b in boxes} <= {tuple(b) for b in found.boxes.tolist()}
        assert [tuple(b) for b in findings.candidates.boxes.tolist()][: len(boxes)] == boxes[:100]
        rest = findings.candidates.boxes[len(boxes) :]
        assert (box_iou(rest, found.boxes) < pipeline.config.fusion.same_iou).all()
        merged += len(found) - len(boxes)
        others += len(rest)
    assert merged > 0, "nothing was merged"
    assert others > 0


def test_an_array_gives_what_its_file_gives(tiny_bundle: Path, small_exams: Path) -> None:
    image = sorted(small_exams.iterdir())[1]
    pipeline = mammoseg.load(tiny_bundle)
    from_file = pipeline.analyze_file(image)
    from_array = pipeline.analyze_array(cv2.imread(str(image), cv2.IMREAD_UNCHANGED), spacing_mm=(0.5, 0.5))
    assert [x.box for x in from_array.lesions] == [x.box for x in from_file.lesions]
    assert all(lesion.area_mm2 == pytest.approx(lesion.area_px * 0.25) for lesion in from_array.lesions)


def test_a_bad_file_is_findings_with_a_reason_and_a_missing_one_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    pipeline = mammoseg.load(tiny_bundle)
    (tmp_path / "empty.png").write_bytes(b"")
    failed = pipeline.analyze_file(tmp_path / "empty.png")
    assert (failed.status, failed.lesions, failed.candidates) == ("failed", (), None)
    assert failed.reason
    assert failed.image.file_sha256
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((400, 300), np.uint8))
    rejected = pipeline.analyze_file(tmp_path / "black.png")
    assert (rejected.status, rejected.image.height, rejected.image.width) == ("rejected", 400, 300)
    with pytest.raises(NotAMammogramError):
        pipeline.analyze_array(np.zeros((400, 300), np.uint8))
    with pytest.raises(UsageError, match="expected a file"):
        pipeline.analyze_file(tmp_path / "nothing.png")


def test_provenance_tells_what_made_the_findings(tiny_bundle: Path) -> None:
    plain = mammoseg.load(tiny_bundle)
    changed = mammoseg.load(tiny_bundle, ["fusion.lam=0.5", "runtime.threads=1", "detection.scales=[[128, 64]]"])
    assert plain.provenance["overrides"] == {}
    assert plain.provenance["settings"]["fusion"]["score_min"] == 0.05  # of the bundle
    assert changed.provenance["overrides"] == {"fusion.lam": 0.5, "detection.scales": [[128, 64]]}
    assert plain.provenance["bundle"] == changed.provenance["bundle"]
    assert plain.provenance["runtime"]["name"] == "openvino"
    assert str(tiny_bundle.parent) not in json.dumps(plain.provenance)


def test_runtimes_find_the_same(tiny_bundle: Path, small_exams: Path) -> None:
    pytest.importorskip("torch")
    image = sorted(small_exams.iterdir())[0]
    sets = ["runtime.threads=1", "runtime.precision=f32"]
    first, second = (mammoseg.load(tiny_bundle, [f"runtime.kind={k}", *sets]) for k in ("openvino", "torch"))
    a, b = first.analyze_file(image), second.analyze_file(image)
    assert len(a.lesions) == len(b.lesions) > 0
    for one, other in zip(a.lesions, b.lesions, strict=True):
        assert np.abs(np.subtract(one.box, other.box)).max() <= 0.05
        assert abs(one.score - other.score) <= 1e-3
    assert (first.provenance["runtime"]["name"], second.provenance["runtime"]["name"]) == ("openvino", "torch")


def test_wrong_settings_and_bundles_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'detection\.scales'"):
        mammoseg.load(tiny_bundle, ["detection.scale=[]"])
    with pytest.raises(ConfigError, match="multiples of 32"):
        mammoseg.load(tiny_bundle, ["detection.scales=[[100, 64]]"])
    with pytest.raises(ConfigError, match="at most 4096 px"):
        mammoseg.load(tiny_bundle, ["detection.scales=[[99999968, 32]]"])
    with pytest.raises(BundleError, match="no bundle at"):
        mammoseg.load(tmp_path / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        mammoseg.laod  # noqa: B018


@pytest.mark.parametrize("value", ["1.5", "-0.1", "NaN"])
def test_a_score_that_cannot_be_is_refused(tiny_bundle: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"score_min: expected a number from 0 to 1"):
        mammoseg.load(tiny_bundle, [f"detection.score_min={value}"])
    with pytest.raises(ConfigError, match=r"operating_points.*score_min in 0\.\.1"):
        mammoseg.load(tiny_bundle, [f'operating_points=[{{"fpi": 0.2, "score_min": {value}}}]'])


def test_what_was_fitted_to_one_way_of_fusing_is_not_used_for_another() -> None:
    from mammoseg.fusion import FusionConfig
    from mammoseg.pipeline import OperatingPoint, PipelineConfig, changed
    from mammoseg.scores import CalibrationConfig

    fitted = FusionConfig("wbf", lesion_score_min=0.4, calibration=CalibrationConfig(2.0, 0.1))
    bundle = PipelineConfig(fusion=fitted, operating_points=(OperatingPoint(0.2, 0.4),))
    assert changed(bundle, ["fusion.nms_iou=0.5"]).fusion.calibration == fitted.calibration
    other = changed(bundle, ["fusion.method=msf"])
    assert other.fusion == FusionConfig("msf")
    assert other.operating_points == ()
    assert changed(bundle, ["fusion.method=msf", "fusion.lesion_score_min=0.3"]).fusion.lesion_score_min == 0.3
