"""The bundles that are timed: the one shipped, and the published networks with random weights."""

from __future__ import annotations

import json
from pathlib import Path

from mammoseg.bundle import FORMAT, default_bundle, save_weights, write_sums
from mammoseg.config import to_dict
from mammoseg.detection.predictor import DetectorSpec
from mammoseg.pipeline import PipelineConfig
from mammoseg.segmentation.predictor import SegmenterSpec

PUBLISHED = {
    "detector": {"arch": "yolov3", "network": {"backbone": "darknet53"}},
    "segmenter": {"arch": "unetpp", "network": {}},
}


def shipped() -> Path:
    """The bundle inside the package."""
    return default_bundle()


def published(folder: Path) -> Path:
    """YOLOv3 (Darknet-53) at the paper's five scales and v19U-Net++ on 256 × 256 crops, as a bundle; made once in `folder`."""
    import torch

    from mammoseg.experiments.export import export_graph
    from mammoseg.runtime.torch_runtime import build

    out = folder / "published"
    if (out / "SHA256SUMS").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for kind, config in PUBLISHED.items():
        network = build(kind, config)
        (out / f"{kind}.onnx").write_bytes(export_graph(network).SerializeToString(deterministic=True))
        save_weights(out / f"{kind}.safetensors", {k: v.numpy() for k, v in network.state_dict().items()}, "float16")
    specs = {"detector": to_dict(DetectorSpec()), "segmenter": to_dict(SegmenterSpec())}
    networks = {kind: {"config": PUBLISHED[kind], "spec": specs[kind], "weights": "float16"} for kind in PUBLISHED}
    config = {"format": FORMAT, "name": "published-random", "networks": networks, "pipeline": to_dict(PipelineConfig())}
    files = {"config.json": config, "training.json": {}, "metrics.json": {}}
    for name, value in files.items():
        (out / name).write_text(json.dumps(value))
    (out / "card.md").write_text("The published networks with random weights, to be timed and for nothing else.\n")
    write_sums(out)
    return out
