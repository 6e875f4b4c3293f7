"""Saved findings against the truth: counts, figures with intervals, curves. Never runs a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.config import to_dict
from mammoseg.datasets import dataset_name, read_dataset
from mammoseg.datasets.splits import Side, read_side
from mammoseg.errors import EvaluationError
from mammoseg.evaluation.average_precision import PrecisionRecall, precision_recall
from mammoseg.evaluation.bootstrap import Interval, intervals, resamples
from mammoseg.evaluation.calibration import Reliability, reliability
from mammoseg.evaluation.froc import FPI, Froc, froc
from mammoseg.evaluation.inputs import Pairs, admit, load_findings, pair, trained_on_patients
from mammoseg.evaluation.matching import Criterion
from mammoseg.evaluation.measures import (
    Measure,
    Outcome,
    crop_measures,
    detection_measures,
    operating_measures,
    outcome,
    outline_measures,
    rank_candidates,
)
from mammoseg.evaluation.results_files import coco_ids, read_results
from mammoseg.evaluation.strata import Stratum, stratify
from mammoseg.types import DatasetItem, Findings

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    iou: a box has found a mass from this IoU on; the figures for IoU 0.1, 0.2 and by centre come beside it.
    fpi: false positives per image to read FROC at. resamples, seed, level: of the bootstrap by patient; 0 resamples: none.
    allow_seen: also images the bundle was trained on. allow_missing: leave out truth images without findings.
    crops: a second folder of findings, made with the true boxes (`mammoseg segment --boxes`), for Dice on true crops.
    worst: how many cases of each kind the HTML report shows; 0 for none. score_min: of detections in a file of others (COCO
    results, CSV), from which score on one counts as a lesion shown.
    """

    iou: float = 0.5
    fpi: tuple[float, ...] = FPI
    resamples: int = 1000
    seed: int = 0
    level: float = 0.95
    allow_seen: bool = False
    allow_missing: bool = False
    crops: str | None = None
    worst: int = 6
    score_min: float = 0.5


@dataclass(frozen=True)
class Count:
    """Explicit counts; nothing is told by the length of a list or by a sentinel."""

    n_images: int
    n_images_with_mass: int
    n_patients: int
    n_truth: int
    n_truth_with_mask: int
    n_processed: int
    n_rejected: int
    n_failed: int
    n_lesions: int
    n_lesions_without_segmentation: int
    n_candidates: int
    n_seen_in_training: int
    n_missing_findings: int
    n_findings_without_truth: int


@dataclass(frozen=True)
class Figure:
    """One measured figure with its interval; n of unit says what it was measured on."""

    key: str
    label: str
    interval: Interval
    n: int
    unit: str


@dataclass(frozen=True)
class Part:
    """The part of a data set that was evaluated on: a side of a fold, which its content hash identifies."""

    fold: str
    content_hash: str
    side: Side

    @property
    def text(self) -> str:
        """As shown to people."""
        return f"the {self.side} side of the fold {self.fold} ({self.content_hash[:12]})"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result. curves are None where the truth holds no mass; outcomes: one an image, in the truth's order.

    part: None where the whole data set was evaluated on. reliability: of the candidates' scores as probabilities.
    """

    counts: Count
    figures: tuple[Figure, ...]
    pr: PrecisionRecall | None
    froc: Froc | None
    outcomes: tuple[Outcome, ...]
    options: EvaluationOptions
    bundles: tuple[str, ...] = ()
    strata: tuple[Stratum, ...] = ()
    part: Part | None = None
    reliability: Reliability | None = None

    def __getitem__(self, key: str) -> Interval:
        """The figure named `key`, e.g. "ap_iou_0.5"; raises KeyError that lists those there are."""
        for figure in self.figures:
            if figure.key == key:
                return figure.interval
        raise KeyError(f"no figure {key!r}; there are {', '.join(f.key for f in self.figures)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, no absolute path, no clock time."""
        curves: dict[str, Any] = {"precision_recall": None, "froc": None}
        if self.pr is not None and self.froc is not None:
            curves["precision_recall"] = _rounded(score=self.pr.thresholds, recall=self.pr.recall, precision=self.pr.precision)
            curves["froc"] = _rounded(score=self.froc.thresholds, fp_per_image=self.froc.fpi, tpr=self.froc.tpr)
        options = to_dict(self.options)
        options["crops"] = self.options.crops is not None
        return {
            "schema_version": SCHEMA_VERSION,
            "bundles": list(self.bundles),
            "part": None if self.part is None else dataclasses.asdict(self.part),
            "options": options,
            "counts": dataclasses.asdict(self.counts),
            "figures": {
                f.key: {"label": f.label, **dataclasses.asdict(f.interval), "n": f.n, "unit": f.unit} for f in self.figures
            },
            "curves": curves,
            "reliability": None if self.reliability is None else dataclasses.asdict(self.reliability),
            "strata": [dataclasses.asdict(s) for s in self.strata],
            "images": [_row(o) for o in self.outcomes],
        }


