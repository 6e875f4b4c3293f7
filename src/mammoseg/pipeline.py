"""From a native full mammogram to the contour of every mass in it, without user intervention (the paper's Sect. 3).

Masses are detected at several scales of the whole image, the detections of all scales are fused, each fused box is cut
out and delineated by the segmentation network, and the contours are put back into the native image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mammoseg.bundle import Bundle, hash_if_readable, open_bundle
from mammoseg.config import from_dict, to_dict, with_sets
from mammoseg.detection.predictor import Detector, DetectorSpec
from mammoseg.errors import ConfigError, ImageError, NotAMammogramError, UsageError
from mammoseg.fusion import FusionConfig, candidates, fuse_all
from mammoseg.io.load import load_array, load_mammogram
from mammoseg.provenance import describe_run
from mammoseg.reconstruction import ReconstructionConfig, reconstruct
from mammoseg.runtime import RuntimeConfig, load_network
from mammoseg.scores import CalibrationConfig
from mammoseg.segmentation.predictor import Segmenter, read_spec
from mammoseg.types import Detections, Findings, ImageInfo, Lesion, Mammogram, Size, Spacing, Status

LANES = 2
"""Scales at a time: the largest of the paper's five is two fifths of all the work, so that more lanes would wait for it."""

SIDE_MOST = 4096
"""Of a scale, in px: about a mammogram's own; what is larger is a slip that would take all memory."""


def parse_scales(text: str) -> list[tuple[int, int]]:
    """Scales as written, width x height, to (H, W).

    >>> parse_scales("160x320,256x512")
    [(320, 160), (512, 256)]
    """
    out = []
    for part in text.replace("×", "x").split(","):
        width, x, height = part.strip().lower().partition("x")
        if not x or not width.isdecimal() or not height.isdecimal():
            raise UsageError(f"--scales: expected WIDTHxHEIGHT,... such as 320x640,480x960, got {part.strip()!r}")
        if int(width) % 32 or int(height) % 32 or not int(width) or not int(height):
            raise UsageError(f"--scales: width and height must be multiples of 32, got {part.strip()}")
        out.append((int(height), int(width)))
    return out


