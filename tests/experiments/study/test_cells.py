"""Every cell of every table, computed anew from the saved findings and the truth by other means: plain loops and arrays,
scikit-learn, pycocotools, statistics; and the report that shows them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import statistics
import subprocess
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from sklearn.metrics import average_precision_score

from .conftest import command, digest, environment


class Truth:
    """The prepared images: boxes xyxy and full-size masks by file name."""

    def __init__(self, out: Path) -> None:
        content = json.loads((out / "data/inbreast/annotations.json").read_text())
        self.size = {i["file_name"]: (i["height"], i["width"]) for i in content["images"]}
        self.patient = {i["file_name"]: i["patient_id"] for i in content["images"]}
        names = {i["id"]: i["file_name"] for i in content["images"]}
        self.boxes = {name: [] for name in self.size}
        self.masks = {name: [] for name in self.size}
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            self.boxes[names[a["image_id"]]].append((x, y, x + w, y + h))
            self.masks[names[a["image_id"]]].append(coco_mask.decode(a["segmentation"]).astype(bool))

    def side(self, out: Path, split: str, side: str = "test") -> list[str]:
        ids = set(json.loads((out / f"splits/{split}.json").read_text())[side])
        return [name for name in self.size if name in ids]


@pytest.fixture(scope="session")
def truth(study_out: Path) -> Truth:
    return Truth(study_out)


def findings(out: Path, split: str, setup: str, name: str) -> dict:
    return json.loads((out / "findings" / split / setup / Path(name).stem / "findings.json").read_text())


def labels(out: Path, split: str, setup: str, name: str, size: tuple[int, int]) -> np.ndarray:
    file = out / "findings" / split / setup / Path(name).stem / "mask.png"
    return cv2.imread(str(file), cv2.IMREAD_UNCHANGED) if file.is_file() else np.zeros(size, np.uint8)


def rows(out: Path, number: int) -> list[dict[str, str]]:
    with (out / f"tables/table{number}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def splits(out: Path, letter: str = "T") -> list[str]:
    return sorted(f.stem for f in (out / "splits").glob(f"{letter}*.json"))


def config(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


def iou(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0.0, w) * max(0.0, h)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def hits(found: list[dict], boxes: list, least: float = 0.5) -> list[tuple[float, bool]]:
    """(score, whether it found a mass) of each detection, best first, greedy."""
    taken: set[int] = set()
    out = []
    for f in sorted(found, key=lambda f: -f["score"]):
        fits = [(iou(f["box_xyxy"], b), m) for m, b in enumerate(boxes) if m not in taken]
        best = max(fits, default=(0.0, -1), key=lambda x: x[0])
        if best[0] >= least - 1e-9:
            taken.add(best[1])
        out.append((f["score"], best[0] >= least - 1e-9))
    return out


def same(cell: str, expected: float | None, tolerance: float = 2e-6) -> bool:
    return cell == "" if expected is None else abs(float(cell) - expected) <= tolerance


def check_spread(row: dict[str, str], names: list[str]) -> None:
    values = [float(row[s]) for s in names if row[s] != ""]
    assert same(row["mean"], statistics.mean(values))
    sd = statistics.stdev(values) if len(values) > 1 else None
    assert same(row["sd"], sd)
    assert same(row["se"], None if sd is None else sd / len(values) ** 0.5)


def average_precisions(out: Path, truth: Truth, split: str, setup: str, names: list[str]) -> tuple[float, float, float]:
    """Envelope by plain loops, step by scikit-learn, 101 points by pycocotools."""
    found = {n: findings(out, split, setup, n)["candidates"] for n in names}
    every = sorted((h for n in names for h in hits(found[n], truth.boxes[n])), key=lambda h: -h[0])
    total = sum(len(truth.boxes[n]) for n in names)
    points = []
    for t in sorted({s for s, _ in every}, reverse=True):
        tp = sum(h for s, h in every if s >= t)
        points.append((tp / total, tp / sum(s >= t for s, _ in every)))
    grid = sorted({0.0, *(r for r, _ in points)})
    envelope = sum((b - a) * max(p for r, p in points if r >= b) for a, b in pairwise(grid))
    good = np.array([h for _, h in every])
    step = average_precision_score(good, [s for s, _ in every]) * good.sum() / total if good.any() else 0.0
    gt = [{"id": k + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 1.0,
           "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
          for k, (i, b) in enumerate((i, b) for i, n in enumerate(names) for b in truth.boxes[n])]  # fmt: skip
    dt = [{"image_id": i, "category_id": 1, "score": f["score"], "bbox": [f["box_xyxy"][0], f["box_xyxy"][1],
           f["box_xyxy"][2] - f["box_xyxy"][0], f["box_xyxy"][3] - f["box_xyxy"][1]]}
          for i, n in enumerate(names) for f in found[n]]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(names))],
            "categories": [{"id": 1}],
            "annotations": gt,
            "info": {},
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(dt), "bbox")
        run.params.iouThrs, run.params.areaRng, run.params.areaRngLbl = np.array([0.5]), [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    return envelope, step, float(run.eval["precision"][0, :, 0, 0, -1].mean())


def test_table_1(study_out, truth):
    names, table = splits(study_out), rows(study_out, 1)
    h, w = config(study_out)["assumptions"]["single_scale"]
    for split in names:
        expected = average_precisions(study_out, truth, split, f"scale-{w}x{h}", truth.side(study_out, split))
        for row, value in zip(table, expected, strict=True):
            assert same(row[split], 100 * value, 1e-5), (split, row)
    for row in table:
        check_spread(row, names)
    assert any(float(row[s]) > 0 for row in table for s in names)
    assert table[1]["paper"] == "75.46 ± 1.7"


def test_tables_2_and_3(study_out, truth):
    names, table = splits(study_out), rows(study_out, 2)
    lambdas = config(study_out)["lambdas"]
    assert len(table) == 2 * len(lambdas)
    for k, lam in enumerate(lambdas):
        for split in names:
            images = truth.side(study_out, split)
            every = [
                h for n in images for _, h in hits(findings(study_out, split, f"msf-{lam:g}", n)["candidates"], truth.boxes[n])
            ]
            total = sum(len(truth.boxes[n]) for n in images)
            assert same(table[2 * k][split], sum(every) / total)
            assert same(table[2 * k + 1][split], sum(not h for h in every) / len(images))
    for row in table:
        check_spread(row, names)
    third = rows(study_out, 3)
    assert [r["paper"] for r in third] == ["0.88@1.51", "0.90@0.3", "0.95@5", "0.92@0.5", "0.94", "0.22"]
    half = [r for r in table if r["method"] == "MSF, λ = 0.5"]
    assert [[r[s] for s in names] for r in third[4:]] == [[r[s] for s in names] for r in half]


def test_fused_boxes_are_equation_1_on_every_pixel(study_out, truth):
    settings = config(study_out)
    fusion, lambdas = settings["fusion"], settings["lambdas"]
    scales = [f"scale-{w}x{h}" for h, w in settings["finetune"]["scales"]]
    compared = 0
    for split in splits(study_out):
        for name in truth.side(study_out, split):
            per_scale = [findings(study_out, split, s, name)["candidates"] for s in scales]
            kept = [c for found in per_scale for c in found if c["score"] >= fusion["score_min"]]  # NMS was done at each scale
            total = np.zeros(truth.size[name])
            for c in kept:
                x1, y1, x2, y2 = c["box_xyxy"]
                total[int(np.floor(y1)) : int(np.ceil(y2)), int(np.floor(x1)) : int(np.ceil(x2))] += c["score"]
            for lam in lambdas:
                best = max((c["score"] for c in kept), default=1.0)
                chosen = (total > 0) & (total / (len(scales) * best) >= lam - 1e-9)
                regions, _ = ndimage.label(chosen, np.ones((3, 3)))
                boxes = sorted((s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(regions))
                found = findings(study_out, split, f"msf-{lam:g}", name)["candidates"]
                assert sorted(tuple(c["box_xyxy"]) for c in found) == boxes
                compared += len(boxes)
    assert compared > 10


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * (a & b).sum() / (a.sum() + b.sum())


def crop_dices(out: Path, truth: Truth, split: str, network: str, names: list[str]) -> list[float]:
    """Of every mass of the images `names`: its Dice with what was outlined in its box."""
    values = []
    for name in names:
        found = findings(out, split, f"crops/{network}", name)["lesions"]
        drawn = labels(out, split, f"crops/{network}", name, truth.size[name])
        for box, mask in zip(truth.boxes[name], truth.masks[name], strict=True):
            best = max(found, key=lambda f: iou(f["box_xyxy"], box))
            values.append(dice(drawn == best["id"], mask) if iou(best["box_xyxy"], box) > 0 else 0.0)
    return values


def test_table_4(study_out, truth):
    names, table = splits(study_out), rows(study_out, 4)
    networks = list(config(study_out)["networks"])
    assert len(table) == len(networks) + 1
    for split in names:
        ellipses = []
        for row, network in zip(table, networks, strict=False):
            values, ellipses = crop_dices(study_out, truth, split, network, truth.side(study_out, split)), []
            for name in truth.side(study_out, split):
                for box, mask in zip(truth.boxes[name], truth.masks[name], strict=True):
                    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
                    inside = ((x - (box[0] + box[2]) / 2) / (box[2] - box[0])) ** 2 + (
                        (y - (box[1] + box[3]) / 2) / (box[3] - box[1])
                    ) ** 2 <= 0.25
                    ellipses.append(dice(inside, mask))
            assert same(row[split], 100 * statistics.mean(values), 1e-5), (split, network)
        assert same(table[-1][split], 100 * statistics.mean(ellipses), 0.05)
    for row in table:
        check_spread(row, names)


def whole_image_dice(out: Path, truth: Truth, split: str, setup: str) -> float:
    values = []
    for name in truth.side(out, split):
        if truth.masks[name]:
            drawn = labels(out, split, setup, name, truth.size[name]) > 0
            values.append(dice(drawn, np.any(truth.masks[name], axis=0)))
    return statistics.mean(values)


def test_table_5(study_out, truth):
    names, table = splits(study_out), rows(study_out, 5)
    setups = ["one-stage", "two-stage-single", "two-stage-msf"]
    networks = list(config(study_out)["networks"])
    assert len(table) == 3 * len(networks)
    for k, row in enumerate(table):
        network, setup = networks[k // 3], setups[k % 3]
        for split in names:
            expected = 100 * whole_image_dice(study_out, truth, split, f"{setup}/{network}")
            assert same(row[split], expected, 1e-5), (network, setup, split)
        check_spread(row, names)


def test_the_mended_part(study_out, truth):
    found = json.loads((study_out / "mended/mended.json").read_text())
    names = splits(study_out, "M")
    settings = config(study_out)["mended"]
    for split in names:
        sides = {s: truth.side(study_out, split, s) for s in ("train", "validation", "test")}
        patients = [{truth.patient[n] for n in side} for side in sides.values()]
        assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
        assert found["splits"][split] == {k: len(v) for k, v in sides.items()}
        point = found["operating_points"][split]
        assert point["lam"] in settings["lambdas"]
        assert point["fpi"] <= settings["fpi_max"]
    assert any(not truth.boxes[n] for s in names for n in truth.side(study_out, s))  # normal images are tested on
    for network in settings["networks"]:
        figures = found["networks"][network]["figures"]
        setup = f"two-stage-tuned/{network}"
        every = [(s, n) for s in names for n in truth.side(study_out, s)]
        shown = [hits(findings(study_out, s, setup, n)["lesions"], truth.boxes[n]) for s, n in every]
        total = sum(len(truth.boxes[n]) for _, n in every)
        assert figures["tpr_operating"]["value"] == pytest.approx(sum(h for one in shown for _, h in one) / total)
        assert figures["fpi_operating"]["value"] == pytest.approx(sum(not h for one in shown for _, h in one) / len(every))
        values = [
            dice(labels(study_out, s, setup, n, truth.size[n]) > 0, np.any(truth.masks[n], axis=0))
            for s, n in every
            if truth.masks[n]
        ]
        assert figures["dice_end_to_end"]["value"] == pytest.approx(statistics.mean(values))
        strata = found["networks"][network]["strata"]
        assert sum(s["n_masses"] for s in strata if s["by"] == "view") == total
        assert {s["by"] for s in strata} >= {"size", "breast density", "view"}
        assert figures["ap_centre"]["value"] is not None
        assert figures["dice_ellipse"]["value"] > 0.7
    assert {c["comparison"] for c in found["comparisons"]} >= {"v19U-Net++ [23] over U-Net [8]"}


def test_the_leakage_gap(study_out, truth):
    with (study_out / "mended/leakage_gap.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    published, apart = splits(study_out), splits(study_out, "M")
    last = table[-1]
    h, w = config(study_out)["assumptions"]["single_scale"]
    for split in published + apart:
        ill = [n for n in truth.side(study_out, split) if truth.boxes[n]]
        found = [good for n in ill for _, good in hits(findings(study_out, split, "msf-0.6", n)["candidates"], truth.boxes[n])]
        cells = (
            100 * average_precisions(study_out, truth, split, f"scale-{w}x{h}", ill)[0],
            sum(found) / sum(len(truth.boxes[n]) for n in ill),
            sum(not good for good in found) / len(ill),
            100 * statistics.mean(crop_dices(study_out, truth, split, "unetpp", ill)),
            100 * whole_image_dice(study_out, truth, split, "two-stage-single/unetpp"),
            100 * whole_image_dice(study_out, truth, split, "two-stage-msf/unetpp"),
        )
        for row, value in zip(table, cells, strict=True):
            assert same(row[split], value, 1e-5), (split, row)
    gap = statistics.mean(float(last[s]) for s in published) - statistics.mean(float(last[s]) for s in apart)
    assert last["paper"].startswith(f"{gap:+.2f}")
    assert [r["method"].split(",")[0] for r in table] == ["AP (%)", "TPR", "FPavg", "Dice (%)", "Dice (%)", "Dice (%)"]


def test_the_published_splits_part_patients_and_the_report_says_so(study_out, truth):
    counts = []
    for split in splits(study_out):
        train, test = truth.side(study_out, split, "train"), truth.side(study_out, split)
        assert not set(train) & set(test)
        assert all(truth.boxes[n] for n in train + test)
        counts.append(len({truth.patient[n] for n in train} & {truth.patient[n] for n in test}))
    text = (study_out / "report.html").read_text()
    assert f"both sides: {', '.join(map(str, counts))}." in text.replace("\n", " ")


def test_every_table_and_figure_is_there_and_opens_offline(study_out):
    text = (study_out / "report.html").read_text()
    assert "not run" not in text
    for number in range(2, 8):
        root = ElementTree.fromstring((study_out / f"figures/fig{number}.svg").read_text())
        assert root.tag.endswith("svg")
        assert len(list(root.iter())) > 30
        assert f"<b>Fig. {number}.</b>" in text
    for number in range(1, 6):
        assert f"Table {number}." in text
    for source in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert source.startswith("data:"), source
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)
    assert str(study_out) not in text
    for words in (
        "Assumptions",
        "assumptions.single_scale",
        "Departures from the paper",
        "leakage gap",
        "population standard deviation",
        "These are phantoms",
    ):
        assert words in text


def test_a_second_run_does_nothing_and_a_part_can_be_asked_for(study_out, tmp_path, data_sets):
    out = Path(shutil.copytree(study_out, tmp_path / "out", copy_function=shutil.copy2))
    before = digest(out)
    done = subprocess.run(
        command(out, *data_sets, "--only", "table2"), env=environment(), capture_output=True, text=True, check=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert lines
    assert all(line.endswith("done before") for line in lines)
    assert not any("segmenter" in line for line in lines)
    assert digest(out) == before
    # A finding that was changed by hand is made again, and what follows from it.
    files = sorted((out / "findings/T1/msf-0.5").rglob("findings.json"))
    file = next(f for f in files if '"score": 0.' in f.read_text())
    file.write_text(file.read_text().replace('"score": 0.', '"score": 0.0'))
    again = subprocess.run(
        command(out, *data_sets, "--only", "table2"), env=environment(), capture_output=True, text=True, check=True, timeout=300
    )
    redone = [line.split("] ")[1].split(":")[0] for line in again.stderr.splitlines() if re.fullmatch(r"\[.*: \d+ s", line)]
    assert redone == ["msf/T1"]
    assert digest(out) == before
