"""Each network learns 8 real mammograms by heart: AP at IoU 0.5 becomes exactly 1. Minutes each, hence `soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mammoseg.datasets import read_dataset
from mammoseg.detection.cache import cached_images
from mammoseg.detection.losses import LossConfig
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.detection.training import DetectionTask, SamplingConfig
from mammoseg.detection.yolov3 import YoloConfig, YoloV3
from mammoseg.preprocessing.augmentation import AugmentationConfig
from mammoseg.preprocessing.resize import FrameConfig
from mammoseg.training.loop import LoopConfig, fit
from mammoseg.training.seeding import seed_all

ANCHORS = tuple((s * r, s / r) for s, r in zip((8, 11, 14, 17, 20, 24, 29, 36, 48), (1, 0.9, 1.1) * 3, strict=True))


@pytest.mark.data
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("backbone", "kind", "rate", "steps"),
    [("efficientnet_lite2", "dense", 2e-3, 90), ("darknet53", "dense", 1e-3, 100), ("darknet53", "published", 1e-3, 160)],
)
def test_network_overfits_8_real_images(
    shared_dir: Path, tmp_path: Path, backbone: str, kind: str, rate: float, steps: int
) -> None:
    items = read_dataset(f"coco:{shared_dir / 'data/cbis_ddsm_mass/annotations.json'}")[100:900:100]
    assert len(items) == 8
    lite = backbone != "darknet53"
    frame = FrameConfig("breast", "keep", "percentile")
    size = (256, 128)
    spec = DetectorSpec(
        anchors=ANCHORS,
        frame=frame,
        scales=(size,),
        mean=0.5 * lite,
        std=1 - 0.5 * lite,
        xy_scale=2.0 if kind == "dense" else 1.0,
    )
    seed_all(0)
    network = YoloV3(
        YoloConfig(
            backbone,  # type: ignore[arg-type]
            neck_widths=(64, 96, 128) if lite else (128, 256, 512),
            neck_pairs=1 if lite else 2,
            prior=0.01 if kind == "dense" else 0.5,
            fold_norm=lite,
        )
    )
    if lite:
        network.backbone.load_imagenet(shared_dir / "weights" / f"{backbone}_imagenet1k.safetensors")
    images = cached_images(items, tmp_path / "cache", frame, 512)
    sampling = SamplingConfig((size,), batch_size=8, augment=False, validation_size=size)
    task = DetectionTask(network, images, images, spec, LossConfig(kind=kind), sampling, AugmentationConfig())  # type: ignore[arg-type]
    config = LoopConfig(
        steps=steps, batch_size=8, learning_rate=rate, weight_decay=0.0, warmup_steps=10, ema_decay=0.8, checkpoint_every=0,
    )  # fmt: skip
    result = fit(task, config, tmp_path / "run", resume=False)
    assert result.metrics["ap50"] == 1.0, result.metrics
