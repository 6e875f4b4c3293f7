"""What every registered detector owes the rest: shapes, gradients, learning, export, and the way from training to findings.

A new detector goes into `SMALL`, as cheap as it can be made; nothing else here changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import mammoseg  # noqa: E402
from mammoseg.config import load_toml, to_dict, with_sets  # noqa: E402
from mammoseg.datasets import read_dataset  # noqa: E402
from mammoseg.datasets.phantom import PhantomConfig  # noqa: E402
from mammoseg.datasets.phantom_files import write_exams  # noqa: E402
from mammoseg.detection import DETECTORS, build_detector, described, lookup, network_config  # noqa: E402
from mammoseg.detection.cache import cached_images  # noqa: E402
from mammoseg.detection.losses import LossConfig  # noqa: E402
from mammoseg.detection.predictor import DetectorSpec  # noqa: E402
from mammoseg.detection.training import DetectionTask, SamplingConfig  # noqa: E402
from mammoseg.errors import ConfigError, TrainingError  # noqa: E402
from mammoseg.experiments.export import export_graph  # noqa: E402
from mammoseg.experiments.make_bundle import make_bundle  # noqa: E402
from mammoseg.experiments.train_detector import DetectorTrainConfig, train_detector  # noqa: E402
from mammoseg.preprocessing.augmentation import AugmentationConfig  # noqa: E402
from mammoseg.preprocessing.resize import FrameConfig  # noqa: E402
from mammoseg.runtime import RuntimeConfig, load_network  # noqa: E402
from mammoseg.training.checkpoint import load_model, save_model  # noqa: E402
from mammoseg.training.loop import LoopConfig, fit  # noqa: E402
from mammoseg.training.seeding import seed_all  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {
    "yolov3": {
        "backbone": "efficientnet_lite0",
        "neck_widths": [16, 24, 32],
        "neck_pairs": 1,
        "prior": 0.02,
        "fold_norm": True,
    },
}
FRAME = FrameConfig("full", "keep", "percentile")
SIZE = (160, 128)


@dataclass(frozen=True)
class PlainConfig:
    """width: of its only hidden layer."""

    width: int = 8


class Plain(nn.Module):
    """A detector that is nothing but this: what CONTRIBUTING.md says suffices. One map, of stride 16."""

    config_class: ClassVar = PlainConfig
    strides: ClassVar = (16,)

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, config.width, 16, 16)
        self.out = nn.Conv2d(config.width, 18, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.out(torch.relu(self.first(x)))]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("contract") / "phantoms"
    write_exams(out, 2, seed=5, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    return out


def test_every_registered_detector_is_under_this_contract() -> None:
    raw_maps = {arch for arch in DETECTORS if getattr(lookup(DETECTORS, arch), "layout", "yolo") == "yolo"}
    assert set(SMALL) == raw_maps  # those that give boxes: test_torchvision_detectors.py


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (160, 64)])
def test_raw_maps_of_the_strides_in_training_and_evaluation(arch: str, size: tuple[int, int]) -> None:
    network = build_detector({"arch": arch, "network": SMALL[arch]})
    strides = lookup(DETECTORS, arch).strides
    for mode in (True, False):
        with torch.no_grad():
            maps = network.train(mode)(torch.rand(2, 3, *size))
        assert isinstance(maps, list)
        assert [tuple(m.shape) for m in maps] == [(2, 18, size[0] // s, size[1] // s) for s in strides]


@pytest.mark.parametrize("arch", SMALL)
def test_gradients_reach_every_parameter(arch: str) -> None:
    torch.manual_seed(0)
    network = build_detector({"arch": arch, "network": SMALL[arch]}).train()
    sum((m * torch.randn_like(m)).sum() for m in network(torch.rand(2, 3, 64, 96))).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("arch", SMALL)
def test_eight_images_are_learnt_by_heart(arch: str, phantoms: Path, tmp_path: Path) -> None:
    items = read_dataset(f"phantom:{phantoms}")
    assert len(items) == 8
    images = cached_images(items, tmp_path / "cache", FRAME, 160)
    spec = DetectorSpec(
        anchors=tuple((s, s) for s in (6, 8, 10, 13, 16, 20, 26, 34, 44)), frame=FRAME, scales=(SIZE,), xy_scale=2
    )
    seed_all(0)
    network = build_detector({"arch": arch, "network": SMALL[arch]})
    sampling = SamplingConfig((SIZE,), batch_size=8, augment=False, validation_size=SIZE)
    task = DetectionTask(network, images, images, spec, LossConfig("dense"), sampling, AugmentationConfig())
    loop = LoopConfig(
        steps=60, batch_size=8, learning_rate=3e-3, weight_decay=0.0, warmup_steps=5, ema_decay=0.8, checkpoint_every=0
    )
    assert fit(task, loop, tmp_path / "run", resume=False).metrics["ap50"] == 1.0


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_exported_network_agrees_with_torch(arch: str, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    from mammoseg.bundle import save_weights

    torch.manual_seed(0)
    config = {"arch": arch, "network": SMALL[arch]}
    network = build_detector(config).eval()
    (tmp_path / "detector.onnx").write_bytes(export_graph(network).SerializeToString())
    save_weights(tmp_path / "detector.safetensors", {k: v.numpy() for k, v in network.state_dict().items()}, "float32")
    (tmp_path / "config.json").write_text(json.dumps({"networks": {"detector": {"config": config}}}))
    run = load_network(tmp_path, "detector", RuntimeConfig(runtime, threads=1))  # type: ignore[arg-type]
    for size in ((64, 96), (128, 64)):
        x = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
        with torch.no_grad():
            expected = [m.numpy() for m in network(torch.from_numpy(x))]
        for got, wanted in zip(run(x), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


def test_three_edits_suffice_from_training_to_findings(
    phantoms: Path, model_directories: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that shares nothing with YOLOv3 is registered by one line, trained, shipped, and segments."""
    monkeypatch.setitem(DETECTORS, "plain", f"{Plain.__module__}:Plain")
    (tmp_path / "plain.toml").write_text('arch = "plain"\nsizes = [[128, 96]]\nanchor_size = [128, 96]\nscales = [[128, 96]]\n')
    sets = ["network.width=4", "training.steps=2", "training.batch_size=2", "training.warmup_steps=0", "holdout=0.5"]
    config = load_toml(
        DetectorTrainConfig, tmp_path / "plain.toml", [*sets, f"cache={tmp_path / 'cache'}", "validation_size=[128, 96]"]
    )
    model = train_detector(config, f"phantom:{phantoms}", tmp_path / "run")
    trained = load_model(model)
    assert trained.config == {"arch": "plain", "network": {"width": 4}}
    assert (trained.spec["arch"], trained.spec["strides"], len(trained.spec["anchors"])) == ("plain", [16], 3)
    tuned = train_detector(config, f"phantom:{phantoms}", tmp_path / "tuned", init=model)
    assert load_model(tuned).config == trained.config
    make_bundle(model, model_directories[1], tmp_path / "bundle")
    for runtime in ("openvino", "torch"):
        pipeline = mammoseg.load(tmp_path / "bundle", [f"runtime.kind={runtime}"])
        found = pipeline.analyze_file(next((phantoms / "images").iterdir()))
        assert found.status == "processed"
    with pytest.raises(TrainingError, match="Plain reads no weights to start from"):
        train_detector(with_sets(config, ["weights=x.safetensors"]), f"phantom:{phantoms}", tmp_path / "start")


def test_unknown_detectors_and_settings_are_named_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="did you mean 'yolov3'"):
        with_sets(DetectorTrainConfig(), ["arch=yolov4"])
    with pytest.raises(ConfigError, match=r"network\.bakbone'; did you mean 'network\.backbone'"):
        with_sets(DetectorTrainConfig(), ["network.bakbone=darknet53"])


def test_models_without_an_arch_are_yolov3(tmp_path: Path) -> None:
    """As models were described before there was a choice."""
    early = {k: v for k, v in SMALL["yolov3"].items() if k != "fold_norm"}
    assert described(early) == ("yolov3", early)
    network = build_detector(early)
    path = save_model(tmp_path / "m", "detector", network.state_dict(), early, {}, {})
    again = load_model(path)
    build_detector(again.config).load_state_dict(again.state)
    assert to_dict(network_config(*described(again.config)))["backbone"] == "efficientnet_lite0"
