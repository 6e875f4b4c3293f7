"""v19U-Net++: size, shapes, pruning, gradients."""

from __future__ import annotations

import pytest
import torch

from mammoseg.config import from_dict, to_dict
from mammoseg.errors import ConfigError
from mammoseg.segmentation import build_segmenter
from mammoseg.segmentation.unetpp import UNetPlusPlus, UNetPlusPlusConfig

SMALL = UNetPlusPlusConfig(widths=(4, 6, 8, 10, 10))


@pytest.fixture(scope="module")
def full() -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus()


def test_published_parameter_counts(full: UNetPlusPlus) -> None:
    assert sum(p.numel() for p in full.backbone.parameters()) == 20_024_384
    assert sum(p.numel() for p in full.parameters()) == 35_440_452
    convolutions = [m for m in full.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    assert {m.kernel_size for m in convolutions} == {(3, 3)}


def test_nodes_form_the_published_triangle_with_dense_inputs(full: UNetPlusPlus) -> None:
    assert set(full.nodes) == {f"{i}_{j}" for j in range(1, 5) for i in range(5 - j)}
    # X^{0,3} reads X^{0,0}, X^{0,1}, X^{0,2} (64 channels each) and X^{1,2} (128).
    assert full.nodes["0_3"].conv1.in_channels == 3 * 64 + 128
    assert full.nodes["3_1"].conv1.in_channels == 512 + 512


def test_gradients_reach_every_parameter_of_the_full_network(full: UNetPlusPlus) -> None:
    full.train()
    logits = full(torch.rand(2, 3, 32, 32))
    sum(one.square().mean() for one in logits).backward()
    without = [n for n, p in full.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    full.zero_grad(set_to_none=True)
    assert without == []


@pytest.mark.parametrize("training", [True, False])
def test_forward_gives_the_same_kind_of_list_in_training_and_inference(training: bool) -> None:
    network = UNetPlusPlus(SMALL).train(training)
    logits = network(torch.rand(2, 3, 32, 48))
    assert isinstance(logits, list)
    assert [tuple(one.shape) for one in logits] == [(2, 1, 32, 48)] * 4


def test_a_size_that_does_not_divide_is_refused_with_the_step() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        UNetPlusPlus(SMALL)(torch.rand(1, 3, 40, 32))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_pruned_network_equals_that_output_of_the_whole(depth: int) -> None:
    torch.manual_seed(1)
    network = UNetPlusPlus(SMALL).eval()
    x = torch.rand(1, 3, 32, 32)
    small = network.pruned(depth)
    with torch.no_grad():
        logits = small(x)
        assert len(logits) == depth
        torch.testing.assert_close(logits[-1], network(x)[depth - 1])
    if depth < 4:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


def test_deeper_context_reaches_the_deep_outputs_only() -> None:
    network = UNetPlusPlus(SMALL).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = network(x)
        network.backbone.blocks[4][0].weight.zero_()  # X^{4,0} feeds X^{0,4} and nothing shallower
        after = network(x)
    same = [torch.equal(a, b) for a, b in zip(before, after)]
    assert same == [True, True, True, False]


def test_build_segmenter_from_a_description() -> None:
    network = build_segmenter({"arch": "unetpp", "network": to_dict(SMALL)})
    assert network.config == SMALL
    assert from_dict(UNetPlusPlusConfig, to_dict(SMALL)) == SMALL
    with pytest.raises(ConfigError, match="did you mean 'unetpp'"):
        build_segmenter({"arch": "unetp"})
    with pytest.raises(ConfigError, match="depth"):
        build_segmenter({"arch": "unetpp", "network": {"depth": 5}})
