"""The values that pass between stages: frozen, numpy only, valid once constructed.

Frame: every coordinate is a float `xyxy`, half-open, in pixel *edges* of the named image; (0, 0) is the top-left corner
of the top-left pixel (DICOM's SCOORD frame). Sizes are `(H, W)` in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mammoseg.geometry import Transform

Size = tuple[int, int]
Spacing = tuple[float, float]
Status = Literal["processed", "rejected", "failed"]

FloatImage = NDArray[np.float32]
BoolMask = NDArray[np.bool_]
Boxes = NDArray[np.float64]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _frozen_array(value: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: the caller's array stays writable, ours cannot be changed through the value."""
    view = value.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class Mammogram:
    """One decoded mammogram.

    pixels: f32[H, W] in [0, 1], bright = dense (MONOCHROME2), after modality and VOI transforms.
    image_id: identifies the image among those of one run (its `source` by default).
    source: path shown to people, relative, never absolute.
    spacing_mm: (row, column) spacing at the breast in mm, or None where unknown; `spacing_source` says which attribute.
    laterality: "L", "R" or None. view_position: "CC", "MLO", ... or None. presentation_intent: DICOM's words, or None.
    file_sha256: hex digest of the file's bytes, or None for arrays.
    """

    pixels: FloatImage
    image_id: str
    source: str = ""
    spacing_mm: Spacing | None = None
    spacing_source: str | None = None
    laterality: str | None = None
    view_position: str | None = None
    presentation_intent: str | None = None
    file_sha256: str | None = None

    def __post_init__(self) -> None:
        _check(
            self.pixels.ndim == 2 and self.pixels.dtype == np.float32,
            f"Mammogram.pixels: expected float32[H, W], got {self.pixels.dtype}{list(self.pixels.shape)}",
        )
        _check(min(self.pixels.shape) > 0, "Mammogram.pixels: expected at least one pixel")
        _check(
            self.spacing_mm is None or all(np.isfinite(s) and s > 0 for s in self.spacing_mm),
            f"Mammogram.spacing_mm: expected two positive numbers, got {self.spacing_mm}",
        )
        _check(self.laterality in (None, "L", "R"), f"Mammogram.laterality: expected L, R or None, got {self.laterality!r}")
        object.__setattr__(self, "pixels", _frozen_array(self.pixels))

    @property
    def size(self) -> Size:
        """(H, W) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes with scores, best first where a stage says so.

    boxes: f64[N, 4] `xyxy` in the native image. scores: f64[N] in [0, 1]. size: (H, W) of the native image.
    origin: what produced them, e.g. the scale "480x960" or "msf". iou_most: no two boxes overlap by more, as far as is known
    (after non-maximum suppression it is that IoU).
    """

    boxes: Boxes
    scores: NDArray[np.float64]
    size: Size
    origin: str = ""
    iou_most: float = 1.0

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(self.scores, dtype=np.float64).reshape(-1)
        _check(len(boxes) == len(scores), f"Detections: expected as many scores as boxes, got {len(scores)} and {len(boxes)}")
        _check(bool(np.isfinite(boxes).all() and np.isfinite(scores).all()), "Detections: expected finite boxes and scores")
        _check(bool((boxes[:, 2:] >= boxes[:, :2]).all()), "Detections: expected x1 <= x2 and y1 <= y2")
        _check(bool(((scores >= 0) & (scores <= 1)).all()), "Detections: expected scores in [0, 1]")
        object.__setattr__(self, "boxes", _frozen_array(boxes))
        object.__setattr__(self, "scores", _frozen_array(scores))

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, size: Size, origin: str = "") -> Detections:
        """No detection at all in an image of `size`."""
        return cls(np.zeros((0, 4)), np.zeros(0), size, origin)

    def select(self, index: NDArray[Any]) -> Detections:
        """The detections at `index` (integers, each once, or booleans), in that order."""
        return Detections(self.boxes[index], self.scores[index], self.size, self.origin, self.iou_most)

    def best_first(self) -> Detections:
        """Sorted by falling score; ties keep their order."""
        return self.select(np.argsort(-self.scores, kind="stable"))


@dataclass(frozen=True, eq=False)
class Crop:
    """One region cut out for segmentation.

    pixels: f32[h, w] in [0, 1], contrast not yet equalised. to_crop: maps native coordinates to crop coordinates.
    index: which detection it was cut for.
    """

    pixels: FloatImage
    to_crop: Transform
    index: int = 0

    def __post_init__(self) -> None:
        _check(self.pixels.ndim == 2 and self.pixels.dtype == np.float32, "Crop.pixels: expected float32[h, w]")


