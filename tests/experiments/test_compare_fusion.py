"""Ways of fusing scales: figures equal those of the evaluation, gains of a case worked out by hand, boxes kept between runs."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mammoseg.datasets import read_dataset
from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.phantom_files import write_exams
from mammoseg.datasets.splits import patient_holdout, save_fold
from mammoseg.detection.metrics import ap50_and_sensitivity
from mammoseg.experiments import compare_fusion as module
from mammoseg.experiments.compare_fusion import FIGURES, FPI, compare, detect_all, table, ways
from mammoseg.pipeline import load
from mammoseg.types import Detections

SIZES = [(64, 32), (96, 64), (128, 64)]


def _found(*boxes: tuple[float, float]) -> Detections:
    """Boxes of 10 × 10 px at x = y = the first number, with the second as score."""
    at = np.array([[x, x, x + 10, x + 10] for x, _ in boxes], dtype=np.float64).reshape(-1, 4)
    return Detections(at, np.array([s for _, s in boxes], dtype=np.float64), (100, 100))


def test_a_case_by_hand() -> None:
    """Two images, a mass at 20 each. One scale finds both below a false positive, the others one each and no false one."""
    truth = [np.array([[20.0, 20, 30, 30]])] * 2
    found = [
        [_found((20, 0.5), (60, 0.9)), _found((20, 0.8)), _found()],
        [_found((20, 0.4)), _found(), _found((20, 0.7))],
    ]
    rows = {r.way.name: r for r in compare(found, truth, ["a", "b"], SIZES, n=50)}
    assert len(rows) == len(ways(SIZES))
    first = rows["single 32x64"]
    assert first.figures[0].value == pytest.approx(2 / 3)  # envelope: precision 2/3 up to both
    assert rows["single 64x96"].figures[0].value == rows["single 64x128"].figures[0].value == 0.5
    fused = rows["WBF, IoU 0.55"]
    # masses: (0.5 + 0.8) / 2 · 2/3 and (0.4 + 0.7) / 2 · 2/3; the false box: 0.9 / 3
    assert fused.figures[0].value == 1.0
    assert fused.gains[0].value == pytest.approx(1 / 3)
    assert first.gains[0] == type(first.gains[0])(0.0, 0.0, 0.0)
    line = next(r for r in csv.DictReader(io.StringIO(table(list(rows.values())))) if r["way"] == "WBF, IoU 0.55")
    assert float(line["ap50"]) == 1.0
    assert float(line["ap50_gain"]) == pytest.approx(1 / 3, abs=1e-4)


def test_a_single_scale_has_the_figures_of_trainings_own_validation() -> None:
    rng = np.random.default_rng(4)
    truth, found = [], []
    for _ in range(40):
        boxes = rng.uniform(0, 60, (rng.integers(0, 3), 2))
        truth.append(np.concatenate([boxes, boxes + rng.uniform(8, 30, boxes.shape)], axis=1))
        near = truth[-1] + rng.normal(0, 2, truth[-1].shape)
        far = rng.uniform(0, 60, (4, 2))
        every = np.concatenate([near, np.concatenate([far, far + 12], axis=1)])
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        found.append([Detections(every, rng.uniform(0.01, 1, len(every)), (100, 100)).best_first()])
    (row,) = [r for r in compare(found, truth, [str(k) for k in range(40)], SIZES[:1], n=10) if r.way.name == "single 32x64"]
    from mammoseg.fusion import suppress

    ap, rates = ap50_and_sensitivity([suppress(f[0], 0.45) for f in found], truth, FPI)
    assert [v.value for v in row.figures] == pytest.approx([ap, *rates])
    assert len(row.figures) == len(FIGURES)
    assert all(v.low <= v.value + 0.2 and v.high >= v.value - 0.2 for v in row.figures if v.low is not None)


def test_boxes_are_kept_and_a_second_run_computes_none(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_exams(tmp_path / "data", 2, seed=1, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    spec = f"phantom:{tmp_path / 'data'}"
    save_fold(tmp_path / "fold.json", patient_holdout(read_dataset(spec), 0.5, 0))
    arguments = ["--weights", str(tiny_bundle), "--data", spec, "--fold", str(tmp_path / "fold.json"), "--out", str(tmp_path)]
    first = CliRunner().invoke(module.main, arguments)
    assert first.exit_code == 0, first.output
    made = (tmp_path / "fusion.csv").read_bytes()
    (tmp_path / "fusion.csv").unlink()
    monkeypatch.setattr(module, "load_mammogram", None)
    again = CliRunner().invoke(module.main, arguments)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "fusion.csv").read_bytes() == made
    # Other scales are another question: the boxes kept do not answer it.
    refused = CliRunner().invoke(module.main, [*arguments, "--scales", "64x128"])
    assert "is of another bundle or other scales" in str(refused.exception)
    monkeypatch.undo()
    all_of_it = ["--weights", str(tiny_bundle), "--data", spec, "--out", str(tmp_path / "one"), "--scales", "64x128"]
    assert CliRunner().invoke(module.main, all_of_it).exit_code == 0
    ways_run = [row["way"] for row in csv.DictReader((tmp_path / "one" / "fusion.csv").open())]
    assert [w for w in ways_run if w.startswith("single")] == ["single 64x128"]


def test_the_mirrored_image_is_run_too_and_its_boxes_lie_in_the_image(tmp_path: Path, tiny_bundle: Path) -> None:
    """An image and its mirror image, as two files: what the one gives mirrored the other gives as it is, and the ways grow."""
    write_exams(tmp_path / "data", 1, seed=1, format="png", config=PhantomConfig(size=(208, 161)))
    items = read_dataset(f"phantom:{tmp_path / 'data'}")[:1]
    pixels = cv2.imread(items[0].path, cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / "mirror.png"), pixels[:, ::-1])
    other = replace(items[0], path=str(tmp_path / "mirror.png"), image_id="mirror")
    pipeline = load(tiny_bundle)
    here, there = detect_all(pipeline, [items[0], other], tmp_path / "kept.npz", mirrored=True)
    n = len(pipeline.detector.spec.scales)
    assert len(here) == len(there) == 2 * n
    assert sum(len(d.scores) for d in here[n:]) > 0
    for a, b in zip(here[n:], there[:n], strict=True):
        mirrored = np.column_stack([161 - b.boxes[:, 2], b.boxes[:, 1], 161 - b.boxes[:, 0], b.boxes[:, 3]])
        np.testing.assert_allclose(a.boxes, mirrored, atol=1e-3)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    names = [w.name for w in ways(pipeline.detector.spec.scales, mirrored=True)]
    assert len(names) == len(ways(pipeline.detector.spec.scales)) + n + 2
    truth = [np.array([m.box for m in items[0].annotation.masses]).reshape(-1, 4)]
    assert [r.way.name for r in compare([here], truth, ["a"], pipeline.detector.spec.scales, n=2)] == names