def evaluate(
    findings_dir: Path, truth: Sequence[DatasetItem], options: EvaluationOptions, dataset_names: Iterable[str] = ()
) -> Evaluation:
    """Evaluates the findings below `findings_dir` (written by `mammoseg segment`) against the truth.

    Rejected and failed images count as images without a detection. dataset_names: names this dataset may have had when
    a bundle was trained on it, to recognise its patients. Raises EvaluationError as `admit` and `pair` say.
    """
    names = list(dataset_names)
    pairs = pair(load_findings(findings_dir), truth, trained_on_patients(findings_dir, options.allow_seen), names)
    crops = None
    if options.crops is not None:
        folder = Path(options.crops)
        made = load_findings(folder)
        if any(f.status == "processed" and "boxes_sha256" not in f.provenance for f in made):
            raise EvaluationError(
                f"{folder}: expected findings made with the true boxes given, got a run that detected by itself; "
                "segment again with --boxes and the boxes of the truth"
            )
        with_masses = [item for item in truth if item.annotation.masses]  # images without boxes are not in such a run
        crops = pair(made, with_masses, trained_on_patients(folder, options.allow_seen), names)
    return evaluate_pairs(pairs, options, crops)


def evaluate_pairs(pairs: Pairs, options: EvaluationOptions, crops: Pairs | None = None) -> Evaluation:
    """As `evaluate`, from findings and truth already paired."""
    admit(pairs, options.allow_seen, options.allow_missing)
    criterion = Criterion("iou", options.iou)
    outcomes = tuple(outcome(p, criterion) for p in pairs.pairs)
    others = [c for c in (Criterion("iou", 0.1), Criterion("iou", 0.2), Criterion("centre")) if c != criterion]
    ranked = rank_candidates(pairs.pairs, criterion)
    measures = detection_measures(ranked, criterion, options.fpi, primary=True) + operating_measures(outcomes)
    measures += outline_measures(outcomes)
    for other in others:
        measures += detection_measures(rank_candidates(pairs.pairs, other), other, options.fpi, primary=False)
    figures = _with_intervals(measures, pairs, options)
    if crops is not None:
        admit(crops, options.allow_seen, options.allow_missing)
        figures += _with_intervals(crop_measures(crops.pairs, outcomes), crops, options)
    reliable = reliability(ranked.scores, ranked.hits)
    if reliable is not None:
        figures += [
            Figure(
                "ece",
                f"Expected calibration error, candidates from {reliable.least:g}",
                Interval(reliable.ece),
                reliable.n,
                "candidates",
            ),
            Figure(
                "brier", f"Brier score, candidates from {reliable.least:g}", Interval(reliable.brier), reliable.n, "candidates"
            ),
        ]
    counts = ranked.counts()
    return Evaluation(
        counts=_count(pairs),
        figures=tuple(figures),
        pr=precision_recall(counts) if ranked.n_truth else None,
        froc=froc(counts) if ranked.n_truth else None,
        outcomes=outcomes,
        options=options,
        bundles=_bundles([p.findings for p in pairs.pairs]),
        strata=tuple(stratify(outcomes, _weights(pairs, options), options.level)),
        reliability=reliable,
    )


