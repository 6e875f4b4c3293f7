"""What the service answers, as typed values; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["processed", "rejected", "failed", "pending"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Id = Annotated[str, Field(pattern="^[0-9a-f]{24}$")]
FusionMethod = Literal["msf", "wbf", "nms", "none"]


class Failure(BaseModel):
    """What went wrong, for people, and in a word for programs."""

    message: str
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: Failure


class BundleInfo(BaseModel):
    name: str
    sha256: str


class Operating(BaseModel):
    """The settings that the bundle comes with."""

    min_score: float
    fusion: FusionMethod
    lam: float = Field(serialization_alias="lambda")


class UploadLimits(BaseModel):
    """upload, file: bytes. files: number of files in one upload."""

    upload: int
    file: int
    files: int


class Info(BaseModel):
    """bundle, operating: null where no weights are installed."""

    version: str
    notice: str
    bundle: BundleInfo | None
    operating: Operating | None
    formats: list[str]
    study_formats: list[str]
    limits: UploadLimits
    dicomweb: list[str]


class Window(BaseModel):
    """In modality values: slope x stored + intercept."""

    center: float
    width: float


class Rescale(BaseModel):
    slope: float
    intercept: float


class Image(BaseModel):
    """One image. What the file or the findings do not tell is null."""

    image_id: str
    study_id: str
    name: str
    laterality: Literal["L", "R"] | None
    view_position: str | None
    height: int | None
    width: int | None
    spacing_mm: list[float] | None
    bits_stored: int | None
    signed: bool
    photometric_interpretation: Literal["MONOCHROME1", "MONOCHROME2"]
    window: Window | None
    voi_function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
    rescale: Rescale
    status: Status
    reason: str | None
    lesions: int | None
    seen_in_training: bool | None
    has_pixels: bool
    has_truth: bool
    has_layers: bool
    uploaded: bool
    formats: list[str]


class Study(BaseModel):
    study_id: str
    label: str
    images: list[str]
    formats: list[str]


class LayerBox(BaseModel):
    box_xyxy: list[float]
    score: float


class Scale(BaseModel):
    """size: [H, W] of the network's input."""

    size: list[int]
    detections: list[LayerBox]


class FusionMask(BaseModel):
    """M_s of Eq. 1 on the grid that the boxes' edges span: values[j][i] holds from x_edges[i] to x_edges[i + 1] and from
    y_edges[j] to y_edges[j + 1]; 0 elsewhere. Above 1 where boxes of one scale overlap. scale: times a value gives the
    absolute score, at most 1."""

    x_edges: list[int]
    y_edges: list[int]
    values: list[list[float]]
    scale: float


class Layers(BaseModel):
    """What lies behind the lesions. fusion: the method; the mask is null unless it is msf."""

    model_config = ConfigDict(populate_by_name=True)

    lam: float = Field(alias="lambda")
    fusion: FusionMethod
    score_min: float
    scales: list[Scale]
    fusion_mask: FusionMask | None


class TrueLesion(BaseModel):
    box_xyxy: list[float]
    contours_xy: list[list[list[float]]]


class Truth(BaseModel):
    lesions: list[TrueLesion]


class JobSettings(BaseModel):
    """What differs from the bundle's settings."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    min_score: float | None = Field(default=None, ge=0, le=1)
    fusion: FusionMethod | None = None
    lam: float | None = Field(default=None, ge=0, le=1, alias="lambda")


class JobRequest(BaseModel):
    """images: ids, or "all"."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[Id], Field(min_length=1, max_length=100_000)] | Literal["all"]
    settings: JobSettings = JobSettings()


class JobFailure(BaseModel):
    image_id: str
    status: Literal["rejected", "failed"]
    reason: str


class Job(BaseModel):
    """seconds_left: null where it cannot be told yet. error: why the whole job failed."""

    job_id: str
    state: JobState
    kind: Literal["analysis", "import"]
    done: int
    total: int
    seconds_left: float | None
    failures: list[JobFailure]
    error: str | None
    images: list[str]


class JobStarted(BaseModel):
    job_id: str


class Refusal(BaseModel):
    name: str
    reason: str


class UploadAnswer(BaseModel):
    """refused: files that hold no image, with the reason."""

    job_id: str
    images: list[str]
    refused: list[Refusal]


class StudyQuery(BaseModel):
    """What to look for at a DICOMweb server. `*` stands for anything, as in DICOM. study_date: YYYYMMDD, or A-B."""

    model_config = ConfigDict(extra="forbid")

    server: str | None = Field(default=None, max_length=500)
    patient_id: str | None = Field(default=None, max_length=64)
    patient_name: str | None = Field(default=None, max_length=200)
    accession_number: str | None = Field(default=None, max_length=64)
    study_date: str | None = Field(default=None, pattern=r"^([0-9]{8}|[0-9]{8}-|-[0-9]{8}|[0-9]{8}-[0-9]{8})$")
    limit: int = Field(default=50, ge=1, le=100)
    offset: int = Field(default=0, ge=0, le=1_000_000)


class FoundStudy(BaseModel):
    study_instance_uid: str
    patient_name: str
    patient_id: str
    study_date: str
    description: str
    modalities: list[str]
    n_instances: int | None


class SearchAnswer(BaseModel):
    studies: list[FoundStudy]


class ImportRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    server: str | None = Field(default=None, max_length=500)
    study_instance_uid: str = Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)
    settings: JobSettings = JobSettings()


Findings = dict[str, Any]
