"""The public trainer's step, written from docs/method.md: what the engine is measured against.

Every image of a step with every caption of it, all with one timestep and one noise; a few rows of that matrix in each
backward; AdamW at a constant rate. Written plainly, but nothing in it is slower than it must be: a caption is encoded
once a step, nothing is copied that the model does not need, frozen weights get no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from reference_forward import plain_forward
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Noised, Prompt
from softrepa_pipeline.soft_tokens import SoftTokens

_SCALE, _TEMPERATURE = 4.0, 0.07


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, H, W), a caption each, one noise (1, C, H, W) and one timestep (1,) for all."""

    latents: Tensor
    captions: list[str]
    noise: Tensor
    timestep: Tensor


def step(
    backbone: Backbone,
    tokens: SoftTokens,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rows: int,
    denoising_weight: float,
) -> float:
    """One step of the public trainer; returns its loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        prompt = backbone.encode_prompts(batch.captions)
    loss = accumulate(backbone, tokens, batch, prompt, rows, denoising_weight)
    optimizer.step()
    return loss


def accumulate(
    backbone: Backbone, tokens: SoftTokens, batch: Batch, prompt: Prompt, rows: int, denoising_weight: float
) -> float:
    """Add the gradient of the whole B × B loss to the tokens, `rows` images with all captions a backward."""
    size, total = len(batch.latents), 0.0
    for images in torch.arange(size).split(rows):
        latents = batch.latents[images].repeat_interleave(size, dim=0)
        noised = backbone.noise(latents, batch.noise.expand_as(latents), batch.timestep.expand(len(latents)))
        errors = pair_errors(backbone, tokens, noised, prompt[torch.arange(size).repeat(len(images))])
        errors = errors.view(len(images), size)
        contrastive = F.cross_entropy(_SCALE * torch.exp(-errors / _TEMPERATURE), images, reduction="sum")
        own = errors[torch.arange(len(images)), images].sum()
        loss = (contrastive + denoising_weight * own) / size
        loss.backward()
        total += loss.item()
    return total


def pair_errors(backbone: Backbone, tokens: SoftTokens, noised: Noised, prompt: Prompt) -> Tensor:
    """Mean squared error of each pair (pairs,)."""
    prediction = plain_forward(backbone, noised, prompt, tokens)
    return F.mse_loss(prediction, noised.target, reduction="none").mean(dim=(1, 2, 3))
