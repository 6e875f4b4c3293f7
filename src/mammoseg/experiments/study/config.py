"""All settings of the study in one place: the defaults are the published experiments (Yan et al. 2020, Sect. 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mammoseg.config import from_dict
from mammoseg.errors import ConfigError
from mammoseg.experiments.train_detector import DetectorTrainConfig
from mammoseg.experiments.train_segmenter import SegmenterTrainConfig
from mammoseg.fusion import FusionConfig
from mammoseg.reconstruction import ReconstructionConfig
from mammoseg.training.loop import LoopConfig
from mammoseg.types import Size

PUBLISHED_TRAIN = 74 / 107


@dataclass(frozen=True)
class DataConfig:
    """In what form the study sees its images (Sect. 3.1: "2048 × 1024 full mammograms").

    size: (H, W) of every prepared image. aspect: "stretch" to it, as published, or "keep", no larger than it. official_split:
    which part of CBIS-DDSM the detector is pre-trained on.
    """

    size: Size = (2048, 1024)
    aspect: Literal["stretch", "keep"] = "stretch"
    official_split: Literal["all", "train"] = "all"


@dataclass(frozen=True)
class SplitConfig:
    """How INbreast is divided (Sect. 4.1: five random splits of 74 training and 33 test images).

    count: T1 … Tn. train: the share of images with a mass that is trained on. seed: of the draw; split k draws by seed + k.
    """

    count: int = 5
    train: float = PUBLISHED_TRAIN
    seed: int = 2020

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.train < 1:
            raise ConfigError(
                f"splits: expected a count of 1 or more and a share inside (0, 1), got {self.count}, {self.train}"
            )


@dataclass(frozen=True)
class OneStageConfig:
    """A network on the whole image, without detection (Table 5).

    size: (H, W) of its input. equalise: histogram equalisation over the whole image, as for crops. symmetries: flips in
    training. training: as for crops; networks differ by what `networks` says under `one_stage`.
    """

    size: Size = (2048, 1024)
    equalise: bool = True
    symmetries: bool = True
    training: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4000, batch_size=4, optimizer="adam", learning_rate=1e-4, weight_decay=0.0, ema_decay=0.0
        )
    )


@dataclass(frozen=True)
class AssumptionConfig:
    """What the paper leaves open and no other setting holds; the report lists them all, with the others.

    single_scale: (H, W) of the scale behind Table 1, and of "two-stage w/o MSF" in Table 5. hit_iou: from which IoU on a box
    has found a mass in FROC and TPR@FPI (stated for AP alone). dice: "image" is the Dice of all pixels of an image, missed
    masses and false positives counting in full, averaged over the images with a mass; "matched" counts masses that were found.
    curve_score_min: the lowest score of a box that enters a curve.
    """

    single_scale: Size = (640, 320)
    hit_iou: float = 0.5
    dice: Literal["image", "matched"] = "image"
    curve_score_min: float = 0.005


@dataclass(frozen=True)
class MendedConfig:
    """The same questions asked as they should be: patients apart, thresholds from an inner validation set, normal images too.

    splits: how many patient-wise ones; 0 leaves this part out. train, validation: shares of patients; the rest is tested on.
    networks: which of `networks`; the first is compared with the others. lambdas: tried on the validation set. fpi_max: the λ
    and the score threshold with the most masses found at no more false positives an image are taken. resamples: of the
    bootstrap.
    """

    splits: int = 5
    train: float = PUBLISHED_TRAIN
    validation: float = 11 / 107
    seed: int = 4040
    networks: tuple[str, ...] = ("unetpp", "unet")
    lambdas: tuple[float, ...] = (0.0, 0.5, 0.6, 0.7)
    fpi_max: float = 0.25
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.splits < 0 or min(self.train, self.validation) <= 0 or self.train + self.validation >= 1:
            raise ConfigError("mended: expected splits of 0 or more, and shares that leave patients to test on")


def _published_networks() -> dict[str, dict[str, Any]]:
    return {
        "unet": {"arch": "unet"},
        "cgan": {"arch": "cgan"},
        "cascade": {"arch": "cascade"},
        "unetpp": {"arch": "unetpp"},
    }


@dataclass(frozen=True)
class StudyConfig:
    """The whole study.

    pretrain: of the detector on CBIS-DDSM; pretrained: a model directory or bundle (or the word installed) that stands for it,
    refused where it was trained on images of the study or on others of their patients, unless `allow_seen`.
    finetune: on each training side of INbreast. fusion: MSF as in Table 5 (λ = 0.6), its per-scale threshold and NMS. lambdas:
    of Table 2. segmenter: what training the segmenters has in common; networks: their names and what differs, in the order of
    Table 4. main: the network that is the method. reconstruction: of masks from crops. one_stage: networks on the whole image.
    """

    data: DataConfig = field(default_factory=DataConfig)
    splits: SplitConfig = field(default_factory=SplitConfig)
    pretrain: DetectorTrainConfig = field(
        default_factory=lambda: DetectorTrainConfig(
            training=LoopConfig(
                steps=60_000,
                batch_size=32,
                optimizer="sgd",
                learning_rate=1e-3,
                weight_decay=5e-4,
                warmup_steps=1000,
                schedule="constant",
            )
        )
    )
    pretrained: str = ""
    allow_seen: bool = False
    finetune: DetectorTrainConfig = field(default_factory=DetectorTrainConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    lambdas: tuple[float, ...] = (0.0, 0.5, 0.6, 0.7)
    segmenter: SegmenterTrainConfig = field(default_factory=SegmenterTrainConfig)
    networks: dict[str, dict[str, Any]] = field(default_factory=_published_networks)
    main: str = "unetpp"
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    one_stage: OneStageConfig = field(default_factory=OneStageConfig)
    assumptions: AssumptionConfig = field(default_factory=AssumptionConfig)
    mended: MendedConfig = field(default_factory=MendedConfig)

    def __post_init__(self) -> None:
        if self.main not in self.networks:
            raise ConfigError(f"main: expected one of {', '.join(self.networks)}, got {self.main!r}")
        unknown = [name for name in self.mended.networks if name not in self.networks]
        if unknown or (self.mended.splits and not self.mended.networks):
            raise ConfigError(
                f"mended.networks: expected names of {', '.join(self.networks)}, got {list(self.mended.networks)}"
            )
        bad = [name for name in self.networks if not name.replace("_", "").isalnum()]
        if bad:
            raise ConfigError(f"networks: expected names of letters and digits, got {bad[0]!r}")
        if self.assumptions.single_scale not in self.finetune.scales:
            raise ConfigError(f"assumptions.single_scale: expected one of finetune.scales {self.finetune.scales} (H, W)")
        for name in self.networks:
            self.segmenter_of(name)  # raises ConfigError

    def segmenter_of(self, name: str) -> SegmenterTrainConfig:
        """The settings of the network `name` on crops. Raises ConfigError on one that is not known."""
        own = {k: v for k, v in self.networks[name].items() if k != "one_stage"}
        return from_dict(SegmenterTrainConfig, own, f"networks.{name}", self.segmenter)

    def one_stage_of(self, name: str) -> OneStageConfig:
        """The settings of the network `name` on the whole image."""
        own = self.networks[name].get("one_stage", {})
        return from_dict(OneStageConfig, own, f"networks.{name}.one_stage", self.one_stage)
