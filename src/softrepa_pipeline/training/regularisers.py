"""What keeps tokens from saying too much: near the base where no text asks for anything, some silent, none too long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Prompt, grid
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens
from softrepa_pipeline.training.methods import Method, Rows

if TYPE_CHECKING:
    from jaxtyping import Float


def pull_to_base(
    backbone: Backbone, method: Method, rows: Rows, null: Prompt, images_at_once: int, divisor: int
) -> Float[Tensor, " images"]:
    """Add the gradient of base_weight · Σ_i d_i / divisor to the tokens; returns the distances d (images,).

    d_i = mean ‖v_s(x_i, t_i, ∅) − v(x_i, t_i, ∅)‖², from the base's prediction without text: what tokens do there they
    do to every image, whatever it is asked to be. It is weighted as a denoising error is.
    """
    first_pairs = torch.arange(len(rows.is_candidate)) * rows.is_candidate.shape[1]
    images = rows.pairs.image_of[first_pairs]
    weight = method.config.base_weight * method.error_unit(rows.temperature) * rows.weight / divisor
    distances = []
    for part in torch.arange(len(images)).split(images_at_once):
        noised = rows.pairs.noised[images[part].to(rows.pairs.noised.sample.device)]
        alone = grid(noised, null, torch.zeros(len(part), 1, dtype=torch.long), rows.pairs.share)
        with torch.no_grad():
            base = alone.predict(backbone, share=torch.zeros(len(part), device=backbone.device))
        distance = denoising_errors(alone.predict(backbone), base)
        (weight[part.to(weight.device)] * distance).sum().backward()
        distances.append(distance.detach())
    return torch.cat(distances)


@contextmanager
def some_silent(method: Method, step: int) -> Iterator[None]:
    """Within it a random `token_dropout` share of the tokens is zero, the same ones for all pairs of a step."""
    config, banks = method.config, _banks(method)
    if config.token_dropout:
        generator = torch_generator(config.seed, "silent tokens", step)
        silent = torch.rand(banks[0].base.shape[:2], generator=generator) < config.token_dropout
        for bank in banks:
            bank.silent = silent.to(bank.base.device)
    try:
        yield
    finally:
        for bank in banks:
            bank.silent = None


@torch.no_grad()
def limit_norm(method: Method) -> None:
    """Shorten the tokens that are longer than `max_token_norm`; their time offsets are left alone."""
    limit = method.config.max_token_norm
    if limit is None:
        return
    for bank in _banks(method):
        bank.base.copy_(bank.base.flatten(0, 1).renorm(2, 0, limit).view_as(bank.base))


def _banks(method: Method) -> list[SoftTokens]:
    return [module for module in method.modules() if isinstance(module, SoftTokens)]