def evaluate_command(
    findings: Path,
    truth: str,
    out: Path | None,
    options: EvaluationOptions,
    fold: Path | None = None,
    side: Side = "validation",
) -> Evaluation:
    """What `mammoseg evaluate FINDINGS --truth DATASET [--out OUT]` does: evaluates and writes evaluation.json and .html.

    findings: the OUT folder of `mammoseg segment`, or a file of others' detections (see `results_files`). truth: a dataset spec
    such as "coco:annotations.json". out: a folder, made if need be; None writes nothing. fold: file of a fold of the dataset,
    of which `side` alone is evaluated on; None takes all images.
    """
    from mammoseg.evaluation.report import write_report  # matplotlib is slow to import

    items, split = (read_dataset(truth), None) if fold is None else read_side(truth, fold, side)
    if findings.is_file():
        evaluation = evaluate_pairs(read_results(findings, items, options.score_min, coco_ids(truth)), options)
    else:
        evaluation = evaluate(findings, items, options, [dataset_name(truth)])
    if split is not None:
        evaluation = dataclasses.replace(evaluation, part=Part(split.name, split.content_hash, side))
    if out is not None:
        write_report(out, evaluation)
    return evaluation


def _with_intervals(measures: list[Measure], pairs: Pairs, options: EvaluationOptions) -> list[Figure]:
    found = intervals(lambda w: [m.value(w) for m in measures], _weights(pairs, options), options.level)
    return [Figure(m.key, m.label, i, m.n, m.unit) for m, i in zip(measures, found, strict=True)]


def _weights(pairs: Pairs, options: EvaluationOptions) -> NDArray[np.float64]:
    return resamples([p.truth.patient_id for p in pairs.pairs], options.resamples, options.seed)


def _count(pairs: Pairs) -> Count:
    truths = [p.truth for p in pairs.pairs]
    findings = [p.findings for p in pairs.pairs]
    masses = [m for t in truths for m in t.annotation.masses]
    status = [f.status for f in findings]
    return Count(
        n_images=len(truths),
        n_images_with_mass=sum(bool(t.annotation.masses) for t in truths),
        n_patients=len({t.patient_id for t in truths}),
        n_truth=len(masses),
        n_truth_with_mask=sum(m.mask is not None for m in masses),
        n_processed=status.count("processed"),
        n_rejected=status.count("rejected"),
        n_failed=status.count("failed"),
        n_lesions=sum(len(f.lesions) for f in findings),
        n_lesions_without_segmentation=sum(x.outline == "ellipse" for f in findings for x in f.lesions),
        n_candidates=sum(len(f.candidates) for f in findings if f.candidates is not None),
        n_seen_in_training=len(pairs.seen),
        n_missing_findings=len(pairs.missing),
        n_findings_without_truth=pairs.n_extra,
    )


def _bundles(findings: Sequence[Findings]) -> tuple[str, ...]:
    named = [f.provenance.get("bundle") for f in findings]
    return tuple(sorted({f"{b.get('name')} {str(b.get('sha256'))[:12]}" for b in named if isinstance(b, dict)}))


def _row(o: Outcome) -> dict[str, Any]:
    return {
        "image_id": o.pair.truth.image_id,
        "status": o.pair.findings.status,
        "reason": o.pair.findings.reason,
        "n_truth": len(o.pair.truth.annotation.masses),
        "n_lesions": len(o.found),
        "n_found": int((o.found >= 0).sum()),
        "n_false_positives": int((o.found < 0).sum()),
        "best_scores": list(o.best_score),
        "dice_end_to_end": o.dice,
    }


def _rounded(**arrays: Any) -> dict[str, list[float]]:
    return {name: np.round(values, 6).tolist() for name, values in arrays.items()}
