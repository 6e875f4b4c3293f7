"""Settings by name: the published study, and a small one on phantoms that runs every part of it in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mammoseg.datasets.phantom import PhantomConfig
from mammoseg.datasets.released import write_cbis_ddsm, write_inbreast
from mammoseg.detection.losses import LossConfig
from mammoseg.errors import ConfigError
from mammoseg.experiments.study.config import (
    AssumptionConfig,
    DataConfig,
    MendedConfig,
    OneStageConfig,
    StudyConfig,
)
from mammoseg.experiments.train_detector import DetectorTrainConfig
from mammoseg.experiments.train_segmenter import SegmenterTrainConfig
from mammoseg.fusion import FusionConfig
from mammoseg.preprocessing.augmentation import AugmentationConfig
from mammoseg.preprocessing.crops import CropConfig
from mammoseg.preprocessing.resize import FrameConfig
from mammoseg.segmentation.losses import SegmentationLossConfig
from mammoseg.training.loop import LoopConfig
from mammoseg.types import Size

PHANTOMS = PhantomConfig(size=(256, 192), masses=(2, 3), diameter_mm=(26.0, 45.0), normal_fraction=0.15, labels=False)
PHANTOM_EXAMS = (10, 20)
"""Exams of four views each, in the place of INbreast and of CBIS-DDSM."""


def preset(name: str) -> StudyConfig:
    """The configuration `name`. Raises ConfigError that lists the names."""
    if name not in PRESETS:
        raise ConfigError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()


def smoke() -> StudyConfig:
    """Every part of the study with networks and images so small that two cores need minutes; its figures mean nothing."""
    scales: tuple[Size, ...] = ((96, 64), (128, 64), (128, 96), (160, 96), (160, 128))
    detector = DetectorTrainConfig(
        frame=FrameConfig(intensity="percentile"),
        network={
            "backbone": "efficientnet_lite0",
            "neck_widths": [16, 24, 32],
            "neck_pairs": 1,
            "prior": 0.02,
            "fold_norm": True,
        },
        loss=LossConfig("dense"),
        augmentation=AugmentationConfig(0.5, 0.0, 1.0, 1.0, 0.02, 1.05, 1.02, 0.01, 0.0, 0.0),
        training=_loop(160, batch_size=4, learning_rate=3e-3),
        sizes=((128, 64), (128, 96)),
        anchor_size=(128, 96),
        validation_size=(128, 96),
        scales=scales,
        xy_scale=2.0,
        cache_height=256,
    )
    return StudyConfig(
        data=DataConfig(size=(256, 128)),
        pretrain=detector,
        finetune=_with_steps(detector, 25),
        fusion=FusionConfig(score_min=0.5),
        segmenter=SegmenterTrainConfig(
            crop=CropConfig(size=32),
            loss=SegmentationLossConfig(bce_weight=1.0),
            training=_loop(24, batch_size=4, learning_rate=5e-3),
        ),
        networks={
            "unet": {"arch": "unet", "network": {"widths": [8, 12, 16]}},
            "cgan": {"arch": "cgan", "network": {"widths": [8, 12, 16, 16], "critic_widths": [8, 12]}},
            "cascade": {"arch": "cascade", "network": {"widths": [8, 12, 16], "factors": [2, 1]}},
            "unetpp": {"arch": "unetpp", "network": {"widths": [8, 8, 12, 12, 16]}},
        },
        one_stage=OneStageConfig(size=(128, 64), training=_loop(8, batch_size=2, learning_rate=5e-3)),
        assumptions=AssumptionConfig(single_scale=(128, 96)),
        mended=MendedConfig(splits=2, validation=0.15, train=0.5, resamples=100),
    )


def _loop(steps: int, batch_size: int, learning_rate: float) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=0.0,
        warmup_steps=2,
        ema_decay=0.9,
        precision="32-true",
        checkpoint_every=10,
        log_every=10,
        threads=1,
    )


def _with_steps(config: DetectorTrainConfig, steps: int) -> DetectorTrainConfig:
    from dataclasses import replace

    return replace(config, training=replace(config.training, steps=steps))


def write_phantoms(out: Path) -> tuple[Path, Path]:
    """The smoke preset's data sets, in the layouts in which INbreast and CBIS-DDSM are released; kept where they are there.

    Returns the folders of both.
    """
    inbreast, cbis = out / "phantom-inbreast", out / "phantom-cbis-ddsm"
    done = out / "phantoms-1.done"
    if not done.is_file():
        write_inbreast(inbreast, PHANTOM_EXAMS[0], 11, PHANTOMS)
        write_cbis_ddsm(cbis, PHANTOM_EXAMS[1], 12, PHANTOMS)
        done.write_text("phantoms\n", encoding="ascii")
    return inbreast, cbis


PRESETS: dict[str, Callable[[], StudyConfig]] = {"paper": StudyConfig, "smoke": smoke}
