"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mammoseg.segmentation.losses import SegmentationLossConfig, deep_supervision_loss, dice_loss

SURE = 50.0  # a logit whose probability is 1 in float32


def image(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values)[None, None]


def test_dice_loss_by_hand() -> None:
    logits = image([[SURE, SURE], [-SURE, -SURE]])  # finds 2 pixels
    truth = image([[1.0, 0.0], [1.0, 0.0]])  # of which 1 is right, 1 is missed: TP 1, FP 1, FN 1
    assert float(dice_loss(logits, truth, smooth=0.0)) == pytest.approx(1 - 2 / 4)
    assert float(dice_loss(logits, truth, smooth=1.0)) == pytest.approx(1 - 3 / 5)


def test_dice_loss_is_a_mean_over_images_not_over_pixels() -> None:
    right, wrong = image([[SURE, -SURE]]), image([[SURE, -SURE]])
    truth = torch.cat([image([[1.0, 0.0]]), image([[0.0, 1.0]])])
    assert float(dice_loss(torch.cat([right, wrong]), truth, smooth=0.0)) == pytest.approx(0.5)


def test_empty_truth_has_a_defined_loss_and_gradient() -> None:
    logits = torch.full((1, 1, 2, 2), -SURE, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(logits.grad).all()


def test_deep_supervision_is_the_mean_over_outputs() -> None:
    truth = image([[1.0, 0.0]])
    right, wrong = image([[SURE, -SURE]]), image([[-SURE, SURE]])
    config = SegmentationLossConfig(smooth=0.0)
    assert float(deep_supervision_loss([right] * 3 + [wrong], truth, config)) == pytest.approx(0.25)


def test_dice_and_cross_entropy_by_hand() -> None:
    truth, logits = image([[1.0, 0.0]]), image([[0.0, 0.0]])  # probabilities 1/2: Dice 2·½/(1 + 1), cross-entropy ln 2
    config = SegmentationLossConfig(dice_weight=2.0, bce_weight=3.0, smooth=0.0)
    assert float(deep_supervision_loss([logits], truth, config)) == pytest.approx(2 * 0.5 + 3 * math.log(2), rel=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 1, 256, 256, dtype=torch.bfloat16)
    loss = dice_loss(logits, torch.ones(1, 1, 256, 256), smooth=0.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1 - 2 * 0.5 / 1.5, rel=1e-6)


def test_weights_that_make_no_loss_are_refused() -> None:
    with pytest.raises(ValueError, match="not both 0"):
        SegmentationLossConfig(dice_weight=0.0, bce_weight=0.0)
