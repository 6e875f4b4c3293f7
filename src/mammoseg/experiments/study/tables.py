"""Tables 1 to 5 from the saved findings: `OUT/tables/tableN.csv` with method, setup, T1 …, mean, sd, se, paper, paper T1 ….

sd: sample standard deviation over the splits (n − 1); se: sd/√n. Rates and Dice are in percent, as the paper prints them, TPR
and false positives an image as they are.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mammoseg.errors import DatasetError
from mammoseg.evaluation.average_precision import Area, average_precision
from mammoseg.evaluation.inputs import Pair
from mammoseg.evaluation.matching import Criterion
from mammoseg.evaluation.measures import crop_measures, outcome, rank_candidates
from mammoseg.experiments.study import paper
from mammoseg.experiments.study.graph import Step
from mammoseg.io.atomic import write_atomic

if TYPE_CHECKING:
    from mammoseg.experiments.study.plan import Study

AREAS: tuple[tuple[Area, str], ...] = (
    ("envelope", "AP (%), area under the envelope"),
    ("step", "AP (%), step sum (the paper's)"),
    ("coco101", "AP (%), COCO's 101 points"),
)


@dataclass(frozen=True)
class Row:
    """One row. values: of each split, None where undefined. paper: as printed; paper_values: of its splits."""

    method: str
    setup: str
    values: tuple[float | None, ...]
    paper: str = ""
    paper_values: tuple[Any, ...] = field(default=())

    @property
    def mean(self) -> float | None:
        """Over the splits; None where one is undefined."""
        return None if not self._known else float(np.mean(self._known))

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the splits; None for fewer than two."""
        return float(np.std(self._known, ddof=1)) if len(self._known) > 1 else None

    @property
    def se(self) -> float | None:
        """Standard error of the mean: sd/√n."""
        return None if self.sd is None else self.sd / math.sqrt(len(self._known))

    @property
    def _known(self) -> list[float]:
        known = [v for v in self.values if v is not None]
        return known if len(known) == len(self.values) else []


def average_precisions(pairs: Sequence[Pair]) -> dict[Area, float | None]:
    """AP at IoU 0.5 of the candidates, in [0, 1], for all three areas."""
    counts = rank_candidates(pairs, Criterion("iou", 0.5)).counts()
    return {area: average_precision(counts, area) for area, _ in AREAS}


def tpr_and_fpi(pairs: Sequence[Pair], iou: float) -> tuple[float | None, float]:
    """The share of masses found by all candidates together, and false positives an image."""
    ranked = rank_candidates(pairs, Criterion("iou", iou))
    hits = float(ranked.hits.sum())
    return (hits / ranked.n_truth if ranked.n_truth else None), float((~ranked.hits).sum()) / max(1, len(pairs))


