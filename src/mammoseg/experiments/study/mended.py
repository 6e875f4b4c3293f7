"""The same questions with patients apart: thresholds from an inner validation set, normal images, intervals, paired tests.

Everything is computed from the findings on the patient-wise splits M1 …, pooled over them: an image that two splits test on
counts in both, and the bootstrap draws patients, with all their images of all splits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mammoseg.datasets.splits import load_fold
from mammoseg.evaluation.bootstrap import paired_means
from mammoseg.evaluation.compare import compare, sign_flip_p
from mammoseg.evaluation.evaluate import EvaluationOptions, evaluate_pairs
from mammoseg.evaluation.froc import froc
from mammoseg.evaluation.inputs import Pair, Pairs
from mammoseg.evaluation.matching import Criterion
from mammoseg.evaluation.measures import outcome, rank_candidates
from mammoseg.evaluation.overlap import dice, inscribed_ellipse
from mammoseg.experiments.study import paper
from mammoseg.experiments.study.figures import COLOURS, DASHES, STYLE, plain_axes, write_svg
from mammoseg.experiments.study.graph import Step
from mammoseg.experiments.study.splits import leaked_patients
from mammoseg.experiments.study.tables import Row, average_precisions, crop_dice, tpr_and_fpi, whole_dice, write_rows
from mammoseg.io.atomic import write_atomic
from mammoseg.types import Detections

if TYPE_CHECKING:
    from mammoseg.experiments.study.plan import Study

FILE = "mended/mended.json"
GAP_FILE = "mended/leakage_gap.csv"
FROC_FILE = "figures/froc_by_patient.svg"
CRITERIA = (Criterion("iou", 0.1), Criterion("iou", 0.2), Criterion("iou", 0.5), Criterion("centre"))


def steps(study: Study) -> Iterator[Step]:
    """One step that measures, one for the gap between published and patient-wise splits."""
    config, m = study.config, study.config.mended
    mine = [f"split/{s}" for s in study.by_patient] + [f"tune/{s}" for s in study.by_patient]
    needs = [
        f"{kind}/{s}/{n}"
        for s in study.by_patient
        for n in m.networks
        for kind in ("crops", "two-stage-tuned", "two-stage-msf")
    ]
    settings = {"resamples": m.resamples, "hit_iou": config.assumptions.hit_iou, "networks": list(m.networks)}

    def measure() -> None:
        text = json.dumps(measured(study), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(study.out / FILE, (text + "\n").encode())

    yield Step("mended", measure, (FILE,), ("data/inbreast", *mine, *needs), settings)

    def draw() -> None:
        with rc_context(STYLE):
            write_svg(study.out / FROC_FILE, froc_figure(study))

    tuned = tuple(f"two-stage-tuned/{s}/{m.networks[0]}" for s in study.by_patient)
    yield Step("mended-froc", draw, (FROC_FILE,), ("data/inbreast", *mine, *tuned), {"hit_iou": config.assumptions.hit_iou},
               version=2)  # fmt: skip

    def gap() -> None:
        write_rows(study.out / GAP_FILE, gap_rows(study), _splits(study))

    published = [f"split/{s}" for s in study.published] + [f"{k}/{s}" for s in study.published for k in ("detections", "msf")]
    published += [f"{k}/{s}/{config.main}" for s in study.published for k in ("crops", "two-stage-msf", "two-stage-single")]
    both = [f"{k}/{s}" for s in study.by_patient for k in ("split", "detections", "msf")]
    both += [f"{k}/{s}/{_main(study)}" for s in study.by_patient for k in ("crops", "two-stage-msf", "two-stage-single")]
    rest = {"single": study.single, "dice": config.assumptions.dice, "lam": _lam(study), "hit_iou": config.assumptions.hit_iou}
    yield Step("gap", gap, (GAP_FILE,), ("data/inbreast", *published, *both), rest)


def measured(study: Study) -> dict[str, Any]:
    """All figures of this part, JSON-able."""
    m = study.config.mended
    options = EvaluationOptions(iou=study.config.assumptions.hit_iou, resamples=m.resamples, worst=0)
    networks = {}
    for name in m.networks:
        pairs = _pool(study, f"two-stage-tuned/{name}")
        crops = _pool(study, f"crops/{name}", masks=True)
        evaluation = evaluate_pairs(Pairs(tuple(pairs)), options, Pairs(tuple(crops)))
        content = evaluation.to_dict()
        networks[name] = {k: content[k] for k in ("counts", "figures", "curves", "strata")}
    points = {s: json.loads((study.out / "mended" / s / "operating_point.json").read_bytes()) for s in study.by_patient}
    items = study.items()
    folds = {s: load_fold(study.out / "splits" / f"{s}.json") for s in study.by_patient}
    return {
        "splits": {s: {side: len(getattr(f, side)) for side in ("train", "validation", "test")} for s, f in folds.items()},
        "patients_on_both_sides": {s: leaked_patients(items, f) for s, f in folds.items()},
        "operating_points": points,
        "networks": networks,
        "comparisons": _comparisons(study, options),
    }


def _comparisons(study: Study, options: EvaluationOptions) -> list[dict[str, Any]]:
    """Paired differences: the first network over the others, tuned MSF over the published λ, each network over the ellipse."""
    names = study.config.mended.networks
    criterion = Criterion("iou", options.iou)

    def outcomes(setup: str) -> list[Any]:
        return [outcome(p, criterion) for p in _pool(study, setup)]

    out = []
    first = outcomes(f"two-stage-tuned/{names[0]}")
    rivals = [(f"two-stage-tuned/{n}", f"{paper.title(names[0])} over {paper.title(n)}") for n in names[1:]]
    rivals.append((f"two-stage-msf/{names[0]}", "λ and threshold from the validation set over the published λ"))
    for setup, label in rivals:
        for d in compare(first, outcomes(setup), options.iou, options.resamples, options.seed):
            out.append({"comparison": label, **asdict(d)})
    for name in names:
        ours, ellipse, patients = [], [], []
        for pair in _pool(study, f"crops/{name}", masks=True):
            for mass, value in _crop_values(pair):
                ours.append(value)
                ellipse.append(mass)
                patients.append(pair.truth.patient_id)
        if ours:
            gain = paired_means(ours, ellipse, patients, options.resamples, options.seed)
            p = sign_flip_p(np.subtract(ours, ellipse), patients, seed=options.seed)
            out.append({
                "comparison": f"{paper.title(name)} over the ellipse in the true box", "key": "dice_true_crops",
                "label": "Dice, true crops", "first": float(np.mean(ours)), "second": float(np.mean(ellipse)),
                "interval": asdict(gain), "p": p,
            })  # fmt: skip
    return out


def _crop_values(pair: Pair) -> Iterator[tuple[float, float]]:
    """(Dice of the ellipse, Dice of the network) of every outlined mass, as `crop_measures` pairs them."""
    for mass in pair.truth.annotation.masses:
        if mass.mask is None:
            continue
        single = replace(pair.truth, annotation=replace(pair.truth.annotation, masses=(mass,)))
        ours, _ = crop_dice([Pair(single, pair.findings)])
        yield dice(inscribed_ellipse(mass.box), (mass.mask, mass.origin_px)), float(ours or 0.0)


def froc_figure(study: Study) -> Figure:
    """FROC over all test images of the patient-wise splits, with a mass and without, by four hit criteria."""
    pairs = _pool(study, f"two-stage-tuned/{study.config.mended.networks[0]}")
    canvas = Figure(figsize=(6.0, 3.4), layout="constrained")
    axis = plain_axes(canvas.subplots(), "Average false positives per image", "True positive rate")
    for criterion, colour, dashes in zip(CRITERIA, COLOURS, DASHES, strict=False):
        curve = froc(rank_candidates(pairs, criterion).counts())
        axis.step(np.append(0, curve.fpi), np.append(0, curve.tpr), where="post", color=colour, linestyle=dashes,
                  linewidth=1.2, label=criterion.name)  # fmt: skip
    tpr, fpi = tpr_and_fpi([_shown(p) for p in pairs], study.config.assumptions.hit_iou)
    axis.plot([fpi], [tpr or 0.0], "*", color="black", markerfacecolor="#ffd500", markersize=9, linestyle="none",
              label="operating point chosen", zorder=5)  # fmt: skip
    axis.set(xlim=(0, max(1.0, 1.2 * fpi)), ylim=(0, 1.03))
    canvas.legend(frameon=False, loc="outside right center")
    return canvas


def _shown(pair: Pair) -> Pair:
    """The lesions alone as candidates."""
    lesions = pair.findings.lesions
    boxes = np.array([x.box for x in lesions], dtype=np.float64).reshape(-1, 4)
    kept = Detections(boxes, np.array([x.score for x in lesions]), pair.truth.annotation.size)
    return Pair(pair.truth, replace(pair.findings, candidates=kept))


def gap_rows(study: Study) -> list[Row]:
    """The leakage gap: each figure on the published splits, on the patient-wise ones, and the difference of the means.

    The same networks, training sizes, λ and rules on both; only images with a mass. A row holds the published splits' values,
    then the patient-wise ones'; `paper` says the gap and its standard error.
    """
    iou, rule = study.config.assumptions.hit_iou, study.config.assumptions.dice
    main, lam = _main(study), _lam(study)

    def whole(split: str, setup: str) -> float | None:
        return whole_dice(study.pairs_with_masks(split, f"{setup}/{main}"), iou, rule)

    figures: list[tuple[str, str, Callable[[str], float | None]]] = [
        ("AP (%), one scale", "percent", lambda s: average_precisions(_ill(study, s, f"scale-{study.single}"))["envelope"]),
        (f"TPR, MSF λ = {lam:g}", "", lambda s: tpr_and_fpi(_ill(study, s, f"msf-{lam:g}"), iou)[0]),
        (f"FPavg, MSF λ = {lam:g}", "", lambda s: tpr_and_fpi(_ill(study, s, f"msf-{lam:g}"), iou)[1]),
        ("Dice (%), true crops", "percent", lambda s: crop_dice(study.pairs_with_masks(s, f"crops/{main}"))[0]),
        ("Dice (%), two-stage w/o MSF", "percent", lambda s: whole(s, "two-stage-single")),
        ("Dice (%), two-stage with MSF", "percent", lambda s: whole(s, "two-stage-msf")),
    ]  # fmt: skip
    rows = []
    for label, unit, value in figures:
        factor = 100.0 if unit == "percent" else 1.0
        there = [_scaled(value(s), factor) for s in study.published]
        here = [_scaled(value(s), factor) for s in study.by_patient]
        rows.append(Row(label, "published − patient-wise", (*there, *here), gap_words(there, here)))
    return rows


def gap_words(there: Sequence[float | None], here: Sequence[float | None]) -> str:
    """The difference of the means with its standard error √(se² + se²), as text; "" where one is undefined.

    >>> gap_words([2.0, 4.0], [1.0, 2.0])
    '+1.50 ± 1.12 (standard error)'
    """
    a, b = Row("", "", tuple(there)), Row("", "", tuple(here))
    if a.mean is None or b.mean is None:
        return ""
    error = "" if a.se is None or b.se is None else f" ± {math.hypot(a.se, b.se):.2f} (standard error)"
    return f"{a.mean - b.mean:+.2f}{error}"


def _splits(study: Study) -> list[str]:
    return [*study.published, *study.by_patient]


def _main(study: Study) -> str:
    names = study.config.mended.networks
    return study.config.main if study.config.main in names else names[0]


def _lam(study: Study) -> float:
    return min(study.config.lambdas, key=lambda lam: (abs(lam - study.config.fusion.lam), lam))


def _pool(study: Study, setup: str, masks: bool = False) -> list[Pair]:
    read = study.pairs_with_masks if masks else study.pairs
    return [pair for split in study.by_patient for pair in read(split, setup)]


def _ill(study: Study, split: str, setup: str) -> list[Pair]:
    """The images with a mass."""
    return [p for p in study.pairs(split, setup) if p.truth.annotation.masses]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
