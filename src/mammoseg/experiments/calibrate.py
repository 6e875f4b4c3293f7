"""Saved findings of held-out images to the settings that make their scores probabilities, and to operating points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mammoseg.config import to_dict
from mammoseg.datasets import dataset_name
from mammoseg.errors import EvaluationError
from mammoseg.evaluation.calibration import Reliability, cross_fitted, fit_logistic, reliability, score_at
from mammoseg.evaluation.inputs import Pairs, admit, load_findings, pair, trained_on_patients
from mammoseg.evaluation.matching import Criterion, Ranked
from mammoseg.evaluation.measures import rank_candidates
from mammoseg.pipeline import OperatingPoint
from mammoseg.scores import CalibrationConfig
from mammoseg.types import DatasetItem

FPI = (0.1, 0.2, 0.5)
DEFAULT_FPI = 0.2


@dataclass(frozen=True)
class Calibration:
    """calibration, points: to ship. before: of the raw scores; crossed: each patient's by a map fitted on the other patients.

    n_images, n_masses: measured on. dataset: its name. settings: of detection and fusion, those the findings were made with;
    bundle: name and sha256 of the one that made them.
    """

    calibration: CalibrationConfig
    points: tuple[OperatingPoint, ...]
    before: Reliability | None
    crossed: Reliability | None
    n_images: int
    n_masses: int
    dataset: str
    settings: dict[str, Any]
    bundle: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. "pipeline" are settings of a bundle, differences from those that the findings were made with."""
        default = next((p.score_min for p in self.points if p.fpi == DEFAULT_FPI), 0.0)
        return {
            "pipeline": {
                **self.settings,
                "fusion": {**self.settings["fusion"], "calibration": to_dict(self.calibration), "lesion_score_min": default},
                "operating_points": [to_dict(p) for p in self.points],
            },
            "measured": {
                "on": f"{self.n_images} images with {self.n_masses} masses of {self.dataset}",
                "criterion": Criterion().name,
                "bundle": self.bundle,
                "raw": None if self.before is None else asdict(self.before),
                "cross_fitted": None if self.crossed is None else asdict(self.crossed),
            },
        }


def calibrate(findings: Path, truth: str, items: Sequence[DatasetItem], folds: int = 5) -> Calibration:
    """Fits scores and operating points on the findings below `findings` (of `mammoseg segment`) against `items` of `truth`.

    All images of `items` must have findings, none may have been trained on, all made with one setting and raw scores. Raises
    EvaluationError as `admit` and `fit_logistic`, and where findings are calibrated already or of several settings.
    """
    pairs = pair(load_findings(findings), items, trained_on_patients(findings, False), [dataset_name(truth)])
    admit(pairs)
    settings, bundle = _made_with(pairs)
    ranked = rank_candidates(pairs.pairs, Criterion())
    fitted = fit_logistic(ranked.scores, ranked.hits)
    probable = Ranked(fitted.apply(ranked.scores), ranked.hits, ranked.image, ranked.truth_per_image)
    points = tuple(OperatingPoint(f, round(s, 6)) for f in FPI if (s := score_at(probable, f)) is not None)
    crossed = cross_fitted(ranked, [p.truth.patient_id for p in pairs.pairs], folds)
    return Calibration(
        fitted,
        points,
        reliability(ranked.scores, ranked.hits),
        reliability(crossed, ranked.hits),
        ranked.n_images,
        ranked.n_truth,
        dataset_name(truth),
        settings,
        bundle,
    )


def _made_with(pairs: Pairs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of detection and fusion of all findings, without those that calibration sets, and the bundle."""
    made = [
        ({k: f.provenance.get("settings", {}).get(k, {}) for k in ("detection", "fusion")}, f.provenance.get("bundle", {}))
        for f in (p.findings for p in pairs.pairs)
        if f.status == "processed"
    ]
    if not made or any(m != made[0] for m in made):
        raise EvaluationError(
            "calibration: expected findings of one bundle with one setting of detection and fusion; segment all images alike"
        )
    settings, bundle = made[0]
    raw = to_dict(CalibrationConfig())
    if settings["fusion"].get("calibration", raw) != raw:
        raise EvaluationError(
            "calibration: expected raw scores, got findings that are calibrated already: segment with "
            "--set fusion.calibration.slope=1 --set fusion.calibration.offset=0"
        )
    fusion = {k: v for k, v in settings["fusion"].items() if k not in ("calibration", "lesion_score_min")}
    return {**settings, "fusion": fusion}, bundle
