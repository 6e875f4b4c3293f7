"""Evaluation from saved findings: pairing, refusals, counts, case 13 of tests/cases/overview.md, the report."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from fractions import Fraction as F

import cv2
import numpy as np
import pytest

from mammoseg.bundle import hash_patient
from mammoseg.errors import EvaluationError
from mammoseg.evaluation import EvaluationOptions, evaluate
from mammoseg.evaluation.evaluate import evaluate_command, evaluate_pairs
from mammoseg.evaluation.inputs import Pair, Pairs, load_findings, pair
from mammoseg.evaluation.report import html, worst_cases, write_report
from mammoseg.io.findings_json import write_findings
from mammoseg.types import Annotation, DatasetItem, Detections, Findings, ImageInfo, Lesion, TrueMass

SIZE = (64, 48)
FAST = EvaluationOptions(resamples=20)
SQUARE = np.ones((4, 4), dtype=bool)


def mass(x, y, side=4, mask=True):
    return TrueMass((x, y, x + side, y + side), np.ones((side, side), dtype=bool) if mask else None, (int(y), int(x)))


def lesion(number, x, y, score=0.9, side=4):
    box = (float(x), float(y), float(x + side), float(y + side))
    contour = np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], dtype=float)
    return Lesion(number, box, score, np.ones((side, side), dtype=bool), (y, x), contour)


def findings(source, lesions=(), extra=(), size=SIZE, given=False, **image):
    boxes = np.array([x.box for x in lesions] + [e[:4] for e in extra], dtype=float).reshape(-1, 4)
    scores = np.array([x.score for x in lesions] + [e[4] for e in extra], dtype=float)
    info = ImageInfo(source, *size, **image)
    bundle = {"bundle": {"name": "b1", "sha256": "0" * 64}} | ({"boxes_sha256": "1" * 64} if given else {})
    return Findings(info, "processed", None, tuple(lesions), Detections(boxes, scores, size).best_first(), bundle)


def item(name, masses=(), patient=None, path=None, **kwargs):
    return DatasetItem(name, str(path or f"/data/{name}"), patient or name, Annotation(name, SIZE, tuple(masses)), **kwargs)


def pairs_of(*couples):
    return Pairs(tuple(Pair(t, f) for t, f in couples))


CASE_13 = [
    (item("1.png", [mass(8, 8)]), findings("1.png", [lesion(1, 8, 8)])),
    (item("2.png", [mass(8, 8)]), findings("2.png")),
    (item("3.png", [mass(8, 8)]), findings("3.png", [lesion(1, 8, 8), lesion(2, 30, 30, 0.5)])),
    (item("4.png"), findings("4.png", [lesion(1, 20, 20, 0.4)])),
    (item("5.png"), findings("5.png")),
]


def test_13_dice_end_to_end():
    result = evaluate_pairs(pairs_of(*CASE_13), FAST)
    assert result["dice_matched"].value == 1
    assert result["dice_masses"].value == pytest.approx(float(F(2, 3)))
    assert result["dice_end_to_end"].value == pytest.approx(float(F(5, 9)))
    assert result["dice_pooled"].value == pytest.approx(float(F(4, 7)))
    assert [o.dice for o in result.outcomes] == [1, 0, pytest.approx(2 / 3), None, None]
    assert result["tpr_operating"].value == pytest.approx(float(F(2, 3)))
    assert result["fpi_operating"].value == pytest.approx(float(F(2, 5)))
    assert result["precision_operating"].value == 0.5
    assert result["ap_iou_0.5"].value == pytest.approx(float(F(2, 3)))
    assert result["tpr_centre_at_0.1_fpi"].value == pytest.approx(float(F(2, 3)))
    with pytest.raises(KeyError, match=r"ap_iou_0\.5"):
        result["ap"]


def test_counts_are_explicit_and_rejected_images_count_as_images_without_a_detection():
    bad = Findings(ImageInfo("6.png"), "rejected", "blank")
    worse = Findings(ImageInfo("7.png"), "failed", "truncated")
    couples = [*CASE_13, (item("6.png", [mass(8, 8, mask=False)], patient="1.png"), bad), (item("7.png"), worse)]
    result = evaluate_pairs(pairs_of(*couples), FAST)
    c = result.counts
    assert (c.n_images, c.n_images_with_mass, c.n_patients, c.n_truth, c.n_truth_with_mask) == (7, 4, 6, 4, 3)
    assert (c.n_processed, c.n_rejected, c.n_failed) == (5, 1, 1)
    assert (c.n_lesions, c.n_candidates) == (4, 4)
    assert result["tpr_operating"].value == 0.5
    assert result["fpi_operating"].value == pytest.approx(2 / 7)
    assert result["ap_iou_0.5"].value == 0.5
    assert result["dice_end_to_end"].value == pytest.approx(5 / 9)  # a mass known by its box alone has no Dice


def test_candidates_reach_below_the_operating_point():
    couple = (item("a", [mass(8, 8), mass(30, 30)]), findings("a", [lesion(1, 8, 8)], [(30, 30, 34, 34, 0.1)]))
    result = evaluate_pairs(pairs_of(couple), FAST)
    assert result["ap_iou_0.5"].value == 1
    assert result["tpr_operating"].value == 0.5
    assert result.outcomes[0].missed == [1]
    assert result.outcomes[0].best_score == (0.9, 0.1)


def test_distances_in_mm_only_where_spacing_is_known():
    couple = (item("a", [mass(8, 8)]), findings("a", [lesion(1, 9, 8)], spacing_mm=(0.1, 0.2)))
    result = evaluate_pairs(pairs_of(couple, CASE_13[0]), FAST)
    # Of the 12 border pixels of either, 4 are a column (0.2 mm) off and 2 a row (0.1 mm).
    assert result["assd_mm"].value == pytest.approx((4 * 0.2 + 2 * 0.1) / 12)
    assert next(f.n for f in result.figures if f.key == "assd_mm") == 1
    with pytest.raises(KeyError):
        evaluate_pairs(pairs_of(*CASE_13), FAST)["assd_mm"]


def test_true_crops_and_the_ellipse_beside_them():
    disc = np.hypot(*np.mgrid[-9.5:10, -9.5:10]) <= 10
    truth = item("a", [TrueMass((10.0, 20, 30, 40), disc, (20, 10)), mass(2, 2)])
    contour = np.array([[10.0, 20], [30, 20], [30, 40]])
    given = Lesion(1, (10.0, 20, 30, 40), 1.0, disc, (20, 10), contour)
    made = findings("a", [given])
    result = evaluate_pairs(pairs_of((truth, made)), FAST, pairs_of((truth, made)))
    square_ellipse = 2 * 12 / (12 + 16)  # of a 4×4 square the ellipse takes all but the corners
    assert result["dice_true_crops"].value == pytest.approx(0.5)  # the second mass has no lesion
    assert result["dice_ellipse"].value == pytest.approx((1 + square_ellipse) / 2)
    assert result["dice_gain_over_ellipse"].value == pytest.approx(0.5 - (1 + square_ellipse) / 2)


def test_detected_boxes_beside_true_ones_on_the_masses_found():
    truth = item("a", [mass(8, 8), mass(30, 30)])
    automatic, given = findings("a", [lesion(1, 9, 8)]), findings("a", [lesion(1, 8, 8), lesion(2, 30, 30)])
    result = evaluate_pairs(pairs_of((truth, automatic)), FAST, pairs_of((truth, given)))
    # One column of the 4×4 square off: 12 of 16 pixels in common. The second mass was not found, so it is in no comparison.
    assert result["dice_cost_of_detected_boxes"].value == pytest.approx(0.75 - 1)
    assert next(f.n for f in result.figures if f.key == "dice_cost_of_detected_boxes") == 1
    nothing = evaluate_pairs(pairs_of((truth, findings("a"))), FAST, pairs_of((truth, given)))
    assert "dice_cost_of_detected_boxes" not in {f.key for f in nothing.figures}


def test_no_mass_at_all_has_no_curve_but_its_false_positives():
    result = evaluate_pairs(pairs_of(*CASE_13[3:]), FAST)
    assert result["ap_iou_0.5"].value is None
    assert result["fpi_operating"].value == 0.5
    assert result.pr is None
    assert "no mass" in html(result)


@pytest.mark.parametrize(("seen", "patients"), [(True, frozenset()), (None, frozenset({hash_patient("cbis", "p7")}))])
def test_images_the_bundle_has_seen_are_refused(seen, patients):
    truth = [item("a", [mass(8, 8)], patient="p7"), item("b", [mass(8, 8)], patient="p8")]
    found = [findings("a", seen_in_training=seen), findings("b", seen_in_training=False)]
    pairs = pair(found, truth, patients, ["coco", "cbis"])
    with pytest.raises(EvaluationError, match=r"1 of 2 images.*'a'.*--allow-seen"):
        evaluate_pairs(pairs, FAST)
    result = evaluate_pairs(pairs, EvaluationOptions(resamples=0, allow_seen=True))
    assert result.counts.n_seen_in_training == 1
    assert "do not tell how it does on new patients" in html(result)


def test_a_patient_of_another_dataset_is_not_refused():
    pairs = pair([findings("a")], [item("a", patient="p7")], frozenset({hash_patient("other", "p7")}), ["cbis"])
    assert pairs.seen == ()


def test_missing_findings_are_an_error_unless_allowed():
    truth = [item("a", [mass(8, 8)]), item("b"), item("c")]
    pairs = pair([findings("a"), findings("z")], truth)
    with pytest.raises(EvaluationError, match=r"2 of 3 images.*--allow-missing"):
        evaluate_pairs(pairs, FAST)
    c = evaluate_pairs(pairs, EvaluationOptions(resamples=0, allow_missing=True)).counts
    assert (c.n_images, c.n_missing_findings, c.n_findings_without_truth) == (1, 2, 1)
    with pytest.raises(EvaluationError, match="none of the 3 images"):
        evaluate_pairs(pair([findings("z")], truth), EvaluationOptions(allow_missing=True))


def test_pairing_by_content_path_and_stem(tmp_path):
    for name, content in [("x/same.png", b"one"), ("y/same.png", b"two"), ("z.jpg", b"three")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    sha = hashlib.sha256(b"two").hexdigest()
    truth = [
        item("y/same.png", path=tmp_path / "y/same.png"),
        item("x/same.png", path=tmp_path / "x/same.png"),
        item("z", path=tmp_path / "z.jpg"),
    ]
    found = [findings("renamed.png", file_sha256=sha), findings("x/same.png"), findings("z.dcm")]
    assert [p.findings.image.source for p in pair(found, truth).pairs] == ["renamed.png", "x/same.png", "z.dcm"]
    with pytest.raises(EvaluationError, match="2 findings are named 'same'"):
        pair([findings("p/same.png"), findings("q/same.png")], truth[1:2])
    with pytest.raises(EvaluationError, match="fit two images"):
        pair([findings("same.dcm")], truth[:2])


def test_equal_files_may_share_findings(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"same")
    sha = hashlib.sha256(b"same").hexdigest()
    pairs = pair([findings("a.png", file_sha256=sha)], [item(n, path=tmp_path / n) for n in ("a.png", "b.png")])
    assert len(pairs.pairs) == 2


def test_a_truth_of_another_size_is_refused():
    other = DatasetItem("a", "/data/a", "p", Annotation("a", (128, 96)))
    with pytest.raises(EvaluationError, match=r"64×48.*128×96"):
        pair([findings("a")], [other])


def dataset(folder):
    """Two images with their COCO truth, and findings as the command line lays them out."""
    images, annotations = [], []
    for k, name in enumerate(("a.png", "b.png"), start=1):
        rng = np.random.default_rng(k)
        breast = np.hypot(*(np.mgrid[0:400, 0:300] / np.array([[[180]], [[220]]]) - np.array([[[1.1]], [[0]]]))) < 1
        tissue = cv2.GaussianBlur(rng.random((400, 300)), (0, 0), 5)
        picture = (breast * (90 + 500 * (tissue - 0.5))).clip(0, 255).astype(np.uint8)
        cv2.circle(picture, (60, 180), 30, 240, -1)
        (folder / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), picture)
        images.append({"id": k, "file_name": f"images/{name}", "height": 400, "width": 300, "patient_id": name})
        annotations.append({"id": k, "image_id": k, "category_id": 1, "bbox": [30, 150, 60, 60], "area": 3600, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "mass"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    out = folder / "out"
    for name, found in [("a", [lesion(1, 30, 150, 0.8, 60)]), ("b", [lesion(1, 130, 100, 0.7, 60)])]:
        made = findings(f"images/{name}.png", found, [(35.0, 155.0, 90.0, 210.0, 0.2)] if name == "b" else [], (400, 300))
        (out / name).mkdir(parents=True)
        write_findings(out / name / "findings.json", made)
    write_run(out)
    return out


def write_run(out, folders=("a", "b"), patients=(), **more):
    record = {"images": [{"source": f, "folder": f} for f in folders], "trained_on_patients": list(patients), **more}
    (out / "run.json").write_text(json.dumps(record))


def test_the_command_reads_findings_and_writes_json_and_a_page_that_needs_nothing_else(tmp_path):
    out = dataset(tmp_path)
    result = evaluate_command(
        out, f"coco:{tmp_path / 'annotations.json'}", tmp_path / "report", EvaluationOptions(resamples=50)
    )
    assert result["tpr_operating"].value == 0.5
    assert result["ap_iou_0.5"].value == pytest.approx(0.5 * 1 + 0.5 * F(2, 3))
    saved = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert saved["counts"]["n_truth"] == 2
    assert saved["figures"]["ap_iou_0.5"]["value"] == result["ap_iou_0.5"].value
    assert saved["curves"]["froc"]["tpr"] == [0.5, 0.5, 1.0]
    assert str(tmp_path) not in json.dumps(saved)
    page = (tmp_path / "report" / "evaluation.html").read_text()
    assert page.count("<svg") == 3  # precision-recall, FROC, reliability
    assert page.count("data:image/jpeg;base64,") == 2  # the missed mass and the false positive; boxes alone have no outlines
    assert not re.search(r"(src|href)=.?(http|file|/)", page)
    assert str(tmp_path) not in page
    before = page
    write_report(tmp_path / "report", result)
    assert (tmp_path / "report" / "evaluation.html").read_text() == before


def test_patients_in_run_json_are_refused(tmp_path):
    out = dataset(tmp_path)
    write_run(out, patients=[hash_patient(tmp_path.name, "b.png")])
    with pytest.raises(EvaluationError, match="1 of 2 images"):
        evaluate_command(out, str(tmp_path / "annotations.json"), None, FAST)
    evaluate_command(out, str(tmp_path / "annotations.json"), None, EvaluationOptions(resamples=0, allow_seen=True))
    (out / "run.json").write_text("[1]")
    with pytest.raises(EvaluationError, match=r"run\.json"):
        evaluate_command(out, str(tmp_path / "annotations.json"), None, FAST)


def test_without_the_record_of_the_run_nothing_is_taken_for_unseen(tmp_path):
    out, truth = dataset(tmp_path), str(tmp_path / "annotations.json")
    (out / "run.json").unlink()
    with pytest.raises(EvaluationError, match=r"no run\.json.*--allow-seen"):
        evaluate_command(out, truth, None, FAST)
    assert evaluate_command(out, truth, None, EvaluationOptions(resamples=0, allow_seen=True)).counts.n_images == 2
    (out / "run.json").write_text('{"images": []}')
    with pytest.raises(EvaluationError, match=r"run\.json.*trained_on_patients"):
        evaluate_command(out, truth, None, FAST)


def test_only_the_findings_of_the_finished_run_count(tmp_path):
    out = dataset(tmp_path)
    write_run(out, ["b"])  # a is left from an earlier run
    assert [f.image.source for f in load_findings(out)] == ["images/b.png"]
    write_run(out, state="running")
    with pytest.raises(EvaluationError, match="not finished"):
        load_findings(out)


def test_findings_on_true_boxes_need_not_hold_images_without_a_mass(tmp_path):
    truth = [item("a.png", [mass(8, 8)]), item("b.png")]
    for run, folders in (("out", ("a", "b")), ("crops", ("a",))):
        for name in folders:
            made = findings(f"{name}.png", [lesion(1, 8, 8)], given=run == "crops")
            write_findings(tmp_path / run / name / "findings.json", made)
        write_run(tmp_path / run, folders)
    result = evaluate(tmp_path / "out", truth, EvaluationOptions(resamples=0, crops=str(tmp_path / "crops")))
    assert result["dice_true_crops"].value == 1
    with pytest.raises(EvaluationError, match=r"out: expected findings made with the true boxes.*--boxes"):
        evaluate(tmp_path / "out", truth, EvaluationOptions(resamples=0, crops=str(tmp_path / "out")))
    with pytest.raises(EvaluationError, match="1 of 2 images of the truth have no findings"):
        evaluate(tmp_path / "crops", truth, FAST)


def test_no_findings_is_a_clear_error(tmp_path):
    with pytest.raises(EvaluationError, match=r"no findings\.json"):
        evaluate(tmp_path, [], FAST)


def test_worst_cases_are_the_worst():
    groups = {title.split(" (")[0]: cases for title, _, cases in worst_cases(evaluate_pairs(pairs_of(*CASE_13), FAST))}
    assert [c.outcome.pair.truth.image_id for c in groups["Missed masses"]] == ["2.png"]
    assert [c.caption for c in groups["Strongest false positives"]] == ["score 0.50", "score 0.40"]
    assert len(groups["Worst outlines of masses found"]) == 2


def test_a_missed_mass_says_what_lay_there():
    """Masses are 4 x 4: a quarter of one, the whole of one with a low score, and nothing."""
    near = findings("a", [lesion(1, 60, 60)], [(8, 8, 10, 10, 0.2), (30, 30, 34, 34, 0.1)])
    couples = [(item("a", [mass(8, 8), mass(30, 30), mass(50, 8)]), near), (item("b", [mass(8, 8)]), findings("b"))]
    missed = worst_cases(evaluate_pairs(pairs_of(*couples), FAST))[0][2]
    words = ["no candidate fits; the nearest: IoU 0.25, score 0.20", "best candidate 0.10", "no candidate there"]
    assert sorted(c.caption for c in missed) == sorted([*words, "no candidate there"])


def test_a_picture_that_cannot_be_read_has_a_line_in_its_place():
    page = html(evaluate_pairs(pairs_of(*CASE_13), FAST))
    assert page.count("no picture:") == 5
    assert "/data/" not in page


def test_names_from_files_are_escaped():
    name = "<script>alert(1)</script>.png"
    page = html(evaluate_pairs(pairs_of((item(name, [mass(8, 8)]), findings(name))), FAST))
    assert "<script>" not in page


def test_evaluation_needs_no_torch():
    modules = "mammoseg.evaluation.report, mammoseg.fusion, mammoseg.reconstruction"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
