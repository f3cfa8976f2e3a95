"""A forward of the full-size SD1.5 UNet at 512 pixels with soft tokens against one without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from full_size import CONFIGS

from softrepa_pipeline.backbones import Sites, inject
from softrepa_pipeline.backbones.unet import transformer_blocks
from softrepa_pipeline.evaluation.overhead import in_turns
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig

_ROUNDS = 7


def measure() -> dict[str, Any]:
    """`latency_ratio`: median over rounds of with / without, random weights."""
    unet = UNet2DConditionModel(**CONFIGS["sd15"][1]).eval().requires_grad_(False)
    blocks = transformer_blocks(unet)
    chosen = tuple(index for index, name in enumerate(blocks) if name.startswith("down"))
    names = tuple(list(blocks)[index] for index in chosen)
    sites = Sites(tuple(blocks.values()), chosen, names, 768, "cross_attention_kwargs", text_persists=False)
    tokens = SoftTokens(SoftTokensConfig(("down",), 4, 768, 100, shared=True))
    latents, text = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)

    @torch.no_grad()
    def forward() -> None:
        unet(latents, 500, text)

    with inject(unet, sites, tokens) as injected:

        def prepare(strength: float, _round: int) -> Callable[[], None]:
            injected.strength = strength
            return forward

        plain, soft = in_turns([partial(prepare, 0.0), partial(prepare, 1.0)], _ROUNDS)
    ratio = float(np.median(soft / plain))
    print(f"latency ratio {ratio:.4f}, {np.median(plain):.2f} s without, {np.median(soft):.2f} s with")
    return {"latency_ratio": ratio, "latency_seconds": [float(np.median(plain)), float(np.median(soft))]}


if __name__ == "__main__":
    measure()
