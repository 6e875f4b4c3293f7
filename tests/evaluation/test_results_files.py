"""Others' detections: COCO results and CSV give the figures that our own findings give; pycocotools reads the same file."""

from __future__ import annotations

import contextlib
import io
import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mammoseg.apps.cli import cli
from mammoseg.datasets import coco, read_dataset
from mammoseg.errors import EvaluationError
from mammoseg.evaluation import EvaluationOptions
from mammoseg.evaluation.evaluate import evaluate_command, evaluate_pairs
from mammoseg.evaluation.inputs import Pair, Pairs
from mammoseg.evaluation.results_files import coco_ids, read_results
from mammoseg.types import Annotation, DatasetItem, Detections, Findings, ImageInfo, Lesion, TrueMass

SIZE = (90, 70)
FAST = EvaluationOptions(resamples=10, worst=0)


def random_mask(rng):
    h, w = (int(v) for v in rng.integers(6, 25, 2))
    y, x = np.mgrid[:h, :w]
    mask = ((x + 0.5 - w / 2) / (w / 2)) ** 2 + ((y + 0.5 - h / 2) / (h / 2)) ** 2 <= 1
    return mask, (int(rng.integers(0, SIZE[0] - h)), int(rng.integers(0, SIZE[1] - w)))


def box_of(mask, origin):
    return (float(origin[1]), float(origin[0]), float(origin[1] + mask.shape[1]), float(origin[0] + mask.shape[0]))


@pytest.fixture
def case(tmp_path):
    """A COCO data set of 12 images on disk, its items, and detections near and far: (image_id, box, score, mask, origin)."""
    rng = np.random.default_rng(5)
    items, found = [], []
    for k in range(12):
        name = f"images/{k:02d}.png"
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, SIZE, dtype=np.uint8))
        masses = [TrueMass(box_of(m, o), m, o) for m, o in (random_mask(rng) for _ in range(k % 3))]
        items.append(DatasetItem(name, str(tmp_path / name), f"p{k // 2}", Annotation(name, SIZE, tuple(masses))))
        for mass in masses:
            shift = rng.integers(-2, 3, 2)
            origin = tuple(int(v) for v in np.clip(np.array(mass.origin_px) + shift, 0, np.array(SIZE) - mass.mask.shape))
            found.append((name, box_of(mass.mask, origin), float(rng.uniform(0.3, 1)), mass.mask, origin))
        for _ in range(int(rng.integers(0, 3))):
            mask, origin = random_mask(rng)
            found.append((name, box_of(mask, origin), float(rng.uniform(0, 0.8)), mask, origin))
    coco.write(tmp_path / "annotations.json", items)
    return tmp_path, read_dataset(tmp_path), found