@dataclass(frozen=True)
class DetectionConfig:
    """scales: (H, W) each, small first; none means the detector's own. score_min: boxes below it are not looked at further."""

    scales: tuple[Size, ...] = ()
    score_min: float = 0.005

    def __post_init__(self) -> None:
        if any(side < 32 or side % 32 for size in self.scales for side in size):
            raise ValueError(f"scales: expected sides that are multiples of 32, got {self.scales}")
        if any(side > SIDE_MOST for size in self.scales for side in size):
            raise ValueError(f"scales: expected sides of at most {SIDE_MOST} px, got {self.scales}")
        if not 0.0 <= self.score_min <= 1.0:
            raise ValueError(f"score_min: expected a number from 0 to 1, got {self.score_min}")


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which on lesions are reported so that `fpi` false positives an image come of it on held-out images."""

    fpi: float
    score_min: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.fpi < float("inf") and 0.0 <= self.score_min <= 1.0):
            raise ValueError(f"operating point: expected fpi >= 0 and score_min in 0..1, got {self.fpi} and {self.score_min}")


@dataclass(frozen=True)
class PipelineConfig:
    """All settings; a bundle's config.json gives the values that suit its networks.

    operating_points: those the bundle knows; `fusion.lesion_score_min` is the one in use.
    """

    detection: DetectionConfig = field(default_factory=DetectionConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    operating_points: tuple[OperatingPoint, ...] = ()

    def at(self, fpi: float) -> PipelineConfig:
        """These settings at the operating point of `fpi` false positives an image. Raises ConfigError with those there are."""
        for point in self.operating_points:
            if abs(point.fpi - fpi) < 1e-9:
                return replace(self, fusion=replace(self.fusion, lesion_score_min=point.score_min))
        known = ", ".join(f"{p.fpi:g}" for p in self.operating_points) or "none; retrain or calibrate it"
        raise ConfigError(f"operating point {fpi:g}: expected one that the bundle has (false positives an image): {known}")


class Pipeline:
    """The whole method with loaded networks; one image at a time, the same result every time."""

    def __init__(self, detector: Detector, segmenter: Segmenter, config: PipelineConfig, bundle: Bundle) -> None:
        self.detector = detector
        self.segmenter = segmenter
        self.config = config
        self.bundle = bundle
        self.provenance = describe_run(bundle, to_dict(settings_of(bundle)), to_dict(config))

    def analyze(self, mammogram: Mammogram, boxes: Detections | None = None) -> Findings:
        """The masses of one mammogram. boxes: given boxes to delineate instead of detecting (native frame)."""
        if boxes is None:
            d, fusion = self.config.detection, self.config.fusion
            per_scale = self.detector.detect(mammogram, d.scales or None, d.score_min, fusion.nms_iou)
            found, whole = fuse_all(per_scale, fusion)
        else:
            per_scale, found = [Detections.empty(mammogram.size)], boxes.best_first()
            whole = per_scale[0]
        masks = self.segmenter.segment(mammogram, found.boxes)
        lesions = reconstruct(masks, found, mammogram, self.config.reconstruction, self.detector.lanes)
        shown = candidates(_as_detections(lesions, mammogram.size), per_scale, self.config.fusion, found.boxes, whole)
        return Findings(self._image_info(mammogram), "processed", None, lesions, shown, self.provenance)

    def analyze_file(self, path: Path | str, source: str | None = None) -> Findings:
        """The masses in an image file; a file that cannot be used gives findings with its status and reason.

        source: the name shown to people, the file's own by default.
        """
        file, name = Path(path), source or Path(path).name
        try:
            return self.analyze(load_mammogram(file, name))
        except ImageError as error:
            return self.unusable(file, name, error)

    def analyze_array(self, pixels: NDArray[Any], spacing_mm: Spacing | None = None) -> Findings:
        """The masses in an array [H, W], bright = dense. spacing_mm: (row, column). Raises `ImageError` for no mammogram."""
        return self.analyze(load_array(pixels, spacing_mm))

    def unusable(self, path: Path, source: str, error: Exception) -> Findings:
        """Findings that say why a file was not processed."""
        status: Status = "rejected" if isinstance(error, NotAMammogramError) else "failed"
        digest = hash_if_readable(path)
        height, width = (error.size if isinstance(error, NotAMammogramError) else None) or (None, None)
        info = ImageInfo(source, height, width, file_sha256=digest, seen_in_training=self.bundle.has_seen(digest))
        return Findings(info, status, str(error), provenance=self.provenance)

    def _image_info(self, m: Mammogram) -> ImageInfo:
        return ImageInfo(
            m.source or m.image_id,
            m.size[0],
            m.size[1],
            m.spacing_mm,
            m.spacing_source,
            m.laterality,
            m.view_position,
            m.file_sha256,
            self.bundle.has_seen(m.file_sha256),
        )


def load(bundle: Path | str | None = None, sets: Iterable[str] = (), config: PipelineConfig | None = None) -> Pipeline:
    """A pipeline ready to use. bundle: a directory, the installed weights by default.

    sets: `key=value` changes of the bundle's settings, such as "fusion.method=wbf". config: all settings at once.
    Raises `BundleError` or `ConfigError`.
    """
    opened = open_bundle(bundle)
    settings = config or changed(settings_of(opened), sets)
    networks = opened.config["networks"]
    detector = load_network(opened.directory, "detector", settings.runtime, LANES)
    segmenter = load_network(opened.directory, "segmenter", settings.runtime)
    return Pipeline(
        Detector(detector, from_dict(DetectorSpec, networks["detector"]["spec"]), detector.lanes),
        Segmenter(segmenter, read_spec(networks["segmenter"]["spec"])),
        settings,
        opened,
    )


def settings_of(bundle: Bundle) -> PipelineConfig:
    """The settings a bundle comes with."""
    return from_dict(PipelineConfig, bundle.config.get("pipeline", {}), "pipeline")


def changed(settings: PipelineConfig, sets: Iterable[str]) -> PipelineConfig:
    """`settings` with `key=value` changes; another way of fusing starts uncalibrated. Raises ConfigError on unknown ones."""
    changes = list(sets)
    if with_sets(settings, changes).fusion.method != settings.fusion.method:
        settings = uncalibrated(settings)
    return with_sets(settings, changes)


def uncalibrated(settings: PipelineConfig) -> PipelineConfig:
    """`settings` with raw scores, every lesion and no operating points: what was fitted holds for one detector and fusion."""
    raw = replace(settings.fusion, calibration=CalibrationConfig(), lesion_score_min=0.0)
    return replace(settings, fusion=raw, operating_points=())


def _as_detections(lesions: tuple[Lesion, ...], size: Size) -> Detections:
    boxes = np.array([lesion.box for lesion in lesions], dtype=np.float64).reshape(-1, 4)
    return Detections(boxes, np.array([lesion.score for lesion in lesions], dtype=np.float64), size, "lesions")
