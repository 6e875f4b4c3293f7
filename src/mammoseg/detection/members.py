"""Several detectors as one network: each looks at the same input, and what they agree on is left to the fusion.

Detectors trained from different random numbers err differently, so that boxes fused from all of them are better than those of
each (Dietterich, *Ensemble methods in machine learning*, MCS 2000; for boxes Solovyev et al., Image and Vision Computing 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mammoseg.detection import build_detector, described

ARCH = "members"


@dataclass(frozen=True)
class MembersConfig:
    """members: what each detector is, as `mammoseg.detection.build_detector` takes it."""

    members: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"members: expected two detectors or more, got {len(self.members)}")
        if any(described(member)[0] == ARCH for member in self.members):
            raise ValueError("members: expected single detectors, got one that has members itself")


class Members(nn.Module):
    """(B, C, H, W) to the raw maps of all members: those of the first, finest stride first, then those of the next."""

    config_class: ClassVar = MembersConfig
    strides: ClassVar = (8, 16, 32)
    trainable = False
    """As one: its members are trained each alone."""

    def __init__(self, config: MembersConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList([build_detector(member) for member in config.members])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [raw for member in self.members for raw in member(x)]
