"""A forward of the full-size SD1.5 UNet at 512 pixels with soft tokens against one without."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from full_size import CONFIGS

from softrepa_pipeline.backbones import Sites, inject
from softrepa_pipeline.backbones.unet import transformer_blocks
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
    def forward() -> float:
        started = time.perf_counter()
        unet(latents, 500, text)
        return time.perf_counter() - started

    forward()
    times: list[tuple[float, float]] = []
    for number in range(_ROUNDS):
        took = {}
        for with_tokens in (True, False) if number % 2 else (False, True):
            if with_tokens:
                with inject(unet, sites, tokens):
                    took[True] = forward()
            else:
                took[False] = forward()
        times.append((took[False], took[True]))
        print(f"{took[False]:.2f} s without, {took[True]:.2f} s with", flush=True)
    ratio = statistics.median(soft / plain for plain, soft in times)
    print(f"latency ratio {ratio:.4f}")
    return {"latency_ratio": ratio, "latency_seconds": [statistics.median(t[i] for t in times) for i in (0, 1)]}


if __name__ == "__main__":
    measure()