def crop_dice(pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
    """Mean Dice of the outlines of true boxes, and of the ellipses inscribed in them, in [0, 1]."""
    ours, ellipse, _ = (m.value(np.ones(len(pairs))) for m in crop_measures(pairs))
    return ours, ellipse


def whole_dice(pairs: Sequence[Pair], iou: float, rule: str) -> float | None:
    """Mean Dice on whole images in [0, 1]; see `AssumptionConfig.dice`."""
    outcomes = [outcome(p, Criterion("iou", iou)) for p in pairs]
    values = [o.dice for o in outcomes] if rule == "image" else [d for o in outcomes for d in o.dices.values()]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def table1(study: Study) -> list[Row]:
    """AP of the detector at one scale."""
    found = [average_precisions(study.pairs(split, f"scale-{study.single}")) for split in study.published]
    rows = []
    for area, label in AREAS:
        values = tuple(_percent(one[area]) for one in found)
        if area == "step":
            rows.append(Row("YOLOv3 [24]", label, values, paper.AP_PRINTED, paper.AP))
        else:
            rows.append(Row("YOLOv3 [24]", label, values))
    return rows


def table2(study: Study) -> list[Row]:
    """TPR and false positives an image of MSF for each λ."""
    rows = []
    for lam in study.config.lambdas:
        iou = study.config.assumptions.hit_iou
        found = [tpr_and_fpi(study.pairs(split, f"msf-{lam:g}"), iou) for split in study.published]
        said = paper.TPR_AT_FPI.get(lam, ())
        for k, label in enumerate(("TPR", "FPavg")):
            printed = tuple(pair[k] for pair in said)
            mean = f"{np.mean(printed):.3f}" if printed else ""
            rows.append(Row(f"MSF, λ = {lam:g}", label, tuple(f[k] for f in found), mean, printed))
    return rows


def table3(study: Study) -> list[Row]:
    """Others' TPR@FPavg as the paper lists them, and ours at λ = 0.5 (λ of the middle where 0.5 was not run)."""
    rows = [Row(name, f"{data}, {images} images", (), printed) for name, printed, data, images in paper.OTHERS]
    lambdas = study.config.lambdas
    lam = 0.5 if 0.5 in lambdas else lambdas[len(lambdas) // 2]
    found = [tpr_and_fpi(study.pairs(s, f"msf-{lam:g}"), study.config.assumptions.hit_iou) for s in study.published]
    for k, label in enumerate(("TPR", "FPavg")):
        printed = paper.OURS_IN_TABLE_3.split("@")[k]
        rows.append(Row(f"MSF, λ = {lam:g}", label, tuple(f[k] for f in found), printed))
    return rows


def table4(study: Study) -> list[Row]:
    """Dice on crops around the true masses, and of the inscribed ellipse."""
    rows, ellipse = [], Row("", "", ())
    for name in study.config.networks:
        found = [crop_dice(study.pairs_with_masks(split, f"crops/{name}")) for split in study.published]
        printed, said = paper.CROP_DICE.get(name, ((), ""))
        rows.append(Row(paper.title(name), "Dice (%), true crops", tuple(_percent(f[0]) for f in found), said, printed))
        ellipse = Row(paper.title("ellipse"), "Dice (%), true crops", tuple(_percent(f[1]) for f in found))
    return [*rows, ellipse]


def table5(study: Study) -> list[Row]:
    """Dice on whole images of every network in three set-ups."""
    assumed = study.config.assumptions
    rows = []
    for name in study.config.networks:
        for setup, label in paper.SETUPS.items():
            pairs = [study.pairs_with_masks(split, f"{setup}/{name}") for split in study.published]
            values = tuple(_percent(whole_dice(p, assumed.hit_iou, assumed.dice)) for p in pairs)
            printed, said = paper.WHOLE_DICE.get((name, setup), ((), ""))
            rows.append(Row(paper.title(name), label, values, said, printed))
    return rows


def steps(study: Study) -> Iterator[Step]:
    """One step a table."""
    names, published = list(study.config.networks), study.published
    setups = [*paper.SETUPS]
    makers: list[tuple[int, Callable[[Study], list[Row]], list[str]]] = [
        (1, table1, [f"detections/{s}" for s in published]),
        (2, table2, [f"msf/{s}" for s in published]),
        (3, table3, [f"msf/{s}" for s in published]),
        (4, table4, [f"crops/{s}/{n}" for s in published for n in names]),
        (5, table5, [f"{setup}/{s}/{n}" for s in published for n in names for setup in setups]),
    ]
    for number, make, needs in makers:
        file = f"tables/table{number}.csv"

        def run(make: Callable[[Study], list[Row]] = make, file: str = file) -> None:
            write_rows(study.out / file, make(study), study.published)

        settings = {"hit_iou": study.config.assumptions.hit_iou, "dice": study.config.assumptions.dice, "single": study.single}
        needed = ("data/inbreast", *(f"split/{s}" for s in published), *needs)
        yield Step(f"table{number}", run, (file,), needed, settings | {"networks": names})


def write_rows(file: Path, rows: Sequence[Row], splits: Sequence[str]) -> None:
    """Writes a table: numbers with six digits, empty where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    width = max((len(r.paper_values) for r in rows), default=0)
    writer.writerow(["method", "setup", *splits, "mean", "sd", "se", "paper", *(f"paper T{k + 1}" for k in range(width))])
    for r in rows:
        values = [*r.values, *[None] * (len(splits) - len(r.values))]
        printed = [*r.paper_values, *[""] * (width - len(r.paper_values))]
        writer.writerow([r.method, r.setup, *map(_number, [*values, r.mean, r.sd, r.se]), r.paper, *printed])
    write_atomic(file, text.getvalue().encode())


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table, by column. Raises DatasetError where it is not there."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise DatasetError(f"{file}: the table is not there; run mammoseg reproduce again") from error


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value
