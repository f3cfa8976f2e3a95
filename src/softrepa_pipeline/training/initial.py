"""Where soft tokens start: at random, from what the base model makes of an empty caption, or from trained ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, Sites, argument_binder
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, load_soft_tokens
from softrepa_pipeline.training.config import FitConfig

_TIMESTEP = 500.0


def initial_tokens(backbone: Backbone, sites: Sites, config: FitConfig, latent_shape: torch.Size) -> SoftTokens:
    """Soft tokens as `config.initial` asks: `normal` is N(0, 0.02) (arXiv 2503.08250), `null_text` as below.

    With `null_text` all tokens of a layer are the first text state (BOS) that its block sees for the empty caption, as
    the public code has it for SD1.5, so that they have the size of the states they stand among. A time table, where
    there is one, stays N(0, 0.02). Shared tokens take the first chosen block's state. With `start_from` they are those
    of that file.

    Raises:
        ValueError: that file's tokens are for other layers, or of another number.
        FileNotFoundError: it is not there.
    """
    layers = tuple(map(str, config.layers)) if config.shared else sites.names
    shape = SoftTokensConfig(layers, config.num_tokens, sites.width, config.num_buckets, config.shared)
    if config.start_from is not None:
        return _trained(Path(config.start_from), backbone.family, shape)
    tokens = SoftTokens(shape, torch_generator(config.seed, "tokens"))
    if config.initial == "null_text":
        states = _null_text_states(backbone, sites, latent_shape)[: shape.num_layers]  # (layers, width)
        with torch.no_grad():
            tokens.base.copy_(states[:, None].expand_as(tokens.base))
    return tokens


def _trained(file: Path, family: str, shape: SoftTokensConfig) -> SoftTokens:
    tokens, _ = load_soft_tokens(file, family)
    for name, wanted in asdict(shape).items():
        if (found := getattr(tokens.config, name)) != wanted:
            raise ValueError(f"fit.start_from: the tokens of {file} have {name} {found}, the settings ask for {wanted}")
    return tokens


@torch.no_grad()
def _null_text_states(backbone: Backbone, sites: Sites, latent_shape: torch.Size) -> Tensor:
    """BOS states (layers, width) that enter the chosen blocks with the empty caption, pure noise, mid-way."""
    seen: dict[int, Tensor] = {}
    handles = []
    for index in sites.chosen:
        block = sites.blocks[index]
        remember = _remember(seen, index, argument_binder(block))
        handles.append(block.register_forward_pre_hook(remember, with_kwargs=True))
    prompt = backbone.encode_prompts([""])
    noise = torch.randn((1, *latent_shape), generator=torch_generator(0, "null text")).to(prompt.states)
    timestep = torch.full((1,), _TIMESTEP, device=backbone.device)
    backbone.predict(backbone.noise(torch.zeros_like(noise), noise, timestep), prompt)
    for handle in handles:
        handle.remove()
    return torch.cat([seen[index][:, 0] for index in sites.chosen])


def _remember(seen: dict[int, Tensor], index: int, bind: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen[index] = bind(args, kwargs)["encoder_hidden_states"]

    return hook
