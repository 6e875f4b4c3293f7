"""What every registered segmentation network owes the rest: shapes, gradients, learning, export.

A new network goes into `SMALL`, as cheap as it can be made, with the step its sides must be multiples of.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from mammoseg.config import from_dict, to_dict  # noqa: E402
from mammoseg.errors import ConfigError  # noqa: E402
from mammoseg.experiments.export import export_graph  # noqa: E402
from mammoseg.segmentation import NETWORKS, build_segmenter, network_class, network_config  # noqa: E402
from mammoseg.segmentation.cascade import Cascade, CascadeConfig  # noqa: E402
from mammoseg.segmentation.cgan import CGANConfig, ConditionalGAN  # noqa: E402
from mammoseg.segmentation.losses import SegmentationLossConfig, deep_supervision_loss, dice_loss  # noqa: E402
from mammoseg.segmentation.predictor import merge_outputs  # noqa: E402
from mammoseg.segmentation.unet import UNet, UNetConfig  # noqa: E402

SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "unetpp": ({"widths": [8, 8, 16, 16, 16]}, 16),
    "unet": ({"widths": [8, 12, 16]}, 4),
    "cgan": ({"widths": [8, 16, 16, 16], "critic_widths": [8, 16], "dropout": 0.1}, 16),
    "cascade": ({"widths": [8, 12, 16], "factors": [2, 1]}, 8),
}


def build(arch: str) -> Any:
    torch.manual_seed(0)
    return build_segmenter({"arch": arch, "network": SMALL[arch][0]})


def loss_of(network: Any, image: Any, truth: Any) -> Any:
    """As training takes it."""
    logits = network(image)
    own = getattr(network, "training_loss", None)
    if own is None:
        return deep_supervision_loss(logits, truth), logits
    return own(logits, image, truth, SegmentationLossConfig())["loss"], logits


def discs(count: int, size: int) -> tuple[Any, Any]:
    """`count` noisy images [B, 3, size, size] of a bright disc each, and its mask."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size]
    truth = np.stack(
        [
            np.hypot(x - a, y - b) < r
            for a, b, r in zip(*rng.uniform(0.35, 0.6, (2, count)) * size, rng.uniform(0.15, 0.3, count) * size)
        ]
    )
    grey = truth * 0.5 + rng.normal(0, 0.15, truth.shape)
    return torch.from_numpy(grey[:, None].repeat(3, 1)).float(), torch.from_numpy(truth[:, None]).float()


def test_every_registered_network_is_under_this_contract() -> None:
    assert set(SMALL) == set(NETWORKS)
    with pytest.raises(ConfigError, match="did you mean 'unetpp'"):
        build_segmenter({"arch": "unetp"})


@pytest.mark.parametrize("arch", SMALL)
def test_a_list_of_full_size_logits_in_training_and_inference(arch: str) -> None:
    network, step = build(arch), SMALL[arch][1]
    for mode in (True, False):
        with torch.no_grad():
            logits = network.train(mode)(torch.rand(2, 3, 2 * step, 4 * step))
        assert isinstance(logits, list)
        assert {tuple(one.shape) for one in logits} == {(2, 1, 2 * step, 4 * step)}
    with pytest.raises(ValueError, match=f"multiples of {step}"):
        network(torch.rand(1, 3, step, step + 2))
    config = network_config(arch, SMALL[arch][0])
    assert from_dict(type(config), to_dict(config)) == config == network.config
    assert config.in_channels == 3


@pytest.mark.parametrize("arch", SMALL)
def test_gradients_reach_every_parameter(arch: str) -> None:
    network = build(arch).train()
    image, truth = discs(3, 4 * SMALL[arch][1])
    loss_of(network, image, truth)[0].backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("arch", SMALL)
def test_four_crops_are_learnt_by_heart(arch: str) -> None:
    network = build(arch).train()
    image, truth = discs(4, 32)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(network, image, truth)[0].backward()
        optimizer.step()
    logits = [one.detach().numpy() for one in network(image)]
    found = merge_outputs(logits, getattr(network_class(arch), "output", "mean")) >= 0.5
    true = truth[:, 0].numpy() > 0.5
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9