def as_coco(folder, found, by_number=True, masks=True):
    numbers = {v: k for k, v in coco_ids(str(folder)).items()}
    records = []
    for name, box, score, mask, origin in found:
        record = {"image_id": numbers[name] if by_number else name, "category_id": 1, "score": score}
        record["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        if masks:
            full = np.zeros(SIZE, dtype=np.uint8, order="F")
            full[origin[0] : origin[0] + mask.shape[0], origin[1] : origin[1] + mask.shape[1]] = mask
            rle = coco_mask.encode(full)
            record["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        records.append(record)
    (folder / "results.json").write_text(json.dumps(records))
    return folder / "results.json"


def as_csv(folder, found, columns="image,score,x1,y1,x2,y2,mask"):
    lines = [columns]
    for k, (name, box, score, mask, origin) in enumerate(found):
        full = np.zeros(SIZE, dtype=np.uint8)
        full[origin[0] : origin[0] + mask.shape[0], origin[1] : origin[1] + mask.shape[1]] = mask * np.uint8(1 + 254 * (k % 2))
        cv2.imwrite(str(folder / f"mask{k}.png"), full)
        values = {"image": name, "score": repr(score), "mask": f"mask{k}.png"}
        values |= dict(zip(("x1", "y1", "x2", "y2"), map(str, box), strict=True))
        lines.append(",".join(values[c] for c in columns.split(",")))
    (folder / "results.csv").write_text("\n".join(lines) + "\nimages/00.png,,,,,,\n"[: None if len(columns) > 20 else 1])
    return folder / "results.csv"


def ours(items, found, score_min):
    pairs = []
    for item in items:
        mine = sorted((f for f in found if f[0] == item.image_id), key=lambda f: -f[2])
        lesions = tuple(
            Lesion(k, b, s, m, o, np.array([[0.0, 0], [1, 0], [1, 1]]))
            for k, (_, b, s, m, o) in enumerate((f for f in mine if f[2] >= score_min), 1)
        )
        boxes = Detections(np.array([f[1] for f in mine]).reshape(-1, 4), np.array([f[2] for f in mine]), SIZE)
        pairs.append(Pair(item, Findings(ImageInfo(item.image_id, *SIZE), "processed", None, lesions, boxes)))
    return evaluate_pairs(Pairs(tuple(pairs)), FAST)


def test_coco_and_csv_give_what_our_findings_give(case):
    folder, items, found = case
    expected = {f.key: f.interval.value for f in ours(items, found, 0.5).figures}
    assert {"ap_iou_0.5", "dice_matched", "dice_pooled"} <= expected.keys()
    files = [as_coco(folder, found), as_csv(folder, found)]
    for file in files:
        got = {f.key: f.interval.value for f in evaluate_command(file, str(folder), None, FAST).figures}
        assert got == pytest.approx(expected)
    named = as_coco(folder, found, by_number=False)
    assert len(read_results(named, items).pairs) == 12
    boxes_from_masks = as_csv(folder, found, "image,score,mask")
    got = {f.key: f.interval.value for f in evaluate_command(boxes_from_masks, str(folder), None, FAST).figures}
    assert got == pytest.approx(expected)


def test_pycocotools_reads_the_same_file_and_agrees(case):
    folder, _, found = case
    file = as_coco(folder, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        run = COCOeval(truth, truth.loadRes(str(file)), "bbox")
        run.params.iouThrs = np.array([0.5])
        run.evaluate()
        run.accumulate()
    expected = float(run.eval["precision"][0, :, 0, 0, -1].mean())
    got = evaluate_command(file, str(folder), None, FAST)["ap_iou_0.5_coco101"].value
    assert got == pytest.approx(expected, abs=1e-9)


def test_without_masks_outlines_are_not_measured(case):
    folder, _, found = case
    result = evaluate_command(as_coco(folder, found, masks=False), str(folder), None, FAST)
    assert result.counts.n_truth_with_mask == 0
    assert not [f.key for f in result.figures if f.key.startswith("dice")]
    assert result["ap_iou_0.5"].value > 0


def test_the_operating_point_is_a_score(case):
    folder, _, found = case
    file = as_coco(folder, found)
    few, many = (
        evaluate_command(file, str(folder), None, EvaluationOptions(resamples=0, worst=0, score_min=s)) for s in (0.7, 0.0)
    )
    assert few.counts.n_lesions == sum(f[2] >= 0.7 for f in found) < many.counts.n_lesions == len(found)
    assert few["ap_iou_0.5"].value == many["ap_iou_0.5"].value


def test_at_the_command_line_with_strata_and_a_rival(case, tmp_path):
    folder, _, found = case
    file = as_coco(folder, found)
    worse = folder / "worse.csv"
    worse.write_text("image,score,x1,y1,x2,y2\n" + "".join(f"{n},{s},{','.join(map(str, b))}\n" for n, b, s, *_ in found[::2]))
    arguments = ["evaluate", str(file), "--truth", str(folder), "--resamples", "50", "--against", str(worse), "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    strata = {(s["by"], s["group"]): s for s in shown["strata"]}
    assert sum(s["n_masses"] for (by, _), s in strata.items() if by == "size") == shown["counts"]["n_truth"]
    assert ("view", "unknown") in strata
    gain = next(d for d in shown["differences"] if d["key"] == "tpr_operating")
    assert gain["interval"]["value"] == pytest.approx(gain["first"] - gain["second"])
    assert gain["interval"]["value"] > 0
    assert "By kind of mass and image" in (tmp_path / "out" / "evaluation.html").read_text()
    table = CliRunner().invoke(cli, arguments[:-1])
    assert "Difference to the other findings" in table.output


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "[{]", "not valid JSON"),
        ("a.json", '{"x": 1}', "expected a list of COCO results"),
        ("a.json", '[{"bbox": [1, 2, 3, 4], "score": 1}]', "result 0: it has no image_id"),
        ("a.json", '[{"image_id": 999, "bbox": [1, 2, 3, 4], "score": 1}]', "'999' is no image of the truth"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3], "score": 1}]', "expected 4 numbers"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 7}]', "a score from 0 to 1"),
        ("a.json", '[{"image_id": 1, "bbox": [900, 2, 3, 4], "score": 1}]', "lies outside its image"),
        ("a.json", '[{"image_id": 1, "score": 1, "segmentation": {"size": [3, 3], "counts": [9]}}]', "its segmentation cannot"),
        ("a.json", '[{"image_id": 1, "score": 1}]', "neither a box nor a mask"),
        ("a.csv", "image,score\n1,2\n", "expected the columns image, score"),
        ("a.csv", "image,score,x1,y1,x2,y2\nimages/00.png,0.5,a,2,3,4\n", "line 2: expected 4 numbers"),
        ("a.csv", "image,score,mask\nimages/00.png,0.5,none.png\n", "is no picture that can be read"),
    ],
)
def test_one_clear_error(case, name, text, words):
    folder, items, _ = case
    (folder / name).write_text(text)
    with pytest.raises(EvaluationError, match=words):
        read_results(folder / name, items, ids=coco_ids(str(folder)))
