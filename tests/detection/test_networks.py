"""YOLOv3 as published and with other backbones: sizes, gradients, weights in and out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file

from mammoseg.detection import BACKBONES, DETECTORS, build_detector, efficientnet_lite, lookup
from mammoseg.detection.darknet_weights import Header, load_darknet, load_timm_darknet53, save_darknet
from mammoseg.detection.efficientnet_lite import EfficientNetLite
from mammoseg.detection.yolov3 import Darknet53, YoloConfig, YoloV3
from mammoseg.errors import ConfigError, TrainingError
from mammoseg.experiments.export import export_graph
from mammoseg.runtime.graph import fill_parameters

LITE = {"backbone": "efficientnet_lite0", "neck_widths": [16, 24, 32], "neck_pairs": 1}


@pytest.fixture(scope="module")
def published() -> YoloV3:
    return YoloV3(YoloConfig())


def test_published_network_has_exactly_the_published_parameters(published: YoloV3) -> None:
    assert sum(p.numel() for p in published.parameters()) == 61_523_734
    assert sum(m.__class__.__name__ == "Conv2d" for m in published.backbone.modules()) == 52  # 53 with the classifier's


@pytest.mark.parametrize("config", [{}, LITE, {**LITE, "backbone": "efficientnet_lite2", "fold_norm": True}])
def test_three_raw_maps_of_the_strides_in_training_and_in_evaluation(config: dict[str, object]) -> None:
    network = build_detector(config)
    x = torch.rand(2, 3, 64, 96)
    for mode in (True, False):
        network.train(mode)
        with torch.no_grad():
            maps = network(x)
        assert isinstance(maps, list)
        assert [tuple(m.shape) for m in maps] == [(2, 18, 8, 12), (2, 18, 4, 6), (2, 18, 2, 3)]


@pytest.mark.parametrize("config", [{}, LITE, {**LITE, "backbone": "efficientnet_lite2", "fold_norm": True}])
def test_gradients_reach_every_parameter(config: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build_detector(config).train()
    sum((m * torch.randn_like(m)).sum() for m in network(torch.rand(2, 3, 64, 64))).backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_frozen_stages_are_not_trained_and_keep_their_statistics() -> None:
    network = EfficientNetLite("efficientnet_lite0", frozen_stages=3).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    sum(f.sum() for f in network(torch.rand(2, 3, 64, 64))).backward()
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert {n.split(".")[0] + "." + n.split(".")[1] for n in frozen if n.startswith("blocks")} == {"blocks.0", "blocks.1"}
    assert "conv_stem.weight" in frozen
    after = network.state_dict()
    changed = [k for k in after if not torch.equal(before[k], after[k])]
    assert changed
    assert all(k.startswith(("blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6")) for k in changed)


def test_folded_normalisation_computes_in_training_what_evaluation_computes() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite("efficientnet_lite2", fold_norm=True)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        folded = network.train()(x)
        plain = network.eval()(x)
    for a, b in zip(folded, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_stride_two_pads_as_tensorflow_same() -> None:
    network = EfficientNetLite("efficientnet_lite0")
    with torch.no_grad():
        network.conv_stem.weight.zero_()
        network.conv_stem.weight[:, :, 0, 0] = 1.0  # picks the top-left pixel of each window
    network.eval()
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8) / 192
    from mammoseg.detection.efficientnet_lite import conv_norm

    out = conv_norm(network.conv_stem, network.bn1, x, False)[0, 0] * (1 + 1e-3) ** 0.5
    torch.testing.assert_close(out, x[0, 0, ::2, ::2] * 3)  # windows start at 0, 2, 4, ...: nothing is padded before


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_a_convolution_of_stride_two_is_one_node_of_the_exported_graph(kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(4, 4, kernel, 2, groups=4, bias=False), torch.nn.BatchNorm2d(4).eval()

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return efficientnet_lite.conv_norm(self.conv, self.norm, x, False)

    layer = Layer().eval()
    graph = export_graph(layer, channels=4)
    assert [node.op_type for node in graph.graph.node] == ["Conv", "BatchNormalization"]
    fill_parameters(graph, {k: v.numpy() for k, v in layer.state_dict().items()}, "here")
    x = torch.randn(2, 4, *size)
    (got,) = ReferenceEvaluator(graph).run(None, {"image": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, layer(x).numpy(), atol=1e-5)


def test_synthetic_conv74_loads_and_writes_back_equal(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 40_620_640).astype("<f4")
    data = struct.pack("<3iq", 0, 2, 0, 32_013_312) + values.tobytes()
    assert len(data) == 162_482_580
    path = tmp_path / "darknet53.conv.74"
    path.write_bytes(data)
    backbone = Darknet53()
    header = load_darknet(backbone, path)
    assert header == Header(0, 2, 0, 32_013_312)
    # The first convolution: 32 offsets, 32 scales, 32 means, 32 variances, then its kernel.
    assert torch.equal(backbone.stem.bn.bias.detach(), torch.from_numpy(values[:32].copy()))
    assert torch.equal(backbone.stem.bn.running_var, torch.from_numpy(values[96:128].copy()))
    assert torch.equal(backbone.stem.conv.weight.detach().ravel(), torch.from_numpy(values[128 : 128 + 864].copy()))
    save_darknet(backbone, tmp_path / "back", header)
    assert (tmp_path / "back").read_bytes() == data


def test_conv74_loads_into_the_backbone_of_a_whole_network(tmp_path: Path, published: YoloV3) -> None:
    source = Darknet53()
    save_darknet(source, tmp_path / "b")
    head = published.scale8.out.weight.clone()
    load_darknet(published, tmp_path / "b")
    assert torch.equal(published.backbone.stages[4].blocks[3].conv2.conv.weight, source.stages[4].blocks[3].conv2.conv.weight)
    assert torch.equal(published.scale8.out.weight, head)


def test_whole_weights_file_round_trip_in_the_order_of_yolov3_cfg(tmp_path: Path, published: YoloV3) -> None:
    path = tmp_path / "yolov3.weights"
    save_darknet(published, path)
    data = np.frombuffer(path.read_bytes(), dtype="<f4", offset=20)
    assert len(data) == sum(p.numel() for p in published.parameters()) + sum(
        b.numel() for n, b in published.named_buffers() if "running" in n
    )
    # The last convolution of the file is the finest map's: bias (18), then its kernel.
    kernel = published.scale8.out.weight.detach().numpy().ravel()
    assert (data[-kernel.size :] == kernel).all()
    other = YoloV3(YoloConfig())
    load_darknet(other, path)
    for key, value in published.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(other.state_dict()[key], value), key


@pytest.fixture(scope="module")
def coco_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, YoloV3]]:
    """A synthetic whole file of 80 classes, and the network it is of."""
    torch.manual_seed(8)
    network = YoloV3(YoloConfig(classes=80))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    path = tmp_path_factory.mktemp("coco") / "yolov3.weights"
    save_darknet(network, path, Header(0, 2, 0, 32_013_312))
    yield path, network
    path.unlink()  # a quarter of a gigabyte


def test_whole_file_of_80_classes_gives_all_but_the_detection_convolutions(
    coco_weights: tuple[Path, YoloV3], caplog: pytest.LogCaptureFixture
) -> None:
    path, source = coco_weights
    assert path.stat().st_size == 248_007_048  # as the published yolov3.weights
    target = YoloV3(YoloConfig())
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with caplog.at_level("INFO", "mammoseg"):
        assert load_darknet(target, path).seen == 32_013_312
    assert "yolov3.weights is a YOLOv3 of 80 classes: 72 of its 75 convolutions taken over (52 of the backbone)" in caplog.text
    wanted = source.state_dict()
    for key, value in target.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key] if ".out." in key else wanted[key]), key


def test_of_a_whole_file_a_narrower_network_takes_what_has_its_shape(
    coco_weights: tuple[Path, YoloV3], caplog: pytest.LogCaptureFixture
) -> None:
    path, source = coco_weights
    narrow = YoloV3(YoloConfig(neck_widths=(128, 64, 512)))
    before = narrow.scale16.head.conv.weight.clone()
    with caplog.at_level("INFO", "mammoseg"):
        load_darknet(narrow, path)
    assert torch.equal(narrow.backbone.stages[4].conv_down.conv.weight, source.backbone.stages[4].conv_down.conv.weight)
    assert torch.equal(narrow.scale32.head.conv.weight, source.scale32.head.conv.weight)
    assert torch.equal(narrow.scale8.block[1].bn.running_mean, source.scale8.block[1].bn.running_mean)
    assert torch.equal(narrow.scale16.head.conv.weight, before)
    assert "of 80 classes: 64 of its 75" in caplog.text  # 72 without scale16's six, up8 and scale8's first
    shallow = YoloV3(YoloConfig(neck_pairs=1, neck_widths=(16, 16, 16)))
    load_darknet(shallow, path)
    assert torch.equal(shallow.backbone.stem.conv.weight, source.backbone.stem.conv.weight)


def test_file_of_another_size_or_kind_is_refused(tmp_path: Path) -> None:
    backbone = Darknet53()
    (tmp_path / "short").write_bytes(struct.pack("<3iq", 0, 2, 0, 0) + bytes(400))
    with pytest.raises(TrainingError, match="expected 40,620,640"):
        load_darknet(backbone, tmp_path / "short")
    (tmp_path / "tiny").write_bytes(b"x")
    with pytest.raises(TrainingError, match="too short"):
        load_darknet(backbone, tmp_path / "tiny")
    with pytest.raises(TrainingError, match="darknet53 only"):
        load_darknet(YoloV3(YoloConfig(**{**LITE, "neck_widths": (8, 8, 8)})), tmp_path / "short")  # type: ignore[arg-type]


def test_timm_darknet53_keys_load(tmp_path: Path) -> None:
    source = Darknet53()
    state = dict(source.state_dict()) | {"head.fc.weight": torch.zeros(10, 1024)}
    assert {"stem.conv.weight", "stages.0.conv_down.conv.weight", "stages.2.blocks.7.conv1.bn.running_var"} <= set(state)
    save_file(state, str(tmp_path / "darknet53.safetensors"))
    target = Darknet53()
    load_timm_darknet53(target, tmp_path / "darknet53.safetensors")
    assert torch.equal(target.stages[3].blocks[2].conv2.conv.weight, source.stages[3].blocks[2].conv2.conv.weight)
    save_file({"stem.conv.weight": source.stem.conv.weight.detach()}, str(tmp_path / "other.safetensors"))
    with pytest.raises(TrainingError, match="missing"):
        load_timm_darknet53(target, tmp_path / "other.safetensors")


@pytest.mark.data
@pytest.mark.parametrize("variant", ["efficientnet_lite0", "efficientnet_lite2"])
def test_imagenet_weights_load_strictly_and_give_alive_features(shared_dir: Path, variant: str) -> None:
    network = EfficientNetLite(variant)  # type: ignore[arg-type]
    network.load_imagenet(shared_dir / "weights" / f"{variant}_imagenet1k.safetensors")
    network.eval()
    with torch.no_grad():
        features = network(torch.rand(1, 3, 128, 128) * 2 - 1)
    assert all(0.05 < float(f.std()) < 20 for f in features)
    wrong = "efficientnet_lite2" if variant == "efficientnet_lite0" else "efficientnet_lite0"
    with pytest.raises(TrainingError, match="not the weights of"):
        EfficientNetLite(wrong).load_imagenet(shared_dir / "weights" / f"{variant}_imagenet1k.safetensors")  # type: ignore[arg-type]


def test_registry_names_things_that_are_there_and_suggests() -> None:
    for registry in (DETECTORS, BACKBONES):
        for name in registry:
            assert callable(lookup(registry, name))
    with pytest.raises(ConfigError, match="did you mean 'yolov3'"):
        build_detector({"arch": "yolov4"})
    with pytest.raises(ConfigError, match="did you mean"):
        build_detector({"bakbone": "darknet53"})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_of_the_depthwise_convolution_are_those_of_the_library(stride: int, biased: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 12, 15, 11), torch.randn(12, 1, 5, 5) / 5, torch.randn(12)
    grad = None
    results = []
    for own in (False, True):
        leaves = [t.clone().bfloat16().float().requires_grad_() for t in (x, weight, bias)]
        if own:  # what the backbone does under autocast in bfloat16
            inside = [t.bfloat16() for t in leaves]
            y = efficientnet_lite._DepthwiseConv.apply(inside[0], inside[1], inside[2] if biased else None, stride, 2)
            assert y.dtype == torch.bfloat16
        else:
            y = torch.nn.functional.conv2d(leaves[0], leaves[1], leaves[2] if biased else None, stride, 2, 1, 12)
        grad = torch.randn_like(y).bfloat16().float() if grad is None else grad
        y.backward(grad.to(y.dtype))
        results.append([y.detach().float(), *(t.grad for t in leaves[: 3 if biased else 2])])
    for theirs, ours in zip(*results, strict=True):
        assert torch.allclose(theirs, ours, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


def test_training_in_bfloat16_uses_it_and_gives_the_gradients_of_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite("efficientnet_lite0", fold_norm=True).train()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    calls = []
    own = efficientnet_lite._DepthwiseConv.apply

    def run() -> dict[str, torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            sum(f.float().sum() for f in network(x)).backward()
        return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    monkeypatch.setattr(efficientnet_lite._DepthwiseConv, "apply", lambda *a: calls.append(1) or own(*a))
    first = run()
    assert len(calls) == 9  # the blocks with 5 x 5 kernels: 2 + 3 + 4
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr(efficientnet_lite._DepthwiseConv, "apply", lambda x, w, b, s, p: conv2d(x, w, b, s, p, 1, x.shape[1]))
    second = run()
    assert first.keys() == second.keys()
    for name, gradient in second.items():
        assert float((gradient - first[name]).norm()) <= 0.05 * float(gradient.norm()) + 1e-6, name