@pytest.mark.parametrize("arch", SMALL)
def test_the_exported_network_agrees_at_other_sizes(arch: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    from mammoseg.runtime.graph import fill_parameters

    network, step = build(arch).eval(), SMALL[arch][1]
    graph = export_graph(network, 3)
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    session = ort.InferenceSession(fill_parameters(graph, state, arch).SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(0, 1, (2, 3, 3 * step, 2 * step)).astype(np.float32)
    with torch.no_grad():
        expected = [one.numpy() for one in network(torch.from_numpy(image))]
    got = session.run(None, {session.get_inputs()[0].name: image})
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_u_net_has_the_parameters_of_the_common_implementation() -> None:
    # The widely used PyTorch U-Net (padded, batch norm, transposed convolutions) of 3 channels and 2 classes has 31,037,698.
    assert sum(p.numel() for p in UNet().parameters()) == 31_037_698 - (64 + 1)


def test_u_net_may_have_vgg19_as_its_left_side() -> None:
    network = UNet(UNetConfig(widths=(64, 128, 256, 512, 512), encoder="vgg19"))
    assert sum(p.numel() for p in network.backbone.parameters()) == 20_024_384
    with pytest.raises(ValueError, match="five levels"):
        UNetConfig(widths=(8, 8), encoder="vgg19")


def test_each_gan_learns_by_its_own_loss_alone() -> None:
    torch.manual_seed(3)
    config = CGANConfig(widths=(8, 16, 16), critic_widths=(8, 16), dropout=0.0)
    network = ConditionalGAN(config).train()
    image, truth = discs(3, 32)
    parts = network.training_loss(network(image), image, truth, SegmentationLossConfig())
    parts["loss"].backward()
    apart = copy.deepcopy(network)
    apart.zero_grad()
    logits = apart(image)[0]
    real, fake = apart.discriminator(image, truth), apart.discriminator(image, torch.sigmoid(logits).detach())
    critic = -F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()
    expected_d = torch.autograd.grad(critic, list(apart.discriminator.parameters()))
    fooled = apart.discriminator(image, torch.sigmoid(logits))
    generator = -F.logsigmoid(fooled).mean() / config.dice_weight + dice_loss(logits, truth)
    expected_g = torch.autograd.grad(generator, list(apart.generator.parameters()))
    for part, expected in ((network.discriminator, expected_d), (network.generator, expected_g)):
        for parameter, gradient in zip(part.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_each_stage_of_the_cascade_sees_the_probability_before() -> None:
    torch.manual_seed(4)
    network = Cascade(CascadeConfig(factors=(4, 2, 1), widths=(4, 6))).eval()
    seen: list[Any] = []
    for stage in network.stages:
        stage.register_forward_hook(lambda _, ins, outs: seen.append((ins[0], outs[0])))
    image = torch.rand(1, 3, 32, 16)
    outputs = network(image)
    assert [tuple(x.shape) for x, _ in seen] == [(1, 4, 8, 4), (1, 4, 16, 8), (1, 4, 32, 16)]
    assert torch.equal(seen[0][0][:, 3:], torch.full((1, 1, 8, 4), 0.5))
    for k in (1, 2):
        size = tuple(seen[k][0].shape[2:])
        context = F.interpolate(torch.sigmoid(seen[k - 1][1]), size=size, mode="bilinear", align_corners=False)
        assert torch.allclose(seen[k][0][:, 3:], context)
        assert torch.allclose(seen[k][0][:, :3], F.interpolate(image, size=size, mode="area"))
    assert torch.equal(outputs[-1], seen[2][1])
    last = merge_outputs([o.detach().numpy() for o in outputs], "last")
    assert last == pytest.approx(torch.sigmoid(outputs[-1])[:, 0].detach().numpy(), abs=1e-6)
    with pytest.raises(ValueError, match="end in 1"):
        CascadeConfig(factors=(2, 4))
