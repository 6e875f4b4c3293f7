"""ImageNet weights: VGG16 by identity insertion, and real VGG19."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mammoseg.errors import TrainingError
from mammoseg.segmentation.unetpp import VGG19Encoder
from mammoseg.segmentation.vgg import IDENTITY_INDICES, VGG16_INDICES, VGG19_INDICES, load_vgg

WIDTHS = (64, 128, 256, 512, 512)


def vgg_features(blocks: tuple[int, ...]) -> nn.Sequential:
    """torchvision's `features`, written down independently: [64, 64, M, 128, 128, M, …]."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip(WIDTHS, blocks):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def saved(features: nn.Sequential, path: Path) -> Path:
    save_file({f"features.{k}": v for k, v in features.state_dict().items()}, path)
    return path


def largest_difference(encoder: VGG19Encoder, features: nn.Sequential, x: Tensor) -> float:
    """Between X^{0,0} … X^{4,0} and what goes into the poolings of `features`."""
    with torch.no_grad():
        ours, theirs = encoder(x), []
        for layer in features:
            if isinstance(layer, nn.MaxPool2d):
                theirs.append(x)
            x = layer(x)
    assert len(ours) == len(theirs) == 5
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


def test_torchvision_indices() -> None:
    assert VGG19_INDICES == (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    assert VGG16_INDICES == (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert set(IDENTITY_INDICES) < set(VGG19_INDICES)


def test_vgg16_by_identity_insertion_computes_vgg16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = vgg_features((2, 2, 3, 3, 3))
    encoder = VGG19Encoder(3, WIDTHS)
    words = load_vgg(encoder, saved(features, tmp_path / "vgg16.safetensors"))
    assert words == "VGG19 initialised from ImageNet VGG16 by identity insertion"
    assert largest_difference(encoder, features, torch.randn(1, 3, 32, 32)) <= 1e-5


def test_real_vgg19_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(1)
    features = vgg_features((2, 2, 4, 4, 4))
    encoder = VGG19Encoder(3, WIDTHS)
    assert load_vgg(encoder, saved(features, tmp_path / "vgg19.safetensors")) == "VGG19 trained on ImageNet"
    assert largest_difference(encoder, features, torch.randn(1, 3, 32, 32)) <= 1e-5


def test_a_pruned_encoder_takes_the_blocks_it_has(tmp_path: Path) -> None:
    features = vgg_features((2, 2, 3, 3, 3))
    encoder = VGG19Encoder(3, WIDTHS[:3])
    load_vgg(encoder, saved(features, tmp_path / "vgg16.safetensors"))
    assert torch.equal(encoder.blocks[1][0].weight, features[5].weight)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(TrainingError, match=r"text\.safetensors"):
        load_vgg(VGG19Encoder(3, WIDTHS), tmp_path / "text.safetensors")
    with pytest.raises(TrainingError, match=r"absent\.safetensors"):
        load_vgg(VGG19Encoder(3, WIDTHS), tmp_path / "absent.safetensors")
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "one.safetensors")
    with pytest.raises(TrainingError, match="VGG19"):
        load_vgg(VGG19Encoder(3, WIDTHS), tmp_path / "one.safetensors")
    narrow = VGG19Encoder(3, (8, 8, 8, 8, 8))
    with pytest.raises(TrainingError, match="widths"):
        load_vgg(narrow, saved(vgg_features((2, 2, 3, 3, 3)), tmp_path / "vgg16.safetensors"))


@pytest.mark.data
def test_imagenet_vgg16_by_identity_insertion_equals_vgg16(shared_dir: Path) -> None:
    path = shared_dir / "weights" / "vgg16_features_imagenet.safetensors"
    features = vgg_features((2, 2, 3, 3, 3))
    tensors = load_file(path)
    features.load_state_dict({k.removeprefix("features."): v.float() for k, v in tensors.items() if k.startswith("features.")})
    encoder = VGG19Encoder(3, WIDTHS)
    load_vgg(encoder, path)
    torch.manual_seed(2)
    assert largest_difference(encoder, features, torch.randn(1, 3, 64, 64)) <= 1e-5