@dataclass(frozen=True, eq=False)
class CropMask:
    """The segmenter's answer for one crop. probability: f32[h, w] in [0, 1]. to_crop: native to crop coordinates."""

    probability: FloatImage
    to_crop: Transform
    index: int = 0

    def __post_init__(self) -> None:
        _check(
            self.probability.ndim == 2 and self.probability.dtype == np.float32,
            "CropMask.probability: expected float32[h, w]",
        )


@dataclass(frozen=True, eq=False)
class Lesion:
    """One mass as found, in the native image frame.

    id: 1, 2, ... best score first; equals its label in `mask.png`. box: the detection box `xyxy`. score: in [0, 1].
    mask: bool[h, w], its top-left pixel at `origin_px` (row, column); the rest of the image is background.
    contour_xy: closed outer outline f64[K, 2] of (x, y), first point not repeated, smooth at full resolution.
    area_px: number of mask pixels. area_mm2, long_axis_mm, short_axis_mm: None where spacing is unknown.
    outline: "segmented", or "ellipse" where the segmenter saw nothing in the box and the inscribed ellipse stands in.
    """

    id: int
    box: tuple[float, float, float, float]
    score: float
    mask: BoolMask
    origin_px: tuple[int, int]
    contour_xy: NDArray[np.float64]
    area_mm2: float | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    outline: Literal["segmented", "ellipse"] = "segmented"

    def __post_init__(self) -> None:
        _check(self.id >= 1, f"Lesion.id: expected 1 or more, got {self.id}")
        _check(0.0 <= self.score <= 1.0, f"Lesion.score: expected 0..1, got {self.score}")
        _check(self.mask.ndim == 2 and self.mask.dtype == np.bool_, "Lesion.mask: expected bool[h, w]")
        _check(bool(self.mask.any()), "Lesion.mask: expected at least one pixel")
        _check(self.contour_xy.ndim == 2 and self.contour_xy.shape[1] == 2, "Lesion.contour_xy: expected float64[K, 2]")

    @property
    def area_px(self) -> int:
        """Number of pixels inside."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class ImageInfo:
    """What is known of the image behind `Findings`; sizes are None where it could not be decoded."""

    source: str
    height: int | None = None
    width: int | None = None
    spacing_mm: Spacing | None = None
    spacing_source: str | None = None
    laterality: str | None = None
    view_position: str | None = None
    file_sha256: str | None = None
    seen_in_training: bool | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """What every consumer takes: the outcome for one image.

    status: `processed` (nothing found is an empty `lesions`), `rejected` or `failed` (both with a `reason`, no lesions).
    candidates: at most 100: first every lesion (same box, same score, same order; of more than 100 the first 100), then what
    no lesion stands for with a score >= 0.005, best first.
    provenance: bundle name and hash, versions, settings; JSON-able; no clock time, no absolute path.
    """

    image: ImageInfo
    status: Status
    reason: str | None = None
    lesions: tuple[Lesion, ...] = ()
    candidates: Detections | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status == "processed":
            _check(self.reason is None, "Findings: a processed image has no reason")
            _check(self.image.height is not None and self.image.width is not None, "Findings: a processed image has a size")
            _check(self.candidates is not None, "Findings: a processed image has candidates (perhaps none)")
        else:
            _check(bool(self.reason), f"Findings: status {self.status} needs a reason")
            _check(not self.lesions and not self.candidates, f"Findings: status {self.status} has no lesions or candidates")


@dataclass(frozen=True, eq=False)
class TrueMass:
    """One annotated mass.

    box: `xyxy`, native frame. mask: bool[h, w] at `origin_px` (row, column), or None where only a box is known.
    """

    box: tuple[float, float, float, float]
    mask: BoolMask | None = None
    origin_px: tuple[int, int] = (0, 0)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Annotation:
    """The truth for one image. An image annotated as free of masses has `masses == ()`."""

    image_id: str
    size: Size
    masses: tuple[TrueMass, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetItem:
    """One image of a dataset. path: file on disk. annotation: its truth. spacing_mm as in `Mammogram`."""

    image_id: str
    path: str
    patient_id: str
    annotation: Annotation
    laterality: str | None = None
    view_position: str | None = None
    spacing_mm: Spacing | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """Image ids of one split, grouped by patient: no patient is on two sides. content_hash: of the ids and their sides."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()
    content_hash: str = ""
