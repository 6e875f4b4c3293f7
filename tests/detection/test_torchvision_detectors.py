"""RetinaNet, Faster R-CNN and SSD behind the detector's interface: frames, boxes, losses, learning, training to detections."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.library")

sys.path.insert(0, str(Path(__file__).parent))
from torchvision_standins import nms, prepare  # noqa: E402

sys.path.pop(0)
torchvision = prepare()

from mammoseg.config import from_dict, with_sets  # noqa: E402
from mammoseg.datasets import read_dataset  # noqa: E402
from mammoseg.datasets.phantom import PhantomConfig  # noqa: E402
from mammoseg.datasets.phantom_files import write_exams  # noqa: E402
from mammoseg.detection import DETECTORS, build_detector, lookup  # noqa: E402
from mammoseg.detection.predictor import Detector, DetectorSpec, decode  # noqa: E402
from mammoseg.detection.training import TorchNetwork  # noqa: E402
from mammoseg.errors import BundleError, ConfigError, TrainingError  # noqa: E402
from mammoseg.experiments.export import export_graph  # noqa: E402
from mammoseg.experiments.train_detector import DetectorTrainConfig, train_detector  # noqa: E402
from mammoseg.geometry import box_iou  # noqa: E402
from mammoseg.geometry import nms as our_nms  # noqa: E402
from mammoseg.io.load import load_mammogram  # noqa: E402
from mammoseg.runtime.torch_runtime import build  # noqa: E402
from mammoseg.training.checkpoint import load_model  # noqa: E402
from mammoseg.types import Mammogram  # noqa: E402

ARCHS = ("retinanet", "faster_rcnn", "ssd")
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "channels": 32,
    "anchor_sizes": [12, 20, 32, 52, 84],
    "proposals": 100,
    "samples": 32,
}


def make(arch: str) -> Any:
    torch.manual_seed(0)
    return build_detector({"arch": arch, "network": SMALL})


def test_the_stand_in_is_nms() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        corner = rng.uniform(0, 50, (30, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (30, 2))], axis=1)
        scores = rng.permutation(30) / 30
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4).tolist()
        assert kept == our_nms(boxes, scores, 0.4).tolist()


@pytest.mark.parametrize("arch", ARCHS)
def test_boxes_in_the_input_frame_in_training_and_evaluation(arch: str) -> None:
    network = make(arch)
    kind = lookup(DETECTORS, arch)
    spec = DetectorSpec(arch, ((10, 10),), kind.strides, scales=((128, 64),), layout=kind.layout)
    for mode in (True, False):
        with torch.no_grad():
            (out,) = network.train(mode)(torch.rand(2, 3, 160, 96))
        assert tuple(out.shape) == (2, 5, 100, 1)
        boxes, scores = decode([out[0].numpy()], spec)
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= 96).all()
        assert (boxes[:, [1, 3]] <= 160).all()
        assert (np.diff(scores) <= 0).all()
        assert ((scores >= 0.005) & (scores <= 1)).all()
    assert network.training is False


@pytest.mark.parametrize("arch", ARCHS)
def test_one_image_is_learnt_by_heart(arch: str) -> None:
    network = make(arch).train()
    rng = np.random.default_rng(3)
    truth = np.array([[10.0, 14, 42, 50], [60, 60, 84, 80]])
    grey = rng.normal(0.2, 0.05, (96, 96))
    for x1, y1, x2, y2 in truth.astype(int):
        grey[y1:y2, x1:x2] += 0.6
    images = torch.from_numpy(np.repeat(grey[None, None], 3, axis=1)).float().expand(2, -1, -1, -1)
    boxes, owner = torch.from_numpy(np.concatenate([truth, truth])).float(), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    first = None
    for _ in range({"retinanet": 40, "faster_rcnn": 30, "ssd": 30}[arch]):
        parts = network.training_loss(images, boxes, owner)
        first = float(parts["loss"].detach()) if first is None else first
        assert float(parts["loss"].detach()) == pytest.approx(
            sum(float(v.detach()) for k, v in parts.items() if k != "loss"), rel=1e-4
        )
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
    assert float(parts["loss"].detach()) < 0.6 * first
    without = [n for n, p in network.named_parameters() if p.grad is None and ".fc." not in n]
    assert without == []
    network.eval()
    for module in network.modules():  # a batch of one image twice tells batch norm little: use what it saw
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        (out,) = network(images)
    network.eval()
    best = decode([out[0].numpy()], DetectorSpec(arch, ((10, 10),), (32,), scales=((96, 96),), layout="boxes"))[0][:10]
    assert box_iou(truth, best).max(axis=1).mean() > 0.4


def test_without_a_true_box_there_is_a_loss_too() -> None:
    for arch in ARCHS:
        parts = make(arch).train().training_loss(torch.rand(2, 3, 96, 64), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        assert np.isfinite(float(parts["loss"].detach()))


def test_the_predictor_brings_boxes_to_the_native_frame() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: Any) -> list[Any]:
            out = torch.zeros(len(x), 5, 3, 1)
            out[:, :, 0, 0] = torch.tensor([8.0, 16, 24, 48, 0.9])
            return [out]

    fixed = Fixed()
    fixed.weight = torch.nn.Parameter(torch.zeros(1))
    network = TorchNetwork(fixed)
    spec = DetectorSpec("x", ((10, 10),), (32,), scales=((128, 64),), layout="boxes")
    pixels = np.random.default_rng(0).random((512, 128), dtype=np.float32)
    (found,) = Detector(network, spec).detect(Mammogram(pixels, "a"))
    assert found.boxes.tolist() == [[16.0, 64.0, 48.0, 192.0]]
    assert found.scores == pytest.approx([0.9])
    with pytest.raises(ValueError, match="5 channels"):
        decode([np.zeros((6, 3, 1), np.float32)], spec)


@pytest.mark.parametrize("arch", ARCHS)
def test_from_training_to_detections(arch: str, tmp_path: Path) -> None:
    write_exams(tmp_path / "data", 1, seed=5, format="png", config=PhantomConfig(size=(208, 160), normal_fraction=0.0))
    sets = [f"arch={arch}", "sizes=[[96,64]]", "scales=[[96,64]]", "validation_size=[96,64]", "anchor_size=[96,64]",
            "training.steps=2", "training.batch_size=2", "training.warmup_steps=0", f"cache={tmp_path / 'cache'}"]  # fmt: skip
    config = with_sets(from_dict(DetectorTrainConfig, {"arch": arch, "network": SMALL}), sets)
    from dataclasses import replace

    from mammoseg.datasets.splits import content_hash, save_fold
    from mammoseg.types import Fold

    items = read_dataset(f"phantom:{tmp_path / 'data'}")
    ids = tuple(i.image_id for i in items)
    fold = Fold("all", ids, ())
    save_fold(tmp_path / "fold.json", replace(fold, content_hash=content_hash(fold)))
    model = load_model(train_detector(config, f"phantom:{tmp_path / 'data'}", tmp_path / "run", tmp_path / "fold.json"))
    spec = from_dict(DetectorSpec, model.spec)
    assert (spec.layout, spec.strides, spec.arch) == ("boxes", (32,), f"{arch}-resnet18")
    network = build("detector", model.config, {k: v.numpy() for k, v in model.state.items()})
    found = Detector(TorchNetwork(network), spec).detect(load_mammogram(Path(items[0].path)))
    assert len(found) == 1
    assert found[0].size == (208, 160)
    with pytest.raises(BundleError, match="no graph to export"):
        export_graph(network)
    two = with_sets(config, ["training.devices=2"])
    with pytest.raises(ConfigError, match="trained on one device"):
        train_detector(two, f"phantom:{tmp_path / 'data'}", tmp_path / "two", tmp_path / "fold.json")


def test_imagenet_weights_of_the_backbone(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    body = torchvision.models.resnet18(weights=None)
    save_file(body.state_dict(), tmp_path / "resnet18.safetensors")
    for arch in ARCHS:
        network = make(arch)
        network.load_start(tmp_path / "resnet18.safetensors")
        own = network.model.backbone.body.state_dict()
        assert all(torch.equal(own[k], v) for k, v in body.state_dict().items() if not k.startswith("fc."))
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(TrainingError, match="not the weights of resnet18"):
        network.load_start(tmp_path / "part.safetensors")


def test_without_torchvision_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"mammoseg\[detectors\]"):
        build_detector({"arch": "ssd", "network": SMALL})
