"""Where soft tokens start: at random, or from what the base model itself makes of an empty caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, Sites
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig
from softrepa_pipeline.training.config import FitConfig

_TIMESTEP = 500.0


def initial_tokens(backbone: Backbone, sites: Sites, config: FitConfig, latent_shape: torch.Size) -> SoftTokens:
    """Soft tokens as `config.initial` asks: `normal` is N(0, 0.02) (arXiv 2503.08250), `null_text` as below.

    With `null_text` each layer's tokens are the first text states that its block sees for the empty caption, so that
    they have the size of the states they stand among and change little until they are trained.
    """
    shape = SoftTokensConfig(len(sites.chosen), config.num_tokens, sites.width, config.num_buckets)
    tokens = SoftTokens(shape, torch_generator(config.seed, "tokens"))
    if config.initial == "null_text":
        states = _null_text_states(backbone, sites, latent_shape)  # (layers, length, width)
        positions = torch.arange(config.num_tokens) % states.shape[1]
        with torch.no_grad():
            tokens.base.add_(states[:, positions].to(tokens.base))
    return tokens


@torch.no_grad()
def _null_text_states(backbone: Backbone, sites: Sites, latent_shape: torch.Size) -> Tensor:
    """Text states (layers, length, width) that enter the chosen blocks with the empty caption, pure noise, mid-way."""
    seen: list[Tensor] = []
    handles = [
        sites.blocks[index].register_forward_pre_hook(_remember(seen, sites), with_kwargs=True)
        for index in sites.chosen
    ]
    prompt = backbone.encode_prompts([""])
    noise = torch.randn((1, *latent_shape), generator=torch_generator(0, "null text")).to(prompt.states)
    timestep = torch.full((1,), _TIMESTEP, device=backbone.device)
    backbone.predict(backbone.noise(torch.zeros_like(noise), noise, timestep), prompt)
    for handle in handles:
        handle.remove()
    return torch.cat(seen)


def _remember(seen: list[Tensor], sites: Sites) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        name = "encoder_hidden_states"
        seen.append(kwargs[name] if name in kwargs else args[sites.positions[name]])

    return hook
