"""The head that LAION's aesthetic predictor and ImageReward share: linear layers with nothing between them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class RewardHead(nn.Module):
    """width → 1024 → 128 → 64 → 16 → 1, named as in the published checkpoints.

    Their dropouts stand as identities: they keep the numbering and do nothing after training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Identity(),
            nn.Linear(1024, 128),
            nn.Identity(),
            nn.Linear(128, 64),
            nn.Identity(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Float[Tensor, "images width"]) -> Float[Tensor, "images 1"]:
        return self.layers(features)
